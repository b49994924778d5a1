"""Samples to calibrate with, out of an .npz file: read in batches as often as needed, never as a whole."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from trt_compress.digest import sha256_of_file
from trt_compress.errors import ConfigError
from trt_compress.files import open_regular
from trt_compress.foreign import reading, shown
from trt_compress.models.compressors.calibration import Batch, CalibrationData
from trt_compress.models.hosts.base import GraphSpec, TensorSpec
from trt_compress.runtime.arrays import ArchivedRows

HELD_OUT_EVERY = 5
"""Of so many samples the last is held out: tensors are made from the others, the score is taken of these."""
_BLOCK = 2 * HELD_OUT_EVERY


class ArchiveData:
    """The samples of an .npz file, open until `close`.

    Args:
        path: The file; an array for each input by its name, or `graph.input` where two graphs name theirs alike.
            Samples run along the first axis; of a model with states steps along the second.
        graphs: Whose inputs they are.
        fed: Inputs that other graphs feed, as `graph.input`.
        text: Of a model that reads tokens, the arrays in place of them, of which the first is needed.
        option: What the file was given as.

    Attributes:
        count: Samples in it.
        sha256: Its hash.

    Raises:
        ConfigError: it cannot be read, lacks an array, or one does not fit.
    """

    def __init__(
        self,
        path: Path,
        graphs: Sequence[GraphSpec],
        fed: Sequence[str] = (),
        text: Sequence[TensorSpec] | None = None,
        option: str = "--data",
    ) -> None:
        self._where = f"{option} {shown(str(path))}"
        self._file = open_regular(path)
        with contextlib.ExitStack() as unless_whole:
            unless_whole.callback(self._file.close)
            with reading(self._where, "write it with numpy.savez"):
                self.sha256, self._state = sha256_of_file(self._file), self._look()
                self._file.seek(0)
                self._rows = ArchivedRows(self._file)
            self._values: dict[str, tuple[int, int]] = {}
            self._inputs = self._named(graphs, fed) if text is None else self._named_text(text)
            self.count = self._counted()
            unless_whole.pop_all()

    @property
    def num_held_out(self) -> int:
        """Samples that the score is taken of."""
        return self.count // HELD_OUT_EVERY

    def parts(self) -> CalibrationData:
        """The samples to fit, and those that are held out."""
        return CalibrationData(fit=_Part(self, held_out=False), held_out=_Part(self, held_out=True))

    def all_batches(self) -> Iterator[Batch]:
        """All samples, from the first one on."""
        return self.batches(held_out=None)

    def batches(self, *, held_out: bool | None) -> Iterator[Batch]:
        """One part of the samples, from its first one on; None: all of them."""
        first = 0
        with reading(self._where, "write it with numpy.savez"):
            for block in self._rows.blocks(_BLOCK):
                length = len(next(iter(block.values())))
                number = np.arange(first, first + length)
                held = number % HELD_OUT_EVERY == HELD_OUT_EVERY - 1
                chosen = held == held_out if held_out is not None else np.ones_like(held)
                first += length
                if not chosen.any():
                    continue
                batch = {name: block[name][chosen] for name in self._inputs}
                for name, array in batch.items():
                    if array.dtype.kind == "f" and not np.isfinite(array).all():
                        raise ConfigError(f"{self._where}: '{name}' holds NaN or infinity; give finite numbers.")
                    low, high = self._values.get(name, (None, None))
                    if low is not None and high is not None and (array.min() < low or array.max() > high):
                        raise ConfigError(f"{self._where}: '{name}' holds numbers that are not from {low} to {high}.")
                yield batch

    def close(self) -> None:
        """Close the file, and make sure that nobody has written into it since it was hashed.

        Raises:
            ConfigError: somebody has.
        """
        with self._file:
            if self._look() != self._state:
                raise ConfigError(f"{self._where} was changed while it was read; give it when it is complete.")

    def _look(self) -> tuple[int, int]:
        status = os.fstat(self._file.fileno())
        return status.st_size, status.st_mtime_ns

    def _counted(self) -> int:
        counts = {name: self._rows.arrays[name][0][0] for name in self._inputs}
        if len(set(counts.values())) > 1:
            said = ", ".join(f"{name} {count}" for name, count in counts.items())
            raise ConfigError(f"{self._where}: its arrays differ in their number of samples ({said}); make them equal.")
        count = next(iter(counts.values()))
        if count < HELD_OUT_EVERY:
            raise ConfigError(
                f"{self._where} holds {count} samples; give {HELD_OUT_EVERY} or more, of which every "
                f"{HELD_OUT_EVERY}th is held out for the score."
            )
        return count

    def _named(self, graphs: Sequence[GraphSpec], fed: Sequence[str]) -> list[str]:
        """The names of the arrays, one for each input that nothing else feeds."""
        names = []
        for graph in graphs:
            for spec in graph.inputs:
                whole = f"{graph.name}.{spec.name}"
                if whole in fed:
                    continue
                name = whole if whole in self._rows.arrays else spec.name
                self._check(name, spec, steps=bool(graph.states))
                names.append(name)
        return list(dict.fromkeys(names))

    def _named_text(self, text: Sequence[TensorSpec]) -> list[str]:
        """The names of the arrays of a text: the first, and those of the others that there are."""
        there = [spec for spec in text if spec is text[0] or spec.name in self._rows.arrays]
        for spec in there:
            self._check(spec.name, spec, steps=False)
        return [spec.name for spec in there]

    def _check(self, name: str, spec: TensorSpec, *, steps: bool) -> None:
        axes = ["samples", *(["steps"] if steps else []), *spec.shape[1:]]
        wanted = f"{spec.dtype} [{', '.join(map(str, axes))}]"
        if name not in self._rows.arrays:
            there = ", ".join(map(shown, self._rows.arrays)) or "nothing"
            raise ConfigError(f"{self._where} has {there}; it must hold '{name}', {wanted}.")
        shape, dtype = self._rows.arrays[name]
        fits = len(shape) == len(axes) and all(
            length == dim if isinstance(dim, int) else length > 0 for length, dim in zip(shape, axes, strict=True)
        )
        if dtype != np.dtype(spec.dtype) or not fits:
            raise ConfigError(f"{self._where}: '{name}' is {dtype} {list(shape)[:9]}; it must be {wanted}.")
        if spec.values is not None:
            self._values[name] = spec.values


class _Part:
    """One part of the samples, which begins anew each time."""

    def __init__(self, data: ArchiveData, *, held_out: bool) -> None:
        self._data, self._held_out = data, held_out

    def __iter__(self) -> Iterator[Batch]:
        return self._data.batches(held_out=self._held_out)
