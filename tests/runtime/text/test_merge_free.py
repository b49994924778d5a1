"""Encoding by a vocabulary alone: any bytes, worst cases, and the front that the tokenizer itself has."""

import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from tests.runtime.text.test_growing import LOCAL, WHOLE, with_added
from tests.tools.tokenizers.made import byte_level, random_text
from trt_compress.errors import ConfigError, UnsupportedError
from trt_compress.runtime.text.merge_free import MergeFree
from trt_compress.runtime.text.pieces import TextPieces, VocabularyOnly

ENTRIES = {bytes([byte]): byte for byte in range(256)} | {
    text: 256 + number
    for number, text in enumerate((b"ab", b"abc", b"bcd", b"cdab", b"\xff\xff", b"\x00\x01\x02", b"aaa", b"aaaaa"))
}
ANY = MergeFree(ENTRIES)


@settings(max_examples=600, deadline=None)
@given(st.one_of(st.binary(max_size=60), st.text("abcd\xff", max_size=14).map(lambda text: text.encode("latin-1"))))
def test_any_bytes_come_back_and_exact_is_the_shortest(data: bytes) -> None:
    names = {number: text for text, number in ENTRIES.items()}
    greedy, exact = ANY.encode(data, "greedy"), ANY.encode(data, "exact")
    assert greedy is not None and exact is not None
    assert b"".join(names[number] for number in greedy) == data == b"".join(names[number] for number in exact)
    assert len(exact) <= len(greedy)
    fewest = [0] + [0] * len(data)  # another way to count: from the left, by the lengths of entries
    for end in range(1, len(data) + 1):
        fewest[end] = 1 + min(fewest[end - size] for size in range(1, 6) if data[max(end - size, 0) : end] in ENTRIES
                              and size <= end)  # fmt: skip
    assert len(exact) == fewest[-1]


class Counting(dict[int, int]):
    """A trie that counts how often it is asked."""

    asked = 0

    def get(self, key: int, default: object = None) -> object:  # type: ignore[override]
        self.asked += 1
        return super().get(key, default)


@pytest.mark.parametrize("text", [b"a", b"ab", b"aaab", b"abcdefgh"])
def test_steps_are_linear_in_length_times_longest(text: bytes) -> None:
    entries = {b"a" * size: size for size in range(1, 129)} | {bytes([byte]): 1000 + byte for byte in range(256)}
    for length in (500, 2000):
        encoder = MergeFree(entries)
        encoder._step = counting = Counting(encoder._step)
        data = (text * length)[:length]
        assert encoder.exact(data) is not None
        assert counting.asked <= length * encoder.longest
        counting.asked = 0
        assert encoder.greedy(data)[1] == length
        assert counting.asked <= length * encoder.longest


def test_nothing_and_no_vocabulary() -> None:
    assert ANY.greedy(b"") == ([], 0) and ANY.exact(b"") == []
    assert ANY.missing == () and MergeFree({b"a": 0}).missing == tuple(byte for byte in range(256) if byte != 97)
    with pytest.raises(ConfigError, match="has no piece that text could be made of"):
        MergeFree({b"": 3})


BPE = [name for name in (*LOCAL, *WHOLE) if name not in ("wordpiece", "llama")]  # llama knows no bytes


@pytest.mark.parametrize("name", BPE)
def test_exact_is_never_longer_than_the_tokenizer_and_says_the_same(name: str) -> None:
    makers: dict[str, Callable[[], Tokenizer]] = {**LOCAL, **WHOLE}
    library = makers[name]()
    alone = VocabularyOnly(TextPieces(library, "BPE"))
    chance = random.Random(f"exact {name}")
    shorter = 0
    names = {number: text for text, number in alone.pieces.vocabulary.items()}
    names |= {number: token.content.encode() for number, token in library.get_added_tokens_decoder().items()
              if number not in names}  # fmt: skip
    for _ in range(400):
        text = random_text(chance)
        own = library.encode(text, add_special_tokens=False)
        assert len(alone.pieces.of(text)) == len(set(own.word_ids))
        exact, greedy = alone.encode(text, "exact"), alone.encode(text, "greedy")
        said = [b"".join(names[number] for number in ids) for ids in (own.ids, exact, greedy)]
        assert said[0] == said[1] == said[2]
        assert len(exact) <= min(len(own.ids), len(greedy))
        shorter += len(exact) < len(own.ids)
    assert shorter


def test_added_tokens_stay() -> None:
    library = with_added()
    alone = VocabularyOnly(TextPieces(library, "BPE"))
    text = "12 fox jumps<|end|>  U.S.\n\n über <mask> 1776"
    own = library.encode(text, add_special_tokens=False)
    added = {token.content: number for number, token in library.get_added_tokens_decoder().items()}
    assert [number for number in own.ids if number in added.values()] == [
        part for part in alone.pieces.of(text) if isinstance(part, int)
    ]
    assert added["fox jumps"] in alone.encode(text, "exact") and added["<|end|>"] in alone.encode(text, "greedy")


def test_pieces_that_are_no_byte_strings_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="is of the kind WordPiece, whose pieces are no byte strings"):
        TextPieces(LOCAL["wordpiece"](), "WordPiece")
    marked = Tokenizer(models.BPE(vocab={"a</w>": 0}, merges=[], end_of_word_suffix="</w>"))
    with pytest.raises(UnsupportedError, match="marks pieces by '</w>'"):
        TextPieces(marked, "BPE")


def test_no_coverage_is_said() -> None:
    library = Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "ab": 2}, merges=[("a", "b")]))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    alone = VocabularyOnly(TextPieces(library, "BPE"))
    with pytest.raises(ConfigError, match=r"no piece for 254 of the 256 bytes \(0x00, 0x01, 0x02, 0x03, …\)"):
        alone.check_coverage("'x'")
    assert alone.encode("ab ba", "greedy") == [2, 1, 0]
    with pytest.raises(ConfigError, match="has no greedy encoding of b'abc': no piece fits at byte 2 of it"):
        alone.encode("ab abc", "greedy")
    VocabularyOnly(TextPieces(byte_level(), "BPE")).check_coverage("'y'")
