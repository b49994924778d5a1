"""Streams and benchmarks that were never run: every number of them is known before the report is made."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trt_compress.format.manifest import Compression
from trt_compress.runtime.measure.latency import Samples, speedup, summarize, verdict
from trt_compress.runtime.measure.power import PowerResult, RailSamples
from trt_compress.runtime.measure.power.reader import PowerSource
from trt_compress.runtime.measure.power.session import power_result
from trt_compress.runtime.measure.power.trace import Trace
from trt_compress.runtime.stream.result import (
    Counts,
    Frames,
    Identity,
    LevelInfo,
    Quality,
    Resources,
    StreamProtocol,
    StreamResult,
)

MS = 1_000_000
STAGES = ("decode", "preprocess", "session", "postprocess", "sink")
STAGE_MS = {"decode": 1.8, "preprocess": 0.7, "session": 12.0, "postprocess": 0.3, "sink": 0.2}

MakeStream = Callable[..., StreamResult]


def scripted_stream(
    n: int = 900,
    *,
    fps: float = 30.0,
    deadline_ms: float | None = 33.0,
    seed: int = 0,
    drop_every: int = 0,
    fail_at: tuple[int, ...] = (),
    spikes: int = 0,
    noise: float = 0.03,
    name: str = "zoo:digits_vit tome:num_merged=5",
    **resources: Any,
) -> StreamResult:
    """A fixed-rate stream of n frames: stages of known length with noise, some spikes, drops and failures.

    Every `drop_every`-th frame is dropped, those of `fail_at` fail, and `spikes` frames, evenly spread, take four times
    as long.
    """
    generator = np.random.default_rng(seed)
    columns: dict[str, list[Any]] = {
        name: []
        for name in ("arrival_ns", "start_ns", "end_ns", "deadline_missed", "outcome", "reason", "level", "tokens_out")
    }
    stages: dict[str, list[int | None]] = {stage: [] for stage in STAGES}
    waits: dict[str, list[int | None]] = {queue: [] for queue in ("source", "preprocess", "session", "postprocess")}
    slow = set(np.linspace(0, n - 1, spikes + 2).astype(int)[1:-1].tolist()) if spikes else set()
    for frame in range(n):
        arrival = round(frame * 1e9 / fps)
        wait = {queue: int(generator.integers(5_000, 60_000)) for queue in waits}
        factor = 4.0 if frame in slow else 1.0
        spent = {
            stage: round(ms * MS * (factor if stage == "session" else 1) * (1 + noise * generator.standard_normal()))
            for stage, ms in STAGE_MS.items()
        }
        outcome = "delivered"
        if drop_every and frame % drop_every == drop_every - 1:
            outcome = "dropped"
        if frame in fail_at:
            outcome = "failed"
        done = STAGES if outcome == "delivered" else ("decode",) if outcome == "failed" else ()
        for stage in STAGES:
            stages[stage].append(spent[stage] if stage in done else None)
        taken = {queue: queue == "source" or queue in done for queue in waits}
        for queue in waits:
            waits[queue].append(wait[queue] if taken[queue] and outcome != "dropped" else None)
        start = arrival + wait["source"]
        total = sum(spent[stage] for stage in done) + sum(wait[queue] for queue in waits if taken[queue])
        end = arrival + (total if outcome != "dropped" else 40 * MS)
        columns["arrival_ns"].append(arrival)
        columns["start_ns"].append(None if outcome == "dropped" else start)
        columns["end_ns"].append(end)
        missed = deadline_ms is not None and end - arrival > deadline_ms * MS
        columns["deadline_missed"].append(missed if outcome == "delivered" and deadline_ms is not None else None)
        columns["outcome"].append(outcome)
        reasons = {"dropped": "a newer frame came", "failed": "the image is corrupt"}
        columns["reason"].append(reasons.get(outcome))
        columns["level"].append("tome:num_merged=5" if outcome == "delivered" else None)
        columns["tokens_out"].append(int(25 + 8 * np.sin(frame / 40) ** 2) if outcome == "delivered" else None)
    outcomes = columns["outcome"]
    counts: dict[str, Any] = {outcome: outcomes.count(outcome) for outcome in ("delivered", "dropped", "failed")}
    causes = {reason: columns["reason"].count(reason) for reason in dict.fromkeys(columns["reason"]) if reason}
    rows: dict[str, Any] = {name: tuple(column) for name, column in columns.items()}
    sites = tuple(
        Compression(
            site=f"blocks.{layer}",
            compressor="tome",
            config={"num_merged": 5},
            tokens_in=65 - 5 * layer,
            tokens_out=60 - 5 * layer,
        )
        for layer in range(8)
    )
    level = LevelInfo(
        name="tome:num_merged=5",
        bundle=name,
        digest="ab" * 32,
        graphs={"model.onnx": "cd" * 32},
        compression=sites,
        flops=85.7e6,
        baseline_flops=128e6,
    )
    return StreamResult(
        identity=Identity(
            bundle=name,
            model="zoo:digits_vit",
            weights="digits_vit.safetensors",
            precision="fp32",
            opset=20,
            backend="ort-cpu",
            levels=(level,),
            native_library=None,
            versions={"trt-compress": "0.1.0", "numpy": "2.4.6"},
            device={"cpu": "AMD EPYC", "cores": 2, "gpus": []},
            sources=("frames/*.png",),
        ),
        protocol=StreamProtocol(
            kind="fixed rate",
            fps=fps,
            policy="latest",
            queue_depth=2,
            deadline_ns=None if deadline_ms is None else round(deadline_ms * MS),
            warmup=5,
            threads=1,
        ),
        started_at="2026-11-24T10:00:00+00:00",
        wall_ns=round(n * 1e9 / fps),
        ended="end of source",
        counts=Counts(
            frames_in=n,
            deadline_missed=None if deadline_ms is None else sum(map(bool, columns["deadline_missed"])),
            reasons=causes,
            **counts,
        ),
        first_inference_ns=31 * MS,
        quality={"accuracy": Quality(value=0.9917, n=counts["delivered"])} if counts["delivered"] else {},
        resources=Resources(peak_rss_bytes=180 * 2**20, **resources),
        frames=Frames(
            id=tuple(range(n)),
            capture_ns=(None,) * n,
            tokens_in=tuple(65 if outcome == "delivered" else None for outcome in outcomes),
            first_after_idle=(False,) * n,
            stage_ns={stage: tuple(column) for stage, column in stages.items()},
            queue_wait_ns={queue: tuple(column) for queue, column in waits.items()},
            **rows,
        ),
    )


@pytest.fixture
def make_stream() -> MakeStream:
    """Make a scripted stream."""
    return scripted_stream


@pytest.fixture
def stream_file(tmp_path: Path) -> Callable[..., Path]:
    """Write the result of a scripted stream; its options are those of `make_stream`."""

    def write(file: str, **options: Any) -> Path:
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(scripted_stream(**options).to_text(), encoding="utf-8")
        return path

    return write


def bench_json(*, pairs: int = 200, baseline: bool = True, ratio: float = 1.5, **identity: Any) -> dict[str, Any]:
    """What `trt-compress bench --json` writes, of latencies that are known."""
    generator = np.random.default_rng(1)
    a = tuple(round(10 * MS * (1 + 0.02 * x)) for x in generator.standard_normal(pairs))
    b = tuple(round(ns * ratio * (1 + 0.01 * x)) for ns, x in zip(a, generator.standard_normal(pairs), strict=True))
    samples = Samples(a_ns=a, b_ns=b if baseline else (), warmup=5)

    def side(role: str, ns: tuple[int, ...], compression: str) -> dict[str, Any]:
        return {
            "role": role,
            "identity": {
                "name": f"zoo:digits_vit {compression}",
                "model": "zoo:digits_vit",
                "weights": "digits_vit.safetensors",
                "compression": compression,
                "precision": "fp32",
                "opset": 20,
                "flops": {"total": 85.7e6},
                "baseline_flops": 128e6,
                "sites": [],
                "graph_bytes": 3_600_000,
                "sha256": {"model.onnx": "ab" * 32},
                "operators": {"paths": {"function": 8}, "native_library": None},
                **identity,
            },
            "first_inference_ns": 30 * MS,
            "latencies_ns": list(ns),
            "latency": summarize(ns).to_json(),
            "verdict": verdict(ns, device="cpu").to_json(),
        }

    sides = [side("bundle", samples.a_ns, "tome:num_merged=5")]
    sides += [side("baseline", samples.b_ns, "none")] if baseline else []
    return {
        "document": "trt-compress bench",
        "result_version": "1.1",
        "protocol": {
            "kind": "closed loop, interleaved ABAB" if baseline else "closed loop",
            "backend": "ort-cpu",
            "threads": 1,
            "spinning": False,
            "batch": 4,
            "pairs": pairs,
            "warmup": 5,
            "inputs": "random, seed 0",
        },
        "sides": sides,
        "speedup": speedup(samples.a_ns, samples.b_ns).to_json() if baseline else None,
        "quality": {"logits": {"n": 4, "max_abs": 0.5, "cosine": 0.99, "top1_agreement": 0.75}} if baseline else None,
        "device": {"cpu": "AMD EPYC", "cores": 2},
        "versions": {"trt-compress": "0.1.0"},
    }


@pytest.fixture
def bench_file(tmp_path: Path) -> Callable[..., Path]:
    """Write the result of a benchmark; its options are those of `bench_json`."""

    def write(file: str, **options: Any) -> Path:
        path = tmp_path / file
        path.write_text(json.dumps(bench_json(**options)))
        return path

    return write


@pytest.fixture
def make_bench() -> Callable[..., dict[str, Any]]:
    """Make what `trt-compress bench --json` writes; its options are those of `bench_json`."""
    return bench_json


@pytest.fixture
def power() -> PowerResult:
    """40 s of an AGX Orin under load after 10 s of idle: 20 W in all, 8 W of it idle, and a rail that nobody knows."""
    idle = {"VDD_GPU_SOC": 3000.0, "VDD_CPU_CV": 1000.0, "VIN_SYS_5V0": 4000.0, "VDD_NEW": 100.0}
    load = {"VDD_GPU_SOC": 11000.0, "VDD_CPU_CV": 4000.0, "VIN_SYS_5V0": 5000.0, "VDD_NEW": 300.0}
    taken = [RailSamples(time_ns=t * 100 * MS, values=idle if t < 100 else load) for t in range(501)]
    second = 1000 * MS
    return power_result(
        Trace(PowerSource(name="ina", quantity="power_mw"), taken),
        idle_ns=(0, 9 * second),
        window_ns=(10 * second, 50 * second),
        num_inferences=1000,
    )
