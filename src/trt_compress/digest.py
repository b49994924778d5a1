"""The one hash: SHA-256 of content, whole or as it comes, and the digest of a bundle as a user requires it."""

import hashlib
import re
from collections.abc import Collection
from typing import BinaryIO

from trt_compress.errors import ConfigError
from trt_compress.foreign import shown

_CHUNK = 1 << 20


class Sha256:
    """The hash of bytes that come one part after another.

    Attributes:
        size: Bytes so far.
    """

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self.size = 0

    def add(self, part: bytes | memoryview) -> None:
        """Take the next part."""
        self._hash.update(part)
        self.size += memoryview(part).nbytes

    def add_file(self, file: BinaryIO) -> None:
        """Take all that follows in an open file, a piece at a time.

        Raises:
            OSError: It cannot be read.
        """
        buffer = memoryview(bytearray(_CHUNK))
        while size := file.readinto(buffer):  # type: ignore[attr-defined]
            self.add(buffer[:size])

    def hex(self) -> str:
        """The hash so far, 64 small hexadecimal digits."""
        return self._hash.hexdigest()


def sha256(content: bytes | memoryview | str) -> str:
    """The hash of bytes, or of a text as UTF-8: 64 small hexadecimal digits."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def sha256_of_file(file: BinaryIO) -> str:
    """The hash of all that follows in an open file.

    Raises:
        OSError: It cannot be read.
    """
    digest = Sha256()
    digest.add_file(file)
    return digest.hex()


def as_digests(required: str | Collection[str] | None) -> tuple[str, ...]:
    """What `require_digest` may be, as digests in small letters; nothing is read for it.

    Raises:
        ConfigError: Something is not the 64 hexadecimal digits of a SHA-256.
    """
    given: Collection[object] = (required,) if isinstance(required, str) else () if required is None else required
    for digest in given:
        if not isinstance(digest, str) or not re.fullmatch("[0-9a-fA-F]{64}", digest):
            raise ConfigError(
                f"'{shown(str(digest))[:80]}' is no digest of a bundle; give all 64 hexadecimal digits, as "
                "'trt-compress inspect BUNDLE' shows them where the bundle was made."
            )
    return tuple(str(digest).lower() for digest in given)
