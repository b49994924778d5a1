"""Needle in a haystack: is a number found again that stands somewhere in a long text?

Source: the test of G. Kamradt, 2023 (LLMTest_NeedleInAHaystack); here with numbers, as RULER has them (Hsieh et al.
2024, arXiv:2404.06654), so that an answer is right or wrong without a judge.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Where the needle stands: 0 is the beginning of the text, 1 its end."""

CITIES = ("Lisbon", "Oslo", "Cairo", "Lima", "Hanoi", "Quito", "Dakar", "Perth", "Turin", "Kyoto", "Minsk", "Davao")
MAX_NEW = 16
"""Tokens in which the number has to come."""

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
_NUMBER = re.compile(r"\d[\d,. ]*\d|\d")


@dataclass(frozen=True, slots=True, kw_only=True)
class Needle:
    """One question.

    Attributes:
        depth: Where the needle stands.
        city: What is asked for.
        number: The answer.
        text: The haystack with the needle, and the question behind it.
    """

    depth: float
    city: str
    number: str
    text: str

    def is_found(self, answer: str) -> bool:
        """Whether the first number of an answer is the right one; however it is grouped."""
        found = _NUMBER.search(answer)
        return found is not None and re.sub(r"\D", "", found[0]) == self.number


def needles(count: Callable[[str], int], size: int, trials: int, seed: int) -> list[Needle]:
    """Questions of a given length, at every depth.

    Args:
        count: How many tokens a text has, as it will be read.
        size: The most tokens of a question.
        trials: Questions at each depth.
        seed: Of cities, numbers and hay.

    Raises:
        ValueError: `size` is too small for a needle and its question.
    """
    random = np.random.default_rng(seed)
    found = []
    for depth in DEPTHS:
        for _ in range(trials):
            city, number = str(random.choice(CITIES)), str(random.integers(10_000, 100_000))
            hay = [str(line) for line in random.choice(_HAY, 8)]
            found.append(_needle(count, size, depth, city, number, hay))
    return found


def _needle(count: Callable[[str], int], size: int, depth: float, city: str, number: str, hay: Sequence[str]) -> Needle:
    """One, with as many sentences of hay as fit."""

    def made(sentences: int) -> Needle:
        lines: list[Any] = [hay[at % len(hay)] for at in range(sentences)]
        lines.insert(round(depth * sentences), f"The secret number of {city} is {number}.")
        question = f"What is the secret number of {city}? The secret number of {city} is"
        return Needle(depth=depth, city=city, number=number, text=f"{' '.join(lines)}\n\n{question}")

    if count(made(0).text) > size:
        raise ValueError(f"a needle and its question have {count(made(0).text)} tokens")
    low, high = 0, 1
    while count(made(high).text) <= size:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(made(middle).text) <= size else (low, middle)
    return made(low)
