"""The door for files that others wrote: whatever a library raises while it reads one becomes our error with its name.

Libraries raise what they like on a damaged file: struct.error, UnicodeDecodeError, RecursionError, MemoryError, classes
of their own without a common base. Listing them one by one leaves some out, so the door takes all of them; what must
not be caught (KeyboardInterrupt, SystemExit, our own errors) goes through.
"""

import errno
import json
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NoReturn

from trt_compress.errors import ConfigError, TrtCompressError, UnsupportedError

_LONGEST_REASON = 160
_DEEPEST = 64
_LARGEST_INTEGER = 2**64
_MOST_DIGITS = 64
_SAID_DIGITS = 25
_LONGEST_TEXT = 1 << 16
_LARGEST_FILE = 1 << 28
_CONTROL = re.compile(
    r"[\x00-\x1f\x7f-\x9f"
    r"\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f"  # lines and directions
    r"\u180e\u200b\u2060-\u2064\ufeff\ufff9-\ufffb\U000e0000-\U000e007f"  # what is not seen
    r"\ud800-\udfff]"
)
_REFUSED = {
    **dict.fromkeys((errno.EACCES, errno.EPERM), "check its permissions and those of the folders above it"),
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ELOOP: "its links lead in a circle; give the file itself",
    errno.ENOTDIR: "what stands before the last '/' is no folder",
    errno.EROFS: "give a place that may be written to",
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some space, or give a place on another disk"),
    **dict.fromkeys((errno.EIO, errno.ESTALE), "check the disk or the network that it lies on"),
}
"""What to do where the system refuses a file that was given, which is no fault of ours."""


@contextmanager
def reading(where: str, advice: str, *, error: type[TrtCompressError] = ConfigError) -> Iterator[None]:
    """Turn whatever is raised inside into one sentence about the file that is being read there.

    Args:
        where: The file, as it stands in the message: `'scene.npz'`, `recipe.toml of the bundle`.
        advice: What to do, as the end of a sentence.
        error: The class to raise.

    Raises:
        TrtCompressError: Of class `error`; the cause is kept for `-v`.
    """
    try:
        yield
    except TrtCompressError:
        raise
    except Exception as cause:
        raise error(f"{where} cannot be read ({reason_of(cause)}); {advice}.") from cause


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Turn the failed import of a library into a sentence that names the extra it comes with.

    Raises:
        UnsupportedError: The library is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library in ("", "trt_compress"):
            raise
        raise UnsupportedError(
            f"This command needs '{library}', which is not installed.", hint=f'pip install "trt-compress[{extra}]"'
        ) from None


def reason_of(cause: BaseException) -> str:
    """The first sentence of what a library said, short, without control characters; its class where it said nothing."""
    if isinstance(cause, MemoryError):
        return "it would take more memory than there is"
    if isinstance(cause, RecursionError):
        return "it is nested too deeply"
    said = str(getattr(cause, "strerror", None) or cause)  # not only an OSError has one: FFmpeg's errors too
    lines = said.strip().splitlines()
    text = shown(lines[0].split(". ")[0]).rstrip(".") if lines else ""  # further ones give advice that is not ours
    return (text[: _LONGEST_REASON - 1] + "…" if len(text) > _LONGEST_REASON else text) or type(cause).__name__


def refused_by_system(error: Exception) -> ConfigError | None:
    """The sentence for a file that the system does not let this user have; None: the error is something else."""
    advice = _REFUSED.get(getattr(error, "errno", None) or 0)
    name = getattr(error, "filename", None)
    if not isinstance(error, OSError) or advice is None or not isinstance(name, str | bytes | os.PathLike):
        return None
    return ConfigError(f"'{os.fsdecode(name)}' cannot be used ({error.strerror}); {advice}.")


@contextmanager
def refusals_said() -> Iterator[None]:
    """Say in a sentence what the system refuses: around a function of the public API, whose caller gave the files.

    Raises:
        ConfigError: A file cannot be used, and why.
    """
    try:
        yield
    except OSError as error:
        if (refused := refused_by_system(error)) is None:
            raise
        raise refused from error


def shown(text: str) -> str:
    """Text of a stranger as it may be printed: control and direction characters, and halves of pairs, as `\\x…`."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def shown_lines(text: str) -> str:
    """As `shown`, for text that may have several lines; these stay."""
    return "\n".join(map(shown, text.split("\n")))


def plain_json(data: object, *, indent: int | None = None) -> str:
    """Write JSON that may be printed: what `shown` shows stands there as JSON's own `\\u…`, and reads back the same."""
    text = json.dumps(data, indent=indent, allow_nan=False, ensure_ascii=False)
    return _CONTROL.sub(lambda found: found[0] if found[0] == "\n" else json.dumps(found[0])[1:-1], text)


def strict_json(
    text: str | bytes,
    *,
    limit: int = _LARGEST_FILE,
    largest: float = math.inf,
    longest: int = _LONGEST_TEXT,
    once: bool = False,
    wide: bool = False,
) -> Any:
    """Read JSON as the standard has it, within bounds.

    No NaN and nothing infinite, at most 64 levels, no half characters, integers of 64 bits. A byte-order mark is passed
    over, as editors put it there; bytes may be in any of the Unicode encodings.

    Args:
        text: The document.
        limit: The most characters, or bytes, that it may have.
        largest: No number is as large.
        longest: The most characters of a text in it.
        once: Whether an object may have a name only once; else the last one counts.
        wide: Integers may have up to 64 digits: transformers writes 10^30 for a length that has no end.

    Raises:
        ValueError: The text is something else; the message says what, without the file's name.
    """
    if len(text) > limit:
        raise ValueError(f"it has {len(text)} bytes, and may have {limit}")
    try:
        if isinstance(text, bytes):
            text = text.decode(json.detect_encoding(text))
        data = json.loads(
            text.removeprefix("\ufeff"),
            parse_constant=_refuse_constant,
            parse_int=partial(_integer, min(largest, 10**_MOST_DIGITS if wide else _LARGEST_INTEGER)),
            parse_float=partial(_number, largest),
            object_pairs_hook=_each_once if once else None,
        )
    except UnicodeDecodeError:
        raise ValueError("it is not a text") from None
    except RecursionError:
        raise ValueError(f"it is nested deeper than {_DEEPEST} levels") from None
    except ValueError as error:
        what = str(error)
        raise ValueError(f"{what} after a whole document" if what.startswith("Extra data") else what) from None
    _check(data, 1, longest)
    return data


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for place, name in enumerate(names) if name in names[:place])
        raise ValueError(f"'{shown(twice)[:40]}' stands there twice")
    return found


def _check(value: Any, depth: int, longest: int) -> None:
    if depth > _DEEPEST:
        raise ValueError(f"it is nested deeper than {_DEEPEST} levels")
    if isinstance(value, str):
        _check_text(value, longest)
    elif isinstance(value, list):
        for item in value:
            if isinstance(item, str | list | dict):
                _check(item, depth + 1, longest)
    elif isinstance(value, dict):
        for name, item in value.items():
            _check_text(name, longest)
            if isinstance(item, str | list | dict):
                _check(item, depth + 1, longest)


def _check_text(text: str, longest: int) -> None:
    if len(text) > longest:
        raise ValueError(f"a text of {len(text)} characters stands there, and it may have {longest}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"'{shown(text)[:40]}' holds half of a character") from None


def _integer(largest: float, text: str) -> int:
    if len(text) > _MOST_DIGITS or abs(int(text)) >= largest:
        raise _too_large(text)
    return int(text)


def _number(largest: float, text: str) -> float:
    number = float(text)
    if not abs(number) < largest:
        raise _too_large(text)
    return number


def _too_large(text: str) -> ValueError:
    said = text if len(text) <= _SAID_DIGITS else f"{text[:12]}…, of {len(text)} characters,"
    return ValueError(f"the number {said} is too large")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
