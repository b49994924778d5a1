"""DynamicViT: small trained heads in front of a few layers say which patches are kept."""

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from trt_compress.errors import ConfigError, UnsupportedError
from trt_compress.methods.vision import DYNAMICVIT, DynamicVitConfig
from trt_compress.models.compressors.base import Compressor, layers_or_quarters
from trt_compress.models.compressors.calibration import artifact_tensors
from trt_compress.models.compressors.passing import Taps, Tokens
from trt_compress.models.compressors.sites import Arrival, HostInfo, Placement
from trt_compress.plugins.token_select.op import token_select

_PREFIXES = ("score_predictor.", "module.score_predictor.", "")


class Predictor(nn.Module):
    """One head; its tensors have the names of the authors' checkpoints."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_conv = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU())
        half, quarter = width // 2, width // 4
        self.out_conv = nn.Sequential(
            nn.Linear(width, half), nn.GELU(), nn.Linear(half, quarter), nn.GELU(), nn.Linear(quarter, 2)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logarithms of the probabilities that each patch is kept, and dropped: [B, N, C] to [B, N, 2]."""
        inner = self.in_conv(x)
        half = inner.shape[2] // 2
        mean = inner[:, :, half:].mean(dim=1, keepdim=True).expand(-1, inner.shape[1], -1)
        scores: Tensor = self.out_conv(torch.cat([inner[:, :, :half], mean], dim=2)).log_softmax(dim=2)
        return scores


def predictors_of(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The tensors of all heads, `0.in_conv.0.weight` and so on, in float32.

    Raises:
        ConfigError: there are none.
    """
    for prefix in _PREFIXES:
        found = {
            name.removeprefix(prefix): tensor.float()
            for name, tensor in tensors.items()
            if name.startswith(prefix) and name.removeprefix(prefix)[:1].isdigit()
        }
        if found:
            return found
    raise ConfigError(
        f"dynamicvit: {where} has no score_predictor, whose heads choose patches; give a checkpoint of DynamicViT."
    )


class DynamicVit(Compressor):
    """Drop what the head of a layer scores lowest, in front of it."""

    method = DYNAMICVIT

    @classmethod
    def placements(cls, config: DynamicVitConfig, host: HostInfo) -> tuple[Placement, ...]:
        """In front of layers that drop patches."""
        layers = layers_or_quarters("dynamicvit", config.layers, host)
        return (Placement(kind="before_layer", layers=layers),)

    @classmethod
    def adopt(cls, tensors: Mapping[str, Tensor], config: Any) -> Mapping[str, Tensor]:
        """The heads out of a checkpoint of the authors."""
        return predictors_of(tensors, "the file")

    def __init__(self, config: DynamicVitConfig, arrival: Arrival) -> None:
        super().__init__(config, arrival)
        host, self.prefix = arrival.host, arrival.prefix
        if config.predictor is None:
            raise ConfigError(
                "dynamicvit: predictor=FILE is missing; make it with `trt-compress calibrate MODEL --compress "
                "dynamicvit --tensors CHECKPOINT`."
            )
        if arrival.width is None:
            raise UnsupportedError(f"dynamicvit: {host.name} does not tell the width of its tokens; use evit or tome.")
        layers = layers_or_quarters("dynamicvit", config.layers, host)
        stage = layers.index(arrival.layer)
        where = f"predictor {config.predictor}"
        tensors = predictors_of(artifact_tensors(config.predictor, "dynamicvit: predictor"), where)
        heads = {int(name.partition(".")[0]) for name in tensors}
        if heads != set(range(len(layers))):
            raise ConfigError(
                f"dynamicvit: {where} has {len(heads)} heads, and layers={list(layers)} of {host.name} need "
                f"{len(layers)}; give layers= with as many layers."
            )
        mine = {name.partition(".")[2]: each for name, each in tensors.items() if name.startswith(f"{stage}.")}
        self.head = Predictor(arrival.width)
        wrong = [
            name for name, own in self.head.state_dict().items() if name not in mine or mine[name].shape != own.shape
        ]
        if wrong or len(mine) > len(self.head.state_dict()):
            raise ConfigError(
                f"dynamicvit: {where} does not fit the {arrival.width} channels of {host.name} "
                f"({wrong[0] if wrong else 'it has more tensors'}); give the heads that were trained for it."
            )
        self.head.load_state_dict(mine)
        every = host.num_tokens - host.num_prefix
        ratio = config.keep_ratio
        share = ratio[stage] if isinstance(ratio, tuple) else ratio ** (stage + 1)
        self.kept = min(max(1, int(every * share)), arrival.patches)
        self.tokens_out = arrival.prefix + self.kept

    def forward(self, tokens: Tokens, taps: Taps) -> Tokens:
        """The tokens in front, and the kept patches by falling score."""
        score = cast(Tensor, self.head(tokens.x[:, self.prefix :]))[..., 0].float()
        full = nn.functional.pad(score, (self.prefix, 0))
        x, index, _ = token_select(
            tokens.x, full, num_kept=self.prefix + self.kept, forced=range(self.prefix), order="score"
        )
        return tokens.at(x, index)
