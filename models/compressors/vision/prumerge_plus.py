"""PruMerge+: what PruMerge keeps, and a regular grid of the other patches."""

import torch
from torch import Tensor

from trt_compress.methods.towers import PRUMERGE_PLUS, PruMergeConfig
from trt_compress.models.compressors.passing import Taps, Tokens
from trt_compress.models.compressors.sites import Arrival
from trt_compress.models.compressors.vision.behind import best_of, places
from trt_compress.models.compressors.vision.prumerge import PruMerge
from trt_compress.plugins.operator import cast


class PruMergePlus(PruMerge):
    """Keep a grid too, whose step is a third of how rare the others are."""

    method = PRUMERGE_PLUS

    steps: Tensor

    def __init__(self, config: PruMergeConfig, arrival: Arrival) -> None:
        super().__init__(config, arrival)
        patches = arrival.patches
        steps = [1, *(max(1, int(int(1 / (n / patches)) / 3)) for n in range(1, patches + 1))]
        self.register_buffer("steps", torch.tensor(steps), persistent=False)
        used = range(1, self.kept + 1) if self.adaptive else (self.kept,)
        self.spread = max(len(range(0, patches - 1, steps[n])) for n in used)
        most = max(n + len(range(0, patches - 1, steps[n])) for n in used)
        self.tokens_out = arrival.prefix + min(most, patches) + 1

    @property
    def fewest_kept(self) -> int:
        """Patches that are kept where there is no outlier."""
        return 1

    @property
    def pads(self) -> bool:
        """How many are kept depends on the image."""
        return True

    def forward(self, tokens: Tokens, taps: Taps) -> Tokens:
        """Class token, kept patches by falling attention, then those of the grid, and one sum of all others."""
        attention, unit = self._seen(taps)
        best = best_of(attention, self.kept)
        valid = self._valid(attention, best)
        number = torch.arange(attention.shape[1], device=best.device)
        step = self.steps[cast(valid, torch.int64).sum(dim=1)][:, None]
        on_grid = (number % step == 0) & (number < attention.shape[1] - 1)
        taken = (places(best, attention.shape[1]) * cast(valid[..., None], torch.float32)).sum(dim=1) > 0
        more = on_grid & ~taken
        early = torch.where(more, -cast(number, torch.float32), -float(2 * attention.shape[1]))
        grid = best_of(early, self.spread)
        count = cast(more, torch.int64).sum(dim=1, keepdim=True)
        on = torch.arange(self.spread, device=best.device) < count
        index, kept = torch.cat([best, grid], dim=1), torch.cat([valid, on], dim=1)
        return self._cut(self._merged(tokens, attention, unit, index, kept))

    def _cut(self, tokens: Tokens) -> Tokens:
        """Without padding that no image needs."""
        places_: Tensor = torch.arange(self.tokens_out, device=tokens.x.device).expand(tokens.x.shape[0], -1)
        return tokens.at(tokens.x[:, : self.tokens_out], places_)
