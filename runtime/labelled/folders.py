"""Folders: `DIR/<class>/*.png` as ImageFolder reads it, or files that lie in one folder and have no labels."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from trt_compress.errors import ConfigError
from trt_compress.runtime.labelled.classes import ClassNames, number_folders
from trt_compress.runtime.labelled.data import LabelledData, LabelledSample
from trt_compress.runtime.labelled.files import FileReader, files_below

LeftOut = list[tuple[str, str]]


def from_folder(
    folder: Path, reader: FileReader, *, names: ClassNames | None, num_classes: int | None, order: str | None
) -> LabelledData:
    """Read a folder of classes, or a flat one.

    Raises:
        ConfigError: It holds no file of the bundle's kind, or classes that cannot be told.
    """
    kind = reader.kind
    inside = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    folders = [path for path in inside if path.is_dir()]
    left_out: LeftOut = []
    found = {path.name: _taken(files_below(path), reader, folder, left_out) for path in folders}
    flat = _taken([path for path in inside if path.is_file()], reader, folder, left_out)
    if not flat and not any(found.values()):
        count = len(left_out)
        others = f", and {count} file{'s'[: count > 1]} of another kind ('{left_out[0][0]}')" if left_out else ""
        raise ConfigError(
            f"'{folder}' holds no {kind} file{others}; give a folder of classes, DIR/<class>/FILE, or a flat one with "
            "--labels FILE."
        )
    if not any(found.values()):
        return LabelledData(
            source=str(folder),
            form=f"folder of {kind} files without labels",
            samples=[_sample(path, folder, None, reader) for path in flat],
            left_out=tuple(left_out),
        )
    if names is None and num_classes is not None and len(folders) == 1 < num_classes:
        _refuse_parent(folders[0], num_classes)
    numbers, how = number_folders(list(found), names, num_classes, order, str(folder))
    left_out += [(str(path.relative_to(folder)), "it lies beside the folders of classes") for path in flat]
    by_number = {number: name for name, number in numbers.items()}
    return LabelledData(
        source=str(folder),
        form=f"folders of {kind} files, one a class",
        samples=[_sample(path, folder, numbers[name], reader) for name, paths in found.items() for path in paths],
        labelled_by=how,
        class_names=tuple(by_number.get(number, "") for number in range(max(by_number) + 1)),
        left_out=tuple(left_out),
    )


def _taken(paths: Sequence[Path], reader: FileReader, folder: Path, left_out: LeftOut) -> list[Path]:
    """Those that are of the reader's kind; the others are noted."""
    left_out += [
        (str(path.relative_to(folder)), f"its name is not one of an {reader.kind}")
        for path in paths
        if not reader.takes(path)
    ]
    return [path for path in paths if reader.takes(path)]


def _sample(path: Path, folder: Path, label: int | None, reader: FileReader) -> LabelledSample:
    return LabelledSample(name=str(path.relative_to(folder)), label=label, load=partial(reader.read, path))


def _refuse_parent(only: Path, num_classes: int) -> None:
    below = sum(path.is_dir() for path in only.iterdir())
    if below > 1:
        raise ConfigError(
            f"'{only.parent}' has the one folder '{only.name}', which has {below}, and the bundle has {num_classes} "
            f"classes; did you mean '{only}'?"
        )
