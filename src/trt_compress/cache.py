"""The user's cache: where it is, and whether what lies there is the user's own.

Code is loaded from it, so nobody else may have written there. Everything from the root of the file system on is looked
at, links too: it belongs to this user or to root, and others may not write to it. What passes cannot be changed by
others afterwards either, so that what was checked is what is loaded. The cache is optional: where there is none, or it
may not be read, whoever asks is told why.
"""

import errno
import grp
import os
import pwd
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from trt_compress.errors import PluginError

SET = "set XDG_CACHE_HOME to a folder that may be written"
"""What to do where the cache is not usable, as a part of a sentence."""

_ANOTHER = "set XDG_CACHE_HOME to a folder of your own"
_MOST_LINKS = 40
_ACCESS_LIST = "system.posix_acl_access"


class CacheError(PluginError):
    """There is no cache, or what lies there may not be taken."""


class ForeignError(CacheError):
    """Somebody else owns a part of it, or may write there."""


def cache_folder() -> Path:
    """Where this package keeps what it can make again: `$XDG_CACHE_HOME/trt-compress`, or `~/.cache/trt-compress`.

    A relative path in XDG_CACHE_HOME or HOME is passed over, as the XDG standard has it; `passed_over` says so.

    Raises:
        CacheError: There is neither.
    """
    given = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(given):
        return Path(given) / "trt-compress"
    known = os.path.isabs(os.environ.get("HOME", "/"))
    try:
        home = Path.home() if known else Path(pwd.getpwuid(os.getuid()).pw_dir)
    except (RuntimeError, KeyError):  # the user is not known to the system
        home = Path()
    if not home.is_absolute():
        also = f" {passed_over()}" if passed_over() else ""
        raise CacheError(f"There is no home folder for the native libraries; {SET}.{also}")
    return home / ".cache" / "trt-compress"


def passed_over() -> str:
    """Which settings are passed over, as a sentence; empty where none is."""
    relative = [
        f"{name}='{given}'"
        for name in ("XDG_CACHE_HOME", "HOME")
        if (given := os.environ.get(name, "")) and not os.path.isabs(given)
    ]
    return f"{' and '.join(relative)} is passed over, as it is no absolute path." if relative else ""


def own_path(path: Path) -> Path:
    """The file or folder without any link in its path, after it and everything on the way was found to be the user's.

    Raises:
        OSError: It is not there, or may not be looked at.
        ForeignError: Somebody else owns a part of it, or may write there.
    """
    return _looked_at(path, _why_not_own)


def named_path(path: Path) -> Path:
    """As `own_path`, for what the user named: it may be anybody's, and only what everybody may write is refused.

    Raises:
        OSError: It is not there, or may not be looked at.
        ForeignError: Everybody may write to it, or to a folder on the way.
    """
    return _looked_at(path, _why_not_named)


def make_own_folder(path: Path) -> Path:
    """Make a folder, and those above it, for this user alone; one that is there has to be the user's own.

    Returns:
        The folder without any link in its path.

    Raises:
        OSError: It cannot be made, or may not be looked at.
        ForeignError: Somebody else owns a part of it, or may write there.
    """
    check_own_so_far(path)
    for folder in reversed((path, *path.parents)):
        try:
            folder.mkdir(mode=0o700)
        except FileExistsError:
            continue
        except OSError:
            if not folder.is_dir():
                raise
    return own_path(path)


def check_own_so_far(path: Path) -> None:
    """Look at a folder that need not be there yet: what there is of its path has to be the user's own.

    Raises:
        OSError: It may not be looked at.
        ForeignError: Somebody else owns a part of it, or may write there.
    """
    for folder in (path, *path.parents):
        try:
            own_path(folder)
        except FileNotFoundError:
            continue
        return


def _looked_at(path: Path, why_not: Callable[[Path, os.stat_result, Path], str]) -> Path:
    """Look at everything on the way; what is not there at all is nobody's, whoever owns the folders above it."""
    at, problem = Path("/"), ""
    for at, status in _on_the_way(path):
        problem = problem or why_not(at, status, path)
    if problem:
        raise ForeignError(f"'{path}' is not taken, as {problem}.")
    return at


def _why_not_own(at: Path, status: os.stat_result, path: Path) -> str:
    if status.st_uid not in (os.geteuid(), 0):
        return f"{_it(at, path)} belongs to {_name_of(status.st_uid)}; {_ANOTHER}"
    if who := _who_else_writes(at, status):
        mode = stat.S_IMODE(status.st_mode)
        return f"{who} may write to {_it(at, path)} (mode {mode:04o}); take that away with chmod go-w, or {_ANOTHER}"
    return ""


def _why_not_named(at: Path, status: os.stat_result, path: Path) -> str:
    if _may_write(status, stat.S_IWOTH):
        mode = stat.S_IMODE(status.st_mode)
        return (
            f"everybody may write to {_it(at, path)} (mode {mode:04o}); take that away with chmod o-w, or copy it to a "
            "folder of yours"
        )
    return ""


def _on_the_way(path: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Everything that the system passes on its way to a file, links and what they point to; the file itself last."""
    at, links = "/", 0
    whole = os.fspath(path) if path.is_absolute() else os.path.join(os.getcwd(), path)
    waiting = [name for name in reversed(whole.split("/")) if name not in ("", ".")]
    yield Path(at), os.lstat(at)
    while waiting:
        part = waiting.pop()
        if part == "..":
            at = os.path.dirname(at)
            continue
        here = os.path.join(at, part)
        status = os.lstat(here)
        yield Path(here), status
        if stat.S_ISLNK(status.st_mode):
            links += 1
            if links > _MOST_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
            target = os.readlink(here)
            at = "/" if target.startswith("/") else at
            waiting += [name for name in reversed(target.split("/")) if name not in ("", ".")]
        else:
            at = here
    yield Path(at), os.lstat(at)


def _who_else_writes(at: Path, status: os.stat_result) -> str:
    if _may_write(status, stat.S_IWOTH):
        return "everybody"
    if _may_write(status, stat.S_IWGRP) and not _is_private(status.st_gid, at):
        return f"the group {_group_name(status.st_gid)}"
    return ""


def _may_write(status: os.stat_result, who: int) -> bool:
    """Whether the bits let them; in a folder as /tmp nobody can replace what belongs to another."""
    if stat.S_ISLNK(status.st_mode) or not status.st_mode & who:
        return False
    return not (stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX)


def _is_private(group: int, at: Path) -> bool:
    """Whether a group is this user's own and nobody else is in it, as many systems give every user one."""
    try:
        os.getxattr(at, _ACCESS_LIST, follow_symlinks=False)
        return False  # a list says who may, and its mask stands where the group's bits are
    except (OSError, AttributeError):
        pass
    try:
        user, found = pwd.getpwuid(os.geteuid()), grp.getgrgid(group)
    except KeyError:
        return False
    others = {entry.pw_name for entry in pwd.getpwall() if entry.pw_gid == group} | set(found.gr_mem)
    return found.gr_name == user.pw_name and user.pw_gid == group and others <= {user.pw_name}


def _it(at: Path, path: Path) -> str:
    return "it" if at == path else f"'{at}'"


def _name_of(user: int) -> str:
    try:
        return f"the user {pwd.getpwuid(user).pw_name}"
    except KeyError:
        return f"the user {user}"


def _group_name(group: int) -> str:
    try:
        return grp.getgrgid(group).gr_name
    except KeyError:
        return str(group)
