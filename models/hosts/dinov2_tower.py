"""DINOv2 from a directory: `hf:PATH`, model_type dinov2 or dinov2_with_registers.

A classifier gives logits. Without one the pooled vector is the class token. Images have the size that the directory's
image processor makes, and positions are resampled to it, as transformers does.

Source: DINOv2, arXiv:2304.07193; Vision Transformers Need Registers, arXiv:2309.16588; transformers' models dinov2 and
dinov2_with_registers for the names of tensors.
Differs: see models/hosts/vision_tower.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from trt_compress.models.compressors.passing import Tokens
from trt_compress.models.hosts.audio_encoder import Activation, EncoderLayer, check_sizes, known_fields
from trt_compress.models.hosts.base import LoadedHost
from trt_compress.models.hosts.clip_tower import ClipMlp
from trt_compress.models.hosts.hf_directory import read_json
from trt_compress.models.hosts.vision_directory import TowerFamily, load_tower, pair
from trt_compress.models.hosts.vision_tower import Resampling, VisionTower
from trt_compress.models.hosts.vit_tower import VitEmbeddings, older
from trt_compress.plugins.operator import cast as to_dtype

MODEL_TYPES = ("dinov2", "dinov2_with_registers")


@dataclass(frozen=True, slots=True, kw_only=True)
class Dinov2Config:
    """Sizes of a model; names as in a checkpoint's config.json."""

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    mlp_ratio: float = 4
    hidden_act: Activation = "gelu"
    layer_norm_eps: float = 1e-6
    image_size: Any = 224
    patch_size: Any = 14
    num_channels: int = 3
    qkv_bias: bool = True
    use_swiglu_ffn: bool = False

    def __post_init__(self) -> None:
        check_sizes("dinov2", self, self.hidden_size, self.num_attention_heads)

    @property
    def inner(self) -> int:
        """Width of the feed-forward part: where it is gated, two thirds, rounded up to a multiple of eight."""
        whole = int(self.hidden_size * self.mlp_ratio)
        return (int(whole * 2 / 3) + 7) // 8 * 8 if self.use_swiglu_ffn else whole


class GatedMlp(nn.Module):
    """A gated feed-forward part; rows of `weights_in` are those of the gate, then those of what it lets through."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.weights_in = nn.Linear(width, 2 * inner)
        self.weights_out = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] to [..., C]."""
        gate, up = self.weights_in(x).chunk(2, dim=-1)
        return cast(Tensor, self.weights_out(nn.functional.silu(gate) * up))


class LayerScale(nn.Module):
    """A factor for each channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.lambda1 = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] to [..., C]."""
        return x * self.lambda1


class Dinov2Layer(EncoderLayer):
    """A layer of DINOv2; its tensors have the names of checkpoints."""

    def __init__(self, config: Dinov2Config) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_attention_heads
        inner = nn.ModuleDict({name: nn.Linear(width, width, config.qkv_bias) for name in ("query", "key", "value")})
        out = nn.ModuleDict({"dense": nn.Linear(width, width)})
        self.norm1 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.attention = nn.ModuleDict({"attention": inner, "output": out})
        self.layer_scale1 = LayerScale(width)
        self.norm2 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        gated = config.use_swiglu_ffn
        self.mlp = GatedMlp(width, config.inner) if gated else ClipMlp(width, config.inner, config.hidden_act)
        self.layer_scale2 = LayerScale(width)

    def queries_keys_values(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normalise tokens [B, N, C] and project them; queries are not scaled yet."""
        x, inner = self.norm1(x), cast(nn.ModuleDict, self.attention["attention"])
        return inner["query"](x), inner["key"](x), inner["value"](x)

    def project_out(self, x: Tensor) -> Tensor:
        """The attention's output projection, scaled."""
        return cast(Tensor, self.layer_scale1(cast(nn.ModuleDict, self.attention["output"])["dense"](x)))

    def feed(self, x: Tensor) -> Tensor:
        """What the feed-forward part adds to tokens [B, N, C]."""
        return cast(Tensor, self.layer_scale2(self.mlp(self.norm2(x))))


class Dinov2Embeddings(VitEmbeddings):
    """As ViT's, with register tokens, which have no positions, behind the class token."""

    def __init__(self, width: int, channels: int, patch: tuple[int, int], positions: int, registers: int) -> None:
        super().__init__(width, channels, patch, positions)
        self.register_tokens = nn.Parameter(torch.zeros(1, registers, width)) if registers else None

    def forward(self, image: Tensor) -> Tensor:
        """Tokens [B, N, C] of images [B, channels, height, width]."""
        x = super().forward(image)
        if self.register_tokens is None:
            return x
        return torch.cat([x[:, :1], self.register_tokens.expand(x.shape[0], -1, -1), x[:, 1:]], dim=1)


class Dinov2Tower(VisionTower):
    """DINOv2.

    Args:
        config: Sizes.
        registers: Register tokens.
        num_labels: Classes; 0: there is no classifier.
    """

    family = "dinov2"
    row = "encoder.layer"
    patches = "embeddings.patch_embeddings.projection"
    table = ("embeddings.position_embeddings", 1)

    def __init__(self, config: Dinov2Config, *, registers: int = 0, num_labels: int = 0) -> None:
        width, patch = config.hidden_size, pair(config.patch_size)
        super().__init__(size=pair(config.image_size), patch=patch, channels=config.num_channels, width=width)
        self.prefix, self.num_labels = (("class", 1), ("register", registers)), num_labels
        positions = self.num_tokens - registers
        self.embeddings = Dinov2Embeddings(width, config.num_channels, patch, positions, registers)
        layers = nn.ModuleList(Dinov2Layer(config) for _ in range(config.num_hidden_layers))
        self.encoder = nn.ModuleDict({"layer": layers})
        self.layernorm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.classifier = nn.Linear(2 * width, num_labels) if num_labels else None

    def embed(self, image: Tensor) -> Tensor:
        """Tokens [B, N, C] of images [B, channels, height, width]."""
        return cast(Tensor, self.embeddings(image))

    def finish(self, x: Tensor) -> Tensor:
        """The last normalisation."""
        return cast(Tensor, self.layernorm(x))

    def pooled(self, tokens: Tokens) -> Tensor:
        """The class token."""
        return tokens.x[:, 0]

    def logits(self, tokens: Tokens) -> Tensor:
        """Classes of the class token beside the mean of the patches, where a merged one counts as often as it is."""
        assert self.classifier is not None
        patches = tokens.x[:, self.num_prefix :]
        if tokens.size is None:
            mean = patches.mean(dim=1)
        else:
            size = to_dtype(tokens.size[:, self.num_prefix :], patches.dtype)
            mean = (patches * size).sum(dim=1) / size.sum(dim=1)
        return cast(Tensor, self.classifier(torch.cat([tokens.x[:, 0], mean], dim=1)))


class RegisterTower(Dinov2Tower):
    """DINOv2 with register tokens."""

    family = "dinov2_with_registers"
    resampling = Resampling(mode="bicubic", antialias=True)


def _named(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The model's tensors under its own names."""
    prefix = str(config.get("model_type"))
    found = {older(name, prefix=prefix, feed=False): tensor for name, tensor in tensors.items()}
    for name in [name for name in found if ".mlp.gate_proj." in name]:  # two halves, as transformers 5 may write them
        up = found.pop(name.replace("gate_proj", "up_proj"))
        found[name.replace("gate_proj", "weights_in")] = torch.cat([found.pop(name), up])
    found = {name.replace(".mlp.down_proj.", ".mlp.weights_out."): tensor for name, tensor in found.items()}
    return {name: tensor for name, tensor in found.items() if name != "embeddings.mask_token"}


def _build(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Dinov2Tower:
    labels, registers = tensors.get("classifier.weight"), tensors.get("embeddings.register_tokens")
    tower = Dinov2Tower if config.get("model_type") == "dinov2" else RegisterTower
    return tower(
        Dinov2Config(**known_fields(Dinov2Config, config)),
        registers=0 if registers is None else registers.shape[1],
        num_labels=0 if labels is None else labels.shape[0],
    )


def _family(name: str, stem: str) -> TowerFamily:
    heads = (f"{stem}Model", f"{stem}ForImageClassification")
    return TowerFamily(name=name, heads=heads, named=_named, build=_build, free_size=True)


_FAMILIES = {
    "dinov2": _family("dinov2", "Dinov2"),
    "dinov2_with_registers": _family("dinov2_with_registers", "Dinov2WithRegisters"),
}


def load(path: Path, *, weights: str | None = None, **options: Any) -> LoadedHost:
    """Load DINOv2 from a directory; see `load_tower`."""
    return load_tower(
        _FAMILIES[str(read_json(path / "config.json").get("model_type"))], path, weights=weights, **options
    )
