"""CLIP's tower of images from a directory: `hf:PATH`, model_type clip or clip_vision_model.

The pooled vector is the normalised class token, behind the projection to the space of texts where there is one. The
tower of texts is left out.

Source: CLIP, arXiv:2103.00020; transformers' model clip for the names of tensors.
Differs: see models/hosts/vision_tower.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from trt_compress.models.compressors.passing import Tokens
from trt_compress.models.hosts.audio_encoder import (
    ACTIVATIONS,
    Activation,
    EncoderLayer,
    WhisperAttention,
    check_sizes,
    known_fields,
)
from trt_compress.models.hosts.base import LoadedHost
from trt_compress.models.hosts.vision_directory import TowerFamily, load_tower, pair
from trt_compress.models.hosts.vision_tower import VisionTower

MODEL_TYPES = ("clip", "clip_vision_model")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipConfig:
    """Sizes of a tower; names as in a checkpoint's config.json."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: Any = 224
    patch_size: Any = 32
    hidden_act: Activation = "quick_gelu"
    layer_norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        check_sizes("clip", self, self.hidden_size, self.num_attention_heads)


class ClipMlp(nn.Module):
    """Two linear layers."""

    def __init__(self, width: int, inner: int, activation: Activation) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[activation]
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] to [..., C]."""
        return cast(Tensor, self.fc2(self.activation(self.fc1(x))))


class ClipLayer(EncoderLayer):
    """A layer of CLIP and of SigLIP; its tensors have the names of checkpoints."""

    def __init__(self, width: int, heads: int, inner: int, activation: Activation, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.self_attn = WhisperAttention(width, key_bias=True)
        self.layer_norm1 = nn.LayerNorm(width, eps=eps)
        self.mlp = ClipMlp(width, inner, activation)
        self.layer_norm2 = nn.LayerNorm(width, eps=eps)

    def queries_keys_values(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normalise tokens [B, N, C] and project them; queries are not scaled yet."""
        x, attention = self.layer_norm1(x), self.self_attn
        return attention.q_proj(x), attention.k_proj(x), attention.v_proj(x)

    def project_out(self, x: Tensor) -> Tensor:
        """The attention's output projection."""
        return cast(Tensor, self.self_attn.out_proj(x))

    def feed(self, x: Tensor) -> Tensor:
        """What the feed-forward part adds to tokens [B, N, C]."""
        return cast(Tensor, self.mlp(self.layer_norm2(x)))


class ClipEmbeddings(nn.Module):
    """Patches behind a class token, if there is one, with learned positions."""

    def __init__(self, width: int, channels: int, patch: tuple[int, int], positions: int, *, class_token: bool) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.zeros(width)) if class_token else None
        self.patch_embedding = nn.Conv2d(channels, width, patch, stride=patch, bias=not class_token)
        self.position_embedding = nn.Embedding(positions, width)

    def forward(self, image: Tensor) -> Tensor:
        """Tokens [B, N, C] of images [B, channels, height, width]."""
        x = self.patch_embedding(image).flatten(2).transpose(1, 2)
        if self.class_embedding is not None:
            x = torch.cat([self.class_embedding.expand(x.shape[0], 1, -1), x], dim=1)
        return cast(Tensor, x + self.position_embedding.weight)


class ClipTower(VisionTower):
    """CLIP's tower.

    Args:
        config: Sizes.
        projection: Channels of the space of texts; 0: there is no projection to it.
    """

    family = "clip"
    row = "encoder.layers"
    patches = "embeddings.patch_embedding"
    table = ("embeddings.position_embedding.weight", 1)
    prefix = (("class", 1),)

    def __init__(self, config: ClipConfig, projection: int = 0) -> None:
        width, patch = config.hidden_size, pair(config.patch_size)
        super().__init__(size=pair(config.image_size), patch=patch, channels=config.num_channels, width=width)
        self.embeddings = ClipEmbeddings(width, config.num_channels, patch, self.num_tokens, class_token=True)
        self.pre_layrnorm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        layers = nn.ModuleList(
            ClipLayer(
                width, config.num_attention_heads, config.intermediate_size, config.hidden_act, config.layer_norm_eps
            )
            for _ in range(config.num_hidden_layers)
        )
        self.encoder = nn.ModuleDict({"layers": layers})
        self.post_layernorm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.visual_projection = nn.Linear(width, projection, bias=False) if projection else None

    def embed(self, image: Tensor) -> Tensor:
        """Tokens [B, N, C] of images [B, channels, height, width]."""
        return cast(Tensor, self.pre_layrnorm(self.embeddings(image)))

    def finish(self, x: Tensor) -> Tensor:
        """The last hidden state, which is not normalised."""
        return x

    def pooled(self, tokens: Tokens) -> Tensor:
        """The normalised class token, projected where there is a projection."""
        found: Tensor = self.post_layernorm(tokens.x[:, 0])
        return found if self.visual_projection is None else cast(Tensor, self.visual_projection(found))

    @property
    def pooled_width(self) -> int:
        """Channels of `pooled`."""
        return self.width if self.visual_projection is None else self.visual_projection.out_features

    def in_text_space(self, x: Tensor) -> Tensor:
        """Tokens, normalised and projected as the class token is."""
        assert self.visual_projection is not None
        return cast(Tensor, self.visual_projection(self.post_layernorm(x)))

    @property
    def text_width(self) -> int:
        """Channels of the space of texts."""
        return 0 if self.visual_projection is None else self.visual_projection.out_features


def named(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tower's tensors under its own names; those of the tower of texts are left out."""
    short = {name.removeprefix("vision_model."): tensor for name, tensor in tensors.items()}
    texts = ("text_model.", "text_projection.", "logit_scale", "logit_bias", "embeddings.position_ids")
    return {name: tensor for name, tensor in short.items() if not name.startswith(texts)}


def build(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> ClipTower:
    """The tower that a config.json and tensors describe."""
    projection = tensors.get("visual_projection.weight")
    return ClipTower(ClipConfig(**known_fields(ClipConfig, config)), 0 if projection is None else projection.shape[0])


_CLIP = TowerFamily(
    name="clip",
    heads=("CLIPVisionModel", "CLIPVisionModelWithProjection", "CLIPModel"),
    named=lambda tensors, config: named(tensors),
    build=build,
)


def load(path: Path, *, weights: str | None = None, **options: Any) -> LoadedHost:
    """Load CLIP's tower from a directory; see `load_tower`."""
    return load_tower(_CLIP, path, weights=weights, **options)
