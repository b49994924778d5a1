"""Attacks: a few cases of each in `make test`, many in `make attack`, always with the same seeds.

An attack takes the fixture `attack`, asks it how many cases to run, and tells it the figures it saw. In the long form
each attack that passed or failed adds a line to the record, so that its figures can be quoted.
"""

import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from trt_compress.tools.bench.records import append_record

RECORD = Path(__file__).resolve().parents[2] / "tools" / "bench" / "results" / "attack.jsonl"


class Attack:
    """How much to do, and what was seen.

    Attributes:
        long: Whether this is `make attack`.
        figures: What the record will say.
    """

    def __init__(self, long: bool) -> None:
        self.long = long
        self.figures: dict[str, Any] = {}

    def count(self, few: int, many: int) -> int:
        """How many cases to run: `few` in `make test`, `many` in `make attack`."""
        count = many if self.long else few
        self.figures["cases"] = count
        return count

    def random(self, seed: int) -> random.Random:
        """A generator of the cases; the seed goes into the record."""
        self.figures["seed"] = seed
        return random.Random(seed)

    def saw(self, **figures: Any) -> None:
        """Put figures into the record: `foreign_errors=0`, `lost=0`."""
        self.figures.update(figures)


@pytest.fixture
def attack(request: pytest.FixtureRequest) -> Iterator[Attack]:
    attack = Attack(bool(request.config.getoption("--attack")))
    began = time.monotonic()
    yield attack
    if attack.long:
        name = request.node.nodeid.rpartition("/")[2].removeprefix("test_").replace(".py::test_", ": ")
        append_record(RECORD, name, {**attack.figures, "seconds": round(time.monotonic() - began, 1)})
