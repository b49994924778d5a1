"""Judge a bundle on labelled data: accuracy with its interval, agreement with a baseline, what was lost where."""

import time
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from trt_compress.digest import as_digests
from trt_compress.errors import ConfigError
from trt_compress.foreign import refusals_said
from trt_compress.format.bundle import Bundle
from trt_compress.runtime.evaluate import (
    Classifier,
    Scores,
    check_comparable,
    classifier_of,
    collect,
    judge,
    refuse_detector,
)
from trt_compress.runtime.labelled.data import LabelledData, limited, without
from trt_compress.runtime.labelled.open import HELD_OUT, Request, open_data
from trt_compress.runtime.session import Session
from trt_compress.tools.bench.result import identity, operators_run
from trt_compress.tools.held_out import check_held_out, held_out
from trt_compress.tools.machine import describe_device, package_versions
from trt_compress.tools.report.metrics import Better, Metric

RESULT_VERSION = "1.0"
DOCUMENT = "trt-compress evaluation"

METRICS: Mapping[str, tuple[str, Better]] = {
    "accuracy": ("", "higher"),
    "top1": ("", "higher"),
    "top5": ("", "higher"),
    "accuracy_low": ("", "higher"),
    "agreement": ("", "higher"),
    "agreement_low": ("", "higher"),
    "baseline_accuracy": ("", "neither"),
    "drop_points": ("points", "lower"),
    "cosine": ("", "higher"),
    "samples": ("samples", "neither"),
    "failed": ("samples", "lower"),
    "not_finite": ("samples", "lower"),
}
"""What a budget may name: shares of 1; `_low` is the lower end of the 95 % interval; points are hundredths."""

TEXT_METRICS: Mapping[str, tuple[str, Better]] = {
    "perplexity": ("", "lower"),
    "perplexity_high": ("", "lower"),
    "perplexity_ratio": ("×", "lower"),
    "perplexity_ratio_high": ("×", "lower"),
    "bits_per_byte": ("bits", "lower"),
    "needle": ("", "higher"),
    "needle_low": ("", "higher"),
    "needle_drop_points": ("points", "lower"),
    "recall": ("", "higher"),
    "recall_low": ("", "higher"),
    "recall_drop_points": ("points", "lower"),
}
"""What a budget may name of a text: `_low` and `_high` are ends of 95 % intervals, ratios are to the baseline."""

Progress = Callable[[str], None]

_TOLD_EVERY_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """One judgement, with all that is needed to repeat or to doubt it.

    Attributes:
        bundle: What was judged.
        baseline: What it was compared with; None without one.
        data: Where the samples are from and how their labels were read.
        scores: The figures.
        failures: Samples that could not be read, with the reason.
        left_out: Files that were found and not taken, with the reason.
        protocol: Backend, batch, threads.
        seconds: How long it took.
    """

    started_at: str
    bundle: dict[str, Any]
    baseline: dict[str, Any] | None
    data: dict[str, Any]
    scores: Scores
    failures: tuple[tuple[str, str], ...]
    left_out: tuple[tuple[str, str], ...]
    protocol: dict[str, Any]
    device: dict[str, Any]
    versions: dict[str, str]
    seconds: float

    def metrics(self) -> dict[str, Metric]:
        """The figures by the names that a budget calls them; one that is not there says why."""
        scores = self.scores
        no_labels = "the data have no labels" if not self.data["labelled"] else "the bundle is no classifier"
        no_baseline = "no baseline was given" if self.baseline is None else "the bundle is no classifier"
        few = "the bundle has five classes or fewer" if scores.accuracy is not None else no_labels
        neither = no_baseline if self.baseline is None else no_labels
        accuracy, agreement = scores.accuracy, scores.agreement
        values: dict[str, tuple[float | None, str]] = {
            "accuracy": (None if accuracy is None else accuracy.value, no_labels),
            "top1": (None if accuracy is None else accuracy.value, no_labels),
            "top5": (None if scores.top5 is None else scores.top5.value, few),
            "accuracy_low": (None if accuracy is None else accuracy.low, no_labels),
            "agreement": (None if agreement is None else agreement.value, no_baseline),
            "agreement_low": (None if agreement is None else agreement.low, no_baseline),
            "baseline_accuracy": (
                None if scores.baseline_accuracy is None else scores.baseline_accuracy.value,
                neither,
            ),
            "drop_points": (None if scores.change is None else round(-100 * scores.change.value, 9), neither),
            "cosine": (scores.worst_cosine, no_baseline),
            "samples": (float(scores.n), ""),
            "failed": (float(len(self.failures)), ""),
            "not_finite": (float(scores.not_finite), ""),
        }
        return {
            name: Metric(
                name=name,
                value=None if value is None else float(value),
                reason=reason if value is None else None,
                unit=METRICS[name][0],
                better=METRICS[name][1],
                n=scores.n,
            )
            for name, (value, reason) in values.items()
        }

    def to_json(self) -> dict[str, Any]:
        """Write as plain JSON data."""
        return {
            "document": DOCUMENT,
            "result_version": RESULT_VERSION,
            "started_at": self.started_at,
            "bundle": self.bundle,
            "baseline": self.baseline,
            "data": self.data,
            "scores": self.scores.to_json(),
            "failures": [{"sample": name, "reason": reason} for name, reason in self.failures],
            "left_out": [{"file": name, "reason": reason} for name, reason in self.left_out],
            "protocol": self.protocol,
            "device": self.device,
            "versions": self.versions,
            "seconds": round(self.seconds, 3),
        }


@refusals_said()
def evaluate(
    bundle: str | Path,
    *,
    data: str | Path | None = None,
    labels: str | Path | None = None,
    classes: str | Path | None = None,
    baseline: str | Path | None = None,
    graph: str | None = None,
    baseline_graph: str | None = None,
    backend: str = "ort-cpu",
    batch: int | None = None,
    threads: int | None = None,
    limit: int | None = None,
    apart: int = 0,
    resample: bool = False,
    native: bool | None = None,
    require_digest: str | Collection[str] | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Judge a bundle on labelled data, and against its uncompressed baseline.

    Args:
        bundle: The bundle's directory.
        data: A folder of classes (`DIR/<class>/FILE`, counted as torchvision's ImageFolder does unless the bundle or
            `classes` names them), a flat folder, an .npz file of arrays with `label`, or "held-out" for a model of the
            zoo. Files go through the bundle's own preprocessing.
        labels: A file of labels, JSON lines `{"file": …, "label": …}` or CSV; its paths are relative to `data`, without
            it to the file's own folder.
        classes: A file with the names of the classes in the model's order, or "sorted" or "numbers" for folders named
            by numbers.
        baseline: The uncompressed bundle of the same model.
        graph: The graph to run; None: all, one after the other.
        baseline_graph: The same of the baseline; without `baseline` another graph of the same bundle.
        backend: As `Session.open` takes it.
        batch: Samples of one run; None: the largest batch of the bundle.
        threads: As `Session.open` takes it.
        limit: At most so many samples, evenly spread over the data.
        apart: Of these, so many are left out, evenly spread: those that `tune` has searched with.
        resample: Make sound of another rate or number of channels fit; otherwise such a file cannot be read.
        native: As `Session.open` takes it.
        require_digest: The digest that the bundle must have; with more than one bundle several, of which each must have
            one. As `Bundle.open` takes it.
        progress: Called with the name of each step.

    Raises:
        ConfigError: The data cannot be read or are not for this bundle, or there is nothing to judge by.
        BundleError: A bundle cannot be opened.
    """
    say = progress or (lambda text: None)
    required = as_digests(require_digest)
    request = request_of(data, labels, classes, resample=resample)
    check_numbers(batch=batch, limit=limit, threads=threads)
    for path, name in ((bundle, graph), (baseline or bundle, baseline_graph)):  # before any library is loaded
        manifest = Bundle.open(path, check_hashes=False, require_digest=required).manifest
        if name is not None:
            manifest.graph(name)
        refuse_detector(manifest.model.source, manifest.postprocess)
        if request is None:
            check_held_out(manifest.model.source)
    start, started_at = time.monotonic(), datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    say("opening")
    with ExitStack() as stack:

        def opened(path: str | Path, name: str | None) -> Session:
            graphs = None if name is None else [name]
            session = Session.open(
                path, backend=backend, threads=threads, native=native, graphs=graphs, require_digest=required
            )
            return stack.enter_context(session)

        sessions = [opened(bundle, graph)]
        if baseline is not None or baseline_graph is not None:
            sessions.append(opened(baseline if baseline is not None else bundle, baseline_graph))
            check_comparable(sessions[0], sessions[1])
        classifier = classifier_of(sessions[0].bundle.manifest, sessions[0].outputs)
        say("reading the data")
        found = without(limited(open_for(_widest(sessions), request, classifier), limit), apart)
        check_worth(found, classifier, with_baseline=len(sessions) > 1)
        size = batch or sessions[0].bundle.manifest.batch.max
        collected = collect(sessions, found, batch=size, progress=counted(say, len(found.samples)))
        scores = judge(
            collected.labels,
            *collected.answers,
            outputs=collected.outputs,
            class_names=names_of(found, classifier),
            num_classes=None if classifier is None else classifier.classes,
        )
        return Evaluation(
            started_at=started_at,
            bundle=described(sessions[0]),
            baseline=described(sessions[1]) if len(sessions) > 1 else None,
            data=describe_data(found, len(collected.names)),
            scores=scores,
            failures=collected.failures,
            left_out=found.left_out,
            protocol={
                "backend": backend,
                "batch": size,
                "threads": threads,
                "interval": "95 %: Wilson's of shares, Agresti and Min's of the change",
            },
            device=describe_device(),
            versions=package_versions(),
            seconds=time.monotonic() - start,
        )


def request_of(
    data: str | Path | None, labels: str | Path | None, classes: str | Path | None, *, resample: bool = False
) -> Request | None:
    """What data the user wants, looked at; None: the model's own held-out data.

    Raises:
        ConfigError: Something is not there, or two things do not go together.
    """
    if data is not None and str(data) == HELD_OUT:
        if labels is not None or classes is not None:
            raise ConfigError(f"--data {HELD_OUT} brings its own labels; leave --labels and --classes out.")
        return None
    request = Request(
        data=None if data is None else Path(data),
        labels=None if labels is None else Path(labels),
        classes=None if classes is None else str(classes),
        resample=resample,
    )
    request.check()
    return request


def check_numbers(**numbers: int | None) -> None:
    """Refuse numbers below 1.

    Raises:
        ConfigError: One is.
    """
    for name, value in numbers.items():
        if value is not None and value < 1:
            raise ConfigError(f"{name}={value}; give at least 1.")


def open_for(session: Session, request: Request | None, classifier: Classifier | None) -> LabelledData:
    """The data that were asked for, in the form of a session's inputs.

    Raises:
        ConfigError: They cannot be read, or are not for this bundle.
    """
    if request is not None:
        return open_data(session.bundle, session.inputs, request, None if classifier is None else classifier.classes)
    manifest = session.bundle.manifest
    return held_out(manifest.model.source, manifest.preprocess.get("input") or next(iter(session.inputs)))


def check_worth(data: LabelledData, classifier: Classifier | None, *, with_baseline: bool) -> None:
    """Make sure that there is something to judge by.

    Raises:
        ConfigError: There is not.
    """
    if not with_baseline and classifier is None:
        raise ConfigError(
            "The bundle is no classifier, so its outputs can only be compared; give the uncompressed bundle as "
            "--baseline."
        )
    if not with_baseline and not data.num_labelled:
        raise ConfigError(
            f"'{data.source}' has no labels and no --baseline is given, so there is nothing to judge by; give folders "
            "of classes, --labels FILE, or --baseline BUNDLE."
        )


def counted(say: Progress, total: int) -> Callable[[int], None]:
    """Tells a few times a second how many of `total` samples are done."""
    last = -_TOLD_EVERY_S

    def tell(done: int) -> None:
        nonlocal last
        if (now := time.monotonic()) - last >= _TOLD_EVERY_S:
            last = now
            say(f"{done} of {total} samples")

    return tell


def describe_data(data: LabelledData, answered: int) -> dict[str, Any]:
    """The data in a few plain values."""
    return {
        "source": data.source,
        "form": data.form,
        "samples": len(data.samples),
        "answered": answered,
        "labelled": data.num_labelled,
        "classes": data.labelled_by,
    }


def names_of(data: LabelledData, classifier: Classifier | None) -> tuple[str, ...]:
    """Names of the classes: the bundle's, else those of the data."""
    return (classifier.labels if classifier is not None else ()) or data.class_names


def described(session: Session) -> dict[str, Any]:
    """What a result says of a bundle that was judged."""
    return {
        **identity(session.bundle.manifest),
        "graphs": list(session.graphs),
        "operators": operators_run(session),
    }


def _widest(sessions: list[Session]) -> Session:
    """The session whose inputs keep most of a sample: of fp32 and fp16 that in fp32."""
    import numpy as np

    def width(session: Session) -> int:
        return max(np.dtype(info.dtype).itemsize for info in session.inputs.values())

    return max(sessions, key=width)
