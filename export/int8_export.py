"""INT8 in an export and in its verification: samples, graphs that are quantized, what runs of them, how they answer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx

from trt_compress.errors import ConfigError, GateError, UnsupportedError
from trt_compress.export.agreement import agreement
from trt_compress.export.int8 import QuantizedGraph, quantize_graph
from trt_compress.export.int8_achieved import layers_in_int8
from trt_compress.export.int8_data import Int8Samples, feeds_of, read_samples
from trt_compress.export.int8_form import STATIC, Int8Form
from trt_compress.export.questions import REAL, SEEDED, Questions
from trt_compress.export.recipe import Recipe
from trt_compress.export.sides import Part
from trt_compress.export.targets import get_target
from trt_compress.export.verify_report import AgreementCheck
from trt_compress.format.kinds import ClassOutput, output_kind
from trt_compress.format.manifest import Int8Use, Manifest
from trt_compress.models.hosts.base import GraphSpec, LoadedHost, Steps
from trt_compress.plugins.library import Library

_MOST_EXAMPLES = 64
_MOST_BYTES = 64 << 20  # of examples that are asked for, so that those of large inputs are few


def check_host(recipe: Recipe, host: LoadedHost, layers: int | None) -> None:
    """Refuse a model that is not quantized so, as it is read piece by piece or in graphs that feed each other.

    Raises:
        UnsupportedError: It is one.
        ConfigError: Only some layers are to be verified.
    """
    if recipe.int8_form is None:
        return
    if host.procedure is not None:
        raise UnsupportedError(
            f"precision int8: {recipe.model} reads tokens one after the other, and then waits for its weights more "
            "than it computes; give --weights-bits 8 or 4, which make these smaller."
        )
    if host.links:
        raise UnsupportedError(
            f"precision int8: graphs of {recipe.model} feed each other ({host.links[0][0]} to {host.links[0][1]}), "
            "which is not quantized so far; give fp16, or --weights-bits 8."
        )
    if layers is not None:
        raise ConfigError(
            f"--verify-layers {layers} and precision int8 do not go together: INT8 is judged by the answers of the "
            "whole model; leave one of them out."
        )


@dataclass(slots=True)
class Int8Export:
    """The INT8 of one export.

    Attributes:
        recipe: What is asked for.
        form: When and how ranges are found.
        samples: Of static ranges, what they are found with.
        records: What was achieved, graph by graph.
    """

    recipe: Recipe
    form: Int8Form
    samples: Int8Samples | None = None
    records: list[Int8Use] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        host: LoadedHost,
        graphs: Sequence[GraphSpec],
        manifest: Manifest,
        step: Callable[[str], None],
    ) -> "Int8Export | None":
        """What a recipe asks for, its samples read; None: its graphs are in floating point.

        Raises:
            ConfigError: The samples do not suit.
        """
        form = recipe.int8_form
        if form is None:
            return None
        if form.way != STATIC:
            return cls(recipe=recipe, form=form)
        step("reading samples")
        return cls(recipe=recipe, form=form, samples=read_samples(Path(str(recipe.calibrate)), host, graphs, manifest))

    def quantized(self, part: Part) -> onnx.ModelProto:
        """A graph in INT8, with its tensors in it.

        Args:
            part: The graph in floating point.

        Raises:
            ConfigError, ExportError: as `quantize_graph`.
        """
        samples, graph = self.samples, part.graph
        feeds = [] if samples is None else feeds_of(graph, samples.fit[graph.name])
        symmetric = any(get_target(name).is_tensorrt for name in self.recipe.targets)
        made = quantize_graph(part.file, self.form, feeds, symmetric=symmetric)
        self.records.append(self._record(graph, made))
        return made.model

    def read_back(self, graph: str, file: Path) -> None:
        """Note what of a graph runs in INT8.

        Raises:
            GateError: Less than was asked for.
        """
        place = next(number for number, record in enumerate(self.records) if record.graph == graph)
        record = replace(self.records[place], in_int8=layers_in_int8(file))
        self.records[place] = record
        if (
            "cpu" in self.recipe.targets and record.share < self.recipe.least_share
        ):  # engines say it when they are built
            why = next(iter(record.kept.values()), "ONNX Runtime's CPU provider has no kernel for the others")
            raise GateError(
                f"precision int8 was asked for, and of the {record.layers} layers with weights in graph '{graph}' "
                f"{record.in_int8} run in INT8 ({record.share:.0%}; asked for were {self.recipe.least_share:.0%}): "
                f"{why}.",
                hint=f"--int8-share {max(record.share - 0.005, 0):.2f} allows it; nothing was written or changed.",
            )

    def agreements(self, parts: Sequence[Part], questions: Questions, manifest: Manifest) -> tuple[AgreementCheck, ...]:
        """How the graphs in INT8 answer: on held-out samples, on the model's own examples, or on seeded numbers."""
        held_out = {} if self.samples is None else self.samples.held_out
        label = "" if self.samples is None else f"held-out samples of {self.samples.source}"
        return agreements(parts, questions, manifest, held_out=held_out, label=label)

    def _record(self, graph: GraphSpec, made: QuantizedGraph) -> Int8Use:
        samples = self.samples
        return Int8Use(
            graph=graph.name,
            way=self.form.way,
            method=self.form.method,
            layers=len(made.layers.weighted),
            in_int8=0,
            products=len(made.layers.products),
            kept=dict(made.kept),
            data=None if samples is None else samples.source,
            data_sha256=None if samples is None else samples.sha256,
            samples=None if samples is None else samples.used,
        )


def agreements(
    parts: Sequence[Part],
    questions: Questions,
    manifest: Manifest,
    *,
    held_out: Mapping[str, Sequence[Steps]],
    label: str,
    native: Library | None = None,
) -> tuple[AgreementCheck, ...]:
    """How graphs in INT8 answer beside the torch model.

    Args:
        parts: The graphs, modules in floating point, files in INT8.
        questions: What a verification asks where there is nothing better.
        manifest: Which output has classes.
        held_out: Samples that were held out, by graph; empty: there are none.
        label: Where these come from.
        native: The native operators to run in place of the bodies; None: the bodies.
    """
    meaning = output_kind(manifest.postprocess)
    classes = None
    if isinstance(meaning, ClassOutput):
        classes = (meaning.output or parts[-1].graph.outputs[0].name).rpartition(".")[2]
    rows: list[AgreementCheck] = []
    for part in parts:
        graph = part.graph
        inputs, said = held_out.get(graph.name, ()), label
        if not inputs:
            inputs, said = questions.steps[graph.name], questions.labels[graph.name]
            if said == REAL and graph.examples is not None:
                inputs = [graph.examples(_count(graph))]
        rows += agreement(part, inputs, label=said, real=said != SEEDED, classes=classes, native=native)
    return tuple(rows)


def _count(graph: GraphSpec) -> int:
    """How many examples to ask for."""
    one = graph.examples(1) if graph.examples is not None else []
    size = sum(array.nbytes for arrays in one for array in arrays.values())
    return max(1, min(_MOST_EXAMPLES, _MOST_BYTES // max(size, 1)))
