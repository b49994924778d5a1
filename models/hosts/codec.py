"""What audio codecs share: a graph `encode` from sound to numbers, a graph `decode` back, and their checkpoints."""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from trt_compress.errors import ConfigError, ShapeError
from trt_compress.methods import CompressorSpec
from trt_compress.models.compressors.place import place
from trt_compress.models.compressors.sites import HostInfo, Site
from trt_compress.models.hosts.base import (
    CompressedModule,
    GraphSpec,
    Layers,
    LoadedHost,
    Steps,
    TensorSpec,
    WeightsInfo,
)
from trt_compress.models.hosts.weights import require_floating
from trt_compress.models.layers.first import first_layers

Array = np.ndarray[Any, np.dtype[Any]]
LINKS = (("encode.codes", "decode.codes"),)


class Codec(nn.Module, ABC):
    """A codec for audio of a fixed length; F = ceil(num_samples / hop) frames of Q code numbers.

    Attributes:
        sample_rate: In Hz.
        hop: Samples of a frame.
        num_samples: Audio of one input.
        codes_per_frame: Q.
        codebook_size: Codes that a number can name.
        encoder_rows: Where its encoder has layers in a row.
        decoder_rows: The same of its decoder.
    """

    sample_rate: int
    hop: int
    num_samples: int
    codes_per_frame: int
    codebook_size: int
    encoder_rows: ClassVar[tuple[str, ...]] = ()
    decoder_rows: ClassVar[tuple[str, ...]] = ()

    @property
    def deepest(self) -> int:
        """Layers of its longest row."""
        rows = [cast(nn.ModuleList, self.get_submodule(row)) for row in (*self.encoder_rows, *self.decoder_rows)]
        return max((len(row) for row in rows), default=0)

    @property
    def num_frames(self) -> int:
        """F, the smallest number of frames that hold the audio."""
        return -(-self.num_samples // self.hop)

    @property
    def bits_per_second(self) -> float:
        """Bit rate of the code numbers, each at the logarithm of the codebook's size."""
        return float(np.log2(self.codebook_size)) * self.codes_per_frame * self.sample_rate / self.hop

    @abstractmethod
    def encode(self, audio: Tensor) -> Tensor:
        """Code numbers [B, F, Q], int64, of audio [B, num_samples]."""

    @abstractmethod
    def decode(self, codes: Tensor) -> Tensor:
        """Audio [B, F * hop] of code numbers [B, F, Q]."""

    def forward(self, audio: Tensor) -> Tensor:
        """Audio there and back, cut to its length."""
        return self.decode(self.encode(audio))[:, : self.num_samples]


class EncodeGraph(CompressedModule):
    """Sound to code numbers."""

    def __init__(self, codec: Codec, name: str) -> None:
        super().__init__()
        self.codec, self.name = codec, name

    def forward(self, audio: Tensor) -> Tensor:
        """Code numbers [B, F, Q] of audio [B, samples]."""
        if audio.shape[-1] != self.codec.num_samples:
            raise ShapeError(
                f"audio: {audio.shape[-1]} samples were given; {self.name} takes {self.codec.num_samples} at "
                f"{self.codec.sample_rate} Hz."
            )
        return self.codec.encode(audio)


class DecodeGraph(CompressedModule):
    """Code numbers to sound."""

    def __init__(self, codec: Codec) -> None:
        super().__init__()
        self.codec = codec

    def forward(self, codes: Tensor) -> Tensor:
        """Audio [B, F * hop] of code numbers [B, F, Q]."""
        return self.codec.decode(codes)


def codec_host(
    codec: Codec,
    *,
    source: str,
    family: str,
    weights: WeightsInfo,
    examples: Callable[[int], Array] | None = None,
) -> LoadedHost:
    """A codec as a host: two graphs that are linked.

    Args:
        codec: In eval mode.
        source: As the user named it.
        family: The file that drives it.
        weights: Where they come from.
        examples: A given number of clips [B, num_samples], if there are any.
    """

    def attach(specs: Sequence[CompressorSpec]) -> tuple[GraphSpec, ...]:
        place(specs, HostInfo(name=source, sites=(Site(kind="codec"),), depth=0, num_tokens=codec.num_frames))
        return (
            _graph(EncodeGraph(codec, source).eval(), examples=None if examples is None else _heard(examples)),
            _graph(DecodeGraph(codec).eval(), examples=_said(codec, examples)),
        )

    return LoadedHost(
        source=source,
        family=family,
        module=codec,
        weights=weights,
        attach=attach,
        links=LINKS,
        preprocess={
            "kind": "audio",
            "input": "encode.audio",
            "sample_rate": codec.sample_rate,
            "channels": 1,
            "samples": codec.num_samples,
            "range": [-1, 1],
        },
        postprocess={
            "kind": "audio",
            "output": "decode.decoded",
            "codes": "encode.codes",
            "sample_rate": codec.sample_rate,
            "samples": codec.num_samples,
            "bits_per_second": round(codec.bits_per_second, 1),
        },
    )


def _graph(module: EncodeGraph | DecodeGraph, *, examples: Callable[[int], Steps] | None) -> GraphSpec:
    """The graph `encode` or `decode`; of its layers the first of each row can be had alone."""
    codec, encodes = module.codec, isinstance(module, EncodeGraph)
    audio = TensorSpec(name="audio", shape=("batch", codec.num_samples))
    codes = TensorSpec(name="codes", shape=("batch", codec.num_frames, codec.codes_per_frame), dtype="int64")
    decoded = TensorSpec(name="decoded", shape=("batch", codec.num_frames * codec.hop))
    rows = [f"codec.{row}" for row in (codec.encoder_rows if encodes else codec.decoder_rows)]
    layers = Layers(
        count=codec.deepest, first=lambda count: _graph(first_layers(module, rows, count), examples=examples)
    )
    return GraphSpec(
        name="encode" if encodes else "decode",
        role="encode" if encodes else "decode",
        module=module,
        inputs=(audio if encodes else codes,),
        outputs=(codes if encodes else decoded,),
        examples=examples,
        layers=layers if rows else None,
    )


def _heard(clips: Callable[[int], Array]) -> Callable[[int], Steps]:
    """Clips as inputs."""
    return lambda count: [{"audio": clips(count)}]


def _said(codec: Codec, clips: Callable[[int], Array] | None) -> Callable[[int], Steps]:
    """The codes of these clips as inputs; without clips seeded random ones, for which nobody keeps the codec."""
    if clips is None:
        shape, size = (codec.num_frames, codec.codes_per_frame), codec.codebook_size
        return lambda count: [{"codes": np.random.default_rng(0).integers(0, size, (count, *shape))}]

    def codes(count: int) -> Steps:
        with torch.no_grad():
            return [{"codes": codec.encode(torch.from_numpy(clips(count))).numpy()}]

    return codes


def fold_weight_norm(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors with every weight normalisation multiplied out: direction * (length / norm of the direction).

    Both names are known: weight_g and weight_v, and parametrizations.weight.original0 and original1.

    Raises:
        ConfigError: one of a pair is missing, or not in floating point.
    """
    pattern = re.compile(r"(.*)\.(weight_[gv]|parametrizations\.weight\.original[01])")
    folded, pairs = {}, dict[str, dict[str, Tensor]]()
    for name, tensor in tensors.items():
        match = pattern.fullmatch(name)
        if match is None:
            folded[name] = tensor
        else:
            part = "length" if match[2][-1] in "g0" else "direction"
            pairs.setdefault(match[1], {})[part] = tensor
    for name, pair in pairs.items():
        if len(pair) != 2:
            raise ConfigError(f"weights: {name} has only the {next(iter(pair))} of its weight normalisation.")
        require_floating({f"{name}'s {part}": tensor for part, tensor in pair.items()}, "the checkpoint")
        direction = pair["direction"].double()
        norm = direction.flatten(1).norm(dim=1).reshape(-1, *[1] * (direction.ndim - 1))
        folded[f"{name}.weight"] = (direction * pair["length"].double() / norm).to(pair["direction"].dtype)
    return folded


def size_of(tensors: Mapping[str, Tensor], name: str, axis: int, source: str) -> int:
    """Length of an axis of a tensor from which a size of the model is read.

    Raises:
        ConfigError: the tensor is not there.
    """
    if name not in tensors or tensors[name].ndim <= axis:
        raise ConfigError(f"{source}: the checkpoint has no tensor '{name}'; is it one of this codec?")
    return tensors[name].shape[axis]


def numbered(tensors: Mapping[str, Tensor], pattern: str) -> int:
    """How many numbers N fill the first group of `pattern` in the names."""
    found = {match[1] for name in tensors if (match := re.match(pattern, name))}
    return len(found)
