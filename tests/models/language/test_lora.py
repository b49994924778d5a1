"""LoRA adapters: merged as PEFT's formula says; what is another kind, or of another model, is refused by name."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from trt_compress.errors import TrtCompressError
from trt_compress.model_name import parse_model
from trt_compress.models.language.open import open_language

Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj"
SETTINGS = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], "bias": "none"}


def model(path: Path, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    path.mkdir()
    torch.manual_seed(0)
    state = {
        f"{Q}.weight": torch.randn(12, 8),
        f"{DOWN}.weight": torch.randn(8, 16),
        "model.norm.weight": torch.ones(8),
    }
    state = {name: tensor.to(dtype) for name, tensor in state.items()}
    save_file(state, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return state


def adapter(
    path: Path, *, rank: int = 4, tensors: dict[str, Tensor] | None = None, **changes: Any
) -> dict[str, Tensor]:
    path.mkdir()
    made = {
        f"base_model.model.{Q}.lora_A.weight": torch.randn(rank, 8),
        f"base_model.model.{Q}.lora_B.weight": torch.randn(12, rank),
        f"base_model.model.{DOWN}.lora_A.weight": torch.randn(rank, 16),
        f"base_model.model.{DOWN}.lora_B.weight": torch.randn(8, rank),
    }
    made = tensors if tensors is not None else made
    save_file(made, path / "adapter_model.safetensors")
    (path / "adapter_config.json").write_text(json.dumps({**SETTINGS, **changes}))
    return made


@pytest.mark.parametrize(
    ("changes", "scales"),
    [
        ({}, (2, 2)),
        ({"use_rslora": True}, (8 / math.sqrt(4), 8 / math.sqrt(4))),
        ({"alpha_pattern": {"down_proj": 32}}, (2, 8)),
        ({"lora_alpha": 1.5}, (0.375, 0.375)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_it_adds_is_what_the_formula_says(
    changes: dict[str, Any], scales: tuple[float, float], dtype: torch.dtype, tmp_path: Path
) -> None:
    state = model(tmp_path / "m", dtype)
    added = adapter(tmp_path / "a", **changes)
    source = open_language(parse_model(f"hf:{tmp_path / 'm'}?lora={tmp_path / 'a'}"))
    assert set(source.names()) == set(state)
    for name, scale in ((Q, scales[0]), (DOWN, scales[1])):
        a, b = (added[f"base_model.model.{name}.lora_{side}.weight"].double() for side in "AB")
        expected = (state[f"{name}.weight"].double() + scale * (b @ a)).to(dtype)
        found = source.tensor(f"{name}.weight")
        assert found.dtype == dtype
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=2**-7 if dtype == torch.bfloat16 else 1e-5)
        assert not torch.equal(found, state[f"{name}.weight"])
    assert torch.equal(source.tensor("model.norm.weight"), state["model.norm.weight"])
    assert source.assets().provenance == "merged with the LoRA adapter a"


def test_the_hash_is_of_both(tmp_path: Path) -> None:
    model(tmp_path / "m")
    adapter(tmp_path / "a")
    alone = open_language(parse_model(f"hf:{tmp_path / 'm'}")).sha256()
    merged = open_language(parse_model(f"hf:{tmp_path / 'm'}?lora={tmp_path / 'a'}")).sha256()
    assert alone != merged and len(merged) == 64


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"peft_type": "IA3"}, "an adapter of the kind IA3 is not supported; there is LORA"),
        ({"use_dora": True}, "DoRA (use_dora) is not supported"),
        ({"modules_to_save": ["lm_head"]}, "LoRA with whole modules beside it (modules_to_save)"),
        ({"bias": "all"}, "LoRA with trained biases is not supported"),
        ({"fan_in_fan_out": True}, "LoRA on transposed weights"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights = pissa_niter_4 belongs to a changed model"),
        ({"lora_alpha": "8"}, "lora_alpha = 8; it must be a number above 0"),
        ({"alpha_pattern": {"(a+)+": 4}}, "alpha_pattern '(a+)+' is no plain name"),
    ],
)
def test_another_kind_is_refused_by_name(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    model(tmp_path / "m")
    adapter(tmp_path / "a", **changes)
    with pytest.raises(TrtCompressError) as caught:
        open_language(parse_model(f"hf:{tmp_path / 'm'}?lora={tmp_path / 'a'}"))
    assert said in caught.value.message and caught.value.exit_code == 2 and "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("names", "shapes", "said"),
    [
        (("v_proj",), ((4, 8), (12, 4)), "which hf:"),
        (("q_proj",), ((4, 9), (12, 4)), "is [12, 4] times [4, 9], and that of"),
        (("q_proj",), ((4, 8), (12, 5)), "is [12, 5] times [4, 8], and that of"),
        (("q_proj",), ((4, 8), None), "one half is missing"),
    ],
)
def test_an_adapter_of_another_model_is_refused(names: Any, shapes: Any, said: str, tmp_path: Path) -> None:
    model(tmp_path / "m")
    start = f"base_model.model.model.layers.0.self_attn.{names[0]}"
    tensors = {
        f"{start}.lora_{side}.weight": torch.ones(shape) for side, shape in zip("AB", shapes, strict=True) if shape
    }
    adapter(tmp_path / "a", tensors=tensors)
    with pytest.raises(TrtCompressError) as caught:
        open_language(parse_model(f"hf:{tmp_path / 'm'}?lora={tmp_path / 'a'}"))
    assert said in caught.value.message


def test_what_is_no_part_of_linear_layers_is_refused(tmp_path: Path) -> None:
    model(tmp_path / "m")
    adapter(tmp_path / "a", tensors={"base_model.model.model.embed_tokens.lora_embedding_A": torch.ones(4, 8)})
    with pytest.raises(TrtCompressError, match="is no part of LoRA on a linear layer"):
        open_language(parse_model(f"hf:{tmp_path / 'm'}?lora={tmp_path / 'a'}"))
