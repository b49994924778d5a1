"""nuScenes' format: every number comes back as the made sample put it in, and what is broken is named."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.runtime.scenes import nuscenes_sample as made
from trt_compress.errors import ConfigError
from trt_compress.runtime.camera_frames import CameraFrame
from trt_compress.runtime.nuscenes import NuScenes

CAMERAS = ("CAM_FRONT", "CAM_BACK")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.write(tmp_path_factory.mktemp("nuscenes"), scenes=2)


@pytest.fixture(scope="module")
def frames(root: Path) -> list[CameraFrame]:
    return list(NuScenes(root, cameras=CAMERAS).frames("scene-0001"))


def test_scenes_and_times(root: Path, frames: list[CameraFrame]) -> None:
    assert NuScenes(root, cameras=CAMERAS).scenes == ("scene-0000", "scene-0001")
    assert [frame.timestamp_ns for frame in frames] == [
        (made.START_US + place * made.INTERVAL_US) * 1000 for place in range(3)
    ]
    assert {frame.scene for frame in frames} == {"scene-0001"}


def test_images(frames: list[CameraFrame]) -> None:
    for place, frame in enumerate(frames):
        assert frame.cameras == CAMERAS
        for image in frame.images:
            assert image.shape == (*made.SIZE, 3) and image.dtype == np.uint8
            assert np.abs(image.reshape(-1, 3).mean(axis=0) - (200, 30 * place, 40)).max() < 4


def test_boxes_in_the_ego_frame(frames: list[CameraFrame]) -> None:
    for place, frame in enumerate(frames):
        assert frame.boxes is not None
        assert [box["label"] for box in frame.boxes] == ["car", "pedestrian"]  # barriers are no class
        car = frame.boxes[0]
        passed = place * made.INTERVAL_US / 1e6
        center = np.array(made.CAR_START) + np.array([*made.CAR_VELOCITY, 0.0]) * passed
        ahead, left, up = center - made.ego_at(made.START_US + place * made.INTERVAL_US)
        cos, sin = np.cos(made.EGO_YAW), np.sin(made.EGO_YAW)
        assert car["center"] == pytest.approx([ahead * cos + left * sin, left * cos - ahead * sin, up])
        width, length, height = made.CAR_SIZE
        assert car["size"] == [length, width, height]
        assert car["yaw"] == pytest.approx(made.CAR_YAW - made.EGO_YAW)
        vx, vy = made.CAR_VELOCITY
        assert car["velocity"] == pytest.approx([vx * cos + vy * sin, vy * cos - vx * sin])
        assert frame.boxes[1]["velocity"] == [0.0, 0.0]


def test_calibration_carries_a_cameras_own_moment(frames: list[CameraFrame]) -> None:
    """A camera exposes 20 ms later, when the vehicle is 8 cm further; its place is seen from the frame's pose."""
    further = made.SPEED * made.CAMERA_DELAY_US / 1e6
    front, back = frames[0].camera_to_ego
    assert front[:3, 3] == pytest.approx([1.5 + further, 0.0, 1.6])
    assert back[:3, 3] == pytest.approx([-1.0 + further, 0.0, 1.6])
    assert front[:3, :3] == pytest.approx(np.array([[0, 0, 1], [-1, 0, 0], [0, -1, 0]]), abs=1e-12)
    assert back[:3, 2] == pytest.approx([-1, 0, 0], abs=1e-12)
    point = np.array([11.5 + further, 2.0, 1.6, 1.0])  # 10 m ahead of the front camera, 2 m to the left, as high
    column, row, depth, one = frames[0].lidar2img[0] @ point
    assert (column / depth, row / depth, depth, one) == pytest.approx((40 - 50 * 2 / 10, 22.5, 10, 1))
    assert frames[0].img2lidar[0] @ np.array([column, row, depth, 1]) == pytest.approx(point)


def test_a_scene_without_lidar_takes_the_first_cameras_pose(tmp_path: Path) -> None:
    root = made.write(tmp_path)
    edit(root, "sample_data", lambda rows: [row for row in rows if "LIDAR" not in row["filename"]])
    frame = next(NuScenes(root, cameras=CAMERAS).frames("scene-0000"))
    assert frame.ego_pose[:3, 3] == pytest.approx(made.ego_at(made.START_US + made.CAMERA_DELAY_US))
    assert frame.camera_to_ego[0, :3, 3] == pytest.approx([1.5, 0.0, 1.6])


def edit(root: Path, table: str, change: Callable[[list], list]) -> None:  # type: ignore[type-arg]
    path = root / "v1.0-mini" / f"{table}.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def without(field: str) -> Callable[[list], list]:  # type: ignore[type-arg]
    return lambda rows: [{key: value for key, value in row.items() if key != field} for row in rows]


BROKEN: list[tuple[str, Callable[[Path], object], str]] = [
    ("table gone", lambda root: (root / "v1.0-mini/ego_pose.json").unlink(), r"ego_pose\.json is not there; give the"),
    (
        "not JSON",
        lambda root: (root / "v1.0-mini/sample.json").write_text("[{"),
        r"nuScenes table .*sample\.json cannot be read \(.*\); copy it again",
    ),
    (
        "not a list",
        lambda root: (root / "v1.0-mini/sample.json").write_text("{}"),
        r"sample\.json .*not a list of rows",
    ),
    (
        "field gone",
        lambda root: edit(root, "scene", without("name")),
        r"scene\.json: a row lacks 'name'; copy the table",
    ),
    (
        "row gone",
        lambda root: edit(root, "ego_pose", lambda rows: rows[:1]),
        r"ego_pose\.json has no row 'scene-0000-s",
    ),
    (
        "image gone",
        lambda root: next((root / "samples/CAM_BACK").iterdir()).unlink(),
        r"\.jpg is not there; copy the d",
    ),
    (
        "image cut",
        lambda root: next((root / "samples/CAM_BACK").iterdir()).write_bytes(b"\xff\xd8\xff"),
        r"\.jpg is not a readable image \(.*\); copy the data set again\.",
    ),
    (
        "camera without images",
        lambda root: edit(root, "sample_data", lambda rows: [r for r in rows if "BACK" not in r["filename"]]),
        r"sample 'scene-0000-sample-0' of scene 'scene-0000' has no image of CAM_BACK; give cameras that every",
    ),
    (
        "circle",
        lambda root: edit(root, "sample", lambda rows: [{**row, "next": "scene-0000-sample-0"} for row in rows]),
        r"the samples of scene 'scene-0000' go in a circle at 'scene-0000-sample-0'\.",
    ),
    (
        "no calibration",
        lambda root: edit(root, "calibrated_sensor", lambda rows: [{**row, "camera_intrinsic": []} for row in rows]),
        r"'CAM_FRONT' has no usable camera_intrinsic \(3 x 3\) in calibrated_sensor\.",
    ),
]


@pytest.mark.parametrize(("what", "break_it", "message"), BROKEN, ids=[case[0] for case in BROKEN])
def test_what_is_broken_is_named(tmp_path: Path, what: str, break_it: Callable[[Path], object], message: str) -> None:
    root = made.write(tmp_path)
    break_it(root)
    with pytest.raises(ConfigError, match=message):
        list(NuScenes(root, cameras=CAMERAS).frames("scene-0000"))


def test_names_that_are_not_there(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"camera 'CAM_FRONTS' is not in .*; its sensors are CAM_BACK, CAM_FRONT, L"):
        NuScenes(root, cameras=("CAM_FRONTS",))
    with pytest.raises(ConfigError, match=r"scene 'scene-9' is not in .*; there are scene-0000, scene-0001\."):
        next(NuScenes(root, cameras=CAMERAS).frames("scene-9"))
    with pytest.raises(ConfigError, match=r"has no folder of tables"):
        NuScenes(tmp_path)
