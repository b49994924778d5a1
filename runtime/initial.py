"""What a state holds before the first run."""

from typing import Any

import numpy as np

from trt_compress.errors import BundleError
from trt_compress.foreign import reading
from trt_compress.format.bundle import Bundle
from trt_compress.format.manifest import State
from trt_compress.runtime.arrays import array_of
from trt_compress.runtime.backends.base import carrier

Array = np.ndarray[Any, np.dtype[Any]]


class Initial:
    """The initial value of a state, in `carrier` of its dtype; a file is read once, so that every start is the same."""

    def __init__(self, state: State, bundle: Bundle) -> None:
        self._state = state
        self._content = b""
        match state.initial:
            case {"file": str() as name}:
                self._content = bundle.read(name)

    def value(self, shape: tuple[int, ...]) -> Array:
        """It, in memory of its own.

        Raises:
            BundleError: The manifest says something that is no value, or the file does not hold one.
        """
        dtype = self._state.dtype
        match self._state.initial:
            case "zeros":
                return np.zeros(shape, carrier(dtype))
            case {"fill": int() | float() as number}:
                filled = _one(number, dtype)
                if filled is None:
                    raise BundleError(f"The state '{self._state.key}' starts from {number:g}, which no {dtype} is.")
                return np.full(shape, filled, carrier(dtype))
            case {"file": str() as name}:
                return self._from_file(name, shape)
        raise BundleError(
            f"The state '{self._state.key}' starts from {self._state.initial!r}; this trt-compress knows \"zeros\", "
            '{"fill": number} and {"file": "name.npy"}.'
        )

    def _from_file(self, name: str, shape: tuple[int, ...]) -> Array:
        start = f"'{name}', from which the state '{self._state.key}' starts,"
        with reading(start, "export the bundle again", error=BundleError):
            stored = array_of(self._content)
        if stored.dtype != carrier(self._state.dtype):
            raise BundleError(
                f"The state '{self._state.key}' cannot start from '{name}': it holds {stored.dtype}, not "
                f"{self._state.dtype}."
            )
        try:
            return np.broadcast_to(stored, shape).copy()
        except ValueError as error:
            raise BundleError(f"The state '{self._state.key}' cannot start from '{name}': {error}.") from None


def _one(number: float, dtype: str) -> Any:
    """The number in the carrier of a dtype, or None: no value of it is near."""
    if dtype == "bfloat16":
        with np.errstate(over="ignore"):
            single = np.float32(number)
        bits = int(single.view(np.uint32))
        rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16  # to the nearest, ties to even
        return rounded if rounded & 0x7F80 != 0x7F80 else None
    if carrier(dtype).name != dtype:
        return 0 if number == 0 else None
    try:
        with np.errstate(over="ignore"):
            filled = np.full((), number, dtype)
    except OverflowError:
        return None
    whole = filled.dtype.kind not in "iu" or filled == number
    return filled[()] if whole and np.isfinite(filled) else None
