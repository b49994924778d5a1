"""ToC3D: object queries of the last frame choose the image tokens that deserve a whole block."""

from dataclasses import replace

import torch
from torch import Tensor

from trt_compress.errors import ConfigError
from trt_compress.methods.video import TOC3D, Toc3dConfig
from trt_compress.models.compressors.base import Compressor, check_layers, ratio_at
from trt_compress.models.compressors.passing import Taps, Tokens
from trt_compress.models.compressors.sites import Arrival, HostInfo, Placement, Site, Tap
from trt_compress.models.layers.partial import Route
from trt_compress.plugins.token_restore.op import token_restore
from trt_compress.plugins.token_select.op import token_select


class Toc3d(Compressor):
    """Route the tokens of each window through the blocks by what the last frame's object queries look for.

    Tokens are scored before a few blocks; from the first of them on every block is routed, by the latest scores.
    """

    method = TOC3D
    no_padding = "scores whole windows, which it shares with padding"
    alone = "decides which tokens pass the blocks, so no other compressor can act beside it"
    keeps_rest = True

    @classmethod
    def placements(cls, config: Toc3dConfig, host: HostInfo) -> tuple[Placement, ...]:
        """Every block from the first one on before which tokens are scored."""
        first = min(cls._scored(config, host), default=host.depth)
        return (Placement(kind="block_routing", layers=tuple(range(first, host.depth))),)

    @classmethod
    def taps(cls, config: Toc3dConfig, host: HostInfo, site: Site) -> tuple[Tap, ...]:
        """The latest scores."""
        return (Tap(kind="history_queries", layer=cls._scored_at(config, host, site)),)

    @classmethod
    def _scored(cls, config: Toc3dConfig, host: HostInfo) -> tuple[int, ...]:
        """Blocks before which tokens are scored."""
        offered = host.layers_with("block_routing", "history_queries")
        layers = offered if config.layers is None else check_layers("toc3d", config.layers, host)
        if wrong := [layer for layer in layers if layer not in offered and "block_routing" in host.kinds]:
            raise ConfigError(
                f"toc3d: layers={list(layers)} names layer {wrong[0]}, but {host.name} scores tokens only before "
                f"layers {', '.join(map(str, offered))}; name some of these."
            )
        return layers

    @classmethod
    def _scored_at(cls, config: Toc3dConfig, host: HostInfo, site: Site) -> int:
        return max(layer for layer in cls._scored(config, host) if site.layer is not None and layer <= site.layer)

    def __init__(self, config: Toc3dConfig, arrival: Arrival) -> None:
        super().__init__(config, arrival)
        self.scored_at = self._scored_at(config, arrival.host, arrival.site)
        self.keep_ratio = ratio_at(config.keep_ratio, self._scored(config, arrival.host), self.scored_at)
        self.representative = config.representative
        self.tokens_out = num_routed(arrival.tokens, self.keep_ratio, representative=config.representative)

    @property
    def acts(self) -> bool:
        """Always: it decides in which order tokens pass."""
        return True

    def forward(self, tokens: Tokens, taps: Taps) -> Tokens:
        """Tokens [R, N, C] of R windows to those that pass a block; `route` leads back to all of them.

        A route that comes along is taken as it is.
        """
        route = tokens.route
        if route is None:
            scores = taps.of("history_queries", self.scored_at)
            route = make_route(scores, self.keep_ratio, representative=self.representative)
        return replace(tokens, x=route.take(tokens.x), route=route)


def num_slow(num_tokens: int, keep_ratio: float) -> int:
    """Tokens of a window that pass by themselves: the product rounded down, as the paper's code does."""
    return int(num_tokens * keep_ratio)


def num_routed(num_tokens: int, keep_ratio: float, *, representative: bool) -> int:
    """Tokens of a window that pass a block, the representative included."""
    slow = num_slow(num_tokens, keep_ratio)
    return slow + (representative and slow < num_tokens)


def make_route(scores: Tensor, keep_ratio: float, *, representative: bool) -> Route:
    """Choose the tokens of each window.

    Args:
        scores: Log-probabilities of being needed, [R, N]; -1e6 for padding.
        keep_ratio: Share of the N tokens that pass by themselves, rounded down.
        representative: Whether the others pass as one, their mean weighted by score / sum of scores. As scores are
            negative, the LEAST likely of them weigh most, and in a padded window the padding does: so does the source.
    """
    n = scores.shape[1]
    slow = num_slow(n, keep_ratio)
    kept, index, rest = token_select(scores[..., None], scores, num_kept=slow, order="score")
    others = token_restore(scores[..., None], rest)
    share = others / others.sum(dim=1, keepdim=True)
    row = torch.arange(slow, dtype=scores.dtype, device=scores.device).expand(scores.shape[0], -1)[..., None]
    of_kept = torch.cat([torch.zeros_like(kept), row.to(scores)], dim=2)
    of_others = torch.cat([share, torch.full_like(share, slow)], dim=2)
    placed = token_restore(torch.cat([of_kept, of_others], dim=1), torch.cat([index, rest], dim=1), mode="unpermute")
    merged = representative and slow < n
    return Route(index=index, dest=placed[..., 1].long(), weight=placed[..., :1].transpose(1, 2) if merged else None)
