"""SnapKV: the last tokens of a prompt choose which of its entries are kept.

Source, Differs: see the method's entry, `methods.cache.SNAPKV`.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from trt_compress.methods.cache import SNAPKV, SnapKvConfig, WindowConfig
from trt_compress.models.cache.contract import ROWS, CacheState, Choice, Memory, NewEntries, Selector, Store
from trt_compress.models.cache.scores import of_groups, pooled, scores_of_last
from trt_compress.models.compressors.sites import Arrival
from trt_compress.models.layers.attention import last_rows
from trt_compress.plugins.operator import cast


class WindowSelector(Selector):
    """Attention of a window of queries, pooled along the entries; the window itself is kept."""

    observes = ("prefill",)
    config: Any

    def __init__(self, config: WindowConfig, arrival: Arrival) -> None:
        self.config = config
        super().__init__(config, arrival)

    def entries(self, config: WindowConfig) -> int:
        """The same in every layer."""
        return config.budget

    def cache_states(self) -> tuple[CacheState, ...]:
        """The queries of the window."""
        layer = self.layer
        shape = (layer.heads, self.config.window, layer.head_dim)
        return (CacheState(name="window", shape=shape, kind="score", compact="r", parts=self.observes),)

    def observe(self, reading: NewEntries, store: Store, memory: Memory) -> None:
        """Carry the window on."""
        window = memory["window"]
        memory["window"] = last_rows(window, cast(reading.query, window.dtype), reading.count)

    def choose(self, lengths: Mapping[str, Tensor], memory: Memory) -> Choice:
        """The entries of the largest attention in front of the window, and the window."""
        return self.keep_best(self.scores(lengths[ROWS], memory), lengths[ROWS], recent=self.config.window)

    def scores(self, length: Tensor, memory: Memory) -> Tensor:
        """Attention of the window to the entries in front of it, [B, G, L]."""
        config, layer = self.config, self.layer
        score = scores_of_last(memory["window"], memory["keys"], length, scale=layer.scale, softcap=layer.softcap)
        before = torch.arange(score.shape[2], device=score.device) < length[:, None] - config.window
        score = pooled(torch.where(before[:, None], score, 0.0), config.pool, config.kernel)
        return of_groups(score, layer.groups, config.heads)


class SnapKv(WindowSelector):
    """As the window says, the same number in every layer."""

    method = SNAPKV
    config: SnapKvConfig

    @property
    def in_chunks(self) -> bool:
        """As the options say."""
        return self.config.in_chunks
