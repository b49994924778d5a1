"""Types and sizes of packed key-value caches; kv_format.py says how they are packed."""

from collections.abc import Mapping
from typing import Any

CODES, SCALES = ("uint8",), ("float32", "float16")


def scale_shape(b: int, g: int, length: int, d: int, *, axis: int, group: int) -> tuple[int, int, int, int]:
    """Shape of the scales of a cache [B, G, L, D]."""
    if axis == 0:
        return b, g, length // group if group else 1, d
    return b, g, length, d // group if group else 1


def sizes_of(sizes: Mapping[str, Any], prefix: str, scale_bytes: int) -> tuple[int, int]:
    """Bytes of the codes, and of scales with minima, of a cache described by `sizes`."""
    b, g, length, d = (sizes[letter] for letter in "BGLD")
    shape = scale_shape(b, g, length, d, axis=sizes[f"{prefix}axis"], group=sizes[f"{prefix}group"])
    scales = shape[0] * shape[1] * shape[2] * shape[3]
    return int(b * g * length * d * sizes[f"{prefix}bits"] // 8), int(2 * scales * scale_bytes)
