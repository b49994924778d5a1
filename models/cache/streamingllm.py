"""StreamingLLM: the first entries and the newest are kept.

Source, Differs: see the method's entry, `methods.cache_selectors.STREAMINGLLM`.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from trt_compress.methods.cache_selectors import STREAMINGLLM, StreamingLlmConfig
from trt_compress.models.cache.by_rows import BudgetSelector
from trt_compress.models.cache.contract import ROWS, Choice, Memory, in_front
from trt_compress.models.compressors.sites import Arrival
from trt_compress.models.layers.rope import Rope, turned
from trt_compress.plugins.operator import cast


class StreamingLlm(BudgetSelector):
    """Sinks, and behind them the newest; keys that move are turned by as much, if positions are those in the cache."""

    method = STREAMINGLLM
    alike = True
    config: StreamingLlmConfig

    def __init__(self, config: StreamingLlmConfig, arrival: Arrival) -> None:
        super().__init__(config, arrival)
        self.in_cache = config.positions == "cache"
        form = self.layer.rope if self.in_cache else None
        self._rope = None if form is None else Rope(replace(form, gain=1.0), self.layer.context)

    def choose(self, lengths: Mapping[str, Tensor], memory: Memory) -> Choice:
        """The sinks, and so many of the newest that the budget is full."""
        length, slots = lengths[ROWS], memory["keys"].shape[2]
        over = length > self.at_most
        place = torch.arange(self.at_most, device=length.device)
        went = torch.where(over, length - self.budget, 0)[:, None]
        index = torch.where(place < self.config.sinks, place, (place + went).clamp(max=slots - 1))
        return Choice(
            index=index[:, None].expand(-1, self.layer.groups, -1),
            count=torch.where(over, self.budget, length),
            ascending=self.at_most == self.budget,
        )

    def kept(self, choice: Choice, memory: Memory) -> None:
        """Turn the keys to where they are now."""
        if self._rope is None:
            return
        keys, index = memory["keys"], choice.index[:, 0]
        place = torch.arange(index.shape[1], device=index.device)
        moved = turned(keys[:, :, : index.shape[1]].float(), self._rope.table(place - index, torch.float32))
        memory["keys"] = in_front(keys, cast(moved, keys.dtype))
