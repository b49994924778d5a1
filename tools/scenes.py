"""Scenes of several cameras by name: made ones, and those of a nuScenes data set."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from trt_compress.errors import ConfigError
from trt_compress.models.zoo.data.driving_scenes import CLASSES, Rig, SceneFrame, SceneOptions, generate_scene
from trt_compress.runtime.camera_frames import Box, CameraFrame
from trt_compress.runtime.nuscenes import CAMERAS, NuScenes

FORMS = "made:SEED or nuscenes:FOLDER#SCENE"
_AROUND = {1: ("front",), 2: ("front", "back"), 4: ("front", "left", "back", "right")}


def open_scene(
    source: str, *, rig: Rig, cameras: Sequence[str] | None = None, num_frames: int | None = None
) -> Iterator[CameraFrame]:
    """Frames of a scene.

    Args:
        source: `made:7`, a scene made from seed 7; `nuscenes:FOLDER#scene-0061`, or `nuscenes:FOLDER` for the first.
        rig: Cameras of a made scene.
        cameras: Cameras of nuScenes, in the bundle's order; None: all six.
        num_frames: As many as this at most; None: all, of a made scene its usual number.

    Raises:
        ConfigError: there is no such scene.
    """
    kind, colon, rest = source.partition(":")
    if not colon or not rest or kind not in ("made", "nuscenes"):
        raise ConfigError(f"'{source}' is not a scene; write {FORMS}.")
    if num_frames is not None and num_frames < 1:
        raise ConfigError(f"{num_frames} frames make no scene; give at least 1.")
    if kind == "made":
        if not rest.isascii() or not rest.isdigit():
            raise ConfigError(f"'{source}' names no seed; write made: and a whole number from 0, such as made:7.")
        options = SceneOptions() if num_frames is None else SceneOptions(num_frames=num_frames)
        names = _AROUND.get(rig.num_cameras) or tuple(f"camera{number}" for number in range(rig.num_cameras))
        frames = generate_scene(int(rest), rig=rig, options=options)
        return (camera_frame(frame, names, source) for frame in frames)
    folder, _, scene = rest.partition("#")
    data = NuScenes(Path(folder), cameras=cameras or CAMERAS)
    if not data.scenes:
        raise ConfigError(f"{folder} has no scenes.")
    found = data.frames(scene or data.scenes[0])
    return found if num_frames is None else (frame for _, frame in zip(range(num_frames), found, strict=False))


def camera_frame(frame: SceneFrame, cameras: Sequence[str], scene: str) -> CameraFrame:
    """A made frame as one that any source gives."""
    return CameraFrame(
        images=tuple(frame.images.transpose(0, 2, 3, 1)),
        cameras=tuple(cameras),
        intrinsics=frame.intrinsics.astype(np.float64),
        camera_to_ego=frame.camera_to_ego.astype(np.float64),
        ego_pose=frame.ego_pose,
        timestamp_ns=round(frame.timestamp_s * 1e9),
        boxes=tuple(_box(frame, int(index)) for index in np.flatnonzero(frame.counted())),
        scene=scene,
    )


def _box(frame: SceneFrame, index: int) -> Box:
    numbers = frame.boxes[index].astype(np.float64).tolist()
    label = int(frame.labels[index])
    return {
        "class": label,
        "label": CLASSES[label],
        "score": 1.0,
        "center": numbers[:3],
        "size": numbers[3:6],
        "yaw": numbers[6],
        "velocity": numbers[7:],
        "track": int(frame.track_ids[index]),
        "visibility": float(frame.visibility[index]),
    }
