"""A directory of Hugging Face: every tensor as its own library reads it, and each damage is one sentence."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from trt_compress.errors import ConfigError, UnsupportedError
from trt_compress.models.language.directory import Directory

CONFIG = {"model_type": "llama", "vocab_size": 6}
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"


def tensors() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {
        "model.embed_tokens.weight": torch.randn(6, 4).bfloat16(),
        "model.norm.weight": torch.randn(4),
        "model.layers.0.mlp.up_proj.weight": torch.randn(8, 4).half(),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2),
        "empty": torch.empty(0, 3),
    }


def sharded(path: Path) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(CONFIG))
    parts = list(tensors().items())
    places = {}
    for name, part in ((FIRST, parts[:2]), (SECOND, parts[2:])):
        save_file(dict(part), path / name)
        places |= {tensor: name for tensor, _ in part}
    (path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return path


def test_shards_are_read_as_their_own_library_reads_them(tmp_path: Path) -> None:
    source = Directory(sharded(tmp_path))
    expected = load_file(tmp_path / FIRST) | load_file(tmp_path / SECOND)
    del expected["model.layers.0.self_attn.rotary_emb.inv_freq"]  # what is computed and was saved all the same
    assert set(source.names()) == set(expected)
    for name, tensor in expected.items():
        header, read = source.header(name), source.tensor(name)
        assert (header.shape, f"torch.{header.dtype}") == (tuple(tensor.shape), str(tensor.dtype))
        assert header.bytes == tensor.nbytes
        assert read.dtype == tensor.dtype and torch.equal(read, tensor)
    assert source.config == CONFIG


def test_of_one_file_the_hash_is_its_own(tmp_path: Path) -> None:
    import hashlib

    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    save_file(tensors(), tmp_path / "model.safetensors")
    source = Directory(tmp_path)
    assert source.sha256() == hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
    assert source.header("model.norm.weight").dtype == "float32"


def test_of_shards_the_hash_is_that_of_what_sha256sum_says(tmp_path: Path) -> None:
    import hashlib

    source = Directory(sharded(tmp_path))
    lines = [f"{hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()}  {name}\n" for name in (FIRST, SECOND)]
    assert source.sha256() == hashlib.sha256("".join(lines).encode()).hexdigest()


def change_index(path: Path, change: Callable[[dict[str, str]], object]) -> None:
    index = json.loads((path / INDEX).read_text())
    change(index["weight_map"])
    (path / INDEX).write_text(json.dumps(index))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "absent": (lambda path: (path / SECOND).unlink(), f"{SECOND} is named in {INDEX} and is not there; download it"),
    "cut": (
        lambda path: (path / SECOND).write_bytes((path / SECOND).read_bytes()[:-5]),
        f"{SECOND} is not a whole safetensors file",
    ),
    "not in its shard": (
        lambda path: change_index(path, lambda places: places.update({"model.norm.weight": SECOND})),
        f"says that 'model.norm.weight' is in {SECOND}, and it is not",
    ),
    "nowhere": (
        lambda path: change_index(path, lambda places: places.update({"lm_head.weight": FIRST})),
        f"says that 'lm_head.weight' is in {FIRST}, and it is not",
    ),
    "extra": (
        lambda path: change_index(path, lambda places: places.pop("model.norm.weight")),
        f"its files hold 'model.norm.weight', which {INDEX} does not name",
    ),
    "twice": (
        lambda path: save_file({"model.norm.weight": torch.ones(4)}, path / SECOND),
        "two of its files have a tensor 'model.norm.weight'",
    ),
    "another format": (
        lambda path: [(path / INDEX).rename(path / "pytorch_model.bin"), (path / FIRST).unlink()],
        f"has no model.safetensors and no {INDEX}, but {SECOND}, pytorch_model.bin; save the model",
    ),
    "no config": (lambda path: (path / "config.json").unlink(), "config.json cannot be read"),
    "a shard outside": (
        lambda path: change_index(path, lambda places: places.update({"x": "../other.safetensors"})),
        "does not name files of its folder by tensor",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_wrong_is_one_sentence(damage: str, tmp_path: Path) -> None:
    break_it, said = DAMAGES[damage]
    break_it(sharded(tmp_path))
    with pytest.raises(ConfigError) as caught:
        Directory(tmp_path)
    assert said in caught.value.message and "\n" not in caught.value.message


def test_a_tensor_that_is_not_there_is_named(tmp_path: Path) -> None:
    source = Directory(sharded(tmp_path))
    with pytest.raises(ConfigError, match=r"has no tensor 'model.norm.wieght'. Did you mean 'model.norm.weight'\?"):
        source.tensor("model.norm.wieght")


def test_a_file_that_is_cut_after_it_was_opened_is_refused(tmp_path: Path) -> None:
    source = Directory(sharded(tmp_path))
    with (tmp_path / SECOND).open("r+b") as file:
        file.truncate(300)
    with pytest.raises(ConfigError, match="was changed while it was read"):
        source.tensor("model.layers.0.mlp.up_proj.weight")


def test_numbers_of_8_bits_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    save_file({"a": torch.ones(2).to(torch.float8_e4m3fn)}, tmp_path / "model.safetensors")
    with pytest.raises(UnsupportedError, match="'a' is of float8_e4m3fn, which is not read here"):
        Directory(tmp_path)


def test_a_damaged_index_is_a_sentence_of_ours(tmp_path: Path) -> None:
    """Whatever stands there: every error is one that a user is told of."""
    text, number = (sharded(tmp_path) / INDEX).read_bytes(), random.Random(0)
    for _ in range(150):
        changed = bytearray(text)
        for _ in range(number.randint(1, 4)):
            changed[number.randrange(len(changed))] = number.randrange(256)
        (tmp_path / INDEX).write_bytes(changed)
        try:
            Directory(tmp_path)
        except ConfigError:
            continue
