"""The one comparison: what a form gave against the reference, by the tolerance of SPEC."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from trt_compress.plugins.spec import OpSpec
from trt_compress.plugins.testing.reference_base import Array

CLEAR = 1e-5  # a decision between two numbers closer than this may go either way by float32 rounding


def as_array(tensor: Tensor) -> Array:
    """The values of a tensor; bfloat16, which numpy lacks, as float32."""
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def dtype_name(tensor: Tensor) -> str:
    """`float16`, as SPEC writes it."""
    return str(tensor.dtype).removeprefix("torch.")


def differences(spec: OpSpec, outputs: Sequence[Array], dtypes: Sequence[str], wanted: Sequence[Array]) -> list[str]:
    """What is wrong with the outputs of a form, a sentence each.

    Floating outputs are compared within the tolerance of their dtype, relative to the largest value that is wanted;
    infinities, NaN and whole numbers must be the very same.

    Args:
        spec: The operator.
        outputs: Values in the order of `spec.outputs`.
        dtypes: Their dtypes as SPEC writes them; values of bfloat16 come as float32.
        wanted: What the reference says.
    """
    problems = []
    for described, values, dtype, right in zip(spec.outputs, outputs, dtypes, wanted, strict=True):
        name = described.name
        if values.shape != right.shape:
            problems.append(f"{name}: has shape {list(values.shape)}, not {list(right.shape)}")
        elif not np.issubdtype(values.dtype, np.floating):
            wrong = int((values != right).sum())
            if wrong:
                problems.append(f"{name}: {wrong} of {right.size} whole numbers are not as they must be")
        else:
            finite = np.isfinite(right)
            if not np.array_equal(values[~finite], right[~finite], equal_nan=True):
                problems.append(f"{name}: infinities or NaN are not where they must be")
            error = float(np.abs(values[finite].astype(np.float64) - right[finite]).max(initial=0.0))
            largest = float(np.abs(right[finite]).max(initial=0.0))
            if not error <= spec.tolerance[dtype] * largest:
                problems.append(f"{name}: off by {error:.2g}, of {largest:.2g}")
    return problems
