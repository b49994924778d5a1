"""What a stream heard, and what it said about it, for the result."""

from dataclasses import dataclass, field

from trt_compress.errors import ConfigError
from trt_compress.format.record import Record


@dataclass(frozen=True, slots=True, kw_only=True)
class Word(Record):
    """One class for some time on end.

    Attributes:
        start_s: On the source's clock.
        end_s: Where the last sample of it lies.
        text: The label, or "class 7" where the bundle names none.
        score: The largest that it had in this time.
    """

    start_s: float
    end_s: float
    text: str
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Track(Record):
    """Sound that went in or came out.

    Attributes:
        name: "heard", or "made" by a codec.
        sample_rate: Samples a second, as the bundle takes or gives them.
        seconds: How long it is; what was dropped or failed is silence in it.
        low: Smallest sample of each of equally long parts, from -1 to 1.
        high: Their largest.
        file: Name of a file beside the result that holds it, or None.
        reason: Why there is none.
    """

    name: str
    sample_rate: int
    seconds: float
    low: tuple[float, ...]
    high: tuple[float, ...]
    file: str | None
    reason: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sound(Record):
    """The sound of a stream.

    Attributes:
        tracks: What was heard, and of a codec what it made of it.
        words: Classes as they came, those that follow one another as one.
        words_left_out: How many more there were at the end.
        bits_per_second: Of a codec: its codes, without any further coding.
    """

    tracks: tuple[Track, ...]
    words: tuple[Word, ...] = ()
    words_left_out: int = 0
    bits_per_second: float | None = field(default=None)

    def check(self, where: str) -> None:
        """Check what the types do not say.

        Raises:
            ConfigError: The shape of a track has more smallest samples than largest ones, or a number is impossible.
        """
        for number, track in enumerate(self.tracks):
            if len(track.low) != len(track.high):
                raise ConfigError(
                    f"{where}.sound.tracks[{number}] has {len(track.low)} smallest and {len(track.high)} largest ones; "
                    "run the stream again."
                )
            if track.sample_rate < 1 or track.seconds < 0:
                raise ConfigError(
                    f"{where}.sound.tracks[{number}] has {track.seconds:g} s at {track.sample_rate} Hz; run the stream "
                    "again."
                )
