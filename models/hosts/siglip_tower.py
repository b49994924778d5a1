"""SigLIP's towers of images from a directory: `hf:PATH`, model_type siglip, siglip2, or with _vision_model behind it.

There is no class token. The pooled vector is what a learned query attends to, where the model has that head. Of SigLIP
2 with pictures of any shape (siglip2) one shape is taken: the square that its positions are for, or `?img_size=`.

Source: SigLIP, arXiv:2303.15343; SigLIP 2, arXiv:2502.14786; transformers' models siglip and siglip2 for the names.
Differs: see models/hosts/vision_tower.py; siglip2 takes images of one size instead of padded rows of patches, so a
picture is resized to it without keeping its shape.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from trt_compress.errors import ConfigError
from trt_compress.models.compressors.passing import Tokens
from trt_compress.models.hosts.audio_encoder import Activation, check_sizes, known_fields
from trt_compress.models.hosts.base import LoadedHost
from trt_compress.models.hosts.clip_tower import ClipEmbeddings, ClipLayer, ClipMlp, named
from trt_compress.models.hosts.hf_directory import read_json
from trt_compress.models.hosts.vision_directory import TowerFamily, load_tower, pair
from trt_compress.models.hosts.vision_tower import Resampling, VisionTower
from trt_compress.models.layers.attention import attention, merge_heads, split_heads

MODEL_TYPES = ("siglip", "siglip_vision_model", "siglip2", "siglip2_vision_model")


@dataclass(frozen=True, slots=True, kw_only=True)
class SiglipConfig:
    """Sizes of a tower; names as in a checkpoint's config.json. `num_patches` is SigLIP 2's."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: Any = 224
    patch_size: Any = 16
    hidden_act: Activation = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6
    num_patches: int = 0

    def __post_init__(self) -> None:
        check_sizes("siglip", self, self.hidden_size, self.num_attention_heads)


class PoolingAttention(nn.Module):
    """The projections of a head that pools by attention, as torch's MultiheadAttention keeps them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.zeros(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)


class PoolingHead(nn.Module):
    """A learned query attends to all tokens."""

    def __init__(self, config: SiglipConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_attention_heads
        self.probe = nn.Parameter(torch.zeros(1, 1, width))
        self.attention = PoolingAttention(width)
        self.layernorm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.mlp = ClipMlp(width, config.intermediate_size, config.hidden_act)

    def forward(self, tokens: Tokens) -> Tensor:
        """[B, C] of finished tokens; a merged one counts as in the layers."""
        weights = self.attention.in_proj_weight.chunk(3)
        biases = self.attention.in_proj_bias.chunk(3)
        query, key, value = (
            split_heads(functional.linear(x, weight, bias), self.heads)
            for x, weight, bias in zip((self.probe, tokens.x, tokens.x), weights, biases, strict=True)
        )
        mixed, _ = attention(query, key, value, size=tokens.key_size)
        found: Tensor = self.attention.out_proj(merge_heads(mixed))
        return cast(Tensor, (found + self.mlp(self.layernorm(found)))[:, 0])


class SiglipTower(VisionTower):
    """SigLIP's tower.

    Args:
        config: Sizes.
        head: It has one that pools.
    """

    family = "siglip"
    row = "encoder.layers"
    patches = "embeddings.patch_embedding"
    table = ("embeddings.position_embedding.weight", 0)

    def __init__(self, config: SiglipConfig, *, head: bool) -> None:
        width, patch = config.hidden_size, pair(config.patch_size)
        super().__init__(size=pair(config.image_size), patch=patch, channels=config.num_channels, width=width)
        self.embeddings = ClipEmbeddings(width, config.num_channels, patch, self.num_tokens, class_token=False)
        layers = nn.ModuleList(
            ClipLayer(
                width, config.num_attention_heads, config.intermediate_size, config.hidden_act, config.layer_norm_eps
            )
            for _ in range(config.num_hidden_layers)
        )
        self.encoder = nn.ModuleDict({"layers": layers})
        self.post_layernorm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.head = PoolingHead(config) if head else None

    def embed(self, image: Tensor) -> Tensor:
        """Tokens [B, N, C] of images [B, channels, height, width]."""
        return cast(Tensor, self.embeddings(image))

    def finish(self, x: Tensor) -> Tensor:
        """The last normalisation."""
        return cast(Tensor, self.post_layernorm(x))

    def pooled(self, tokens: Tokens) -> Tensor | None:
        """What the head attends to; None: there is no head."""
        return None if self.head is None else cast(Tensor, self.head(tokens))

    @property
    def pooled_width(self) -> int:
        """Channels of `pooled`; 0: there is no head."""
        return 0 if self.head is None else self.width


class Siglip2Tower(SiglipTower):
    """SigLIP 2's tower for pictures of any shape, with one."""

    family = "siglip2"
    resampling = Resampling(mode="bilinear", antialias=True)


def _named(tensors: Mapping[str, Tensor], config: Mapping[str, Any], *, rows: bool) -> dict[str, Tensor]:
    """The tower's tensors under its own names; with `rows` the patches' layer is one of flattened pixels."""
    found = named(tensors)
    weight = found.get("embeddings.patch_embedding.weight")
    if rows and weight is not None and weight.ndim == 2:
        patch = pair(_config(config, rows=True).patch_size)
        found["embeddings.patch_embedding.weight"] = (
            weight.reshape(weight.shape[0], *patch, -1).permute(0, 3, 1, 2).contiguous()
        )
    return found


def _config(config: Mapping[str, Any], *, rows: bool) -> SiglipConfig:
    sizes = known_fields(SiglipConfig, config)
    if rows:
        count, patch = sizes.get("num_patches", 256), pair(sizes.get("patch_size", 16))
        side = math.isqrt(count)
        if side < 1 or side * side != count:
            raise ConfigError(
                f"siglip2: num_patches={count} form no square, for which the positions are; give another."
            )
        sizes["image_size"] = (side * patch[0], side * patch[1])
    return SiglipConfig(**sizes)


def _build(config: Mapping[str, Any], tensors: Mapping[str, Tensor], *, rows: bool) -> SiglipTower:
    tower = Siglip2Tower if rows else SiglipTower
    return tower(_config(config, rows=rows), head="head.probe" in tensors)


def _family(name: str, heads: tuple[str, ...], *, rows: bool) -> TowerFamily:
    return TowerFamily(name=name, heads=heads, named=partial(_named, rows=rows), build=partial(_build, rows=rows))


_FAMILIES = {
    "siglip": _family("siglip", ("SiglipVisionModel", "SiglipModel"), rows=False),
    "siglip2": _family("siglip2", ("Siglip2VisionModel", "Siglip2Model"), rows=True),
}


def load(path: Path, *, weights: str | None = None, **options: Any) -> LoadedHost:
    """Load SigLIP's tower from a directory; see `load_tower`."""
    model_type = str(read_json(path / "config.json").get("model_type"))
    return load_tower(_FAMILIES[model_type.removesuffix("_vision_model")], path, weights=weights, **options)
