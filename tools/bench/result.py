"""What a benchmark of bundles found: the record of `trt-compress bench`, and what it says of each bundle."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from trt_compress.format.manifest import Manifest
from trt_compress.runtime.measure.latency import LatencySummary, Speedup, Verdict
from trt_compress.runtime.session import Session
from trt_compress.tools.describe import compression_text, weights_text

Device = Literal["cpu", "gpu"]
Role = Literal["bundle", "baseline"]
ROLES: tuple[Role, Role] = ("bundle", "baseline")
Array = np.ndarray[Any, np.dtype[Any]]

RESULT_VERSION = "1.2"
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
class Reading:
    """How long one side took to read tokens at one point.

    Attributes:
        role: Which side.
        first_ns: The very first run, before warm-up.
        latencies_ns: The timed runs in order; run i of both sides is one pair.
        with_upkeep: Numbers of those steps behind which upkeep was due, such as packing a part of the cache.
        latency: Of all of them.
        verdict: Of those without upkeep, whose steps are alike; of a prompt, of all.
        tokens_per_s: Tokens of all sequences / time, upkeep included.
        state_bytes: Of the states behind the tokens that were read before the steps, or by the prompt.
        state_memory_bytes: What their memory takes, with that which swapped states change places with.
    """

    role: Role
    first_ns: int
    latencies_ns: tuple[int, ...]
    with_upkeep: tuple[int, ...]
    latency: LatencySummary
    verdict: Verdict
    tokens_per_s: float
    state_bytes: int
    state_memory_bytes: int

    def to_json(self) -> dict[str, Any]:
        """Write as plain JSON data."""
        return {
            "role": self.role,
            "first_ns": self.first_ns,
            "latencies_ns": list(self.latencies_ns),
            "with_upkeep": list(self.with_upkeep),
            "latency": self.latency.to_json(),
            "verdict": self.verdict.to_json(),
            "tokens_per_s": self.tokens_per_s,
            "state_bytes": self.state_bytes,
            "state_memory_bytes": self.state_memory_bytes,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """Where the reading of tokens was timed.

    Attributes:
        workload: "prefill", a prompt of `fill` tokens from its beginning to the logits behind it, or "decode", steps of
            one token each behind `fill` tokens and the warm-up.
        fill: Tokens of each sequence.
        sides: The bundle, and its baseline.
        speedup: Of their pairs.
    """

    workload: str
    fill: int
    sides: tuple[Reading, ...]
    speedup: Speedup | None

    def to_json(self) -> dict[str, Any]:
        """Write as plain JSON data."""
        return {
            "workload": self.workload,
            "fill": self.fill,
            "sides": [side.to_json() for side in self.sides],
            "speedup": self.speedup.to_json() if self.speedup else None,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchResult:
    """One measurement, with all that is needed to repeat or to doubt it.

    `started_at` is when the timing began, ISO 8601 with the zone. `quality` compares the outputs of the bundle with
    its baseline's on the inputs that were timed; None without one. Of bundles that read tokens `points` has all that
    was timed, and `sides` and `speedup` are those of the last point.
    """

    protocol: dict[str, Any]
    sides: tuple[Side, ...]
    speedup: Speedup | None
    quality: dict[str, dict[str, float | int]] | None
    device: dict[str, Any]
    versions: dict[str, str]
    started_at: str
    points: tuple[Point, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Write as plain JSON data."""
        return {
            "document": DOCUMENT,
            "result_version": RESULT_VERSION,
            "started_at": self.started_at,
            "protocol": self.protocol,
            "sides": [side.to_json() for side in self.sides],
            "speedup": self.speedup.to_json() if self.speedup else None,
            "points": [point.to_json() for point in self.points],
            "quality": self.quality,
            "device": self.device,
            "versions": self.versions,
        }


def identity(manifest: Manifest) -> dict[str, Any]:
    """What a result says of the bundle that it measured."""
    return {
        "name": manifest.name,
        "model": manifest.model.source,
        "weights": manifest.model.weights.source,
        "compression": compression_text(manifest),
        "precision": manifest.precision,
        "weights_as": weights_text(manifest.weights),
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
    paths = Counter[str](session.operator_paths().values() if session.backend == "ort-cpu" else ())
    for record in session.engines.values():
        for forms in record.paths.values():
            paths.update({form: count for form, count in forms.items() if count})
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
