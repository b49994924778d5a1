"""Audio models: a waveform goes in, frames or logits come out, compressors act between attention and feed-forward part.

Source: Whisper, arXiv:2212.04356; AST, arXiv:2104.01778.
Differs: the log-mel front end is part of the graph; a Whisper encoder may be built for less than its 30 s, and then
sees only the audio there is instead of a clip padded with silence.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from trt_compress.errors import ConfigError, ShapeError
from trt_compress.methods import CompressorSpec
from trt_compress.models.compressors.passing import Taps, Tokens
from trt_compress.models.compressors.sites import (
    ENCODER_OUTPUT,
    Asked,
    HostInfo,
    Site,
    layer_sites,
    leading_spans,
)
from trt_compress.models.hosts.audio_encoder import AstConfig, AstEncoder, EncoderLayer, WhisperConfig, WhisperEncoder
from trt_compress.models.hosts.base import GraphSpec, Layers, Steps, TensorSpec
from trt_compress.models.hosts.row import CompressedRow
from trt_compress.models.hosts.spectral import KaldiFbank, LogMel
from trt_compress.models.layers.attention import ATTENTION_TAPS
from trt_compress.plugins.operator import cast

FAMILY = "audio"
SAMPLE_RATE = 16000
FRAMES_PER_SECOND = 50  # of Whisper's encoder
FEWEST_FRAMES = 25


class AudioModel(nn.Module, ABC):
    """A front end, an encoder, and maybe a classifier; `num_samples` of audio at 16 kHz are one input.

    Attributes:
        num_samples: Length of the audio.
        num_tokens: Tokens that enter the first layer.
        num_prefix: Of these, class and distillation token.
        num_labels: Classes; 0: the encoder's frames are the output.
        row: Where the layers are.
    """

    num_samples: int
    num_tokens: int
    num_prefix: int
    num_labels: int
    width: int
    frontend: LogMel | KaldiFbank
    encoder: WhisperEncoder | AstEncoder
    row: ClassVar[str]

    @abstractmethod
    def head(self, x: Tensor, size: Tensor | None) -> Tensor:
        """Logits [B, classes] of the encoder's output [B, N, C] and the sizes of its tokens [B, N, 1]."""

    def embed(self, audio: Tensor) -> Tensor:
        """Tokens [B, N, C] of audio [B, samples]."""
        return self.encoder.embed(self.frontend(audio))

    def forward(self, audio: Tensor) -> Tensor:
        """Logits, or frames [B, N, C], of audio [B, samples], without compressors."""
        x = self.embed(audio)
        for number, layer in enumerate(self.encoder.stack):
            x = self.encoder.enter(number, x)
            x = x + layer.attend(x)[0]
            x = x + layer.feed(x)
        x = self.encoder.finish(x)
        return self.head(x, None) if self.num_labels else x


class WhisperModel(AudioModel):
    """Whisper's encoder, with the classifier of WhisperForAudioClassification if the configuration has one.

    Args:
        config: Sizes.
        num_samples: Audio of one input; default: as much as there are positions for. Of S samples at 16 kHz come
            max(S * 50 // 16000, 25) frames; what is missing to 25 is padded with silence.
        clip_range: Whisper's rule that values lie within 8 decades of the loudest; False: a fixed floor, for streams.
    """

    frontend: LogMel
    encoder: WhisperEncoder
    row = "encoder.layers"

    def __init__(self, config: WhisperConfig, *, num_samples: int | None = None, clip_range: bool = True) -> None:
        super().__init__()
        samples_of_frame = SAMPLE_RATE // FRAMES_PER_SECOND
        most = config.max_source_positions * samples_of_frame
        self.num_samples = most if num_samples is None else num_samples
        if not samples_of_frame <= self.num_samples <= most:
            raise ConfigError(
                f"whisper: {self.num_samples} samples of audio are out of range; this model takes "
                f"{samples_of_frame} to {most} ({most / SAMPLE_RATE:g} s)."
            )
        fewest = min(FEWEST_FRAMES, config.max_source_positions)
        self.num_tokens = max(self.num_samples // samples_of_frame, fewest)  # the remainder of a frame is cut
        self.used_samples = self.num_tokens * samples_of_frame
        self.num_prefix, self.width, self.num_labels = 0, config.d_model, config.num_labels
        # narrower than in the base class, and never set anew
        mel = LogMel(num_mels=config.num_mel_bins, clip_range=clip_range)
        self.frontend = mel  # pyright: ignore[reportIncompatibleVariableOverride]
        self.encoder = WhisperEncoder(config)  # pyright: ignore[reportIncompatibleVariableOverride]
        if config.num_labels:
            between = config.classifier_proj_size or config.d_model
            self.projector = nn.Linear(config.d_model, between)
            self.classifier = nn.Linear(between, config.num_labels)

    def embed(self, audio: Tensor) -> Tensor:
        """Tokens [B, N, C] of audio [B, samples]; what is missing to a whole number of frames is silence."""
        missing = self.used_samples - audio.shape[-1]
        return self.encoder.embed(self.frontend(nn.functional.pad(audio, (0, missing)) if missing else audio))

    def head(self, x: Tensor, size: Tensor | None) -> Tensor:
        """Logits of the mean of all frames; a merged frame counts as often as frames are in it."""
        x = self.projector(x)
        if size is None:
            pooled = x.mean(dim=1)
        else:
            weight = cast(size, x.dtype)
            pooled = (x * weight).sum(dim=1) / weight.sum(dim=1)
        logits: Tensor = self.classifier(pooled)
        return logits


class AstModel(AudioModel):
    """The Audio Spectrogram Transformer, with its classifier if the configuration has labels.

    Args:
        config: Sizes.
        mean: Of the log filter-bank values in training.
        std: Their standard deviation.
    """

    row = "audio_spectrogram_transformer.encoder.layer"

    def __init__(self, config: AstConfig, *, mean: float = -4.2677393, std: float = 4.5689974) -> None:
        super().__init__()
        self.num_samples = 400 + 160 * (config.max_length - 1)
        frequency, time = config.grid
        self.num_tokens, self.num_prefix = frequency * time + 2, 2
        self.width, self.num_labels = config.hidden_size, config.num_labels
        self.frontend = KaldiFbank(num_mels=config.num_mel_bins, max_length=config.max_length, mean=mean, std=std)
        self.audio_spectrogram_transformer = AstEncoder(config)
        if config.num_labels:
            self.classifier = nn.ModuleDict(
                {
                    "layernorm": nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps),
                    "dense": nn.Linear(config.hidden_size, config.num_labels),
                }
            )

    @property
    def encoder(self) -> AstEncoder:  # type: ignore[override]
        """The encoder, under the name of the other models."""
        return self.audio_spectrogram_transformer

    def head(self, x: Tensor, size: Tensor | None) -> Tensor:
        """Logits of the mean of class and distillation token."""
        pooled = (x[:, 0] + x[:, 1]) / 2
        logits: Tensor = self.classifier["dense"](self.classifier["layernorm"](pooled))
        return logits


def host_info(model: AudioModel, name: str) -> HostInfo:
    """What compressors may know of `model`."""
    depth = len(model.encoder.stack)
    taps = ATTENTION_TAPS if model.num_prefix else ATTENTION_TAPS - {"class_attention"}
    return HostInfo(
        name=name,
        sites=(*layer_sites("after_attention", depth, taps=taps), Site(kind=ENCODER_OUTPUT)),
        depth=depth,
        num_tokens=model.num_tokens,
        protected=leading_spans([("class", min(1, model.num_prefix)), ("distillation", max(0, model.num_prefix - 1))]),
        width=model.width,
    )


class CompressedAudio(CompressedRow):
    """An audio model with compressors after the attention of its layers, and behind its encoder.

    Args:
        model: The model; it is called, never changed.
        specs: Compressors, in order.
        name: The model's name, for messages.

    Raises:
        ConfigError: a compressor does not fit the model.
    """

    def __init__(self, model: AudioModel, specs: Sequence[CompressorSpec], *, name: str = "the model") -> None:
        super().__init__()
        self.model = model
        self.place(specs, host_info(model, name), row=f"model.{model.row}")
        self.training = model.training
        behind = self.placed.steps(ENCODER_OUTPUT)
        if model.num_labels and model.num_prefix and not all(step.keeps_prefix for step in behind):
            raise ConfigError(
                f"{specs[-1].name}: {name} classifies by its class and distillation tokens, which it drops; pool with "
                "frame_pool instead."
            )
        if model.num_labels and self.width_out != model.width:
            raise ConfigError(
                f"{specs[-1].name}: {name} has a classifier for frames of {model.width} channels, and "
                f"{self.width_out} would come; give a projector that ends in {model.width}, or pool instead."
            )

    def detach(self) -> AudioModel:
        """The model itself, as it was before."""
        return self.model

    def forward(self, audio: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Logits [B, classes] of audio [B, samples]; without a classifier frames [B, M, C] and their sizes [B, M]."""
        if audio.shape[-1] != self.model.num_samples:
            raise ShapeError(
                f"audio: {audio.shape[-1]} samples were given; {self.info.name} takes "
                f"{self.model.num_samples} at 16 kHz."
            )
        tokens, taps = Tokens(x=self.model.embed(audio)), Taps()
        for number, layer in enumerate(self.model.encoder.stack):
            tokens = tokens.with_x(self.model.encoder.enter(number, tokens.x))
            tokens = self.placed.layer(number, tokens, taps, partial(_attend, layer), layer.feed)
        tokens = self.placed(ENCODER_OUTPUT, tokens.with_x(self.model.encoder.finish(tokens.x)), taps)
        if self.model.num_labels:
            return self.model.head(tokens.x, tokens.size)
        size = torch.ones_like(tokens.x[..., 0]) if tokens.size is None else cast(tokens.size[..., 0], tokens.x.dtype)
        return tokens.x, size


def _attend(layer: EncoderLayer, tokens: Tokens, wanted: frozenset[Asked]) -> tuple[Tensor, Mapping[Asked, Tensor]]:
    """A layer's attention."""
    update, found, _ = layer.attend(tokens.x, size=tokens.key_size, wanted=wanted)
    return update, found


def audio_graph(
    model: AudioModel,
    specs: Sequence[CompressorSpec],
    *,
    name: str,
    examples: Callable[[int], Steps] | None = None,
) -> GraphSpec:
    """The one graph of an audio model.

    Args:
        model: In eval mode.
        specs: Compressors, in order.
        name: The model's name, for messages.
        examples: Real inputs, if there are any.

    Raises:
        ConfigError: a compressor does not fit.
    """
    return _graph_of(CompressedAudio(model, specs, name=name).eval(), examples)


def _graph_of(module: CompressedAudio, examples: Callable[[int], Steps] | None) -> GraphSpec:
    model = module.model
    if model.num_labels:
        outputs: tuple[TensorSpec, ...] = (TensorSpec(name="logits", shape=("batch", model.num_labels)),)
    else:
        outputs = (
            TensorSpec(name="frames", shape=("batch", module.tokens_out, module.width_out)),
            TensorSpec(name="frame_size", shape=("batch", module.tokens_out)),
        )
    return GraphSpec(
        module=module,
        inputs=(TensorSpec(name="audio", shape=("batch", model.num_samples)),),
        outputs=outputs,
        examples=examples,
        layers=Layers(
            count=len(model.encoder.stack), first=lambda count: _graph_of(module.first_layers(count).eval(), examples)
        ),
    )
