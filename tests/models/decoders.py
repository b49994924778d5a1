"""Tiny decoders of every family, as transformers makes and saves them, and what transformers says of tokens.

Queries and keys are scaled up, so that attention decides something and no choice of a token is a near tie.
"""

import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

VOCABULARY, LIMIT = 128, 512
_SIZES: Mapping[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": LIMIT,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GEMMA: Mapping[str, Any] = {"head_dim": 32, "sliding_window": 24, "query_pre_attn_scalar": 48}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
FAMILIES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "llama": ("LlamaConfig", {"rope_parameters": LLAMA3, "attention_bias": True, "mlp_bias": True}),
    "mistral": ("MistralConfig", {"sliding_window": 24, "head_dim": 32}),
    "qwen2": (
        "Qwen2Config",
        {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1, "tie_word_embeddings": True},
    ),
    "qwen3": ("Qwen3Config", {"head_dim": 32}),
    "phi3": ("Phi3Config", {"partial_rotary_factor": 0.5}),
    "gemma2": ("Gemma2Config", _GEMMA),
    "gemma3_text": ("Gemma3TextConfig", {**_GEMMA, "num_hidden_layers": 3, "sliding_window_pattern": 3}),
    "smollm3": ("SmolLM3Config", {"num_hidden_layers": 4}),
}
"""By model_type, the class of the configuration and what it says beside the sizes."""


def config_of(family: str, **changes: Any) -> Any:
    """The configuration of a tiny decoder, an object of transformers."""
    import transformers

    kind, own = FAMILIES[family]
    return getattr(transformers, kind)(**{**_SIZES, **own, **changes})


@cache
def reference(family: str) -> Any:
    """The tiny decoder of transformers, float32, with seeded weights."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(config_of(family), attn_implementation="eager").float().eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name:
                parameter.add_(0.1 * noise)
            else:
                attends = any(part in name for part in ("q_proj", "k_proj", "qkv_proj"))
                parameter.copy_((0.25 if attends else 0.12) * noise)
    return model


def saved(family: str, folder: Path) -> Path:
    """A directory with the tiny decoder, as save_pretrained writes it."""
    reference(family).save_pretrained(folder, safe_serialization=True)
    return folder


def config_json(family: str, **changes: Any) -> dict[str, Any]:
    """The content of its config.json."""
    found: dict[str, Any] = json.loads(config_of(family, **changes).to_json_string())
    return found


@torch.no_grad()
def expected(family: str, tokens: Tensor) -> Tensor:
    """What transformers says of tokens [B, N]: logits [B, N, V]."""
    logits: Tensor = reference(family)(tokens).logits
    return logits


def text(count: int, *, seed: int = 1) -> Tensor:
    """Tokens [count]."""
    return torch.randint(3, VOCABULARY, (count,), generator=torch.Generator().manual_seed(seed))


def greedy(first: Tensor, count: int, step: Callable[[int], Tensor]) -> list[int]:
    """So many tokens, each the most probable: of the logits `first` [V], then of what `step` says behind it."""
    found = [int(first.argmax())]
    while len(found) < count:
        found.append(int(step(found[-1]).argmax()))
    return found
