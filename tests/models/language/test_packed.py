"""Checkpoints of GPTQ and AWQ, packed here as their papers' programs do it, one number after the other."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from trt_compress.errors import TrtCompressError, UnsupportedError
from trt_compress.models.language.directory import Directory
from trt_compress.models.language.packed import PackedDirectory, is_packed

OUTPUTS, INPUTS, GROUP = 16, 64, 32
LAYER = "model.layers.0.mlp.up_proj"
Numbers = np.ndarray[Any, np.dtype[Any]]


class Layer:
    """Whole numbers [inputs, outputs], zero points and scales [groups, outputs], and the group of each input."""

    def __init__(self, bits: int, *, symmetric: bool, disordered: bool = False) -> None:
        random = np.random.default_rng(bits)
        self.bits = bits
        self.numbers = random.integers(0, 2**bits, (INPUTS, OUTPUTS))
        count = INPUTS // GROUP
        # 1 … 2^bits are what the first form of GPTQ can store; AWQ has 0 … 2^bits - 1
        self.zeros = random.integers(1, 2**bits, (count, OUTPUTS))
        if symmetric:
            self.zeros[:] = 2 ** (bits - 1)
        self.scales = random.uniform(0.01, 0.1, (count, OUTPUTS)).astype(np.float16)
        self.groups = np.arange(INPUTS) // GROUP
        if disordered:
            self.groups = random.permutation(self.groups)

    def weight(self) -> Tensor:
        """[outputs, inputs], one number after the other."""
        found = np.zeros((OUTPUTS, INPUTS), dtype=np.float32)
        for i in range(INPUTS):
            for j in range(OUTPUTS):
                g = self.groups[i]
                found[j, i] = (self.numbers[i, j] - self.zeros[g, j]) * np.float32(self.scales[g, j])
        return torch.from_numpy(found)


def into_int32(numbers: Numbers, bits: int) -> Tensor:
    """Rows of whole numbers [n, 32 / bits], the first in the low end of an int32."""
    words = [sum(int(number) << (bits * place) for place, number in enumerate(row)) for row in numbers]
    return torch.tensor([word - (1 << 32) if word >= 1 << 31 else word for word in words], dtype=torch.int32)


def gptq(layer: Layer, *, second: bool = False) -> dict[str, Tensor]:
    per = 32 // layer.bits
    down = layer.numbers.reshape(INPUTS // per, per, OUTPUTS).transpose(0, 2, 1).reshape(-1, per)
    along = (layer.zeros - (0 if second else 1)).reshape(-1, per)
    return {
        f"{LAYER}.qweight": into_int32(down, layer.bits).reshape(INPUTS // per, OUTPUTS),
        f"{LAYER}.qzeros": into_int32(along, layer.bits).reshape(-1, OUTPUTS // per),
        f"{LAYER}.scales": torch.from_numpy(layer.scales),
        f"{LAYER}.g_idx": torch.from_numpy(layer.groups.astype(np.int32)),
    }


def awq(layer: Layer) -> dict[str, Tensor]:
    order = [0, 2, 4, 6, 1, 3, 5, 7]

    def packed(numbers: Numbers) -> Tensor:
        rows = numbers.reshape(-1, 8)[:, order]
        return into_int32(rows, 4).reshape(len(numbers), OUTPUTS // 8)

    return {
        f"{LAYER}.qweight": packed(layer.numbers),
        f"{LAYER}.qzeros": packed(layer.zeros),
        f"{LAYER}.scales": torch.from_numpy(layer.scales),
    }


def directory(path: Path, parts: dict[str, Tensor], **quantization: Any) -> Directory:
    config = {"model_type": "llama", "quantization_config": quantization}
    (path / "config.json").write_text(json.dumps(config))
    save_file({**{name: part.contiguous() for name, part in parts.items()}, "model.norm.weight": torch.ones(4)},
              path / "model.safetensors")  # fmt: skip
    return Directory(path)


CASES: dict[str, tuple[Layer, dict[str, Any]]] = {
    "symmetric": (Layer(4, symmetric=True), {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": True}),
    "asymmetric": (Layer(4, symmetric=False), {"quant_method": "gptq", "bits": 4, "group_size": GROUP}),
    "second form": (
        Layer(4, symmetric=False),
        {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "checkpoint_format": "gptq_v2"},
    ),
    "disordered": (
        Layer(4, symmetric=False, disordered=True),
        {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": True},
    ),
    "8 bits": (Layer(8, symmetric=False), {"quant_method": "gptq", "bits": 8, "group_size": GROUP}),
    "2 bits": (Layer(2, symmetric=False), {"quant_method": "gptq", "bits": 2, "group_size": GROUP}),
    "awq": (
        Layer(4, symmetric=False),
        {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "GEMM", "zero_point": True},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_packed_layer_is_the_weight_that_was_packed(case: str, tmp_path: Path) -> None:
    layer, form = CASES[case]
    parts = awq(layer) if case == "awq" else gptq(layer, second=case == "second form")
    stored = directory(tmp_path, parts, **form)
    assert is_packed(stored)
    source = PackedDirectory(stored)
    assert set(source.names()) == {f"{LAYER}.weight", "model.norm.weight"}
    header = source.header(f"{LAYER}.weight")
    assert header[:2] == ((OUTPUTS, INPUTS), "float16") and header.kind.startswith(form["quant_method"])
    assert ("desc_act" in header.kind) == (case == "disordered")
    noted = "quantizes it anew" in (source.assets().provenance or "")
    assert noted == (source.blocks(f"{LAYER}.weight") is None)
    assert header.bytes == sum(part.nbytes for part in parts.values())
    found = source.tensor(f"{LAYER}.weight")
    assert torch.equal(found, layer.weight().half())
    assert torch.equal(source.tensor("model.norm.weight"), torch.ones(4))


@pytest.mark.parametrize("case", CASES)
def test_whole_numbers_are_handed_over_exactly(case: str, tmp_path: Path) -> None:
    layer, form = CASES[case]
    parts = awq(layer) if case == "awq" else gptq(layer, second=case == "second form")
    blocks = PackedDirectory(directory(tmp_path, parts, **form)).blocks(f"{LAYER}.weight")
    if case == "disordered":
        assert blocks is None
        return
    assert blocks is not None and blocks.group == GROUP and blocks.codes.dtype == torch.int8
    assert (blocks.bits, blocks.zero is None) == {
        "symmetric": (4, True),
        "8 bits": (8, False),
        "2 bits": (4, True),
    }.get(case, (4, False))
    limit = 2 ** (blocks.bits - 1)
    for whole in (blocks.codes, *(() if blocks.zero is None else (blocks.zero,))):
        assert -limit <= int(whole.min()) and int(whole.max()) < limit
    zero = 0 if blocks.zero is None else blocks.zero.repeat_interleave(GROUP, 1).float()
    exact = (blocks.codes.float() - zero) * blocks.scale.float().repeat_interleave(GROUP, 1)
    assert torch.equal(exact, layer.weight())


def test_a_zero_point_that_4_bits_do_not_hold_makes_8_of_them(tmp_path: Path) -> None:
    layer = Layer(4, symmetric=False)
    layer.zeros[0, 0] = 16
    form = {"quant_method": "gptq", "bits": 4, "group_size": GROUP}
    source = PackedDirectory(directory(tmp_path, gptq(layer), **form))
    blocks = source.blocks(f"{LAYER}.weight")
    assert blocks is not None and blocks.bits == 8 and blocks.zero is None
    exact = blocks.codes.float() * blocks.scale.float().repeat_interleave(GROUP, 1)
    assert torch.equal(exact, layer.weight())
    assert torch.equal(source.tensor(f"{LAYER}.weight"), layer.weight().half())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"quant_method": "bitsandbytes"}, "quant_method 'bitsandbytes' is not known; there are gptq, awq"),
        ({"bits": 3}, "gptq: bits 3 is not known; there are 2, 4, 8"),
        ({"checkpoint_format": "marlin"}, "gptq: form 'marlin' is not known"),
        ({"quant_method": "awq", "version": "gemv"}, "awq: form 'gemv' is not known; there is gemm"),
        ({"group_size": 0}, "group_size = 0; it is -1 or a number above 0"),
        ({"group_size": 16}, "with bits = 4 and group_size = 16 it is"),
        ({"bits": 8}, "with bits = 8 and group_size = 32 it is"),
        ({"dynamic": {"a": 1}}, "layers of different bits"),
    ],
)
def test_another_form_is_refused_by_name(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    form = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, **change}
    stored = directory(tmp_path, gptq(Layer(4, symmetric=True)), **form)
    with pytest.raises(TrtCompressError) as caught:
        PackedDirectory(stored)
    assert said in caught.value.message and caught.value.exit_code == 2


def test_parts_that_are_missing_or_wrong_are_named(tmp_path: Path) -> None:
    form = {"quant_method": "gptq", "bits": 4, "group_size": GROUP}
    parts = gptq(Layer(4, symmetric=True))
    del parts[f"{LAYER}.qzeros"]
    with pytest.raises(TrtCompressError, match="has qweight and no qzeros"):
        PackedDirectory(directory(tmp_path, parts, **form))
    parts = gptq(Layer(4, symmetric=True))
    parts[f"{LAYER}.g_idx"][3] = 7
    source = PackedDirectory(directory(tmp_path, parts, **form))
    with pytest.raises(TrtCompressError, match="names a group beyond the 2 that there are"):
        source.tensor(f"{LAYER}.weight")


def test_older_checkpoints_say_their_form_in_a_file_of_its_own(tmp_path: Path) -> None:
    layer = Layer(4, symmetric=False)
    directory(tmp_path, gptq(layer))
    (tmp_path / "quantize_config.json").write_text(json.dumps({"bits": 4, "group_size": GROUP, "desc_act": False}))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    source = PackedDirectory(Directory(tmp_path))
    assert torch.equal(source.tensor(f"{LAYER}.weight"), layer.weight().half())
    (tmp_path / "quantize_config.json").unlink()
    with pytest.raises(UnsupportedError, match="quant_method"):
        PackedDirectory(Directory(tmp_path))
