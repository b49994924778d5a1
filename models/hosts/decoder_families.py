"""The families of decoders, and how each one's config.json is read: without torch, with every misfit named.

One table says what a family is by its kind (biases, norms, caps) and which keys its config.json has, with the values
that transformers takes for those that are left out. A key that is not known there and says something is refused: it
would change what the model computes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from trt_compress.errors import ConfigError, UnsupportedError
from trt_compress.models.hosts.decoder_config import DecoderConfig, LayerConfig
from trt_compress.models.layers.rope_form import RopeForm, read_rope
from trt_compress.suggest import did_you_mean

_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
}
_FULL, _SLIDING = "full_attention", "sliding_attention"

Values = Mapping[str, Any]
Windows = Callable[["_Reader"], Sequence[int | None]]
"""What each layer sees, of a config.json."""

_EVERY = MappingProxyType(
    {
        "vocab_size": None,
        "hidden_size": None,
        "intermediate_size": None,
        "num_hidden_layers": None,
        "num_attention_heads": None,
        "num_key_value_heads": None,
        "head_dim": None,
        "max_position_embeddings": None,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "hidden_act": "silu",
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "rope_parameters": None,
        "partial_rotary_factor": 1.0,
        "original_max_position_embeddings": None,
    }
)
"""Keys of all families, and what stands for one that is left out; None: it has to be there, or is made of others."""

_WITHOUT_EFFECT = frozenset(
    """
    add_cross_attention architectures attention_dropout attn_implementation attn_pdrop auto_map bad_words_ids
    begin_suppress_tokens
    bos_token_id cache_implementation chunk_size_feed_forward cross_attention_hidden_size decoder_start_token_id
    diversity_penalty do_sample dtype early_stopping embd_pdrop encoder_no_repeat_ngram_size eos_token_id
    exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id id2label initializer_range
    is_decoder is_encoder_decoder is_llama_config keys_to_ignore_at_inference label2id length_penalty max_length
    max_sequence_length
    min_length model_type name_or_path no_repeat_ngram_size num_beam_groups num_beams num_return_sequences
    output_attentions output_hidden_states output_scores pad_token_id prefix pretraining_tp problem_type
    quantization_config remove_invalid_values repetition_penalty resid_pdrop return_dict return_dict_in_generate
    sep_token_id suppress_tokens task_specific_params temperature tf_legacy_loss tie_encoder_decoder tokenizer_class
    top_k top_p torch_dtype torchscript transformers_version transformers.js_config typical_p unk_token_id
    use_bfloat16 use_cache
    """.split()
)
"""Keys that say nothing of what the graph computes: training, sampling, other programs' own."""

_NEUTRAL: Values = MappingProxyType({"full_attn_mod": 1, "interpolate_factor": 1})
"""Keys of forms of a family that were never published, and the value with which they change nothing (Phi-4-mini)."""

_OF_WINDOWS = frozenset({"sliding_window", "max_window_layers"})
"""Keys that other families' configs hold, too, where `use_sliding_window` says that there are no windows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What a family has beside the keys of all, and what it is by its kind; `DecoderConfig` explains the attributes.

    Attributes:
        title: As people call it.
        keys: Keys of its own with their defaults, and other defaults for those of all.
        windows: What its layers see.
        bias: Whether queries, keys and values have one, and the output; None: as `attention_bias` says.
    """

    title: str
    keys: Values = field(default_factory=dict)
    windows: Windows = lambda reader: reader.everything()
    bias: tuple[bool, bool] | None = (False, False)
    fused: bool = False
    qk_norm: bool = False
    gemma: bool = False


def read_config(config: Mapping[str, Any], *, name: str) -> DecoderConfig:
    """What a config.json says of a decoder.

    Args:
        config: The content of the file.
        name: The model, for messages.

    Raises:
        UnsupportedError: Another family, or a key that would change what is computed and is not known here.
        ConfigError: A value is missing or makes no sense.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise UnsupportedError(f"{name}: {refusal(str(model_type))}")
    family = FAMILIES[model_type]
    reader = _Reader(config, family, model_type, name)
    reader.refuse_unknown()
    width, heads = reader.whole("hidden_size"), reader.whole("num_attention_heads")
    kv_heads = reader.whole("num_key_value_heads", heads)
    head_dim = reader.whole("head_dim", width // heads)
    if heads % kv_heads:
        raise ConfigError(f"{name}: num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}.")
    qkv_bias, out_bias = family.bias or (reader.flag("attention_bias"),) * 2
    windows = family.windows(reader)
    ropes = _ropes(reader, family, head_dim)
    turns = reader.turns(len(windows))
    activation = "hidden_activation" if family.gemma else "hidden_act"
    scalar = reader.number("query_pre_attn_scalar") if family.gemma else float(head_dim)
    return DecoderConfig(
        family=model_type,
        vocabulary=reader.whole("vocab_size"),
        width=width,
        inner=reader.whole("intermediate_size"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        limit=max(rope.limit for rope in ropes.values()),
        layers=tuple(
            LayerConfig(
                window=window,
                period=None if window else reader.period(),
                rope=ropes[_SLIDING if window else _FULL] if turn else None,
            )
            for window, turn in zip(windows, turns, strict=True)
        ),
        eps=reader.number("rms_norm_eps"),
        activation=_ACTIVATIONS[reader.word(activation, _ACTIVATIONS)],
        tied=reader.flag("tie_word_embeddings"),
        fused=family.fused,
        qkv_bias=qkv_bias,
        out_bias=out_bias,
        feed_bias=reader.flag("mlp_bias"),
        qk_norm=family.qk_norm,
        post_norms=family.gemma,
        around_one=family.gemma,
        attention_scale=scalar**-0.5,
        attention_cap=reader.cap("attn_logit_softcapping"),
        logits_cap=reader.cap("final_logit_softcapping"),
        embedding_scale=math.sqrt(width) if family.gemma else 1.0,
    )


def refusal(model_type: str) -> str:
    """Why a model of another type is refused, in a sentence."""
    why = next((why for why, types in _REFUSED.items() if model_type in types), None)
    known = ", ".join(FAMILIES)
    reason = f"is {why}, which is not supported" if why else "is not supported"
    return f"model_type '{model_type[:60]}' {reason}; language models are {known}.{did_you_mean(model_type, FAMILIES)}"


class _Reader:
    """The values of one config.json, each checked when it is read."""

    def __init__(self, config: Values, family: Family, model_type: str, name: str) -> None:
        self._config, self._model_type, self.name = config, model_type, name
        self._defaults = {**_EVERY, **family.keys}

    def refuse_unknown(self) -> None:
        """Refuse what is not known and says something, and models with another head."""
        for key, value in self._config.items():
            known = key in self._defaults or key in _WITHOUT_EFFECT or key.startswith(("_", "unsloth"))
            windowless = key in _OF_WINDOWS and self._config.get("use_sliding_window") is False
            if not known and not windowless and value not in (None, False, [], {}, _NEUTRAL.get(key)):
                raise UnsupportedError(
                    f"{self.name}: config.json has {key} = {str(value)[:60]}, which is not known of the family "
                    f"{self._model_type} and may change what it computes; it cannot be exported."
                )
        heads = self._config.get("architectures")
        if isinstance(heads, list) and heads and not any(str(head).endswith("ForCausalLM") for head in heads):
            raise UnsupportedError(
                f"{self.name}: architectures {str(heads[0])[:60]} is not supported; of {self._model_type} the models "
                "with a head for the next token are, …ForCausalLM."
            )

    def value(self, key: str) -> Any:
        """What is said, or the family's own; null counts as not said."""
        found = self._config.get(key)
        return self._defaults.get(key) if found is None else found

    def whole(self, key: str, default: int | None = None, *, least: int = 1) -> int:
        """A whole number from `least` on."""
        value = self.value(key)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**31:
            raise self._misfit(key, value, f"a whole number from {least} on")
        return value

    def number(self, key: str) -> float:
        """A number above 0."""
        value = self.value(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise self._misfit(key, value, "a number above 0")
        return float(value)

    def cap(self, key: str) -> float:
        """A number above 0, or 0 for none."""
        return 0.0 if self.value(key) is None else self.number(key)

    def flag(self, key: str) -> bool:
        """True or false; false where the family has no such key."""
        value = self.value(key) if key in self._defaults else False
        if not isinstance(value, bool):
            raise self._misfit(key, value, "true or false")
        return value

    def word(self, key: str, known: Mapping[str, str]) -> str:
        """One of these words."""
        value = self.value(key)
        if not isinstance(value, str) or value not in known:
            raise self._misfit(key, value, f"one of {', '.join(known)}")
        return value

    def table(self, key: str) -> Values | None:
        """An object, or None."""
        value = self.value(key)
        if value is not None and not isinstance(value, dict):
            raise self._misfit(key, value, "an object")
        return value or None

    def everything(self) -> list[int | None]:
        """Layers that see all before them."""
        return [None] * self.whole("num_hidden_layers")

    def windows(self, slides: Callable[[int], bool]) -> list[int | None]:
        """What layers see of which `layer_types`, or else the rule, says whether they slide."""
        count, types = self.whole("num_hidden_layers"), self.value("layer_types")
        if types is None:
            types = [_SLIDING if slides(layer) else _FULL for layer in range(count)]
        if not isinstance(types, list) or len(types) != count or not set(map(str, types)) <= {_FULL, _SLIDING}:
            raise self._misfit("layer_types", types, f"{count} times {_FULL} or {_SLIDING}")
        window = self.whole("sliding_window") if _SLIDING in types else None
        return [window if kind == _SLIDING else None for kind in types]

    def period(self) -> int | None:
        """Every so many-th token that layers keep which do not slide; None: these keep all."""
        return self.whole("selection_window_size") if "selection_window_size" in self._defaults else None

    def turns(self, count: int) -> list[bool]:
        """Which layers turn queries and keys by their positions."""
        given = self.value("no_rope_layers")
        if "no_rope_layers" not in self._defaults:
            return [True] * count
        if given is None:
            every = self.whole("no_rope_layer_interval")
            return [(layer + 1) % every != 0 for layer in range(count)]
        if not isinstance(given, list) or len(given) != count or not set(map(str, given)) <= {"0", "1"}:
            raise self._misfit("no_rope_layers", given, f"{count} times 0 or 1")
        return [bool(turn) for turn in given]

    def rope(self, scaling: Values | None, theta: str, head_dim: int) -> RopeForm:
        """One form of rotary positions; `theta` is the key of its base."""
        original = self.value("original_max_position_embeddings")
        if scaling is not None and self._model_type == "phi3" and "short_factor" in scaling:
            scaling = {**scaling, "rope_type": "longrope", "type": None}  # older ones call it su, or yarn
        return read_rope(
            scaling,
            theta=self.number(theta),
            partial=self.number("partial_rotary_factor"),
            head_dim=head_dim,
            positions=self.whole("max_position_embeddings"),
            original=None if original is None else self.whole("original_max_position_embeddings"),
            where=f"{self.name}: config.json",
        )

    def _misfit(self, key: str, value: Any, needed: str) -> ConfigError:
        said = f"{key} is missing" if value is None else f"{key} = {str(value)[:60]}"
        return ConfigError(f"{self.name}: config.json: {said}; it must be {needed}.")


def _ropes(reader: _Reader, family: Family, head_dim: int) -> dict[str, RopeForm]:
    """How layers that see all turn queries and keys, and how those that slide do."""
    new, old = reader.table("rope_parameters"), reader.table("rope_scaling")
    if new is not None and (_FULL in new or _SLIDING in new):
        full, sliding = new.get(_FULL) or {}, new.get(_SLIDING) or {}
    else:
        full = new or old
        sliding = full
        if "rope_local_base_freq" in family.keys:
            sliding = None
    local = "rope_local_base_freq" if "rope_local_base_freq" in family.keys else "rope_theta"
    return {_FULL: reader.rope(full, "rope_theta", head_dim), _SLIDING: reader.rope(sliding, local, head_dim)}


def _all_slide(reader: _Reader) -> Sequence[int | None]:
    window = None if reader.value("sliding_window") is None else reader.whole("sliding_window")
    return [window] * reader.whole("num_hidden_layers")


def _upper_slide(reader: _Reader) -> Sequence[int | None]:
    if not reader.flag("use_sliding_window"):
        return reader.everything()
    first = reader.whole("max_window_layers", least=0)
    return reader.windows(lambda layer: layer >= first)


def _unturned_slide(reader: _Reader) -> Sequence[int | None]:
    if not reader.flag("use_sliding_window") or reader.value("sliding_window") is None:
        return reader.everything()
    turns = reader.turns(reader.whole("num_hidden_layers"))
    return reader.windows(lambda layer: not turns[layer])


def _even_slide(reader: _Reader) -> Sequence[int | None]:
    return reader.windows(lambda layer: layer % 2 == 0)


def _gemma_slides(reader: _Reader) -> Sequence[int | None]:
    every = reader.whole("sliding_window_pattern")
    return reader.windows(lambda layer: (layer + 1) % every != 0)


_GEMMA: Values = MappingProxyType(
    {
        "hidden_activation": "gelu_pytorch_tanh",
        "tie_word_embeddings": True,
        "attention_bias": False,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "layer_types": None,
        "final_logit_softcapping": None,
    }
)
_QWEN: Values = MappingProxyType(
    {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28, "layer_types": None}
)

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "llama": Family(title="Llama 2 and 3, SmolLM2", keys={"attention_bias": False, "mlp_bias": False}, bias=None),
        "mistral": Family(
            title="Mistral",
            keys={"num_key_value_heads": 8, "sliding_window": None},
            windows=_all_slide,
        ),
        "qwen2": Family(title="Qwen2 and 2.5", keys=_QWEN, windows=_upper_slide, bias=(True, False)),
        "qwen3": Family(
            title="Qwen3",
            keys={**_QWEN, "head_dim": 128, "attention_bias": False},
            windows=_upper_slide,
            bias=None,
            qk_norm=True,
        ),
        "phi3": Family(
            title="Phi-3, Phi-4-mini",
            keys={"rms_norm_eps": 1e-5, "sliding_window": None},
            windows=_all_slide,
            fused=True,
        ),
        "gemma2": Family(
            title="Gemma 2",
            keys={
                **_GEMMA,
                "head_dim": 256,
                "num_key_value_heads": 4,
                "attn_logit_softcapping": 50.0,
                "final_logit_softcapping": 30.0,
                "sliding_window_pattern": 2,
            },
            windows=_gemma_slides,
            bias=None,
            gemma=True,
        ),
        "gemma3_text": Family(
            title="Gemma 3, text",
            keys={
                **_GEMMA,
                "head_dim": 256,
                "num_key_value_heads": 4,
                "rope_theta": 1e6,
                "rope_local_base_freq": 1e4,
                "sliding_window_pattern": 6,
            },
            windows=_gemma_slides,
            bias=None,
            qk_norm=True,
            gemma=True,
        ),
        "smollm3": Family(
            title="SmolLM3",
            keys={
                "attention_bias": False,
                "mlp_bias": False,
                "tie_word_embeddings": True,
                "num_key_value_heads": 4,
                "rope_theta": 2e6,
                "no_rope_layers": None,
                "no_rope_layer_interval": 4,
                "use_sliding_window": False,
                "sliding_window": None,
                "layer_types": None,
            },
            windows=_unturned_slide,
            bias=None,
        ),
        "scout": Family(
            title="SCOUT with sliding windows",
            keys={"sliding_window": 1024, "selection_window_size": 10, "layer_types": None},
            windows=_even_slide,
        ),
    }
)
"""The families by `model_type` of config.json."""

_REFUSED: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "a mixture of experts": frozenset(
            "mixtral qwen2_moe qwen3_moe qwen3_next phimoe olmoe dbrx granitemoe llama4 llama4_text gpt_oss jetmoe "
            "glm4_moe ernie4_5_moe minimax hunyuan_v1_moe dots1 bailing_moe grok-1 arctic flex_olmo lfm2_moe".split()
        ),
        "a model with latent attention (MLA)": frozenset(
            "deepseek_v2 deepseek_v3 kimi_k2 minicpm3 longcat_flash glm4_moe_lite".split()
        ),
        "a state-space model or a hybrid with one (Mamba)": frozenset(
            "mamba mamba2 falcon_mamba jamba zamba zamba2 bamba nemotron_h falcon_h1 granitemoehybrid lfm2 plamo2 "
            "recurrent_gemma rwkv xlstm".split()
        ),
        "a model with ALiBi": frozenset("bloom mpt baichuan falcon".split()),
        "a model with absolute positions": frozenset(
            "gpt2 gpt_neo gpt_bigcode opt biogpt xglm openai-gpt ctrl transfo-xl".split()
        ),
    }
)
"""What no host drives, and why, by `model_type`."""
