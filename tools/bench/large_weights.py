"""Memory of models with large weights: `python -m trt_compress.tools.bench.large_weights [--quick]`.

A random decoder of 1.1 billion parameters is exported in fp32 and in fp16, verified on its first four layers; FLOPs of
one of 7 billion are counted; and a bundle of two graphs that share their weights is opened. Each in a process of its
own, of which the most memory that was resident is taken. JSON lines go to `tools/bench/results/large_weights.jsonl`.
"""

import argparse
import json
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from trt_compress.children import run_python
from trt_compress.digest import sha256
from trt_compress.strays import temporary_folder
from trt_compress.tools.bench.records import append_record
from trt_compress.tools.console import print_table, progress

RESULTS = Path(__file__).parent / "results" / "large_weights.jsonl"
MODULE = "trt_compress.tools.bench.large_weights"
_VERIFIED = 4


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, nothing recorded: to see that it runs")
    parser.add_argument("--only", choices=CASES, help="one case")
    parser.add_argument("--child", metavar="CASE", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child is not None:
        print(json.dumps(CASES[options.child](options.quick)))
        return 0
    rows = []
    for case in CASES if options.only is None else (options.only,):
        with progress(case) as step, temporary_folder("bench") as folder:
            step("measuring")
            quick = ["--quick"] if options.quick else []
            done = run_python(MODULE, ["--child", case, *quick], folder=folder)
        if done.returncode:
            print(done.stdout.decode(errors="replace"), file=sys.stderr)
            return 1
        figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        rows.append((case, ", ".join(f"{name} {value}" for name, value in figures.items())))
        if not options.quick:
            append_record(RESULTS, f"large weights: {case}", figures)
    print_table("Large weights", ("case", "figures"), rows)
    return 0


def _export(quick: bool, precision: str) -> dict[str, Any]:
    """Export and verification of the first layers: the most resident memory, over the weights."""
    from trt_compress.export.pipeline import run_export
    from trt_compress.export.recipe import Recipe

    weights_bytes = 0

    def load(recipe: Recipe) -> Any:
        nonlocal weights_bytes
        host = _host(quick, precision)
        weights_bytes = sum(tensor.nbytes for tensor in host.module.state_dict().values())
        return host

    start = time.monotonic()
    _, manifest, _ = run_export(
        _recipe(precision),
        Path("bundle").absolute(),
        force=False,
        dry_run=False,
        verify_layers=2 if quick else _VERIFIED,
        step=lambda text: None,
        load=load,
    )
    peak = _peak_bytes()
    assert manifest.verification is not None
    return {
        "precision": precision,
        "weights_mb": _mb(weights_bytes),
        "peak_resident_mb": _mb(peak),
        "peak_over_weights": round(peak / weights_bytes, 3),
        "verified_layers": f"{manifest.verification.layers} of {manifest.verification.layers_of}",
        "largest_error": manifest.verification.max_abs_error,
        "bundle_mb": _mb(sum(info.bytes for info in manifest.files.values())),
        "seconds": round(time.monotonic() - start, 1),
    }


def _flops(quick: bool) -> dict[str, Any]:
    """FLOPs of 7 billion parameters, which are nowhere."""
    import torch

    from trt_compress.export.flops import flops_of_call
    from trt_compress.tools.bench.llama_shaped import LLAMA_7B, on_meta

    start = time.monotonic()
    module = on_meta(LLAMA_7B)
    counted = flops_of_call(module, [torch.zeros(1, 2048, dtype=torch.int64)])["total"]
    parameters = sum(tensor.numel() for tensor in module.parameters())
    return {
        "parameters": parameters,
        "tokens": 2048,
        "flops": counted,
        "seconds": round(time.monotonic() - start, 1),
        "peak_resident_mb": _mb(_peak_bytes()),
    }


def _two_graphs(quick: bool) -> dict[str, Any]:
    """Two graphs of one model: what lies on the disk, and what both take when they are open and have run."""
    with temporary_folder("two") as folder:
        done = run_python(MODULE, ["--child", "two graphs, made", *(["--quick"] if quick else [])], folder=folder)
        if done.returncode:
            raise SystemExit(done.stdout.decode(errors="replace"))
        made: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return {**made, **_opened(folder / "bundle", made["weights_mb"])}


def _make_two_graphs(quick: bool) -> dict[str, Any]:
    import onnx

    from trt_compress.export.pipeline import run_export
    from trt_compress.export.weights import WEIGHTS_FILE, places_of

    _, manifest, _ = run_export(
        _recipe("fp32"),
        Path("bundle").absolute(),
        force=False,
        dry_run=False,
        verify_layers=2 if quick else _VERIFIED,
        step=lambda text: None,
        load=lambda recipe: _host(quick, "fp32", ("prompt", "token")),
    )
    content = memoryview((Path("bundle") / WEIGHTS_FILE).read_bytes())
    graphs = [onnx.load(f"bundle/{graph.file}", load_external_data=False) for graph in manifest.graphs]
    places = [set(places_of(model).values()) for model in graphs]
    hashes = [sha256(content[at : at + size]) for at, size in set.union(*places)]
    return {
        "graphs": len(graphs),
        "tensors": len(hashes),
        "tensors_that_are_there_twice": len(hashes) - len(set(hashes)),
        "tensors_in_both": len(set.intersection(*places)),
        "weights_mb": _mb(sum(size for _, size in set.union(*places))),
        "bundle_mb": _mb(sum(info.bytes for info in manifest.files.values())),
    }


def _opened(bundle: Path, weights_mb: float) -> Mapping[str, Any]:
    """Resident memory of both graphs in one session: private, and pages of files, each counted once (PSS)."""
    import numpy as np

    from trt_compress.runtime import Session

    tokens = np.arange(8, dtype=np.int64)[None]
    before = _status()
    with Session.open(bundle, threads=1, native=False) as session:
        for graph in session.graphs:
            session.run_graph(graph, tokens)
        after = _status()
    took = {name: after[name] - before[name] for name in after}
    return {
        "private_mb": _mb(took["private"]),
        "proportional_mb": _mb(took["proportional"]),
        "proportional_over_weights": round(_mb(took["proportional"]) / weights_mb, 3),
    }


def _status() -> dict[str, int]:
    lines = [line.split() for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]]
    sizes = {line[0].rstrip(":"): int(line[1]) << 10 for line in lines}
    return {"private": sizes["Anonymous"], "proportional": sizes["Pss"]}


def _host(quick: bool, precision: str, names: Sequence[str] = ("model",)) -> Any:
    from trt_compress.export.precision import TORCH_DTYPES
    from trt_compress.tools.bench.llama_shaped import TINY_LLAMA, filled, host_of

    sizes = replace(TINY_LLAMA, hidden=512, layers=4, feed_forward=1408) if quick else TINY_LLAMA
    return host_of(filled(sizes, TORCH_DTYPES[precision]), names)


def _recipe(precision: str) -> Any:
    from trt_compress.export.ranges import BatchRange
    from trt_compress.export.recipe import Recipe

    return Recipe(model="Llama-shaped", batch=BatchRange(min=1, opt=1, max=2), precision=precision)


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _mb(count: int) -> float:
    return round(count / 1e6, 1)


CASES = {
    "export, fp32": lambda quick: _export(quick, "fp32"),
    "export, fp16": lambda quick: _export(quick, "fp16"),
    "FLOPs of 7 B": _flops,
    "two graphs": _two_graphs,
    "two graphs, made": _make_two_graphs,  # a part of the one before
}


if __name__ == "__main__":
    sys.exit(main())
