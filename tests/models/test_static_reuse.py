"""Static-patch reuse: what is chosen, what is kept, and how old it gets, against plain loops."""

import pytest
import torch

from trt_compress.errors import ConfigError
from trt_compress.methods import make_spec, parse_spec
from trt_compress.methods.video import StaticReuseConfig, level_name
from trt_compress.models.compressors.passing import Taps, Tokens
from trt_compress.models.compressors.sites import Arrival, HostInfo, Site
from trt_compress.models.compressors.static_reuse import (
    NEVER,
    StaticReuse,
    change_score,
    next_age,
)
from trt_compress.models.layers.partial import Reuse, rows_to_keep

SITE = Site(kind="patch_embed", tokens=10, width=6)
HOST = HostInfo(name="tiny", sites=(SITE,), depth=2, num_tokens=11)
HERE = Arrival(host=HOST, site=SITE, tokens=10, prefix=0, has_class_token=False, width=6)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def chosen_by_hand(patches: torch.Tensor, previous: torch.Tensor, age: torch.Tensor, weight: float, k: int) -> list:
    """What the docstring says, item by item: never computed first, then by change and age; by position."""
    result = []
    for x, before, ages in zip(patches.tolist(), previous.tolist(), age.tolist(), strict=True):
        keys = []
        for n, (new, old, frames) in enumerate(zip(x, before, ages, strict=True)):
            change = sum(abs(a - b) for a, b in zip(new, old, strict=True)) / len(new)
            keys.append((0 if frames == NEVER else 1, -(change if frames == NEVER else change + frames * weight), n))
        result.append(sorted(n for *_, n in sorted(keys)[:k]))
    return result


@pytest.mark.parametrize("k", [1, 3, 9, 10])
@pytest.mark.parametrize("ages", ["new", "mixed", "none"])
def test_the_changed_and_the_unseen_are_chosen(k: int, ages: str) -> None:
    patches, previous = random(2, 10, 6, seed=1), random(2, 10, 6, seed=2)
    age = torch.tensor([[3.0, 0, 1, 7, 2, 2, 0, 5, 4, 1], [0.0] * 10])
    age = {"new": age, "mixed": age.clone(), "none": torch.full_like(age, NEVER)}[ages]
    if ages == "mixed":
        age[0, [2, 8]] = NEVER
        previous[0, [2, 8]] = patches[0, [2, 8]]  # unseen though it looks unchanged
    step = StaticReuse(StaticReuseConfig(keep_ratio=k / 10, staleness_weight=0.05), HERE)
    state = step(Tokens(x=patches, memory={"patches_in": previous, "age_in": age}), Taps())
    if k == 10:  # every patch is computed, each at its place
        assert state.position is None and state.reuse is None and torch.equal(state.x, patches)
        assert torch.equal(state.memory["patches_in"], patches) and not state.memory["age_in"].any()
        return
    assert state.position is not None and state.reuse is not None
    assert state.position.tolist() == chosen_by_hand(patches, previous, age, 0.05, k)
    for item, places in enumerate(state.position):
        assert torch.equal(state.x[item], patches[item, places])


def test_without_change_the_oldest_are_refreshed() -> None:
    patches = random(1, 6, 4)
    age = torch.tensor([[5.0, 1, 9, 0, 9, 2]])
    score = change_score(patches, patches, age, 1e-4)
    assert score.argsort(descending=True, stable=True)[0].tolist() == [2, 4, 0, 5, 1, 3]


def test_rows_stay_or_are_replaced() -> None:
    index = torch.tensor([[0, 2, 5], [1, 3, 4]])
    new, stored = random(2, 3, 4, seed=3), random(2, 6, 4, seed=4)
    rows = rows_to_keep(index, 6)
    kept = Reuse(rows=rows, known=rows >= 0).keep(new, stored)
    expected = stored.clone()
    for item in range(2):
        for row, place in enumerate(index[item].tolist()):
            expected[item, place] = new[item, row]
    assert torch.equal(kept, expected)
    age = torch.tensor([[NEVER, NEVER, 3, 0, NEVER, 1], [2.0, NEVER, 4000, 0, 1, 1]])
    assert next_age(age, rows, 3).tolist() == [[0, NEVER, 0, 1, NEVER, 0], [3, 0, 4000, 0, 0, 2]]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("static_reuse:keep_ratio=0", "keep_ratio=0.0 is out of range; it is the share of patches computed in a frame"),
        ("static_reuse:keep_ratio=[0.5,1.5]", "keep_ratio=1.5 is out of range"),
        ("static_reuse:keep_ratio=[0.25,0.251]", "names a level twice; give ratios that differ by 0.01 or more"),
        ("static_reuse:staleness_weight=-1", r"staleness_weight=-1.0 is out of range; give a number from 0 on"),
    ],
)
def test_bad_settings_are_refused(spec: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^static_reuse: .*{message}"):
        parse_spec(spec)


def test_several_levels_are_several_graphs() -> None:
    config = make_spec("static_reuse", {"keep_ratio": [0.25, 0.5]}).config
    assert isinstance(config, StaticReuseConfig)
    with pytest.raises(ConfigError, match=r"lists 2 levels, and one graph has one"):
        StaticReuse(config, HERE)
    assert [level_name(ratio) for ratio in (0.25, 0.5, 0.075, 1)] == ["k25", "k50", "k8", "dense"]
