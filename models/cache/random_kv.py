"""Random eviction: the floor that a selector must beat.

Source, Differs: see the method's entry, `methods.cache_selectors.RANDOM_KV`.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from trt_compress.methods.cache_selectors import RANDOM_KV, RandomKvConfig
from trt_compress.models.cache.by_rows import RowSelector
from trt_compress.models.cache.contract import ROWS, Choice, Memory, NewEntries, Store
from trt_compress.models.compressors.sites import Arrival
from trt_compress.plugins.kv_append.op import kv_append

_PRIME = 2**31 - 1
_FACTOR, _SUMMAND = 48271, 1_406_810_347
_HEAD, _LAYER, _SEED = 1_000_003, 69_621_017, 630_360_016  # how far apart their sequences of numbers begin


def numbers(positions: Tensor, start: Tensor) -> Tensor:
    """Numbers that look random, in [0, 1): fifth powers modulo a prime, which are a permutation of all below it.

    Args:
        positions: [B, T] int64, 0 or more.
        start: Of each KV head, [G] int64, below the prime.

    Returns:
        [B, G, T] in float32.
    """
    x = (positions[:, None, :] + start[:, None]) % _PRIME
    for _ in range(2):
        square = x * x % _PRIME
        x = (square * square % _PRIME * x % _PRIME * _FACTOR + _SUMMAND) % _PRIME
    return x.float() / _PRIME


class RandomKv(RowSelector):
    """Every entry has a number, drawn when it comes; those of the largest are kept."""

    method = RANDOM_KV
    config: RandomKvConfig
    state = "drawn"
    observes = ("prefill", "step", "score")
    prompt_only = False

    def __init__(self, config: RandomKvConfig, arrival: Arrival) -> None:
        super().__init__(config, arrival)
        first = config.seed * _SEED + self.layer.number * _LAYER
        self._start = [(first + head * _HEAD) % _PRIME for head in range(self.layer.groups)]

    @property
    def width(self) -> int:
        """One number."""
        return 1

    def observe(self, reading: NewEntries, store: Store, memory: Memory) -> None:
        """Draw the numbers of new entries."""
        device = reading.seen.device
        positions = reading.seen[:, None] + torch.arange(reading.query.shape[2], device=device)
        drawn = numbers(positions, torch.tensor(self._start, device=device))
        memory[self.state] = kv_append(memory[self.state], drawn[..., None], reading.lengths[ROWS])

    def choose(self, lengths: Mapping[str, Tensor], memory: Memory) -> Choice:
        """The entries of the largest numbers."""
        return self.keep_best(memory[self.state][..., 0], lengths[ROWS], recent=self.config.recent)
