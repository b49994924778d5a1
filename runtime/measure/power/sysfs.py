"""Read numbers from files that the kernel answers."""

from pathlib import Path

from trt_compress.errors import UnsupportedError
from trt_compress.files import read_regular


def read_text(path: Path) -> str:
    """Read a sysfs attribute.

    Raises:
        UnsupportedError: It is not there, or may not be read; the message names the file and what to do.
    """
    try:
        return read_regular(path).decode(errors="replace").strip()
    except PermissionError:
        raise UnsupportedError(
            f"'{path}' may not be read by this user; run as root, or let an administrator make it readable "
            f"(chmod a+r '{path}')."
        ) from None
    except OSError as error:
        raise UnsupportedError(f"'{path}' cannot be read ({error.strerror}); check the sensor's driver.") from None


def read_number(path: Path) -> int:
    """Read a sysfs attribute that holds an integer.

    Raises:
        UnsupportedError: As `read_text`, or it holds something else.
    """
    text = read_text(path)
    try:
        return int(text)
    except ValueError:
        raise UnsupportedError(
            f"'{path}' holds {text[:40]!r}, which is not an integer; check the sensor's driver."
        ) from None
