"""Open the directory that is deployed, and make sure that it is what was written."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from trt_compress.errors import BundleError
from trt_compress.runtime.manifest import MANIFEST_NAME, FileInfo, Manifest
from trt_compress.runtime.unlisted import refuse_unlisted
from trt_compress.suggest import did_you_mean

_AGAIN = "copy the bundle again from where it was made, or export it again"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A bundle that was opened and checked."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: str | Path, *, check_hashes: bool = True) -> "Bundle":
        """Open a bundle.

        Args:
            path: The directory.
            check_hashes: Read every file and compare its hash. Without it only presence and size are compared.

        Raises:
            BundleError: It is not a bundle, has a newer schema, a file is missing or was changed, or it holds code or
                weights that the manifest does not list.
        """
        if not isinstance(path, str | os.PathLike):
            raise BundleError(f"A bundle is a directory, and {path!r} was given; give its path, as export wrote it.")
        path = Path(path)
        manifest = Manifest.from_text(_read_manifest(path), str(path / MANIFEST_NAME))
        manifest.check()
        if manifest.compute_digest() != manifest.digest:
            raise BundleError(f"'{path / MANIFEST_NAME}' was changed after it was written; {_AGAIN}.")
        refuse_unlisted(path, manifest.files, [graph.name for graph in manifest.graphs])
        bundle = cls(path=path, manifest=manifest)
        for name, info in manifest.files.items():
            bundle._check_file(name, info, check_hashes)
        return bundle

    def __repr__(self) -> str:
        return f"<Bundle {str(self.path)!r}: {self.manifest.name}, {len(self.manifest.files)} files>"

    def file(self, name: str) -> Path:
        """Find a file of the bundle by the name that the manifest gives it."""
        if name not in self.manifest.files:
            if any(name in (graph.file, *graph.external_data) for graph in self.manifest.graphs):
                raise BundleError(
                    f"The bundle '{self.path}' has no file '{name}' any more: it was pruned to what "
                    f"'{', '.join(self.manifest.targets)}' needs; take the whole bundle for this, or export it again."
                )
            suggestion = did_you_mean(name, self.manifest.files)
            raise BundleError(f"The bundle '{self.path}' has no file '{name}'.{suggestion}")
        return self.path / name

    def _check_file(self, name: str, info: FileInfo, check_hashes: bool) -> None:
        try:
            size = (self.path / name).stat().st_size
            if size != info.bytes:
                difference = f"it has {size} bytes, not {info.bytes}"
            elif check_hashes and _sha256(self.path / name) != info.sha256:
                difference = "its hash differs"
            else:
                return
        except (FileNotFoundError, NotADirectoryError):
            raise BundleError(f"The bundle '{self.path}' lacks its file '{name}'; {_AGAIN}.") from None
        except OSError as error:
            raise _unreadable(self.path / name, error) from None
        raise BundleError(f"'{name}' in the bundle '{self.path}' was changed: {difference}; {_AGAIN}.")


def _read_manifest(path: Path) -> bytes:
    try:
        return (path / MANIFEST_NAME).read_bytes()
    except FileNotFoundError:
        problem = f"is not a bundle: it has no {MANIFEST_NAME}" if path.exists() else "does not exist"
    except NotADirectoryError:
        problem = "is not a bundle: it is not a directory"
    except OSError as error:
        raise _unreadable(path / MANIFEST_NAME, error) from None
    raise BundleError(f"'{path}' {problem}; give the directory that export wrote.")


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _unreadable(file: Path, error: OSError) -> BundleError:
    return BundleError(f"'{file}' cannot be read ({error.strerror}); check its permissions.")
