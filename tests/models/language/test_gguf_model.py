"""GGUF models: names, configuration and tensors against transformers' own; whole numbers against the package `gguf`."""

import hashlib
import json
import random
import shutil
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type

from tests.models.language.gguf_files import write
from trt_compress.errors import ConfigError, TrtCompressError, UnsupportedError
from trt_compress.models.hosts.decoder_families import read_config
from trt_compress.models.language import gguf_file
from trt_compress.models.language.gguf_blocks import _FORMS, whole_numbers
from trt_compress.models.language.gguf_model import GgufModel

SMALL = {
    "vocab_size": 48,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 5e4,
    "tie_word_embeddings": False,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 32},
    "phi3": {"pad_token_id": 0},
    "gemma2": {"head_dim": 32, "query_pre_attn_scalar": 32, "tie_word_embeddings": True},
    "gemma3_text": {"head_dim": 32, "query_pre_attn_scalar": 32, "tie_word_embeddings": True},
    "smollm3": {"pad_token_id": 0, "tie_word_embeddings": True},
}


def made(model_type: str, **changes: Any) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = SMALL | FAMILIES[model_type] | changes
    config = AutoConfig.for_model(model_type, **settings)
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config)
    state = {name: torch.randn_like(tensor) * 0.3 for name, tensor in model.state_dict().items()}
    if settings["tie_word_embeddings"]:
        del state["lm_head.weight"]
    return {**settings, "model_type": model_type}, state


def official(model_type: str) -> dict[str, Any]:
    """The config.json that transformers writes of such a model."""
    from transformers import AutoConfig

    config = AutoConfig.for_model(model_type, **(SMALL | FAMILIES[model_type]))
    found: dict[str, Any] = json.loads(config.to_json_string())
    return found


@pytest.mark.parametrize("model_type", FAMILIES)
def test_names_and_tensors_are_those_of_transformers(model_type: str, tmp_path: Path) -> None:
    config, state = made(model_type)
    source = GgufModel(write(tmp_path / "a.gguf", config, state))
    assert set(source.names()) == set(state)
    for name, tensor in state.items():
        assert source.header(name)[:2] == (tuple(tensor.shape), "float32")
        torch.testing.assert_close(source.tensor(name), tensor, atol=1e-6, rtol=0)
    for key, value in {**SMALL, **FAMILIES[model_type]}.items():
        assert key == "pad_token_id" or source.config[key] == value, key
    assert source.config["model_type"] == model_type
    ours, theirs = (read_config(each, name="a") for each in (source.config, official(model_type)))
    assert ours == theirs


@pytest.mark.parametrize("model_type", ["gemma2", "gemma3_text"])
def test_which_layers_look_at_a_window_is_what_transformers_says(model_type: str, tmp_path: Path) -> None:
    from transformers import AutoConfig

    config, state = made(model_type, num_hidden_layers=7)
    expected = AutoConfig.for_model(model_type, num_hidden_layers=7)
    source = GgufModel(write(tmp_path / "a.gguf", config, state, more=lambda writer: writer.add_sliding_window(32)))
    assert source.config["layer_types"] == expected.layer_types
    assert source.config["sliding_window"] == 32


def test_of_other_scalings_of_positions_none_is_lost(tmp_path: Path) -> None:
    config, state = made("llama")
    factors = np.linspace(1, 8, 8, dtype=np.float32)
    one = write(tmp_path / "a.gguf", config, state, extra={"rope_freqs.weight": factors})
    assert GgufModel(one).config["rope_scaling"] == {"rope_type": "factors", "factors": factors.tolist()}

    def yarn(writer: gguf.GGUFWriter) -> None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(4.0)
        writer.add_rope_scaling_orig_ctx_len(32)

    other = write(tmp_path / "b.gguf", config, state, more=yarn)
    expected = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
    assert GgufModel(other).config["rope_scaling"] == expected
    config, state = made("phi3")
    both = {f"rope_factors_{kind}.weight": factors * n for n, kind in ((1, "short"), (2, "long"))}
    third = GgufModel(write(tmp_path / "c.gguf", config, state, extra=both)).config["rope_scaling"]
    assert (third["rope_type"], third["long_factor"]) == ("longrope", (factors * 2).tolist())


KINDS = ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"]
K_KINDS = ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_are_what_their_own_package_reads(kind: str, tmp_path: Path) -> None:
    config, state = made("qwen2", num_hidden_layers=1)
    path = write(tmp_path / "a.gguf", config, state, types=Type[kind])
    own = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}["blk.0.ffn_down.weight"]
    expected = torch.from_numpy(gguf.quants.dequantize(own.data, own.tensor_type).copy())
    source = GgufModel(path)
    name = "model.layers.0.mlp.down_proj.weight"
    found = source.tensor(name)
    assert source.header(name) == (
        tuple(expected.shape),
        "bfloat16" if kind == "BF16" else "float16",
        own.n_bytes,
        kind.lower(),
    )
    assert str(found.dtype) == f"torch.{source.header(name).dtype}"
    torch.testing.assert_close(found.float(), expected, atol=1e-6, rtol=2**-11)


@pytest.mark.parametrize("kind", K_KINDS)
def test_blocks_of_256_are_read(kind: str, tmp_path: Path) -> None:
    """The package writes none of these: any bytes are blocks, but for their scales, which have to be numbers."""
    block, size = gguf.GGML_QUANT_SIZES[Type[kind]]
    data = np.random.default_rng(0).integers(0, 256, (6, 2 * size), dtype=np.uint8)
    for place in {"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,)}.get(kind, (0, 2)):
        for start in (place, size + place):
            data[:, start : start + 2] = np.frombuffer(np.float16(0.01).tobytes(), dtype=np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_tensor("t", data, raw_dtype=Type[kind])
    for write_part in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write_part()
    writer.close()
    from trt_compress.models.language.gguf_blocks import numbers

    with (tmp_path / "a.gguf").open("rb") as file:
        opened = gguf_file.GgufFile(file, tmp_path / "a.gguf")
    assert opened.tensors["t"].shape == (6, 2 * block)
    found = numbers(opened.tensors["t"], lambda first, last: opened.read("t", first, last))
    expected = torch.from_numpy(gguf.quants.dequantize(data, Type[kind]))
    torch.testing.assert_close(found.float(), expected, atol=1e-6, rtol=2**-11)


def test_sizes_of_blocks_are_those_of_the_package() -> None:
    for number, (name, count, size) in gguf_file._TYPES.items():
        assert (Type(number).name, gguf.GGML_QUANT_SIZES[Type(number)]) == (name, (count, size))


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_whole_numbers_are_handed_over_exactly(kind: str, tmp_path: Path) -> None:
    config, state = made("llama")
    source = GgufModel(write(tmp_path / "a.gguf", config, state, types=Type[kind]))
    turned = 0
    for name in source.names():
        blocks = source.blocks(name)
        if source.header(name).kind == "f32":
            assert blocks is None
            continue
        assert blocks is not None and blocks.bits == (4 if kind[1] == "4" else 8) and blocks.group == 32
        assert (blocks.least is not None) == kind.endswith("_1")
        assert bool((blocks.scale >= 0).all())
        limit = 2 ** (blocks.bits - 1)
        assert -limit <= int(blocks.codes.min()) and int(blocks.codes.max()) < limit
        zero = 0 if blocks.zero is None else blocks.zero.repeat_interleave(32, 1).float()
        turned += blocks.zero is not None
        exact = (blocks.codes.float() - zero) * blocks.scale.float().repeat_interleave(32, 1)
        exact += 0 if blocks.least is None else blocks.least.repeat_interleave(32, 1)
        assert torch.equal(exact, blocks.numbers()) and torch.equal(exact.half(), source.tensor(name))
    assert bool(turned) == (kind == "Q4_0")


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("kind", sorted(_FORMS))
def test_whole_numbers_are_what_the_package_reads(kind: str, turned: bool) -> None:
    """Of any bytes, with scales that are numbers, of both signs if they are to be turned round."""
    block, size = gguf.GGML_QUANT_SIZES[Type[kind]]
    random_ = np.random.default_rng(int(turned))
    data = random_.integers(0, 256, (6, 2 * size), dtype=np.uint8)
    for place in {"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,)}.get(
        kind, (0, 2) if kind.endswith("_1") or kind in ("Q4_K", "Q5_K") else (0,)
    ):
        for start in (place, size + place):
            signs = random_.choice([-1, 1], 6) if turned else 1
            scale = (random_.uniform(0.001, 0.1, 6) * signs).astype(np.float16)
            data[:, start : start + 2] = scale[:, None].view(np.uint8)
    stored = gguf_file.GgufTensor(type=kind, shape=(6, 2 * block), begin=0, bytes=data.size)
    found = whole_numbers(stored, lambda first, last: bytearray(data.tobytes()[first:last]))
    if kind == "Q8_0" and turned:  # a code of -128 cannot be turned round
        assert found is None
        return
    assert found is not None and bool((found.scale >= 0).all())
    np.testing.assert_array_equal(found.numbers().numpy(), gguf.quants.dequantize(data, Type[kind]))


def test_blocks_with_no_number_for_a_scale_are_none() -> None:
    data = bytearray(np.full(20, 255, np.uint8).tobytes())
    stored = gguf_file.GgufTensor(type="Q4_1", shape=(1, 32), begin=0, bytes=20)
    assert whole_numbers(stored, lambda first, last: data[first:last]) is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: b"GGUX" + data[4:], "is not a whole GGUF file (it does not begin as one)"),
        (lambda data: data[:4] + struct.pack("<I", 1) + data[8:], "is of version 1; there are versions 2 and 3"),
        (lambda data: data[:4] + struct.pack(">I", 3) + data[8:], "is of big-endian numbers"),
        (lambda data: data[:-70], "it is cut: tensor"),
        (lambda data: data[:700], "it is cut"),
        (lambda data: data[:8] + struct.pack("<Q", 1 << 40) + data[16:], "it speaks of 1099511627776 tensors"),
        (lambda data: data.replace(b"llama.block_count", b"llama.block_c0unt"), "have no llama.block_count above 0"),
        (
            lambda data: data.replace(b"blk.1.attn_norm", b"blk.0.attn_norm"),
            "'blk.0.attn_norm.weight' stands there twi",
        ),
        (lambda data: data.replace(b"blk.1.attn_norm", b"blk.1.attn_gnrm"), "'blk.1.attn_gnrm.weight' is no tensor"),
        (
            lambda data: data.replace(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0mamba"),
            "architecture 'mamba' is not",
        ),
        (lambda data: data.replace(b"blk.1.attn_norm", b"blk.01.ttn_norm"), "'blk.01.ttn_norm.weight' is no tensor"),
        (lambda data: b"", "is not a whole GGUF file"),
    ],
)
def test_a_damaged_file_is_one_sentence(change: Any, said: str, tmp_path: Path) -> None:
    config, state = made("llama")
    path = write(tmp_path / "a.gguf", config, state)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(TrtCompressError) as caught:
        GgufModel(path)
    assert said in caught.value.message and "\n" not in caught.value.message and caught.value.exit_code == 2


def test_any_change_of_the_header_is_read_or_refused(tmp_path: Path) -> None:
    config, state = made("llama", num_hidden_layers=1)
    path = write(tmp_path / "a.gguf", config, state)
    whole, number = path.read_bytes(), random.Random(0)
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(number.randint(1, 3)):
            data[number.randrange(1500)] = number.choice((0, 1, 255, number.randrange(256)))
        path.write_bytes(data)
        try:
            GgufModel(path)
        except TrtCompressError as error:
            assert error.exit_code == 2


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("block_count", 1_000_000_000, "llama.block_count is 1000000000; it is a whole number up to 9999"),
        ("embedding_length", 64.5, "llama.embedding_length is 64.5; it is a whole number"),
        ("attention.head_count", [4, 2], "llama.attention.head_count differs from layer to layer"),
        ("context_length", "long", "no llama.context_length above 0"),
    ],
)
def test_a_value_that_no_model_has_is_refused(key: str, value: Any, said: str, tmp_path: Path) -> None:
    from trt_compress.models.language.gguf_config import ARCHITECTURES, config_of

    config, state = made("llama", num_hidden_layers=1)
    path = write(tmp_path / "a.gguf", config, state)
    with path.open("rb") as file:
        opened = gguf_file.GgufFile(file, path)
    metadata = {**opened.metadata, f"llama.{key}": value}
    with pytest.raises(TrtCompressError) as caught:
        config_of("gguf:a", ARCHITECTURES["llama"], metadata, opened.tensors, lambda name: [])
    assert said in caught.value.message


def test_experts_are_refused(tmp_path: Path) -> None:
    config, state = made("llama", num_hidden_layers=1)
    path = write(tmp_path / "a.gguf", config, state, more=lambda writer: writer.add_uint32("llama.expert_count", 8))
    with pytest.raises(UnsupportedError, match="mixture of experts"):
        GgufModel(path)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model in one file, and the same in several, which the package `gguf` splits."""
    folder = tmp_path_factory.mktemp("parts")
    config, state = made("llama")
    whole = write(folder / "whole.gguf", config, state, types=Type.Q8_0)
    write(folder / "m.gguf", config, state, types=Type.Q8_0, split=8)
    return whole, folder / "m-00001-of-00003.gguf"


def test_a_model_in_several_files_is_the_same_as_in_one(parts: tuple[Path, Path]) -> None:
    one, several = GgufModel(parts[0]), GgufModel(parts[1])
    assert [origin.path.name for origin in several.origins] == [f"m-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    assert several.config == one.config and set(several.names()) == set(one.names())
    for name in one.names():
        assert several.header(name) == one.header(name) and torch.equal(several.tensor(name), one.tensor(name))
        found, wanted = several.blocks(name), one.blocks(name)
        assert (found is None) == (wanted is None)
        if found is not None and wanted is not None:
            assert torch.equal(found.codes, wanted.codes) and torch.equal(found.scale, wanted.scale)
    hashes = [f"{hashlib.sha256(o.path.read_bytes()).hexdigest()}  {o.path.name}\n" for o in several.origins]
    assert several.sha256() == hashlib.sha256("".join(hashes).encode()).hexdigest()


def test_what_is_wrong_with_several_files_is_one_sentence(parts: tuple[Path, Path], tmp_path: Path) -> None:
    first, second, third = (Path(shutil.copy(file, tmp_path)) for file in sorted(parts[1].parent.glob("m-*.gguf")))
    with pytest.raises(ConfigError, match=r"is part 2 of 3; give gguf:.*/m-00001-of-00003\.gguf, and the others are"):
        GgufModel(second)
    second.rename(tmp_path / "kept")
    with pytest.raises(ConfigError, match=r"has 3 parts, and m-00002-of-00003\.gguf cannot be read \(No such file"):
        GgufModel(first)
    shutil.copy(third, second)
    with pytest.raises(ConfigError, match=r"m-00002-of-00003\.gguf is not part 2 of 3, as its name says"):
        GgufModel(first)
    shutil.copy(first, tmp_path / "other.gguf")
    with pytest.raises(ConfigError, match=r"is the first of 3 parts, .*; call it NAME-00001-of-00003\.gguf as"):
        GgufModel(tmp_path / "other.gguf")
    config, state = made("llama", num_hidden_layers=1)  # parts of two models
    write(tmp_path / "n.gguf", config, state, types=Type.Q8_0, split=4)
    (tmp_path / "kept").rename(second)
    (tmp_path / "n-00003-of-00003.gguf").replace(third)
    with pytest.raises(ConfigError, match=r"its 3 files have .* tensors of different names, and the first says"):
        GgufModel(first)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        GgufModel(tmp_path / "absent.gguf")
