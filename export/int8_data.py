"""Samples that ranges of static INT8 are found with: a folder through the host's own preprocessing, or an .npz file."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trt_compress.digest import Sha256
from trt_compress.errors import ConfigError
from trt_compress.export.calibration_data import HELD_OUT_EVERY, ArchiveData
from trt_compress.export.course import Course
from trt_compress.export.sample_inputs import lengths_of
from trt_compress.export.sides import TorchSide, Values
from trt_compress.foreign import shown
from trt_compress.format.bundle import Bundle
from trt_compress.format.inputs import ImageInput, SoundInput
from trt_compress.format.kinds import input_kind
from trt_compress.format.manifest import Manifest, TensorInfo
from trt_compress.models.hosts.base import GraphSpec, LoadedHost, Steps
from trt_compress.runtime.labelled.data import BadSample
from trt_compress.runtime.labelled.files import SUFFIXES, FileReader, files_below
from trt_compress.runtime.stream.preprocess import input_name, preprocess_from_manifest

Array = np.ndarray[Any, np.dtype[Any]]

MOST = 320
"""Samples that are taken, evenly spread over all that there are; every fifth of them is held out."""
_SLACK = 0.01  # of the range of pixels: resizing with a sharp filter goes beyond it by some


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8Samples:
    """What ranges are found with, and what is held out to see how INT8 answers.

    Attributes:
        source: File or folder, by its name alone.
        sha256: Hash of the arrays that were taken.
        found: Samples that there are.
        used: Those that ranges are found with.
        fit: By graph, sequences of consecutive runs.
        held_out: The same, of the samples that are held out.
    """

    source: str
    sha256: str
    found: int
    used: int
    fit: Mapping[str, Sequence[Steps]]
    held_out: Mapping[str, Sequence[Steps]]


def read_samples(path: Path, host: LoadedHost, graphs: Sequence[GraphSpec], manifest: Manifest) -> Int8Samples:
    """Read samples, at most `MOST` of them.

    Args:
        path: A folder, with files at any depth, or an .npz file as `trt-compress calibrate` takes it.
        host: Whose links say which inputs other graphs feed; these are computed, by the model in floating point.
        graphs: Whose inputs they become.
        manifest: How a picture or a sound becomes an input.

    Raises:
        ConfigError: They cannot be read, or are of another shape, dtype or range than the model's inputs.
    """
    rows = _from_folder(path, graphs, manifest) if path.is_dir() else _from_archive(path, host, graphs)
    digest, sources = Sha256(), {to: source for source, to in host.links}
    fit: dict[str, list[Steps]] = {graph.name: [] for graph in graphs}
    held_out: dict[str, list[Steps]] = {graph.name: [] for graph in graphs}
    found, chosen = rows
    used = 0
    for number, steps in enumerate(chosen):
        _check_range(steps, manifest, path)
        for arrays in steps:
            for name in sorted(arrays):
                digest.add(np.ascontiguousarray(arrays[name]).tobytes())
        held = number % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
        used += not held
        values: dict[str, Array] = {}
        for graph in graphs:
            own: Steps = [
                {spec.name: _array_for(graph, spec.name, arrays, values, sources) for spec in graph.inputs}
                for arrays in steps
            ]
            if any(source.startswith(f"{graph.name}.") for source in sources.values()):
                outputs, _ = TorchSide({graph.name: (graph, graph.module)})(graph.name, own[0])
                values |= {f"{graph.name}.{name}": tensor.numpy() for name, tensor in outputs.items()}
            (held_out if held else fit)[graph.name] += [own] if graph.states else [[run] for run in own]
    return Int8Samples(source=path.name, sha256=digest.hex(), found=found, used=used, fit=fit, held_out=held_out)


def _array_for(
    graph: GraphSpec, name: str, arrays: Mapping[str, Array], values: Mapping[str, Array], sources: Mapping[str, str]
) -> Array:
    """An input of a graph: what an earlier graph gave, or a sample."""
    whole = f"{graph.name}.{name}"
    if whole in sources:
        return values[sources[whole]]
    return arrays[whole if whole in arrays else name]


def feeds_of(graph: GraphSpec, sequences: Sequence[Steps]) -> list[Mapping[str, Array]]:
    """Inputs and states of every run: states are those that the torch model left in the run before."""
    if not graph.states:
        return [steps[0] for steps in sequences]
    side = TorchSide({graph.name: (graph, graph.module)})
    seen: list[Mapping[str, Array]] = []

    def compute(name: str, feed: Mapping[str, Array]) -> tuple[Values, Values]:
        seen.append(dict(feed))
        return side(name, feed)

    states = [state.of(graph.name) for state in graph.states]
    for steps in sequences:
        for _ in Course(compute).runs(graph.name, states, steps, lengths_of(graph, steps)):
            pass
    return seen


Rows = tuple[int, Iterator[Steps]]
"""How many samples there are, and those that are taken."""


def _from_archive(path: Path, host: LoadedHost, graphs: Sequence[GraphSpec]) -> Rows:
    fed = [to for _, to in host.links]
    data = ArchiveData(path, graphs, fed, option="--calibrate")
    has_steps = any(graph.states for graph in graphs)
    every = max(1, -(-data.count // MOST))

    def rows() -> Iterator[Steps]:
        with contextlib.closing(data):
            number = -1
            for batch in data.all_batches():
                for row in range(len(next(iter(batch.values())))):
                    number += 1
                    if number % every:
                        continue
                    arrays = {name: array[row : row + 1] for name, array in batch.items()}
                    if not has_steps:
                        yield [arrays]
                        continue
                    count = min(array.shape[1] for array in arrays.values())
                    yield [{name: array[:, step] for name, array in arrays.items()} for step in range(count)]

    return data.count, rows()


def _from_folder(path: Path, graphs: Sequence[GraphSpec], manifest: Manifest) -> Rows:
    settings = input_kind(manifest.preprocess)
    where = f"--calibrate: '{shown(str(path))}'"
    states = {state.input for state in manifest.states}
    inputs: dict[str, TensorInfo] = {
        info.name: info for graph in manifest.graphs for info in graph.inputs if info.name not in states
    }
    if settings.kind not in SUFFIXES or len(inputs) != 1:
        reason = f" ({settings.obstacle})" if settings.obstacle else ""
        raise ConfigError(
            f"{where} is a folder, and this model takes {', '.join(inputs)}, which no file becomes{reason}; give an "
            ".npz file of arrays by these names."
        )
    name = input_name(settings, inputs)
    prepare = preprocess_from_manifest(Bundle(path=path, manifest=manifest), inputs)
    reader = FileReader(settings.kind, manifest.preprocess, inputs[name], prepare)
    files = [file for file in files_below(path) if reader.takes(file)]
    if len(files) < HELD_OUT_EVERY:
        raise ConfigError(
            f"{where} holds {len(files)} {settings.kind} files; give {HELD_OUT_EVERY} or more, some hundred at best, "
            f"of which every {HELD_OUT_EVERY}th is held out."
        )
    every = max(1, -(-len(files) // MOST))

    def rows() -> Iterator[Steps]:
        for file in files[::every]:
            try:
                yield [dict(run) for run in reader.read(file)]
            except BadSample as error:
                raise ConfigError(
                    f"{where}: '{shown(file.name)}' cannot be taken: {error}; take it out, or correct it."
                ) from None

    return len(files), rows()


def _check_range(steps: Steps, manifest: Manifest, path: Path) -> None:
    """Refuse numbers that no picture or sound becomes, such as pixels that were not normalized."""
    settings = input_kind(manifest.preprocess)
    if not isinstance(settings, ImageInput | SoundInput):
        return
    low_end, high_end = (0.0, 255.0) if isinstance(settings, ImageInput) else settings.range
    mean, std = np.atleast_1d(settings.mean), np.atleast_1d(settings.std)
    ends = np.stack([(low_end * settings.scale - mean) / std, (high_end * settings.scale - mean) / std])
    low, high = float(ends.min()), float(ends.max())
    slack = _SLACK * (high - low)
    name = settings.input
    for arrays in steps:
        for key, array in arrays.items():
            if name is not None and key.rpartition(".")[2] != name:
                continue
            if array.dtype.kind != "f" or not array.size:
                continue
            least, most = float(array.min()), float(array.max())
            if not (low - slack <= least and most <= high + slack):
                raise ConfigError(
                    f"--calibrate: '{key}' of '{shown(path.name)}' holds numbers from {least:.3g} to {most:.3g}, and "
                    f"what this model takes is from {low:.3g} to {high:.3g} (`(value * {settings.scale:g} - mean) / "
                    "std`); give samples as the model takes them, or a folder of files, which are prepared so."
                )
