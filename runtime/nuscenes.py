"""nuScenes as it lies on disk: tables of JSON, images beside them; scenes become frames.

Needs numpy and Pillow. The tables and their fields are those of nuScenes' public schema (arXiv:1903.11027). Frames
are the key frames (`sample`). The ego pose of a frame is that of its `LIDAR_TOP`, or of its first camera; each camera
exposes at a time of its own, so its place is carried over through its own ego pose.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trt_compress.errors import ConfigError
from trt_compress.files import RECORD_LIMIT, open_regular, read_regular
from trt_compress.foreign import reading, reason_of, strict_json
from trt_compress.runtime.camera_frames import Box, CameraFrame, Floats, _pillow, moved
from trt_compress.suggest import did_you_mean

CAMERAS = ("CAM_FRONT", "CAM_FRONT_LEFT", "CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT", "CAM_FRONT_RIGHT")
"""The cameras of nuScenes, from the one ahead to the left around the vehicle."""

CLASS_OF_CATEGORY: Mapping[str, str] = {
    "vehicle.car": "car",
    "vehicle.truck": "truck",
    "vehicle.bus": "truck",
    "vehicle.construction": "truck",
    "vehicle.trailer": "truck",
    "human.pedestrian": "pedestrian",
}
"""Beginning of a category's name → class; other categories are left out."""

_FIELDS: Mapping[str, tuple[str, ...]] = {  # what is read of each table
    "scene": ("name", "first_sample_token"),
    "sample": ("timestamp", "next"),
    "sample_data": ("sample_token", "ego_pose_token", "calibrated_sensor_token", "filename", "is_key_frame"),
    "ego_pose": ("translation", "rotation"),
    "calibrated_sensor": ("sensor_token", "translation", "rotation", "camera_intrinsic"),
    "sensor": ("channel",),
    "sample_annotation": ("sample_token", "instance_token", "translation", "size", "rotation", "prev", "next"),
    "instance": ("category_token",),
    "category": ("name",),
}
_LONGEST_GAP_S = 1.5  # between two annotations that a velocity is taken from
_MICROSECOND_NS = 1000


class NuScenes:
    """A nuScenes data set, or anything written in its format.

    Args:
        root: Folder that holds `samples/` and the folder of the tables.
        version: Folder of the tables, `v1.0-mini`, `v1.0-trainval`; None: the only one.
        cameras: Cameras to read, in the order that the bundle wants them.
        classes: Beginning of a category's name → class.

    Raises:
        ConfigError: a table is missing, is not JSON, or lacks a field; a camera is not there.
    """

    def __init__(
        self,
        root: Path,
        *,
        version: str | None = None,
        cameras: Sequence[str] = CAMERAS,
        classes: Mapping[str, str] = CLASS_OF_CATEGORY,
    ) -> None:
        self._root = Path(root)
        self._folder = self._root / (version or self._only_version())
        self._tables = {name: self._read(name, fields) for name, fields in _FIELDS.items()}
        self._cameras, self._classes = tuple(cameras), classes
        known = sorted(row["channel"] for row in self._tables["sensor"].values())
        for camera in self._cameras:
            if camera not in known:
                raise ConfigError(
                    f"camera '{camera}' is not in {self._folder}; its sensors are {', '.join(known)}."
                    f"{did_you_mean(camera, known)}"
                )
        self._data: dict[str, dict[str, dict[str, Any]]] = {}
        for row in self._tables["sample_data"].values():
            if row["is_key_frame"]:
                calibrated = self._row("calibrated_sensor", row["calibrated_sensor_token"])
                channel = self._row("sensor", calibrated["sensor_token"])["channel"]
                self._data.setdefault(row["sample_token"], {})[channel] = row
        self._annotations: dict[str, list[dict[str, Any]]] = {}
        for row in self._tables["sample_annotation"].values():
            self._annotations.setdefault(row["sample_token"], []).append(row)

    @property
    def scenes(self) -> tuple[str, ...]:
        """Names of the scenes, in the order of the table."""
        return tuple(row["name"] for row in self._tables["scene"].values())

    def frames(self, scene: str) -> Iterator[CameraFrame]:
        """The key frames of a scene, in order of time.

        Raises:
            ConfigError: there is no such scene, or something that it names is missing or broken.
        """
        rows = {row["name"]: row for row in self._tables["scene"].values()}
        if scene not in rows:
            raise ConfigError(
                f"scene '{scene}' is not in {self._folder}; there are {', '.join(rows) or 'none'}."
                f"{did_you_mean(scene, rows)}"
            )
        token, seen = rows[scene]["first_sample_token"], set()
        while token:
            if token in seen:
                raise ConfigError(f"{self._folder}: the samples of scene '{scene}' go in a circle at '{token}'.")
            seen.add(token)
            sample = self._row("sample", token)
            yield self._frame(scene, token, sample)
            token = sample["next"]

    def _frame(self, scene: str, token: str, sample: Mapping[str, Any]) -> CameraFrame:
        data = self._data.get(token, {})
        missing = [camera for camera in self._cameras if camera not in data]
        if missing:
            raise ConfigError(
                f"{self._folder}: sample '{token}' of scene '{scene}' has no image of {', '.join(missing)}; give "
                "cameras that every sample has."
            )
        main = data.get("LIDAR_TOP", data[self._cameras[0]])
        ego_pose = self._pose("ego_pose", main["ego_pose_token"])
        to_ego = np.linalg.inv(ego_pose)
        images, intrinsics, poses = [], [], []
        for camera in self._cameras:
            row = data[camera]
            calibrated = self._row("calibrated_sensor", row["calibrated_sensor_token"])
            intrinsics.append(self._matrix(calibrated["camera_intrinsic"], camera))
            mounted = self._pose("calibrated_sensor", row["calibrated_sensor_token"])
            poses.append(to_ego @ self._pose("ego_pose", row["ego_pose_token"]) @ mounted)
            images.append(self._image(row["filename"]))
        boxes = [self._box(row) for row in self._annotations.get(token, []) if self._class(row)]
        return CameraFrame(
            images=tuple(images),
            cameras=self._cameras,
            intrinsics=np.stack(intrinsics),
            camera_to_ego=np.stack(poses),
            ego_pose=ego_pose,
            timestamp_ns=int(sample["timestamp"]) * _MICROSECOND_NS,
            boxes=moved(boxes, to_ego),
            scene=scene,
        )

    def _box(self, row: Mapping[str, Any]) -> Box:
        """An annotation in the global frame; nuScenes gives width, length, height."""
        width, length, height = row["size"]
        return {
            "label": self._class(row),
            "score": 1.0,
            "center": list(row["translation"]),
            "size": [length, width, height],
            "yaw": _yaw(_rotation(row["rotation"])),
            "velocity": self._velocity(row),
            "track": row["instance_token"],
            "points": row.get("num_lidar_pts"),
        }

    def _class(self, row: Mapping[str, Any]) -> str | None:
        name = self._row("category", self._row("instance", row["instance_token"])["category_token"])["name"]
        return next((kind for start, kind in self._classes.items() if name.startswith(start)), None)

    def _velocity(self, row: Mapping[str, Any]) -> list[float]:
        """From the annotation before to the one after, as far as there are such; zero if there is neither."""
        first = self._row("sample_annotation", row["prev"]) if row["prev"] else row
        last = self._row("sample_annotation", row["next"]) if row["next"] else row
        times = [self._row("sample", other["sample_token"])["timestamp"] / 1e6 for other in (first, last)]
        gap = times[1] - times[0]
        if not 0 < gap <= _LONGEST_GAP_S * (2 if row["prev"] and row["next"] else 1):
            return [0.0, 0.0]
        change = (np.asarray(last["translation"], np.float64) - np.asarray(first["translation"], np.float64)) / gap
        return [float(change[0]), float(change[1])]

    def _pose(self, table: str, token: str) -> Floats:
        row = self._row(table, token)
        pose = np.eye(4)
        pose[:3, :3] = _rotation(row["rotation"])
        pose[:3, 3] = row["translation"]
        return pose

    def _matrix(self, rows: Any, camera: str) -> Floats:
        matrix = np.asarray(rows, np.float64)
        if matrix.shape != (3, 3) or abs(np.linalg.det(matrix)) < 1e-9:
            raise ConfigError(
                f"{self._folder}: '{camera}' has no usable camera_intrinsic (3 x 3) in calibrated_sensor."
            )
        return matrix

    def _image(self, name: str) -> "np.ndarray[Any, np.dtype[np.uint8]]":
        path = self._root / name
        try:
            with open_regular(path) as file, _pillow().open(file) as image:
                return np.asarray(image.convert("RGB"))
        except Exception as error:  # whatever a decoder raises for a damaged file
            absent = isinstance(error, FileNotFoundError)
            reason = "is not there" if absent else f"is not a readable image ({reason_of(error)})"
            raise ConfigError(f"{path} {reason}; copy the data set again.") from None

    def _row(self, table: str, token: str) -> dict[str, Any]:
        try:
            row: dict[str, Any] = self._tables[table][token]
        except KeyError:
            raise ConfigError(
                f"{self._folder / table}.json has no row '{token}' that another table names; copy the tables again."
            ) from None
        return row

    def _only_version(self) -> str:
        found = sorted(path.parent.name for path in self._root.glob("*/sample_data.json"))
        if len(found) != 1:
            listed = (
                f"several versions ({', '.join(found)}); name one" if found else "no folder of tables (v1.0-mini, …)"
            )
            raise ConfigError(f"{self._root} has {listed}; a nuScenes data set has samples/ and v1.0-…/ in it.")
        return found[0]

    def _read(self, name: str, fields: Sequence[str]) -> dict[str, dict[str, Any]]:
        path = self._folder / f"{name}.json"
        if not path.exists():
            raise ConfigError(f"{path} is not there; give the folder of a nuScenes data set.")
        with reading(f"The nuScenes table {path}", "copy it again"):
            rows = strict_json(read_regular(path, limit=RECORD_LIMIT))
        needed = ("token", *fields)
        if not isinstance(rows, list):
            raise ConfigError(f"{path} is not a table of nuScenes (not a list of rows); copy it again.")
        for row in rows:
            lacking = [field for field in needed if not isinstance(row, dict) or field not in row]
            if lacking:
                raise ConfigError(f"{path}: a row lacks '{lacking[0]}'; copy the table again.")
        return {row["token"]: row for row in rows}


def _rotation(quaternion: Sequence[float]) -> Floats:
    """Rotation matrix of a quaternion w, x, y, z."""
    numbers = np.asarray(quaternion, np.float64)
    w, x, y, z = numbers / np.linalg.norm(numbers)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def _yaw(rotation: Floats) -> float:
    return float(np.arctan2(rotation[1, 0], rotation[0, 0]))
