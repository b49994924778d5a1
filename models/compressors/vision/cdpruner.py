"""CDPruner: patches that differ from each other and that the question is about, by a determinantal point process."""

import torch
from torch import Tensor
from torch.nn import functional

from trt_compress.methods.towers import CDPRUNER, CdPrunerConfig
from trt_compress.models.compressors.base import Compressor
from trt_compress.models.compressors.passing import Taps, Tokens
from trt_compress.models.compressors.sites import Arrival, HostInfo, Placement, Site, Tap
from trt_compress.models.compressors.vision.behind import (
    behind_tower,
    keep_patches,
    need_patches,
    need_texts,
    places,
    rows_at,
    text_cosines,
    texts_taps,
)

_FLOOR = 1e-6  # added to relevance, and the least range that it is divided by
_SPANNED = 1e-5  # of a unit vector squared, what is left of one that the chosen ones span, in float32
_NEVER = -8.0  # a gain is 0 to 1


class CdPruner(Compressor):
    """Keep the patches of a large determinant, by their likeness and their relevance."""

    method = CDPRUNER

    @classmethod
    def placements(cls, config: CdPrunerConfig, host: HostInfo) -> tuple[Placement, ...]:
        """Behind the tower."""
        need_texts("cdpruner", host)
        return behind_tower()

    @classmethod
    def taps(cls, config: CdPrunerConfig, host: HostInfo, site: Site) -> tuple[Tap, ...]:
        """The patches and the question in the space of texts."""
        return texts_taps(host, config.segments)

    def __init__(self, config: CdPrunerConfig, arrival: Arrival) -> None:
        super().__init__(config, arrival)
        self.space, self.texts = texts_taps(arrival.host, config.segments)
        self.prefix = arrival.prefix
        ratio = max(1, round(config.keep_ratio * arrival.patches))
        self.kept = ratio if config.num_kept is None else config.num_kept
        need_patches("cdpruner", self.kept, f"num_kept={self.kept}", arrival)
        self.tokens_out = arrival.prefix + self.kept

    def forward(self, tokens: Tokens, taps: Taps) -> Tokens:
        """The patches that were chosen, in their order."""
        relevant = relevance(text_cosines(taps.at(self.space)[:, self.prefix :], taps.at(self.texts)))
        chosen = spread_by(tokens.x[:, self.prefix :], relevant, self.kept)
        return keep_patches(tokens, chosen, self.prefix, self.kept)


def relevance(cosine: Tensor) -> Tensor:
    """How relevant each token is, by its cosine with the question, both [B, N].

    About 1 at the smallest cosine and about 0 at the largest, which is the sign that the authors' code has.
    """
    low = -cosine
    least, most = low.amin(dim=1, keepdim=True), low.amax(dim=1, keepdim=True)
    return (low - least + _FLOOR) / (most - least).clamp_min(_FLOOR)


def spread_by(x: Tensor, relevant: Tensor, count: int) -> Tensor:
    """Which tokens are chosen, one by one: always the one that makes the determinant of their kernel largest.

    The kernel of two tokens is their cosine times the relevance of both. What is left of each unit vector beside those
    of the chosen ones is kept by Cholesky factors; relevance only scales it, and so stays outside.

    Args:
        x: Tokens, [B, N, C].
        relevant: Of each, [B, N] in float32.
        count: How many are chosen.

    Returns:
        Ones and zeros, [B, N]; of equal ones the smaller index is chosen. Where the chosen ones span all that is left,
        the most relevant follow.
    """
    unit = functional.normalize(x.float(), dim=-1)
    weight, number = relevant.square(), x.shape[1]
    left = torch.ones_like(weight)
    chosen = torch.zeros_like(weight)
    factors: Tensor | None = None
    for turn in range(count):
        gain = torch.where(chosen > 0, _NEVER, weight * left.clamp_min(_SPANNED))
        best = gain.argmax(dim=1, keepdim=True)
        chosen = torch.maximum(chosen, places(best, number)[:, 0])
        if turn == count - 1:
            break
        likeness = rows_at(unit, best) @ unit.transpose(1, 2)
        if factors is not None:
            at = torch.gather(factors, 2, best[:, None].expand(-1, factors.shape[1], -1))
            likeness = likeness - at.transpose(1, 2) @ factors
        rest = left.gather(1, best)[:, :, None]
        factor = torch.where(rest > _SPANNED, likeness / rest.clamp_min(_SPANNED).sqrt(), 0.0)
        left = left - factor[:, 0].square()
        factors = factor if factors is None else torch.cat([factors, factor], dim=1)
    return chosen
