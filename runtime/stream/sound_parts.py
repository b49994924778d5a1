"""How a sound file is to be read: in one piece, in parts, or not at all because something is missing."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SoundPart:
    """Bytes of a file that are a sound file by themselves.

    Attributes:
        start: First byte taken from the file.
        end: The byte behind the last one.
        head: Bytes that stand before them, instead of those of the file.
    """

    start: int
    end: int
    head: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """What a file says about its own length.

    Attributes:
        missing: What it announces and does not have, such as "512 bytes of its samples"; None: nothing.
        parts: How it is read, one after another; empty: as it is.
        doubt: What looks cut, though nothing was announced; None: nothing.
    """

    missing: str | None = None
    parts: tuple[SoundPart, ...] = ()
    doubt: str | None = None
