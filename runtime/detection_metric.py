"""Mean average precision and translation error of 3D boxes, by the distance of their centres on the ground.

Source: nuScenes, arXiv:1903.11027, section 3.1 and the public detection task: thresholds 0.5, 1, 2 and 4 m, the lowest
10 % of recall and precision left out, true-positive errors at 2 m averaged over recall.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trt_compress.errors import ShapeError

Floats = npt.NDArray[np.float64]

THRESHOLDS_M = (0.5, 1.0, 2.0, 4.0)
ERROR_THRESHOLD_M = 2.0
LEAST_RECALL, LEAST_PRECISION = 0.1, 0.1
_RECALLS = np.linspace(0.0, 1.0, 101)


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameBoxes:
    """Boxes of one frame: centres on the ground [K, 2] in metres, labels [K], and scores [K] (None: the truth)."""

    centers: npt.NDArray[np.floating]
    labels: npt.NDArray[np.integer]
    scores: npt.NDArray[np.floating] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectionScore:
    """How good detections are, 0 to 1 and metres.

    Attributes:
        mean_ap: Mean of `average_precision` over the classes that the truth has.
        translation_error_m: Mean over these classes of the error of matches at 2 m; 1 for a class without enough.
        average_precision: Of each class, mean over the thresholds; NaN for a class that the truth lacks.
        by_threshold: [classes, 4].
        num_truth: Boxes of each class in the truth.
    """

    mean_ap: float
    translation_error_m: float
    average_precision: tuple[float, ...]
    by_threshold: tuple[tuple[float, ...], ...]
    num_truth: tuple[int, ...]


def score_detections(found: Sequence[FrameBoxes], truth: Sequence[FrameBoxes], *, num_classes: int) -> DetectionScore:
    """Compare the boxes found in frames with the true ones.

    Args:
        found: Detections of each frame, with scores.
        truth: True boxes of the same frames.
        num_classes: Labels are 0..num_classes - 1.

    Raises:
        ShapeError: the frames differ in number, or detections have no scores.
    """
    if len(found) != len(truth):
        raise ShapeError(
            f"detections of {len(found)} frames cannot be held against {len(truth)}; give the same frames."
        )
    if any(frame.scores is None for frame in found):
        raise ShapeError("detections have no scores, which rank them; give a score for each.")
    rows, errors, counts = [], [], []
    for label in range(num_classes):
        count = sum(int((frame.labels == label).sum()) for frame in truth)
        counts.append(count)
        if not count:
            rows.append((float("nan"),) * len(THRESHOLDS_M))
            continue
        rows.append(tuple(_precision(*_match(found, truth, label, limit)[:2], count) for limit in THRESHOLDS_M))
        errors.append(_error(*_match(found, truth, label, ERROR_THRESHOLD_M), count))
    per_class = tuple(float(np.mean(row)) for row in rows)
    present = [value for value, count in zip(per_class, counts, strict=True) if count]
    return DetectionScore(
        mean_ap=float(np.mean(present)) if present else float("nan"),
        translation_error_m=float(np.mean(errors)) if errors else float("nan"),
        average_precision=per_class,
        by_threshold=tuple(rows),
        num_truth=tuple(counts),
    )


def _match(
    found: Sequence[FrameBoxes], truth: Sequence[FrameBoxes], label: int, limit: float
) -> tuple[npt.NDArray[np.bool_], Floats, Floats]:
    """Best score first, give each detection the nearest true box that is left: whether near enough, score, distance."""
    entries: list[tuple[float, int, Floats]] = []
    for number, frame in enumerate(found):
        assert frame.scores is not None
        of_class = frame.labels == label
        entries += [
            (float(score), number, np.asarray(center, np.float64))
            for score, center in zip(frame.scores[of_class], frame.centers[of_class], strict=True)
        ]
    entries.sort(key=lambda entry: -entry[0])
    left = [np.asarray(frame.centers[frame.labels == label], np.float64).reshape(-1, 2).copy() for frame in truth]
    hits, distances = np.zeros(len(entries), bool), np.full(len(entries), np.inf)
    for place, (_, number, center) in enumerate(entries):
        if not len(left[number]):
            continue
        distance = np.linalg.norm(left[number] - center, axis=1)
        nearest = int(distance.argmin())
        if distance[nearest] < limit:
            hits[place], distances[place] = True, distance[nearest]
            left[number] = np.delete(left[number], nearest, axis=0)
    return hits, np.array([entry[0] for entry in entries]), distances


def _precision(hits: npt.NDArray[np.bool_], scores: Floats, count: int) -> float:
    """Area under precision over recall beyond the least of both, rescaled to 0..1."""
    if not hits.any():
        return 0.0
    right = np.cumsum(hits)
    precision = np.interp(_RECALLS, right / count, right / np.arange(1, len(hits) + 1), right=0.0)
    beyond = precision[round(100 * LEAST_RECALL) + 1 :] - LEAST_PRECISION
    return float(np.maximum(beyond, 0).mean() / (1 - LEAST_PRECISION))


def _error(hits: npt.NDArray[np.bool_], scores: Floats, distances: Floats, count: int) -> float:
    """Mean distance of the matches down to a score, averaged over the recalls from the least to the one reached."""
    if not hits.any():
        return 1.0
    score_at = np.interp(_RECALLS, np.cumsum(hits) / count, scores, right=0.0)
    reached = int(np.flatnonzero(score_at).max(initial=0))
    first = round(100 * LEAST_RECALL) + 1
    if reached < first:
        return 1.0
    running = np.cumsum(distances[hits]) / np.arange(1, int(hits.sum()) + 1)
    at_recall = np.interp(score_at[::-1], scores[hits][::-1], running[::-1])[::-1]
    return float(at_recall[first : reached + 1].mean())
