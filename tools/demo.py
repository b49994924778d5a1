"""`make demo`: the main jobs on real data: digits from a model to one table, then a video and a picture of it.

Exports `zoo:digits_vit` with and without Token Merging, proves both files, builds an engine for each, classifies the
held-out digits with ONNX Runtime and times both in one interleaved run. Then `zoo:video_vit` runs on a video, dense and
computing only the patches that changed.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trt_compress.errors import TrtCompressError
from trt_compress.export.api import BuildPlan, Progress, build, export_model
from trt_compress.format.manifest import Engine, Manifest
from trt_compress.memory import format_bytes
from trt_compress.models.zoo.data.digits import digits_split
from trt_compress.runtime.session import Session
from trt_compress.strays import temporary_folder
from trt_compress.tools import demo_stream
from trt_compress.tools.bench.bundle import bench
from trt_compress.tools.bench.result import Array, BenchResult
from trt_compress.tools.console import print_table, print_text, say, say_error

MODEL, SPEC, TARGET = "zoo:digits_vit", "tome:num_merged=5", "rtx"
BATCH, PAIRS = 32, 100
OUTPUT = Path("out/demo")


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoModel:
    """One of the two models: its manifest, its engine, and what it says of every test image."""

    manifest: Manifest
    engine: Engine
    predictions: Array


def main() -> int:
    """Run the demo; returns the exit code."""
    step = _step_printer()
    try:
        run(OUTPUT, lambda text: step(f"digits: {text}"))
        picture = demo_stream.run(OUTPUT, lambda text: step(f"video: {text}"))
    except TrtCompressError as error:
        say_error(error.message, error.hint)
        return error.exit_code
    print_text(f"What the model looked at: {picture.resolve()}")
    print_text(f"Everything is in {OUTPUT}. Try: {_command()} inspect {OUTPUT / 'compressed'}")
    return 0


def run(output: Path, step: Progress) -> None:
    """Do the whole job on digits into `output` and print the table."""
    split = digits_split()
    images, labels = split.test_images, split.test_labels
    dense = _side("none", output / "dense", images, lambda text: step(f"dense: {text}"))
    compressed = _side(SPEC, output / "compressed", images, lambda text: step(f"{SPEC}: {text}"))
    step(f"timing {PAIRS} interleaved pairs of {BATCH} images")
    with temporary_folder("demo") as folder:
        inputs = folder / "images.npz"
        np.savez(inputs, image=images[:BATCH])
        timed = bench(output / "compressed", baseline=output / "dense", pairs=PAIRS, inputs=inputs)
    title = f"{MODEL} on {len(images)} held-out digits; ONNX Runtime on {timed.device['cpu']}"
    print_table(title, ("", "dense", SPEC), _rows(dense, compressed, labels, timed))
    if compressed.engine.bytes > dense.engine.bytes:
        nodes = ", ".join(f"{part.nodes} {part.name}" for part in compressed.manifest.operators)
        print_text(
            f"The compressed engine is the larger one since TensorRT-RTX takes no plugins: the {nodes} are inlined, "
            "each as some seventy standard operators. TensorRT itself takes each as one plugin layer."
        )
        print_text("")


def _side(spec: str, path: Path, images: Array, step: Progress) -> DemoModel:
    result = export_model(
        MODEL, compress=spec, targets=[TARGET], batch=f"1:{BATCH}:{BATCH}", output=path, force=True, progress=step
    )
    step("building an engine")
    engine = build(path, target=TARGET)
    assert not isinstance(engine, BuildPlan)
    step("classifying")
    with Session.open(path) as session:
        logits = session.run({"image": images})["logits"]
    return DemoModel(manifest=result.manifest, engine=engine, predictions=logits.argmax(axis=1))


def _rows(dense: DemoModel, compressed: DemoModel, labels: Array, timed: BenchResult) -> list[tuple[str, ...]]:
    sides = (dense, compressed)
    count = len(labels)
    same = int((dense.predictions == compressed.predictions).sum())
    accuracy = [f"{(side.predictions == labels).mean():.1%}" for side in sides]
    first, last = compressed.manifest.compression[0], compressed.manifest.compression[-1]
    flops = [float((side.manifest.flops or {})["total"]) for side in sides]
    latency = {side.role: side.latency for side in timed.sides}
    timings = [latency["baseline"], latency["bundle"]]
    faster = timed.speedup
    assert faster is not None
    errors = [side.manifest.verification.max_abs_error for side in sides if side.manifest.verification]
    return [
        ("accuracy", *accuracy),
        ("same answer as dense", "", f"{same / count:.1%} ({same} of {count})"),
        ("tokens in → out", f"{first.tokens_in} → {first.tokens_in}", f"{first.tokens_in} → {last.tokens_out}"),
        ("FLOPs an image", f"{flops[0] / 1e6:.0f} M", f"{flops[1] / 1e6:.0f} M ({flops[0] / flops[1]:.2f}× fewer)"),
        (f"p50, batch {BATCH}", *(f"{t.median_ns / 1e6:.1f} ms (n={t.n})" for t in timings)),
        (f"p90, batch {BATCH}", *(f"{(t.p90_ns or 0) / 1e6:.1f} ms (n={t.n})" for t in timings)),
        ("speed-up [95 % interval]", "", f"{faster.median:.2f}× [{faster.low:.2f}, {faster.high:.2f}]"),
        ("largest error to torch", *(f"{error:.1e}" for error in errors)),
        (f"engine ({TARGET})", *(f"{format_bytes(s.engine.bytes)} in {s.engine.seconds:.1f} s" for s in sides)),
    ]


def _step_printer() -> Callable[[str], None]:
    """Say each step on stderr, with the seconds since the start."""
    start = time.monotonic()

    return lambda text: say(f"[{time.monotonic() - start:4.0f} s] {text}")


def _command() -> str:
    """How `trt-compress` is called from here: the environment that `make demo` made is not activated."""
    beside = Path(sys.executable).parent / "trt-compress"
    if Path(sys.prefix) == Path(sys.base_prefix) or not beside.exists():
        return "trt-compress"
    try:
        return str(beside.relative_to(Path.cwd()))
    except ValueError:
        return str(beside)


if __name__ == "__main__":
    sys.exit(main())
