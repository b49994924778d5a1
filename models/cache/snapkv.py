"""SnapKV: the last tokens of a prompt choose which of its entries are kept.

Source, Differs: see the method's entry, `methods.cache.SNAPKV`.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from trt_compress.methods.cache import SNAPKV, SnapKvConfig
from trt_compress.models.cache.contract import ROWS, CacheState, Choice, Memory, NewEntries, Selector, Store, best
from trt_compress.models.cache.scores import of_groups, pooled, scores_of_last
from trt_compress.models.compressors.sites import Arrival
from trt_compress.models.layers.attention import last_rows
from trt_compress.plugins.operator import cast


class SnapKv(Selector):
    """Attention of a window of queries, pooled along the entries; the window itself is kept."""

    method = SNAPKV
    observes = ("prefill",)

    def __init__(self, config: SnapKvConfig, arrival: Arrival) -> None:
        self.config = config
        super().__init__(config, arrival)

    def entries(self, config: SnapKvConfig) -> int:
        """The same in every layer."""
        return config.budget

    def cache_states(self) -> tuple[CacheState, ...]:
        """The queries of the window."""
        layer = self.layer
        shape = (layer.heads, self.config.window, layer.head_dim)
        return (CacheState(name="window", shape=shape, kind="score", compact="r", parts=("prefill",)),)

    def observe(self, reading: NewEntries, store: Store, memory: Memory) -> None:
        """Carry the window on."""
        window = memory["window"]
        memory["window"] = last_rows(window, cast(reading.query, window.dtype), reading.count)

    def choose(self, lengths: Mapping[str, Tensor], memory: Memory) -> Choice:
        """The entries of the largest attention in front of the window, and the window."""
        config, length = self.config, lengths[ROWS]
        score = scores_of_last(memory["window"], memory["keys"], length, scale=self.layer.scale)
        before = torch.arange(score.shape[2], device=score.device) < length[:, None] - config.window
        score = pooled(torch.where(before[:, None], score, 0.0), config.pool, config.kernel)
        return best(of_groups(score, self.layer.groups, config.heads), length, self.budget, recent=config.window)
