"""Write a bundle, whole or not at all: a kill at any moment leaves the old one or the new one.

A new bundle is staged beside its place and gets there in one rename, or in one exchange with the bundle that was there.
A bundle that changes gets its new files under names that are not listed, and then its new manifest in one rename, which
alone is what makes the change count; a listed file is never written to. Everything is on the disk before the step that
counts, and nothing is deleted before that step is.

What a change needs on its way is in the folder `.change.TOKEN.new` of the bundle: files, and the manifests of before
and after. Whoever ends a change deletes what those list and the bundle does not, and whoever makes the next one does so
for a change that was killed.
"""

import contextlib
import errno
import json
import os
import stat
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from trt_compress import strays
from trt_compress.digest import Sha256
from trt_compress.errors import BundleError
from trt_compress.files import read_regular, sync_folder
from trt_compress.format.bundle import Bundle
from trt_compress.format.manifest import MANIFEST_NAME, FileInfo, Manifest, path_problem
from trt_compress.format.unlisted import listed_in
from trt_compress.locks import locked
from trt_compress.paths import try_new_folder


@dataclass(frozen=True, slots=True)
class Moved:
    """A file that its owner has no use for any more: it is moved, or copied where that cannot be."""

    path: Path


Content = bytes | Path | Moved | Iterator[bytes]
"""What a file holds: the bytes themselves, the file to copy or to move, or pieces, as `Bundle.chunks` gives them."""

_CHANGE, _BEFORE = "change", "before.json"
_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF)


def write_bundle(output: Path, manifest: Manifest, files: Mapping[str, Content], *, force: bool = False) -> Bundle:
    """Write a new bundle: into a directory beside `output`, synced to the disk, then renamed.

    Args:
        output: The directory to make; its parents are made too.
        manifest: What the bundle is; `files` and `digest` are filled in here.
        files: Path inside the bundle → content, for every file except the manifest.
        force: Replace a bundle (or an empty directory) that is there. Anything else is never replaced.

    Returns:
        The bundle as it would be opened again.

    Raises:
        BundleError: `output` exists, cannot be written, or the disk is full. Nothing half-written is left, and a bundle
            that was to be replaced is as it was.
    """
    with _os_errors_as_bundle_errors(output):
        check_output(output, force)
        return _write(output, manifest, files, force, None)


def update_bundle(
    bundle: Bundle, manifest: Manifest, add: Mapping[str, bytes | Path], remove: Collection[str] = ()
) -> Bundle:
    """Add files to a bundle and remove some, by a new manifest that takes the place of its own.

    A name in `add` that the bundle has with other content cannot be written to: the whole bundle is then written anew
    beside it, and exchanged. Give a new name, and the old one to `remove`, where the manifest can name it.

    Args:
        bundle: The bundle as it was opened.
        manifest: What it is now, made from `bundle.manifest`; `files` and `digest` are filled in here.
        add: Path inside the bundle → content.
        remove: Files that the bundle no longer has.

    Returns:
        The bundle as it would be opened again.

    Raises:
        BundleError: The bundle changed since it was opened, another process is changing it, or the change cannot be
            written. The bundle is as it was.
    """
    _check_names(add)
    for name in remove:
        bundle.info(name)  # says that it is not there
    kept = {name: info for name, info in bundle.manifest.files.items() if name not in remove or name in add}
    with _os_errors_as_bundle_errors(bundle.path):
        before = _manifest_bytes(bundle)
        strays.remove_strays(Path(os.path.realpath(bundle.path)))
        same = {name for name in add.keys() & kept.keys() if _info_of(add[name]) == kept[name]}
        new = {name: content for name, content in add.items() if name not in same}
        if new.keys() & kept.keys():
            whole: dict[str, Content] = {name: bundle.chunks(name) for name in kept if name not in new}
            written = _write(bundle.root, manifest, {**whole, **new}, True, before)
            return bundle.with_manifest(written.manifest)
        return _change(bundle, manifest, kept, new, before)


def check_update(bundle: Bundle) -> None:
    """Refuse a bundle that `update_bundle` could not write to, before the work that is for it.

    Raises:
        BundleError: Nothing can be written there.
    """
    with _os_errors_as_bundle_errors(bundle.path), strays.staged_folder(bundle.root / _CHANGE, sweep=False) as tried:
        try_new_folder(tried)


def _write(
    output: Path, manifest: Manifest, files: Mapping[str, Content], force: bool, expected: bytes | None
) -> Bundle:
    _check_names(files)
    target = Path(os.path.realpath(output))
    new_parents = [parent for parent in target.parents if not parent.exists()]
    with strays.staged_folder(target) as staged:
        sealed = _seal(manifest, {name: _store(staged / name, content) for name, content in files.items()})
        _store(staged / MANIFEST_NAME, sealed.to_text().encode())
        for made, _, _ in os.walk(staged, topdown=False):
            _sync(Path(made))
        with contextlib.ExitStack() as stack:
            if force and target.exists():
                stack.enter_context(locked(target, [target / MANIFEST_NAME]))
                if expected is not None and read_regular(target / MANIFEST_NAME) != expected:
                    raise _changed(output)
                _check_replaced(target)
                strays.put_in_place(staged, target)
            else:
                os.rename(staged, target)
            with contextlib.suppress(OSError):  # the bundle is in place
                for folder in (target.parent, *(parent.parent for parent in new_parents)):
                    _sync(folder)  # before the old one, which is at the name of the staged one now, is deleted
    return Bundle(path=output, manifest=sealed)


def _change(
    bundle: Bundle, manifest: Manifest, kept: Mapping[str, FileInfo], new: Mapping[str, Content], before: bytes
) -> Bundle:
    root = bundle.root
    with strays.staged_folder(root / _CHANGE, sweep=False) as staged:
        parts = {name: staged / str(number) for number, name in enumerate(new)}
        sealed = _seal(manifest, {**kept, **{name: _store(parts[name], content) for name, content in new.items()}})
        after = staged / MANIFEST_NAME
        _store(after, sealed.to_text().encode())
        _store(staged / _BEFORE, before)
        _sync(staged)
        with locked(root, [root / MANIFEST_NAME]):
            if _manifest_bytes(bundle) != before:
                raise _changed(bundle.path)
            strays.remove_strays(root / _CHANGE, before=_settle)
            _sync(root)  # from here on the next run finds what is put into place below
            try:
                for name, part in parts.items():
                    (root / name).parent.mkdir(parents=True, exist_ok=True)
                    os.rename(part, root / name)
                for folder in _folders(root, parts):
                    _sync(folder)
                with locked(after, [after]):  # so is who opens the new one
                    os.replace(after, root / MANIFEST_NAME)
                    with contextlib.suppress(OSError):  # the change is in place
                        _sync(root)
            finally:
                _settle_whatever_comes(staged)
    return bundle.with_manifest(sealed)


def _settle_whatever_comes(staged: Path) -> None:
    """Settle, then let interruptions have their way: the journal, which says what to delete, is gone right after."""
    came: KeyboardInterrupt | None = None
    while True:
        try:
            _settle(staged)
            break
        except KeyboardInterrupt as interruption:
            came = interruption
    if came is not None:
        raise came


def _settle(staged: Path) -> None:
    """Delete what a change has brought or taken out of use: what it lists and the bundle does not."""
    root = staged.parent
    current = listed_in(root / MANIFEST_NAME)
    if current is None:
        return
    for journal in (staged / MANIFEST_NAME, staged / _BEFORE):
        for name in (listed_in(journal) or set()) - current:
            if path_problem(name):
                continue
            file = root / name
            with contextlib.suppress(OSError):  # not listed, so what cannot be deleted does no harm
                inside = os.path.realpath(file.parent) == os.path.join(os.path.realpath(root), *Path(name).parts[:-1])
                if inside and stat.S_ISREG(os.lstat(file).st_mode):
                    file.unlink()
            _remove_empty(_folders(root, [name]))


def _manifest_bytes(bundle: Bundle) -> bytes:
    """The manifest as it lies there.

    Raises:
        BundleError: It is another than the one that was opened.
    """
    try:
        data = (bundle.root / MANIFEST_NAME).read_bytes()
        if Manifest.from_text(data) == bundle.manifest:
            return data
    except FileNotFoundError:
        pass
    raise _changed(bundle.path)


def _changed(path: Path) -> BundleError:
    return BundleError(f"The bundle '{path}' was changed since it was opened; open it again.")


def check_output(output: Path, force: bool) -> None:
    """Refuse an output directory that `write_bundle` would refuse.

    Raises:
        BundleError: It exists and is not to be replaced, or is no directory, or holds something else than a bundle; or
            nothing can be written where it would be.
    """
    with _os_errors_as_bundle_errors(output):
        _check_place(Path(os.path.realpath(output)))
    if not os.path.lexists(output):
        return
    if not output.is_dir():
        raise BundleError(f"'{output}' exists and is not a directory; give another output directory.")
    if not force:
        raise BundleError(f"The output directory '{output}' exists; use --force to replace it, or give another one.")
    _check_replaced(output)


def _check_replaced(output: Path) -> None:
    if any(output.iterdir()) and not _is_bundle(output):
        raise BundleError(
            f"'{output}' holds files and is not a bundle, so --force does not replace it; "
            "give another output directory, or remove this one yourself."
        )


def _check_place(output: Path) -> None:
    """Raise the error that making `output` would end with; a bundle that a kill left aside is put back before."""
    place = next((parent for parent in output.parents if parent.exists()), output)
    problem = errno.EACCES if place.is_dir() else errno.ENOTDIR
    if problem == errno.ENOTDIR or not os.access(place, os.W_OK | os.X_OK):
        raise OSError(problem, os.strerror(problem), str(place))
    if output.name:  # else it is the root, which is refused for what it holds
        with contextlib.suppress(FileNotFoundError):
            os.lstat(output)  # a name that is too long; what is made beside it has a shorter one
        with strays.staged_folder(output) as tried:
            try_new_folder(tried)


def _is_bundle(path: Path) -> bool:
    try:
        data = json.loads(read_regular(path / MANIFEST_NAME))
    except (OSError, ValueError):
        return False
    return isinstance(data, dict) and {"schema_version", "graphs", "files"} <= data.keys()


def _check_names(files: Mapping[str, Content]) -> None:
    for name in files:
        if problem := path_problem(name):
            raise BundleError(f"The file path '{name}' {problem}; give a path inside the bundle.")


def _seal(manifest: Manifest, files: dict[str, FileInfo]) -> Manifest:
    manifest = replace(manifest, files=files)
    manifest.check()
    return Manifest.from_text(replace(manifest, digest=manifest.compute_digest()).to_text())


@contextlib.contextmanager
def _os_errors_as_bundle_errors(output: Path) -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise BundleError(
            f"The bundle '{output}' is being changed by another process; run this again when that is done. Nothing was "
            "changed."
        ) from error
    except OSError as error:
        cause = f"{error.strerror or error} at '{error.filename}'" if error.filename else f"{error.strerror or error}"
        advice = {
            errno.ENOSPC: "free some space, or give an output directory on another disk",
            errno.EDQUOT: "free some of your quota, or give an output directory on another disk",
            errno.EFBIG: "the file is larger than the limit set here; raise it (ulimit -f), or use another file system",
            errno.ENOENT: "check that it is there",
            errno.EBUSY: "it is where something is mounted; give a directory below it",
        }.get(error.errno or 0, "give a directory that you may write to")
        raise BundleError(
            f"The bundle '{output}' cannot be written ({cause}); {advice}. Nothing was changed."
        ) from error


def _store(target: Path, content: Content) -> FileInfo:
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = Sha256()
    if isinstance(content, Moved):
        try:
            os.rename(content.path, target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            content = content.path
        else:
            with target.open("rb") as file:
                digest.add_file(file)
                os.fsync(file.fileno())
            return FileInfo(sha256=digest.hex(), bytes=digest.size)
    with target.open("xb") as stream:
        for chunk in _chunks(content):
            digest.add(chunk)
            stream.write(chunk)
        stream.flush()
        os.fsync(stream.fileno())
    return FileInfo(sha256=digest.hex(), bytes=digest.size)


def _chunks(content: bytes | Path | Iterator[bytes]) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield content
        return
    if not isinstance(content, Path):
        yield from content
        return
    with content.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            yield chunk


def _info_of(content: bytes | Path) -> FileInfo:
    """Size and hash of a content."""
    digest = Sha256()
    for chunk in _chunks(content):
        digest.add(chunk)
    return FileInfo(sha256=digest.hex(), bytes=digest.size)


def _folders(root: Path, names: Collection[str]) -> list[Path]:
    """The folders below a bundle that hold these files, and those above up to the bundle, the deepest first."""
    folders = {parent for name in names for parent in (root / name).parents if root in parent.parents}
    return sorted(folders, key=lambda folder: len(folder.parts), reverse=True)


def _remove_empty(folders: Collection[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def _sync(folder: Path) -> None:
    """Bring the names in a folder to the disk, where the file system can."""
    try:
        sync_folder(folder)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
