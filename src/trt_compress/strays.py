"""What a run makes on its way carries its owner's lock, so that the next run can tell what a killed one left behind.

A temporary folder and a folder that is staged beside an output have a name of our own pattern, with a token that cannot
be guessed, and are held by a `flock` as long as their owner lives, or a child that was given the descriptor. What bears
such a name, belongs to this user and is held by nobody is a stray, and whoever makes the next one in that place removes
it. Where other machines would not know of the lock of a folder (NFS), nothing is taken for a stray. Drafts of files:
`files.write_whole`.
"""

import atexit
import errno
import os
import re
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from trt_compress.digest import sha256
from trt_compress.errors import UnsupportedError
from trt_compress.locks import hold, is_at

_TOKEN_BYTES = 8
_TOKEN = r"[0-9a-f]{16}"
_TEMPORARY = re.compile(rf"trt-compress-[a-z-]+-{_TOKEN}")
_LONGEST_NAME = 200  # bytes, of the 255 that a name may have
_HEALED_WITHIN = 2.0
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_CANNOT_EXCHANGE = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EXDEV)

_held: dict[Path, int] = {}
_process = os.getpid()


# ---- folders that are held -------------------------------------------------------------------------------------------


@contextmanager
def temporary_folder(use: str, within: Path | None = None) -> Iterator[Path]:
    """A folder of this process alone that is gone afterwards; those of killed runs are removed first.

    Args:
        use: What it is for, in small letters: `build`.
        within: Where; None is where temporary files go.

    Raises:
        OSError: It cannot be made.
        UnsupportedError: Nothing may be written where temporary files go.
    """
    place = _temporary_place() if within is None else within
    remove_strays_in(place, _TEMPORARY)
    with _held_folder(lambda: place / f"trt-compress-{use}-{secrets.token_hex(_TOKEN_BYTES)}", 0o700) as folder:
        yield folder


def _temporary_place() -> Path:
    try:
        return Path(tempfile.gettempdir()).absolute()
    except FileNotFoundError:
        raise UnsupportedError(
            "There is no folder for temporary files that may be written; set TMPDIR to one."
        ) from None


@contextmanager
def staged_folder(target: Path, *, sweep: bool = True) -> Iterator[Path]:
    """A new folder beside `target`, for what will be put in its place; what is at its name afterwards is removed.

    Strays of the same target are removed first, and a target that a killed replacement left aside is put back. Folders
    above it are made, and removed again where they stay empty.

    Args:
        target: What it will become; links resolved.
        sweep: False: strays are left to the caller.

    Raises:
        OSError: It cannot be made.
    """
    new_parents = [parent for parent in target.parents if not parent.exists()]
    try:
        if new_parents:
            target.parent.mkdir(parents=True, exist_ok=True)
        elif sweep:
            remove_strays(target)
        with _held_folder(lambda: beside(target, "new"), 0o777) as folder:
            yield folder
    finally:
        for parent in new_parents:
            with suppress(OSError):
                parent.rmdir()


def beside(target: Path, use: str) -> Path:
    """A name beside `target` that is ours: `.target.0123456789abcdef.new`."""
    return target.with_name(f".{_stem(target)}.{secrets.token_hex(_TOKEN_BYTES)}.{use}")


def _stem(target: Path) -> str:
    """A name that leaves room for what is put around it: of a long one its beginning and its hash."""
    name = os.fsencode(target.name)
    if len(name) <= _LONGEST_NAME:
        return target.name
    return f"{name[: _LONGEST_NAME - 17].decode(errors='ignore')}-{sha256(name)[:16]}"


def locks_of(folder: Path) -> tuple[int, ...]:
    """The descriptors that hold the folders of this process in which `folder` lies, for a child that works in it."""
    place = Path(os.path.abspath(folder))
    return tuple(lock for held, lock in list(_held.items()) if held == place or held in place.parents)


@contextmanager
def _held_folder(name: Callable[[], Path], mode: int) -> Iterator[Path]:
    made: list[Path] = []
    try:
        while True:
            folder = name()
            made.append(folder)  # before it is there: an interruption may come right behind
            os.mkdir(folder, mode)
            if _hold(folder):
                break
        yield folder
    finally:
        for folder in made:
            remove_tree(folder)
            _release(folder)


def _hold(folder: Path) -> bool:
    """Lock a new folder; False: somebody took it for a stray before it was held."""
    try:
        lock = _open(folder)
    except FileNotFoundError:
        return False
    try:
        hold(lock)
    except BlockingIOError:
        os.close(lock)
        return False
    except OSError:  # this file system cannot lock a folder, and then no other process can either
        os.close(lock)
        return True
    if not is_at(lock, folder):
        os.close(lock)
        return False
    _held[Path(os.path.abspath(folder))] = lock
    return True


def _release(folder: Path) -> None:
    lock = _held.pop(Path(os.path.abspath(folder)), None)
    if lock is not None:
        os.close(lock)


@atexit.register
def _remove_own() -> None:
    """What an interruption at an unlucky moment kept from its own end."""
    if os.getpid() == _process:
        for folder in list(_held):
            remove_tree(folder)


# ---- strays ---------------------------------------------------------------------------------------------------------


def remove_strays(target: Path, before: Callable[[Path], None] | None = None) -> None:
    """Remove what killed runs left beside `target` on their way to it.

    Args:
        target: A file or folder that will be made or replaced; one that a kill left aside is put back.
        before: Called with each stray before it is removed.
    """
    with suppress(OSError):
        put_back(target, patience=0)
    remove_strays_in(target.parent, _pattern(target, "new" if not os.path.lexists(target) else "new|old"), before)


def _pattern(target: Path, uses: str) -> re.Pattern[str]:
    return re.compile(rf"\.{re.escape(_stem(target))}\.{_TOKEN}\.({uses})")


def remove_strays_in(place: Path, pattern: re.Pattern[str], before: Callable[[Path], None] | None = None) -> None:
    """Remove the strays in a folder: what bears a name of our own, belongs to this user, and is held by nobody.

    Args:
        place: The folder.
        pattern: Of the whole name.
        before: Called with each before it is removed.
    """
    for path in _matching(place, pattern):
        with suppress(OSError):
            _remove_stray(path, before)


def _matching(place: Path, pattern: re.Pattern[str]) -> list[Path]:
    try:
        with os.scandir(place) as entries:
            return [Path(entry.path) for entry in entries if pattern.fullmatch(entry.name)]
    except OSError:
        return []


def _remove_stray(path: Path, before: Callable[[Path], None] | None) -> None:
    status = os.lstat(path)
    is_folder = stat.S_ISDIR(status.st_mode)
    if status.st_uid != os.geteuid() or not (is_folder or stat.S_ISREG(status.st_mode)):
        return
    lock = _open(path)
    try:
        hold(lock)
        if not is_at(lock, path):
            return
        if before is not None:
            before(path)
        if is_folder:
            remove_tree(path)
        else:
            path.unlink()
    finally:
        os.close(lock)


def remove_tree(folder: Path) -> None:
    """Remove a folder with what is in it, also when an interruption comes meanwhile; what cannot be removed stays."""
    try:
        with suppress(OSError):
            os.rmdir(folder)
            return
        shutil.rmtree(folder, ignore_errors=True)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


# ---- putting in place -----------------------------------------------------------------------------------------------


def put_in_place(staged: Path, target: Path) -> None:
    """Put a staged folder in its place; a folder that was there is then at the name of the staged one.

    In one step where the file system can exchange two names; else the old one is set aside for a moment, and a kill in
    that moment is healed by `put_back`. Whoever opens the target meanwhile is kept waiting by its lock: `locked`.

    Raises:
        OSError: It cannot; everything is as it was.
    """
    if not os.path.lexists(target):
        os.rename(staged, target)
        return
    try:
        exchange(staged, target)
    except OSError as error:
        if error.errno not in _CANNOT_EXCHANGE:
            raise
        _put_by_steps(staged, target)


def _put_by_steps(staged: Path, target: Path) -> None:
    aside = staged.with_name(f"{staged.name.removesuffix('.new')}.old")
    try:
        os.rename(target, aside)
        os.rename(staged, target)
        os.rename(aside, staged)
    except BaseException:
        if os.path.lexists(aside):
            os.rename(aside, staged if os.path.lexists(target) else target)
        raise


def exchange(one: Path, other: Path) -> None:
    """Exchange two names in one step.

    Raises:
        OSError: The system or the file system cannot (ENOSYS, EINVAL), or a name is not there.
    """
    import ctypes

    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(one), None, str(other))


def put_back(target: Path, *, patience: float = _HEALED_WITHIN) -> bool:
    """Put a folder back that a replacement set aside and was killed; wait a moment for one that is going on.

    Args:
        target: The folder, which is not there.
        patience: Seconds to wait for a replacement that is going on; where nobody can say whether one is, it is waited
            for anyway.

    Returns:
        Whether it is there now.

    Raises:
        OSError: It is there under another name, `filename`, and may not be renamed.
    """
    target = Path(os.path.realpath(target))
    began = time.monotonic()
    while not os.path.lexists(target):
        asides = _matching(target.parent, _pattern(target, "old"))
        waited = time.monotonic() - began
        known = True
        for aside in sorted(asides, key=_changed, reverse=True):
            held = _is_held(aside)
            known = known and held is not None
            if held is False or (held is None and waited >= _HEALED_WITHIN):
                with suppress(FileNotFoundError):  # somebody else was faster
                    os.rename(aside, target)
                    return True
        if not asides or (known and waited >= patience):
            break
        time.sleep(0.01)
    return os.path.lexists(target)


def _changed(path: Path) -> float:
    try:
        return os.lstat(path).st_mtime
    except OSError:
        return 0.0


def _is_held(folder: Path) -> bool | None:
    """Whether somebody holds a folder; None: here nobody can say."""
    try:
        lock = _open(folder)
    except FileNotFoundError:
        return True
    try:
        hold(lock)
    except BlockingIOError:
        return True
    except OSError:
        return None
    finally:
        os.close(lock)
    return False


def _open(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
