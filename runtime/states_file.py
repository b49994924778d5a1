"""Saved states: an .npz file, not compressed, of one array for each state and a description of what they are of.

What whoever runs them has to know again stands beside them, in arrays by names of its own.
"""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from trt_compress.errors import BundleError
from trt_compress.files import open_regular, write_whole
from trt_compress.foreign import reading, strict_json
from trt_compress.runtime.arrays import arrays_of
from trt_compress.runtime.backends.base import carrier
from trt_compress.runtime.loaded import Loaded

Array = np.ndarray[Any, np.dtype[Any]]

_FORM = "trt-compress states 1"
_ABOUT = "about"  # in the archive; the arrays are "state/…", so that no state is named like it
_PREFIX, _BESIDE = "state/", "beside/"
_MOST_ABOUT = 1 << 20


@dataclass(frozen=True, slots=True)
class SavedStates:
    """What a file holds.

    Attributes:
        lengths: Of the axes that have a symbol.
        contents: By key.
        beside: By name, what else was saved of what is asked for.
    """

    lengths: Mapping[str, int]
    contents: Mapping[str, Array]
    beside: Mapping[str, Array] = field(default_factory=dict)


def write_states(path: Path, loaded: Loaded, saved: SavedStates) -> None:
    """Write states, as a whole or not at all.

    Args:
        path: The file.
        loaded: The bundle that they are of.
        saved: What is written.
    """
    about = {
        "form": _FORM,
        "bundle": loaded.bundle.manifest.name,
        "digest": loaded.bundle.manifest.digest,
        "identity": loaded.identity(),
        "lengths": dict(saved.lengths),
        "states": sorted(saved.contents),
    }
    packed = io.BytesIO()
    text = np.frombuffer(json.dumps(about).encode(), np.uint8)
    arrays: dict[str, Any] = {_ABOUT: text}
    arrays |= {f"{_PREFIX}{key}": content for key, content in saved.contents.items()}
    arrays |= {f"{_BESIDE}{name}": content for name, content in saved.beside.items()}
    np.savez(packed, **arrays)
    write_whole(path, packed.getvalue())


def read_states(path: Path, loaded: Loaded, beside: Sequence[str] = ()) -> SavedStates:
    """Read states of this bundle.

    Args:
        path: The file.
        loaded: The bundle.
        beside: What else is wanted, where it is there.

    Raises:
        BundleError: The file cannot be read, is damaged, or is of another bundle.
    """
    with reading(f"'{path}'", "save the states again", error=BundleError), open_regular(path) as file:
        arrays = arrays_of(file, [_ABOUT], stored=True)
        if _ABOUT not in arrays:
            raise ValueError("it holds no states")
        about = strict_json(arrays[_ABOUT].tobytes(), limit=_MOST_ABOUT)
        if not isinstance(about, dict) or about.get("form") != _FORM:
            raise ValueError("it does not say that it holds states, as this trt-compress writes them")
        if about.get("identity") != loaded.identity():
            raise BundleError(
                f"'{path}' holds states of another bundle, {str(about.get('bundle'))[:100]!r} with the digest "
                f"{str(about.get('digest'))[:12]}; this is {loaded.bundle.manifest.name!r} with the digest "
                f"{loaded.bundle.manifest.digest[:12]}: load them into a session of the one that they were saved from."
            )
        lengths = _lengths(about.get("lengths"))
        file.seek(0)
        names = {f"{_PREFIX}{key}": key for key in loaded.states}
        others = {f"{_BESIDE}{name}": name for name in beside}
        found = arrays_of(file, {**names, **others}, stored=True)
        contents = {key: found[name] for name, key in names.items() if name in found}
        if sorted(contents) != about.get("states"):
            raise ValueError("a state is missing")
        for key, content in contents.items():
            _check(loaded, key, content, lengths)
    return SavedStates(lengths, contents, {name: found[at] for at, name in others.items() if at in found})


def _lengths(said: object) -> dict[str, int]:
    if not isinstance(said, dict) or not all(isinstance(one, int) and 0 <= one < 2**31 for one in said.values()):
        raise ValueError("it does not say how long the axes are")
    return said


def _check(loaded: Loaded, key: str, content: Array, lengths: Mapping[str, int]) -> None:
    state = loaded.states[key]
    fits = content.dtype == carrier(state.dtype) and content.ndim == len(state.shape)
    for dim, length in zip(state.shape, content.shape, strict=False):
        if dim not in loaded.growing:
            fits = fits and length == (lengths.get(dim) if isinstance(dim, str) else dim)
        elif (most := loaded.growing[dim]) is not None:
            fits = fits and length <= most
    if not fits:
        raise ValueError(
            f"it holds {content.dtype} of shape {list(content.shape)} for the state '{key}', which is {state.dtype} of "
            f"shape {list(state.shape)}"
        )
