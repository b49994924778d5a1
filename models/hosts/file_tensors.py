"""Tensors of a file by name, read when they are asked for, so that no second copy of all of them is ever in memory."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from trt_compress.models.hosts.safetensors_file import SafetensorsFile


@dataclass(frozen=True, slots=True)
class Unread:
    """A tensor of a file that has not been read.

    Attributes:
        file: The file.
        name: Its name there.
    """

    file: SafetensorsFile
    name: str

    @property
    def like(self) -> Tensor:
        """Its shape and dtype, on the meta device."""
        stored = self.file.tensors[self.name]
        return torch.empty(stored.shape, dtype=getattr(torch, stored.dtype), device="meta")

    def read(self) -> Tensor:
        """The tensor, in memory of its own.

        Raises:
            ConfigError: The file has lost its end since it was opened.
        """
        return self.file.read(self.name)


class FileTensors(Mapping[str, Tensor]):
    """Tensors by name. One that has not been read is read whenever it is asked for, and kept by whoever asked alone.

    Args:
        found: Tensors, and what is read later.
    """

    def __init__(self, found: Mapping[str, Tensor | Unread]) -> None:
        self._found = dict(found)

    def __getitem__(self, name: str) -> Tensor:
        found = self._found[name]
        return found.read() if isinstance(found, Unread) else found

    def __contains__(self, name: object) -> bool:
        return name in self._found  # nothing is read for it

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def like(self, name: str) -> Tensor:
        """A tensor of the same shape and dtype: itself, or one without data. Nothing is read."""
        found = self._found[name]
        return found.like if isinstance(found, Unread) else found

    def replaced(self, name: str, tensor: Tensor) -> "FileTensors":
        """The same with another tensor of a name."""
        return FileTensors({**self._found, name: tensor})


def likes(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Shape and dtype of each tensor, without reading any."""
    return {name: tensors.like(name) for name in tensors} if isinstance(tensors, FileTensors) else dict(tensors)
