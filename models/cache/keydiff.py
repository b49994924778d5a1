"""KeyDiff: entries whose keys are least like all others are kept.

Source, Differs: see the method's entry, `methods.cache_selectors.KEYDIFF`.
"""

from collections.abc import Mapping

from torch import Tensor

from trt_compress.methods.cache_selectors import KEYDIFF, KeyDiffConfig
from trt_compress.models.cache.by_rows import BudgetSelector, up_to
from trt_compress.models.cache.contract import ROWS, Choice, Memory

_SMALLEST = 1e-12  # norm that a key is divided by at least


class KeyDiff(BudgetSelector):
    """The cosine of a key and the mean direction of all keys that are there."""

    method = KEYDIFF
    config: KeyDiffConfig

    def choose(self, lengths: Mapping[str, Tensor], memory: Memory) -> Choice:
        """The entries of the keys that point elsewhere than their mean."""
        length = lengths[ROWS]
        direction = _unit(up_to(memory["keys"], length).float())
        mean = direction.sum(dim=2, keepdim=True) / length.clamp(min=1)[:, None, None, None].float()
        likeness = (direction * _unit(mean)).sum(dim=3)
        return self.keep_best(-likeness, length, recent=self.config.recent)


def _unit(x: Tensor) -> Tensor:
    """Vectors [..., D] of length 1."""
    norm = (x * x).sum(dim=-1, keepdim=True).sqrt()
    return x / norm.clamp(min=_SMALLEST)
