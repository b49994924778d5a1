"""The operators once more, in plain loops and float64, written from the papers and the contract, not from the code.

Each `reference_<family>.py` holds the operators of one family in `OF` (or in `EXACT`, where the contract fixes every
rounding and the inputs keep their dtypes), and their bytes and operations in `COUNTED`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from trt_compress.plugins.testing import reference_kv, reference_mix, reference_tokens
from trt_compress.plugins.testing.reference_base import Array, Counted, Expected, Reference

_OF: Mapping[str, Reference] = {
    **reference_tokens.OF,
    **reference_kv.OF,
    **reference_mix.OF,
}
_EXACT: Mapping[str, Reference] = {
    **reference_kv.EXACT,
}
COUNTED: Mapping[str, Counted] = {
    **reference_tokens.COUNTED,
    **reference_kv.COUNTED,
    **reference_mix.COUNTED,
}


def reference(op_type: str, inputs: tuple[Array, ...], attributes: Mapping[str, Any]) -> Expected:
    """What operator `op_type` must return for these inputs."""
    if op_type in _EXACT:
        return _EXACT[op_type](*inputs, **attributes)
    wide = [value.astype(np.float64) if value.dtype.kind == "f" else value for value in inputs]
    return _OF[op_type](*wide, **attributes)
