"""What belongs to a language model beside its tensors: tokenizer, chat template, settings of generation, licence."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trt_compress.errors import ConfigError
from trt_compress.files import read_regular
from trt_compress.foreign import reading, shown, strict_json
from trt_compress.format.text import GENERATION, Text, generation_problems
from trt_compress.models.hosts.hf_directory import read_json
from trt_compress.models.language.source import Assets

TOKENIZER, TEMPLATE = "text/tokenizer.json", "text/chat_template.jinja"

_LICENSES = re.compile(r"(licen[cs]e|copying|notice|use[_-]policy)([._-].*)?", re.IGNORECASE)
_LARGEST_LICENSE = 1 << 20
_LARGEST_TEMPLATE = 1 << 20
_LARGEST_README = 16 << 20
_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_OTHER_TOKENIZERS = ("tokenizer.model", "vocab.json", "spiece.model", "tekken.json", "vocab.txt")


def directory_assets(path: Path, config: Mapping[str, Any]) -> Assets:
    """What a directory of Hugging Face holds beside the tensors.

    Args:
        path: The directory.
        config: Its config.json.

    Raises:
        ConfigError: A file is damaged, or the tokenizer does not fit the model.
    """
    name = f"hf:{path}"
    generation = _optional_json(path / "generation_config.json")
    settings = _optional_json(path / "tokenizer_config.json")
    own = config.get("text_config") if isinstance(config.get("text_config"), Mapping) else config
    vocabulary = None if own is None else own.get("vocab_size")
    licenses = dict(_license_files(path))
    content = _optional(path / "tokenizer.json")
    if content is None:
        if other := next((file for file in _OTHER_TOKENIZERS if (path / file).is_file()), None):
            raise ConfigError(
                f'{name} has {other} and no tokenizer.json; make one: python -c "from transformers import '
                f"AutoTokenizer as A; A.from_pretrained('{shown(str(path))}').save_pretrained('{shown(str(path))}')\"."
            )
        return Assets(files=licenses, license=_license_of(path), license_files=tuple(licenses))
    older = _optional_json(path / "special_tokens_map.json")
    special = {key: word for key in _SPECIAL if (word := _token_text(settings.get(key) or older.get(key))) is not None}
    ids: dict[str, Any] = {}
    for key in ("eos_token_id", "bos_token_id", "pad_token_id"):
        ids[key] = next((part[key] for part in (generation, own or {}, config) if part.get(key) is not None), None)
    text, files = text_assets(
        name,
        content,
        vocabulary=vocabulary,
        stop=ids["eos_token_id"],
        bos=ids["bos_token_id"],
        pad=ids["pad_token_id"],
        template=_template(path, settings),
        special=special,
        generation=generation,
        context=None if own is None else own.get("max_position_embeddings"),
    )
    return Assets(files={**files, **licenses}, text=text, license=_license_of(path), license_files=tuple(licenses))


def text_assets(
    name: str,
    tokenizer: bytes,
    *,
    vocabulary: object,
    stop: object,
    bos: object,
    pad: object,
    template: str | None,
    special: Mapping[str, str],
    generation: Mapping[str, Any],
    context: object,
) -> tuple[Text, dict[str, bytes]]:
    """The record of a model's text, held against the model, and the files that it names.

    Args:
        name: Of the model, for messages.
        tokenizer: The content of tokenizer.json. Tokens that were added to it beyond those of the model, and that
            nothing needs, are left out.
        vocabulary: How many tokens the model knows.
        stop: One or several tokens that end a text; None: what `special` calls eos_token.
        bos: The token that begins one; None: what `special` calls bos_token.
        pad: The token that fills up; as `bos`.
        template: The chat template.
        special: Texts of special tokens by name.
        generation: Settings, of which those of `GENERATION` are taken.
        context: Tokens of the longest sequence that the model was trained for.

    Raises:
        ConfigError: Something does not fit.
    """
    if type(vocabulary) is not int or vocabulary < 1:
        raise ConfigError(f"{name}: its configuration has no vocab_size; give the config.json that it came with.")
    with reading(f"{name}: tokenizer.json", "copy it again from where the model comes from"):
        data = strict_json(tokenizer)
        tokens, added = _tokens(data)
    last = max(tokens, key=tokens.__getitem__, default=None)
    if last is not None and tokens[last] >= vocabulary:
        raise _too_many(name, last, tokens[last], vocabulary)
    beyond = {token: number for token, number in added.items() if number >= vocabulary}
    for token, number in beyond.items():
        if token in special.values() or (template is not None and token in template):
            raise _too_many(name, token, number, vocabulary)
    if beyond:  # of a sister model with images, as Gemma 3 of 1B has them
        data["added_tokens"] = [entry for entry in data["added_tokens"] if entry["id"] < vocabulary]
        tokenizer = json.dumps(data, ensure_ascii=False).encode()
    _try(name, tokenizer)
    known = {**tokens, **added}
    settings = {key: generation[key] for key in GENERATION if generation.get(key) is not None}
    for problem in generation_problems(settings):
        raise ConfigError(f"{name}: {problem}; correct generation_config.json.")
    ends = stop if isinstance(stop, list) else [known.get(special.get("eos_token", "")) if stop is None else stop]
    text = Text(
        tokenizer=TOKENIZER,
        vocabulary=vocabulary,
        stop=tuple(dict.fromkeys(_id(name, "eos_token_id", number) for number in ends if number is not None)),
        bos=_id(name, "bos_token_id", known.get(special.get("bos_token", "")) if bos is None else bos),
        pad=_id(name, "pad_token_id", known.get(special.get("pad_token", "")) if pad is None else pad),
        chat_template=None if template is None else TEMPLATE,
        special=dict(special),
        generation=settings,
        context=context if type(context) is int else None,
    )
    for problem in text.problems():
        raise ConfigError(f"{name}: {problem}; the tokenizer and the model are not of one piece.")
    files = {TOKENIZER: tokenizer, **({} if template is None else {TEMPLATE: template.encode()})}
    return text, files


def _id(name: str, what: str, value: object) -> Any:
    if value is not None and type(value) is not int:
        raise ConfigError(f"{name}: {what} is {shown(str(value))[:60]!r}; it is the number of a token.")
    return value


def _too_many(name: str, token: str, number: int, vocabulary: int) -> ConfigError:
    return ConfigError(
        f"{name}: the tokenizer has a token {number} ('{shown(token)[:40]}'), and the model knows {vocabulary}: they "
        "are not of one piece; give the tokenizer.json that the model came with."
    )


def _tokens(data: Any) -> tuple[dict[str, int], dict[str, int]]:
    """Tokens of a tokenizer.json by text: its vocabulary's own, and those that were added."""
    vocab = data["model"]["vocab"]
    if isinstance(vocab, list):  # of a unigram model: pairs of text and score
        own = {str(entry[0]): number for number, entry in enumerate(vocab)}
    else:
        own = {str(token): int(number) for token, number in vocab.items()}
    added = {str(entry["content"]): int(entry["id"]) for entry in data.get("added_tokens") or ()}
    return {token: number for token, number in own.items() if token not in added}, added


def _try(name: str, content: bytes) -> None:
    with reading(f"{name}: tokenizer.json", "copy it again from where the model comes from"):
        from tokenizers import Tokenizer

        Tokenizer.from_buffer(content).encode("a")


def _template(path: Path, settings: Mapping[str, Any]) -> str | None:
    """The chat template: of several the one that is called default."""
    content = _optional(path / "chat_template.jinja", _LARGEST_TEMPLATE)
    if content is not None:
        with reading(f"{path}/chat_template.jinja", "copy it again from where the model comes from"):
            return content.decode()
    found = settings.get("chat_template") or _optional_json(path / "chat_template.json").get("chat_template")
    if isinstance(found, list):
        named = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
        found = named.get("default")
    if found is not None and not isinstance(found, str):
        raise ConfigError(f"hf:{path}: chat_template of tokenizer_config.json is no text; copy the file again.")
    return found or None


def _token_text(value: object) -> str | None:
    """A special token as the files of several years write it: a text, or an object with one."""
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else None


def _license_files(path: Path) -> Iterator[tuple[str, bytes]]:
    for file in sorted(path.iterdir()):
        if _LICENSES.fullmatch(file.name) and file.is_file():
            content = _optional(file, _LARGEST_LICENSE)
            if content is not None:
                yield f"license/{re.sub(r'[^A-Za-z0-9._-]', '_', file.name)}", content


def _license_of(path: Path) -> str | None:
    """What the head of the README calls the licence."""
    text = (_optional(path / "README.md", _LARGEST_README) or b"").decode("utf-8", "replace")
    head = re.match(r"\ufeff?---[ \t]*\r?\n(.*?)\n---[ \t]*\r?\n", text, re.DOTALL)
    found = {
        key: value.strip("'\"")
        for key, value in re.findall(r"^(license(?:_name)?):[ \t]*(\S.*?)\s*$", head[1] if head else "", re.MULTILINE)
    }
    named = found.get("license_name") if found.get("license") in (None, "other") else None
    license_ = named or found.get("license")
    return None if license_ is None else shown(license_)[:200]


def _optional(path: Path, limit: int = 1 << 28) -> bytes | None:
    """The content of a file; None: there is none of that name.

    Raises:
        ConfigError: It is there and cannot be read.
    """
    try:
        return read_regular(path, limit=limit)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); copy it again, or take it away.") from None


def _optional_json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}
