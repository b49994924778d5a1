"""A model in GGUF: one file, or several that llama-gguf-split made of one, `NAME-00001-of-00003.gguf` and so on.

Source: llama.cpp's loader: the first part has all metadata; `split.no`, `split.count` and `split.tensors.count` say
which part a file is, of how many, and how many tensors all of them have.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trt_compress.errors import ConfigError
from trt_compress.files import open_regular
from trt_compress.foreign import shown
from trt_compress.models.hosts.origin import Origin
from trt_compress.models.language.gguf_blocks import Read
from trt_compress.models.language.gguf_file import GgufFile, GgufTensor

_NAME = re.compile(r"(?P<stem>.+)-(?P<part>\d{5})-of-(?P<count>\d{5})\.gguf")


class GgufParts:
    """All files of a model.

    Args:
        path: The only one, or the first of several.

    Raises:
        ConfigError: One cannot be read, is damaged, or they do not belong together.
        UnsupportedError: Another version or type of numbers.

    Attributes:
        metadata: Of the first.
        tensors: Of all, by the names that they have there.
        origins: The files, in their order.
    """

    def __init__(self, path: Path) -> None:
        first = _opened(path, f"gguf:{path} cannot be read")
        self.metadata: Mapping[str, Any] = first.metadata
        files = [first, *_others(path, first.metadata)]
        self._file_of = {tensor: file for file in files for tensor in file.tensors}
        self.tensors: Mapping[str, GgufTensor] = {name: file.tensors[name] for name, file in self._file_of.items()}
        self.origins: tuple[Origin, ...] = tuple(file.origin for file in files)
        told = first.metadata.get("split.tensors.count")
        if len(files) > 1 and not len(self.tensors) == sum(len(file.tensors) for file in files) == told:
            raise ConfigError(
                f"gguf:{path}: its {len(files)} files have {len(self.tensors)} tensors of different names, and the "
                f"first says {shown(str(told))[:40]}; download all of them again, of the same model."
            )

    def read(self, name: str) -> Read:
        """What reads the bytes of a tensor from one place up to another."""
        file = self._file_of[name]
        return lambda first, last: file.read(name, first, last)

    def require_unchanged(self) -> None:
        """See that nobody has written into a file since it was opened.

        Raises:
            ConfigError: Somebody has.
        """
        for origin in self.origins:
            origin.require_unchanged()


def _others(path: Path, metadata: Mapping[str, Any]) -> Iterator[GgufFile]:
    """The files behind the first, opened one after the other."""
    count, number = metadata.get("split.count", 0), metadata.get("split.no", 0)
    if count in (0, 1):
        return
    if type(count) is not int or type(number) is not int or not 0 <= number < count:
        raise ConfigError(
            f"gguf:{path} says that it is part {shown(str(number))[:20]} of {shown(str(count))[:20]}; split the model "
            "again with llama-gguf-split."
        )
    place = _NAME.fullmatch(path.name)
    stem = None if place is None else place["stem"]
    if number:
        named = "the first part" if stem is None else f"gguf:{path.with_name(_part(stem, 0, count))}"
        raise ConfigError(f"gguf:{path} is part {number + 1} of {count}; give {named}, and the others are found.")
    if place is None or (int(place["part"]), int(place["count"])) != (1, count):
        raise ConfigError(
            f"gguf:{path} is the first of {count} parts, and the others are found by its name; call it "
            f"NAME-00001-of-{count:05d}.gguf as llama-gguf-split does, or put them together with its --merge."
        )
    for number in range(1, count):
        other = path.with_name(_part(place["stem"], number, count))
        file = _opened(other, f"gguf:{path} has {count} parts, and {other.name} cannot be read")
        if (file.metadata.get("split.no"), file.metadata.get("split.count")) != (number, count):
            raise ConfigError(f"gguf:{other} is not part {number + 1} of {count}, as its name says; download it again.")
        yield file


def _part(stem: str, number: int, count: int) -> str:
    """The name of a part; they are counted from 1 there."""
    return f"{stem}-{number + 1:05d}-of-{count:05d}.gguf"


def _opened(path: Path, what: str) -> GgufFile:
    try:
        opened = open_regular(path)
    except OSError as error:
        raise ConfigError(f"{what} ({error.strerror}); give a file of GGUF.") from None
    with opened as file:
        return GgufFile(file, path)
