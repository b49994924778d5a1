"""The decoder that audio codecs share: ConvNeXt blocks over frames, and a head that predicts a spectrum (Vocos).

Source: Vocos, arXiv:2306.00814; WavTokenizer, arXiv:2408.16532, which puts residual blocks and an attention before
them; XY-Tokenizer, arXiv:2506.23325.
Differs: none; tensors have the names of the official checkpoints.
"""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from trt_compress.models.hosts.spectral import InverseStft
from trt_compress.models.layers.attention import attention

GROUPS = 32
EPSILON = 1e-6
LARGEST_MAGNITUDE = 100.0


@dataclass(frozen=True, slots=True, kw_only=True)
class VocosConfig:
    """Sizes of the decoder.

    Attributes:
        input_channels: Channels of a frame that comes.
        dim: Width; a multiple of 32 if there is a position net.
        intermediate_dim: Width inside a ConvNeXt block.
        num_layers: ConvNeXt blocks.
        n_fft: Samples of a spectrum's frame.
        hop: Samples from frame to frame.
        adanorm_num_embeddings: Rows of the adaptive normalisations; 0: plain ones.
        position_net: Residual blocks and an attention before the ConvNeXt blocks, as in WavTokenizer.
    """

    input_channels: int
    dim: int
    intermediate_dim: int
    num_layers: int
    n_fft: int
    hop: int
    adanorm_num_embeddings: int = 0
    position_net: bool = False


class AdaptiveNorm(nn.Module):
    """Layer normalisation whose scale and shift are chosen by a number; `row` is that number."""

    def __init__(self, rows: int, dim: int, row: int = 0) -> None:
        super().__init__()
        self.row = row
        self.scale, self.shift = nn.Embedding(rows, dim), nn.Embedding(rows, dim)
        nn.init.ones_(self.scale.weight)
        nn.init.zeros_(self.shift.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise frames [B, F, dim]."""
        x = functional.layer_norm(x, x.shape[-1:], eps=EPSILON)
        return x * self.scale.weight[self.row] + self.shift.weight[self.row]


def _norm(config: VocosConfig) -> nn.Module:
    rows = config.adanorm_num_embeddings
    return AdaptiveNorm(rows, config.dim) if rows else nn.LayerNorm(config.dim, eps=EPSILON)


class ConvNextBlock(nn.Module):
    """A depthwise convolution over time, and a feed-forward part over channels."""

    def __init__(self, config: VocosConfig) -> None:
        super().__init__()
        dim = config.dim
        self.dwconv = nn.Conv1d(dim, dim, kernel_size=7, padding=3, groups=dim)
        self.norm = _norm(config)
        self.pwconv1 = nn.Linear(dim, config.intermediate_dim)
        self.pwconv2 = nn.Linear(config.intermediate_dim, dim)
        self.gamma = nn.Parameter(torch.full((dim,), 1 / config.num_layers))

    def forward(self, x: Tensor) -> Tensor:
        """Frames [B, dim, F] to the same."""
        inner = self.norm(self.dwconv(x).transpose(1, 2))
        inner = self.gamma * self.pwconv2(functional.gelu(self.pwconv1(inner)))
        return cast(Tensor, x + inner.transpose(1, 2))


class ResidualBlock(nn.Module):
    """Two convolutions, each behind a group normalisation and a SiLU."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(GROUPS, dim, eps=EPSILON), nn.GroupNorm(GROUPS, dim, eps=EPSILON)
        self.conv1, self.conv2 = nn.Conv1d(dim, dim, 3, padding=1), nn.Conv1d(dim, dim, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Frames [B, dim, F] to the same."""
        inner = self.conv1(functional.silu(self.norm1(x)))
        return cast(Tensor, x + self.conv2(functional.silu(self.norm2(inner))))


class FrameAttention(nn.Module):
    """Attention of one head over all frames."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, dim, eps=EPSILON)
        self.q, self.k, self.v, self.proj_out = (nn.Conv1d(dim, dim, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """Frames [B, dim, F] to the same."""
        normed = self.norm(x)
        query, key, value = (part(normed).transpose(1, 2) for part in (self.q, self.k, self.v))
        mixed, _ = attention(query, key, value)
        return cast(Tensor, x + self.proj_out(mixed.transpose(1, 2)))


class VocosBackbone(nn.Module):
    """Frames of codes to frames that the head reads."""

    def __init__(self, config: VocosConfig) -> None:
        super().__init__()
        dim = config.dim
        self.embed = nn.Conv1d(config.input_channels, dim, kernel_size=7, padding=3)
        self.norm = _norm(config)
        self.convnext = nn.ModuleList(ConvNextBlock(config) for _ in range(config.num_layers))
        self.final_layer_norm = nn.LayerNorm(dim, eps=EPSILON)
        if config.position_net:
            blocks = [
                ResidualBlock(dim),
                ResidualBlock(dim),
                FrameAttention(dim),
                ResidualBlock(dim),
                ResidualBlock(dim),
            ]
            self.pos_net = nn.Sequential(*blocks, nn.GroupNorm(GROUPS, dim, eps=EPSILON))

    def forward(self, x: Tensor) -> Tensor:
        """Frames [B, input_channels, F] to [B, F, dim]."""
        x = self.embed(x)
        if hasattr(self, "pos_net"):
            x = self.pos_net(x)
        x = self.norm(x.transpose(1, 2)).transpose(1, 2)
        for block in self.convnext:
            x = block(x)
        return cast(Tensor, self.final_layer_norm(x.transpose(1, 2)))


class IstftHead(nn.Module):
    """Log magnitude and phase of every bin, and their waveform: F frames give F * hop samples."""

    def __init__(self, dim: int, n_fft: int, hop: int) -> None:
        super().__init__()
        self.out = nn.Linear(dim, n_fft + 2)
        self.istft = InverseStft(n_fft=n_fft, hop=hop)

    def forward(self, x: Tensor) -> Tensor:
        """Audio [B, F * hop] of frames [B, F, dim]; magnitudes above 100 are cut there."""
        log_magnitude, phase = self.out(x).transpose(1, 2).chunk(2, dim=1)
        magnitude = log_magnitude.exp().clamp_max(LARGEST_MAGNITUDE)
        return cast(Tensor, self.istft(magnitude * phase.cos(), magnitude * phase.sin()))
