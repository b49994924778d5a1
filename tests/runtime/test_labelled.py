"""Labelled data of every form become the same samples; what cannot be told is refused in a sentence."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.runtime.brightest import GREY, picture, save_classes, save_picture, write_brightest
from trt_compress.errors import ConfigError
from trt_compress.runtime import Session
from trt_compress.runtime.labelled.classes import number_folders, read_names
from trt_compress.runtime.labelled.data import BadSample, LabelledData, limited, remembered
from trt_compress.runtime.labelled.open import Request, from_arrays, open_data

NAMES = ("cat", "dog", "elk", "fox")


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return Session.open(write_brightest(tmp_path / "bundle"))


def opened(session: Session, data: Path | None = None, labels: Path | None = None, classes: Any = None) -> LabelledData:
    classes = None if classes is None else str(classes)
    return open_data(session.bundle, session.inputs, Request(data=data, labels=labels, classes=classes), 4)


def labels_of(data: LabelledData) -> dict[str, int | None]:
    return {sample.name: sample.label for sample in data.samples}


def answers(session: Session, data: LabelledData) -> list[int]:
    """The class that the bundle gives every sample, fed as evaluate feeds it."""
    return [int(session.run(dict(sample.load()[-1]))["logits"].argmax()) for sample in data.samples]


def test_folders_of_classes_count_as_imagefolder_does(session: Session, tmp_path: Path) -> None:
    data = opened(session, save_classes(tmp_path / "val", NAMES[::-1], each=2, brightest=lambda i: 3 - i))
    assert labels_of(data) == {f"{name}/{n}.png": place for place, name in enumerate(NAMES) for n in range(2)}
    assert answers(session, data) == [sample.label for sample in data.samples]
    assert data.class_names == NAMES and data.labelled_by == "their folders in sorted order, as ImageFolder counts"


def test_files_below_a_class_s_folder_belong_to_it(session: Session, tmp_path: Path) -> None:
    save_classes(tmp_path / "val", NAMES, each=1)
    save_picture(tmp_path / "val/dog/more/deep/x.PNG", 1)
    assert labels_of(opened(session, tmp_path / "val"))["dog/more/deep/x.PNG"] == 1


def test_what_is_no_picture_is_named_and_hidden_files_are_not(session: Session, tmp_path: Path) -> None:
    folder = save_classes(tmp_path / "val", NAMES, each=1)
    (folder / "dog/notes.txt").write_text("x")
    (folder / "dog/.DS_Store").write_text("x")
    (folder / "readme.md").write_text("x")
    save_picture(folder / "loose.png", 0)
    data = opened(session, folder)
    assert len(data.samples) == 4
    assert dict(data.left_out) == {
        "dog/notes.txt": "its name is not one of an image",
        "readme.md": "its name is not one of an image",
        "loose.png": "it lies beside the folders of classes",
    }


def test_names_of_the_bundle_go_before_the_order_of_folders(tmp_path: Path) -> None:
    names = ["fox", "cat", "elk", "dog"]
    bundle = write_brightest(tmp_path / "b", postprocess={"kind": "classification", "classes": 4, "labels": names})
    session = Session.open(bundle)
    data = opened(session, save_classes(tmp_path / "val", names[:3], each=1))  # not all of them
    assert labels_of(data) == {"cat/0.png": 1, "elk/0.png": 2, "fox/0.png": 0}
    assert answers(session, data) == [1, 2, 0] and data.labelled_by == "names of the bundle"
    save_picture(tmp_path / "val/wolf/0.png", 0)
    with pytest.raises(ConfigError, match="has a folder 'wolf', which is no class of the bundle.* There are fox, cat"):
        opened(session, tmp_path / "val")


@pytest.mark.parametrize(
    "text",
    [
        "fox\ncat\nelk\ndog\n",
        "\ufefffox\r\ncat\r\nelk\r\ndog\r\n\r\n",
        "fox, red fox\ncat tabby\nelk\ndog, hound\n",
        '["fox", "cat", "elk", "dog"]',
        '{"fox": 0, "cat": 1, "elk": 2, "dog": 3}',
        '{"0": "fox", "1": "cat", "2": "elk", "3": "dog"}',
    ],
)
def test_names_of_a_file(session: Session, tmp_path: Path, text: str) -> None:
    (tmp_path / "names").write_bytes(text.encode())
    data = opened(session, save_classes(tmp_path / "val", ["cat", "dog"], each=1), classes=tmp_path / "names")
    assert labels_of(data) == {"cat/0.png": 1, "dog/0.png": 3}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cat\ncat\n", "names 'cat' twice"),
        ("cat\n\ndog\n", "line 2 of .* is empty"),
        ("", "names no class"),
        ('["cat", 7]', "holds no names of classes"),
        ('{"cat": ', "is not valid JSON"),
        ("a\nb\nc\nd\ne\n", "has a class 4, and the bundle has the classes 0 to 3"),
        ('{"cat": -1}', "has a class -1"),
    ],
)
def test_names_that_are_none(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "names").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_names(tmp_path / "names", 4)


def test_folders_named_by_numbers() -> None:
    digits = [str(number) for number in range(12)]
    assert number_folders(digits[:10], None, 10, None, "d")[0] == {str(n): n for n in range(10)}
    with pytest.raises(ConfigError, match="two ways, sorted as words .0, 1, 10, 11, .* --classes sorted or --classes"):
        number_folders(digits, None, 12, None, "d")
    assert number_folders(digits, None, 12, "numbers", "d")[0]["10"] == 10
    assert number_folders(digits, None, 12, "sorted", "d")[0]["10"] == 2
    assert number_folders(["3", "007"], None, 10, None, "d")[0] == {"3": 3, "007": 7}
    padded = [f"{number:02}" for number in range(12)]
    assert number_folders(padded, None, 12, None, "d")[0] == {name: int(name) for name in padded}


@pytest.mark.parametrize(
    ("folders", "order", "message"),
    [
        (["cat", "dog"], None, "has 2 folders of classes .cat, dog. and the bundle has 10 classes, .* --classes FILE"),
        (["1", "cat"], "numbers", "needs folders named 0 to 9"),
        (["1", "01"], "numbers", "needs folders named 0 to 9"),
        ([f"c{n}" for n in range(11)], None, "11 folders of classes"),
        ([f"c{n}" for n in range(11)], "sorted", "has 11 classes and the bundle 10"),
    ],
)
def test_folders_that_cannot_be_told(folders: list[str], order: str | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        number_folders(folders, None, 10, order, "d")


def test_the_folder_above_the_classes_is_noticed(session: Session, tmp_path: Path) -> None:
    save_classes(tmp_path / "data/val", NAMES, each=1)
    with pytest.raises(ConfigError, match="has the one folder 'val', which has 4, .* did you mean '.*data/val'"):
        opened(session, tmp_path / "data")


LINES = {
    "labels.jsonl": '{"file": "a.png", "label": 2}\n\n{"file": "sub/b.png", "label": 0}\n',
    "headed.csv": "label,file\n2,a.png\n0,sub/b.png\n",
    "bare.csv": "a.png,2\nsub/b.png, 0\n",
    "excel.csv": "\ufefffilename;class\r\na.png;2\r\nsub/b.png;0\r\n",
    "tabs.tsv": "a.png\t2\nsub/b.png\t0\n",
    "wide.csv": "id,path,width,label\n1,a.png,2,2\n2,sub/b.png,2,0\n",
    "quoted.csv": '"a.png","2"\n"sub/b.png","0"\n',
}


@pytest.mark.parametrize("name", LINES)
@pytest.mark.parametrize("beside", [True, False])
def test_a_file_of_labels(session: Session, tmp_path: Path, name: str, beside: bool) -> None:
    folder = tmp_path / "flat"
    save_picture(folder / "a.png", 2)
    save_picture(folder / "sub/b.png", 0)
    save_picture(folder / "c.png", 1)
    (labels := (folder if beside else tmp_path) / name).write_bytes(LINES[name].encode())
    data = opened(session, None if beside else folder, labels)
    assert labels_of(data) == {"a.png": 2, "sub/b.png": 0} and answers(session, data) == [2, 0]
    assert data.left_out == (() if beside else (("c.png", "it has no label"),))


def test_labels_may_be_names(session: Session, tmp_path: Path) -> None:
    save_picture(tmp_path / "a.png", 1)
    (tmp_path / "labels.csv").write_text("a.png,dog\n")
    (tmp_path / "names").write_text("\n".join(NAMES))
    assert labels_of(opened(session, None, tmp_path / "labels.csv", tmp_path / "names")) == {"a.png": 1}
    with pytest.raises(ConfigError, match="has the class 'dog', and the bundle does not name its classes; give --cla"):
        opened(session, None, tmp_path / "labels.csv")
    (tmp_path / "labels.csv").write_text("a.png,dgo\n")
    with pytest.raises(ConfigError, match="is 'dgo', which '.*names' does not have.*dog"):
        opened(session, None, tmp_path / "labels.csv", tmp_path / "names")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"file": "a.png"}', "Line 1 of .* is no label of a file; write"),
        ('{"file": "a.png", "label": 1}\nnonsense', "Line 2 of .* is no label of a file"),
        ('{"file": "a.png", "label": 4}', "Line 1 of .* has the class 4, and the bundle has the classes 0 to 3"),
        ('{"file": "a.png", "label": -1}', "has the class -1"),
        ('{"file": "a.png", "label": 1.0}', "has the label 1.0; give the number or the name of one class"),
        ('{"file": "a.png", "label": true}', "has the label true"),
        ('{"file": "a.png", "label": [1]}', "has the label .1."),
        ("a.png,1\na.png,2\n", "Line 2 of .* gives 'a.png' the class 2, and a line before it 1"),
        ("a.png,1,2\n", "has 3 columns and no heading"),
        ("a.png,1\nb.png\n", "Line 2 of .* has 1 columns"),
        ("", "holds no label"),
        ("file,label\n", "holds no label"),
    ],
)
def test_a_file_of_labels_that_is_none(session: Session, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "labels").write_text(text)
    with pytest.raises(ConfigError, match=message):
        opened(session, None, tmp_path / "labels")


def test_a_list_is_no_lines_of_json(session: Session, tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text('[{"file": "a.png", "label": 1}, {"file": "b.png", "label": 2}]')
    with pytest.raises(ConfigError, match="Line 1 of .* is no label of a file; write"):
        opened(session, None, tmp_path / "labels.json")


def test_what_cannot_be_read_is_a_bad_sample(session: Session, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "labels.csv").write_text("broken.png,0\nempty.png,1\nabsent.png,2\n")
    for sample in opened(session, None, tmp_path / "labels.csv").samples:
        with pytest.raises(BadSample, match="there is no such file" if "absent" in sample.name else "not a readable"):
            sample.load()


def test_names_with_brackets_and_stars(session: Session, tmp_path: Path) -> None:
    save_picture(tmp_path / "val/[a]*?.png", 1)
    (tmp_path / "labels.csv").write_text("val/[a]*?.png,1\n")
    assert answers(session, opened(session, None, tmp_path / "labels.csv")) == [1]


PICTURES = np.stack([picture(number) for number in (2, 0, 3)])
PREPARED = ((PICTURES / 255 - 0.5) / 0.5).astype(np.float32)[:, None]


@pytest.mark.parametrize(
    "arrays",
    [
        {"image": PICTURES, "label": [2, 0, 3]},
        {"images": PICTURES[..., None], "labels": [[2], [0], [3]]},
        {"x": PICTURES[:, None], "y": np.array([2, 0, 3], np.uint8)},
        {"image": PREPARED, "label": [2, 0, 3]},
        {"whatever": PREPARED, "target": [2, 0, 3]},
        {"images": np.repeat(PICTURES[..., None], 3, axis=3), "label": [2, 0, 3]},
    ],
)
def test_arrays(session: Session, tmp_path: Path, arrays: dict[str, Any]) -> None:
    np.savez(tmp_path / "data.npz", **arrays)
    data = opened(session, tmp_path / "data.npz")
    assert [sample.label for sample in data.samples] == answers(session, data) == [2, 0, 3]
    assert np.allclose(np.concatenate([sample.load()[0]["image"] for sample in data.samples]), PREPARED, atol=1e-6)


def test_arrays_without_labels(session: Session, tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", image=PICTURES)
    data = opened(session, tmp_path / "data.npz")
    assert data.num_labelled == 0 and data.labelled_by is None


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"image": PICTURES, "label": [2, 0]}, "differ in their number of samples .image 3, label 2."),
        ({"image": PICTURES, "label": [2, 0, 4]}, "'label' of .* holds the class 4, and the bundle has the classes 0"),
        ({"image": PICTURES, "label": [2.0, 0.0, 1.0]}, "is float64 .3.; labels are whole numbers"),
        ({"image": PREPARED[..., 0], "label": [2, 0, 3]}, r"are float32 \[3, 1, 2\]; give uint8 \[N, H, W\]"),
        ({"image": PICTURES[:0], "label": np.zeros(0, int)}, "holds no sample"),
        ({"one": PICTURES, "other": PICTURES, "label": [2, 0, 3]}, "it must hold 'image', float32 .N, 1, 2, 2."),
        ({"image": np.uint8(3), "label": [2]}, "differ in their number of samples"),
    ],
)
def test_arrays_that_do_not_fit(session: Session, tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(ConfigError, match=message):
        opened(session, tmp_path / "data.npz")


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({}, "No data is given"),
        ({"data": "nowhere"}, "--data: '.*nowhere' is not there"),
        ({"labels": "nowhere"}, "--labels: '.*nowhere' is not there"),
        ({"data": "file.png"}, "is one file; give a folder, or an .npz file"),
        ({"data": ".", "classes": "nowhere"}, "--classes: '.*nowhere' is not there"),
        ({"data": "file.npz", "labels": "file.png"}, "leave --labels out"),
    ],
)
def test_what_was_asked_for_is_looked_at_first(tmp_path: Path, request_: dict[str, str], message: str) -> None:
    (tmp_path / "file.png").write_bytes(b"")
    (tmp_path / "file.npz").write_bytes(b"")
    parts: dict[str, Any] = {"data": None, "labels": None, "classes": None}
    parts |= {name: tmp_path / value for name, value in request_.items() if name != "classes"}
    parts |= {"classes": request_["classes"]} if "classes" in request_ else {}
    with pytest.raises(ConfigError, match=message):
        Request(**parts).check()


def test_an_empty_folder_is_refused(session: Session, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(ConfigError, match="none' holds no image file; give"):
        opened(session, tmp_path / "none")
    (tmp_path / "none/dog").mkdir()
    (tmp_path / "none/dog/bark.wav").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"no image file, and 1 file of another kind \('dog/bark\.wav'\); give"):
        opened(session, tmp_path / "none")


def test_a_bundle_that_takes_no_files_says_so(tmp_path: Path) -> None:
    session = Session.open(write_brightest(tmp_path / "b", preprocess={"kind": "tensors"}))
    with pytest.raises(ConfigError, match="does not say how a file becomes that .*; give an .npz file"):
        opened(session, save_classes(tmp_path / "val", NAMES, each=1))
    why = {"kind": "tensors", "reason": "mean and std are not known: export again with ?mean=…"}
    session = Session.open(write_brightest(tmp_path / "c", preprocess=why))
    with pytest.raises(
        ConfigError, match=r"becomes that \(mean and std are not known: export again .*\); give an .npz"
    ):
        opened(session, tmp_path / "val")


def test_a_limit_is_spread_and_what_was_read_is_kept() -> None:
    reads: list[int] = []
    data = from_arrays("x", {"a": np.arange(8.0)[:, None]}, np.arange(8), form="numbers")
    assert [sample.label for sample in limited(data, 3).samples] == [0, 2, 5] and limited(data, 9) is data
    first = data.samples[0]
    counted = type(first)(name="s", label=0, load=lambda: (reads.append(1), first.load())[1])
    kept = remembered(type(data)(source="x", form="y", samples=[counted]))
    assert kept.samples[0].load() == kept.samples[0].load() and reads == [1]
    small = remembered(type(data)(source="x", form="y", samples=[counted]), most_bytes=1)
    assert [small.samples[0].load() for _ in range(2)] and len(reads) == 3


def test_pictures_of_another_size_are_resized_as_the_bundle_says(tmp_path: Path) -> None:
    session = Session.open(write_brightest(tmp_path / "b", preprocess={**GREY, "interpolation": "nearest"}))
    from PIL import Image

    Image.fromarray(np.kron(picture(3), np.ones((8, 8), np.uint8))).convert("RGB").save(tmp_path / "large.png")
    (tmp_path / "labels.jsonl").write_text(json.dumps({"file": "large.png", "label": 3}))
    assert answers(session, opened(session, None, tmp_path / "labels.jsonl")) == [3]
