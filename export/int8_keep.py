"""Layers whose quantization costs most, found by measuring: each alone in INT8, beside the graph in floating point."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from trt_compress.errors import ExportError
from trt_compress.export.runners import OrtError, Runner

Array = np.ndarray[Any, np.dtype[Any]]
Feed = Mapping[str, Array]

MOST_RUNS = 32
"""Runs that each layer is measured with, evenly spread over all that there are."""
STANDS_OUT = 2.0
"""Times the mean cost of a layer from which on one stands out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """Which layers stay in floating point, and what that is worth.

    Attributes:
        layers: By name, what each costs, the costliest first.
        runs: How many runs that was measured with.
        before: What INT8 costs where every layer is quantized, on these runs.
        after: The same with these layers in floating point.
        costs: What each layer costs, of all that were measured.
    """

    layers: Mapping[str, float]
    runs: int
    before: float
    after: float
    costs: Mapping[str, float] = field(default_factory=dict)


def costly(
    file: Path,
    quantized: onnx.ModelProto,
    layers: Sequence[str],
    feeds: Sequence[Feed],
    *,
    most: int | None,
    room: int,
) -> Kept:
    """Find the layers whose quantization costs most.

    A cost is how far INT8 moves the outputs and new states: one minus the cosine, and of whole numbers the share that
    is another; the mean over outputs and runs. Each layer is in INT8 alone, so that what it costs is not hidden by the
    others.

    Args:
        file: The graph in floating point; its weights may lie beside it.
        quantized: The same with every layer in INT8, with its tensors in it.
        layers: Names of the layers that are.
        feeds: Inputs and states of the runs.
        most: Keep so many, the costliest; None: those that cost `STANDS_OUT` times the mean or more, at most `room`.
        room: How many may be kept.

    Returns:
        What to keep; nothing where that would not answer closer than INT8 everywhere.

    Raises:
        ExportError: ONNX Runtime cannot run a graph.
    """
    chosen = [feeds[place] for place in sorted({int(at) for at in np.linspace(0, len(feeds) - 1, MOST_RUNS)})]
    floats = onnx.load(file, load_external_data=False)

    def cost(names: Collection[str]) -> float:
        return distance(file, with_int8(floats, quantized, names), chosen, expected)

    expected = _answers(file, floats, chosen)
    costs = {name: cost([name]) for name in layers}
    order = sorted(layers, key=lambda name: -costs[name])
    mean = sum(costs.values()) / len(costs)
    found = order[:most] if most is not None else [n for n in order if costs[n] >= STANDS_OUT * mean > 0][:room]
    before = cost(layers)
    after = cost([name for name in layers if name not in found]) if found else before
    if after >= before:
        found, after = [], before
    kept = {name: costs[name] for name in found}
    return Kept(layers=kept, runs=len(chosen), before=before, after=after, costs=costs)


def distance(
    file: Path, model: onnx.ModelProto, feeds: Sequence[Feed], expected: Sequence[Mapping[str, Array]] | None = None
) -> float:
    """How far a graph is from the one in floating point: the mean over outputs and runs, 0 to 2.

    Args:
        file: The graph in floating point; what `model` has outside lies beside it.
        model: The graph.
        feeds: Inputs and states of the runs.
        expected: What the one in floating point answers; None: it is run.

    Raises:
        ExportError: ONNX Runtime cannot run it.
    """
    if expected is None:
        expected = _answers(file, onnx.load(file, load_external_data=False), feeds)
    found = _answers(file, model, feeds)
    away = [_away(right[name], answer[name]) for right, answer in zip(expected, found, strict=True) for name in right]
    return sum(away) / len(away)


def with_int8(floats: onnx.ModelProto, quantized: onnx.ModelProto, names: Collection[str]) -> onnx.ModelProto:
    """A copy of a graph in floating point with the named nodes as they are in INT8.

    Args:
        floats: The graph.
        quantized: The same, quantized, with its tensors in it.
        names: Nodes that are in INT8 there.
    """
    model = onnx.ModelProto()
    model.CopyFrom(floats)
    known = {value.name for value in floats.graph.input} | {tensor.name for tensor in floats.graph.initializer}
    known |= {name for node in floats.graph.node for name in node.output}
    producer = {name: node for node in quantized.graph.node for name in node.output}
    place = {id(node): number for number, node in enumerate(quantized.graph.node)}
    made: set[str] = set()
    nodes: list[onnx.NodeProto] = []
    for node in floats.graph.node:
        if node.name not in names:
            nodes.append(node)
            continue
        chain = {id(part): part for part in _chain(node.output[0], producer, known)}
        for part in sorted(chain.values(), key=lambda part: place[id(part)]):
            if part.output[0] not in made:
                made.add(part.output[0])
                nodes.append(part)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    read = {name for node in nodes for name in node.input} - known
    model.graph.initializer.extend(tensor for tensor in quantized.graph.initializer if tensor.name in read)
    return model


def _chain(name: str, producer: Mapping[str, onnx.NodeProto], known: Collection[str]) -> Iterator[onnx.NodeProto]:
    """The nodes that make a value out of values that the graph in floating point has too."""
    waiting = [producer[name]]
    while waiting:
        node = waiting.pop()
        yield node
        waiting += [producer[given] for given in node.input if given not in known and given in producer]


def _answers(file: Path, model: onnx.ModelProto, feeds: Sequence[Feed]) -> list[Mapping[str, Array]]:
    try:
        runner = Runner(model, file.parent, None)
        return [{name: value.numpy() for name, value in runner(feed).items()} for feed in feeds]
    except OrtError as error:
        raise ExportError(f"keep_precision: ONNX Runtime cannot run the graph '{file.stem}': {error}") from error


def _away(expected: Array, got: Array) -> float:
    """How far an answer is from another: one minus the cosine, of whole numbers the share that is another."""
    if expected.shape != got.shape:
        return 1.0
    if expected.dtype.kind != "f":
        return float((expected != got).mean()) if expected.size else 0.0
    one, other = expected.astype(np.float64).ravel(), got.astype(np.float64).ravel()
    if np.array_equal(one, other):
        return 0.0
    size = float(np.linalg.norm(one) * np.linalg.norm(other))
    cosine = float(one @ other) / size if size > 0 else 0.0
    return max(1 - cosine, 0.0) if np.isfinite(cosine) else 1.0
