"""The command run: a bundle on a stream."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from trt_compress.errors import StreamError
from trt_compress.tools.cli_habits import BundlePath, Json, needs_extra
from trt_compress.tools.console import is_watched, print_json, progress

if TYPE_CHECKING:
    from trt_compress.runtime.stream.result import Policy, StreamResult


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
        from trt_compress.tools.streaming import run as run_bundle

    error: StreamError | None = None
    result: StreamResult | None
    try:
        with progress("Streaming") as step, _interruptible() as asked:
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
                progress=step,
                wrote=lambda path: print(f"Wrote {path}", file=sys.stderr),
                say=_say if is_watched() else None,
                interrupt=asked,
            )
    except StreamError as broken:
        error, result = broken, cast("StreamResult | None", broken.result)
    if overlay is not None and result is not None and result.overlay is not None:
        print(f"Wrote {overlay}: {result.overlay.sentence()}", file=sys.stderr)
    if json and error is None and result is not None:
        print_json(result.to_json())
    elif result is not None and not json:
        from trt_compress.tools.stream_tables import print_stream

        print_stream(result)
    if error is not None:
        raise error
    if result is not None and result.ended == "interrupted":
        raise typer.Exit(130)


def _say(line: str) -> None:
    """Say what is seen or heard, above the line of progress; stdout is left to the result."""
    print(line, file=sys.stderr)


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
