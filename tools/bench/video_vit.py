"""Accuracy and speed of `zoo:video_vit` in a stream: `python -m trt_compress.tools.bench.video_vit [--quick]`.

Dense, every level of static-patch reuse, Token Merging inside the frame, and progressive encoding (`zoo:video_pvc`), on
the held-out clips, frame by frame in ONNX Runtime; each against dense in one interleaved run on one thread, with real
frames. Streams with reuse begin with one frame of the level `dense`. One JSON line is appended to
`tools/bench/results/video_vit.jsonl`.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from trt_compress.export.api import export_model
from trt_compress.models.zoo.data.moving_digits import as_input, make_clip
from trt_compress.models.zoo.video_vit.score import TEST_CLIPS, Stream, score_stream
from trt_compress.runtime.measure.latency import Speedup, interleave, speedup, summarize
from trt_compress.runtime.session import Session
from trt_compress.strays import temporary_folder
from trt_compress.tools.bench.records import append_record
from trt_compress.tools.console import print_table, progress

MODEL, PROGRESSIVE = "zoo:video_vit", "zoo:video_pvc"
REUSE = "static_reuse:keep_ratio=[0.15,0.2,0.25,0.35,0.5,1]"
MERGES = ("tome:num_merged=8", "tome:num_merged=16")
RESULTS = Path(__file__).parent / "results" / "video_vit.jsonl"

Array = np.ndarray[Any, np.dtype[Any]]
Step = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One way to run the model: a session, its graph, and the graph of a stream's first frame."""

    name: str
    session: Session
    graph: str
    first: str

    def start(self) -> Stream:
        """Begin a stream."""
        self.session.reset()
        graphs = iter([self.first])

        def step(frame: Array) -> tuple[Array, Array]:
            found = self.session.run_graph(next(graphs, self.graph), {"frame": frame})
            return found["logits"], found["centre"]

        return step


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few samples, nothing recorded: to see that it runs")
    quick = parser.parse_args(arguments).quick
    clips, pairs = (3, 10) if quick else (TEST_CLIPS, 200)
    with progress(MODEL) as step, temporary_folder("bench") as folder:
        figures = measure(folder, clips=clips, pairs=pairs, step=step)
    rows = [_row(name, figure) for name, figure in figures["variants"].items()]
    columns = ("", "digit", "place", "both", "place error", "frames a second", "speed-up over dense")
    print_table(f"{MODEL}, batch 1, ONNX Runtime on one thread, {clips} held-out clips", columns, rows)
    if not quick:
        append_record(RESULTS, "video_vit", figures)
    return 0


def measure(folder: Path, *, clips: int, pairs: int, step: Step) -> dict[str, Any]:
    """Accuracy over `clips` test clips, and `pairs` timed frames of each variant and of dense."""
    variants: list[Variant] = []
    settings = [*((MODEL, spec) for spec in ("none", REUSE, *MERGES)), (PROGRESSIVE, "none")]
    for number, (model, spec) in enumerate(settings):
        step(f"exporting {model} {spec}")
        output = folder / str(number)
        export_model(model, compress=spec, batch="1", output=output)
        session = Session.open(output, threads=1, spin=False)
        several = len(session.graphs) > 1
        for graph in session.graphs:
            name = model if model != MODEL else spec if not several else f"static_reuse {graph}"
            variants.append(Variant(name=name, session=session, graph=graph, first="dense" if several else graph))
    frames = as_input(make_clip("test", 0).frames)[:, None]
    figures: dict[str, Any] = {}
    for variant in variants:
        step(f"{variant.name}: accuracy")
        accuracy = score_stream("test", clips, variant.start)
        step(f"{variant.name}: {pairs} pairs")
        samples = interleave(_frames(variant, frames), _frames(variants[0], frames), warmup=5, pairs=pairs)
        gain = speedup(samples.a_ns, samples.b_ns)
        figures[variant.name] = {
            "accuracy": accuracy,
            "latency": summarize(samples.a_ns).to_json(),
            "speedup_over_dense": gain.to_json(),
            "native": variant.session.native is not None,
        }
    return {"variants": figures, "protocol": {"batch": 1, "threads": 1, "pairs": pairs, "clips": clips}}


def _frames(variant: Variant, frames: Array) -> Callable[[], object]:
    """One more frame of an endless stream at each call."""
    stream, each = variant.start(), cycle(frames)
    return lambda: stream(next(each))


def _row(name: str, figure: dict[str, Any]) -> tuple[str, ...]:
    accuracy, gain = figure["accuracy"], Speedup(**figure["speedup_over_dense"])
    shares = (f"{accuracy[part]:.1%}" for part in ("digit", "place", "both"))
    interval = f" [{gain.low:.2f}, {gain.high:.2f}]" if gain.low and gain.high else ""
    fps = 1e9 / figure["latency"]["median_ns"]
    pixels = f"{accuracy['place_error_pixels']:.1f} px"
    return (name, *shares, pixels, f"{fps:.0f}", f"{gain.median:.2f}×{interval}")


if __name__ == "__main__":
    sys.exit(main())
