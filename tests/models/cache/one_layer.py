"""The attention layers of golden archives as decoders, whose logits are what a token was and what attention gave it."""

from typing import Any

import torch
from torch import Tensor, nn

from trt_compress.models.hosts.decoder import Decoder
from trt_compress.models.hosts.decoder_families import read_config


class NoFeed(nn.Module):
    """Adds nothing to the tokens."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


def layer_decoder(arrays: dict[str, Tensor], said: dict[str, Any]) -> Decoder:
    """One layer with the weights `wq`, `wk`, `wv`, `wo` of an archive and nothing around it.

    The token n of item b is n + N * b, and the embedding of it is `hidden[b, n]`: logits [C] of a token are its hidden
    state and what the layer's attention gave to it.
    """
    hidden = arrays["hidden"].float()
    width = hidden.shape[2]
    heads, head_dim = said["heads"], said["head_dim"]
    config = {
        "model_type": "llama",
        "vocab_size": width,
        "hidden_size": width,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": heads,
        "num_key_value_heads": said.get("kv_heads", heads),
        "head_dim": head_dim,
        "rope_theta": said["rope_theta"],
        "max_position_embeddings": 512,
    }
    decoder = Decoder(read_config(config, name="layer"))
    parts: Any = decoder
    layer: Any = decoder.layers[0]
    decoder.embed = nn.Embedding.from_pretrained(hidden.flatten(0, 1))
    layer.attention.qkv.weight = nn.Parameter(torch.cat([arrays[name].float() for name in ("wq", "wk", "wv")]))
    layer.attention.out.weight = nn.Parameter(arrays["wo"].float())
    layer.attention_norm = layer.post_attention_layernorm = parts.norm = nn.Identity()
    layer.feed, parts.head = NoFeed(), nn.Identity()
    return decoder.eval()


def tokens_of(arrays: dict[str, Tensor]) -> list[list[int]]:
    """The tokens of each item, prompt and steps."""
    batch, count = arrays["hidden"].shape[:2]
    return [list(range(count * item, count * (item + 1))) for item in range(batch)]
