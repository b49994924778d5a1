"""The contract of KVCompact: plain data, read without torch."""

from collections.abc import Mapping
from typing import Any

from trt_compress.plugins.kv_append.spec import ROWS
from trt_compress.plugins.spec import OperandSpec, OpSpec, Shapes


def _output_shapes(inputs: Shapes, attributes: Mapping[str, Any]) -> Shapes:
    return (inputs[0],)


def _bytes_moved(sizes: Mapping[str, Any], itemsize: int) -> int:
    return int(sizes["B"] * sizes["G"] * sizes["K"] * (2 * sizes["W"] * itemsize + 8))


SPEC = OpSpec(
    name="KVCompact",
    version=1,
    summary="Move the chosen rows of a cache to its front, in place, each KV head with a choice of its own.",
    inputs=(
        OperandSpec(name="cache", axes=("B", "G", "L", "W"), dtypes=ROWS, doc="one row for each slot"),
        OperandSpec(name="index", axes=("B", "G", "K"), dtypes=("int64",), doc="slots to keep, strictly ascending"),
    ),
    outputs=(
        OperandSpec(
            name="cache_out",
            axes=("B", "G", "L", "W"),
            same_dtype_as="cache",
            aliases="cache",
            doc="slots 0..K-1 hold the chosen rows; the others are as they were",
        ),
    ),
    attributes=(),
    count="K rows for each item and KV head",
    order="by slot: row index[k] goes to slot k, which is never behind it",
    determinism="same input, same bits",
    arithmetic="rows are copied bit by bit",
    limits=(
        "0 <= index < L, strictly ascending. Anything else is an error, and as a function on TensorRT, which checks no "
        "index, it is undefined",
        "on the GPU the slots of one KV head take less than 2 GiB",
    ),
    tolerance={"float32": 0.0, "float16": 0.0, "bfloat16": 0.0},
    output_shapes=_output_shapes,
    bytes_moved=_bytes_moved,
    flops=lambda sizes: 0,
    source="SnapKV, arXiv:2404.14469; code FasterDecoding/SnapKV, snapkv_utils.py",
    differs="kept entries stay in the order of the cache (by score there), so that they can be moved in place.",
)
