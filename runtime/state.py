"""A tensor that one run hands to the next."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from trt_compress.errors import BundleError, ShapeError
from trt_compress.foreign import reading
from trt_compress.format.bundle import Bundle
from trt_compress.format.manifest import State
from trt_compress.runtime.arrays import array_of

Array = np.ndarray[Any, np.dtype[Any]]


class StateTensor:
    """The value of one state, which several graphs may carry on.

    An axis whose symbol no input of the run has grows: it starts at 0 and may reach `capacity`. All other axes keep the
    length of the first run until `reset`.
    """

    def __init__(self, state: State, bundle: Bundle) -> None:
        self._name = f"{state.graph}.{state.input}"
        self._state = state
        self._content = _initial_file(state, bundle)
        self._value: Array | None = None

    def reset(self) -> None:
        """Forget the value."""
        self._value = None

    def value(self, symbols: Mapping[str, int]) -> Array:
        """Give the value for a run in which the symbols have these lengths."""
        expected = tuple(symbols.get(dim, 0) if isinstance(dim, str) else dim for dim in self._state.shape)
        if self._value is None:
            return self._initial(expected)
        for dim, length, held in zip(self._state.shape, expected, self._value.shape, strict=True):
            if length != held and not self._grows(dim, symbols):
                raise ShapeError(
                    f"This run has '{dim}' = {length}, and the state '{self._name}' holds {held} from the run before; "
                    "call reset() to start anew."
                )
        return self._value

    def check(self, value: Array, symbols: Mapping[str, int]) -> None:
        """Refuse a new value that does not fit.

        Raises:
            ShapeError: It has another dtype or shape, or exceeds the capacity.
        """
        state = self._state
        fits = value.dtype == np.dtype(state.dtype) and value.ndim == len(state.shape)
        for dim, length in zip(state.shape, value.shape, strict=False):
            grows = self._grows(dim, symbols)
            expected = symbols.get(dim, 0) if isinstance(dim, str) else dim
            fits = fits and (grows or length == expected)
            if grows and state.capacity is not None and length > state.capacity:
                raise ShapeError(
                    f"This run would make the state '{self._name}' {length} long on '{dim}'; its capacity is "
                    f"{state.capacity}. Call reset(), or export with a larger capacity."
                )
        if not fits:
            raise ShapeError(
                f"The graph gave {value.dtype} of shape {list(value.shape)} for the state '{self._name}', which the "
                f"manifest has as {state.dtype} of shape {list(state.shape)}; export the bundle again."
            )

    def keep(self, value: Array) -> None:
        """Keep the value for the next run."""
        self._value = value

    @staticmethod
    def _grows(dim: int | str, symbols: Mapping[str, int]) -> bool:
        return isinstance(dim, str) and dim not in symbols

    def _initial(self, shape: tuple[int, ...]) -> Array:
        initial, dtype = self._state.initial, np.dtype(self._state.dtype)
        match initial:
            case "zeros":
                return np.zeros(shape, dtype)
            case {"fill": int() | float() as number}:
                try:
                    with np.errstate(over="ignore"):
                        filled = np.full(shape, number, dtype)
                except OverflowError:
                    filled = None
                if filled is None or not np.isfinite(filled.flat[:1]).all():
                    raise BundleError(f"The state '{self._name}' starts from {number:g}, which no {dtype} is.")
                return filled
            case {"file": str() as name}:
                return self._from_file(name, shape, dtype)
        raise BundleError(
            f"The state '{self._name}' starts from {initial!r}; this trt-compress knows \"zeros\", "
            '{"fill": number} and {"file": "name.npy"}.'
        )

    def _from_file(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        start = f"'{name}', from which the state '{self._name}' starts,"
        with reading(start, "export the bundle again", error=BundleError):
            stored = array_of(self._content)
        if stored.dtype != dtype:
            raise BundleError(
                f"The state '{self._name}' cannot start from '{name}': it holds {stored.dtype}, not {dtype}."
            )
        try:
            return np.broadcast_to(stored, shape).copy()
        except ValueError as error:
            raise BundleError(f"The state '{self._name}' cannot start from '{name}': {error}.") from None


def _initial_file(state: State, bundle: Bundle) -> bytes:
    """What the file holds that the state starts from, read once, so that it starts from the same after every reset."""
    match state.initial:
        case {"file": str() as name}:
            return bundle.read(name)
    return b""
