"""Synthetic driving scenes seen by several calibrated cameras: images, calibration, ego poses, boxes with visibility.

Everything follows from a seed and needs numpy alone. Cars, trucks and pedestrians move among poles, trees and houses
while the ego vehicle drives; each is a textured cuboid, drawn by casting rays against a depth buffer, so that nearer
things hide farther ones.

Frames of reference: `global` and `ego` have z up, and ego has x forward, y to the left and its origin on the ground
below the vehicle; a camera has x to the right, y down and z forward. The centre of the pixel in column c, row r is at
(c + 0.5, r + 0.5). Lengths are metres, angles radians, speeds metres a second.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from trt_compress.errors import ConfigError

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

CLASSES = ("car", "truck", "pedestrian")
TRAIN_SEEDS, HELD_OUT_SEEDS = range(1_000_000, 2_000_000), range(1_000)
"""Scenes for training, and scenes that no training sees; each scene has one seed."""

_SIZES = {  # mean length, width, height
    "car": (4.3, 1.8, 1.5),
    "truck": (7.0, 2.4, 3.0),
    "pedestrian": (0.7, 0.7, 1.75),
    "pole": (0.3, 0.3, 4.0),
    "tree": (1.6, 1.6, 4.5),
    "house": (7.0, 4.0, 5.0),
}
_KINDS = tuple(_SIZES)
_TARGET_SHARES = (0.45, 0.2, 0.35)
_SPEEDS = {"car": (1.0, 7.0), "truck": (1.0, 5.0), "pedestrian": (0.5, 1.8)}
_NEAREST = 0.2  # of a camera, metres
_LEAST_PIXELS, _LEAST_VISIBILITY = 12, 0.25  # of a box that a detector is asked for
_LIGHT = np.array([[0.95, 0.75], [1.0, 0.7], [1.15, 0.6]])  # of the faces across x, y, z: on the + side, the - side


@dataclass(frozen=True, slots=True, kw_only=True)
class Rig:
    """The cameras of a vehicle.

    Attributes:
        num_cameras: Cameras, evenly around the vehicle; the first looks ahead, the next to the left of it.
        height: Rows of an image.
        width: Columns of an image.
        field_of_view_degrees: Of the width of an image.
        horizon_row: Row of the horizon as a share of the height.
        mount_height: Metres above the ground.
        mount_radius: Metres from the middle of the vehicle.
    """

    num_cameras: int = 4
    height: int = 64
    width: int = 128
    field_of_view_degrees: float = 100.0
    horizon_row: float = 0.375
    mount_height: float = 1.7
    mount_radius: float = 0.8

    def __post_init__(self) -> None:
        if self.num_cameras < 1 or self.height < 8 or self.width < 8:
            raise ConfigError(
                f"rig: {self.num_cameras} cameras of {self.height} x {self.width} pixels; give at least one camera of "
                "at least 8 x 8."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneOptions:
    """What is in a scene: frames, seconds between them, how far boxes count, how many targets there may be."""

    num_frames: int = 10
    interval_s: float = 0.2
    range_m: float = 16.0
    least_targets: int = 5
    most_targets: int = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneFrame:
    """What the vehicle sees at one moment.

    Attributes:
        images: RGB, [V, 3, height, width], uint8.
        instances: Box that each pixel shows, [V, height, width], -1: none.
        intrinsics: Camera to pixels, [V, 3, 3].
        camera_to_ego: Poses of the cameras, [V, 4, 4].
        ego_pose: Ego to global, [4, 4].
        timestamp_s: Seconds since the scene began.
        boxes: In the ego frame, [G, 9]: x, y, z of the centre, length, width, height, yaw, and velocity over ground
            x, y along the axes of the ego frame.
        labels: Place in CLASSES, [G].
        track_ids: Number of the object in its scene, [G].
        pixels: Pixels in which a box is seen, in all cameras, [G].
        visibility: Those over the pixels that it would have if nothing hid it, [G].
    """

    images: npt.NDArray[np.uint8]
    instances: npt.NDArray[np.int16]
    intrinsics: Floats
    camera_to_ego: Floats
    ego_pose: Doubles
    timestamp_s: float
    boxes: Floats
    labels: Integers
    track_ids: Integers
    pixels: Integers
    visibility: Floats

    @property
    def img2lidar(self) -> Floats:
        """[V, 4, 4], from (column · depth, row · depth, depth, 1) to the ego frame."""
        inverse = np.tile(np.eye(4), (len(self.intrinsics), 1, 1))
        inverse[:, :3, :3] = np.linalg.inv(self.intrinsics.astype(np.float64))
        return (self.camera_to_ego @ inverse).astype(np.float32)

    def counted(self) -> npt.NDArray[np.bool_]:
        """Boxes that are seen well enough to be asked for, [G]."""
        return (self.pixels >= _LEAST_PIXELS) & (self.visibility >= _LEAST_VISIBILITY)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Objects:
    """Objects of a scene in the global frame at its beginning; the targets come first."""

    kinds: Integers
    centers: Doubles
    sizes: Doubles
    yaws: Doubles
    velocities: Doubles
    colors: Doubles
    num_targets: int


def generate_scene(seed: int, *, rig: Rig | None = None, options: SceneOptions | None = None) -> Iterator[SceneFrame]:
    """Draw the frames of one scene, one after the other.

    Args:
        seed: The scene; equal seeds give equal frames.
        rig: The cameras; each scene mounts them a little otherwise.
        options: What is in the scene.

    Raises:
        ConfigError: the seed is negative.
    """
    if seed < 0:
        raise ConfigError(f"seed={seed}; give a whole number from 0.")
    rig, options = rig or Rig(), options or SceneOptions()
    random = np.random.default_rng(seed)
    poses = _drive(random, options)
    intrinsics, camera_to_ego = _mount(random, rig)
    objects = _populate(random, options, poses)
    look = _Look(random)
    views = [_View(rig, intrinsics[camera], camera_to_ego[camera]) for camera in range(rig.num_cameras)]
    for index, pose in enumerate(poses):
        yield _draw(random, look, options, objects, views, pose, index * options.interval_s)


def _drive(random: np.random.Generator, options: SceneOptions) -> Doubles:
    """Poses of the ego vehicle, [T, 4, 4]: constant speed, straight or in a bend."""
    speed = random.uniform(0, 8)
    turn = random.uniform(-0.2, 0.2) if random.random() < 0.5 else 0.0
    yaw, position = random.uniform(-np.pi, np.pi), random.uniform(-200, 200, 2)
    poses = np.tile(np.eye(4), (options.num_frames, 1, 1))
    for pose in poses:
        pose[:2, :2] = _rotation(yaw)
        pose[:2, 3] = position
        middle = yaw + turn * options.interval_s / 2
        position = position + speed * options.interval_s * np.array([np.cos(middle), np.sin(middle)])
        yaw += turn * options.interval_s
    return poses


def _mount(random: np.random.Generator, rig: Rig) -> tuple[Floats, Floats]:
    focal = rig.width / 2 / np.tan(np.radians(rig.field_of_view_degrees) / 2)
    intrinsics = np.tile(np.eye(3), (rig.num_cameras, 1, 1))
    poses = np.tile(np.eye(4), (rig.num_cameras, 1, 1))
    forward = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])  # axes of a camera that looks along x
    for camera in range(rig.num_cameras):
        intrinsics[camera, [0, 1], [0, 1]] = focal * random.uniform(0.96, 1.04)
        intrinsics[camera, :2, 2] = rig.width / 2, rig.height * rig.horizon_row
        yaw = 2 * np.pi * camera / rig.num_cameras + np.radians(random.uniform(-2, 2))
        pitch = np.radians(random.uniform(-1.5, 1.5))
        tilt = np.array([[np.cos(pitch), 0, np.sin(pitch)], [0, 1, 0], [-np.sin(pitch), 0, np.cos(pitch)]])
        turn = np.eye(3)
        turn[:2, :2] = _rotation(yaw)
        poses[camera, :3, :3] = turn @ tilt @ forward
        poses[camera, :3, 3] = (*(rig.mount_radius * turn[:2, 0]), rig.mount_height + random.uniform(-0.1, 0.1))
    return intrinsics.astype(np.float32), poses.astype(np.float32)


def _populate(random: np.random.Generator, options: SceneOptions, poses: Doubles) -> _Objects:
    """Place objects so that none is ever inside another or inside the ego vehicle."""
    middle = poses[len(poses) // 2]
    road = np.arctan2(middle[1, 0], middle[0, 0])
    times = np.arange(options.num_frames) * options.interval_s
    paths: list[tuple[Doubles, float]] = [(poses[:, :2, 3], 2.6)]
    rows: list[tuple[int, Doubles, Doubles, float, Doubles]] = []
    num_targets = int(random.integers(options.least_targets, options.most_targets + 1))
    num_others = int(random.integers(3, 9))
    placed_targets = 0
    for number in range(num_targets + num_others):
        is_target = number < num_targets
        kind = int(random.choice(3, p=_TARGET_SHARES)) if is_target else 3 + int(random.integers(3))
        name = _KINDS[kind]
        size = np.array(_SIZES[name]) * random.uniform(0.85, 1.15, 3)
        for _ in range(20):
            distance = random.uniform(3.5, options.range_m + 2) if is_target else random.uniform(6, 32)
            bearing = random.uniform(-np.pi, np.pi)
            center = middle[:2, 3] + distance * np.array([np.cos(bearing), np.sin(bearing)])
            along = random.random() < 0.7 and name != "pedestrian"
            yaw = road + random.choice([0, np.pi]) + random.normal(0, 0.06) if along else random.uniform(-np.pi, np.pi)
            moves = is_target and random.random() < 0.6
            speed = random.uniform(*_SPEEDS[name]) if moves else 0.0
            velocity = speed * np.array([np.cos(yaw), np.sin(yaw)])
            path = center + (times - times.mean())[:, None] * velocity
            reach = 0.5 * float(np.hypot(size[0], size[1])) * (0.8 if name in ("car", "truck") else 1.0)
            if all((np.linalg.norm(path - other, axis=1) > reach + room).all() for other, room in paths):
                paths.append((path, reach))
                rows.append((kind, np.array([*path[0], size[2] / 2]), size, yaw, velocity))
                placed_targets += is_target
                break
    colors = random.uniform(0.1, 0.95, (len(rows), 2, 3))
    return _Objects(
        kinds=np.array([row[0] for row in rows], np.int64),
        centers=np.array([row[1] for row in rows]).reshape(-1, 3),
        sizes=np.array([row[2] for row in rows]).reshape(-1, 3),
        yaws=np.array([row[3] for row in rows]),
        velocities=np.array([row[4] for row in rows]).reshape(-1, 2),
        colors=colors,
        num_targets=placed_targets,
    )


class _Look:
    """Colours of ground and sky, brightness, and a noise pattern, drawn once for a scene."""

    def __init__(self, random: np.random.Generator) -> None:
        self.sky = np.array([0.55, 0.7, 0.9]) * random.uniform(0.6, 1.1)
        self.road = np.full(3, random.uniform(0.25, 0.45))
        self.verge = np.array([0.3, 0.42, 0.2]) * random.uniform(0.7, 1.3)
        self.brightness = random.uniform(0.75, 1.15)
        self.noise = random.uniform(0.85, 1.15, (64, 64))
        self.road_yaw = random.uniform(-np.pi, np.pi)
        self.half_width = random.uniform(5, 9)


class _View:
    """One camera, and the direction of each of its pixels."""

    def __init__(self, rig: Rig, intrinsics: Floats, camera_to_ego: Floats) -> None:
        self.height, self.width = rig.height, rig.width
        self.intrinsics, self.camera_to_ego = intrinsics, camera_to_ego
        self.origin = camera_to_ego[:3, 3].astype(np.float32)
        columns, rows = np.meshgrid(np.arange(rig.width) + 0.5, np.arange(rig.height) + 0.5)
        pixels = np.stack([columns, rows, np.ones_like(rows)]).reshape(3, -1)
        matrix = camera_to_ego[:3, :3].astype(np.float64) @ np.linalg.inv(intrinsics.astype(np.float64))
        # in the ego frame, [3, height, width]; one unit of a ray is one metre of depth
        self.rays = (matrix @ pixels).reshape(3, rig.height, rig.width).astype(np.float32)
        self.down = self.rays[2] < -1e-3
        self.ground_depth = np.where(self.down, self.origin[2] / np.where(self.down, -self.rays[2], 1.0), 1e4)
        self.ground = self.origin[:, None] + self.ground_depth[self.down] * self.rays[:, self.down]

    def window(self, corners: Doubles) -> tuple[slice, slice] | None:
        """Rows and columns that hold a box; None if it is not in the image."""
        in_camera = (corners - self.camera_to_ego[:3, 3]) @ self.camera_to_ego[:3, :3]
        behind = in_camera[:, 2] < _NEAREST
        if behind.all():
            return None
        if behind.any():
            return slice(0, self.height), slice(0, self.width)
        pixels = in_camera @ self.intrinsics.T
        pixels = pixels[:, :2] / pixels[:, 2:]
        low, high = np.floor(pixels.min(axis=0)).astype(int), np.ceil(pixels.max(axis=0)).astype(int)
        left, top = max(low[0], 0), max(low[1], 0)
        right, bottom = min(high[0], self.width), min(high[1], self.height)
        return None if left >= right or top >= bottom else (slice(top, bottom), slice(left, right))


def _draw(
    random: np.random.Generator,
    look: _Look,
    options: SceneOptions,
    objects: _Objects,
    views: Sequence[_View],
    pose: Doubles,
    time_s: float,
) -> SceneFrame:
    centers = objects.centers.copy()
    centers[:, :2] += objects.velocities * time_s
    centers = (centers - pose[:3, 3]) @ pose[:3, :3]
    yaws = objects.yaws - np.arctan2(pose[1, 0], pose[0, 0])
    num_objects = len(centers)
    corners = [box_corners(*box) for box in zip(centers, objects.sizes, yaws, strict=True)]
    images = np.empty((len(views), views[0].height, views[0].width, 3), np.float32)
    instances = np.full(images.shape[:3], -1, np.int16)
    alone = np.zeros(num_objects, np.int64)
    for camera, view in enumerate(views):
        _background(look, pose, view, images[camera])
        depth = view.ground_depth.copy()
        for index in range(num_objects):
            window = view.window(corners[index])
            if window is None:
                continue
            hit, distance, place, face = _cast(
                view.origin, view.rays[(slice(None), *window)], centers[index], objects.sizes[index], yaws[index]
            )
            alone[index] += int(hit.sum())
            nearer = hit & (distance < depth[window])
            if not nearer.any():
                continue
            depth[window][nearer] = distance[nearer]
            instances[camera][window][nearer] = index
            images[camera][window][nearer] = _paint(
                look, _KINDS[objects.kinds[index]], objects.colors[index], place[:, nearer], face[nearer]
            )
    grain = random.standard_normal(images.shape, np.float32)
    images = images * np.float32(look.brightness) + np.float32(0.012) * grain
    pixels = np.bincount(instances[instances >= 0].astype(np.int64), minlength=num_objects)
    is_target = np.arange(num_objects) < objects.num_targets
    near = np.linalg.norm(centers[:, :2], axis=1) <= options.range_m
    chosen = np.flatnonzero(is_target & near)
    renumbered = np.full(num_objects + 1, -1, np.int16)
    renumbered[chosen] = np.arange(len(chosen))
    velocities = objects.velocities @ pose[:2, :2]
    turned = (yaws[:, None] + np.pi) % (2 * np.pi) - np.pi
    boxes = np.concatenate([centers, objects.sizes, turned, velocities], axis=1)
    return SceneFrame(
        images=(images.clip(0, 1) * 255).round().astype(np.uint8).transpose(0, 3, 1, 2),
        instances=renumbered[instances],
        intrinsics=np.stack([view.intrinsics for view in views]),
        camera_to_ego=np.stack([view.camera_to_ego for view in views]),
        ego_pose=pose,
        timestamp_s=time_s,
        boxes=boxes[chosen].astype(np.float32),
        labels=objects.kinds[chosen],
        track_ids=chosen.astype(np.int64),
        pixels=pixels[chosen].astype(np.int64),
        visibility=(pixels[chosen] / np.maximum(alone[chosen], 1)).astype(np.float32),
    )


def _background(look: _Look, pose: Doubles, view: _View, image: Floats) -> None:
    """Paint sky and ground of one camera."""
    slope = np.clip(view.rays[2, :, :, None] * 1.5, 0, 1)
    image[:] = look.sky * (1 - 0.45 * slope)
    x, y = (pose[:2, :2] @ view.ground[:2] + pose[:2, 3:]).astype(np.float32)
    cos, sin = np.cos(look.road_yaw), np.sin(look.road_yaw)
    across = (y * cos - x * sin) % (4 * look.half_width) - 2 * look.half_width
    along = x * cos + y * sin
    beside = np.abs(across)
    marking = (beside < 0.15) & (along % 4 < 2) | (np.abs(beside - look.half_width + 0.4) < 0.12)
    kind = np.where(marking, 2, beside < look.half_width)
    noise = look.noise[np.floor(x * 2).astype(np.int64) % 64, np.floor(y * 2).astype(np.int64) % 64]
    haze = np.clip(view.ground_depth[view.down] / 150, 0, 1)
    colors = np.stack([look.verge, look.road, np.full(3, 0.85)])[kind]
    image[view.down] = colors * (noise * (1 - haze))[:, None] + look.sky * haze[:, None]


def _cast(
    origin: Floats, rays: Floats, center: Doubles, size: Doubles, yaw: float
) -> tuple[npt.NDArray[np.bool_], Floats, Floats, Integers]:
    """Where rays [3, …] meet a box: whether, at which depth, at which place in the box, through which face.

    A place is -1 to 1 along length, width and height; faces are numbered by axis, the positive side first.
    """
    turn = np.eye(3)
    turn[:2, :2] = _rotation(yaw)
    to_box = (turn.T / (size / 2)[:, None]).astype(np.float32)
    start = to_box @ (origin - center).astype(np.float32)
    step = np.tensordot(to_box, rays, axes=1)
    step = np.where(np.abs(step) < 1e-7, np.float32(1e-7), step)
    start = start.reshape(3, *[1] * (step.ndim - 1))
    inverse = 1 / step
    reach = np.abs(inverse)
    toward = -start * inverse
    enter, leave = toward - reach, toward + reach
    depth = np.maximum(np.maximum(enter[0], enter[1]), enter[2])
    axis = np.where(enter[0] == depth, 0, np.where(enter[1] == depth, 1, 2))
    hit = (depth <= np.minimum(np.minimum(leave[0], leave[1]), leave[2])) & (depth > _NEAREST)
    place = start + depth * step
    side = np.choose(axis, list(place)) < 0
    return hit, depth, place, axis * 2 + side


def _paint(look: _Look, kind: str, colors: Doubles, place: Floats, face: Integers) -> Doubles:
    """Colours of points [3, P] of one object; a place is -1 to 1 along length, width and height of its box."""
    x, y, z = place
    body, second = colors
    color = np.tile(body, (len(x), 1))
    axis = face // 2
    if kind == "car":
        color[(z > 0.1) & (axis != 2) & (np.abs(x) < 0.99) & (np.abs(np.abs(x) - 0.1) > 0.06)] = (0.08, 0.1, 0.14)
        color[(z > 0.1) & (axis == 0)] = (0.12, 0.15, 0.2)
    elif kind == "truck":
        cab = x > 0.5
        color[~cab] = 0.5 + 0.5 * second
        color[~cab & (np.abs(z - 0.2) < 0.12) & (axis == 1)] = body
        color[cab & (z > 0.0) & (z < 0.7) & (axis != 2)] = (0.1, 0.12, 0.18)
    elif kind == "pedestrian":
        color[z < -0.05] = second * 0.6
        color[z > 0.7] = (0.8, 0.62, 0.5)
        color[(z > 0.7) & (x < -0.2)] = (0.2, 0.14, 0.1)
    elif kind == "tree":
        color[:] = (0.12, 0.35, 0.12)
        color[z < -0.3] = (0.3, 0.2, 0.12)
    elif kind == "pole":
        color[:] = 0.55
    else:
        color[:] = 0.4 + 0.4 * body
        color[(np.abs(z % 0.7 - 0.35) < 0.15) & (np.abs(x % 0.4 - 0.2) < 0.1) & (axis != 2)] = (0.2, 0.25, 0.3)
    if kind in ("car", "truck"):
        wheel = (z < -0.55) & (axis == 1) & (np.abs(np.abs(x) - 0.6) < 0.17)
        color[wheel | (z < -0.85)] = 0.06
        lamp = (axis == 0) & (np.abs(y) > 0.55) & (z > -0.5) & (z < -0.1)
        color[lamp & (x > 0)] = (1.0, 0.97, 0.8)
        color[lamp & (x < 0)] = (0.85, 0.08, 0.08)
    cell = (np.abs(place) * 16).astype(np.int64)
    grain = look.noise[(cell[0] + 7 * cell[2]) % 64, cell[1] % 64]
    shaded: Doubles = color * (_LIGHT[axis, face % 2] * (0.6 + 0.4 * grain))[:, None]
    return shaded


def box_corners(center: Sequence[float] | Doubles, size: Sequence[float] | Doubles, yaw: float) -> Doubles:
    """Corners of a box, [8, 3]."""
    signs = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]) / 2
    offsets: Any = signs * np.asarray(size, np.float64)
    offsets[:, :2] = offsets[:, :2] @ _rotation(yaw).T
    corners: Doubles = np.asarray(center, np.float64) + offsets
    return corners


def _rotation(yaw: float) -> Doubles:
    return np.array([[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]])
