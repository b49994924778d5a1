"""H2O: entries that were attended to most are kept, beside the newest.

Source, Differs: see the method's entry, `methods.cache_selectors.H2O`.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from trt_compress.methods.cache_selectors import H2O, EmsConfig, H2oConfig
from trt_compress.models.cache.by_rows import RowSelector, up_to
from trt_compress.models.cache.contract import ROWS, Choice, Memory, NewEntries, Store
from trt_compress.models.cache.scores import attention_to, of_groups
from trt_compress.models.compressors.sites import Arrival


class H2o(RowSelector):
    """Attention is added up for every entry over all tokens that are read while it is there.

    The numbers of a row are these sums, one for each query head of the KV head where their largest counts, and, where
    they are to be divided by it, how many tokens could see the entry.
    """

    method = H2O
    config: Any
    state = "heavy"

    def __init__(self, config: H2oConfig | EmsConfig, arrival: Arrival) -> None:
        super().__init__(config, arrival)
        self._sums = self.layer.heads // self.layer.groups if config.heads == "max" else 1
        self.looks()

    @property
    def width(self) -> int:
        """Sums, and the number of tokens."""
        return self._sums + int(self.config.score == "mean")

    def observe(self, reading: NewEntries, store: Store, memory: Memory) -> None:
        """Add the attention of new tokens; entries that came with them begin at zero."""
        before, count = reading.lengths[ROWS][:, None], reading.count[:, None]
        slot = torch.arange(memory[self.state].shape[2], device=before.device)
        new = self._attention(reading, memory["keys"])
        if self.config.score == "mean":
            saw = (before + count - torch.maximum(slot, before)).float()
            new = torch.cat([new, saw[:, None, :, None].expand(-1, new.shape[1], -1, -1)], dim=3)
        old = up_to(memory[self.state], reading.lengths[ROWS])
        memory[self.state] = up_to(old + new, reading.lengths[ROWS] + reading.count)

    def choose(self, lengths: Mapping[str, Tensor], memory: Memory) -> Choice:
        """The entries of the largest sums, or means, in front of the newest."""
        numbers = up_to(memory[self.state], lengths[ROWS])
        score = numbers[..., : self._sums].amax(dim=3)
        if self.config.score == "mean":
            score = score / numbers[..., self._sums].clamp(min=1)
        return self.keep_best(score, lengths[ROWS], recent=self.config.newest)

    def _attention(self, reading: NewEntries, keys: Tensor) -> Tensor:
        """What the new tokens pay to each slot, [B, G, L, sums]; filling pays nothing."""
        layer, before = self.layer, reading.lengths[ROWS]
        token = torch.arange(reading.query.shape[2], device=keys.device)
        place = torch.where(token < reading.count[:, None], before[:, None] + token, -1)
        score = attention_to(
            reading.query,
            keys,
            place,
            before + reading.count,
            scale=layer.scale,
            softcap=layer.softcap,
            rows="sum",
        )
        if self._sums == 1:
            return of_groups(score, layer.groups, "mean")[..., None]
        return score.reshape(score.shape[0], layer.groups, self._sums, -1).transpose(2, 3)
