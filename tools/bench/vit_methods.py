"""What methods inside a ViT save: `python -m trt_compress.tools.bench.vit_methods [MODEL] [--compress SPEC…]`.

Each setting beside the dense model, with native operators, in one interleaved run on the CPU: how many fewer FLOPs it
has, how much faster it is, how much of what the FLOPs say that is, and what its own operators take. Weights are random:
speed does not hang on them. One JSON line for each model and number of threads is appended to
`tools/bench/results/vit_methods.jsonl`; `python -m trt_compress.tools.gen_tables` makes the table of the last lines.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trt_compress.errors import ConfigError
from trt_compress.export.api import export_model
from trt_compress.methods import parse_spec
from trt_compress.plugins.build import build as build_native
from trt_compress.plugins.library import require
from trt_compress.plugins.spec import OP_TYPE_PREFIX
from trt_compress.runtime.measure.latency import Speedup, speedup, summarize, verdict
from trt_compress.strays import temporary_folder
from trt_compress.tools.bench.kernel_times import kernel_times
from trt_compress.tools.bench.ort_turns import time_in_turns
from trt_compress.tools.bench.records import append_record, speedup_text
from trt_compress.tools.console import print_table, progress

MODEL = "timm:deit_base_patch16_224"
SPECS = ("tome:num_merged=13", "diffrate:table=deit_b", "evit", "token_transform", "avg_pool", "random")
RESULTS = Path(__file__).parent / "results" / "vit_methods.jsonl"
COLUMNS = ("setting", "tokens", "fewer FLOPs", "faster than dense", "of what the FLOPs say", "own operators")
DENSE = "none"
WANTED, OWN = 0.97, 0.03


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", nargs="?", default=MODEL, help=f"({MODEL})")
    parser.add_argument("--compress", nargs="+", metavar="SPEC", default=list(SPECS), help="settings")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="pictures a run (1)")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="(1)")
    parser.add_argument("--rounds", type=int, default=40, metavar="N", help="timed runs of each (40)")
    parser.add_argument("--no-record", action="store_true", help="nothing on record: to see that it runs")
    given = parser.parse_args(arguments)
    for name in ("batch", "threads", "rounds"):
        if getattr(given, name) < 1:
            raise ConfigError(f"--{name} {getattr(given, name)} is out of range; give 1 or more.")
    for spec in given.compress:
        parse_spec(spec)
    with progress("methods in a ViT") as step, temporary_folder("bench") as folder:
        figures = measure(folder, given, step)
    print_table(caption(figures), COLUMNS, rows_of(figures))
    if not given.no_record:
        append_record(RESULTS, "vit_methods", figures)
    return 0


def measure(folder: Path, given: argparse.Namespace, step: Any) -> dict[str, Any]:
    """All figures of one model."""
    step("building the native operators")
    build_native(only=("onnxruntime",))
    library = require("onnxruntime")
    manifests, files = {}, {}
    for number, spec in enumerate((DENSE, *given.compress)):
        step(f"exporting {spec}")
        output = folder / str(number)
        manifests[spec] = export_model(given.model, compress=spec, batch=f"1:{given.batch}:8", output=output).manifest
        files[spec] = output / manifests[spec].graphs[0].file
    (info,) = manifests[DENSE].graphs[0].inputs
    shape = (given.batch, *(int(length) for length in info.shape[1:]))
    feed = {info.name: np.random.default_rng(0).standard_normal(shape, dtype=np.float32)}
    settings: dict[str, Any] = {}
    for spec in given.compress:
        step(f"profiling {spec}")
        spent, manifest = kernel_times(files[spec], feed, folder, library), manifests[spec]
        if manifest.flops is None or manifest.baseline_flops is None:
            raise ConfigError(f"{spec} has no count of FLOPs; export it again.")
        own = sum(time for name, time in spent.items() if name.startswith(OP_TYPE_PREFIX))
        sites = [site for site in manifest.compression if site.tokens_in is not None]
        settings[spec] = {
            "tokens": [sites[0].tokens_in, *(site.tokens_out for site in sites)],
            "flops_reduction": manifest.baseline_flops / manifest.flops["total"],
            "own_share": own / spent.total(),
        }
    step(f"timing {given.rounds} rounds")
    turns = time_in_turns({}, files, {info.name: shape}, threads=given.threads, runs=given.rounds).ns
    for spec, found in settings.items():
        found["speedup"] = speedup(turns[spec], turns[DENSE]).to_json()
        found["of_flops"] = found["speedup"]["median"] / found["flops_reduction"]
    return {
        "model": given.model,
        "settings": settings,
        "dense": summarize(turns[DENSE]).to_json(),
        "verdict": verdict(turns[DENSE], device="cpu").to_json(),
        "protocol": {
            "batch": given.batch,
            "threads": given.threads,
            "rounds": given.rounds,
            "warmup": 3,
            "order": "all in turns, each other round backwards",
            "operators": "native",
        },
    }


def records() -> list[dict[str, Any]]:
    """The last line of each model, batch and number of threads."""
    lines = RESULTS.read_text(encoding="utf-8").splitlines() if RESULTS.is_file() else []
    found = {}
    for record in map(json.loads, lines):
        protocol = record["protocol"]
        found[record["model"], protocol["batch"], protocol["threads"]] = record
    return list(found.values())


def caption(record: dict[str, Any]) -> str:
    """What was measured, in one line."""
    protocol = record["protocol"]
    threads = "one thread" if protocol["threads"] == 1 else f"{protocol['threads']} threads"
    return f"{record['model']}, batch {protocol['batch']}, {threads}, native operators, random weights"


def rows_of(record: dict[str, Any]) -> list[tuple[str, ...]]:
    """A row for each setting."""
    rows: list[tuple[str, ...]] = []
    for spec, found in record["settings"].items():
        tokens, ratio = found["tokens"], Speedup(**found["speedup"])
        rows.append(
            (
                spec,
                f"{tokens[0]} → {tokens[-1]}",
                f"{found['flops_reduction']:.2f}×",
                speedup_text(ratio.to_json()).rpartition(",")[0],
                f"{found['of_flops']:.3f}" + ("" if found["of_flops"] >= WANTED else f" (wanted {WANTED})"),
                f"{found['own_share']:.1%}" + ("" if found["own_share"] <= OWN else f" (wanted {OWN:.0%})"),
            )
        )
    return rows


if __name__ == "__main__":
    sys.exit(main())
