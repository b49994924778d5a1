"""Pictures of boxes: what is drawn lies where the geometry says."""

import numpy as np
import pytest

from trt_compress.errors import ShapeError
from trt_compress.runtime.camera_frames import CameraFrame
from trt_compress.runtime.draw3d import COLORS, draw_bev, draw_boxes, draw_frame

CAR = {
    "label": "car",
    "score": 0.9,
    "center": [10.0, 4.0, 0.8],
    "size": [4.0, 2.0, 1.6],
    "yaw": 0.3,
    "velocity": [3, 0],
}
LOOKS_AHEAD = np.array([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 1.5], [0, 0, 0, 1]])


def frame(boxes: tuple[dict[str, object], ...] = ()) -> CameraFrame:
    return CameraFrame(
        images=(np.zeros((60, 100, 3), np.uint8),),
        cameras=("ahead",),
        intrinsics=np.array([[[50.0, 0, 50], [0, 50, 30], [0, 0, 1]]]),
        camera_to_ego=LOOKS_AHEAD[None],
        ego_pose=np.eye(4),
        timestamp_ns=0,
        boxes=boxes,
    )


def inked(image: object, color: str) -> np.ndarray:  # type: ignore[type-arg]
    """Rows and columns of pixels of one colour."""
    wanted = [int(color[at : at + 2], 16) for at in (1, 3, 5)]
    return np.argwhere((np.asarray(image) == wanted).all(axis=-1))


def test_a_box_is_drawn_where_it_is_seen() -> None:
    view = frame()
    image = draw_boxes(view.images[0], [{**CAR, "yaw": 0.0}], view.lidar2img[0], zoom=4, color="#00ff00")
    assert image.size == (400, 240)
    rows, columns = inked(image, "#00ff00").T
    # the near face is 8 m ahead, from 3 to 5 m to the left; the top 0.1 m above the camera, the ground 1.5 m below
    assert abs(columns.min() - 4 * (50 - 50 * 5 / 8)) <= 2
    assert abs(columns.max() - 4 * (50 - 50 * 3 / 12)) <= 2
    assert abs(rows.max() - 4 * (30 + 50 * 1.5 / 8)) <= 2
    assert abs(rows.min() - 4 * (30 - 50 * 0.1 / 8)) <= 2


def test_boxes_behind_and_across_the_camera() -> None:
    view = frame()
    behind = draw_boxes(view.images[0], [{**CAR, "center": [-10.0, 0.0, 0.8]}], view.lidar2img[0])
    assert not np.asarray(behind).any()
    beside = draw_boxes(view.images[0], [{**CAR, "center": [1.0, 1.8, 0.8]}], view.lidar2img[0], color="#00ff00")
    assert len(inked(beside, "#00ff00"))


def test_birds_eye_view() -> None:
    size, range_m = 400, 20.0
    image = draw_bev([{**CAR, "velocity": [0, 0]}], range_m=range_m, size=size)
    assert image.size == (size, size)
    places = inked(image, COLORS[0])
    places = places[places[:, 0] < size - 30]  # without the legend
    scale = size / 2 / range_m
    middle = size / 2 - np.array([10.0, 4.0]) * scale  # forward is up, left is left
    assert np.abs((places.min(axis=0) + places.max(axis=0)) / 2 - middle).max() <= 2
    assert np.linalg.norm(places - middle, axis=1).max() <= np.hypot(2, 1) * scale + 2


def test_stronger_with_a_higher_score_and_truth_beneath() -> None:
    def brightness(score: float) -> float:
        return float(np.asarray(draw_bev([{**CAR, "score": score}], size=200)).mean())

    assert brightness(0.2) < brightness(0.6) < brightness(1.0)
    assert len(inked(draw_bev([], truth=[CAR]), "#7d8894"))
    assert not len(inked(draw_bev([]), "#7d8894"))


def test_a_whole_moment() -> None:
    sheet = draw_frame(frame((CAR,)), [CAR], zoom=3)
    assert sheet.size == (300 + 240, 240)
    assert len(inked(sheet, COLORS[0]))


def test_refused() -> None:
    with pytest.raises(
        ShapeError, match=r"projection has shape \[4, 4, 4\]; give \[4, 4\] or \[3, 4\], one camera's\."
    ):
        draw_boxes(np.zeros((8, 8, 3), np.uint8), [CAR], np.zeros((4, 4, 4)))
