"""A detector with its history as states: exported, proven frame by frame, fit for TensorRT-RTX, run as a stream."""

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from detectors import SMALL, compress, make_detector, make_frames, run

from trt_compress.errors import ShapeError
from trt_compress.export import api
from trt_compress.models.hosts.base import LoadedHost, Steps, WeightsInfo
from trt_compress.models.hosts.detector3d import FAMILY, INPUTS, STATES, detector_graph, postprocess_of
from trt_compress.models.pretrained.driving_scenes import Frame
from trt_compress.models.pretrained.surround_detector import frame_inputs
from trt_compress.runtime import Bundle, Session

SPECS = ("none", "toc3d:keep_ratio=0.5", "toc3d:keep_ratio=[0.5,0.25],layers=[1,3],representative=false")


def examples(batch: int) -> Steps:
    streams = [make_frames(seed, count=3) for seed in range(batch)]
    return tuple(as_inputs(list(frames)) for frames in zip(*streams, strict=True))


def as_inputs(frames: list[Frame]) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    return {name: tensor.numpy() for name, tensor in zip(INPUTS, frame_inputs(frames), strict=True)}


def host() -> LoadedHost:
    detector = make_detector()
    return LoadedHost(
        source="zoo:small",
        family=FAMILY,
        module=detector,
        weights=WeightsInfo(source="random (seed 0)", sha256="0" * 64),
        attach=lambda specs: (detector_graph(detector, specs, name="small", examples=examples),),
        preprocess={"kind": "image", "input": "images"},
        postprocess=postprocess_of(SMALL),
    )


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    folder = tmp_path_factory.mktemp("detectors")

    @cache
    def export(spec: str) -> Path:
        output = folder / str(SPECS.index(spec))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(api, "load_host", lambda model, weights: host())
            api.export("zoo:small", compress=spec, output=output, targets=("cpu", "rtx"), batch="1:1:2")
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


@pytest.mark.slow
@pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")
def test_an_engine_is_built(bundle) -> None:  # type: ignore[no-untyped-def]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api, "load_host", lambda model, weights: host())
        api.build(bundle(SPECS[1]), target="rtx")
    (engine,) = Bundle.open(bundle(SPECS[1])).manifest.engines
    assert engine.target == "rtx" and engine.bytes > 0
