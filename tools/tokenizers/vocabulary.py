"""The tokens of a tokenizer by their numbers, as it writes them and as text."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from trt_compress.errors import ConfigError
from trt_compress.files import read_regular
from trt_compress.foreign import reading, shown
from trt_compress.models.hosts.hf_directory import read_json
from trt_compress.runtime.generate.tokenizer import Tokenizer, panics_said

_BESIDE = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
_SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")
_RUN = ("auto_map", "tokenizer_class")
"""What a configuration says of code; tokenizers are loaded from tokenizer.json."""

_LARGEST = 1 << 26


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a tokenizer.

    Attributes:
        tokenizer: What encodes.
        numbers: Of each token, as the vocabulary writes it.
        size: All numbers are below it.
    """

    tokenizer: Tokenizer

    @cached_property
    def numbers(self) -> Mapping[str, int]:
        return dict(self.tokenizer.library.get_vocab(with_added_tokens=True))

    @property
    def size(self) -> int:
        return self.tokenizer.size

    @cached_property
    def texts(self) -> list[str]:
        """The text of each token by itself, special ones too; an empty one for a number that no token has."""
        library, known = self.tokenizer.library, set(self.numbers.values())
        return [
            library.decode([number], skip_special_tokens=False) if number in known else ""
            for number in range(self.size)
        ]

    def cut(self, texts: Sequence[str]) -> list[list[int]]:
        """Texts in this tokenizer's tokens, with nothing around them."""
        with reading("A token's text", "give another tokenizer"), panics_said():
            found = self.tokenizer.library.encode_batch(list(texts), add_special_tokens=False)
        return [list(item.ids) for item in found]


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """What stands beside a tokenizer.json.

    Attributes:
        files: Content by name, for the folder of the new checkpoint.
        special: Texts of special tokens by name: `eos_token`.
    """

    files: Mapping[str, bytes]
    special: Mapping[str, str]


def beside(tokenizer: Path, vocabulary: Vocabulary) -> Beside:
    """A tokenizer.json and what stands beside it, made fit to be loaded with it.

    Args:
        tokenizer: The file, of any form.
        vocabulary: What was read of it.

    Raises:
        ConfigError: A file is damaged.
    """
    found: dict[str, bytes] = {}
    special: dict[str, str] = {}
    for name in _BESIDE:
        path = tokenizer.parent / name
        if not path.is_file():
            continue
        try:
            found[name] = read_regular(path, limit=_LARGEST)
        except OSError as error:
            raise ConfigError(f"'{path}' cannot be read ({error.strerror}); copy it again, or take it away.") from None
        if name.endswith(".json"):
            content = read_json(path)
            special |= {key: text for key in _SPECIAL if (text := _text_of(content.get(key))) is not None}
    settings: dict[str, Any] = {}
    if "tokenizer_config.json" in found:
        settings = read_json(tokenizer.parent / "tokenizer_config.json")
    settings = {key: value for key, value in settings.items() if key not in _RUN}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **settings, **special}
    found["tokenizer_config.json"] = (json.dumps(settings, indent=2, ensure_ascii=False) + "\n").encode()
    own = read_regular(tokenizer, limit=1 << 28)
    found["tokenizer.json"] = own if own.lstrip()[:1] == b"{" else vocabulary.tokenizer.library.to_str().encode()
    return Beside(files=found, special=special)


def special_numbers(
    config: Mapping[str, Any], new: Vocabulary, old: Vocabulary, special: Mapping[str, str]
) -> dict[str, Any]:
    """The numbers of special tokens that a configuration names, in the new vocabulary; None: it has no such token.

    A token that the new tokenizer names itself is taken, else the old one if the new vocabulary has it.
    """
    by_number = {number: token for token, number in old.numbers.items()}
    found: dict[str, Any] = {}
    for key, value in config.items():
        if not key.endswith("_token_id"):
            continue
        own = new.numbers.get(special.get(key.removesuffix("_id"), ""))
        kept = [
            new.numbers.get(by_number.get(number, "") if type(number) is int else "")
            for number in (value if isinstance(value, list) else [value])
        ]
        known = list(dict.fromkeys(number for number in (own, *kept) if number is not None))
        found[key] = (known or None) if isinstance(value, list) else (known[0] if known else None)
    return found


def _text_of(value: Any) -> str | None:
    value = value.get("content") if isinstance(value, dict) else value
    return shown(value) if isinstance(value, str) else None
