"""The command run: a bundle on a stream."""

import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn, cast

import typer

from trt_compress.errors import StreamError
from trt_compress.foreign import needs_extra
from trt_compress.paths import check_apart
from trt_compress.tools.cli.habits import BundlePath, Json, RequireDigest
from trt_compress.tools.cli.options import Backend, Native, Resample, Threads
from trt_compress.tools.cli.signals import Signals, held, of_a_stream
from trt_compress.tools.console import flush, is_watched, print_json, progress, say

_PATIENCE_S = 2.0  # for a stdout or stderr that takes nothing, where something else has stopped or the stream was ended
_ENDING_S = _POLL_S = 0.1
_INTERRUPTED = 130  # whichever signal it was

if TYPE_CHECKING:
    from trt_compress.runtime.stream.result import Policy, StreamResult


def run(
    bundle: BundlePath,
    source: Annotated[
        list[str],
        typer.Option(
            metavar="SOURCE",
            help="video.mp4, camera:0, rtsp://…, 'frames/*.png' (quoted), audio.wav, mic, scene.npz or a GStreamer "
            "pipeline without its sink ('nvarguscamerasrc ! nvvidconv'); repeat it for several streams in one query.",
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
    stall_s: Annotated[
        float,
        typer.Option(
            metavar="S", help="Give up when the source is silent, or a stage or a file takes nothing, for so long."
        ),
    ] = 10.0,
    resample: Resample = False,
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
    baseline: Annotated[
        Path | None,
        typer.Option(metavar="BUNDLE", help="Uncompressed bundle, timed beside it first: says so if it is faster."),
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
        typer.Option(
            metavar="FILE",
            help="The frames with the results drawn in (.mp4), or a codec's sound (.wav). A video is drawn beside the "
            "stream: it takes no part in latency, and repeats a picture where it falls behind.",
        ),
    ] = None,
    overlay_in_latency: Annotated[
        bool,
        typer.Option(
            "--overlay-in-latency", help="Draw every frame before it counts as delivered, as a display would."
        ),
    ] = False,
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
    backend: Backend = "ort-cpu",
    threads: Threads = None,
    native: Native = None,
    require_digest: RequireDigest = None,
    json: Json = False,
) -> None:
    """Run a bundle on a stream: every frame timed, and none unaccounted for.

    Ctrl-C (or SIGTERM, SIGHUP) ends the stream: what was on its way arrives, and the result is written. A second one
    waits for nothing but the result, a third for nothing at all. A source, a stage or a file that stays in one call
    longer than --stall-s ends the stream too, with exit code 2 and a result.
    """
    with of_a_stream() as signals:
        if json:
            check_apart({"--out": out, "--overlay": overlay, "--json": Path("/dev/stdout")}, {})
        with needs_extra("cpu"):
            from trt_compress.tools.streaming import run as run_bundle

        error: StreamError | None = None
        result: StreamResult | None
        try:
            with progress("Streaming") as step:
                result = run_bundle(
                    bundle,
                    source=source,
                    fps=fps,
                    burst=burst,
                    gap_ms=gap_ms,
                    policy=cast("Policy", policy),  # it is checked there
                    queue_depth=queue_depth,
                    deadline_ms=deadline_ms,
                    frames=frames,
                    stall_s=stall_s,
                    warmup=warmup,
                    adapt=adapt,
                    level=level or (),
                    baseline=baseline,
                    labels=labels,
                    resample=resample,
                    out=out,
                    overlay=overlay,
                    overlay_in_latency=overlay_in_latency,
                    report=report,
                    power=power,
                    power_idle_s=idle_s,
                    realtime=realtime,
                    backend=backend,
                    threads=threads,
                    native=native,
                    require_digest=require_digest,
                    progress=step,
                    wrote=lambda path: _say(f"Wrote {path}"),
                    say=_say if is_watched() else None,
                    warn=_say,
                    interrupt=signals.asked,
                    hurry=signals.hurry,
                )
        except StreamError as broken:
            error, result = broken, cast("StreamResult | None", broken.result)
        except KeyboardInterrupt:
            raise typer.Exit(_INTERRUPTED) from None
        if overlay is not None and result is not None and result.overlay is not None:
            _say(f"Wrote {overlay}: {result.overlay.sentence()}")
        if result is not None:
            _show(result, signals, json=json, error=error)
        if error is not None:
            raise error
        if signals.asked.is_set() or (result is not None and result.ended == "interrupted"):
            raise typer.Exit(_INTERRUPTED)


def end_process(code: int | str | None) -> NoReturn:
    """End the process, also where a thread of a stream is in a call that does not come back.

    Where signals are noted it ends at once: Python's own exit takes a while, in which a signal would kill it, as if the
    result were lost.
    """
    left = [thread for thread in threading.enumerate() if thread.name.startswith("stream ")]
    for thread in left:
        thread.join(_ENDING_S)  # one that is just ending
    if (held() or any(thread.is_alive() for thread in left)) and not isinstance(code, str):
        _patiently(sys.stderr.flush, lambda: True)
        os._exit(code or 0)  # the exit of Python, or of a library, would wait for it
    sys.exit(code)


def _show(result: "StreamResult", signals: Signals, *, json: bool, error: StreamError | None) -> None:
    """Print the result. Where the stream was given up or a signal has come, a stdout that takes nothing does not keep
    the process."""

    def show() -> None:
        if not json:
            from trt_compress.tools.report.stream_tables import print_stream

            print_stream(result)
        elif error is None:
            print_json(result.to_json())
        flush()

    def given_up() -> bool:
        return error is not None or signals.asked.is_set()

    if not _patiently(show, given_up):
        _say("The result was not printed, as stdout takes nothing.")


def _patiently(work: Callable[[], None], given_up: Callable[[], bool]) -> bool:
    """Do something on a thread that is waited for only so long once `given_up` says so; whether it was done."""
    errors: list[Exception] = []

    def doing() -> None:
        try:
            work()
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=doing, name="stream printing", daemon=True)
    thread.start()
    waited_s = 0.0
    while thread.is_alive() and waited_s < _PATIENCE_S:
        thread.join(_POLL_S)
        waited_s = waited_s + _POLL_S if given_up() else 0.0
    if errors and not (given_up() and isinstance(errors[0], OSError)):
        raise errors[0]
    return not thread.is_alive() and not errors


def _say(line: str) -> None:
    """Say what is seen, heard or written, above the line of progress; stdout is left to the result."""
    with suppress(OSError):  # a terminal that went away
        say(line)
