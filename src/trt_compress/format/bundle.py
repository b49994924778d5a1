"""Open the directory that is deployed, and make sure that what is used of it is what was written.

There is one way in. A file of up to `SMALL` bytes is read once, its hash is that of the bytes in memory, and the bytes
are handed over (`Bundle.read`). A larger one is opened once, hashed through its descriptor and read through the same
descriptor (`Bundle.open_file`), so that it does not matter where its name leads afterwards. `Bundle.file` only says
where a file lies: by the time somebody opens that path, another file may lie there.
"""

import errno
import mmap
import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from trt_compress import strays
from trt_compress.digest import Sha256, sha256, sha256_of_file
from trt_compress.digest import as_digests as as_digests
from trt_compress.errors import BundleError
from trt_compress.files import open_regular, read_regular
from trt_compress.format.manifest import MANIFEST_NAME, FileInfo, Manifest
from trt_compress.format.unlisted import refuse_unlisted
from trt_compress.suggest import did_you_mean

SMALL = 64 << 20
"""Bytes of the largest file that is taken into memory whole, where nobody can write into it any more."""

_AGAIN = "copy the bundle again from where it was made, or export it again"
_LARGEST_MANIFEST = 64 << 20
_CHUNK = 1 << 20
_TRIES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A bundle that was opened and checked.

    Attributes:
        path: The directory, as it was given.
        manifest: What it says of itself.
        check_hashes: Whether what is read of it is compared with its hash.
        root: The same directory, absolute and without links: files are read from there, wherever the process goes and
            wherever a link of that name leads later.
    """

    path: Path
    manifest: Manifest
    check_hashes: bool = True
    root: Path = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", Path(os.path.realpath(self.path)))

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        check_hashes: bool = True,
        require_digest: str | Collection[str] | None = None,
        later: Callable[[Manifest], Collection[str]] | None = None,
    ) -> "Bundle":
        """Open a bundle.

        Args:
            path: The directory.
            check_hashes: Read every file and compare its hash, now and when it is used. Without it nothing says that a
                file is what was written. What holds all the same: the manifest is whole and has the digest that it
                names, every file that it lists is there, a regular file inside the bundle, and of the size it should
                have; a graph takes its weights from listed files only, and its inputs and outputs are the listed ones.
            require_digest: The digest that the manifest must have, or several of which it must have one; see
                `as_digests`. The digest covers the hash of every file. It is no signature: who can change the bundle
                can make its digest right again, so it has to come from somewhere else than the bundle.
            later: Says of which files the caller reads every byte itself, through this bundle; those are hashed then,
                once.

        Raises:
            BundleError: It is not a bundle, has a newer schema, a file is missing or was changed, it holds code or
                weights that the manifest does not list, or its digest is not the one that is required.
            ConfigError: `require_digest` is no digest.
        """
        required = as_digests(require_digest)
        if not isinstance(path, str | os.PathLike):
            raise BundleError(f"A bundle is a directory, and {path!r} was given; give its path, as export wrote it.")
        path = Path(path)
        for _ in range(_TRIES):
            before = _version(path)
            try:
                return cls._checked(path, _read_manifest(path), check_hashes, required, later)
            except BundleError:
                if _version(path) == before:
                    raise  # else it was replaced meanwhile
        raise BundleError(f"The bundle '{path}' is being changed again and again while it is opened; open it again.")

    @classmethod
    def _checked(
        cls,
        path: Path,
        content: bytes,
        check_hashes: bool,
        required: tuple[str, ...],
        later: Callable[[Manifest], Collection[str]] | None,
    ) -> "Bundle":
        manifest = Manifest.from_text(content, str(path / MANIFEST_NAME))
        manifest.check()
        if manifest.compute_digest() != manifest.digest:
            raise BundleError(f"'{path / MANIFEST_NAME}' was changed after it was written; {_AGAIN}.")
        bundle = cls(path=path, manifest=manifest, check_hashes=check_hashes)
        bundle.require(required)
        _check_records(path, manifest)
        refuse_unlisted(path, manifest.files, [graph.name for graph in manifest.graphs])
        hashed_later = later(manifest) if later is not None else ()
        for name in manifest.files:
            if name not in hashed_later:
                bundle.check(name)
        return bundle

    def is_current(self) -> bool:
        """Whether what lies in the directory is still what was opened.

        Raises:
            BundleError: It is no bundle any more.
        """
        return Manifest.from_text(_read_manifest(self.root)).digest == self.manifest.digest

    def __repr__(self) -> str:
        return f"<Bundle {str(self.path)!r}: {self.manifest.name}, {len(self.manifest.files)} files>"

    def with_manifest(self, manifest: Manifest) -> "Bundle":
        """The same directory with what it says of itself now, after it was changed."""
        bundle = Bundle(path=self.path, manifest=manifest, check_hashes=self.check_hashes)
        object.__setattr__(bundle, "root", self.root)
        return bundle

    def require(self, digests: str | Collection[str] | None) -> None:
        """Refuse the bundle if its digest is none of these; None: any will do.

        Raises:
            BundleError: It is another.
            ConfigError: One of them is no digest.
        """
        required = as_digests(digests)
        if required and self.manifest.digest not in required:
            raise BundleError(
                f"The bundle '{self.path}' has the digest {self.manifest.digest}, and {' or '.join(required)} is "
                "required; it is another bundle or was changed: take the one that is meant, or require its digest."
            )

    def info(self, name: str) -> FileInfo:
        """Size and hash of a file, by the name that the manifest gives it.

        Raises:
            BundleError: The manifest lists no such file.
        """
        if name in self.manifest.files:
            return self.manifest.files[name]
        if any(name in (graph.file, *graph.external_data) for graph in self.manifest.graphs):
            raise BundleError(
                f"The bundle '{self.path}' has no file '{name}' any more: it was pruned to what "
                f"'{', '.join(self.manifest.targets)}' needs; take the whole bundle for this, or export it again."
            )
        suggestion = did_you_mean(name, self.manifest.files)
        raise BundleError(f"The bundle '{self.path}' has no file '{name}'.{suggestion}")

    def file(self, name: str) -> Path:
        """Where a file lies, to say so or to remove it. Its content is had by `read`, `open_file`, `chunks`, `copy`.

        Raises:
            BundleError: The manifest lists no such file.
        """
        self.info(name)
        return self.root / name

    def folder(self, name: str) -> Path:
        """The folder that a file lies in; what lies there under any name is to be compared with an open file."""
        return self.file(name).parent

    def check(self, name: str) -> None:
        """Make sure that a file is there, as it was written.

        Raises:
            BundleError: As `read`.
        """
        with self._opened(name) as stream:
            if self.check_hashes:
                self._check_hash(name, sha256_of_file(stream))

    def read(self, name: str) -> bytes:
        """The content of a file: these bytes were compared with its hash.

        Raises:
            BundleError: There is no such file, it cannot be read, or it was changed.
        """
        with self._opened(name) as stream:
            data = stream.read(self.info(name).bytes + 1)
        self._check_length(name, len(data))
        if self.check_hashes:
            self._check_hash(name, sha256(data))
        return data

    def chunks(self, name: str) -> Iterator[bytes]:
        """The content of a file in pieces; after the last one it is compared with its hash.

        Raises:
            BundleError: As `read`, at the end too: whoever writes the pieces somewhere then throws them away.
        """
        digest = Sha256()
        with self._opened(name) as stream:
            while chunk := stream.read(_CHUNK):
                digest.add(chunk)
                yield chunk
        self._check_length(name, digest.size)
        if self.check_hashes:
            self._check_hash(name, digest.hex())

    def copy(self, name: str, folder: Path) -> Path:
        """Copy a file for a program that reads by path, under the same name into a folder that is the caller's alone.

        Returns:
            The copy, which was compared with the hash.

        Raises:
            BundleError: As `read`, or the copy cannot be written; nothing is left in the folder.
        """
        target = folder / name
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("xb") as copy:
                for chunk in self.chunks(name):
                    copy.write(chunk)
        except BaseException as error:
            target.unlink(missing_ok=True)
            if not isinstance(error, OSError):
                raise
            raise BundleError(
                f"'{name}' of the bundle '{self.path}' cannot be copied to '{folder}' ({error.strerror}); free some "
                "space there, or point TMPDIR to another disk."
            ) from error
        return target

    def open_file(self, name: str) -> "OpenFile":
        """Open a file and compare its hash through the descriptor that it will be read by.

        Raises:
            BundleError: As `read`.
        """
        stream = self._opened(name)
        try:
            before = os.fstat(stream.fileno())
            if self.check_hashes:
                self._check_hash(name, sha256_of_file(stream))
                stream.seek(0)
        except BaseException:
            stream.close()
            raise
        return OpenFile(self, name, stream, before)

    def _opened(self, name: str) -> BinaryIO:
        """A file, of the size that it should have."""
        size = self.info(name).bytes
        try:
            stream = open_regular(self.root / name, inside=self.root)
        except (FileNotFoundError, NotADirectoryError):
            raise BundleError(f"The bundle '{self.path}' lacks its file '{name}'; {_AGAIN}.") from None
        except OSError as error:
            raise _unreadable(self.path / name, error) from None
        found = os.fstat(stream.fileno()).st_size
        if found != size:
            stream.close()
            raise self._changed(name, f"it has {found} bytes, not {size}")
        return stream

    def _check_length(self, name: str, length: int) -> None:
        if length != self.info(name).bytes:
            raise self._changed(name, "its length changed while it was read")

    def _check_hash(self, name: str, sha256: str) -> None:
        if sha256 != self.info(name).sha256:
            raise self._changed(name, "its hash differs")

    def _changed(self, name: str, difference: str) -> BundleError:
        return BundleError(f"'{name}' in the bundle '{self.path}' was changed: {difference}; {_AGAIN}.")


class OpenFile:
    """A file of a bundle, held open: what was hashed is what is read through it, wherever its name leads meanwhile.

    Only one who writes into the file itself can still change it. `confirm` notices that by the file's times; what is
    mapped for longer is, like every mapped file, whatever stands in it.
    """

    def __init__(self, bundle: Bundle, name: str, stream: BinaryIO, before: os.stat_result) -> None:
        self._bundle = bundle
        self._name = name
        self._stream = stream
        self._before = before

    @property
    def path(self) -> str | None:
        """A path that leads to this very file while it is open here; None where the system has no such paths."""
        for folder in ("/proc/self/fd", "/dev/fd"):
            if os.path.exists(path := f"{folder}/{self._stream.fileno()}"):
                return path
        return None

    def is_at(self, found: os.stat_result) -> bool:
        """Whether what was looked up by a name is this very file."""
        return os.path.samestat(found, self._before)

    def map(self) -> mmap.mmap:
        """The content, mapped to be read; it stays when the file is closed. Empty files cannot be mapped."""
        return mmap.mmap(self._stream.fileno(), 0, access=mmap.ACCESS_READ)

    def confirm(self) -> None:
        """Make sure, once it has been read, that nobody has written into it since it was hashed.

        Raises:
            BundleError: Somebody has, or has replaced it meanwhile.
        """
        now = os.fstat(self._stream.fileno())
        if any(getattr(now, part) != getattr(self._before, part) for part in ("st_size", "st_mtime_ns", "st_ctime_ns")):
            raise BundleError(
                f"'{self._name}' in the bundle '{self._bundle.path}' was changed while it was read; open it again when "
                "nothing writes there any more."
            )

    def close(self) -> None:
        """Let go of the descriptor."""
        self._stream.close()

    def __enter__(self) -> "OpenFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _check_records(path: Path, manifest: Manifest) -> None:
    """Refuse a manifest that gives two hashes for one file: that of its record, and that of the list of files."""
    hashes = [(part.file, part.sha256) for part in manifest.lowered]
    hashes += [(part.file, part.sha256) for part in manifest.engines]
    for file, said in hashes:
        if said != manifest.files[file].sha256:
            raise BundleError(
                f"{MANIFEST_NAME} in '{path}' says two different things of '{file}'; export the bundle again."
            )


def _version(path: Path) -> object:
    """What tells a bundle in a place from the one that is there after a change."""
    try:
        found = os.stat(path), os.stat(path / MANIFEST_NAME)
    except OSError:
        return None
    return [(status.st_dev, status.st_ino, status.st_ctime_ns) for status in found]


def _read_manifest(path: Path, *, healed: bool = False) -> bytes:
    try:
        return read_regular(path / MANIFEST_NAME, limit=_LARGEST_MANIFEST, inside=path)
    except FileNotFoundError:
        if not healed and _put_back(path):
            return _read_manifest(path, healed=True)
        problem = f"is not a bundle: it has no {MANIFEST_NAME}" if path.exists() else "does not exist"
    except NotADirectoryError:
        problem = "is not a bundle: it is not a directory"
    except OSError as error:
        raise _unreadable(path / MANIFEST_NAME, error) from None
    raise BundleError(f"'{path}' {problem}; give the directory that export wrote.")


def _put_back(path: Path) -> bool:
    """Whether a bundle that a killed replacement left beside its place is there again."""
    try:
        return strays.put_back(path)
    except OSError as error:
        raise BundleError(
            f"The bundle '{path}' is at '{error.filename}', where a replacement that was killed has set it aside; give "
            f"it its name again ({error.strerror})."
        ) from None


def _unreadable(file: Path, error: OSError) -> BundleError:
    advice = "check its permissions" if error.errno in (errno.EACCES, errno.EPERM) else _AGAIN
    if "link" in (error.strerror or ""):
        advice = "put the file itself there"
    return BundleError(f"'{file}' cannot be read ({error.strerror}); {advice}.")
