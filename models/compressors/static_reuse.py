"""Static-patch reuse: in a video, only the patches that changed are computed again."""

import torch
from torch import Tensor

from trt_compress.errors import ConfigError
from trt_compress.methods.video import STATIC_REUSE, StaticReuseConfig
from trt_compress.models.compressors.base import (
    Compressor,
    HostInfo,
    Signals,
    TokenState,
    num_patches_kept,
)
from trt_compress.plugins.token_restore.op import token_restore
from trt_compress.plugins.token_select.op import token_select

NEVER = 1e4  # the age of a token that has not been computed
_OLDEST = 4000.0
_NEVER_SCORE = 4.0  # more than any change: pixels lie between -1 and 1


class StaticReuse(Compressor):
    """Choose the patches of a frame that are computed again, always equally many.

    The host keeps the keys and values that it computed for the others in every layer; the chosen patches and the class
    token attend to them. A patch is compared with itself as it was when it was last computed, so that slow changes add
    up until it is chosen.
    """

    method = STATIC_REUSE
    site = "patch_embed"
    signals = frozenset({"previous", "age"})

    @classmethod
    def layers(cls, config: StaticReuseConfig, host: HostInfo) -> tuple[int, ...]:
        """It acts once, before all layers."""
        return (0,)

    def __init__(self, config: StaticReuseConfig, host: HostInfo, layer: int, tokens_in: int) -> None:
        super().__init__(config, host, layer, tokens_in)
        keep_ratio, *others = config.ratios
        if others:
            raise ConfigError(
                f"static_reuse: keep_ratio={list(config.ratios)} lists {len(config.ratios)} levels, and one graph has "
                "one; let the host make a graph of each."
            )
        self.config = config
        self.num_kept = num_patches_kept(tokens_in, keep_ratio)
        self.tokens_out = self.num_kept

    def forward(self, state: TokenState, signals: Signals) -> TokenState:
        """Select the patches [B, N, P] that changed most; their positions come along."""
        assert signals.previous is not None and signals.age is not None
        score = change_score(state.x, signals.previous, signals.age, self.config.staleness_weight)
        x, index, _ = token_select(state.x, score, num_kept=self.num_kept)
        return TokenState(x=x, position=index)


def change_score(patches: Tensor, previous: Tensor, age: Tensor, staleness_weight: float) -> Tensor:
    """How much each patch needs to be computed: mean absolute difference of its pixels, and its age.

    Args:
        patches: [B, N, P], between -1 and 1.
        previous: The same when they were last computed.
        age: Frames since then, [B, N].
        staleness_weight: What a frame adds.

    Returns:
        [B, N]; patches that were never computed come first.
    """
    change = (patches - previous).abs().mean(dim=2)
    return change + torch.where(age < NEVER / 2, age * staleness_weight, _NEVER_SCORE)


def rows_to_keep(index: Tensor, num_tokens: int) -> Tensor:
    """Where each token's row stands in the new rows followed by all stored ones.

    Args:
        index: Tokens that have new rows, [B, K] int64, in the order of these rows.
        num_tokens: N.

    Returns:
        [B, N] int64: the number of its new row, or K + n for token n that has none.
    """
    num_new = index.shape[1]
    is_new = (index[:, :, None] == torch.arange(num_tokens, device=index.device)).to(torch.float32)
    row = torch.matmul(torch.arange(num_new, dtype=torch.float32, device=index.device)[None], is_new)[:, 0]
    stored = torch.arange(num_tokens, dtype=torch.float32, device=index.device) + num_new
    return torch.where(is_new.sum(dim=1) > 0, row, stored).to(torch.int64)


def keep_rows(new: Tensor, stored: Tensor, rows: Tensor) -> Tensor:
    """Stored rows [B, N, C] with the new ones [B, K, C] in their places; `rows` is of `rows_to_keep`."""
    return token_restore(torch.cat([new, stored], dim=1), rows)


def next_age(age: Tensor, rows: Tensor, num_new: int) -> Tensor:
    """Ages [B, N] after this frame: 0 for new rows, one frame more for the others."""
    older = torch.where(age < NEVER / 2, (age + 1).clamp(max=_OLDEST), age)
    return torch.where(rows < num_new, torch.zeros_like(age), older)
