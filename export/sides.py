"""The two sides of a verification: graphs in torch, and the same graphs as ONNX files in ONNX Runtime on the CPU."""

import contextlib
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from trt_compress.errors import GateError, UnsupportedError
from trt_compress.export.lower import operator_nodes
from trt_compress.export.rounded import ROUNDED, has_bfloat16, rounded_to_bfloat16
from trt_compress.export.runners import EXACT, OrtError, Runner
from trt_compress.models.hosts.base import GraphSpec
from trt_compress.plugins.library import Library
from trt_compress.plugins.operator import recording
from trt_compress.plugins.registry import operators
from trt_compress.plugins.spec import DOMAIN
from trt_compress.runtime.backends.ort import OperatorPath, operator_paths

Array = np.ndarray[Any, np.dtype[Any]]
Values = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What is verified of a graph, on both sides: all of it, or its first layers with the tensors of the whole graph.

    Attributes:
        graph: Names, states, and the plan of the compressor sites.
        module: In the precision of the graph, in eval mode.
        file: The ONNX file, with function bodies.
        layers: How many layers there are, if not all.
        layers_of: How many the whole graph has.
        left_out: Methods that do not act in these layers, and where they would.
    """

    graph: GraphSpec
    module: nn.Module
    file: Path
    layers: int | None = None
    layers_of: int | None = None
    left_out: tuple[str, ...] = ()


class TorchSide:
    """Runs graphs in torch.

    Args:
        parts: The graphs, by name.
        mode: In which they are computed more precisely; None: as the graphs say.
    """

    def __init__(
        self, parts: Mapping[str, tuple[GraphSpec, nn.Module]], *, mode: type[TorchFunctionMode] | None = None
    ) -> None:
        self._parts, self._mode = parts, mode

    def __call__(self, name: str, feed: Mapping[str, Array]) -> tuple[Values, Values]:
        """The outputs and new states of a graph, and what was recorded at its sites."""
        graph, module = self._parts[name]
        given = [torch.from_numpy(np.ascontiguousarray(feed[spec.name])) for spec in graph.all_inputs]
        with torch.no_grad(), recording() as sites, contextlib.nullcontext() if self._mode is None else self._mode():
            results = module(*given)
        found = (results,) if isinstance(results, Tensor) else tuple(results)
        return {spec.name: tensor for spec, tensor in zip(graph.all_outputs, found, strict=True)}, sites


@dataclass(slots=True)
class OnnxSide:
    """Runs graphs in ONNX Runtime, each as it is and once more with everything of its sites as outputs.

    Attributes:
        parts: The graphs, by name.
        native: The native operators to run in place of the bodies; None: the bodies.
        accuracy: How precisely it multiplies with quantized weights.
        sites: Whether the second run is wanted.
        failure: What ONNX Runtime said if it could not run a graph.
        method: How a graph is run that it cannot run as it is.
        models: The structure of each graph that was run.
    """

    parts: Mapping[str, Part]
    native: Library | None = None
    accuracy: str = EXACT
    sites: bool = True
    failure: str | None = None
    method: str = ""
    models: dict[str, onnx.ModelProto] = field(default_factory=dict)
    _exposed: dict[str, onnx.ModelProto] = field(default_factory=dict)
    _runners: dict[str, tuple[Runner, ...]] = field(default_factory=dict)

    def __call__(self, name: str, feed: Mapping[str, Array]) -> tuple[Values, Values]:
        """The outputs and new states of a graph (none if it fails), and what is known of its sites.

        Raises:
            GateError: ONNX Runtime cannot load the file, and there is no site that could show from where on.
        """
        if name not in self._runners:
            self._load(name)
        try:
            ran = [runner(feed) for runner in self._runners[name]]
        except OrtError as error:
            self.failure, ran = self.failure or str(error), []
        if ran:
            return ran[0], ran[-1]
        folder = self.parts[name].file.parent
        return {}, _before_failure(self._exposed[name], folder, feed, self.native)

    def paths(self) -> dict[str, dict[str, int]]:
        """For each operator, how many nodes ONNX Runtime ran as native kernels and how many as functions."""
        counts: dict[str, Counter[str]] = {}
        for name, model in self.models.items():
            bodies = defaultdict[str, OperatorPath](lambda: "function")
            forms = bodies if self.method else operator_paths(self.parts[name].file, self.native)
            for op_type in operator_nodes(model):
                counts.setdefault(operators()[op_type].spec.name, Counter(native=0, function=0))
            for node in model.graph.node:
                if node.domain == DOMAIN:
                    counts[operators()[node.op_type].spec.name][forms[node.name]] += 1
        return {name: dict(found) for name, found in counts.items()}

    def _load(self, name: str) -> None:
        part = self.parts[name]
        plain: Path | onnx.ModelProto = part.file
        model = onnx.load(part.file, load_external_data=False)
        exposed = _with_sites(model)
        if has_bfloat16(model):
            if self.native is not None:
                raise UnsupportedError(
                    f"graph '{name}' is in bf16, and of that ONNX Runtime runs the bodies of operators only; verify "
                    "without the native operators."
                )
            plain, exposed, self.method = rounded_to_bfloat16(model), rounded_to_bfloat16(exposed), ROUNDED
        self.models[name], self._exposed[name], self._runners[name] = model, exposed, ()
        folder, more = part.file.parent, self.sites and len(exposed.graph.output) > len(model.graph.output)
        try:
            forms = (plain, exposed) if more else (plain,)
            self._runners[name] = tuple(Runner(form, folder, self.native, self.accuracy) for form in forms)
        except OrtError as error:
            self.failure = f"ONNX Runtime cannot load {part.file.name}: {error}"
            if not part.graph.module.plan:
                raise GateError(f"verification failed: {self.failure}") from error


def _with_sites(structure: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with every named value of a site as an output."""
    model = onnx.ModelProto()
    model.CopyFrom(structure)
    present = {name for node in model.graph.node for name in node.output}
    named = [name for name in present if name.split("/")[-1].startswith("tokens") and "/" in name]
    for node in model.graph.node:
        if node.domain == DOMAIN:
            spec = operators()[node.op_type].spec
            named += [
                value for value, output in zip(node.output, spec.outputs, strict=False) if output.dtypes == ("int64",)
            ]
    exposed = sorted(set(named) - {output.name for output in model.graph.output} - {""})
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in exposed)
    return model


def _before_failure(
    model: onnx.ModelProto, folder: Path, feed: Mapping[str, Array], native: Library | None
) -> dict[str, Tensor]:
    """The values of the sites that a graph reaches before it fails."""
    values: dict[str, Tensor] = {}
    exposed = {output.name for output in model.graph.output}
    for end, node in enumerate(model.graph.node, start=1):
        if not exposed.intersection(node.output):
            continue
        made = {name for before in model.graph.node[:end] for name in before.output}
        part = onnx.ModelProto()
        part.CopyFrom(model)
        del part.graph.node[end:], part.graph.output[:]
        part.graph.output.extend(output for output in model.graph.output if output.name in made)
        try:
            values = Runner(part, folder, native)(feed)
        except OrtError:
            break
    return values
