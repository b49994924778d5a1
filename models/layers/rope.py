"""Rotary positions: cosines and sines of every position, and queries and keys turned by them.

Source: RoFormer, arXiv:2104.09864, in the halves that Llama's checkpoints are stored for (channel c is turned with
    c + D / 2); `RopeForm` says where the kinds come from.
Differs: frequencies of the kinds dynamic and longrope are those of the longest sequence (`RopeForm.at`).
"""

import math

import torch
from torch import Tensor

from trt_compress.models.layers.rope_form import RopeForm
from trt_compress.plugins.operator import cast


def frequencies(form: RopeForm, context: int) -> Tensor:
    """Radians a position, float32 [channels / 2], for sequences of up to `context` tokens."""
    form = form.at(context)
    powers = form.theta ** (torch.arange(0, form.channels, 2, dtype=torch.int64, device="cpu").float() / form.channels)
    if form.kind == "factors":
        return 1.0 / (torch.tensor(form.factors, device="cpu") * powers)
    if form.kind == "linear":
        return 1.0 / powers / form.factor
    if form.kind == "llama3":
        return _llama3(form, 1.0 / powers)
    return _yarn(form, powers) if form.kind == "yarn" else 1.0 / powers


class Rope:
    """Cosines and sines of one form; it holds no weights, and computes in float32 in every precision.

    Attributes:
        channels: Channels of a head that are turned, from the front.
    """

    def __init__(self, form: RopeForm, context: int) -> None:
        self.channels = form.channels
        self._gain = form.gain
        self._frequencies = frequencies(form, context)

    def table(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines for `turned`, [B, 1, T, channels], of positions int64 [B, T].

        Each stands there for both channels of a pair, and sines for the first of them with the sign that they have
        there, so that a layer has little left to do.
        """
        angles = positions.float()[:, None, :, None] * self._frequencies
        cosine, sine = angles.cos(), angles.sin()
        if self._gain != 1:
            cosine, sine = cosine * self._gain, sine * self._gain
        both = torch.cat([cosine, cosine], dim=-1), torch.cat([-sine, sine], dim=-1)
        return cast(both[0], dtype), cast(both[1], dtype)


def turned(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Heads [B, H, T, D] with their first channels turned by a table of `Rope`."""
    cosine, sine = table
    channels = cosine.shape[-1]
    front = x if channels == x.shape[-1] else x[..., :channels]
    first, second = front.chunk(2, dim=-1)
    y = front * cosine + torch.cat([second, first], dim=-1) * sine
    return y if front is x else torch.cat([y, x[..., channels:]], dim=-1)


def _llama3(form: RopeForm, plain: Tensor) -> Tensor:
    lengths = 2 * math.pi / plain
    long = lengths > form.original / form.low
    stretched = torch.where(long, plain / form.factor, plain)
    share = (form.original / lengths - form.low) / (form.high - form.low)
    between = ~long & ~(lengths < form.original / form.high)
    return torch.where(between, (1 - share) * stretched / form.factor + share * stretched, stretched)


def _yarn(form: RopeForm, powers: Tensor) -> Tensor:
    def channel(rotations: float) -> float:
        """The pair of channels that turns so often over the positions trained for."""
        turns = form.original / (rotations * 2 * math.pi)
        return form.channels * math.log(turns) / (2 * math.log(form.theta))

    low, high = channel(form.fast), channel(form.slow)
    if form.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, form.channels - 1)
    span = high - low or 0.001
    ramp = ((torch.arange(form.channels // 2, dtype=torch.float32, device="cpu") - low) / span).clamp(0, 1)
    kept = 1 - ramp
    return 1.0 / (form.factor * powers) * (1 - kept) + 1.0 / powers * kept
