"""Attention, once for every host: two matrix products and a softmax, with what methods tap from it.

Written out instead of called fused, so that it exports with a bias and a dynamic batch, and so that a row of it can be
read.
"""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from trt_compress.models.compressors.sites import Asked, Tap, TapKind, as_tap
from trt_compress.plugins.attention_score.op import attention_score
from trt_compress.plugins.operator import cast

ATTENTION_TAPS: frozenset[TapKind] = frozenset(
    {"keys", "queries", "values", "class_attention", "probe_scores", "hidden"}
)
"""What `attention`, and `GraphPlan.layer` around it, can give: a host that computes its layers so offers these."""
HIDDEN = -1e4
"""Added to the logits of what is not there; its exponential is zero in fp16 and in fp32."""


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float | None = None,
    size: Tensor | None = None,
    bias: Tensor | None = None,
    valid: Tensor | None = None,
    dropout: float = 0.0,
    wanted: Collection[Asked] = (),
    unrotated: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Mapping[Asked, Tensor]]:
    """Attend from queries to keys.

    Args:
        query: […, M, D], [B, H, M, D] where something is tapped.
        key: […, N, D].
        value: […, N, E].
        scale: What queries are multiplied by; None: D ** -0.5.
        size: Tokens that each key stands for, [B, N, 1]; the logarithm is added to its logits. None: one each.
        bias: Added to the logits, broadcast to […, M, N].
        valid: Keys that are tokens and no padding, [B, N] bool; the others are not attended to. None: all are.
        dropout: Of the weights; in training only.
        wanted: Taps to compute (`TapKind` says what each is); class_attention is the weights of query 0.
        unrotated: Queries and keys before rotary positions, for taps that ask for these; None: they have none.

    Returns:
        What the queries receive, […, M, E], and the taps.
    """
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    logits = (query * factor) @ key.transpose(-2, -1)
    if size is not None:
        logits = logits + cast(size.log(), logits.dtype).reshape(size.shape[0], 1, 1, size.shape[1])
    if valid is not None:
        hidden = cast(torch.where(valid, 0.0, HIDDEN), logits.dtype)[:, None, None]
        bias = hidden if bias is None else bias + hidden
    weights = (logits if bias is None else logits + bias).softmax(dim=-1)
    probes: list[Asked] = [asked for asked in wanted if as_tap(asked).kind == "probe_scores"]
    others: list[Asked] = [asked for asked in wanted if asked not in probes and asked != "class_attention"]
    taps = attention_taps(others, query, key, value, unrotated=unrotated)
    if "class_attention" in wanted:
        taps["class_attention"] = weights[:, :, 0].mean(dim=1)
    if probes:
        taps |= attention_taps(probes, query, key, value, scale=factor, size=size, bias=bias)
    return (torch.dropout(weights, dropout, train=True) if dropout else weights) @ value, taps


def attention_taps(
    wanted: Collection[Asked],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float | None = None,
    size: Tensor | None = None,
    bias: Tensor | None = None,
    causal: bool = False,
    unrotated: tuple[Tensor, Tensor] | None = None,
) -> dict[Asked, Tensor]:
    """What is asked of a layer, from its queries, keys and values alone: no matrix of all rows and keys is made.

    Args:
        wanted: Taps to compute, all but class_attention.
        query: [B, H, M, D]; the last M of the N tokens.
        key: [B, G, N, D]; G divides H.
        value: [B, G, N, E].
        scale, size, bias: As `attention` takes them.
        causal: A row sees the keys up to its own.
        unrotated: As `attention` takes it.
    """
    return {asked: _tapped(as_tap(asked), query, key, value, scale, size, bias, causal, unrotated) for asked in wanted}


def _tapped(
    tap: Tap,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float | None,
    size: Tensor | None,
    bias: Tensor | None,
    causal: bool,
    unrotated: tuple[Tensor, Tensor] | None,
) -> Tensor:
    if tap.probe is None:
        first, second = (query, key) if tap.rotated or unrotated is None else unrotated
        heads = {"queries": first, "keys": second, "values": value}[tap.kind]
        return heads if tap.heads == "each" else heads.mean(dim=1)
    probe = tap.probe
    rows = slice(probe.start, probe.stop, probe.step)
    added = None if size is None else cast(size.log(), query.dtype).reshape(size.shape[0], 1, 1, size.shape[1])
    if bias is not None:
        bias = bias[(None,) * (4 - bias.ndim)]
        chosen = bias[:, :, rows] if bias.shape[2] != 1 else bias
        added = chosen if added is None else added + chosen
    count, keys = query.shape[2], key.shape[2]
    return attention_score(
        query[:, :, rows],
        key,
        torch.arange(keys - count, keys, device=query.device)[rows] if causal else None,
        added,
        scale=scale,
        causal=causal,
        softmax=probe.softmax,
        start=probe.first_key,
        stop=probe.stop_key,
        rows=probe.rows,
        heads=probe.heads,
        normalize=probe.normalize,
        pool=probe.pool,
        head_kernel=probe.head_kernel,
        kernel=probe.kernel,
    )


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, N, C] to [B, H, N, D]."""
    return x.reshape(x.shape[0], x.shape[1], heads, x.shape[2] // heads).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """[B, H, N, D] to [B, N, C]."""
    return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], x.shape[1] * x.shape[3])
