"""Appending, counting and cutting, against the tokens of the whole text: 10,000 random texts of many scripts."""

import random
from collections.abc import Callable

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from tests.tools.tokenizers.made import CL100K, LINES, byte_level, random_text
from trt_compress.errors import ConfigError
from trt_compress.runtime.generate.tokenizer import Tokenizer as Encoder
from trt_compress.runtime.text import growing
from trt_compress.runtime.text.growing import GrowingText, count_tokens, split_text

TEXTS = 10_000


def metaspace(*, split: bool = True) -> Tokenizer:
    """BPE over characters with a mark for spaces, and bytes for what it does not know."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=split)
    tokenizer.decoder = decoders.Metaspace()
    special = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=special, limit_alphabet=60, show_progress=False)
    tokenizer.train_from_iterator(LINES * 3, trainer)
    return tokenizer


def llama_like() -> Tokenizer:
    """Spaces are marked by the normalizer, and the whole text is one piece."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.train_from_iterator(LINES * 3, trainers.BpeTrainer(vocab_size=500, show_progress=False))
    return tokenizer


def with_added() -> Tokenizer:
    """As KL3M's: NFKC, GPT-2's rule, and added tokens that match anywhere, spaces and words with spaces among them."""
    tokenizer = byte_level(normalizer=normalizers.NFKC())
    tokenizer.add_tokens(
        [AddedToken(text, normalized=False) for text in ("  ", "\n\n", "12", "fox jumps", "U.S.", "x)")]
    )
    tokenizer.add_tokens([AddedToken("<mask>", lstrip=True), AddedToken("über", single_word=True)])
    return tokenizer


def word_piece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFD(), normalizers.Lowercase(), normalizers.StripAccents()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=500, special_tokens=["[UNK]"], show_progress=False)
    tokenizer.train_from_iterator(LINES * 3, trainer)
    return tokenizer


O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

DEEPSEEK = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^""" + "\r\n" + r"\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[" + "\r\n" + r"]*|\s*[" + "\r\n" + r"]+|\s+(?!\S)|\s+"
)


def in_three_steps() -> Tokenizer:
    """As DeepSeek's: digits, then kanji and kana, then the rest, each by a rule of its own."""
    tokenizer = byte_level(pattern=DEEPSEEK)
    rules = (r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", DEEPSEEK)
    splits = [pre_tokenizers.Split(Regex(rule), "isolated") for rule in rules]
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, last])
    return tokenizer


LOCAL: dict[str, Callable[[], Tokenizer]] = {
    "deepseek": in_three_steps,
    "gpt2": byte_level,
    "cl100k": lambda: byte_level(pattern=CL100K),
    "o200k": lambda: byte_level(pattern=O200K),
    "added": with_added,
    "metaspace": metaspace,
    "wordpiece": word_piece,
}
WHOLE: dict[str, Callable[[], Tokenizer]] = {
    "llama": llama_like,
    "metaspace-whole": lambda: metaspace(split=False),
    "unknown rule": lambda: byte_level(pattern=r"\w+ \w+|\S+|\s+"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*LOCAL, *WHOLE])
def test_a_text_that_grows_has_the_tokens_of_the_whole(name: str) -> None:
    library = {**LOCAL, **WHOLE}[name]()
    encoder = Encoder(library)
    chance = random.Random(f"growing {name}")
    settled = 0
    for _ in range(TEXTS if name in LOCAL else TEXTS // 10):
        text = random_text(chance)
        growing_text = GrowingText(encoder)
        assert (growing_text.why_whole is None) == (name in LOCAL)
        given, tokens, firm = 0, list[int](), list[int]()
        while given < len(text):
            taken = chance.choice((1, 2, 5, 40))
            change = growing_text.append(text[given : given + taken])
            given += taken
            tokens = [*tokens[: change.kept], *change.added]
            expected = encoder.encode(text[:given], special=False)
            assert tokens == growing_text.tokens == expected, (text, given)
            assert expected[: len(firm)] == firm
            firm = expected[: growing_text.num_settled]
        settled += len(firm)
    assert (settled > 0) == (name in LOCAL)


@pytest.mark.parametrize("name", [*LOCAL, *WHOLE])
def test_counts_and_parts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growing, "_WINDOW", 32)
    encoder = Encoder({**LOCAL, **WHOLE}[name]())
    chance = random.Random(f"counting {name}")
    cut_short = 0
    for _ in range(TEXTS // 10):
        text = random_text(chance)
        whole = encoder.encode(text, special=False)
        assert count_tokens(encoder, text) == len(whole)
        most = chance.randint(1, 30)
        assert (count_tokens(encoder, text, at_most=most) > most) == (len(whole) > most)
        tokens = chance.randint(12, 40)
        parts = split_text(encoder, text, tokens)
        assert "".join(parts) == text and all(parts)
        lengths = [len(encoder.encode(part, special=False)) for part in parts]
        assert all(length <= tokens for length in lengths)
        cut_short += sum(length < tokens - 4 for length in lengths[:-1])
        assert len(parts) > 1 or len(whole) <= tokens or tokens >= len(encoder.encode(text, special=False))
    assert cut_short < TEXTS // 100


def test_parts_too_small_for_a_character() -> None:
    encoder = Encoder(byte_level(300))
    assert split_text(encoder, "", 3) == []
    assert split_text(encoder, "ab", 1) == ["a", "b"]
    with pytest.raises(ConfigError, match="Parts of 2 tokens cannot hold the character '🦖', which has 3"):
        split_text(encoder, "a🦖", 2)
    with pytest.raises(ConfigError, match="Parts of 0 tokens: a part has at least 1"):
        split_text(encoder, "a", 0)


def test_half_a_character_is_refused() -> None:
    with pytest.raises(ConfigError, match="The text cannot be read"):
        GrowingText(Encoder(byte_level())).append("\ud800")
