"""How TokenAdapt weights old rows, said without torch."""

import math
from dataclasses import dataclass
from enum import IntEnum

from trt_compress.errors import ConfigError


class RowOrigin(IntEnum):
    """What a row of the new table is made of."""

    COPIED = 0
    BOTH = 1
    LOCAL = 2
    GLOBAL = 3
    RANDOM = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Heuristics:
    """How rows are weighted.

    Attributes:
        temperature: Of both softmaxes; 1e-5 is added to it, as the published code does.
        global_weight: Of the global estimate; 0: local alone, 1: global alone.
        neighbours: Old tokens that the global estimate is made of.
        threshold: Neighbours less similar than this (cosine) are left out.

    Raises:
        ConfigError: A number is out of range.
    """

    temperature: float = 0.3
    global_weight: float = 0.3
    neighbours: int = 3
    threshold: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ConfigError(f"temperature {self.temperature}; give a number above 0, such as 0.3.")
        if not 0 <= self.global_weight <= 1:
            raise ConfigError(f"global weight {self.global_weight}; give a number from 0 to 1, such as 0.3.")
        if self.neighbours < 1:
            raise ConfigError(f"neighbours {self.neighbours}; give 1 or more.")
        if not -1 <= self.threshold <= 1:
            raise ConfigError(f"threshold {self.threshold}; give a cosine, from -1 to 1.")
