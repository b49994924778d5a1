"""WavTokenizer: one codebook, some fifty code numbers for a second of audio.

Source: WavTokenizer, arXiv:2408.16532; code jishengpeng/WavTokenizer 5cf440d.
Differs: weight normalisation is multiplied out when a checkpoint is loaded; the bandwidth id is 0, as at inference
there.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from trt_compress.errors import ConfigError
from trt_compress.models.hosts.base import LoadedHost, WeightsInfo
from trt_compress.models.hosts.checkpoint import read_checkpoint
from trt_compress.models.hosts.codec import Codec, codec_host, fold_weight_norm, numbered, size_of
from trt_compress.models.hosts.vocos import IstftHead, VocosBackbone, VocosConfig
from trt_compress.models.hosts.weights import load_tensors
from trt_compress.plugins.codebook_decode.op import codebook_decode
from trt_compress.plugins.codebook_encode.op import codebook_encode
from trt_compress.plugins.operator import at_site

FAMILY = "codec_wavtokenizer"
SAMPLE_RATE = 24000
_ENCODEC = "feature_extractor.encodec."
_CODEBOOK = f"{_ENCODEC}quantizer.vq.layers.0._codebook.embed"
_KEPT = {f"{_ENCODEC}encoder.": "encoder.", "backbone.": "backbone.", "head.out.": "head.out."}


@dataclass(frozen=True, slots=True, kw_only=True)
class WavTokenizerConfig:
    """Sizes.

    Attributes:
        strides: Of the encoder's stages, in its order; their product is the hop.
        filters: Channels of the first convolution; every stage doubles them.
        dimension: Channels of a frame, and of a code.
        codebook_size: Codes.
        backbone: Sizes of the decoder.
        sample_rate: In Hz.
    """

    strides: tuple[int, ...]
    filters: int
    dimension: int
    codebook_size: int
    backbone: VocosConfig
    sample_rate: int = SAMPLE_RATE


class PaddedConv(nn.Module):
    """A convolution of which ceil(samples / stride) values come: its input is padded by reflection.

    An input that is too short to reflect gets zeros behind it first, which are cut off afterwards.
    """

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.ModuleDict({"conv": nn.Conv1d(channels_in, channels_out, kernel, stride)})
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, N] to [B, C', ceil(N / stride)]."""
        total, length = self.kernel - self.stride, x.shape[-1]
        right = total // 2
        left, right = total - right, right + -length % self.stride
        zeros = max(0, max(left, right) - length + 1)
        padded = functional.pad(functional.pad(x, (0, zeros)) if zeros else x, (left, right), mode="reflect")
        out: Tensor = self.conv["conv"](padded[..., : padded.shape[-1] - zeros] if zeros else padded)
        return out


class ResidualUnit(nn.Module):
    """Two convolutions behind ELUs, and one beside them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = channels // 2
        self.block = nn.Sequential(nn.ELU(), PaddedConv(channels, inner, 3), nn.ELU(), PaddedConv(inner, channels, 1))
        self.shortcut = PaddedConv(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, N] to the same."""
        return cast(Tensor, self.shortcut(x) + self.block(x))


class Recurrence(nn.Module):
    """Two layers of LSTM, added to what comes."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(channels, channels, num_layers=2)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, F] to the same."""
        out, _ = self.lstm(x.permute(2, 0, 1))
        return cast(Tensor, out.permute(1, 2, 0) + x)


class SeanetEncoder(nn.Module):
    """Waveform [B, 1, samples] to frames [B, dimension, ceil(samples / hop)]."""

    def __init__(self, config: WavTokenizerConfig) -> None:
        super().__init__()
        channels = config.filters
        parts: list[nn.Module] = [PaddedConv(1, channels, 7)]
        for stride in config.strides:
            parts += [ResidualUnit(channels), nn.ELU(), PaddedConv(channels, 2 * channels, 2 * stride, stride)]
            channels *= 2
        parts += [Recurrence(channels), nn.ELU(), PaddedConv(channels, config.dimension, 7)]
        self.model = nn.Sequential(*parts)

    def forward(self, audio: Tensor) -> Tensor:
        """Frames of a waveform."""
        return cast(Tensor, self.model(audio))


class WavTokenizer(Codec):
    """The codec for audio of `num_samples` samples."""

    codes_per_frame = 1
    decoder_rows = ("backbone.convnext",)

    def __init__(self, config: WavTokenizerConfig, *, num_samples: int) -> None:
        super().__init__()
        if num_samples < 1:
            raise ConfigError(f"wavtokenizer: {num_samples} samples of audio; give 1 or more.")
        self.config, self.num_samples = config, num_samples
        self.sample_rate, self.codebook_size = config.sample_rate, config.codebook_size
        self.hop = 1
        for stride in config.strides:
            self.hop *= stride
        self.encoder = SeanetEncoder(config)
        self.codebook: Tensor
        self.register_buffer("codebook", torch.zeros(config.codebook_size, config.dimension))
        self.backbone = VocosBackbone(config.backbone)
        self.head = IstftHead(config.backbone.dim, config.backbone.n_fft, config.backbone.hop)

    def encode(self, audio: Tensor) -> Tensor:
        """Code numbers [B, F, 1], int64, of audio [B, num_samples]."""
        frames = self.encoder(audio[:, None]).transpose(1, 2)
        with at_site("codec"):
            return codebook_encode(frames, self.codebook[None])

    def decode(self, codes: Tensor) -> Tensor:
        """Audio [B, F * hop] of code numbers [B, F, 1]."""
        with at_site("codec"):
            frames = codebook_decode(codes, self.codebook[None])
        return self.decode_frames(frames)

    def decode_frames(self, frames: Tensor) -> Tensor:
        """Audio [B, F * hop] of frames [B, F, dimension]."""
        return cast(Tensor, self.head(self.backbone(frames.transpose(1, 2))))


def load(path: Path, *, weights: str | None = None, seconds: float = 3.0) -> LoadedHost:
    """Load an official checkpoint (`wavtokenizer:FILE`); all sizes are read from its tensors.

    Args:
        path: The checkpoint.
        weights: Not taken: the checkpoint is the model.
        seconds: Audio of one input.

    Raises:
        ConfigError: the file cannot be read, or tensors are missing or do not fit; they are named.
    """
    if weights is not None:
        raise ConfigError(f"wavtokenizer:{path} is a checkpoint itself; leave --weights out.")
    source = f"wavtokenizer:{path}?seconds={seconds:g}"
    found = read_checkpoint(path).largest()
    tensors = official_tensors(found.tensors, source)
    config = config_of(tensors, source)
    codec = WavTokenizer(config, num_samples=round(seconds * config.sample_rate))
    load_tensors(codec, tensors, path.name)
    found.origin.require_unchanged()
    info = WeightsInfo(source=path.name, sha256=found.origin.sha256)
    return codec_host(codec.eval(), source=source, family=FAMILY, weights=info)


def official_tensors(tensors: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """The tensors of an official checkpoint that inference needs, under the names of `WavTokenizer`."""
    size_of(tensors, _CODEBOOK, 1, source)
    kept = {"codebook": tensors[_CODEBOOK]}
    for name, tensor in tensors.items():
        for prefix, ours in _KEPT.items():
            if name.startswith(prefix):
                kept[ours + name.removeprefix(prefix)] = tensor
    return fold_weight_norm(kept)


def config_of(tensors: Mapping[str, Tensor], source: str) -> WavTokenizerConfig:
    """Sizes of a checkpoint, from the shapes of its tensors (weight normalisation multiplied out)."""
    stages = (numbered(tensors, r"encoder\.model\.(\d+)\.conv\.conv\.weight$")) - 2
    kernels = [
        size_of(tensors, f"encoder.model.{3 + 3 * stage}.conv.conv.weight", 2, source) for stage in range(stages)
    ]
    strides = tuple(kernel // 2 for kernel in kernels)
    hop = 1
    for stride in strides:
        hop *= stride
    adaptive = "backbone.norm.scale.weight" in tensors
    dim = size_of(tensors, "backbone.embed.weight", 0, source)
    return WavTokenizerConfig(
        strides=strides,
        filters=size_of(tensors, "encoder.model.0.conv.conv.weight", 0, source),
        dimension=size_of(tensors, "codebook", 1, source),
        codebook_size=size_of(tensors, "codebook", 0, source),
        backbone=VocosConfig(
            input_channels=size_of(tensors, "backbone.embed.weight", 1, source),
            dim=dim,
            intermediate_dim=size_of(tensors, "backbone.convnext.0.pwconv1.weight", 0, source),
            num_layers=numbered(tensors, r"backbone\.convnext\.(\d+)\."),
            n_fft=size_of(tensors, "head.out.weight", 0, source) - 2,
            hop=hop,
            adanorm_num_embeddings=tensors["backbone.norm.scale.weight"].shape[0] if adaptive else 0,
            position_net="backbone.pos_net.0.conv1.weight" in tensors,
        ),
    )
