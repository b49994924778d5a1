"""A detector with its history as states: exported, proven frame by frame, fit for TensorRT-RTX, run as a stream."""

import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import av
import numpy as np
import pytest
from typer.testing import CliRunner

from tests.models.detectors import SMALL, compress, make_detector, make_frames, run
from trt_compress.errors import ShapeError
from trt_compress.export import api, pipeline
from trt_compress.models.hosts.base import LoadedHost, Steps, WeightsInfo
from trt_compress.models.hosts.detector3d import FAMILY, INPUTS, STATES, detector_graph, postprocess_of
from trt_compress.models.zoo.data.driving_scenes import CLASSES, SceneFrame
from trt_compress.models.zoo.surround_detector.model import frame_inputs
from trt_compress.runtime import Bundle, Session
from trt_compress.runtime.detection_metric import FrameBoxes, score_detections
from trt_compress.runtime.stream.result import StreamResult
from trt_compress.tools.cli.main import app

SPECS = ("none", "toc3d:keep_ratio=0.5", "toc3d:keep_ratio=[0.5,0.25],layers=[1,3],representative=false")


def examples(batch: int) -> Steps:
    streams = [make_frames(seed, count=3) for seed in range(batch)]
    return tuple(as_inputs(list(frames)) for frames in zip(*streams, strict=True))


def as_inputs(frames: list[SceneFrame]) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    return {name: tensor.numpy() for name, tensor in zip(INPUTS, frame_inputs(frames), strict=True)}


def host() -> LoadedHost:
    detector = make_detector()
    return LoadedHost(
        source="zoo:surround_detector",
        family=FAMILY,
        module=detector,
        weights=WeightsInfo(source="random (seed 0)", sha256="0" * 64),
        attach=lambda specs: (detector_graph(detector, specs, name="small", examples=examples),),
        preprocess={"kind": "cameras", "input": "images", "layout": "NCHW", "scale": 1.0},
        postprocess=postprocess_of(SMALL),
    )


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    folder = tmp_path_factory.mktemp("detectors")

    @cache
    def export(spec: str) -> Path:
        output = folder / str(SPECS.index(spec))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pipeline, "load_host", lambda model, **_: host())
            api.export_model(
                "zoo:surround_detector", compress=spec, output=output, targets=("cpu", "rtx"), batch="1:1:2"
            )
        return output

    return export


@pytest.mark.parametrize("spec", [*SPECS[:2], pytest.param(SPECS[2], marks=pytest.mark.slow)])
def test_it_verifies_over_frames_and_fits_rtx(spec: str, bundle) -> None:  # type: ignore[no-untyped-def]
    manifest = Bundle.open(bundle(spec)).manifest
    assert manifest.verification is not None and manifest.verification.passed
    assert manifest.verification.max_abs_error is not None and manifest.verification.max_abs_error > 0
    assert [state.input for state in manifest.states] == list(STATES)
    assert [site.site for site in manifest.compression] == (
        [] if spec == "none" else [f"blocks.{n}" for n in (1, 2, 3)]
    )
    assert api.preflight(bundle(spec), target="rtx") == ()
    assert {operator.name for operator in manifest.operators} == (
        {"TokenSelect"} if spec == "none"
        else {"TokenSelect", "TokenRestore"} if "false" in spec
        else {"TokenSelect", "TokenRestore", "TokenMix"}
    )  # fmt: skip


@pytest.mark.parametrize("spec", SPECS[:2])
def test_a_session_keeps_the_history(spec: str, bundle) -> None:  # type: ignore[no-untyped-def]
    frames = make_frames(4, count=4)
    net = compress(make_detector(), spec)
    wanted = run(net, frames)
    with Session.open(bundle(spec)) as session:
        for _ in range(2):  # the second time after a reset
            for frame, (boxes, scores, *_) in zip(frames, wanted, strict=True):
                found = session.run(as_inputs([frame]))
                np.testing.assert_allclose(found["boxes"], boxes.numpy(), rtol=2e-3, atol=2e-3)
                np.testing.assert_allclose(found["scores"], scores.numpy(), rtol=2e-3, atol=2e-4)
            session.reset()
        # a dropped frame: the history is that of the frame before it, and knows by the clock how old it is
        kept = [frames[0], frames[2], frames[3]]
        for frame, (boxes, *_) in zip(kept, run(net, kept), strict=True):
            np.testing.assert_allclose(session.run(as_inputs([frame]))["boxes"], boxes.numpy(), rtol=2e-3, atol=2e-3)


def test_other_cameras_than_the_bundles(bundle) -> None:  # type: ignore[no-untyped-def]
    inputs = as_inputs(make_frames(count=1))
    with Session.open(bundle("none")) as session, pytest.raises(ShapeError, match="images"):
        session.run({**inputs, "images": inputs["images"][:, :1]})


def test_a_stream_is_scored_against_the_boxes_of_its_scene(bundle, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    frames, scene = 6, tmp_path / "scene.npz"
    runner, path = CliRunner(), bundle("none")
    made = runner.invoke(app, ["scene", "made:7", "--bundle", str(path), "-o", str(scene), "--frames", str(frames)])
    assert made.exit_code == 0, made.output
    files = {name: str(tmp_path / name) for name in ("r.jsonl", "o.mp4", "rep")}
    words = ["run", str(path), "--source", str(scene), "--labels", str(scene), "--out", files["r.jsonl"]]
    done = runner.invoke(app, [*words, "--overlay", files["o.mp4"], "--report", files["rep"]])
    assert done.exit_code == 0, done.output
    result = StreamResult.read(tmp_path / "rep" / "result.json")
    assert {name: metric.n for name, metric in result.quality.items()} == {"mAP": frames, "translation_error_m": frames}
    assert re.search(r"mAP +0\.\d+, n=6", done.stdout) and "translation_error_m" in done.stdout
    with av.open(files["o.mp4"]) as container:
        assert sum(1 for _ in container.decode(video=0)) == frames
    # The same as the detector scored by hand, frame by frame.
    found, wanted = [], []
    with Session.open(path) as session:
        for frame in make_frames(7, count=frames):
            outputs = session.run(as_inputs([frame]))
            scores = outputs["scores"][0]
            centers = outputs["boxes"][0][:, :2]
            found.append(FrameBoxes(centers=centers, labels=scores.argmax(axis=1), scores=scores.max(axis=1)))
            counted = frame.counted()
            wanted.append(FrameBoxes(centers=frame.boxes[counted, :2], labels=frame.labels[counted]))
    by_hand = score_detections(found, wanted, num_classes=len(CLASSES))
    assert result.quality["mAP"].value == pytest.approx(by_hand.mean_ap, abs=1e-6)
    assert result.quality["translation_error_m"].value == pytest.approx(by_hand.translation_error_m, abs=1e-4)


def test_scenes_that_give_no_truth_are_refused(bundle, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path, scene = bundle("none"), tmp_path / "scene.npz"
    CliRunner().invoke(app, ["scene", "made:7", "--bundle", str(path), "-o", str(scene), "--frames", "2"])
    with np.load(scene) as file:
        arrays = {name: file[name] for name in file.files}
    bad = {
        "lacks truth_boxes; write the scene with": {k: v for k, v in arrays.items() if k != "truth_boxes"},
        "do not fit together (truth_frame [1]": arrays | {"truth_frame": np.zeros(1, np.int64)},
        "has boxes of 'boat', and the bundle finds": arrays
        | {"truth_labels": np.full(len(arrays["truth_labels"]), "boat")},
    }
    for message, content in bad.items():
        np.savez(scene, **content)
        done = CliRunner().invoke(app, ["run", str(path), "--source", str(scene), "--labels", str(scene)])
        assert done.exit_code == 2 and message in done.stderr and "Traceback" not in done.stderr, done.stderr


@pytest.mark.slow
@pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")
def test_an_engine_is_built(bundle) -> None:  # type: ignore[no-untyped-def]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "load_host", lambda model, **_: host())
        api.build(bundle(SPECS[1]), target="rtx")
    (engine,) = Bundle.open(bundle(SPECS[1])).manifest.engines
    assert engine.target == "rtx" and engine.bytes > 0
