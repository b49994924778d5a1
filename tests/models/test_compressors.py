"""What each compressor does to the tokens of a host, and how several share one."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models.arrivals import BOTH, a_host
from tests.models.vits import compress, images, make_vit, run
from trt_compress.errors import ConfigError, ShapeError, UnsupportedError
from trt_compress.methods import METHODS, parse_spec
from trt_compress.models.compressors import place as placer
from trt_compress.models.compressors.avg_pool import pool_positions, pool_spans, pool_tokens
from trt_compress.models.compressors.base import num_patches_kept, quarter_layers
from trt_compress.models.compressors.frame_pool import FramePool
from trt_compress.models.compressors.passing import Taps, Tokens
from trt_compress.models.compressors.place import place_one
from trt_compress.models.compressors.registry import compressor_classes
from trt_compress.models.compressors.sites import HostInfo
from trt_compress.models.compressors.tome import merge_schedule
from trt_compress.plugins.operator import recording


def host(depth: int = 12, num_tokens: int = 197, num_prefix: int = 1, **more: Any) -> HostInfo:
    return a_host(depth, num_tokens, num_prefix, **more)


def plan(spec: str, info: HostInfo) -> list[tuple[str, str, int | str, int | str]]:
    sites = place_one(parse_spec(spec), info).sites
    return [(site.name, site.compressor, site.tokens_in, site.tokens_out) for site in sites]


def left(spec: str, info: HostInfo) -> list[int | str]:
    return [tokens_out for *_, tokens_out in plan(spec, info)]


def record_of(spec: str, **more: object) -> dict[str, Tensor]:
    with recording() as record:
        run(compress(make_vit(**more), spec), images())  # type: ignore[arg-type]
    return record


# ---- counts ---------------------------------------------------------------------------------------------------------


def test_tome_removes_its_count_in_every_layer() -> None:
    assert left("tome:num_merged=13", host()) == [197 - 13 * layer for layer in range(1, 13)]
    assert plan("tome:num_merged=[0,5]", host()) == [("blocks.1", "tome", 197, 192)]


@pytest.mark.parametrize(
    ("schedule", "counts"), [("constant", [4, 4, 4, 4]), ("decreasing", [8, 5, 2]), ("increasing", [2, 5, 8])]
)
def test_tome_schedules(schedule: str, counts: list[int]) -> None:
    tokens = [197, *left(f"tome:num_merged=4,schedule={schedule}", host(depth=4))]
    assert [before - after for before, after in zip(tokens, tokens[1:], strict=False)] == counts


def test_schedule_of_a_single_layer() -> None:
    assert merge_schedule(4, 1, -1.0) == (8,)


def test_evit_rounds_up_and_fuses_one_token() -> None:
    assert left("evit", host()) == [1 + 138 + 1, 1 + 98 + 1, 1 + 70 + 1]
    assert left("evit:fuse=false", host()) == [1 + 138, 1 + 97, 1 + 68]
    assert [site for site, *_ in plan("evit", host())] == ["blocks.3", "blocks.6", "blocks.9"]
    assert plan("evit:keep_ratio=[0.5,0.9],layers=[3,6],fuse=false", host()) == [
        ("blocks.3", "evit", 197, 1 + 98),
        ("blocks.6", "evit", 99, 1 + 89),
    ]
    assert left("evit:keep_ratio=0.001,fuse=false", host()) == [2]  # one patch is left, and then nothing to drop
    assert num_patches_kept(100, 0.07) == 8  # 0.07 * 100 is a hair above 7, and so in the paper's code


def test_random_keeps_what_evit_would() -> None:
    assert left("random", host()) == left("evit:fuse=false", host())


def test_avg_pool_rounds_up_and_leaves_the_prefix() -> None:
    assert plan("avg_pool", host()) == [("blocks.3", "avg_pool", 197, 99)]
    assert plan("avg_pool:stride=3,layer=0", host(num_tokens=200, num_prefix=4)) == [("blocks.0", "avg_pool", 200, 70)]
    assert left("avg_pool:stride=196", host()) == [2]


def test_default_layers_are_the_quarters() -> None:
    assert quarter_layers(12) == (3, 6, 9)
    assert quarter_layers(24) == (6, 12, 18)
    assert quarter_layers(2) == (0, 1)


def test_compressors_share_a_host_in_order() -> None:
    assert plan("tome:num_merged=[7,0,7]+evit:layers=[1],keep_ratio=0.5+avg_pool:layer=3", host()) == [
        ("blocks.0", "tome", 197, 190),
        ("blocks.1", "evit", 190, 1 + 95 + 1),
        ("blocks.2", "tome", 97, 90),
        ("blocks.3", "avg_pool", 90, 1 + 45),
    ]
    assert plan("evit:layers=[2],fuse=false+random:layers=[2]+avg_pool:layer=2", host()) == [
        ("blocks.2", "evit", 197, 139),
        ("blocks.2", "random", 139, 98),
        ("blocks.2", "avg_pool", 98, 50),
    ]
    assert plan("none", host()) == []


# ---- refused --------------------------------------------------------------------------------------------------------

REFUSED = [
    (
        "tome:num_merged=100",
        r"num_merged=100 is too large at layer 0 of tiny: of 197 tokens there, 1 protected, at most 98 can merge\."
        r"\nHint: lower num_merged, list one count a layer, or set over_limit=clamp",
    ),
    (
        "tome:num_merged=60",
        r"num_merged=60 is too large at layer 2 of tiny: of 77 tokens there, .* at most 38 can merge",
    ),
    ("tome:num_merged=[1,1,1,1,1,1,1,1,1,1,1,1,1]", r"tome: num_merged lists 13 layers, but the model has 12; shorten"),
    ("evit:layers=[12]", r"evit: layers=\[12\] names layer 12, but tiny has layers 0\.\.11\."),
    ("avg_pool:layer=12", r"avg_pool: layer=12 is out of range; tiny has layers 0\.\.11\."),
    (
        "avg_pool:stride=197",
        r"avg_pool: stride=197 is larger than the 196 patches at layer 3 of tiny; give at most 196",
    ),
    (
        "random:layers=[3]+evit:layers=[3]",
        r"evit: at blocks\.3 random has already changed the tokens that its class_attention belong to\."
        r"\nHint: let them act at different layers \(evit:layers=\[…\]\), or name evit first\.$",
    ),
    (
        "evit:keep_ratio=0.7+tome:num_merged=4",
        r"tome: at blocks\.3 evit has already changed the tokens that its keys belong to\."
        r"\nHint: let them act at different layers \(tome:num_merged=\[…\], 0 where it must not act\)\.$",
    ),
    (
        "tome:num_merged=3+evit:layers=[3]",
        r"evit: at blocks\.3 tome has already changed .*\nHint: .* at different layers \(evit:layers=\[…\]\)\.$",
    ),
    (
        "evit:layers=[0]+tome:num_merged=3",
        r"tome: at blocks\.0 evit has already changed the tokens that its keys belong",
    ),
]


@pytest.mark.parametrize(("spec", "message"), REFUSED, ids=[spec for spec, _ in REFUSED])
def test_refused(spec: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(spec, host())


def test_tome_clamps_only_if_asked() -> None:
    assert left("tome:num_merged=60,over_limit=clamp", host(depth=4)) == [137, 77, 39, 20]


def test_evit_needs_a_class_token() -> None:
    with pytest.raises(UnsupportedError, match="evit: tiny has no class token, .*; use tome, avg_pool or random"):
        compress(make_vit("avg_without_class"), "evit")


def test_a_site_the_host_lacks() -> None:
    with pytest.raises(ConfigError, match="tome: acts at after_attention, but tiny offers only codec, kv_cache"):
        plan("tome:num_merged=2", host(kinds=("kv_cache", "codec")))


def test_every_method_has_a_class() -> None:
    classes = compressor_classes()
    assert list(classes) == list(METHODS)
    for name, cls in classes.items():
        assert cls.method is METHODS[name]


def test_a_signal_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Greedy(FramePool):
        asks = frozenset({"keys"})

    monkeypatch.setattr(placer, "compressor_class", lambda method: Greedy)
    assert plan("frame_pool:layer=3", host(kinds=BOTH)) == [("blocks.3", "frame_pool", 197, 99)]
    with pytest.raises(
        ConfigError,
        match=r"^frame_pool: needs keys at encoder_output, and tiny computes none there\.\n"
        r"Hint: after_attention would have them\.$",
    ):
        plan("frame_pool", host(kinds=BOTH))
    with pytest.raises(ConfigError, match=r"needs keys at after_attention, and tiny computes none there\.$"):
        plan("frame_pool:layer=3", host(kinds=BOTH, taps=()))


def test_what_a_step_leaves_is_what_the_next_one_finds() -> None:
    placed = place_one(
        parse_spec("frame_stack:stride=2+frame_stack:stride=3+frame_pool:stride=2"),
        host(kinds=BOTH, num_tokens=26, num_prefix=2, width=8),
    )
    assert [site.tokens_out for site in placed.sites] == [12, 4, 2]
    assert [step.width_out for step in placed.steps("encoder_output")] == [16, 48, None]
    assert (placed.tokens_out, placed.width_out) == (2, 48)
    rows = torch.arange(26 * 8, dtype=torch.float32).reshape(26, 8)
    state = placed("encoder_output", Tokens(x=rows[None]), Taps())
    assert torch.equal(state.x[0], rows[2:].reshape(2, 2, 48).mean(dim=1))


# ---- what happens to the tokens -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("variant", "order"), [("plain", "position"), ("avg_without_class", "similarity")])
def test_tome_order_follows_the_class_token(variant: str, order: str) -> None:
    module = compress(make_vit(variant), "tome:num_merged=2")
    assert {step.order for layer in range(4) for step in module.placed.steps(f"blocks.{layer}")} == {order}


@pytest.mark.parametrize(
    "spec",
    [
        "tome:num_merged=[3,2,1,2]",
        "tome:num_merged=[3,0,0,2]+evit:layers=[1],keep_ratio=0.5",
        "tome:num_merged=[3,0,0,2]+avg_pool:layer=1,stride=3",
    ],
)
def test_sizes_account_for_every_token(spec: str) -> None:
    total = record_of(spec)["blocks.3/TokenMerge/y_size"].sum(dim=1)
    assert torch.equal(total, torch.full((3, 1), 17.0))


def test_dropped_tokens_are_not_counted() -> None:
    record = record_of("tome:num_merged=[3,0,0,2]+random:layers=[1],keep_ratio=0.5")
    assert (record["blocks.3/TokenMerge/y_size"].sum(dim=1) < 17).all()


def test_evit_keeps_the_prefix_first_and_ranks_by_class_attention() -> None:
    record = record_of("evit:layers=[1],keep_ratio=0.5", variant="distilled")
    score, index = record["blocks.1/TokenSelect/score"], record["blocks.1/TokenSelect/index"]
    assert (index[:, :2] == torch.arange(2)).all()
    kept = score.gather(1, index[:, 2:])
    assert (kept.diff(dim=1) <= 0).all()
    assert (kept.amin(dim=1) >= score.gather(1, record["blocks.1/TokenSelect/rest"]).amax(dim=1)).all()


def test_random_is_the_same_for_every_input_and_another_for_another_seed() -> None:
    def kept(seed: int) -> Tensor:
        return record_of(f"random:layers=[1],keep_ratio=0.5,seed={seed}", variant="registers")[
            "blocks.1/TokenSelect/index"
        ]

    first = kept(0)
    assert (first == first[0]).all()
    assert (first[:, :4] == torch.arange(4)).all()
    assert torch.equal(first, kept(0))
    assert not torch.equal(first, kept(1))


def test_random_choices_are_in_the_graph_not_in_the_weights() -> None:
    vit = make_vit()
    assert set(compress(vit, "random").state_dict()) == {f"vit.{name}" for name in vit.state_dict()}


def test_avg_pool_is_the_mean_of_each_window() -> None:
    x = torch.arange(7.0).reshape(1, 7, 1)
    assert pool_tokens(x, 3).flatten().tolist() == [1, 4, 6]
    assert pool_tokens(x, 7).flatten().tolist() == [3]
    assert torch.equal(pool_tokens(x, 1), x)


def test_avg_pool_weighs_merged_tokens_by_size() -> None:
    record = record_of("tome:num_merged=[5,0,0,1]+avg_pool:layer=1,stride=4")
    size_before = record["blocks.0/TokenMerge/y_size"][:, 1:]
    after = record["blocks.3/TokenMerge/size"][:, 1:]
    assert torch.equal(after[:, :-1], size_before[:, :8].reshape(3, 2, 4, 1).sum(dim=2))
    assert torch.equal(after[:, -1], size_before[:, 8:].sum(dim=1))


# ---- pooling spans of a decoder's sequence --------------------------------------------------------------------------


def test_spans_are_pooled_where_they_are() -> None:
    hidden = torch.arange(10.0).reshape(1, 10, 1)
    pooled = pool_spans(hidden, [[1, 6]], length=4, stride=2)
    assert pooled.flatten().tolist() == [0, 1.5, 3.5, 5, 6.5, 8.5]
    positions = torch.arange(10)[None]
    assert pool_positions(positions, [[1, 6]], length=4, stride=2).tolist() == [[0, 1, 3, 5, 6, 8]]


@pytest.mark.parametrize(
    ("starts", "length", "message"),
    [
        ([[1]], 4, r"avg_pool: 1 lists of spans for a batch of 2; give each sequence the same number of spans\."),
        ([[1], [1, 5]], 4, r"avg_pool: 2 lists of spans for a batch of 2; give each sequence the same number"),
        ([[1], [1]], 5, r"avg_pool: length=5 is no multiple of stride=2; choose a stride that divides it\."),
        ([[1], [7]], 4, r"avg_pool: a span at 7 of length 4 does not fit into 10 positions from 0 on\."),
        ([[1, 3], [1, 5]], 4, r"avg_pool: a span at 3 of length 4 does not fit into 10 positions from 5 on\."),
        ([[-1], [1]], 4, r"avg_pool: a span at -1 of length 4 does not fit"),
    ],
)
def test_spans_that_do_not_fit_are_refused(starts: list[list[int]], length: int, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        pool_spans(torch.zeros(2, 10, 1), starts, length=length, stride=2)
