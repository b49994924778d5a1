"""A small data set in nuScenes' format, written from numbers that a test knows."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CHANNELS = ("CAM_FRONT", "CAM_BACK", "LIDAR_TOP")
EGO_YAW, EGO_START, SPEED = 0.5, (1000.0, 500.0, 0.0), 4.0
CAR_START, CAR_VELOCITY = (1010.0, 510.0, 0.9), (2.0, -1.0)
CAR_SIZE = (1.8, 4.2, 1.6)  # width, length, height, as nuScenes has it
CAR_YAW = 1.2
INTRINSIC = [[50.0, 0.0, 40.0], [0.0, 50.0, 22.5], [0.0, 0.0, 1.0]]
SIZE = (45, 80)
INTERVAL_US, START_US = 500_000, 1_533_151_603_547_590
CAMERA_DELAY_US = 20_000


def quaternion(yaw: float) -> list[float]:
    return [float(np.cos(yaw / 2)), 0.0, 0.0, float(np.sin(yaw / 2))]


def multiply(a: list[float], b: list[float]) -> list[float]:
    w, x, y, z = a
    p, q, r, s = b
    return [
        w * p - x * q - y * r - z * s,
        w * q + x * p + y * s - z * r,
        w * r - x * s + y * p + z * q,
        w * s + x * r - y * q + z * p,
    ]


LOOKS_AHEAD = [0.5, -0.5, 0.5, -0.5]  # a camera's axes (right, down, forward) in the ego frame (forward, left, up)


def ego_at(time_us: int) -> list[float]:
    passed = (time_us - START_US) / 1e6
    x, y, z = EGO_START
    return [x + SPEED * passed * np.cos(EGO_YAW), y + SPEED * passed * np.sin(EGO_YAW), z]


def write(root: Path, *, scenes: int = 1, samples: int = 3) -> Path:
    """Write `scenes` scenes of `samples` key frames with one car, one pedestrian and one barrier."""
    tables: dict[str, list[dict[str, Any]]] = {
        "sensor": [
            {"token": f"sensor-{c}", "channel": c, "modality": "lidar" if "LIDAR" in c else "camera"} for c in CHANNELS
        ],
        "calibrated_sensor": [
            {
                "token": f"calibrated-{c}",
                "sensor_token": f"sensor-{c}",
                "translation": [1.5 if "FRONT" in c else -1.0, 0.0, 1.6],
                "rotation": multiply(quaternion(np.pi if "BACK" in c else 0.0), LOOKS_AHEAD)
                if "CAM" in c
                else quaternion(0.0),
                "camera_intrinsic": INTRINSIC if "CAM" in c else [],
            }
            for c in CHANNELS
        ],
        "category": [
            {"token": "category-car", "name": "vehicle.car", "description": ""},
            {"token": "category-walker", "name": "human.pedestrian.adult", "description": ""},
            {"token": "category-barrier", "name": "movable_object.barrier", "description": ""},
        ],
        "log": [{"token": "log", "logfile": "made", "vehicle": "none", "date_captured": "2026-01-01", "location": "x"}],
        "visibility": [{"token": "4", "level": "v80-100", "description": ""}],
        "attribute": [],
        "scene": [],
        "sample": [],
        "sample_data": [],
        "ego_pose": [],
        "instance": [],
        "sample_annotation": [],
    }
    for number in range(scenes):
        name = f"scene-{number:04}"
        tokens = [f"{name}-sample-{place}" for place in range(samples)]
        tables["scene"].append(
            {
                "token": name,
                "name": name,
                "description": "",
                "log_token": "log",
                "nbr_samples": samples,
                "first_sample_token": tokens[0],
                "last_sample_token": tokens[-1],
            }
        )
        for kind in ("car", "walker", "barrier"):
            tables["instance"].append({"token": f"{name}-{kind}", "category_token": f"category-{kind}"})
        for place, token in enumerate(tokens):
            time_us = START_US + place * INTERVAL_US
            around = {
                "prev": tokens[place - 1] if place else "",
                "next": tokens[place + 1] if place + 1 < samples else "",
            }
            tables["sample"].append({"token": token, "timestamp": time_us, "scene_token": name, **around})
            for channel in CHANNELS:
                at = time_us + (CAMERA_DELAY_US if "CAM" in channel else 0)
                file = f"samples/{channel}/{token}.{'jpg' if 'CAM' in channel else 'bin'}"
                (root / file).parent.mkdir(parents=True, exist_ok=True)
                if "CAM" in channel:
                    picture = np.full((*SIZE, 3), (200, 30 * place, 40), np.uint8)
                    Image.fromarray(picture).save(root / file, quality=95)
                tables["ego_pose"].append(
                    {
                        "token": f"{token}-{channel}",
                        "timestamp": at,
                        "translation": ego_at(at),
                        "rotation": quaternion(EGO_YAW),
                    }
                )
                tables["sample_data"].append(
                    {
                        "token": f"{token}-{channel}-data",
                        "sample_token": token,
                        "ego_pose_token": f"{token}-{channel}",
                        "calibrated_sensor_token": f"calibrated-{channel}",
                        "timestamp": at,
                        "filename": file,
                        "fileformat": "jpg",
                        "is_key_frame": True,
                        "width": SIZE[1],
                        "height": SIZE[0],
                        "prev": "",
                        "next": "",
                    }
                )
            for kind, size in (("car", CAR_SIZE), ("walker", (0.7, 0.6, 1.8)), ("barrier", (2.0, 0.5, 1.0))):
                passed = place * INTERVAL_US / 1e6
                center = np.array(CAR_START) + np.array([*CAR_VELOCITY, 0.0]) * passed * (kind == "car")
                tables["sample_annotation"].append(
                    {
                        "token": f"{token}-{kind}",
                        "sample_token": token,
                        "instance_token": f"{name}-{kind}",
                        "translation": center.tolist(),
                        "size": list(size),
                        "rotation": quaternion(CAR_YAW),
                        "visibility_token": "4",
                        "num_lidar_pts": 9,
                        "prev": f"{tokens[place - 1]}-{kind}" if place else "",
                        "next": f"{tokens[place + 1]}-{kind}" if place + 1 < samples else "",
                    }
                )
    folder = root / "v1.0-mini"
    folder.mkdir()
    for table, rows in tables.items():
        (folder / f"{table}.json").write_text(json.dumps(rows), encoding="utf-8")
    return root
