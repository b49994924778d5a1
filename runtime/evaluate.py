"""How good the answers of a bundle are: against labels, and against those of another bundle.

Needs neither torch nor onnx, so a device can judge what it runs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from trt_compress.errors import BundleError, ConfigError
from trt_compress.format.kinds import ClassOutput, fitted_output
from trt_compress.format.manifest import Manifest, TensorInfo
from trt_compress.runtime.labelled.data import BadSample, LabelledData, Runs
from trt_compress.runtime.proportion import Difference, Share, difference, share
from trt_compress.runtime.session import Session

Array = np.ndarray[Any, np.dtype[Any]]
Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

TOP = 5
NO_LABEL, NOT_FINITE = -1, -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Classifier:
    """Where a bundle's outputs hold the scores of its classes."""

    output: str
    classes: int
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What one session said of every sample.

    Attributes:
        predicted: Class of the largest score, of equal ones the first; -1 where a score is not finite. None: the bundle
            is no classifier.
        rank: How many classes the label stands behind; -1 without a label or a finite score.
    """

    predicted: Integers | None
    rank: Integers | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """How an output of two bundles agrees: cosine of every sample [n], and the largest absolute difference of any.

    A sample with a number that is not finite has the cosine NaN and is in no figure but its count.
    """

    name: str
    cosine: Floats
    max_abs: float

    def to_json(self) -> dict[str, Any]:
        """Write as plain JSON data."""
        finite = self.cosine[np.isfinite(self.cosine)]
        return {
            "name": self.name,
            "n": len(self.cosine),
            "cosine_mean": float(finite.mean()) if finite.size else None,
            "cosine_min": float(finite.min()) if finite.size else None,
            "max_abs": self.max_abs,
            "not_finite": int(self.cosine.size - finite.size),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """The answers of sessions to the same samples, those that could be read."""

    names: tuple[str, ...]
    labels: Integers
    answers: tuple[Answers, ...]
    outputs: tuple[Outputs, ...]
    failures: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassScore:
    """One class: its labelled samples, and how many of them each got right."""

    number: int
    name: str
    n: int
    right: int
    baseline_right: int | None

    def to_json(self) -> dict[str, Any]:
        """Write as plain JSON data."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """How good a bundle's answers are.

    Attributes:
        n: Samples that were answered.
        accuracy: The class is right; None without labels or classes.
        top5: The right class is among the five largest scores; None where there are five classes or fewer.
        baseline_accuracy: The baseline's, on the same samples.
        change: Accuracy less the baseline's.
        agreement: The same class as the baseline.
        not_finite: Samples with a score that is not finite; they count as wrong.
        outputs: How the outputs agree with the baseline's.
        classes: Each class that has labelled samples.
    """

    n: int
    accuracy: Share | None
    top5: Share | None
    baseline_accuracy: Share | None
    change: Difference | None
    agreement: Share | None
    not_finite: int
    outputs: tuple[Outputs, ...]
    classes: tuple[ClassScore, ...]

    @property
    def worst_cosine(self) -> float | None:
        """The least cosine of any output and sample; None without a baseline."""
        least = [
            found["cosine_min"] for output in self.outputs if (found := output.to_json())["cosine_min"] is not None
        ]
        return min(least, default=None)

    def to_json(self) -> dict[str, Any]:
        """Write as plain JSON data."""
        return {
            "n": self.n,
            "accuracy": None if self.accuracy is None else self.accuracy.to_json(),
            "top5": None if self.top5 is None else self.top5.to_json(),
            "baseline_accuracy": None if self.baseline_accuracy is None else self.baseline_accuracy.to_json(),
            "change": None if self.change is None else self.change.to_json(),
            "agreement": None if self.agreement is None else self.agreement.to_json(),
            "not_finite": self.not_finite,
            "outputs": [output.to_json() for output in self.outputs],
            "classes": [row.to_json() for row in self.classes],
        }


def classifier_of(manifest: Manifest, outputs: Mapping[str, TensorInfo]) -> Classifier | None:
    """How a bundle classifies, or None.

    Raises:
        ConfigError: It is a detector.
        BundleError: Its manifest names an output that there is not.
    """
    refuse_detector(manifest.model.source, manifest.postprocess)
    found = fitted_output(manifest.postprocess, {name: info.shape for name, info in outputs.items()})
    if not isinstance(found, ClassOutput):
        return None
    name = found.output or next(iter(outputs))
    classes = outputs[name].shape[-1] if found.classes is None else found.classes
    if not isinstance(classes, int):
        raise BundleError("The manifest's 'postprocess.classes' is missing; it must be the number of classes.")
    return Classifier(output=name, classes=classes, labels=found.labels or ())


def refuse_detector(model: str, postprocess: Mapping[str, Any]) -> None:
    """Send detectors to the command that judges them.

    Raises:
        ConfigError: It is one.
    """
    if postprocess.get("kind") == "detection3d":
        raise ConfigError(
            f"'{model}' is a detector, and evaluate and sweep judge classifications and plain outputs; "
            "`trt-compress run BUNDLE --source scene.npz --labels scene.npz` gives its mAP."
        )


def check_comparable(bundle: Session, baseline: Session) -> None:
    """Make sure that two bundles answer the same question.

    Raises:
        ConfigError: They take or give different things; floating-point types may differ.
    """
    for what, ours, theirs in (
        ("takes", bundle.inputs, baseline.inputs),
        ("gives", bundle.outputs, baseline.outputs),
    ):
        shown = [
            {name: (_loose(info.dtype), len(info.shape)) for name, info in side.items()} for side in (ours, theirs)
        ]
        if shown[0] != shown[1]:
            raise ConfigError(
                f"The bundle {what} {_signature(ours)}, and the baseline {_signature(theirs)}; give the uncompressed "
                "bundle of the same model as --baseline."
            )
    mine, other = (classifier_of(each.bundle.manifest, each.outputs) for each in (bundle, baseline))
    if mine != other:
        raise ConfigError(
            "The bundle and the baseline do not name the same classes; give the uncompressed bundle of the same model "
            "as --baseline."
        )
    if bundle.bundle.manifest.preprocess != baseline.bundle.manifest.preprocess:
        raise ConfigError(
            "The bundle and the baseline prepare their inputs differently ('preprocess' of their manifests), so their "
            "answers are not to the same question; export both with this version."
        )


def collect(
    sessions: Sequence[Session],
    data: LabelledData,
    *,
    batch: int,
    progress: Callable[[int], None] = lambda done: None,
) -> Collected:
    """Ask sessions about every sample.

    Args:
        sessions: One, or a bundle and its baseline, whose outputs are then compared too.
        data: Samples; one that cannot be read is noted and left out.
        batch: Samples of one run.
        progress: Is told how many samples are done.

    Raises:
        ConfigError: No sample can be read.
    """
    asked = [_Asked(session, data.answer) for session in sessions]
    names: list[str] = []
    labels: list[int] = []
    failures: list[tuple[str, str]] = []
    compared: dict[str, tuple[list[Floats], list[float]]] = {}
    waiting: list[tuple[str, int, Runs]] = []

    def flush() -> None:
        if not waiting:
            return
        runs = [runs for _, _, runs in waiting]
        wanted = np.array([label for _, label, _ in waiting], np.int64)
        found = [each.answer(runs, wanted) for each in asked]
        names.extend(name for name, _, _ in waiting)
        labels.extend(int(label) for label in wanted)
        for name, (cosine, most) in (_compare(*found) if len(found) == 2 else {}).items():
            kept = compared.setdefault(name, ([], []))
            kept[0].append(cosine)
            kept[1].append(most)
        waiting.clear()

    for number, sample in enumerate(data.samples):
        progress(number)
        try:
            runs = sample.load()
        except BadSample as error:
            failures.append((sample.name, str(error)))
            continue
        if waiting and len(waiting[0][2]) != len(runs):
            flush()
        waiting.append((sample.name, NO_LABEL if sample.label is None else sample.label, runs))
        if len(waiting) == batch:
            flush()
    flush()
    if not names:
        first = f" The first, '{failures[0][0]}': {failures[0][1].rstrip('.')}." if failures else ""
        raise ConfigError(f"None of the {len(data.samples)} samples of '{data.source}' can be read.{first}")
    return Collected(
        names=tuple(names),
        labels=np.array(labels, np.int64),
        answers=tuple(each.answers() for each in asked),
        outputs=tuple(
            Outputs(name=name, cosine=np.concatenate(cosines), max_abs=max(most))
            for name, (cosines, most) in compared.items()
        ),
        failures=tuple(failures),
    )


def judge(
    labels: Integers,
    ours: Answers,
    theirs: Answers | None = None,
    *,
    outputs: Sequence[Outputs] = (),
    class_names: Sequence[str] = (),
    num_classes: int | None = None,
) -> Scores:
    """Score answers against labels (-1: none), and against a baseline's answers to the same samples."""
    n = len(labels)
    known = labels != NO_LABEL
    counted = int(known.sum())
    accuracy = top5 = baseline = agreement = None
    change: Difference | None = None
    rows: list[ClassScore] = []
    names = dict(enumerate(class_names))
    right = None if ours.predicted is None else (ours.predicted == labels) & known
    base = None if theirs is None or theirs.predicted is None else (theirs.predicted == labels) & known
    if right is not None and counted:
        accuracy = share(int(right.sum()), counted)
        if ours.rank is not None and num_classes is not None and num_classes > TOP:
            top5 = share(int(((ours.rank >= 0) & (ours.rank < TOP) & known).sum()), counted)
        if base is not None:
            baseline = share(int(base.sum()), counted)
            change = difference(int((right & ~base).sum()), int((base & ~right).sum()), counted)
        for number in np.unique(labels[known]).tolist():
            of = labels == number
            rows.append(
                ClassScore(
                    number=number,
                    name=names.get(number, ""),
                    n=int(of.sum()),
                    right=int(right[of].sum()),
                    baseline_right=None if base is None else int(base[of].sum()),
                )
            )
    if ours.predicted is not None and theirs is not None and theirs.predicted is not None:
        same = (ours.predicted == theirs.predicted) & (ours.predicted != NOT_FINITE)
        agreement = share(int(same.sum()), n)
    lost = 0 if ours.predicted is None else int((ours.predicted == NOT_FINITE).sum())
    return Scores(
        n=n,
        accuracy=accuracy,
        top5=top5,
        baseline_accuracy=baseline,
        change=change,
        agreement=agreement,
        not_finite=lost,
        outputs=tuple(outputs),
        classes=tuple(rows),
    )


class _Asked:
    """A session that is asked batch by batch."""

    def __init__(self, session: Session, answer: str) -> None:
        manifest = session.bundle.manifest
        self._session = session
        self._stateful = bool(session.loaded.states)
        self._mean = answer == "mean" and not self._stateful
        self._classifier = classifier_of(manifest, session.outputs)
        self._batched = {name for name, info in session.inputs.items() if info.shape and isinstance(info.shape[0], str)}
        self._dtypes = {name: np.dtype(info.dtype) for name, info in session.inputs.items()}
        self._predicted: list[Integers] = []
        self._ranks: list[Integers] = []

    def answer(self, samples: Sequence[Runs], labels: Integers) -> dict[str, Array]:
        """Ask about a batch of samples with equally many runs; note the classes and return the outputs."""
        states = self._session.new_states() if self._stateful else None
        length = len(samples[0])
        numbers = range(length) if self._stateful or self._mean else range(length - 1, length)
        found: dict[str, Array] = {}
        for number in numbers:
            outputs = self._session.run(self._feed([runs[number] for runs in samples]), states)
            found = _added(found, outputs) if self._mean else outputs
        if self._mean and length > 1:
            found = {name: value / length if value.dtype.kind == "f" else value for name, value in found.items()}
        if self._classifier is not None:
            self._note(found[self._classifier.output].astype(np.float64), labels)
        return found

    def answers(self) -> Answers:
        """What was said of all samples."""
        if self._classifier is None:
            return Answers(predicted=None, rank=None)
        return Answers(predicted=np.concatenate(self._predicted), rank=np.concatenate(self._ranks))

    def _feed(self, runs: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
        together = {
            name: np.concatenate([run[name] for run in runs]) if name in self._batched else runs[0][name]
            for name in runs[0]
        }
        return {
            name: array.astype(self._dtypes[name], copy=False) if array.dtype.kind == "f" else array
            for name, array in together.items()
        }

    def _note(self, scores: Floats, labels: Integers) -> None:
        scores = scores.reshape(len(labels), -1)
        finite = np.asarray(np.isfinite(scores).all(axis=1))
        self._predicted.append(np.where(finite, np.where(finite[:, None], scores, 0).argmax(axis=1), NOT_FINITE))
        known = finite & (labels >= 0) & (labels < scores.shape[1])
        place = np.where(known, labels, 0)
        own = scores[np.arange(len(labels)), place][:, None]
        before = np.arange(scores.shape[1])[None, :] < place[:, None]
        with np.errstate(invalid="ignore"):
            ahead = ((scores > own) | ((scores == own) & before)).sum(axis=1)
        self._ranks.append(np.where(known, ahead, -1))


def _added(total: dict[str, Array], outputs: Mapping[str, Array]) -> dict[str, Array]:
    if not total:
        return dict(outputs)
    return {name: total[name] + value if value.dtype.kind == "f" else value for name, value in outputs.items()}


def _compare(ours: Mapping[str, Array], theirs: Mapping[str, Array]) -> dict[str, tuple[Floats, float]]:
    """Cosine of every sample and the largest difference, of floating-point outputs of equal shape."""
    found: dict[str, tuple[Floats, float]] = {}
    for name, other in theirs.items():
        mine = ours.get(name)
        if mine is None or mine.shape != other.shape or other.dtype.kind != "f" or other.ndim < 1 or not other.size:
            continue
        a, b = (np.asarray(value, np.float64).reshape(len(other), -1) for value in (mine, other))
        finite = np.asarray(np.isfinite(a).all(axis=1) & np.isfinite(b).all(axis=1))
        kept = finite[:, None]
        x, y = np.where(kept, a, 0.0), np.where(kept, b, 0.0)
        norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
        cosine = np.divide((x * y).sum(axis=1), norms, out=np.zeros_like(norms), where=norms > 0)
        cosine = np.where((x == y).all(axis=1), 1.0, cosine)
        found[name] = np.where(finite, cosine, np.nan), float(np.abs(x - y).max())
    return found


def _loose(dtype: str) -> str:
    return "float" if np.dtype(dtype).kind == "f" else dtype


def _signature(tensors: Mapping[str, TensorInfo]) -> str:
    return ", ".join(f"{name} {info.dtype} {list(info.shape)}" for name, info in tensors.items())
