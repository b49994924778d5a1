"""Models of one's own from the command line: a file's factory and a fine-tuned checkpoint become proven bundles."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

Typed = Callable[..., Any]

NET = """
from timm.models.vision_transformer import VisionTransformer
class Mine(VisionTransformer): ...
def make():
    print("made")
    return Mine(img_size=16, patch_size=4, embed_dim=32, depth=2, num_heads=2, num_classes=5, in_chans=1)
"""


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "net.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "net.py"


def manifest(bundle: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((bundle / "manifest.json").read_text())
    return found


def test_a_factory_becomes_a_bundle_that_knows_its_file(typed: Typed, net: Path) -> None:
    done = typed("export", "net.py:make?mean=0.5&std=0.25", "-o", "out", "--compress", "tome:num_merged=2", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["weights"] == "made by net.py:make (seed 0)"
    found = manifest(net.parent / "out")
    assert found["recipe"]["model"] == f"{net}:make?mean=0.5&std=0.25"
    assert len(found["recipe"]["model_sha256"]) == 64
    assert (found["preprocess"]["mean"], found["postprocess"]["classes"]) == ([0.5], 5)
    assert found["graphs"][0]["inputs"][0]["shape"] == ["batch", 1, 16, 16]
    assert typed("verify", "out", "--trust-paths").code == 0

    again = typed("export", "out/recipe.toml", "-o", "again", "--trust-paths", "--json")
    assert again.code == 0, again.err
    assert manifest(net.parent / "again")["files"]["model.onnx"] == found["files"]["model.onnx"]

    (net.parent / "new").mkdir()
    net.rename(net.parent / "new" / "net.py")
    gone = typed("verify", "out", "--trust-paths")
    assert gone.code == 2 and "net.py is not there any more; say where it is now with --model FILE.py:make" in gone.err
    assert typed("verify", "out", "--model", "new/net.py:make").code == 0
    net.write_text(NET.replace("num_heads=2", "num_heads=4"))
    changed = typed("verify", "out", "--trust-paths")
    assert changed.code == 2
    assert "and the recipe was made with" in changed.err and "give that file, or export again" in changed.err


def test_a_recipe_beside_the_file_names_it_from_there(
    typed: Typed, net: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    (net.parent / "recipe.toml").write_text('model = "net.py:make"\n')
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    done = typed("export", f"{net.parent / 'recipe.toml'}", "-o", "out", "--dry-run", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["model"] == f"{net}:make"


def test_the_model_may_be_given_as_an_option_but_once(typed: Typed, net: Path) -> None:
    assert typed("export", "--model", "net.py:make", "-o", "out", "--dry-run").code == 0
    twice = typed("export", "net.py:make", "--model", "net.py:make", "-o", "out")
    assert (twice.code, twice.out) == (2, "") and "MODEL is given twice" in twice.err
    none = typed("export", "-o", "out")
    assert (none.code, none.out) == (2, "") and "MODEL is missing; write `trt-compress export MODEL -o DIR`" in none.err


def test_weights_that_change_from_run_to_run_are_noticed(typed: Typed, net: Path) -> None:
    net.write_text(
        NET.replace(
            "    print(", "    import os, torch; torch.manual_seed(os.getpid() + len(os.listdir()))\n    print("
        )
    )
    assert typed("export", "net.py:make", "-o", "out").code == 0
    done = typed("verify", "out", "--trust-paths")
    assert done.code == 2
    assert "are others than those of the recipe although the file is the same" in done.err


def test_a_fine_tuned_checkpoint_becomes_a_bundle_of_its_shape(
    typed: Typed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tuned = timm.create_model("vit_tiny_patch16_224", num_classes=3, in_chans=1, img_size=64)
    torch.save({"state_dict": {f"module.{name}": t for name, t in tuned.state_dict().items()}}, "tuned.pth.tar")
    done = typed(
        "export", "timm:vit_tiny_patch16_224", "--weights", "tuned.pth.tar", "-o", "out", "--batch", "1", "--json"
    )
    assert done.code == 0, done.err
    assert (
        json.loads(done.out)["provenance"]
        == "read off the file: in_chans=1, num_classes=3, img_size=64x64 (taken to be square)"
    )
    found = manifest(tmp_path / "out")
    assert found["graphs"][0]["inputs"][0]["shape"] == ["batch", 1, 64, 64]
    assert found["postprocess"] == {"output": "logits", "kind": "classification", "classes": 3}
    assert found["model"]["weights"]["provenance"].startswith("read off the file: ")
    assert typed("verify", "out", "--weights", "tuned.pth.tar").code == 0
    wrong = typed("export", "timm:vit_tiny_patch16_224?num_classes=10", "--weights", "tuned.pth.tar", "-o", "x")
    assert wrong.code == 2 and "num_classes=10 contradicts tuned.pth.tar" in wrong.err
    assert not (tmp_path / "x").exists()
