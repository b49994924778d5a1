"""Recoverable Compression: patches of outlying attention, those that a question is about, and clusters of the rest."""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from trt_compress.errors import ConfigError
from trt_compress.methods.towers import RECOVERABLE, RecoverableConfig
from trt_compress.models.compressors.base import Compressor
from trt_compress.models.compressors.padding import packed
from trt_compress.models.compressors.passing import Taps, Tokens
from trt_compress.models.compressors.sites import Arrival, HostInfo, Placement, Site, Tap
from trt_compress.models.compressors.vision.behind import (
    behind_tower,
    best_of,
    layer_ahead,
    need_class_token,
    need_patches,
    need_texts,
    places,
    ranks,
    rows_at,
    text_cosines,
    texts_taps,
)
from trt_compress.models.compressors.vision.prumerge import attention_and_keys
from trt_compress.plugins.operator import cast
from trt_compress.plugins.token_mix.op import token_mix
from trt_compress.plugins.token_select.op import token_select

_ABOUT, _AMONG_REST = 20, 10  # neighbours that a score is compared with, of all and of the rest
_OUTLYING = 1.5  # a factor above it
_FLOOR = 1e-10  # added to the mean reach, as scikit-learn does
_FAR = 1e6  # from every score
_NEVER = -1e4  # a likeness below all
_TEXT_WEIGHT = 50.0  # of the likeness to the text beside that of keys


class Recoverable(Compressor):
    """Keep as many patches as stand out by attention and by the text, and cluster the others."""

    method = RECOVERABLE
    layer_option = "layer=…"

    @classmethod
    def placements(cls, config: RecoverableConfig, host: HostInfo) -> tuple[Placement, ...]:
        """Behind the tower."""
        need_class_token("recoverable", host)
        need_texts("recoverable", host)
        return behind_tower()

    @classmethod
    def taps(cls, config: RecoverableConfig, host: HostInfo, site: Site) -> tuple[Tap, ...]:
        """Queries and keys of all heads, and the patches and the question in the space of texts."""
        layer = layer_ahead("recoverable", config.layer, host, "queries")
        own = (Tap(kind="queries", layer=layer, heads="each"), Tap(kind="keys", layer=layer, heads="each"))
        return (*own, *texts_taps(host, config.segments))

    def __init__(self, config: RecoverableConfig, arrival: Arrival) -> None:
        super().__init__(config, arrival)
        patches = arrival.patches
        self.queries, self.keys, self.space, self.texts = self.taps(config, arrival.host, arrival.site)
        self.prefix, self.as_code = arrival.prefix, config.as_code
        self.kept = max(1, int(patches * config.keep_ratio)) if config.num_kept is None else config.num_kept
        need_patches("recoverable", self.kept, f"num_kept={self.kept}", arrival)
        self.least_rest = patches - self.kept
        if self.least_rest < 2:
            raise ConfigError(
                f"recoverable: {self.kept} of the {patches} patches that {arrival.host.name} gives may be kept, which "
                f"leaves no rest to cluster; let it keep {patches - 2} at most."
            )
        self.centres = min(max(1, int(patches * config.centre_ratio)), patches)
        self.neighbours = min(config.neighbours, self.least_rest - 1)
        self.tokens_out = arrival.prefix + self.kept + self.centres + 1

    @property
    def acts(self) -> bool:
        """It changes tokens even where none goes."""
        return True

    def forward(self, tokens: Tokens, taps: Taps) -> Tokens:
        """Class token, kept patches in their order, centres of the rest by falling attention, and the sum of others."""
        attention, unit = attention_and_keys(taps, self.queries, self.keys, self.prefix)
        text = text_cosines(taps.at(self.space)[:, self.prefix :], taps.at(self.texts))
        text = text / taps.at(self.space).shape[2] ** 0.5
        kept = self._kept(attention, text)
        rest = 1 - kept
        index, found = self._centres(attention, rest, tokens.x.shape[2])
        itself = places(index, rest.shape[1])
        near = self._near(unit, text, rest, index, itself)
        alone = rest - (itself * found[..., None]).sum(dim=1)
        weight = torch.cat([itself + near * attention[:, None], (alone * attention)[:, None]], dim=1)
        return self._joined(tokens, kept, index, found, alone, weight)

    def _kept(self, attention: Tensor, text: Tensor) -> Tensor:
        """Which patches are kept as they are: 0 or 1, [B, N] in float32."""
        count = attention.shape[1]
        outlying = _count(outlier_factors(attention * count, _ABOUT, _FLOOR * count))
        seen = ranks(attention) < outlying.clamp_max(self.kept)
        unseen = torch.where(seen, text.amin(dim=1, keepdim=True), text)
        number = cast(seen, torch.float32).sum(dim=1, keepdim=True)
        share = _count(outlier_factors(unseen, _ABOUT, _FLOOR))
        about = torch.minimum(((count - number) * share / count).floor(), self.kept - number)
        return cast(seen | (ranks(unseen) < about), torch.float32)

    def _centres(self, attention: Tensor, rest: Tensor, channels: int) -> tuple[Tensor, Tensor]:
        """Places [B, K] of the rest of most attention, and which of them are centres, 0 or 1 in float32."""
        size, number = attention.shape[1], rest.sum(dim=1, keepdim=True)
        nearest = min(_AMONG_REST, self.least_rest - 1)
        factors = outlier_factors(attention * size, nearest, _FLOOR * size, rest > 0)
        there = torch.arange(size, device=rest.device) < number
        outlying = _count(torch.where(there, factors, 0.0))
        count = torch.minimum((channels * outlying / number).floor(), number)
        index = best_of(torch.where(rest > 0, attention, -1.0), self.centres)
        return index, cast(torch.arange(self.centres, device=rest.device) < count, torch.float32)

    def _near(self, unit: Tensor, text: Tensor, rest: Tensor, index: Tensor, itself: Tensor) -> Tensor:
        """Which of the rest each centre takes in: 0 or 1, [B, K, N] in float32."""
        if self.as_code:  # the key that stands where the token is among the rest
            unit = rows_at(unit, (rest.cumsum(dim=1) - 1).clamp_min(0).long())
        likeness = rows_at(unit, index) @ unit.transpose(1, 2) + _TEXT_WEIGHT * text[:, None]
        likeness = torch.where((rest[:, None] > 0) & (itself == 0), likeness, _NEVER)
        least = likeness.topk(self.neighbours, dim=2).values[..., -1:]
        return cast(likeness >= least, torch.float32)

    def _joined(
        self, tokens: Tokens, kept: Tensor, index: Tensor, found: Tensor, alone: Tensor, weight: Tensor
    ) -> Tokens:
        """All that is left, with padding behind it."""
        front, patches, size = self.prefix, tokens.x[:, self.prefix :], tokens.sizes
        x, own, _ = token_select(patches, kept, num_kept=self.kept, order="score")
        x = torch.cat([tokens.x[:, :front], x, token_mix(patches, weight)], dim=1)
        batch = kept.shape[0]
        ahead = torch.arange(front, device=index.device).expand(batch, -1)
        last = alone.argmax(dim=1, keepdim=True)  # the sum of the rest stands where the first of them stood
        at = torch.cat([ahead, own + front, index + front, last + front], dim=1)
        sizes = torch.cat([rows_at(size, at[:, :-1]), alone[:, None] @ size[:, front:]], dim=1)
        there = torch.ones(batch, 1, dtype=torch.bool, device=index.device)
        summed = found[:, :1] > 0 if self.as_code else there
        number = kept.sum(dim=1, keepdim=True)
        valid = [there.expand(-1, front), torch.arange(self.kept, device=index.device) < number, found > 0, summed]
        return packed(replace(tokens.at(x, at), size=sizes, valid=torch.cat(valid, dim=1)))


def outlier_factors(values: Tensor, neighbours: int, floor: float, there: Tensor | None = None) -> Tensor:
    """Local outlier factors of numbers: how much denser the nearest ones of each stand than it does itself.

    Args:
        values: [B, N] in float32, far below 1e6.
        neighbours: How many are nearest; where there are fewer others, all.
        floor: Added to the mean distance by which density is told.
        there: Which values count, [B, N]; None: all. More than `neighbours` do.

    Returns:
        Of the values in ascending order, [B, N]; behind those that count stands nothing of meaning.
    """
    count = values.shape[1]
    nearest = min(neighbours, count - 1)
    ordered = (values if there is None else torch.where(there, values, _FAR)).sort(dim=1).values
    steps = torch.arange(2 * nearest, device=values.device)
    around = torch.arange(count, device=values.device)[:, None] + steps + cast(steps >= nearest, torch.int64)

    def beside(each: Tensor) -> Tensor:
        """What stands on both sides of each of [B, N], [B, N, 2 * nearest]."""
        wide = functional.pad(each, (nearest, nearest), value=4 * _FAR)
        return wide.index_select(1, around.flatten()).reshape(-1, count, 2 * nearest)

    distance, at = (ordered[..., None] - beside(ordered)).abs().topk(nearest, dim=2, largest=False)
    reach = torch.maximum(beside(distance[..., -1]).gather(2, at), distance)
    density = 1 / (reach.mean(dim=2) + floor)
    return beside(density).gather(2, at).mean(dim=2) / density


def _count(factors: Tensor) -> Tensor:
    """How many stand out, [B, 1] in float32."""
    return cast(factors > _OUTLYING, torch.float32).sum(dim=1, keepdim=True)
