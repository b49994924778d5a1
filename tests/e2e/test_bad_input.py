"""Wrong input on the command line: one sentence, exit code 2, no traceback, and nothing left behind."""

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from trt_compress.methods import METHODS
from trt_compress.models.zoo.digits_vit.model import WEIGHTS_FILE

Typed = Callable[..., Any]
Copied = Callable[..., Path]
EXPORT = ("export", "zoo:digits_vit", "-o", "out")


def refused(finished: Any, message: str, code: int = 2) -> None:
    """Assert that a command ended with `code` and one sentence that holds `message`."""
    assert (finished.code, finished.out) == (code, "")
    lines = finished.err.strip().splitlines()
    assert lines[0].startswith("error: ") and len(lines) <= 2, finished.err
    assert all(line.startswith("Hint: ") for line in lines[1:])
    assert message in finished.err


TINY = """
from timm.models.vision_transformer import VisionTransformer
def tiny():
    return VisionTransformer(img_size=8, patch_size=4, embed_dim=64, depth=1, num_heads=1, num_classes=2)
"""


@pytest.fixture
def tiny(tmp_path: Path) -> tuple[str, ...]:
    """The export of a model of one layer, whose file lies beside the place."""
    (tmp_path / "tiny.py").write_text(TINY)
    return ("export", f"{tmp_path / 'tiny.py'}:tiny", "-o", "out", "--batch", "1")


EXPORTS: dict[str, tuple[tuple[object, ...], str]] = {
    "model without a source": (
        ("export", "digits_vit", "-o", "out"),
        "model 'digits_vit' is not known; write timm:NAME (timm:deit_small_patch16_224), zoo:NAME (zoo:digits_vit) or "
        "hf:PATH",
    ),
    "unknown zoo model": (
        ("export", "zoo:digit_vit", "-o", "out"),
        "model 'zoo:digit_vit' is not known; there are zoo:digits_vit, ",
    ),
    "unknown timm model": (
        ("export", "timm:vit_tiny_patch16_225", "-o", "out"),
        "Did you mean 'vit_tiny_patch16_224'?\nHint: trt-compress list models",
    ),
    "a model no host drives": (
        ("export", "timm:resnet18", "-o", "out"),
        "timm:resnet18: a model of timm.models.resnet is not supported; this host drives timm's VisionTransformer",
    ),
    "unknown compressor": (
        (*EXPORT, "--compress", "tomee:num_merged=4"),
        f"compressor 'tomee' is not known; there are {', '.join(METHODS)}, or none. Did you mean 'tome'?",
    ),
    "unknown key": (
        (*EXPORT, "--compress", "tome:num_mergd=4"),
        "tome: option 'num_mergd' is not known; there are num_merged, schedule, proportional_attention, over_limit. "
        "Did you mean 'num_merged'?",
    ),
    "missing key": ((*EXPORT, "--compress", "tome"), "tome: option 'num_merged' is missing; write tome:num_merged=….",),
    "negative": (
        (*EXPORT, "--compress", "tome:num_merged=-1"),
        "tome: num_merged=-1 is negative; give 0 or more tokens to merge.",
    ),
    "too large": (
        (*EXPORT, "--compress", "tome:num_merged=33"),
        "tome: num_merged=33 is too large at layer 0 of zoo:digits_vit: of 65 tokens there, 1 protected, at most 32 "
        "can merge.\nHint: lower num_merged",
    ),
    "too large in a later layer": (
        (*EXPORT, "--compress", "tome:num_merged=20"),
        "tome: num_merged=20 is too large at layer 2 of zoo:digits_vit: of 25 tokens there, 1 protected, at most 12",
    ),
    "no number": (
        (*EXPORT, "--compress", "tome:num_merged=many"),
        "tome: num_merged=many is not a whole number or a list of whole numbers like [1,2].",
    ),
    "a fraction": ((*EXPORT, "--compress", "tome:num_merged=4.5"), "tome: num_merged=4.5 is not a whole number"),
    "ratio above one": (
        (*EXPORT, "--compress", "evit:keep_ratio=1.5"),
        "evit: keep_ratio=1.5 is out of range; it is the share of tokens kept, above 0 and up to 1.",
    ),
    "ratio of NaN": ((*EXPORT, "--compress", "evit:keep_ratio=nan"), "evit: keep_ratio=nan is out of range"),
    "a layer the host lacks": (
        (*EXPORT, "--compress", "evit:layers=[2,9]"),
        "evit: layers=[2, 9] names layer 9, but zoo:digits_vit has layers 0..7.",
    ),
    "more layers than the host has": (
        (*EXPORT, "--compress", "tome:num_merged=[1,1,1,1,1,1,1,1,1]"),
        "tome: num_merged lists 9 layers, but the model has 8; shorten it.",
    ),
    "no class token": (
        ("export", "timm:vit_base_patch16_siglip_gap_224", "-o", "out", "--compress", "evit"),
        "evit: timm:vit_base_patch16_siglip_gap_224 has no class token, whose attention ranks the patches; use tome, ",
    ),
    "malformed spec": ((*EXPORT, "--compress", "tome:num_merged"), "spec 'tome:num_merged': 'num_merged' is not key="),
    "batch of millions": ((*EXPORT, "--batch", "1:4:1000000"), "batch=1:4:1000000 is too large; at most 65535 items"),
    "weights that are not there": (
        (*EXPORT, "--weights", "none.safetensors"),
        "none.safetensors cannot be read (No such file or directory); give a .safetensors file or a PyTorch "
        "checkpoint as --weights FILE.",
    ),
    "unknown target": ((*EXPORT, "--target", "jetson-orin"), "target 'jetson-orin' is not known; there are cpu"),
    "unknown precision": (
        (*EXPORT, "--precision", "fp12"),
        "precision 'fp12' is not known; there are fp32, fp16, bf16, int8.",
    ),
    "int8 without samples": (
        (*EXPORT, "--precision", "int8"),
        "precision int8 finds ranges from samples, and none are given; give --calibrate DIR",
    ),
    "old opset": ((*EXPORT, "--opset", "17"), "opset 17 is out of range; cpu takes 18 to 21."),
    "new opset": (
        (*EXPORT, "--opset", "21", "--target", "cpu", "--target", "jetson-orin-jp6"),
        "opset 21 is out of range; cpu, jetson-orin-jp6 takes 18 to 20.",
    ),
    "batch of text": ((*EXPORT, "--batch", "four"), "batch='four' is not a range; it must be one number or"),
    "batch of two": ((*EXPORT, "--batch", "1:4"), "batch='1:4' is not a range; it must be one number or MIN:OPT:MAX"),
    "batch of zero": ((*EXPORT, "--batch", "0:1:2"), "batch=0:1:2 is not a range; it must be MIN:OPT:MAX with 1 <="),
    "batch that falls": ((*EXPORT, "--batch", "4:2:8"), "batch=4:2:8 is not a range; it must be MIN:OPT:MAX with 1 <="),
    "recipe that is not there": (
        ("export", "none.toml", "-o", "out"),
        "recipe none.toml cannot be read: No such file or directory.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", EXPORTS)
def test_an_export_that_cannot_be_is_refused(case: str, typed: Typed, place: Path) -> None:
    arguments, message = EXPORTS[case]
    refused(typed(*arguments), message)
    assert list(place.iterdir()) == []


# ---- weights --------------------------------------------------------------------------------------------------------


def test_weights_that_do_not_fit_are_named(typed: Typed, place: Path) -> None:
    tensors = load_file(WEIGHTS_FILE)
    del tensors["blocks.0.attn.qkv.weight"]
    tensors["blocks.9.norm1.weight"] = torch.ones(96)
    tensors["head.bias"] = torch.ones(11)
    save_file(tensors, "mine.safetensors")
    refused(
        typed(*EXPORT, "--weights", "mine.safetensors"),
        "weights: mine.safetensors does not fit the model: it misses blocks.0.attn.qkv.weight; it has more than the "
        "model: blocks.9.norm1.weight; it has other shapes: head.bias is [11] instead of [10].",
    )
    assert not (place / "out").exists()


@pytest.mark.parametrize("size", [0, 4, 100, -10], ids=["empty", "no header", "cut header", "cut tensors"])
def test_a_truncated_safetensors_file_is_refused(size: int, typed: Typed) -> None:
    Path("cut.safetensors").write_bytes(WEIGHTS_FILE.read_bytes()[:size])
    refused(typed(*EXPORT, "--weights", "cut.safetensors"), "cut.safetensors is not a whole safetensors file (", code=2)


def test_a_checkpoint_that_is_none_is_refused(typed: Typed) -> None:
    Path("text.pt").write_text("hello")
    refused(typed(*EXPORT, "--weights", "text.pt"), "text.pt is not a PyTorch checkpoint of tensors (")


# ---- the output directory -------------------------------------------------------------------------------------------


def test_an_output_that_exists_is_left_alone(typed: Typed, copied: Copied, place: Path) -> None:
    bundle = copied("out")
    before = (bundle / "manifest.json").read_bytes()
    refused(typed(*EXPORT), "The output directory 'out' exists; use --force to replace it, or give another one.")
    assert (bundle / "manifest.json").read_bytes() == before

    (place / "file").write_text("mine")
    refused(typed("export", "zoo:digits_vit", "-o", "file", "--force"), "'file' exists and is not a directory; give an")
    (place / "full").mkdir()
    (place / "full" / "thesis.tex").write_text("mine")
    refused(
        typed("export", "zoo:digits_vit", "-o", "full", "--force"),
        "'full' holds files and is not a bundle, so --force does not replace it",
    )
    assert (place / "file").read_text() == (place / "full" / "thesis.tex").read_text() == "mine"


@pytest.mark.slow
def test_an_output_that_cannot_be_written_is_refused(typed: Typed, tiny: tuple[str, ...], place: Path) -> None:
    (place / "file").write_text("mine")
    finished = typed("export", tiny[1], "-o", "file/sub", "--batch", "1")
    refused(finished, "The bundle 'file/sub' cannot be written (Not a directory at '")
    assert [path.name for path in place.iterdir()] == ["file"]


# The first file of the model does not fit; or everything fits but the last file of the bundle.
FULL_DISKS = {
    "model": (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))",
        f"error: The bundle 'out' cannot be written ({os.strerror(errno.EFBIG)}). Nothing was changed.",
    ),
    "output": (
        """
import errno, os
from trt_compress.export import bundle
store = bundle._store
def full(target, content):
    if target.name == "manifest.json":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
    return store(target, content)
bundle._store = full
""",
        f"error: The bundle 'out' cannot be written ({os.strerror(errno.ENOSPC)} at '",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("where", FULL_DISKS)
def test_a_disk_that_fills_up_leaves_nothing(
    where: str, typed_alone: Typed, tiny: tuple[str, ...], place: Path
) -> None:
    before, message = FULL_DISKS[where]
    finished = typed_alone(*tiny, before=before)
    assert finished.code == 2 and finished.err.startswith(message), finished.err
    assert "Traceback" not in finished.err
    assert list(place.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("step", "number"),
    [("tracing", signal.SIGHUP), ("verifying", signal.SIGINT), ("writing the bundle", signal.SIGTERM)],
)
def test_an_interrupted_export_leaves_nothing(
    step: str, number: signal.Signals, tiny: tuple[str, ...], place: Path
) -> None:
    program = f"""
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs start with it ignored
from trt_compress.export import api
from trt_compress.tools.cli.main import main
whole = api.export_model
def export(*arguments, progress, **options):
    def tell(text):
        progress(text)
        if text == {step!r}:
            print("now", file=sys.stderr, flush=True)
            time.sleep(60)
    return whole(*arguments, progress=tell, **options)
api.export_model = export
main()
"""
    command = [sys.executable, "-c", program, *tiny]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None and process.stdout is not None
    while "now" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(number)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out) == (128 + number, "") and "Traceback" not in err
    assert list(place.iterdir()) == []


# ---- bundles --------------------------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("command", ["verify", "inspect", "build", "preflight", "bench"])
@pytest.mark.parametrize("name", ["model.onnx", "recipe.toml", "verify.json"])
def test_a_changed_byte_is_noticed_by_every_command(command: str, name: str, typed: Typed, copied: Copied) -> None:
    flip(copied() / name)
    target = ("--target", "rtx") if command in ("build", "preflight") else ()
    refused(typed(command, "bundle", *target), f"'{name}' in the bundle 'bundle' was changed: its hash differs; copy")


def test_a_changed_manifest_is_noticed(typed: Typed, copied: Copied) -> None:
    manifest = copied() / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"num_merged": 4', '"num_merged": 5', 1))
    refused(typed("verify", "bundle"), "'bundle/manifest.json' was changed after it was written; copy the bundle again")
    manifest.write_text(manifest.read_text()[:-20])
    refused(typed("verify", "bundle"), "bundle/manifest.json is not valid JSON (")


def test_a_changed_engine_is_noticed(typed: Typed, copied: Copied) -> None:
    bundle = copied(precision="fp16", targets=("rtx", "jetson-orin-jp6"))
    flip(bundle / "model.jetson-orin-jp6.onnx")
    refused(typed("inspect", "bundle"), "'model.jetson-orin-jp6.onnx' in the bundle 'bundle' was changed: its")


@pytest.mark.parametrize("name", ["model.onnx", "weights.bin", "recipe.toml", "verify.json"])
def test_a_missing_file_is_named(name: str, typed: Typed, copied: Copied) -> None:
    (copied() / name).unlink()
    refused(typed("verify", "bundle"), f"The bundle 'bundle' lacks its file '{name}'; copy the bundle again")


def test_what_is_no_bundle_is_refused(typed: Typed, copied: Copied, place: Path) -> None:
    refused(typed("verify", "nowhere"), "'nowhere' does not exist; give the directory that export wrote.")
    refused(typed("verify", copied() / "model.onnx"), "is not a bundle: it is not a directory; give the directory")
    (place / "empty").mkdir()
    refused(
        typed("verify", "empty"), "'empty' is not a bundle: it has no manifest.json; give the directory that export"
    )


def test_a_newer_schema_is_refused(typed: Typed, copied: Copied) -> None:
    manifest = copied() / "manifest.json"
    data = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**data, "schema_version": "2.0"}))
    refused(typed("verify", "bundle"), "has schema version 2.0, and this trt-compress reads up to 1.x; install a newer")


# ---- inputs to verify -----------------------------------------------------------------------------------------------


def test_inputs_that_verify_cannot_use_are_refused(typed: Typed, exported: Callable[..., Path]) -> None:
    bundle = exported()
    np.savez("nan.npz", image=np.full((1, 1, 8, 8), np.nan, np.float32))
    np.savez("shape.npz", image=np.zeros((1, 3, 8, 8), np.float32))
    for name, message in {
        "nan.npz": "inputs: 'image' in nan.npz holds NaN or infinity; verification needs finite numbers.",
        "shape.npz": "inputs: 'image' in shape.npz is float32 [1, 3, 8, 8]; it must be float32 [batch, 1, 8, 8].",
        "none.npz": "'none.npz' does not exist; give a file that numpy.savez wrote.",
    }.items():
        refused(typed("verify", bundle, "--inputs", name), message)


# ---- ONNX that is none ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["missing", "empty", "text", "truncated"])
def test_an_onnx_that_is_none_is_refused(kind: str, typed: Typed, exported: Callable[..., Path]) -> None:
    if kind != "missing":
        whole = (exported() / "model.onnx").read_bytes()
        content = {"empty": b"", "text": b"hello, I am no protobuf", "truncated": whole[: len(whole) // 2]}
        Path("model.onnx").write_bytes(content[kind])
    message = "cannot be read: No such file or directory" if kind == "missing" else "is not an ONNX file, or is cut off"
    refused(typed("preflight", "model.onnx", "--target", "rtx"), f"model 'model.onnx' {message}")


# ---- recipes --------------------------------------------------------------------------------------------------------

RECIPES = {
    "not TOML": ("model = zoo", "recipe mine.toml is not valid TOML: "),
    "no model": ('precision = "fp32"', 'mine.toml: model is missing; write model = "timm:NAME" or "zoo:NAME".'),
    "unknown key": ('model = "zoo:digits_vit"\nprecison = "fp32"', "'precison' is not known; there are model, "
        "model_sha256, compressors, weights, weights_sha256, targets, batch, lengths, precision, weights_bits, "
        "int8, calibrate, int8_share, keep_precision, int8_rest, context, chunk, "
        "cache_dtype, opset. Did you mean 'precision'?"),
    "number for text": ("model = 3", "mine.toml: model = 3 is not a text."),
    "text for number": ('model = "zoo:digits_vit"\nopset = "20"', "mine.toml: opset = '20' is not a whole number."),
    "flag for number": ('model = "zoo:digits_vit"\nopset = true', "mine.toml: opset = True is not a whole number."),
    "text for list": ('model = "zoo:digits_vit"\ntargets = "rtx"', "mine.toml: targets = 'rtx' is not a list of"),
    "list of numbers": ('model = "zoo:digits_vit"\ntargets = [3]', "mine.toml: targets = [3] is not a list of names."),
    "list for tables": (
        'model = "zoo:digits_vit"\ncompressors = ["tome"]',
        "mine.toml: compressors = ['tome'] is not a list of tables.",
    ),
    "nameless table": ('model = "zoo:digits_vit"\n[[compressors]]\nnum_merged = 3', "table has no name"),
    "wrong option": (
        'model = "zoo:digits_vit"\n[[compressors]]\nname = "tome"\nnum_merged = "x"',
        "tome: num_merged=x is not a whole number or a list of whole numbers like [1,2].",
    ),
    "lost weights": (
        'model = "zoo:digits_vit"\nweights = "lost.safetensors"',
        "lost.safetensors cannot be read (No such file or directory); give a .safetensors file or a PyTorch "
        "checkpoint as --weights FILE.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", RECIPES)
def test_a_recipe_that_cannot_be_is_refused(case: str, typed: Typed, place: Path) -> None:
    text, message = RECIPES[case]
    (place / "mine.toml").write_text(text)
    refused(typed("export", "mine.toml", "-o", "out"), message)
    assert [path.name for path in place.iterdir()] == ["mine.toml"]


# ---- builds ---------------------------------------------------------------------------------------------------------


def test_builds_that_cannot_be_are_refused(typed: Typed, copied: Copied) -> None:
    before = (copied() / "manifest.json").read_bytes()
    refused(
        typed("build", "bundle", "--target", "cpu"), "target 'cpu' runs the ONNX file itself and has no engine; built"
    )
    refused(typed("build", "bundle", "--target", "rxt"), "target 'rxt' is not known; there are cpu")
    assert (Path("bundle") / "manifest.json").read_bytes() == before


def test_a_missing_library_is_named_with_its_extra(
    typed: Typed, exported: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refused(
        typed("build", exported(), "--target", "x86-trt10"),
        "target 'x86-trt10' needs the Python module 'tensorrt', which is not installed.\n"
        "Hint: pip install 'trt-compress[gpu]'",
    )
