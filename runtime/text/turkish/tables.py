"""The tables of roots, suffixes and pieces, and the rule by which each suffix gets its form."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from trt_compress.digest import sha256
from trt_compress.errors import ConfigError
from trt_compress.files import read_regular
from trt_compress.foreign import reading, shown, strict_json

FOLDER = Path(__file__).parent / "data"
UPPERCASE, UNKNOWN, SPACE = 0, 1, 2

_LARGEST = 1 << 24
_FILES = {"root": "kokler.json", "suffix": "ekler.json", "piece": "bpe_tokenler.json"}
_RANGES = {"root": range(20_000), "suffix": range(20_000, 20_256), "piece": range(20_256, 1 << 20)}
_SPECIAL = {"<uppercase>": UPPERCASE, "<unknown>": UNKNOWN, " ": SPACE}
_HASHES = {
    "root": "ee3e8f0936d5432d5e8e3b22f37bb7eb6a1cad5cc4146027364655808da5f35c",
    "suffix": "7a994478b4fac776970f3e3cbde1836b6657a46cfcce66be206435e6032f4d23",
    "piece": "8c5cdeaafa4c711e3c3d73b9bba540c5b914a9a13cb39138b8f2e3fb088e1dcc",
}
_ADVICE = "give a folder with kokler.json, ekler.json and bpe_tokenler.json of turkish-tokenizer 0.2.26"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Where the form of a suffix stands among its forms: by harmony, and so many further where something holds.

    Attributes:
        ways: By backness alone (2: a, e), or by rounding as well (4: ı, i, u, ü).
        hard: Further behind a voiceless consonant.
        voiced: Further before a vowel.
        buffered: Further behind a vowel.
        at_word_end: `buffered` holds only before white space or at the end.
        plain_last: The last of a sequence has the first form, whatever the harmony.
    """

    ways: int
    hard: int = 0
    voiced: int = 0
    buffered: int = 0
    at_word_end: bool = False
    plain_last: bool = False

    @property
    def forms(self) -> int:
        """How many forms it chooses from."""
        return self.ways + self.hard + self.voiced + self.buffered


_TWO, _FOUR = Rule(ways=2), Rule(ways=4)
RULES: dict[int, tuple[str, Rule]] = {
    **dict(enumerate(
        ((form, _TWO) for form in "lar ya ma malı laş ça şar kan lak layın sak arak an".split()), start=20_000
    )),
    **dict(enumerate(
        ((form, _FOUR) for form in "ım ız sı mış yı lı sız ncı ın nın".split()), start=20_013
    )),
    20_023: ("la", Rule(ways=2, buffered=2, at_word_end=True)),
    20_024: ("da", Rule(ways=2, hard=2)),
    20_025: ("dan", Rule(ways=2, hard=2)),
    20_026: ("dı", Rule(ways=4, hard=4)),
    20_027: ("cı", Rule(ways=4, hard=4)),
    20_028: ("dır", Rule(ways=4, hard=4)),
    20_029: ("lık", Rule(ways=4, voiced=4, plain_last=True)),
    20_030: ("cık", Rule(ways=4, hard=4, voiced=8, plain_last=True)),
    20_031: ("mak", Rule(ways=2, voiced=2, plain_last=True)),
    20_032: ("acak", Rule(ways=2, voiced=2, buffered=4)),
}  # fmt: skip
"""The suffixes whose form depends on what is around them, with their first form; all others have one form."""

VOICED_ROOTS = range(100, 2_080)  # their second form stands before a vowel
NARROWED_ROOTS = range(2_080, 2_315)  # theirs before the present tense
PRESENT = 20_041
_PRESENT_FORM = "yor"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tables:
    """Forms by kind, and their numbers.

    Attributes:
        kinds: `root`, `suffix` and `piece`, each from form to number.
        longest: The characters of the longest form of each kind.
        forms: All forms of a number, in the order of the files.
        official: Whether they are the very tables that were published.
    """

    kinds: Mapping[str, Mapping[str, int]]
    longest: Mapping[str, int]
    forms: Mapping[int, tuple[str, ...]]
    official: bool

    @property
    def size(self) -> int:
        """All numbers are below it."""
        return max(self.forms) + 1

    def first(self, number: int) -> str:
        """The form by which neighbours know a token; an empty text where there is none of this number."""
        return self.forms[number][0] if number in self.forms else ""


def read_tables(folder: Path | None = None) -> Tables:
    """Read the three tables.

    Args:
        folder: Where they are; None: the official ones, which come with this package.

    Raises:
        ConfigError: A file is missing or damaged, or the tables are of a version that the rules do not fit.
    """
    return _official() if folder is None else _read(folder)


@cache
def _official() -> Tables:
    return _read(FOLDER)


def _read(folder: Path) -> Tables:
    contents: dict[str, bytes] = {}
    for kind, name in _FILES.items():
        try:
            contents[kind] = read_regular(folder / name, limit=_LARGEST)
        except (OSError, ValueError) as error:
            said = getattr(error, "strerror", None) or error
            raise ConfigError(f"'{folder / name}' cannot be read ({said}); {_ADVICE}.") from None
    kinds: dict[str, dict[str, int]] = {}
    for kind, content in contents.items():
        where = f"'{folder / _FILES[kind]}'"
        with reading(where, _ADVICE):
            data = strict_json(content, limit=_LARGEST, once=True)
        kinds[kind] = _checked(data, kind, where)
    forms: dict[int, list[str]] = {}
    seen: dict[str, str] = {}
    for kind, table in kinds.items():
        for form, number in table.items():
            if form in seen:
                raise _misfit(folder, f"'{shown(form)}' is a {seen[form]} and a {kind}")
            seen[form] = kind
            forms.setdefault(number, []).append(form)
    _check_rules(folder, kinds["root"], forms)
    return Tables(
        kinds=kinds,
        longest={kind: max(map(len, table)) for kind, table in kinds.items()},
        forms={number: tuple(found) for number, found in forms.items()},
        official=all(sha256(contents[kind]) == wanted for kind, wanted in _HASHES.items()),
    )


def _checked(data: Any, kind: str, where: str) -> dict[str, int]:
    allowed = _RANGES[kind]
    if not isinstance(data, dict) or not data:
        raise ConfigError(f"{where} is no JSON object of forms and numbers; {_ADVICE}.")
    for form, number in data.items():
        if not form or type(number) is not int or number not in allowed:
            raise ConfigError(
                f"{where}: '{shown(form)}' has the number {shown(str(number))[:40]}, and those of a {kind} are "
                f"{allowed.start} to {allowed.stop - 1}; {_ADVICE}."
            )
    return dict(data)


def _check_rules(folder: Path, roots: Mapping[str, int], forms: Mapping[int, list[str]]) -> None:
    """The rules name suffixes by number: of another version these are others, and every ending would be wrong."""
    for form, number in _SPECIAL.items():
        if roots.get(form) != number:
            raise _misfit(folder, f"'{form}' has to have the number {number}")
    for number, (form, rule) in RULES.items():
        found = forms.get(number, [])
        if len(found) != rule.forms or found[0] != form:
            listed = ", ".join(map(shown, found)) or "missing"
            raise _misfit(folder, f"number {number} is {listed}, and the rule is for '{form}' in {rule.forms} forms")
    if forms.get(PRESENT) != [_PRESENT_FORM]:
        raise _misfit(folder, f"number {PRESENT} has to be '{_PRESENT_FORM}'")
    for number in _RANGES["suffix"]:
        if number not in RULES and len(forms.get(number, ())) > 1:
            raise _misfit(folder, f"number {number} has {len(forms[number])} forms and no rule for them")


def _misfit(folder: Path, what: str) -> ConfigError:
    return ConfigError(f"The tables in '{folder}' do not fit the rules of the decoder ({what}); {_ADVICE}.")
