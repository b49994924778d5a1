"""Files that a command will read or write, tried before the work that is for them; nothing is left behind."""

import errno
import os
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from trt_compress.errors import ConfigError

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
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        path.open("rb").close()
    except (OSError, ValueError) as error:
        raise ConfigError(f"'{path}' cannot be read ({_reason(error)}); {advice}.") from None


def check_archive(path: Path) -> None:
    """Refuse an .npz file that cannot be read, or that is none; an .npy file passes.

    Raises:
        ConfigError: it is not there, or holds no arrays.
    """
    advice = "give a file that numpy.savez wrote"
    if not path.exists():
        raise ConfigError(f"'{path}' does not exist; {advice}.")
    check_readable(path, advice)
    with path.open("rb") as file:
        head = file.read(6)
    if head != b"\x93NUMPY" and not zipfile.is_zipfile(path):
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
        _try_file(path / f".{os.getpid()}.try")
        for name in files:
            _try_file(path / name)
    finally:
        for folder in reversed(made):
            with suppress(OSError):
                folder.rmdir()


def check_apart(outputs: Mapping[str, Path | None], inputs: Mapping[str, Sequence[Path]]) -> None:
    """Refuse outputs that would be written over each other, or over what is read.

    Args:
        outputs: Option → file; None: it was not given.
        inputs: What they are, `the source` → files that are read, and folders of such files.

    Raises:
        ConfigError: two of them are one file.
    """
    taken: dict[Path, str] = {}
    folders: dict[Path, str] = {}
    for option, paths in inputs.items():
        for path in paths:
            (folders if path.is_dir() else taken)[_place(path)] = option
    for option, output in outputs.items():
        if output is None or (output.exists() and not output.is_file()):
            continue
        place = _place(output)
        over = taken.get(place)
        if over is None and output.exists():
            over = next((option for folder, option in folders.items() if folder in place.parents), None)
        if over is not None:
            raise ConfigError(f"{option} {output} is {over} itself; give another name, or it would be lost.")
        taken[place] = f"the file of {option}"


def _place(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _try_file(path: Path) -> None:
    """Write to a file that is not there and remove it, or see whether one that is there may be written."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    place = _place(path)  # a link whose file is not there yet
    if place.exists():
        if not os.access(place, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return
    try:
        descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError:
        raise
    except BaseException:  # an interruption right behind it
        place.unlink(missing_ok=True)
        raise
    try:
        if os.write(descriptor, b"\0" * _BLOCK) < _BLOCK:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
        place.unlink()


def _unwritable(path: Path, option: str, error: Exception, another: str) -> ConfigError:
    number = getattr(error, "errno", None) or 0
    advice = "give {another}"
    if number != errno.ENOENT or another == "another file":  # a folder is made with those above it
        advice = _ADVICE.get(number, advice)
    advice = advice.format(another=f"{another} to {option}", option=option)
    return ConfigError(f"'{path}' cannot be written ({_reason(error)}); {advice}.")


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
