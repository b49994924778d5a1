"""KVAttention: attention straight over a packed key-value cache."""

import math

import torch
from torch import Tensor

from trt_compress.errors import ConfigError, ShapeError
from trt_compress.plugins.kv_attention.spec import MOST_WINDOW, SPEC
from trt_compress.plugins.kv_format import (
    AXIS_NAMES,
    BITS,
    CONSTANTS,
    check_choice,
    check_packed,
    check_packing,
    dequantized,
    product_text,
)
from trt_compress.plugins.kv_sizes import scale_shape
from trt_compress.plugins.operator import Operator, check_tensor, register_fake, run_operator
from trt_compress.plugins.spec import Sample

BODY = f"""
  {CONSTANTS}
  {product_text("k_")}
  {product_text("v_")}
  k_sum = Add (k_product, k_low)
  k = Reshape (k_sum, k_values_shape)
  v_sum = Add (v_product, v_low)
  v = Reshape (v_sum, v_values_shape)

  # heads of one KV head are rows of one product: [B, G, H / G * T, D]
  q_shape = Shape (q)
  lse_shape = Slice (q_shape, v0, v3, v0)
  v_h = Shape <start = 1, end = 2> (q)
  v_t = Shape <start = 2, end = 3> (q)
  v_g = Shape <start = 1, end = 2> (k_code)
  v_repeats = Div (v_h, v_g)
  q_rows = Mul (v_repeats, v_t)
  row_shape = Concat <axis = 0> (v0, v_g, q_rows, k_v_d)
  head_shape = Concat <axis = 0> (v0, v_g, v_repeats, v_t, k_v_l)
  product_shape = Concat <axis = 0> (v0, v_g, q_rows, k_v_l)
  q32 = Cast <to = 1> (q)
  q_grouped = Reshape (q32, row_shape)
  k_columns = Transpose <perm = [0, 1, 3, 2]> (k)
  products = MatMul (q_grouped, k_columns)
  given_scale = Constant <value_float: float = @scale> ()
  one = Constant <value_float = 1.0> ()
  zero = Constant <value_float = 0.0> ()
  v_d32 = Cast <to = 1> (k_v_d)
  root = Sqrt (v_d32)
  usual_scale = Div (one, root)
  is_usual = Equal (given_scale, zero)
  factor = Where (is_usual, usual_scale, given_scale)
  scaled_rows = Mul (products, factor)
  scaled = Reshape (scaled_rows, head_shape)

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

  # slots that query t may see
  causal_ = Constant <value_int: int = @causal> ()
  window_ = Constant <value_int: int = @window> ()
  columns = Squeeze (k_v_l, v0)
  slots = Range (i0, columns, i1)
  queries = Squeeze (v_t, v0)
  steps = Range (i0, queries, i1)
  steps_column = Unsqueeze (steps, v1)
  ones5 = Constant <value_ints = [-1, 1, 1, 1, 1]> ()
  at_most = Min (length, columns)
  used = Max (at_most, i0)
  length5 = Reshape (used, ones5)
  before = Sub (length5, queries)
  own = Add (before, steps_column)
  after_own = Add (own, i1)
  is_causal = Equal (causal_, i1)
  limit = Where (is_causal, after_own, length5)
  stop = Min (limit, length5)
  is_below = Less (slots, stop)
  oldest = Sub (own, window_)
  is_recent = Greater (slots, oldest)
  no_window = Equal (window_, i0)
  is_inside = Or (is_recent, no_window)
  is_seen = And (is_below, is_inside)
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
  sums = MatMul (weight_rows, v)
  divisor_shape = Concat <axis = 0> (v0, v_g, q_rows, v1)
  divisor_rows = Reshape (divisor, divisor_shape)
  means = Div (sums, divisor_rows)
  y32 = Reshape (means, q_shape)
  y = CastLike (y32, q)
  log_total = Log (total)
  log_sum = Add (log_total, peak)
  lse = Reshape (log_sum, lse_shape)
"""


@torch.library.custom_op("trt_compress::kv_attention", mutates_args=())
def _kv_attention(
    q: Tensor,
    k_code: Tensor,
    k_scale: Tensor,
    k_minimum: Tensor,
    v_code: Tensor,
    v_scale: Tensor,
    v_minimum: Tensor,
    length: Tensor,
    bias: Tensor,
    k_bits: int,
    k_axis: int,
    k_group: int,
    v_bits: int,
    v_axis: int,
    v_group: int,
    scale: float,
    causal: int,
    window: int,
) -> tuple[Tensor, Tensor]:
    b, h, t, d = q.shape
    k = dequantized(k_code, k_scale, k_minimum, bits=k_bits, axis=k_axis, group=k_group)
    v = dequantized(v_code, v_scale, v_minimum, bits=v_bits, axis=v_axis, group=v_group)
    groups, slots = k.shape[1], torch.arange(k.shape[2], device=q.device)
    rows = q.float().reshape(b, groups, h // groups * t, d)
    products = (rows @ k.transpose(2, 3) * (scale or 1 / math.sqrt(d))).reshape(b, h, t, k.shape[2])
    biases = bias.float()
    if 1 < bias.shape[1] < h:
        biases = biases.repeat_interleave(h // groups, dim=1)
    length = length.clamp(0, k.shape[2])
    own = (length[:, None] - t + torch.arange(t, device=q.device))[:, None, :, None]
    seen = slots < length[:, None, None, None]
    if causal:
        seen = seen & (slots <= own)
    if window:
        seen = seen & (slots > own - window)
    masked = torch.where(seen, products + biases, -torch.inf)
    lse = masked.logsumexp(dim=3)
    weights = (masked - lse.clamp_min(torch.finfo(torch.float32).min)[..., None]).exp()
    y = (weights.reshape(b, groups, h // groups * t, k.shape[2]) @ v).reshape(q.shape)
    return y.to(q.dtype), lse


register_fake(SPEC, _kv_attention)


def kv_attention(
    q: Tensor,
    k_code: Tensor,
    k_scale: Tensor,
    k_minimum: Tensor,
    v_code: Tensor,
    v_scale: Tensor,
    v_minimum: Tensor,
    length: Tensor,
    bias: Tensor | None = None,
    *,
    k_bits: int,
    k_axis: str = "channel",
    k_group: int = 0,
    v_bits: int,
    v_axis: str = "token",
    v_group: int = 0,
    scale: float = 0.0,
    causal: bool = False,
    window: int = 0,
) -> tuple[Tensor, Tensor]:
    """Attend over a packed key-value cache.

    Args:
        q: Queries, [B, H, T, D], fp16 | bf16 | fp32. Head h reads KV head h // (H / G).
        k_code: Codes of the keys as kv_quantize packs them, [B, G, L, D * k_bits / 8], uint8.
        k_scale: Steps of the keys, fp16 | fp32.
        k_minimum: Minima of the keys.
        v_code: Codes of the values, [B, G, L, D * v_bits / 8], uint8.
        v_scale: Steps of the values, fp16 | fp32.
        v_minimum: Minima of the values.
        length: Slots in use, from the front, [B] int64; more than L is taken as L.
        bias: Added to the scaled products, finite or -inf, [1 | B, 1 | G | H, 1 | T, 1 | L]; None: nothing.
        k_bits: 8, 4 or 2.
        k_axis: "channel" or "token", as for kv_quantize.
        k_group: Elements of a group; 0 is the whole axis.
        v_bits: 8, 4 or 2.
        v_axis: "channel" or "token".
        v_group: Elements of a group; 0 is the whole axis.
        scale: Factor of the products; 0 is 1 / sqrt(D).
        causal: The queries are the last T tokens of the cache, and query t sees slots below length - T + t + 1.
        window: Query t sees slots above length - T + t - window only: with `causal` the last `window` slots up to and
            including its own; 0 is no limit.

    Returns:
        Weighted means of the values [B, H, T, D] in q's dtype; natural logs of the sums of exponentials [B, H, T]
        float32. Where no slot is seen they are 0 and -inf. Results over two parts of a cache merge exactly: the means
        weighted by exp(lse).

    Raises:
        ConfigError: an attribute is not allowed.
        ShapeError: a tensor has the wrong shape or dtype.

    Source: KIVI, arXiv:2402.02750; FlashDecoding, https://pytorch.org/blog/flash-decoding.
    Differs: see SPEC.differs.
    """
    op = "kv_attention"
    check_tensor(op, "q", q, (None, None, None, None), "BHTD")
    b, h, t, d = q.shape
    if d < 1:
        raise ShapeError(f"{op}: q has D=0 channels; give at least one.")
    check_choice(op, "k_bits", k_bits, BITS)
    check_choice(op, "v_bits", v_bits, BITS)
    along_k = AXIS_NAMES.index(check_choice(op, "k_axis", k_axis, AXIS_NAMES))
    along_v = AXIS_NAMES.index(check_choice(op, "v_axis", v_axis, AXIS_NAMES))
    check_packing(op, "q", d, min(k_bits, v_bits))
    keys, values = (k_code, k_scale, k_minimum), (v_code, v_scale, v_minimum)
    k_group = check_packed(op, "k_", keys, (b, None, None, d), bits=k_bits, axis=along_k, group=k_group)
    g, slots = k_code.shape[1:3]
    v_group = check_packed(op, "v_", values, (b, g, slots, d), bits=v_bits, axis=along_v, group=v_group)
    if h % g:
        raise ShapeError(f"{op}: q has H={h} heads and the cache G={g} KV heads; H must be a multiple of G.")
    check_tensor(op, "length", length, (b,), "B", ["int64"])
    if bias is None:
        bias = q.new_zeros(1, 1, 1, 1)
    allowed = ((1, b), (1, g, h), (1, t), (1, slots))
    if bias.ndim != 4 or any(size not in sizes for size, sizes in zip(bias.shape, allowed, strict=True)):
        sizes = ", ".join(" | ".join(map(str, dict.fromkeys(some))) for some in allowed)
        raise ShapeError(f"{op}: bias has shape {list(bias.shape)}; it must be [{sizes}] with axes B, G or H, T, L.")
    check_tensor(op, "bias", bias, (None, None, None, None), "BHTL")
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 <= scale < math.inf:
        raise ConfigError(f"{op}: scale={scale!r} is not allowed; give a positive number, or 0 for 1 / sqrt(D).")
    check_choice(op, "causal", causal, [False, True])
    if isinstance(window, bool) or not isinstance(window, int) or not 0 <= window <= MOST_WINDOW:
        raise ConfigError(
            f"{op}: window={window!r} is not allowed; give the slots a query sees, at most {MOST_WINDOW}, or 0 for no "
            "limit."
        )
    attributes = {
        "k_bits": k_bits,
        "k_axis": along_k,
        "k_group": k_group,
        "v_bits": v_bits,
        "v_axis": along_v,
        "v_group": v_group,
        "scale": float(scale),
        "causal": int(causal),
        "window": window,
    }
    y, lse = run_operator(SPEC, [q, *keys, *values, length, bias], attributes)
    return y, lse


def _make_inputs(sample: Sample, generator: torch.Generator) -> tuple[Tensor, ...]:
    b, h, g, t, length, d = (sample.axes[a] for a in "BHGTLD")
    parts = []
    for which in "kv":
        bits, axis, group = (int(sample.attributes[f"{which}_{name}"]) for name in ("bits", "axis", "group"))  # type: ignore[arg-type]
        shape = [int(size) for size in scale_shape(b, g, length, d, axis=axis, group=group)]
        code = torch.randint(0, 256, (b, g, length, d * bits // 8), generator=generator, dtype=torch.uint8)
        levels = (1 << bits) - 1
        dtype = torch.float32 if sample.values == "fp32_scales" else torch.float16
        scale = (torch.rand(shape, generator=generator) + 0.5) * 4 / levels
        parts += [code, scale.to(dtype), (torch.randn(shape, generator=generator) - 2).to(dtype)]
    q = torch.randn(b, h, t, d, generator=generator)
    used = torch.full((b,), length)
    if sample.values == "empty":
        used[0] = 0
    if sample.values == "over":
        used += torch.arange(b) * 7
        used[0] = -5
    if sample.values in ("lengths", "masked"):
        used = torch.tensor([(length * (i + 1)) // b - i for i in range(b)]).clamp(min(t, length), length)
    biases = {
        "kv_bias": (b, g, 1, length),
        "head_bias": (1, h, t, length),
        "masked": (b, 1, 1, length),
    }
    bias = torch.randn(biases.get(sample.values, (1, 1, 1, 1)), generator=generator)
    if sample.values == "masked":
        bias[..., ::3] = -torch.inf
    if sample.values == "large":
        q = q * 30
    return q, *parts, used, bias


def _sample(
    b: int, h: int, g: int, t: int, length: int, d: int, reason: str, *, k: tuple[int, int, int],
    v: tuple[int, int, int], scale: float = 0.0, causal: int = 0, window: int = 0, values: str = "normal",
) -> Sample:  # fmt: skip
    attributes: dict[str, int | float] = {"k_bits": k[0], "k_axis": k[1], "k_group": k[2]}
    attributes |= {"v_bits": v[0], "v_axis": v[1], "v_group": v[2], "scale": scale, "causal": causal, "window": window}
    axes = {"B": b, "H": h, "G": g, "T": t, "L": length, "D": d}
    return Sample(axes=axes, attributes=attributes, reason=reason, values=values)


OPERATOR = Operator(
    spec=SPEC,
    function=kv_attention,
    body=BODY,
    make_inputs=_make_inputs,
    samples=(
        _sample(1, 1, 1, 1, 1, 4, "one slot, one query", k=(2, 0, 0), v=(2, 1, 0)),
        _sample(2, 3, 3, 1, 7, 20, "primes, no grouped heads", k=(2, 0, 0), v=(4, 1, 0)),
        _sample(2, 6, 2, 1, 13, 20, "grouped heads, 8-bit keys along channels", k=(8, 1, 5), v=(2, 0, 0)),
        _sample(3, 4, 2, 1, 12, 16, "each item its own length", k=(4, 0, 3), v=(4, 1, 4), values="lengths"),
        _sample(2, 4, 2, 1, 12, 16, "an item with an empty cache", k=(4, 0, 3), v=(4, 1, 4), values="empty"),
        _sample(2, 4, 2, 5, 12, 16, "five queries, causal", k=(4, 0, 3), v=(4, 1, 4), causal=1),
        _sample(3, 4, 2, 5, 17, 16, "causal, own lengths, a window", k=(4, 0, 0), v=(2, 1, 8), causal=1, window=3,
                values="lengths"),
        _sample(2, 4, 2, 3, 9, 16, "causal, shorter than the queries", k=(4, 0, 0), v=(2, 1, 8), causal=1,
                values="empty"),
        _sample(3, 4, 2, 2, 9, 16, "lengths out of range", k=(4, 0, 0), v=(2, 1, 8), causal=1, values="over"),
        _sample(2, 4, 2, 2, 9, 16, "a window without causal", k=(4, 1, 0), v=(8, 1, 8), window=4),
        _sample(2, 4, 2, 1, 9, 16, "bias of KV heads: log-counts", k=(4, 1, 0), v=(8, 1, 8), values="kv_bias"),
        _sample(2, 4, 2, 3, 9, 16, "bias of query heads and queries", k=(4, 1, 0), v=(8, 1, 8), values="head_bias"),
        _sample(2, 4, 2, 2, 9, 16, "slots masked by -inf, own lengths", k=(4, 1, 0), v=(8, 1, 8),
                values="masked"),
        _sample(2, 4, 1, 1, 9, 16, "one KV head, a scale of its own", k=(8, 0, 9), v=(8, 0, 3), scale=0.3),
        _sample(1, 2, 1, 1, 33, 8, "float32 scales", k=(2, 0, 11), v=(2, 1, 4), values="fp32_scales"),
        _sample(1, 2, 2, 1, 64, 32, "exponents that overflow without shifting", k=(4, 0, 32), v=(4, 1, 32),
                values="large"),
        _sample(1, 8, 2, 1, 129, 128, "KIVI, one above a block", k=(2, 0, 43), v=(2, 1, 32)),
        _sample(1, 32, 8, 1, 512, 128, "Llama-3-8B, 4 bits", k=(4, 0, 64), v=(4, 1, 64)),
        _sample(1, 4, 1, 1, 4096, 64, "a long context", k=(4, 0, 64), v=(4, 1, 64)),
    ),
)  # fmt: skip
