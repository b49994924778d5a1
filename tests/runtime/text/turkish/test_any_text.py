"""Any text is encoded and any numbers are decoded, in time that grows with their length."""

import random
import time

from hypothesis import given, settings
from hypothesis import strategies as st

from trt_compress.runtime.text.turkish.decode import NO_CHARACTER, NO_TOKEN, decode
from trt_compress.runtime.text.turkish.encode import encode, lower
from trt_compress.runtime.text.turkish.tables import SPACE, UNKNOWN, UPPERCASE, read_tables
from trt_compress.tools.tokenizers.morphology import details, measure

TABLES = read_tables()
FORMS = [form for kind in ("root", "suffix") for form in TABLES.kinds[kind] if not form.startswith("<")]


_TEXTS = st.lists(
    st.lists(
        st.one_of(st.sampled_from(FORMS), st.text(max_size=6), st.sampled_from(("I", "İ", " ", "\n", "\t", "Ğ", "'"))),
        max_size=6,
    ).map("".join),
    max_size=5,
)


@settings(max_examples=300, deadline=None)
@given(texts=_TEXTS, mended=st.booleans())
def test_what_is_lost_is_counted(texts: list[str], mended: bool) -> None:
    """The share that is reported is that of texts, and of words, which another round trip finds lost."""

    def back(text: str) -> str:
        return decode([token.number for token in encode(text, TABLES, mended=mended)], TABLES, mended=mended)

    found = measure("x", texts, TABLES, mended=mended)
    lost = [text for text in texts if back(text) != text]
    words = [word for text in texts for word in text.split()]
    gone = [word for word in words if back(word) != word]
    filled = sum(map(bool, texts))
    assert (found.texts_lost is None) == (filled == 0)
    assert found.texts_lost is None or (found.texts_lost.count, found.texts_lost.n) == (len(lost), filled)
    assert (found.words_lost is None) == (not words)
    assert found.words_lost is None or (found.words_lost.count, found.words_lost.n) == (len(gone), len(words))
    assert {each.word: (each.decoded, each.count) for each in found.lost} == {
        word: (back(word), gone.count(word)) for word in gone
    }
    rows = list(details(texts, TABLES, mended=mended))
    assert [row["comes_back"] for row in rows] == [text not in lost for text in texts]
    numbers = [number for row in rows for number in row["ids"]]
    assert found.tokens == len(numbers) == sum(found.kinds.values())
    assert found.kinds["unknown"] == numbers.count(UNKNOWN)
    assert found.kinds["mark"] == numbers.count(UPPERCASE) + numbers.count(SPACE)


def any_text(chance: random.Random) -> str:
    alphabets = (
        range(0x20, 0x7F),
        range(0xA0, 0x250),
        range(0x300, 0x370),
        range(0x4E00, 0x4F00),
        range(0x1F600, 0x1F640),
    )
    letters = [chr(chance.choice(chance.choice(alphabets))) for _ in range(chance.randint(0, 30))]
    forms = chance.choices([*FORMS, "I", "İ", " ", "\n", "\r", "\0"], k=8)
    return "".join(chance.sample(letters + forms, chance.randint(0, len(letters) + 8)))


def test_tokens_are_the_text_in_lower_case() -> None:
    """Marks aside, what the tokens took is the text: nothing is skipped, and nothing taken twice."""
    chance = random.Random(18)
    for _ in range(3000):
        text = any_text(chance)
        tokens = encode(text, TABLES, mended=True)
        place, whole = 0, "".join(lower(part) for part in _single(text))
        for token in tokens:
            if token.form == "<uppercase>":
                continue
            if token.number == UNKNOWN:
                assert not any(whole[place] in table for table in TABLES.kinds.values())
                place += 1
                continue
            assert whole.startswith(token.form, place)
            assert TABLES.kinds[token.kind][token.form] == token.number
            place += len(token.form)
        assert place == len(whole)


def _single(text: str) -> list[str]:
    """Letters one by one, as a capital is lowered by itself; a sigma at a word's end is not."""
    parts: list[str] = []
    for word in text.split(" "):
        start = 0
        for place in range(1, len(word) + 1):
            if place == len(word) or word[place].isupper():
                parts.append(word[start:place])
                start = place
        parts.append(" ")
    return parts[:-1]


def test_any_numbers_are_decoded() -> None:
    chance = random.Random(19)
    for mended in (False, True):
        for _ in range(3000):
            pool = (0, 1, 2, 3, chance.randrange(33_000), chance.randrange(20_000, 20_050), chance.randrange(100, 2400))
            numbers = chance.choices(pool, k=chance.randint(0, 9))
            text = decode(numbers, TABLES, mended=mended)
            assert (text == "") == (not numbers)
    assert decode([40_000, 1], TABLES) == NO_TOKEN + NO_CHARACTER
    assert decode([0, 40_000], TABLES) == NO_TOKEN


def test_time_grows_with_the_text() -> None:
    """A word without an end costs what its letters cost, however the tables tempt."""
    text = "kitaplarda" * 20_000
    start = time.process_time()
    tokens = encode(text, TABLES)
    assert time.process_time() - start < 20
    assert sum(len(token.form) for token in tokens) == len(text)
