"""Encoders of audio: Whisper's over frames of time, and the Audio Spectrogram Transformer's over patches.

Tensors have the names that transformers' checkpoints give them, so that a checkpoint loads as it is.

Source: Whisper, arXiv:2212.04356; AST, arXiv:2104.01778; transformers' models whisper and
audio-spectrogram-transformer for the names.
Differs: attention is written out (`models/layers/attention.py`), so that a bias and key-value state are at hand.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from trt_compress.errors import ConfigError, ShapeError
from trt_compress.models.compressors.sites import Asked
from trt_compress.models.hosts.mome import MicroExperts
from trt_compress.models.layers.attention import attention, merge_heads, split_heads
from trt_compress.suggest import not_known

Activation = Literal["gelu", "relu", "silu", "quick_gelu", "gelu_pytorch_tanh"]
ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "relu": functional.relu,
    "silu": functional.silu,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "gelu_pytorch_tanh": lambda x: functional.gelu(x, approximate="tanh"),
}
KeysAndValues = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class WhisperConfig:
    """Sizes of a Whisper-style encoder; names as in a checkpoint's config.json.

    Attributes:
        num_mel_bins: Mel bands of a frame.
        d_model: Width.
        encoder_layers: Layers.
        encoder_attention_heads: Heads.
        encoder_ffn_dim: Width of the feed-forward part.
        max_source_positions: Frames that leave the convolutions at most; two mel frames make one.
        activation_function: Of the feed-forward part.
        classifier_proj_size: Width between encoder and classifier; None: there is no classifier.
        num_labels: Classes.
        experts: Small experts beside the feed-forward part of the layers from `expert_layer` on (MoME); 0: none.
        expert_layer: First layer with experts.
    """

    num_mel_bins: int = 80
    d_model: int = 384
    encoder_layers: int = 4
    encoder_attention_heads: int = 6
    encoder_ffn_dim: int = 1536
    max_source_positions: int = 1500
    activation_function: Activation = "gelu"
    classifier_proj_size: int | None = None
    num_labels: int = 0
    experts: int = 0
    expert_layer: int = 0

    def __post_init__(self) -> None:
        check_sizes("whisper", self, self.d_model, self.encoder_attention_heads)


@dataclass(frozen=True, slots=True, kw_only=True)
class AstConfig:
    """Sizes of an Audio Spectrogram Transformer; names as in a checkpoint's config.json."""

    num_mel_bins: int = 128
    max_length: int = 1024
    patch_size: int = 16
    frequency_stride: int = 10
    time_stride: int = 10
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: Activation = "gelu"
    layer_norm_eps: float = 1e-12
    qkv_bias: bool = True
    num_labels: int = 0

    def __post_init__(self) -> None:
        check_sizes("audio-spectrogram-transformer", self, self.hidden_size, self.num_attention_heads)
        if self.patch_size > min(self.num_mel_bins, self.max_length):
            raise ConfigError(
                f"audio-spectrogram-transformer: patch_size={self.patch_size} is larger than the spectrogram of "
                f"{self.num_mel_bins} x {self.max_length}; give a smaller one."
            )

    @property
    def grid(self) -> tuple[int, int]:
        """Patches along frequency, and along time."""
        return (
            (self.num_mel_bins - self.patch_size) // self.frequency_stride + 1,
            (self.max_length - self.patch_size) // self.time_stride + 1,
        )


def check_sizes(model: str, config: Any, width: int, heads: int) -> None:
    """Raise ConfigError for an unknown activation, or a width that the heads do not divide."""
    activation = getattr(config, "activation_function", None) or config.hidden_act
    if activation not in ACTIVATIONS:
        raise ConfigError(not_known(f"{model}: activation", activation, ACTIVATIONS))
    if heads < 1 or width % heads:
        raise ConfigError(f"{model}: a width of {width} cannot be split among {heads} heads; give a divisor.")


class EncoderLayer(nn.Module, ABC):
    """A pre-norm layer whose attention and feed-forward part are called one by one, so that tokens may go between."""

    heads: int

    @abstractmethod
    def queries_keys_values(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normalise tokens [B, N, C] and project them; queries are not scaled yet."""

    @abstractmethod
    def project_out(self, x: Tensor) -> Tensor:
        """The attention's output projection."""

    @abstractmethod
    def feed(self, x: Tensor) -> Tensor:
        """What the feed-forward part adds to tokens [B, N, C]."""

    def attend(
        self,
        x: Tensor,
        *,
        size: Tensor | None = None,
        bias: Tensor | None = None,
        past: KeysAndValues | None = None,
        wanted: frozenset[Asked] = frozenset(),
    ) -> tuple[Tensor, Mapping[Asked, Tensor], KeysAndValues]:
        """What attention adds to the tokens.

        Args:
            x: Tokens, [B, N, C].
            size: Tokens that each key stands for, [B, N, 1]; None: no weighting.
            bias: Added to the logits, broadcast to [B, H, N, keys].
            past: Keys and values [B, L, C] of tokens before these, which stand before them.
            wanted: Taps to compute.

        Returns:
            The update [B, N, C], the taps, and the keys and values of all tokens, the past ones included.
        """
        q, new_k, new_v = self.queries_keys_values(x)
        k, v = (new_k, new_v) if past is None else (torch.cat([past[0], new_k], 1), torch.cat([past[1], new_v], 1))
        qh, kh, vh = (split_heads(part, self.heads) for part in (q, k, v))
        mixed, taps = attention(qh, kh, vh, size=size, bias=bias, wanted=wanted)
        return self.project_out(merge_heads(mixed)), taps, (k, v)


class WhisperAttention(nn.Module):
    """Projections of a Whisper layer, where keys have no bias, and of towers of images, where they have one."""

    def __init__(self, width: int, *, key_bias: bool = False) -> None:
        super().__init__()
        self.k_proj = nn.Linear(width, width, bias=key_bias)
        self.v_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)


class WhisperLayer(EncoderLayer):
    """A layer of Whisper's encoder, with small experts beside its feed-forward part if there are any."""

    def __init__(self, width: int, heads: int, ffn: int, activation: Activation = "gelu", *, experts: int = 0) -> None:
        super().__init__()
        self.heads, self.activation = heads, ACTIVATIONS[activation]
        self.self_attn = WhisperAttention(width)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, ffn)
        self.fc2 = nn.Linear(ffn, width)
        self.final_layer_norm = nn.LayerNorm(width)
        self.experts = MicroExperts(width, experts=experts) if experts else None

    def queries_keys_values(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normalise tokens [B, N, C] and project them; queries are not scaled yet."""
        x, attention = self.self_attn_layer_norm(x), self.self_attn
        return attention.q_proj(x), attention.k_proj(x), attention.v_proj(x)

    def project_out(self, x: Tensor) -> Tensor:
        """The attention's output projection."""
        return cast(Tensor, self.self_attn.out_proj(x))

    def feed(self, x: Tensor) -> Tensor:
        """What the feed-forward part, and the experts beside it, add to tokens [B, N, C]."""
        x = self.final_layer_norm(x)
        update: Tensor = self.fc2(self.activation(self.fc1(x)))
        return update if self.experts is None else update + self.experts(x)


class WhisperEncoder(nn.Module):
    """Two convolutions, of which the second halves the frames, fixed positions, layers, and a last normalisation."""

    def __init__(self, config: WhisperConfig) -> None:
        super().__init__()
        self.config = config
        width = config.d_model
        self.conv1 = nn.Conv1d(config.num_mel_bins, width, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(width, width, kernel_size=3, stride=2, padding=1)
        self.embed_positions = nn.Embedding(config.max_source_positions, width)
        self.embed_positions.weight.requires_grad_(False)
        with torch.no_grad():
            self.embed_positions.weight.copy_(sinusoids(config.max_source_positions, width))
        self.layers = nn.ModuleList(
            WhisperLayer(
                width,
                config.encoder_attention_heads,
                config.encoder_ffn_dim,
                config.activation_function,
                experts=config.experts if number >= config.expert_layer else 0,
            )
            for number in range(config.encoder_layers)
        )
        self.layer_norm = nn.LayerNorm(width)
        # what MoME puts between the pooled frames and the layers with experts, for every rate the same
        self.rate_projector = (
            nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)) if config.experts else None
        )

    def embed(self, features: Tensor) -> Tensor:
        """Tokens [B, frames / 2, C] of log-mel features [B, bands, frames].

        Raises:
            ShapeError: there are more frames than positions.
        """
        frames = features.shape[-1]
        if frames > 2 * self.config.max_source_positions:
            raise ShapeError(
                f"whisper: {frames} mel frames are too many; this model has positions for "
                f"{2 * self.config.max_source_positions}. Cut the audio."
            )
        x = self.convolve(features)
        return x + self.embed_positions.weight[: x.shape[1]]

    def convolve(self, features: Tensor) -> Tensor:
        """The convolutions: [B, bands, frames] to [B, (frames + 1) // 2, C], without positions."""
        x = functional.gelu(self.conv2(functional.gelu(self.conv1(features))))
        return x.transpose(1, 2)

    def enter(self, layer: int, x: Tensor) -> Tensor:
        """The tokens as `layer` takes them."""
        if self.rate_projector is None or layer != self.config.expert_layer:
            return x
        return cast(Tensor, self.rate_projector(x))

    def finish(self, x: Tensor) -> Tensor:
        """The last normalisation."""
        return cast(Tensor, self.layer_norm(x))

    @property
    def stack(self) -> list[EncoderLayer]:
        """The layers."""
        return cast(list[EncoderLayer], list(self.layers))


class AstEmbeddings(nn.Module):
    """Overlapping patches of a spectrogram, a class and a distillation token before them, learned positions."""

    def __init__(self, config: AstConfig) -> None:
        super().__init__()
        width = config.hidden_size
        frequency, time = config.grid
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.distillation_token = nn.Parameter(torch.zeros(1, 1, width))
        self.patch_embeddings = nn.ModuleDict(
            {"projection": nn.Conv2d(1, width, config.patch_size, stride=(config.frequency_stride, config.time_stride))}
        )
        self.position_embeddings = nn.Parameter(torch.zeros(1, frequency * time + 2, width))

    def forward(self, features: Tensor) -> Tensor:
        """Tokens [B, 2 + patches, C] of features [B, frames, bands]; patches run along time, then frequency."""
        patches = self.patch_embeddings["projection"](features.transpose(1, 2)[:, None]).flatten(2).transpose(1, 2)
        prefix = torch.cat([self.cls_token, self.distillation_token], dim=1)
        return torch.cat([prefix.expand(patches.shape[0], -1, -1), patches], dim=1) + self.position_embeddings


class LayerSizes(Protocol):
    """What `AstLayer` is built by."""

    @property
    def hidden_size(self) -> int:
        """Width."""
        ...

    @property
    def num_attention_heads(self) -> int:
        """Heads."""
        ...

    @property
    def intermediate_size(self) -> int:
        """Width of the feed-forward part."""
        ...

    @property
    def hidden_act(self) -> Activation:
        """Of the feed-forward part."""
        ...

    @property
    def layer_norm_eps(self) -> float:
        """Of the norms."""
        ...

    @property
    def qkv_bias(self) -> bool:
        """Whether queries, keys and values have one."""
        ...


class AstLayer(EncoderLayer):
    """A layer of AST and of ViT; its tensors have the names of checkpoints."""

    def __init__(self, config: LayerSizes) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads, self.activation = config.num_attention_heads, ACTIVATIONS[config.hidden_act]
        inner = nn.ModuleDict({name: nn.Linear(width, width, config.qkv_bias) for name in ("query", "key", "value")})
        self.attention = nn.ModuleDict(
            {"attention": inner, "output": nn.ModuleDict({"dense": nn.Linear(width, width)})}
        )
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, config.intermediate_size)})
        self.output = nn.ModuleDict({"dense": nn.Linear(config.intermediate_size, width)})
        self.layernorm_before = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.layernorm_after = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def queries_keys_values(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normalise tokens [B, N, C] and project them; queries are not scaled yet."""
        x, inner = self.layernorm_before(x), cast(nn.ModuleDict, self.attention["attention"])
        return inner["query"](x), inner["key"](x), inner["value"](x)

    def project_out(self, x: Tensor) -> Tensor:
        """The attention's output projection."""
        return cast(Tensor, cast(nn.ModuleDict, self.attention["output"])["dense"](x))

    def feed(self, x: Tensor) -> Tensor:
        """What the feed-forward part adds to tokens [B, N, C]."""
        hidden = self.activation(self.intermediate["dense"](self.layernorm_after(x)))
        return cast(Tensor, self.output["dense"](hidden))


class AstEncoder(nn.Module):
    """AST without its head."""

    def __init__(self, config: AstConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = AstEmbeddings(config)
        self.encoder = nn.ModuleDict(
            {"layer": nn.ModuleList(AstLayer(config) for _ in range(config.num_hidden_layers))}
        )
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def embed(self, features: Tensor) -> Tensor:
        """Tokens [B, 2 + patches, C] of features [B, frames, bands]."""
        return cast(Tensor, self.embeddings(features))

    def enter(self, layer: int, x: Tensor) -> Tensor:
        """The tokens as `layer` takes them."""
        return x

    def finish(self, x: Tensor) -> Tensor:
        """The last normalisation."""
        return cast(Tensor, self.layernorm(x))

    @property
    def stack(self) -> list[EncoderLayer]:
        """The layers."""
        return cast(list[EncoderLayer], list(cast(nn.ModuleList, self.encoder["layer"])))


def sinusoids(length: int, width: int) -> Tensor:
    """Whisper's fixed positions, [length, width]: sines, then cosines, of wavelengths from 2 pi to 20000 pi.

    Raises:
        ConfigError: the width is odd.
    """
    if width % 2:
        raise ConfigError(f"whisper: a width of {width} is odd; sines and cosines take an even one.")
    scale = torch.exp(torch.arange(width // 2) * (-math.log(10000) / (width // 2 - 1)))
    angle = torch.arange(length)[:, None] * scale
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def known_fields(config_class: type[Any], content: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a config.json that `config_class` has."""
    return {name: content[name] for name in config_class.__dataclass_fields__ if content.get(name) is not None}
