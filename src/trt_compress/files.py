"""Files of others are opened as what they are said to be, and what is written is there whole or not at all."""

import errno
import io
import mmap
import os
import re
import secrets
import select
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from trt_compress.locks import hold, is_at
from trt_compress.strays import remove_strays_in

TEXT_LIMIT = 1 << 26  # bytes of a list, recipe or description that a person or a program wrote
RECORD_LIMIT = 1 << 30  # bytes of a result, with every frame of a stream

_HOW_LONG_TO_WAIT = 5.0  # for a line of another process, which is written in a moment
_DRAFT = ".trtc-{}.new"
_IS_DRAFT = re.compile(r"\.trtc-[0-9a-f]{16}\.new")
_DESCRIPTORS = re.compile(r"/proc/(?:self|thread-self|\d+)(?:/task/\d+)?/fd")
_NOT_BESIDE = (errno.EACCES, errno.EPERM, errno.EROFS)  # the folder takes no further file
_NOT_REPLACED = (errno.EBUSY, errno.EXDEV)  # the file is a mount of its own

_KINDS = {
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
    root = None if inside is None else Path(os.path.realpath(inside))
    if root is not None:
        path = _resolved_inside(path, root, inside)
    _require_regular(os.stat(path), path)  # before it is opened: some devices do something when they are
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        _require_regular(os.fstat(descriptor), path)
        if root is not None:  # else a folder on the way became a link in between
            _require_inside(Path(f"/proc/self/fd/{descriptor}"), root, inside, path)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def check_regular(path: Path) -> None:
    """Refuse what `open_regular` would, for a library that opens its file by name.

    Raises:
        OSError: As `open_regular`.
    """
    open_regular(path).close()


def read_regular(path: Path, *, limit: int = TEXT_LIMIT, inside: Path | None = None) -> bytes:
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

    A link is followed, and what it points to replaced; mode and owner stay. What is no regular file (a pipe, a device)
    and what is a descriptor of this process (`/dev/stdout`) is written to. So is, as carefully as it goes, a file that
    cannot be replaced: in a folder that takes no others, or mounted by itself.

    Args:
        path: The file.
        content: What it will hold; text as UTF-8.

    Raises:
        OSError: It cannot be written; what was there is as it was, and nothing is left beside it.
    """
    data = content.encode() if isinstance(content, str) else content
    if _is_stream(path):
        with _open_stream(path) as special:
            write_all(special, data)
        return
    place = Path(os.path.realpath(path))
    there = _status(place)
    if there is not None and not os.access(place, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    if there is not None and not stat.S_ISREG(there.st_mode):
        _require_regular(there, path)
    try:
        _replace(place, data, there)
    except OSError as error:
        if there is None or error.errno not in (*_NOT_BESIDE, *_NOT_REPLACED):
            error.filename, error.filename2 = str(path), None  # not the draft's
            raise
        _write_over(place, data)


def append_line(path: Path, line: str) -> None:
    """Add a line to a record, in one write, behind those of other processes and never into one that was cut off.

    Args:
        path: The record; it is made if it is not there.
        line: Its text, without the end of the line.

    Raises:
        OSError: It cannot be written; the record is as it was, where it could be locked within five seconds.
    """
    if _is_stream(path):
        with _open_stream(path) as special:
            write_all(special, line.encode() + b"\n")
        return
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
    descriptor = os.open(path, flags, 0o666)
    with os.fdopen(descriptor, "r+b", buffering=0) as file:
        status = os.fstat(descriptor)
        _require_regular(status, path)
        alone = True
        try:
            hold(descriptor, patience=_HOW_LONG_TO_WAIT)
        except OSError:  # no locks here, or not one of ours holds it: O_APPEND keeps the line whole as well
            alone = False
        size = os.fstat(descriptor).st_size
        cut = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        data = (b"\n" if cut else b"") + line.encode() + b"\n"
        try:
            write_all(file, data)
            os.fsync(descriptor)
        except OSError:
            if alone:  # else what is behind may be another's
                with suppress(OSError):
                    os.ftruncate(descriptor, size)
            raise


class GrowingFile(io.FileIO):
    """A file that is written as it goes and can be read meanwhile. What was there stays until `begin`.

    Two cannot write the same file at once: each would write holes into what the other wrote. Closed before `begin`, it
    leaves everything as it was. `/dev/stdout` and other descriptors are continued, not opened anew: what was printed
    before is not written over.

    Args:
        path: The file.

    Raises:
        OSError: It cannot be written.
    """

    def __init__(self, path: str | Path) -> None:
        place = Path(path)
        self._place: Path | None = None  # where a file was made that is taken away if nothing begins
        self._begun = False
        if _is_stream(place):
            super().__init__(_stream_descriptor(place), "wb")
            self._regular = False
            return
        place = Path(os.path.realpath(place))
        flags = os.O_WRONLY | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            descriptor = os.open(place, flags | os.O_CREAT | os.O_EXCL, 0o666)
            self._place = place
        except FileExistsError:
            descriptor = os.open(place, flags)
        try:
            _require_regular(os.fstat(descriptor), place)
            _require_alone(descriptor, place)
        except OSError:
            os.close(descriptor)
            raise
        super().__init__(descriptor, "wb")
        self._regular = True

    @property
    def begun(self) -> bool:
        """Whether what was there is gone."""
        return self._begun

    def begin(self) -> None:
        """From here on it is the new file: what was there is gone.

        Raises:
            OSError: It cannot be emptied.
        """
        if self._regular and not self._begun:
            os.ftruncate(self.fileno(), 0)
        self._begun = True

    def write(self, data: Any) -> int:
        """Write all of it.

        Raises:
            OSError: The disk is full, or the reader of a pipe is gone. What was written of it may be there.
        """
        self.begin()
        rest = memoryview(data).cast("B")
        size = len(rest)
        while rest:
            taken = super().write(rest)
            if taken is None:
                _wait_until_taken(self)
            rest = rest[taken or 0 :]
        return size

    def append(self, data: bytes) -> None:
        """Write all of it at the end, or nothing: no half line is left on a full disk.

        Raises:
            OSError: As `write`.
        """
        self.begin()
        size = os.fstat(self.fileno()).st_size if self._regular else 0
        try:
            self.write(data)
        except OSError:
            if self._regular:
                with suppress(OSError):
                    os.ftruncate(self.fileno(), size)
                    self.seek(size)
            raise

    def close(self) -> None:
        """Close it; without `begin`, a file that was made here is removed."""
        if self.closed:
            return
        if self._place is not None and not self._begun:
            with suppress(OSError):
                if os.path.samestat(os.fstat(self.fileno()), os.stat(self._place)):
                    self._place.unlink()
        super().close()


def write_all(file: io.RawIOBase, data: bytes) -> None:
    """Write every byte to a file without a buffer, which may take a part at a time.

    Raises:
        OSError: It takes no more.
    """
    rest = memoryview(data)
    while rest:
        taken = file.write(rest)
        if taken is None:
            _wait_until_taken(file)
        rest = rest[taken or 0 :]


def _wait_until_taken(file: io.RawIOBase) -> None:
    """Wait for the reader of a pipe that somebody has made non-blocking, as programs do with those that they share."""
    waiting = select.poll()
    waiting.register(file, select.POLLOUT)
    waiting.poll()


def descriptor_of(path: Path) -> int | None:
    """The descriptor of this process that a path stands for (`/dev/stdout`: 1), or None."""
    seen = os.path.abspath(path)
    for _ in range(40):  # as many links as the system follows
        folder, name = os.path.realpath(os.path.dirname(seen)), os.path.basename(seen)
        found = _DESCRIPTORS.fullmatch(folder)
        if found is not None:
            return int(name) if name.isdecimal() and folder in _own_descriptors() else None
        seen = os.path.join(folder, name)
        if not os.path.islink(seen):
            return None
        seen = os.path.normpath(os.path.join(folder, os.readlink(seen)))
    return None


def mapped(file: BinaryIO) -> memoryview:
    """The content of an open file, mapped to be read; it stays when the file is closed.

    Raises:
        OSError: It cannot be mapped.
        ValueError: It is empty.
    """
    if not os.fstat(file.fileno()).st_size:
        raise ValueError("it is empty")
    return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


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


def _own_descriptors() -> tuple[str, ...]:
    return "/proc/self/fd", "/proc/thread-self/fd", f"/proc/{os.getpid()}/fd"


def _is_stream(path: Path) -> bool:
    """Whether it is written to as it stands: a pipe, a device, a descriptor that somebody holds."""
    if descriptor_of(path) is not None:
        return True
    status = _status(path)
    return status is not None and not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode))


def _stream_descriptor(path: Path) -> int:
    own = descriptor_of(path)
    if own is None:
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # does not wait for a reader
        except OSError as error:
            if error.errno == errno.ENXIO:
                raise OSError(errno.ENXIO, "no program reads from it", str(path)) from None
            raise
        os.set_blocking(descriptor, True)
        return descriptor
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    return os.dup(own)


def _open_stream(path: Path) -> io.FileIO:
    return io.FileIO(_stream_descriptor(path), "wb")


def _status(path: Path) -> os.stat_result | None:
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None


def _replace(place: Path, data: bytes, there: os.stat_result | None) -> None:
    with draft_beside(place, 0o666 if there is None else 0o600) as (draft, file):
        write_all(file, data)
        if there is not None:
            if (there.st_uid, there.st_gid) != (os.geteuid(), os.getegid()):
                with suppress(OSError):
                    os.fchown(file.fileno(), there.st_uid, there.st_gid)
            os.fchmod(file.fileno(), stat.S_IMODE(there.st_mode))
        os.fsync(file.fileno())
        os.replace(draft, place)
    with suppress(OSError):  # it is in place; not every file system can sync a folder
        sync_folder(place.parent)


@contextmanager
def draft_beside(place: Path, mode: int = 0o666) -> Iterator[tuple[Path, io.FileIO]]:
    """A new file beside another, locked as long as it is written; those of killed processes are removed.

    Whoever is content with it replaces the other by it; where something is raised, it is removed.

    Args:
        place: The file, links followed.
        mode: Of the new one, before the umask.

    Raises:
        OSError: It cannot be made.
    """
    remove_strays_in(place.parent, _IS_DRAFT)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    while True:
        draft = place.with_name(_DRAFT.format(secrets.token_hex(8)))
        file = io.FileIO(os.open(draft, flags, mode), "wb")
        if _is_held(file.fileno(), draft):
            break
        file.close()  # it was taken for a stray before it was held
    try:
        with file:
            yield draft, file
    except BaseException:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        raise


def _is_held(descriptor: int, draft: Path) -> bool:
    try:
        hold(descriptor)
    except BlockingIOError:
        return False
    except OSError:  # this file system has no locks, and then nobody removes strays either
        return True
    return is_at(descriptor, draft)


def _require_alone(descriptor: int, place: Path) -> None:
    try:
        hold(descriptor)
    except BlockingIOError:
        raise OSError(errno.EBUSY, "another run is writing it", str(place)) from None
    except OSError:  # this file system has no locks
        pass


def _write_over(place: Path, data: bytes) -> None:
    descriptor = os.open(place, os.O_WRONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with io.FileIO(descriptor, "wb") as file:
        size = os.fstat(descriptor).st_size
        try:
            if len(data) > size:
                os.posix_fallocate(descriptor, 0, len(data))  # a full disk says so before anything is lost
        except OSError:
            os.ftruncate(descriptor, size)
            raise
        write_all(file, data)
        os.ftruncate(descriptor, len(data))
        os.fsync(descriptor)


def _resolved_inside(path: Path, root: Path, inside: Path | None) -> Path:
    resolved = Path(os.path.realpath(path))
    if root not in resolved.parents:
        raise OSError(errno.EPERM, f"it is a link out of '{inside}'", str(path))
    return resolved


def _require_inside(opened: Path, root: Path, inside: Path | None, path: Path) -> None:
    try:
        place = Path(os.readlink(opened))
    except OSError:  # no /proc
        return
    if root not in place.parents:
        raise OSError(errno.EPERM, f"it is a link out of '{inside}'", str(path))


def _require_regular(status: os.stat_result, path: Path) -> None:
    if stat.S_ISREG(status.st_mode):
        return
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    kind = _KINDS.get(stat.S_IFMT(status.st_mode), "something else")
    raise OSError(errno.EINVAL, f"it is {kind}, not a file", str(path))
