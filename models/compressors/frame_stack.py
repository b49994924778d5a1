"""Stacking of audio frames: neighbours are laid side by side, and a projector makes tokens of them (LLaMA-Omni)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from trt_compress.errors import ConfigError
from trt_compress.methods.audio import FRAME_STACK, FrameStackConfig
from trt_compress.models.compressors.base import Compressor
from trt_compress.models.compressors.calibration import (
    Batch,
    Calibrated,
    CalibrationData,
    CalibrationHost,
    artifact_tensors,
)
from trt_compress.models.compressors.passing import Taps, Tokens
from trt_compress.models.compressors.sites import Arrival, HostInfo, Placement

_LAYERS = ("linear1", "linear2")
_PREFIXES = ("model.speech_projector.", "speech_projector.", "")


class StackProjector(nn.Module):
    """Linear, and behind it ReLU and another Linear if there is one, on stacked frames."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        for layer in _LAYERS:
            if f"{layer}.weight" in weights:
                out, width = weights[f"{layer}.weight"].shape
                setattr(self, layer, nn.Linear(width, out))
                self.width_out = out
        self.load_state_dict(weights)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [B, M, width out] of stacked frames [B, M, stride * C]."""
        first, *more = (getattr(self, layer) for layer in _LAYERS if hasattr(self, layer))
        out: Tensor = first(x)
        return more[0](torch.relu(out)) if more else out


def stack_frames(x: Tensor, stride: int) -> Tensor:
    """[B, N, C] to [B, N // stride, stride * C]; frames that fill no window are dropped."""
    batch, n, channels = x.shape
    return x[:, : n // stride * stride].reshape(batch, n // stride, stride * channels)


def projector_of(tensors: Mapping[str, Tensor], where: str, width: int | None = None) -> dict[str, Tensor]:
    """The tensors of a projector, in float32.

    Args:
        tensors: linear1 alone, or linear1 and linear2, with weight and bias; what else is there is left out where
            they stand below a speech_projector, as in a checkpoint of LLaMA-Omni.
        where: What they are of, for messages.
        width: Channels of stacked frames; None: not known yet.

    Raises:
        ConfigError: some are missing or do not fit; they are named.
    """
    found: dict[str, Tensor] = {}
    for prefix in _PREFIXES:
        found = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(f"{prefix}linear")}
        if found:
            break
    wanted = [f"{layer}.{part}" for layer in _LAYERS for part in ("bias", "weight")]
    if sorted(found) not in (wanted, wanted[:2]):
        raise ConfigError(
            f"frame_stack: {where} has {', '.join(sorted(found)) or 'no linear1 and linear2'}; a projector is "
            f"{', '.join(wanted)}, or the first two alone."
        )
    if wrong := [name for name, tensor in found.items() if not tensor.is_floating_point()]:
        raise ConfigError(f"frame_stack: {where} holds {wrong[0]} in {found[wrong[0]].dtype}; give floating point.")
    shapes = [tuple(found[f"{layer}.weight"].shape) for layer in _LAYERS[: len(found) // 2]]
    biases = [tuple(found[f"{layer}.bias"].shape) for layer in _LAYERS[: len(found) // 2]]
    ends = [width, *(shape[0] for shape in shapes if shape)]
    fits = all(
        len(shape) == 2 and (taken is None or shape[1] == taken) and bias == shape[:1]
        for shape, bias, taken in zip(shapes, biases, ends, strict=False)
    )
    if not fits:
        said = " and ".join(f"{layer}.weight {list(shape)}" for layer, shape in zip(_LAYERS, shapes, strict=False))
        raise ConfigError(
            f"frame_stack: {where} has {said}; here they must be [hidden, {width or 'stride * channels'}] and [out, "
            "hidden]. Check stride."
        )
    return {name: tensor.float() for name, tensor in found.items()}


class FrameStack(Compressor):
    """Stack neighbouring frames behind the encoder."""

    method = FRAME_STACK
    positions = "renumbered"
    keeps_prefix = False
    takes_padding = True

    @classmethod
    def placements(cls, config: Any, host: HostInfo) -> tuple[Placement, ...]:
        """Behind the encoder."""
        return (Placement(kind="encoder_output"),)

    @classmethod
    def calibrate(cls, host: CalibrationHost, data: CalibrationData, config: FrameStackConfig) -> Calibrated:
        """A projection back to the width of one frame.

        Of all linear projections to that width it is the one from which the stacked frames come back with the least
        squared error (their principal components), turned, within these, towards the mean of the frames (orthogonal
        Procrustes), so that what reads frames can read them. The score `variance_kept` is the share of the held-out
        stacks' variance that comes back; `variance_kept_by_mean` is what the mean of the frames alone would keep.
        """
        fit = _sums(host, data.fit, config.stride)
        width, channels = fit.total.shape[0], fit.total.shape[0] // config.stride
        if fit.count <= width:
            raise ConfigError(
                f"frame_stack: {fit.count} stacks of frames are too few to calibrate a projector for {width} channels; "
                f"give data with more than {width}."
            )
        basis = torch.linalg.eigh(fit.covariance()).eigenvectors[:, -channels:]
        mean_of_frames = torch.eye(channels, dtype=torch.float64).repeat(1, config.stride) / config.stride
        left, _, right = torch.linalg.svd(mean_of_frames @ fit.covariance() @ basis, full_matrices=False)
        projection = left @ right @ basis.T / config.stride**0.5
        bias = (mean_of_frames - projection) @ fit.mean
        held_out = _sums(host, data.held_out, config.stride)
        mean_basis = mean_of_frames.T * config.stride**0.5
        return Calibrated(
            tensors={"linear1.weight": projection.float().contiguous(), "linear1.bias": bias.float()},
            score={
                "variance_kept": held_out.kept_by(basis, fit.mean),
                "variance_kept_by_mean": held_out.kept_by(mean_basis, fit.mean),
            },
        )

    @classmethod
    def adopt(cls, tensors: Mapping[str, Tensor], config: FrameStackConfig) -> Mapping[str, Tensor]:
        """linear1 and linear2 of LLaMA-Omni's speech_projector."""
        return projector_of(tensors, "the file")

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
            tensors = artifact_tensors(config.projector, "frame_stack: projector")
            self.projector = StackProjector(projector_of(tensors, str(config.projector), self.width_out))
            self.width_out = self.projector.width_out

    def forward(self, tokens: Tokens, taps: Taps) -> Tokens:
        """Stack the frames, and project them if there is a projector."""
        x = stack_frames(tokens.x[:, self.num_prefix :], self.stride)
        size, position, valid = None, tokens.position, tokens.valid
        if valid is not None:
            valid = stack_frames(valid[:, self.num_prefix :, None], self.stride).all(dim=2)
        if tokens.size is not None:
            size = stack_frames(tokens.size[:, self.num_prefix :], self.stride).sum(dim=2, keepdim=True)
        if position is not None:
            places = torch.arange(self.tokens_out, device=position.device)
            position = places.reshape(1, -1, *(1,) * (position.ndim - 2)).expand_as(position[:, : self.tokens_out])
        x = x if self.projector is None else self.projector(x)
        return replace(tokens, x=x, size=size, position=position, valid=valid)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sums:
    """Moments of stacked frames: their count, sum and sum of products, in float64."""

    count: int
    total: Tensor
    products: Tensor

    @property
    def mean(self) -> Tensor:
        return self.total / self.count

    def covariance(self) -> Tensor:
        return self.products / self.count - torch.outer(self.mean, self.mean)

    def kept_by(self, basis: Tensor, mean: Tensor) -> float:
        """The share of the squared distances from `mean` that lies in the span of orthonormal columns."""
        crossed = torch.outer(self.mean, mean)
        spread = self.products / self.count - crossed - crossed.T + torch.outer(mean, mean)
        return float(torch.trace(basis.T @ spread @ basis) / torch.trace(spread))


def _sums(host: CalibrationHost, batches: Iterable[Batch], stride: int) -> _Sums:
    sums: _Sums | None = None
    for passing in (seen for batch in host.observe(batches) for seen in batch.values()):
        frames = stack_frames(passing.tokens.x[:, passing.arrival.prefix :], stride).flatten(0, 1).double()
        new = _Sums(count=len(frames), total=frames.sum(dim=0), products=frames.T @ frames)
        sums = (
            new
            if sums is None
            else _Sums(
                count=sums.count + new.count, total=sums.total + new.total, products=sums.products + new.products
            )
        )
    if sums is None or not sums.count:
        raise ConfigError(f"frame_stack: no {stride} frames of the data stand side by side; give a smaller stride.")
    return sums
