"""ToMe: Token Merging."""

from dataclasses import replace

import torch
from torch import Tensor

from trt_compress.errors import ConfigError
from trt_compress.methods.vision import TOME, TomeConfig
from trt_compress.models.compressors.base import Compressor, after_attention, averaged_by_row
from trt_compress.models.compressors.padding import merged_valid, packed, padding_apart, without_padding
from trt_compress.models.compressors.passing import Taps, Tokens
from trt_compress.models.compressors.sites import Arrival, HostInfo, Placement
from trt_compress.plugins.token_merge.op import max_merged, token_merge

INFLECTIONS = {"constant": 0.0, "decreasing": -1.0, "increasing": 1.0}


def merge_schedule(num_merged: int | tuple[int, ...], depth: int, inflection: float = 0.0) -> tuple[int, ...]:
    """Tokens to merge in each of `depth` layers.

    Args:
        num_merged: One count, spread linearly, or a list with one count a layer (missing ones are 0).
        depth: Number of layers.
        inflection: 0 keeps the count constant, -1 falls from twice the count to 0, 1 rises from 0 to twice.

    Source: ToMe, arXiv:2210.09461, appendix; code facebookresearch/ToMe af95e4b, tome/utils.py.
    Differs: a list longer than the depth is refused (its tail is ignored there).
    """
    if isinstance(num_merged, tuple):
        if len(num_merged) > depth:
            raise ConfigError(
                f"tome: num_merged lists {len(num_merged)} layers, but the model has {depth}; shorten it."
            )
        return num_merged + (0,) * (depth - len(num_merged))
    first = int(num_merged * (1 - inflection))
    step = (2 * num_merged - 2 * first) / (depth - 1) if depth > 1 else 0.0
    return tuple(int(first + step * layer) for layer in range(depth))


def merged(tokens: Tokens, keys: Tensor, *, num_merged: int, num_protected: int, order: str) -> Tokens:
    """Tokens of which `num_merged` went into the most similar ones, with their sizes and positions; keys [B, N, D].

    Of a padded item that has fewer than 2 * num_merged tokens every second one goes.
    """
    features = keys if tokens.valid is None else padding_apart(keys, tokens.valid)
    every, sizes = without_padding(tokens)
    x, size, row = token_merge(every, features, sizes, num_merged=num_merged, num_protected=num_protected, order=order)
    position = averaged_by_row(tokens.position, row, sizes, x.shape[1])
    found = replace(tokens, x=x, size=size, position=position)
    if tokens.valid is None:
        return found
    valid = merged_valid(size)
    return packed(replace(found, size=torch.where(valid[..., None], size, 1.0), valid=valid))


class Tome(Compressor):
    """Merge the most similar tokens after the attention of every layer."""

    method = TOME
    asks = frozenset({"keys"})
    positions = "averaged"
    takes_padding = True
    layer_option = "num_merged=[…], 0 where it must not act"

    @classmethod
    def _counts(cls, config: TomeConfig, host: HostInfo) -> tuple[int, ...]:
        return merge_schedule(config.num_merged, host.depth, INFLECTIONS[config.schedule])

    @classmethod
    def placements(cls, config: TomeConfig, host: HostInfo) -> tuple[Placement, ...]:
        """Layers that merge at least one token."""
        return after_attention([layer for layer, count in enumerate(cls._counts(config, host)) if count])

    def __init__(self, config: TomeConfig, arrival: Arrival) -> None:
        super().__init__(config, arrival)
        host, layer, tokens_in = arrival.host, arrival.layer, arrival.tokens
        self.config = config
        self.num_protected = arrival.prefix
        self.num_merged = self._counts(config, host)[layer]
        most = max_merged(tokens_in, arrival.prefix)
        if self.num_merged > most:
            if config.over_limit == "error":
                raise ConfigError(
                    f"tome: num_merged={self.num_merged} is too large at layer {layer} of {host.name}: of {tokens_in} "
                    f"tokens there, {arrival.prefix} protected, at most {most} can merge.",
                    hint="lower num_merged, list one count a layer, or set over_limit=clamp to cut it there.",
                )
            self.num_merged = most
        self.tokens_out = tokens_in - self.num_merged
        # Without a class token the paper's code leaves unmerged tokens in order of similarity; which tokens pair up in
        # the next layer depends on it.
        self.order = "position" if arrival.has_class_token else "similarity"

    @property
    def proportional_attention(self) -> bool:
        """Whether attention after this site weighs keys by size."""
        return self.config.proportional_attention

    def forward(self, tokens: Tokens, taps: Taps) -> Tokens:
        """Merge tokens; keys are the similarity feature."""
        return merged(
            tokens, taps["keys"], num_merged=self.num_merged, num_protected=self.num_protected, order=self.order
        )
