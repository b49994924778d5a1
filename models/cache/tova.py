"""TOVA: entries that the last token attends to are kept, the same ones for all heads of a layer.

Source, Differs: see the method's entry, `methods.cache_selectors.TOVA`.
"""

from collections.abc import Mapping

from torch import Tensor

from trt_compress.methods.cache_selectors import TOVA, TovaConfig
from trt_compress.models.cache.by_rows import BudgetSelector
from trt_compress.models.cache.contract import ROWS, CacheState, Choice, Memory, NewEntries, Store
from trt_compress.models.cache.scores import scores_of_last
from trt_compress.models.compressors.sites import Arrival
from trt_compress.models.layers.attention import last_rows
from trt_compress.plugins.operator import cast


class Tova(BudgetSelector):
    """Attention of the last query, the mean over all heads; the last entry itself is kept."""

    method = TOVA
    config: TovaConfig

    def __init__(self, config: TovaConfig, arrival: Arrival) -> None:
        super().__init__(config, arrival)
        self.looks()

    def cache_states(self) -> tuple[CacheState, ...]:
        """The last query."""
        shape = (self.layer.heads, 1, self.layer.head_dim)
        return (CacheState(name="last", shape=shape, kind="score", compact="r", parts=self.observes),)

    def observe(self, reading: NewEntries, store: Store, memory: Memory) -> None:
        """Remember the last query."""
        last = memory["last"]
        memory["last"] = last_rows(last, cast(reading.query, last.dtype), reading.count)

    def choose(self, lengths: Mapping[str, Tensor], memory: Memory) -> Choice:
        """The entries of the largest attention."""
        layer = self.layer
        score = scores_of_last(memory["last"], memory["keys"], lengths[ROWS], scale=layer.scale, softcap=layer.softcap)
        score = score.mean(dim=1, keepdim=True).expand(-1, layer.groups, -1)
        return self.keep_best(score, lengths[ROWS], recent=1)
