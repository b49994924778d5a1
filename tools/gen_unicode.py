"""What the C++ runtime's tokenizer knows of Unicode, read off the library `tokenizers`, character by character:
`python -m trt_compress.tools.gen_unicode`.

The library has several versions of Unicode in it: its regular expressions one, its normalizers another. What it does
with each character is asked of it, so that the tables are those it has. The file is committed; a test compares it with
the installed library.
"""

import argparse
import sys
import unicodedata
from bisect import bisect
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from trt_compress.files import write_whole
from trt_compress.tools.console import say_error

TARGET = Path("runtime/cpp/src/unicode_tables.inc")
CATEGORIES = (
    *("Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl", "No", "Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po"),
    *("Sm", "Sc", "Sk", "So", "Zs", "Zl", "Zp", "Cc", "Cf", "Co", "Cs", "Cn"),
)
_END, _CHUNK, _HANGUL = 0x110000, 256, range(0xAC00, 0xD7A4)
_SURROGATES = range(0xD800, 0xE000)
_ACUTE = chr(0x301)


def text() -> str:
    """The content of the file."""
    categories = _categories()
    decomposed = _decomposed()
    lines = ["// Made by `python -m trt_compress.tools.gen_unicode` from what the library tokenizers does."]
    for comment, kind, name, numbers in (
        ("names of categories", "char const*", "kCATEGORY_NAMES", [f'"{name}"' for name in CATEGORIES]),
        ("runs of characters of one category: length * 32 + category", "uint32_t", "kCATEGORIES", _runs(categories)),
        ("where spaces of regular expressions begin and end, in turn", "uint32_t", "kSPACES", _toggles(_spaces())),
        ("where numbers begin and end, in turn, as `Digits` has them", "uint32_t", "kNUMBERS", _toggles(_numbers())),
        ("combining classes: first, last, class", "uint32_t", "kCLASSES", _classes(categories, decomposed)),
        ("behind the last character, negative where the parts compose it; first part; second part or 0; without "
         "Hangul", "int32_t", "kDECOMPOSED", _pairs(decomposed)),
    ):  # fmt: skip
        lines += [f"// {comment}", f"constexpr {kind} {name}[] = {{", *_wrapped(numbers), "};"]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the file, or say whether it is up to date."""
    parser = argparse.ArgumentParser(prog="python -m trt_compress.tools.gen_unicode", description="Unicode for C++.")
    parser.add_argument("--check", action="store_true", help="write nothing; end with 3 if it is not up to date")
    options = parser.parse_args(arguments)
    if options.check:
        if TARGET.read_text(encoding="utf-8") != text():
            say_error(f"{TARGET} is not up to date; run python -m trt_compress.tools.gen_unicode.")
            return 3
        return 0
    write_whole(TARGET, text())
    return 0


def _characters() -> list[int]:
    return [number for number in range(_END) if number not in _SURROGATES]


def _chunks() -> Iterator[list[int]]:
    known = _characters()
    for start in range(0, len(known), _CHUNK):
        yield known[start : start + _CHUNK]


def _members(chunk: Sequence[int], pattern: str) -> set[int]:
    """Which of these characters a pattern for one of them matches."""
    pieces = _splitter(pattern).pre_tokenize_str("".join(map(chr, chunk)))
    return {ord(letter) for piece, _ in pieces for letter in piece}


@cache
def _splitter(pattern: str) -> Any:
    from tokenizers import Regex, pre_tokenizers

    return pre_tokenizers.Split(Regex(f"(?:{pattern})+"), "removed", invert=True)


def _categories() -> dict[int, str]:
    found = dict.fromkeys(_SURROGATES, "Cs")
    for chunk in _chunks():
        left = set(chunk)
        for name in dict.fromkeys([*(unicodedata.category(chr(number)) for number in chunk), *CATEGORIES]):
            if left:
                these = _members(chunk, rf"\p{{{name}}}") if name != "Cs" else set[int]()
                found |= dict.fromkeys(these, name)
                left -= these
    return found


def _runs(categories: dict[int, str]) -> list[str]:
    starts = [0, *(number for number in range(1, _END) if categories[number] != categories[number - 1]), _END]
    return [str((end - start) * 32 + CATEGORIES.index(categories[start])) for start, end in pairwise(starts)]


def _spaces() -> set[int]:
    return set().union(*(_members(chunk, r"\s") for chunk in _chunks()))


def _numbers() -> set[int]:
    from tokenizers import pre_tokenizers

    digits = pre_tokenizers.Digits(individual_digits=False)
    found: set[int] = set()
    for chunk in _chunks():
        marked = "a".join(map(chr, chunk))  # each is a piece of its own if it is a number
        if len(pieces := digits.pre_tokenize_str(marked)) > 1:
            found |= {ord(piece) for piece, _ in pieces if len(piece) == 1 and piece != "a"}
    return found & set(_characters())


def _toggles(members: set[int]) -> list[str]:
    ordered = [number for number in range(_END) if (number in members) != (number - 1 in members)]
    return list(map(str, ordered))


@cache
def _normalize(form: str) -> Callable[[str], str]:
    from tokenizers import normalizers

    made: Callable[[str], str] = getattr(normalizers, form)().normalize_str
    return made


def _decomposed() -> dict[int, str]:
    """The whole decomposition of each character that has one."""
    apart = ((number, _normalize("NFD")(chr(number))) for number in _characters() if number not in _HANGUL)
    return {number: parts for number, parts in apart if parts != chr(number)}


def _pairs(decomposed: dict[int, str]) -> list[str]:
    compose = _normalize("NFC")
    composed = {number for number, parts in decomposed.items() if compose(parts) == chr(number)}
    whole: dict[str, int] = {}
    for number in sorted(decomposed, key=lambda one: (one not in composed, one)):
        whole.setdefault(decomposed[number], number)
    found, last = [], 0
    for number, parts in decomposed.items():
        first, second = (parts[:-1], ord(parts[-1])) if len(parts) > 1 else (parts, 0)
        begin = ord(first) if len(first) == 1 else whole[first]
        found += [(last - number) if number in composed else (number - last), begin, second]
        last = number
    return list(map(str, found))


def _classes(categories: dict[int, str], decomposed: dict[int, str]) -> list[str]:
    """Found by where each mark is put beside one of a known class."""
    plain = sorted(number for number, name in categories.items() if name[0] == "M" and number not in decomposed)
    apart = _normalize("NFD")

    def goes_before(one: str, other: str) -> bool:
        return one != other and apart(other + one) == one + other

    others = {unicodedata.combining(_ACUTE): _ACUTE}
    for mark in map(chr, plain):
        if goes_before(mark, _ACUTE) or goes_before(_ACUTE, mark):  # else it is newer than the library
            others.setdefault(unicodedata.combining(mark), mark)
    order = sorted(others)
    found: dict[int, int] = {}
    for number in plain:
        mark = chr(number)
        above = bisect(range(len(order)), 0, key=lambda each: goes_before(mark, others[order[each]]))  # noqa: B023
        below = bisect(range(len(order)), 0, key=lambda each: not goes_before(others[order[each]], mark))  # noqa: B023
        if below < above < len(order) or 0 < below < above:  # else it goes past none: it has no class
            found[number] = order[below]
    numbers = sorted(found)
    starts = [at for at in numbers if found.get(at - 1) != found[at]]
    ends = [at for at in numbers if found.get(at + 1) != found[at]]
    return [str(one) for start, end in zip(starts, ends, strict=True) for one in (start, end, found[start])]


def _wrapped(numbers: Iterable[str]) -> list[str]:
    lines, line = [], ""
    for number in numbers:
        if len(line) + len(number) > 112:
            lines.append(f"    {line}")
            line = ""
        line += f"{number}, "
    return [one.rstrip() for one in (*lines, f"    {line}")]


if __name__ == "__main__":
    sys.exit(main())
