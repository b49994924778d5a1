"""The latency staircase of a device: what one layer takes with fewer tokens, and what a schedule may take by that."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from trt_compress.errors import UnsupportedError
from trt_compress.export.trace import onnx_from_graph
from trt_compress.files import write_whole
from trt_compress.models.compressors.passing import Taps, Tokens
from trt_compress.models.compressors.place import GraphPlan
from trt_compress.models.hosts.base import CompressedModule, GraphSpec, TensorSpec
from trt_compress.tools.tune.measure_block import staircase as measure
from trt_compress.tools.tune.schedule import Shape

if TYPE_CHECKING:
    from trt_compress.tools.evaluate import Progress

Floats = npt.NDArray[np.float64]

BLOCK, STAIRCASE = "block.onnx", "staircase.json"
_STEPS = 12
_ROUNDS, _WARMUP = 21, 4
_ATTENTION = 1 / 3  # of a layer's time, about: a method acts between attention and feed-forward part
_ALIKE = 0.05  # a step down of less than this is none
PROVIDERS = {"ort-cpu": "CPUExecutionProvider", "ort-cuda": "CUDAExecutionProvider"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Staircase:
    """What one layer takes on this device.

    Attributes:
        counts: Tokens, ascending; the last is all of them.
        block_ns: For each batch what a layer takes at each count in its fastest round: what else runs on a machine
            slows some rounds and speeds up none.
        batch: The batch that was asked for.
    """

    counts: tuple[int, ...]
    block_ns: Mapping[int, tuple[float, ...]]
    batch: int

    @property
    def floor(self) -> int:
        """Tokens below which nothing is gained: no smaller count is faster by more than 5 %."""
        steps = self._smooth
        return max(count for place, count in enumerate(self.counts) if steps[0] >= steps[place] * (1 - _ALIKE))

    @property
    def _smooth(self) -> Floats:
        """The steps at the batch that was asked for, none below the one before it."""
        steps = np.asarray(self.block_ns[self.batch])
        above, below = np.maximum.accumulate(steps), np.minimum.accumulate(steps[::-1])[::-1]
        return (above + below) / 2

    def block(self, tokens: float) -> float:
        """Nanoseconds of a layer with so many tokens at the batch that was asked for; fewer never take longer."""
        return float(np.interp(tokens, self.counts, self._smooth))

    def saved_ns(self, shape: Shape, left: Sequence[int]) -> float:
        """What a schedule saves of the time of the whole model, without what the method itself takes."""
        before, saved = shape.tokens, 0.0
        for after in left:
            saved += self.block(shape.tokens)
            saved -= _ATTENTION * self.block(before) + (1 - _ATTENTION) * self.block(after)
            before = after
        return saved

    def to_json(self) -> dict[str, Any]:
        """Write as plain JSON data."""
        return {
            "counts": list(self.counts),
            "block_ms": {str(batch): [ns / 1e6 for ns in steps] for batch, steps in self.block_ns.items()},
            "batch": self.batch,
            "floor_tokens": self.floor,
        }


class _Block(CompressedModule):
    """One layer of a model as its host runs it, [B, N, C] to [B, N, C], with any number of tokens."""

    def __init__(self, whole: nn.Module, given: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        super().__init__()
        self.whole = whole
        self._given, self._named = given, named

    def forward(self, x: Tensor) -> Tensor:
        """The layer, with no method in it."""
        placed: GraphPlan = self.whole.placed  # type: ignore[assignment]
        return placed.layer(0, Tokens(x=x), Taps(), *self._given, **self._named).x


def block_of(graph: GraphSpec) -> tuple[GraphSpec, int]:
    """The first layer of a model as a graph by itself, and the width of its tokens.

    Args:
        graph: The uncompressed model.

    Raises:
        UnsupportedError: Its host has no layers in a row.
    """
    if graph.layers is None or not isinstance(getattr(graph.module, "placed", None), GraphPlan):
        raise UnsupportedError("tune takes models whose layers stand in a row; `trt-compress sweep` takes the others.")
    short = graph.layers.first(1) if graph.layers.count > 1 else graph
    seen: list[tuple[Tokens, tuple[Any, ...], dict[str, Any]]] = []
    placed: Any = short.module.placed
    run = placed.layer

    def spy(number: int, tokens: Tokens, taps: Taps, *given: Any, **named: Any) -> Tokens:
        seen.append((tokens, given, named))
        found: Tokens = run(number, tokens, taps, *given, **named)
        return found

    placed.layer = spy
    try:
        with torch.no_grad():
            short.module(*(_example(spec) for spec in graph.inputs))
    finally:
        del placed.layer
    tokens, given, named = seen[0]
    width = int(tokens.x.shape[2])
    shape = ("batch", "tokens", width)
    block = GraphSpec(
        module=_Block(short.module, given, named).eval(),
        inputs=(TensorSpec(name="x", shape=shape),),
        outputs=(TensorSpec(name="y", shape=shape),),
        name="block",
        lengths={"tokens": (1, int(tokens.x.shape[1]), 1 << 16)},
    )
    return block, width


def _example(spec: TensorSpec) -> Tensor:
    shape = [2 if isinstance(dim, str) else dim for dim in spec.shape]
    least = 0 if spec.values is None else spec.values[0]
    return torch.full(shape, least, dtype=getattr(torch, spec.dtype))


def write_block(graph: GraphSpec, folder: Path, *, opset: int, max_batch: int) -> int:
    """Write a layer's ONNX file; returns the width of a token."""
    block, width = block_of(graph)
    model = onnx_from_graph(block, block.module, max_batch=max_batch, opset=opset)
    write_whole(folder / BLOCK, model.SerializeToString())
    return width


def request_of(shape: Shape, *, width: int, batch: int, threads: int | None, backend: str) -> dict[str, Any]:
    """What `measure_block` is to measure: some twelve counts at batch 1 and at the batch that was asked for."""
    least = shape.prefix + 1
    counts = {round(least + (shape.tokens - least) * step / _STEPS) for step in range(_STEPS + 1)}
    return {
        "counts": sorted(counts),
        "batches": sorted({1, batch}),
        "width": width,
        "rounds": _ROUNDS,
        "warmup": _WARMUP,
        "threads": threads,
        "provider": PROVIDERS[backend],
    }


def measured(folder: Path, request: Mapping[str, Any], *, batch: int, say: "Progress") -> Staircase:
    """Measure the staircase here."""
    return from_latencies(measure(folder, dict(request), say), request["counts"], batch=batch)


def from_latencies(found: Mapping[str, Any], counts: Sequence[int], *, batch: int) -> Staircase:
    """The staircase that `measure_block` found."""
    steps = {
        int(size): tuple(float(min(own[str(count)])) for count in counts) for size, own in found["latencies_ns"].items()
    }
    return Staircase(counts=tuple(counts), block_ns=steps, batch=batch)
