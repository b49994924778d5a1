"""Hard calls of the packed-cache operators: sizes around blocks and lanes, odd head counts, lengths that are none.

Both native forms are held against the reference in float64, with bounds that follow from float32 arithmetic.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trt_compress.plugins.testing.reference import reference

Array = np.ndarray[Any, Any]
Format = tuple[int, int, int]  # bits, axis, group

SMALLEST, LARGEST = -(2**63), 2**63 - 1
TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
UNIT = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}  # of a result's rounding


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call, by what is peculiar to it."""

    name: str
    op_type: str
    attributes: dict[str, int | float]
    inputs: tuple[Tensor, ...]


def attention(
    name: str,
    *,
    b: int = 1,
    h: int = 2,
    g: int = 1,
    t: int = 1,
    length: int = 40,
    d: int = 16,
    k: Format = (4, 0, 0),
    v: Format = (4, 1, 0),
    used: Sequence[int] | Sequence[Sequence[int]] | None = None,
    chosen: Sequence[int] | None = None,
    bias: Sequence[int] = (1, 1, 1, 1),
    dtype: str = "float32",
    scales: tuple[str, str] = ("float16", "float16"),
    bias_dtype: str = "float32",
    masked: str = "",
    factor: float = 1.0,
    scale: float = 0.0,
    causal: int = 0,
    window: int = 0,
    softcap: float = 0.0,
    layout: int = 0,
    sinks: int = 0,
    seed: int = 0,
    shared: tuple[str, str] = ("", ""),
    plain: str = "",
    ranks: tuple[int, int] = (0, 0),
    block: int = 0,
    turned: int = 0,
    table: tuple[int, int] = (1, 1),
    factor_dtype: str = "float16",
) -> Call:
    """A call of KVAttention on random codes, or of KVAttentionPlain on random rows of type `plain`.

    `masked` sets some biases to -inf: "some", "rows" or "all"; `shared` names the axes, of BG, along which the scales
    of keys and of values are the same. `chosen` is the shape [1 | b, 1 | g, K] of an index of slots in any order, among
    entries that are none. `ranks` are those of the products that are added to keys and values, in blocks of `block`
    slots; `turned` channels of the keys are turned by a table for `table` items and KV heads.
    """
    generator = torch.Generator().manual_seed(seed)

    def side(form: Format, scale_dtype: str, same: str) -> list[Tensor]:
        bits, axis, group = form
        code = torch.randint(0, 256, (b, g, length, d * bits // 8), generator=generator, dtype=torch.uint8)
        shape = (b, g, length // group if group else 1, d) if axis == 0 else (b, g, length, d // group if group else 1)
        shape = (1 if "B" in same else b, 1 if "G" in same else g, *shape[2:])
        steps = (torch.rand(shape, generator=generator) + 0.5) * 4 / (2**bits - 1)
        return [
            code,
            steps.to(TYPES[scale_dtype]),
            (torch.randn(shape, generator=generator) - 2).to(TYPES[scale_dtype]),
        ]

    q = factor * torch.randn(b, h, t, d, generator=generator)
    added = torch.randn(tuple(bias), generator=generator)
    if masked == "some":
        added[..., ::3] = -torch.inf
    if masked == "rows":
        added[:, :, ::2] = -torch.inf
    if masked == "all":
        added[:] = -torch.inf
    slots = torch.tensor([length] * b if used is None else list(used), dtype=torch.int64)
    attending = {"scale": scale, "causal": causal, "window": window}
    attending |= {"softcap": softcap, "layout": layout, "sinks": sinks, "indexed": int(chosen is not None)}
    index = torch.full((1, 1, 1), -1)
    if chosen is not None:
        index = torch.rand(*chosen[:2], max(length, chosen[2]), generator=generator).argsort(dim=2)[..., : chosen[2]]
        index[..., 1::5] = torch.tensor([-1, length, SMALLEST, LARGEST])[torch.arange(index[..., 1::5].shape[2]) % 4]
    if plain:
        rows = [torch.randn(b, g, length, d, generator=generator).to(TYPES[plain]) for _ in range(2)]
        given = (q.to(TYPES[dtype]), *rows, slots, added.to(TYPES[bias_dtype]), index)
        return Call(name=f"{name}, {plain}", op_type="TrtcKVAttentionPlain", attributes=attending, inputs=given)
    attributes: dict[str, int | float] = {"k_bits": k[0], "k_axis": k[1], "k_group": k[2]}
    attributes |= {"v_bits": v[0], "v_axis": v[1], "v_group": v[2], **attending}
    attributes |= {"k_rank": ranks[0], "v_rank": ranks[1], "block": block, "turned": turned}
    sides = (*side(k, scales[0], shared[0]), *side(v, scales[1], shared[1]))
    others: list[Tensor] = []
    for rank in ranks:
        blocks = length // block if block else 1
        shapes = ((b, g, length, rank), (b, g, blocks, rank * d)) if rank else ((1, 1, 1, 1),) * 2
        others += [torch.randn(shape, generator=generator).to(TYPES[factor_dtype]) for shape in shapes]
    angle = 20 * torch.rand(*table, length, turned // 2, generator=generator)
    others.append(torch.cat([angle.cos(), angle.sin()], dim=3) if turned else torch.zeros(1, 1, 1, 1))
    inputs = (q.to(TYPES[dtype]), *sides, slots, added.to(TYPES[bias_dtype]), index, *others)
    return Call(name=name, op_type="TrtcKVAttention", attributes=attributes, inputs=inputs)


def side_calls(lengths: Sequence[int]) -> list[Call]:
    """Of KVAttention with products of low rank, and with keys that are turned."""
    formats = (((4, 0, 8), (4, 1, 8)), ((2, 1, 8), (2, 0, 10)), ((8, 0, 0), (8, 1, 0)), ((4, 1, 3), (2, 1, 1)))
    calls = []
    for (k, v), t in itertools.product(formats, (1, 3, 11)):
        for ranks, block, turned in (((2, 3), 8, 0), ((1, 0), 0, 24), ((0, 4), 5, 10), ((3, 1), 1, 2), ((0, 0), 0, 22)):
            calls.append(
                attention(f"ranks {ranks}, blocks of {block}, {turned} turned, {t} queries, keys {k}, values {v}",
                          b=2, h=6, g=2, t=t, d=24, k=k, v=v, used=(40, 23), causal=1, ranks=ranks, block=block,
                          turned=turned, table=(1 + t % 2, 1 + len(calls) % 2))
            )  # fmt: skip
    for d in (2, 4, 12, 20, 36, 64, 68, 100, 128, 132, 256, 260, 508, 512):
        bits = 4 if d % 4 else 2
        calls.append(attention(f"D={d}, sides", d=d, length=35, h=5, k=(bits, 0, 5), v=(bits, 1, 0), ranks=(2, 2),
                               block=7))  # fmt: skip
        calls.append(attention(f"D={d}, all turned", d=d, length=35, h=3, k=(bits, 1, d // 2), v=(bits, 0, 7),
                               turned=d, ranks=(0, 1)))  # fmt: skip
    both: dict[str, Any] = {"ranks": (2, 1), "block": 10, "turned": 12}
    calls += [
        attention("sides, no channel beside a pair", d=3, k=(8, 1, 3), v=(8, 1, 0), turned=2, ranks=(1, 1)),
        attention("sides, lengths", b=8, t=3, h=6, g=2, used=lengths, causal=1, **both),
        attention("products alone, lengths", b=8, t=3, h=6, g=2, used=lengths, causal=1, ranks=(2, 1), block=10),
        attention("sides, no slots", b=2, length=0, ranks=(2, 1), block=10, turned=12),
        attention("sides, no slots, one block", b=2, length=0, ranks=(2, 1), turned=12),
        attention("sides, no items", b=0, **both),
        attention("sides, no queries", t=0, **both),
        attention("sides, splits", length=600, h=6, g=2, k=(4, 0, 50), v=(2, 0, 25), ranks=(3, 2), block=30),
        attention(
            "sides turned, splits", length=600, h=6, g=2, k=(4, 0, 50), v=(2, 0, 25), ranks=(3, 2), block=30, turned=16
        ),
        attention("sides, many splits", length=2400, h=3, d=64, k=(4, 0, 60), v=(4, 1, 0), ranks=(4, 4), block=60),
        attention("sides in float32", ranks=(2, 2), block=4, factor_dtype="float32", dtype="float16"),
        attention("sides, a ring", b=4, t=3, used=(2, 40, 55, 2**40), causal=1, window=20, layout=1, sinks=4, **both),
        attention(
            "sides, a soft cap and biases", b=2, h=6, g=2, t=3, bias=(2, 6, 3, 40), masked="some", softcap=3.0, **both
        ),
        attention("sides, shared scales", b=2, h=6, g=3, shared=("B", "G"), **both),
        attention("sides, no slot chosen", chosen=(1, 1, 0), **both),
    ]
    for (k, v), t in itertools.product(formats, (1, 17)):
        calls.append(
            attention(f"sides, chosen slots, {t} queries, keys {k}, values {v}", d=24, h=4, g=2, t=t, k=k, v=v, b=2,
                      used=(40, 23), causal=1, chosen=(2, 2, 21), table=(2, 2), **both)
        )  # fmt: skip
        calls.append(
            attention(f"products, chosen slots, {t} queries, keys {k}, values {v}", d=24, h=4, g=2, t=t, k=k, v=v, b=2,
                      used=(40, 23), causal=1, chosen=(1, 2, 21), ranks=(2, 2), block=5)
        )  # fmt: skip
    return calls


def attention_calls() -> list[Call]:
    """All of them."""
    lengths = (SMALLEST, -1, 0, 1, 39, 40, 41, LARGEST)
    calls = [
        *side_calls(lengths),
        attention("lengths", b=8, used=lengths),
        attention("lengths, causal", b=8, t=3, used=lengths, causal=1),
        attention("lengths, a window", b=8, t=3, used=lengths, window=2),
        attention("lengths, causal, a window", b=8, t=5, h=6, g=2, used=lengths, causal=1, window=4),
        attention("the largest window", b=8, t=5, used=lengths, causal=1, window=2**31 - 1),
        attention("a window of one", t=3, causal=1, window=1),
        attention("a window around a tile", t=2, length=300, causal=1, window=33, k=(4, 1, 4)),
        attention("more queries than slots", t=9, length=4, causal=1),
        attention("no slots", b=2, length=0, k=(4, 0, 0), v=(4, 1, 0)),
        attention("no slots, groups", b=2, length=0, k=(4, 0, 8), v=(4, 1, 8)),
        attention("one slot", length=1),
        attention("no items", b=0),
        attention("no queries", t=0),
        attention("bfloat16", dtype="bfloat16", bias_dtype="bfloat16", bias=(1, 2, 1, 40)),
        attention("float16", dtype="float16", bias_dtype="float16", bias=(1, 1, 1, 40)),
        attention("float16 and float32 scales", dtype="float16", scales=("float32", "float16"), k=(8, 0, 8)),
        attention("float32 scales of values", scales=("float16", "float32"), v=(2, 0, 5)),
        attention("all slots masked", t=3, bias=(1, 1, 1, 40), masked="all"),
        attention("all slots of some queries masked", t=3, bias=(1, 1, 3, 40), masked="rows"),
        attention("some slots masked", bias=(1, 2, 1, 40), masked="some", length=40),
        attention("logits of some hundreds", factor=100.0, length=300),
        attention("logits of some thousands, splits", factor=1000.0, length=600),
        attention("a scale of its own", scale=3.5),
        attention("soft cap", softcap=2.0, factor=5.0, t=2),
        attention("a ring", b=4, t=3, used=(2, 40, 55, 2**40), causal=1, window=20, layout=1, sinks=4),
        attention(
            "a ring, many queries", b=4, t=20, h=4, used=(2, 40, 55, 2**40), causal=1, window=20, layout=1, sinks=4
        ),
        attention("a window behind sinks", b=4, t=3, used=(2, 40, 33, 17), causal=1, window=5, sinks=4),
        attention("lengths of KV heads", b=2, h=6, g=2, t=2, used=((0, 40), (-1, 23)), causal=1),
        attention("no slot chosen", chosen=(1, 1, 0)),
        attention("slots chosen of none", b=2, length=0, chosen=(1, 1, 3)),
        attention("lengths, chosen slots", b=8, t=3, h=6, g=2, used=lengths, causal=1, chosen=(8, 2, 40)),
        attention("chosen slots of a ring", b=4, t=3, used=(2, 40, 55, 2**40), causal=1, window=20, layout=1, sinks=4,
                  chosen=(4, 1, 30)),
        attention("chosen slots, splits", length=600, h=6, g=2, k=(4, 0, 50), v=(2, 0, 25), chosen=(1, 2, 590)),
        attention("chosen slots, biases", b=2, h=6, g=2, t=3, bias=(2, 6, 3, 40), causal=1, chosen=(2, 1, 11)),
    ]  # fmt: skip
    for k, v in itertools.product(((2, 0, 4), (4, 1, 3), (8, 1, 24)), ((2, 1, 12), (4, 0, 2), (8, 0, 0))):
        for t in (1, 33):
            calls.append(
                attention(f"chosen slots, {t} queries, keys {k}, values {v}", d=24, h=2, t=t, k=k, v=v, b=2,
                          used=(40, 23), causal=1, chosen=(2, 1, 21))
            )  # fmt: skip
    for repeats, t in ((1, 1), (3, 1), (5, 1), (7, 1), (3, 3), (9, 1), (1, 17), (5, 4)):
        calls.append(
            attention(f"{repeats} heads of a KV head, {t} queries", h=2 * repeats, g=2, t=t, causal=int(t > 1))
        )
    for d in (2, 4, 6, 12, 20, 36, 60, 64, 68, 124, 128, 132, 200, 252, 256, 260, 508, 512):
        bits = 4 if d % 4 else 2
        calls.append(attention(f"D={d}", d=d, length=35, h=5, k=(bits, 0, 5), v=(bits, 1, 0)))
        calls.append(attention(f"D={d}, other axes", d=d, length=35, h=3, k=(bits, 1, d // 2), v=(bits, 0, 7)))
    calls += [attention(f"8 bits, D={d}", d=d, k=(8, 0, 0), v=(8, 1, 0)) for d in (1, 3, 7, 9, 65, 511)]
    for k, v in (((2, 0, 4), (2, 1, 12)), ((4, 1, 3), (4, 0, 7)), ((8, 1, 0), (8, 1, 8)), ((8, 0, 0), (4, 1, 24))):
        calls.append(attention(f"many queries, keys {k}, values {v}", t=43, d=24, length=84, h=2, k=k, v=v, causal=1))
    for k, v in itertools.product(
        ((2, 0, 4), (4, 0, 20), (8, 0, 1), (2, 1, 8), (4, 1, 3), (8, 1, 6), (4, 1, 1), (2, 1, 0)),
        ((2, 1, 12), (4, 1, 8), (8, 1, 24), (2, 0, 10), (4, 0, 2), (8, 0, 0), (2, 1, 1)),
    ):
        calls.append(attention(f"keys {k}, values {v}", d=24, h=3, k=k, v=v, b=2, used=(40, 23)))
    for k, v, same in itertools.product(((4, 0, 8), (8, 1, 3)), ((2, 1, 0), (4, 0, 0)), ("B", "G", "BG")):
        shared = (same, "BG"[len(same) - 1])
        name, t = f"scales shared by {shared}, keys {k}, values {v}", len(same) * 6 - 5
        calls.append(attention(name, b=2, h=6, g=3, d=24, t=t, k=k, v=v, shared=shared))
    for length in (15, 16, 17, 31, 33, 63, 64, 65, 127, 129, 255, 256, 257, 511, 513):
        calls.append(attention(f"L={length}", length=length, d=20, h=4, k=(4, 0, 0)))
        calls.append(attention(f"L={length}, one query, groups of channels", length=length, h=1, k=(8, 1, 4)))
    for i, sizes in enumerate(itertools.product((1, 2), (1, 2, 6), (1, 3), (1, 40))):
        calls.append(attention(f"bias {sizes}", b=2, h=6, g=2, t=3, bias=sizes, causal=1, seed=i))
    return calls


def plain_calls() -> list[Call]:
    """Of KVAttentionPlain: one query and many, rows that end inside of vectors, rings, hostile lengths."""
    lengths = (SMALLEST, -1, 0, 1, 39, 40, 41, LARGEST)
    turned = (0, 1, 3, 39, 40, 41, 77, 2**40)
    calls = []
    for plain in TYPES:
        calls += [
            attention("lengths", b=8, used=lengths, plain=plain),
            attention("many queries, lengths", b=8, t=9, h=4, g=2, used=lengths, causal=1, plain=plain),
            attention("a ring", b=8, h=6, g=2, used=turned, causal=1, window=40, layout=1, plain=plain),
            attention("a ring, hostile lengths", b=8, used=lengths, causal=1, window=9, layout=1, sinks=3, plain=plain),
            attention("a chunk in a ring", b=8, t=7, h=6, g=2, used=turned, causal=1, window=30, layout=1, sinks=4,
                      plain=plain),
            attention("a chunk in a ring, in blocks", b=8, t=19, h=2, g=2, used=turned, causal=1, window=17, layout=1,
                      sinks=4, plain=plain),
            attention("a ring, not causal", b=8, t=3, used=turned, window=5, layout=1, sinks=1, plain=plain),
            attention("a window behind sinks", b=8, t=3, used=lengths, causal=1, window=5, sinks=4, plain=plain),
            attention("sinks beyond the cache", b=8, t=3, used=lengths, causal=1, window=5, sinks=2**31 - 1,
                      plain=plain),
            attention("splits", h=3, length=3000, d=64, plain=plain),
            attention("splits, many queries", t=40, h=2, length=2500, d=64, causal=1, plain=plain),
            attention("a window that skips much", t=33, length=2500, d=32, causal=1, window=70, sinks=5, plain=plain),
            attention("soft cap", t=20, softcap=3.0, factor=10.0, causal=1, plain=plain),
            attention("soft cap, one query", h=4, softcap=0.5, plain=plain),
            attention("bias of KV heads", b=2, h=6, g=2, t=12, bias=(2, 2, 1, 40), causal=1, plain=plain),
            attention("bias of all", b=2, h=6, g=2, t=12, bias=(2, 6, 12, 40), masked="some", plain=plain),
            attention("rows that see nothing", t=20, bias=(1, 1, 20, 40), masked="rows", plain=plain),
            attention("no slots", b=2, length=0, plain=plain),
            attention("no queries", t=0, plain=plain),
            attention("no items", b=0, plain=plain),
            attention("lengths of KV heads", b=2, h=6, g=2, t=9, used=((0, 40), (23, 41)), causal=1, plain=plain),
            attention("no slot chosen", chosen=(1, 1, 0), plain=plain),
            attention("slots chosen of none", b=2, length=0, chosen=(1, 1, 3), plain=plain),
            attention("chosen slots", b=8, h=6, g=2, used=lengths, chosen=(8, 2, 17), plain=plain),
            attention("chosen slots, one list", b=8, h=6, g=2, t=9, used=lengths, causal=1, chosen=(1, 1, 33),
                      plain=plain),
            attention("chosen slots of a ring", b=8, t=7, h=6, g=2, used=turned, causal=1, window=30, layout=1,
                      sinks=4, chosen=(1, 2, 40), plain=plain),
            attention("chosen slots, a window", b=8, t=19, h=2, g=2, used=lengths, causal=1, window=17, sinks=4,
                      chosen=(8, 1, 29), plain=plain),
            attention("chosen slots, splits", h=3, length=1500, d=64, chosen=(1, 1, 1400), plain=plain),
            attention("chosen slots, bias of all", b=2, h=6, g=2, t=3, bias=(2, 6, 3, 40), chosen=(2, 2, 11),
                      masked="some", plain=plain),
            attention("chosen slots, wide heads", d=260, h=2, length=70, chosen=(1, 1, 50), plain=plain),
            attention("other types", t=3, h=4, dtype="float16", bias_dtype="bfloat16", plain=plain),
        ]  # fmt: skip
    for d, t in itertools.product((1, 3, 15, 17, 33, 64, 96, 128, 260, 512), (1, 21)):
        calls.append(attention(f"D={d}, {t} queries", d=d, t=t, h=3, length=70, causal=1, plain="float32"))
        calls.append(attention(f"D={d}, {t} queries", d=d, t=t, h=2, length=35, causal=1, plain="float16"))
    for h, t in ((15, 1), (16, 1), (17, 1), (5, 3), (4, 4), (1, 97), (97, 1), (3, 65)):
        calls.append(attention(f"{h} heads, {t} queries", h=h, t=t, length=140, causal=1, plain="float32"))
    return calls


def index_of(call: Call) -> Tensor:
    """The slots that are chosen."""
    return call.inputs[5 if call.op_type == "TrtcKVAttentionPlain" else 9]


def poison_others(call: Call) -> None:
    """NaN in every row, scale and factor of a slot that the index does not name, or that is not in use."""
    is_plain = call.op_type == "TrtcKVAttentionPlain"
    length, index = call.inputs[3 if is_plain else 7], index_of(call)
    sides = [at for at in (10, 12, 14) if not is_plain and call.inputs[at].shape[2] > 1]
    for at in (1, 2) if is_plain else (2, 3, 5, 6, *sides):
        for item, head, slot in np.ndindex(call.inputs[at].shape[:3]):
            if slot not in index[item, head] or slot >= int(length[item]):
                call.inputs[at][item, head, slot] = torch.nan


def attention_problem(call: Call, y: Tensor, lse: Tensor) -> str:
    """What is wrong with the outputs; nothing if they are as near as float32 products and sums must be."""
    wide = [tensor.double() if tensor.is_floating_point() else tensor for tensor in call.inputs]
    wanted_y, wanted_lse = reference(call.op_type, tuple(tensor.numpy() for tensor in wide), call.attributes).outputs
    attributes, q = call.attributes, wide[0]
    factor = attributes["scale"] or 1 / math.sqrt(q.shape[3])

    is_plain = call.op_type == "TrtcKVAttentionPlain"

    def most(which: str) -> float:
        """The largest size of what a code stands for, before its two parts are added."""
        if is_plain:
            rows = wide[1 if which == "k" else 2]
            return float(rows.abs().max()) if rows.numel() else 0.0
        at = 1 if which == "k" else 4
        code, steps, minima = call.inputs[at], wide[at + 1], wide[at + 2]
        if code.numel() == 0:
            return 0.0
        size = float((2 ** int(attributes[f"{which}_bits"]) - 1) * steps.abs().max() + minima.abs().max())
        left, right = wide[10 if which == "k" else 12], wide[11 if which == "k" else 13]
        size += float(attributes[f"{which}_rank"] * left.abs().max() * right.abs().max())
        return size * math.sqrt(2) if which == "k" and attributes["turned"] else size

    products = float(q.norm(dim=3).max()) * most("k") * factor if q.numel() else 0.0
    bias = wide[4 if is_plain else 8]
    added = bias[bias.isfinite()]
    largest = products + (float(added.abs().max()) if added.numel() else 0.0)
    slack = 8 * 2.0**-24 * (1 + largest)
    for name, found, wanted, bound in (
        ("lse", lse, wanted_lse, slack),
        ("y", y, wanted_y, (slack + 2.0**-20) * most("v")),
    ):
        values = found.double().numpy()
        if values.shape != wanted.shape:
            return f"{name} has shape {values.shape}"
        if not np.array_equal(np.isfinite(values), np.isfinite(wanted)):
            return f"{name} is infinite or NaN where it must not be, or finite where it must not be"
        finite = np.isfinite(wanted)
        allowed = bound + 2 * UNIT[found.dtype] * np.abs(wanted[finite])
        error = np.abs(values[finite] - wanted[finite]) - allowed
        if error.size and error.max() > 0:
            return f"{name} is wrong by {error.max():.2e} more than the {bound:.2e} that are allowed"
    return ""


def quantize_calls() -> list[Call]:
    """Of KVQuantize: values with ties, constants, spikes and large ranges, in every format and type."""
    calls = []
    sizes = (
        (1, 1, 1, 8), (2, 3, 5, 12), (1, 2, 33, 20), (1, 1, 520, 4), (1, 1, 3, 264), (1, 1, 6, 256), (1, 2, 0, 8),
        (1, 1, 64, 132),
    )  # fmt: skip
    for i, ((b, g, length, d), bits, axis) in enumerate(itertools.product(sizes, (2, 4, 8), (0, 1))):
        along = length if axis == 0 else d
        divisors = [size for size in range(1, along + 1) if along % size == 0]
        chosen = {0, divisors[-1], divisors[len(divisors) // 2], divisors[0]} if divisors else {4}
        if along * b * g * length > 4000:
            chosen -= {1}  # the reference is slow
        for group in sorted(chosen):
            if length == 0 and axis == 0 and group == 0:
                continue  # has no least value
            dtype = ("float32", "float16", "bfloat16")[(i + group) % 3]
            generator = torch.Generator().manual_seed(i)
            x = torch.randn(b, g, length, d, generator=generator)
            kind = (i + group) % 4
            if kind == 1:
                x = torch.randint(-8, 9, x.shape, generator=generator) / 4
            if kind == 2:
                x[..., ::3] = 60000.0 if dtype == "float16" else 3e38
                x[..., 1::3] = -60000.0 if dtype == "float16" else -3e37
            if kind == 3:
                x[:, :, ::2] = 0.1
            half = kind != 2 and group % 2 == 0
            attributes: dict[str, int | float] = {"bits": bits, "axis": axis, "group": group}
            calls.append(
                Call(
                    name=f"{(b, g, length, d)} bits={bits} axis={axis} group={group} {dtype} kind={kind}",
                    op_type="TrtcKVQuantize",
                    attributes={**attributes, "scale_type": 10 if half or dtype == "float16" else 1},
                    inputs=(x.to(TYPES[dtype]),),
                )
            )
    return calls


def shared_dequantize_calls() -> list[Call]:
    """Of KVDequantize, with scales that items or KV heads share."""
    calls = []
    for bits, (axis, group), same in itertools.product(
        (2, 4, 8), ((0, 0), (0, 3), (1, 0), (1, 4)), ((1, 3), (2, 1), (1, 1))
    ):
        generator = torch.Generator().manual_seed(bits + group)
        code = torch.randint(0, 256, (2, 3, 6, 72 * bits // 8), generator=generator, dtype=torch.uint8)
        shape = (*same, 6 // (group or 6), 72) if axis == 0 else (*same, 6, 72 // (group or 72))
        scale, minimum = torch.rand(shape, generator=generator).half(), torch.randn(shape, generator=generator).half()
        calls.append(
            Call(
                name=f"shared by {same}: bits={bits} axis={axis} group={group}",
                op_type="TrtcKVDequantize",
                attributes={"bits": bits, "axis": axis, "group": group, "to": 1},
                inputs=(code, scale, minimum),
            )
        )
    return calls


def dequantize_call(call: Call, packed: Sequence[Tensor], to: int) -> Call:
    """KVDequantize of what KVQuantize gave."""
    attributes = {name: call.attributes[name] for name in ("bits", "axis", "group")}
    return Call(
        name=f"{call.name} to={to}",
        op_type="TrtcKVDequantize",
        attributes={**attributes, "to": to},
        inputs=tuple(packed),
    )


def exact_problem(call: Call, found: Sequence[Tensor]) -> str:
    """What is wrong with outputs whose every rounding the contract fixes."""
    given = tuple(
        tensor.float().numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy() for tensor in call.inputs
    )
    with np.errstate(over="ignore"):
        wanted = reference(call.op_type, given, call.attributes).outputs
    for index, (one, two) in enumerate(zip(found, wanted, strict=True)):
        values = one.float().numpy() if one.dtype == torch.bfloat16 else one.numpy()
        if values.shape != two.shape:
            return f"output {index} has shape {values.shape}, not {two.shape}"
        if not np.array_equal(values, two):
            return f"output {index}: {int((values != two).sum())} of {two.size} numbers differ"
    return ""
