"""Static-patch reuse: in a video, only the patches that changed are computed again."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from trt_compress.errors import ConfigError
from trt_compress.format.graphs import BATCH_SYMBOL, StateSpec
from trt_compress.methods.config import CompressorConfig
from trt_compress.methods.video import STATIC_REUSE, StaticReuseConfig, level_name
from trt_compress.models.compressors.base import Compressor, num_patches_kept
from trt_compress.models.compressors.passing import Taps, Tokens
from trt_compress.models.compressors.sites import Arrival, HostInfo, Placement
from trt_compress.models.layers.partial import Reuse, rows_to_keep
from trt_compress.plugins.token_select.op import token_select

NEVER = 1e4  # the age of a token that has not been computed
_OLDEST = 4000.0
_NEVER_SCORE = 4.0  # more than any change: pixels lie between -1 and 1


class StaticReuse(Compressor):
    """Choose the patches of a frame that are computed again, always equally many.

    The host keeps the keys and values that it computed for the others in every layer; the chosen patches and the class
    token attend to them. A patch is compared with itself as it was when it was last computed, so that slow changes add
    up until it is chosen. The patches as they were last computed, and their age, are its states.
    """

    method = STATIC_REUSE
    no_padding = "keeps the tokens of every layer at their places"
    alone = "keeps the tokens of every layer at their places, so no other compressor can act beside it"
    keeps_rest = True

    @classmethod
    def placements(cls, config: StaticReuseConfig, host: HostInfo) -> tuple[Placement, ...]:
        """Once, before all layers."""
        return (Placement(kind="patch_embed"),)

    @classmethod
    def levels(cls, config: StaticReuseConfig) -> Mapping[str, CompressorConfig]:
        """A graph for each ratio."""
        if len(config.ratios) < 2:
            return {"": config}
        return {level_name(ratio): replace(config, keep_ratio=ratio) for ratio in config.ratios}

    def __init__(self, config: StaticReuseConfig, arrival: Arrival) -> None:
        super().__init__(config, arrival)
        keep_ratio, *others = config.ratios
        if others:
            raise ConfigError(
                f"static_reuse: keep_ratio={list(config.ratios)} lists {len(config.ratios)} levels, and one graph has "
                "one; let the host make a graph of each."
            )
        if arrival.width is None:
            raise ConfigError(f"static_reuse: {arrival.host.name} does not tell how many values a patch has.")
        self.config, self.patch_size = config, arrival.width
        self.num_kept = num_patches_kept(arrival.tokens, keep_ratio)
        self.tokens_out = self.num_kept

    def states(self) -> tuple[StateSpec, ...]:
        """The patches as they were last computed, [B, N, P], and frames since then, [B, N]; of all levels the same."""
        of_patches = (BATCH_SYMBOL, self.tokens_in)
        return (
            StateSpec(input="patches_in", output="patches_out", shape=(*of_patches, self.patch_size), name="patches"),
            StateSpec(input="age_in", output="age_out", shape=of_patches, initial={"fill": NEVER}, name="age"),
        )

    def forward(self, tokens: Tokens, taps: Taps) -> Tokens:
        """Select the patches [B, N, P] that changed most; their positions come along."""
        patches, previous, age = tokens.x, tokens.memory["patches_in"], tokens.memory["age_in"]
        if self.num_kept == self.tokens_in:
            memory = {**tokens.memory, "patches_in": patches, "age_in": torch.zeros_like(age)}
            return replace(tokens, memory=memory)
        score = change_score(patches, previous, age, self.config.staleness_weight)
        x, index, _ = token_select(patches, score, num_kept=self.num_kept)
        rows = rows_to_keep(index, self.tokens_in)
        age = next_age(age, rows, self.num_kept)
        reuse = Reuse(rows=rows, known=age < NEVER / 2)
        memory = {**tokens.memory, "patches_in": reuse.keep(x, previous), "age_in": age}
        return replace(tokens, x=x, position=index, reuse=reuse, memory=memory)


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


def next_age(age: Tensor, rows: Tensor, num_new: int) -> Tensor:
    """Ages [B, N] after this frame: 0 for new rows, one frame more for the others."""
    older = torch.where(age < NEVER / 2, (age + 1).clamp(max=_OLDEST), age)
    return torch.where(rows < num_new, torch.zeros_like(age), older)
