"""Attention scores as the papers' own code computes them, and the parts of a Llama layer that lead to them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu

from tests.golden.golden_data import call
from trt_compress.plugins.attention_score.spec import HEADS, NORMALIZE, POOL, ROWS, SOFTMAX

NONE = torch.zeros(1, 1, 1, 1)
NO_LENGTH = torch.zeros(1, dtype=torch.int64)


def score(
    form: str,
    q: Tensor,
    k: Tensor,
    position: Tensor,
    *,
    causal: bool = True,
    softmax: str = "all",
    span: tuple[int, int] = (0, 0),
    rows: str = "sum",
    heads: str = "none",
    normalize: str = "none",
    pool: str = "avg",
    head_kernel: int = 1,
    kernel: int = 1,
) -> Tensor:
    """AttentionScore in one of its forms, [B, H or G or 1, keys of the span]."""
    attributes = {
        "scale": 1 / math.sqrt(q.shape[3]),
        "causal": int(causal),
        "softmax": SOFTMAX.index(softmax),
        "start": span[0],
        "stop": span[1],
        "rows": ROWS.index(rows),
        "heads": HEADS.index(heads),
        "normalize": NORMALIZE.index(normalize),
        "pool": POOL.index(pool),
        "head_kernel": [head_kernel],
        "kernel": [kernel],
        "counted": 0,
    }
    return call(form, "TrtcAttentionScore", attributes, q, k, position, NONE, NO_LENGTH)[0]


def best(form: str, scores: Tensor, count: int) -> Tensor:
    """Positions of the `count` largest of each row, best first, by TokenSelect."""
    attributes = {"num_kept": count, "forced": [-1], "order": 1, "remainder": 0}
    rows = scores.flatten(0, -2)
    index = call(form, "TrtcTokenSelect", attributes, rows[..., None], rows)[1]
    return index.unflatten(0, scores.shape[:-1])


class Llama:
    """Layers of a Llama model from their weights; each keeps to `[B, N, C]` in and out, all positions from 0."""

    def __init__(self, weights: Mapping[str, Tensor], options: Mapping[str, Any], prefix: str = "w.layers.") -> None:
        self.weights = {name.removeprefix(prefix): tensor.float() for name, tensor in weights.items()}
        self.heads, self.groups = options["num_attention_heads"], options["num_key_value_heads"]
        self.eps, self.theta = options["rms_norm_eps"], options["rope_theta"]

    def normed(self, x: Tensor, name: str) -> Tensor:
        return x * (x.square().mean(dim=-1, keepdim=True) + self.eps).rsqrt() * self.weights[f"{name}.weight"]

    def projected(self, x: Tensor, name: str, heads: int) -> Tensor:
        return (x @ self.weights[f"{name}.weight"].T).unflatten(-1, (heads, -1)).transpose(1, 2)

    def q_and_k(self, hidden: Tensor, layer: str, *, rope: bool = True) -> tuple[Tensor, Tensor]:
        x = self.normed(hidden, f"{layer}input_layernorm")
        q = self.projected(x, f"{layer}self_attn.q_proj", self.heads)
        k = self.projected(x, f"{layer}self_attn.k_proj", self.groups)
        return (rotated(q, self.theta), rotated(k, self.theta)) if rope else (q, k)

    def layer(self, hidden: Tensor, layer: str, hidden_keys: Tensor | None = None) -> Tensor:
        """One layer; `hidden_keys` [B, H, N, N] says which keys a row does not see beside those after it."""
        q, k = self.q_and_k(hidden, layer)
        x = self.normed(hidden, f"{layer}input_layernorm")
        v = self.projected(x, f"{layer}self_attn.v_proj", self.groups)
        k, v = (part.repeat_interleave(self.heads // self.groups, dim=1) for part in (k, v))
        unseen = torch.ones(q.shape[2], q.shape[2]).triu(1).bool()
        if hidden_keys is not None:
            unseen = unseen | hidden_keys
        weights = (q @ k.transpose(2, 3) / math.sqrt(q.shape[3])).masked_fill(unseen, -torch.inf).softmax(dim=-1)
        hidden = hidden + (weights @ v).transpose(1, 2).flatten(2) @ self.weights[f"{layer}self_attn.o_proj.weight"].T
        x = self.normed(hidden, f"{layer}post_attention_layernorm")
        gate, up, down = (self.weights[f"{layer}mlp.{name}_proj.weight"].T for name in ("gate", "up", "down"))
        return hidden + (silu(x @ gate) * (x @ up)) @ down


def rotated(x: Tensor, theta: float) -> Tensor:
    """Rotary positions 0..N-1 on [B, H, N, D]; the first half of D is turned with the second."""
    half = x.shape[3] // 2
    angle = torch.arange(x.shape[2])[:, None] * theta ** (-torch.arange(half) / half)
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()], dim=-1)


def last_rows(count: int, total: int) -> Tensor:
    return torch.arange(total - count, total)


def as_sets(index: Tensor) -> list[Sequence[int]]:
    return index.sort(dim=-1).values.flatten(0, -2).tolist()
