"""Rotary positions of every kind are those of transformers, number by number."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from tests.models.decoders import LIMIT, LLAMA3, config_json, config_of
from trt_compress.errors import ConfigError, UnsupportedError
from trt_compress.models.hosts.decoder_families import read_config
from trt_compress.models.layers.rope import Rope, turned
from trt_compress.models.layers.rope_form import RopeForm, read_rope

PAIRS = 8  # of the 16 channels of a head of the tiny models
KINDS: Mapping[str, Mapping[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 1e4},
    "linear": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
    "llama3": LLAMA3,
    "yarn": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": 64},
    "yarn of DeepSeek": {
        **{"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 128},
        **{"mscale": 0.7, "mscale_all_dim": 1.3, "beta_fast": 16.0, "beta_slow": 2.0, "truncate": False},
    },
}


def tables(form: RopeForm, context: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    positions = torch.arange(context - count, context)[None]
    cosine, sine = Rope(form, context).table(positions, torch.float32)
    return cosine[0, 0], sine[0, 0]


def theirs(rotary: Any, context: int, count: int, *more: str) -> tuple[torch.Tensor, torch.Tensor]:
    positions = torch.arange(context - count, context)[None]
    cosine, sine = rotary(torch.zeros(1), positions, *more)
    half = cosine.shape[-1] // 2
    signs = torch.ones(2 * half).index_fill(
        0, torch.arange(half), -1
    )  # ours are in the sines, theirs in what they turn
    return cosine[0], sine[0] * signs


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("context", [LIMIT, 2 * LIMIT])
def test_every_kind_is_that_of_transformers(kind: str, context: int) -> None:
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    changes = {"rope_parameters": dict(KINDS[kind])}
    rope = read_config(config_json("llama", **changes), name="it").layers[0].rope
    assert rope is not None
    found = tables(rope, context, 100)
    wanted = theirs(LlamaRotaryEmbedding(config_of("llama", **changes)), context, 100)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize("context", [64, LIMIT])
def test_longrope_takes_the_factors_of_the_longest_sequence(context: int) -> None:
    from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding

    short, long = [1.0, 1.1, 1.2, 1.5], [1.0, 2.0, 4.0, 9.0]  # of half of the channels
    scaling = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": short, "long_factor": long}
    changes = {"rope_parameters": {**scaling, "partial_rotary_factor": 0.5}, "original_max_position_embeddings": 64}
    rope = read_config(config_json("phi3", **changes), name="it").layers[0].rope
    assert rope is not None and rope.channels == PAIRS
    wanted = theirs(Phi3RotaryEmbedding(config_of("phi3", **changes)), context, 50)
    torch.testing.assert_close(tables(rope, context, 50), wanted, atol=1e-6, rtol=0)


def test_layers_that_slide_may_have_positions_of_their_own() -> None:
    from transformers.models.gemma3.modeling_gemma3 import Gemma3RotaryEmbedding

    changes = {"rope_scaling": {"rope_type": "linear", "factor": 8.0}, "rope_theta": 1e6, "rope_local_base_freq": 1e4}
    layers = read_config({**config_json("gemma3_text"), "rope_parameters": None, **changes}, name="it").layers
    rotary = Gemma3RotaryEmbedding(config_of("gemma3_text", **changes))
    for layer, kind in ((layers[0], "sliding_attention"), (layers[2], "full_attention")):
        assert (layer.window is not None) == (kind == "sliding_attention") and layer.rope is not None
        torch.testing.assert_close(tables(layer.rope, LIMIT, 100), theirs(rotary, LIMIT, 100, kind), atol=1e-6, rtol=0)


def test_older_keys_say_the_same() -> None:
    changes = {"rope_parameters": None, "rope_theta": 5e5}
    old = {**{key: value for key, value in LLAMA3.items() if key not in ("rope_theta", "rope_type")}, "type": "llama3"}
    found = read_config({**config_json("llama"), **changes, "rope_scaling": old}, name="it")
    assert found.layers == read_config(config_json("llama"), name="it").layers


def test_only_the_first_channels_are_turned() -> None:
    rope = Rope(RopeForm(theta=1e4, channels=4, limit=9), 9)
    x = torch.randn(1, 2, 3, 6, generator=torch.Generator().manual_seed(0))
    y = turned(x, rope.table(torch.arange(3)[None], x.dtype))
    assert torch.equal(y[..., 4:], x[..., 4:]) and torch.equal(y[:, :, 0], x[:, :, 0])
    torch.testing.assert_close(y[..., [0, 2]].norm(dim=-1), x[..., [0, 2]].norm(dim=-1))


@pytest.mark.parametrize(
    ("scaling", "error", "said"),
    [
        ({"rope_type": "mrope"}, UnsupportedError, "rope_type 'mrope' is not known"),
        ({"type": "linear", "factor": 2.0, "mrope_section": [1]}, UnsupportedError, "with mrope_section = .1. is not"),
        ({"mrope_section": [1]}, UnsupportedError, "rope_type 'default' with mrope_section"),
        ({"type": "linear"}, ConfigError, "factor is missing"),
        ({"type": "linear", "factor": "two"}, ConfigError, "factor = two is not a number above 0"),
        ({**LLAMA3, "high_freq_factor": 0.5}, ConfigError, "high_freq_factor 0.5 is not above"),
        ({"type": "longrope", "short_factor": [1.0]}, ConfigError, "short_factor has 1 numbers; there is one for each"),
        ({"partial_rotary_factor": 0.2}, ConfigError, "3 of 16 channels"),
    ],
)
def test_what_makes_no_sense_is_refused(scaling: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        read_rope(scaling, theta=1e4, partial=1.0, head_dim=16, positions=64, original=None, where="it")
