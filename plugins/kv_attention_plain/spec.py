"""The contract of KVAttentionPlain: plain data, read without torch."""

from collections.abc import Mapping
from typing import Any

from trt_compress.plugins.kv_attention.spec import (
    AS_A_FUNCTION,
    ATTENDING,
    BIAS,
    INDEX,
    LENGTH,
    LIMITS,
    OUTPUTS,
    TOLERANCE,
    Q,
    flops,
    index_bytes,
    output_shapes,
    read_slots,
)
from trt_compress.plugins.spec import OperandSpec, OpSpec


def _bytes_moved(sizes: Mapping[str, Any], itemsize: int) -> int:
    """Queries in and out, what is read of the cache once in float16, and 4 bytes for each row of weights."""
    b, h, g, t, d = (sizes[letter] for letter in "BHGTD")
    cache = 2 * b * g * read_slots(sizes) * d * 2 + index_bytes(sizes)
    return int(b * h * t * (2 * d * itemsize + 4) + cache + 8 * b)


SPEC = OpSpec(
    name="KVAttentionPlain",
    version=1,
    summary="Attend over a key-value cache of 16- or 32-bit floats as KVAttention does over codes: grouped heads, "
    "causal, sliding window behind sinks, rings, soft cap, additive bias, chosen slots, and the log of the sum of "
    "exponentials.",
    inputs=(
        Q,
        OperandSpec(name="k", axes=("B", "G", "L", "D"), doc="keys, one row for each slot"),
        OperandSpec(name="v", axes=("B", "G", "L", "D"), same_dtype_as="k", doc="values"),
        LENGTH,
        BIAS,
        INDEX,
    ),
    outputs=OUTPUTS,
    attributes=ATTENDING,
    order="as q",
    determinism="same input, same bits, on the same device and for the same sizes",
    arithmetic="keys and values become float32; products, softmax and sums are in float32",
    limits=(
        *LIMITS,
        "on the GPU D <= 512, and the keys of one KV head take less than 2 GiB",
        AS_A_FUNCTION,
    ),
    tolerance=TOLERANCE,
    output_shapes=output_shapes,
    bytes_moved=_bytes_moved,
    flops=flops,
    source="FlashAttention, arXiv:2205.14135; FlashDecoding, https://pytorch.org/blog/flash-decoding; "
    "StreamingLLM, arXiv:2309.17453, sinks; Gemma 2, arXiv:2408.00118, soft cap; "
    "TidalDecode, arXiv:2410.05076, chosen slots",
    differs="the mask follows from numbers of tokens, so a ring needs no rotation and no mask tensor.",
)
