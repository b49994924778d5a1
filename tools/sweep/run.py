"""Do a sweep: export every setting, judge all on the same data, time all in one interleaved run.

What is done is kept: after each setting the result so far is written, and bundles of an earlier sweep in the same
folder are taken again where they are of the same model, weights and version.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trt_compress.digest import sha256
from trt_compress.errors import BundleError, ConfigError, TrtCompressError
from trt_compress.export.api import check_int8, export_model
from trt_compress.export.needs import EXPORT_NEEDS, require_modules
from trt_compress.export.recipe import Recipe, recipe_from_json, recipe_from_options
from trt_compress.export.trust import trusted
from trt_compress.files import write_whole
from trt_compress.foreign import refusals_said
from trt_compress.format.bundle import Bundle
from trt_compress.format.manifest import Manifest
from trt_compress.methods import parse_spec
from trt_compress.models.hosts.catalog import check_model
from trt_compress.paths import check_new_folder
from trt_compress.runtime.evaluate import (
    Answers,
    Classifier,
    Collected,
    Integers,
    Scores,
    classifier_of,
    collect,
    judge,
    refuse_detector,
)
from trt_compress.runtime.labelled.data import Array, LabelledData, limited, remembered, without
from trt_compress.runtime.labelled.open import Request
from trt_compress.runtime.measure.latency import interleave_many, speedup, summarize, verdict
from trt_compress.runtime.proportion import Difference, difference
from trt_compress.runtime.session import Session
from trt_compress.strays import temporary_folder
from trt_compress.tools.bench.bundle import repeated
from trt_compress.tools.evaluate import (
    Progress,
    check_numbers,
    counted,
    describe_data,
    names_of,
    open_for,
    request_of,
)
from trt_compress.tools.held_out import check_held_out
from trt_compress.tools.machine import cpu_cores, describe_device, package_versions
from trt_compress.tools.sweep.result import Measure, Row, SweepResult, recommend, words_of
from trt_compress.tools.sweep.settings import Setting, check_limits, expand_all, plan_sweep
from trt_compress.version import __version__

if TYPE_CHECKING:
    from trt_compress.models.hosts.base import LoadedHost

RESULT_FILE = "sweep.json"
_LARGEST_BATCH = 8
_MOST_BYTES = 4 << 30  # of graphs and weights that are open at once while they are timed
_LONGEST_NAME = 40
_RANDOM_WEIGHTS = (
    "The weights of {} are random, so its answers mean nothing and no setting can be recommended; only FLOPs and "
    "latency count. Give --weights FILE."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """The model as the user gave it, and what it is."""

    model: str
    options: Mapping[str, Any]
    recipe: Recipe
    host: "LoadedHost"
    trust_paths: bool


@dataclass(slots=True, kw_only=True)
class _Done:
    """What has been found so far."""

    rows: list[Row] = field(default_factory=list)
    answers: dict[str, Answers] = field(default_factory=dict)
    bundles: dict[str, Path] = field(default_factory=dict)
    labels: Integers | None = None
    failures: tuple[tuple[str, str], ...] = ()
    failed: list[tuple[str, str]] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    measure: Measure = "accuracy"
    interrupted: bool = False
    runs: int = 0


@refusals_said()
def sweep(
    model: str,
    *,
    data: str | Path | None = None,
    labels: str | Path | None = None,
    classes: str | Path | None = None,
    compress: str | Sequence[str] | None = None,
    output: str | Path | None = None,
    max_drop: float = 1.0,
    random: bool = True,
    batch: int = 1,
    rounds: int = 64,
    warmup: int = 5,
    threads: int | None = None,
    limit: int | None = None,
    apart: int = 0,
    resample: bool = False,
    native: bool | None = None,
    trust_paths: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> SweepResult:
    """Find out which compressor a model bears, and how much of it.

    Args:
        model: As `export_model` takes it.
        data: As `evaluate` takes it.
        labels: The same.
        classes: The same.
        compress: Spec strings; a value may be a range, `tome:num_merged=2|4|8`. None: those of a recipe, else every
            method that fits the model at three levels.
        output: Directory that keeps the bundles and `sweep.json`; None: nothing is kept.
        max_drop: Points that a recommended setting may lose: of accuracy, without labels of agreement with dense.
        random: Put `random` with as many tokens beside each setting.
        batch: Samples of a timed run.
        rounds: Timed runs of each setting.
        warmup: Runs of each before them.
        threads: Threads of each session while it is timed; None: one for each core.
        limit: At most so many samples, evenly spread over the data.
        apart: Of these, so many are left out, evenly spread: those that `tune` has searched with.
        resample: As `evaluate` takes it.
        native: As `Session.open` takes it.
        trust_paths: As `export_model` takes it.
        progress: Called with the name of each step.
        **options: `weights`, `precision`, `weights_bits`, `int8`, `calibrate`, `int8_share`, `keep_precision` and
            `int8_rest`, as `export_model` takes them.

    Returns:
        The result; after an interruption (Ctrl-C) what was done until then, if dense was judged, with `interrupted`.

    Raises:
        ConfigError: A setting or an option is wrong, or the data cannot be read.
        TrtCompressError: The uncompressed model cannot be exported; a setting that fails is only listed.
    """
    say = progress or (lambda text: None)
    texts = [compress] if isinstance(compress, str) else list(compress or ())
    specs = expand_all(texts)
    request = request_of(data, labels, classes, resample=resample)
    check_numbers(batch=batch, rounds=rounds, threads=threads, limit=limit)
    check_limits(max_drop=max_drop, warmup=warmup)
    recipe = recipe_from_options(model, **options, batch=_batches(batch))
    if texts and not specs:
        raise ConfigError("Only 'none' was given, and dense is measured anyway; name a setting, or leave it out.")
    if not texts and recipe.compressors:
        specs = (recipe.spec,)
    if not trust_paths:
        given = {
            "weights": options.get("weights"),
            "compressors": texts or None,
            "calibrate": options.get("calibrate"),
        }
        recipe = trusted(model, recipe, named=[name for name, value in given.items() if value is not None])
    check_int8(recipe)
    check_model(recipe.model, recipe.weights)
    for spec in specs:
        for part in parse_spec(spec):
            part.read()
    if request is None:
        check_held_out(recipe.model)
    if output is not None:
        check_new_folder(Path(output), "-o")
    require_modules(*EXPORT_NEEDS)
    started_at = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    done = _Done()
    with _folder(output) as folder:
        from trt_compress.models.hosts.registry import load_host

        say("loading the model")
        host = load_host(recipe.model, weights=recipe.weights, model_sha256=recipe.model_sha256)
        refuse_detector(model, host.postprocess)
        source = _Source(
            model=model,
            options=options,
            recipe=recipe,
            host=host,
            trust_paths=trust_paths,
        )
        plan = plan_sweep(host, specs, random=random)
        if not any(setting.kind == "asked" for setting in plan.settings):
            raise ConfigError(_nothing_fits(plan.misfits, model))
        info = {"source": host.source, "weights": host.weights.source, "precision": recipe.numbers}
        protocol: dict[str, Any] = {
            "kind": f"closed loop, all {len(plan.settings)} settings in turns",
            "backend": "ort-cpu",
            "threads": threads or cpu_cores(),
            "batch": batch,
            "rounds": rounds,
            "warmup": warmup,
            "inputs": "the first samples of the data",
            "interval": "95 %: Wilson's of shares, Agresti and Min's of changes, bootstrap of speed-ups",
        }

        def result() -> SweepResult:
            rows = _judged(done, max_drop)
            chosen, advice = recommend(rows, done.measure, max_drop)
            if host.weights.source.startswith("random"):
                chosen, advice = None, (_RANDOM_WEIGHTS.format(model),)
            return SweepResult(
                started_at=started_at,
                model=info,
                data=done.data,
                protocol={**protocol, "interleaved_runs": done.runs},
                rows=rows,
                misfits=(*plan.misfits, *done.failed),
                alone=plan.alone,
                failures=done.failures,
                measure=done.measure,
                max_drop=max_drop,
                recommended=chosen,
                advice=advice,
                interrupted=done.interrupted,
                device=describe_device(),
                versions=package_versions(),
            )

        keep = (lambda: write_result(result(), Path(output))) if output is not None else (lambda: None)
        try:
            judging = _Judging(done, native=native, threads=threads, limit=limit, apart=apart, request=request, say=say)
            for number, setting in enumerate(plan.settings, start=1):
                title = f"{number} of {len(plan.settings)}, {_title(setting)}"
                _do(setting, source, folder, judging, _titled(say, title))
                keep()
            _time(done, judging.feed(batch), rounds=rounds, warmup=warmup, threads=threads, native=native, say=say)
        except KeyboardInterrupt:
            if not done.rows:
                raise
            done.interrupted = True
        keep()
        found = result()
        return found if output is not None else replace(found, rows=tuple(replace(r, bundle=None) for r in found.rows))


def write_result(result: SweepResult, folder: Path) -> Path:
    """Write `sweep.json`, whole or not at all.

    Raises:
        ConfigError: It cannot be written.
    """
    path = folder / RESULT_FILE
    try:
        write_whole(path, json.dumps(result.to_json(), indent=2, allow_nan=False) + "\n")
    except OSError as error:
        raise ConfigError(f"'{path}' cannot be written ({error.strerror}); give another folder with -o.") from None
    return path


class _Judging:
    """Judges one setting after another on the same samples."""

    def __init__(
        self,
        done: _Done,
        *,
        native: bool | None,
        threads: int | None,
        limit: int | None,
        apart: int,
        request: Request | None,
        say: Progress,
    ) -> None:
        self.done, self._native, self._threads = done, native, threads
        self._limit, self._apart, self._request, self._say = limit, apart, request, say
        self._data: LabelledData | None = None
        self._classifier: Classifier | None = None

    def judge(self, setting: Setting, path: Path, say: Progress) -> Scores:
        """The scores of a bundle; the first one is dense, and says how the data are read."""
        done = self.done
        with ExitStack() as stack:

            def opened(bundle: Path) -> Session:
                session = Session.open(bundle, threads=self._threads, native=self._native)
                return stack.enter_context(session)

            session = opened(path)
            if self._data is None:
                self._classifier = classifier_of(session.bundle.manifest, session.outputs)
                data = limited(open_for(session, self._request, self._classifier), self._limit)
                self._data = remembered(without(data, self._apart))
                with_labels = self._classifier is not None and bool(data.num_labelled)
                done.measure = "accuracy" if with_labels else "agreement" if self._classifier is not None else "cosine"
            sessions = [session]
            if done.measure == "cosine" and setting.kind != "dense":
                sessions.append(opened(done.bundles["none"]))
            total = len(self._data.samples)
            found = collect(sessions, self._data, batch=_LARGEST_BATCH, progress=counted(say, total))
        return self._scores(setting, found)

    def feed(self, batch: int) -> dict[str, Array]:
        """The inputs of a timed run: the first samples that can be read, again from the first where they are few."""
        assert self._data is not None
        runs: list[Mapping[str, Array]] = []
        bad = {name for name, _ in self.done.failures}
        for sample in (sample for sample in self._data.samples if sample.name not in bad):
            runs.append(sample.load()[-1])
            if len(runs) == batch:
                break
        chosen = [runs[place % len(runs)] for place in range(batch)]
        with Session.open(self.done.bundles["none"]) as session:
            batched = {name for name, info in session.inputs.items() if isinstance(info.shape[0], str)}
        return {
            name: np.concatenate([run[name] for run in chosen]) if name in batched else chosen[0][name]
            for name in chosen[0]
        }

    def _scores(self, setting: Setting, found: Collected) -> Scores:
        done = self.done
        assert self._data is not None
        if setting.kind == "dense":
            done.labels, done.failures = found.labels, found.failures
            done.data = describe_data(self._data, len(found.names))
        done.answers[setting.spec] = found.answers[0]
        return judge(
            found.labels,
            found.answers[0],
            None if setting.kind == "dense" else done.answers["none"],
            outputs=found.outputs,
            class_names=names_of(self._data, self._classifier),
            num_classes=None if self._classifier is None else self._classifier.classes,
        )


def _do(setting: Setting, source: _Source, folder: Path, judging: _Judging, say: Progress) -> None:
    """Export and judge one setting; one that fails is noted, unless it is dense."""
    done = judging.done
    try:
        path, manifest = _exported(setting, source, folder, say)
        done.bundles[setting.spec] = path
        scores = judging.judge(setting, path, say)
    except TrtCompressError as error:
        if setting.kind == "dense":
            raise
        done.failed.append((setting.spec, error.message))
        return
    sites = manifest.compression
    first, last = (sites[0].tokens_in, sites[-1].tokens_out) if sites else (None, None)
    done.rows.append(
        Row(
            spec=setting.spec,
            kind=setting.kind,
            beside=setting.beside,
            bundle=str(path),
            tokens_in=first if isinstance(first, int) else None,
            tokens_out=last if isinstance(last, int) else None,
            flops=None if manifest.flops is None else float(manifest.flops["total"]),
            scores=scores,
        )
    )


def _exported(setting: Setting, source: _Source, folder: Path, say: Progress) -> tuple[Path, Manifest]:
    path = folder / _slug(setting.spec)
    if path.exists():
        try:
            kept = Bundle.open(path).manifest
        except BundleError:
            kept = None
        if kept is not None and _is_same(kept, setting, source):
            say("kept from before")
            return path, kept
    result = export_model(
        source.model,
        output=path,
        compress=setting.spec,
        batch=str(source.recipe.batch),
        force=True,
        trust_paths=source.trust_paths,
        progress=say,
        **source.options,
    )
    return path, result.manifest


def _is_same(manifest: Manifest, setting: Setting, source: _Source) -> bool:
    """Whether a bundle is what would be exported now."""
    kept, recipe, host = recipe_from_json(manifest.recipe, where="the bundle's recipe"), source.recipe, source.host
    return (
        kept.spec == setting.spec
        and manifest.model.source == host.source
        and manifest.model.weights.sha256 == host.weights.sha256
        and (kept.numbers, kept.calibrate, kept.int8_share, kept.keep_precision, kept.opset, kept.batch)
        == (recipe.numbers, recipe.calibrate, recipe.int8_share, recipe.keep_precision, recipe.opset, recipe.batch)
        and manifest.created_with.get("trt-compress") == __version__
    )


def _time(
    done: _Done,
    feed: dict[str, Array],
    *,
    rounds: int,
    warmup: int,
    threads: int | None,
    native: bool | None,
    say: Progress,
) -> None:
    """Time all bundles in turns, on the same real inputs; dense is in every run, if there must be several."""
    dense, others = done.rows[0], done.rows[1:]
    sizes = [_graph_bytes(done.bundles[row.spec]) for row in done.rows]
    timed: list[Row] = []
    groups = in_groups(sizes[1:], _MOST_BYTES - sizes[0])
    for number, group in enumerate(groups, start=1):
        part = f", run {number} of {len(groups)}" if len(groups) > 1 else ""
        rows = [dense, *(others[place] for place in group)]
        with ExitStack() as stack:
            calls: list[Callable[[], object]] = []
            for row in rows:
                session = Session.open(
                    done.bundles[row.spec],
                    threads=threads or cpu_cores(),
                    spin=False,
                    native=native,
                )
                calls.append(repeated(stack.enter_context(session), feed))
            tell = _titled(say, f"timing {len(rows)} settings in turns{part}")
            total = warmup + rounds
            latencies = interleave_many(calls, warmup=warmup, rounds=rounds, progress=_of_rounds(tell, total))
        found = [
            replace(
                row,
                latency=summarize(own),
                speedup=None if row.kind == "dense" else speedup(own, latencies[0]),
                timing=verdict(own, device="cpu"),
            )
            for row, own in zip(rows, latencies, strict=True)
        ]
        timed += found if number == 1 else found[1:]
    done.rows = timed
    done.runs = len(groups)


def in_groups(sizes: Sequence[int], most: int) -> list[list[int]]:
    """Places of what is open at once: as many as `most` bytes hold, in order, and at least one."""
    groups: list[list[int]] = [[]]
    left = most
    for place, size in enumerate(sizes):
        if groups[-1] and size > left:
            groups.append([])
            left = most
        groups[-1].append(place)
        left -= size
    return groups


def _graph_bytes(bundle: Path) -> int:
    manifest = Bundle.open(bundle, check_hashes=False).manifest
    names = [name for graph in manifest.graphs for name in (graph.file, *graph.external_data)]
    return sum(manifest.files[name].bytes for name in names)


def _of_rounds(tell: Progress, total: int) -> Callable[[int], None]:
    return lambda number: tell(f"round {number + 1} of {total}")


def _judged(done: _Done, max_drop: float) -> tuple[Row, ...]:
    """The rows with what `random` got at the same budget, and the words."""
    rows = []
    for row in done.rows:
        partner = next((other for other in done.rows if other.kind == "random" and row.spec in other.beside), None)
        if partner is not None:
            row = replace(row, random=_against(done, row, partner), random_value=partner.value(done.measure))
        rows.append(replace(row, words=words_of(row, done.measure, done.rows[0], max_drop)))
    return tuple(rows)


def _against(done: _Done, row: Row, partner: Row) -> Difference | None:
    ours, theirs = done.answers[row.spec].predicted, done.answers[partner.spec].predicted
    if ours is None or theirs is None:
        return None
    wanted = done.labels if done.measure == "accuracy" else done.answers["none"].predicted
    if wanted is None:
        return None
    known = wanted >= 0
    right, other = (ours == wanted) & known, (theirs == wanted) & known
    return difference(int((right & ~other).sum()), int((other & ~right).sum()), int(known.sum()))


@contextmanager
def _folder(output: str | Path | None) -> Iterator[Path]:
    """Where bundles go: the folder that the user wants, or one that is gone afterwards."""
    if output is None:
        with temporary_folder("sweep") as folder:
            yield folder
        return
    try:
        Path(output).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"'{output}' cannot be made ({error.strerror}); give another folder with -o.") from None
    yield Path(output)


def _batches(batch: int) -> str:
    return f"1:{batch}:{max(batch, _LARGEST_BATCH)}"


def _titled(say: Progress, title: str) -> Progress:
    return lambda text: say(f"{title}: {text}")


def _slug(spec: str) -> str:
    """A folder's name for a setting."""
    if spec == "none":
        return "dense"
    plain = re.sub(r"[^A-Za-z0-9._]+", "-", spec).strip("-")
    if "[" not in spec and len(plain) <= _LONGEST_NAME:
        return plain
    return f"{plain[:_LONGEST_NAME]}-{sha256(spec)[:8]}"


def _title(setting: Setting) -> str:
    if setting.kind == "dense":
        return "dense"
    return f"random beside {', '.join(setting.beside)}" if setting.kind == "random" else setting.spec


def _nothing_fits(misfits: Sequence[tuple[str, str]], model: str) -> str:
    if len(misfits) == 1:
        return misfits[0][1]
    reasons = " ".join(f"{spec}: {reason}" for spec, reason in misfits[:3])
    return f"None of the {len(misfits)} settings fits {model}. {reasons}"
