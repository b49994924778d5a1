"""Small Vision Transformers with random weights that matter: 4 blocks, 16 patches of 4 by 4 pixels."""

from typing import Any

import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from trt_compress.methods import parse_spec
from trt_compress.models.hosts.timm_vit import CompressedViT, attach

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "distilled": {"distilled": True},
    "registers": {"reg_tokens": 3},
    "registers_after_positions": {"reg_tokens": 3, "no_embed_class": True},
    "positions_without_class": {"no_embed_class": True},
    "pre_norm": {"pre_norm": True, "norm_layer": nn.LayerNorm},
    "avg": {"global_pool": "avg"},
    "avg_with_prefix": {"global_pool": "avg", "pool_include_prefix": True},
    "avg_without_class": {"global_pool": "avg", "class_token": False},
    "avg_registers_without_class": {"global_pool": "avg", "class_token": False, "reg_tokens": 2},
    "avg_with_norm_before": {"global_pool": "avg", "fc_norm": False},
    "avgmax": {"global_pool": "avgmax"},
    "qk_norm": {"qk_norm": True},
    "norm_inside_attention_and_mlp": {"scale_attn_norm": True, "scale_mlp_norm": True},
    "layer_scale": {"init_values": 0.1},
    "no_biases": {"qkv_bias": False, "proj_bias": False},
    "dropout_in_training": {"drop_rate": 0.5, "proj_drop_rate": 0.5, "attn_drop_rate": 0.5, "drop_path_rate": 0.5},
}


def make_vit(variant: str = "plain", **more: Any) -> VisionTransformer:
    keywords: dict[str, Any] = {
        "img_size": 16,
        "patch_size": 4,
        "embed_dim": 32,
        "depth": 4,
        "num_heads": 2,
        "num_classes": 5,
    }
    keywords |= {**VARIANTS[variant], **more}
    cls = VisionTransformerDistilled if keywords.pop("distilled", False) else VisionTransformer
    torch.manual_seed(0)
    vit = cls(**keywords).eval()
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.2)
    return vit


def images(count: int = 3, channels: int = 3, size: int = 16) -> Tensor:
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(1))


def compress(vit: nn.Module, spec: str) -> CompressedViT:
    return attach(vit, parse_spec(spec), name="tiny")


def run(module: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        out: Tensor = module(x)
    return out
