"""KVAttentionPlain: attention over a key-value cache of floats."""

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
from trt_compress.plugins.kv_attention.choosing import Calls, choices, chosen_text, some_choose, taken_text
from trt_compress.plugins.kv_attention_plain.spec import SPEC
from trt_compress.plugins.operator import Operator, check_tensor, register_fake, run_operator
from trt_compress.plugins.spec import Sample


def _body(calls: Calls) -> str:
    """What every call needs first: constants, the rows in float32."""
    if some_choose(calls):
        rows = [chosen_text(calls, "k"), taken_text("k_taken", "k"), taken_text("v_taken", "v")]
    else:
        rows = ["  k_taken = Identity (k)", "  v_taken = Identity (v)"]
    return "\n".join([_CONSTANTS, *rows, _WIDENED, attending_body(calls)])


_CONSTANTS = """
  i0 = Constant <value_int = 0> ()
  i1 = Constant <value_int = 1> ()
  v0 = Constant <value_ints = [0]> ()
  v1 = Constant <value_ints = [1]> ()
  v3 = Constant <value_ints = [3]> ()
"""
_WIDENED = """
  k32 = Cast <to = 1> (k_taken)
  v32 = Cast <to = 1> (v_taken)
"""


@torch.library.custom_op("trt_compress::kv_attention_plain", mutates_args=())
def _kv_attention_plain(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    length: Tensor,
    bias: Tensor,
    index: Tensor,
    scale: float,
    causal: int,
    window: int,
    softcap: float,
    layout: int,
    sinks: int,
    indexed: int,
) -> tuple[Tensor, Tensor]:
    seen = {"causal": causal, "window": window, "layout": layout, "sinks": sinks, "indexed": indexed}
    return attend(q, k.float(), v.float(), length, bias, index, scale=scale, softcap=softcap, **seen)


register_fake(SPEC, _kv_attention_plain)


def kv_attention_plain(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    length: Tensor,
    bias: Tensor | None = None,
    index: Tensor | None = None,
    *,
    scale: float = 0.0,
    causal: bool = False,
    window: int = 0,
    softcap: float = 0.0,
    layout: str = "linear",
    sinks: int = 0,
) -> tuple[Tensor, Tensor]:
    """Attend over a key-value cache of floats.

    Args:
        q: Queries, [B, H, T, D], fp16 | bf16 | fp32. Head h reads KV head h // (H / G).
        k: Keys, one row for each slot, [B, G, L, D], fp16 | bf16 | fp32.
        v: Values, the same shape and dtype as k.
        length: Tokens written, [B] int64, or [B, G], of each KV head; in a linear cache the slots in use, from the
            front, L at most.
        bias: Added to the scaled products, finite or -inf, [1 | B, 1 | G | H, 1 | T, 1 | L]; None: nothing.
        index: Slots that the queries of a KV head attend to, in any order, each once, [1 | B, 1 | G, K] int64; only
            these are read. An entry that is not a slot in use, like -1, is none. None: all slots.
        scale: Factor of the products; 0 is 1 / sqrt(D).
        causal: The queries are the last T tokens, query t has the number length - T + t and sees no larger ones.
        window: Query t sees numbers above length - T + t - window only: with `causal` the last `window` up to and
            including its own; and those below `sinks`. 0 is no limit.
        softcap: Scaled products p become tanh(p / softcap) * softcap, before bias and mask; 0: they stay.
        layout: "linear", where slot s holds token s, or "ring", where it holds the last one that kv_append put there.
        sinks: First tokens, which a window does not hide; in a ring as for kv_append.

    Returns:
        Weighted means of the values [B, H, T, D] in q's dtype; natural logs of the sums of exponentials [B, H, T]
        float32. Where no slot is seen they are 0 and -inf.

    With T rows appended of which an item needs only some, give length = position + T: rows that only fill up are seen
    by their own queries alone and are overwritten next time. In a ring with L >= sinks + window + T - 1 nothing that a
    query needs has been overwritten.

    Raises:
        ConfigError: an attribute is not allowed.
        ShapeError: a tensor has the wrong shape or dtype.

    Source: FlashAttention, arXiv:2205.14135; FlashDecoding, https://pytorch.org/blog/flash-decoding.
    Differs: see SPEC.differs.
    """
    op = "kv_attention_plain"
    check_tensor(op, "q", q, (None, None, None, None), "BHTD")
    b, h, _, d = q.shape
    if d < 1:
        raise ShapeError(f"{op}: q has D=0 channels; give at least one.")
    check_tensor(op, "k", k, (b, None, None, d), "BGLD")
    g, slots = k.shape[1:3]
    check_tensor(op, "v", v, (b, g, slots, d), "BGLD", [str(k.dtype).removeprefix("torch.")])
    check_heads(op, h, g)
    check_length(op, length, b, g)
    bias = checked_bias(op, q, bias, g, slots)
    attributes = attending_attributes(
        op, slots, scale=scale, causal=causal, window=window, softcap=softcap, layout=layout, sinks=sinks, index=index
    )
    index = checked_index(op, q, index, g)
    y, lse = run_operator(SPEC, [q, k, v, length, bias, index], attributes)
    return y, lse


def _make_inputs(sample: Sample, generator: torch.Generator) -> tuple[Tensor, ...]:
    b, h, g, t, length, d = (sample.axes[a] for a in "BHGTLD")
    q = torch.randn(b, h, t, d, generator=generator)
    k, v = (torch.randn(b, g, length, d, generator=generator) for _ in range(2))
    used = {
        "lengths": torch.tensor([(length * (i + 1)) // b - i for i in range(b)]).clamp(min(t, length), length),
        "over": length + 7 * torch.arange(b) - 5,
        "turned": torch.tensor([length - 2, length, 3 * length + 1, 7 * length, 0])[:b],
    }.get(sample.values, torch.full((b,), length))
    if sample.values == "over":
        used[0] = -5
    shapes = {"bias": (b, h, t, length), "masked": (1, g, 1, length), "kv_bias": (b, g, 1, length)}
    shape = shapes.get(sample.values, (1, 1, 1, 1))
    bias = torch.randn(shape, generator=generator)
    if sample.values == "masked":
        bias[..., ::3] = -torch.inf
    if sample.values == "of_heads":
        used = torch.tensor([[(i + 2 * j) % (length + 1) for j in range(g)] for i in range(b)])
    index = choices(sample, generator)
    return (q * 30 if sample.values == "large" else q), k, v, used, bias, index


def _sample(
    b: int, h: int, g: int, t: int, length: int, d: int, reason: str, *, scale: float = 0.0, causal: int = 0,
    window: int = 0, softcap: float = 0.0, layout: int = 0, sinks: int = 0, values: str = "normal", chosen: int = 0,
) -> Sample:  # fmt: skip
    attributes: dict[str, int | float] = {"scale": scale, "causal": causal, "window": window}
    attributes |= {"softcap": softcap, "layout": layout, "sinks": sinks, "indexed": int(chosen > 0)}
    axes = {"B": b, "H": h, "G": g, "T": t, "L": length, "D": d} | ({"K": chosen} if chosen else {})
    return Sample(axes=axes, attributes=attributes, reason=reason, values=values)


OPERATOR = Operator(
    spec=SPEC,
    function=kv_attention_plain,
    body=_body,
    make_inputs=_make_inputs,
    samples=(
        _sample(1, 1, 1, 1, 1, 1, "one slot, one query, one channel"),
        _sample(2, 3, 3, 1, 7, 5, "primes, no grouped heads"),
        _sample(3, 6, 2, 1, 13, 16, "grouped heads, each item its own length", values="lengths"),
        _sample(2, 6, 2, 5, 17, 20, "a chunk, causal", causal=1),
        _sample(3, 4, 2, 5, 12, 16, "causal, lengths out of range", causal=1, values="over"),
        _sample(3, 4, 2, 4, 15, 16, "causal, a window, own lengths", causal=1, window=3, values="lengths"),
        _sample(3, 4, 2, 4, 15, 16, "a window behind sinks", causal=1, window=3, sinks=2, values="lengths"),
        _sample(5, 4, 2, 1, 12, 16, "a ring, one query", causal=1, window=12, layout=1, values="turned"),
        _sample(5, 4, 2, 4, 12, 16, "a ring, a chunk", causal=1, window=9, layout=1, values="turned"),
        _sample(5, 4, 2, 4, 14, 16, "a ring behind sinks", causal=1, window=7, layout=1, sinks=4, values="turned"),
        _sample(5, 4, 2, 3, 9, 16, "a ring, all of it", layout=1, sinks=1, values="turned"),
        _sample(2, 4, 2, 3, 9, 16, "soft cap and a scale of its own", softcap=1.5, scale=0.7, causal=1),
        _sample(2, 4, 2, 3, 9, 16, "bias of query heads and queries", causal=1, values="bias"),
        _sample(2, 4, 2, 2, 9, 16, "slots masked by -inf", values="masked"),
        _sample(2, 4, 2, 1, 12, 16, "a length for each KV head", values="of_heads"),
        _sample(3, 6, 3, 4, 12, 16, "the same, causal", causal=1, values="of_heads"),
        _sample(1, 1, 1, 1, 1, 1, "the one slot, chosen", chosen=1),
        _sample(2, 6, 2, 1, 13, 16, "chosen slots, own lengths", values="lengths", chosen=5),
        _sample(3, 4, 2, 5, 12, 16, "chosen slots, causal, lengths out of range", causal=1, values="over", chosen=9),
        _sample(3, 4, 2, 4, 15, 16, "chosen slots, a window behind sinks", causal=1, window=3, sinks=2,
                values="lengths", chosen=15),
        _sample(5, 4, 2, 4, 14, 20, "chosen slots of a ring", causal=1, window=7, layout=1, sinks=4, values="turned",
                chosen=8),
        _sample(2, 4, 2, 3, 9, 16, "chosen slots, a bias of each", causal=1, values="bias", chosen=4),
        _sample(2, 4, 2, 1, 9, 16, "chosen slots, bias of KV heads", values="kv_bias", chosen=4),
        _sample(2, 4, 2, 2, 9, 16, "slots chosen for all heads and items", softcap=2.0, values="shared", chosen=4),
        _sample(3, 4, 2, 2, 9, 16, "chosen slots, a length for each KV head", values="of_heads", chosen=6),
        _sample(1, 6, 2, 37, 131, 64, "a chunk beyond blocks, chosen slots", causal=1, chosen=70),
        _sample(1, 9, 3, 1, 1300, 64, "more chosen slots than a chunk has", chosen=600),
        _sample(1, 2, 2, 1, 64, 32, "exponents that overflow without shifting", values="large"),
        _sample(1, 6, 2, 37, 131, 64, "a chunk beyond blocks of queries and slots", causal=1),
        _sample(1, 9, 3, 1, 512, 64, "SmolLM2-135M, one token"),
        _sample(1, 4, 1, 64, 1100, 64, "a chunk of a long prompt", causal=1),
    ),
)  # fmt: skip
