"""PyramidKV: as SnapKV, and the first layers keep more than the last ones.

Source, Differs: see the method's entry, `methods.cache_selectors.PYRAMIDKV`.
"""

from collections.abc import Mapping
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from trt_compress.methods.cache import WindowConfig
from trt_compress.methods.cache_selectors import PYRAMIDKV, PyramidKvConfig
from trt_compress.models.cache.contract import DUE, ROWS, SEEN, Choice, Memory, best
from trt_compress.models.cache.snapkv import WindowSelector

Allocation = Literal["kvcache_factory", "kvpress"]


def layer_budgets(
    tokens: int, budget: float, *, layers: int, window: int, beta: int, allocation: Allocation
) -> list[int]:
    """How many entries each layer keeps of a prompt.

    Args:
        tokens: Of the prompt.
        budget: Entries of a layer on the average.
        layers: How many there are.
        window: Tokens at the end that choose, and are kept.
        beta: The last layer keeps about `budget / beta`.
        allocation: "kvcache_factory": whole numbers, the window added to each; "kvpress": rounded at the end, the
            window part of each, and the budget itself everywhere if the last layer had less than the window.
    """
    if tokens <= budget:
        return [tokens] * layers
    if allocation == "kvpress":
        least = budget / beta
        most = 2 * budget - least
        if most >= tokens - window:
            most = tokens - window
            least = 2 * budget - most
        if not tokens >= most >= least >= window:
            return [round(budget)] * layers
        step = (most - least) / max(layers - 1, 1)
        return [round(most - layer * step) for layer in range(layers)]
    chosen = int(budget) - window
    if tokens < 2 * chosen or layers == 1:
        return [int(budget)] * layers
    low = chosen // beta
    high = 2 * chosen - low
    if high >= tokens - window:
        high = tokens - window
        low = 2 * chosen - high
    fall = (high - low) // (layers - 1)
    return [high - layer * fall + window for layer in range(layers)]


class PyramidKv(WindowSelector):
    """The choice of a window, with a budget of its own in each layer, which depends on how many tokens were read."""

    method = PYRAMIDKV
    config: PyramidKvConfig
    needs_seen = True

    def entries(self, config: WindowConfig) -> int:
        """The most that the layer keeps of any prompt."""
        return max(self._kept())

    def kept_of(self, tokens: int) -> int:
        """By the table."""
        kept = self._kept()
        return kept[min(tokens, len(kept) - 1)]

    @property
    def counted_as(self) -> object:
        """What is kept of prompts of any length."""
        return self._kept()

    def choose(self, lengths: Mapping[str, Tensor], memory: Memory) -> Choice:
        """As many as the layer keeps of so long a text."""
        length, kept = lengths[ROWS], torch.tensor(self._kept(), device=lengths[ROWS].device)
        kept = torch.where(lengths[DUE], kept[lengths[SEEN].clamp(max=len(kept) - 1)], length)
        return best(self.scores(length, memory), length, self.budget, recent=self.config.window, kept=kept)

    def _kept(self) -> tuple[int, ...]:
        """Entries that the layer keeps of a prompt of 0, 1, … tokens, up to where there are no more of longer ones."""
        config, layer = self.config, self.layer
        return _table(layer.place, layer.count, layer.context, config)


@cache
def _table(place: int, layers: int, context: int, config: PyramidKvConfig) -> tuple[int, ...]:
    longest = min(2 * config.budget + config.window + 1, context)
    return tuple(
        layer_budgets(
            tokens,
            config.budget,
            layers=layers,
            window=config.window,
            beta=config.beta,
            allocation=config.allocation,
        )[place]
        for tokens in range(longest + 1)
    )
