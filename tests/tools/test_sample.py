"""`trt-compress sample`: what it makes has known answers, suits the zoo's models, and a bad request is one sentence."""

import json
import wave
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from trt_compress.errors import ConfigError
from trt_compress.format.bundle import Bundle
from trt_compress.format.manifest import Batch, Manifest, Model, TensorInfo, Weights
from trt_compress.models.zoo.data import digits, speech
from trt_compress.models.zoo.data.moving_digits import make_clip
from trt_compress.models.zoo.digits_vit.model import INFO, load
from trt_compress.runtime.stream.images import ImageFiles
from trt_compress.runtime.stream.preprocess import preprocess_from_manifest
from trt_compress.tools.cli.main import app
from trt_compress.tools.samples import KINDS, detector_inputs, write_sample, write_video

av = pytest.importorskip("av")


@pytest.mark.parametrize(("codec", "suffix"), [("h264", ".mp4"), ("mpeg4", ".avi")])
def test_the_video_decodes_to_its_clips(codec: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"digits{suffix}"
    answers = write_video(path, clips=2, length=5, fps=25, codec=codec)
    lines = [json.loads(line) for line in answers.read_text().splitlines()]
    with av.open(str(path)) as container:
        (stream,) = container.streams.video
        assert (stream.width, stream.height, stream.average_rate) == (96, 96, 25)
        assert stream.codec_context.name == codec
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == len(lines) == 10
    for number in range(2):
        clip = make_clip("test", number, length=5)
        for step in range(5):
            line = lines[5 * number + step]
            assert (line["id"], line["clip"], line["label"]) == (5 * number + step, number, clip.digit)
            np.testing.assert_allclose([line["x"], line["y"]], clip.centres[step], atol=0.01)
            error = np.abs(frames[5 * number + step].astype(float) - clip.frames[step]).mean()
            assert error < 8, error


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_made_the_same_each_time(kind: str, tmp_path: Path) -> None:
    contents = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        result = CliRunner().invoke(app, ["sample", kind, "-o", str(folder), "--count", "2", "--json"])
        assert result.exit_code == 0, result.output
        made = json.loads(result.stdout)
        assert Path(made["labels"]).is_file()
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        if kind == "scene":  # a zip holds the time at which it was made
            with np.load(made["source"]) as file:
                contents.append([file[name].tobytes() for name in sorted(file.files)])
        else:
            contents.append([path.read_bytes() for path in files])
    assert contents[0] == contents[1]


def test_speech_says_what_its_labels_say(tmp_path: Path) -> None:
    made = write_sample("speech", tmp_path, count=5)
    with wave.open(made.source) as sound:
        assert (sound.getnchannels(), sound.getframerate(), sound.getnframes()) == (1, 16000, 5 * 16000)
    labels = [json.loads(line) for line in Path(made.labels).read_text().splitlines()]
    words = speech.heldout_words()
    assert [line["label"] for line in labels] == [
        int(words.labels[number * 37 % len(words.audio)]) for number in range(5)
    ]
    assert all(speech.CLASSES[line["label"]] == line["word"] for line in labels)


def test_pictures_reach_the_model_as_the_images_it_was_tested_on(tmp_path: Path) -> None:
    made = write_sample("images", tmp_path, count=3)
    labels = [json.loads(line) for line in Path(made.labels).read_text().splitlines()]
    assert [line["label"] for line in labels] == [digit for digit in range(10) for _ in range(3)]
    inputs = {"image": TensorInfo(name="image", dtype="float32", shape=("batch", 1, 8, 8))}
    manifest = Manifest(
        name="test",
        created_with={},
        model=Model(source=INFO.name, family=INFO.family, weights=Weights(source="none")),
        recipe={},
        precision="fp32",
        opset=20,
        batch=Batch(min=1, opt=1, max=1),
        graphs=(),
        preprocess=dict(load(None).preprocess),
    )
    prepare = preprocess_from_manifest(Bundle(path=tmp_path, manifest=manifest), inputs)
    source = ImageFiles(made.source)
    source.open()
    split = digits.digits_split()
    for line in labels:
        item = source.read()
        assert item is not None and item.error is None
        number = int(Path(line["file"]).stem)
        assert int(split.test_labels[number]) == line["label"]
        np.testing.assert_allclose(prepare(item.data)["image"][0], split.test_images[number], atol=0.005)
    assert source.read() is None


def test_the_scene_suits_the_detector_of_the_zoo() -> None:
    from trt_compress.models.zoo.data.driving_scenes import Rig
    from trt_compress.models.zoo.surround_detector.model import rig_of, surround_detector_config

    rig = rig_of(surround_detector_config())
    assert rig == Rig()
    assert detector_inputs(rig.num_cameras, rig.height, rig.width)["images"].shape == ("batch", 4, 3, 64, 128)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["vidoe", "-o", "out"], "sample 'vidoe' is not known; there are video, speech, images, scene."),
        (["video", "-o", "out", "--count", "0"], "--count 0 makes nothing; give at least 1."),
        (
            ["speech", "-o", "file/out"],
            "'file/out' cannot be written (Not a directory); give another folder to --output.",
        ),
    ],
)
def test_a_bad_request_is_one_sentence(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    result = CliRunner().invoke(app, ["sample", *arguments])
    assert result.exit_code == 2
    assert message in result.stderr
    assert not Path("out").exists()


def test_a_bad_video_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"clips=0, .*the numbers must be at least 1, and the codec one of h264, mpeg4"
    ):
        write_video(tmp_path / "x.mp4", clips=0, length=4)
    with pytest.raises(ConfigError, match="cannot be written"):
        write_video(tmp_path / "missing" / "x.mp4", clips=1, length=1)
