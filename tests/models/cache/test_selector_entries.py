"""Selectors keep what the papers' own code keeps of queries, keys and values that are given."""

from typing import Literal

import pytest
import torch
from torch import Tensor

from tests.golden.golden_data import read
from tests.models.cache.runs import LayersRun
from trt_compress.models.cache.contract import best
from trt_compress.models.cache.pyramidkv import layer_budgets
from trt_compress.models.cache.random_kv import numbers
from trt_compress.models.cache.scores import attention_to


def entries(case: str, method: str, *names: str) -> tuple[Tensor, ...]:
    arrays, _ = read(method, case)
    return tuple(arrays[name] for name in names)


def kept_of(rows: Tensor, index: Tensor, window: int) -> Tensor:
    """Of rows [B, G, N, D] those at the positions [B, G, K], any order, and the newest, in the order of positions."""
    newest = torch.arange(rows.shape[2] - window, rows.shape[2]).expand(*index.shape[:2], -1)
    places = torch.cat([index.sort(dim=2).values, newest], dim=2)
    return rows.gather(2, places[..., None].expand(-1, -1, -1, rows.shape[3]))


@pytest.mark.parametrize("chunk", [30, 7])
@pytest.mark.parametrize("heads", ["mean", "max"])
def test_golden_h2o_prefill(heads: str, chunk: int) -> None:
    q, k, index = entries("prefill", "h2o", "q", "k", f"{heads}_kept")
    run = LayersRun(f"h2o:budget=14,recent=4,heads={heads}", q, k)
    run.read(q, k, k, chunk=chunk)
    assert torch.equal(run.kept("keys"), kept_of(k, index, 4))


@pytest.mark.parametrize("case", ["decode_cache", "decode_cache_growing"])
def test_golden_h2o_decode(case: str) -> None:
    """The authors' cache, whose attention is given: keys are unit vectors, and queries the logarithms of the rows."""
    arrays, said = read("h2o", case)
    heads, total = arrays["prefill_attention"].shape[1], 32
    prompt = arrays["prefill_attention"].shape[2]
    rows = arrays["decode_rows"] if case == "decode_cache" else [arrays[f"row_{step}"] for step in range(5)]

    def query(attention: Tensor, kept: Tensor) -> Tensor:
        """Of one token, [1, H, 1, D], that pays [H, C] to the tokens `kept` [H, C]."""
        logits = torch.full((heads, total), -1e4).scatter(1, kept, attention.clamp(min=1e-30).log())
        return (logits * total**0.5)[None, :, None]

    keys = torch.eye(total).expand(1, heads, -1, -1)
    every = torch.arange(prompt).expand(heads, -1)
    q = torch.cat([query(arrays["prefill_attention"][0, :, row], every) for row in range(prompt)], dim=2)
    budget = said["hh_size"] + said["recent_size"]
    run = LayersRun(f"h2o:budget={budget},recent={said['recent_size']},every=1", keys, keys)
    run.read(q, keys[:, :, :prompt], keys[:, :, :prompt])
    kept = run.kept("keys").argmax(dim=3)[0]
    if case == "decode_cache":
        assert torch.equal(kept, arrays["kept_after_prefill"])
        torch.testing.assert_close(run.kept("heavy")[0, :, :, 0], arrays["score_after_prefill"])
    for step, row in enumerate(rows):
        new = keys[:, :, prompt + step : prompt + step + 1]
        run.step(query(row, torch.cat([kept, torch.full((heads, 1), prompt + step)], dim=1)), new, new)
        kept = run.kept("keys").argmax(dim=3)[0]
        wanted = (
            (arrays["kept"][step], arrays["scores"][step])
            if case == "decode_cache"
            else (
                arrays[f"kept_{step}"],
                arrays[f"score_{step}"],
            )
        )
        assert torch.equal(kept, wanted[0])
        torch.testing.assert_close(run.kept("heavy")[0, :, :, 0], wanted[1])


def test_golden_streamingllm_prefill() -> None:
    k, v, wanted, values = entries("prefill", "streamingllm", "k", "v", "k_out", "v_out")
    run = LayersRun("streamingllm:budget=10,sinks=4", k, k)
    run.read(k, k, v, chunk=5)
    assert torch.equal(run.kept("keys"), wanted) and torch.equal(run.kept("values"), values)


def positions(count: int) -> Tensor:
    """Keys that say their positions, [1, 1, N, 2]."""
    return torch.arange(count).float()[None, None, :, None].expand(1, 1, -1, 2)


def test_golden_streamingllm_slots() -> None:
    (stream,) = entries("slots", "streamingllm", "stream_slots")
    k = positions(30)
    run = LayersRun("streamingllm:budget=11,sinks=4,every=1", k, k)
    for step, wanted in enumerate(stream):
        new = k[:, :, step : step + 1]
        run.step(new, new, new)
        assert run.kept("keys")[0, 0, :, 0].tolist() == wanted[wanted >= 0].tolist()
    arrays, _ = read("streamingllm", "slots")
    for name, budget in (("call", 11), ("space3", 8)):
        for tokens in (8, 11, 12, 30):
            run = LayersRun(f"streamingllm:budget={budget},sinks=4", k, k)
            run.read(*(k[:, :, :tokens],) * 3)
            assert run.kept("keys")[0, 0, :, 0].tolist() == arrays[f"{name}_{tokens}"].tolist()


def test_golden_pyramidkv_budgets() -> None:
    for tokens, budget, beta, *wanted in entries("budget_table", "pyramidkv", "table")[0].tolist():
        found = layer_budgets(tokens, budget, layers=6, window=8, beta=beta, allocation="kvcache_factory")
        assert found == wanted
    for family, tokens in (("llama", 41), ("qwen2", 60)):
        arrays, said = read("kvpress", f"{family}_pyramidkv")
        wanted, budget = arrays["kept_count"].tolist(), tokens * (1 - said["compression_ratio"])
        layers, window, beta = len(wanted), said["window_size"], said["beta"]
        found = layer_budgets(tokens, budget, layers=layers, window=window, beta=beta, allocation="kvpress")
        assert found == wanted
    assert layer_budgets(90, 20, layers=1, window=4, beta=20, allocation="kvcache_factory") == [20]


@pytest.mark.parametrize("chunk", [64, 9])
@pytest.mark.parametrize("case", ["short", "middle", "clamped", "pyramid"])
def test_golden_pyramidkv(case: str, chunk: int) -> None:
    arrays, said = read("pyramidkv", case)
    q, k, window = arrays["q"], arrays["k"], said["window_size"]
    run = LayersRun(f"pyramidkv:budget={said['max_capacity_prompt']},window={window}", q, k, layers=4)
    run.read(q, k, -k, chunk=chunk)
    for layer in range(4):
        wanted = k if case == "short" else kept_of(k, arrays[f"kept_{layer}"], window)
        assert torch.equal(run.kept("keys", layer), wanted) and torch.equal(run.kept("values", layer), -wanted)


@pytest.mark.parametrize(
    ("case", "spec"),
    [
        ("gqa_mean", "snapkv:budget=16,window=4"),
        ("official_avgpool", "snapkv:budget=16,window=4"),
        ("gqa_max", "snapkv:budget=16,window=4,pool=max,heads=max"),
        ("official_maxpool", "snapkv:budget=16,window=4,pool=max"),
    ],
)
def test_golden_snapkv(case: str, spec: str) -> None:
    """The authors' code chooses for each query head: keys are repeated first. Max pooling ties, so that there the
    scores of what is kept are compared."""
    arrays, _ = read("snapkv", case)
    q, k = arrays["q"], arrays["k"]
    if case.startswith("official"):
        k = k.repeat_interleave(2, dim=1)
    run = LayersRun(spec, q, k)
    run.read(q, k, k, chunk=9)
    if "max" not in case:
        assert torch.equal(run.kept("keys"), kept_of(k, arrays["kept"], 4))
        return
    place = (run.kept("keys")[:, :, :12, None] == k[:, :, None]).all(dim=4).int().argmax(dim=3)
    found, wanted = (arrays["pooled"].gather(2, index).sort(dim=2).values for index in (place, arrays["kept"]))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=0)


@pytest.mark.parametrize(("case", "window", "budget"), [("equal", 4, 16), ("one_more", 4, 16), ("minimal", 7, 8)])
def test_golden_snapkv_of_prompts_about_as_long_as_the_budget(case: str, window: int, budget: int) -> None:
    q, k, index = entries("edges", "snapkv", f"{case}_q", f"{case}_k", f"{case}_kept")
    run = LayersRun(f"snapkv:budget={budget},window={window}", q, k)
    run.read(q, k, k)
    assert torch.equal(run.kept("keys"), kept_of(k, index, window))


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_golden_kvpress_keydiff_block_by_block(family: str) -> None:
    """The form of the paper: blocks of 12 are read, and after each the best are kept."""
    model, _ = read("kvpress", f"{family}_model")
    arrays, said = read("kvpress_more", f"{family}_block_keydiff")
    for layer, budget in enumerate(arrays["kept_count"].tolist()):
        k = model[f"full_keys_{layer}"]
        run = LayersRun(f"keydiff:budget={budget},in_chunks=true", k, k)
        for part in (k[:, :, :budget], k[:, :, budget:]):
            run.read(part, part, part, chunk=said["block_size"])
        kept = arrays[f"kept_{layer}"].sort(dim=2).values[..., None].expand(-1, -1, -1, k.shape[3])
        assert torch.equal(run.kept("keys"), k.gather(2, kept))


def test_random_numbers_are_even_and_independent() -> None:
    """10 000 tokens of 4 KV heads: means, shares below quarters, and correlations along tokens and between heads are
    within 4.5 standard deviations of what independent even numbers have."""
    count = 10_000
    drawn = numbers(torch.arange(count)[None], torch.tensor([0, 1_000_003, 2_000_006, 69_621_017]))[0].double()
    assert ((0 <= drawn) & (drawn < 1)).all()
    for quarter in (0.25, 0.5, 0.75):
        share = (drawn < quarter).double().mean(dim=1)
        assert ((share - quarter).abs() < 4.5 * (quarter * (1 - quarter) / count) ** 0.5).all()
    centred = (drawn - 0.5) * 12**0.5
    for shift in (1, 2, 7):
        assert ((centred[:, shift:] * centred[:, :-shift]).mean(dim=1).abs() < 4.5 / count**0.5).all()
    between = centred @ centred.T / count
    assert (between - torch.diag(between.diag())).abs().max() < 4.5 / count**0.5


@pytest.mark.parametrize("kept", [None, 3, 2])
def test_of_equal_scores_the_older_are_kept(kept: int | None) -> None:
    score = torch.tensor([[[2.0, 1.0, 1.0, 1.0, 1.0, 9.0, 9.0]]])
    counts = None if kept is None else torch.tensor([kept])
    choice = best(score, torch.tensor([5]), 3, recent=1, kept=counts)
    found = choice.index[0, 0, : int(choice.count)].tolist()
    assert found == ([0, 1, 4] if kept != 2 else [0, 4])
    assert len(set(choice.index[0, 0].tolist())) == 3


@pytest.mark.parametrize("softcap", [0.0, 2.0])
def test_attention_to_entries_is_that_of_the_layer(softcap: float) -> None:
    """Against softmax over the products, written out; a cap bends these first."""
    generator = torch.Generator().manual_seed(0)
    query, keys = (torch.randn(2, heads, count, 8, generator=generator) for heads, count in ((4, 3), (2, 9)))
    position, length = torch.tensor([[4, 5, -1], [6, 7, 8]]), torch.tensor([6, 9])
    products = torch.einsum("bhrd,bhld->bhrl", query, keys.repeat_interleave(2, dim=1)) * 0.7
    bent = softcap * (products / softcap).tanh() if softcap else products
    visible = torch.arange(9) <= position[..., None]
    wanted = bent.masked_fill(~visible[:, None], -torch.inf).softmax(dim=3).nan_to_num(0.0)
    keys[0, :, 6:] = torch.nan
    ways: dict[Literal["sum", "mean"], Tensor] = {"sum": wanted.sum(dim=2), "mean": wanted.mean(dim=2)}
    for rows, each in ways.items():
        found = attention_to(query, keys, position, length, scale=0.7, softcap=softcap, rows=rows)
        torch.testing.assert_close(found, each)
