"""What a model takes, said before it is exported: bytes against the arrays themselves, and every refusal by name."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.models.decoders import saved
from tests.models.language.gguf_files import write
from tests.processes import environment
from tests.typed_commands import Typed
from trt_compress.errors import ConfigError, TrtCompressError
from trt_compress.export.plan import USABLE, plan
from trt_compress.methods import parse_spec
from trt_compress.model_name import parse_model
from trt_compress.models.hosts.decoder_config import Caching
from trt_compress.models.hosts.decoder_families import read_config
from trt_compress.models.hosts.decoder_host import plan_of
from trt_compress.models.language.open import open_language
from trt_compress.plugins.kv_quantize.op import kv_quantize


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Gemma 2 of two layers: one looks at 24 tokens, one at all; its head is the embedding."""
    return saved("gemma2", tmp_path_factory.mktemp("gemma2"))


def test_bytes_of_weights_are_those_of_the_tensors(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    found = plan(f"hf:{folder}", context=256)
    assert found.parameters == sum(tensor.numel() for tensor in tensors.values())
    assert found.stored_bytes == sum(tensor.nbytes for tensor in tensors.values()) and found.stored_as == "float32"
    sizes = {one.name: one for one in found.weights}
    assert sizes["fp32"].bytes == 4 * found.parameters and sizes["bf16"].bytes == 2 * found.parameters
    linear = {name: tensor for name, tensor in tensors.items() if tensor.ndim == 2 and "embed" not in name}
    whole = sum(tensor.numel() for tensor in linear.values() if tensor.shape[1] % 32 == 0)
    assert whole == sum(tensor.numel() for tensor in linear.values())
    head = tensors["model.embed_tokens.weight"].numel()  # in 8 bits too, beside the embedding
    others = found.parameters - whole
    assert sizes["fp16, 4:32"].bytes == 2 * others + whole // 2 + whole // 32 * 2 + head + head // 32 * 2
    assert sizes["fp32, 8:32"].bytes == 4 * others + whole + whole // 32 * 4 + head + head // 32 * 4
    assert sizes["fp32, 8:32"].whole_share == pytest.approx(whole / found.parameters, abs=1e-4)


def test_bytes_of_caches_are_those_of_the_arrays(folder: Path) -> None:
    found = {one.name: one for one in plan(f"hf:{folder}", context=256, chunk=16, batch=3).caches}
    keys = {"ring": torch.zeros(3, 2, 24 + 16 - 1, 32), "linear": torch.zeros(3, 2, 256, 32)}
    assert found["fp32"].bytes == 2 * sum(part.nbytes for part in keys.values())
    assert found["fp16"].bytes == sum(part.nbytes for part in keys.values())
    ring, linear = keys.values()
    per_token = [kv_quantize(linear, bits=8, axis="token", scale_type=torch.float16) for _ in "kv"]
    assert found["int8"].bytes == ring.nbytes + sum(part.nbytes for parts in per_token for part in parts)
    half = linear[:, :, :128].half()  # of KIVI's tail, and as many tokens are packed
    packed = [
        kv_quantize(linear[:, :, :128], bits=2, axis=axis, group=32, scale_type=torch.float16)
        for axis in ("channel", "token")
    ]
    expected = ring.nbytes + 2 * half.nbytes + sum(part.nbytes for parts in packed for part in parts)
    assert found["kivi:bits=2,group=32"].bytes == expected


def test_bytes_of_a_token_are_those_of_the_stores(folder: Path) -> None:
    config = read_config(open_language(parse_model(f"hf:{folder}")).config, name="tiny")
    for found in plan(f"hf:{folder}").caches:
        if found.name in ("fp32", "fp16"):
            continue
        sites = plan_of(config, Caching(context=1024, chunk=64), "tiny", parse_spec(found.name)).sites
        assert found.bytes_per_token == len(config.layers) * (sites[0].bytes_per_token or 0), found.name


def test_what_fits_is_within_what_is_counted_on(folder: Path) -> None:
    found = plan(f"hf:{folder}", context=512, batch=4000)
    for fit in found.fits:
        assert fit.fits == (fit.bytes <= USABLE * fit.memory_gib * 2**30) == (fit.longest >= 512)
    by_memory = [[fit.longest for fit in found.fits if fit.memory_gib == memory] for memory in (8, 16, 64)]
    assert any(small < large for small, large in zip(by_memory[0], by_memory[2], strict=True))
    one = next(fit for fit in found.fits if 0 < fit.longest < 512)
    for length, fits in ((one.longest, True), (one.longest + 1, False)):
        again = plan(f"hf:{folder}", context=length, batch=4000, chunk=min(256, length))
        same = next(
            f for f in again.fits if (f.memory_gib, f.weights, f.cache) == (one.memory_gib, one.weights, one.cache)
        )
        assert same.fits == fits


def test_a_target_refuses_what_it_does_not_take(folder: Path) -> None:
    found = {one.name: one.refused for one in plan(f"hf:{folder}", targets=["jetson-orin-jp6"]).weights}
    assert found["fp16"] is None
    assert found["bf16"] is not None and found["bf16"].startswith("jetson-orin-jp6 has no bf16; cuda, rtx")
    assert found["fp16, 4:32"] == "jetson-orin-jp6 reads opset 20, and weights in blocks need 21"
    assert all(one.refused is None for one in plan(f"hf:{folder}", targets=["rtx"]).weights)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"model": "zoo:digits_vit"}, "zoo:digits_vit is no language model; plan takes hf:DIR and gguf:FILE"),
        ({"context": 513}, "--context 513 is more than the 512 tokens that"),
        ({"batch": 0}, "--batch 0 is out of range"),
        ({"targets": ["jetson"]}, "target 'jetson' is not known"),
        ({"model": "hf:absent"}, "config.json cannot be read"),
        ({"model": "gguf:absent"}, "gguf:absent cannot be read"),
    ],
)
def test_what_cannot_be_planned_is_one_sentence(given: dict[str, Any], said: str, folder: Path) -> None:
    with pytest.raises(TrtCompressError) as caught:
        plan(**{"model": f"hf:{folder}", **given})
    assert said in caught.value.message and caught.value.exit_code == 2


def test_another_family_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "mixtral"}))
    with pytest.raises(TrtCompressError, match="model_type 'mixtral' is a mixture of experts, which is not supported"):
        plan(f"hf:{tmp_path}")


def test_it_is_said_without_torch_and_at_once(folder: Path) -> None:
    program = (
        "import sys; from trt_compress.export.plan import plan\n"
        f"plan('hf:{folder}'); print(sorted({{'torch', 'onnx', 'transformers', 'gguf'}} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_the_command_says_it_in_tables_and_as_json(commands: Typed, folder: Path, tmp_path: Path) -> None:
    shown = commands("plan", f"hf:{folder}", "--context", 256, "--batch", 2, "--target", "jetson-orin-jp6")
    assert shown.code == 0, shown.err
    assert "Gemma 2 (gemma2)" in shown.out and "What fits" in shown.out
    assert "jetson-orin-jp6 has no bf16" in shown.out and "cache in fp32 or smaller" in shown.out
    found = json.loads(commands("plan", f"hf:{folder}", "--context", 256, "--json").out)
    assert (found["context"], found["batch"], found["memories_gib"]) == (256, 1, [8, 16, 64])
    assert len(found["fits"]) == 3 * len(found["weights"]) * len(found["caches"])
    refused = commands("plan", f"hf:{folder}", "--context", 100_000)
    assert refused.is_one_sentence and refused.code == 2


def test_a_model_of_gguf_is_planned_too(tmp_path: Path) -> None:
    config = {
        **{"model_type": "qwen2", "vocab_size": 48, "hidden_size": 64, "intermediate_size": 96},
        **{"num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128},
        "rms_norm_eps": 1e-5,
    }
    state = {"model.embed_tokens.weight": torch.ones(48, 64), "model.norm.weight": torch.ones(64)}
    found = plan(f"gguf:{write(tmp_path / 'a.gguf', config, state)}")
    assert (found.model_type, found.limit, found.context, found.stored_as) == ("qwen2", 128, 128, "f32")
    with pytest.raises(ConfigError, match=r"write gguf:.*a\.gguf"):
        plan(f"hf:{tmp_path / 'a.gguf'}")
