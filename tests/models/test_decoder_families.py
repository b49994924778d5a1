"""A config.json is read as it is meant, or refused by the name of what is in the way; without torch."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.models.decoders import FAMILIES as TINY
from tests.models.decoders import config_json
from trt_compress.errors import ConfigError, UnsupportedError
from trt_compress.models.hosts.catalog import check_model
from trt_compress.models.hosts.decoder_config import Caching, caching_of
from trt_compress.models.hosts.decoder_families import FAMILIES, read_config
from trt_compress.models.hosts.reading import ReadingOptions


def test_every_family_has_a_tiny_decoder() -> None:
    assert FAMILIES.keys() == {*TINY, "scout"}  # which transformers does not have; see tests/models/cache/test_scout.py


@pytest.mark.parametrize(
    ("model_type", "why"),
    [
        ("mixtral", "is a mixture of experts, which is not supported; language models are llama, mistral, qwen2"),
        ("deepseek_v3", r"is a model with latent attention \(MLA\)"),
        ("jamba", r"is a state-space model or a hybrid with one \(Mamba\)"),
        ("bloom", "is a model with ALiBi"),
        ("gpt2", "is a model with absolute positions"),
        ("qwen4", "is not supported; .* Did you mean"),
    ],
)
def test_other_families_are_refused_by_name(model_type: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(UnsupportedError, match=f"model_type '{model_type}' {why}"):
        check_model(f"hf:{tmp_path}")


@pytest.mark.parametrize(
    ("family", "changes", "error", "said"),
    [
        ("llama", {"num_local_experts": 8}, UnsupportedError, "config.json has num_local_experts = 8, which is not"),
        ("llama", {"residual_multiplier": 0.2}, UnsupportedError, "residual_multiplier = 0.2"),
        ("llama", {"architectures": ["LlamaForSequenceClassification"]}, UnsupportedError, "architectures LlamaForSeq"),
        ("phi3", {"attention_bias": True}, UnsupportedError, "attention_bias = True"),
        ("gemma2", {"use_bidirectional_attention": True}, UnsupportedError, "use_bidirectional_attention = True"),
        ("gemma3_text", {"attn_logit_softcapping": 5.0}, UnsupportedError, "attn_logit_softcapping = 5.0"),
        ("llama", {"hidden_act": "mish"}, ConfigError, "hidden_act = mish; it must be one of silu"),
        ("llama", {"hidden_size": None}, ConfigError, "hidden_size is missing; it must be a whole number from 1 on"),
        ("llama", {"rms_norm_eps": -1.0}, ConfigError, "rms_norm_eps = -1.0; it must be a number above 0"),
        ("llama", {"num_key_value_heads": 3}, ConfigError, "num_attention_heads 4 is no multiple"),
        ("llama", {"attention_bias": "yes"}, ConfigError, "attention_bias = yes; it must be true or false"),
        ("qwen3", {"use_sliding_window": True, "layer_types": ["full_attention"]}, ConfigError, "layer_types = "),
        ("qwen3", {"use_sliding_window": True, "layer_types": ["linear_attention"] * 2}, ConfigError, "layer_types = "),
        ("smollm3", {"no_rope_layers": [1]}, ConfigError, r"no_rope_layers = \[1\]; it must be 4 times 0 or 1"),
    ],
)
def test_what_would_change_the_arithmetic_is_refused(
    family: str, changes: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        read_config({**config_json(family), **changes}, name="hf:it")


def test_keys_without_a_value_or_a_meaning_are_passed_over() -> None:
    config = config_json("llama")
    more = {"some_new_thing": None, "other": False, "_attn_implementation": "eager", "torch_dtype": "bfloat16"}
    assert read_config({**config, **more}, name="it") == read_config(config, name="it")


@pytest.mark.parametrize(
    ("family", "more"),
    [
        ("phi3", {"full_attn_mod": 1, "interpolate_factor": 1, "lm_head_bias": False}),  # Phi-4-mini
        ("smollm3", {"max_window_layers": 28, "use_sliding_window": False, "sliding_window": None}),  # SmolLM3-3B
        ("llama", {"max_sequence_length": 2048, "unk_token_id": 0}),  # the first Llamas
        ("llama", {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 21}),  # made of a Qwen2
    ],
)
def test_what_published_configurations_say_beside(family: str, more: dict[str, Any]) -> None:
    config = config_json(family)
    assert read_config({**config, **more}, name="it") == read_config(config, name="it")


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("phi3", {"full_attn_mod": 2}),
        ("llama", {"sliding_window": 4096}),
        ("smollm3", {"use_sliding_window": True, "max_window_layers": 2, "sliding_window": 8}),
    ],
)
def test_the_same_keys_with_other_values_are_refused(family: str, changes: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError, match="which is not known of the family"):
        read_config({**config_json(family), **changes}, name="it")


def test_a_head_may_be_of_another_size_than_its_share() -> None:
    config = read_config(config_json("qwen3"), name="it")
    assert (config.width, config.heads, config.head_dim) == (64, 4, 32)
    assert config.tensors()["model.layers.0.self_attn.q_proj.weight"] == (128, 64)
    assert config.attention_scale == 32**-0.5
    assert read_config(config_json("gemma2"), name="it").attention_scale == 48**-0.5


def test_context_and_chunk_are_what_the_user_says_within_the_model() -> None:
    config = read_config(config_json("llama"), name="it")
    assert caching_of(config, ReadingOptions(), name="it") == Caching(context=512, chunk=256)
    assert caching_of(config, ReadingOptions(context=9), precision="fp16", name="it") == Caching(
        context=9, chunk=9, dtype="float16"
    )
    with pytest.raises(ConfigError, match="--context 513 is more than the 512 tokens that it was made for"):
        caching_of(config, ReadingOptions(context=513), name="it")
    with pytest.raises(ConfigError, match="--chunk 10 is more than the context of 9 tokens"):
        caching_of(config, ReadingOptions(context=9, chunk=10), name="it")
    with pytest.raises(ConfigError, match="context 0 is out of range"):
        ReadingOptions(context=0)
    with pytest.raises(ConfigError, match="cache_dtype 'int8' is not known"):
        ReadingOptions(cache_dtype="int8")
    with pytest.raises(UnsupportedError, match="--chunk 4: zoo:digits_vit is no language model"):
        check_model("zoo:digits_vit", None, ReadingOptions(chunk=4))
