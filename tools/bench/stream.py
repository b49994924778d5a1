"""The figures of a stream: `python -m trt_compress.tools.bench.stream PART [--quick] [--realtime] [--bundles DIR]`.

PART is one of
- `overhead`: eight 30 fps streams in one query, on the dense zoo:digits_vit: the pipeline's own share of the end-to-end
  time, and p99 over p50;
- `account`: 100,000 frames through a stage that does nothing: none unaccounted for, memory flat;
- `control`: a deadline that the dense model misses, and the controller at three keep levels.

`--realtime` runs `overhead` on real-time threads, as `trt-compress run --realtime` does.

Each run ends with one JSON line in `tools/bench/results/stream.jsonl`. `--bundles DIR` keeps the exported bundles, so
that the timed run needs no export beside it.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trt_compress.runtime.measure.latency import LatencySummary, summarize
from trt_compress.runtime.session import Session
from trt_compress.runtime.stream.control import ControllerSettings
from trt_compress.runtime.stream.frame import Frame
from trt_compress.runtime.stream.levels import LevelSet, levels_from_sessions
from trt_compress.runtime.stream.pace import Pace
from trt_compress.runtime.stream.parts import Item
from trt_compress.runtime.stream.pipeline import Pipeline, Settings, Stages
from trt_compress.runtime.stream.result import STAGES, Scheduling, StreamResult
from trt_compress.runtime.stream.run import StreamOptions, run_stream
from trt_compress.runtime.stream.scheduling import scheduled
from trt_compress.strays import temporary_folder
from trt_compress.tools.bench.records import append_record
from trt_compress.tools.bench.trend import trend
from trt_compress.tools.console import print_table

RESULTS = Path(__file__).parent / "results" / "stream.jsonl"
LEVELS = {"dense": "none", "merge4": "tome:num_merged=4", "merge7": "tome:num_merged=7"}
STREAMS, FPS = 8, 30.0
PAGE_BYTES, MOST_GROWTH_BYTES = 4096, 1 << 20
Row = tuple[str, str, str, bool]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["overhead", *_PARTS, "bundles"])
    parser.add_argument("--quick", action="store_true", help="few frames, nothing recorded: to see that it runs")
    parser.add_argument("--realtime", action="store_true", help="real-time threads, part `overhead` only")
    parser.add_argument("--bundles", type=Path, help="where the bundles are, or go (part `bundles` only makes them)")
    options = parser.parse_args(arguments)
    with temporary_folder("bench") as folder:
        bundles = options.bundles or folder
        if options.part != "account":
            _export(bundles)
        if options.part == "bundles":
            return 0
        if options.realtime and options.part != "overhead":
            parser.error(f"--realtime goes with the part overhead, not {options.part}")
        if options.part == "overhead":
            figures, rows = overhead(bundles, options.quick, "realtime" if options.realtime else "default")
        else:
            figures, rows = _PARTS[options.part](bundles, options.quick)
    print_table(f"Stream: {options.part}", ("figure", "measured", "wanted", "held"), rows)
    if not options.quick:
        append_record(RESULTS, "stream", {"part": options.part, **figures})
    return 0 if options.quick or all(row[-1] for row in rows) else 3


class Digits:
    """Test images of the zoo's digits as streams of one query, over and over."""

    live = False
    length: int | None = None
    name = f"{STREAMS} streams of digits"

    def __init__(self) -> None:
        from trt_compress.models.zoo.data.digits import digits_split

        images = digits_split().test_images  # preprocessed: (pixel / 16 - 0.5) / 0.5
        self._images = np.round((images[:, 0] * 0.5 + 0.5) * 16).astype(np.uint8)
        self._next = 0

    def open(self) -> None:
        """Start at the first image."""
        self._next = 0

    def read(self) -> Item:
        """Give one image for each stream."""
        at = (self._next + np.arange(STREAMS)) % len(self._images)
        self._next += STREAMS
        return Item(data=tuple(self._images[at]))

    def close(self) -> None:
        """Nothing is held open."""


def overhead(bundles: Path, quick: bool, scheduling: Scheduling) -> tuple[dict[str, Any], list[Row]]:
    """What the pipeline itself takes of a 30 fps stream, and how even the machine is without any pipeline."""
    with scheduled(scheduling):
        levels = _levels(bundles, ["dense"])
    # Never on a real-time thread: the kernel stops one that computes without a pause for 50 ms in every second.
    alone_before = _alone(levels, 10 if quick else 350)
    result = _stream(levels, frames=60 if quick else 700, fps=FPS, scheduling=scheduling)
    alone = summarize([*alone_before, *_alone(levels, 10 if quick else 350)])
    frames = result.frames
    end_to_end = np.array(frames.end_to_end_ns())
    work = np.sum([np.array(frames.stage_ns[name]) for name in STAGES], axis=0)
    extra = end_to_end - work
    # A wake-up of the source is the clock's, and counts: the frame was due.
    summary = summarize(end_to_end.tolist())
    overheads = summarize(extra.tolist())
    share = float(np.median(extra / end_to_end))
    ratio = _tail(summary)
    session = summarize([ns for ns in frames.stage_ns["session"] if ns is not None])
    session_ratio = _tail(session)
    figures = {
        "protocol": result.protocol.to_json(),
        "counts": result.counts.to_json(),
        "end_to_end": summary.to_json(),
        "overhead": overheads.to_json(),
        "overhead_share_p50": share,
        "p99_over_p50": ratio,
        "session": session.to_json(),
        "session_p99_over_p50": session_ratio,
        "session_back_to_back": alone.to_json(),
        "session_back_to_back_p99_over_p50": _tail(alone),
        "stages_p50_ns": {name: float(np.median(np.array(frames.stage_ns[name]))) for name in STAGES},
        "waits_p50_ns": {name: float(np.median(np.array(column))) for name, column in frames.queue_wait_ns.items()},
    }
    median_ms = float(np.median(extra)) / 1e6
    return figures, [
        ("end-to-end p50", f"{summary.median_ns / 1e6:.2f} ms, n={summary.n}", "reported", True),
        ("overhead, share of end-to-end at p50", f"{share:.2%}", "under 2 %", share < 0.02),
        ("overhead a frame, p50", f"{median_ms:.3f} ms", "at most 0.25 ms", median_ms <= 0.25),
        ("overhead a frame, p99", _milliseconds(overheads.p99_ns), "reported", True),
        ("p99 / p50 of end-to-end", _ratio(ratio), "at most 1.3", (ratio or 9) <= 1.3),
        ("the same of the session in the stream", _ratio(session_ratio), "reported", True),
        ("the same of the session back to back, no stream", _ratio(_tail(alone)), "reported", True),
        ("unaccounted for", str(_lost(result.counts.to_json())), "0", _lost(result.counts.to_json()) == 0),
    ]


def account(bundles: Path, quick: bool) -> tuple[dict[str, Any], list[Row]]:
    """Many frames through a stage that does nothing, faster than it can take them; memory sampled beside it."""
    total = 2_000 if quick else 100_000
    array = np.zeros((1, 3, 224, 224), np.float32)

    class Endless:
        name = "endless"
        live = False
        length: int | None = None

        def open(self) -> None: ...

        def read(self) -> Item:
            return Item(data=array)

        def close(self) -> None: ...

    def run(frame: Frame) -> None:
        frame.outputs = {
            "y": frame.inputs["x"] + 1.0 if frame.id % 100 == 0 else frame.inputs["x"]
        }  # now and then memory

    memory = np.full((total // 10, 2), -1, np.int64)  # written before the run, so that the samples take no memory
    samples = iter(memory)

    def delivered(frame: Frame) -> None:
        if frame.id % (total // 100) < 5:
            next(samples)[:] = frame.id, _rss_bytes()

    stages = Stages(preprocess=lambda data: {"x": data}, run=run, postprocess=lambda frame: None, delivered=delivered)
    settings = Settings(frames=total, policy="latest", pace=Pace(kind="fixed rate", fps=4000.0))
    pipeline = Pipeline(Endless(), stages, [], settings)
    pipeline.prepare()
    begin = time.perf_counter()
    finished = pipeline.run()
    seconds = time.perf_counter() - begin
    counts = finished.ledger.counts().to_json()
    ids, sizes = memory[memory[:, 0] >= 0].astype(np.float64).T
    settled = ids > total / 10  # the allocator's first growth is over
    grown = trend(ids[settled], sizes[settled], total)
    flat = grown.flat(unit=PAGE_BYTES, most=MOST_GROWTH_BYTES)
    figures = {
        "counts": counts,
        "seconds": seconds,
        "rss_samples": int(settled.sum()),
        "rss_growth_bytes": {"estimate": grown.growth, "low": grown.low, "high": grown.high, "tied": grown.tied},
        "rss_first_bytes": int(sizes[settled][0]),
        "rss_last_bytes": int(sizes[settled][-1]),
    }
    return figures, [
        ("frames in", f"{counts['in']:,} in {seconds:.1f} s", f"{total:,}", counts["in"] == total),
        (
            "delivered + dropped + failed",
            f"{counts['delivered']:,} + {counts['dropped']:,} + {counts['failed']}",
            "",
            True,
        ),
        ("unaccounted for", str(_lost(counts)), "0", _lost(counts) == 0),
        (
            "RSS growth over the run, 95 % interval",
            f"{grown.growth / 1024:.1f} KiB, {grown.low / 1024:.1f} to {grown.high / 1024:.1f}",
            "0 or a page in it, under 1 MiB",
            flat,
        ),
    ]


def control(bundles: Path, quick: bool) -> tuple[dict[str, Any], list[Row]]:
    """A deadline between the cheapest level's time and the dense model's; dense alone, then with the controller."""
    levels = _levels(bundles, list(LEVELS))
    count = 80 if quick else 300
    free = _stream(_levels(bundles, ["dense"]), frames=40, fps=20.0)
    dense_ns = float(np.median(free.frames.end_to_end_ns()))
    cheap = _stream(_levels(bundles, ["merge7"]), frames=40, fps=20.0)
    cheap_ns = float(np.percentile(cheap.frames.end_to_end_ns(), 95))
    deadline_ns = round((cheap_ns * dense_ns) ** 0.5)
    results = {
        "dense": _stream(_levels(bundles, ["dense"]), frames=count, fps=20.0, deadline_ns=deadline_ns),
        "adaptive": _stream(levels, frames=count, fps=20.0, deadline_ns=deadline_ns, adapt=ControllerSettings()),
    }
    p95 = {name: summarize(result.frames.end_to_end_ns()).p95_ns or 0.0 for name, result in results.items()}
    used = {name: results["adaptive"].frames.level.count(name) for name in LEVELS}
    log = results["adaptive"].controller
    figures = {
        "deadline_ns": deadline_ns,
        "dense_p50_ns": dense_ns,
        "cheapest_p95_ns": cheap_ns,
        "p95_ns": p95,
        "missed": {name: result.counts.deadline_missed for name, result in results.items()},
        "frames": count,
        "levels": used,
        "controller": log.to_json() if log else None,
    }
    deadline = f"{deadline_ns / 1e6:.2f} ms"
    shown = ", ".join(f"{name} {number}" for name, number in used.items())
    return figures, [
        ("dense alone, p95", f"{p95['dense'] / 1e6:.2f} ms", f"above {deadline}", p95["dense"] > deadline_ns),
        ("controller, p95", f"{p95['adaptive'] / 1e6:.2f} ms", f"at most {deadline}", p95["adaptive"] <= deadline_ns),
        ("frames of each level", shown, "reported", True),
    ]


_PARTS: dict[str, Callable[[Path, bool], tuple[dict[str, Any], list[Row]]]] = {
    "account": account,
    "control": control,
}


def _export(folder: Path) -> None:
    from trt_compress.export.api import export_model

    for name, spec in LEVELS.items():
        if not (folder / name).exists():
            export_model("zoo:digits_vit", compress=spec, batch=f"1:{STREAMS}:{STREAMS}", output=folder / name)


def _levels(folder: Path, names: Sequence[str]) -> LevelSet:
    return levels_from_sessions([Session.open(folder / name, threads=1, spin=False) for name in names])


def _stream(
    levels: LevelSet,
    *,
    frames: int,
    fps: float,
    deadline_ns: int | None = None,
    adapt: ControllerSettings | None = None,
    scheduling: Scheduling = "default",
) -> StreamResult:
    settings = Settings(pace=Pace(kind="fixed rate", fps=fps), frames=frames, deadline_ns=deadline_ns)
    options = StreamOptions(settings=settings, warmup=20, adapt=adapt, threads=1, scheduling=scheduling)
    return run_stream(levels, Digits(), options=options, streams=STREAMS)


def _lost(counts: dict[str, Any]) -> int:
    return int(counts["in"] - counts["delivered"] - counts["dropped"] - counts["failed"])


def _rss_bytes() -> int:
    """Resident memory, exactly: what statm says is rounded by up to 32 pages a core."""
    for line in Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines():
        if line.startswith("Rss:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/smaps_rollup names no Rss")


def _alone(levels: LevelSet, count: int) -> list[int]:
    """Times of the first level, run without a pipeline and without a pause."""
    name, info = next(iter(levels.inputs.items()))
    inputs = {name: np.zeros((STREAMS, *map(int, info.shape[1:])), np.float32)}
    times, states = [], levels.new_states(STREAMS)
    for _ in range(count):
        begin = time.perf_counter_ns()
        levels.levels[0].run(inputs, states)
        times.append(time.perf_counter_ns() - begin)
    return times


def _tail(summary: LatencySummary) -> float | None:
    """p99 over p50, where n supports a p99."""
    return None if summary.p99_ns is None else summary.p99_ns / summary.median_ns


def _ratio(value: float | None) -> str:
    return "n too small" if value is None else f"{value:.3f}"


def _milliseconds(ns: float | None) -> str:
    return "n too small" if ns is None else f"{ns / 1e6:.3f} ms"


if __name__ == "__main__":
    sys.exit(main())
