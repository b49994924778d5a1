"""Who works on a file or folder holds it by a `flock`, which ends with its process and the children that were given it.

No lock is waited for without limit. Where other machines would not know of the lock of a folder (NFS), it counts as one
that cannot be taken.
"""

import errno
import os
import re
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_HOW_LONG_TO_WAIT = 60.0
_PAUSE = 0.02
# file systems of several machines
_SHARED = re.compile(r"nfs\d?|cifs|smb\d?|afs|ceph|lustre|gpfs|beegfs|fuse\.(sshfs|glusterfs|ceph|moosefs|juicefs)")


def hold(descriptor: int, *, patience: float = 0.0) -> None:
    """Lock an open file or folder; the lock goes with the last copy of its descriptor.

    Args:
        descriptor: Of what is locked.
        patience: Seconds to wait for another who holds it.

    Raises:
        BlockingIOError: Another holds it.
        OSError: It cannot be locked: this file system has no locks, or none that other machines would know of.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK)) from None
    if stat.S_ISDIR(os.fstat(descriptor).st_mode) and _SHARED.fullmatch(_file_system(descriptor)):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))  # the system would lock it, for this machine alone
    until = time.monotonic() + patience
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                raise
        time.sleep(_PAUSE)


def is_at(descriptor: int, path: Path) -> bool:
    """Whether what is open is what stands at a path."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


@contextmanager
def locked(
    folder: Path,
    files: Iterable[Path] = (),
    *,
    patience: float | None = None,
    waiting: Callable[[], None] = lambda: None,
) -> Iterator[tuple[int, ...]]:
    """Keep other processes from changing a folder or file: one at a time holds what is at this path.

    Args:
        folder: The folder; who waits for one that was exchanged meanwhile gets the new one.
        files: What is locked where the lock of a folder would hold on this machine only (NFS locks files that may be
            written).
        patience: Seconds to wait for another process; None: a minute.
        waiting: Called once where another process has to be waited for.

    Yields:
        The descriptors of what is locked, for children that shall keep it.

    Raises:
        TimeoutError: Another process has it locked for so long.
        OSError: It is not there.
    """
    until = time.monotonic() + (_HOW_LONG_TO_WAIT if patience is None else patience)
    locks: list[int | None] = []
    try:
        locks.append(_lock(folder, os.O_RDONLY, until, waiting))
        if locks == [None]:
            for file in files:
                with suppress(PermissionError):
                    locks.append(_lock(file, os.O_RDWR, until, waiting))
        yield tuple(lock for lock in locks if lock is not None)
    finally:
        for lock in locks:
            if lock is not None:
                os.close(lock)


def _lock(path: Path, flags: int, until: float, waiting: Callable[[], None]) -> int | None:
    """A descriptor that holds what is at `path`; None: this file system cannot lock it."""
    waits = False
    while True:
        lock = os.open(path, flags | os.O_CLOEXEC)
        try:
            hold(lock)
            if is_at(lock, path):
                return lock
        except BlockingIOError:
            if time.monotonic() > until:
                os.close(lock)
                raise TimeoutError(errno.ETIMEDOUT, "another process is changing it", str(path)) from None
            if not waits:
                waits = True
                waiting()
            time.sleep(_PAUSE)
        except OSError:
            os.close(lock)
            return None
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)


def _file_system(descriptor: int) -> str:
    """The kind of the file system that an open file or folder is on, such as `nfs4`; empty where nothing says so."""
    device = os.fstat(descriptor).st_dev
    with suppress(OSError), open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as mounts:
        for mount in mounts:
            place, _, kind = mount.partition(" - ")
            if place.split()[2] == f"{os.major(device)}:{os.minor(device)}":
                return kind.split()[0]
    return ""
