"""Token Merging as one would write it in PyTorch: argsort, gather, scatter. The export to beat.

Source: ToMe, arXiv:2210.09461, section 3; written here to be exported straight by torch.onnx.export.
"""

from typing import Any

import torch
from torch import Tensor, nn


class TextbookTome(nn.Module):
    """A timm Vision Transformer with a class token that merges `num_merged` tokens in every block.

    Args:
        vit: The model.
        num_merged: Tokens merged in each block.
    """

    def __init__(self, vit: nn.Module, num_merged: int) -> None:
        super().__init__()
        self.vit: Any = vit
        self.num_merged = num_merged

    def forward(self, image: Tensor) -> Tensor:
        """Logits of images [B, channels, height, width]."""
        vit = self.vit
        x = vit.norm_pre(vit._pos_embed(vit.patch_embed(image)))
        size = torch.ones_like(x[..., :1])
        for index, block in enumerate(vit.blocks):
            out, keys = _attention(block.attn, block.norm1(x), size if index else None)
            x, size = merge(x + block.ls1(out), keys, size, self.num_merged)
            x = x + block.ls2(block.mlp(block.norm2(x)))
        logits: Tensor = vit.forward_head(vit.norm(x))
        return logits


def merge(x: Tensor, keys: Tensor, size: Tensor, num_merged: int) -> tuple[Tensor, Tensor]:
    """Merge tokens [B, N, C] by the similarity of their keys [B, N, D], weighted by size [B, N, 1]."""
    unit = keys / keys.norm(dim=-1, keepdim=True)
    a, b = unit[:, ::2], unit[:, 1::2]
    scores = a @ b.transpose(-1, -2)
    row = torch.arange(scores.shape[1], device=scores.device)
    scores = scores.masked_fill((row == 0)[None, :, None], float("-inf"))
    best, partner = scores.max(dim=-1)
    ranking = best.argsort(dim=-1, descending=True)[..., None]
    kept = ranking[:, num_merged:].sort(dim=1).values
    source = ranking[:, :num_merged]
    target = partner[..., None].gather(1, source)

    def combine(values: Tensor) -> Tensor:
        even, odd = values[:, ::2], values[:, 1::2]
        width = values.shape[-1]
        moved = even.gather(1, source.expand(-1, -1, width))
        odd = odd.scatter_reduce(1, target.expand(-1, -1, width), moved, reduce="sum")
        return torch.cat([even.gather(1, kept.expand(-1, -1, width)), odd], dim=1)

    total = combine(x * size)
    size = combine(size)
    return total / size, size


def _attention(attention: Any, x: Tensor, size: Tensor | None) -> tuple[Tensor, Tensor]:
    batch, n, channels = x.shape
    qkv = attention.qkv(x).reshape(batch, n, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
    q, k, v = qkv.unbind(0)
    logits = (q * attention.scale) @ k.transpose(-2, -1)
    if size is not None:
        logits = logits + size.log()[:, None, None, :, 0]
    out = (logits.softmax(dim=-1) @ v).transpose(1, 2).reshape(batch, n, channels)
    return attention.proj(out), k.mean(1)
