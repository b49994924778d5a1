"""The one placer: who acts where, whether it goes together, and what is left; and the one way through a site."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from trt_compress.errors import ConfigError
from trt_compress.format.graphs import StateSpec
from trt_compress.methods import METHODS, CompressorConfig, CompressorSpec
from trt_compress.methods.config import CACHE_KINDS
from trt_compress.models.compressors.base import Acting, Compressor
from trt_compress.models.compressors.passing import Taps, Tokens
from trt_compress.models.compressors.registry import compressor_class
from trt_compress.models.compressors.sites import BESIDE, Arrival, Asked, HostInfo, Placement, Site, Tap
from trt_compress.plugins.operator import at_site, mark_tensor

Attend = Callable[[Tokens, frozenset[Asked]], tuple[Tensor, Mapping[Asked, Tensor]]]
Feed = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class SitePlan:
    """What happens at one site: `name` is `blocks.3` or `encoder_output`; `config` is the compressor's own.

    Counts include the prefix; one that varies with the inputs is a symbol. Behind the last layer `layer` is the number
    of layers.

    Attributes:
        tokens_in, tokens_out: Of one group of tokens.
        groups: Groups of one sample at this site: windows, images.
        padding: Tokens of all groups together that fill up windows.
        keeps_rest: The tokens that are not computed here are kept, none is removed.
        cached: The tokens are entries of a cache at most, and what leaves the site is attention to them.
        bytes_per_token: By which the cache of the layer grows with each token that it keeps; None: not told here.
        bytes: Of that cache with as many tokens as there can be; of a selector, behind a prompt.
        bits: Of the codes that they are packed to, ascending; none: they are kept as numbers, or it is not told here.
    """

    name: str
    layer: int
    compressor: str
    config: CompressorConfig
    tokens_in: int | str
    tokens_out: int | str
    groups: int = 1
    padding: int = 0
    keeps_rest: bool = False
    cached: bool = False
    bytes_per_token: float | None = None
    bytes: int | None = None
    bits: tuple[int, ...] = ()


class GraphPlan(nn.Module):
    """What happens in one graph; a host calls it with the name of each site that it comes to.

    Attributes:
        sites: What happens at each site, in order of execution.
        tokens_out: Tokens that leave the last site.
        width_out: Channels that leave the last site; None: not told.
    """

    def __init__(self, host: HostInfo) -> None:
        super().__init__()
        self.sites: tuple[SitePlan, ...] = ()
        self.tokens_out = host.num_tokens
        self.width_out = host.width
        self._steps = nn.ModuleDict()
        self._wanted: dict[int, frozenset[Asked]] = {}
        self._tails: dict[str, int] = {}
        self._layers: dict[str, int] = {}

    def forward(self, site: str, tokens: Tokens, taps: Taps) -> Tokens:
        """What leaves a site.

        Args:
            site: Its name.
            tokens: What comes to it; comes out as it is where nothing happens.
            taps: What `wanted` said, of the layers up to here.
        """
        steps = self.steps(site)
        if not steps:
            return tokens
        tail = self._tails[site]
        seen = taps.seen_from(self._layers[site], steps[0].tokens_in if tail else None)
        tokens, behind = _split(tokens, tail) if tail else (tokens, None)
        with at_site(site):
            for number, step in enumerate(steps):
                tokens = step(tokens, seen)
                if step.proportional_attention:
                    tokens = replace(tokens, weighed=True)
                if behind is not None and number == len(steps) - 1:
                    tokens = _joined(tokens, behind)
                tokens = tokens.with_x(mark_tensor("tokens", tokens.x))
        return tokens

    def layer(
        self,
        number: int,
        tokens: Tokens,
        taps: Taps,
        attend: Attend,
        feed: Feed,
        *,
        between: Feed | None = None,
        behind: Feed | None = None,
    ) -> Tokens:
        """One layer with the methods in front of it, and between its attention and its feed-forward part.

        Args:
            number: The layer.
            tokens: What comes to it.
            taps: Of the layers before; this one's are added.
            attend: The attention's update of the tokens, and what of its taps is wanted.
            feed: The feed-forward part's update of tokens [B, N, C].
            between: Of a layer that normalises behind its sums, the one behind the attention; methods come after it.
            behind: And the one behind the feed-forward part.
        """
        tokens = self(f"before.{number}", tokens, taps)
        wanted = self.wanted(number)
        if "hidden" in wanted:
            taps.put(number, {"hidden": tokens.x})
        update, found = attend(tokens, wanted - {"hidden"})
        taps.put(number, found)
        x = tokens.x + update
        tokens = self(f"blocks.{number}", tokens.with_x(x if between is None else between(x)), taps)
        x = tokens.x + feed(tokens.x)
        return tokens.with_x(x if behind is None else behind(x))

    def acting(self, site: str) -> list[Acting]:
        """The methods at a site, in their order."""
        key = _key(site)
        return [cast(Acting, step) for step in cast(nn.ModuleList, self._steps[key])] if key in self._steps else []

    def steps(self, site: str) -> list[Compressor]:
        """The methods at a site that tokens pass, in their order."""
        return [cast(Compressor, step) for step in self.acting(site)]

    def wanted(self, layer: int) -> frozenset[Asked]:
        """What the host has to compute at a layer."""
        return self._wanted.get(layer, frozenset())

    def states(self) -> tuple[StateSpec, ...]:
        """What the methods own, in order of execution."""
        names = dict.fromkeys(site.name for site in self.sites)
        return tuple(state for name in names for step in self.acting(name) for state in step.states())

    def add(self, step: Acting, spec: CompressorSpec, arrival: Arrival, taps: Sequence[Tap], tail: int) -> None:
        """Let a method act behind those that are there already."""
        site, key = arrival.site, _key(arrival.site.name)
        if key not in self._steps:
            self._steps[key] = nn.ModuleList()
        cast(nn.ModuleList, self._steps[key]).append(step)
        self._tails[site.name], self._layers[site.name] = tail, arrival.layer
        for tap in taps:
            self._wanted[tap.layer] = self.wanted(tap.layer) | frozenset[Asked]({tap.asked})
        self.sites += (
            SitePlan(
                name=site.name,
                layer=arrival.layer,
                compressor=spec.name,
                config=spec.config,
                tokens_in=arrival.tokens + tail,
                tokens_out=step.tokens_out + tail,
                groups=site.groups,
                padding=site.padding,
                keeps_rest=step.keeps_rest,
                cached=not isinstance(step, Compressor),
            ),
        )
        self.tokens_out = step.tokens_out + tail
        self.width_out = step.width_out or self.width_out


def place(specs: Sequence[CompressorSpec], host: HostInfo) -> Mapping[str, GraphPlan]:
    """Build a module for every site where a method has an effect.

    Methods that share a site act in the order of `specs`. One that would change nothing at a site is left out there.

    Returns:
        What happens in each graph of the host, by its name.

    Raises:
        ConfigError: the host lacks a site or computes no tap that is asked for, a count does not fit, or two methods do
            not go together; the message says which and why.
    """
    return _placed(specs, host)


def place_first(specs: Sequence[CompressorSpec], host: HostInfo, whole: GraphPlan, layers: int) -> GraphPlan:
    """What is left of the plan of a host with one graph when only its first layers are.

    A method acts where it does in the whole model, with the same weights, on as many tokens as then come there. Where
    the layer is left out, or one that it asks for a tap, so is the method.

    Args:
        specs, host: As the whole model was placed.
        whole: What came of it.
        layers: How many layers are left.
    """
    (plan,) = _placed(specs, host, (whole, layers)).values()
    return plan


def _placed(
    specs: Sequence[CompressorSpec], host: HostInfo, first: tuple[GraphPlan, int] | None = None
) -> Mapping[str, GraphPlan]:
    """`place`; with `first`, what is left of that plan with so many layers."""
    methods = [(spec, compressor_class(spec.method)) for spec in specs]
    _check_together(methods, host)
    wanted = [(spec, method, _placements(spec, method, host)) for spec, method in methods]
    plans = {graph: GraphPlan(host) for graph in dict.fromkeys(site.graph for site in host.sites)}
    flows = {graph: _Flow.entering(host) for graph in plans}
    for number, site in enumerate(host.sites):
        flow = flows[site.graph]
        here: list[Acting] = []
        for spec, method, placements in wanted:
            if not any(placement.covers(site) for placement in placements):
                continue
            taps = method.taps(spec.config, host, site)
            _check_taps(spec, taps, site, host)
            _check_probes(spec, taps, host)
            in_whole = None if first is None else _left(spec, site, taps, *first)
            if first is not None and in_whole is None:
                continue
            arrival = flow.arrival(host, site)
            step = method(spec.config, arrival)
            if in_whole is not None:
                _take_weights(step, in_whole)
            if not step.acts:
                continue
            if not step.takes_stale:
                _check_fresh(spec, step, taps, arrival, flow, here)
            plans[site.graph].add(step, spec, arrival, taps, 0 if site.tokens is not None else flow.tail)
            here.append(step)
            flow = flow.behind(step, spec.name, number)
        flows[site.graph] = flow
    _check_owned(plans, host)
    return plans


def place_one(specs: Sequence[CompressorSpec], host: HostInfo) -> GraphPlan:
    """`place` for a host with one graph."""
    (plan,) = place(specs, host).values()
    return plan


def levels_of(specs: Sequence[CompressorSpec]) -> Mapping[str, tuple[CompressorSpec, ...]]:
    """What each level of a model is made of, by the level's name; one without a name where there are no levels.

    Raises:
        ConfigError: two methods have levels.
    """
    levels: dict[str, tuple[CompressorSpec, ...]] = {"": tuple(specs)}
    owner: CompressorSpec | None = None
    for place_, spec in enumerate(specs):
        found = compressor_class(spec.method).levels(spec.config)
        if len(found) < 2:
            continue
        if owner is not None:
            raise ConfigError(f"{owner.name} and {spec.name} both have levels; give one level to one of them.")
        owner = spec
        levels = {
            name: (*specs[:place_], replace(spec, config=config), *specs[place_ + 1 :])
            for name, config in found.items()
        }
    return levels


@dataclass(frozen=True, slots=True, kw_only=True)
class _Flow:
    """What comes along a graph: counts, and who has changed the tokens so far, at which of the host's sites."""

    tokens: int
    prefix: int
    tail: int
    has_class_token: bool
    width: int | None
    changed: tuple[tuple[str, int], ...] = ()

    @classmethod
    def entering(cls, host: HostInfo) -> "_Flow":
        prefix = host.num_prefix
        behind = [span for span in host.protected if span.stop > prefix]
        first = min((span.start for span in behind), default=host.num_tokens)
        if sum(span.length for span in behind) != host.num_tokens - first:
            raise ConfigError(
                f"{host.name}: protected tokens stand between others; only those before and behind one span can be "
                "told apart."
            )
        return cls(
            tokens=host.num_tokens,
            prefix=prefix,
            tail=host.num_tokens - first,
            has_class_token=host.has_class_token,
            width=host.width,
        )

    def arrival(self, host: HostInfo, site: Site) -> Arrival:
        if site.tokens is not None:
            return Arrival(host=host, site=site, tokens=site.tokens, prefix=0, has_class_token=False, width=site.width)
        return Arrival(
            host=host,
            site=site,
            tokens=self.tokens - self.tail,
            prefix=self.prefix,
            has_class_token=self.has_class_token,
            width=self.width,
        )

    def behind(self, step: Acting, name: str, site: int) -> "_Flow":
        if step.keeps_rest:
            return self
        return replace(
            self,
            tokens=self.tokens - step.tokens_in + step.tokens_out,
            prefix=self.prefix if step.keeps_prefix else 0,
            has_class_token=self.has_class_token and step.keeps_prefix,
            width=step.width_out or self.width,
            changed=(*self.changed, (name, site)) if step.tokens_out != step.tokens_in else self.changed,
        )


def _left(spec: CompressorSpec, site: Site, taps: Sequence[Tap], whole: GraphPlan, layers: int) -> Acting | None:
    """What a method does at a site of the whole model; None: nothing, or it is not left there with so many layers."""
    if any(layer is not None and layer >= layers for layer in (site.layer, *(tap.layer for tap in taps))):
        return None
    planned = [each for each in whole.sites if each.name == site.name]
    for each, step in zip(planned, whole.acting(site.name), strict=True):
        if (each.compressor, each.config) == (spec.name, spec.config):
            return step
    return None


def _take_weights(step: Acting, of: Acting) -> None:
    """Let a method have another's trained parts instead of its own."""
    for name, part in list(step.named_children()):
        if any(True for _ in part.parameters()):
            setattr(step, name, getattr(of, name))


def _placements(spec: CompressorSpec, method: type[Acting], host: HostInfo) -> tuple[Placement, ...]:
    """Where a method wants to act; ConfigError if the host has no such site."""
    placements = method.placements(spec.config, host)
    if missing := [placement.kind for placement in placements if placement.kind not in host.kinds]:
        raise ConfigError(f"{spec.name}: acts at {missing[0]}, but {host.name} {_offered(host)}")
    graphs = {site.graph for site in host.sites}
    for placement in placements:
        if placement.graph is not None and placement.graph not in graphs:
            raise ConfigError(
                f"{spec.name}: acts in the graph {placement.graph}, but {host.name} has only "
                f"{', '.join(sorted(graphs))}."
            )
    return placements


def _offered(host: HostInfo) -> str:
    """What a host takes instead, as the end of `METHOD acts at …, but HOST …`."""
    listed = "(`trt-compress list compressors`)"
    if not host.kinds:
        why = "has no sites of methods at all"
        if host.cache is not None:
            why = "keeps a sliding window or checkpoints in every layer, where no cache policy acts"
        return f"{why}; leave it out."
    offered = f"offers only {', '.join(sorted(host.kinds))}"
    if host.kinds != ("kv_cache",):
        return f"{offered}; leave it out, or take a method of another kind {listed}."
    policies = [
        f"a {kind} ({', '.join(names)})"
        for kind in CACHE_KINDS
        if (names := [name for name, method in METHODS.items() if method.kind == kind])
    ]
    return f"{offered}, where cache policies act; leave it out, or take {', '.join(policies)} {listed}."


def _check_together(wanted: Sequence[tuple[CompressorSpec, type[Acting]]], host: HostInfo) -> None:
    """Refuse a method that cannot act beside another one, or on padded inputs."""
    for spec, method in wanted:
        if method.alone is not None and len(wanted) > 1:
            raise ConfigError(f"{spec.name}: {method.alone}; give it alone.")
        if host.padded and not method.takes_padding:
            raise ConfigError(
                f"{spec.name}: {host.name} pads its inputs, and {spec.name} {method.no_padding}; export for one length."
            )
    if wanted and host.padded and any(span.stop > host.num_prefix for span in host.protected):
        raise ConfigError(
            f"{host.name}: it pads its inputs behind protected tokens, which then have no place of their own; export "
            "for one length."
        )


def _check_taps(spec: CompressorSpec, taps: Sequence[Tap], site: Site, host: HostInfo) -> None:
    """Refuse a method that asks for what the host does not compute."""
    own = host.depth if site.layer is None else site.layer
    for layer in dict.fromkeys(tap.layer for tap in taps):
        asked = [tap for tap in taps if tap.layer == layer]
        kinds = {tap.kind for tap in asked}
        missing = sorted({tap.kind for tap in asked if _computed_at(tap, site.graph, host) is None})
        if not missing:
            continue
        where = site.kind if layer == own else f"layer {layer}"
        offered = sorted({each.kind for each in host.sites if kinds <= each.taps})
        raise ConfigError(
            f"{spec.name}: needs {' and '.join(missing)} at {where}, and {host.name} computes none there.",
            hint=f"{' and '.join(offered)} would have them." if offered else None,
        )


def _check_probes(spec: CompressorSpec, taps: Sequence[Tap], host: HostInfo) -> None:
    """Refuse probes that mean something else in a padded batch than of each item alone."""
    for probe in (tap.probe for tap in taps if tap.probe is not None and host.padded):
        if not probe.of_any_length:
            raise ConfigError(
                f"{spec.name}: {host.name} pads its inputs, and {spec.name} probes in a way that depends on how long "
                "they are with their padding; export for one length."
            )


def _computed_at(tap: Tap, graph: str, host: HostInfo) -> int | None:
    """The first site of the host behind which a tap is there; None: nowhere."""
    for number, site in enumerate(host.sites):
        layer = host.depth if site.layer is None else site.layer
        if site.graph == graph and layer == tap.layer and tap.kind in site.taps:
            return number
    return None


def _check_fresh(
    spec: CompressorSpec,
    step: Acting,
    taps: Sequence[Tap],
    arrival: Arrival,
    flow: _Flow,
    here: Sequence[Acting],
) -> None:
    """Refuse a method whose taps belong to tokens that another one has changed since."""
    site, host = arrival.site, arrival.host
    for tap in (each for each in taps if each.kind not in BESIDE):
        computed = _computed_at(tap, site.graph, host)
        stale = [(name, at) for name, at in flow.changed if computed is not None and at >= computed]
        if not stale:
            continue
        name, at = stale[-1]
        kinds = " and ".join(sorted({each.kind for each in taps if each.layer == tap.layer}))
        of_layer = "" if tap.layer == arrival.layer else f" of layer {tap.layer}"
        first = host.sites[at] == site and not any(other.asks for other in here)
        raise ConfigError(
            f"{spec.name}: at {site.name} {name} has already changed the tokens that its {kinds}{of_layer} belong to.",
            hint=f"let them act at different layers ({spec.name}:{step.layer_option})"
            f"{f', or name {spec.name} first' if first else ''}.",
        )


def _check_owned(plans: Mapping[str, GraphPlan], host: HostInfo) -> None:
    """Refuse two methods that own a state of one name."""
    for plan in plans.values():
        names = [state.port for state in plan.states()]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(f"{host.name}: two methods want to own the state '{twice[0]}'; give one of them.")


def _split(tokens: Tokens, tail: int) -> tuple[Tokens, Tokens]:
    """The tokens that methods may touch, and the last ones, which none touches."""

    def part(rows: slice) -> Tokens:
        return replace(
            tokens,
            x=tokens.x[:, rows],
            size=None if tokens.size is None else tokens.size[:, rows],
            position=None if tokens.position is None else tokens.position[:, rows],
            valid=None if tokens.valid is None else tokens.valid[:, rows],
        )

    return part(slice(None, -tail)), part(slice(-tail, None))


def _joined(tokens: Tokens, behind: Tokens) -> Tokens:
    """Both again, one behind the other."""
    position, valid = tokens.position, tokens.valid
    if position is not None and behind.position is not None:
        position = torch.cat([position, behind.position], dim=1)
    if valid is not None and behind.valid is not None:
        valid = torch.cat([valid, behind.valid], dim=1)
    return replace(
        tokens,
        x=torch.cat([tokens.x, behind.x], dim=1),
        size=None if tokens.size is None else torch.cat([tokens.size, behind.sizes], dim=1),
        position=position,
        valid=valid,
    )


def _key(site: str) -> str:
    """A site's name as torch takes it for a part of a module."""
    return site.replace(".", "/")
