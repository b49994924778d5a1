"""Scenes follow from their seed, and pictures, calibration, poses and boxes say the same."""

import time

import numpy as np
import pytest

from trt_compress.errors import ConfigError
from trt_compress.models.zoo.data.driving_scenes import (
    CLASSES,
    HELD_OUT_SEEDS,
    TRAIN_SEEDS,
    Rig,
    SceneFrame,
    SceneOptions,
    box_corners,
    generate_scene,
)

SEEDS = range(6)


@pytest.fixture(scope="module")
def frames() -> list[SceneFrame]:
    return [frame for seed in SEEDS for frame in generate_scene(seed, options=SceneOptions(num_frames=3))]


def to_pixels(frame: SceneFrame, view: int, points: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    """Columns, rows and depths by the definition of a pinhole camera."""
    pose = frame.camera_to_ego[view].astype(np.float64)
    seen = (points - pose[:3, 3]) @ pose[:3, :3]
    k = frame.intrinsics[view].astype(np.float64)
    column = k[0, 0] * seen[:, 0] / seen[:, 2] + k[0, 2]
    row = k[1, 1] * seen[:, 1] / seen[:, 2] + k[1, 2]
    return np.stack([column, row, seen[:, 2]], axis=1)


def test_a_seed_is_a_scene(frames: list[SceneFrame]) -> None:
    again = list(generate_scene(SEEDS[0], options=SceneOptions(num_frames=3)))
    for one, other in zip(again, frames[:3], strict=True):
        assert np.array_equal(one.images, other.images)
        assert np.array_equal(one.boxes, other.boxes)
    assert not np.array_equal(frames[0].images, frames[3].images)
    assert not set(TRAIN_SEEDS) & set(HELD_OUT_SEEDS)


def test_shapes(frames: list[SceneFrame]) -> None:
    for frame in frames:
        count = len(frame.boxes)
        assert frame.images.shape == (4, 3, 64, 128) and frame.images.dtype == np.uint8
        assert frame.boxes.shape == (count, 9) and frame.labels.shape == (count,)
        assert frame.labels.max() < len(CLASSES) and frame.labels.min() >= 0
        assert frame.instances.max() < count
        assert np.isfinite(frame.boxes).all()


def test_pixels_of_a_box_lie_inside_its_outline(frames: list[SceneFrame]) -> None:
    checked = 0
    for frame in frames:
        for index, box in enumerate(frame.boxes.astype(np.float64)):
            for view in range(4):
                rows, columns = np.nonzero(frame.instances[view] == index)
                corners = to_pixels(frame, view, box_corners(box[:3], box[3:6], box[6]))
                if not len(rows) or corners[:, 2].min() < 0.2:
                    continue
                checked += 1
                middles = np.stack([columns + 0.5, rows + 0.5], axis=1)
                assert (middles >= corners[:, :2].min(axis=0) - 1e-3).all()
                assert (middles <= corners[:, :2].max(axis=0) + 1e-3).all()
    assert checked > 50


def test_a_ray_through_a_pixel_meets_its_box(frames: list[SceneFrame]) -> None:
    """img2lidar lifts a pixel at the right depth into the box that it shows."""
    checked = 0
    for frame in frames:
        for index in range(len(frame.boxes)):
            x, y, z, length, width, height, yaw = frame.boxes[index, :7].astype(np.float64)
            for view in range(4):
                rows, columns = np.nonzero(frame.instances[view] == index)
                if len(rows) < 4:
                    continue
                place = len(rows) // 2
                depths = np.linspace(0.2, 40, 4000)
                pixel = np.array([columns[place] + 0.5, rows[place] + 0.5, 1.0])
                rays = np.concatenate([depths[:, None] * pixel, np.ones((len(depths), 1))], axis=1)
                points = (rays @ frame.img2lidar[view].astype(np.float64).T)[:, :3] - (x, y, z)
                along = points[:, 0] * np.cos(yaw) + points[:, 1] * np.sin(yaw)
                across = points[:, 1] * np.cos(yaw) - points[:, 0] * np.sin(yaw)
                slack = 0.02
                inside = (abs(along) <= length / 2 + slack) & (abs(across) <= width / 2 + slack)
                assert (inside & (abs(points[:, 2]) <= height / 2 + slack)).any()
                checked += 1
    assert checked > 50


def test_the_nearer_box_hides_the_farther(frames: list[SceneFrame]) -> None:
    hidden = [frame for frame in frames if (frame.visibility < 0.7).any()]
    assert hidden, "no scene has an occlusion"
    for frame in frames:
        assert ((frame.visibility >= 0) & (frame.visibility <= 1)).all()
        shown = np.bincount(frame.instances[frame.instances >= 0].ravel(), minlength=len(frame.boxes))
        assert np.array_equal(shown, frame.pixels)


def test_objects_keep_their_velocity_over_ground() -> None:
    first, *_, last = generate_scene(3)
    passed = last.timestamp_s - first.timestamp_s
    compared = 0
    for index, track in enumerate(first.track_ids):
        for other in np.flatnonzero(last.track_ids == track):
            start, end = (
                frame.ego_pose[:3, :3] @ frame.boxes[place, :3].astype(np.float64) + frame.ego_pose[:3, 3]
                for frame, place in ((first, index), (last, other))
            )
            velocity = first.ego_pose[:2, :2] @ first.boxes[index, 7:].astype(np.float64)
            assert np.allclose(end[:2] - start[:2], velocity * passed, atol=1e-3)
            compared += 1
    assert compared >= 3


def test_a_frame_takes_milliseconds() -> None:
    list(generate_scene(0))
    start = time.process_time()
    count = len(list(generate_scene(1)))
    assert (time.process_time() - start) / count < 0.1


def test_other_rigs() -> None:
    frame = next(generate_scene(0, rig=Rig(num_cameras=6, height=32, width=48)))
    assert frame.images.shape == (6, 3, 32, 48)
    with pytest.raises(ConfigError, match=r"rig: 0 cameras of 64 x 128 pixels; give at least one camera"):
        Rig(num_cameras=0)
    with pytest.raises(ConfigError, match=r"seed=-1; give a whole number from 0\."):
        next(generate_scene(-1))
