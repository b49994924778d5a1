"""Moments of a vehicle with several cameras: images, calibration, pose and boxes; and the `scene.npz` made of them.

A box is a mapping as a stream's results hold it: `label`, `score`, `center` [x, y, z], `size` [length, width, height],
`yaw`, `velocity` [x, y]; metres, radians and seconds, in the ego frame (x forward, y to the left, z up).
"""

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trt_compress.errors import BundleError, ConfigError, ShapeError, UnsupportedError
from trt_compress.files import write_whole
from trt_compress.format.manifest import TensorInfo

Floats = npt.NDArray[np.float64]
Box = Mapping[str, Any]

SCENE_INPUTS = ("images", "img2lidar", "ego_pose", "timestamp")
"""Inputs of a multi-view detector: see `scene_arrays`."""

TRUTH = ("truth_frame", "truth_boxes", "truth_labels")
"""True boxes in a `scene.npz`: number of the frame [K]; center, size, yaw, velocity [K, 9]; name of the class [K]."""

CAMERA_NAMES = "camera_names"
"""Names of the cameras in a `scene.npz`, [V]."""

_RIGID = 1e-3  # how far a pose's rotation may be from orthogonal


@dataclass(frozen=True, slots=True, kw_only=True)
class CameraFrame:
    """What the cameras of a vehicle saw at one moment.

    Attributes:
        images: RGB of each camera, [height, width, 3] uint8; they may differ in size.
        cameras: Names of the cameras, in the same order.
        intrinsics: Camera to pixels, [V, 3, 3]; the middle of the pixel in column c and row r is (c + 0.5, r + 0.5).
        camera_to_ego: Poses of the cameras in the frame of `ego_pose`, [V, 4, 4].
        ego_pose: Ego to global, [4, 4].
        timestamp_ns: Time of the moment.
        boxes: True boxes in the ego frame, if they are known.
        scene: Name of the scene.
    """

    images: tuple[npt.NDArray[np.uint8], ...]
    cameras: tuple[str, ...]
    intrinsics: Floats
    camera_to_ego: Floats
    ego_pose: Floats
    timestamp_ns: int
    boxes: tuple[Box, ...] | None = None
    scene: str = ""

    def __post_init__(self) -> None:
        count = len(self.images)
        for name, array, shape in (
            ("intrinsics", self.intrinsics, (count, 3, 3)),
            ("camera_to_ego", self.camera_to_ego, (count, 4, 4)),
            ("ego_pose", self.ego_pose, (4, 4)),
        ):
            if array.shape != shape:
                raise ShapeError(
                    f"{name} has shape {list(array.shape)}; with {count} cameras it must be {list(shape)}."
                )
            if not np.isfinite(array).all():
                raise ShapeError(f"{name} holds NaN or infinity; give the calibration of these cameras.")
        for name, poses in (("camera_to_ego", self.camera_to_ego), ("ego_pose", self.ego_pose[None])):
            turns = poses[:, :3, :3]
            if np.abs(turns @ turns.swapaxes(1, 2) - np.eye(3)).max(initial=0) > _RIGID:
                raise ShapeError(f"{name} is no rigid transform: its rotation is not orthogonal.")

    @property
    def img2lidar(self) -> Floats:
        """[V, 4, 4], from (column · depth, row · depth, depth, 1) to the ego frame."""
        return self.camera_to_ego @ np.linalg.inv(_padded(self.intrinsics))

    @property
    def lidar2img(self) -> Floats:
        """[V, 4, 4], from the ego frame to (column · depth, row · depth, depth, 1)."""
        return _padded(self.intrinsics) @ np.linalg.inv(self.camera_to_ego)

    def resized(self, height: int, width: int) -> "CameraFrame":
        """The frame with images of one size: scaled until they cover it, cut evenly left and right, and at the top.

        Calibration follows. Images that have the size already are taken as they are.
        """
        images, intrinsics = [], self.intrinsics.copy()
        for view, image in enumerate(self.images):
            rows, columns = image.shape[:2]
            if (rows, columns) == (height, width):
                images.append(image)
                continue
            scale = max(height / rows, width / columns)
            scaled = max(height, round(rows * scale)), max(width, round(columns * scale))
            top, left = scaled[0] - height, (scaled[1] - width) // 2
            picture = _pillow().fromarray(image).resize(scaled[::-1], _pillow().Resampling.BOX)
            images.append(np.asarray(picture)[top : top + height, left : left + width])
            intrinsics[view, 0] *= scaled[1] / columns
            intrinsics[view, 1] *= scaled[0] / rows
            intrinsics[view, :2, 2] -= left, top
        return CameraFrame(
            images=tuple(images),
            cameras=self.cameras,
            intrinsics=intrinsics,
            camera_to_ego=self.camera_to_ego,
            ego_pose=self.ego_pose,
            timestamp_ns=self.timestamp_ns,
            boxes=self.boxes,
            scene=self.scene,
        )


def check_cameras(frame: CameraFrame, inputs: Mapping[str, TensorInfo]) -> tuple[int, int]:
    """Hold a frame against the inputs of a bundle; returns the height and width of the images it takes.

    Raises:
        BundleError: the bundle is no multi-view detector.
        ConfigError: it takes another number of cameras.
    """
    info = inputs.get("images")
    shape = () if info is None else info.shape
    if set(inputs) != set(SCENE_INPUTS) or len(shape) != 5:
        raise BundleError(
            f"The bundle takes {', '.join(inputs)}; a multi-view detector takes {', '.join(SCENE_INPUTS)} with images "
            "of [batch, cameras, 3, height, width]."
        )
    _, cameras, _, height, width = shape
    if len(frame.images) != cameras:
        raise ConfigError(
            f"The bundle takes {cameras} cameras, and this source has {len(frame.images)}: {', '.join(frame.cameras)}.",
            hint=f"choose {cameras} of them, in the bundle's order, the first looking ahead."
            if len(frame.images) > int(cameras)
            else "export a detector for these cameras.",
        )
    return int(height), int(width)


def scene_arrays(frames: Iterable[CameraFrame], inputs: Mapping[str, TensorInfo]) -> dict[str, npt.NDArray[Any]]:
    """The inputs of a detector over time, and `timestamp_ns`.

    Args:
        frames: Consecutive moments of one scene.
        inputs: What the bundle takes.

    Returns:
        `images` [T, 1, V, 3, height, width] from 0 to 255, `img2lidar` [T, 1, V, 4, 4], `ego_pose` [T, 1, 4, 4]
        relative to the place of the first frame, `timestamp` [T, 1, 1] in seconds since then, all float32;
        `timestamp_ns` [T].

    Raises:
        ConfigError: there is no frame, the cameras do not fit, or time does not go forward.
    """
    kept: list[CameraFrame] = []
    for frame in frames:
        kept.append(frame.resized(*check_cameras(frame, inputs)))
        if len(kept) > 1 and frame.timestamp_ns <= kept[-2].timestamp_ns:
            raise ConfigError(
                f"frame {len(kept)} of scene '{frame.scene}' is at {frame.timestamp_ns} ns, not after the one before; "
                "give the frames of one scene in order of time."
            )
    if not kept:
        raise ConfigError("the scene has no frames; give at least one.")
    times = np.array([frame.timestamp_ns for frame in kept], np.int64)
    poses = np.stack([frame.ego_pose for frame in kept])
    # float32 is exact to a micrometre near the start, not in a whole city
    poses[:, :3, 3] -= poses[0, :3, 3].copy()
    images = np.stack([np.stack(frame.images).transpose(0, 3, 1, 2) for frame in kept])
    return {
        "images": images.astype(np.float32)[:, None],
        "img2lidar": np.stack([frame.img2lidar for frame in kept]).astype(np.float32)[:, None],
        "ego_pose": poses.astype(np.float32)[:, None],
        "timestamp": ((times - times[0]) / 1e9).astype(np.float32)[:, None, None],
        "timestamp_ns": times,
    }


def write_scene(path: Path, frames: Iterable[CameraFrame], inputs: Mapping[str, TensorInfo]) -> int:
    """Write the `scene.npz` that `trt-compress run --source scene.npz` reads; returns the number of frames.

    Where the boxes of every frame are known, they are in it, for `--labels scene.npz`, and the names of the cameras,
    for an overlay.

    Raises:
        ConfigError: as `scene_arrays`, or the file cannot be written.
    """
    frames = tuple(frames)
    arrays = scene_arrays(frames, inputs) | _truth_arrays(frames)
    arrays[CAMERA_NAMES] = np.array(frames[0].cameras, np.str_)
    packed = io.BytesIO()
    try:
        np.savez_compressed(packed, allow_pickle=False, **arrays)
        write_whole(path, packed.getvalue())
    except OSError as error:
        raise ConfigError(f"'{path}' cannot be written ({error.strerror or error}); give a path that can be.") from None
    return len(arrays["timestamp_ns"])


def _truth_arrays(frames: Sequence[CameraFrame]) -> dict[str, npt.NDArray[Any]]:
    boxes = [(number, box) for number, frame in enumerate(frames) for box in frame.boxes or ()]
    if any(frame.boxes is None for frame in frames):
        return {}
    numbers = [(*box["center"], *box["size"], box["yaw"], *box.get("velocity", (0.0, 0.0))) for _, box in boxes]
    return {
        "truth_frame": np.array([number for number, _ in boxes], np.int64),
        "truth_boxes": np.array(numbers, np.float64).reshape(-1, 9),
        "truth_labels": np.array([str(box["label"]) for _, box in boxes], np.str_),
    }


def true_boxes(arrays: Mapping[str, npt.NDArray[Any]]) -> dict[int, list[Box]]:
    """The true boxes of a `scene.npz` by the number of their frame; none if it holds none."""
    found: dict[int, list[Box]] = {}
    if all(name in arrays for name in TRUTH):
        for frame, numbers, label in zip(*(arrays[name] for name in TRUTH), strict=True):
            box = {"label": str(label), "center": numbers[:3].tolist(), "size": numbers[3:6].tolist()}
            found.setdefault(int(frame), []).append(
                {**box, "yaw": float(numbers[6]), "velocity": numbers[7:9].tolist()}
            )
    return found


def corners_of(box: Box) -> Floats:
    """Corners of a box, [8, 3]: the front four first (left below, left above, right below, right above)."""
    length, width, height = box["size"]
    offsets = np.array([[x, y, z] for x in (0.5, -0.5) for y in (0.5, -0.5) for z in (-0.5, 0.5)])
    cos, sin = np.cos(box["yaw"]), np.sin(box["yaw"])
    turn = np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
    corners: Floats = np.asarray(box["center"], np.float64) + (offsets * [length, width, height]) @ turn.T
    return corners


def moved(boxes: Sequence[Box], pose: npt.NDArray[np.floating[Any]]) -> tuple[Box, ...]:
    """Boxes by a rigid transform [4, 4] that keeps up upright."""
    yaw = float(np.arctan2(pose[1, 0], pose[0, 0]))
    return tuple(
        {
            **box,
            "center": (pose[:3, :3] @ np.asarray(box["center"], np.float64) + pose[:3, 3]).tolist(),
            "yaw": float((box["yaw"] + yaw + np.pi) % (2 * np.pi) - np.pi),
            "velocity": (pose[:2, :2] @ np.asarray(box.get("velocity", (0.0, 0.0)), np.float64)).tolist(),
        }
        for box in boxes
    )


def _padded(intrinsics: Floats) -> Floats:
    padded = np.tile(np.eye(4), (len(intrinsics), 1, 1))
    padded[:, :3, :3] = intrinsics
    return padded


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise UnsupportedError(
            "images are read and drawn by Pillow, which is not installed.", hint="pip install pillow"
        ) from error
    return Image
