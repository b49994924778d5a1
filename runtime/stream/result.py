"""What one stream was and how it went, as a JSON document.

Times are integers in nanoseconds. Those of a frame are on the stream's one monotonic clock, counted from the moment
when the stream started (warm-up is before that). What was not measured is null, never 0.
"""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from trt_compress.errors import BundleError, ConfigError
from trt_compress.files import RECORD_LIMIT, read_regular
from trt_compress.foreign import strict_json
from trt_compress.format.manifest import Compression
from trt_compress.format.record import VERSION, Record, one_of
from trt_compress.runtime.stream.findings import Features as Features
from trt_compress.runtime.stream.findings import Findings
from trt_compress.runtime.stream.sound_result import Sound
from trt_compress.runtime.stream.sound_result import Track as Track
from trt_compress.runtime.stream.sound_result import Word as Word

SCHEMA_VERSION = "1.0"
DOCUMENT = "trt-compress stream"

STAGES = ("decode", "preprocess", "session", "postprocess", "sink")
"""What is done to a frame, in order. Waiting is no part of a stage."""

QUEUES = ("source", "preprocess", "postprocess")
"""Where a frame waits: for the source to take it up, and before the two stages that have a queue."""

OUTCOMES = ("delivered", "dropped", "failed")
"""What becomes of a frame: exactly one of these."""

Outcome = Literal["delivered", "dropped", "failed"]
Kind = Literal["closed loop", "fixed rate", "bursts", "live"]
Policy = Literal["block", "latest", "drop-oldest"]
Scheduling = Literal["default", "realtime"]
Ended = Literal["end of source", "frame limit", "interrupted", "error"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelInfo(Record):
    """One compiled keep level: the bundle and graphs that it runs, and what compresses them.

    Attributes:
        name: As the column `level` of the frames and the controller's switches call it.
        graphs: ONNX file → sha256, of the graphs that this level runs.
        engines: Engine file → sha256, of the engines that it ran; empty if the backend ran the ONNX files.
        compression: Tokens in and out of every site.
        flops: FLOPs of one sample, or None.
    """

    name: str
    bundle: str
    digest: str
    graphs: dict[str, str]
    engines: dict[str, str] = field(default_factory=dict)
    compression: tuple[Compression, ...] = ()
    flops: float | None = None
    baseline_flops: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity(Record):
    """What ran, where.

    Attributes:
        bundle: Name of the bundle, as its manifest has it.
        model: The model as the exporter named it.
        weights: Where its weights came from.
        levels: The keep levels in order of falling cost; a stream without a controller has one.
        native_library: Source hash of the native operators that ran, or None.
        native_reason: Why there are none, in a sentence.
        versions: Package → version.
        device: The machine, as `trt-compress doctor` sees it.
        sources: What was asked for, in order; one for each stream of a query.
    """

    bundle: str
    model: str
    weights: str
    precision: str
    opset: int
    backend: str
    levels: tuple[LevelInfo, ...]
    native_library: str | None
    native_reason: str | None = None
    versions: dict[str, str]
    device: dict[str, Any]
    sources: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamProtocol(Record):
    """How frames came and what was asked of them.

    Attributes:
        kind: "closed loop": a frame arrives when the one before was delivered. "fixed rate": one each 1/fps whatever
            happens. "bursts": `burst` frames, then a pause of `gap_ns`. "live": when the device gives one.
        policy: What a full queue does: "block", "latest" or "drop-oldest".
        queue_depth: Frames that fit into each queue.
        deadline_ns: End-to-end time above which a delivered frame has missed; None: there is none.
        warmup: Runs of the session on the first frame before the stream started; they are in no column.
        threads: Threads of one operator; None: the backend's own choice.
        scheduling: "default", or "realtime": no ordinary thread of the machine ran before those of the stream.
        order: The stages, in order.
        streams: Sources of one query; a row of the frames is one query.
        stall_ns: Silence of a source after which the stream gives up.
        resample: Sound of another sample rate or number of channels than the bundle's was made to fit.
    """

    kind: str = field(metadata=one_of(*get_args(Kind)))
    fps: float | None
    policy: str = field(metadata=one_of(*get_args(Policy)))
    queue_depth: int
    deadline_ns: int | None
    warmup: int
    threads: int | None
    order: tuple[str, ...] = STAGES
    streams: int = 1
    burst: int | None = None
    gap_ns: int | None = None
    stall_ns: int | None = None
    scheduling: str = field(default="default", metadata=one_of(*get_args(Scheduling)))
    resample: bool = field(default=False, metadata={"sparse": True})


@dataclass(frozen=True, slots=True, kw_only=True)
class Frames(Record):
    """One row a frame, as columns of equal length, in order of arrival.

    End-to-end time is `end_ns - arrival_ns`, queueing included; it is also the sum of all stages and waits. A stage or
    wait of None is one that the frame never came to.

    Attributes:
        id: Number of the frame, from 0. Rows are consecutive; a stream longer than what is kept starts above 0.
        capture_ns: The source's own time stamp (of the file or the device), on its own clock, or None.
        arrival_ns: When the frame was due (fixed rate, bursts with a rate), asked for (closed loop) or there (live).
        start_ns: When its first stage began.
        end_ns: When its result was with all sinks; for a frame that was dropped or failed, when that happened.
        deadline_missed: Whether a delivered frame came later than the deadline; None without one, or not delivered.
        outcome: "delivered", "dropped" or "failed".
        reason: Why a frame was dropped or failed.
        level: Name of the keep level that ran.
        stage_ns: Stage → its own work.
        queue_wait_ns: Queue → the time from the end of the stage before until the stage took the frame.
        tokens_in: Tokens of one sample before the first compressor, if known.
        tokens_out: Tokens of one sample after the last compressor, if known; where the tokens that a site does not
            compute are kept, the most that a site computes.
        first_after_idle: Whether the frame was the first after a pause.
    """

    id: tuple[int, ...]
    capture_ns: tuple[int | None, ...]
    arrival_ns: tuple[int, ...]
    start_ns: tuple[int | None, ...]
    end_ns: tuple[int, ...]
    deadline_missed: tuple[bool | None, ...]
    outcome: tuple[str, ...] = field(metadata={"schema": {"items": {"enum": [*OUTCOMES]}}})
    reason: tuple[str | None, ...]
    level: tuple[str | None, ...]
    stage_ns: dict[str, tuple[int | None, ...]]
    queue_wait_ns: dict[str, tuple[int | None, ...]]
    tokens_in: tuple[int | None, ...]
    tokens_out: tuple[int | None, ...]
    first_after_idle: tuple[bool, ...]

    def end_to_end_ns(self) -> list[int]:
        """End-to-end times of the delivered frames, in order of arrival."""
        rows = zip(self.outcome, self.arrival_ns, self.end_ns, strict=True)
        return [end - arrival for outcome, arrival, end in rows if outcome == "delivered"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts(Record):
    """All frames of the stream, those too that no longer have a row. `frames_in = delivered + dropped + failed`.

    `deadline_missed` counts delivered frames; None without a deadline. `reasons` counts why frames were not delivered.
    """

    frames_in: int = field(metadata={"json": "in"})
    delivered: int
    dropped: int
    failed: int
    deadline_missed: int | None
    reasons: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality(Record):
    """A metric against labels, over the n delivered frames that have one."""

    value: float
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Switch(Record):
    """The controller changed the keep level before this frame, because of what it had measured."""

    frame: int
    from_level: str = field(metadata={"json": "from"})
    to_level: str = field(metadata={"json": "to"})
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerLog(Record):
    """How the keep level was chosen: the controller's settings, and every change. Frames a level are in the columns."""

    settings: dict[str, Any]
    switches: tuple[Switch, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources(Record):
    """What the stream took of the machine; None: not measured here.

    Attributes:
        peak_rss_bytes: Largest resident memory of the process. Device memory is not in it.
        device_memory_bytes: As the device reports it.
        energy_joule: Integral of the raw power samples over the stream.
        idle_watt: Power of the idle machine, measured before.
        power: The power readings themselves: reader, rails, seconds, samples.
        power_reason: Why a power that was asked for was not measured.
    """

    peak_rss_bytes: int | None = None
    device_memory_bytes: int | None = None
    engine_bytes: int | None = None
    energy_joule: float | None = None
    idle_watt: float | None = None
    power: dict[str, Any] | None = None
    power_reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OverlayCounts(Record):
    """What an overlay shows: a picture for every frame of the stream.

    Attributes:
        drawn: Delivered frames that were drawn.
        behind: Delivered frames that came too fast to be drawn: the last picture is repeated, marked.
        without_result: Frames that were dropped or failed: the last picture is repeated, marked.
        waited_ns: What a closed loop waited for it between frames. It is in the wall time, and in no frame's.
        after_ns: What it took to finish after the stream had ended. It is not in the wall time.
    """

    drawn: int
    behind: int
    without_result: int
    waited_ns: int = 0
    after_ns: int = 0

    def sentence(self) -> str:
        """Say it to a person."""

        def repeat(count: int) -> str:
            return f"repeat{'s'[: count == 1]} the picture before"

        parts = [f"{self.drawn} frame{'s'[: self.drawn != 1]} drawn"]
        if self.behind:
            parts.append(f"{self.behind} came too fast and {repeat(self.behind)} (--overlay-in-latency draws all)")
        if self.without_result:
            parts.append(f"{self.without_result} without a result {repeat(self.without_result)}")
        if self.waited_ns:
            parts.append(f"the loop waited {self.waited_ns / 1e9:.1f} s for it between frames")
        return "; ".join(parts) + "."


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamResult(Record):
    """One stream: what ran, how frames came, what became of each, how long everything took.

    Attributes:
        document: Always "trt-compress stream": what kind of JSON this is.
        started_at: Wall-clock time of the start, ISO 8601 with a zone; for the reader only.
        wall_ns: From the start to the last outcome.
        ended: "end of source", "frame limit", "interrupted" or "error"; `error` is the sentence then.
        first_inference_ns: The session's first run ever, which pays for lazy set-up; before warm-up.
        after_idle_ns: End-to-end times of the delivered frames that were first after a pause.
        quality: Metric → value; empty without labels.
        overlay: What became of the frames in the video with the results; None without one.
        sound: What was heard, of a bundle that takes sound, where a report was asked for.
        findings: Classes and boxes, counted; None where the results hold neither.
    """

    schema_version: str = field(default=SCHEMA_VERSION, metadata=VERSION)
    document: str = field(default=DOCUMENT, metadata=one_of(DOCUMENT))
    identity: Identity
    protocol: StreamProtocol
    started_at: str
    wall_ns: int
    ended: str = field(metadata=one_of(*get_args(Ended)))
    error: str | None = None
    counts: Counts
    first_inference_ns: int | None
    after_idle_ns: tuple[int, ...] = ()
    quality: dict[str, Quality] = field(default_factory=dict)
    controller: ControllerLog | None = None
    resources: Resources = field(default_factory=Resources)
    overlay: OverlayCounts | None = None
    sound: Sound | None = field(default=None, metadata={"sparse": True})
    findings: Findings | None = field(default=None, metadata={"sparse": True})
    frames: Frames

    @property
    def throughput_per_s(self) -> float | None:
        """Delivered frames a second of the wall time, less what a closed loop waited for its overlay; None without."""
        took_ns = self.wall_ns - (self.overlay.waited_ns if self.overlay else 0)
        return self.counts.delivered / (took_ns / 1e9) if took_ns > 0 else None

    @classmethod
    def from_text(cls, text: str | bytes, where: str = "the result") -> "StreamResult":
        """Read the JSON document; `where` is the place named in messages.

        Raises:
            ConfigError: It is not JSON, not the result of a stream, has a newer schema, or its parts do not fit.
        """
        try:
            data = strict_json(text)
        except ValueError as error:
            raise ConfigError(f"{where} is not valid JSON ({error}); run the stream again.") from None
        return cls.from_data(data, where)

    @classmethod
    def from_data(cls, data: object, where: str = "the result") -> "StreamResult":
        """Read the parsed JSON document.

        Raises:
            ConfigError: As `from_text`.
        """
        _check_kind(data, where)
        try:
            result = cls.from_json(data, where)
        except BundleError as error:  # a record says so of a bundle's files; this is none
            raise ConfigError(error.message) from None
        result.check(where)
        return result

    @classmethod
    def read(cls, path: str | Path) -> "StreamResult":
        """Read a result file.

        Raises:
            ConfigError: It cannot be read, or as `from_text`.
        """
        try:
            return cls.from_text(read_regular(Path(path), limit=RECORD_LIMIT), f"'{path}'")
        except OSError as error:
            raise ConfigError(
                f"'{path}' cannot be read ({error.strerror}); give the result.json of `trt-compress run`."
            ) from None

    def to_text(self) -> str:
        """Write the JSON document."""
        return json.dumps(self.to_json(), allow_nan=False, ensure_ascii=False, separators=(",", ":")) + "\n"

    def check(self, where: str = "the result") -> None:
        """Check that no frame is unaccounted for and that all columns are equally long.

        Raises:
            ConfigError: They do not fit; the message names the part.
        """
        counts, frames = self.counts, self.frames
        for part, value, allowed in (
            ("protocol.kind", self.protocol.kind, get_args(Kind)),
            ("protocol.policy", self.protocol.policy, get_args(Policy)),
            ("protocol.scheduling", self.protocol.scheduling, get_args(Scheduling)),
            ("ended", self.ended, get_args(Ended)),
            *(("frames.outcome", outcome, OUTCOMES) for outcome in sorted(set(frames.outcome))),
        ):
            if value not in allowed:
                raise ConfigError(
                    f"{where}: {part} is '{value}'; allowed are {', '.join(allowed)}. Run the stream again."
                )
        if counts.frames_in != counts.delivered + counts.dropped + counts.failed:
            raise ConfigError(
                f"{where}: {counts.frames_in} frames came in, and {counts.delivered} delivered + {counts.dropped} "
                f"dropped + {counts.failed} failed are not as many; run the stream again."
            )
        if self.sound is not None:
            self.sound.check(where)
        columns: dict[str, tuple[Any, ...]] = {}
        for name in ("capture_ns", "arrival_ns", "start_ns", "end_ns", "deadline_missed", "outcome", "reason", "level"):
            columns[name] = getattr(frames, name)
        columns |= {f"stage_ns.{name}": column for name, column in frames.stage_ns.items()}
        columns |= {f"queue_wait_ns.{name}": column for name, column in frames.queue_wait_ns.items()}
        columns |= {name: getattr(frames, name) for name in ("tokens_in", "tokens_out", "first_after_idle")}
        for name, column in columns.items():
            if len(column) != len(frames.id):
                raise ConfigError(
                    f"{where}: the column frames.{name} has {len(column)} rows and frames.id {len(frames.id)}; "
                    "run the stream again."
                )


def _check_kind(data: object, where: str) -> None:
    if not isinstance(data, dict) or data.get("document") != DOCUMENT:
        raise ConfigError(f"{where} is not the result of a stream; give the result.json of `trt-compress run`.")
    version = data.get("schema_version")
    if not isinstance(version, str) or not re.fullmatch(r"\d+\.\d+", version):
        raise ConfigError(f"{where} has no 'schema_version' such as \"{SCHEMA_VERSION}\"; run the stream again.")
    if version.split(".")[0] != SCHEMA_VERSION.split(".")[0]:
        raise ConfigError(
            f"{where} has schema version {version}, and this trt-compress reads {SCHEMA_VERSION.split('.')[0]}.x; "
            "install the trt-compress that wrote it, or run the stream again."
        )
