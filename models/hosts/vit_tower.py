"""Vision Transformers of transformers from a directory: `hf:PATH`, model_type vit.

A classifier gives logits. Without one the pooled vector is the class token, behind the pooler where the model has it.

Source: An Image is Worth 16x16 Words, arXiv:2010.11929; transformers' model vit for the names of tensors.
Differs: see models/hosts/vision_tower.py.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from trt_compress.errors import UnsupportedError
from trt_compress.models.compressors.passing import Tokens
from trt_compress.models.hosts.audio_encoder import Activation, AstLayer, check_sizes, known_fields
from trt_compress.models.hosts.base import LoadedHost
from trt_compress.models.hosts.vision_directory import TowerFamily, load_tower, pair
from trt_compress.models.hosts.vision_tower import VisionTower

MODEL_TYPES = ("vit",)
_NEWER = (  # names that transformers 5 has in memory, and may write
    (r"^layers\.", "encoder.layer."),
    (r"attention\.q_proj", "attention.attention.query"),
    (r"attention\.k_proj", "attention.attention.key"),
    (r"attention\.v_proj", "attention.attention.value"),
    (r"attention\.o_proj", "attention.output.dense"),
)
_NEWER_FEED = ((r"mlp\.fc1", "intermediate.dense"), (r"mlp\.fc2", "output.dense"))


@dataclass(frozen=True, slots=True, kw_only=True)
class VitConfig:
    """Sizes of a model; names as in a checkpoint's config.json."""

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: Activation = "gelu"
    layer_norm_eps: float = 1e-12
    image_size: Any = 224
    patch_size: Any = 16
    num_channels: int = 3
    qkv_bias: bool = True
    pooler_act: str = "tanh"

    def __post_init__(self) -> None:
        check_sizes("vit", self, self.hidden_size, self.num_attention_heads)
        if self.pooler_act != "tanh":
            raise UnsupportedError(
                f"vit: pooler_act {self.pooler_act[:60]} is not supported; of poolers the one with tanh is."
            )


class VitEmbeddings(nn.Module):
    """Patches behind a class token, with learned positions."""

    def __init__(self, width: int, channels: int, patch: tuple[int, int], positions: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.patch_embeddings = nn.ModuleDict({"projection": nn.Conv2d(channels, width, patch, stride=patch)})
        self.position_embeddings = nn.Parameter(torch.zeros(1, positions, width))

    def forward(self, image: Tensor) -> Tensor:
        """Tokens [B, N, C] of images [B, channels, height, width]."""
        patches = self.patch_embeddings["projection"](image).flatten(2).transpose(1, 2)
        return torch.cat([self.cls_token.expand(patches.shape[0], -1, -1), patches], dim=1) + self.position_embeddings


class VitTower(VisionTower):
    """ViT.

    Args:
        config: Sizes.
        num_labels: Classes; 0: there is no classifier.
        pooler: Channels of the pooler; 0: there is none.
    """

    family = "vit"
    row = "encoder.layer"
    patches = "embeddings.patch_embeddings.projection"
    table = ("embeddings.position_embeddings", 1)
    prefix = (("class", 1),)

    def __init__(self, config: VitConfig, *, num_labels: int = 0, pooler: int = 0) -> None:
        width, patch = config.hidden_size, pair(config.patch_size)
        super().__init__(size=pair(config.image_size), patch=patch, channels=config.num_channels, width=width)
        self.num_labels = num_labels
        self.embeddings = VitEmbeddings(width, config.num_channels, patch, self.num_tokens)
        layers = nn.ModuleList(AstLayer(config) for _ in range(config.num_hidden_layers))
        self.encoder = nn.ModuleDict({"layer": layers})
        self.layernorm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.pooler = nn.ModuleDict({"dense": nn.Linear(width, pooler)}) if pooler else None
        self.classifier = nn.Linear(width, num_labels) if num_labels else None

    def embed(self, image: Tensor) -> Tensor:
        """Tokens [B, N, C] of images [B, channels, height, width]."""
        return cast(Tensor, self.embeddings(image))

    def finish(self, x: Tensor) -> Tensor:
        """The last normalisation."""
        return cast(Tensor, self.layernorm(x))

    def pooled(self, tokens: Tokens) -> Tensor:
        """The class token, behind the pooler where there is one."""
        found = tokens.x[:, 0]
        return found if self.pooler is None else torch.tanh(self.pooler["dense"](found))

    @property
    def pooled_width(self) -> int:
        """Channels of `pooled`."""
        return self.width if self.pooler is None else cast(nn.Linear, self.pooler["dense"]).out_features

    def logits(self, tokens: Tokens) -> Tensor:
        """Classes of the class token."""
        assert self.classifier is not None
        return cast(Tensor, self.classifier(tokens.x[:, 0]))


def older(name: str, *, prefix: str, feed: bool) -> str:
    """The name that a tensor has in checkpoints, of it or of what newer versions call it.

    Args:
        name: As it stands in a file.
        prefix: What stands in front where there is a head.
        feed: The feed-forward part has a name of its own in checkpoints.
    """
    name = name.removeprefix(f"{prefix}.")
    for pattern, by in (*_NEWER, *(_NEWER_FEED if feed else ())):
        name = re.sub(pattern, by, name)
    return name


def _named(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The model's tensors under its own names."""
    found = {older(name, prefix="vit", feed=True): tensor for name, tensor in tensors.items()}
    return {name: tensor for name, tensor in found.items() if name != "embeddings.mask_token"}


def _build(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> VitTower:
    labels, pooler = tensors.get("classifier.weight"), tensors.get("pooler.dense.weight")
    return VitTower(
        VitConfig(**known_fields(VitConfig, config)),
        num_labels=0 if labels is None else labels.shape[0],
        pooler=0 if pooler is None else pooler.shape[0],
    )


_VIT = TowerFamily(name="vit", heads=("ViTModel", "ViTForImageClassification"), named=_named, build=_build)


def load(path: Path, *, weights: str | None = None, **options: Any) -> LoadedHost:
    """Load a Vision Transformer from a directory; see `load_tower`."""
    return load_tower(_VIT, path, weights=weights, **options)
