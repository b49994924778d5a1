"""Tune a model for this device: first look, staircase, search, measurement, confirmation.

What measures is `sweep` (every setting with `random` beside it, in one interleaved run), `bench` and `evaluate` (the
best few once more, beside dense); here is what to measure, and what is taken or refused.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trt_compress.errors import ConfigError, GateError, TrtCompressError
from trt_compress.export.bundle import write_bundle
from trt_compress.export.needs import EXPORT_NEEDS, require_modules
from trt_compress.export.recipe import recipe_from_json
from trt_compress.files import read_regular, write_whole
from trt_compress.foreign import refusals_said
from trt_compress.format.bundle import Bundle
from trt_compress.paths import check_new_folder
from trt_compress.runtime.evaluate import classifier_of, refuse_detector
from trt_compress.runtime.labelled.data import LabelledData, limited
from trt_compress.runtime.session import Session
from trt_compress.strays import beside, remove_tree
from trt_compress.tools.evaluate import Progress, open_for
from trt_compress.tools.machine import describe_device, package_versions
from trt_compress.tools.sweep.result import SweepResult
from trt_compress.tools.sweep.run import sweep
from trt_compress.tools.tune.asked import SampleParts, TuneRequest, options_of, read_asked
from trt_compress.tools.tune.confirm import advice_of, confirm
from trt_compress.tools.tune.result import TuneResult
from trt_compress.tools.tune.schedule import Shape, left_behind, spec_of, starts

if TYPE_CHECKING:
    from trt_compress.models.hosts.base import LoadedHost
    from trt_compress.runtime.evaluate import Classifier
    from trt_compress.tools.tune.judge import Judge
    from trt_compress.tools.tune.search import Trial
    from trt_compress.tools.tune.staircase import Staircase

TRIALS_FILE, STAIRCASE_FILE, LOOK_FILE = "trials.jsonl", "staircase.json", "look.json"
RESULT_FILE, PAGE_FILE, RECIPE_FILE = "tune.json", "tune.html", "recipe.toml"
BUNDLE, DENSE = "bundle", "dense"
_LOOKS = 15  # rounds of the first look
_DARING = 0.25  # of the finalists, the share that lost too much in the search, whose samples are few


@dataclass(frozen=True, slots=True, kw_only=True)
class _Look:
    """What the first look measured: what a search predicts with, and what stays so for all its trials.

    Attributes:
        dense: The dense bundle.
        dense_ns: What a run of it takes.
        own_ns: What each method itself takes at a layer, beside what the staircase says.
    """

    dense: Path
    dense_ns: float
    own_ns: Mapping[str, float]


@refusals_said()
def tune(
    model: str,
    *,
    output: str | Path,
    compress: str | Sequence[str] | None = None,
    budget: str | None = None,
    precision: str | Sequence[str] | None = None,
    data: str | Path | None = None,
    labels: str | Path | None = None,
    classes: str | Path | None = None,
    min_gain: float = 1.02,
    trials: int = 64,
    finalists: int = 5,
    samples: int = 64,
    batch: int = 1,
    rounds: int | None = None,
    warmup: int = 5,
    threads: int | None = None,
    limit: int | None = None,
    seed: int = 0,
    resample: bool = False,
    native: bool | None = None,
    resume: bool = False,
    trust_paths: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> TuneResult:
    """Find the method, the schedule and the precision that are fastest on this device within a budget.

    Args:
        model: As `export_model` takes it.
        output: Directory for bundles, trials and the result.
        compress: Methods whose schedule is searched, with the options that stay; None: every one that fits.
        budget: Limits as `evaluate` and `compare` take them, of `tune.result.METRICS`; without one of the answers
            `accuracy_drop<=1` holds.
        precision: One or several of fp32, fp16 and int8; schedules are searched in the first, and its dense model is
            what everything is held against. None: that of the recipe, fp32 without one.
        data: As `evaluate` takes it; None of a model of the zoo: its held-out data.
        labels: The same.
        classes: The same.
        min_gain: How many times as fast as dense a setting must be at least, by its whole 95 % interval.
        trials: Schedules that are tried in PyTorch and by the staircase.
        finalists: Of these, how many are exported and measured.
        samples: Samples of the data that the search compares with dense.
        batch: Samples of a timed run.
        rounds: Timed runs of each setting; None: 64, or what a percentile in the budget takes.
        warmup: Runs of each before them.
        threads: Threads of each session; None: one for each core.
        limit: At most so many samples of the data.
        seed: Of the search.
        resample: As `evaluate` takes it.
        native: As `Session.open` takes it.
        resume: Go on with what is in `output`.
        trust_paths: As `export_model` takes it.
        progress: Called with the name of each step.
        **options: What else `sweep` takes of an export, as `export_model` takes it: `weights`, `weights_bits`, and for
            int8 among the precisions `int8`, `calibrate`, `int8_share`, `keep_precision` and `int8_rest`.

    Returns:
        The result, with a winner.

    Raises:
        ConfigError: Something that was given does not fit.
        GateError: No setting is taken; `report` is the result, and the dense bundle is in `output`.
    """
    say = progress or (lambda text: None)
    asked = read_asked(
        model,
        compress=compress,
        budget=budget,
        precision=precision,
        data={"data": data, "labels": labels, "classes": classes, "resample": resample},
        options=options,
        min_gain=min_gain,
        trials=trials,
        finalists=finalists,
        samples=samples,
        batch=batch,
        rounds=rounds,
        warmup=warmup,
        threads=threads,
        limit=limit,
        seed=seed,
        native=native,
        trust_paths=trust_paths,
        folder=Path(output),
    )
    kept = asked.folder / TRIALS_FILE
    if kept.exists() and not resume:
        raise ConfigError(f"-o: '{output}' holds a tuning already; give --resume to go on with it, or another folder.")
    for there in (asked.folder / BUNDLE, asked.folder / DENSE):
        if there.exists() and not kept.exists():
            raise ConfigError(f"-o: '{there}' is there and of no tuning, and would be replaced; give another folder.")
    from trt_compress.tools.tune.search import begin_trials, read_trials

    before = read_trials(kept, asked.to_json()) if kept.exists() else []
    check_new_folder(asked.folder, "-o")
    require_modules(*EXPORT_NEEDS)
    require_modules("optuna")
    started_at = datetime.now(timezone.utc).isoformat(timespec="milliseconds")

    from trt_compress.models.hosts.registry import load_host
    from trt_compress.tools.tune.judge import Judge, shape_of
    from trt_compress.tools.tune.search import front

    say("loading the model")
    base = asked.recipes[asked.base]
    host = load_host(base.model, weights=base.weights, model_sha256=base.model_sha256)
    refuse_detector(model, host.postprocess)
    if host.weights.source.startswith("random"):
        raise ConfigError(
            f"The weights of {model} are random, so its answers mean nothing and no budget can be held to them; give "
            "--weights FILE."
        )
    shape = shape_of(host)
    methods, misfits = _fitting(asked, host, shape)
    asked.folder.mkdir(parents=True, exist_ok=True)
    if not kept.exists():
        begin_trials(kept, asked.to_json())
    steps = _staircase(asked, host, shape, say)
    look = _looked(asked, shape, methods, steps, say)
    data_searched, parts, classifier = _parted(asked, look)
    say("search: dense's answers")
    judge = Judge(host, data_searched, classifier)
    found = _searched(asked, shape, methods, steps, look, judge, before, say)
    best = front(found)
    if not best:
        raise GateError(
            f"None of the {len(found)} schedules that were tried can be judged; the first: {found[0].refused}",
            hint="Give another method to --compress, or more --trials.",
        )
    drops = {trial.spec: judge.drop_points(trial.spec) for trial in best}
    chosen_trials = _chosen(best, drops, asked, look)
    if not chosen_trials:
        chosen_trials = best[:1]  # it is measured all the same: a prediction is no measurement
    specs = [trial.spec for trial in chosen_trials]
    sweeps: dict[str, SweepResult] = {}
    for precision_name in asked.recipes:
        sweeps[precision_name] = _sweep(
            asked,
            precision_name,
            specs,
            rounds=asked.rounds,
            apart=parts.searched if parts.apart else 0,
            say=_titled(say, precision_name),
        )
    confirmed, refused = confirm(asked, sweeps, parts, say)
    winner = next((one for one in confirmed if one.reason is None), None)
    dense = sweeps[asked.base].dense.bundle
    assert dense is not None
    target = asked.folder / (BUNDLE if winner is not None else DENSE)
    chosen = Path(dense if winner is None else str(winner.row.bundle))
    _put(chosen, target, instead_of=asked.folder / (DENSE if winner is not None else BUNDLE))
    result = TuneResult(
        started_at=started_at,
        request={
            **asked.to_json(),
            "budget": [str(one) for one in asked.limits],
            "min_gain": min_gain,
            **{name: None if value is None else str(value) for name, value in asked.options.items()},
            "precisions": list(asked.recipes),
            "rounds": asked.rounds,
            "finalists": finalists,
        },
        samples={**asdict(parts), "said": parts.sentence()},
        staircase=steps.to_json(),
        trials=len(found),
        front=tuple(_front_json(trial, shape, drops[trial.spec]) for trial in best),
        tokens={trial.spec: (shape.tokens, *trial.left) for trial in chosen_trials},
        sweeps=sweeps,
        misfits=tuple(misfits),
        confirmed=tuple(confirmed),
        refused=tuple(refused),
        winner=winner,
        bundle=str(target),
        advice=tuple(advice_of(asked, sweeps, confirmed, winner, target)),
        device=describe_device(),
        versions=package_versions(),
    )
    recipe = recipe_from_json(Bundle.open(target).manifest.recipe, where="the bundle's recipe")
    write_whole(asked.folder / RECIPE_FILE, recipe.to_toml())
    write_whole(asked.folder / RESULT_FILE, json.dumps(result.to_json(), indent=2, allow_nan=False) + "\n")
    from trt_compress.tools.tune.page import page_from_tune

    write_whole(asked.folder / PAGE_FILE, page_from_tune(result))
    if winner is None:
        raise GateError(result.advice[0], hint=" ".join(result.advice[1:]) or None, report=result)
    return result


def _fitting(
    asked: TuneRequest, host: "LoadedHost", shape: Shape
) -> tuple[dict[str, Mapping[str, Any]], list[tuple[str, str]]]:
    """The methods that fit the model, and why the others do not."""
    from trt_compress.tools.tune.judge import only_graph

    methods: dict[str, Mapping[str, Any]] = {}
    misfits = []
    for method, own in asked.methods.items():
        try:
            only_graph(host, _spec(asked.methods, method, shape, starts(shape)[1]))
            methods[method] = own
        except TrtCompressError as error:
            misfits.append((method, error.message))
    if not methods:
        reasons = " ".join(f"{method}: {reason}" for method, reason in misfits[:3])
        raise ConfigError(f"No method fits {asked.model}. {reasons}")
    return methods, misfits


def _spec(methods: Mapping[str, Mapping[str, Any]], method: str, shape: Shape, removed: Sequence[int]) -> str:
    return spec_of(method.partition(":")[0], methods[method], shape, left_behind(shape, removed))


def _staircase(asked: TuneRequest, host: "LoadedHost", shape: Shape, say: Progress) -> "Staircase":
    """What a layer takes here; that of an interrupted tuning stays."""
    from trt_compress.strays import temporary_folder
    from trt_compress.tools.tune.judge import only_graph
    from trt_compress.tools.tune.measure_block import staircase as measure
    from trt_compress.tools.tune.staircase import from_latencies, request_of, write_block

    path = asked.folder / STAIRCASE_FILE
    if path.exists():
        try:
            kept = json.loads(read_regular(path))
            return from_latencies(kept, kept["request"]["counts"], batch=asked.batch)
        except (OSError, ValueError, KeyError, TypeError, IndexError):
            raise ConfigError(f"'{path}' is no staircase; remove it, and it is measured again.") from None
    with temporary_folder("tune") as folder:
        say("staircase: exporting a layer")
        recipe = asked.recipes[asked.base]
        width = write_block(only_graph(host), folder, opset=recipe.opset, max_batch=recipe.batch.max)
        request = request_of(shape, width=width, batch=asked.batch, threads=asked.threads, backend="ort-cpu")
        found = {"request": request, **measure(folder, request, _titled(say, "staircase"))}
    write_whole(path, json.dumps(found))
    return from_latencies(found, request["counts"], batch=asked.batch)


def _sweep(
    asked: TuneRequest,
    precision: str,
    specs: Sequence[str],
    *,
    rounds: int,
    say: Progress,
    limit: int | None = None,
    apart: int = 0,
) -> SweepResult:
    """Measure settings in one precision; bundles of before are taken again."""
    found = sweep(
        asked.model,
        data=asked.data["data"],
        labels=asked.data["labels"],
        classes=asked.data["classes"],
        resample=bool(asked.data["resample"]),
        compress=list(specs),
        output=asked.folder / "settings" / precision,
        batch=asked.batch,
        rounds=rounds,
        warmup=asked.warmup,
        threads=asked.threads,
        limit=limit or asked.limit,
        apart=apart,
        native=asked.native,
        trust_paths=asked.trust_paths,
        progress=say,
        **options_of(asked.options, precision),
    )
    if found.interrupted:
        raise KeyboardInterrupt
    return found


def _looked(
    asked: TuneRequest,
    shape: Shape,
    methods: Mapping[str, Mapping[str, Any]],
    steps: "Staircase",
    say: Progress,
) -> _Look:
    """What dense and one schedule of each method take; that of an interrupted tuning stays, as its trials do."""
    path, dense = asked.folder / LOOK_FILE, asked.folder / "settings" / asked.base / "dense"
    if path.exists() and dense.exists():
        try:
            kept = json.loads(read_regular(path))
            return _Look(
                dense=dense,
                dense_ns=float(kept["dense_ns"]),
                own_ns={method: float(kept["own_ns"][method]) for method in methods},
            )
        except (OSError, ValueError, KeyError, TypeError):
            raise ConfigError(f"'{path}' is no first look; remove it, and it is measured again.") from None
    specs = [_spec(methods, method, shape, starts(shape)[1]) for method in methods]
    found = _sweep(
        asked,
        asked.base,
        specs,
        rounds=_LOOKS,
        limit=min(asked.samples, asked.limit or asked.samples),
        say=_titled(say, "first look"),
    )
    assert found.dense.latency is not None
    dense_ns = found.dense.latency.min_ns  # what else runs here slows some rounds and speeds up none
    own = _own_ns(found, shape, methods, steps, dense_ns)
    write_whole(path, json.dumps({"dense_ns": dense_ns, "own_ns": own}, indent=2) + "\n")
    return _Look(dense=Path(str(found.dense.bundle)), dense_ns=dense_ns, own_ns=own)


def _parted(asked: TuneRequest, look: _Look) -> "tuple[LabelledData, SampleParts, Classifier | None]":
    """The samples that the search looks at; none of them is scored later, if at least as many others are there."""
    with Session.open(look.dense) as session:
        classifier = classifier_of(session.bundle.manifest, session.outputs)
        data = limited(open_for(session, asked.request, classifier), asked.limit)
    searched, total = min(asked.samples, len(data.samples)), len(data.samples)
    apart = total >= 2 * searched
    samples = SampleParts(searched=searched, scored=total - searched if apart else total, apart=apart)
    return limited(data, searched), samples, classifier


def _searched(
    asked: TuneRequest,
    shape: Shape,
    methods: Mapping[str, Mapping[str, Any]],
    steps: "Staircase",
    look: _Look,
    judge: "Judge",
    before: "Sequence[Trial]",
    say: Progress,
) -> "list[Trial]":
    """Try schedules: what the staircase says that they take, and how far their answers are from dense's."""
    from trt_compress.tools.tune.search import keep_trial, search

    def score(method: str, spec: str, left: Sequence[int]) -> tuple[float, float]:
        acting = sum(after < old for old, after in zip((shape.tokens, *left[:-1]), left, strict=True))
        return look.dense_ns - steps.saved_ns(shape, left) + look.own_ns[method] * acting, judge.distance(spec)

    return search(
        methods,
        shape,
        score,
        trials=asked.trials,
        seed=asked.seed,
        kept=before,
        keep=lambda trial: keep_trial(asked.folder / TRIALS_FILE, trial),
        say=_titled(say, "search"),
    )


def _own_ns(
    look: SweepResult,
    shape: Shape,
    methods: Mapping[str, Mapping[str, Any]],
    steps: "Staircase",
    dense_ns: float,
) -> dict[str, float]:
    """What each method itself takes at a layer: what the first look took more than the staircase says."""
    left = left_behind(shape, starts(shape)[1])
    acting = sum(after < old for old, after in zip((shape.tokens, *left[:-1]), left, strict=True))
    found = {}
    for method in methods:
        spec = _spec(methods, method, shape, starts(shape)[1])
        row = next((row for row in look.rows if row.spec == spec), None)
        taken = None if row is None or row.latency is None else row.latency.min_ns
        expected = dense_ns - steps.saved_ns(shape, left)
        found[method] = 0.0 if taken is None or not acting else (taken - expected) / acting
    return found


def _chosen(
    best: "Sequence[Trial]", drops: Mapping[str, float | None], asked: TuneRequest, look: _Look
) -> "list[Trial]":
    """Trials to measure: of those that may be fast enough, some that lie evenly over what they are said to take.

    Most of them lost no more than they may on the samples of the search; a few that lost a little more are tried too,
    the next faster ones: those samples are few.
    """
    most = [limit.value for limit in asked.limits if limit.metric.lower() == "accuracy_drop" and limit.relation == "<="]
    fast = [trial for trial in best if trial.predicted_ns is not None and trial.predicted_ns <= look.dense_ns]

    def keeps(trial: "Trial") -> bool:
        drop = drops[trial.spec]
        return drop is None or not most or drop <= min(most)

    good = [trial for trial in fast if keeps(trial)]
    bad = [trial for trial in fast if not keeps(trial)]
    share = math.ceil(asked.finalists * _DARING) if asked.finalists > 1 else 0
    few = min(max(share, asked.finalists - len(good)), len(bad))
    return [*bad[len(bad) - few :], *_evenly(good, asked.finalists - few)]


def _evenly(trials: "Sequence[Trial]", count: int) -> "list[Trial]":
    """So many of a row, the first and the last among them."""
    if len(trials) <= count:
        return list(trials)
    return [trials[round(step * (len(trials) - 1) / max(count - 1, 1))] for step in range(count)]


def _front_json(trial: "Trial", shape: Shape, drop: float | None) -> dict[str, Any]:
    assert trial.predicted_ns is not None
    return {
        "trial": trial.number,
        "method": trial.method,
        "spec": trial.spec,
        "tokens": [shape.tokens, *trial.left],
        "predicted_ms": trial.predicted_ns / 1e6,
        "distance": trial.loss,
        "drop_points": drop,
    }


def _put(bundle: Path, target: Path, *, instead_of: Path) -> None:
    """Put a copy of a bundle in its place, in one step, and remove the one that an earlier end left of the other kind.

    Raises:
        BundleError: It cannot be written.
    """
    opened = Bundle.open(bundle)
    write_bundle(target, opened.manifest, {name: opened.chunks(name) for name in opened.manifest.files}, force=True)
    if instead_of.is_dir():
        gone = beside(instead_of.resolve(), "new")  # a name that a later run clears away, should a kill come meanwhile
        instead_of.rename(gone)
        remove_tree(gone)


def _titled(say: Progress, title: str) -> Progress:
    return lambda text: say(f"{title}: {text}")
