"""The export figures of a real model: `python -m trt_compress.tools.bench.deit_small [--quick]`.

DeiT-S with Token Merging against its dense export and against a straight export of the textbook algorithm: FLOPs,
speed-up in one interleaved run (operators as ONNX bodies and as native operators), time outside matrix products and
attention, graph size, export time, verification error, TensorRT-RTX build time. One JSON line is appended to
`tools/bench/results/deit_small.jsonl`.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from torch import nn

from trt_compress.export.api import build, export_model
from trt_compress.export.trace import TraceOptions, onnx_from_module
from trt_compress.methods import parse_spec
from trt_compress.models.hosts.base import LoadedHost
from trt_compress.models.hosts.registry import load_host
from trt_compress.models.hosts.timm_vit import attach
from trt_compress.plugins.build import build as build_native
from trt_compress.plugins.library import require
from trt_compress.plugins.spec import OP_TYPE_PREFIX
from trt_compress.runtime.measure.latency import interleave, speedup, summarize, verdict
from trt_compress.strays import temporary_folder
from trt_compress.tools.bench.kernel_times import kernel_times
from trt_compress.tools.bench.ort_turns import Turns, time_in_turns
from trt_compress.tools.bench.records import append_record, speedup_text
from trt_compress.tools.bench.textbook import TextbookTome
from trt_compress.tools.console import print_table, progress
from trt_compress.tools.machine import cpu_cores

MODEL, NUM_MERGED, BATCH, OPSET = "timm:deit_small_patch16_224", 13, 4, 20
_IMAGE = (3, 224, 224)
SPEC = f"tome:num_merged={NUM_MERGED}"
RESULTS = Path(__file__).parent / "results" / "deit_small.jsonl"
# What ONNX Runtime's optimized graph calls matrix products (convolution included) and the softmax between them.
_COMPUTE_OPS = ("MatMul", "FusedMatMul", "Gemm", "Conv", "FusedConv", "Softmax")

Step = Callable[[str], None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few samples, nothing recorded: to see that it runs")
    quick = parser.parse_args(arguments).quick
    rounds, exports = (6, 1) if quick else (60, 3)
    with progress("DeiT-S") as step, temporary_folder("bench") as folder:
        figures = measure(folder, rounds=rounds, exports=exports, step=step)
    print_table(
        f"{MODEL}, batch {BATCH}, ONNX Runtime on the CPU, {SPEC}",
        ("figure", "measured", "wanted"),
        figure_rows(figures),
    )
    if not quick:
        append_record(RESULTS, "deit_small", {"model": MODEL, "spec": SPEC, **figures})
    return 0


def measure(folder: Path, *, rounds: int, exports: int, step: Step) -> dict[str, Any]:
    """All figures; `rounds` timed runs of each file, `exports` timed exports of each kind."""
    bundles = {}
    for name, spec in (("dense", "none"), ("compressed", SPEC)):
        step(f"exporting {name}")
        bundles[name] = export_model(MODEL, compress=spec, targets=["rtx"], batch="1:4:8", output=folder / name)
    step("building for rtx")
    engine = build(folder / "compressed", target="rtx")
    step("exporting the textbook")
    host = load_host(MODEL)
    onnx.save(_trace(TextbookTome(host.module, NUM_MERGED).eval()), folder / "textbook.onnx")

    files = {name: folder / name / "model.onnx" for name in bundles} | {"textbook": folder / "textbook.onnx"}
    step("building the native operators")
    build_native(only=("onnxruntime",))
    library = require("onnxruntime")
    feed = {"image": np.random.default_rng(0).standard_normal((BATCH, *_IMAGE), dtype=np.float32)}
    step("profiling")
    spent = {name: kernel_times(file, feed, folder) for name, file in files.items()}
    spent["native"] = kernel_times(files["compressed"], feed, folder, library)
    outside = {name: 1 - sum(times[op] for op in _COMPUTE_OPS) / times.total() for name, times in spent.items()}
    merging = sum(time for op, time in spent["native"].items() if op.startswith(OP_TYPE_PREFIX))
    step(f"timing {exports} pairs of exports")
    export_ratio, trace_ratio = _export_ratios(host, folder, exports)
    turns = {}
    for threads in (1, cpu_cores()):
        step(f"timing {rounds} rounds on {threads} thread{'s' * (threads > 1)}")
        native = {"native": files["compressed"]}
        turns[threads] = time_in_turns(files, native, {"image": (BATCH, *_IMAGE)}, threads=threads, runs=rounds)
    one, several = turns[1].ns, turns[cpu_cores()].ns

    dense, compressed = bundles["dense"].manifest, bundles["compressed"].manifest
    assert compressed.flops and compressed.baseline_flops and compressed.verification
    nodes = {name: len(onnx.load(file, load_external_data=False).graph.node) for name, file in files.items()}
    return {
        "flops_reduction": compressed.baseline_flops / compressed.flops["total"],
        "gflops": {"dense": compressed.baseline_flops / 1e9, "compressed": compressed.flops["total"] / 1e9},
        "speedup_over_dense": speedup(several["compressed"], several["dense"]).to_json(),
        "speedup_over_dense_one_thread": speedup(one["compressed"], one["dense"]).to_json(),
        "speedup_over_dense_native": speedup(several["native"], several["dense"]).to_json(),
        "speedup_over_dense_native_one_thread": speedup(one["native"], one["dense"]).to_json(),
        "by_core_distance": by_core_distance(turns[cpu_cores()]),
        "share_of_native_operators": merging / spent["native"].total(),
        "speedup_over_textbook": speedup(several["compressed"], several["textbook"]).to_json(),
        "speedup_over_textbook_one_thread": speedup(one["compressed"], one["textbook"]).to_json(),
        "latency": {name: summarize(ns).to_json() for name, ns in several.items()},
        "latency_one_thread": {name: summarize(ns).to_json() for name, ns in one.items()},
        "verdict": verdict(several["dense"], device="cpu").to_json(),
        "verdict_one_thread": verdict(one["dense"], device="cpu").to_json(),
        "share_outside_gemm_and_attention": outside,
        "nodes": nodes,
        "node_ratio": nodes["compressed"] / nodes["dense"],
        "export_ratio": export_ratio,
        "trace_ratio": trace_ratio,
        "verify_error": compressed.verification.max_abs_error,
        "verify_error_dense": dense.verification.max_abs_error if dense.verification else None,
        "rtx_build_seconds": engine.seconds,  # type: ignore[union-attr]
        "protocol": {
            "batch": BATCH,
            "pairs": rounds,
            "warmup": 3,
            "order": "all in turns, each other round backwards",
            "opset": OPSET,
            "threads": cpu_cores(),
            "thread_pool": "shared by all sessions, in a process of their own",
        },
    }


def by_core_distance(turns: Turns) -> dict[str, Any]:
    """Speed-ups over dense apart for the rounds in which two cores were near each other, and those in which not."""
    found: dict[str, Any] = {}
    for place in ("near", "far"):
        rounds = turns.rounds(near=place == "near")
        if rounds:
            dense = [turns.ns["dense"][number] for number in rounds]
            distances = [turns.core_distance_ns[number] for number in rounds]
            found[place] = {
                "core_distance_ns": float(np.median(np.array(distances, np.float64))),
                **{
                    name: speedup([turns.ns[name][number] for number in rounds], dense).to_json()
                    for name in ("compressed", "native")
                },
            }
    return found


def _trace(module: nn.Module) -> onnx.ModelProto:
    options = TraceOptions(input_name="image", output_name="logits", max_batch=8, opset=OPSET)
    return onnx_from_module(module, _IMAGE, options)


def _export_ratios(host: LoadedHost, folder: Path, exports: int) -> tuple[float, float]:
    """Median over interleaved pairs of time, compressed over dense: of the whole export, and of its tracing alone."""
    modules = {spec: attach(host.module, parse_spec(spec), name=MODEL).eval() for spec in (SPEC, "none")}

    def whole(spec: str) -> None:
        export_model(MODEL, compress=spec, targets=["rtx"], batch="1:4:8", output=folder / "timed", force=True)

    ratios = []
    for work in (whole, lambda spec: _trace(modules[spec])):
        samples = interleave(partial(work, SPEC), partial(work, "none"), warmup=1, pairs=exports)
        ratios.append(float(np.median(np.divide(samples.a_ns, samples.b_ns))))
    return ratios[0], ratios[1]


def figure_rows(figures: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What was measured beside what is wanted, in words."""
    outside = figures["share_outside_gemm_and_attention"]
    return [
        ("FLOPs, dense over compressed", f"{figures['flops_reduction']:.2f}×", "1.70×"),
        ("speed-up over dense", speedup_text(figures["speedup_over_dense"]), "at least 1.60×"),
        *_distance_rows(figures, "compressed", "at least 1.60×"),
        ("the same on one thread", speedup_text(figures["speedup_over_dense_one_thread"]), "at least 1.60×"),
        *_native_rows(figures),
        ("speed-up over the textbook export", speedup_text(figures["speedup_over_textbook"]), "not below 1"),
        ("the same on one thread", speedup_text(figures["speedup_over_textbook_one_thread"]), "not below 1"),
        ("the dense model's times", *_stability(figures)),
        (
            "time outside GEMM and attention, one thread",
            ", ".join(f"{name} {share:.1%}" for name, share in outside.items()),
            "reported",
        ),
        (
            "nodes",
            f"{figures['node_ratio']:.2f} × dense (" + ", ".join(f"{n} {c}" for n, c in figures["nodes"].items()) + ")",
            "at most 1.20 ×",
        ),
        (
            "export time",
            f"{figures['export_ratio']:.2f} × dense (torch's tracing alone {figures['trace_ratio']:.2f} ×)",
            "at most 1.6 ×",
        ),
        ("verification error", f"{figures['verify_error']:.1e}", "at most 1e-04"),
        ("TensorRT-RTX build, batch 1:4:8", f"{figures['rtx_build_seconds']:.1f} s", "under 10 s"),
    ]


def _distance_rows(figures: dict[str, Any], name: str, wanted: str) -> list[tuple[str, str, str]]:
    """The figure apart by how far two cores were from each other, as far as it is known."""
    words = {"near": "rounds whose cores share a cache", "far": "rounds whose cores do not"}
    return [
        (f"{words[place]} ({part['core_distance_ns']:.0f} ns)", speedup_text(part[name]), wanted)
        for place, part in figures["by_core_distance"].items()
    ]


def _stability(figures: dict[str, Any]) -> tuple[str, str]:
    """The verdicts of both runs; a ratio of turns that follow each other bears more than its times do."""
    several, one = figures["verdict"], figures["verdict_one_thread"]
    cores = figures["protocol"]["threads"]
    return f"{several['status']} on {cores} threads, {one['status']} on one", "stable"


def _native_rows(figures: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Figures of the native operators; records from before there were any do not have them."""
    if "speedup_over_dense_native" not in figures:
        return []
    return [
        ("speed-up over dense, native operators", speedup_text(figures["speedup_over_dense_native"]), "at least 1.70×"),
        *_distance_rows(figures, "native", "at least 1.70×"),
        ("the same on one thread", speedup_text(figures["speedup_over_dense_native_one_thread"]), "at least 1.70×"),
        ("time inside native TokenMerge, one thread", f"{figures['share_of_native_operators']:.1%}", "under 3 %"),
    ]


if __name__ == "__main__":
    sys.exit(main())
