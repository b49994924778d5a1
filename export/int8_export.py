"""INT8 in an export and in its verification: samples, graphs that are quantized, what runs of them, how they answer."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx

from trt_compress.errors import ConfigError, GateError, UnsupportedError
from trt_compress.export.agreement import agreement
from trt_compress.export.int8 import LAYERS, QuantizedGraph, layers_of, quantize_graph
from trt_compress.export.int8_achieved import layers_between_quantizers, layers_in_int8
from trt_compress.export.int8_data import Int8Samples, feeds_of, read_samples
from trt_compress.export.int8_form import Int8Form
from trt_compress.export.int8_keep import Kept, costly, distance
from trt_compress.export.questions import REAL, SEEDED, Questions
from trt_compress.export.recipe import Recipe
from trt_compress.export.sides import Part
from trt_compress.export.targets import get_target
from trt_compress.export.verify_report import AgreementCheck
from trt_compress.format.kinds import ClassOutput, output_kind
from trt_compress.format.manifest import Int8Use, Manifest
from trt_compress.models.hosts.base import GraphSpec, LoadedHost, Steps
from trt_compress.plugins.library import Library
from trt_compress.strays import temporary_folder

_FIXED = "its weights are no learned ones but a transform, such as a spectrum's, whose result has no room for rounding"
_MOST_EXAMPLES = 64
_MOST_BYTES = 64 << 20  # of examples that are asked for, so that those of large inputs are few


def check_host(recipe: Recipe, host: LoadedHost, graphs: Sequence[GraphSpec], layers: int | None) -> None:
    """Refuse a model that is not quantized so, as it reads tokens one after the other.

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
    if host.links and any(graph.states for graph in graphs):
        raise UnsupportedError(
            f"precision int8: graphs of {recipe.model} feed each other ({host.links[0][0]} to {host.links[0][1]}) and "
            "keep states, which is not quantized so far; give fp16, or --weights-bits 8."
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
        samples: What static ranges are found with, and what layers cost is measured with.
        records: What was achieved, graph by graph.
        notes: What was measured of layers that stay in floating point.
        several: Whether the model has more than one graph; one without weights is then left as it is.
    """

    recipe: Recipe
    form: Int8Form
    samples: Int8Samples | None = None
    records: list[Int8Use] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    several: bool = False

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
        several = len(graphs) > 1
        if recipe.calibrate is None:
            return cls(recipe=recipe, form=form, several=several)
        step("reading samples")
        samples = read_samples(Path(recipe.calibrate), host, graphs, manifest)
        return cls(recipe=recipe, form=form, samples=samples, several=several)

    def quantized(self, part: Part, step: Callable[[str], None]) -> onnx.ModelProto:
        """A graph in INT8, with its tensors in it.

        Args:
            part: The graph in floating point.
            step: Is told what takes long.

        Raises:
            ConfigError, ExportError: as `quantize_graph`.
        """
        samples, graph = self.samples, part.graph
        feeds = [] if samples is None else feeds_of(graph, samples.fit[graph.name])
        symmetric = any(get_target(name).is_tensorrt for name in self.recipe.targets)
        keep = fixed_layers(part)
        if self.several and not layers_of(floats := onnx.load(part.file, load_external_data=False)).weighted:
            self.records.append(self._record(graph, QuantizedGraph(model=floats, layers=layers_of(floats))))
            return onnx.load(part.file)
        made = quantize_graph(part.file, self.form, feeds, symmetric=symmetric, keep=keep)
        if (asked := self.recipe.keep_precision) is not None and samples is not None:
            step(f"measuring what each layer of {graph.name} costs")
            layers = [name for name in made.layers.weighted if name not in made.kept]
            found = costly(part.file, made.model, layers, feeds, most=asked.most, room=self._room(part, made, layers))
            if found.layers:
                keep |= {name: _cost_said(cost, found) for name, cost in found.layers.items()}
                everywhere = made
                made = quantize_graph(part.file, self.form, feeds, symmetric=symmetric, keep=keep)
                self._note(part, found, everywhere, made)
            else:
                self.notes.append(
                    f"keep_precision {asked}: of graph '{graph.name}' every layer is in INT8, as none costs so much "
                    f"more than the others that keeping it would pay (INT8 costs {found.before:.1e} of the cosine)"
                )
        self.records.append(self._record(graph, made))
        return made.model

    def _room(self, part: Part, made: QuantizedGraph, layers: Sequence[str]) -> int:
        """How many layers can stay in floating point, so that as many as were asked for are in INT8."""
        in_int8 = len(layers)
        if "cpu" in self.recipe.targets:
            with temporary_folder("int8") as folder:
                onnx.save_model(made.model, folder / part.file.name)
                in_int8 = layers_in_int8(folder / part.file.name)
        return max(math.floor(in_int8 - self.recipe.least_share * len(made.layers.weighted) + 1e-6), 0)

    def _note(self, part: Part, found: Kept, everywhere: QuantizedGraph, made: QuantizedGraph) -> None:
        """Say what keeping layers is worth, on samples that had no part in choosing them."""
        assert self.samples is not None
        feeds = feeds_of(part.graph, self.samples.held_out[part.graph.name])
        before, after = (distance(part.file, graph.model, feeds) for graph in (everywhere, made))
        better = "" if after < before else ", which is no gain: leave --keep-precision out, or give more samples"
        self.notes.append(
            f"keep_precision {self.recipe.keep_precision}: of graph '{part.graph.name}' {len(found.layers)} of "
            f"{len(found.costs)} layers stay in floating point ({', '.join(found.layers)}); on {len(feeds)} held-out "
            f"runs INT8 costs {before:.1e} of the cosine without that, and {after:.1e} with it{better}"
        )

    def read_back(self, graph: str, file: Path) -> None:
        """Note what of a graph runs in INT8.

        Raises:
            GateError: Less than was asked for.
        """
        place = next(number for number, record in enumerate(self.records) if record.graph == graph)
        count = layers_in_int8 if "cpu" in self.recipe.targets else layers_between_quantizers
        record = replace(self.records[place], in_int8=count(file))
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


def fixed_layers(part: Part) -> dict[str, str]:
    """The layers whose weights are buffers of the module and were not learned, with the reason to keep them."""
    buffers = {name for name, _ in part.module.named_buffers()}
    nodes = onnx.load(part.file, load_external_data=False).graph.node
    return {node.name: _FIXED for node in nodes if node.op_type in LAYERS and buffers.intersection(node.input[:2])}


def _cost_said(cost: float, found: Kept) -> str:
    return f"in INT8 alone it costs {cost:.1e} of the cosine, in {found.runs} runs of the samples"


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
