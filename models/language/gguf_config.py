"""The configuration of a GGUF model in the words of Hugging Face's config.json, and its tensors' names.

Source: llama.cpp's converter (convert_hf_to_gguf.py), whose rules are undone here, and the constants of its models.
Differs: what the format does not hold comes from llama.cpp's code for the architecture: which layers of Gemma look at a
window, the scale of its attention, which layers of SmolLM3 have no positions.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from trt_compress.errors import ConfigError, UnsupportedError
from trt_compress.foreign import shown
from trt_compress.models.language.gguf_file import GgufTensor
from trt_compress.suggest import not_known

Config = dict[str, Any]

_COMMON = {
    **{"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"},
    **{"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"},
    **{"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj"},
    **{"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm", "attn_output": "self_attn.o_proj"},
    **{"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"},
}
_PHI3 = {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}
_GEMMA = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_NOT_TENSORS = ("rope_freqs", "rope_factors_long", "rope_factors_short", "attn_rot_embd")
"""What is computed from the configuration, or becomes a part of it."""

_PLACE = re.compile(r"(?:blk\.(?P<layer>0|[1-9]\d{0,3})\.)?(?P<part>\w+)\.(?P<end>weight|bias)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """What is peculiar to an architecture.

    Attributes:
        model_type: What Hugging Face calls it.
        names: Where they are other than those of Llama.
        permuted: Whether the rows of q and k stand in pairs, as llama.cpp rotates them there.
        norm_plus_one: Whether its norms multiply by 1 + weight, and the file holds the sum.
        further: What its configuration has beside what all have: made of that, and of the metadata without prefix.
    """

    model_type: str
    names: Mapping[str, str]
    permuted: bool = False
    norm_plus_one: bool = False
    further: Callable[[Config, Mapping[str, Any]], Config] = lambda config, values: {}


def _llama(config: Config, values: Mapping[str, Any]) -> Config:
    window = values.get("attention.sliding_window")
    return {"model_type": "mistral", "sliding_window": window} if _narrows(window, config) else {}


def _phi3(config: Config, values: Mapping[str, Any]) -> Config:
    window = values.get("attention.sliding_window")
    return {"sliding_window": window if _narrows(window, config) else None}


def _gemma2(config: Config, values: Mapping[str, Any]) -> Config:
    layers = range(config["num_hidden_layers"])
    return {
        **_gemma(config, values, largest=46),
        "layer_types": ["full_attention" if layer % 2 else "sliding_attention" for layer in layers],
        "attn_logit_softcapping": values.get("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": values.get("final_logit_softcapping", 30.0),
    }


def _gemma3(config: Config, values: Mapping[str, Any]) -> Config:
    layers = range(config["num_hidden_layers"])
    return {
        **_gemma(config, values, largest=62),
        "layer_types": ["sliding_attention" if (layer + 1) % 6 else "full_attention" for layer in layers],
        "rope_theta": values.get("rope.freq_base", 1_000_000.0),
        "rope_local_base_freq": values.get("rope.freq_base_swa", 10_000.0),
    }


def _gemma(config: Config, values: Mapping[str, Any], *, largest: int) -> Config:
    """What Gemma 2 and 3 have in common; the model of `largest` layers, of 27 B, has another scale of attention."""
    of_27b = config["num_hidden_layers"] == largest
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "sliding_window": values.get("attention.sliding_window", 4096),
        "query_pre_attn_scalar": config["hidden_size"] // config["num_attention_heads"]
        if of_27b
        else config["head_dim"],
    }


def _smollm3(config: Config, values: Mapping[str, Any]) -> Config:
    return {"no_rope_layers": [int((layer + 1) % 4 != 0) for layer in range(config["num_hidden_layers"])]}


ARCHITECTURES: Mapping[str, Architecture] = {
    "llama": Architecture(model_type="llama", names=_COMMON, permuted=True, further=_llama),
    "qwen2": Architecture(model_type="qwen2", names=_COMMON),
    "qwen3": Architecture(model_type="qwen3", names=_COMMON),
    "phi3": Architecture(model_type="phi3", names={**_COMMON, **_PHI3}, further=_phi3),
    "gemma2": Architecture(model_type="gemma2", names={**_COMMON, **_GEMMA}, norm_plus_one=True, further=_gemma2),
    "gemma3": Architecture(model_type="gemma3_text", names={**_COMMON, **_GEMMA}, norm_plus_one=True, further=_gemma3),
    "smollm3": Architecture(model_type="smollm3", names=_COMMON, permuted=True, further=_smollm3),
}
"""By `general.architecture`."""


def architecture_of(name: str, metadata: Mapping[str, Any]) -> Architecture:
    """What is peculiar to a file's model.

    Args:
        name: Of the model, for messages.
        metadata: Of the file.

    Raises:
        UnsupportedError: It is of an architecture that is not driven, or holds no language model.
    """
    found = metadata.get("general.architecture")
    if metadata.get("general.type", "model") != "model":
        raise UnsupportedError(
            f"{name} holds no model but a {shown(str(metadata['general.type']))[:40]}; give the file of the model."
        )
    if not isinstance(found, str) or found not in ARCHITECTURES:
        raise UnsupportedError(f"{name}: {not_known('architecture', shown(str(found))[:60], ARCHITECTURES)}")
    if metadata.get(f"{found}.expert_count"):
        raise UnsupportedError(f"{name}: a mixture of experts is not supported; give a model without experts.")
    return ARCHITECTURES[found]


def names_of(name: str, architecture: Architecture, tensors: Mapping[str, GgufTensor]) -> dict[str, str]:
    """For the names of Hugging Face those of the file.

    Raises:
        UnsupportedError: It holds a tensor that this architecture does not have.
    """
    found: dict[str, str] = {}
    for tensor in tensors:
        place = _PLACE.fullmatch(tensor)
        if place is not None and place["part"] in _NOT_TENSORS:
            continue
        part = None if place is None else architecture.names.get(place["part"])
        if place is None or part is None or part.startswith(("model.", "lm_head")) == bool(place["layer"]):
            raise UnsupportedError(
                f"{name}: '{shown(tensor)[:100]}' is no tensor that a model of {architecture.model_type} has here."
            )
        prefix = f"model.layers.{int(place['layer'])}." if place["layer"] else ""
        found[f"{prefix}{part}.{place['end']}"] = tensor
    return found


def config_of(
    name: str,
    architecture: Architecture,
    metadata: Mapping[str, Any],
    tensors: Mapping[str, GgufTensor],
    factors: Callable[[str], list[float]],
) -> Config:
    """The configuration, as config.json has it.

    Args:
        name: Of the model, for messages.
        architecture: Of the file.
        metadata: Of the file.
        tensors: Of the file.
        factors: Reads a small tensor of float32.

    Raises:
        ConfigError: A value is missing, or of another kind.
        UnsupportedError: Layers differ in their sizes, or RoPE is scaled in a way that is not known.
    """
    prefix = f"{metadata['general.architecture']}."
    values = {key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)}

    def whole(key: str, default: Any = None, most: int = 1 << 24) -> int:
        value = number(key, default)
        if type(value) is not int or value > most:
            raise ConfigError(f"{name}: {prefix}{key} is {value}; it is a whole number up to {most}.")
        return value

    def number(key: str, default: Any = None) -> Any:
        value = values.get(key, default)
        if isinstance(value, list) and value and all(item == value[0] for item in value):
            value = value[0]
        if isinstance(value, list):
            raise UnsupportedError(f"{name}: {prefix}{key} differs from layer to layer, which is not supported.")
        if type(value) not in (int, float) or not value > 0:
            raise ConfigError(f"{name}: its metadata have no {prefix}{key} above 0; convert the model again.")
        return value

    embedding = tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise ConfigError(f"{name} has no tensor 'token_embd.weight'; convert the model again.")
    heads, width = whole("attention.head_count"), whole("embedding_length")
    head_dim = whole("attention.key_length", width // heads)
    config: Config = {
        "model_type": architecture.model_type,
        "vocab_size": embedding.shape[0],
        "hidden_size": width,
        "intermediate_size": whole("feed_forward_length"),
        "num_hidden_layers": whole("block_count", most=9999),
        "num_attention_heads": heads,
        "num_key_value_heads": whole("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": whole("context_length"),
        "rms_norm_eps": _rounded(number("attention.layer_norm_rms_epsilon")),
        "rope_theta": number("rope.freq_base", 10_000.0),
        "tie_word_embeddings": "output.weight" not in tensors,
        "hidden_act": "silu",
    }
    if values.get("attention.value_length", head_dim) != head_dim:
        raise UnsupportedError(f"{name}: keys and values of different sizes are not supported.")
    rotated = whole("rope.dimension_count", head_dim)
    if rotated != head_dim:
        config["partial_rotary_factor"] = rotated / head_dim
    for key, part in (("attention_bias", "attn_output"), ("mlp_bias", "ffn_up")):
        if f"blk.0.{part}.bias" in tensors:
            config[key] = True
    config |= {"rope_scaling": scaling} if (scaling := _scaling(name, values, tensors, factors, config)) else {}
    config |= architecture.further(config, values)
    if architecture.norm_plus_one:
        del config["hidden_act"]
    for key, ours in (("bos", "bos"), ("eos", "eos"), ("padding", "pad")):
        if type(token := metadata.get(f"tokenizer.ggml.{key}_token_id")) is int:
            config[f"{ours}_token_id"] = token
    return config


def _scaling(
    name: str,
    values: Mapping[str, Any],
    tensors: Mapping[str, GgufTensor],
    factors: Callable[[str], list[float]],
    config: Config,
) -> Config | None:
    kind = values.get("rope.scaling.type", "none")
    factor, before = values.get("rope.scaling.factor"), values.get("rope.scaling.original_context_length")
    if "rope_freqs.weight" in tensors:
        return {"rope_type": "factors", "factors": factors("rope_freqs.weight")}
    if {"rope_factors_long.weight", "rope_factors_short.weight"} <= tensors.keys():
        return {
            "rope_type": "longrope",
            "short_factor": factors("rope_factors_short.weight"),
            "long_factor": factors("rope_factors_long.weight"),
            "original_max_position_embeddings": before or config["max_position_embeddings"],
        }
    if kind == "none" or factor in (None, 0, 1.0) and kind == "linear":
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind == "yarn" and type(factor) is float and type(before) is int:
        betas = {
            f"beta_{end}": values[f"rope.scaling.yarn_beta_{end}"]
            for end in ("fast", "slow")
            if f"rope.scaling.yarn_beta_{end}" in values
        }
        return {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": before, **betas}
    raise UnsupportedError(
        f"{name}: RoPE scaled by '{shown(str(kind))[:40]}' is not supported as it stands there; there are none, "
        "linear, yarn and longrope with their factors."
    )


def _rounded(value: float) -> float:
    """What somebody wrote in decimals and a file holds in 32 bits: 1e-5 instead of 9.99999975e-06."""
    return float(f"{value:.6g}")


def _narrows(window: object, config: Config) -> bool:
    return type(window) is int and 0 < window < config["max_position_embeddings"]
