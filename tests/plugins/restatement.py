"""The operators once more, in plain loops and float64, written from the papers and the contract, not from the code.

Each `restate_<family>.py` holds the operators of one family in `OF` (or in `EXACT`, where the contract fixes every
rounding and the inputs keep their dtypes), and their bytes and operations in `COUNTED`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import restate_kv
import restate_mix
import restate_tokens
from restate_base import Array, Counted, Restated, Restatement

_OF: Mapping[str, Restatement] = {
    **restate_tokens.OF,
    **restate_kv.OF,
    **restate_mix.OF,
}
_EXACT: Mapping[str, Restatement] = {
    **restate_kv.EXACT,
}
COUNTED: Mapping[str, Counted] = {
    **restate_tokens.COUNTED,
    **restate_kv.COUNTED,
    **restate_mix.COUNTED,
}


def restate(op_type: str, inputs: tuple[Array, ...], attributes: Mapping[str, Any]) -> Restated:
    """What operator `op_type` must return for these inputs."""
    if op_type in _EXACT:
        return _EXACT[op_type](*inputs, **attributes)
    wide = [value.astype(np.float64) if value.dtype.kind == "f" else value for value in inputs]
    return _OF[op_type](*wide, **attributes)
