"""What is timed end to end on a GPU: Vision Transformers with PyTorch's fused attention, and their baselines."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from trt_compress.methods import parse_spec
from trt_compress.models.compressors.passing import Taps, Tokens
from trt_compress.models.compressors.sites import Asked
from trt_compress.models.hosts.timm_vit import CompressedViT, attach
from trt_compress.tools.bench.textbook import TextbookTome


class FusedViT(nn.Module):
    """A compressed Vision Transformer whose attention is PyTorch's fused one; the sizes of merged tokens are its mask.

    The same function as `compressed` up to rounding. It is not the form that is exported: attention written out exports
    everywhere, and on a GPU it stores the attention matrix.

    Args:
        compressed: The model with its compressors, none of which may need the attention matrix; with token pooling.
    """

    def __init__(self, compressed: CompressedViT) -> None:
        super().__init__()
        self.compressed = compressed

    def forward(self, image: Tensor) -> Tensor:
        """Logits [B, classes] of images [B, channels, height, width]."""
        vit: Any = self.compressed.vit
        tokens, taps = Tokens(x=vit.norm_pre(vit._pos_embed(vit.patch_embed(image)))), Taps()
        for number, block in enumerate(vit.blocks):
            tokens = self.compressed.placed.layer(number, tokens, taps, partial(_attend, block), partial(_feed, block))
        logits: Tensor = vit.forward_head(vit.norm(tokens.x))
        return logits


def _attend(block: Any, tokens: Tokens, wanted: frozenset[Asked]) -> tuple[Tensor, Mapping[Asked, Tensor]]:
    attention, x, size = block.attn, block.norm1(tokens.x), tokens.key_size
    batch, n, channels = x.shape
    qkv = attention.qkv(x).reshape(batch, n, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
    q, k, v = qkv.unbind(0)
    mask = None if size is None else size.log().to(x.dtype).reshape(batch, 1, 1, n).expand(-1, -1, n, -1)
    out = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=attention.scale)
    update = block.ls1(attention.proj(out.transpose(1, 2).reshape(batch, n, channels)))
    return update, {"keys": k.mean(dim=1)} if "keys" in wanted else {}


def _feed(block: Any, x: Tensor) -> Tensor:
    update: Tensor = block.ls2(block.mlp(block.norm2(x)))
    return update


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedModel:
    """One model with the paper's setting, and what is wanted of it.

    Attributes:
        name: Of the record.
        make: The timm model.
        num_merged: Tokens merged in each block.
        wanted: Speed-up of the paper, at the largest batch.
        expected: Speed-up that is expected, by batch.
        why: How the expectation was come by.
    """

    name: str
    make: Callable[[], Any]
    num_merged: int
    wanted: float
    expected: dict[int, float]
    why: str

    @property
    def spec(self) -> str:
        """The compressor."""
        return f"tome:num_merged={self.num_merged}"

    def variants(self, device: torch.device, dtype: torch.dtype) -> dict[str, nn.Module]:
        """Dense and merging forms of one model with the same random weights."""
        torch.manual_seed(0)
        vit = self.make().to(device, dtype).eval()
        merging = attach(vit, parse_spec(self.spec), name=self.name).eval()
        plain = attach(vit, (), name=self.name).eval()
        return {
            "dense": vit,
            "dense, attention written out": plain,
            "tome": FusedViT(merging).eval(),
            "tome, attention written out": merging,
            "textbook": TextbookTome(vit, self.num_merged).eval(),
        }


def _timm(name: str) -> Callable[[], Any]:
    def make() -> Any:
        import timm

        return timm.create_model(name, pretrained=False)

    return make


def _tiny() -> Any:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=2, num_classes=10)


_ATTENTION = "merged tokens weigh attention by a mask, which leaves flash attention for the efficient kernel"
MODELS = (
    TimedModel(
        name="vit_large_patch16_224",
        make=_timm("vit_large_patch16_224"),
        num_merged=7,
        wanted=1.76,
        expected={1: 0.95, 8: 1.15, 64: 1.6},
        why=f"half the operations; 24 merges of some 45 us at batch 64 are 7 % of the dense time; {_ATTENTION}",
    ),
    TimedModel(
        name="vit_base_patch16_224",
        make=_timm("vit_base_patch16_224"),
        num_merged=13,
        wanted=1.65,
        expected={1: 0.9, 8: 1.0, 64: 1.45},
        why=f"half the operations; 12 merges of some 45 us at batch 64 are 11 % of the dense time; {_ATTENTION}",
    ),
)
TINY = (TimedModel(name="tiny", make=_tiny, num_merged=3, wanted=1.0, expected={1: 1.0, 2: 1.0}, why="a rehearsal"),)
BATCHES = (64, 8, 1)
TINY_BATCHES = (2, 1)


def flops(vit: Any, num_merged: int, image: int) -> int:
    """Floating-point operations of one image: patch embedding, matrix products of the blocks, attention."""
    channels, depth = int(vit.embed_dim), len(vit.blocks)
    patch = int(vit.patch_embed.patch_size[0])
    tokens = (image // patch) ** 2 + int(vit.num_prefix_tokens)
    total = 2 * (image // patch) ** 2 * 3 * patch**2 * channels
    for _ in range(depth):
        total += 2 * (4 * tokens * channels**2 + 2 * tokens**2 * channels)
        tokens -= num_merged
        total += 2 * 8 * tokens * channels**2
    return total
