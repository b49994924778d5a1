"""`trt-compress run` on sound, as a user types it: files that fit, that are made to fit, and that do not."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import soundfile
from onnx import TensorProto, helper
from typer.testing import CliRunner, Result

from trt_compress.export.bundle import write_bundle
from trt_compress.format.manifest import Batch, Graph, Manifest, Model, TensorInfo, Weights
from trt_compress.runtime.stream.result import StreamResult
from trt_compress.tools.cli.main import app

RATE = 16000
Typed = Callable[..., Result]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A tenth of a second of sound to five frames, which are the samples themselves."""
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["audio", "shape"], ["frames"])],
        "model",
        [helper.make_tensor_value_info("audio", TensorProto.FLOAT, ["batch", 1600])],
        [helper.make_tensor_value_info("frames", TensorProto.FLOAT, ["batch", 5, 320])],
        [onnx.numpy_helper.from_array(np.array([-1, 5, 320]), "shape")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    audio = TensorInfo(name="audio", dtype="float32", shape=("batch", 1600))
    frames = TensorInfo(name="frames", dtype="float32", shape=("batch", 5, 320))
    manifest = Manifest(
        name="sound",
        created_with={"trt-compress": "0.1.0"},
        model=Model(source="zoo:test", family="test", weights=Weights(source="random (seed 0)")),
        recipe={"model": "zoo:test"},
        precision="fp32",
        opset=20,
        batch=Batch(min=1, opt=1, max=4),
        graphs=(Graph(name="model", file="model.onnx", inputs=(audio,), outputs=(frames,)),),
        preprocess={"kind": "audio", "input": "audio", "sample_rate": RATE, "channels": 1},
        postprocess={"kind": "frames", "output": "frames", "seconds": 0.1},
    )
    write_bundle(tmp_path / "bundle", manifest, {"model.onnx": model.SerializeToString()})
    return tmp_path / "bundle"


@pytest.fixture
def typed(tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Typed:
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Result:
        result = CliRunner().invoke(app, ["run", str(bundle), *map(str, arguments)])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


@pytest.mark.parametrize("name", ["a.wav", "b.MP3", "c.opus", "d.caf", "e.au", "f.w64", "g.aifc", "h.flac", "i"])
def test_features_of_every_kind_of_file(typed: Typed, name: str) -> None:
    forms = {"": "WAV", "opus": "OGG", "aifc": "AIFF"}
    suffix = name.partition(".")[2].lower()
    subtype = "OPUS" if suffix == "opus" else None
    sound = np.full(3200, 0.25, np.float32)
    soundfile.write(name, sound, RATE, format=forms.get(suffix, suffix.upper()), subtype=subtype)
    done = typed("--source", name, "--out", "r.jsonl", "--json")
    assert done.exit_code == 0, done.stderr
    assert StreamResult.from_text(done.stdout).protocol.resample is False
    (result,) = json.loads(Path("r.jsonl").read_text().splitlines()[0])["results"]
    assert (result["frames"], result["width"], result["ms_per_frame"]) == (5, 320, 20)
    assert result.keys() == {"frames", "width", "ms_per_frame", "rms", "min", "max"}
    if suffix not in ("mp3", "opus"):
        assert result["rms"] == pytest.approx(0.25, abs=1e-3)


def test_features_are_summed_up(typed: Typed) -> None:
    soundfile.write("a.wav", np.full(3200, 0.25), RATE)
    done = typed("--source", "a.wav", "--report", "rep")
    assert done.exit_code == 0, done.stderr
    words = r"features +5 frames of 320 numbers a result, 20\S* ms a frame"
    assert re.search(words, done.stdout), done.stdout
    found = StreamResult.read("rep/result.json").findings
    assert found is not None and found.features is not None
    assert (found.kind, found.results, found.features.frames, found.features.ms_per_frame) == ("heard", 2, 5, 20.0)
    page = Path("rep/result.report.html").read_text()
    assert re.search(r"5 frames of 320 numbers a result, 20\S* ms a frame", page)
    assert "<audio" in page


def test_another_rate_is_refused_with_the_command_that_helps(typed: Typed) -> None:
    soundfile.write("my call.wav", np.zeros((4410, 2)), 44100)
    done = typed("--source", "my call.wav")
    assert done.exit_code == 2
    assert "has 44100 samples a second in 2 channels, and the bundle takes 16000 in 1; convert it first" in done.stderr
    assert "by --resample or by ffmpeg -i 'my call.wav' -ar 16000 -ac 1 converted.wav." in done.stderr


def test_another_rate_is_resampled_on_request_and_on_record(typed: Typed) -> None:
    soundfile.write("a.wav", np.full((44100, 2), 0.5), 44100)
    done = typed("--source", "a.wav", "--resample", "--report", "rep", "--out", "r.jsonl")
    assert done.exit_code == 0, done.stderr
    result = StreamResult.read("rep/result.json")
    assert result.protocol.resample and result.counts.delivered == 10
    middle = json.loads(Path("r.jsonl").read_text().splitlines()[5])["results"][0]
    assert middle["min"] == pytest.approx(0.5, abs=1e-3) and middle["max"] == pytest.approx(0.5, abs=1e-3)
    assert "resampling" in Path("rep/result.report.json").read_text()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("rtsp://camera/1", "The bundle takes audio, and 'rtsp://camera/1' is none; give a sound file, mic or scene"),
        ("camera:0", "The bundle takes audio, and 'camera:0' is none"),
        ("photo.JPG", "The bundle takes audio, and 'photo.JPG' is none"),
        ("text.txt", "'text.txt' is not readable audio (Format not recognised); give wav, rf64, w64, aiff, aifc, au, "),
        ("none.mp3", "'none.mp3' does not exist"),
        ("cut.aiff", "'cut.aiff' is truncated: 1054 bytes of its samples are missing; copy it again."),
    ],
)
def test_what_is_no_sound_is_one_sentence(typed: Typed, source: str, message: str) -> None:
    Path("photo.JPG").write_bytes(b"\xff\xd8")
    Path("text.txt").write_text("no sound " * 99)
    soundfile.write("whole.aiff", np.zeros(1000), RATE)
    Path("cut.aiff").write_bytes(Path("whole.aiff").read_bytes()[:1000])
    done = typed("--source", source)
    assert done.exit_code == 2 and message in re.sub(r"\s+", " ", done.stderr), done.stderr
    assert "Traceback" not in done.stderr
