"""Accuracy of INT8 beside compression: `python -m trt_compress.tools.bench.int8_accuracy [--quick]`.

Digits (`zoo:digits_vit`) and moving digits (`zoo:video_vit`), dense and with Token Merging, in fp32 and in INT8 with
dynamic and static ranges: what is read right on held-out images and frames in ONNX Runtime, and how fast, each against
dense fp32 in one interleaved run at batch 1 on one thread. Ranges are found with samples that are not held out. One
JSON line is appended to `tools/bench/results/int8_accuracy.jsonl`.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from trt_compress.export.api import export_model
from trt_compress.models.zoo.data.digits import digits_split
from trt_compress.models.zoo.data.moving_digits import as_input, make_clip
from trt_compress.models.zoo.video_vit.score import CLIP_LENGTH, NEAR_PIXELS, score_stream
from trt_compress.runtime.measure.latency import interleave, speedup, summarize
from trt_compress.runtime.session import Session
from trt_compress.strays import temporary_folder
from trt_compress.tools.bench.records import append_record, speedup_text
from trt_compress.tools.console import print_table, progress

RESULTS = Path(__file__).parent / "results" / "int8_accuracy.jsonl"
DENSE = "fp32"
FORMS = (DENSE, "int8 dynamic", "int8 static")
_CLIPS = 210  # of 24 frames, more than 5,000 in all
_SAMPLES = 160

Array = np.ndarray[Any, np.dtype[Any]]
Step = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A model and what is asked of it.

    Attributes:
        model: Of the zoo.
        compress: The compressed form beside the dense one.
        input: What its input is called.
        samples: What ranges are found with, [n, …]; nothing of it is held out.
        runs: Inputs of held-out runs that are timed.
        score: The share that a session has right, and of how many.
    """

    model: str
    compress: str
    input: str
    samples: Array
    runs: Sequence[Array]
    score: Callable[[Session], tuple[float, int]]


def digits() -> Task:
    """Images of handwritten digits."""
    split = digits_split()

    def score(session: Session) -> tuple[float, int]:
        found = [session.run({"image": image[None]})["logits"].argmax() for image in split.test_images]
        return float((np.array(found) == split.test_labels).mean()), len(found)

    images = list(split.test_images[:, None])
    samples = split.train_images[:_SAMPLES]
    return Task(
        model="zoo:digits_vit", compress="tome:num_merged=4", input="image", samples=samples, runs=images, score=score
    )


def moving_digits(clips: int) -> Task:
    """Frames of moving digits: right is a frame whose digit is, and whose place is no farther off than a patch."""

    def score(session: Session) -> tuple[float, int]:
        def step(frame: Array) -> tuple[Array, Array]:
            found = session.run({"frame": frame})
            return found["logits"], found["centre"]

        scores = score_stream("test", clips, lambda: step)
        return scores["both"], int(scores["frames"])

    count = -(-_SAMPLES // CLIP_LENGTH)
    samples = np.concatenate([as_input(make_clip("validation", number).frames) for number in range(count)])
    runs = list(as_input(make_clip("test", 0).frames)[:, None])
    return Task(
        model="zoo:video_vit", compress="tome:num_merged=16", input="frame", samples=samples, runs=runs, score=score
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few samples, nothing recorded: to see that it runs")
    quick = parser.parse_args(arguments).quick
    pairs = 8 if quick else 200
    with progress("INT8 and accuracy") as step:
        tasks = [digits(), moving_digits(2 if quick else _CLIPS)]
        figures = {task.model: measure(task, pairs=pairs, step=step) for task in tasks}
    for model, found in figures.items():
        rows = [row_of(name, figure) for name, figure in found.items()]
        n = next(iter(found.values()))["n"]
        columns = ("", "right", "points lost", "p50 ms", "times as fast as dense fp32", "layers in INT8")
        print_table(f"{model}, batch 1, one thread, n = {n}", columns, rows)
    if not quick:
        protocol = {"batch": 1, "threads": 1, "pairs": pairs, "right_within_pixels": NEAR_PIXELS}
        append_record(RESULTS, "int8_accuracy", {"models": figures, "protocol": protocol})
    return 0


def measure(task: Task, *, pairs: int, step: Step) -> dict[str, Any]:
    """Export every form of a model, and see what it has right and how long it takes."""
    figures: dict[str, Any] = {}
    with temporary_folder("bench") as folder:
        samples = folder / "samples.npz"
        arrays: dict[str, Any] = {task.input: task.samples}
        np.savez(samples, **arrays)
        dense: Session | None = None
        for compress in (None, task.compress):
            for form in FORMS:
                name = f"{'dense' if compress is None else compress} {form}"
                step(f"{task.model}, {name}: exporting")
                data = samples if form == "int8 static" else None
                output = folder / str(len(figures))
                made = export_model(
                    task.model,
                    compress=compress,
                    precision="fp32" if form == DENSE else "int8",
                    int8=None if form == DENSE else form.removeprefix("int8 "),
                    calibrate=data,
                    batch="1",
                    output=output,
                ).manifest
                session = Session.open(output, threads=1, spin=False)
                dense = dense or session
                step(f"{task.model}, {name}: what it has right")
                right, n = task.score(session)
                step(f"{task.model}, {name}: {pairs} pairs")
                taken = interleave(_run(session, task), _run(dense, task), warmup=5, pairs=pairs)
                first = next(iter(figures.values()), {"right": right})
                figures[name] = {
                    "right": right,
                    "n": n,
                    "points_lost": 100 * (first["right"] - right),
                    "latency": summarize(taken.a_ns).to_json(),
                    "over_dense": speedup(taken.a_ns, taken.b_ns).to_json(),
                    "int8": [record.to_json() for record in made.int8],
                    "native": session.native is not None,
                }
    return figures


def row_of(name: str, figure: Mapping[str, Any]) -> tuple[str, ...]:
    """A row of a table."""
    return (
        name,
        f"{figure['right']:.2%}",
        f"{figure['points_lost']:.2f}",
        f"{figure['latency']['median_ns'] / 1e6:.2f}",
        speedup_text(figure["over_dense"]),
        ", ".join(f"{record['in_int8']} of {record['layers']}" for record in figure["int8"]),
    )


def _run(session: Session, task: Task) -> Callable[[], object]:
    """One more held-out run at each call."""
    each = cycle(task.runs)
    return lambda: session.run({task.input: next(each)})


if __name__ == "__main__":
    sys.exit(main())
