"""Inputs for a run that nobody gave any for: seeded numbers, or the arrays of a file."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trt_compress.errors import ConfigError
from trt_compress.files import open_regular
from trt_compress.foreign import reading
from trt_compress.format.manifest import Manifest, TensorInfo
from trt_compress.runtime.arrays import arrays_of
from trt_compress.runtime.session import Session

Array = np.ndarray[Any, np.dtype[Any]]


def random_inputs(session: Session, batch: int, seed: int) -> dict[str, Array]:
    """Seeded numbers for every input of a session, at the usual lengths.

    Raises:
        ConfigError: How long an axis is cannot be known, or there would be too many.
    """
    generator = np.random.default_rng(seed)
    lengths = {"batch": batch, **usual_lengths(session.bundle.manifest)}
    return {name: random_array(name, info, lengths, generator) for name, info in session.inputs.items()}


def random_array(name: str, info: TensorInfo, lengths: Mapping[str, int], generator: np.random.Generator) -> Array:
    """Numbers for one input: normal ones, or 0 and 1 where it takes whole numbers.

    Raises:
        ConfigError: How long an axis is is not among the lengths, or there would be too many.
    """
    unknown = {dim for dim in info.shape if isinstance(dim, str)} - lengths.keys()
    if unknown:
        raise ConfigError(
            f"Input '{name}' has the axis '{min(unknown)}', whose length a random input cannot know; "
            "give arrays with --inputs FILE.npz."
        )
    shape = [lengths[dim] if isinstance(dim, str) else dim for dim in info.shape]
    dtype = np.dtype(info.dtype)
    if math.prod(shape) >= 2**31:
        raise ConfigError(
            f"Input '{name}' would have the shape {shape}, which is more than can be made up here; give a smaller "
            "--batch, or arrays with --inputs FILE.npz."
        )
    values = generator.standard_normal(shape) if dtype.kind == "f" else generator.integers(0, 2, shape)
    return values.astype(dtype)


def usual_lengths(manifest: Manifest) -> dict[str, int]:
    """The usual length of each symbol but the batch."""
    return {symbol: length.opt for symbol, length in manifest.lengths.items()}


def load_inputs(path: Path) -> dict[str, Array]:
    """The arrays of an .npz file.

    Raises:
        ConfigError: It cannot be read.
    """
    with reading(f"'{path}'", "give an .npz file that numpy.savez wrote"), open_regular(path) as file:
        return arrays_of(file)
