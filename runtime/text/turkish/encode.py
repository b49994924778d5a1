"""From a text to tokens: at each place the longest root, else the longest suffix, else the longest piece."""

from collections.abc import Iterator
from typing import NamedTuple

from trt_compress.runtime.text.turkish.tables import SPACE, UNKNOWN, UPPERCASE, Tables


class Token(NamedTuple):
    """A token as it was found.

    Attributes:
        number: What stands for it.
        form: The characters that it took, in lower case; of a mark `<uppercase>` or `<unknown>`.
        kind: `root`, `suffix` or `piece`; marks are roots.
    """

    number: int
    form: str
    kind: str


_UPPERCASE = Token(UPPERCASE, "<uppercase>", "root")
_UNKNOWN = Token(UNKNOWN, "<unknown>", "root")
_SPACE = Token(SPACE, " ", "root")


def encode(text: str, tables: Tables, *, mended: bool = False) -> list[Token]:
    """The tokens of a text.

    Args:
        text: Parted at spaces, each of which is a token, and before capitals, each of which is marked. A mark that is
            written out in it, `<uppercase>`, becomes that mark.
        tables: What is known.
        mended: A part that is nothing but line ends and tabs is kept; the published code drops it.

    Returns:
        The tokens, in order; a character that no table knows is `<unknown>`. Takes time in proportion to the text and
        the longest form.

    Source: Tokens with Meaning, arXiv:2508.14292; malibayram/turkish-tokenizer 0f179b0, turkish_tokenizer.py.
    """
    found: list[Token] = []
    for number, part in enumerate(text.split(" ")):
        if number:
            found.append(_SPACE)
        if part.strip() or (mended and part):
            for segment in _segments(part):
                if segment[0].isupper():
                    found.append(_UPPERCASE)
                found.extend(_matched(lower(segment), tables))
    return found


def lower(text: str) -> str:
    """Lower case as Turkish has it: İ becomes i, I becomes ı."""
    return text.replace("İ", "i").replace("I", "ı").lower()


def _segments(part: str) -> Iterator[str]:
    """Parted before every capital."""
    start = 0
    for place, character in enumerate(part):
        if place and character.isupper():
            yield part[start:place]
            start = place
    if part:
        yield part[start:]


def _matched(segment: str, tables: Tables) -> Iterator[Token]:
    place = 0
    while place < len(segment):
        token = next(filter(None, (_longest(segment, place, kind, tables) for kind in tables.kinds)), _UNKNOWN)
        yield token
        place += 1 if token is _UNKNOWN else len(token.form)


def _longest(segment: str, place: int, kind: str, tables: Tables) -> Token | None:
    table = tables.kinds[kind]
    for end in range(min(len(segment), place + tables.longest[kind]), place, -1):
        number = table.get(segment[place:end])
        if number is not None:
            return Token(number, segment[place:end], kind)
    return None
