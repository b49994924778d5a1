"""Weights files: what fits is loaded, what does not is named, and nothing in a file is executed."""

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from trt_compress.errors import ConfigError
from trt_compress.models.hosts.checkpoint import read_checkpoint
from trt_compress.models.hosts.file_tensors import likes
from trt_compress.models.hosts.registry import load_host
from trt_compress.models.hosts.weights import load_tensors, load_weights


def make_model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def good_tensors() -> dict[str, Tensor]:
    return make_model(seed=1).state_dict()


def half_tensors() -> dict[str, Tensor]:
    return {name: x.bfloat16() if x.is_floating_point() else x for name, x in good_tensors().items()}


def write(path: Path, content: Any) -> Path:
    if path.suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save(content, path)
    return path


def is_loaded(model: nn.Module) -> bool:
    wanted = good_tensors()
    return all(torch.equal(tensor, wanted[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "w.pth", "w.bin"])
def test_a_table_of_tensors_is_loaded(tmp_path: Path, name: str) -> None:
    model = make_model()
    info = load_weights(model, write(tmp_path / name, good_tensors()))
    assert is_loaded(model)
    assert info.source == name
    assert info.sha256 and len(info.sha256) == 64


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tensors: {"model": tensors, "epoch": 3},
        lambda tensors: {"state_dict": tensors},
        lambda tensors: {"state_dict": {"model": tensors}} | {"optimizer": {"lr": 0.1}},
        lambda tensors: {f"module.{name}": tensor for name, tensor in tensors.items()},
        lambda tensors: {"model": {f"module._orig_mod.{name}": tensor for name, tensor in tensors.items()}},
        lambda tensors: {"model": make_model(2).state_dict(), "state_dict_ema": tensors},
    ],
    ids=["model", "state_dict", "both", "module.", "compiled", "averaged"],
)
def test_usual_wrappers_are_opened(tmp_path: Path, wrap: Callable[[dict[str, Tensor]], Any]) -> None:
    model = make_model()
    load_weights(model, write(tmp_path / "w.pt", wrap(good_tensors())))
    assert is_loaded(model)


def without(name: str) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in good_tensors().items() if key != name}


MISFITS = [
    (without("0.bias"), r"w\.\w+ does not fit the model: it misses 0\.bias\."),
    (good_tensors() | {"2.weight": torch.ones(2)}, r"it has more than the model: 2\.weight\."),
    (
        good_tensors() | {"0.weight": torch.ones(4, 5)},
        r"it has other shapes: 0\.weight is \[4, 5\] instead of \[4, 3\]",
    ),
    (good_tensors() | {"0.bias": torch.tensor([0, torch.nan, 0, 0])}, r"it holds NaN or infinity in 0\.bias\."),
    (good_tensors() | {"0.bias": torch.tensor([0, torch.inf, 0, 0])}, r"it holds NaN or infinity in 0\.bias\."),
    ({}, r"it misses 0\.bias, 0\.weight, 1\.bias and 4 more\."),
    (without("0.bias") | {"0.biases": torch.ones(4)}, r"it misses 0\.bias; it has more than the model: 0\.biases\."),
]


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
@pytest.mark.parametrize(("tensors", "message"), MISFITS, ids=[message for _, message in MISFITS])
def test_misfits_are_named_and_change_nothing(
    tmp_path: Path, tensors: dict[str, Tensor], message: str, suffix: str
) -> None:
    model = make_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ConfigError, match=message) as error:
        load_weights(model, write(tmp_path / f"w.{suffix}", tensors))
    assert "give the checkpoint of exactly this model" in str(error.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    "keep", [0, 4, 60, -1], ids=["empty", "cut in the length", "cut in the header", "one byte less"]
)
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_a_truncated_file_is_one_sentence(tmp_path: Path, suffix: str, keep: int) -> None:
    path = write(tmp_path / f"w.{suffix}", good_tensors())
    path.write_bytes(path.read_bytes()[:keep])
    kind = "a whole safetensors file" if suffix == "safetensors" else "a PyTorch checkpoint of tensors"
    with pytest.raises(ConfigError, match=f"weights: .*w.{suffix} is not {kind} \\(.*\\); [cg]") as error:
        load_weights(make_model(), path)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
@pytest.mark.parametrize(
    "content", [b"hello, this is a text\n" * 9, bytes(range(256)) * 8, b"\x80\x02}q\x00."], ids=repr
)
def test_another_kind_of_file_is_refused(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"w.{suffix}"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"weights: .* (is not a|holds no table of tensors|does not fit)"):
        load_weights(make_model(), path)


@pytest.mark.parametrize(
    "content", [[torch.ones(2)], torch.ones(2), {"0.bias": 3}, 7], ids=["list", "tensor", "number", "int"]
)
def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path, content: Any) -> None:
    with pytest.raises(ConfigError, match=r"w\.pt holds no table of tensors; save model\.state_dict\(\) and give that"):
        load_weights(make_model(), write(tmp_path / "w.pt", content))


class _Trap:
    """Unpickling makes a directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return Path.mkdir.__globals__["os"].mkdir, (str(self.path),)


def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path: Path) -> None:
    path = write(tmp_path / "w.pt", {"0.bias": _Trap(tmp_path / "sprung")})
    with pytest.raises(ConfigError, match=r"w\.pt is not a PyTorch checkpoint of tensors"):
        load_weights(make_model(), path)
    assert not (tmp_path / "sprung").exists()


def test_a_whole_pickled_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"give a \.safetensors file, or one saved by torch\.save\(model\.state_dict"):
        load_weights(make_model(), write(tmp_path / "w.pt", make_model()))


@pytest.mark.parametrize("name", ["gone.safetensors", "."], ids=["missing", "a folder"])
def test_what_is_no_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(
        ConfigError, match=r"weights: .* is not a file; give a \.safetensors file or a PyTorch checkpoint"
    ):
        load_weights(make_model(), tmp_path / name)


def test_a_host_takes_a_file_and_says_so(tmp_path: Path) -> None:
    tensors = {name: tensor * 2 for name, tensor in load_host("zoo:digits_vit").module.state_dict().items()}
    path = write(tmp_path / "mine.safetensors", tensors)
    host = load_host("zoo:digits_vit", weights=str(path))
    assert host.weights.source == "mine.safetensors"
    assert all(torch.equal(host.module.state_dict()[name], tensor) for name, tensor in tensors.items())


def test_nothing_is_read_before_it_is_asked_for_and_nothing_is_kept(tmp_path: Path) -> None:
    path = write(tmp_path / "w.safetensors", half_tensors())
    tensors = read_checkpoint(path).largest().tensors
    name = next(iter(tensors))
    kept = weakref.ref(tensors[name])
    assert kept() is None
    path.write_bytes(path.read_bytes()[:-200])
    told = {name: (tensor.shape, tensor.dtype) for name, tensor in likes(tensors).items()}
    assert told == {name: (tensor.shape, tensor.dtype) for name, tensor in half_tensors().items()}
    assert name in tensors and "another" not in tensors
    with pytest.raises(ConfigError, match="was changed while it was read"):
        load_tensors(make_model(), tensors, "w.safetensors")


def test_a_module_without_data_takes_the_tensors_as_they_are(tmp_path: Path) -> None:
    tensors = half_tensors()
    path = write(tmp_path / "w.safetensors", tensors)
    with torch.device("meta"):
        module = make_model()
    load_weights(module, path)
    assert all(torch.equal(own, tensors[name]) for name, own in module.state_dict().items())
    assert {parameter.dtype for parameter in module.parameters()} == {torch.bfloat16}


def test_what_a_module_does_when_it_was_loaded_is_done(tmp_path: Path) -> None:
    module = make_model()
    seen: list[float] = []
    first = next(iter(module.state_dict()))
    module.register_load_state_dict_post_hook(lambda own, _: seen.append(float(own.state_dict()[first].sum())))
    load_weights(module, write(tmp_path / "w.safetensors", good_tensors()))
    assert seen == [float(good_tensors()[first].sum())]
