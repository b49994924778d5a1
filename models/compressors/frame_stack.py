"""Stacking of audio frames: neighbours are laid side by side, and a projector makes tokens of them (LLaMA-Omni)."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trt_compress.errors import ConfigError
from trt_compress.methods.audio import FRAME_STACK, FrameStackConfig
from trt_compress.models.compressors.base import Compressor
from trt_compress.models.compressors.passing import Taps, Tokens
from trt_compress.models.compressors.sites import Arrival, HostInfo, Placement

_LAYERS = ("linear1", "linear2")
_PREFIXES = ("model.speech_projector.", "speech_projector.", "")


class StackProjector(nn.Module):
    """Linear, ReLU, Linear on stacked frames."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        sizes = [weights[f"{layer}.weight"].shape for layer in _LAYERS]
        self.linear1 = nn.Linear(sizes[0][1], sizes[0][0])
        self.linear2 = nn.Linear(sizes[1][1], sizes[1][0])
        self.load_state_dict(weights)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [B, M, width out] of stacked frames [B, M, stride * C]."""
        out: Tensor = self.linear2(torch.relu(self.linear1(x)))
        return out


def stack_frames(x: Tensor, stride: int) -> Tensor:
    """[B, N, C] to [B, N // stride, stride * C]; frames that fill no window are dropped."""
    batch, n, channels = x.shape
    return x[:, : n // stride * stride].reshape(batch, n // stride, stride * channels)


def read_projector(path: Path, width: int) -> StackProjector:
    """Load a projector for stacked frames of `width` channels.

    Raises:
        ConfigError: the file cannot be read, or its tensors do not fit; they are named.
    """
    from trt_compress.models.hosts.weights import read_tensors, require_floating

    tensors = read_tensors(path)
    found: dict[str, Tensor] = {}
    for prefix in _PREFIXES:
        found = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(f"{prefix}linear")}
        if found:
            break
    wanted = {f"{layer}.{part}" for layer in _LAYERS for part in ("weight", "bias")}
    if found.keys() != wanted:
        raise ConfigError(
            f"frame_stack: {path} has {', '.join(sorted(found)) or 'no linear1 and linear2'}; a projector is "
            f"{', '.join(sorted(wanted))}."
        )
    require_floating(found, path.name)
    first, second = found["linear1.weight"], found["linear2.weight"]
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != width or second.shape[1] != first.shape[0]:
        raise ConfigError(
            f"frame_stack: {path} has linear1.weight {list(first.shape)} and linear2.weight {list(second.shape)}; "
            f"here they must be [hidden, {width}] and [out, hidden]. Check stride."
        )
    return StackProjector({name: tensor.float() for name, tensor in found.items()})


class FrameStack(Compressor):
    """Stack neighbouring frames behind the encoder."""

    method = FRAME_STACK
    positions = "renumbered"
    keeps_prefix = False

    @classmethod
    def placements(cls, config: Any, host: HostInfo) -> tuple[Placement, ...]:
        """Behind the encoder."""
        return (Placement(kind="encoder_output"),)

    def __init__(self, config: FrameStackConfig, arrival: Arrival) -> None:
        super().__init__(config, arrival)
        host, frames = arrival.host, arrival.patches
        if arrival.width is None:
            raise ConfigError(f"frame_stack: {host.name} does not tell the width of its tokens; use frame_pool.")
        self.stride, self.num_prefix = config.stride, arrival.prefix
        if config.stride > frames:
            raise ConfigError(
                f"frame_stack: stride={config.stride} is larger than the {frames} frames of {host.name}; give at most "
                f"{frames}."
            )
        self.tokens_out = frames // config.stride
        self.width_out = config.stride * arrival.width
        self.projector: StackProjector | None = None
        if config.projector is not None:
            self.projector = read_projector(Path(config.projector), self.width_out)
            self.width_out = self.projector.linear2.out_features

    def forward(self, tokens: Tokens, taps: Taps) -> Tokens:
        """Stack the frames, and project them if there is a projector."""
        x = stack_frames(tokens.x[:, self.num_prefix :], self.stride)
        size, position = None, tokens.position
        if tokens.size is not None:
            size = stack_frames(tokens.size[:, self.num_prefix :], self.stride).sum(dim=2, keepdim=True)
        if position is not None:
            places = torch.arange(self.tokens_out, device=position.device)
            position = places.reshape(1, -1, *(1,) * (position.ndim - 2)).expand_as(position[:, : self.tokens_out])
        return replace(tokens, x=x if self.projector is None else self.projector(x), size=size, position=position)
