"""The metric against cases worked out by hand."""

import math

import numpy as np
import pytest

from trt_compress.errors import ShapeError
from trt_compress.runtime.detection_metric import FrameBoxes, score_detections


def frame(*rows: tuple[float, ...], scored: bool = True) -> FrameBoxes:
    """Rows of x, y, label and, for detections, score."""
    table = np.array(rows, np.float64).reshape(-1, 4 if scored else 3)
    return FrameBoxes(centers=table[:, :2], labels=table[:, 2].astype(np.int64), scores=table[:, 3] if scored else None)


def truth(*rows: tuple[float, ...]) -> FrameBoxes:
    return frame(*rows, scored=False)


def test_everything_found_in_place() -> None:
    score = score_detections(
        [frame((1, 2, 0, 0.9), (5, 5, 1, 0.3)), frame((0, 0, 0, 0.8))],
        [truth((1, 2, 0), (5, 5, 1)), truth((0, 0, 0))],
        num_classes=2,
    )
    assert score.average_precision == pytest.approx((1.0, 1.0))
    assert score.mean_ap == pytest.approx(1.0)
    assert score.translation_error_m == 0.0
    assert score.num_truth == (2, 1)


def test_thresholds_are_distances_on_the_ground() -> None:
    score = score_detections([frame((1.5, 0, 0, 0.9))], [truth((0, 0, 0))], num_classes=1)
    assert score.by_threshold[0] == pytest.approx((0.0, 0.0, 1.0, 1.0))  # 1.5 m is beyond 0.5 and 1 m, within 2 and 4 m
    assert score.mean_ap == pytest.approx(0.5)
    assert score.translation_error_m == pytest.approx(1.5)
    at_limit = score_detections([frame((0.5, 0, 0, 0.9))], [truth((0, 0, 0))], num_classes=1)
    assert at_limit.by_threshold[0] == pytest.approx(
        (0.0, 1.0, 1.0, 1.0)
    )  # a distance equal to the threshold is no match


def test_a_wrong_detection_in_front_halves_the_precision() -> None:
    """One object, a false box before the true one: precision is 0 up to no recall, then 1/2 at every recall.

    Interpolated between recall 0 (precision 0) and recall 1 (precision 1/2) it is r / 2: over the recalls 0.11 … 1 the
    mean of max(r / 2 - 0.1, 0), rescaled by 0.9.
    """
    score = score_detections([frame((9, 9, 0, 0.9), (0, 0, 0, 0.5))], [truth((0, 0, 0))], num_classes=1)
    expected = np.mean([max(r / 200 - 0.1, 0) for r in range(11, 101)]) / 0.9
    assert score.mean_ap == pytest.approx(expected, abs=1e-12)


def test_half_of_the_objects_found() -> None:
    """Two objects, one found: precision 1 up to recall 0.5 and 0 beyond: 40 of the 90 recalls from 0.11 on."""
    score = score_detections([frame((0, 0, 0, 0.5))], [truth((0, 0, 0), (9, 9, 0))], num_classes=1)
    assert score.mean_ap == pytest.approx(40 / 90)


def test_a_second_box_on_an_object_is_wrong() -> None:
    """The better score takes the object; the other, though nearer, is a false one.

    Precision is 1 at every recall below 1; at recall 1 it is that of all boxes, 1/2.
    """
    found = [frame((0.4, 0, 0, 0.9), (0, 0, 0, 0.5))]
    score = score_detections(found, [truth((0, 0, 0))], num_classes=1)
    assert score.mean_ap == pytest.approx((89 * 0.9 + 0.4) / 90 / 0.9)
    assert score.translation_error_m == pytest.approx(0.4)


def test_translation_error_is_averaged_over_recall() -> None:
    """Two objects found with errors 0.2 (first) and 0.6 (second): running means 0.2 and 0.4.

    Scores are read at 101 recalls by interpolation, 0.8 up to recall 0.5, down to 0.4 at recall 1; the running error is
    interpolated by that score, so it is 0.2 up to 0.5 and goes in a line to 0.4.
    """
    found = [frame((0.2, 0, 0, 0.8), (10.6, 0, 0, 0.4))]
    score = score_detections(found, [truth((0, 0, 0), (10, 0, 0))], num_classes=1)
    line = [0.2 if r <= 50 else 0.2 + 0.2 * (r - 50) / 50 for r in range(11, 101)]
    assert score.translation_error_m == pytest.approx(np.mean(line), abs=1e-9)


def test_classes_and_frames_do_not_mix() -> None:
    score = score_detections(
        [frame((0, 0, 1, 0.9)), frame((7, 7, 0, 0.8))], [truth((0, 0, 0)), truth((3, 3, 1))], num_classes=3
    )
    assert score.average_precision[:2] == (0.0, 0.0)
    assert math.isnan(score.average_precision[2])  # the truth has none of these: left out of the mean
    assert score.mean_ap == 0.0
    assert score.translation_error_m == 1.0


def test_nothing_found() -> None:
    score = score_detections([frame()], [truth((0, 0, 0))], num_classes=1)
    assert (score.mean_ap, score.translation_error_m) == (0.0, 1.0)


def test_refused() -> None:
    with pytest.raises(ShapeError, match=r"detections of 1 frames cannot be held against 2; give the same frames\."):
        score_detections([frame()], [truth(), truth()], num_classes=1)
    with pytest.raises(ShapeError, match=r"detections have no scores"):
        score_detections([truth()], [truth()], num_classes=1)
