"""Files of labels: JSON lines `{"file": …, "label": …}`, or CSV with a file and a label a line."""

import csv
import io
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from trt_compress.errors import ConfigError
from trt_compress.files import read_regular
from trt_compress.foreign import strict_json
from trt_compress.runtime.labelled.classes import ClassNames
from trt_compress.runtime.labelled.data import LabelledData, LabelledSample
from trt_compress.runtime.labelled.files import FileReader, files_below

_FILE_KEYS = ("file", "path", "filename", "file_name", "image", "audio", "name")
_LABEL_KEYS = ("label", "class", "target", "class_id", "label_id")
_FORM = 'a line such as {"file": "a.png", "label": 7}, or CSV: a.png,7'


def from_labels(
    labels: Path, folder: Path | None, reader: FileReader, *, names: ClassNames | None, num_classes: int | None
) -> LabelledData:
    """Read the files that a file of labels names.

    Args:
        labels: JSON lines or CSV.
        folder: What the paths in it are relative to; None: the folder of `labels`.
        reader: Reads the files.
        names: Names of the classes; a label may be one of them, or a number.
        num_classes: How many classes the bundle has.

    Raises:
        ConfigError: It cannot be read, or a line is no label of the bundle.
    """
    base = folder or labels.parent
    rows: dict[str, int] = {}
    twice = 0
    for where, name, label in _rows(labels):
        if "\0" in name:
            raise ConfigError(f"{where} names a file with a null character in it, which none has; give {_FORM}.")
        number = _number(label, where, names, num_classes)
        if rows.setdefault(name, number) != number:
            raise ConfigError(f"{where} gives '{name}' the class {number}, and a line before it {rows[name]}.")
        twice += 1
    if not rows:
        raise ConfigError(f"'{labels}' holds no label; give {_FORM}.")
    left_out = [] if folder is None else _without_label(folder, rows, reader)
    if twice > len(rows):
        left_out.append((str(labels), f"{twice - len(rows)} lines that say the same again"))
    return LabelledData(
        source=str(labels) if folder is None else f"{folder} with {labels}",
        form=f"{reader.kind} files with a file of labels",
        samples=[
            LabelledSample(name=name, label=number, load=partial(reader.read, base / name))
            for name, number in rows.items()
        ],
        labelled_by="numbers in the file" if names is None else f"in the file, names of {names.origin}",
        class_names=() if names is None else names.names,
        left_out=tuple(left_out),
    )


def _without_label(folder: Path, rows: dict[str, int], reader: FileReader) -> list[tuple[str, str]]:
    named = {(folder / name).resolve() for name in rows}
    return [
        (str(path.relative_to(folder)), "it has no label")
        for path in files_below(folder)
        if reader.takes(path) and path.resolve() not in named
    ]


def _number(label: Any, where: str, names: ClassNames | None, num_classes: int | None) -> int:
    if isinstance(label, str) and names is not None and label in names.numbers:
        return names.numbers[label]
    number = (
        int(label) if isinstance(label, str) and label.isdecimal() and label.isascii() and len(label) < 20 else label
    )
    if type(number) is int:
        if number < 0 or (num_classes is not None and number >= num_classes):
            raise ConfigError(
                f"{where} has the class {number}, and the bundle has the classes 0 to "
                f"{'…' if num_classes is None else num_classes - 1}."
            )
        return number
    if isinstance(label, str):
        if names is not None:
            return names.number(label, f"The label of {where[:1].lower()}{where[1:]}")
        raise ConfigError(
            f"{where} has the class '{label}', and the bundle does not name its classes; give --classes FILE with one "
            "name a line in the model's order, or numbers."
        )
    raise ConfigError(f"{where} has the label {json.dumps(label)[:40]}; give the number or the name of one class.")


def _rows(labels: Path) -> Iterator[tuple[str, str, Any]]:
    """Where each label stands, its file, and the label as it is written."""
    try:
        text = read_regular(labels).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise ConfigError(f"'{labels}' cannot be read ({reason}); give {_FORM}.") from None
    is_json = text.lstrip()[:1] == "{" or labels.suffix.lower() in (".json", ".jsonl", ".ndjson")
    return _of_json(text, labels) if is_json else _of_csv(text, labels)


def _of_json(text: str, labels: Path) -> Iterator[tuple[str, str, Any]]:
    for line, content in enumerate(text.splitlines(), start=1):
        if not content.strip():
            continue
        where = f"Line {line} of '{labels}'"
        try:
            data: Any = strict_json(content)
        except ValueError:
            data = None
        names = [key for key in _FILE_KEYS if isinstance(data, dict) and isinstance(data.get(key), str)]
        found = [key for key in _LABEL_KEYS if isinstance(data, dict) and key in data]
        if not names or not found:
            raise ConfigError(f"{where} is no label of a file; write {_FORM}.")
        yield where, data[names[0]], data[found[0]]


def _of_csv(text: str, labels: Path) -> Iterator[tuple[str, str, Any]]:
    first = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = max(",\t;", key=first.count)
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True)
    places: tuple[int, int] | None = None
    try:
        for row in reader:
            if not any(cell.strip() for cell in row):
                continue
            where = f"Line {reader.line_num} of '{labels}'"
            if places is None:
                heading = [cell.strip().lower() for cell in row]
                files = [heading.index(key) for key in _FILE_KEYS if key in heading]
                classes = [heading.index(key) for key in _LABEL_KEYS if key in heading]
                if files and classes:
                    places = files[0], classes[0]
                    continue
                if len(row) != 2:
                    raise ConfigError(
                        f"{where} has {len(row)} columns and no heading that names 'file' and 'label'; write {_FORM}."
                    )
                places = 0, 1
            if len(row) <= max(places):
                raise ConfigError(f"{where} has {len(row)} columns, and file and label are needed; write {_FORM}.")
            yield where, row[places[0]].strip(), row[places[1]].strip()
    except csv.Error as error:
        raise ConfigError(f"'{labels}' is not CSV ({error}); write {_FORM}.") from None
