"""Attention, once for every host: two matrix products and a softmax, with what methods tap from it.

Written out instead of called fused, so that it exports with a bias and a dynamic batch, and so that a row of it can be
read.
"""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from trt_compress.models.compressors.sites import TapKind
from trt_compress.plugins.operator import cast

ATTENTION_TAPS: frozenset[TapKind] = frozenset({"keys", "class_attention"})
"""What `attention` can give; a host that computes its layers with it offers these behind every layer."""


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float | None = None,
    size: Tensor | None = None,
    bias: Tensor | None = None,
    dropout: float = 0.0,
    wanted: Collection[TapKind] = (),
) -> tuple[Tensor, Mapping[TapKind, Tensor]]:
    """Attend from queries to keys.

    Args:
        query: […, M, D], [B, H, M, D] where something is tapped.
        key: […, N, D].
        value: […, N, E].
        scale: What queries are multiplied by; None: D ** -0.5.
        size: Tokens that each key stands for, [B, N, 1]; the logarithm is added to its logits. None: one each.
        bias: Added to the logits, broadcast to […, M, N].
        dropout: Of the weights; in training only.
        wanted: Taps to compute: `keys`, averaged over the heads, [B, N, D]; `class_attention`, the weights of query 0
            averaged over the heads, [B, N].

    Returns:
        What the queries receive, […, M, E], and the taps.
    """
    logits = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.transpose(-2, -1)
    if size is not None:
        logits = logits + cast(size.log(), logits.dtype).reshape(size.shape[0], 1, 1, size.shape[1])
    weights = (logits if bias is None else logits + bias).softmax(dim=-1)
    taps: dict[TapKind, Tensor] = {}
    if "keys" in wanted:
        taps["keys"] = key.mean(dim=1)
    if "class_attention" in wanted:
        taps["class_attention"] = weights[:, :, 0].mean(dim=1)
    return (torch.dropout(weights, dropout, train=True) if dropout else weights) @ value, taps


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, N, C] to [B, H, N, D]."""
    return x.reshape(x.shape[0], x.shape[1], heads, x.shape[2] // heads).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """[B, H, N, D] to [B, N, C]."""
    return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], x.shape[1] * x.shape[3])
