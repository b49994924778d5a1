"""What a stream saw or heard, counted, for the result and the sum-up at its end."""

from dataclasses import dataclass, field

from trt_compress.format.record import Record, one_of
from trt_compress.runtime.stream.sound_result import Word


@dataclass(frozen=True, slots=True, kw_only=True)
class Features(Record):
    """The features that an encoder without a head gives.

    Attributes:
        frames: Of a result, the fewest.
        most_frames: The most.
        width: Numbers of a frame.
        ms_per_frame: Time that a frame stands for, the mean of all; None where frames have no time.
    """

    frames: int
    most_frames: int
    width: int
    ms_per_frame: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings(Record):
    """The results of a stream together.

    Attributes:
        kind: "heard" of a bundle that takes sound, else "seen".
        results: Results that were looked at: one of each stream of a query for every delivered frame.
        classes: Class → results whose best class it was.
        boxes: Class → boxes of it.
        with_boxes: Results with at least one box.
        words: Classes as they came, those that follow one another as one; of a single stream whose frames have a time.
        words_left_out: How many more there were at the end.
        features: What came of an encoder that has no head, or None.
    """

    kind: str = field(metadata=one_of("seen", "heard"))
    results: int
    classes: dict[str, int]
    boxes: dict[str, int]
    with_boxes: int
    words: tuple[Word, ...]
    words_left_out: int
    features: Features | None = None
