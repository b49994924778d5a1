"""Lines, videos and sound that results become, and disks that are full."""

import json
import wave
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from media import picture
from stream_parts import ListSource, by_outcome, run_pipeline

from trt_compress.errors import ConfigError, StreamError
from trt_compress.runtime.manifest import TensorInfo
from trt_compress.runtime.stream.frame import Frame
from trt_compress.runtime.stream.parts import Item
from trt_compress.runtime.stream.postprocess import postprocess_from_manifest
from trt_compress.runtime.stream.sinks import JsonLines, Overlay, Sound


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
    with pytest.raises(ConfigError, match=r"The overlay '.*o\.mp4' cannot be written \(No such file or directory\)"):
        Overlay(tmp_path / "nowhere" / "o.mp4").open()
    with pytest.raises(ConfigError, match=r"The overlay '.*o\.what' cannot be written"):
        Overlay(tmp_path / "o.what").open()


def test_sound_is_cut_clipped_and_counted_to_the_end(tmp_path: Path) -> None:
    sink = Sound(tmp_path / "s.wav", output="sound", sample_rate=8000, samples=3)
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
    sink = Sound("/dev/full", output="sound", sample_rate=8000)
    sink.open()
    frame = frame_of(None, {}, 0)
    frame.outputs = {"sound": np.zeros((1, 100_000), np.float32)}
    for finish in (lambda: sink.deliver(frame, 0), sink.close):
        with pytest.raises(StreamError, match="'/dev/full' cannot be written any more"):
            finish()
    sink.close()
    with pytest.raises(ConfigError, match=r"s\.wav' cannot be written \(No such file or directory\)"):
        Sound(tmp_path / "nowhere" / "s.wav", output="sound", sample_rate=8000).open()


def decoded(path: Path) -> list[np.ndarray[Any, Any]]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def test_an_overlay_holds_the_pictures_and_the_class(tmp_path: Path) -> None:
    sink = Overlay(tmp_path / "o.mp4", fps=25)
    sink.open()
    pictures = [picture(4 + n, 161, 201) for n in range(6)]  # odd sides, brighter and brighter
    for number, image in enumerate(pictures):
        found = {"class": number, "score": 0.5, "label": "WWWWWWWW"}
        sink.deliver(frame_of(image, {"results": [found]}, number), 0)
    sink.close()
    frames = decoded(tmp_path / "o.mp4")
    assert len(frames) == 6 and frames[0].shape == (160, 200, 3)
    for image, shown in zip(pictures, frames, strict=True):
        assert abs(float(shown[40:120].mean()) - float(image.mean())) < 4
        yellow = (shown[..., 0].astype(int) > 150) & (shown[..., 1] > 150) & (shown[..., 2] < 110)
        assert yellow[:30].sum() > 100 and yellow[40:].sum() == 0  # the text is at the top and only there


def test_an_overlay_shows_boxes_from_above(tmp_path: Path) -> None:
    sink = Overlay(tmp_path / "o.mp4", range_m=20)
    sink.open()
    box = {
        "class": 0,
        "score": 0.9,
        "center": [10.0, 10.0, 0.0],
        "size": [4.0, 2.0, 1.5],
        "yaw": 0.0,
        "velocity": [0.0, 0.0],
    }
    images = np.full((1, 2, 3, 160, 80), 150, np.float32)
    # Two cameras that look ahead, 40 pixels a metre at a metre; the second is turned round and sees nothing.
    ahead = np.array([[40.0, -40.0, 0, 0], [80.0, 0, -40.0, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
    back = ahead @ np.diag([-1.0, -1.0, 1.0, 1.0])
    scene = {"images": images, "img2lidar": np.linalg.inv(np.stack([ahead, back]))[None]}
    sink.deliver(frame_of(scene, {"results": [{"boxes": [box]}]}), 0)
    sink.close()
    (shown,) = decoded(tmp_path / "o.mp4")
    assert shown.shape == (320, 80 + 320, 3)  # the cameras in two rows

    def orange(part: np.ndarray[Any, Any]) -> Any:
        return (part[..., 0].astype(int) - part[..., 2] > 60).nonzero()

    rows, columns = orange(shown[:160, :80])
    # Its middle is 10 m ahead and 10 m left: column 40 - 40 = 0, row 80; its back end is nearer and further left.
    assert (
        len(rows) > 5 and abs(float(np.median(rows)) - 80) < 8 and float(np.median(columns)) < 15 and columns.max() < 40
    )
    assert len(orange(shown[160:, :80])[0]) == 0
    rows, columns = orange(shown[:, 80:])
    # From above 8 pixels are a metre, x is up and y to the left: a quarter of the side from each edge.
    at_box = (abs(rows - 80) < 30) & (abs(columns - 80) < 30)
    assert abs(rows[at_box].mean() - 80) < 4 and abs(columns[at_box].mean() - 80) < 4
    assert 28 <= np.ptp(rows[at_box]) <= 40 and 12 <= np.ptp(columns[at_box]) <= 24


def test_an_overlay_of_sound_is_refused(tmp_path: Path) -> None:
    sink = Overlay(tmp_path / "o.mp4")
    sink.open()
    with pytest.raises(ConfigError, match="An overlay needs images, and the source gives sound"):
        sink.deliver(frame_of(np.zeros(100, np.float32), {}), 0)
    with pytest.raises(ConfigError, match="An overlay needs images, and the source gives points"):
        sink.deliver(frame_of({"points": np.zeros((1, 100), np.float32)}, {}), 0)
    sink.close()


def infos(**shapes: tuple[int | str, ...]) -> dict[str, TensorInfo]:
    return {name: TensorInfo(name=name, dtype="float32", shape=shape) for name, shape in shapes.items()}


def test_a_classification_lists_the_best_classes() -> None:
    logits = np.log(np.array([[0.1, 0.6, 0.3], [0.5, 0.2, 0.3]], np.float32))
    apply = postprocess_from_manifest({"kind": "classification", "labels": ["a", "b", "c"]}, infos(logits=("batch", 3)))
    first, second = apply({"logits": logits})["results"]
    assert (first["class"], first["label"], second["class"], second["label"]) == (1, "b", 0, "a")
    np.testing.assert_allclose(first["top"], [[1, 0.6], [2, 0.3], [0, 0.1]], atol=1e-6)


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
