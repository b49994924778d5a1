"""From the name of a class to its number."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trt_compress.errors import ConfigError
from trt_compress.files import read_regular
from trt_compress.foreign import strict_json
from trt_compress.suggest import did_you_mean

ORDERS = ("sorted", "numbers")
_FORM = 'a text file with one name a line, the class 0 first, or JSON: ["cat", "dog"] or {"cat": 0, "dog": 1}'


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassNames:
    """What the classes of a bundle are called.

    Attributes:
        numbers: Name → number. Several names may mean one class.
        origin: Where they are from, in words.
    """

    numbers: Mapping[str, int]
    origin: str

    @property
    def names(self) -> tuple[str, ...]:
        """The first name of every class, by number; "" where it has none."""
        found: dict[int, str] = {}
        for name, number in self.numbers.items():
            found.setdefault(number, name)
        return tuple(found.get(number, "") for number in range(max(found, default=-1) + 1))

    def number(self, name: str, where: str) -> int:
        """The number of a class.

        Raises:
            ConfigError: No class has this name.
        """
        if name not in self.numbers:
            raise ConfigError(
                f"{where} is '{name}', which {self.origin} does not have{did_you_mean(name, self.numbers) or '.'} "
                "Give --classes FILE with the names of the classes."
            )
        return self.numbers[name]


def names_of_bundle(labels: Sequence[str]) -> ClassNames | None:
    """The names that a bundle's manifest gives its classes, if it does."""
    return (
        ClassNames(numbers=dict(zip(labels, range(len(labels)), strict=True)), origin="the bundle") if labels else None
    )


def read_names(path: str | Path, num_classes: int | None) -> ClassNames:
    """Read names of classes.

    A line of a text file may hold several names of a class, as ImageNet's lists do: the whole line, its first word and
    what stands between commas are taken.

    Raises:
        ConfigError: It cannot be read, names a class twice, or has other numbers than the bundle.
    """
    try:
        text = read_regular(Path(path)).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise ConfigError(f"--classes: '{path}' cannot be read ({reason}); give {_FORM}.") from None
    numbers = _of_json(text, path) if text.lstrip()[:1] in ("[", "{") else _of_lines(text, path)
    if not numbers:
        raise ConfigError(f"--classes: '{path}' names no class; give {_FORM}.")
    least, most = min(numbers.values()), max(numbers.values())
    if least < 0 or (num_classes is not None and most >= num_classes):
        wrong = least if least < 0 else most
        raise ConfigError(
            f"--classes: '{path}' has a class {wrong}, and the bundle has the classes 0 to "
            f"{'…' if num_classes is None else num_classes - 1}; give the names in the model's own order."
        )
    return ClassNames(numbers=numbers, origin=f"'{path}'")


def _of_json(text: str, path: str | Path) -> dict[str, int]:
    try:
        content: Any = strict_json(text)
    except ValueError as error:
        raise ConfigError(f"--classes: '{path}' is not valid JSON ({error}); give {_FORM}.") from None
    if isinstance(content, list) and all(isinstance(name, str) for name in content):
        if repeated := [name for name in content if content.count(name) > 1]:
            raise ConfigError(f"--classes: '{path}' names '{repeated[0]}' twice; name each class once.")
        return {name: number for number, name in enumerate(content)}
    if isinstance(content, dict):
        if all(type(number) is int for number in content.values()):
            return dict(content)
        if all(key.isdecimal() and len(key) < 10 for key in content) and all(
            isinstance(name, str) for name in content.values()
        ):
            return {name: int(key) for key, name in content.items()}
    raise ConfigError(f"--classes: '{path}' holds no names of classes; give {_FORM}.")


def _of_lines(text: str, path: str | Path) -> dict[str, int]:
    lines = [line.strip() for line in text.splitlines()]
    while lines and not lines[-1]:
        lines.pop()
    if "" in lines:
        raise ConfigError(f"--classes: line {lines.index('') + 1} of '{path}' is empty; name one class a line.")
    numbers: dict[str, int] = {}
    for number, line in enumerate(lines):
        if line in numbers:
            raise ConfigError(f"--classes: '{path}' names '{line}' twice; name each class once.")
        numbers[line] = number
    aliases: dict[str, list[int]] = {}
    for number, line in enumerate(lines):
        for alias in {line.split()[0], *(part.strip() for part in line.split(","))} - {line, ""}:
            aliases.setdefault(alias, []).append(number)
    clear = {alias: found[0] for alias, found in aliases.items() if len(found) == 1 and alias not in numbers}
    return {**numbers, **clear}


def number_folders(
    folders: Sequence[str], names: ClassNames | None, num_classes: int | None, order: str | None, where: str
) -> tuple[dict[str, int], str]:
    """Give each folder of a class its number.

    Args:
        folders: Their names.
        names: Names of the classes, if there are any.
        num_classes: How many the bundle has.
        order: "sorted" or "numbers", if the user says how unnamed classes are counted.
        where: The directory, for messages.

    Returns:
        Numbers by folder, and in words how they were found.

    Raises:
        ConfigError: They cannot be told, or in two ways.
    """
    how_to = "Name them: --classes FILE, one name a line in the model's order."
    if names is not None and order is None:
        unknown = [folder for folder in folders if folder not in names.numbers]
        if not unknown:
            return {folder: names.numbers[folder] for folder in folders}, f"names of {names.origin}"
        if len(unknown) < len(folders) or names.origin != "the bundle":
            known = list(names.numbers)
            shown = ", ".join(known[:12]) + (", …" if len(known) > 12 else "")
            raise ConfigError(
                f"'{where}' has a folder '{unknown[0]}', which is no class of {names.origin}."
                f"{did_you_mean(unknown[0], known)} There are {shown}."
            )
    in_order = {folder: number for number, folder in enumerate(sorted(folders))}
    as_numbers = {folder: int(folder) for folder in folders if folder.isdecimal() and folder.isascii()}
    numeric = (
        len(as_numbers) == len(folders)
        and len(set(as_numbers.values())) == len(folders)
        and (num_classes is None or max(as_numbers.values()) < num_classes)
    )
    complete = num_classes is None or len(folders) == num_classes
    if order == "numbers":
        if not numeric:
            raise ConfigError(
                f"'{where}': --classes numbers needs folders named 0 to {(num_classes or 0) - 1}, each number once; "
                f"there are {', '.join(sorted(folders)[:12])}."
            )
        return as_numbers, "their folders' names as numbers"
    if complete and numeric and in_order != as_numbers and order is None:
        raise ConfigError(
            f"'{where}': folders that are named by numbers can be counted in two ways, sorted as words "
            f"({', '.join(sorted(folders)[:4])}, …: what torchvision's ImageFolder does) or as numbers; say which: "
            "--classes sorted or --classes numbers."
        )
    if complete or order == "sorted":
        if num_classes is not None and len(folders) > num_classes:
            raise ConfigError(f"'{where}' has {len(folders)} classes and the bundle {num_classes}. {how_to}")
        return in_order, "their folders in sorted order, as ImageFolder counts"
    if numeric:
        return as_numbers, "their folders' names as numbers"
    raise ConfigError(
        f"'{where}' has {len(folders)} folder{'s'[: len(folders) != 1]} of classes ({', '.join(sorted(folders)[:6])}"
        f"{', …' if len(folders) > 6 else ''}) and the bundle has {num_classes} classes, so it cannot be told which is "
        f"which. {how_to}"
    )
