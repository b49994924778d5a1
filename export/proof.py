"""A whole verification: every graph by itself, or the procedure that runs them all; and what quantized weights cost."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from trt_compress.export.course import of_layers
from trt_compress.export.questions import Questions
from trt_compress.export.runners import AS_DEPLOYED
from trt_compress.export.sides import OnnxSide, Part, TorchSide
from trt_compress.export.verify import distances, run_graph, run_procedure, verify_onnx, verify_procedure
from trt_compress.export.verify_report import DEPLOYED, LOADED, QUANTIZED, VerifyReport, merge_reports
from trt_compress.format.manifest import Manifest
from trt_compress.models.hosts.base import GraphSpec
from trt_compress.plugins.library import Library

Answers = Mapping[str, Sequence[Mapping[str, Tensor]]]
"""The outputs of every run, by graph."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What a verification is made with.

    Attributes:
        questions: What both sides are asked.
        ours: What the host says of its graphs; torch follows its procedure.
        theirs: What the bundle says; ONNX Runtime follows this one.
        precision: fp32, fp16 or bf16.
        loaded: What the model answered before its weights were quantized; empty where they are not.
        native: The native operators to run in place of the bodies; None: the bodies.
    """

    questions: Questions
    ours: Manifest
    theirs: Manifest
    precision: str
    loaded: Answers
    native: Library | None = None

    def of(self, parts: Sequence[Part], step: Callable[[str], None] = lambda text: None) -> VerifyReport:
        """Compare graphs, up to the first that fails; `step` is told the name of each.

        Raises:
            GateError: ONNX Runtime cannot load a file, or a procedure cannot go on.
        """
        if self.ours.procedure is not None or self.theirs.procedure is not None:
            step("verifying the procedure")
            return self._with_distances(self._procedure(parts), parts)
        reports: list[VerifyReport] = []
        for part in parts:
            step("verifying" + (f" {part.graph.name}" if len(parts) > 1 else ""))
            report = verify_onnx(
                part.file,
                part.module,
                graph=part.graph,
                inputs=self.questions.steps[part.graph.name],
                inputs_label=self.questions.labels[part.graph.name],
                precision=self.precision,
                native=self.native,
            )
            report = replace(report, layers=part.layers, layers_of=part.layers_of, left_out=part.left_out)
            reports.append(self._with_distances(report, [part]))
            if not report.passed:
                break
        return merge_reports(reports)

    def _procedure(self, parts: Sequence[Part]) -> VerifyReport:
        report = verify_procedure(
            parts,
            ours=self.ours,
            theirs=self.theirs,
            scenarios=self.questions.scenarios,
            inputs_label=self.questions.label,
            precision=self.precision,
            native=self.native,
        )
        short = next((part for part in parts if part.layers), parts[0])
        without = tuple(dict.fromkeys(said for part in parts for said in part.left_out))
        return replace(report, layers=short.layers, layers_of=short.layers_of, left_out=without)

    def _with_distances(self, report: VerifyReport, parts: Sequence[Part]) -> VerifyReport:
        """The report, and of quantized weights how far they take the outputs from the model as it was."""
        if not self.loaded or not report.passed:
            return report
        quantized = answers([(part.graph, part.module) for part in parts], self.ours, self.questions)
        side = OnnxSide(parts={part.graph.name: part for part in parts}, accuracy=AS_DEPLOYED, sites=False)
        found = report.distances
        deployed = {} if report.method else _asked(side, [p.graph for p in parts], self.theirs, self.questions)
        for part in parts:
            graph, name = part.graph, part.graph.name
            found += distances(graph, QUANTIZED, quantized[name], LOADED, self.loaded[name])
            if deployed:  # else it is not deployed there
                found += distances(graph, DEPLOYED, deployed[name], QUANTIZED, quantized[name])
        return replace(report, distances=found)


def answers(graphs: Sequence[tuple[GraphSpec, nn.Module]], manifest: Manifest, questions: Questions) -> Answers:
    """What modules answer in torch."""
    side = TorchSide({graph.name: (graph, module) for graph, module in graphs})
    return _asked(side, [graph for graph, _ in graphs], manifest, questions)


def _asked(
    side: TorchSide | OnnxSide, graphs: Sequence[GraphSpec], manifest: Manifest, questions: Questions
) -> Answers:
    if manifest.procedure is None:
        return {graph.name: run_graph(side, graph, questions.steps[graph.name]) for graph in graphs}
    manifest = of_layers(manifest, graphs)
    found: dict[str, list[Mapping[str, Tensor]]] = {graph.name: [] for graph in graphs}
    for scenario in questions.scenarios:
        for event in run_procedure(side, manifest, scenario):
            found[event.graph].append(event.outputs)
    return found
