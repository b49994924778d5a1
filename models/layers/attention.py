"""Attention, once for every host: two matrix products and a softmax, with what methods tap from it.

Written out instead of called fused, so that it exports with a bias and a dynamic batch, and so that a row of it can be
read.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from trt_compress.models.compressors.sites import Asked, Probe, TapKind, as_tap
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
        count = None if valid is None else valid.sum(dim=1)
        taps |= attention_taps(probes, query, key, value, scale=factor, size=size, bias=bias, count=count)
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
    count: Tensor | None = None,
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
        count: Queries of each item that are tokens, [B]; behind them is filling, and rows that probe are those that the
            item has alone. `bias` then hides keys that are filling. None: all are tokens.
        unrotated: As `attention` takes it.
    """
    found: dict[Asked, Tensor] = {}
    for asked in wanted:
        tap = as_tap(asked)
        if tap.probe is not None:
            found[asked] = _scores(tap.probe, query, key, scale, _added(size, bias, query.dtype), causal, count)
            continue
        first, second = (query, key) if tap.rotated or unrotated is None else unrotated
        heads = {"queries": first, "keys": second, "values": value}[tap.kind]
        found[asked] = heads if tap.heads == "each" else heads.mean(dim=1)
    return found


def last_rows(before: Tensor, rows: Tensor, count: Tensor) -> Tensor:
    """The last rows of sequences that are read piece by piece: what a window of rows that probe is carried on in.

    Args:
        before: The last W rows of what was read until now, [B, H, W, D]; zeros where there were fewer.
        rows: Those of this piece, [B, H, T, D].
        count: How many of them are of tokens, [B], from 0 to T; the rest is filling.

    Returns:
        The last W rows of both together, filling left out, [B, H, W, D].
    """
    width = before.shape[2]
    index = count[:, None] + torch.arange(width, device=count.device)
    return _gathered(torch.cat([before, rows], dim=2), index)


def _added(size: Tensor | None, bias: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """What is added to the logits, of four axes; None: nothing."""
    added = None if size is None else cast(size.log(), dtype).reshape(size.shape[0], 1, 1, size.shape[1])
    if bias is None:
        return added
    bias = bias[(None,) * (4 - bias.ndim)]
    return bias if added is None else bias + added


def _scores(
    probe: Probe,
    query: Tensor,
    key: Tensor,
    scale: float | None,
    added: Tensor | None,
    causal: bool,
    count: Tensor | None,
) -> Tensor:
    """Keys scored by rows of the queries, which are the last of the tokens."""
    if count is not None:
        return _scores_of_counted(probe, query, key, scale, added, causal, count)
    rows = slice(probe.start, probe.stop, probe.step)
    if added is not None and added.shape[2] != 1:
        added = added[:, :, rows]
    position = torch.arange(key.shape[2] - query.shape[2], key.shape[2], device=query.device)[rows] if causal else None
    return _scored(probe, query[:, :, rows], key, position, added, scale, causal)


def _scores_of_counted(
    probe: Probe,
    query: Tensor,
    key: Tensor,
    scale: float | None,
    added: Tensor | None,
    causal: bool,
    count: Tensor,
) -> Tensor:
    """The same, by the rows that each item has of its `count` tokens.

    There are as many rows as the longest item has. One that an item lacks sees nothing.
    """
    keys, before = key.shape[2], key.shape[2] - query.shape[2]
    index, there = _rows_of(probe, query.shape[2], count)
    position = torch.where(there, index + before if causal else keys, -1)
    if added is not None and added.shape[2] != 1:
        added = _gathered(added.expand(query.shape[0], -1, -1, -1), index)
    of_sum = replace(probe, rows="sum") if probe.rows == "mean" else probe
    score = _scored(of_sum, _gathered(query, index), key, position, added, scale, True, length=count + before)
    if probe.rows == "mean":
        score = score / there.sum(dim=1).clamp(min=1).reshape(-1, *[1] * (score.ndim - 1))
    return score


def _scored(
    probe: Probe,
    rows: Tensor,
    key: Tensor,
    position: Tensor | None,
    added: Tensor | None,
    scale: float | None,
    causal: bool,
    *,
    length: Tensor | None = None,
) -> Tensor:
    return attention_score(
        rows,
        key,
        position,
        added,
        length,
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


def _rows_of(probe: Probe, longest: int, count: Tensor) -> tuple[Tensor, Tensor]:
    """The rows that probe, [B, R], and whether an item has them; `Probe.of_any_length` holds."""
    stop = count if probe.stop is None else count + probe.stop if probe.stop < 0 else count.clamp(max=probe.stop)
    start = probe.start or 0
    if probe.rows == "last":
        index = stop[:, None] - 1
    else:
        rows = torch.arange(longest, device=count.device)[probe.start : probe.stop : probe.step]
        index = rows + (count[:, None] - longest if start < 0 else torch.zeros_like(count)[:, None])
    first = (count + start).clamp(min=0) if start < 0 else torch.full_like(count, start)
    there = (index >= first[:, None]) & (index < stop[:, None])
    return index.clamp(min=0), there


def _gathered(x: Tensor, index: Tensor) -> Tensor:
    """Rows of each item, x [B, H, M, D] at index [B, R]."""
    return x.gather(2, index[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))


def split_heads(x: Tensor, heads: int) -> Tensor:
    """[B, N, C] to [B, H, N, D]."""
    return x.reshape(x.shape[0], x.shape[1], heads, x.shape[2] // heads).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """[B, H, N, D] to [B, N, C]."""
    return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], x.shape[1] * x.shape[3])
