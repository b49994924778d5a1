"""Files of others are opened as what they are said to be, and what is written is there whole or not at all."""

import errno
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def open_regular(path: Path, *, inside: Path | None = None) -> BinaryIO:
    """Open a regular file for reading, and nothing that would hang or never end: no pipe, device, socket or folder.

    Args:
        path: The file.
        inside: The folder that it must lie in, links followed.

    Raises:
        OSError: It cannot be opened, is no regular file, or lies outside; `strerror` says which.
    """
    if inside is not None:
        path = _resolved_inside(path, inside)
    _require_regular(os.stat(path), path)  # before it is opened: some devices do something when they are
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        _require_regular(os.fstat(descriptor), path)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: Path, *, limit: int, inside: Path | None = None) -> bytes:
    """Read a regular file that has at most `limit` bytes.

    Raises:
        OSError: As `open_regular`, or it is larger.
    """
    with open_regular(path, inside=inside) as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"it has more than {limit} bytes", str(path))
    return data


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file: aside under a name that cannot be guessed, to the disk, then in place of what was there.

    A link is followed, and what it points to replaced. What is no regular file (`/dev/stdout`, a pipe) is written to.

    Args:
        path: The file.
        content: What it will hold; text as UTF-8.

    Raises:
        OSError: It cannot be written; what was there is as it was, and nothing is left beside it.
    """
    data = content.encode() if isinstance(content, str) else content
    place = Path(os.path.realpath(path))
    mode = None
    with suppress(FileNotFoundError):
        there = os.stat(path)
        if not stat.S_ISREG(there.st_mode):
            with open(path, "wb") as special:
                special.write(data)
            return
        mode = stat.S_IMODE(there.st_mode)
    draft = place.with_name(f".{place.name[:200]}.{secrets.token_hex(8)}.new")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(draft, flags, 0o666 if mode is None else 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            if mode is not None:
                os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        os.replace(draft, place)
    except BaseException:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        raise
    with suppress(OSError):  # it is in place; not every file system can sync a folder
        sync_folder(place.parent)


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk.

    Raises:
        OSError: The file system cannot.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _resolved_inside(path: Path, inside: Path) -> Path:
    root = Path(os.path.realpath(inside))
    resolved = Path(os.path.realpath(path))
    if root not in resolved.parents:
        raise OSError(errno.EPERM, f"it is a link out of '{inside}'", str(path))
    return resolved


def _require_regular(status: os.stat_result, path: Path) -> None:
    if stat.S_ISREG(status.st_mode):
        return
    kind = _KINDS.get(stat.S_IFMT(status.st_mode), "something else")
    code = errno.EISDIR if stat.S_ISDIR(status.st_mode) else errno.EINVAL
    raise OSError(code, f"it is {kind}, not a file", str(path))
