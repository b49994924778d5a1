"""Run a bundle on a stream: everything between a source's name and a `StreamResult`."""

import logging
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib import import_module
from typing import Any

from trt_compress.errors import ConfigError
from trt_compress.foreign import shown
from trt_compress.format.kinds import SoundInput, input_kind
from trt_compress.runtime.stream.branch import Branch
from trt_compress.runtime.stream.calls import Stalled
from trt_compress.runtime.stream.control import Controller, ControllerSettings
from trt_compress.runtime.stream.frame import Array, Frame
from trt_compress.runtime.stream.guard import NotBegun
from trt_compress.runtime.stream.levels import LevelSet
from trt_compress.runtime.stream.pace import Clock, MonotonicClock
from trt_compress.runtime.stream.parts import Sink, Source
from trt_compress.runtime.stream.pipeline import Finished, Pipeline, Settings, Stages
from trt_compress.runtime.stream.postprocess import postprocess_from_manifest
from trt_compress.runtime.stream.preprocess import audio_format, input_name, preprocess_from_manifest
from trt_compress.runtime.stream.quality import Scorer
from trt_compress.runtime.stream.result import (
    Identity,
    OverlayCounts,
    Resources,
    Scheduling,
    StreamProtocol,
    StreamResult,
)
from trt_compress.runtime.stream.scheduling import scheduled
from trt_compress.runtime.stream.sources import SourceGroup, source_from_text

_LOGGER = logging.getLogger("trt_compress")


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamOptions:
    """What a stream is asked for.

    Attributes:
        settings: Pace, policy, queues, deadline, length.
        warmup: Runs of every level on the first frame, before the stream starts; the states are reset after them.
        adapt: Settings of the controller; None: the first level runs every frame.
        labels: What the frames show, or None.
        threads: What the sessions were opened with; for the result.
        scheduling: Of the stream's threads; those of the sessions have it from where they were opened.
        power_reason: Why no power is measured, though it was asked for; for the result.
        resample: Sound is made to fit the bundle, as `open_sources` was told; for the result.
    """

    settings: Settings = Settings()
    warmup: int = 5
    adapt: ControllerSettings | None = None
    labels: Scorer | None = None
    threads: int | None = None
    scheduling: Scheduling = "default"
    power_reason: str | None = None
    resample: bool = False
    device: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.warmup < 0:
            raise ConfigError(f"warmup={self.warmup}; give at least 0.")
        if self.adapt is not None and self.settings.deadline_ns is None:
            raise ConfigError("A controller adapts the level to a deadline, and there is none; give --deadline-ms.")


def open_sources(
    texts: Sequence[str],
    levels: LevelSet,
    *,
    stall_s: float = 10.0,
    clock: Clock | None = None,
    resample: bool = False,
) -> Source:
    """Make the source of a stream; nothing is opened yet.

    Args:
        texts: What `--source` takes; several are streams of one query.
        levels: Say what the bundle takes.
        stall_s: How long a network stream may be silent.
        clock: The stream's clock.
        resample: Sound of another rate or number of channels is made to fit; otherwise it is refused.

    Raises:
        BundleError: The manifest's `preprocess` is wrong.
        ConfigError: A text means no source, or one that the bundle does not take.
    """
    if not texts:
        raise ConfigError("There is no source; give at least one.")
    preprocess = levels.sessions[0].bundle.manifest.preprocess
    settings = input_kind(preprocess)
    audio = None
    if isinstance(settings, SoundInput):
        audio = audio_format(preprocess, levels.inputs[input_name(settings, levels.inputs)])
    if resample and audio is None:
        raise ConfigError("--resample is for sound, and the bundle takes none; leave it out.")
    clock = clock or MonotonicClock()
    made = [
        source_from_text(text, inputs=levels.inputs, audio=audio, clock=clock, stall_s=stall_s, resample=resample)
        for text in texts
    ]
    return made[0] if len(made) == 1 else SourceGroup(made)


def run_stream(
    levels: LevelSet,
    source: Source,
    *,
    options: StreamOptions | None = None,
    sinks: Sequence[Sink] = (),
    streams: int = 1,
    clock: Clock | None = None,
    progress: Callable[[int], None] = lambda frames: None,
    interrupt: threading.Event | None = None,
    watchers: Sequence[Sink] = (),
    hurry: threading.Event | None = None,
) -> StreamResult:
    """Run a stream to its end.

    The stream has states of its own, from their beginning. A dropped frame never comes to them, so the next frame meets
    the history of the last one that ran.

    Args:
        levels: What runs.
        source: Where the frames come from, as `open_sources` makes it.
        options: How.
        sinks: Where results go.
        streams: Sources of one query.
        clock: The stream's clock.
        progress: Is told after every delivered frame how many frames have come.
        interrupt: Ends the stream when it is set, as Ctrl-C does.
        watchers: As `sinks`, but told of a frame when it counts as delivered: they are no part of its time.
        hurry: Set after `interrupt`, nothing is waited for any more, as after a second Ctrl-C.

    Returns:
        The result; `ended` says whether the source ended, the frames were enough, or the stream was interrupted, be it
        before its first frame.

    Raises:
        StreamError: The stream broke, or a part of it did not come back in the stall time; `result` holds what there is
            of it. (Where it could not begin, and nothing stalled, `result` is None.)
        ConfigError: Something does not fit, before the first frame.
        UnsupportedError: Real-time scheduling was asked for, and may not be had.
    """
    options = options or StreamOptions()
    kind = options.settings.pace.kind
    if source.live != (kind == "live"):
        what = "comes at its own pace; leave out --fps and --burst" if source.live else "is no live source"
        raise ConfigError(f"The protocol is '{kind}', and '{source.name}' {what}.")
    with scheduled(options.scheduling):
        run = _Run(levels, source, options, streams, clock or MonotonicClock())
        return run.result(sinks, watchers, progress, interrupt, hurry)


class _Run:
    """One stream: the session stage with its controller, and the result."""

    def __init__(
        self,
        levels: LevelSet,
        source: Source,
        options: StreamOptions,
        streams: int,
        clock: Clock,
    ) -> None:
        self._states = levels.new_states(streams)
        self._levels = levels
        self._source = source
        self._options = options
        self._streams = streams
        self._clock = clock
        self._controller: Controller | None = None
        self._first_inference_ns: int | None = None
        bundle = levels.sessions[0].bundle
        self._summarize = postprocess_from_manifest(bundle.manifest.postprocess, levels.outputs)
        self._stages = Stages(
            preprocess=preprocess_from_manifest(bundle, levels.inputs, streams),
            run=self._run_level,
            postprocess=self._postprocess,
            delivered=self._delivered,
            anywhere=all(session.backend == "ort-cpu" for session in levels.sessions),  # a GPU's keep things a thread
        )

    def result(
        self,
        sinks: Sequence[Sink],
        watchers: Sequence[Sink],
        progress: Callable[[int], None],
        interrupt: threading.Event | None,
        hurry: threading.Event | None,
    ) -> StreamResult:
        """Warm up, run, and say how it went."""
        options, levels = self._options, self._levels
        pipeline = Pipeline(
            self._source,
            self._stages,
            sinks,
            options.settings,
            self._clock,
            progress,
            interrupt,
            watchers=watchers,
            hurry=hurry,
        )
        measured: dict[str, list[int]] = {}

        def warm_up(inputs: dict[str, Array]) -> None:
            measured.update(self._warm_up(inputs, pipeline.warming))

        unstarted: Finished | None = None
        try:
            pipeline.prepare(warm_up if options.warmup else None)
        except NotBegun:
            unstarted = pipeline.unstarted(None)
        except Stalled as stalled:
            unstarted = pipeline.unstarted(stalled)
        if options.adapt is not None:
            names = [level.name for level in levels.levels]
            deadline_ns = options.settings.deadline_ns
            assert deadline_ns is not None  # StreamOptions sees to it
            self._controller = Controller(names, deadline_ns, options.adapt, measured)
        started_at = datetime.now(timezone.utc).isoformat(timespec="seconds")
        finished = unstarted or pipeline.run()
        overlay = next((sink.counts for sink in sinks if isinstance(sink, Branch)), None)
        result = self._result(finished, started_at, overlay)
        if finished.error is not None:
            finished.error.result = result
            raise finished.error
        return result

    def _warm_up(self, inputs: dict[str, Array], step: Callable[[], None]) -> dict[str, list[int]]:
        measured: dict[str, list[int]] = {}
        for level in self._levels.levels if self._options.adapt else self._levels.levels[:1]:
            times = []
            for _ in range(self._options.warmup):
                step()
                begin = self._clock.now_ns()
                level.run(inputs, self._states)
                times.append(self._clock.now_ns() - begin)
            if self._first_inference_ns is None:
                self._first_inference_ns = times[0]
            measured[level.name] = times[1:]  # the first run pays for set-up
        if self._states is not None:
            self._states.reset()
        return measured

    def _run_level(self, frame: Frame) -> None:
        index = 0
        if self._controller is not None:
            index = self._controller.choose(frame.id, self._clock.now_ns() - frame.arrival_ns)
        level = self._levels.levels[index]
        frame.level, frame.tokens = level.name, level.tokens
        begin = self._clock.now_ns()
        frame.outputs = level.run(frame.inputs, self._states)
        took = self._clock.now_ns() - begin
        if self._first_inference_ns is None:
            self._first_inference_ns = took
        if self._controller is not None:
            self._controller.observe(index, took)

    def _postprocess(self, frame: Frame) -> None:
        frame.summary = self._summarize(frame.outputs)
        if self._options.labels is not None:
            self._options.labels.score(frame)

    def _delivered(self, frame: Frame) -> None:
        if self._controller is not None:
            rest = frame.wait_ns["postprocess"] + frame.stage_ns["postprocess"] + frame.stage_ns["sink"]
            self._controller.observe_rest(rest)

    def _result(self, finished: Finished, started_at: str, overlay: OverlayCounts | None) -> StreamResult:
        options, settings = self._options, self._options.settings
        pace = settings.pace
        frames = finished.ledger.frames()
        quality = options.labels.quality() if options.labels else {}
        if options.labels and not quality and finished.ledger.counts().delivered:
            _LOGGER.warning(
                "None of the frames that were delivered has a label, so nothing is scored; ids count from 0."
            )
        idle = zip(frames.first_after_idle, frames.outcome, frames.arrival_ns, frames.end_ns, strict=True)
        session = self._levels.sessions[0]
        manifest = session.bundle.manifest
        library = session.native.info["source_hash"] if session.native else None
        return StreamResult(
            identity=Identity(
                bundle=manifest.name,
                model=manifest.model.source,
                weights=manifest.model.weights.source,
                precision=manifest.precision,
                opset=manifest.opset,
                backend=session.backend,
                levels=tuple(level.info for level in self._used_levels()),
                native_library=str(library) if library else None,
                native_reason=session.native_reason,
                versions=dict(options.versions),
                device=dict(options.device),
                sources=tuple(map(shown, self._source.name.split(", ") if self._streams > 1 else (self._source.name,))),
            ),
            protocol=StreamProtocol(
                kind=pace.kind,
                fps=pace.fps,
                policy=settings.policy,
                queue_depth=settings.queue_depth,
                deadline_ns=settings.deadline_ns,
                warmup=options.warmup,
                threads=options.threads,
                streams=self._streams,
                burst=pace.burst,
                gap_ns=pace.gap_ns,
                stall_ns=round(settings.stall_s * 1e9),
                scheduling=options.scheduling,
                resample=options.resample,
            ),
            started_at=started_at,
            wall_ns=finished.wall_ns,
            ended=finished.ended,
            error=finished.error.message if finished.error else None,
            counts=finished.ledger.counts(),
            first_inference_ns=self._first_inference_ns,
            after_idle_ns=tuple(end - start for first, what, start, end in idle if first and what == "delivered"),
            quality=quality,
            controller=self._controller.log() if self._controller else None,
            resources=Resources(peak_rss_bytes=_peak_rss_bytes(), power_reason=options.power_reason),
            overlay=overlay,
            frames=frames,
        )

    def _used_levels(self) -> Sequence[Any]:
        return self._levels.levels if self._options.adapt else self._levels.levels[:1]


def _peak_rss_bytes() -> int | None:
    """Largest resident memory that this process ever had; None where the system does not say."""
    try:
        resource = import_module("resource")
    except ImportError:  # Windows
        return None
    peak: int = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
