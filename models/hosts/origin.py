"""The file that tensors come from, as it was when it was opened."""

import os
import weakref
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

from trt_compress.digest import Sha256
from trt_compress.errors import ConfigError

_CHUNK = 1 << 20


class Origin:
    """A file of weights: hashed and read through one descriptor, wherever its name leads meanwhile.

    Attributes:
        path: How it is called in messages.
        size: Its bytes.
    """

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._descriptor = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._descriptor)
        self.path = path
        self._state = self._look()
        self.size = self._state[0]

    @cached_property
    def sha256(self) -> str:
        """Its hash; the whole file is read for it.

        Raises:
            ConfigError: The system cannot read it, or somebody has written into it since it was opened.
        """
        digest, buffer = Sha256(), memoryview(bytearray(min(_CHUNK, self.size)))
        while digest.size < self.size:
            part = buffer[: self.size - digest.size]
            self.read_into(part, digest.size)
            digest.add(part)
        self.require_unchanged()
        return digest.hex()

    def read_into(self, memory: memoryview, place: int) -> None:
        """Fill memory with the bytes from `place` on; nothing is mapped, and no other copy of them is made.

        Raises:
            ConfigError: The file has lost its end since it was opened, or the system cannot read it.
        """
        rest = memory.cast("B")
        while rest:
            try:
                count = os.preadv(self._descriptor, [rest], place)
            except OSError as error:
                raise ConfigError(f"weights: {self.path} cannot be read ({error.strerror}).") from None
            if not count:
                raise self._changed()
            rest, place = rest[count:], place + count

    def require_unchanged(self) -> None:
        """Make sure that nobody has written into the file since it was opened.

        Raises:
            ConfigError: Somebody has.
        """
        if self._look() != self._state:
            raise self._changed()

    def _changed(self) -> ConfigError:
        return ConfigError(f"weights: {self.path} was changed while it was read; give it when it is complete.")

    def _look(self) -> tuple[int, ...]:
        status = os.fstat(self._descriptor)
        return status.st_size, status.st_mtime_ns
