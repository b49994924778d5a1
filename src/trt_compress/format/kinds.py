"""What a bundle takes and what its answers mean, as `preprocess` and `postprocess` of its manifest say it: one record
for each kind, with the numbers that it may hold.

The manifest keeps both as the JSON objects that were written; the digest covers them whole. They are read into these
records when a bundle is opened, so that what is wrong in them is said then, and again by whoever needs one. A kind that
this version does not know, or a field that it does not know, is kept and no fault; a bundle of an unknown kind cannot
be run on sources.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from trt_compress.errors import BundleError, UnsupportedError
from trt_compress.format.record import Record
from trt_compress.suggest import did_you_mean

Shape = Sequence[int | str]

LAYOUTS = ("NCHW", "NHWC")
CHANNELS = {"RGB": 3, "grey": 1}
INTERPOLATIONS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
BOX_COLUMNS = ("x", "y", "z", "length", "width", "height", "sin_yaw", "cos_yaw", "velocity_x", "velocity_y")
"""Columns of a 3D box where the manifest does not name them; metres, in the ego frame."""

_FASTEST = 10_000_000  # samples a second
_MOST_SAMPLES = 2**31 - 1
_SMALLEST, _LARGEST = 1e-9, 1e9  # of factors and offsets: beyond, float32 has no numbers left for the result


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
        yield from _not_of("layout", self.layout, LAYOUTS)
        yield from _not_of("channels", "RGB" if self.channels is None else self.channels, CHANNELS)
        yield from _not_of(
            "interpolation", ("nearest" if self.interpolation is None else self.interpolation).lower(), INTERPOLATIONS
        )
        yield from _bad_factor("scale", self.scale, positive=True)
        yield from (problem for value in self.mean for problem in _bad_offset("mean", value))
        yield from (problem for value in self.std for problem in _bad_factor("std", value))
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
            yield from _bad_factor("fps", self.fps, positive=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextInput(InputKind):
    """Numbers of tokens [B, T].

    Attributes:
        tokenizer: What makes them of a text: a `tokenizer.json` of the bundle; None: none is known.
    """

    kind: str = "text"
    tokenizer: str | None = None

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
        yield from _out_of("sample_rate", self.sample_rate, 1, _FASTEST)
        yield from _out_of("channels", self.channels, 1, 1024)
        for name in ("chunk_samples", "hop_samples", "samples"):
            yield from _out_of(name, getattr(self, name), 1, _MOST_SAMPLES)
        yield from _out_of("overlap_samples", self.overlap_samples, 0, _MOST_SAMPLES)
        yield from _bad_factor("scale", self.scale, positive=True)
        yield from _bad_offset("mean", self.mean)
        yield from _bad_factor("std", self.std)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputKind(Record):
    """What the outputs mean; `output` is the main one, None: the first."""

    kind: str = "raw"
    output: str | None = None

    def problems(self) -> Iterator[str]:
        """What is wrong with the values, whatever the outputs are."""
        return iter(())

    def named(self) -> dict[str, str]:
        """The outputs that the manifest names, by what they are: `output`, `place.output`, `codes`, …."""
        return {} if self.output is None else {"output": self.output}

    def misfits(self, what: str, shape: Shape) -> Iterator[str]:
        """Why an output of this shape cannot be `what`, a key of `named`."""
        return iter(())


@dataclass(frozen=True, slots=True, kw_only=True)
class RawOutput(OutputKind):
    """Numbers without a meaning that is known here: any outputs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place(Record):
    """The output [B, 2] that says where, as shares of the frame from its left upper corner."""

    output: str
    meaning: str | None = field(default=None, metadata={"json": "is"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassOutput(OutputKind):
    """Logits [B, classes].

    Attributes:
        classes: How many there are; None: as many as the output has.
        labels: Their names, in order; None: they have none.
        place: Where what is classified stands.
    """

    kind: str = "classification"
    classes: int | None = None
    labels: tuple[str, ...] | None = None
    place: Place | None = None

    def problems(self) -> Iterator[str]:
        """What is wrong with the values, whatever the outputs are."""
        yield from _out_of("classes", self.classes, 1, 2**31 - 1)
        if self.labels and self.classes is not None and len(self.labels) != self.classes:
            yield f"it has {len(self.labels)} labels for {self.classes} classes"

    def named(self) -> dict[str, str]:
        """The outputs that the manifest names, by what they are."""
        place = {} if self.place is None else {"place.output": self.place.output}
        return OutputKind.named(self) | place

    def misfits(self, what: str, shape: Shape) -> Iterator[str]:
        """Why an output of this shape cannot be `what`."""
        if what == "place.output" and (len(shape) != 2 or shape[1] != 2):
            yield f"it has the shape {list(shape)}; a place is [batch, 2]"
        if what == "output" and len(shape) != 2:
            yield f"it has the shape {list(shape)}; a classification is [batch, classes]"
        elif what == "output" and self.labels and isinstance(shape[1], int) and len(self.labels) < shape[1]:
            yield f"it has {shape[1]} classes, and there are {len(self.labels)} labels"


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxOutput(OutputKind):
    """Boxes [B, Q, columns] and scores [B, Q, classes] or [B, Q].

    Attributes:
        boxes: Name of the output with the boxes.
        scores: Name of the output with the scores.
        columns: What the numbers of a box are; x, y, and yaw or sin_yaw and cos_yaw are among them.
        classes: Names of the classes; None: they have none.
        threshold: Boxes with a lower score are not listed.
    """

    kind: str = "detection3d"
    boxes: str = "boxes"
    scores: str = "scores"
    columns: tuple[str, ...] = BOX_COLUMNS
    classes: tuple[str, ...] | None = None
    threshold: float = 0.3

    def problems(self) -> Iterator[str]:
        """What is wrong with the values, whatever the outputs are."""
        if len(set(self.columns)) < len(self.columns):
            yield "a column stands twice in 'columns'"
        lacking = [name for name in ("x", "y") if name not in self.columns]
        if "yaw" not in self.columns:
            lacking += [name for name in ("sin_yaw", "cos_yaw") if name not in self.columns]
        if lacking:
            yield f"'columns' has no {', '.join(lacking)}"

    def named(self) -> dict[str, str]:
        """The outputs that the manifest names, by what they are."""
        return {**OutputKind.named(self), "boxes": self.boxes, "scores": self.scores}

    def misfits(self, what: str, shape: Shape) -> Iterator[str]:
        """Why an output of this shape cannot be `what`."""
        if what == "boxes" and (len(shape) != 3 or isinstance(shape[2], int) and shape[2] < len(self.columns)):
            yield f"it has the shape {list(shape)}; boxes are [batch, boxes, {len(self.columns)}]"
        if what == "scores" and len(shape) not in (2, 3):
            yield f"it has the shape {list(shape)}; scores are [batch, boxes, classes] or [batch, boxes]"
        classes = shape[2] if len(shape) == 3 else 1
        if what == "scores" and self.classes and isinstance(classes, int) and not 1 <= classes <= len(self.classes):
            yield f"it has {classes} classes, and there are {len(self.classes)} names"


@dataclass(frozen=True, slots=True, kw_only=True)
class SoundOutput(OutputKind):
    """Sound [B, samples] from -1 to 1.

    Attributes:
        codes: The output with a codec's code numbers [B, frames, codebooks]; None: there is none.
        samples: What is behind them is padding; None: nothing is.
        bits_per_second: Of the codes.
    """

    kind: str = "audio"
    sample_rate: int
    codes: str | None = None
    samples: int | None = None
    bits_per_second: float | None = None

    def problems(self) -> Iterator[str]:
        """What is wrong with the values, whatever the outputs are."""
        yield from _out_of("sample_rate", self.sample_rate, 1, _FASTEST)
        yield from _out_of("samples", self.samples, 1, _MOST_SAMPLES)
        if self.bits_per_second is not None:
            yield from _bad_factor("bits_per_second", self.bits_per_second, positive=True)

    def named(self) -> dict[str, str]:
        """The outputs that the manifest names, by what they are."""
        return OutputKind.named(self) | ({} if self.codes is None else {"codes": self.codes})

    def misfits(self, what: str, shape: Shape) -> Iterator[str]:
        """Why an output of this shape cannot be `what`."""
        if what == "output" and len(shape) != 2:
            yield f"it has the shape {list(shape)}; sound is [batch, samples]"
        if what == "codes" and len(shape) < 2:
            yield f"it has the shape {list(shape)}; codes are [batch, frames, codebooks]"


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameOutput(OutputKind):
    """Features [B, M, C].

    Attributes:
        sizes: The output [B, M] that says how many frames each stands for; None: all for as many.
        seconds: The time of all of them; None: not known.
    """

    kind: str = "frames"
    sizes: str | None = None
    seconds: float | None = None

    def problems(self) -> Iterator[str]:
        """What is wrong with the values, whatever the outputs are."""
        if self.seconds is not None:
            yield from _bad_factor("seconds", self.seconds, positive=True)

    def named(self) -> dict[str, str]:
        """The outputs that the manifest names, by what they are."""
        return OutputKind.named(self) | ({} if self.sizes is None else {"sizes": self.sizes})

    def misfits(self, what: str, shape: Shape) -> Iterator[str]:
        """Why an output of this shape cannot be `what`."""
        if what == "output" and len(shape) != 3:
            yield f"it has the shape {list(shape)}; features are [batch, frames, width]"
        if what == "sizes" and len(shape) != 2:
            yield f"it has the shape {list(shape)}; sizes are [batch, frames]"


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeOutput(OutputKind):
    """Code numbers [B, frames, codebooks] or [B, codes].

    Attributes:
        seconds: The time of all of them; None: not known.
    """

    kind: str = "codes"
    seconds: float | None = None

    def problems(self) -> Iterator[str]:
        """What is wrong with the values, whatever the outputs are."""
        if self.seconds is not None:
            yield from _bad_factor("seconds", self.seconds, positive=True)

    def misfits(self, what: str, shape: Shape) -> Iterator[str]:
        """Why an output of this shape cannot be `what`."""
        if what == "output" and len(shape) not in (2, 3):
            yield f"it has the shape {list(shape)}; codes are [batch, frames, codebooks] or [batch, codes]"


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenOutput(OutputKind):
    """Logits of the next token, [B, V] or behind each of T tokens [B, T, V].

    Attributes:
        stop: Tokens behind which a text ends.
    """

    kind: str = "tokens"
    stop: tuple[int, ...] = ()

    def problems(self) -> Iterator[str]:
        """What is wrong with the values, whatever the outputs are."""
        yield from (problem for token in self.stop for problem in _out_of("stop", token, 0, 2**31 - 1))

    def misfits(self, what: str, shape: Shape) -> Iterator[str]:
        """Why an output of this shape cannot be `what`."""
        if what == "output" and len(shape) not in (2, 3):
            yield f"it has the shape {list(shape)}; they are [batch, vocabulary] or [batch, tokens, vocabulary]"
        elif what == "output" and isinstance(shape[-1], int) and any(token >= shape[-1] for token in self.stop):
            yield f"it has logits of {shape[-1]} tokens, and a text stops at {max(self.stop)}"


INPUT_KINDS: Mapping[str, type[InputKind]] = {
    "image": ImageInput,
    "frames": ClipInput,
    "cameras": CameraInput,
    "audio": SoundInput,
    "text": TextInput,
    "tensors": ArrayInput,
}
"""What `preprocess.kind` may be."""

OUTPUT_KINDS: Mapping[str, type[OutputKind]] = {
    "classification": ClassOutput,
    "detection3d": BoxOutput,
    "audio": SoundOutput,
    "frames": FrameOutput,
    "codes": CodeOutput,
    "tokens": TokenOutput,
    "raw": RawOutput,
}
"""What `postprocess.kind` may be."""

_Kind = TypeVar("_Kind", InputKind, OutputKind)


def input_kind(settings: Mapping[str, Any]) -> InputKind:
    """Read a manifest's `preprocess`.

    Raises:
        BundleError: A field is missing, has the wrong type or a value that is not allowed.
        UnsupportedError: This version knows no such kind.
    """
    return _read(settings, "preprocess", "preprocessing", "tensors", INPUT_KINDS)


def output_kind(settings: Mapping[str, Any]) -> OutputKind:
    """Read a manifest's `postprocess`; raises as `input_kind`."""
    return _read(settings, "postprocess", "postprocessing", "raw", OUTPUT_KINDS)


def fitted_input(settings: Mapping[str, Any], shape: Shape) -> InputKind:
    """As `input_kind`, for an input of this shape.

    Raises:
        BundleError: Also if the input cannot be made so.
    """
    found = input_kind(settings)
    for misfit in found.misfits(shape):
        raise BundleError(f"The manifest's 'preprocess' of kind '{found.kind}' does not fit: {misfit}.")
    return found


def fitted_output(settings: Mapping[str, Any], shapes: Mapping[str, Shape]) -> OutputKind:
    """As `output_kind`, for outputs of these shapes.

    Raises:
        BundleError: Also if an output that is named is not there, or has another shape.
    """
    found = output_kind(settings)
    for what, name in found.named().items():
        if name not in shapes:
            raise BundleError(
                f"The manifest's 'postprocess.{what}' names the output '{name}', and the bundle has "
                f"{', '.join(shapes)}."
            )
    named = {"output": next(iter(shapes), ""), **found.named()}
    for what, name in named.items():
        for misfit in found.misfits(what, shapes[name]) if name in shapes else ():
            raise BundleError(
                f"The manifest's 'postprocess.{what}' of kind '{found.kind}' names the output '{name}', and {misfit}."
            )
    return found


def _read(settings: Mapping[str, Any], where: str, what: str, default: str, kinds: Mapping[str, type[_Kind]]) -> _Kind:
    kind = settings.get("kind", default)
    if not isinstance(kind, str):
        raise BundleError(f"The manifest's '{where}.kind' is no text; export the bundle again.")
    if kind not in kinds:
        raise UnsupportedError(
            f"The bundle's {what} is '{kind[:60]}'; this trt-compress knows {', '.join(kinds)}."
            f"{did_you_mean(kind, kinds)}"
        )
    found: _Kind = kinds[kind].from_json(dict(settings), f"manifest.json.{where}")
    for problem in found.problems():
        raise BundleError(f"The manifest's '{where}' of kind '{kind}' does not fit: {problem}.")
    return found


def _not_of(name: str, value: str, allowed: Sequence[str] | Mapping[str, int]) -> Iterator[str]:
    if value not in allowed:
        yield f"{name} is '{value[:60]}'; it is one of {', '.join(allowed)}"


def _out_of(name: str, value: int | None, low: int, high: int) -> Iterator[str]:
    if value is not None and not low <= value <= high:
        yield f"{name} is {value}; it is {low} to {high}"


def _bad_factor(name: str, value: float, *, positive: bool = False) -> Iterator[str]:
    if not _SMALLEST <= (value if positive else abs(value)) <= _LARGEST:
        yield f"{name} is {value:g}; it is {'above' if positive else 'not'} 0, and from {_SMALLEST:g} to {_LARGEST:g}"


def _bad_offset(name: str, value: float) -> Iterator[str]:
    if not (math.isfinite(value) and abs(value) <= _LARGEST):
        yield f"{name} is {value:g}; it is at most {_LARGEST:g}"
