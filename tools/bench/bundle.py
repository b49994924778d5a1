"""Time a bundle, and its baseline beside it in the same process and run."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from trt_compress.digest import as_digests
from trt_compress.errors import ConfigError, GateError
from trt_compress.export.int8_form import INT8
from trt_compress.foreign import refusals_said
from trt_compress.format.bundle import Bundle
from trt_compress.format.manifest import Manifest, TensorInfo
from trt_compress.paths import check_archive
from trt_compress.runtime.measure.latency import interleave, speedup, summarize, verdict
from trt_compress.runtime.seeded import load_inputs, random_inputs
from trt_compress.runtime.sequences import graphs_for
from trt_compress.runtime.session import Session
from trt_compress.tools.bench.result import (
    ROLES,
    Array,
    BenchResult,
    Device,
    Point,
    Side,
    compare_outputs,
    identity,
    operators_run,
)
from trt_compress.tools.bench.sequences import TokenPlan, make_plan, time_plan
from trt_compress.tools.machine import cpu_cores, describe_device, package_versions


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
    pairs: int | None = None,
    warmup: int | None = None,
    inputs: str | Path | None = None,
    seed: int = 0,
    native: bool | str | Path | None = None,
    workload: str | Sequence[str] | None = None,
    fill: int | Sequence[int] | None = None,
    context: int | None = None,
    new: int | None = None,
    require_digest: str | Collection[str] | None = None,
    progress: Callable[[str], None] = lambda step: None,
) -> BenchResult:
    """Time a bundle; with a baseline, both in one interleaved run on the same inputs.

    Of a bundle that reads tokens, prompts and steps are timed apart, at each fill, on seeded random tokens.

    Args:
        bundle: What is measured.
        baseline: The uncompressed bundle of the same model, or the same bundle with another graph.
        graph: The graph of the bundle that is measured; None: all of them, one after the other.
        baseline_graph: The same of the baseline.
        backend: As `Session.open` takes it.
        batch: Batch size of the random inputs; None is the bundle's own.
        threads: As `Session.open` takes it; beside a baseline None means one for each core.
        pairs: Timed runs of each side; None is 64, of prompts 15.
        warmup: Runs of each side before them; None is 5, of prompts 1.
        inputs: An .npz file of arrays by input name, instead of random ones.
        seed: Of the random inputs.
        native: As `Session.open` takes it; what ran is in the result.
        workload: What is timed of a bundle that reads tokens: "prefill", "decode", or both; None is both.
        fill: How many tokens a prompt has, or stand before the steps, one number or several; None: 128, 2048, 8192 and
            32768, as far as they go into the context.
        context: The most tokens of a sequence; None: what the bundle allows, and fills of at most 2048.
        new: Timed steps at each fill; None is 64.
        require_digest: The digest that the bundle must have; with more than one bundle several, of which each must have
            one. As `Bundle.open` takes it.
        progress: Is told the name of each step.

    Raises:
        ConfigError: A number out of range, inputs that do not fit, a baseline that takes other inputs, or workloads of
            a bundle that reads no tokens.
        GateError: An output is not finite, so its latency means nothing.
    """
    if batch is not None and (batch < 1 or inputs is not None):
        what = "give at least 1" if batch < 1 else "the arrays of --inputs have their own; leave one of the two out"
        raise ConfigError(f"batch={batch}; {what}.")
    if (pairs is not None and pairs < 1) or (warmup is not None and warmup < 0) or seed < 0:
        raise ConfigError(f"pairs={pairs}, warmup={warmup}, seed={seed}; give pairs >= 1, warmup >= 0 and seed >= 0.")
    if inputs is not None:
        check_archive(Path(inputs))
    required = as_digests(require_digest)
    progress("opening")
    if baseline is None and baseline_graph is not None:
        baseline = bundle
    paths = [path for path in (bundle, baseline) if path is not None]
    chosen = [None if name is None else [name] for name in (graph, baseline_graph)]
    manifests = []
    for path, graphs in zip(paths, chosen, strict=False):  # all of them before any library is loaded
        manifests.append(Bundle.open(path, check_hashes=False, require_digest=required).manifest)
        for name in graphs or ():
            manifests[-1].graph(name)
    plan = make_plan(
        manifests,
        workload=workload,
        fill=fill,
        context=context,
        new=new,
        pairs=pairs,
        warmup=warmup,
        batch=batch,
        seed=seed,
        whole=graph is None and baseline_graph is None,
        inputs=inputs is not None,
    )
    _check_comparable(manifests[0], manifests[-1], precision=plan is None)
    spin = len(paths) == 1
    if threads is None and not spin:
        threads = cpu_cores()  # a number of its own choice ONNX Runtime would pin, both sessions to the same cores
    if plan is not None:
        chosen = [graphs_for(manifest) for manifest in manifests]
    sessions = [
        Session.open(
            path, backend=backend, threads=threads, spin=spin, native=native, graphs=graphs, require_digest=required
        )
        for path, graphs in zip(paths, chosen, strict=False)
    ]
    device: Device = "cpu" if backend == "ort-cpu" else "gpu"
    if plan is not None:
        started_at = _now()
        points, quality = time_plan(plan, sessions, device, progress)
        how = {"backend": backend, "threads": threads, "spinning": spin}
        return _result_of_points(points, plan, sessions, quality, how, started_at)
    pairs, warmup = 64 if pairs is None else pairs, 5 if warmup is None else warmup
    first = sessions[0]
    if first.inputs != sessions[-1].inputs:
        raise ConfigError(
            f"The baseline takes {_signature(sessions[-1])} and the bundle {_signature(first)}; "
            "compare bundles of the same model and precision."
        )
    size = batch or first.bundle.manifest.batch.opt
    feed = load_inputs(Path(inputs)) if inputs is not None else random_inputs(first, size, seed)
    calls = [repeated(session, feed) for session in sessions]
    progress("checking the outputs")
    firsts = [_first_run(session, feed) for session in sessions]
    if _batch(first.inputs, feed) == 0:
        raise ConfigError("The arrays of --inputs hold no item; give at least one.")
    progress(f"{pairs} pairs" if baseline is not None else f"{pairs} runs")
    started_at = _now()
    samples = interleave(calls[0], calls[1] if baseline is not None else None, warmup=warmup, pairs=pairs)
    timed = zip(ROLES, sessions, firsts, (samples.a_ns, samples.b_ns), strict=False)
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
        sides=tuple(
            Side(
                role=role,
                identity=_identity(session),
                first_inference_ns=first.ns,
                latencies_ns=ns,
                latency=summarize(ns),
                verdict=verdict(ns, device=device),
            )
            for role, session, first, ns in timed
        ),
        speedup=speedup(samples.a_ns, samples.b_ns) if baseline is not None else None,
        quality=compare_outputs(firsts[0].outputs, firsts[1].outputs) if baseline is not None else None,
        device=describe_device(),
        versions=package_versions(),
        started_at=started_at,
    )


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _result_of_points(
    points: Sequence[Point],
    plan: TokenPlan,
    sessions: Sequence[Session],
    quality: dict[str, dict[str, float | int]] | None,
    how: Mapping[str, Any],
    started_at: str,
) -> BenchResult:
    """The result of a run that read tokens: its last point stands for it."""
    last = points[-1]
    return BenchResult(
        protocol={
            "kind": "closed loop, interleaved ABAB" if len(sessions) > 1 else "closed loop",
            **how,
            **plan.to_json(last.workload, last.fill),
        },
        sides=tuple(
            Side(
                role=side.role,
                identity=_identity(session),
                first_inference_ns=side.first_ns,
                latencies_ns=side.latencies_ns,
                latency=side.latency,
                verdict=side.verdict,
            )
            for side, session in zip(last.sides, sessions, strict=True)
        ),
        speedup=last.speedup,
        quality=quality,
        device=describe_device(),
        versions=package_versions(),
        started_at=started_at,
        points=tuple(points),
    )


def _check_comparable(ours: Manifest, baseline: Manifest, *, precision: bool) -> None:
    """Refuse a baseline that differs in more than its compression, and in precision if this is asked for.

    INT8 stands beside any floating point: which of them pays is what is asked.
    """
    for what in ("source", "weights"):
        mine, theirs = getattr(ours.model, what), getattr(baseline.model, what)
        if mine != theirs:
            shown = [value if isinstance(value, str) else f"weights {value.source}" for value in (mine, theirs)]
            raise ConfigError(f"The bundle has {shown[0]} and the baseline {shown[1]}; compare bundles of one model.")
    if precision and ours.precision != baseline.precision and INT8 not in (ours.precision, baseline.precision):
        raise ConfigError(
            f"The bundle is {ours.precision} and the baseline {baseline.precision}; export both in one precision."
        )


def _identity(session: Session) -> dict[str, Any]:
    return {
        **identity(session.bundle.manifest),
        "graphs": list(session.graphs),
        "operators": operators_run(session),
    }


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


def _batch(inputs: Mapping[str, TensorInfo], feed: Mapping[str, Array]) -> int | None:
    for name, info in inputs.items():
        if "batch" in info.shape:
            return int(feed[name].shape[info.shape.index("batch")])
    return None


def _signature(session: Session) -> str:
    return ", ".join(f"{name} {info.dtype} {list(info.shape)}" for name, info in session.inputs.items())
