"""What a bundle is said to get right, against a reference by hand."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

from tests.runtime.brightest import CLASSIFIES, picture, save_classes, save_picture, write_brightest
from trt_compress.errors import ConfigError
from trt_compress.format.manifest import State
from trt_compress.runtime import Session
from trt_compress.runtime.evaluate import (
    Answers,
    Collected,
    Scores,
    check_comparable,
    classifier_of,
    collect,
    judge,
)
from trt_compress.runtime.labelled.data import BadSample, LabelledData, LabelledSample
from trt_compress.runtime.labelled.open import Request, from_arrays, open_data

NAMES = ("cat", "dog", "elk", "fox")


def data_of(session: Session, folder: Path) -> LabelledData:
    return open_data(session.bundle, session.inputs, Request(data=folder, labels=None, classes=None), 4)


def scores_of(found: Collected, **more: Any) -> Scores:
    return judge(found.labels, *found.answers, outputs=found.outputs, num_classes=4, **more)


@pytest.mark.parametrize("batch", [1, 2, 5, 100])
def test_accuracy_agreement_and_what_was_lost(tmp_path: Path, batch: int) -> None:
    dense = Session.open(write_brightest(tmp_path / "dense"))
    swapped = Session.open(write_brightest(tmp_path / "swapped", order=(1, 0, 2, 3)))
    data = data_of(dense, save_classes(tmp_path / "val", NAMES, each=3))
    told: list[int] = []
    found = collect([swapped, dense], data, batch=batch, progress=told.append)
    scores = scores_of(found, class_names=NAMES)
    assert scores.accuracy and scores.baseline_accuracy and scores.agreement and scores.change
    assert (scores.accuracy.count, scores.baseline_accuracy.count, scores.agreement.count) == (6, 12, 6)
    assert (scores.change.value, scores.change.won, scores.change.lost) == (-0.5, 0, 6)
    rows = [(row.number, row.name, row.n, row.right, row.baseline_right) for row in scores.classes]
    assert rows == [(0, "cat", 3, 0, 3), (1, "dog", 3, 0, 3), (2, "elk", 3, 3, 3), (3, "fox", 3, 3, 3)]
    assert scores.top5 is None and scores.n == 12 and told == list(range(12)) and not found.failures
    pixels = [
        (picture(place, 40 + n).flatten().astype(np.float64) / 255 - 0.5) / 0.5 for place in range(4) for n in range(3)
    ]
    wanted = [p @ p[[1, 0, 2, 3]] / (p @ p) for p in pixels]
    (output,) = scores.outputs
    assert output.name == "logits" and np.allclose(output.cosine, wanted, atol=1e-6)
    assert scores.worst_cosine == pytest.approx(min(wanted), abs=1e-6)


def test_bad_files_are_left_out_and_named(tmp_path: Path) -> None:
    session = Session.open(write_brightest(tmp_path / "dense"))
    folder = save_classes(tmp_path / "val", NAMES, each=2)
    (folder / "dog/1.png").write_bytes(b"no picture")
    found = collect([session], data_of(session, folder), batch=3)
    assert found.failures == (("dog/1.png", "the file is not a readable image"),) and len(found.names) == 7
    scores = scores_of(found)
    assert scores.accuracy and (scores.accuracy.count, scores.accuracy.n) == (7, 7) and scores.agreement is None
    for path in folder.rglob("*.png"):
        path.write_bytes(b"no picture")
    with pytest.raises(ConfigError, match="None of the 8 samples of .* can be read. The first, 'cat/0.png': the file"):
        collect([session], data_of(session, folder), batch=3)


def test_the_rank_of_a_label_counts_equal_scores_of_smaller_classes(tmp_path: Path) -> None:
    values = np.zeros((4, 7))
    values[0] = [3, 5, 5, 1, 9, 0, 5]
    bundle = write_brightest(tmp_path / "b", values=values, postprocess={"kind": "classification", "classes": 7})
    session = Session.open(bundle)
    one = np.array([[[[1, 0], [0, 0]]]], np.float32)
    data = from_arrays("x", {"image": np.stack([one] * 7)}, np.arange(7), form="numbers")
    found = collect([session], data, batch=4)
    assert found.answers[0].predicted is not None and found.answers[0].predicted.tolist() == [4] * 7
    assert found.answers[0].rank is not None and found.answers[0].rank.tolist() == [4, 1, 2, 5, 0, 6, 3]
    scores = judge(found.labels, found.answers[0], num_classes=7)
    assert scores.accuracy and scores.top5 and (scores.accuracy.count, scores.top5.count) == (1, 5)


def test_an_answer_that_is_not_finite_is_wrong_and_agrees_with_nothing(tmp_path: Path) -> None:
    values = np.eye(4)
    values[3, 3] = np.inf
    broken, dense = (
        Session.open(write_brightest(tmp_path / name, values=value))
        for name, value in (("broken", values), ("dense", np.eye(4)))
    )
    data = data_of(dense, save_classes(tmp_path / "val", NAMES, each=1))
    for sessions in ([broken, dense], [broken, broken]):
        scores = scores_of(collect(sessions, data, batch=4))
        assert scores.accuracy and scores.agreement and scores.not_finite == 4
        assert scores.accuracy.count == scores.agreement.count == 0
        (output,) = (each.to_json() for each in scores.outputs)
        assert output["not_finite"] == 4 and output["cosine_min"] is None and scores.worst_cosine is None


def test_samples_without_a_label_count_for_agreement_only(tmp_path: Path) -> None:
    labels = np.array([0, -1, 1, -1])
    ours, theirs = np.array([0, 1, 0, 2]), np.array([0, 1, 1, 3])
    scores = judge(labels, Answers(predicted=ours, rank=None), Answers(predicted=theirs, rank=None))
    assert scores.accuracy and (scores.accuracy.count, scores.accuracy.n) == (1, 2)
    assert scores.agreement and (scores.agreement.count, scores.agreement.n) == (2, 4)
    assert [(row.number, row.n) for row in scores.classes] == [(0, 1), (1, 1)]


def test_fp16_is_compared_with_fp32(tmp_path: Path) -> None:
    half = Session.open(write_brightest(tmp_path / "half", dtype="float16"))
    dense = Session.open(write_brightest(tmp_path / "dense"))
    check_comparable(half, dense)
    data = data_of(dense, save_classes(tmp_path / "val", NAMES, each=1))
    scores = scores_of(collect([half, dense], data, batch=4))
    assert scores.accuracy and scores.agreement and scores.accuracy.count == scores.agreement.count == 4
    assert scores.worst_cosine is not None and 0.9999 < scores.worst_cosine < 1


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"values": np.eye(4)[:, :3], "postprocess": {"kind": "raw"}}, "do not name the same classes"),
        (
            {"postprocess": {"kind": "classification", "classes": 4, "labels": list(NAMES)}},
            "do not name the same classes",
        ),
        ({"preprocess": {"kind": "tensors"}}, "prepare their inputs differently"),
    ],
)
def test_bundles_that_answer_another_question_are_refused(tmp_path: Path, other: dict[str, Any], words: str) -> None:
    dense = Session.open(write_brightest(tmp_path / "dense"))
    with pytest.raises(ConfigError, match=words):
        check_comparable(dense, Session.open(write_brightest(tmp_path / "other", **other)))


def test_bundles_that_take_other_things_are_refused(make_bundle: Callable[..., Any], tmp_path: Path) -> None:
    graph = ([helper.make_node("Identity", ["x"], ["y"])], {"x": ("float32", [1])}, {"y": ("float32", [1])})
    other = Session.open(make_bundle({"model": graph}).path)
    with pytest.raises(ConfigError, match="The bundle takes image float32 .*, and the baseline x float32"):
        check_comparable(Session.open(write_brightest(tmp_path / "dense")), other)


def test_a_detector_is_sent_to_run(tmp_path: Path) -> None:
    session = Session.open(write_brightest(tmp_path / "b"))
    detector = replace(session.bundle.manifest, postprocess={"kind": "detection3d"})
    with pytest.raises(ConfigError, match="is a detector.*trt-compress run BUNDLE --source scene.npz --labels"):
        classifier_of(detector, session.outputs)


def brightness(samples: Sequence[Sequence[Sequence[float]]], *, name: str = "image") -> LabelledData:
    """Samples of several runs; each run is the four pixels of a picture."""

    def sample(number: int, pictures: Sequence[Sequence[float]]) -> LabelledSample:
        runs = tuple({name: np.array(pixels, np.float32).reshape(1, 1, 2, 2)} for pixels in pictures)
        return LabelledSample(name=str(number), label=None, load=lambda: runs)

    return LabelledData(source="x", form="numbers", samples=[sample(*pair) for pair in enumerate(samples)])


RUNS = [
    [[9, 0, 0, 0], [0, 5, 0, 0], [0, 5, 0, 0], [0, 0, 6, 0]],  # mean: 1, last: 2
    [[0, 0, 0, 1]],
    [[0, 0, 9, 0], [0, 1, 0, 0]],  # mean: 2, last: 1
    [[0, 0, 0, 3], [4, 0, 0, 0]],  # mean and last: 0
]


def predicted(session: Session, data: LabelledData, batch: int = 2) -> list[int]:
    found = collect([session], data, batch=batch).answers[0].predicted
    assert found is not None
    return found.tolist()


def test_chunks_of_a_sound_are_averaged_and_frames_answer_with_the_last(tmp_path: Path) -> None:
    session = Session.open(write_brightest(tmp_path / "b"))
    data = brightness(RUNS)
    assert predicted(session, replace(data, answer="mean")) == [1, 3, 2, 0]
    assert predicted(session, replace(data, answer="last")) == [2, 3, 1, 0]


@pytest.mark.parametrize("answer", ["mean", "last"])
def test_states_begin_anew_with_every_sample_and_go_on_inside_it(make_bundle: Callable[..., Any], answer: Any) -> None:
    shape: list[int | str] = ["batch", 1, 2, 2]
    graph = (
        [helper.make_node("Add", ["image", "total"], ["new_total"]), helper.make_node("Flatten", ["new_total"], ["y"])],
        {"image": ("float32", shape), "total": ("float32", shape)},
        {"y": ("float32", ["batch", 4]), "new_total": ("float32", shape)},
    )
    state = State(graph="model", input="total", output="new_total", shape=tuple(shape), dtype="float32")
    session = Session.open(make_bundle({"model": graph}, states=(state,), postprocess=CLASSIFIES).path)
    for batch in (1, 2, 9):
        assert predicted(session, replace(brightness(RUNS), answer=answer), batch) == [1, 3, 2, 0]


def test_files_of_sound_of_any_length(tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    sound = {"kind": "audio", "sample_rate": 8000, "channels": 1, "samples": 4}
    from trt_compress.format.manifest import TensorInfo
    from trt_compress.runtime.labelled.files import FileReader
    from trt_compress.runtime.stream.preprocess import converter_of

    info = TensorInfo(name="audio", dtype="float32", shape=("batch", 4))
    convert = converter_of(sound, info)
    assert convert is not None
    reader = FileReader("audio", sound, info, lambda data: {"audio": convert(data)[None]})
    for length, runs in ((3, 1), (4, 1), (9, 3)):
        soundfile.write(tmp_path / "a.wav", np.arange(1, length + 1) / 16, 8000, subtype="FLOAT")
        found = reader.read(tmp_path / "a.wav")
        assert len(found) == runs and found[0]["audio"].shape == (1, 4)
        together = np.concatenate([run["audio"][0] for run in found])
        assert np.allclose(together[:length], np.arange(1, length + 1) / 16) and not together[length:].any()
    soundfile.write(tmp_path / "b.wav", np.zeros((40, 2)), 16000)
    with pytest.raises(BadSample, match="has 16000 samples a second in 2 channels, and the bundle takes 8000 in 1"):
        reader.read(tmp_path / "b.wav")
    fits = FileReader("audio", sound, info, lambda data: {"audio": convert(data)[None]}, resample=True)
    assert len(fits.read(tmp_path / "b.wav")) == 5
    soundfile.write(tmp_path / "c.wav", np.zeros(0), 8000)
    with pytest.raises(BadSample):
        reader.read(tmp_path / "c.wav")


def test_a_picture_of_one_class_in_a_folder_of_all(tmp_path: Path) -> None:
    session = Session.open(write_brightest(tmp_path / "dense"))
    folder = save_classes(tmp_path / "val", NAMES, each=0)
    for name in NAMES:
        (folder / name).mkdir(parents=True, exist_ok=True)
    save_picture(folder / "fox/x.png", 3)
    scores = scores_of(collect([session], data_of(session, folder), batch=8))
    assert scores.accuracy and scores.accuracy.count == 1 and scores.classes[0].number == 3
