"""The command run: a bundle on a stream."""

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trt_compress.errors import ConfigError, StreamError
from trt_compress.tools.cli_habits import BundlePath, Json, needs_extra
from trt_compress.tools.console import print_json, progress

if TYPE_CHECKING:
    from trt_compress.runtime.stream.levels import LevelSet
    from trt_compress.runtime.stream.pace import Pace
    from trt_compress.runtime.stream.parts import Sink
    from trt_compress.runtime.stream.result import StreamResult

_RESULT_FILE = "result.json"
_PROGRESS_S = 0.25


def run(
    bundle: BundlePath,
    source: Annotated[
        list[str],
        typer.Option(
            metavar="SOURCE",
            help="video.mp4, camera:0, rtsp://…, 'frames/*.png' (quoted), audio.wav, mic or scene.npz; repeat it for "
            "several streams in one query.",
        ),
    ],
    fps: Annotated[
        float | None,
        typer.Option(
            metavar="F", help="A frame each 1/F s, whatever happens (default: the next when the last is done)."
        ),
    ] = None,
    burst: Annotated[int | None, typer.Option(metavar="N", help="Frames of a burst; needs --gap-ms.")] = None,
    gap_ms: Annotated[float | None, typer.Option(metavar="MS", help="Pause between bursts.")] = None,
    policy: Annotated[
        str, typer.Option(metavar="P", help="What a full queue does: block, latest or drop-oldest.")
    ] = "block",
    queue_depth: Annotated[int, typer.Option(metavar="N", help="Frames that may wait before each stage.")] = 2,
    deadline_ms: Annotated[
        float | None, typer.Option(metavar="MS", help="From arrival to delivery; later frames are counted as misses.")
    ] = None,
    frames: Annotated[int | None, typer.Option(metavar="N", help="End after N frames.")] = None,
    stall_s: Annotated[float, typer.Option(metavar="S", help="Give up when the source is silent for so long.")] = 10.0,
    resample: Annotated[
        bool,
        typer.Option("--resample", help="Make sound of another sample rate or number of channels fit the bundle."),
    ] = False,
    warmup: Annotated[int, typer.Option(metavar="N", help="Runs on the first frame, before the stream starts.")] = 5,
    adapt: Annotated[
        bool, typer.Option("--adapt", help="Choose a keep level for every frame, so that --deadline-ms holds.")
    ] = False,
    level: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="BUNDLE", help="One more keep level for --adapt, repeatable: the same model, kept otherwise."
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help='Scores the results: {"id": 0, "label": 7} a line, or the scene.npz of a detector.'
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE.jsonl", help="One line a frame.")] = None,
    overlay: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The frames with the results drawn in (.mp4), or a codec's sound (.wav)."),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write there: result.json, its report, a page with plots, a trace."),
    ] = None,
    power: Annotated[
        str,
        typer.Option(
            metavar="READER",
            help="Record power and energy: auto, ina, tegrastats, nvidia-smi or rapl; a name may go with its place, "
            "as in ina:/sys/class/hwmon.",
        ),
    ] = "off",
    idle_s: Annotated[
        float, typer.Option("--power-idle-s", metavar="S", help="How long the idle machine is measured before.")
    ] = 10.0,
    realtime: Annotated[
        bool,
        typer.Option("--realtime", help="Real-time threads: no program delays a frame (root, or the right to it)."),
    ] = False,
    backend: Annotated[str, typer.Option(metavar="NAME", help="ort-cpu or ort-cuda.")] = "ort-cpu",
    threads: Annotated[int | None, typer.Option(metavar="N", help="Default: the backend's own choice.")] = None,
    native: Annotated[
        bool | None,
        typer.Option("--native/--no-native", help="Native operators (default: if they are built)", show_default=False),
    ] = None,
    json: Json = False,
) -> None:
    """Run a bundle on a stream: every frame timed, and none unaccounted for.

    Ctrl-C ends the stream; what was on its way arrives, and the result is written.
    """
    with needs_extra("cpu"):
        from trt_compress.runtime.power.stream import reader_or_reason, run_with_power
        from trt_compress.runtime.session import Session
        from trt_compress.runtime.stream.control import ControllerSettings
        from trt_compress.runtime.stream.levels import levels_from_sessions
        from trt_compress.runtime.stream.pipeline import Settings
        from trt_compress.runtime.stream.quality import labels_from_file
        from trt_compress.runtime.stream.run import StreamOptions, open_sources, run_stream
        from trt_compress.runtime.stream.scheduling import scheduled
    from trt_compress import __version__
    from trt_compress.tools.machine import describe_device, package_versions

    if level and not adapt:
        raise ConfigError("--level gives levels to choose from, and nothing chooses without --adapt; give both.")
    if not 0 <= idle_s < 1e6:
        raise ConfigError(f"--power-idle-s {idle_s:g}; give a time of at least 0 s.")
    pace = _pace(source, fps, burst, gap_ms)
    settings = Settings(
        pace=pace,
        policy=policy,  # type: ignore[arg-type]  # Settings checks it
        queue_depth=queue_depth,
        deadline_ns=_nanoseconds("--deadline-ms", deadline_ms),
        frames=frames,
        stall_s=stall_s,
    )
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
        versions={"trt-compress": __version__, **package_versions()},
    )
    error: StreamError | None = None
    with ExitStack() as held:
        if reader is not None:
            held.callback(reader.close)
        step = held.enter_context(progress("Streaming"))
        step("opening")
        with scheduled(options.scheduling):
            sessions = [
                Session.open(path, backend=backend, threads=threads, spin=False, native=native)
                for path in (bundle, *(level or ()))
            ]
        levels = levels_from_sessions(sessions)
        if labels is not None:
            meaning = sessions[0].bundle.manifest.postprocess
            options = replace(options, labels=labels_from_file(labels, meaning, levels.outputs))
        sinks = _sinks(overlay, out, levels, fps)
        opened = open_sources(source, levels, stall_s=stall_s, resample=resample)
        asked = held.enter_context(_interruptible())

        def stream() -> "StreamResult":
            return run_stream(
                levels,
                opened,
                options=options,
                sinks=sinks,
                streams=len(source),
                progress=_throttled(step),
                interrupt=asked,
            )

        try:
            if reader is None:
                result = stream()
            else:
                step(f"measuring the idle machine for {idle_s:g} s")
                result = run_with_power(stream, reader, idle_seconds=idle_s, interrupt=asked)
        except StreamError as broken:
            error, result = broken, _result_of(broken)
    if report is not None:
        _write(report, result)
    if json and error is None:
        print_json(result.to_json())
    elif not json:
        from trt_compress.tools.stream_tables import print_stream

        print_stream(result)
    if error is not None:
        raise error
    if result.ended == "interrupted":
        raise typer.Exit(130)


def _sinks(overlay: Path | None, out: Path | None, levels: "LevelSet", fps: float | None) -> list["Sink"]:
    from trt_compress.runtime.stream.sinks import JsonLines, Overlay, Sound

    meaning = levels.sessions[0].bundle.manifest.postprocess
    gives_sound = meaning.get("kind") == "audio"
    sinks: list[Sink] = []
    if overlay is not None and gives_sound != (overlay.suffix.lower() == ".wav"):
        gives, name = ("sound", "out.wav") if gives_sound else ("no sound", "out.mp4")
        raise ConfigError(f"--overlay {overlay}: the bundle gives {gives}; give a name such as {name}.")
    if overlay is not None and gives_sound:
        output, rate = meaning["output"], meaning["sample_rate"]
        sinks.append(Sound(overlay, output=output, sample_rate=rate, samples=meaning.get("samples")))
    elif overlay is not None:
        sinks.append(Overlay(overlay, fps or 30.0))
    if out is not None:
        sinks.append(JsonLines(out, {one.name: one.info.compression for one in levels.levels}))
    return sinks


def _result_of(broken: StreamError) -> "StreamResult":
    """What there is of a stream that broke; before its first frame there is nothing but the error."""
    from trt_compress.runtime.stream.result import StreamResult

    if not isinstance(broken.result, StreamResult):
        raise broken
    return broken.result


def _pace(sources: list[str], fps: float | None, burst: int | None, gap_ms: float | None) -> "Pace":
    from trt_compress.runtime.stream.pace import Pace
    from trt_compress.runtime.stream.sources import is_live

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


def _throttled(step: Callable[[str], None]) -> Callable[[int], None]:
    """Tell how many frames have come, but not for every one."""
    said_at = 0.0

    def tell(frames: int) -> None:
        nonlocal said_at
        if (now := time.monotonic()) - said_at > _PROGRESS_S:
            said_at = now
            step(f"{frames} frames")

    return tell


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Turn Ctrl-C, and SIGTERM as a service manager sends it, into an event; a second one ends the command at once."""
    asked = threading.Event()

    def ask(number: int, frame: object) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _write(directory: Path, result: "StreamResult") -> None:
    path = directory / _RESULT_FILE
    try:
        directory.mkdir(parents=True, exist_ok=True)
        path.write_text(result.to_text(), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"'{path}' cannot be written ({error.strerror}); give another folder to --report.") from None
    from trt_compress.tools.report.from_stream import report_from_stream
    from trt_compress.tools.report.write import write_all

    for written in (path, *write_all(report_from_stream(result), result, directory, path.stem)):
        print(f"Wrote {written}", file=sys.stderr)
