"""From tokens to a text: a suffix takes the form that vowels and consonants around it ask for."""

from collections.abc import Sequence

from trt_compress.runtime.text.turkish.encode import lower
from trt_compress.runtime.text.turkish.tables import (
    NARROWED_ROOTS,
    PRESENT,
    RULES,
    UNKNOWN,
    UPPERCASE,
    VOICED_ROOTS,
    Tables,
)

NO_CHARACTER, NO_TOKEN = "▁u▁", "▁"

_FRONT, _UNROUNDED_BACK, _UNROUNDED_FRONT, _ROUNDED_BACK = "eiöü", "aıâ", "ei", "ou"
_VOWELS = "aeıioöuüâ"
_VOICELESS = "fstkçşhp"
_BLANK = (" ", "\n", "\t")
_FRONT_THOUGH_BACK = ("saat", "kilovatsaat", "ziraat", "itaat", "istikbal")


def decode(numbers: Sequence[int], tables: Tables, *, mended: bool = False) -> str:
    """The text of tokens.

    Args:
        numbers: Tokens; of one that is in no table `▁` is written, of an unknown character `▁u▁`.
        tables: What is known.
        mended: Without what looks like oversight in the published code: a marked i becomes İ, a marked word takes the
            form that its neighbour asks for, -lik, -cik and -mak at the end follow the harmony, capitals count as the
            vowels that they are, and words like saat are front for every suffix.

    Source: Tokens with Meaning, arXiv:2508.14292; malibayram/turkish-tokenizer 0f179b0, turkish_decoder.py.
    Differs: a mark before a token of no table writes `▁`, where the published code ends.
    """
    written: list[str] = []
    place = 0
    while place < len(numbers):
        marked = numbers[place] == UPPERCASE and place + 1 < len(numbers)
        place += marked
        number = numbers[place]
        forms = tables.forms.get(number)
        if forms is None:
            text = NO_TOKEN
        elif marked and not mended:
            text = forms[0].capitalize()
        elif number == UNKNOWN:
            text = NO_CHARACTER
        else:
            text = forms[_form(numbers, place, written, tables, mended)]
            text = _capital(text) if marked else text
        written.append(text)
        place += 1
    return "".join(written)


def _form(numbers: Sequence[int], place: int, written: Sequence[str], tables: Tables, mended: bool) -> int:
    """Which of its forms a token takes, judged by the piece before it and the first form of the token behind it."""
    number = numbers[place]
    last = place + 1 == len(numbers)
    behind = "" if last else tables.first(numbers[place + 1])
    before_vowel = behind[:1] in _VOWELS if behind else False
    if number in RULES:
        rule = RULES[number][1]
        if rule.plain_last and last and not mended:
            return 0
        before = next((piece for piece in reversed(written) if piece.isalpha()), "")
        before = lower(before) if mended else before
        at_word_end = last or behind in _BLANK
        index = _backness(before) if rule.ways == 2 else _quality(before, mended)
        index += rule.hard * (before[-1:] != "" and before[-1] in _VOICELESS)
        index += rule.voiced * before_vowel
        index += rule.buffered * (before[-1:] != "" and before[-1] in _VOWELS and (at_word_end or not rule.at_word_end))
        return index
    several = len(tables.forms[number]) > 1
    if number in VOICED_ROOTS:
        return int(several and before_vowel)
    if number in NARROWED_ROOTS:
        return int(several and not last and numbers[place + 1] == PRESENT)
    return 0


def _last_vowel(piece: str) -> str:
    return next((character for character in reversed(piece) if character in _VOWELS), "")


def _backness(piece: str) -> int:
    """0 behind a back vowel or none, 1 behind a front one."""
    vowel = _last_vowel(piece)
    return int(piece in _FRONT_THOUGH_BACK or (vowel != "" and vowel in _FRONT))


def _quality(piece: str, mended: bool) -> int:
    """0 to 3 for the forms with ı, i, u and ü; the last one behind no vowel too."""
    vowel = _last_vowel(piece)
    if mended and piece in _FRONT_THOUGH_BACK:
        return 1
    return next(
        (
            index
            for index, vowels in enumerate((_UNROUNDED_BACK, _UNROUNDED_FRONT, _ROUNDED_BACK))
            if vowel and vowel in vowels
        ),
        3,
    )


def _capital(text: str) -> str:
    """Its first letter as a capital, as Turkish has it."""
    return ("İ" if text[:1] == "i" else text[:1].upper()) + text[1:]
