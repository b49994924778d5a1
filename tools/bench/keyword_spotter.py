"""Accuracy of the keyword spotter against compression: `python -m trt_compress.tools.bench.keyword_spotter [--quick]`.

Each setting is exported, which verifies it, and run in ONNX Runtime on the CPU: clips of held-out voices that are
right, and clips per second against the dense model in one interleaved run. One JSON line is appended to
`tools/bench/results/keyword_spotter.jsonl`.
"""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from trt_compress.export.api import export_model
from trt_compress.models.zoo.data import speech
from trt_compress.runtime.measure.latency import interleave, speedup, summarize
from trt_compress.runtime.session import Session
from trt_compress.strays import temporary_folder
from trt_compress.tools.bench.records import append_record
from trt_compress.tools.console import print_table, progress

SETTINGS = (
    ("zoo:keyword_spotter", "none"),
    ("zoo:keyword_spotter", "frame_pool:stride=2,layer=0"),
    ("zoo:keyword_spotter", "frame_pool:stride=3,layer=0"),
    ("zoo:keyword_spotter", "frame_pool:stride=3,layer=1"),
    ("zoo:keyword_spotter", "atome:merge_ratio=0.5,layers=[0]"),
    ("zoo:keyword_spotter", "atome:merge_ratio=0.7,layers=[0]"),
    ("zoo:keyword_spotter", "fastast:num_merged=6"),
    ("zoo:keyword_spotter", "fastast:num_merged=10"),
    ("zoo:keyword_mome", "none"),
    ("zoo:keyword_mome", "frame_pool:stride=2,layer=0"),
    ("zoo:keyword_mome", "frame_pool:stride=4,layer=0"),
)
BATCH = 8
RESULTS = Path(__file__).parent / "results" / "keyword_spotter.jsonl"
Call = Callable[[], object]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few samples, nothing recorded: to see that it runs")
    parser.add_argument("--batch", type=int, default=BATCH, help="clips of a timed run")
    parser.add_argument("--bundles", type=Path, help="directory that keeps the bundles; those that are there are taken")
    parser.add_argument("--model", help="settings of this model only, and nothing recorded")
    parser.add_argument("--no-timing", action="store_true", help="accuracy only, nothing recorded")
    options = parser.parse_args(arguments)
    pairs = 6 if options.quick else 60
    with progress("keyword spotter") as step, temporary_folder("bench") as temporary:
        folder = options.bundles or temporary
        settings = [setting for setting in SETTINGS if options.model in (None, setting[0])]
        if not settings:
            parser.error(f"--model {options.model}: there are {', '.join(sorted({model for model, _ in SETTINGS}))}")
        rows = measure(folder, settings, batch=options.batch, pairs=0 if options.no_timing else pairs, step=step)
    print_table(
        f"held-out voices, {rows[0]['clips']} clips; speed-up in ONNX Runtime on one thread, batch {options.batch}",
        ("model", "compressor", "frames at the end", "fewer FLOPs", "right", "clips per second", "speed-up"),
        [table_row(row) for row in rows],
    )
    if not (options.quick or options.no_timing or options.model):
        protocol = {"batch": options.batch, "pairs": pairs, "threads": 1, "order": "interleaved ABAB"}
        append_record(RESULTS, "keyword_spotter", {"protocol": protocol, "rows": rows})
    return 0


def measure(
    folder: Path, settings: Sequence[tuple[str, str]], *, batch: int, pairs: int, step: Callable[[str], None]
) -> list[dict[str, Any]]:
    """One row for each setting; pairs=0 leaves timing out."""
    clips, labels = speech.heldout_clips()
    rows: list[dict[str, Any]] = []
    calls: dict[tuple[str, str], Call] = {}
    for model, spec in settings:
        bundle = folder / re.sub(r"[^a-z0-9]+", "-", f"{model} {spec}")
        if not bundle.exists():
            step(f"exporting {model} {spec}")
            export_model(model, compress=spec, output=bundle, batch=f"1:{batch}:64")
        step(f"classifying with {model} {spec}")
        right, manifest = count_right(bundle, clips, labels)
        sites = manifest.compression
        assert manifest.flops and manifest.baseline_flops and manifest.verification
        row: dict[str, Any] = {
            "model": model,
            "compressor": spec,
            "frames": sites[-1].tokens_out if sites else 50,
            "flops_reduction": manifest.baseline_flops / manifest.flops["total"],
            "clips": len(labels),
            "right": right,
            "accuracy": right / len(labels),
            "verify_error": manifest.verification.max_abs_error,
        }
        calls[model, spec] = _call(bundle / "model.onnx", clips[:batch])
        if pairs:
            step(f"timing {model} {spec}")
            samples = interleave(calls[model, spec], calls[model, "none"], warmup=5, pairs=pairs)
            row["speedup"] = speedup(samples.a_ns, samples.b_ns).to_json()
            row["latency"] = summarize(samples.a_ns).to_json()
            row["clips_per_second"] = batch / (float(np.median(samples.a_ns)) / 1e9)
        rows.append(row)
    return rows


def count_right(bundle: Path, clips: speech.Array, labels: speech.Array) -> tuple[int, Any]:
    """Clips that a bundle puts into the right class, and its manifest."""
    right = 0
    with Session.open(bundle) as session:
        for start in range(0, len(clips), 64):
            logits = session.run({"audio": clips[start : start + 64]})["logits"]
            right += int((logits.argmax(axis=1) == labels[start : start + 64]).sum())
        return right, session.bundle.manifest


def table_row(row: dict[str, Any]) -> tuple[str, ...]:
    """A row of the table as text."""
    timed = "speedup" in row
    return (
        row["model"],
        row["compressor"],
        f"{row['frames']} of 50",
        f"{row['flops_reduction']:.2f}×",
        f"{row['accuracy']:.1%} ({row['right']})",
        f"{row['clips_per_second']:.0f}" if timed else "",
        f"{row['speedup']['median']:.2f}× [{row['speedup']['low']:.2f}, {row['speedup']['high']:.2f}]" if timed else "",
    )


def _call(file: Path, clips: speech.Array) -> Call:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    feed = {"audio": clips}
    return lambda: session.run(None, feed)


if __name__ == "__main__":
    sys.exit(main())
