"""EMS against its formulas, written down here entry by entry in float64 (there is no public code)."""

import math
import re

import pytest
import torch
from torch import Tensor

from tests.golden.golden_data import FOLDER, read
from tests.models.cache.onnx_runs import OnnxRun
from tests.models.cache.runs import CacheRun, LayersRun, golden_decoder
from trt_compress.errors import ConfigError
from trt_compress.models.hosts.decoder import Decoder

Rows = list[list[float]]


def attention(query: Tensor, keys: Tensor, rows: range) -> Tensor:
    """What the rows of one query head pay to each entry, summed: [N] in float64."""
    total = torch.zeros(len(keys), dtype=torch.float64)
    for row in rows:
        products = (keys[: row + 1].double() @ query[row].double()) / math.sqrt(keys.shape[1])
        total[: row + 1] += products.softmax(dim=0)
    return total


def scores(query: Tensor, keys: Tensor, *, window: int, kernel: int) -> list[float]:
    """Of the entries in front of the window, for the query heads [R, N, D] of one KV head."""
    count = keys.shape[0]
    far, near = (
        torch.stack([attention(head, keys, rows) for head in query]).mean(dim=0)[: count - window]
        for rows in (range(count), range(count - window, count))
    )
    near = near * (far.mean() / near.mean())
    best = [max(a, b) for a, b in zip(far.tolist(), near.tolist(), strict=True)]
    reach = kernel // 2
    return [sum(best[max(place - reach, 0) : place + reach + 1]) / kernel for place in range(len(best))]


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a.double() @ b.double() / (a.double().norm() * b.double().norm()))


def kept_rows(
    score: list[float], k: Tensor, v: Tensor, *, budget: int, window: int, merged: int, threshold: float
) -> tuple[Tensor, Tensor, int]:
    """Keys and values [budget, D] that one KV head keeps, and how many entries were merged."""
    ranked = sorted(range(len(score)), key=lambda place: (-score[place], place))
    centres = ranked[: budget - window]
    members: dict[int, list[int]] = {centre: [centre] for centre in centres}
    for place in ranked[len(centres) : len(centres) + merged]:
        like = [cosine(k[place], k[centre]) * cosine(v[place], v[centre]) for centre in centres]
        if max(like) >= threshold:  # else it goes to the class that is dropped
            members[centres[like.index(max(like))]].append(place)
    keys, values = [], []
    for centre in sorted(centres):
        group = members[centre]
        mass = sum(score[each] for each in group)
        direction = sum(score[each] * k[each].double() / k[each].double().norm() for each in group)
        norm = sum(score[each] * float(k[each].double().norm()) for each in group) / mass
        keys.append(direction / torch.as_tensor(direction).norm() * norm)
        values.append(sum(score[each] * v[each].double() for each in group) / mass)
    last = range(len(k) - window, len(k))
    keys += [k[each].double() for each in last]
    values += [v[each].double() for each in last]
    return (
        torch.stack(list(map(torch.as_tensor, keys))),
        torch.stack(list(map(torch.as_tensor, values))),
        sum(len(group) - 1 for group in members.values()),
    )


def entries(count: int, *, heads: int = 4, groups: int = 2, width: int = 8, seed: int = 0) -> tuple[Tensor, ...]:
    """Queries, keys and values, the latter two near a few directions, so that some are alike."""
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.randint(0, 5, (count,), generator=generator)
    k, v = (torch.randn(1, groups, 5, width, generator=generator)[:, :, kinds] for _ in range(2))
    k, v = (each + 0.3 * torch.randn(each.shape, generator=generator) for each in (k, v))
    return 2 * torch.randn(1, heads, count, width, generator=generator), k, v


@pytest.mark.parametrize("chunk", [64, 7])
@pytest.mark.parametrize(
    ("budget", "window", "kernel", "merged", "threshold"),
    [(16, 4, 5, None, 0.6), (12, 3, 1, 20, 0.2), (20, 6, 3, 4, 0.9), (16, 4, 5, 0, 0.6)],
)
def test_entries_are_merged_as_the_formulas_say(
    budget: int, window: int, kernel: int, merged: int | None, threshold: float, chunk: int
) -> None:
    q, k, v = entries(50)
    said = f"ems:budget={budget},window={window},kernel={kernel},threshold={threshold}"
    run = LayersRun(said if merged is None else f"{said},merged={merged}", q, k, chunk=chunk)
    run.read(q, k, v, chunk=chunk)
    assert run.rows() == budget
    total = 0
    for group in range(2):
        score = scores(q[0, 2 * group : 2 * group + 2], k[0, group], window=window, kernel=kernel)
        keys, values, count = kept_rows(
            score,
            k[0, group],
            v[0, group],
            budget=budget,
            window=window,
            merged=budget if merged is None else merged,
            threshold=threshold,
        )
        torch.testing.assert_close(run.kept("keys")[0, group].double(), keys, rtol=0, atol=2e-5)
        torch.testing.assert_close(run.kept("values")[0, group].double(), values, rtol=0, atol=2e-5)
        total += count
    assert (total > 0) == (merged != 0)


def test_nothing_is_merged_where_all_is_kept() -> None:
    q, k, v = entries(14)
    run = LayersRun("ems:budget=16,window=4,threshold=-1.0", q, k)
    run.read(q, k, v)
    assert torch.equal(run.kept("keys"), k) and torch.equal(run.kept("values"), v)


def test_it_goes_on_while_tokens_are_generated() -> None:
    """Entries never become more than the budget and what it waits for, and sums of merged entries are not lost."""
    q, k, v = entries(80, seed=3)
    run = LayersRun("ems:budget=16,window=4,every=6,threshold=-1.0,merged=40", q, k)
    run.read(q[:, :, :40], k[:, :, :40], v[:, :, :40])
    for step in range(40, 70):
        run.step(*(each[:, :, step : step + 1] for each in (q, k, v)))
        assert run.rows() <= 16 + 6 - 1
    sums = run.kept("heavy")[0, ..., 0].sum(dim=1)
    torch.testing.assert_close(sums, torch.full((2,), 70.0), rtol=0, atol=1e-3)  # each token pays 1 in all


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    return golden_decoder(FOLDER / "kvpress" / "llama_model.npz", tmp_path_factory.mktemp("llama"), "llama")


def test_exported_graphs_compute_the_same(decoder: Decoder) -> None:
    prompt = [int(token) for token in read("kvpress", "llama_model")[0]["input_ids"][0]]
    texts = [prompt[:38], prompt[:9]]
    runs = [
        kind(decoder, "ems:budget=16,window=4,threshold=0.1", context=64, chunk=16, batch=2)
        for kind in (CacheRun, OnnxRun)
    ]
    first, second = (torch.stack([run.read(texts), *(run.step([token] * 2) for token in (5, 6, 7))]) for run in runs)
    torch.testing.assert_close(first, second, rtol=0, atol=1e-4 * float(first.abs().max()))
    assert runs[0].states["rows"].tolist() == [19, 12]


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("ems:budget=8,window=8", "ems: budget=8 has no room beside window=8"),
        ("ems:budget=40,kernel=4", "ems: kernel=4 is not allowed"),
        ("ems:budget=40,merged=-1", "ems: merged=-1 is out of range"),
        ("ems:budget=40,threshold=2", "ems: threshold=2.0 is out of range; give -1 to 1."),
        (
            "ems:budget=40+int8",
            "ems: merges entries into others, and int8 has packed them; take a store that keeps new keys as they are.",
        ),
    ],
)
def test_bad_options_are_refused(spec: str, said: str, decoder: Decoder) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        CacheRun(decoder, spec, context=64, chunk=16)
