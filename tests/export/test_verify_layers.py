"""--verify-layers: the first layers are run, of the others graph and weights are compared, and everything says so."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.typed_commands import Typed
from trt_compress.errors import ConfigError, GateError, UnsupportedError
from trt_compress.export import api
from trt_compress.export.bundle import update_bundle
from trt_compress.export.weights import WEIGHTS_FILE, places_of
from trt_compress.format.bundle import Bundle
from trt_compress.runtime import Session

SPEC = "tome:num_merged=4"


def test_the_first_layers_are_verified_and_the_bundle_is_the_whole_model(
    exported: Callable[..., Path], tmp_path: Path
) -> None:
    path = tmp_path / "part"
    result = api.export_model("zoo:digits_vit", output=path, compress=SPEC, batch="1", verify_layers=2)
    assert result.manifest.verification is not None
    assert (result.manifest.verification.layers, result.manifest.verification.layers_of) == (2, 8)
    assert "the first 2 of 8 layers only" in result.summary()["verified"]
    report = json.loads((path / "verify.json").read_text())
    assert {site["site"] for site in report["sites"]} == {"blocks.0", "blocks.1"}
    assert (report["layers"], report["layers_of"]) == (2, 8)
    whole = exported(SPEC, targets=("cpu", "jetson-orin-jp6"), batch="1")
    for name in ("model.onnx", WEIGHTS_FILE):
        assert (path / name).read_bytes() == (whole / name).read_bytes()
    assert {file.name for file in path.glob("*.onnx")} == {"model.onnx"}
    assert api.verify(path).layers is None
    assert (again := api.verify(path, verify_layers=3)).passed and (again.layers, again.layers_of) == (3, 8)


@pytest.mark.parametrize(
    ("model", "compress", "sites", "without"),
    [
        (
            "zoo:keyword_mome",
            "frame_pool:stride=2,layer=0+tome:num_merged=[0,4,2,2]+frame_pool:stride=3",
            {"blocks.0", "blocks.1", "encoder_output"},
            "tome at blocks.2 to blocks.3",
        ),
        ("zoo:speech_codec", "none", set(), ""),
    ],
)
def test_models_of_sound_too(
    commands: Typed, tmp_path: Path, model: str, compress: str, sites: set[str], without: str
) -> None:
    args = ("--compress", compress, "--batch", "1", "--verify-layers", 2)
    done = commands("export", model, *args, "-o", "b", folder=tmp_path)
    assert done.code == 0, done.err
    assert "the first 2 of 6 layers only" + (f", without {without}" if without else "") in " ".join(done.out.split())
    report = json.loads((tmp_path / "b" / "verify.json").read_text())
    assert {site["site"] for site in report["sites"]} == sites
    assert report["left_out"] == ([without] if without else [])


def changed(source: Path, target: Path, change: Callable[[onnx.ModelProto, bytearray], None]) -> Path:
    """A bundle with another graph or other weights, whose hashes are right."""
    shutil.copytree(source, target)
    bundle = Bundle.open(target)
    model = onnx.load(target / "model.onnx", load_external_data=False)
    weights = bytearray((target / WEIGHTS_FILE).read_bytes())
    change(model, weights)
    update_bundle(bundle, bundle.manifest, {"model.onnx": model.SerializeToString(), WEIGHTS_FILE: bytes(weights)})
    return target


def test_a_weight_and_a_node_of_a_layer_that_is_not_run_are_compared(
    exported: Callable[..., Path], tmp_path: Path
) -> None:
    whole = exported(SPEC, targets=("cpu", "jetson-orin-jp6"), batch="1")
    named: list[str] = []

    def other_weight(model: onnx.ModelProto, weights: bytearray) -> None:
        name, place = list(places_of(model).items())[-1]
        named.append(name)
        weights[place.offset] ^= 1

    def other_node(model: onnx.ModelProto, weights: bytearray) -> None:
        node = [node for node in model.graph.node if node.op_type == "Softmax"][-1]
        named.append(node.name)
        node.op_type = "LogSoftmax"

    for change, what in ((other_weight, "the weight"), (other_node, "from the node")):
        wrong = changed(whole, tmp_path / change.__name__, change)
        with pytest.raises(GateError) as refusal:
            api.verify(wrong, verify_layers=2)
        assert f"{what} '{named[-1]}'" in str(refusal.value)
        with Session.open(wrong, native=False) as session:  # which is no reason not to open it
            assert np.isfinite(session.run(np.zeros((1, 1, 8, 8), np.float32))["logits"]).all()


@pytest.mark.parametrize(
    ("model", "compress", "layers", "error", "says"),
    [
        ("zoo:digits_vit", "none", 8, ConfigError, "zoo:digits_vit has 8 layers; give 1 to 7, or leave"),
        ("zoo:digits_vit", "none", 0, ConfigError, "give 1 to 7"),
        ("zoo:digits_vit", "evit:layers=[5]", 3, ConfigError, "the first acts at blocks.5; give 6 to 7"),
        ("zoo:keyword_spotter", "avg_pool:stride=2,layer=4", 2, ConfigError, "the first acts at blocks.4; give 5."),
        ("zoo:speech_codec", "none", 6, ConfigError, "zoo:speech_codec has 6 layers; give 1 to 5, or leave"),
        ("zoo:video_pvc", "none", 2, UnsupportedError, "is driven by the host 'video_pvc', which cannot leave layers"),
    ],
)
def test_what_cannot_be_left_out_is_refused(
    tmp_path: Path, model: str, compress: str, layers: int, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says.replace("[", r"\[")):
        api.export_model(model, output=tmp_path / "b", compress=compress, verify_layers=layers)
    assert not (tmp_path / "b").exists()
