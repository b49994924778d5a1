"""KVAttentionPlain with KVAppend as a decoder uses them: chunks of unequal counts, rings, against dense attention."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from trt_compress.errors import ConfigError, ShapeError, TrtCompressError
from trt_compress.plugins.kv_append.op import kv_append
from trt_compress.plugins.kv_attention_plain.op import OPERATOR, kv_attention_plain
from trt_compress.plugins.testing import call_torch, onnx_model
from trt_compress.plugins.testing.forms import session

H, G, D, CHUNK = 4, 2, 8, 5
TOKENS = (61, 40, 1)  # of each item
FILLER = 300.0


def dense(q: Tensor, k: Tensor, v: Tensor, *, window: int, sinks: int, softcap: float) -> Tensor:
    """Causal attention of one sequence, [H, N, D] and [G, N, D], over all its tokens."""
    n = q.shape[1]
    k, v = (tensor.repeat_interleave(H // G, dim=0).double() for tensor in (k, v))
    logits = q.double() @ k.transpose(1, 2) / math.sqrt(D)
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    number = torch.arange(n)
    sees = number[None] <= number[:, None]
    if window:
        sees &= (number[None] > number[:, None] - window) | (number[None] < sinks)
    return logits.masked_fill(~sees, -torch.inf).softmax(dim=2) @ v


@pytest.mark.parametrize(
    ("layout", "slots", "window", "sinks", "softcap"),
    [
        ("linear", 70, 0, 0, 0.0),
        ("linear", 70, 9, 0, 0.0),
        ("linear", 70, 9, 3, 2.0),
        ("ring", 9 + CHUNK - 1, 9, 0, 0.0),
        ("ring", 3 + 9 + CHUNK - 1, 9, 3, 0.0),
        ("ring", 20, 9, 3, 2.0),
        ("ring", 1 + CHUNK - 1, 1, 0, 0.0),
    ],
)
def test_chunks_of_unequal_counts_are_the_whole(
    layout: str, slots: int, window: int, sinks: int, softcap: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    q = [torch.randn(H, n, D, generator=generator) for n in TOKENS]
    k, v = ([torch.randn(G, n, D, generator=generator) for n in TOKENS] for _ in range(2))
    wanted = [dense(*one, window=window, sinks=sinks, softcap=softcap) for one in zip(q, k, v, strict=True)]
    found = [torch.zeros(H, n, D) for n in TOKENS]
    keys, values = (torch.full((len(TOKENS), G, slots, D), FILLER) for _ in range(2))
    position = torch.zeros(len(TOKENS), dtype=torch.int64)
    while (left := torch.tensor(TOKENS) - position).any():
        asked = torch.randint(0, CHUNK + 1, (len(TOKENS),), generator=generator)
        count = torch.minimum(asked, left)

        def chunk(tensors: list[Tensor], heads: int, position: Tensor = position, count: Tensor = count) -> Tensor:
            """The next tokens of each item, and fillers that must not count."""
            made = torch.full((len(TOKENS), heads, CHUNK, D), FILLER)
            for item, (tensor, start, some) in enumerate(zip(tensors, position, count, strict=True)):
                made[item, :, :some] = tensor[:, start : start + some]
            return made

        if layout == "linear" and (position + CHUNK > slots).any():
            pytest.fail("the cache of the test is too short")
        keys = kv_append(keys, chunk(k, G), position, layout=layout, sinks=sinks if layout == "ring" else 0)
        values = kv_append(values, chunk(v, G), position, layout=layout, sinks=sinks if layout == "ring" else 0)
        y, _ = kv_attention_plain(
            chunk(q, H), keys, values, position + CHUNK, causal=True, window=window, softcap=softcap, layout=layout,
            sinks=sinks,
        )  # fmt: skip
        for item, (start, some) in enumerate(zip(position, count, strict=True)):
            found[item][:, start : start + some] = y[item, :, :some]
        position = position + count
    for one, two in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.double(), two, rtol=0, atol=3e-6)


def test_a_ring_that_is_too_short_for_its_chunks_is_seen() -> None:
    """One slot less, and a query misses a token: the test above would fail."""
    q, rows = torch.ones(1, 1, 2, 1), torch.arange(6.0).reshape(1, 1, 6, 1)
    right, short = (torch.zeros(1, 1, slots, 1) for slots in (4, 3))
    for start in (0, 2, 4):
        position = torch.tensor([start])
        right = kv_append(right, rows[:, :, start : start + 2], position, layout="ring")
        short = kv_append(short, rows[:, :, start : start + 2], position, layout="ring")
    length = torch.tensor([6])
    seen = [
        kv_attention_plain(q * 0, cache, cache, length, causal=True, window=3, layout="ring")[0].flatten().tolist()
        for cache in (right, short)
    ]
    assert seen[0] == pytest.approx([3.0, 4.0])  # means of 2, 3, 4 and of 3, 4, 5
    assert seen[1] == pytest.approx([3.5, 4.0])


def test_chosen_slots_are_a_cache_of_their_own() -> None:
    """Attention to K slots is attention to a cache that holds only them; what nobody chose may be NaN."""
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, H, 3, D, generator=generator)
    k, v = (torch.randn(2, G, 30, D, generator=generator) for _ in range(2))
    index = torch.rand(2, G, 30, generator=generator).argsort(dim=2)[..., :7]
    k_rows, v_rows = (rows.gather(2, index[..., None].expand(-1, -1, -1, D)) for rows in (k, v))
    wanted = kv_attention_plain(q, k_rows, v_rows, torch.tensor([7, 7]))
    unused = torch.ones(2, G, 30, dtype=torch.bool).scatter(2, index, torch.zeros_like(index, dtype=torch.bool))
    poisoned_k, poisoned_v = (rows.masked_fill(unused[..., None], torch.nan) for rows in (k, v))
    none = torch.tensor([-1, 30, -(2**63), 2**63 - 1]).expand(2, G, 4)
    length = torch.tensor([30, 30])
    found = kv_attention_plain(q, poisoned_k, poisoned_v, length, index=torch.cat([none, index], dim=2))
    for one, two in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-6)


def test_all_slots_chosen_are_all_slots() -> None:
    generator = torch.Generator().manual_seed(1)
    q = torch.randn(2, H, 3, D, generator=generator)
    k, v = (torch.randn(2, G, 30, D, generator=generator) for _ in range(2))
    given = {"causal": True, "window": 9, "sinks": 2}
    length = torch.tensor([[30, 12], [7, 0]])
    wanted = kv_attention_plain(q, k, v, length, **given)  # type: ignore[arg-type]
    index = torch.randperm(30, generator=generator).reshape(1, 1, 30)
    found = kv_attention_plain(q, k, v, length, index=index, **given)  # type: ignore[arg-type]
    for one, two in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-6)


def test_heads_that_keep_different_numbers_of_entries() -> None:
    """Each KV head appends behind its own entries and attends to them: as so many caches of one head."""
    generator = torch.Generator().manual_seed(3)
    rows = [torch.randn(2, G, 4, D, generator=generator) for _ in range(2)]
    caches = [torch.randn(2, G, 20, D, generator=generator) for _ in range(2)]
    q, position = torch.randn(2, H, 4, D, generator=generator), torch.tensor([[16, 0], [3, 9]])
    k, v = (kv_append(cache, new, position) for cache, new in zip(caches, rows, strict=True))
    y, _ = kv_attention_plain(q, k, v, position + 4, causal=True)
    for g in range(G):
        keys, values = (
            kv_append(cache[:, g : g + 1], new[:, g : g + 1], position[:, g])
            for cache, new in zip(caches, rows, strict=True)
        )
        heads = slice(g * H // G, (g + 1) * H // G)
        wanted, _ = kv_attention_plain(q[:, heads], keys, values, position[:, g] + 4, causal=True)
        torch.testing.assert_close(y[:, heads], wanted, rtol=0, atol=1e-6)


def test_one_body_serves_calls_that_choose_and_calls_that_do_not() -> None:
    """Layers of one model: all slots under a window with a soft cap, then chosen ones."""
    generator = torch.Generator().manual_seed(2)
    samples = [
        next(s for s in OPERATOR.samples if s.attributes["indexed"] == indexed and s.reason.startswith(reason))
        for indexed, reason in ((0, "causal, a window"), (1, "chosen slots, own lengths"), (1, "slots chosen for all"))
    ]
    body = OPERATOR.function_proto(20, [sample.attributes for sample in samples])
    for sample in samples:
        inputs = OPERATOR.make_inputs(sample, generator)
        outputs = call_torch(OPERATOR, sample, inputs)
        model = onnx_model(OPERATOR, sample, inputs, outputs)
        alone = session(model.SerializeToString())
        del model.functions[:]
        model.functions.append(body)
        feeds = {t.name: tensor.numpy() for t, tensor in zip(OPERATOR.spec.inputs, inputs, strict=True)}
        both = session(model.SerializeToString()).run(None, feeds)
        for one, two, three in zip(both, alone.run(None, feeds), outputs, strict=True):
            np.testing.assert_allclose(one, two, rtol=0, atol=1e-6)
            np.testing.assert_allclose(one, three.numpy(), rtol=0, atol=1e-6)
    small = {node.op_type for node in OPERATOR.function_proto(20, [samples[1].attributes]).node}
    assert "Tanh" in {node.op_type for node in body.node} and "Tanh" not in small


def attend(**changes: object) -> Callable[[], object]:
    given: dict[str, object] = {"q": torch.zeros(2, 4, 3, 8), "length": torch.tensor([3, 5])}
    given |= {"k": torch.zeros(2, 2, 6, 8), "v": torch.zeros(2, 2, 6, 8)} | changes
    return lambda: kv_attention_plain(**given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (attend(q=torch.zeros(2, 4, 3)), ShapeError, r"^kv_attention_plain: q has shape \[2, 4, 3\]; it must be"),
        (attend(q=torch.zeros(2, 4, 3, 0)), ShapeError, r"^kv_attention_plain: q has D=0 channels; give at least one"),
        (attend(q=torch.zeros(2, 3, 3, 8)), ShapeError, r"H=3 heads and the cache G=2 KV heads; H must be a multiple"),
        (attend(k=torch.zeros(2, 2, 6, 7)), ShapeError, r"k has shape \[2, 2, 6, 7\]; it must be \[2, G, L, 8\]"),
        (attend(v=torch.zeros(2, 2, 5, 8)), ShapeError, r"v has shape \[2, 2, 5, 8\]; it must be \[2, 2, 6, 8\]"),
        (attend(v=torch.zeros(2, 2, 6, 8).half()), ShapeError, r"v has dtype float16; it must be float32"),
        (attend(k=torch.zeros(2, 2, 6, 8, dtype=torch.uint8)), ShapeError, r"k has dtype uint8; it must be float32 or"),
        (attend(length=torch.tensor([3])), ShapeError, r"length has shape \[1\]; it must be \[2\]"),
        (attend(length=torch.ones(2, 3).long()), ShapeError, r"length has shape \[2, 3\]; it must be \[2\]"),
        (attend(length=torch.ones(1, 2).long()), ShapeError, r"length has shape \[1, 2\]; it must be \[2, G\]"),
        (attend(index=torch.ones(2, 4).long()), ShapeError, r"index has shape \[2, 4\]; it must be \[1 \| 2, 1 \| 2, "),
        (attend(index=torch.ones(3, 2, 4).long()), ShapeError, r"it must be \[1 \| 2, 1 \| 2, 4\] with axes B, G, K"),
        (attend(index=torch.ones(1, 1, 4)), ShapeError, r"index has dtype float32; it must be int64"),
        (attend(softcap=-1.0), ConfigError, r"softcap=-1.0 is not allowed; give a positive number, or 0 for no cap"),
        (attend(softcap=math.inf), ConfigError, r"softcap=inf is not allowed"),
        (attend(window=-1), ConfigError, r"window=-1 is not allowed; give the slots a query sees"),
        (
            attend(layout="rings"),
            ConfigError,
            r"layout 'rings' is not known; there are linear, ring\. Did you mean 'ring'",
        ),
        (attend(layout="ring", sinks=6), ConfigError, r"sinks=6 is out of range; a ring of L=6 slots allows 0..5"),
        (attend(sinks=-1), ConfigError, r"sinks=-1 is out of range; allowed is 0..2147483647"),
    ],
)
def test_refusals(call: Callable[[], object], error: type[TrtCompressError], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
