"""What a method may ask for when it is calibrated: a model that shows what passes its sites, and data in batches."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from trt_compress.errors import ConfigError
from trt_compress.foreign import reading, shown
from trt_compress.methods import CompressorSpec
from trt_compress.methods.artifact import ArtifactFile
from trt_compress.methods.config import CompressorConfig
from trt_compress.models.compressors.passing import Taps, Tokens
from trt_compress.models.compressors.sites import Arrival, HostInfo, Placement, Tap

Batch = Mapping[str, np.ndarray[Any, np.dtype[Any]]]
"""Samples along the first axis, by the names of the model's inputs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Passing:
    """What came to a site in one run: where it is and what is known of it, the tokens, and the taps."""

    arrival: Arrival
    tokens: Tokens
    taps: Taps


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationData:
    """Samples to calibrate with; each part can be gone through again and again.

    Attributes:
        fit: Those that tensors may depend on.
        held_out: Those that only the score is taken of.
    """

    fit: Iterable[Batch]
    held_out: Iterable[Batch]


@dataclass(frozen=True, slots=True, kw_only=True)
class Alphabet:
    """What a method may make samples of for a model that reads tokens.

    Attributes:
        tokens: Those that stand for text, int64 ascending: none that begins, ends or fills one.
        first: The token that a text begins with; None: it begins with any.
        context: Tokens of the longest sequence.
    """

    tokens: np.ndarray[Any, np.dtype[Any]]
    first: int | None
    context: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibrated:
    """What a calibration gives: the tensors of the artifact, and how well they do on held-out samples, by measure."""

    tensors: Mapping[str, Tensor]
    score: Mapping[str, float] = field(default_factory=dict)


class CalibrationHost(Protocol):
    """A model with weights, on which methods are calibrated."""

    @property
    def info(self) -> HostInfo:
        """What is known of the model."""
        ...

    def observe(
        self, batches: Iterable[Batch], *, placements: Sequence[Placement] | None = None, taps: Sequence[Tap] = ()
    ) -> Iterator[Mapping[str, Passing]]:
        """What comes to sites, by their addresses, run by run; nothing is kept of those before.

        A batch is one run; of a model with states one for each step, of one that reads tokens by a procedure one for
        each run in which something passes a site. There `Tokens.valid` tells filling apart.

        Args:
            batches: What the model is run on.
            placements: Which sites; None: those that the method acts at.
            taps: What to compute there besides what the method asks for.
        """
        ...

    def outputs(
        self, batches: Iterable[Batch], config: CompressorConfig | None = None
    ) -> Iterator[Mapping[str, Tensor]]:
        """What the model puts out, run by run, by `graph.output`; with the method in place if `config` is given."""
        ...

    def outputs_with(self, spec: CompressorSpec, batches: Iterable[Batch]) -> Iterator[Mapping[str, Tensor]]:
        """What the model puts out, run by run, with another method in place of this one, and with gradients."""
        ...

    def watch_caches(self, batches: Iterable[Batch], look: Callable[..., None]) -> Iterator[Mapping[str, Tensor]]:
        """What the model puts out, run by run, while all its caches are plain.

        Args:
            batches: What it is run on.
            look: Called in each run for each layer that cache policies act at, with its `CacheLayer`, its `NewEntries`
                and its memory, which holds the entries of the run.
        """
        ...


def artifact_tensors(file: ArtifactFile, where: str) -> dict[str, Tensor]:
    """The tensors of an artifact that has been read.

    Args:
        file: With its content.
        where: What it is, for messages: `frame_stack: projector`.

    Raises:
        ConfigError: it has not been read, or holds no tensors.
    """
    from safetensors.torch import load

    if file.content is None:
        raise ConfigError(
            f"{where} {shown(file.path)} was not read and compared with the weights; let `load_host(…).attach` do it."
        )
    with reading(f"{where} {shown(file.path)}", "make it again with `trt-compress calibrate`"):
        return {name: torch.as_tensor(tensor) for name, tensor in load(file.content).items()}


def alike_tensors(
    tensors: Mapping[str, Tensor], where: str, what: str, names: Sequence[str], axes: Sequence[str]
) -> dict[str, Tensor]:
    """Tensors of one shape that calibration made, in float32.

    Args:
        tensors: By name.
        where, what: What they are in, and what they should be, for messages: `razorattention: the file`, `a search`.
        names: Those that there are to be.
        axes: Of each.

    Raises:
        ConfigError: Some are missing, too many, misshaped or not finite.
    """
    fits = sorted(tensors) == sorted(names) and all(
        tensor.ndim == len(axes) and tensor.is_floating_point() and tensor.shape == tensors[names[0]].shape
        for tensor in tensors.values()
    )
    if not fits or not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        has = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in sorted(tensors.items())) or "no tensors"
        wanted = " and ".join(f"`{name}`" for name in names)
        raise ConfigError(
            f"{where} has {has}; {what} is {wanted}, [{', '.join(axes)}] of finite numbers in floating point."
        )
    return {name: tensor.float() for name, tensor in tensors.items()}
