"""A bundle on a stream: what stands behind `trt-compress run`."""

import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from trt_compress.digest import as_digests
from trt_compress.errors import ConfigError, StreamError
from trt_compress.files import write_whole
from trt_compress.foreign import refusals_said
from trt_compress.format.bundle import Bundle
from trt_compress.format.kinds import SoundOutput, input_kind, output_kind
from trt_compress.format.manifest import Manifest
from trt_compress.paths import check_apart, check_new_file, check_new_folder, check_readable
from trt_compress.runtime.measure.power.stream import reader_or_reason, run_with_power
from trt_compress.runtime.session import Session
from trt_compress.runtime.stream.branch import Branch
from trt_compress.runtime.stream.calls import THREADS
from trt_compress.runtime.stream.control import ControllerSettings
from trt_compress.runtime.stream.guard import POLL_S, Job
from trt_compress.runtime.stream.levels import LevelSet, levels_from_sessions, refuse_procedure
from trt_compress.runtime.stream.listener import Listener, files_of_sound
from trt_compress.runtime.stream.overlay import Overlay, captions_from
from trt_compress.runtime.stream.pace import Pace
from trt_compress.runtime.stream.parts import Sink, Source
from trt_compress.runtime.stream.pipeline import Settings
from trt_compress.runtime.stream.preprocess import audio_format, check_sources, input_name
from trt_compress.runtime.stream.quality import labels_from_file
from trt_compress.runtime.stream.result import Policy, StreamResult
from trt_compress.runtime.stream.run import StreamOptions, open_sources, run_stream
from trt_compress.runtime.stream.scheduling import scheduled
from trt_compress.runtime.stream.sinks import JsonLines, SoundSink
from trt_compress.runtime.stream.sources import check_source, file_of_url, is_live
from trt_compress.runtime.stream.watcher import Watcher
from trt_compress.tools.bench.bundle import bench
from trt_compress.tools.bench.verdicts import slower_words
from trt_compress.tools.machine import describe_device, package_versions
from trt_compress.tools.report.names import files_of_report

T = TypeVar("T")

_RESULT_FILE = "result.json"
_PAIRS = 20  # of the bundle and its baseline, which the interval of a median needs
_PROGRESS_S = 0.25
_OPENING_S = 2.0  # of a bundle, once the stream is hurried


@refusals_said()
def run(
    bundle: str | Path,
    *,
    source: str | Sequence[str],
    fps: float | None = None,
    burst: int | None = None,
    gap_ms: float | None = None,
    policy: Policy = "block",
    queue_depth: int = 2,
    deadline_ms: float | None = None,
    frames: int | None = None,
    stall_s: float = 10.0,
    warmup: int = 5,
    adapt: bool = False,
    level: str | Path | Sequence[str | Path] = (),
    baseline: str | Path | None = None,
    labels: str | Path | None = None,
    resample: bool = False,
    out: str | Path | None = None,
    overlay: str | Path | None = None,
    overlay_in_latency: bool = False,
    report: str | Path | None = None,
    power: str = "off",
    power_idle_s: float = 10.0,
    realtime: bool = False,
    backend: str = "ort-cpu",
    threads: int | None = None,
    native: bool | str | Path | None = None,
    require_digest: str | Collection[str] | None = None,
    progress: Callable[[str], None] = lambda step: None,
    wrote: Callable[[Path], None] = lambda path: None,
    say: Callable[[str], None] | None = None,
    warn: Callable[[str], None] = lambda sentence: None,
    interrupt: threading.Event | None = None,
    hurry: threading.Event | None = None,
) -> StreamResult:
    """Run a bundle on a stream: every frame timed, and none unaccounted for.

    Args:
        bundle: Its directory.
        source: `video.mp4`, `camera:0`, `rtsp://…`, a pattern such as `frames/*.png`, `audio.wav`, `mic`,
            `scene.npz`, or a GStreamer pipeline; several are streams in one query.
        fps: A frame each 1/fps s, whatever happens; None: the next when the last is done.
        burst: Frames of a burst; needs `gap_ms`.
        gap_ms: Pause between bursts.
        policy: What a full queue does: "block", "latest" or "drop-oldest".
        queue_depth: Frames that may wait before each stage.
        deadline_ms: From arrival to delivery; later frames are counted as misses.
        frames: End after as many.
        stall_s: Give up when the source is silent, or a stage or a file takes nothing, for so long.
        warmup: Runs on the first frame, before the stream starts.
        adapt: Choose a keep level for every frame, so that `deadline_ms` holds.
        level: More keep levels for `adapt`: bundles of the same model, kept otherwise.
        baseline: The same model without compression: both are timed before the stream, and `warn` is told if the bundle
            is slower.
        labels: A file of true answers that scores the results.
        resample: Convert sound of another rate and mix its channels; otherwise it is refused.
        out: A file for one line of JSON a frame.
        overlay: A file for the frames with the results drawn in (.mp4), or a codec's sound (.wav). A video is drawn
            beside the stream: it takes no part in latency, and repeats a picture where it falls behind.
        overlay_in_latency: Draw every frame before it counts as delivered, as a display would.
        report: A directory for result.json, its report, a page with plots and a trace.
        power: Reader of power and energy: "auto", "ina", "tegrastats", "nvidia-smi", "rapl" or "off".
        power_idle_s: How long the idle machine is measured before.
        realtime: Real-time threads.
        backend: As `Session.open` takes it.
        threads: As `Session.open` takes it.
        native: As `Session.open` takes it.
        require_digest: The digest that the bundle must have; with more than one bundle several, of which each must have
            one. As `Bundle.open` takes it.
        progress: Is told what is being done.
        wrote: Is told each file of the report.
        say: Is told what is seen or heard, a line for every change, on a thread of its own.
        warn: Is told what speaks against the bundle.
        interrupt: Ends the stream when it is set; what was on its way arrives.
        hurry: Set after `interrupt`, nothing but the writing of the result is waited for.

    Raises:
        ConfigError, BundleError, UnsupportedError: Something that was given is wrong, or cannot be done here.
        StreamError: The stream could not go on, or its report cannot be written; its `result` is what there is.
        KeyboardInterrupt: `hurry` was set while the bundle was opened, and that takes long: there is no result.
    """
    if overlay_in_latency and (overlay is None or Path(overlay).suffix.lower() == ".wav"):
        raise ConfigError("--overlay-in-latency says when a video is drawn, and there is none; give --overlay out.mp4.")
    more = [level] if isinstance(level, str | Path) else list(level)
    if more and not adapt:
        raise ConfigError("--level gives levels to choose from, and nothing chooses without --adapt; give both.")
    if not 0 <= power_idle_s < 1e6:
        raise ConfigError(f"--power-idle-s {power_idle_s:g}; give a time of at least 0 s.")
    sources = [source] if isinstance(source, str) else list(source)
    if not sources:
        raise ConfigError("source is empty; give at least one, such as 'video.mp4' or 'camera:0'.")
    pace = _pace(sources, fps, burst, gap_ms)
    settings = Settings(
        pace=pace,
        policy=policy,
        queue_depth=queue_depth,
        deadline_ns=_nanoseconds("--deadline-ms", deadline_ms),
        frames=frames,
        stall_s=stall_s,
    )
    files = {"--out": _path(out), "--overlay": _path(overlay)}
    required = as_digests(require_digest)
    manifests = []
    for each in (bundle, *more):
        found = Bundle.open(each, check_hashes=False, require_digest=required)
        refuse_procedure(found)
        _check_overlay(_path(overlay), found.manifest)
        manifests.append(found.manifest)
    if baseline is not None:
        Bundle.open(baseline, check_hashes=False, require_digest=required)
    _check_files([Path(bundle), *map(Path, more)], sources, _path(labels), files, _path(report))
    reader, power_reason = reader_or_reason(power)
    options = StreamOptions(
        settings=settings,
        warmup=warmup,
        adapt=ControllerSettings() if adapt else None,
        threads=threads,
        scheduling="realtime" if realtime else "default",
        power_reason=power_reason,
        resample=resample,
        device=describe_device(),
        versions=package_versions(),
    )
    asked, hurried = interrupt or threading.Event(), hurry or threading.Event()
    error: StreamError | None = None
    with ExitStack() as held:
        if reader is not None:
            held.callback(reader.close)
        for manifest in manifests:
            check_sources(manifest, sources)
        if baseline is not None:
            progress("timing the bundle beside its baseline")
            timed = bench(
                bundle,
                baseline=baseline,
                backend=backend,
                batch=len(sources),
                threads=threads,
                pairs=_PAIRS,
                native=native,
                require_digest=require_digest,
            )
            for sentence in slower_words(timed):
                warn(sentence)
        progress("opening")

        def opened_sessions() -> list[Session]:
            with scheduled(options.scheduling):
                return [
                    Session.open(
                        path,
                        backend=backend,
                        threads=threads,
                        spin=False,
                        native=native,
                        require_digest=required,
                    )
                    for path in (bundle, *more)
                ]

        sessions = _unless(hurried, opened_sessions)
        levels = levels_from_sessions(sessions)
        if labels is not None:
            meaning = sessions[0].bundle.manifest.postprocess
            options = replace(options, labels=labels_from_file(Path(labels), meaning, levels.outputs))
        pictures = None
        if overlay is not None and Path(overlay).suffix.lower() != ".wav":
            captions = captions_from(sources, sessions[0].bundle.manifest, options.labels, labels)
            pictures = Branch(Overlay(overlay, fps or 30.0, captions=captions), in_latency=overlay_in_latency)
        sinks = _sinks(_path(overlay), pictures, _path(out), levels)
        listener = _listener(levels, sources) if report is not None else None
        opened = open_sources(sources, levels, stall_s=stall_s, resample=resample)
        watcher = _watcher(levels, opened, say)
        watchers: list[Sink] = [watcher] if listener is None else [watcher, listener]

        def stream() -> StreamResult:
            return run_stream(
                levels,
                opened,
                options=options,
                sinks=sinks,
                streams=len(sources),
                progress=held.enter_context(_telling(progress)),
                interrupt=asked,
                watchers=watchers,
                hurry=hurried,
            )

        try:
            if reader is None:
                result = stream()
            else:
                progress(f"measuring the idle machine for {power_idle_s:g} s")
                result = run_with_power(stream, reader, idle_seconds=power_idle_s, interrupt=asked)
        except StreamError as broken:
            error, result = broken, _result_of(broken)
    result = replace(result, findings=watcher.findings())
    if report is not None:
        try:
            result = _write(Path(report), result, None if hurried.is_set() else listener, wrote, hurried)
        except ConfigError as unwritten:
            error = _also(error, unwritten)
    if error is not None:
        error.result = result
        raise error
    return result


def _check_files(
    bundles: Sequence[Path],
    sources: Sequence[str],
    labels: Path | None,
    files: Mapping[str, Path | None],
    report: Path | None,
) -> None:
    """Refuse what is not there or cannot be written, before any library is loaded."""
    read = [Path(name) for text in sources for name in (*check_source(text), *file_of_url(text))]
    truth = [] if labels is None else [labels]
    for answers in truth:
        if answers.suffix.lower() != ".npz":  # the true boxes of a detector, which are asked for the bundle first
            check_readable(answers, "give a JSONL file to --labels")
    for option, path in files.items():
        if path is not None:
            check_new_file(path, option)
    stem = Path(_RESULT_FILE).stem
    names = (_RESULT_FILE, *files_of_report(stem), *files_of_sound(stem))
    if report is not None:
        check_new_folder(report, "--report", names)
    written = {} if report is None else {f"--report ({name})": report / name for name in names}
    check_apart({**files, **written}, {"the source": read, "--labels": truth}, bundles)


def _check_overlay(overlay: Path | None, manifest: Manifest) -> None:
    gives_sound = manifest.postprocess.get("kind") == "audio"
    if overlay is not None and gives_sound != (overlay.suffix.lower() == ".wav"):
        gives, name = ("sound", "out.wav") if gives_sound else ("no sound", "out.mp4")
        raise ConfigError(f"--overlay {overlay}: the bundle gives {gives}; give a name such as {name}.")
    if overlay is not None and not gives_sound and manifest.preprocess.get("kind") == "audio":
        raise ConfigError(f"--overlay {overlay}: the bundle takes sound, and there is nothing to see; leave it out.")


def _sinks(overlay: Path | None, pictures: Branch | None, out: Path | None, levels: LevelSet) -> list[Sink]:
    meaning = output_kind(levels.sessions[0].bundle.manifest.postprocess)
    sinks: list[Sink] = []
    if overlay is not None and isinstance(meaning, SoundOutput):
        output = meaning.output or next(iter(levels.outputs))
        sinks.append(SoundSink(overlay, output=output, sample_rate=meaning.sample_rate, samples=meaning.samples))
    elif pictures is not None:
        sinks.append(pictures)
    if out is not None:
        sinks.append(JsonLines(out, {one.name: one.info.compression for one in levels.levels}))
    return sinks


def _listener(levels: LevelSet, sources: Sequence[str]) -> Listener | None:
    """Keeps the sound for the report's page; None where there is none, or several streams are one query."""
    manifest = levels.sessions[0].bundle.manifest
    if manifest.preprocess.get("kind") != "audio" or len(sources) > 1:
        return None
    return Listener(manifest.preprocess, manifest.postprocess, levels.inputs)


def _watcher(levels: LevelSet, source: Source, say: Callable[[str], None] | None) -> Watcher:
    manifest = levels.sessions[0].bundle.manifest
    if manifest.preprocess.get("kind") != "audio":
        return Watcher(heard=False, live=source.live, say=say)
    form = audio_format(manifest.preprocess, levels.inputs[input_name(input_kind(manifest.preprocess), levels.inputs)])
    return Watcher(heard=True, live=source.live, span_s=form.chunk_samples / form.sample_rate, say=say)


def _path(given: str | Path | None) -> Path | None:
    return None if given is None else Path(given)


def _result_of(broken: StreamError) -> StreamResult:
    """What there is of a stream that broke; before its first frame there is nothing but the error."""
    if not isinstance(broken.result, StreamResult):
        raise broken
    return broken.result


def _also(broken: StreamError | None, unwritten: ConfigError) -> StreamError:
    """The error of a report that cannot be written, behind that of the stream; the result is not lost with its file."""
    if broken is None:
        return StreamError(unwritten.message, hint=unwritten.hint, exit_code=unwritten.exit_code)
    return StreamError(f"{broken.message} {unwritten.message}", hint=broken.hint, exit_code=broken.exit_code)


def _pace(sources: list[str], fps: float | None, burst: int | None, gap_ms: float | None) -> Pace:
    if burst is not None or gap_ms is not None:
        return Pace(kind="bursts", fps=fps, burst=burst, gap_ns=_nanoseconds("--gap-ms", gap_ms))
    if fps is not None:
        return Pace(kind="fixed rate", fps=fps)
    return Pace(kind="live" if is_live(sources[0]) else "closed loop")


def _nanoseconds(option: str, milliseconds: float | None) -> int | None:
    if milliseconds is None:
        return None
    if not 0 < milliseconds < 1e9:
        raise ConfigError(f"{option} {milliseconds:g}; give a time above 0 ms.")
    return round(milliseconds * 1e6)


@contextmanager
def _telling(step: Callable[[str], None]) -> Iterator[Callable[[int], None]]:
    """Tell now and then how many frames have come, on a thread of its own: a terminal that has stopped holds nobody
    up."""
    came = 0
    over = threading.Event()

    def tell() -> None:
        said = 0
        while not over.wait(_PROGRESS_S):
            if said != came:
                said = came
                step(f"{said} frames")

    def note(frames: int) -> None:
        nonlocal came
        came = frames

    threading.Thread(target=tell, name=f"{THREADS}progress", daemon=True).start()
    try:
        yield note
    finally:
        over.set()


def _unless(hurried: threading.Event, work: Callable[[], T]) -> T:
    """Do something that may take long, on a thread that is left behind if it does so when the stream is hurried.

    Raises:
        KeyboardInterrupt: It was.
    """
    found: list[T] = []
    job = Job("opening", None, lambda: found.append(work()))
    left_s = _OPENING_S
    while not job.over.is_set() and left_s > 0:
        job.over.wait(POLL_S)
        left_s -= POLL_S * hurried.is_set()
    if job.error is not None:
        raise job.error
    if not found:
        raise KeyboardInterrupt
    return found[0]


def _write(
    directory: Path,
    result: StreamResult,
    listener: Listener | None,
    wrote: Callable[[Path], None],
    hurried: threading.Event,
) -> StreamResult:
    """Write the result first, whatever else there is to be made of it; nothing else where the stream is hurried."""
    path = directory / _RESULT_FILE
    _write_result(path, result)
    wrote(path)
    if listener is not None and (sound := listener.sound(directory, path.stem)) is not None:
        result = replace(result, sound=sound)
        _write_result(path, result)
        for track in sound.tracks:
            if track.file is not None:
                wrote(directory / track.file)
    if hurried.is_set():
        return result
    from trt_compress.tools.report.from_stream import report_from_stream
    from trt_compress.tools.report.write import write_all

    for written in write_all(report_from_stream(result), result, directory, path.stem):
        wrote(written)
    return result


def _write_result(path: Path, result: StreamResult) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, result.to_text())
    except OSError as error:
        raise ConfigError(f"'{path}' cannot be written ({error.strerror}); give another folder to --report.") from None
