"""Lines and sound that results become, and disks that are full."""

import json
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.runtime.stream.stream_parts import ListSource, by_outcome, run_pipeline
from trt_compress.errors import BundleError, ConfigError, StreamError
from trt_compress.format.manifest import TensorInfo
from trt_compress.runtime.stream.frame import Frame
from trt_compress.runtime.stream.parts import Item
from trt_compress.runtime.stream.postprocess import postprocess_from_manifest
from trt_compress.runtime.stream.sinks import JsonLines, SoundSink


def frame_of(data: Any, summary: dict[str, Any], number: int = 0) -> Frame:
    return Frame(id=number, source="s", arrival_ns=10, start_ns=11, mark_ns=12, data=data, summary=summary)


def test_every_frame_has_a_line(tmp_path: Path) -> None:
    items = [0.0, Item(error="damaged"), 2.0]
    finished, _ = run_pipeline(ListSource(items), sink=JsonLines(tmp_path / "r.jsonl"))
    lines = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert sorted(line["id"] for line in lines) == [0, 1, 2]
    by_id = {line["id"]: line for line in lines}
    assert (by_id[1]["outcome"], by_id[1]["reason"]) == ("failed", "damaged")
    assert by_id[2]["outcome"] == "delivered" and by_id[2]["results"] == [{"value": 2.0}]
    frames = finished.ledger.frames()
    assert by_id[2]["arrival_ns"] == frames.arrival_ns[2]
    assert by_id[2]["arrival_ns"] < by_id[2]["finished_ns"] <= frames.end_ns[2]
    assert by_id[2]["stages_ns"]["session"] == frames.stage_ns["session"][2]


@pytest.mark.parametrize("frames", [1, 50])
def test_a_full_disk_ends_the_stream_and_no_frame_is_called_delivered(frames: int) -> None:
    finished, _ = run_pipeline(ListSource([0.0] * frames), sink=JsonLines("/dev/full"))
    assert finished.error is not None and finished.error.exit_code == 2
    assert finished.error.message == (
        "Frame 0 of 'list' failed in 'sink': '/dev/full' cannot be written any more (No space left on device); "
        "free some space, or give another file."
    )
    assert by_outcome(finished)["delivered"] == [] and by_outcome(finished)["failed"] == [0]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"r\.jsonl' cannot be written \(No such file or directory\)"):
        JsonLines(tmp_path / "nowhere" / "r.jsonl").open()


def test_sound_is_cut_clipped_and_counted_to_the_end(tmp_path: Path) -> None:
    sink = SoundSink(tmp_path / "s.wav", output="sound", sample_rate=8000, samples=3)
    sink.open()
    for values in ([0.5, -0.25, 1.5, 9.0], [-2.0, 0.0, 1.0, 9.0]):
        frame = frame_of(None, {}, 0)
        frame.outputs = {"sound": np.array([values], np.float32)}
        sink.deliver(frame, 0)
    sink.close()
    with wave.open(str(tmp_path / "s.wav")) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth(), file.getnframes()) == (8000, 1, 2, 6)
        assert np.frombuffer(file.readframes(6), "<i2").tolist() == [16384, -8192, 32767, -32767, 0, 32767]


def test_sound_on_a_full_disk_is_an_error(tmp_path: Path) -> None:
    sink = SoundSink("/dev/full", output="sound", sample_rate=8000)
    sink.open()
    frame = frame_of(None, {}, 0)
    frame.outputs = {"sound": np.zeros((1, 100_000), np.float32)}
    for finish in (lambda: sink.deliver(frame, 0), sink.close):
        with pytest.raises(StreamError, match="'/dev/full' cannot be written any more"):
            finish()
    sink.close()
    with pytest.raises(ConfigError, match=r"s\.wav' cannot be written \(No such file or directory\)"):
        SoundSink(tmp_path / "nowhere" / "s.wav", output="sound", sample_rate=8000).open()


def infos(**shapes: tuple[int | str, ...]) -> dict[str, TensorInfo]:
    return {name: TensorInfo(name=name, dtype="float32", shape=shape) for name, shape in shapes.items()}


def test_a_classification_lists_the_best_classes() -> None:
    logits = np.log(np.array([[0.1, 0.6, 0.3], [0.5, 0.2, 0.3]], np.float32))
    apply = postprocess_from_manifest({"kind": "classification", "labels": ["a", "b", "c"]}, infos(logits=("batch", 3)))
    first, second = apply({"logits": logits})["results"]
    assert (first["class"], first["label"], second["class"], second["label"]) == (1, "b", 0, "a")
    np.testing.assert_allclose(first["top"], [[1, 0.6], [2, 0.3], [0, 0.1]], atol=1e-6)


def test_a_classification_says_where() -> None:
    settings = {"kind": "classification", "output": "logits", "place": {"output": "centre", "is": "shares"}}
    outputs = {"logits": np.eye(2, dtype=np.float32), "centre": np.array([[0.25, 0.123456], [1, 0]], np.float32)}
    found = postprocess_from_manifest(settings, infos(logits=("batch", 2), centre=("batch", 2)))(outputs)["results"]
    assert [result["place"] for result in found] == [[0.25, 0.1235], [1.0, 0.0]]
    with pytest.raises(BundleError, match=r"names the output 'center', and the bundle has logits, centre"):
        postprocess_from_manifest(
            settings | {"place": {"output": "center"}}, infos(logits=("batch", 2), centre=("batch", 2))
        )


def test_detections_above_the_threshold_come_best_first() -> None:
    boxes = np.zeros((1, 3, 10), np.float32)
    boxes[0, :, 0] = [1, 2, 3]
    boxes[0, :, 6:8] = [np.sin(0.5), np.cos(0.5)]
    scores = np.array([[[0.2, 0.1], [0.1, 0.6], [0.9, 0.3]]], np.float32)
    settings = {"kind": "detection3d", "classes": ["car", "truck"], "threshold": 0.5}
    apply = postprocess_from_manifest(settings, infos(boxes=(1, 3, 10), scores=(1, 3, 2)))
    (found,) = apply({"boxes": boxes, "scores": scores})["results"]
    assert [(box["label"], box["center"][0], box["yaw"]) for box in found["boxes"]] == [
        ("car", 3, 0.5),
        ("truck", 2, 0.5),
    ]


def test_raw_outputs_are_described() -> None:
    apply = postprocess_from_manifest({}, infos(y=(1, 2)))
    assert apply({"y": np.array([[1, 3]], np.float32)})["results"] == [
        {"y": {"shape": [1, 2], "mean": 2.0, "min": 1.0, "max": 3.0}}
    ]
