"""Questions whose answer stands somewhere in a long text: what a compressed cache may have lost.

A needle is one sentence in a haystack: the test of G. Kamradt, 2023 (LLMTest_NeedleInAHaystack). For recall the whole
text is keys with their values, one of which is asked for: Liu et al. 2023, "Lost in the Middle", arXiv:2307.03172. Both
have numbers as answers, as RULER has them (Hsieh et al. 2024, arXiv:2404.06654), so that an answer is right or wrong
without a judge, and give the words that it begins with, so that also a small model answers at once.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Where the answer stands: 0 is the beginning of the text, 1 its end."""

NEEDLE, RECALL = "needle", "recall"

CITIES = ("Lisbon", "Oslo", "Cairo", "Lima", "Hanoi", "Quito", "Dakar", "Perth", "Turin", "Kyoto", "Minsk", "Davao")
MOST_TOGETHER = len(CITIES) // len(DEPTHS)
"""Needles at each depth of one text, of which each has a city of its own."""

MAX_NEW = 12
"""Tokens in which the number has to come."""

_DIGITS = {NEEDLE: 5, RECALL: 4}
_HAY = (
    "The road along the river is quiet in the morning.",
    "Most of the boats stay in the harbour until the fog has gone.",
    "A baker opens his shop before anybody else is awake.",
    "In the afternoon the market is full of people and fruit.",
    "Children walk home from school under the old trees.",
    "When it rains, the square is empty and the lamps are lit early.",
    "Somebody plays the piano behind an open window.",
    "The last train leaves the station shortly before midnight.",
)
_KEYS = tuple(
    "amber anchor apple arrow autumn badge basket beacon bridge butter cactus candle canyon carpet castle cedar "
    "cherry circle cloud copper coral cotton crystal desert dolphin dragon eagle emerald falcon feather forest "
    "garden ginger hammer harbor honey island ivory jacket jungle kettle ladder lemon linen lizard maple marble "
    "meadow mirror ocean olive orchid palace pepper pillow planet prairie quartz rabbit ribbon river rocket saddle "
    "salmon silver spider summit sunset temple thunder tiger timber tunnel valley velvet violet walnut willow "
    "winter zebra".split()
)
MOST_PAIRS = len(_KEYS)
_NUMBER = re.compile(r"\d[\d,. ]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class TextQuestion:
    """One question.

    Attributes:
        document: Which of the long texts; those asked of one text have the same.
        kind: "needle" or "recall".
        depth: Where the answer stands in the text.
        key: What is asked for.
        number: The answer.
        text: The long text, and the question behind it.
        opening: The words that the answer begins with, up to the number.
    """

    document: int
    kind: str
    depth: float
    key: str
    number: str
    text: str
    opening: str

    def is_right(self, answer: str) -> bool:
        """Whether the first number of an answer is the right one; however it is grouped."""
        found = _NUMBER.search(answer)
        return found is not None and re.sub(r"\D", "", found[0]) == self.number

    def settled(self, answer: str) -> bool | None:
        """What `is_right` says of every answer that begins so; None: that depends on how it goes on."""
        found = _NUMBER.search(answer)
        if found is None:
            return None
        if not self.number.startswith(digits := re.sub(r"\D", "", found[0])):
            return False
        return digits == self.number if found.end() < len(answer) else None


Count = Callable[[TextQuestion], int]


def needles(count: Count, size: int, trials: int, seed: int, together: int = 0) -> list[TextQuestion]:
    """Questions of a given length, at every depth, each with as many sentences of hay as fit.

    Args:
        count: How many tokens a question has, as it will be read.
        size: The most tokens of a question.
        trials: Questions at each depth.
        seed: Of cities, numbers and hay.
        together: Needles at each depth of one text, of which each is asked for; 0: each has a text of its own.

    Raises:
        ValueError: `size` is too small for the needles of a text and a question.
    """
    random = np.random.default_rng(seed)
    found: list[TextQuestion] = []
    for document, depths in enumerate(_depths(trials, together)):
        cities = [str(city) for city in random.choice(CITIES, len(depths), replace=False)]
        numbers = [_number(random, NEEDLE) for _ in depths]
        hay = [str(line) for line in random.choice(_HAY, 8)]
        found += _needles(count, size, document, list(zip(depths, cities, numbers, strict=True)), hay)
    return found


def recalls(
    count: Count, size: int, trials: int, seed: int, pairs: int | None = None, together: int = 0
) -> list[TextQuestion]:
    """Questions for one of many numbers.

    Args:
        count, size, trials, seed: As for `needles`.
        pairs: Keys with numbers in each; None: as many as fit, up to `MOST_PAIRS`.
        together: Questions at each depth of one text; 0: each has a text of its own.

    Raises:
        ValueError: `size` is too small for so many pairs, or for two.
    """
    random = np.random.default_rng(seed)
    found: list[TextQuestion] = []
    for document, depths in enumerate(_depths(trials, together)):
        keys = [str(key) for key in random.permutation(_KEYS)]
        numbers = [_number(random, RECALL) for _ in keys]
        found += _recalls(count, size, document, depths, keys, numbers, pairs)
    return found


def _depths(trials: int, together: int) -> list[list[float]]:
    """Where the answers of each text stand."""
    if not together:
        return [[depth] for depth in DEPTHS for _ in range(trials)]
    starts = range(0, trials, together)
    return [[depth for depth in DEPTHS for _ in range(min(together, trials - start))] for start in starts]


def _number(random: np.random.Generator, kind: str) -> str:
    low = 10 ** (_DIGITS[kind] - 1)
    return str(random.integers(low, 10 * low))


def _needles(
    count: Count, size: int, document: int, told: Sequence[tuple[float, str, str]], hay: Sequence[str]
) -> list[TextQuestion]:
    def made(sentences: int) -> list[TextQuestion]:
        lines = [hay[at % len(hay)] for at in range(sentences)]
        for depth, city, number in reversed(told):
            lines.insert(round(depth * sentences), f"The secret number of {city} is {number}.")
        return [
            TextQuestion(
                document=document,
                kind=NEEDLE,
                depth=depth,
                key=city,
                number=number,
                text=f"{' '.join(lines)}\n\nWhat is the secret number of {city}?",
                opening=f"The secret number of {city} is",
            )
            for depth, city, number in told
        ]

    what = "a needle and its question have" if len(told) == 1 else f"{len(told)} needles and a question have"
    return _longest(made, count, size, least=0, what=what)


def _recalls(
    count: Count,
    size: int,
    document: int,
    depths: Sequence[float],
    keys: Sequence[str],
    numbers: Sequence[str],
    pairs: int | None,
) -> list[TextQuestion]:
    def made(number_of_pairs: int) -> list[TextQuestion]:
        lines = [f"The number of {key} is {number}." for key, number in zip(keys, numbers, strict=True)]
        return [
            TextQuestion(
                document=document,
                kind=RECALL,
                depth=depth,
                key=keys[at],
                number=numbers[at],
                text="\n".join(lines[:number_of_pairs]) + f"\n\nWhat is the number of {keys[at]}?",
                opening=f"The number of {keys[at]} is",
            )
            for depth, at in zip(depths, _places(depths, number_of_pairs), strict=True)
        ]

    least, most = (max(2, len(depths)), MOST_PAIRS) if pairs is None else (pairs, pairs)
    return _longest(made, count, size, least=least, most=most, what=f"{least} pairs and their question have")


def _places(depths: Sequence[float], number: int) -> list[int]:
    """For each depth, in ascending order, a place among so many; each once as long as there are enough."""
    found: list[int] = []
    for depth in depths:
        place = round(depth * (number - 1))
        found.append(max(place, found[-1] + 1) if found else place)
    last = range(number - len(found), number)
    return [max(min(place, most), 0) for place, most in zip(found, last, strict=True)]


def _longest(
    made: Callable[[int], list[TextQuestion]],
    count: Count,
    size: int,
    *,
    least: int,
    most: int | None = None,
    what: str,
) -> list[TextQuestion]:
    """The questions of the text with the most parts with which each fits."""

    def tokens_of(parts: int) -> int:
        return max(count(question) for question in made(parts))

    if (tokens := tokens_of(least)) > size:
        raise ValueError(f"{what} {tokens} tokens")
    low, high = least, max(1, 2 * least)
    while (most is None or high <= most) and tokens_of(high) <= size:
        low, high = high, 2 * high
    high = high if most is None else min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if tokens_of(middle) <= size else (low, middle)
    return made(low)
