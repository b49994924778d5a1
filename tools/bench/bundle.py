"""Time a bundle, and its baseline beside it in the same process and run."""

import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import numpy as np

from trt_compress.digest import as_digests
from trt_compress.errors import ConfigError, GateError
from trt_compress.files import open_regular
from trt_compress.foreign import reading, refusals_said
from trt_compress.format.bundle import Bundle
from trt_compress.format.manifest import Manifest, TensorInfo
from trt_compress.paths import check_archive
from trt_compress.runtime.arrays import arrays_of
from trt_compress.runtime.measure.latency import (
    LatencySummary,
    Speedup,
    Verdict,
    interleave,
    speedup,
    summarize,
    verdict,
)
from trt_compress.runtime.session import Session
from trt_compress.tools.describe import compression_text
from trt_compress.tools.machine import cpu_cores, describe_device, package_versions

Device = Literal["cpu", "gpu"]
Role = Literal["bundle", "baseline"]
Array = np.ndarray[Any, np.dtype[Any]]

RESULT_VERSION = "1.1"
DOCUMENT = "trt-compress bench"


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One bundle of a run: what it is and how long it took.

    `latencies_ns` are the timed runs in order; run i of both sides is one pair. `first_inference_ns` is the very first
    run, before warm-up.
    """

    role: Role
    identity: dict[str, Any]
    first_inference_ns: int
    latencies_ns: tuple[int, ...]
    latency: LatencySummary
    verdict: Verdict

    def to_json(self) -> dict[str, Any]:
        """Write as plain JSON data."""
        return {
            "role": self.role,
            "identity": self.identity,
            "first_inference_ns": self.first_inference_ns,
            "latencies_ns": list(self.latencies_ns),
            "latency": self.latency.to_json(),
            "verdict": self.verdict.to_json(),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchResult:
    """One measurement, with all that is needed to repeat or to doubt it.

    `started_at` is when the timing began, ISO 8601 with the zone. `quality` compares the outputs of the bundle with
    its baseline's on the inputs that were timed; None without one.
    """

    protocol: dict[str, Any]
    sides: tuple[Side, ...]
    speedup: Speedup | None
    quality: dict[str, dict[str, float | int]] | None
    device: dict[str, Any]
    versions: dict[str, str]
    started_at: str

    def to_json(self) -> dict[str, Any]:
        """Write as plain JSON data."""
        return {
            "document": DOCUMENT,
            "result_version": RESULT_VERSION,
            "started_at": self.started_at,
            "protocol": self.protocol,
            "sides": [side.to_json() for side in self.sides],
            "speedup": self.speedup.to_json() if self.speedup else None,
            "quality": self.quality,
            "device": self.device,
            "versions": self.versions,
        }


@refusals_said()
def bench(
    bundle: str | Path,
    *,
    baseline: str | Path | None = None,
    graph: str | None = None,
    baseline_graph: str | None = None,
    backend: str = "ort-cpu",
    batch: int | None = None,
    threads: int | None = None,
    pairs: int = 64,
    warmup: int = 5,
    inputs: str | Path | None = None,
    seed: int = 0,
    native: bool | None = None,
    require_digest: str | Collection[str] | None = None,
    progress: Callable[[str], None] = lambda step: None,
) -> BenchResult:
    """Time a bundle; with a baseline, both in one interleaved run on the same inputs.

    Args:
        bundle: What is measured.
        baseline: The uncompressed bundle of the same model, or the same bundle with another graph.
        graph: The graph of the bundle that is measured; None: all of them, one after the other.
        baseline_graph: The same of the baseline.
        backend: As `Session.open` takes it.
        batch: Batch size of the random inputs; None is the bundle's own.
        threads: As `Session.open` takes it; beside a baseline None means one for each core.
        pairs: Timed runs of each side.
        warmup: Runs of each side before them.
        inputs: An .npz file of arrays by input name, instead of random ones.
        seed: Of the random inputs.
        native: As `Session.open` takes it; what ran is in the result.
        require_digest: The digest that the bundle must have; with more than one bundle several, of which each must have
            one. As `Bundle.open` takes it.
        progress: Is told the name of each step.

    Raises:
        ConfigError: A number out of range, inputs that do not fit, or a baseline that takes other inputs.
        GateError: An output is not finite, so its latency means nothing.
    """
    if batch is not None and (batch < 1 or inputs is not None):
        what = "give at least 1" if batch < 1 else "the arrays of --inputs have their own; leave one of the two out"
        raise ConfigError(f"batch={batch}; {what}.")
    if pairs < 1 or warmup < 0 or seed < 0:
        raise ConfigError(f"pairs={pairs}, warmup={warmup}, seed={seed}; give pairs >= 1, warmup >= 0 and seed >= 0.")
    if inputs is not None:
        check_archive(Path(inputs))
    required = as_digests(require_digest)
    progress("opening")
    if baseline is None and baseline_graph is not None:
        baseline = bundle
    paths = [path for path in (bundle, baseline) if path is not None]
    chosen = [None if name is None else [name] for name in (graph, baseline_graph)]
    for path, graphs in zip(paths, chosen, strict=False):  # all of them before any library is loaded
        manifest = Bundle.open(path, check_hashes=False, require_digest=required).manifest
        for name in graphs or ():
            manifest.graph(name)
    spin = len(paths) == 1
    if threads is None and not spin:
        threads = cpu_cores()  # a number of its own choice ONNX Runtime would pin, both sessions to the same cores
    sessions = [
        Session.open(
            path, backend=backend, threads=threads, spin=spin, native=native, graphs=graphs, require_digest=required
        )
        for path, graphs in zip(paths, chosen, strict=False)
    ]
    first = sessions[0]
    _check_comparable(first.bundle.manifest, sessions[-1].bundle.manifest)
    if first.inputs != sessions[-1].inputs:
        raise ConfigError(
            f"The baseline takes {_signature(sessions[-1])} and the bundle {_signature(first)}; "
            "compare bundles of the same model and precision."
        )
    size = batch or first.bundle.manifest.batch.opt
    feed = _load(Path(inputs)) if inputs is not None else _random(first, size, seed)
    calls = [repeated(session, feed) for session in sessions]
    progress("checking the outputs")
    firsts = [_first_run(session, feed) for session in sessions]
    if _batch(first.inputs, feed) == 0:
        raise ConfigError("The arrays of --inputs hold no item; give at least one.")
    progress(f"{pairs} pairs" if baseline is not None else f"{pairs} runs")
    started_at = datetime.now(timezone.utc).isoformat(timespec="seconds")
    samples = interleave(calls[0], calls[1] if baseline is not None else None, warmup=warmup, pairs=pairs)
    device: Device = "gpu" if backend == "ort-cuda" else "cpu"
    roles: tuple[Role, Role] = ("bundle", "baseline")
    timed = zip(roles, sessions, firsts, (samples.a_ns, samples.b_ns), strict=False)
    return BenchResult(
        protocol={
            "kind": "closed loop, interleaved ABAB" if baseline is not None else "closed loop",
            "backend": backend,
            "threads": threads,
            "spinning": spin,
            "batch": _batch(first.inputs, feed),
            "pairs": pairs,
            "warmup": warmup,
            "inputs": "file" if inputs is not None else f"random, seed {seed}",
        },
        sides=tuple(_side(role, session, first.ns, ns, device) for role, session, first, ns in timed),
        speedup=speedup(samples.a_ns, samples.b_ns) if baseline is not None else None,
        quality=compare_outputs(firsts[0].outputs, firsts[1].outputs) if baseline is not None else None,
        device=describe_device(),
        versions=package_versions(),
        started_at=started_at,
    )


def _check_comparable(ours: Manifest, baseline: Manifest) -> None:
    """Refuse a baseline that differs in more than its compression."""
    for what in ("source", "weights"):
        mine, theirs = getattr(ours.model, what), getattr(baseline.model, what)
        if mine != theirs:
            shown = [value if isinstance(value, str) else f"weights {value.source}" for value in (mine, theirs)]
            raise ConfigError(f"The bundle has {shown[0]} and the baseline {shown[1]}; compare bundles of one model.")
    if ours.precision != baseline.precision:
        raise ConfigError(
            f"The bundle is {ours.precision} and the baseline {baseline.precision}; export both in one precision."
        )


def identity(manifest: Manifest) -> dict[str, Any]:
    """What a result says of the bundle that it measured."""
    return {
        "name": manifest.name,
        "model": manifest.model.source,
        "weights": manifest.model.weights.source,
        "compression": compression_text(manifest),
        "precision": manifest.precision,
        "opset": manifest.opset,
        "flops": manifest.flops,
        "baseline_flops": manifest.baseline_flops,
        "sites": [part.to_json() for part in manifest.compression],
        "graph_bytes": sum(
            manifest.files[name].bytes
            for graph in manifest.graphs
            for name in (graph.file, *graph.external_data)
            if name in manifest.files  # else pruned
        ),
        "sha256": {
            graph.file: manifest.files[graph.file].sha256 for graph in manifest.graphs if graph.file in manifest.files
        },
    }


def operators_run(session: Session) -> dict[str, Any]:
    """How the operators of ours ran: how many in which form, and the native library's hash, or why there is none."""
    paths = Counter(session.operator_paths().values()) if session.backend == "ort-cpu" else Counter[str]()
    library = session.native.info["source_hash"] if session.native else None
    return {"paths": dict(paths), "native_library": library, "native_reason": session.native_reason}


def compare_outputs(ours: Mapping[str, Array], baseline: Mapping[str, Array]) -> dict[str, dict[str, float | int]]:
    """Compare floating-point outputs of equal shape, by name.

    Returns:
        For each: `max_abs`; `cosine`, the least over the items of the batch; for scores [B, C] also `top1_agreement`,
        the share of the n items whose largest score has the same index.
    """
    compared: dict[str, dict[str, float | int]] = {}
    for name, theirs in baseline.items():
        if name not in ours or ours[name].shape != theirs.shape or theirs.dtype.kind != "f" or theirs.ndim < 1:
            continue
        mine, other = (np.asarray(value, np.float64).reshape(len(theirs), -1) for value in (ours[name], theirs))
        norms = np.linalg.norm(mine, axis=1) * np.linalg.norm(other, axis=1)
        cosines = np.divide((mine * other).sum(axis=1), norms, out=np.ones_like(norms), where=norms > 0)
        compared[name] = {
            "n": len(theirs),
            "max_abs": float(np.abs(mine - other).max()),
            "cosine": float(cosines.min()),
        }
        if theirs.ndim == 2 and theirs.shape[1] > 1:
            compared[name]["top1_agreement"] = float((mine.argmax(axis=1) == other.argmax(axis=1)).mean())
    return compared


def _side(role: Role, session: Session, first_ns: int, ns: tuple[int, ...], device: Device) -> Side:
    summary = summarize(ns)
    return Side(
        role=role,
        identity={
            **identity(session.bundle.manifest),
            "graphs": list(session.graphs),
            "operators": operators_run(session),
        },
        first_inference_ns=first_ns,
        latencies_ns=ns,
        latency=summary,
        verdict=verdict(ns, device=device),
    )


def repeated(session: Session, feed: Mapping[str, Array]) -> Callable[[], object]:
    """One run. States go on from run to run, as they do in a stream, unless they grow: those start anew."""

    def run() -> None:
        if session.loaded.growing:
            session.reset()
        session.run(feed)

    return run


@dataclass(frozen=True, slots=True, kw_only=True)
class _FirstRun:
    ns: int
    outputs: dict[str, Array]


def _first_run(session: Session, feed: Mapping[str, Array]) -> _FirstRun:
    start = time.perf_counter_ns()
    outputs = session.run(feed)
    ns = time.perf_counter_ns() - start
    for name, value in outputs.items():
        if not np.isfinite(value).all():
            raise GateError(
                f"Output '{name}' of '{session.bundle.path}' is not finite, so its latency means nothing; "
                "run `trt-compress verify` on the bundle, and check the inputs."
            )
    return _FirstRun(ns=ns, outputs=outputs)


def _random(session: Session, batch: int, seed: int) -> dict[str, Array]:
    generator = np.random.default_rng(seed)
    lengths = {"batch": batch, **_usual_lengths(session.bundle.manifest)}
    arrays: dict[str, Array] = {}
    for name, info in session.inputs.items():
        unknown = {dim for dim in info.shape if isinstance(dim, str)} - lengths.keys()
        if unknown:
            raise ConfigError(
                f"Input '{name}' has the axis '{min(unknown)}', whose length a random input cannot know; "
                "give arrays with --inputs FILE.npz."
            )
        shape = [lengths[dim] if isinstance(dim, str) else dim for dim in info.shape]
        dtype = np.dtype(info.dtype)
        if math.prod(shape) >= 2**31:
            raise ConfigError(
                f"Input '{name}' would have the shape {shape}, which is more than can be made up here; give a smaller "
                "--batch, or arrays with --inputs FILE.npz."
            )
        values = generator.standard_normal(shape) if dtype.kind == "f" else generator.integers(0, 2, shape)
        arrays[name] = values.astype(dtype)
    return arrays


def _usual_lengths(manifest: Manifest) -> dict[str, int]:
    """The usual length of each symbol but the batch."""
    return {symbol: length.opt for symbol, length in manifest.lengths.items()}


def _load(path: Path) -> dict[str, Array]:
    with reading(f"'{path}'", "give an .npz file that numpy.savez wrote"), open_regular(path) as file:
        return arrays_of(file)


def _batch(inputs: Mapping[str, TensorInfo], feed: Mapping[str, Array]) -> int | None:
    for name, info in inputs.items():
        if "batch" in info.shape:
            return int(feed[name].shape[info.shape.index("batch")])
    return None


def _signature(session: Session) -> str:
    return ", ".join(f"{name} {info.dtype} {list(info.shape)}" for name, info in session.inputs.items())
