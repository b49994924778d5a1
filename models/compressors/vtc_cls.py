"""VTC-CLS: patches are ranked by what the class token attended to in several layers together."""

import torch
from torch import Tensor

from trt_compress.errors import ConfigError
from trt_compress.methods.vision import VTC_CLS, VtcClsConfig
from trt_compress.models.compressors.base import (
    Compressor,
    after_attention,
    check_layer,
    num_patches_kept,
    refuse_without_class_token,
)
from trt_compress.models.compressors.padding import PaddedSelection, Selected
from trt_compress.models.compressors.passing import Taps, Tokens
from trt_compress.models.compressors.sites import Arrival, HostInfo, Placement, Site, Tap
from trt_compress.models.compressors.vision.behind import behind_tower
from trt_compress.plugins.token_select.op import token_select


class VtcCls(Compressor):
    """Keep the patches of the largest class attention, summed over layers, in their order."""

    method = VTC_CLS
    asks = frozenset({"class_attention"})
    layer_option = "last_layer=…"
    takes_padding = True

    @classmethod
    def placements(cls, config: VtcClsConfig, host: HostInfo) -> tuple[Placement, ...]:
        """After the attention of the last layer that counts, or behind the tower."""
        refuse_without_class_token("vtc_cls", host)
        layers = cls._layers(config, host)
        return behind_tower() if config.behind else after_attention(layers[-1:])

    @classmethod
    def taps(cls, config: VtcClsConfig, host: HostInfo, site: Site) -> tuple[Tap, ...]:
        """Class attention of every layer that counts."""
        return tuple(Tap(kind="class_attention", layer=layer) for layer in cls._layers(config, host))

    @classmethod
    def _layers(cls, config: VtcClsConfig, host: HostInfo) -> tuple[int, ...]:
        """The layers whose attention is summed."""
        usual = host.depth - (1 if config.behind else 2)
        last = max(0, usual) if config.last_layer is None else config.last_layer
        (last,) = check_layer("vtc_cls", last, host)
        first = min(host.depth // 2, last) if config.first_layer is None else config.first_layer
        if first > last:
            raise ConfigError(
                f"vtc_cls: first_layer={first} is behind last_layer={last} of {host.name}; give at most {last}."
            )
        return tuple(range(first, last + 1))

    def __init__(self, config: VtcClsConfig, arrival: Arrival) -> None:
        super().__init__(config, arrival)
        host = arrival.host
        self.layers = self._layers(config, host)
        self.num_prefix = arrival.prefix
        kept = num_patches_kept(arrival.patches, config.keep_ratio) if config.num_kept is None else config.num_kept
        if kept > arrival.patches:
            raise ConfigError(
                f"vtc_cls: num_kept={kept} is too large for the {arrival.patches} patches at layer {arrival.layer} of "
                f"{arrival.host.name}; give at most {arrival.patches}."
            )
        self.tokens_out = arrival.prefix + kept
        self.padded: PaddedSelection | None = None
        if host.padded:
            ratio, most = config.keep_ratio, config.num_kept
            self.padded = PaddedSelection(
                arrival.tokens,
                arrival.prefix,
                lambda patches: num_patches_kept(patches, ratio) if most is None else min(most, patches),
            )

    def forward(self, tokens: Tokens, taps: Taps) -> Tokens:
        """Drop the patches of the least class attention in all these layers together."""
        score = summed(torch.stack([taps.of("class_attention", layer) for layer in self.layers]))
        if self.padded is not None:
            kept: Selected = self.padded(tokens, score, "position")
            return kept.tokens
        x, index, _ = token_select(tokens.x, score, num_kept=self.tokens_out, forced=range(self.num_prefix))
        return tokens.at(x, index)


def summed(attention: Tensor) -> Tensor:
    """Scores [B, N] of the class attention [L, B, N] of several layers, in float32."""
    return attention.float().sum(dim=0)
