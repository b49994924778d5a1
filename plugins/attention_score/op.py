"""AttentionScore: how much chosen query rows attend to each key."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d, max_pool1d

from trt_compress.errors import ConfigError, ShapeError
from trt_compress.plugins.attention_score.spec import HEADS, NORMALIZE, POOL, ROWS, SOFTMAX, SPEC, span_length
from trt_compress.plugins.operator import Operator, check_tensor, register_fake, run_operator
from trt_compress.plugins.spec import Sample
from trt_compress.suggest import not_known

_LOWEST = -1e30  # of a key that a row does not see: its exponential is exactly 0 in float32


def _body(calls: Sequence[Mapping[str, Any]]) -> str:
    """What is scored as if keys ended somewhere, or divided by the rows that see a key, only where a call needs it."""
    is_counted = any(call.get("counted") for call in calls)
    by_probes = any(NORMALIZE[int(call.get("normalize", 0))] == "probes" for call in calls)
    kept = _OWN_KEYS if is_counted else "  {result} = Identity ({scores})"
    return "\n".join(
        [
            *(_LOGITS, _COUNTED if is_counted else _WHOLE, _COUNTED_WEIGHTS if is_counted else _WEIGHTS),
            *(_OVER_ROWS, _BY_PROBES if by_probes else "  divisor = Identity (num_others)", _DIVIDED),
            *(kept.format(result="to_pool", scores="head_scores"), _POOLED_HEADS, _OVER_HEADS),
            *(kept.format(result="last_to_pool", scores="part_scores"), _POOLED),
            "  score = Where (is_own, pooled_parts, zero32)" if is_counted else "  score = Identity (pooled_parts)",
        ]
    )


_LOGITS = f"""
  factor = Constant <value_float: float = @scale> ()
  causal_int = Constant <value_int: int = @causal> ()
  softmax_over = Constant <value_int: int = @softmax> ()
  start_int = Constant <value_int: int = @start> ()
  stop_int = Constant <value_int: int = @stop> ()
  rows_how = Constant <value_int: int = @rows> ()
  heads_how = Constant <value_int: int = @heads> ()
  divide_by = Constant <value_int: int = @normalize> ()
  pool_how = Constant <value_int: int = @pool> ()
  before_all = Constant <value_int = -1> ()
  zero = Constant <value_int = 0> ()
  one = Constant <value_int = 1> ()
  two = Constant <value_int = 2> ()
  three = Constant <value_int = 3> ()
  four = Constant <value_int = 4> ()
  six = Constant <value_int = 6> ()
  end = Constant <value_int = 9223372036854775807> ()
  v0 = Constant <value_ints = [0]> ()
  v1 = Constant <value_ints = [1]> ()
  v2 = Constant <value_ints = [2]> ()
  v3 = Constant <value_ints = [3]> ()
  v_end = Constant <value_ints = [9223372036854775807]> ()
  zero32 = Constant <value_float = 0.0> ()
  one32 = Constant <value_float = 1.0> ()
  lowest = Constant <value_float = {_LOWEST}> ()
  is_causal = Equal (causal_int, one)
  is_plain = Equal (softmax_over, zero)
  over_all = Equal (softmax_over, one)
  last_alone = Equal (rows_how, three)
  rows_mean = Equal (rows_how, zero)
  rows_max = Equal (rows_how, two)
  by_probes = Equal (divide_by, one)
  by_tokens = Equal (divide_by, two)
  pool_max = Equal (pool_how, one)
  each_head = Equal (heads_how, zero)
  each_group = Less (heads_how, four)
  group_mean = Equal (heads_how, one)
  all_mean = Equal (heads_how, four)
  heads_mean = Or (group_mean, all_mean)
  group_max = Equal (heads_how, three)
  all_max = Equal (heads_how, six)
  heads_max = Or (group_max, all_max)

  # the rows that are used; a broadcast axis of the bias has one row, which is also its last
  row_from = Where (last_alone, before_all, zero)
  v_row_from = Reshape (row_from, v1)
  q_used = Slice (q, v_row_from, v_end, v2)
  v_2nd_last = Constant <value_ints = [-2]> ()
  position_sizes = Shape (position)
  one_and_sizes = Concat <axis = 0> (v1, position_sizes)
  item_sizes = Slice (one_and_sizes, v_2nd_last, v_end, v0)
  position_items = Reshape (position, item_sizes)
  position_used = Slice (position_items, v_row_from, v_end, v1)
  bias_used = Slice (bias, v_row_from, v_end, v2)

  # logits of every key, the rows of all heads of a KV group in one product
  v_h = Shape <start = 1, end = 2> (q)
  v_g = Shape <start = 1, end = 2> (k)
  v_n = Shape <start = 2, end = 3> (k)
  v_r = Shape <start = 2, end = 3> (q_used)
  v_d = Shape <start = 3, end = 4> (q)
  q32 = Cast <to = 1> (q_used)
  k32 = Cast <to = 1> (k)
  bias32 = Cast <to = 1> (bias_used)
  q_scaled = Mul (q32, factor)
  v_heads_of_group = Div (v_h, v_g)
  v_rows_of_group = Mul (v_heads_of_group, v_r)
  group_shape = Concat <axis = 0> (v0, v_g, v_rows_of_group, v_d)
  q_grouped = Reshape (q_scaled, group_shape)
  k_turned = Transpose <perm = [0, 1, 3, 2]> (k32)
  product = MatMul (q_grouped, k_turned)
  row_shape = Concat <axis = 0> (v0, v_h, v_r, v_n)
  product_rows = Reshape (product, row_shape)
  logits = Add (product_rows, bias32)

  # the span is cut out before the softmax, or after one over all keys
  to_end = Equal (stop_int, zero)
  stop_or_end = Where (to_end, end, stop_int)
  first_cut = Where (over_all, zero, start_int)
  first_cut_end = Where (over_all, end, stop_or_end)
  second_cut = Where (over_all, start_int, zero)
  second_cut_end = Where (over_all, stop_or_end, end)
  v_first = Reshape (first_cut, v1)
  v_first_end = Reshape (first_cut_end, v1)
  v_second = Reshape (second_cut, v1)
  v_second_end = Reshape (second_cut_end, v1)
  n = Squeeze (v_n, v0)
  every_key = Range (zero, n, one)
  keys_used = Slice (every_key, v_first, v_first_end, v0)
  keys = Slice (keys_used, v_second, v_second_end, v0)
  used = Slice (logits, v_first, v_first_end, v3)
  v13 = Constant <value_ints = [1, 3]> ()
  position_column = Unsqueeze (position_used, v13)
"""
_WHOLE = """
  all_keys = Identity (n)
"""
# items whose keys end before the others': of the keys that are used, and of the span
_COUNTED = """
  counted_ = Constant <value_int: int = @counted> ()
  is_counted = Equal (counted_, one)
  v12 = Constant <value_ints = [1, 2]> ()
  not_below = Max (length, zero)
  given_length = Min (not_below, n)
  own_length = Where (is_counted, given_length, n)
  all_keys = Unsqueeze (own_length, v12)
  from_end = Add (all_keys, stop_int)
  from_start = Min (all_keys, stop_int)
  is_from_start = Greater (stop_int, zero)
  own_stop = Where (is_from_start, from_start, from_end)
  limit = Where (over_all, all_keys, own_stop)
  limit4 = Unsqueeze (limit, v3)
  is_behind = GreaterOrEqual (keys_used, limit4)
  is_own = Less (keys, own_stop)
  outside = Where (pool_max, lowest, zero32)
"""
_WEIGHTS = """
  weights_used = If (is_plain) <
    then_branch = as_logits () => (plain) { plain = Identity (used) },
    else_branch = as_weights () => (soft) {
      soft = If (is_causal) <
        then_branch = of_the_past () => (soft_past) {
          unseen = Less (position_column, keys_used)
          masked = Where (unseen, lowest, used)
          all_soft = Softmax <axis = 3> (masked)
          soft_past = Where (unseen, zero32, all_soft)
        },
        else_branch = of_everything () => (soft_all) { soft_all = Softmax <axis = 3> (used) }
      >
    }
  >
"""
_COUNTED_WEIGHTS = """
  weights_used = If (is_plain) <
    then_branch = as_logits () => (plain) { plain = Identity (used) },
    else_branch = as_weights () => (soft) {
      is_later = Less (position_column, keys_used)
      is_future = And (is_later, is_causal)
      unseen = Or (is_future, is_behind)
      masked = Where (unseen, lowest, used)
      all_soft = Softmax <axis = 3> (masked)
      soft = Where (unseen, zero32, all_soft)
    }
  >
"""
_OVER_ROWS = """
  weights = Slice (weights_used, v_second, v_second_end, v3)

  # over the rows
  over_rows = If (rows_max) <
    then_branch = largest_row () => (row_max) { row_max = ReduceMax <keepdims = 0> (weights, v2) },
    else_branch = all_rows () => (row_sum) { row_sum = ReduceSum <keepdims = 0> (weights, v2) }
  >
  r = Squeeze (v_r, v0)
  row_divisor = Where (rows_mean, r, one)
  num_after = Sub (all_keys, keys)
  num_others = Where (by_tokens, num_after, row_divisor)
"""
_BY_PROBES = """
  not_causal = Not (is_causal)
  is_past = LessOrEqual (keys, position_column)
  is_seen = Or (is_past, not_causal)
  is_seen_int = Cast <to = 7> (is_seen)
  num_seen = ReduceSum <keepdims = 0> (is_seen_int, v2)
  divisor = Where (by_probes, num_seen, num_others)
"""
_DIVIDED = """
  divisor_or_one = Max (divisor, one)
  divisor32 = Cast <to = 1> (divisor_or_one)
  head_scores = Div (over_rows, divisor32)
"""
_OWN_KEYS = """
  {result} = Where (is_own, {scores}, outside)
"""
_POOLED_HEADS = """
  # over the heads, with a pooling before and one after
  pooled_heads = If (pool_max) <
    then_branch = head_maxima () => (head_max) {
      head_max = MaxPool <kernel_shape: ints = @head_kernel, auto_pad = "SAME_UPPER"> (to_pool)
    },
    else_branch = head_averages () => (head_average) {
      head_average =
        AveragePool <kernel_shape: ints = @head_kernel, auto_pad = "SAME_UPPER", count_include_pad = 1> (to_pool)
    }
  >
"""
_OVER_HEADS = """
  v_groups = Where (each_group, v_g, v1)
  v_parts = Where (each_head, v_h, v_groups)
  v_keys = Shape <start = 0, end = 1> (keys)
  heads_in_part = Div (v_h, v_parts)
  part_shape = Concat <axis = 0> (v0, v_parts, heads_in_part, v_keys)
  parts = Reshape (pooled_heads, part_shape)
  reduced = If (heads_max) <
    then_branch = largest_head () => (part_max) { part_max = ReduceMax <keepdims = 0> (parts, v2) },
    else_branch = all_heads () => (part_sum) { part_sum = ReduceSum <keepdims = 0> (parts, v2) }
  >
  head_divisor = Where (heads_mean, heads_in_part, v1)
  head_divisor32 = Cast <to = 1> (head_divisor)
  part_scores = Div (reduced, head_divisor32)
"""
_POOLED = """
  pooled_parts = If (pool_max) <
    then_branch = maxima () => (pooled_max) {
      pooled_max = MaxPool <kernel_shape: ints = @kernel, auto_pad = "SAME_UPPER"> (last_to_pool)
    },
    else_branch = averages () => (pooled_average) {
      pooled_average =
        AveragePool <kernel_shape: ints = @kernel, auto_pad = "SAME_UPPER", count_include_pad = 1> (last_to_pool)
    }
  >
"""


def _pooled(score: Tensor, how: int, kernel: int) -> Tensor:
    if kernel == 1:
        return score
    pool = max_pool1d if how == 1 else avg_pool1d
    return pool(score, kernel, stride=1, padding=kernel // 2)


@torch.library.custom_op("trt_compress::attention_score", mutates_args=())
def _attention_score(
    q: Tensor,
    k: Tensor,
    position: Tensor,
    bias: Tensor,
    length: Tensor,
    scale: float,
    causal: int,
    softmax: int,
    start: int,
    stop: int,
    rows: int,
    heads: int,
    normalize: int,
    pool: int,
    head_kernel: Sequence[int],
    kernel: Sequence[int],
    counted: int,
) -> Tensor:
    position = (position if position.ndim == 2 else position[None])[:, None, :, None]
    if ROWS[rows] == "last":
        q, position, bias = q[:, :, -1:], position[:, :, -1:], bias[:, :, -1:]
    (batch, num_heads, num_rows, width), (groups, n) = q.shape, k.shape[1:3]
    grouped = (q.float() * scale).reshape(batch, groups, num_heads // groups * num_rows, width)
    logits = (grouped @ k.float().transpose(2, 3)).reshape(batch, num_heads, num_rows, n) + bias.float()
    keys = torch.arange(n, device=k.device)
    span = slice(start, stop if stop > 0 else n + stop)
    own_length = length.clamp(0, n)[:, None, None] if counted else torch.full_like(keys[:1], n)[:, None, None]
    own_stop = own_length.clamp(max=stop) if stop > 0 else own_length + stop
    seen = keys <= position if causal == 1 else keys.new_ones(1, 1, num_rows, n, dtype=torch.bool)
    seen = seen & (keys < (own_length if SOFTMAX[softmax] == "all" else own_stop)[..., None])
    if SOFTMAX[softmax] != "all":
        logits, seen, keys = logits[..., span], seen[..., span], keys[span]
    weights = logits
    if SOFTMAX[softmax] != "none":
        weights = logits.masked_fill(~seen, _LOWEST).softmax(dim=3).masked_fill(~seen, 0)
    if SOFTMAX[softmax] == "all":
        weights, seen, keys = weights[..., span], seen[..., span], keys[span]

    score = weights.amax(dim=2) if ROWS[rows] == "max" else weights.sum(dim=2)
    if ROWS[rows] == "mean":
        score = score / num_rows
    if NORMALIZE[normalize] != "none":
        divisor = seen.sum(dim=2) if NORMALIZE[normalize] == "probes" else own_length - keys
        score = score / divisor.clamp_min(1)
    is_own = keys < own_stop
    outside = _LOWEST if pool == 1 else 0.0
    score = _pooled(score.where(is_own, outside), pool, head_kernel[0])
    parts = num_heads if heads == 0 else groups if heads <= 3 else 1
    split = score.reshape(batch, parts, num_heads // parts, len(keys))
    how = HEADS[heads].removeprefix("group_")
    score = split.amax(dim=2) if how == "max" else split.sum(dim=2)
    if how == "mean":
        score = score / split.shape[2]
    return _pooled(score.where(is_own, outside), pool, kernel[0]).where(is_own, 0.0)


register_fake(SPEC, _attention_score)


def attention_score(
    q: Tensor,
    k: Tensor,
    position: Tensor | None = None,
    bias: Tensor | None = None,
    length: Tensor | None = None,
    *,
    scale: float | None = None,
    causal: bool = False,
    softmax: str = "all",
    start: int = 0,
    stop: int = 0,
    rows: str = "mean",
    heads: str = "mean",
    normalize: str = "none",
    pool: str = "avg",
    head_kernel: int = 1,
    kernel: int = 1,
) -> Tensor:
    """Score every key of a span by the attention that chosen query rows pay to it.

    Args:
        q: Probe rows of the queries, [B, H, R, D], fp16 | bf16 | fp32.
        k: Keys, [B, G, N, D], fp16 | bf16 | fp32; query head h reads KV head h // (H / G).
        position: Key position of each row, [R], or [B, R] for each item, int64; needed if causal. A row at -1 sees
            nothing.
        bias: Added to the scaled logits, finite, of a shape that broadcasts to [B, H, R, N]; None: nothing.
        length: Keys that each item has, from the front, [B] or [1], int64, as the slots in use of a cache: it is scored
            as if its keys ended there, a stop from the end included, and keys of the span behind it get 0, whatever
            they hold. None: N.
        scale: Factor of the logits; None: 1 / sqrt(D).
        causal: A row sees the keys up to and including its own position only; one that sees none gives 0.
        softmax: Over "all" keys, over the "span" alone, or "none": the logits themselves.
        start: First key of the span, 0 <= start < stop.
        stop: End of the span; 0 is the end of the keys, -8 leaves the last 8 out.
        rows: "mean", "sum" or "max" over the rows, or the "last" row alone.
        heads: "none": a score for each head; "group_mean", "group_sum", "group_max": for each KV head, over its query
            heads; "mean", "sum", "max": over all heads.
        normalize: Divide the score of key j by the number of "probes" that see it, or by N - j, the number of all
            "tokens" that would see it; needs rows="sum".
        pool: Pooling along the keys, "avg" or "max"; stride 1, as long as before. An average divides by the kernel at
            the borders too.
        head_kernel: Width of the pooling of each head before heads are reduced, odd; 1: none.
        kernel: Width of the pooling after heads are reduced, odd; 1: none.

    Returns:
        Scores, float32: [B, H, stop - start], [B, G, stop - start] or, over all heads, [B, stop - start].

    Raises:
        ConfigError: an attribute is not allowed.
        ShapeError: a tensor has the wrong shape.

    Source: SnapKV, arXiv:2404.14469; H2O, arXiv:2306.14048; ZipCache, arXiv:2405.14256; FastV, arXiv:2403.06764.
    Differs: see SPEC.differs.
    """
    name = "attention_score"
    check_tensor(name, "q", q, (None, None, None, None), "BHRD")
    batch, num_heads, num_rows, width = q.shape
    if num_heads < 1 or num_rows < 1 or width < 1:
        raise ShapeError(
            f"{name}: q has shape {list(q.shape)}; it must have at least one head, one row and one channel."
        )
    check_tensor(name, "k", k, (batch, None, None, width), "BGND")
    groups, n = k.shape[1:3]
    if groups < 1 or num_heads % groups:
        raise ShapeError(f"{name}: q has H={num_heads} heads and k has G={groups}; H must be a multiple of G.")
    choices = {
        "softmax": (softmax, SOFTMAX),
        "rows": (rows, ROWS),
        "heads": (heads, HEADS),
        "normalize": (normalize, NORMALIZE),
        "pool": (pool, POOL),
    }
    for key, (value, known) in choices.items():
        if value not in known:
            raise ConfigError(not_known(f"{name}: {key}", value, known))
    if causal and softmax == "none":
        raise ConfigError(f"{name}: causal=True needs a softmax, since an unseen key has no logit; give causal=False.")
    if causal and position is None:
        raise ConfigError(f"{name}: causal=True needs the position of each row; give position.")
    if normalize != "none" and rows != "sum":
        raise ConfigError(f"{name}: normalize={normalize!r} divides a sum, and rows={rows!r}; give rows='sum'.")
    for key, number in (("start", start), ("stop", stop), ("head_kernel", head_kernel), ("kernel", kernel)):
        if isinstance(number, bool) or not isinstance(number, int):
            raise ConfigError(f"{name}: {key}={number!r} is not a whole number; give one.")
    if not 0 <= start < start + span_length(n, start, stop) <= n:
        raise ConfigError(
            f"{name}: start={start} and stop={stop} hold no span of N={n} keys; "
            "give 0 <= start < stop <= N, or a stop that is counted from the end."
        )
    for key, number in (("head_kernel", head_kernel), ("kernel", kernel)):
        if number < 1 or number % 2 == 0:
            raise ConfigError(f"{name}: {key}={number} has no middle; give an odd number, 1 for no pooling.")
    factor = 1 / math.sqrt(width) if scale is None else scale
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not abs(factor) < math.inf:
        raise ConfigError(f"{name}: scale={scale!r} is not a finite number; give one, or None for 1 / sqrt(D).")
    places = q.new_zeros(num_rows, dtype=torch.int64) if position is None else position
    is_of_items = places.ndim == 2 and places.shape[0] in (1, batch)
    wanted, letters = ((None, num_rows), "BR") if is_of_items else ((num_rows,), "R")
    check_tensor(name, "position", places, wanted, letters, ("int64",))
    lengths = q.new_zeros(1, dtype=torch.int64) if length is None else length
    check_tensor(name, "length", lengths, (1,) if lengths.shape == (1,) else (batch,), "B", ("int64",))
    added = q.new_zeros(1, 1, 1, 1) if bias is None else bias[(None,) * (4 - bias.ndim)]
    check_tensor(name, "bias", added, (None, None, None, None), "BHRN")
    for have, want, letter in zip(added.shape, (batch, num_heads, num_rows, n), "BHRN", strict=True):
        if have != 1 and have != want:
            raise ShapeError(
                f"{name}: bias has shape {list(added.shape)}; axis {letter} must be 1 or {want} to broadcast to BHRN."
            )
    (score,) = run_operator(
        SPEC,
        [q, k, places, added, lengths],
        {
            "scale": float(factor),
            "causal": int(causal),
            "softmax": SOFTMAX.index(softmax),
            "start": start,
            "stop": stop,
            "rows": ROWS.index(rows),
            "heads": HEADS.index(heads),
            "normalize": NORMALIZE.index(normalize),
            "pool": POOL.index(pool),
            "head_kernel": [head_kernel],
            "kernel": [kernel],
            "counted": int(length is not None),
        },
    )
    return score[:, 0] if HEADS.index(heads) > 3 else score


def _make_inputs(sample: Sample, generator: torch.Generator) -> tuple[Tensor, ...]:
    b, h, g, r, n, d = (sample.axes[a] for a in "BHGRND")
    q, k = torch.randn(b, h, r, d, generator=generator), torch.randn(b, g, n, d, generator=generator)
    position = torch.arange(n - r, n)
    bias = torch.zeros(1, 1, 1, 1)
    if sample.values == "spread":  # rows from everywhere, the first of which sees nothing
        position = torch.linspace(-1, n - 1, r).long()
    if sample.values == "bias":
        bias = torch.randn(b, h, r, n, generator=generator)
    if sample.values == "row_bias":
        bias = torch.randn(1, h, r, 1, generator=generator) + torch.zeros(1, h, r, n)
    if sample.values == "key_bias":
        bias = torch.randn(b, 1, 1, n, generator=generator)
    if sample.values == "fp16_range":
        q, k = q.clamp(-2, 2) * 100, k.clamp(-2, 2) * 100
    if sample.values == "ties":
        k = torch.ones_like(k)
    length = torch.zeros(1, dtype=torch.int64)
    if sample.attributes["counted"]:
        length = torch.tensor([n * (i + 1) // b - i for i in range(b)])
        position = length[:, None] - r + torch.arange(r)  # the last rows of each item; the first may be none
        behind = torch.arange(n)[:, None] >= length[:, None, None, None]
        k = k.masked_fill(behind, torch.inf if sample.values == "inf" else 300.0)
    if sample.values == "over":
        length, position = torch.tensor([-3, n + 9, 1])[:b], position[:1]
    return q, k, position, bias, length


def _sample(
    sizes: tuple[int, int, int, int, int, int], reason: str, values: str = "normal", *, causal: int = 0,
    softmax: str = "all", start: int = 0, stop: int = 0, rows: str = "mean", heads: str = "mean",
    normalize: str = "none", pool: str = "avg", head_kernel: int = 1, kernel: int = 1, scale: float = 0.0,
    counted: int = 0,
) -> Sample:  # fmt: skip
    axes = dict(zip("BHGRND", sizes, strict=True))
    attributes: dict[str, int | float | Sequence[int]] = {
        "scale": scale or 1 / math.sqrt(axes["D"]),
        "causal": causal,
        "softmax": SOFTMAX.index(softmax),
        "start": start,
        "stop": stop,
        "rows": ROWS.index(rows),
        "heads": HEADS.index(heads),
        "normalize": NORMALIZE.index(normalize),
        "pool": POOL.index(pool),
        "head_kernel": [head_kernel],
        "kernel": [kernel],
        "counted": counted,
    }
    return Sample(axes=axes, attributes=attributes, reason=reason, values=values)


SNAPKV = {"causal": 1, "stop": -32, "rows": "sum", "heads": "group_mean", "kernel": 5}

OPERATOR = Operator(
    spec=SPEC,
    function=attention_score,
    body=_body,
    make_inputs=_make_inputs,
    samples=(
        _sample((1, 1, 1, 1, 1, 1), "one key"),
        _sample((2, 3, 3, 1, 13, 5), "primes, the mean over heads of one row, as a class token"),
        _sample((2, 3, 3, 4, 13, 5), "each head by itself, sums", heads="none", rows="sum"),
        _sample((2, 6, 2, 4, 13, 5), "mean of each KV group", causal=1, heads="group_mean", rows="sum"),
        _sample((2, 6, 2, 4, 13, 5), "largest of each KV group and row", causal=1, heads="group_max", rows="max"),
        _sample((2, 6, 2, 4, 13, 5), "sum of each KV group", causal=1, heads="group_sum", rows="sum"),
        _sample((2, 6, 2, 4, 13, 5), "last row of several", causal=1, rows="last", heads="sum"),
        _sample((2, 6, 2, 4, 13, 5), "last row and a bias for each row", "bias", rows="last", heads="max"),
        _sample((2, 6, 2, 4, 13, 5), "a bias for each key", "key_bias", heads="max"),
        _sample((2, 6, 2, 4, 13, 5), "a bias for each row and head", "row_bias", softmax="span", start=2, stop=9),
        _sample((2, 6, 2, 4, 13, 5), "logits", softmax="none", heads="none", rows="last", start=3),
        _sample((2, 6, 2, 4, 13, 5), "softmax over a span", softmax="span", start=2, stop=9),
        _sample((2, 6, 2, 4, 13, 5), "softmax over all, scores of a span", start=2, stop=9),
        _sample(
            (2, 6, 2, 4, 13, 5),
            "causal over a span, one row sees none of it",
            "spread",
            causal=1,
            softmax="span",
            start=5,
            stop=-1,
            rows="sum",
        ),
        _sample(
            (2, 6, 2, 4, 13, 5),
            "normalised by the probes",
            "spread",
            causal=1,
            rows="sum",
            normalize="probes",
            heads="group_sum",
        ),
        _sample(
            (2, 6, 2, 4, 13, 5),
            "normalised by all tokens",
            "spread",
            causal=1,
            rows="sum",
            normalize="tokens",
            heads="group_sum",
        ),
        _sample((2, 6, 2, 4, 13, 5), "pooled by average", rows="sum", heads="group_mean", kernel=5),
        _sample((2, 6, 2, 4, 13, 5), "pooled by maximum after the heads", heads="mean", kernel=3, pool="max"),
        _sample((2, 6, 2, 4, 13, 5), "pooled by maximum before the heads", heads="mean", head_kernel=3, pool="max"),
        _sample((3, 6, 2, 4, 13, 5), "a cache, each item its own length", causal=1, rows="sum", counted=1),
        _sample(
            (3, 6, 2, 4, 13, 5),
            "a cache whose last keys are not scored, pooled",
            causal=1,
            stop=-3,
            rows="sum",
            heads="group_mean",
            kernel=5,
            counted=1,
        ),
        _sample((3, 4, 2, 4, 13, 5), "infinity behind the keys", "inf", softmax="span", start=1, stop=9, counted=1),
        _sample((2, 4, 2, 2, 13, 5), "logits, infinity behind", "inf", softmax="none", heads="none", counted=1),
        _sample(
            (3, 6, 2, 4, 13, 5),
            "lengths out of range, all tokens",
            "over",
            causal=1,
            rows="sum",
            normalize="tokens",
            counted=1,
        ),
        _sample(
            (3, 6, 2, 4, 13, 5),
            "the probes of each item, maxima",
            causal=1,
            rows="sum",
            normalize="probes",
            heads="group_max",
            pool="max",
            head_kernel=3,
            kernel=3,
            counted=1,
        ),
        _sample((2, 4, 2, 33, 150, 16), "a cache beyond blocks", causal=1, stop=-2, rows="max", heads="max", counted=1),
        _sample((1, 2, 1, 3, 4, 8), "a kernel longer than the keys", rows="sum", kernel=7),
        _sample((1, 2, 2, 3, 11, 4), "all keys alike", "ties", causal=1, rows="sum", heads="none", kernel=5),
        _sample((1, 2, 1, 3, 11, 4), "logits beyond the range of fp16", "fp16_range", heads="none"),
        _sample((1, 2, 2, 33, 129, 16), "one above a block of 128 and of 32", causal=1, rows="sum"),
        _sample((1, 4, 2, 64, 64, 32), "every row a probe, as H2O", causal=1, rows="sum", heads="group_mean"),
        _sample((1, 6, 6, 1, 197, 64), "EViT on DeiT-S", start=1),
        _sample((1, 32, 8, 32, 512, 128), "SnapKV on a Llama-3 prompt", **SNAPKV),  # type: ignore[arg-type]
        _sample((1, 2, 2, 1, 4000, 8), "many keys", heads="sum"),
    ),
)
