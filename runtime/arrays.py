"""Arrays that a bundle holds as files: initial values of states, constants of the preprocessing."""

import io
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


def array_of(content: bytes) -> Array:
    """The one array of a .npy file.

    Raises:
        ValueError: It is no .npy file; numpy raises more than that on a damaged one.
    """
    array = np.load(io.BytesIO(content), allow_pickle=False)
    if not isinstance(array, np.ndarray):
        raise ValueError("it is an archive, not one array")
    return array
