"""Files that a command will read or write, tried before the work that is for them; nothing is left behind."""

import errno
import os
import stat
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from trt_compress.errors import ConfigError
from trt_compress.files import check_regular, descriptor_of, draft_beside, open_regular, write_all

_ADVICE = {
    errno.ENOSPC: "free some space, or give {another}",
    errno.EDQUOT: "free some of your quota, or give {another}",
    errno.ENOENT: "make its folder first, or give {another}",
    errno.EISDIR: "it is a folder, and {option} takes the name of a file",
}
_BLOCK = 4096  # of a file system: a full disk refuses the first byte


def check_readable(path: Path, advice: str) -> None:
    """Refuse a file that cannot be read.

    Args:
        path: The file.
        advice: What to do, `give a file that numpy.savez wrote`.

    Raises:
        ConfigError: it is not there, is no file, or may not be read.
    """
    try:
        check_regular(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"'{path}' cannot be read ({_reason(error)}); {advice}.") from None


def check_archive(path: Path) -> None:
    """Refuse an .npz file that cannot be read, or that is none; an .npy file passes.

    Raises:
        ConfigError: it is not there, or holds no arrays.
    """
    advice = "give a file that numpy.savez wrote"
    try:
        os.stat(path)
    except FileNotFoundError:
        raise ConfigError(f"'{path}' does not exist; {advice}.") from None
    except (OSError, ValueError):  # said below
        pass
    check_readable(path, advice)
    with open_regular(path) as file:
        head = file.read(6)
        is_archive = head == b"\x93NUMPY" or zipfile.is_zipfile(file)
    if not is_archive:
        raise ConfigError(f"'{path}' is not a readable .npz file of arrays; write it with numpy.savez.")


def check_new_file(path: Path, option: str) -> None:
    """Refuse a file that could not be written; one that is there is not touched.

    Raises:
        ConfigError: it is a folder, its folder is not there or may not be written, or the disk is full.
    """
    try:
        _try_file(path)
    except (OSError, ValueError) as error:
        raise _unwritable(path, option, error, "another file") from None


def check_new_folder(path: Path, option: str, files: Iterable[str] = ()) -> None:
    """Refuse a folder that could not be made or written to.

    Args:
        path: The folder; it and its parents are made if they are not there.
        option: What it was given as, `--report`.
        files: Names of the files that will be written there.

    Raises:
        ConfigError: something else is in the way, nothing may be written there, or the disk is full.
    """
    try:
        try_new_folder(path, files)
    except (OSError, ValueError) as error:
        raise _unwritable(path, option, error, "another folder") from None


def try_new_folder(path: Path, files: Iterable[str] = ()) -> None:
    """Make a folder and write to it, and undo that; see `check_new_folder`.

    Raises:
        OSError: what making or writing it ended with.
    """
    made: list[Path] = []
    try:
        for folder in reversed((path, *path.parents)):
            if not folder.exists():
                made.append(folder)  # before it is there: an interruption may come right behind
                try:
                    folder.mkdir()
                except OSError:
                    made.pop()
                    if not folder.is_dir():  # else another process was faster
                        raise
        if not path.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        _try_file(path / ".try")
        for name in files:
            _try_file(path / name)
    finally:
        for folder in reversed(made):
            with suppress(OSError):
                folder.rmdir()


def check_apart(
    outputs: Mapping[str, Path | None],
    inputs: Mapping[str, Sequence[Path]],
    bundles: Sequence[Path] = (),
) -> None:
    """Refuse outputs that would be written over each other, over what is read, or into a bundle.

    Files are compared as the system knows them, not by their names: links of both kinds, folders mounted twice and
    names that differ in case alone are seen through.

    Args:
        outputs: Option → file; None: it was not given.
        inputs: What they are, `the source` → files that are read, and folders of such files.
        bundles: Folders that nothing may be written to, as all their files are listed.

    Raises:
        ConfigError: two of them are one file, or one lies in a bundle.
    """
    given = {option: path for option, path in outputs.items() if path is not None and not _is_null(path)}
    taken: dict[_Identity, str] = {}
    folders: list[tuple[Path, str]] = [(bundle, "a file of the bundle") for bundle in bundles]
    for option, paths in inputs.items():
        for path in paths:
            if os.path.isdir(path):
                folders.append((path, option))
            else:
                taken[_identity(path)] = option
    for option, output in given.items():
        over = taken.get(_identity(output)) or _in_folders(output, folders)
        if over is not None:
            raise ConfigError(f"{option} {output} is {over} itself; give another name, or it would be lost.")
        into = next((bundle for bundle in bundles if _lies_in(output, bundle)), None)
        if into is not None:
            raise ConfigError(
                f"{option} {output} would be a file of the bundle '{into}', which holds only what its manifest lists; "
                "give a place outside of it."
            )
        taken[_identity(output)] = f"the file of {option}"


def check_kept(folder: Path, option: str, inputs: Mapping[str, Path | None]) -> None:
    """Refuse files that would be lost with a folder that is replaced as a whole.

    Args:
        folder: The folder that will be replaced, where it is there.
        option: What it was given as, `-o`.
        inputs: Option → file or folder that is read; None: it was not given.

    Raises:
        ConfigError: one of them lies in the folder.
    """
    for given, path in inputs.items():
        if path is not None and (_identity(path) == _identity(folder) or _lies_in(path, folder)):
            raise ConfigError(
                f"{option} {folder} would be replaced, and {given} {path} in it would be lost; give another folder to "
                f"{option}."
            )


_Identity = tuple[int, int, str]


def _identity(path: Path) -> _Identity:
    """What a name stands for: device and inode; those of the nearest folder and the rest, where it is not there yet."""
    descriptor = descriptor_of(path)
    place = path if descriptor is not None else _place(path)
    rest: list[str] = []
    while True:
        with suppress(OSError, ValueError):
            status = os.stat(place)
            if stat.S_ISCHR(status.st_mode):  # a terminal is stdout and stderr, and both may be written to
                rest.append(str(place if descriptor is None else descriptor))
            return status.st_dev, status.st_ino, "/".join(reversed(rest))
        if place == place.parent:
            return 0, 0, "/".join(reversed(rest))
        rest.append(place.name)
        place = place.parent


def _lies_in(path: Path, folder: Path) -> bool:
    if descriptor_of(path) is not None or not os.path.isdir(folder):
        return False
    root = _identity(folder)
    return any(_identity(above) == root for above in _place(path).parents)


def _in_folders(output: Path, folders: Sequence[tuple[Path, str]]) -> str | None:
    """Whose file it is, of the folders that are read; a file that is not there is nobody's."""
    if not os.path.isfile(output):
        return None
    own = os.stat(output)
    return next((option for folder, option in folders if _lies_in(output, folder) or _has_name_of(own, folder)), None)


def _has_name_of(own: os.stat_result, folder: Path) -> bool:
    """Whether a file has a second name in a folder, of which links to folders are not followed.

    The numbers come with the names: on a network file system it would take minutes to ask for each of a million files.
    """
    pending = [str(folder)]
    while pending:
        with suppress(OSError), os.scandir(pending.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                elif entry.is_symlink() or entry.inode() == own.st_ino:
                    with suppress(OSError):
                        if os.path.samestat(os.stat(entry.path), own):
                            return True
    return False


def _is_null(path: Path) -> bool:
    with suppress(OSError, ValueError):
        status = os.stat(path)
        return stat.S_ISCHR(status.st_mode) and status.st_rdev == os.stat(os.devnull).st_rdev
    return False


def _place(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _try_file(path: Path) -> None:
    """Write beside a file that is not there and remove that, or see whether one that is there may be written."""
    place = _place(path)  # a link whose file is not there yet
    try:
        is_folder = stat.S_ISDIR(os.stat(path).st_mode)  # of /dev/stdout, a pipe that has no place
    except FileNotFoundError:
        with draft_beside(place) as (draft, file):  # never under its own name: a kill would leave an empty one
            try:
                write_all(file, b"\0" * _BLOCK)
                os.fsync(file.fileno())
            finally:
                draft.unlink()
        return
    if is_folder:
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def _unwritable(path: Path, option: str, error: Exception, another: str) -> ConfigError:
    number = getattr(error, "errno", None) or 0
    advice = "give {another}"
    if number != errno.ENOENT or another == "another file":  # a folder is made with those above it
        advice = _ADVICE.get(number, advice)
    advice = advice.format(another=f"{another} to {option}", option=option)
    return ConfigError(f"'{path}' cannot be written ({_reason(error)}); {advice}.")


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
