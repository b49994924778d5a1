"""What comes into a run: checked once for each set of shapes and dtypes, and passed on from then on."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from trt_compress.errors import ConfigError, ShapeError
from trt_compress.format.manifest import TensorInfo
from trt_compress.suggest import not_known

Array = np.ndarray[Any, np.dtype[Any]]

_MOST_SEEN = 256


class InputCheck:
    """The check of the inputs that a run takes. What has their shapes and dtypes passed before passes again, unlooked.

    Attributes:
        expected: The inputs by name.
    """

    def __init__(self, expected: Mapping[str, TensorInfo]) -> None:
        self.expected = expected
        self._names = tuple(expected)
        self._seen: dict[tuple[object, ...], Mapping[str, int]] = {}

    def by_name(self, given: Mapping[str, Array] | Array) -> Mapping[str, Array]:
        """The inputs by name; one array alone is that of the only input.

        Raises:
            ConfigError: There is not one input.
        """
        if isinstance(given, dict):
            return given
        if isinstance(given, Mapping):
            return dict(given)
        if len(self.expected) == 1:
            return dict.fromkeys(self.expected, given)  # what it is, if no array, is said where inputs are checked
        raise ConfigError(
            f"One {type(given).__name__} was given, and the bundle takes {signature(self.expected) or 'no input'}; "
            "give a dictionary of arrays by name."
        )

    def symbols(self, given: Mapping[str, Array]) -> Mapping[str, int]:
        """What each symbol stands for in a run on these inputs: the same object for inputs of the same shapes.

        Raises:
            ConfigError: An input is missing or unknown.
            ShapeError: One is no array, has another dtype or shape, or axes with the same symbol differ.
        """
        key: tuple[object, ...] | None = None
        if len(given) == len(self._names):
            try:
                arrays = [given[name] for name in self._names]
                key = tuple([(array.__class__, array.dtype, array.shape) for array in arrays])
                found = self._seen.get(key)
            except (KeyError, AttributeError, TypeError):
                found = None
            if found is not None:
                return found
        symbols = _check_inputs(given, self.expected)
        if key is not None:
            if len(self._seen) >= _MOST_SEEN:
                self._seen.clear()
            self._seen[key] = symbols
        return symbols


def signature(tensors: Mapping[str, TensorInfo]) -> str:
    """Write tensors as `image float32 [batch, 3, 224, 224], size int64 [2]`."""
    return ", ".join(f"{name} {info.dtype} {shape_text(info.shape)}" for name, info in tensors.items())


def _check_inputs(given: Mapping[str, Array], expected: Mapping[str, TensorInfo]) -> dict[str, int]:
    """Check names, dtypes and shapes; return what each symbol stands for in this run."""
    for name in given:
        if name not in expected:
            raise ConfigError(not_known("input", name, expected))
    symbols: dict[str, int] = {}
    for name, info in expected.items():
        if name not in given:
            raise ConfigError(f"Input '{name}' is missing; give {info.dtype} of shape {shape_text(info.shape)}.")
        _check_input(name, given[name], info, symbols)
    return symbols


def _check_input(name: str, array: object, info: TensorInfo, symbols: dict[str, int]) -> None:
    if not isinstance(array, np.ndarray):
        make = ".detach().cpu().numpy()" if hasattr(array, "detach") else f"numpy.asarray(…, '{info.dtype}')"
        raise ShapeError(
            f"Input '{name}' is a {type(array).__name__}; give a numpy array of {info.dtype}, as {make} makes one."
        )
    if array.dtype != np.dtype(info.dtype):
        raise ShapeError(
            f"Input '{name}' is {array.dtype} and the graph takes {info.dtype}; cast it with .astype('{info.dtype}')."
        )
    shape, allowed = list(array.shape), shape_text(info.shape)
    if array.ndim != len(info.shape):
        raise ShapeError(
            f"Input '{name}' has {array.ndim} axes, shape {shape}; the graph takes {len(info.shape)}, {allowed}."
        )
    for axis, (length, dim) in enumerate(zip(array.shape, info.shape, strict=True)):
        if isinstance(dim, int) and length != dim:
            raise ShapeError(
                f"Input '{name}' has {length} on axis {axis}, shape {shape}; the graph takes {dim}, {allowed}."
            )
        if isinstance(dim, str) and symbols.setdefault(dim, length) != length:
            raise ShapeError(
                f"Input '{name}' has {length} on axis {axis}, where another input has '{dim}' = {symbols[dim]}; "
                f"make the axes named '{dim}' equal."
            )


def shape_text(shape: tuple[int | str, ...]) -> str:
    """Write a shape as `[batch, 3, 224, 224]`."""
    return f"[{', '.join(map(str, shape))}]"
