"""The contract of a method: where it acts, what it asks for, what passes a site, and what it owns."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models.arrivals import a_host, arrival_at
from tests.models.vits import compress, images, make_vit, run
from trt_compress.errors import ConfigError
from trt_compress.format.graphs import StateSpec
from trt_compress.methods import METHODS, CompressorConfig, CompressorSpec, Method, parse_spec, spec
from trt_compress.models.compressors import place as placer
from trt_compress.models.compressors.base import Compressor
from trt_compress.models.compressors.passing import Taps, Tokens
from trt_compress.models.compressors.place import place, place_one
from trt_compress.models.compressors.registry import compressor_class
from trt_compress.models.compressors.sites import Arrival, HostInfo, Placement, Site, Span, layer_sites
from trt_compress.plugins.operator import recording

# ---- a made-up method that acts in two graphs and owns a state -------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeUpConfig(CompressorConfig):
    """Options of the made-up method."""


MADE_UP = Method(
    name="made_up",
    summary="adds up what it sees in one graph, and adds the sum in another",
    source="none: a test",
    differs="nothing",
    config=MadeUpConfig,
    implementation="none",
)
SPEC = CompressorSpec(name="made_up", config=MadeUpConfig())


class MadeUp(Compressor):
    """In `prefill` it sums the tokens into a state, in `step` it adds that state to them; it removes none."""

    method = MADE_UP

    @classmethod
    def placements(cls, config: Any, host: HostInfo) -> tuple[Placement, ...]:
        return (
            Placement(kind="after_attention", layers=(1,), graph="prefill"),
            Placement(kind="kv_cache", layers=(0,), graph="step"),
        )

    def __init__(self, config: Any, arrival: Arrival) -> None:
        super().__init__(config, arrival)
        assert arrival.width is not None
        self.writes, self.width = arrival.site.graph == "prefill", arrival.width
        self.tokens_out = arrival.tokens

    def states(self) -> tuple[StateSpec, ...]:
        return (StateSpec(input="sum_in", output="sum_out", shape=("batch", self.width), name="sum"),)

    def forward(self, tokens: Tokens, taps: Taps) -> Tokens:
        held = tokens.memory["sum_in"]
        if not self.writes:
            return tokens.with_x(tokens.x + held[:, None])
        return replace(tokens, memory={**tokens.memory, "sum_in": held + tokens.x.sum(dim=1)})


def two_graphs(**more: Any) -> HostInfo:
    sites = (*layer_sites("after_attention", 2, graph="prefill"), *layer_sites("kv_cache", 2, graph="step"))
    return HostInfo(**{"name": "two", "sites": sites, "depth": 2, "num_tokens": 3, "width": 4, **more})


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Lets the placer find classes that are in no list of methods."""

    def add(*classes: type[Compressor]) -> None:
        mine = {cls.method.name: cls for cls in classes}
        monkeypatch.setattr(spec, "METHODS", {**METHODS, **{name: cls.method for name, cls in mine.items()}})
        monkeypatch.setattr(
            placer, "compressor_class", lambda method: mine.get(method.name) or compressor_class(method)
        )

    return add


def test_a_method_acts_in_two_graphs_and_owns_a_state(known: Callable[..., None]) -> None:
    known(MadeUp)
    plans = place([SPEC], two_graphs())
    assert {graph: [site.name for site in plan.sites] for graph, plan in plans.items()} == {
        "prefill": ["blocks.1"],
        "step": ["cache.0"],
    }
    assert {state.name for plan in plans.values() for state in plan.states()} == {"sum"}  # one tensor for both
    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    written = plans["prefill"]("blocks.1", Tokens(x=x, memory={"sum_in": torch.zeros(2, 4)}), Taps())
    assert torch.equal(written.x, x) and torch.equal(written.memory["sum_in"], x.sum(dim=1))
    read = plans["step"]("cache.0", Tokens(x=x, memory=written.memory), Taps())
    assert torch.equal(read.x, x + x.sum(dim=1, keepdim=True))
    untouched = Tokens(x=x)
    assert plans["step"]("cache.1", untouched, Taps()) is untouched


def test_what_a_host_lacks_is_named(known: Callable[..., None]) -> None:
    known(MadeUp)
    with pytest.raises(ConfigError, match="made_up: acts at kv_cache, but tiny offers only after_attention"):
        place([SPEC], a_host())
    one = (*layer_sites("after_attention", 2, graph="step"), *layer_sites("kv_cache", 2, graph="step"))
    with pytest.raises(ConfigError, match="made_up: acts in the graph prefill, but two has only step"):
        place([SPEC], two_graphs(sites=one))
    with pytest.raises(ConfigError, match="made_up: two pads its inputs, and made_up cannot tell padding from tokens"):
        place([SPEC], two_graphs(padded=True))


def test_two_owners_of_one_state_are_refused(known: Callable[..., None]) -> None:
    known(MadeUp)
    with pytest.raises(ConfigError, match="two: two methods want to own the state 'sum_in'; give one of them"):
        place([SPEC, SPEC], two_graphs())


@pytest.mark.parametrize("spec", ["static_reuse+tome:num_merged=1", "tome:num_merged=1+toc3d"])
def test_what_acts_alone_says_why(spec: str) -> None:
    with pytest.raises(ConfigError, match="so no other compressor can act beside it; give it alone"):
        place_one(parse_spec(spec), a_host(kinds=("patch_embed", "after_attention")))


# ---- taps of several layers ------------------------------------------------------------------------------------------


def test_a_method_taps_the_layers_it_names() -> None:
    placed = place_one(parse_spec("vtc_cls:first_layer=1,last_layer=3,num_kept=9"), a_host(6, 17))
    assert [placed.wanted(layer) for layer in range(6)] == [
        frozenset(),
        *[frozenset({"class_attention"})] * 3,
        frozenset(),
        frozenset(),
    ]
    assert [(site.name, site.tokens_in, site.tokens_out) for site in placed.sites] == [("blocks.3", 17, 10)]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "random:layers=[2]+vtc_cls:first_layer=1,last_layer=4",
            r"vtc_cls: at blocks\.4 random has already changed the tokens that its class_attention of layer 1 belong",
        ),
        ("vtc_cls:first_layer=5,last_layer=3", r"first_layer=5 is behind last_layer=3; give at most 3"),
        ("vtc_cls:first_layer=5", r"first_layer=5 is behind last_layer=4 of tiny; give at most 4"),
        ("vtc_cls:last_layer=6", r"layer=6 is out of range; tiny has layers 0\.\.5"),
        ("vtc_cls:num_kept=17", r"num_kept=17 is too large for the 16 patches at layer 4 of tiny; give at most 16"),
        ("vtc_cls:num_kept=0", r"num_kept=0 is out of range; give 1 or more"),
    ],
)
def test_taps_of_tokens_that_are_gone_are_refused(spec: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        place_one(parse_spec(spec), a_host(6, 17))


def test_a_cut_between_the_tapped_layers_and_the_first_is_no_harm() -> None:
    placed = place_one(parse_spec("random:layers=[0]+vtc_cls:first_layer=1,last_layer=4"), a_host(6, 17))
    assert [site.name for site in placed.sites] == ["blocks.0", "blocks.4"]


def test_a_tower_sums_what_its_layers_attend_to() -> None:
    """Against the same model without compressors, whose attention is read by hand."""
    vit, x = make_vit("plain"), images()
    rows: list[Tensor] = []
    hooks: list[Any] = []
    for block in vit.blocks:  # type: ignore[union-attr]
        attn: Any = block.attn

        def row(module: Any, given: tuple[Tensor, ...]) -> None:
            batch, n, _ = given[0].shape
            q, k, _ = module.qkv(given[0]).reshape(batch, n, 3, module.num_heads, -1).permute(2, 0, 3, 1, 4)
            rows.append(((q * module.scale) @ k.transpose(-2, -1)).softmax(-1)[:, :, 0].mean(dim=1))

        hooks.append(attn.register_forward_pre_hook(row))
    with torch.no_grad():
        vit(x)
    wanted = (rows[1] + rows[2])[:, 1:].topk(5, dim=1).indices.sort(dim=1).values + 1
    for hook in hooks:
        hook.remove()
    with recording() as record:
        run(compress(vit, "vtc_cls:first_layer=1,last_layer=2,num_kept=5"), x)
    assert torch.equal(record["blocks.2/TokenSelect/index"][:, 1:], wanted)


# ---- what passes a site ----------------------------------------------------------------------------------------------

ONE_LAYER = {
    "tome": "tome:num_merged=[3]",
    "fastast": "fastast:num_merged=3",
    "evit": "evit:layers=[0],keep_ratio=0.5",
    "token_transform": "token_transform:layers=[0],keep_ratio=0.5",
    "random": "random:layers=[0],keep_ratio=0.5",
    "vtc_cls": "vtc_cls:first_layer=0,last_layer=0,num_kept=5",
    "avg_pool": "avg_pool:layer=0,stride=3",
    "atome": "atome:layers=[0],merge_ratio=0.4",
    "frame_pool": "frame_pool:layer=0,stride=3,remainder=keep",
}


def taps_of(n: int, count: int | None = None) -> Taps:
    generator = torch.Generator().manual_seed(3)
    taps = Taps()
    taps.put(
        0,
        {
            "keys": torch.randn(2, n, 4, generator=generator)[:, :count],
            "class_attention": torch.rand(2, n, generator=generator)[:, :count],
        },
    )
    return taps


def passed(spec: str, tokens: Tokens, host: HostInfo) -> Tokens:
    found: Tokens = place_one(parse_spec(spec), host)("blocks.0", tokens, taps_of(host.num_tokens))
    return found


@pytest.mark.parametrize("method", ONE_LAYER)
@pytest.mark.parametrize("axes", [0, 3])
def test_positions_come_along(method: str, axes: int) -> None:
    """A token that is one of those that came keeps its position; a merged one lies within those merged into it."""
    n = 12
    shape = (2, n, axes) if axes else (2, n)
    position = (torch.arange(n) * 10).reshape(1, n, *(1,) * (len(shape) - 2)).expand(shape)
    x = torch.eye(n).expand(2, n, n)  # so that every token shows what is in it
    found = passed(ONE_LAYER[method], Tokens(x=x, position=position), a_host(1, n, 1))
    assert found.position is not None and found.position.dtype == torch.int64
    assert found.position.shape == (2, found.x.shape[1], *shape[2:])
    for item in range(2):
        for row, where in zip(found.x[item], found.position[item], strict=True):
            inside = position[item][row > 0]
            low, high = inside.amin(dim=0), inside.amax(dim=0)
            assert bool(((where >= low) & (where <= high)).all())
            if int((row > 0).sum()) == 1:
                assert torch.equal(where, inside[0])


def test_the_mean_position_is_rounded_down() -> None:
    x = torch.randn(2, 7, 4, generator=torch.Generator().manual_seed(0))
    position = torch.tensor([[0, 1, 2, 3, 4, 5, 6]]).expand(2, 7)
    found = passed("avg_pool:layer=0,stride=2", Tokens(x=x, position=position), a_host(1, 7, 1))
    assert found.position is not None and found.position.tolist() == [[0, 1, 3, 5]] * 2


@pytest.mark.parametrize("method", ONE_LAYER)
def test_a_span_in_the_middle_is_compressed_alone(method: str) -> None:
    """Text, an image, text: what is done is what would be done to the first two, and the text behind stays."""
    n, tail = 16, 4
    whole = HostInfo(
        name="prompt",
        sites=layer_sites("after_attention", 1, taps=("keys", "class_attention")),
        depth=1,
        num_tokens=n,
        protected=(Span(kind="class", start=0, stop=3), Span(kind="text", start=n - tail, stop=n)),
    )
    front = replace(whole, num_tokens=n - tail, protected=whole.protected[:1])
    generator = torch.Generator().manual_seed(1)
    x, size = torch.randn(2, n, 6, generator=generator), torch.randint(1, 4, (2, n, 1), generator=generator).float()
    position = torch.arange(n).expand(2, n)
    taps = taps_of(n)
    spec = ONE_LAYER[method]
    found = place_one(parse_spec(spec), whole)("blocks.0", Tokens(x=x, size=size, position=position), taps)
    alone = place_one(parse_spec(spec), front)(
        "blocks.0",
        Tokens(x=x[:, :-tail], size=size[:, :-tail], position=position[:, :-tail]),
        taps_of(n, n - tail),
    )
    for name in ("x", "size", "position"):
        ours, theirs = getattr(found, name), getattr(alone, name)
        before = {"x": x, "size": size, "position": position}[name]
        assert torch.equal(ours[:, : theirs.shape[1]], theirs), name
        assert torch.equal(ours[:, theirs.shape[1] :], before[:, -tail:]), name
    assert torch.equal(found.x[:, :3], x[:, :3])
    (site,) = place_one(parse_spec(spec), whole).sites
    assert (site.tokens_in, site.tokens_out) == (n, found.x.shape[1])


def test_protected_tokens_between_others_are_refused() -> None:
    host = replace(a_host(1, 16, 1), protected=(Span(kind="text", start=5, stop=7),))
    with pytest.raises(ConfigError, match="protected tokens stand between others"):
        place_one(parse_spec("random:layers=[0]"), host)


@pytest.mark.parametrize("method", ONE_LAYER)
def test_nothing_is_dropped_on_the_way(method: str) -> None:
    x = torch.randn(2, 12, 4, generator=torch.Generator().manual_seed(0))
    memory: Mapping[str, Tensor] = {"mine": torch.ones(1)}
    before = Tokens(
        x=x, size=torch.ones(2, 12, 1), weighed=True, position=torch.arange(12).expand(2, 12), memory=memory
    )
    found = passed(ONE_LAYER[method], before, a_host(1, 12, 1))
    assert found.weighed and found.memory is memory
    assert found.size is not None and found.size.sum(dim=1).flatten().tolist() in ([12.0, 12.0], [found.x.shape[1]] * 2)
    assert found.position is not None


def test_a_method_that_changes_only_the_width_stays() -> None:
    host = a_host(1, 8, 0, kinds=("encoder_output",), width=4)
    placed = place_one(parse_spec("frame_stack:stride=1"), host)
    assert (placed.tokens_out, placed.width_out, len(placed.sites)) == (8, 4, 1)


def test_sites_have_addresses() -> None:
    assert Site(kind="after_attention", layer=3).address == "blocks.3"
    assert Site(kind="kv_cache", layer=3, graph="step").address == "step/cache.3"
    assert Site(kind="connector", graph="vision").address == "vision/connector"
    assert arrival_at(a_host(4, 17, 1), layer=2).layer == 2
