"""What training frameworks wrap around weights: opened in any order and file type, or refused by what is in the way."""

import argparse
import hashlib
import os
import warnings
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from tests.models.vits import make_vit
from trt_compress.errors import ConfigError
from trt_compress.models.hosts import checkpoint
from trt_compress.models.hosts.checkpoint import read_checkpoint
from trt_compress.models.hosts.weights import load_found, load_weights, read_tensors

Table = dict[str, Tensor]


def vit() -> VisionTransformer:
    return make_vit(depth=1)


def good() -> Table:
    return {name: tensor.detach() + 1 for name, tensor in vit().state_dict().items()}


def bad() -> Table:
    return {name: tensor - 5 for name, tensor in good().items()}


def under(prefix: str, tensors: Table) -> Table:
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def write(path: Path, content: Any) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, on quantized and sparse tensors
        if path.suffix == ".safetensors":
            save_file({name: tensor.contiguous() for name, tensor in content.items()}, path)
        else:
            torch.save(content, path)
    return path


def holds(module: nn.Module, wanted: Table) -> bool:
    return all(torch.equal(tensor, wanted[name]) for name, tensor in module.state_dict().items())


FLAT: dict[str, Callable[[], Table]] = {
    "module.": lambda: under("module.", good()),
    "_orig_mod.": lambda: under("_orig_mod.", good()),
    "module._orig_mod.": lambda: under("module._orig_mod.", good()),
    "_orig_mod.module.": lambda: under("_orig_mod.module.", good()),
    "model.": lambda: under("model.", good()),
    "model.module._orig_mod.": lambda: under("model.module._orig_mod.", good()),
    "a name of one's own": lambda: under("net.backbone.", good()),
    "deep inside": lambda: {
        name.replace("blocks.0.", "blocks.0._orig_mod."): tensor for name, tensor in good().items()
    },
    "averaged by torch": lambda: {"n_averaged": torch.tensor(3), **under("module.", good())},
}


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize("wrapping", FLAT)
def test_prefixes_are_taken_off_in_any_order_and_file_type(wrapping: str, suffix: str, tmp_path: Path) -> None:
    module = vit()
    info = load_weights(module, write(tmp_path / f"w.{suffix}", FLAT[wrapping]()))
    assert holds(module, good())
    assert info.provenance is None


OPTIMIZER = {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]}
SEVERAL: dict[str, tuple[Callable[[], dict[str, Any]], str, str]] = {
    "timm": (
        lambda: {"state_dict": under("module.", bad()), "state_dict_ema": good(), "optimizer": OPTIMIZER},
        "state_dict_ema",
        "state_dict.module",
    ),
    "DeiT": (lambda: {"model": bad(), "model_ema": good(), "epoch": 3}, "model_ema", "model"),
    "in one table": (
        lambda: {"state_dict": {**under("model.", bad()), **under("ema_model.module.", good())}},
        "state_dict.ema_model.module",
        "state_dict.model",
    ),
    "DINO": (
        lambda: {"student": under("module.backbone.", bad()), "teacher": under("backbone.", good())},
        "teacher.backbone",
        "student.module.backbone",
    ),
}


@pytest.mark.parametrize("kind", SEVERAL)
def test_of_several_sets_the_averaged_one_is_taken_and_said(kind: str, tmp_path: Path) -> None:
    make, taken, other = SEVERAL[kind]
    module, path = vit(), write(tmp_path / "w.pth", make())
    info = load_weights(module, path)
    assert holds(module, good())
    assert info.provenance == f"taken from '{taken}' of the file, which also holds '{other}'"
    info = load_weights(module, path, key=other)
    assert holds(module, bad())
    assert info.provenance == f"taken from '{other}' of the file, which also holds '{taken}'"


def test_a_place_may_be_named_by_its_beginning(tmp_path: Path) -> None:
    module, path = vit(), write(tmp_path / "w.pth", SEVERAL["timm"][0]())
    load_weights(module, path, key="state_dict")
    assert holds(module, bad())
    with pytest.raises(ConfigError, match=r"'ema' is no place .* there are 'state_dict\.module', 'state_dict_ema'"):
        load_weights(module, path, key="ema")


def test_what_lies_beside_the_model_is_left_out_only_when_asked(tmp_path: Path) -> None:
    lightning = {"state_dict": {**under("model.", good()), "criterion.weight": torch.ones(5)}}
    module, path = vit(), write(tmp_path / "w.ckpt", lightning)
    with pytest.raises(ConfigError, match=r"under 'state_dict\.model\.' and beside them criterion\.weight") as error:
        load_weights(module, path)
    assert "?weights_key=state_dict.model behind timm:NAME" in str(error.value)
    info = load_weights(module, path, key="state_dict.model")
    assert holds(module, good())
    assert info.provenance == "left out of 'state_dict.model': criterion.weight"


def test_one_tensor_under_two_names_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has cls_token twice"):
        load_weights(vit(), write(tmp_path / "w.pth", {**good(), **under("_orig_mod.", bad())}))


def replaced(change: Callable[[Tensor], Tensor]) -> Table:
    return {name: change(tensor) if name == "head.weight" else tensor for name, tensor in good().items()}


NOT_FLOATS = ("int8", "uint8", "int32", "int64", "bool", "complex64", "float8_e4m3fn")


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
@pytest.mark.parametrize("dtype", NOT_FLOATS)
def test_other_numbers_are_never_taken_for_weights(dtype: str, suffix: str, tmp_path: Path) -> None:
    module = vit()
    path = write(tmp_path / f"w.{suffix}", replaced(lambda tensor: tensor.to(getattr(torch, dtype))))
    with pytest.raises(
        ConfigError, match=rf"w\.{suffix} holds head\.weight \({dtype}\), where weights in floating poi"
    ):
        load_weights(module, path)
    assert holds(module, vit().state_dict())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_precisions_are_taken(dtype: str, tmp_path: Path) -> None:
    module = vit()
    load_weights(module, write(tmp_path / "w.pth", replaced(lambda tensor: tensor.to(getattr(torch, dtype)))))
    assert holds(module, replaced(lambda tensor: tensor.to(getattr(torch, dtype)).float()))


def test_a_number_too_large_for_the_model_is_infinite(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds NaN or infinity in head\.weight"):
        load_weights(vit(), write(tmp_path / "w.pth", replaced(lambda tensor: tensor.double() * 1e300)))


def test_whole_numbers_of_a_model_stay_whole_numbers(tmp_path: Path) -> None:
    norm = nn.BatchNorm1d(2)
    tensors = {**norm.state_dict(), "num_batches_tracked": torch.tensor(7, dtype=torch.int32)}
    load_weights(norm, write(tmp_path / "w.pth", tensors))
    assert norm.num_batches_tracked == torch.tensor(7)
    for wrong in (torch.tensor(7.0), torch.tensor(True), torch.tensor(7j)):
        with pytest.raises(ConfigError, match=r"num_batches_tracked is \w+ instead of int64"):
            load_weights(norm, write(tmp_path / "w.pth", {**tensors, "num_batches_tracked": wrong}))


KINDS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "sparse": (lambda tensor: tensor.to_sparse(), r"holds sparse tensors \(head\.weight\); save them dense"),
    "compressed rows": (lambda tensor: tensor.to_sparse_csr(), r"holds sparse tensors \(head\.weight\)"),
    "quantized": (
        lambda tensor: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8),
        r"holds quantized tensors \(head\.weight\); give the weights in floating point",
    ),
    "without data": (lambda tensor: tensor.to("meta"), r"holds empty tensors \(head\.weight\)"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor", "ignore:Sparse CSR")
def test_tensors_of_another_kind_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    change, message = KINDS[kind]
    path = write(tmp_path / "w.pth", replaced(change))
    for load in (lambda: load_weights(vit(), path), lambda: read_tensors(path)):
        with pytest.raises(ConfigError, match=message):
            load()


def training() -> dict[str, Any]:
    return {"state_dict": good(), "args": argparse.Namespace(lr=0.1, model="vit"), "optimizer": OPTIMIZER}


IN_THE_WAY: dict[str, tuple[Callable[[], Any], str]] = {
    "a training run": (
        training,
        r"beside tensors it holds objects of argparse\.Namespace, the options of a training run\); give a ",
    ),
    "a whole model": (vit, r"it is a whole pickled object, timm\.models\.vision_transformer\.VisionTransformer\)"),
    "a model in a table": (lambda: {"model": vit()}, r"it holds a whole pickled model with timm\.models\."),
    "paths": (lambda: {"state_dict": good(), "log": Path("x")}, r"it holds objects of pathlib\.PosixPath\)"),
    "a default table": (lambda: defaultdict(list, good()), r"it holds objects of collections\.defaultdict"),
    "an optimizer": (lambda: {"optimizer": OPTIMIZER}, "holds the state of an optimizer and no weights"),
    "a new optimizer": (
        lambda: torch.optim.SGD(vit().parameters()).state_dict(),
        "holds the state of an optimizer and no weights; save model",
    ),
}


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("zipped", [True, False], ids=["zipped", "old form"])
@pytest.mark.parametrize("kind", IN_THE_WAY)
def test_what_is_in_the_way_is_named_in_words_of_ours(kind: str, zipped: bool, protocol: int, tmp_path: Path) -> None:
    make, message = IN_THE_WAY[kind]
    path = tmp_path / "w.pth"
    torch.save(make(), path, _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    if "optimizer" in kind and protocol > 2:
        message = r"it was saved with pickle protocol 4\)"
    if kind == "a whole model" and not zipped:
        message = "it (is|holds) a whole pickled"
    with pytest.raises(ConfigError, match=message) as error:
        load_weights(vit(), path)
    text = str(error.value)
    assert "\x1b" not in text and "weights_only` argument" not in text and len(text.splitlines()) <= 2
    assert not text.splitlines()[1:] or text.splitlines()[1].startswith("Hint: ")


def test_the_hint_takes_the_weights_out_of_a_training_run(tmp_path: Path) -> None:
    path = write(tmp_path / "w.pth", training())
    with pytest.raises(ConfigError) as error:
        load_weights(vit(), path)
    assert error.value.hint is not None
    program = error.value.hint.partition('"')[2].rpartition('"')[0]
    exec(program.replace("FILE", str(path)).replace("weights.pth", str(tmp_path / "out.pth")))
    module = vit()
    load_weights(module, tmp_path / "out.pth")
    assert holds(module, good())


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning", "ignore:.torch.jit:DeprecationWarning")
def test_a_torchscript_archive_is_named(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "w.pt")
    with pytest.raises(ConfigError, match=r"it is a TorchScript archive\)") as error:
        load_weights(vit(), tmp_path / "w.pt")
    assert "torch.jit.load" in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n",
            "it is a pointer of Git LFS; run `git lfs pull`",
        ),
        (b"GGUF\x03\0\0\0", "it is a GGUF file"),
        (b"<!DOCTYPE html><html>", "it is a web page"),
        (b'{"metadata": {}, "weight_map": {}}', "it is a text file"),
    ],
)
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_files_that_are_given_by_mistake_are_named(content: bytes, message: str, suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"w.{suffix}").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        load_weights(vit(), tmp_path / f"w.{suffix}")


@pytest.mark.parametrize(("suffix", "written"), [("bin", "safetensors"), ("safetensors", "pth")])
def test_a_file_is_told_by_its_content(suffix: str, written: str, tmp_path: Path) -> None:
    write(tmp_path / f"w.{written}", good()).rename(tmp_path / f"x.{suffix}")
    module = vit()
    load_weights(module, tmp_path / f"x.{suffix}")
    assert holds(module, good())


def test_names_in_a_message_are_printable_and_not_endless(tmp_path: Path) -> None:
    more = {"\x1b[31mred\nline": torch.ones(1), "x" * 5000: torch.ones(1)}
    with pytest.raises(ConfigError, match=r"has more than the model: \\x1b\[31mred\\nline, x+…\.") as error:
        load_weights(vit(), write(tmp_path / "w.pth", {**good(), **more}))
    assert len(str(error.value)) < 500


def test_a_folder_says_what_lies_in_it(tmp_path: Path) -> None:
    write(tmp_path / "model.safetensors", good())
    with pytest.raises(ConfigError, match=r"is not a file; give a .* It has model\.safetensors\."):
        load_weights(vit(), tmp_path)


def test_a_header_whose_length_begins_like_a_pickle_is_one_of_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    width = 1
    save_file({"w": torch.ones(2)}, path)
    while path.read_bytes()[0] != 0x80:
        width += 1
        save_file({"w" * width: torch.ones(2)}, path)
    for name in ("weights.safetensors", "weights.bin"):
        path = path.rename(tmp_path / name)
        (entry,) = read_checkpoint(path).entries
        assert entry.name == "w" * width


# ---- one reading -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_what_was_hashed_is_what_is_loaded(suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another file is put at the name as soon as the first one was opened."""
    path, other = write(tmp_path / f"w.{suffix}", good()), write(tmp_path / f"other.{suffix}", bad())
    wanted = hashlib.sha256(path.read_bytes()).hexdigest()
    opened = checkpoint.open_regular

    def open_and_replace(place: Path) -> BinaryIO:
        file = opened(place)
        os.replace(other, place)
        return file

    monkeypatch.setattr(checkpoint, "open_regular", open_and_replace)
    module = vit()
    info = load_weights(module, path)
    assert info.sha256 == wanted
    assert holds(module, good())


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_a_file_that_is_written_into_meanwhile_is_refused(suffix: str, tmp_path: Path) -> None:
    path = write(tmp_path / f"w.{suffix}", good())
    os.utime(path, (1, 1))
    module = vit()
    weights = read_checkpoint(path).weights(module.state_dict())
    with path.open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"\0\0\0\0")
    with pytest.raises(ConfigError, match=r"weights: .* was changed while it was read; give it when it is complete\.$"):
        load_found(module, weights, path)
