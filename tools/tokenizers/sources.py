"""Tokenizers that a user gives: a `tokenizer.json`, or the folder of a Hugging Face model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trt_compress.errors import ConfigError, UnsupportedError
from trt_compress.files import read_regular
from trt_compress.foreign import reading, shown, strict_json
from trt_compress.runtime.generate.tokenizer import Tokenizer
from trt_compress.runtime.text.encoder import Encoder

KINDS = ("BPE", "Unigram", "WordPiece", "WordLevel")
"""What `model.type` of a tokenizer.json may be."""

_FORMS = "a tokenizer.json, or a folder that holds one"
_LARGEST = 1 << 28
_LONGEST = 1 << 26  # the table of a normalizer is one text


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerSource:
    """A tokenizer, and where it comes from.

    Attributes:
        name: As it is shown.
        path: The file that was read.
        kind: One of `KINDS`.
        encoder: What encodes.
    """

    name: str
    path: Path
    kind: str
    encoder: Encoder


def open_tokenizer(path: Path) -> TokenizerSource:
    """Read a tokenizer.

    Raises:
        ConfigError: There is none, or it is damaged.
        UnsupportedError: It is of a kind that is not known, which the message names, or a library is missing.
    """
    file = _file_in(path) if path.is_dir() else path
    with reading(f"'{shown(str(path))}'", f"give {_FORMS}"):
        content = read_regular(file, limit=_LARGEST)
    return _from_json(content, file)


def open_tokenizers(paths: Sequence[Path]) -> list[TokenizerSource]:
    """Read several.

    Raises:
        ConfigError, UnsupportedError: As `open_tokenizer`; or two have one name.
    """
    found = [open_tokenizer(path) for path in paths]
    names = [item.name for item in found]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"Two tokenizers would both be shown as '{twice[0]}'; give each once, or rename a folder.")
    return found


def _file_in(folder: Path) -> Path:
    if (file := folder / "tokenizer.json").is_file():
        return file
    raise ConfigError(f"'{folder}' holds no tokenizer.json; give {_FORMS}.")


def _from_json(content: bytes, file: Path) -> TokenizerSource:
    where = f"'{shown(str(file))}'"
    with reading(where, f"give {_FORMS}"):
        said: Any = strict_json(content, limit=_LARGEST, longest=_LONGEST)
        if not isinstance(said, dict) or not isinstance(said.get("model"), dict):
            raise ValueError("it has no 'model'")
    kind = said["model"].get("type") or _kind_of(said["model"])
    if kind not in KINDS:
        raise UnsupportedError(
            f"{where} is of the kind {shown(str(kind))!r}, which is not known here; there are {', '.join(KINDS)}."
        )
    encoder = Tokenizer.read(content, where, advice=f"give {_FORMS}", error=ConfigError)
    name = file.parent.name if file.name == "tokenizer.json" and file.parent.name else file.stem
    return TokenizerSource(name=shown(name), path=file, kind=kind, encoder=encoder)


def _kind_of(model: dict[str, Any]) -> str | None:
    """Files of old releases do not say their kind; only BPE has merges."""
    return "BPE" if "merges" in model else None
