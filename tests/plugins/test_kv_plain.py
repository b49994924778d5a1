"""KVAttentionPlain with KVAppend as a decoder uses them: chunks of unequal counts, rings, against dense attention."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from trt_compress.errors import ConfigError, ShapeError, TrtCompressError
from trt_compress.plugins.kv_append.op import kv_append
from trt_compress.plugins.kv_attention_plain.op import kv_attention_plain

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
