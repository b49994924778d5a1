"""Write a bundle, whole or not at all."""

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from trt_compress.errors import BundleError
from trt_compress.paths import try_new_folder
from trt_compress.runtime.bundle import Bundle
from trt_compress.runtime.manifest import MANIFEST_NAME, FileInfo, Manifest, path_problem

Content = bytes | Path
"""What a file holds: the bytes themselves, or the file to copy."""


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
        _check_names(files)
        target = Path(os.path.realpath(output))
        staged, aside = _aside(target, "new"), _aside(target, "old")
        new_parents = [parent for parent in target.parents if not parent.exists()]
        try:
            staged.mkdir(parents=True)
            sealed = _seal(manifest, {name: _store(staged / name, content) for name, content in files.items()})
            _store(staged / MANIFEST_NAME, sealed.to_text().encode())
            for folder, _, _ in os.walk(staged):
                _sync_directory(Path(folder))
            if force and target.exists():
                os.rename(target, aside)
            os.rename(staged, target)
            shutil.rmtree(aside, ignore_errors=True)
        except BaseException:
            if aside.exists() and not target.exists():
                os.rename(aside, target)
            shutil.rmtree(staged, ignore_errors=True)
            shutil.rmtree(aside, ignore_errors=True)
            _remove_empty(new_parents)
            raise
    with contextlib.suppress(OSError):  # the bundle is in place; not every file system can sync a directory
        _sync_directory(target.parent)
    return Bundle(path=output, manifest=sealed)


def update_bundle(
    bundle: Bundle, manifest: Manifest, add: Mapping[str, Content], remove: Collection[str] = ()
) -> Bundle:
    """Add files to a bundle, replace or remove some, and then its manifest, which is what makes the change count.

    Args:
        bundle: The bundle as it was opened.
        manifest: What it is now, made from `bundle.manifest`; `files` and `digest` are filled in here.
        add: Path inside the bundle → content.
        remove: Files that the bundle no longer has.

    Returns:
        The bundle as it would be opened again.

    Raises:
        BundleError: The bundle changed since it was opened, or the change cannot be written. The bundle is as it was.
    """
    _check_names(add)
    removed = [bundle.file(name) for name in remove if name not in add]
    kept = {name: info for name, info in bundle.manifest.files.items() if name not in remove}
    with _os_errors_as_bundle_errors(bundle.path):
        change = _Change(bundle, add, removed)
        try:
            sealed = _seal(manifest, {**kept, **change.stage()})
            change.commit(sealed)
        finally:
            change.finish()
    return Bundle(path=bundle.path, manifest=sealed)


class _Change:
    """Files on their way into a bundle: `.name.token.new` beside each target, `.name.token.old` for what was there."""

    def __init__(self, bundle: Bundle, add: Mapping[str, Content], removed: Collection[Path]) -> None:
        self._root = bundle.path
        self._add = add
        self._removed = removed
        self._token = secrets.token_hex(4)
        self._replaced = {name for name in add if (self._root / name).exists()}
        self._new_folders = [folder for folder in self._folders() if not folder.exists()]
        self._manifest_before = (self._root / MANIFEST_NAME).read_bytes()
        if Manifest.from_text(self._manifest_before) != bundle.manifest:
            raise BundleError(f"The bundle '{bundle.path}' was changed since it was opened; open it again.")

    def stage(self) -> dict[str, FileInfo]:
        return {name: _store(self._sibling(name, "new"), content) for name, content in self._add.items()}

    def commit(self, manifest: Manifest) -> None:
        _store(self._sibling(MANIFEST_NAME, "new"), manifest.to_text().encode())
        for name in self._add:
            if name in self._replaced:
                os.rename(self._root / name, self._sibling(name, "old"))
            os.rename(self._sibling(name, "new"), self._root / name)
        for folder in [*self._folders(), self._root]:
            _sync_directory(folder)
        os.replace(self._sibling(MANIFEST_NAME, "new"), self._root / MANIFEST_NAME)
        with contextlib.suppress(OSError):  # the change is in place
            _sync_directory(self._root)

    def finish(self) -> None:
        """Delete what the bundle no longer has; or, when the new manifest did not get into place, undo everything."""
        if (self._root / MANIFEST_NAME).read_bytes() == self._manifest_before:
            self._undo()
        else:
            for file in self._removed:
                with contextlib.suppress(OSError):  # no longer listed, so what cannot be deleted does no harm
                    file.unlink()
                _remove_empty(_folders_between(self._root, file))
        for name in (*self._add, MANIFEST_NAME):
            for use in ("new", "old"):
                self._sibling(name, use).unlink(missing_ok=True)
        _remove_empty(self._new_folders)

    def _undo(self) -> None:
        for name in self._add:
            old = self._sibling(name, "old")
            if old.exists():
                os.replace(old, self._root / name)
            elif name not in self._replaced:
                (self._root / name).unlink(missing_ok=True)

    def _sibling(self, name: str, use: str) -> Path:
        file = self._root / name
        return file.with_name(f".{file.name}.{self._token}.{use}")

    def _folders(self) -> list[Path]:
        """The folders below the bundle that hold a file of this change, the deepest first."""
        folders = {folder for name in self._add for folder in _folders_between(self._root, self._root / name)}
        return sorted(folders, key=lambda folder: len(folder.parts), reverse=True)


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
    if any(output.iterdir()) and not _is_bundle(output):
        raise BundleError(
            f"'{output}' holds files and is not a bundle, so --force does not replace it; "
            "give another output directory, or remove this one yourself."
        )


def _check_place(output: Path) -> None:
    """Raise the error that making `output` would end with."""
    place = next(parent for parent in output.parents if parent.exists())
    problem = errno.EACCES if place.is_dir() else errno.ENOTDIR
    if problem == errno.ENOTDIR or not os.access(place, os.W_OK | os.X_OK):
        raise OSError(problem, os.strerror(problem), str(place))
    try_new_folder(_aside(output, "new"))


def _aside(target: Path, use: str) -> Path:
    return target.with_name(f".{target.name}.{secrets.token_hex(4)}.{use}")


def _is_bundle(path: Path) -> bool:
    try:
        data = json.loads((path / MANIFEST_NAME).read_bytes())
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
    except OSError as error:
        cause = f"{error.strerror or error} at '{error.filename}'" if error.filename else f"{error.strerror or error}"
        advice = {
            errno.ENOSPC: "free some space, or give an output directory on another disk",
            errno.EDQUOT: "free some of your quota, or give an output directory on another disk",
            errno.EFBIG: "the file is larger than the limit set here; raise it (ulimit -f), or use another file system",
            errno.ENOENT: "check that it is there",
        }.get(error.errno or 0, "give a directory that you may write to")
        raise BundleError(
            f"The bundle '{output}' cannot be written ({cause}); {advice}. Nothing was changed."
        ) from error


def _store(target: Path, content: Content) -> FileInfo:
    target.parent.mkdir(parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    with target.open("xb") as stream:
        for chunk in _chunks(content):
            digest.update(chunk)
            size += stream.write(chunk)
        stream.flush()
        os.fsync(stream.fileno())
    return FileInfo(sha256=digest.hexdigest(), bytes=size)


def _chunks(content: Content) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield content
        return
    with content.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            yield chunk


def _folders_between(root: Path, file: Path) -> list[Path]:
    return [parent for parent in file.parents if root in parent.parents]


def _remove_empty(folders: Collection[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def _sync_directory(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
