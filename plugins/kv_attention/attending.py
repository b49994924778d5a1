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
from trt_compress.plugins.kv_attention.spec import MOST_WINDOW
from trt_compress.plugins.kv_format import check_choice
from trt_compress.plugins.operator import check_broadcast, check_count

# From q, keys `k32` and values `v32` ([B, G, L, D]), length and bias to y and lse. Uses i0, i1, v0, v1 and v3.
BODY = """
  # heads of one KV head are rows of one product: [B, G, H / G * T, D]
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
  cap = Constant <value_float: float = @softcap> ()
  is_uncapped = Equal (cap, zero)
  some_cap = Where (is_uncapped, one, cap)
  of_cap = Div (uncapped, some_cap)
  bent = Tanh (of_cap)
  capped = Mul (bent, some_cap)
  scaled = Where (is_uncapped, uncapped, capped)

  # bias of a KV head is [.., G, 1, ..], of a query head [.., G, H / G, ..]
  v_bias_b = Shape <start = 0, end = 1> (bias)
  v_bias_h = Shape <start = 1, end = 2> (bias)
  v_bias_t = Shape <start = 2, end = 3> (bias)
  v_bias_l = Shape <start = 3, end = 4> (bias)
  v_bias_g = Min (v_bias_h, v_g)
  v_bias_repeats = Div (v_bias_h, v_bias_g)
  bias_shape = Concat <axis = 0> (v_bias_b, v_bias_g, v_bias_repeats, v_bias_t, v_bias_l)
  bias32 = Cast <to = 1> (bias)
  bias_heads = Reshape (bias32, bias_shape)
  biased = Add (scaled, bias_heads)

  # numbers of the tokens in the slots
  layout_ = Constant <value_int: int = @layout> ()
  sinks_ = Constant <value_int: int = @sinks> ()
  is_linear = Equal (layout_, i0)
  columns = Squeeze (v_l, v0)
  slots = Range (i0, columns, i1)
  written = Max (length, i0)
  within = Min (written, columns)
  used = Where (is_linear, within, written)
  ones5 = Constant <value_ints = [-1, 1, 1, 1, 1]> ()
  length5 = Reshape (used, ones5)
  is_written = Less (slots, length5)
  after_slot = Add (slots, i1)
  since = Sub (length5, after_slot)
  ever_since = Max (since, i0)
  behind = Sub (columns, sinks_)
  period = Max (behind, i1)
  turns = Div (ever_since, period)
  moved = Mul (turns, period)
  turned = Add (slots, moved)
  is_sink_slot = Less (slots, sinks_)
  is_fixed = Or (is_sink_slot, is_linear)
  number = Where (is_fixed, slots, turned)

  # those that query t may see
  causal_ = Constant <value_int: int = @causal> ()
  window_ = Constant <value_int: int = @window> ()
  queries = Squeeze (v_t, v0)
  steps = Range (i0, queries, i1)
  steps_column = Unsqueeze (steps, v1)
  before = Sub (length5, queries)
  own = Add (before, steps_column)
  is_later = Greater (number, own)
  is_causal = Equal (causal_, i1)
  is_future = And (is_later, is_causal)
  is_past = Not (is_future)
  oldest = Sub (own, window_)
  is_recent = Greater (number, oldest)
  no_window = Equal (window_, i0)
  is_near = Or (is_recent, no_window)
  is_sink = Less (number, sinks_)
  is_inside = Or (is_near, is_sink)
  may_be_seen = And (is_past, is_inside)
  is_seen = And (may_be_seen, is_written)
  infinity = Constant <value_float = inf> ()
  below_all = Neg (infinity)
  masked = Where (is_seen, biased, below_all)

  # softmax that gives 0 where nothing is seen
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
  sums = MatMul (weight_rows, v32)
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
    q: Tensor, k: Tensor, v: Tensor, length: Tensor, bias: Tensor, *, scale: float, causal: int, window: int,
    softcap: float, layout: int, sinks: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Means and logs of sums, from keys and values in float32, [B, G, L, D]; the attributes are those of the node."""
    b, h, t, d = q.shape
    groups, slots = k.shape[1], k.shape[2]
    rows = q.float().reshape(b, groups, h // groups * t, d)
    products = (rows @ k.transpose(2, 3) * (scale or 1 / math.sqrt(d))).reshape(b, h, t, slots)
    if softcap:
        products = (products / softcap).tanh() * softcap
    biases = bias.float()
    if 1 < bias.shape[1] < h:
        biases = biases.repeat_interleave(h // groups, dim=1)
    seen = _seen(t, slots, length, causal=causal, window=window, layout=layout, sinks=sinks)
    masked = torch.where(seen, products + biases, -torch.inf)
    lse = masked.logsumexp(dim=3)
    weights = (masked - lse.clamp_min(torch.finfo(torch.float32).min)[..., None]).exp()
    y = (weights.reshape(b, groups, h // groups * t, slots) @ v).reshape(q.shape)
    return y.to(q.dtype), lse


def _seen(t: int, slots: int, length: Tensor, *, causal: int, window: int, layout: int, sinks: int) -> Tensor:
    """Whether query t sees a slot, [B, 1, T, L]."""
    slot = torch.arange(slots, device=length.device)
    used = length.clamp(min=0)[:, None, None, None]
    number = slot.expand(used.shape[0], 1, 1, slots)
    if layout == 0:
        used = used.clamp(max=slots)
    else:
        period = max(slots - sinks, 1)
        since = (used - 1 - slot).clamp(min=0)
        number = torch.where(slot < sinks, number, slot + since // period * period)
    own = used - t + torch.arange(t, device=length.device)[:, None]
    seen = (slot < used).expand(used.shape[0], 1, t, slots)
    if causal:
        seen = seen & (number <= own)
    if window:
        seen = seen & ((number > own - window) | (number < sinks))
    return seen


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
    op: str, slots: int, *, scale: float, causal: bool, window: int, softcap: float, layout: str, sinks: int
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
        **{"layout": LAYOUTS.index(layout), "sinks": sinks},
    }
