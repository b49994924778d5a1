"""The sound of a stream on its page: words on an axis of time, the shape of the sound, a player, a codec's bitrate."""

import base64
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import soundfile
from onnx import TensorProto, helper
from typer.testing import CliRunner, Result

from trt_compress.export.bundle import write_bundle
from trt_compress.format.manifest import Batch, Graph, Manifest, Model, TensorInfo, Weights
from trt_compress.runtime.stream import listener
from trt_compress.runtime.stream.frame import Frame
from trt_compress.runtime.stream.listener import Listener
from trt_compress.runtime.stream.result import StreamResult
from trt_compress.tools.cli.main import app
from trt_compress.tools.report.sound import players_of

RATE, CHUNK = 16000, 1600
AUDIO = TensorInfo(name="audio", dtype="float32", shape=("batch", CHUNK))
BEFORE = {"kind": "audio", "input": "audio", "sample_rate": RATE, "channels": 1}
WORDS = {"kind": "classification", "output": "logits", "classes": 3, "labels": ["yes", "<b>no</b>", "silence"]}
CODEC = {"kind": "audio", "output": "made", "sample_rate": RATE, "samples": CHUNK, "bits_per_second": 500.0}


@pytest.fixture
def typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Result:
        result = CliRunner().invoke(app, list(map(str, arguments)))
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return run


def make_bundle(path: Path, meaning: dict[str, Any]) -> Path:
    """Three samples of a chunk as logits, or the sound at half its loudness."""
    codec = meaning["kind"] == "audio"
    name, width = ("made", CHUNK) if codec else ("logits", 3)
    constants = {"half": np.float32(0.5)} if codec else {"start": [100], "end": [103], "axis": [1]}
    node = (
        helper.make_node("Mul", ["audio", "half"], ["made"])
        if codec
        else helper.make_node("Slice", ["audio", "start", "end", "axis"], ["logits"])
    )
    graph = helper.make_graph(
        [node],
        "model",
        [helper.make_tensor_value_info("audio", TensorProto.FLOAT, ["batch", CHUNK])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width])],
        [onnx.numpy_helper.from_array(np.array(value), key) for key, value in constants.items()],
    )
    output = TensorInfo(name=name, dtype="float32", shape=("batch", width))
    manifest = Manifest(
        name="sound",
        created_with={"trt-compress": "0.1.0"},
        model=Model(source="zoo:test", family="test", weights=Weights(source="random (seed 0)")),
        recipe={"model": "zoo:test"},
        precision="fp32",
        opset=20,
        batch=Batch(min=1, opt=1, max=4),
        graphs=(Graph(name="model", file="model.onnx", inputs=(AUDIO,), outputs=(output,)),),
        preprocess=BEFORE,
        postprocess=meaning,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    write_bundle(path, manifest, {"model.onnx": model.SerializeToString()})
    return path


def spoken(path: Path, words: str) -> Path:
    """A chunk for each digit: noise in which the logit of that class is the largest."""
    sound = np.random.default_rng(0).uniform(-0.25, 0.25, CHUNK * len(words))
    for number, word in enumerate(words):
        sound[number * CHUNK + 100 : number * CHUNK + 103] = -0.25
        sound[number * CHUNK + 100 + int(word)] = 0.5
    soundfile.write(path, sound, RATE, subtype="PCM_16")
    return path


def audio_of(page: str) -> list[bytes]:
    found = re.findall(r'<audio controls [^>]*src="data:audio/(?:flac|mpeg|wav);base64,([^"]+)"></audio>', page)
    return [base64.b64decode(data) for data in found]


def test_words_stand_on_the_axis_and_the_sound_is_in_the_page(typed: Callable[..., Result], tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", WORDS)
    heard = spoken(tmp_path / "a.wav", "0011122001")
    done = typed("run", bundle, "--source", heard, "--report", "rep")
    assert done.exit_code == 0 and "Wrote rep/result.heard.flac" in done.stderr, done.stderr
    result = StreamResult.read("rep/result.json")
    assert result.sound is not None
    assert [(word.text, word.start_s, word.end_s) for word in result.sound.words] == [
        ("yes", 0, 0.2), ("<b>no</b>", 0.2, 0.5), ("silence", 0.5, 0.7), ("yes", 0.7, 0.9), ("<b>no</b>", 0.9, 1.0),
    ]  # fmt: skip
    (track,) = result.sound.tracks
    assert (track.seconds, max(track.high), min(track.low)) == (1.0, 0.5, -0.25)
    page = Path("rep/result.report.html").read_text()
    (embedded,) = audio_of(page)
    assert embedded == Path("rep/result.heard.flac").read_bytes()
    np.testing.assert_array_equal(soundfile.read(io.BytesIO(embedded))[0], soundfile.read(heard)[0])
    assert page.count('<rect class="word"') == 2 * 5 and "<b>" not in page and "&lt;b&gt;no&lt;/b&gt;" in page
    assert "default-src 'none'" in page and "media-src data:" in page
    # Made again from the result elsewhere, and where the sound is no longer beside it.
    assert typed("report", "rep", "-o", "other").exit_code == 0
    assert audio_of(Path("other/rep.report.html").read_text()) == [embedded]
    Path("rep/result.heard.flac").unlink()
    assert typed("report", "rep", "-o", "other").exit_code == 0
    page = Path("other/rep.report.html").read_text()
    assert "No player: its file &#x27;result.heard.flac&#x27; is not beside the result." in page
    assert "<audio" not in page and "media-src" not in page


def test_of_a_codec_both_sides_play_and_the_bitrate_is_said(typed: Callable[..., Result], tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", CODEC)
    assert typed("run", bundle, "--source", spoken(tmp_path / "a.wav", "01"), "--report", "rep").exit_code == 0
    page = Path("rep/result.report.html").read_text()
    sounds = [soundfile.read(io.BytesIO(data))[0] for data in audio_of(page)]
    np.testing.assert_allclose(sounds[1], sounds[0] / 2, atol=1 / 32768)
    assert "Bitrate of the codec" in page and "500 bit/s" in page and "512 times" in page


def test_the_sound_that_is_heard_is_not_written_over(typed: Callable[..., Result], tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", WORDS)
    Path("rep").mkdir()
    soundfile.write("rep/result.heard.flac", np.zeros(CHUNK), RATE)
    before = Path("rep/result.heard.flac").read_bytes()
    done = typed("run", bundle, "--source", "rep/result.heard.flac", "--report", "rep")
    assert done.exit_code == 2 and "result.heard.flac" in done.stderr
    assert Path("rep/result.heard.flac").read_bytes() == before


def test_without_a_report_nothing_is_kept(typed: Callable[..., Result], tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", WORDS)
    done = typed("run", bundle, "--source", spoken(tmp_path / "a.wav", "01"), "--json")
    assert "sound" not in json.loads(done.stdout)


def frames(sound: Any, hop: int = CHUNK, drop: tuple[int, ...] = ()) -> list[Frame]:
    starts = range(0, len(sound) - CHUNK + 1, hop)
    return [
        Frame(id=n, source="a", arrival_ns=0, start_ns=0, mark_ns=0, data=sound[start : start + CHUNK],
              capture_ns=round(start * 1e9 / RATE), summary={"results": [{"class": n % 5 // 4, "score": n / 100}]})
        for n, start in enumerate(starts)
        if n not in drop
    ]  # fmt: skip


def listen(taken: list[Frame]) -> Listener:
    ear = Listener(BEFORE, {"kind": "classification"}, {"audio": AUDIO})
    ear.open()
    for frame in taken:
        ear.deliver(frame, 0)
    ear.close()
    return ear


def test_overlap_is_heard_once_and_what_was_dropped_is_silence(tmp_path: Path) -> None:
    sound = np.round(np.random.default_rng(0).uniform(-0.5, 0.5, 10 * CHUNK) * 32767).astype(np.float32) / 32767
    for hop, drop in ((CHUNK, ()), (400, ()), (CHUNK, (3, 4))):
        found = listen(frames(sound, hop, drop)).sound(tmp_path, "x")
        assert found is not None and found.tracks[0].seconds == 1.0
        wanted = sound.copy()
        for number in drop:
            wanted[number * CHUNK : (number + 1) * CHUNK] = 0
        np.testing.assert_allclose(soundfile.read(tmp_path / "x.heard.flac")[0], wanted, atol=1e-4)


def test_a_long_sound_keeps_its_shape_and_says_why_it_has_no_player(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "MOST_BYTES", 20_000)
    monkeypatch.setattr(listener, "MOST_WORDS", 10)
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 200 * CHUNK).astype(np.float32)
    noise[150 * CHUNK :] *= 2
    found = listen(frames(noise)).sound(tmp_path, "x")
    assert found is not None and not list(tmp_path.iterdir())
    (track,) = found.tracks
    assert track.file is None and re.fullmatch(
        r"20 seconds of sound are 0\.\d MB, and a page takes 0 MB; play the source itself", track.reason or ""
    )
    assert 1000 <= len(track.low) == len(track.high) <= listener.MOST_PARTS
    loud = np.array(track.high) > 0.7
    assert loud.mean() == pytest.approx(0.25, abs=0.02) and not loud[: len(loud) // 2].any()
    assert (len(found.words), found.words_left_out) == (10, 70)
    tone = (0.1 * np.sin(np.arange(200 * CHUNK) / 5)).astype(np.float32)
    file = io.BytesIO()
    soundfile.write(file, tone, RATE, format="MP3")
    monkeypatch.setattr(listener, "MOST_BYTES", len(file.getvalue()) + 1000)  # its FLAC is larger
    monkeypatch.setattr(listener, "_MP3_BYTES_PER_S", 0)
    found = listen(frames(tone)).sound(tmp_path, "x")
    assert found is not None and found.tracks[0].file == "x.heard.mp3"
    monkeypatch.setattr(listener, "MOST_SAMPLES", 1000)
    found = listen(frames(tone)).sound(tmp_path, "y")
    assert found is not None and "are too many for a page" in (found.tracks[0].reason or "")


def test_a_page_of_a_result_from_anywhere_cannot_leave_its_text(typed: Callable[..., Result], tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", WORDS)
    assert typed("run", bundle, "--source", spoken(tmp_path / "a.wav", "0011"), "--report", "rep").exit_code == 0
    data = json.loads(Path("rep/result.json").read_text())
    evil = '"><script>alert(1)</script>'
    data["sound"]["tracks"][0] |= {"name": evil, "reason": evil, "file": None}
    data["sound"]["words"][0] |= {"text": evil, "start_s": 9.0, "end_s": -9.0, "score": 1e12}
    Path("evil.json").write_text(json.dumps(data))
    done = typed("report", "evil.json", "-o", "out")
    assert done.exit_code == 0, done.stderr
    page = Path("out/evil.report.html").read_text()
    assert page.count("<script") == 1 and page.count("&lt;script&gt;") >= 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"low": [0.5]}, "result.sound.tracks[0] has 1 smallest and"),
        ({"sample_rate": 0}, "sound.tracks[0] has 0.4 s at 0 Hz"),
        ({"seconds": -1}, "sound.tracks[0] has -1 s at 16000 Hz"),
        ({"high": "loud"}, "sound.tracks[0].high is"),
    ],
)
def test_a_result_whose_sound_does_not_fit_is_refused(
    typed: Callable[..., Result], tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    bundle = make_bundle(tmp_path / "bundle", WORDS)
    assert typed("run", bundle, "--source", spoken(tmp_path / "a.wav", "0011"), "--report", "rep").exit_code == 0
    data = json.loads(Path("rep/result.json").read_text())
    data["sound"]["tracks"][0] |= change
    Path("result.json").write_text(json.dumps(data))
    done = typed("report", "result.json", "--html")
    assert done.exit_code == 2 and message.split(".", 1)[-1] in re.sub(r"\s+", " ", done.stderr), done.stderr


@pytest.mark.parametrize(
    "name", ["../secret.flac", "/etc/passwd", "secret.txt", "none.flac", "text.flac", "text.mp3", "a\0.flac"]
)
def test_a_report_cannot_take_other_files_into_its_page(tmp_path: Path, name: str) -> None:
    """A result may come from anywhere: what it calls its sound is taken only if it lies beside it and is sound."""
    folder = tmp_path / "rep"
    folder.mkdir()
    for place in (tmp_path / "secret.flac", folder / "secret.txt", folder / "text.flac", folder / "text.mp3"):
        place.write_text("secret")
    (tmp_path / "secret.flac").write_bytes(b"fLaC secret")
    data = {"tracks": [{"name": "heard", "sample_rate": RATE, "seconds": 1.0, "low": [], "high": [], "file": name,
                        "reason": None}]}  # fmt: skip
    from trt_compress.runtime.stream.sound_result import Sound

    players = players_of(Sound.from_json(data, "the result"), folder)
    assert players["heard"].startswith("No player: its file ")
