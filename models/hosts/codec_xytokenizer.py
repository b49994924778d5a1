"""XY-Tokenizer: 12.5 frames a second, eight code numbers each, from a semantic and an acoustic encoder.

Source: XY-Tokenizer, arXiv:2506.23325; code gyt1145028706/XY-Tokenizer 5df5609.
Differs: audio is padded with silence to whole frames of 1280 samples and nothing more (there to 30 s, with masks), so
no masks are needed; one input is one window: longer audio is cut by the caller (there 30 s windows that keep 20 s).
Heads are 64 wide, as in the released model; the checkpoint does not tell.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from trt_compress.errors import ConfigError
from trt_compress.models.hosts.audio_encoder import WhisperLayer, sinusoids
from trt_compress.models.hosts.base import LoadedHost, WeightsInfo
from trt_compress.models.hosts.checkpoint import read_checkpoint
from trt_compress.models.hosts.codec import Codec, codec_host, fold_weight_norm, numbered, size_of
from trt_compress.models.hosts.spectral import LogMel
from trt_compress.models.hosts.vocos import IstftHead, VocosBackbone, VocosConfig
from trt_compress.models.hosts.weights import load_tensors
from trt_compress.plugins.codebook_decode.op import codebook_decode
from trt_compress.plugins.codebook_encode.op import codebook_encode
from trt_compress.plugins.operator import at_site

FAMILY = "codec_xytokenizer"
SAMPLE_RATE = 16000
MEL_HOP = 160
POOL = 4
FRAME = MEL_HOP * 2 * POOL  # samples of a frame of codes: 1280
HEAD_SIZE = 64
_UNUSED = ("inited", "cluster_size", "embed_avg", "window")
_ENCODERS = ("semantic_encoder", "semantic_encoder_adapter", "acoustic_encoder", "pre_rvq_adapter")
_DECODERS = ("post_rvq_adapter", "acoustic_decoder")


@dataclass(frozen=True, slots=True, kw_only=True)
class StackConfig:
    """A stack of Whisper layers: channels that come, width, channels that leave, layers, feed-forward width, heads, and
    positions, of which each frame takes one."""

    channels_in: int
    width: int
    channels_out: int
    layers: int
    ffn: int
    heads: int
    positions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class XyTokenizerConfig:
    """Sizes; the stacks by their names in the checkpoint.

    Attributes:
        num_mels: Mel bands.
        stacks: Sizes of the six stacks.
        rvq_dim: Channels of a code.
        stages: Residual codebooks.
        codebook_size: Codes of each.
        vocos: Sizes of the last decoder.
    """

    num_mels: int
    stacks: Mapping[str, StackConfig]
    rvq_dim: int
    stages: int
    codebook_size: int
    vocos: VocosConfig


class Stack(nn.Module):
    """Whisper layers over frames [B, channels_in, T] with fixed positions, and projections where widths differ."""

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        self.proj = nn.Linear(config.channels_in, config.width) if config.channels_in != config.width else None
        self.out_proj = nn.Linear(config.width, config.channels_out) if config.channels_out != config.width else None
        self.layers = nn.ModuleList(WhisperLayer(config.width, config.heads, config.ffn) for _ in range(config.layers))
        self.layer_norm = nn.LayerNorm(config.width)
        self.positional_embedding: Tensor
        self.register_buffer("positional_embedding", sinusoids(config.positions, config.width))

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels_in, T] to [B, channels_out, T]."""
        x = x.transpose(1, 2)
        x = x if self.proj is None else self.proj(x)
        x = self.run(x)
        return (x if self.out_proj is None else cast(Tensor, self.out_proj(x))).transpose(1, 2)

    def run(self, x: Tensor) -> Tensor:
        """Positions, layers and the last normalisation, [B, T, width]."""
        x = x + self.positional_embedding[: x.shape[1]]
        for layer in cast(list[WhisperLayer], list(self.layers)):
            x = x + layer.attend(x)[0]
            x = x + layer.feed(x)
        return cast(Tensor, self.layer_norm(x))


class MelEncoder(Stack):
    """Whisper's convolutions before a stack: mel frames [B, bands, T] to [B, width, T / 2]."""

    def __init__(self, config: StackConfig) -> None:
        super().__init__(replace(config, channels_in=config.width, channels_out=config.width))
        self.conv1 = nn.Conv1d(config.channels_in, config.width, 3, padding=1)
        self.conv2 = nn.Conv1d(config.width, config.width, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, bands, T] to [B, width, T / 2]."""
        x = functional.gelu(self.conv2(functional.gelu(self.conv1(x))))
        return self.run(x.transpose(1, 2)).transpose(1, 2)


class MelDecoder(Stack):
    """A stack, and transposed convolutions: [B, width, T] to mel frames [B, bands, 2 * T]."""

    def __init__(self, config: StackConfig) -> None:
        super().__init__(replace(config, channels_in=config.width, channels_out=config.width))
        self.deconv1 = nn.ConvTranspose1d(config.width, config.width, 3, stride=2)
        self.deconv2 = nn.ConvTranspose1d(config.width, config.channels_out, 3)

    def forward(self, x: Tensor) -> Tensor:
        """[B, width, T] to [B, bands, 2 * T]; what the convolutions make beyond that is cut."""
        frames = 2 * x.shape[-1]
        x = self.run(x.transpose(1, 2)).transpose(1, 2)
        return functional.gelu(self.deconv2(functional.gelu(self.deconv1(x))))[..., :frames]


class DownSample(nn.Module):
    """Four frames become one: a gated convolution, and the frames side by side around it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        wide = POOL * width
        self.gate_proj = nn.Conv1d(width, wide, POOL, POOL, bias=False)
        self.up_proj = nn.Conv1d(width, wide, POOL, POOL, bias=False)
        self.down_proj = nn.Linear(wide, wide, bias=False)
        self.layer_norm = nn.LayerNorm(wide)

    def forward(self, x: Tensor) -> Tensor:
        """[B, width, T] to [B, 4 * width, T / 4]."""
        gated = (functional.silu(self.gate_proj(x)) * self.up_proj(x)).transpose(1, 2)
        beside = x.transpose(1, 2).reshape(x.shape[0], x.shape[2] // POOL, POOL * x.shape[1])
        return cast(Tensor, self.layer_norm(self.down_proj(gated) + beside)).transpose(1, 2)


class ResidualCodebooks(nn.Module):
    """Residual codebooks, and a projection before and behind them where the width changes there.

    Args:
        channels_in: Channels of the frames that are encoded.
        config: Sizes of the codebooks.
        channels_out: Channels of the frames that are decoded; None: as many as are encoded.
    """

    def __init__(self, channels_in: int, config: XyTokenizerConfig, channels_out: int | None = None) -> None:
        super().__init__()
        inner, out = config.rvq_dim, channels_in if channels_out is None else channels_out
        self.input_proj = nn.Identity() if channels_in == inner else nn.Conv1d(channels_in, inner, 1)
        self.output_proj = nn.Identity() if out == inner else nn.Conv1d(inner, out, 1)
        self.codebooks: Tensor
        self.register_buffer("codebooks", torch.zeros(config.stages, config.codebook_size, config.rvq_dim))

    def encode(self, x: Tensor) -> Tensor:
        """Code numbers [B, F, stages] of frames [B, channels_in, F]."""
        projected = self.input_proj(x).transpose(1, 2)
        with at_site("codec"):
            return codebook_encode(projected, self.codebooks)

    def decode(self, codes: Tensor) -> Tensor:
        """Frames [B, channels_out, F] of code numbers [B, F, stages]."""
        with at_site("codec"):
            summed = codebook_decode(codes, self.codebooks)
        return cast(Tensor, self.output_proj(summed.transpose(1, 2)))


class XyTokenizer(Codec):
    """The codec for audio of `num_samples` samples, at most as many as there are positions for (30 s)."""

    sample_rate, hop = SAMPLE_RATE, FRAME
    encoder_rows = tuple(f"{name}.layers" for name in _ENCODERS)
    decoder_rows = (*(f"{name}.layers" for name in _DECODERS), "vocos.backbone.convnext")

    def __init__(self, config: XyTokenizerConfig, *, num_samples: int) -> None:
        super().__init__()
        stacks = config.stacks
        most = min(stacks["acoustic_encoder"].positions * 2 * MEL_HOP, stacks["post_rvq_adapter"].positions * FRAME)
        if not 1 <= num_samples <= most:
            raise ConfigError(
                f"xytokenizer: {num_samples} samples of audio are out of range; one window takes 1 to {most} "
                f"({most / SAMPLE_RATE:g} s)."
            )
        self.num_samples = num_samples
        self.codes_per_frame, self.codebook_size = config.stages, config.codebook_size
        self.frontend = LogMel(num_mels=config.num_mels)
        self.semantic_encoder = MelEncoder(stacks["semantic_encoder"])
        self.semantic_encoder_adapter = Stack(stacks["semantic_encoder_adapter"])
        self.acoustic_encoder = MelEncoder(stacks["acoustic_encoder"])
        self.pre_rvq_adapter = Stack(stacks["pre_rvq_adapter"])
        width = stacks["pre_rvq_adapter"].channels_out
        self.downsample = DownSample(width)
        after, decoder = stacks["post_rvq_adapter"], stacks["acoustic_decoder"]
        self.quantizer = ResidualCodebooks(POOL * width, config, after.channels_in)
        self.post_rvq_adapter = Stack(after)
        self.upsample = nn.ModuleDict(
            {"up_conv": nn.ConvTranspose1d(after.channels_out, decoder.width, POOL, stride=POOL, bias=False)}
        )
        self.acoustic_decoder = MelDecoder(stacks["acoustic_decoder"])
        self.vocos = nn.ModuleDict(
            {
                "backbone": VocosBackbone(config.vocos),
                "head": IstftHead(config.vocos.dim, config.vocos.n_fft, config.vocos.hop),
            }
        )

    def encode(self, audio: Tensor) -> Tensor:
        """Code numbers [B, F, stages], int64, of audio [B, num_samples]."""
        mel = self.frontend(functional.pad(audio, (0, -self.num_samples % FRAME)))
        return self.quantizer.encode(self.frames_of_mel(mel))

    def frames_of_mel(self, mel: Tensor) -> Tensor:
        """Frames [B, channels, T / 8] before the codebooks, of mel frames [B, bands, T]."""
        semantic = self.semantic_encoder_adapter(self.semantic_encoder(mel))
        joined = torch.cat([semantic, self.acoustic_encoder(mel)], dim=1)
        return cast(Tensor, self.downsample(self.pre_rvq_adapter(joined)))

    def decode(self, codes: Tensor) -> Tensor:
        """Audio [B, F * 1280] of code numbers [B, F, stages]."""
        return cast(Tensor, self.vocos["head"](self.vocos["backbone"](self.mel_of_codes(codes))))

    def mel_of_codes(self, codes: Tensor) -> Tensor:
        """Mel frames [B, bands, F * 8] of code numbers [B, F, stages]."""
        frames = self.upsample["up_conv"](self.post_rvq_adapter(self.quantizer.decode(codes)))
        return cast(Tensor, self.acoustic_decoder(frames))


def load(path: Path, *, weights: str | None = None, seconds: float = 10.0) -> LoadedHost:
    """Load an official checkpoint (`xytokenizer:FILE`); all sizes are read from its tensors.

    Args:
        path: The checkpoint.
        weights: Not taken: the checkpoint is the model.
        seconds: Audio of one input, at most what there are positions for.

    Raises:
        ConfigError: the file cannot be read, or tensors are missing or do not fit; they are named.
    """
    if weights is not None:
        raise ConfigError(f"xytokenizer:{path} is a checkpoint itself; leave --weights out.")
    source = f"xytokenizer:{path}?seconds={seconds:g}"
    found = read_checkpoint(path).largest()
    tensors = official_tensors(found.tensors, source)
    codec = XyTokenizer(config_of(tensors, source), num_samples=round(seconds * SAMPLE_RATE))
    load_tensors(codec, tensors, path.name)
    found.origin.require_unchanged()
    info = WeightsInfo(source=path.name, sha256=found.origin.sha256)
    return codec_host(codec.eval(), source=source, family=FAMILY, weights=info)


def official_tensors(tensors: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """The tensors of an official checkpoint that inference needs, under the names of `XyTokenizer`."""
    stages = numbered(tensors, r"quantizer\.quantizers\.(\d+)\.codebook$")
    size_of(tensors, "quantizer.quantizers.0.codebook", 1, source)
    books = [tensors[f"quantizer.quantizers.{stage}.codebook"] for stage in range(stages)]
    kept = {
        name: tensor
        for name, tensor in tensors.items()
        if name.rpartition(".")[2] not in _UNUSED and not name.startswith("quantizer.quantizers.")
    }
    return {**fold_weight_norm(kept), "quantizer.codebooks": torch.stack(books)}


def config_of(tensors: Mapping[str, Tensor], source: str) -> XyTokenizerConfig:
    """Sizes of a checkpoint, from the shapes of its tensors."""

    def size(name: str, axis: int) -> int:
        return size_of(tensors, name, axis, source)

    def stack(name: str) -> StackConfig:
        width = size(f"{name}.layer_norm.weight", 0)
        into, out = width, width
        if name.endswith("_adapter"):
            into = size(f"{name}.proj.weight", 1) if f"{name}.proj.weight" in tensors else width
            out = size(f"{name}.out_proj.weight", 0) if f"{name}.out_proj.weight" in tensors else width
        elif name.endswith("_encoder"):
            into = size(f"{name}.conv1.weight", 1)
        else:
            out = size(f"{name}.deconv2.weight", 1)
        layers = numbered(tensors, rf"{name}\.layers\.(\d+)\.")
        ffn = size(f"{name}.layers.0.fc1.weight", 0)
        return StackConfig(
            channels_in=into,
            width=width,
            channels_out=out,
            layers=layers,
            ffn=ffn,
            heads=max(1, width // HEAD_SIZE),
            positions=size(f"{name}.positional_embedding", 0),
        )

    return XyTokenizerConfig(
        num_mels=size("semantic_encoder.conv1.weight", 1),
        stacks={name: stack(name) for name in (*_ENCODERS, *_DECODERS)},
        rvq_dim=size("quantizer.codebooks", 2),
        stages=size("quantizer.codebooks", 0),
        codebook_size=size("quantizer.codebooks", 1),
        vocos=VocosConfig(
            input_channels=size("vocos.backbone.embed.weight", 1),
            dim=size("vocos.backbone.embed.weight", 0),
            intermediate_dim=size("vocos.backbone.convnext.0.pwconv1.weight", 0),
            num_layers=numbered(tensors, r"vocos\.backbone\.convnext\.(\d+)\."),
            n_fft=size("vocos.head.out.weight", 0) - 2,
            hop=MEL_HOP,
        ),
    )
