"""Tokenizers that a user gives: a `tokenizer.json`, the folder of a Hugging Face model, a sentencepiece model, or a
vocabulary in the form of tiktoken.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trt_compress.errors import ConfigError, UnsupportedError
from trt_compress.files import read_regular
from trt_compress.foreign import reading, shown, strict_json
from trt_compress.runtime.generate.tokenizer import Tokenizer
from trt_compress.runtime.text.encoder import Encoder
from trt_compress.runtime.text.pieces import TextPieces, VocabularyOnly
from trt_compress.tools.tokenizers.sentencepiece_model import (
    SentencePieceEncoder,
    SentencePiecePieces,
    kind_of_model,
)
from trt_compress.tools.tokenizers.texts import unpacked
from trt_compress.tools.tokenizers.tiktoken_format import library_from_ranks, looks_like_ranks, pattern_for, read_ranks

KINDS = ("BPE", "Unigram", "WordPiece", "WordLevel")
"""What `model.type` of a tokenizer.json may be."""

_FORMS = "a tokenizer.json, a sentencepiece model, a .tiktoken file, or a folder that holds one of them"
_IN_FOLDERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "*.tiktoken")
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


def open_tokenizer(path: Path, *, pattern: str | None = None) -> TokenizerSource:
    """Read a tokenizer.

    Args:
        path: A file, or a folder that holds one.
        pattern: Of a vocabulary in the form of tiktoken: how text is split, by name or as a regular expression.

    Raises:
        ConfigError: There is none, or it is damaged.
        UnsupportedError: It is of a kind that is not known, which the message names, or a library is missing.
    """
    file = _file_in(path) if path.is_dir() else path
    where = f"'{shown(str(file))}'"
    with reading(where, f"give {_FORMS}"):
        content = read_regular(file, limit=_LARGEST)
        if content[:2] == b"\x1f\x8b":
            content = unpacked(content, _LARGEST)
    if content.lstrip()[:1] == b"{" or file.suffix == ".json":
        return _from_json(content, file)
    name = file.name.partition(".")[0]
    if looks_like_ranks(content):
        with reading(where, "give a file in the form of tiktoken, a line 'base64 rank' for each token"):
            ranks = read_ranks(content)
        library = library_from_ranks(ranks, pattern_for(file.name, pattern, where), where)
        return TokenizerSource(name=shown(name), path=file, kind="BPE", encoder=Tokenizer(library))
    with reading(where, f"give {_FORMS}"):
        kind = kind_of_model(content)
    if file.stem in ("tokenizer", "spiece") and file.absolute().parent.name:
        name = file.absolute().parent.name
    return TokenizerSource(name=shown(name), path=file, kind=kind, encoder=SentencePieceEncoder(content, where))


def vocabulary_only(source: TokenizerSource) -> VocabularyOnly:
    """Encoding by a tokenizer's vocabulary alone.

    Raises:
        ConfigError: It has none.
        UnsupportedError: Its pieces are no byte strings.
    """
    if isinstance(source.encoder, SentencePieceEncoder):
        return VocabularyOnly(SentencePiecePieces(source.encoder))
    assert isinstance(source.encoder, Tokenizer)
    return VocabularyOnly(TextPieces(source.encoder.library, source.kind))


def open_tokenizers(paths: Sequence[Path], *, pattern: str | None = None) -> list[TokenizerSource]:
    """Read several.

    Raises:
        ConfigError, UnsupportedError: As `open_tokenizer`; or two have one name.
    """
    found = [open_tokenizer(path, pattern=pattern) for path in paths]
    names = [item.name for item in found]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"Two tokenizers would both be shown as '{twice[0]}'; give each once, or rename a folder.")
    return found


def _file_in(folder: Path) -> Path:
    for wanted in _IN_FOLDERS:
        if found := sorted(file for file in folder.glob(wanted) if file.is_file()):
            return found[0]
    raise ConfigError(f"'{folder}' holds none of {', '.join(_IN_FOLDERS)}; give {_FORMS}.")


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
    folder = file.absolute().parent.name
    name = folder if file.name == "tokenizer.json" and folder else file.stem
    return TokenizerSource(name=shown(name), path=file, kind=kind, encoder=encoder)


def _kind_of(model: dict[str, Any]) -> str | None:
    """Files of old releases do not say their kind; only BPE has merges."""
    return "BPE" if "merges" in model else None
