"""Layers of the 3D detector: how images become tokens, blocks of the backbone, and a decoder that knows distances.

Source: Early Convolutions Help Transformers See Better, arXiv:2106.14881 (stem); ViT, arXiv:2010.11929 (blocks).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from trt_compress.models.layers.attention import attention, merge_heads, split_heads

_SLOPES_PER_M = (0.1, 3.0)  # of the first head and of the last, before training


class Stem(nn.Module):
    """Images to tokens: convolutions that halve the image, then patches, each after a look at what is beside.

    Args:
        channels: After each of the convolutions that halve the image.
        embed_dim: Width C of the tokens.
        patch_size: Pixels along a token's side, a multiple of 2 ** len(channels).
    """

    def __init__(self, channels: Sequence[int], embed_dim: int, patch_size: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in zip((3, *channels), channels, strict=False):
            layers += [nn.Conv2d(before, after, 3, 2, 1), nn.GELU()]
        wide, patch = (3, *channels)[-1], patch_size // 2 ** len(channels)
        self.fine = nn.Sequential(*layers)
        self.beside = nn.Conv2d(wide, wide, 3, 1, 1)
        self.patches = nn.Conv2d(wide, embed_dim, patch, patch)
        self.around = nn.Conv2d(embed_dim, embed_dim, 3, 1, 1)
        self.norm = nn.LayerNorm(embed_dim)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Images [R, 3, height, width], about -1 to 1, to tokens [R, rows, columns, C]."""
        x = self.fine(images)
        x = self.patches(x + functional.gelu(self.beside(x)))
        x = x + self.around(functional.gelu(x))
        out: Tensor = self.norm(x.permute(0, 2, 3, 1))
        return out


class SelfAttention(nn.Module):
    """Attention of tokens to each other, its three projections in one.

    Args:
        channels: Width of the tokens.
        num_heads: Heads.
    """

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [R, N, C] to the attention's update of them."""
        rows, n, _ = x.shape
        qkv = self.qkv(x).reshape(rows, n, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        out: Tensor = self.out(merge_heads(attention(q, k, v)[0]))
        return out


class Block(nn.Module):
    """A pre-norm Transformer block that says what it adds.

    Args:
        channels: Width of the tokens.
        num_heads: Heads.
        mlp_ratio: Width of the hidden layer, over `channels`.
    """

    def __init__(self, channels: int, num_heads: int, mlp_ratio: float) -> None:
        super().__init__()
        hidden = int(channels * mlp_ratio)
        self.norm1, self.norm2 = nn.LayerNorm(channels, eps=1e-6), nn.LayerNorm(channels, eps=1e-6)
        self.attention = SelfAttention(channels, num_heads)
        self.mlp = nn.Sequential(nn.Linear(channels, hidden), nn.GELU(), nn.Linear(hidden, channels))

    def forward(self, x: Tensor) -> Tensor:
        """The update of tokens [R, N, C]."""
        attended: Tensor = self.attention(self.norm1(x))
        update: Tensor = attended + self.mlp(self.norm2(x + attended))
        return update


class DistanceAttention(nn.Module):
    """Attention whose heads look less at what is farther away, each with a slope of its own.

    Args:
        channels: Width of queries, keys and values.
        num_heads: Heads.
    """

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q, self.k, self.v, self.out = (nn.Linear(channels, channels) for _ in range(4))
        low, high = _SLOPES_PER_M
        self.log_slope = nn.Parameter(torch.linspace(math.log(low), math.log(high), num_heads))

    def forward(self, q: Tensor, k: Tensor, v: Tensor, distance: Tensor) -> Tensor:
        """Attend from q [B, M, C] to k and v [B, N, C] that are `distance` [B, M, N] metres away."""
        heads = self.num_heads
        bias = -self.log_slope.exp()[:, None, None] * distance[:, None]
        mixed, _ = attention(
            split_heads(self.q(q), heads), split_heads(self.k(k), heads), split_heads(self.v(v), heads), bias=bias
        )
        out: Tensor = self.out(merge_heads(mixed))
        return out


class DecoderBlock(nn.Module):
    """Queries look at each other, then at the tokens of all cameras.

    Args:
        channels: Width of queries and tokens.
        num_heads: Heads.
    """

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(3))
        self.among, self.toward = (DistanceAttention(channels, num_heads) for _ in range(2))
        self.mlp = nn.Sequential(nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels))

    def forward(self, query: Tensor, where: Tensor, memory: Tensor, apart: Tensor, away: Tensor) -> Tensor:
        """Update the queries.

        Args:
            query: [B, Q, C].
            where: Embedding of their places, [B, Q, C].
            memory: Tokens of all cameras, [B, V * N, C].
            apart: Metres from query to query, [B, Q, Q].
            away: Metres from query to what a token shows, [B, Q, V * N].
        """
        x = self.norms[0](query)
        query = query + self.among(x + where, x + where, x, apart)
        query = query + self.toward(self.norms[1](query) + where, memory, memory, away)
        out: Tensor = query + self.mlp(self.norms[2](query))
        return out


def distances(points: Tensor, others: Tensor) -> Tensor:
    """Metres on the ground from points [B, M, 3] to others [B, N, 3]: [B, M, N]."""
    off = points[:, :, None, :2] - others[:, None, :, :2]
    return (off.square().sum(dim=-1) + 1e-6).sqrt()
