"""The kinds of input: one record for each, with what it may hold and which inputs it fits."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from trt_compress.format.bounds import FASTEST, MOST_SAMPLES, Shape, bad_factor, bad_offset, not_of, out_of
from trt_compress.format.record import Record

LAYOUTS = ("NCHW", "NHWC")
CHANNELS = {"RGB": 3, "grey": 1}
INTERPOLATIONS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")


@dataclass(frozen=True, slots=True, kw_only=True)
class InputKind(Record):
    """How data of a source become one input of the bundle.

    Attributes:
        input: The input; None: the first.
        constants: Inputs that never change, such as the calibration of cameras: input → `.npy` file of the bundle.
    """

    kind: str = "tensors"
    input: str | None = None
    constants: dict[str, str] = field(default_factory=dict)

    @property
    def obstacle(self) -> str | None:
        """Why no picture or sound of a source becomes this input, so that arrays have to be given; None: they do."""
        return None

    def problems(self) -> Iterator[str]:
        """What is wrong with the values, whatever the input is."""
        return iter(())

    def misfits(self, shape: Shape) -> Iterator[str]:
        """Why an input of this shape cannot be made so."""
        return iter(())


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayInput(InputKind):
    """Nothing but arrays by input name; `reason` says why, `mean` and `std` help whoever makes the arrays."""

    reason: str | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    @property
    def obstacle(self) -> str | None:
        """Why no picture or sound of a source becomes this input."""
        return self.reason or "it takes numbers without a meaning that is known"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageInput(InputKind):
    """Pictures: pixels become `(pixel * scale - mean) / std`.

    Attributes:
        layout: "NCHW" or "NHWC".
        channels: "RGB" or "grey"; None: the input's channels say it.
        mean: One number for each channel, or one for all.
        std: As `mean`; never 0.
        interpolation: How a picture of another size is resized, as Pillow calls it; None: it is refused.
        crop: The share of the shorter side that is cut out of the middle, as timm does; None: the whole picture.
    """

    kind: str = "image"
    layout: str = "NCHW"
    channels: str | None = None
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    interpolation: str | None = None
    crop: float | None = None

    rank: ClassVar[int] = 4
    beside: ClassVar[str] = ""

    def problems(self) -> Iterator[str]:
        """What is wrong with the values, whatever the input is."""
        yield from not_of("layout", self.layout, LAYOUTS)
        yield from not_of("channels", "RGB" if self.channels is None else self.channels, CHANNELS)
        yield from not_of(
            "interpolation", ("nearest" if self.interpolation is None else self.interpolation).lower(), INTERPOLATIONS
        )
        yield from bad_factor("scale", self.scale, positive=True)
        yield from (problem for value in self.mean for problem in bad_offset("mean", value))
        yield from (problem for value in self.std for problem in bad_factor("std", value))
        if self.crop is not None and self.crop and not 0.01 <= self.crop <= 1:
            yield f"crop is {self.crop}; it is a share of the picture's side, 0.01 to 1"

    def misfits(self, shape: Shape) -> Iterator[str]:
        """Why an input of this shape cannot be made so."""
        if len(shape) != self.rank:
            yield f"layout is '{self.layout}'{self.beside} and the input has the shape {list(shape)}"
            return
        channels, size = self.axes(shape)
        if channels not in CHANNELS.values():
            yield f"{channels} channels are neither RGB (3) nor grey (1)"
        elif self.channels is not None and CHANNELS[self.channels] != channels:
            yield f"channels is '{self.channels}' and the input has {channels}"
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, channels):
                yield f"{name} has {len(values)} numbers for {channels} channels"
        if size is None and self.crop:
            yield "'crop' needs an input of fixed height and width"
        if size is not None and min(size) < 1:
            yield f"the input has the shape {list(shape)}, which holds no pixel"

    def axes(self, shape: Shape) -> tuple[int | str, tuple[int, int] | None]:
        """Channels, and height and width where both are fixed, of an input of four or five axes."""
        axes = dict(zip(self.layout[1:], shape[-3:], strict=True))
        height, width = axes["H"], axes["W"]
        return axes["C"], (height, width) if isinstance(height, int) and isinstance(width, int) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class CameraInput(ImageInput):
    """Pictures of several cameras at one moment, on an axis of their own behind the batch.

    Attributes:
        cameras: Their names, in order; none: they have none.
    """

    kind: str = "cameras"
    cameras: tuple[str, ...] = ()

    rank: ClassVar[int] = 5
    beside: ClassVar[str] = " behind an axis of cameras"

    def misfits(self, shape: Shape) -> Iterator[str]:
        """Why an input of this shape cannot be made so."""
        yield from ImageInput.misfits(self, shape)
        if self.cameras and len(shape) == self.rank and shape[1] not in (len(self.cameras), "cameras"):
            yield f"it has {len(self.cameras)} names of cameras, and the input has the shape {list(shape)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipInput(ImageInput):
    """Clips: frames that follow each other, on an axis of their own behind the batch.

    Attributes:
        fps: Frames a second that the model was made for; None: any.
    """

    kind: str = "frames"
    fps: float | None = None

    rank: ClassVar[int] = 5
    beside: ClassVar[str] = " behind an axis of frames"

    @property
    def obstacle(self) -> str | None:
        """Why no picture or sound of a source becomes this input."""
        return "it takes clips of several frames at once, and a source gives one after the other"

    def problems(self) -> Iterator[str]:
        """What is wrong with the values, whatever the input is."""
        yield from ImageInput.problems(self)
        if self.fps is not None:
            yield from bad_factor("fps", self.fps, positive=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextInput(InputKind):
    """Numbers of tokens [B, T]; what makes them of a text says `text` of the manifest."""

    kind: str = "text"

    @property
    def obstacle(self) -> str | None:
        """Why no picture or sound of a source becomes this input."""
        return "it takes numbers of tokens"

    def misfits(self, shape: Shape) -> Iterator[str]:
        """Why an input of this shape cannot be made so."""
        if len(shape) != 2:
            yield f"the input has the shape {list(shape)}; tokens are [batch, tokens]"


@dataclass(frozen=True, slots=True, kw_only=True)
class SoundInput(InputKind):
    """Sound in chunks: samples become `(sample * scale - mean) / std`.

    Attributes:
        sample_rate: Samples a second.
        channels: More than one are an axis of their own in front of the samples.
        chunk_samples: Length of a chunk; None: that of the input.
        hop_samples: From the start of a chunk to that of the next; None: a chunk, less the overlap.
        overlap_samples: The same, said the other way; one of the two.
        samples: The input's length, as a remark.
        range: Smallest and largest sample of a source, which is -1 and 1.
    """

    kind: str = "audio"
    sample_rate: int
    channels: int = 1
    chunk_samples: int | None = None
    hop_samples: int | None = None
    overlap_samples: int | None = None
    samples: int | None = None
    range: tuple[float, ...] = (-1.0, 1.0)
    scale: float = 1.0
    mean: float = 0.0
    std: float = 1.0

    def problems(self) -> Iterator[str]:
        """What is wrong with the values, whatever the input is."""
        yield from out_of("sample_rate", self.sample_rate, 1, FASTEST)
        yield from out_of("channels", self.channels, 1, 1024)
        for name in ("chunk_samples", "hop_samples", "samples"):
            yield from out_of(name, getattr(self, name), 1, MOST_SAMPLES)
        yield from out_of("overlap_samples", self.overlap_samples, 0, MOST_SAMPLES)
        yield from bad_factor("scale", self.scale, positive=True)
        yield from bad_offset("mean", self.mean)
        yield from bad_factor("std", self.std)
        if self.range != (-1, 1):
            yield f"range is {list(self.range)}; sound is read as numbers from -1 to 1"
        if self.hop_samples is not None and self.overlap_samples is not None:
            yield "it has both 'hop_samples' and 'overlap_samples'"

    def misfits(self, shape: Shape) -> Iterator[str]:
        """Why an input of this shape cannot be made so."""
        last = shape[-1] if shape else None
        chunk, hop = self.chunk_and_hop(shape)
        if len(shape) not in (2, 3):
            yield f"the input has the shape {list(shape)}; sound is [batch, samples] or [batch, channels, samples]"
        elif len(shape) == 3 and shape[1] not in (self.channels, "channels"):
            yield f"channels is {self.channels}, and the input has the shape {list(shape)}"
        elif len(shape) == 2 and self.channels > 1:
            yield f"channels is {self.channels}, and the input has no axis for them"
        elif chunk is None:
            yield "it has no 'chunk_samples', and the input's length is not fixed"
        elif isinstance(last, int) and chunk != last:
            yield f"'chunk_samples' is {chunk}, and the input takes {last}"
        elif self.samples is not None and self.samples != chunk:
            yield f"'samples' is {self.samples}, and a chunk has {chunk}"
        elif hop is not None and not 1 <= hop <= chunk:
            yield f"a hop of {hop} samples with chunks of {chunk}; a hop is at least 1 and at most a chunk"

    def chunk_and_hop(self, shape: Shape) -> tuple[int | None, int | None]:
        """Length of a chunk for an input of this shape, and from its start to that of the next."""
        last = shape[-1] if shape else None
        chunk = self.chunk_samples if self.chunk_samples is not None else last if isinstance(last, int) else None
        if self.hop_samples is not None or chunk is None:
            return chunk, self.hop_samples
        return chunk, chunk - (self.overlap_samples or 0)
