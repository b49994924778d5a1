"""What the attention operators share: what a query sees, products to weights to means, in torch and as ONNX text.

A cache holds one row for each slot, and tokens have numbers from 0 on. In a linear cache slot s holds number s; in a
ring it holds the largest number below `length` that KVAppend puts there.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from trt_compress.errors import ConfigError, ShapeError
from trt_compress.plugins.kv_append.op import LAYOUTS
from trt_compress.plugins.kv_attention.choosing import Calls, some_choose
from trt_compress.plugins.kv_attention.spec import MOST_WINDOW
from trt_compress.plugins.kv_format import check_choice
from trt_compress.plugins.operator import check_broadcast, check_count, check_tensor


def attending_body(calls: Calls) -> str:
    """From q, keys `k32` and values `v32` ([B, G, C, D]), length and bias to y and lse.

    C is L, or what chosen_text() says. Uses i0, i1, v0, v1 and v3, and `v_slots` where slots are chosen.
    """
    is_choosing = some_choose(calls)
    is_capped, is_ring, is_causal, has_window = (
        any(call.get(name) for call in calls) for name in ("softcap", "layout", "causal", "window")
    )
    parts = [_PRODUCTS, _SOFTCAP if is_capped else "  scaled = Identity (uncapped)"]
    parts += [_BIAS, _CHOSEN_BIAS if is_choosing else "  bias_slots = Identity (bias_heads)"]
    parts += [_SLOTS, _CHOSEN_SLOTS if is_choosing else _ALL_SLOTS, _RING if is_ring else _LINEAR]
    parts.append(_CHOSEN_HELD if is_choosing else _HELD)
    seen = ["is_held"]
    if is_causal or has_window:
        parts.append(_OWN)
    if is_causal:
        parts.append(_CAUSAL)
        seen.append("is_past")
    if has_window:
        parts.append(_WINDOW)
        seen.append("is_inside")
    for number, one in enumerate(seen[1:]):
        parts.append(f"  is_seen_{number} = And ({f'is_seen_{number - 1}' if number else seen[0]}, {one})")
    parts.append(f"  is_seen = Identity ({f'is_seen_{len(seen) - 2}' if len(seen) > 1 else seen[0]})")
    return "\n".join([*parts, _SOFTMAX])


# heads of one KV head are rows of one product: [B, G, H / G * T, D]
_PRODUCTS = """
  q_shape = Shape (q)
  lse_shape = Slice (q_shape, v0, v3, v0)
  v_h = Shape <start = 1, end = 2> (q)
  v_t = Shape <start = 2, end = 3> (q)
  v_g = Shape <start = 1, end = 2> (k32)
  v_l = Shape <start = 2, end = 3> (k32)
  v_d = Shape <start = 3, end = 4> (k32)
  v_repeats = Div (v_h, v_g)
  q_rows = Mul (v_repeats, v_t)
  row_shape = Concat <axis = 0> (v0, v_g, q_rows, v_d)
  head_shape = Concat <axis = 0> (v0, v_g, v_repeats, v_t, v_l)
  product_shape = Concat <axis = 0> (v0, v_g, q_rows, v_l)
  given_scale = Constant <value_float: float = @scale> ()
  one = Constant <value_float = 1.0> ()
  zero = Constant <value_float = 0.0> ()
  v_d32 = Cast <to = 1> (v_d)
  root = Sqrt (v_d32)
  usual_scale = Div (one, root)
  is_usual = Equal (given_scale, zero)
  factor = Where (is_usual, usual_scale, given_scale)
  q32 = Cast <to = 1> (q)
  q_grouped = Reshape (q32, row_shape)
  k_columns = Transpose <perm = [0, 1, 3, 2]> (k32)
  products = MatMul (q_grouped, k_columns)
  scaled_rows = Mul (products, factor)
  uncapped = Reshape (scaled_rows, head_shape)
"""
_SOFTCAP = """
  cap = Constant <value_float: float = @softcap> ()
  is_uncapped = Equal (cap, zero)
  some_cap = Where (is_uncapped, one, cap)
  of_cap = Div (uncapped, some_cap)
  bent = Tanh (of_cap)
  capped = Mul (bent, some_cap)
  scaled = Where (is_uncapped, uncapped, capped)
"""
# bias of a KV head is [.., G, 1, ..], of a query head [.., G, H / G, ..]
_BIAS = """
  v_bias_b = Shape <start = 0, end = 1> (bias)
  v_bias_h = Shape <start = 1, end = 2> (bias)
  v_bias_t = Shape <start = 2, end = 3> (bias)
  v_bias_l = Shape <start = 3, end = 4> (bias)
  v_bias_g = Min (v_bias_h, v_g)
  v_bias_repeats = Div (v_bias_h, v_bias_g)
  bias_shape = Concat <axis = 0> (v_bias_b, v_bias_g, v_bias_repeats, v_bias_t, v_bias_l)
  bias32 = Cast <to = 1> (bias)
  bias_heads = Reshape (bias32, bias_shape)
"""
_CHOSEN_BIAS = """
  last_bias = Sub (v_bias_l, v1)
  bias_slot = Min (safe, last_bias)
  bias_slot5 = Unsqueeze (bias_slot, v23)
  ones3 = Constant <value_ints = [1, 1, 1]> ()
  pairs5 = Concat <axis = 0> (pair_sizes, ones3)
  bias_pairs = Expand (bias_heads, pairs5)
  bias_sizes = Shape <start = 0, end = 4> (bias_pairs)
  bias_slot_shape = Concat <axis = 0> (bias_sizes, v_chosen)
  bias_slot_full = Expand (bias_slot5, bias_slot_shape)
  bias_slots = GatherElements <axis = 4> (bias_pairs, bias_slot_full)
"""
# [B, 1 | G, 1, 1, 1]; a length for each item may come without the axis of KV heads
_SLOTS = """
  biased = Add (scaled, bias_slots)
  ones4 = Constant <value_ints = [1, 1, 1, 1]> ()
  v5 = Constant <value_ints = [5]> ()
  length_sizes = Shape (length)
  length_and_ones = Concat <axis = 0> (length_sizes, ones4)
  length_shape = Slice (length_and_ones, v0, v5, v0)
  written = Max (length, i0)
"""
_ALL_SLOTS = """
  columns = Squeeze (v_l, v0)
  slots = Range (i0, columns, i1)
"""
_CHOSEN_SLOTS = """
  columns = Squeeze (v_slots, v0)
  slots = Unsqueeze (safe, v23)
"""
_HELD = """
  is_held = Less (slots, length5)
  v_used = Identity (v32)
"""
_CHOSEN_HELD = """
  is_below = Less (slots, length5)
  is_there5 = Unsqueeze (is_there, v23)
  is_held = And (is_below, is_there5)
  held_rows = Squeeze (is_held, v23)
  held_columns = Unsqueeze (held_rows, v3)
  v_used = Where (held_columns, v32, zero)
"""
# numbers of the tokens in the slots
_LINEAR = """
  used = Min (written, columns)
  length5 = Reshape (used, length_shape)
  number = Identity (slots)
"""
_RING = """
  layout_ = Constant <value_int: int = @layout> ()
  ring_sinks = Constant <value_int: int = @sinks> ()
  is_linear = Equal (layout_, i0)
  within = Min (written, columns)
  used = Where (is_linear, within, written)
  length5 = Reshape (used, length_shape)
  after_slot = Add (slots, i1)
  since = Sub (length5, after_slot)
  ever_since = Max (since, i0)
  behind = Sub (columns, ring_sinks)
  period = Max (behind, i1)
  turns = Div (ever_since, period)
  moved = Mul (turns, period)
  turned = Add (slots, moved)
  is_sink_slot = Less (slots, ring_sinks)
  is_fixed = Or (is_sink_slot, is_linear)
  number = Where (is_fixed, slots, turned)
"""
# those that query t may see
_OWN = """
  queries = Squeeze (v_t, v0)
  steps = Range (i0, queries, i1)
  steps_column = Unsqueeze (steps, v1)
  before = Sub (length5, queries)
  own = Add (before, steps_column)
"""
_CAUSAL = """
  causal_ = Constant <value_int: int = @causal> ()
  is_later = Greater (number, own)
  is_causal = Equal (causal_, i1)
  is_future = And (is_later, is_causal)
  is_past = Not (is_future)
"""
_WINDOW = """
  window_ = Constant <value_int: int = @window> ()
  window_sinks = Constant <value_int: int = @sinks> ()
  oldest = Sub (own, window_)
  is_recent = Greater (number, oldest)
  no_window = Equal (window_, i0)
  is_near = Or (is_recent, no_window)
  is_sink = Less (number, window_sinks)
  is_inside = Or (is_near, is_sink)
"""
# a softmax that gives 0 where nothing is seen
_SOFTMAX = """
  infinity = Constant <value_float = inf> ()
  below_all = Neg (infinity)
  masked = Where (is_seen, biased, below_all)
  v_last = Constant <value_ints = [-1]> ()
  lowest = Constant <value_float = -3.0e38> ()
  highest = ReduceMax <keepdims = 1> (masked, v_last)
  peak = Max (highest, lowest)
  shifted = Sub (masked, peak)
  weights = Exp (shifted)
  total = ReduceSum <keepdims = 1> (weights, v_last)
  is_empty = Equal (total, zero)
  divisor = Where (is_empty, one, total)
  weight_rows = Reshape (weights, product_shape)
  sums = MatMul (weight_rows, v_used)
  divisor_shape = Concat <axis = 0> (v0, v_g, q_rows, v1)
  divisor_rows = Reshape (divisor, divisor_shape)
  means = Div (sums, divisor_rows)
  y32 = Reshape (means, q_shape)
  y = CastLike (y32, q)
  log_total = Log (total)
  log_sum = Add (log_total, peak)
  lse = Reshape (log_sum, lse_shape)
"""


def attend(
    q: Tensor, k: Tensor, v: Tensor, length: Tensor, bias: Tensor, index: Tensor, *, scale: float, causal: int,
    window: int, softcap: float, layout: int, sinks: int, indexed: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Means and logs of sums, from keys and values in float32, [B, G, L, D]; the attributes are those of the node."""
    b, h, t, d = q.shape
    groups, slots = k.shape[1], k.shape[2]
    repeats = h // groups
    slot = torch.arange(slots, device=q.device).expand(b, groups, slots)
    bias_groups = min(bias.shape[1], groups)
    bias_repeats = bias.shape[1] // bias_groups
    biases = bias.float().reshape(bias.shape[0], bias_groups, bias_repeats, *bias.shape[2:])
    length = length if length.ndim == 2 else length[:, None]
    held = slot < length[..., None]
    if indexed:
        slot = index.expand(b, groups, index.shape[2])
        held = (slot >= 0) & (slot < length.clamp(max=slots)[..., None])
        slot = slot.where(held, 0)
        k, v = (_rows(tensor, slot) for tensor in (k, v))
        if bias.shape[3] > 1:
            biases = biases.expand(b, groups, *biases.shape[2:])
            biases = biases.gather(4, slot[:, :, None, None].expand(*biases.shape[:4], slot.shape[2]))
    rows = q.float().reshape(b, groups, repeats * t, d)
    products = (rows @ k.transpose(2, 3) * (scale or 1 / math.sqrt(d))).reshape(b, groups, repeats, t, slot.shape[2])
    if softcap:
        products = (products / softcap).tanh() * softcap
    seen = held[:, :, None] & _seen(t, slots, slot, length, causal=causal, window=window, layout=layout, sinks=sinks)
    masked = torch.where(seen[:, :, None], products + biases, -torch.inf)
    lse = masked.logsumexp(dim=4)
    weights = (masked - lse.clamp_min(torch.finfo(torch.float32).min)[..., None]).exp()
    used = v.where(held[..., None], 0)  # what was never written may be NaN
    y = (weights.reshape(b, groups, repeats * t, slot.shape[2]) @ used).reshape(q.shape)
    return y.to(q.dtype), lse.reshape(b, h, t)


def _rows(cache: Tensor, slot: Tensor) -> Tensor:
    """Rows [B, G, K, D] of a cache [B, G, L, D]; of one without slots zeros."""
    shape = (*slot.shape, cache.shape[3])
    return cache.gather(2, slot[..., None].expand(shape)) if cache.shape[2] else cache.new_zeros(shape)


def _seen(
    t: int, slots: int, slot: Tensor, length: Tensor, *, causal: int, window: int, layout: int, sinks: int
) -> Tensor:
    """Whether query t sees each of these slots [B, G, C] of `slots` if it is in use, [B, 1 | G, T, C]."""
    slot = slot[:, :, None]
    used = length.clamp(min=0)[..., None, None]
    number = slot
    if layout == 0:
        used = used.clamp(max=slots)
    else:
        period = max(slots - sinks, 1)
        since = (used - 1 - slot).clamp(min=0)
        number = torch.where(slot < sinks, number, slot + since // period * period)
    own = used - t + torch.arange(t, device=length.device)[:, None]
    seen = torch.ones_like(slot, dtype=torch.bool)
    if causal:
        seen = number <= own
    if window:
        seen = seen & ((number > own - window) | (number < sinks))
    return seen


def checked_index(op: str, q: Tensor, index: Tensor | None, g: int) -> Tensor:
    """The index, or one that names no slot; raises ShapeError unless it is one of G heads."""
    if index is None:
        return q.new_full((1, 1, 1), -1, dtype=torch.int64)
    kept = index.shape[2] if index.ndim == 3 else -1
    check_broadcast(op, "index", index, ((1, q.shape[0]), (1, g), (kept,)), "B, G, K", ["int64"])
    return index


def check_length(op: str, length: Tensor, b: int, g: int) -> None:
    """Raise ShapeError unless there is a length for each item, or for each KV head of each item."""
    if length.ndim == 1 or length.ndim == 2 and length.shape[1] not in (1, g):
        check_tensor(op, "length", length, (b,), "B", ["int64"])
    else:
        check_tensor(op, "length", length, (b, None), "BG", ["int64"])


def checked_bias(op: str, q: Tensor, bias: Tensor | None, g: int, slots: int) -> Tensor:
    """The bias, or a zero; raises ShapeError unless it can be added to products of q with a cache of G heads."""
    b, h, t, _ = q.shape
    if bias is None:
        return q.new_zeros(1, 1, 1, 1)
    check_broadcast(op, "bias", bias, ((1, b), (1, g, h), (1, t), (1, slots)), "B, G or H, T, L")
    return bias


def check_heads(op: str, h: int, g: int) -> None:
    """Raise ShapeError unless KV heads are shared by equally many query heads."""
    if g < 1 or h % g:
        raise ShapeError(f"{op}: q has H={h} heads and the cache G={g} KV heads; H must be a multiple of G.")


def attending_attributes(
    op: str,
    slots: int,
    *,
    scale: float,
    causal: bool,
    window: int,
    softcap: float,
    layout: str,
    sinks: int,
    index: Tensor | None,
) -> Mapping[str, int | float]:
    """The attributes that say what is seen and how products are scaled; raises ConfigError for what is not allowed."""
    for name, value, meaning in (("scale", scale, "1 / sqrt(D)"), ("softcap", softcap, "no cap")):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise ConfigError(f"{op}: {name}={value!r} is not allowed; give a positive number, or 0 for {meaning}.")
    check_choice(op, "causal", causal, [False, True])
    if isinstance(window, bool) or not isinstance(window, int) or not 0 <= window <= MOST_WINDOW:
        raise ConfigError(
            f"{op}: window={window!r} is not allowed; give the slots a query sees, at most {MOST_WINDOW}, or 0 for no "
            "limit."
        )
    check_choice(op, "layout", layout, LAYOUTS)
    if layout == "ring":
        check_count(op, "sinks", sinks, slots - 1, f"a ring of L={slots} slots allows")
    else:
        check_count(op, "sinks", sinks, MOST_WINDOW, "allowed is")
    return {
        **{"scale": float(scale), "causal": int(causal), "window": window, "softcap": float(softcap)},
        **{"layout": LAYOUTS.index(layout), "sinks": sinks, "indexed": int(index is not None)},
    }
