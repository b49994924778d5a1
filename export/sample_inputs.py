"""Inputs for a comparison: the model's own examples, seeded random numbers, or arrays from a file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trt_compress.errors import ExportError, ShapeError
from trt_compress.files import open_regular
from trt_compress.foreign import reading
from trt_compress.format.graphs import BATCH_SYMBOL
from trt_compress.models.hosts.base import GraphSpec, Steps, TensorSpec
from trt_compress.runtime.arrays import array_of, arrays_of

Array = np.ndarray[Any, np.dtype[Any]]

SEED = 0
RANDOM_STEPS = 3
"""Consecutive runs of a graph with states: the first, one on a state that the first left, and one on a later state."""


def make_inputs(graph: GraphSpec, lengths: Sequence[Mapping[str, int]]) -> list[Steps]:
    """Seeded inputs: standard-normal numbers, and whole ones in the range that the graph declares, in one sequence for
    each set of lengths.

    Args:
        graph: Whose inputs they are.
        lengths: What each symbol stands for, "batch" among them.

    Raises:
        ExportError: An input of whole numbers declares no range.
    """
    generator = np.random.default_rng(SEED)
    steps = RANDOM_STEPS if graph.states else 1
    return [
        [{spec.name: _random(graph, spec, symbols, generator) for spec in graph.inputs} for _ in range(steps)]
        for symbols in lengths
    ]


def read_inputs(path: Path, graphs: Sequence[GraphSpec]) -> dict[str, list[Steps]]:
    """Inputs from a .npz file, by name of the graph.

    An array is found by the name of its input, with several graphs as `graph.input`; a single input takes the only
    array whatever its name. A graph with states runs along one more axis in front, the steps.

    Raises:
        ShapeError: it cannot be read, has another shape or dtype, or is not finite.
    """
    arrays = read_arrays(path, next(spec.name for graph in graphs for spec in graph.inputs))
    if len(graphs) == len(graphs[0].inputs) == len(arrays) == 1:
        arrays = {graphs[0].inputs[0].name: next(iter(arrays.values()))}
    found: dict[str, list[Steps]] = {}
    for graph in graphs:
        prefix = f"{graph.name}." if len(graphs) > 1 else ""
        given = {spec.name: _checked(arrays, prefix, spec, graph, path) for spec in graph.inputs}
        steps = range(min(map(len, given.values()))) if graph.states else range(1)
        found[graph.name] = [[{name: x[step] if graph.states else x for name, x in given.items()} for step in steps]]
    return found


def _random(graph: GraphSpec, spec: TensorSpec, symbols: Mapping[str, int], generator: np.random.Generator) -> Array:
    shape = [symbols[dim] if isinstance(dim, str) else dim for dim in spec.shape]
    dtype = np.dtype(spec.dtype)
    if dtype.kind == "f":
        return generator.standard_normal(shape, dtype=np.float32).astype(dtype, copy=False)
    low, high = (0, 1) if dtype.kind == "b" else spec.values or (None, None)
    if low is None or high is None:
        raise ExportError(
            f"graph '{graph.name}': the input '{spec.name}' is {spec.dtype}, and its host neither says which values it "
            "has nor gives examples; declare one of them."
        )
    return generator.integers(low, high + 1, shape).astype(dtype)


def read_arrays(path: Path, name: str) -> dict[str, Array]:
    """The arrays of an .npz file; a single one, of an .npy file, is called `name`.

    Raises:
        ShapeError: It cannot be read.
    """
    if not path.exists():
        raise ShapeError(f"inputs: {path} is not there; give a .npz file.")
    with reading(f"inputs: {path}", "save the arrays with numpy.savez", error=ShapeError), open_regular(path) as file:
        start = file.read(6)
        file.seek(0)
        return {name: array_of(file.read())} if start == b"\x93NUMPY" else arrays_of(file)


def _checked(arrays: Mapping[str, Array], prefix: str, spec: TensorSpec, graph: GraphSpec, path: Path) -> Array:
    shape = ("steps", *spec.shape) if graph.states else spec.shape
    wanted, name = f"{spec.dtype} [{', '.join(map(str, shape))}]", prefix + spec.name
    if name not in arrays:
        raise ShapeError(f"inputs: {path} has {', '.join(arrays) or 'nothing'}; it must hold '{name}', {wanted}.")
    array = arrays[name]
    fits = array.ndim == len(shape) and all(
        length == dim if isinstance(dim, int) else length > 0 for length, dim in zip(array.shape, shape, strict=True)
    )
    if array.dtype != np.dtype(spec.dtype) or not fits:
        raise ShapeError(f"inputs: '{name}' in {path} is {array.dtype} {list(array.shape)}; it must be {wanted}.")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ShapeError(f"inputs: '{name}' in {path} holds NaN or infinity; verification needs finite numbers.")
    return array


def lengths_of(graph: GraphSpec, steps: Steps) -> dict[str, int]:
    """What each symbol stands for in these inputs; the batch of a graph without one is 1."""
    found = {
        dim: length
        for spec in graph.inputs
        for dim, length in zip(spec.shape, steps[0][spec.name].shape, strict=True)
        if isinstance(dim, str)
    }
    return {BATCH_SYMBOL: 1, **found}
