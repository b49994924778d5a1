"""Frames of several cameras, and the scene.npz made of them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trt_compress.errors import BundleError, ConfigError, ShapeError
from trt_compress.format.manifest import TensorInfo
from trt_compress.runtime.camera_frames import (
    CAMERA_NAMES,
    CameraFrame,
    check_cameras,
    corners_of,
    moved,
    scene_arrays,
    true_boxes,
    write_scene,
)

SHAPES: dict[str, tuple[int | str, ...]] = {
    "images": ("batch", 2, 3, 32, 64),
    "img2lidar": ("batch", 2, 4, 4),
    "ego_pose": ("batch", 4, 4),
    "timestamp": ("batch", 1),
}


def inputs(**changed: tuple[int | str, ...]) -> dict[str, TensorInfo]:
    return {name: TensorInfo(name=name, dtype="float32", shape=s) for name, s in {**SHAPES, **changed}.items()}


def frame(place: int = 0, size: tuple[int, int] = (45, 80), **more: Any) -> CameraFrame:
    pose = np.eye(4)
    pose[:3, 3] = 5000 + 3.0 * place, -8000, 1
    looks = np.eye(4)
    looks[:3, :3] = [[0, 0, 1], [-1, 0, 0], [0, -1, 0]]
    values: dict[str, Any] = {
        "images": tuple(np.full((*size, 3), 10 * view + place, np.uint8) for view in range(2)),
        "cameras": ("ahead", "behind"),
        "intrinsics": np.array([[[50.0, 0, 40], [0, 50, 22.5], [0, 0, 1]]] * 2),
        "camera_to_ego": np.stack([looks] * 2),
        "ego_pose": pose,
        "timestamp_ns": 10**18 + place * 500_000_000,
    }
    return CameraFrame(**{**values, **more})


def test_a_scene_file_holds_the_inputs_of_each_moment(tmp_path: Path) -> None:
    path = tmp_path / "scene.npz"
    assert write_scene(path, [frame(place, size=(32, 64)) for place in range(4)], inputs()) == 4
    with np.load(path) as found:
        arrays = dict(found)
    assert arrays.pop(CAMERA_NAMES).tolist() == list(frame().cameras)
    assert {name: array.shape for name, array in arrays.items()} == {
        "images": (4, 1, 2, 3, 32, 64),
        "img2lidar": (4, 1, 2, 4, 4),
        "ego_pose": (4, 1, 4, 4),
        "timestamp": (4, 1, 1),
        "timestamp_ns": (4,),
    }
    assert all(array.dtype == np.float32 for name, array in arrays.items() if name != "timestamp_ns")
    assert arrays["images"][2, 0, 1].min() == arrays["images"][2, 0, 1].max() == 12
    assert arrays["timestamp"].ravel().tolist() == [0.0, 0.5, 1.0, 1.5]
    assert arrays["timestamp_ns"].tolist() == [10**18 + place * 500_000_000 for place in range(4)]
    assert arrays["ego_pose"][:, 0, :3, 3].tolist() == [[3.0 * place, 0, 0] for place in range(4)]  # since the start
    np.testing.assert_allclose(arrays["img2lidar"][0, 0], frame().img2lidar, rtol=1e-6)


def test_true_boxes_come_back_from_a_scene_file(tmp_path: Path) -> None:
    box = {"label": "car", "center": [1.0, 2, 3], "size": [4.0, 2, 1.5], "yaw": 0.5, "velocity": [1.0, 0]}
    moments = [frame(0, boxes=(box,)), frame(1, boxes=()), frame(2, boxes=(box, box))]
    write_scene(tmp_path / "s.npz", [replace(moment, timestamp_ns=n) for n, moment in enumerate(moments)], inputs())
    with np.load(tmp_path / "s.npz") as found:
        assert true_boxes(dict(found)) == {0: [box], 2: [box, box]}
    assert true_boxes({}) == {}


def test_resizing_keeps_what_a_pixel_looks_at() -> None:
    """A gradient image: after scaling and cutting, the pixel that a point falls on has the colour it had before."""
    rows, columns = np.mgrid[0:90, 0:160]
    picture = np.stack([columns, rows, np.zeros_like(rows)], axis=-1).astype(np.uint8)
    before = frame(images=(picture, picture), intrinsics=np.array([[[90.0, 0, 80], [0, 90, 45], [0, 0, 1]]] * 2))
    after = before.resized(32, 64)
    assert all(image.shape == (32, 64, 3) for image in after.images)
    for point in ([10.0, 1.0, -1.0], [8.0, -2.0, -2.0], [12.0, 0.0, -3.0]):
        seen = []
        for each in (before, after):
            column, row, depth, _ = each.lidar2img[0] @ np.array([*point, 1.0])
            seen.append(each.images[0][int(row / depth), int(column / depth)].astype(int))
        assert np.abs(seen[0] - seen[1]).max() <= 2


def test_boxes_are_moved_and_have_corners() -> None:
    box = {"label": "car", "center": [2.0, 0.0, 1.0], "size": [4.0, 2.0, 1.5], "yaw": 0.0, "velocity": [1.0, 0.0]}
    turn = np.array([[0.0, -1, 0, 5], [1, 0, 0, 6], [0, 0, 1, 0], [0, 0, 0, 1]])
    (other,) = moved([box], turn)
    assert other["center"] == pytest.approx([5, 8, 1])
    assert other["yaw"] == pytest.approx(np.pi / 2)
    assert other["velocity"] == pytest.approx([0, 1])
    assert other["label"] == "car"
    found = {tuple(np.round(corner, 6)) for corner in corners_of(other)}
    assert found == {(x, y, z) for x in (4.0, 6.0) for y in (6.0, 10.0) for z in (0.25, 1.75)}
    assert {tuple(np.round(corner[:2], 6)) for corner in corners_of(other)[:4]} == {(4.0, 10.0), (6.0, 10.0)}  # front


def test_cameras_that_do_not_fit_the_bundle() -> None:
    with pytest.raises(
        ConfigError,
        match=r"The bundle takes 1 cameras, and this source has 2: ahead, behind\.\nHint: choose 1 of them, in the b",
    ):
        check_cameras(frame(), inputs(images=("batch", 1, 3, 32, 64)))
    with pytest.raises(
        ConfigError, match=r"takes 6 cameras, and this source has 2.*\nHint: export a detector for these"
    ):
        check_cameras(frame(), inputs(images=("batch", 6, 3, 32, 64)))
    with pytest.raises(
        BundleError, match=r"The bundle takes image; a multi-view detector takes images, img2lidar, ego_"
    ):
        check_cameras(frame(), {"image": TensorInfo(name="image", dtype="float32", shape=("batch", 3, 8, 8))})


def test_calibration_that_is_none() -> None:
    with pytest.raises(ShapeError, match=r"intrinsics has shape \[1, 3, 3\]; with 2 cameras it must be \[2, 3, 3\]\."):
        frame(intrinsics=np.eye(3)[None])
    with pytest.raises(ShapeError, match=r"camera_to_ego is no rigid transform: its rotation is not orthogonal\."):
        frame(camera_to_ego=np.stack([np.diag([2.0, 1, 1, 1])] * 2))
    with pytest.raises(ShapeError, match=r"ego_pose holds NaN or infinity"):
        frame(ego_pose=np.full((4, 4), np.nan))


def test_scenes_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the scene has no frames; give at least one\."):
        scene_arrays([], inputs())
    with pytest.raises(ConfigError, match=r"frame 2 of scene '' is at .* ns, not after the one before"):
        scene_arrays([frame(1), frame(0)], inputs())
    with pytest.raises(
        ConfigError, match=r"cannot be written \(No such file or directory\); give a path that can be\."
    ):
        write_scene(tmp_path / "nowhere" / "scene.npz", [frame()], inputs())
