"""H-Reducer: neighbouring patches of a row become one token by two convolutions and a projection."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from trt_compress.errors import ConfigError
from trt_compress.methods.towers import H_REDUCER, HReducerConfig
from trt_compress.models.compressors.base import Compressor, averaged
from trt_compress.models.compressors.calibration import artifact_tensors
from trt_compress.models.compressors.passing import Taps, Tokens
from trt_compress.models.compressors.sites import Arrival, HostInfo, Placement
from trt_compress.models.compressors.vision.behind import behind_tower, need_grid

_NAMES = (
    "reducer.bias",
    "reducer.weight",
    "reducer_before.0.bias",
    "reducer_before.0.weight",
    "visual_fc.bias",
    "visual_fc.weight",
    "vit_eos",
)
_PREFIXES = ("model.vision2text.", "vision2text.", "")


def reducer_of(tensors: Mapping[str, Tensor], where: str, width: int | None = None) -> dict[str, Tensor]:
    """The tensors of an H-Reducer, in float32.

    Args:
        tensors: What is given, with or without the name of the model's part in front.
        where: What they are of, for messages.
        width: Channels of the patches; None: not known yet.

    Raises:
        ConfigError: some are missing or do not fit; they are named.
    """
    each = ({name: tensors[prefix + name] for name in _NAMES if prefix + name in tensors} for prefix in _PREFIXES)
    found: dict[str, Tensor] = next(filter(None, each), {})
    if missing := [name for name in _NAMES if name not in found]:
        raise ConfigError(f"h_reducer: {where} misses {', '.join(missing)}; give the tensors of vision2text.")
    if wrong := [name for name, tensor in found.items() if not tensor.is_floating_point()]:
        raise ConfigError(f"h_reducer: {where} holds {wrong[0]} in {found[wrong[0]].dtype}; give floating point.")
    last, first, out = (found[f"{name}.weight"] for name in ("reducer", "reducer_before.0", "visual_fc"))
    channels = last.shape[0]
    window = tuple(last.shape[2:])
    fits = (
        last.ndim == 4
        and tuple(last.shape[:2]) == (channels, width or channels)
        and tuple(first.shape) == (channels * last[0, 0].numel(), channels, *window)
        and out.ndim == 2
        and out.shape[1] == channels
        and tuple(found["vit_eos"].shape) == (1, 1, out.shape[0])
        and all(
            found[name].shape == found[name.replace("bias", "weight")].shape[:1] for name in _NAMES if "bias" in name
        )
    )
    if not fits:
        shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in sorted(found.items()))
        raise ConfigError(
            f"h_reducer: {where} has {shapes}, which do not fit together for patches of {width or channels} channels; "
            "give those of one model."
        )
    return {name: tensor.float() for name, tensor in found.items()}


class HReducer(Compressor):
    """A connector: its tokens have the width of what reads them, and a learned one stands at the end."""

    method = H_REDUCER
    positions = "averaged"
    keeps_prefix = False

    @classmethod
    def placements(cls, config: HReducerConfig, host: HostInfo) -> tuple[Placement, ...]:
        """Behind the tower."""
        return behind_tower()

    @classmethod
    def adopt(cls, tensors: Mapping[str, Tensor], config: Any) -> Mapping[str, Tensor]:
        """Its tensors out of those of a model."""
        return reducer_of(tensors, "the file")

    def __init__(self, config: HReducerConfig, arrival: Arrival) -> None:
        super().__init__(config, arrival)
        self.grid, self.prefix = need_grid("h_reducer", arrival), arrival.prefix
        if config.weights is None:
            raise ConfigError(
                "h_reducer: weights=FILE is missing; make it with `trt-compress calibrate MODEL --compress h_reducer "
                "--tensors FILE`."
            )
        tensors = artifact_tensors(config.weights, "h_reducer: weights")
        tensors = reducer_of(tensors, str(config.weights), arrival.width)
        out, channels, high, wide = *tensors["visual_fc.weight"].shape, *tensors["reducer.weight"].shape[2:]
        self.reducer_before = nn.ModuleList([nn.Conv2d(channels, channels * high * wide, (high, wide), (high, wide))])
        self.reducer = nn.Conv2d(channels, channels, (high, wide), (high, wide))
        self.visual_fc = nn.Linear(channels, out)
        self.vit_eos = nn.Parameter(torch.zeros(1, 1, out))
        self.load_state_dict(tensors)
        rows, columns = self.grid
        if rows % high**2 or columns % wide:
            raise ConfigError(
                f"h_reducer: windows of {high} x {wide} patches, taken twice, do not divide the grid of {rows} x "
                f"{columns}; take a tower of another size."
            )
        self.share = high**2
        self.tokens_out = rows // high**2 * columns * high // wide + 1
        self.width_out = out
        self.window = (high, wide)

    def forward(self, tokens: Tokens, taps: Taps) -> Tokens:
        """The tokens by rows, and the learned one."""
        (high, wide), (rows, columns) = self.window, self.grid
        batch, channels = tokens.x.shape[0], tokens.x.shape[2]
        patches = tokens.x[:, self.prefix :].transpose(1, 2).reshape(batch, channels, rows, columns)
        inner = functional.gelu(self.reducer_before[0](patches))
        low, short, parts = rows // high, columns // wide, high * wide
        side_by_side = inner.reshape(batch, parts, channels, low, short).permute(0, 2, 3, 4, 1)
        mixed = self.reducer(side_by_side.reshape(batch, channels, low, short * parts))
        found = cast(Tensor, self.visual_fc(mixed.flatten(2).transpose(1, 2)))
        x = torch.cat([found, self.vit_eos.expand(batch, -1, -1)], dim=1)
        size = torch.full((batch, self.tokens_out, 1), rows * columns / (self.tokens_out - 1), device=x.device)
        size = torch.where(torch.arange(self.tokens_out, device=x.device)[:, None] < self.tokens_out - 1, size, 1.0)

        def middle(at: Tensor) -> Tensor:
            mean = functional.adaptive_avg_pool1d(at[:, self.prefix :].transpose(1, 2), self.tokens_out - 1)
            return torch.cat([mean.transpose(1, 2), at[:, -1:]], dim=1)

        return replace(tokens, x=x, size=size, position=averaged(tokens.position, middle))
