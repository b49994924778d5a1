"""KVAttention: attention straight over a packed key-value cache."""

import torch
from torch import Tensor

from trt_compress.errors import ShapeError
from trt_compress.plugins.kv_attention.attending import (
    attend,
    attending_attributes,
    attending_body,
    check_heads,
    check_length,
    checked_bias,
    checked_index,
)
from trt_compress.plugins.kv_attention.choosing import Calls, choices, chosen_text, some_choose, taken_values_text
from trt_compress.plugins.kv_attention.sides import (
    checked_factors,
    checked_rope,
    corrected,
    corrected_text,
    side_inputs,
    turned_text,
)
from trt_compress.plugins.kv_attention.sides import turned as turned_rows
from trt_compress.plugins.kv_attention.spec import SPEC
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


def _body(calls: Calls) -> str:
    """Rows as numbers, then what all attention does with them."""
    if some_choose(calls):
        rows = [chosen_text(calls, "k_code"), taken_values_text("k_"), taken_values_text("v_")]
    else:
        rows = [product_text("k_"), product_text("v_"), _ALL]
    k_added, k_rows = corrected_text(calls, "k", "k_values")
    v_added, v_rows = corrected_text(calls, "v", "v_values")
    k_turned, k_rows = turned_text(calls, k_rows)
    named = f"  k32 = Identity ({k_rows})\n  v32 = Identity ({v_rows})"
    return "\n".join([CONSTANTS, *rows, k_added, v_added, k_turned, named, attending_body(calls)])


_ALL = """
  k_sum = Add (k_product, k_low)
  k_values = Reshape (k_sum, k_values_shape)
  v_sum = Add (v_product, v_low)
  v_values = Reshape (v_sum, v_values_shape)
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
    index: Tensor,
    k_factor: Tensor,
    k_basis: Tensor,
    v_factor: Tensor,
    v_basis: Tensor,
    rope: Tensor,
    k_bits: int,
    k_axis: int,
    k_group: int,
    v_bits: int,
    v_axis: int,
    v_group: int,
    scale: float,
    causal: int,
    window: int,
    softcap: float,
    layout: int,
    sinks: int,
    indexed: int,
    k_rank: int,
    v_rank: int,
    block: int,
    turned: int,
) -> tuple[Tensor, Tensor]:
    k = dequantized(k_code, k_scale, k_minimum, bits=k_bits, axis=k_axis, group=k_group)
    v = dequantized(v_code, v_scale, v_minimum, bits=v_bits, axis=v_axis, group=v_group)
    k = corrected(k, k_factor, k_basis) if k_rank else k
    v = corrected(v, v_factor, v_basis) if v_rank else v
    k = turned_rows(k, rope) if turned else k
    seen = {"causal": causal, "window": window, "layout": layout, "sinks": sinks, "indexed": indexed}
    return attend(q, k, v, length, bias, index, scale=scale, softcap=softcap, **seen)


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
    index: Tensor | None = None,
    k_factor: Tensor | None = None,
    k_basis: Tensor | None = None,
    v_factor: Tensor | None = None,
    v_basis: Tensor | None = None,
    rope: Tensor | None = None,
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
    softcap: float = 0.0,
    layout: str = "linear",
    sinks: int = 0,
    block: int = 0,
) -> tuple[Tensor, Tensor]:
    """Attend over a packed key-value cache.

    Args:
        q: Queries, [B, H, T, D], fp16 | bf16 | fp32. Head h reads KV head h // (H / G).
        k_code: Codes of the keys as kv_quantize packs them, [B, G, L, D * k_bits / 8], uint8.
        k_scale: Steps of the keys, fp16 | fp32, [B, G, L / k_group, D] or [B, G, L, D / k_group]; B or G may be 1:
            items, or KV heads, share them.
        k_minimum: Minima of the keys.
        v_code: Codes of the values, [B, G, L, D * v_bits / 8], uint8.
        v_scale: Steps of the values, the same.
        v_minimum: Minima of the values.
        length: Tokens written, [B] int64, or [B, G], of each KV head; in a linear cache the slots in use, from the
            front, L at most.
        bias: Added to the scaled products, finite or -inf, [1 | B, 1 | G | H, 1 | T, 1 | L]; None: nothing.
        index: Slots that the queries of a KV head attend to, in any order, each once, [1 | B, 1 | G, K] int64; only
            these are read. An entry that is not a slot in use, like -1, is none. None: all slots.
        k_factor: For each key the factors of the rows of its block's basis, [B, G, L, R], fp16 | fp32: their weighted
            sum is added to the key. None: nothing is.
        k_basis: R rows of D channels for each block of `block` slots, [B, G, L / block, R * D], like k_factor.
        v_factor: The same for the values, with an R of its own.
        v_basis: The same for the values.
        rope: Cosines, then sines, that turn the key of a slot and what was added to it: channel i with channel
            i + turned / 2 of the first `turned`, [1 | B, 1 | G, L, turned] fp32. None: keys are read as they are.
        k_bits: 8, 4 or 2.
        k_axis: "channel" or "token", as for kv_quantize.
        k_group: Elements of a group; 0 is the whole axis.
        v_bits: 8, 4 or 2.
        v_axis: "channel" or "token".
        v_group: Elements of a group; 0 is the whole axis.
        scale: Factor of the products; 0 is 1 / sqrt(D).
        causal: The queries are the last T tokens, query t has the number length - T + t and sees no larger ones.
        window: Query t sees numbers above length - T + t - window only: with `causal` the last `window` up to and
            including its own; and those below `sinks`. 0 is no limit.
        softcap: Scaled products p become tanh(p / softcap) * softcap, before bias and mask; 0: they stay.
        layout: "linear", where slot s holds token s, or "ring", where it holds the last one that kv_append put there.
        sinks: First tokens, which a window does not hide; in a ring as for kv_append.
        block: Slots that share a basis; 0 is all of them.

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
    b, h, _, d = q.shape
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
    check_heads(op, h, g)
    check_length(op, length, b, g)
    bias = checked_bias(op, q, bias, g, slots)
    attributes = {
        "k_bits": k_bits,
        "k_axis": along_k,
        "k_group": k_group,
        "v_bits": v_bits,
        "v_axis": along_v,
        "v_group": v_group,
        **attending_attributes(
            op,
            slots,
            scale=scale,
            causal=causal,
            window=window,
            softcap=softcap,
            layout=layout,
            sinks=sinks,
            index=index,
        ),
    }
    index = checked_index(op, q, index, g)
    shape = (b, g, slots, d)
    factors, ranks = checked_factors(op, q, (k_factor, k_basis), (v_factor, v_basis), shape, block)
    table, width = checked_rope(op, q, rope, shape)
    attributes |= {**ranks, **width}
    y, lse = run_operator(SPEC, [q, *keys, *values, length, bias, index, *factors, table], attributes)
    return y, lse


def _make_inputs(sample: Sample, generator: torch.Generator) -> tuple[Tensor, ...]:
    b, h, g, t, length, d = (sample.axes[a] for a in "BHGTLD")
    parts = []
    for which in "kv":
        bits, axis, group = (int(sample.attributes[f"{which}_{name}"]) for name in ("bits", "axis", "group"))  # type: ignore[arg-type]
        shape = [int(size) for size in scale_shape(b, g, length, d, axis=axis, group=group)]
        code = torch.randint(0, 256, (b, g, length, d * bits // 8), generator=generator, dtype=torch.uint8)
        if sample.values == "shared":  # keys by all items, values by all KV heads
            shape["vk".index(which)] = 1
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
    if sample.values == "turned":  # a ring: not yet full, just full, some times around
        used = torch.tensor([length - 2, length, 3 * length + 1])[:b]
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
    if sample.values == "of_heads":
        used = torch.tensor([[(i + 2 * j) % (length + 1) for j in range(g)] for i in range(b)])
    return q, *parts, used, bias, choices(sample, generator), *side_inputs(sample, generator)


def _sample(
    b: int, h: int, g: int, t: int, length: int, d: int, reason: str, *, k: tuple[int, int, int],
    v: tuple[int, int, int], scale: float = 0.0, causal: int = 0, window: int = 0, softcap: float = 0.0,
    layout: int = 0, sinks: int = 0, values: str = "normal", chosen: int = 0,
    ranks: tuple[int, int] = (0, 0), block: int = 0, turned: int = 0,
) -> Sample:  # fmt: skip
    attributes: dict[str, int | float] = {"k_bits": k[0], "k_axis": k[1], "k_group": k[2]}
    attributes |= {"v_bits": v[0], "v_axis": v[1], "v_group": v[2], "scale": scale, "causal": causal, "window": window}
    attributes |= {"softcap": softcap, "layout": layout, "sinks": sinks, "indexed": int(chosen > 0)}
    attributes |= {"k_rank": ranks[0], "v_rank": ranks[1], "block": block, "turned": turned}
    axes = {"B": b, "H": h, "G": g, "T": t, "L": length, "D": d} | ({"K": chosen} if chosen else {})
    return Sample(axes=axes, attributes=attributes, reason=reason, values=values)


OPERATOR = Operator(
    spec=SPEC,
    function=kv_attention,
    body=_body,
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
        _sample(3, 4, 2, 3, 13, 16, "a ring with sinks, a window, a soft cap", k=(4, 1, 0), v=(8, 1, 8), causal=1,
                window=6, softcap=2.0, layout=1, sinks=2, values="turned"),
        _sample(2, 4, 2, 1, 9, 16, "bias of KV heads: log-counts", k=(4, 1, 0), v=(8, 1, 8), values="kv_bias"),
        _sample(2, 4, 2, 3, 9, 16, "bias of query heads and queries", k=(4, 1, 0), v=(8, 1, 8), values="head_bias"),
        _sample(2, 4, 2, 2, 9, 16, "slots masked by -inf, own lengths", k=(4, 1, 0), v=(8, 1, 8),
                values="masked"),
        _sample(2, 4, 1, 1, 9, 16, "one KV head, a scale of its own", k=(8, 0, 9), v=(8, 0, 3), scale=0.3),
        _sample(2, 4, 2, 1, 12, 16, "scales that KV heads, or items, share", k=(4, 0, 0), v=(4, 1, 0), values="shared"),
        _sample(3, 4, 2, 2, 12, 16, "a length for each KV head", k=(4, 0, 3), v=(4, 1, 4), causal=1, values="of_heads"),
        _sample(2, 6, 2, 1, 12, 16, "chosen slots, groups of tokens", k=(4, 0, 3), v=(4, 1, 4), values="lengths",
                chosen=7),
        _sample(2, 4, 2, 3, 14, 20, "chosen slots, groups that cut vectors", k=(2, 1, 5), v=(8, 0, 7), causal=1,
                chosen=9),
        _sample(3, 4, 2, 3, 13, 16, "chosen slots of a ring with sinks", k=(4, 1, 0), v=(8, 1, 8), causal=1, window=6,
                softcap=2.0, layout=1, sinks=2, values="turned", chosen=6),
        _sample(2, 4, 2, 3, 9, 16, "chosen slots, a bias of each", k=(4, 0, 0), v=(4, 0, 3), values="head_bias",
                chosen=5),
        _sample(2, 4, 2, 1, 9, 16, "chosen slots, log-counts", k=(8, 1, 0), v=(2, 1, 8), values="kv_bias", chosen=4),
        _sample(2, 4, 2, 1, 12, 16, "chosen slots, shared scales", k=(4, 0, 3), v=(4, 1, 4), values="shared", chosen=5),
        _sample(1, 12, 1, 7, 300, 64, "chosen slots, many queries", k=(4, 0, 100), v=(4, 1, 32), causal=1, chosen=140),
        _sample(1, 4, 2, 1, 1500, 64, "more chosen slots than a chunk has", k=(4, 0, 60), v=(4, 1, 64), chosen=700),
        _sample(2, 4, 2, 2, 12, 16, "products of low rank in blocks", k=(4, 0, 3), v=(4, 1, 4), causal=1, ranks=(2, 3),
                block=4, values="lengths"),
        _sample(2, 2, 2, 1, 10, 20, "products for keys alone, one block", k=(2, 1, 5), v=(4, 1, 0), ranks=(1, 0)),
        _sample(1, 9, 1, 5, 70, 20, "products for values alone, many queries", k=(2, 1, 4), v=(4, 0, 7), ranks=(0, 2),
                block=35),
        _sample(2, 4, 2, 2, 12, 16, "keys turned on reading", k=(4, 0, 3), v=(4, 1, 4), causal=1, turned=16,
                values="lengths"),
        _sample(2, 4, 2, 3, 14, 20, "some channels turned, one table", k=(8, 1, 5), v=(2, 0, 7), turned=6, scale=0.5,
                values="shared"),
        _sample(1, 11, 1, 4, 40, 24, "products and turns, many queries, float32", k=(2, 1, 12), v=(8, 1, 6),
                ranks=(2, 2), block=8, turned=24, values="fp32_scales"),
        _sample(2, 4, 2, 2, 18, 16, "chosen slots, products and turns", k=(4, 0, 3), v=(4, 1, 4), ranks=(3, 1), block=6,
                turned=10, chosen=9),
        _sample(1, 4, 2, 1, 1280, 64, "GEAR: blocks of a residual", k=(4, 0, 64), v=(4, 1, 64), ranks=(4, 4), block=64),
        _sample(1, 2, 1, 1, 33, 8, "float32 scales", k=(2, 0, 11), v=(2, 1, 4), values="fp32_scales"),
        _sample(1, 2, 2, 1, 64, 32, "exponents that overflow without shifting", k=(4, 0, 32), v=(4, 1, 32),
                values="large"),
        _sample(1, 8, 2, 1, 129, 128, "KIVI, one above a block", k=(2, 0, 43), v=(2, 1, 32)),
        _sample(1, 32, 8, 1, 512, 128, "Llama-3-8B, 4 bits", k=(4, 0, 64), v=(4, 1, 64)),
        _sample(1, 4, 1, 1, 4096, 64, "a long context", k=(4, 0, 64), v=(4, 1, 64)),
    ),
)  # fmt: skip
