"""ToC3D: object queries of the last frame choose the image tokens that deserve a whole block."""

import torch
from torch import Tensor

from trt_compress.errors import ConfigError
from trt_compress.methods.video import TOC3D, Toc3dConfig
from trt_compress.models.compressors.base import (
    Compressor,
    HostInfo,
    Route,
    Signals,
    TokenState,
    check_layers,
    ratio_at,
)
from trt_compress.plugins.token_mix.op import token_mix
from trt_compress.plugins.token_restore.op import token_restore
from trt_compress.plugins.token_select.op import token_select


class Toc3d(Compressor):
    """Route the tokens of each window through the blocks by what the last frame's object queries look for."""

    method = TOC3D
    site = "block_routing"
    signals = frozenset({"history_queries"})

    @classmethod
    def layers(cls, config: Toc3dConfig, host: HostInfo) -> tuple[int, ...]:
        """Blocks before which tokens are scored."""
        layers = host.scored_layers if config.layers is None else check_layers("toc3d", config.layers, host)
        if wrong := [layer for layer in layers if layer not in host.scored_layers]:
            raise ConfigError(
                f"toc3d: layers={list(layers)} names layer {wrong[0]}, but {host.name} scores tokens only before "
                f"layers {', '.join(map(str, host.scored_layers))}; name some of these."
            )
        return layers

    def __init__(self, config: Toc3dConfig, host: HostInfo, layer: int, tokens_in: int) -> None:
        super().__init__(config, host, layer, tokens_in)
        self.keep_ratio = ratio_at(config.keep_ratio, self.layers(config, host), layer)
        self.representative = config.representative
        self.tokens_out = num_routed(tokens_in, self.keep_ratio, representative=config.representative)

    def forward(self, state: TokenState, signals: Signals) -> TokenState:
        """Tokens [R, N, C] of R windows to those that pass a block, by `signals.scores` [R, N]; `route` leads back."""
        route = state.route
        if route is None:
            assert signals.scores is not None
            route = make_route(signals.scores, self.keep_ratio, representative=self.representative)
        return TokenState(x=take_route(state.x, route), route=route)


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


def take_route(x: Tensor, route: Route) -> Tensor:
    """The tokens of x [R, N, C] that pass a block: the chosen ones by descending score, then the representative."""
    slow = token_restore(x, route.index)
    return slow if route.weight is None else torch.cat([slow, token_mix(x, route.weight)], dim=1)


def give_back(x: Tensor, update: Tensor, route: Route) -> Tensor:
    """Add what a block did to the tokens that passed, [R, M, C], to all tokens x [R, N, C].

    Each token that did not pass receives the representative's update, or nothing if there is no representative.
    """
    if route.weight is None:
        update = torch.cat([update, torch.zeros_like(update[:, :1])], dim=1)
    return x + token_restore(update, route.dest)
