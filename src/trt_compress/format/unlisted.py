"""Files in a bundle that its manifest does not list: those that code or weights could come from are refused.

What is listed was hashed; nothing else in a bundle is ever loaded. That it is refused all the same tells a user that
somebody put it there, and keeps it from being loaded by another program that is started in that folder.

Left alone is what can be neither: texts, tables, pictures, sound and video, JSON, arrays of inputs (.npz), scripts of a
shell, what has no suffix, and what is hidden (`.git`, and what a killed run of ours leaves for the next to remove).
"""

import os
import re
from collections.abc import Collection, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path

from trt_compress.errors import BundleError
from trt_compress.files import read_regular
from trt_compress.foreign import shown, strict_json

_CODE = ("py", "pyc", "pyo", "pyd", "pyw", "pyz", "pth", "so", "dll", "dylib")
_WEIGHTS = (
    "onnx",
    "ort",
    "data",
    "onnx_data",
    "bin",
    "weights",
    "safetensors",
    "gguf",
    "pt",
    "pt2",
    "ckpt",
    "pkl",
    "pickle",
)
_ENGINES = ("engine", "plan", "trt")
_KIND = re.compile(rf"\.({'|'.join((*_CODE, *_WEIGHTS, *_ENGINES))})(\.[0-9]+)*$", re.IGNORECASE)  # libfoo.so.1.2 too
_SHOWN = 3
_MOST = 10_000
_LARGEST_JOURNAL = 64 << 20


def refuse_unlisted(path: Path, listed: Collection[str], graphs: Collection[str]) -> None:
    """Refuse a bundle that holds code or weights that its manifest does not list; it goes by names and opens nothing.

    Args:
        path: The bundle.
        listed: What its manifest lists, and the manifest itself.
        graphs: Names of its graphs. An engine of one of them, where `build` puts it, is passed over, and so is what a
            change that was killed right before or after its commit has left, which the next change removes.

    Raises:
        BundleError: It does; the first few are named.
    """
    known = {*listed, *leftovers(path)}
    ours = re.compile(rf"engines/[^/]+/({'|'.join(map(re.escape, graphs))})(\.[0-9a-f]{{8,16}})?\.engine")
    found = sorted(name for name in _names(path) if _KIND.search(name) and not (name in known or ours.fullmatch(name)))
    if found:
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise BundleError(
            f"The bundle '{shown(str(path))}' holds {', '.join(repr(shown(name)) for name in found[:_SHOWN])}{more}, "
            "which its manifest does not list and which could be code or weights; take it out of the folder, or copy "
            "the bundle again from where it was made."
        )


def leftovers(path: Path) -> set[str]:
    """What changes of a bundle that were killed had listed before and after: the journals in `.change.TOKEN.new`."""
    names: set[str] = set()
    with suppress(FileNotFoundError):  # the bundle is being replaced; whoever opens it notices by its files
        for journal in path.glob(".change.*.new/*.json"):
            names |= listed_in(journal) or set()
    return names


def listed_in(manifest: Path) -> set[str] | None:
    """The files that a manifest lists, which need not be one that could be opened; None: it does not say."""
    try:
        data = strict_json(read_regular(manifest, limit=_LARGEST_JOURNAL))
    except (OSError, ValueError):
        return None
    files = data.get("files") if isinstance(data, dict) else None
    return set(files) if isinstance(files, dict) else None


def _names(path: Path) -> Iterator[str]:
    """Every file and link below a folder by its path there, but hidden ones.

    Links to folders are not followed, as a set of data may lie there; but one to a package is code of its name.
    """
    folders, count = [""], 0
    while folders:
        inside = folders.pop()
        try:
            entries = os.scandir(path / inside)
        except OSError:  # what cannot be looked at cannot be loaded either
            continue
        with entries:
            for entry in entries:
                count += 1
                if count > _MOST:
                    raise BundleError(
                        f"The bundle '{shown(str(path))}' holds more than {_MOST} files, so that it is no bundle of "
                        "ours alone; give a folder with nothing else in it."
                    )
                if entry.name.startswith("."):
                    continue
                name = f"{inside}{entry.name}"
                if entry.is_dir(follow_symlinks=False):
                    folders.append(f"{name}/")
                else:
                    yield name
                    if entry.is_symlink():
                        yield from (f"{name}/{init}" for init in _inits(path / name))


def _inits(folder: Path) -> list[str]:
    """What Python would run to import a folder."""
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in islice(entries, _MOST) if entry.name.startswith("__init__.")]
    except OSError:  # a link to a file, or to nothing
        return []
