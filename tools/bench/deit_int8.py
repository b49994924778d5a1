"""INT8 beside compression: `python -m trt_compress.tools.bench.deit_int8 [--quick]`.

DeiT-S with and without Token Merging, in fp32 and in INT8 with dynamic and static ranges, in ONNX Runtime (with the
native operators), and the dense fp32 and INT8 files in OpenVINO, which lives in an environment of its own: at batch 1
and 4, on one and two threads, all in turns. Weights are random, so that the figures speak of speed alone. One JSON line
is appended to `tools/bench/results/deit_int8.jsonl`.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trt_compress.children import PIPE, Process, python_command, started
from trt_compress.errors import InternalError
from trt_compress.export.api import export_model
from trt_compress.format.manifest import Manifest
from trt_compress.plugins.build import build as build_native
from trt_compress.plugins.library import require
from trt_compress.runtime.measure.latency import speedup, summarize, verdict
from trt_compress.strays import temporary_folder
from trt_compress.tools.bench.environments import FOLDER, environment
from trt_compress.tools.bench.records import append_record, speedup_text
from trt_compress.tools.console import print_table, progress

MODEL, SPEC = "timm:deit_small_patch16_224", "tome:num_merged=13"
RESULTS = Path(__file__).parent / "results" / "deit_int8.jsonl"
PEER = Path(__file__).with_name("turn_peer.py")
PACKAGES = ("openvino", "numpy")
_IMAGE = (3, 224, 224)
_SAMPLES = 40
_REST_S = 0.02  # until no thread waits in a busy loop any more, which would take a core from the next one
_WARMUP = 3
FORMS: Mapping[str, Mapping[str, Any]] = {
    "dense fp32": {},
    "dense int8 dynamic": {"precision": "int8", "int8": "dynamic"},
    "dense int8 static": {"precision": "int8", "int8": "static"},
    "tome fp32": {"compress": SPEC},
    "tome int8 dynamic": {"compress": SPEC, "precision": "int8", "int8": "dynamic"},
    "tome int8 static": {"compress": SPEC, "precision": "int8", "int8": "static"},
}
"""What is exported, by name."""
OPENVINO = {"openvino fp32": "dense fp32", "openvino int8": "dense int8 static"}
"""What OpenVINO reads, by name."""
DENSE = "dense fp32"

Step = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A runtime that is timed, with its files by name, and the Python of its environment; None: this one."""

    runtime: str
    files: Mapping[str, Path]
    python: Path | None = None


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=MODEL, metavar="MODEL", help="of timm or the zoo, with one image as input")
    parser.add_argument("--rounds", type=int, default=40, metavar="N", help="timed runs of each file at each point")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4], metavar="N")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], metavar="N")
    parser.add_argument("--environments", type=Path, metavar="DIR", default=FOLDER)
    parser.add_argument("--without-openvino", action="store_true", help="leave it out")
    parser.add_argument("--quick", action="store_true", help="little is timed, nothing recorded: to see that it runs")
    options = parser.parse_args(arguments)
    rounds = 2 if options.quick else options.rounds
    with progress("INT8") as step, temporary_folder("bench") as folder:
        step("building the native operators")
        build_native(only=("onnxruntime",))
        manifests = exported(options.model, folder, step)
        files = {name: folder / _slug(name) / "model.onnx" for name in FORMS}
        peers = [Peer(runtime="onnxruntime", files=files)]
        if not options.without_openvino:
            python = environment("openvino", PACKAGES, options.environments, step)
            theirs = {name: files[source] for name, source in OPENVINO.items()}
            peers.append(Peer(runtime="openvino", files=theirs, python=python))
        points = [
            measured(peers, _shape(manifests[DENSE]), batch=batch, threads=threads, rounds=rounds, step=step)
            for batch in options.batch
            for threads in options.threads
        ]
    for point in points:
        title = f"{options.model}, batch {point['batch']}, threads: {point['threads']}"
        print_table(title, ("file", "p50 ms", "times as fast as dense fp32", "than dense INT8"), rows_of(point))
    if not options.quick:
        int8 = {name: [r.to_json() for r in manifest.int8] for name, manifest in manifests.items() if manifest.int8}
        agreement = {
            name: manifest.verification.agreement.to_json()
            for name, manifest in manifests.items()
            if manifest.verification is not None and manifest.verification.agreement is not None
        }
        protocol = {"order": "all in turns, each other round backwards", "rounds": rounds, "warmup": _WARMUP}
        found = {"model": options.model, "spec": SPEC, "points": points, "int8": int8, "agreement": agreement}
        append_record(RESULTS, "deit_int8", {**found, "protocol": protocol})
    return 0


def exported(model: str, folder: Path, step: Step) -> dict[str, Manifest]:
    """Export every form; static ranges are found with seeded numbers, which random weights know no better than."""
    manifests: dict[str, Manifest] = {}
    for name, form in FORMS.items():
        step(f"exporting {name}")
        given = dict(form)
        if given.get("int8") == "static":
            given["calibrate"] = folder / "samples.npz"
            if not given["calibrate"].exists():
                shape = _shape(manifests[DENSE])
                samples = np.random.default_rng(1).random((_SAMPLES, *next(iter(shape.values()))), dtype=np.float32)
                arrays: dict[str, Any] = dict.fromkeys(shape, samples)
                np.savez(given["calibrate"], **arrays)
        manifests[name] = export_model(model, batch="1:4:8", output=folder / _slug(name), **given).manifest
    return manifests


def measured(
    peers: Sequence[Peer], shape: Mapping[str, tuple[int, ...]], *, batch: int, threads: int, rounds: int, step: Step
) -> dict[str, Any]:
    """Run every file of every runtime in turns, each other round backwards."""
    library = require("onnxruntime").path
    with ExitStack() as stack:
        children: dict[str, _Child] = {}
        versions = {}
        for peer in peers:
            step(f"batch {batch}, {threads} threads: loading {peer.runtime}")
            request = {
                "runtime": peer.runtime,
                "files": {name: str(path.absolute()) for name, path in peer.files.items()},
                "feed": {name: [batch, *dims] for name, dims in shape.items()},
                "threads": threads,
                "library": str(library.absolute()),
                "native": [name for name in peer.files if name.startswith("tome")],
            }
            child = _Child(peer, request, stack)
            versions[peer.runtime] = child.version
            children |= dict.fromkeys(peer.files, child)
        names = list(children)
        ns: dict[str, list[int]] = {name: [] for name in names}
        for turn in range(_WARMUP + rounds):
            step(f"batch {batch}, {threads} threads: round {turn + 1} of {_WARMUP + rounds}")
            for name in reversed(names) if turn % 2 else names:
                ns[name].append(children[name].run(name))
                time.sleep(_REST_S)
    ns = {name: taken[_WARMUP:] for name, taken in ns.items()}
    return {
        "batch": batch,
        "threads": threads,
        "versions": versions,
        "latency": {name: summarize(taken).to_json() for name, taken in ns.items()},
        "verdict": verdict(ns[DENSE], device="cpu").to_json(),
        "over_dense": {name: speedup(taken, ns[DENSE]).to_json() for name, taken in ns.items() if name != DENSE},
        "over_dense_int8": {
            name: speedup(taken, ns["dense int8 dynamic"]).to_json() for name, taken in ns.items() if "tome" in name
        },
        "over_openvino_int8": {
            name: speedup(taken, ns["openvino int8"]).to_json()
            for name, taken in ns.items()
            if "openvino int8" in ns and "tome int8" in name
        },
    }


def rows_of(point: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A table of one point."""
    return [
        (
            name,
            f"{latency['median_ns'] / 1e6:.2f}",
            speedup_text(point["over_dense"][name]) if name in point["over_dense"] else "1",
            speedup_text(point["over_dense_int8"][name]) if name in point["over_dense_int8"] else "",
        )
        for name, latency in point["latency"].items()
    ]


class _Child:
    """A runtime that runs."""

    def __init__(self, peer: Peer, request: Mapping[str, Any], stack: ExitStack) -> None:
        folder = stack.enter_context(temporary_folder("peer"))
        self._name = peer.runtime
        self._errors = stack.enter_context((folder / "errors").open("w+b"))
        command: list[str | Path] = [*python_command("trt_compress.tools.bench.turn_peer", json.dumps(request))]
        if peer.python is not None:
            command = [peer.python, PEER, json.dumps(request)]
        self._process: Process[bytes] = stack.enter_context(
            started(command, given=PIPE, output=PIPE, errors=self._errors)
        )
        stack.callback(self._end)
        self.version = str(self._answer())

    def run(self, name: str) -> int:
        """Nanoseconds of one run of a file."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{name}\n".encode())
        self._process.stdin.flush()
        return int(self._answer())

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._errors.seek(0)
            said = self._errors.read().decode(errors="replace").strip()
            raise InternalError(f"{self._name} ended instead of answering: {said[-600:]}")
        return json.loads(line)

    def _end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()


def _shape(manifest: Manifest) -> dict[str, tuple[int, ...]]:
    """Shapes of the inputs, without the batch."""
    return {info.name: tuple(int(dim) for dim in info.shape[1:]) for info in manifest.graphs[0].inputs}


def _slug(name: str) -> str:
    return name.replace(" ", "-")


if __name__ == "__main__":
    sys.exit(main())
