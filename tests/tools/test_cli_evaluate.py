"""`trt-compress evaluate`, as a user types it."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import trt_compress
from tests.runtime.brightest import save_classes, save_picture, write_brightest
from trt_compress.errors import ConfigError

NAMES = ("cat", "dog", "elk", "fox")
Cli = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """`dense`, `swapped` (takes cats for dogs and dogs for cats) and `val/<class>/*.png` with one broken file."""
    write_brightest(tmp_path / "dense", name="dense")
    write_brightest(tmp_path / "swapped", name="swapped", order=(1, 0, 2, 3))
    save_classes(tmp_path / "val", NAMES, each=3)
    (tmp_path / "val/fox/bad.png").write_bytes(b"none")
    (tmp_path / "val/notes.txt").write_text("x")
    return tmp_path


def test_what_a_user_sees(cli: Cli, folder: Path) -> None:
    found = cli("evaluate", "swapped", "--images", "val", "--baseline", "dense", "--json", "out.json")
    assert found.returncode == 0 and "Wrote out.json" in found.stderr
    lines = {line.partition("  ")[0].strip(): line for line in found.stdout.splitlines()}
    assert "12 of 13 samples answered" in found.stdout
    assert "50.0% [25.4, 74.6], 6 of 12" in lines["accuracy (top-1)"]
    assert "100.0% [75.8, 100.0]   -50.0 points [-72.3, -13.4]" in lines["accuracy (top-1)"]
    assert "6 of 12" in lines["same answer as the baseline"]
    assert lines["0 cat"].split() == ["0", "cat", "3", "of", "3", "0", "of", "3"] and "2 elk" not in found.stdout
    assert (
        "Samples that could not be read: 1" in found.stdout
        and "fox/bad.png: the file is not a readable image" in found.stdout
    )
    assert "notes.txt" in found.stdout
    document = json.loads((folder / "out.json").read_text())
    assert document["document"] == "trt-compress evaluation" and document["scores"]["accuracy"]["count"] == 6
    assert document["failures"] == [{"sample": "fox/bad.png", "reason": "the file is not a readable image"}]
    assert document["bundle"]["name"] == "swapped" and document["baseline"]["name"] == "dense"
    assert document["data"]["labelled"] == 13 and document["data"]["answered"] == 12


@pytest.mark.parametrize(
    ("budget", "code", "said"),
    [
        ("accuracy>=0.5,agreement>=0.5,failed<=1,drop_points<=50", 0, "holds: drop_points (n 12) is 50.0"),
        ("accuracy>=0.98", 3, "1 of 1 limits are broken: accuracy (n 12) is 0.500, allowed >= 0.98"),
        ("top5>=0.5", 3, "top5 is not known (the bundle has five classes or fewer)"),
        ("acuracy>=0.98", 2, "budget: metric 'acuracy' is not known; there are accuracy"),
        ("accuracy=0.98", 2, "The budget has the part 'accuracy=0.98'"),
    ],
)
def test_budgets(cli: Cli, folder: Path, budget: str, code: int, said: str) -> None:
    found = cli("evaluate", "swapped", "--data", "val", "--baseline", "dense", "--budget", budget)
    assert found.returncode == code and said in found.stdout + found.stderr
    assert "Traceback" not in found.stderr


def test_a_document_on_stdout(cli: Cli, folder: Path) -> None:
    found = cli("evaluate", "dense", "--data", "val", "--json", "-", "--budget", "accuracy>=0.9")
    document = json.loads(found.stdout)
    assert found.returncode == 0 and document["budget"] == [
        {"limit": "accuracy>=0.9", "value": 1.0, "passed": True, "reason": "n 12"}
    ]
    broken = cli("evaluate", "dense", "--data", "val", "--json", "-", "--budget", "agreement>=0.9")
    document = json.loads(broken.stdout)
    assert broken.returncode == 3 and document["error"]["exit_code"] == 3
    assert document["scores"]["accuracy"]["value"] == 1.0
    assert document["budget"][0]["reason"] == "no baseline was given"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["dense", "--data", "val", "--batch", "0"], "batch=0"),
        (["dense", "--data", "flat"], "has no labels and no --baseline is given"),
        (["dense", "--data", "broken"], "None of the 1 samples of 'broken' can be read"),
    ],
)
def test_mistakes_end_with_2_and_a_sentence(cli: Cli, folder: Path, arguments: list[str], said: str) -> None:
    save_picture(folder / "flat/a.png", 1)
    save_picture(folder / "broken/fox/a.png", 1).write_bytes(b"")
    for name in NAMES[:3]:
        (folder / "broken" / name).mkdir()
    found = cli("evaluate", *arguments)
    assert found.returncode == 2 and said in found.stderr and "Traceback" not in found.stderr


def test_agreement_needs_no_labels(cli: Cli, folder: Path) -> None:
    for number in range(4):
        save_picture(folder / f"flat/{number}.png", number)
    found = cli("evaluate", "swapped", "--data", "flat", "--baseline", "dense")
    assert found.returncode == 0 and "2 of 4" in found.stdout and "accuracy" not in found.stdout


def test_the_function_takes_the_same_words(folder: Path) -> None:
    told: list[str] = []
    found = trt_compress.evaluate(
        folder / "swapped", data=folder / "val", baseline=folder / "dense", limit=6, progress=told.append
    )
    assert (
        found.scores.n == 6 and found.metrics()["accuracy"].value == 0.5 and told[:2] == ["opening", "reading the data"]
    )
    with pytest.raises(ConfigError, match="is not there"):
        trt_compress.evaluate(folder / "dense", data="nowhere")


def test_a_device_without_torch_and_onnx_can_evaluate(folder: Path) -> None:
    program = f"""
import sys
sys.modules.update(dict.fromkeys(("torch", "onnx", "timm", "transformers", "sklearn", "scipy")))
import trt_compress
print(trt_compress.evaluate({str(folder / "dense")!r}, data={str(folder / "val")!r}).scores.accuracy.count)
"""
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (finished.stdout, finished.stderr) == ("12\n", "")


def test_the_held_out_digits_are_those_of_the_card(exported: Callable[..., Path]) -> None:
    from trt_compress.models.zoo.digits_vit.model import digits_vit_card

    card = digits_vit_card()
    scores = trt_compress.evaluate(exported("none"), data="held-out").scores
    assert scores.accuracy and scores.top5 and scores.accuracy.n == card["split"]["test"] == 360
    assert scores.accuracy.value == pytest.approx(card["accuracy"]["test"], abs=1 / 360)
    assert scores.top5.value >= scores.accuracy.value


def test_pictures_on_disk_give_what_the_arrays_gave(exported: Callable[..., Path], tmp_path: Path) -> None:
    """The preprocessing of the manifest: digits as PNGs are the model's own inputs, but for the rounding to bytes."""
    from PIL import Image

    from trt_compress.models.zoo.data.digits import digits_split

    split = digits_split()
    for number, (image, label) in enumerate(zip(split.test_images[:60], split.test_labels[:60], strict=True)):
        (tmp_path / str(label)).mkdir(exist_ok=True)
        pixels = np.round((image[0] * 0.5 + 0.5) * 255).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / str(label) / f"{number}.png")
    np.savez(tmp_path / "same.npz", image=split.test_images[:60], label=split.test_labels[:60])
    on_disk = trt_compress.evaluate(exported("none"), data=tmp_path, classes="numbers").scores
    arrays = trt_compress.evaluate(exported("none"), data=tmp_path / "same.npz").scores
    assert on_disk.accuracy and arrays.accuracy and on_disk.accuracy == arrays.accuracy and on_disk.accuracy.n == 60
