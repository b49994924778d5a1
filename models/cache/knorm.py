"""Short keys: entries whose keys have the smallest norm are kept.

Source, Differs: see the method's entry, `methods.cache_selectors.KNORM`.
"""

from collections.abc import Mapping

from torch import Tensor

from trt_compress.methods.cache_selectors import KNORM, KnormConfig
from trt_compress.models.cache.by_rows import BudgetSelector, up_to
from trt_compress.models.cache.contract import ROWS, Choice, Memory


class Knorm(BudgetSelector):
    """The norm of a key, which says how little is attended to it."""

    method = KNORM
    config: KnormConfig

    def choose(self, lengths: Mapping[str, Tensor], memory: Memory) -> Choice:
        """The entries of the shortest keys."""
        keys = up_to(memory["keys"], lengths[ROWS]).float()
        return self.keep_best(-(keys * keys).sum(dim=3).sqrt(), lengths[ROWS], recent=self.config.recent)
