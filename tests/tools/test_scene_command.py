"""`trt-compress scene`: made scenes and nuScenes as the file that `run` reads."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from trt_compress.errors import ConfigError
from trt_compress.export.bundle import write_bundle
from trt_compress.format.manifest import Batch, Graph, Manifest, Model, TensorInfo, Weights
from trt_compress.models.zoo.data.driving_scenes import Rig
from trt_compress.tools.cli.main import app
from trt_compress.tools.scenes import open_scene

CAMERAS = 4


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that says what a detector takes; its graph is never loaded here."""
    return bundle_of(
        tmp_path_factory.mktemp("bundle") / "detector",
        {
            "images": ("batch", CAMERAS, 3, 32, 64),
            "img2lidar": ("batch", CAMERAS, 4, 4),
            "ego_pose": ("batch", 4, 4),
            "timestamp": ("batch", 1),
        },
    )


def bundle_of(path: Path, inputs: dict[str, tuple[int | str, ...]]) -> Path:
    graph = Graph(
        name="model",
        file="model.onnx",
        inputs=tuple(TensorInfo(name=name, dtype="float32", shape=shape) for name, shape in inputs.items()),
        outputs=(TensorInfo(name="boxes", dtype="float32", shape=("batch", 8, 10)),),
    )
    manifest = Manifest(
        name="test",
        created_with={},
        model=Model(source="zoo:test", family="detector3d", weights=Weights(source="none")),
        recipe={},
        precision="fp32",
        opset=20,
        batch=Batch(min=1, opt=1, max=1),
        graphs=(graph,),
    )
    write_bundle(path, manifest, {"model.onnx": b"never loaded"})
    return path


@pytest.fixture(scope="module")
def made() -> ModuleType:
    """The writer of the nuScenes sample, which lives with the tests of the reader."""
    path = Path(__file__).parents[1] / "runtime" / "scenes" / "nuscenes_sample.py"
    spec = importlib.util.spec_from_file_location("nuscenes_sample_for_tools", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def typed(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["scene", *map(str, arguments)])


def test_a_made_scene(detector: Path, tmp_path: Path) -> None:
    result = typed("made:7", "--bundle", detector, "-o", tmp_path / "scene.npz", "--frames", 3, "--pictures",
                   tmp_path / "pictures", "--json")  # fmt: skip
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert (facts["frames"], facts["cameras"]) == (3, ["front", "left", "back", "right"])
    with np.load(tmp_path / "scene.npz") as file:
        assert file["images"].shape == (3, 1, CAMERAS, 3, 32, 64)
        assert file["images"].max() > 100
        assert file["timestamp"].ravel() == pytest.approx([0, 0.2, 0.4])
    pictures = sorted((tmp_path / "pictures").iterdir())
    assert [path.name for path in pictures] == ["0000.png", "0001.png", "0002.png"]
    with Image.open(pictures[0]) as image:
        assert image.width == 2 * 6 * 64 + image.height


def test_a_scene_of_nuscenes(detector: Path, made: ModuleType, tmp_path: Path) -> None:
    root = made.write(tmp_path, scenes=2)
    one, two = "CAM_FRONT", "CAM_BACK"
    result = typed(f"nuscenes:{root}#scene-0001", "--bundle", detector, "-o", tmp_path / "scene.npz", "--cameras",
                   f"{one},{two}")  # fmt: skip
    assert result.exit_code == 2
    assert "The bundle takes 4 cameras, and this source has 2: CAM_FRONT, CAM_BACK." in result.output
    assert not (tmp_path / "scene.npz").exists()
    result = typed(f"nuscenes:{root}#scene-0001", "--bundle", detector, "-o", tmp_path / "scene.npz", "--cameras",
                   f"{one},{two},{two},{one}", "--frames", 2)  # fmt: skip
    assert result.exit_code == 0, result.output
    with np.load(tmp_path / "scene.npz") as file:
        assert file["images"].shape == (2, 1, CAMERAS, 3, 32, 64)
        assert file["timestamp_ns"].tolist() == [(made.START_US + step * made.INTERVAL_US) * 1000 for step in range(2)]
        pixel, ahead = np.array([32.0, 10.0]), 10.0  # lifted to 10 m ahead of the front camera
        point = file["img2lidar"][0, 0, 0] @ np.array([*(pixel * ahead), ahead, 1.0])
        assert point[0] == pytest.approx(ahead + 1.5 + made.SPEED * made.CAMERA_DELAY_US / 1e6, abs=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lidar:7"], "'lidar:7' is not a scene; write made:SEED or nuscenes:FOLDER#SCENE."),
        (["made:x"], "'made:x' names no seed; write made: and a whole number from 0"),
        (["made:7", "--frames", "0"], "0 frames make no scene; give at least 1."),
        (["nuscenes:nowhere"], "nowhere has no folder of tables (v1.0-mini, …); a nuScenes data set has samples/"),
    ],
)
def test_refused(detector: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    result = typed(*arguments, "--bundle", detector, "-o", tmp_path / "scene.npz")
    assert result.exit_code == 2
    assert message in result.output


def test_other_files_and_bundles(detector: Path, tmp_path: Path) -> None:
    result = typed("made:7", "--bundle", detector, "-o", tmp_path / "scene.json")
    assert result.exit_code == 2 and "does not end in .npz" in result.output
    classifier = bundle_of(tmp_path / "classifier", {"image": ("batch", 1, 8, 8)})
    result = typed("made:7", "--bundle", classifier, "-o", tmp_path / "scene.npz")
    assert result.exit_code == 2
    assert "The bundle takes image; a multi-view detector takes images, img2lidar" in result.output


def test_frames_end_where_asked() -> None:
    frames = list(open_scene("made:3", rig=Rig(num_cameras=2, height=16, width=24), num_frames=2))
    assert [frame.cameras for frame in frames] == [("front", "back")] * 2
    assert all(box["visibility"] >= 0.25 for frame in frames for box in frame.boxes or ())
    with pytest.raises(ConfigError, match="is not a scene"):
        open_scene("made:", rig=Rig())
