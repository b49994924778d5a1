"""Whether there is memory for what was asked, before any of it is taken."""

import numpy as np

from trt_compress.errors import UnsupportedError
from trt_compress.format.graphs import BATCH_SYMBOL
from trt_compress.format.manifest import Manifest
from trt_compress.memory import available_bytes, format_bytes

_BITS = {"int4": 4, "uint4": 4, "float4_e2m1": 4, "bfloat16": 16}


def state_bytes(manifest: Manifest, batch: int, slots: int) -> int:
    """Bytes of the states of sequences that use so many slots, held once."""
    total = 0
    for state in {state.key: state for state in manifest.states}.values():
        bits = _BITS.get(state.dtype) or 8 * np.dtype(state.dtype if "float8" not in state.dtype else "uint8").itemsize
        for dim in state.shape:
            bits *= dim if isinstance(dim, int) else batch if dim == BATCH_SYMBOL else _length(manifest, dim, slots)
        total += bits // 8
    return total


def weight_bytes(manifest: Manifest) -> int:
    """Bytes of the files of all graphs, each once."""
    files = {name for graph in manifest.graphs for name in (graph.file, *graph.external_data)}
    return sum(manifest.files[name].bytes for name in files if name in manifest.files)


def check_memory(manifest: Manifest, *, batch: int, slots: int, loaded: bool = True) -> None:
    """Refuse sequences that there is no memory for.

    Args:
        manifest: Of the bundle.
        batch: Sequences side by side.
        slots: The most tokens of one of them.
        loaded: Whether the weights are in memory already; else they count.

    Raises:
        UnsupportedError: There is not enough.
    """
    free = available_bytes()
    weights = 0 if loaded else weight_bytes(manifest)
    states = state_bytes(manifest, batch, slots)
    if free is not None and weights + states > free:
        many = f"{batch} sequences" if batch > 1 else "a sequence"
        whole = "" if loaded else f" and {format_bytes(weights)} for the weights"
        raise UnsupportedError(
            f"The states of {many} of {slots} tokens take {format_bytes(states)}{whole}, and {format_bytes(free)} are "
            "free; ask for fewer tokens or sequences, or export it with a smaller cache."
        )


def _length(manifest: Manifest, symbol: str, slots: int) -> int:
    for capacity in manifest.capacities:
        if capacity.symbol == symbol:
            span = manifest.lengths[symbol]
            length = span.min
            while length < min(slots, span.max):
                length *= 2
            return min(length, span.max)
    return manifest.lengths[symbol].min if symbol in manifest.lengths else slots
