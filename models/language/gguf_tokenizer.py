"""The tokenizer of a GGUF file as a tokenizer.json: byte-level BPE ("gpt2"), and BPE by scores ("llama").

Source: llama.cpp's llama-vocab.cpp (which names of `tokenizer.ggml.pre` split a text how; what ends a text), and the
tokenizer.json of the models themselves.
Differs: tokens of SentencePiece are put together in the order of their scores, as transformers does it too, while
llama.cpp takes the leftmost of two pairs that give the same token.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from trt_compress.errors import ConfigError, UnsupportedError
from trt_compress.foreign import needs_extra, reading, shown
from trt_compress.suggest import not_known

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = range(1, 7)
"""What `tokenizer.ggml.token_type` says of a token."""

_ENDS = ("'s|'t|'re|'ve|'m|'ll|'d", r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_ONE = r"[^\r\n\p{L}\p{N}]?"
_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"(?i:{_ENDS[0]})|{_ONE}\p{{L}}+|\p{{N}}{{1,3}}|{_ENDS[1]}"
_QWEN2 = rf"(?i:{_ENDS[0]})|{_ONE}\p{{L}}+|\p{{N}}|{_ENDS[1]}"
_TEKKEN = rf"{_ONE}{_UPPER}*{_LOWER}+|{_ONE}{_UPPER}+{_LOWER}*|\p{{N}}|{_SLASH}"
_GPT4O = rf"{_ONE}{_UPPER}*{_LOWER}+(?i:{_ENDS[0]})?|{_ONE}{_UPPER}+{_LOWER}*(?i:{_ENDS[0]})?|\p{{N}}{{1,3}}|{_SLASH}"
_GPT2, _DIGITS = "gpt2", "digits"  # what the library has words for

SPLITS: Mapping[str, str] = {
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "smaug-bpe", "falcon3", "dbrx"), _LLAMA3),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2", "megrez"), _QWEN2),
    **dict.fromkeys(("tekken",), _TEKKEN),
    **dict.fromkeys(("gpt-4o", "llama4"), _GPT4O),
    **dict.fromkeys(("gpt-2", "phi-2", "olmo", "mpt", "exaone", "default"), _GPT2),
    **dict.fromkeys(("smollm", "refact", "starcoder", "command-r", "codeshell"), _DIGITS),
}
"""How a text is cut before its parts become tokens, by `tokenizer.ggml.pre`."""

_WHOLE_WORDS = frozenset({"llama-bpe", "llama3", "llama-v3", "falcon3", "tekken"})
"""Where a part that is a token is that token, whatever the merges say."""

_ENDING = frozenset(
    "<|eot_id|> <|im_end|> <|end|> <end_of_turn> <|endoftext|> <|eom_id|> <EOT> <|end_of_text|> </s> <eos>".split()
)
_NOT_STRIPPED = frozenset({"<unk>", "<s>", "<|endoftext|>"})


def tokenizer_json(name: str, metadata: Mapping[str, Any], *, strips: bool = False) -> bytes:
    """The content of a tokenizer.json.

    Args:
        name: Of the model, for messages.
        metadata: Of the file.
        strips: Whether special tokens take the white space behind them, as Phi-3's do.

    Raises:
        ConfigError: Lists are missing, or do not fit each other.
        UnsupportedError: Another kind of tokenizer, or one that cuts texts in a way that is not known.
    """
    ready = metadata.get("tokenizer.huggingface.json")
    if isinstance(ready, str):
        return ready.encode()
    kind = metadata.get("tokenizer.ggml.model")
    makers = {"gpt2": _byte_level, "llama": _sentence_piece}
    if kind not in makers:
        raise UnsupportedError(f"{name}: {not_known('tokenizer', shown(str(kind))[:60], makers)}")
    words = token_texts(name, metadata)
    with needs_extra("export"):
        import tokenizers  # noqa: F401
    with reading(f"{name}: its tokenizer", "convert the model again"):
        made = makers[kind](name, metadata, words)
        _add(made, name, metadata, words, strips)
        text: str = made.to_str()
        return text.encode()


def token_texts(name: str, metadata: Mapping[str, Any]) -> list[str]:
    """The texts of all tokens, in their order.

    Raises:
        ConfigError: There are none.
    """
    words = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(words, list) or not words or not isinstance(words[0], str):
        raise ConfigError(f"{name}: its metadata have no list of tokens; convert the model again.")
    return words


def ending_tokens(name: str, metadata: Mapping[str, Any]) -> list[int]:
    """Tokens that end a text: those that the file says, and control tokens that are known to."""
    words, types = token_texts(name, metadata), _types(name, metadata)
    said = [metadata.get(f"tokenizer.ggml.{what}_token_id") for what in ("eos", "eot", "eom")]
    known = [number for number, word in enumerate(words) if types[number] == CONTROL and word in _ENDING]
    return list(dict.fromkeys(token for token in (*said, *known) if type(token) is int and 0 <= token < len(words)))


def _types(name: str, metadata: Mapping[str, Any]) -> Sequence[int]:
    count = len(token_texts(name, metadata))
    types = metadata.get("tokenizer.ggml.token_type")
    if types is None:
        return [NORMAL] * count
    if not isinstance(types, list) or len(types) != count:
        raise ConfigError(f"{name}: its metadata do not say the type of each of its tokens; convert the model again.")
    return types


def _byte_level(name: str, metadata: Mapping[str, Any], words: Sequence[str]) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    cut = metadata.get("tokenizer.ggml.pre", "default")
    if cut not in SPLITS:
        raise UnsupportedError(f"{name}: {not_known('pre-tokenizer', shown(str(cut))[:60], SPLITS)}")
    merges = metadata.get("tokenizer.ggml.merges")
    if not isinstance(merges, list):
        raise ConfigError(f"{name}: its metadata have no merges of tokens; convert the model again.")
    pairs = [(left, right) for left, _, right in (str(merge).partition(" ") for merge in merges)]
    made = Tokenizer(
        models.BPE(vocab=_vocabulary(name, metadata, words), merges=pairs, ignore_merges=cut in _WHOLE_WORDS)
    )
    split = SPLITS[cut]
    if split == _QWEN2:
        made.normalizer = normalizers.NFC()
    steps: list[Any] = [] if split in (_GPT2, _DIGITS) else [pre_tokenizers.Split(Regex(split), "isolated")]
    if split == _DIGITS:
        steps = [pre_tokenizers.Digits(individual_digits=True)]
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split in (_GPT2, _DIGITS)))
    made.pre_tokenizer = pre_tokenizers.Sequence(steps)
    made.decoder = decoders.ByteLevel()
    return made


def _sentence_piece(name: str, metadata: Mapping[str, Any], words: Sequence[str]) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers

    scores = metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(words):
        raise ConfigError(f"{name}: its metadata do not say the score of each of its tokens; convert the model again.")
    vocabulary, types = _vocabulary(name, metadata, words), _types(name, metadata)
    merges: list[tuple[float, int, int, str, str]] = []
    for word, number in vocabulary.items():
        if types[number] not in (NORMAL, USER):
            continue
        for place in range(1, len(word)):
            left, right = vocabulary.get(word[:place]), vocabulary.get(word[place:])
            if left is not None and right is not None:
                merges.append((-scores[number], left, right, word[:place], word[place:]))
    merges.sort(key=lambda merge: merge[:3])
    unknown = metadata.get("tokenizer.ggml.unknown_token_id", 0)
    made = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=[(left, right) for *_, left, right in merges],
            unk_token=words[unknown] if type(unknown) is int and 0 <= unknown < len(words) else None,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefix = metadata.get("tokenizer.ggml.add_space_prefix", True)
    spaces = normalizers.Replace(" ", "▁")
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prefix else spaces
    back: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence([*back, decoders.Strip(" ", 1, 0)] if prefix else back)
    return made


def _vocabulary(name: str, metadata: Mapping[str, Any], words: Sequence[str]) -> dict[str, int]:
    """Tokens by text, the first of several; without those that only fill up a table."""
    types, found = _types(name, metadata), dict[str, int]()
    for number, word in enumerate(words):
        if types[number] != UNUSED:
            found.setdefault(word, number)
    return found


def _add(made: Any, name: str, metadata: Mapping[str, Any], words: Sequence[str], strips: bool) -> None:
    """Special tokens, which are never cut, and what is put around a text."""
    from tokenizers import AddedToken, processors

    types = _types(name, metadata)
    special = [word for number, word in enumerate(words) if types[number] in (CONTROL, UNKNOWN) and word]
    plain = [word for number, word in enumerate(words) if types[number] == USER and word]
    made.add_special_tokens(
        [
            AddedToken(word, normalized=False, special=True, rstrip=strips and word not in _NOT_STRIPPED)
            for word in special
        ]
    )
    made.add_tokens([AddedToken(word, normalized=False) for word in plain])
    spm = metadata.get("tokenizer.ggml.model") == "llama"
    whole = metadata.get("tokenizer.ggml.pre") in _WHOLE_WORDS
    ends = {
        "bos": metadata.get("tokenizer.ggml.add_bos_token", spm or whole),
        "eos": metadata.get("tokenizer.ggml.add_eos_token", False),
    }
    put: dict[str, tuple[str, int]] = {}
    for end, wanted in ends.items():
        token = metadata.get(f"tokenizer.ggml.{end}_token_id", {"bos": 1, "eos": 2}[end] if spm else None)
        if wanted and type(token) is int and 0 <= token < len(words):
            put[end] = (words[token], token)
    steps: list[Any] = [] if spm else [processors.ByteLevel(trim_offsets=False)]
    if put:
        first = [put["bos"][0]] if "bos" in put else []
        last = [put["eos"][0]] if "eos" in put else []
        steps.append(
            processors.TemplateProcessing(
                single=[*first, "$A", *last],
                pair=[*first, "$A", *last, *(f"{word}:1" for word in first), "$B:1", *(f"{word}:1" for word in last)],
                special_tokens=list(dict.fromkeys(put.values())),
            )
        )
    if steps:
        made.post_processor = processors.Sequence(steps)
