"""The kinds of output: one record for each, with what it may hold and which outputs it fits."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from trt_compress.format.bounds import FASTEST, MOST_SAMPLES, Shape, bad_factor, out_of
from trt_compress.format.record import Record

BOX_COLUMNS = ("x", "y", "z", "length", "width", "height", "sin_yaw", "cos_yaw", "velocity_x", "velocity_y")
"""Columns of a 3D box where the manifest does not name them; metres, in the ego frame."""


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
class PlaceInFrame(Record):
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
    place: PlaceInFrame | None = None

    def problems(self) -> Iterator[str]:
        """What is wrong with the values, whatever the outputs are."""
        yield from out_of("classes", self.classes, 1, 2**31 - 1)
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
        yield from out_of("sample_rate", self.sample_rate, 1, FASTEST)
        yield from out_of("samples", self.samples, 1, MOST_SAMPLES)
        if self.bits_per_second is not None:
            yield from bad_factor("bits_per_second", self.bits_per_second, positive=True)

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
            yield from bad_factor("seconds", self.seconds, positive=True)

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
            yield from bad_factor("seconds", self.seconds, positive=True)

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
        yield from (problem for token in self.stop for problem in out_of("stop", token, 0, 2**31 - 1))

    def misfits(self, what: str, shape: Shape) -> Iterator[str]:
        """Why an output of this shape cannot be `what`."""
        if what == "output" and len(shape) not in (2, 3):
            yield f"it has the shape {list(shape)}; they are [batch, vocabulary] or [batch, tokens, vocabulary]"
        elif what == "output" and isinstance(shape[-1], int) and any(token >= shape[-1] for token in self.stop):
            yield f"it has logits of {shape[-1]} tokens, and a text stops at {max(self.stop)}"
