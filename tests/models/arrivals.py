"""Hosts and arrivals for tests of one method without a model."""

from trt_compress.models.compressors.sites import (
    ENCODER_OUTPUT,
    Arrival,
    HostInfo,
    Site,
    SiteKind,
    TapKind,
    layer_sites,
    leading_spans,
)


def a_host(
    depth: int = 12,
    num_tokens: int = 197,
    num_prefix: int = 1,
    *,
    kinds: tuple[SiteKind, ...] = ("after_attention",),
    taps: tuple[TapKind, ...] = ("keys", "class_attention"),
    width: int | None = None,
) -> HostInfo:
    """A host that has sites of these kinds and computes these taps at its layers."""
    sites: list[Site] = []
    for kind in kinds:
        sites += layer_sites(kind, depth, taps=taps) if kind == "after_attention" else [Site(kind=kind)]
    spans = leading_spans([("class", min(1, num_prefix)), ("register", max(0, num_prefix - 1))])
    return HostInfo(name="tiny", sites=tuple(sites), depth=depth, num_tokens=num_tokens, protected=spans, width=width)


def arrival_at(host: HostInfo, kind: SiteKind = "after_attention", layer: int = 0) -> Arrival:
    """All tokens of a host at one of its sites."""
    site = next(site for site in host.sites if site.kind == kind and site.layer in (None, layer))
    own = site.tokens is None
    return Arrival(
        host=host,
        site=site,
        tokens=host.num_tokens if site.tokens is None else site.tokens,
        prefix=host.num_prefix if own else 0,
        has_class_token=host.has_class_token and own,
        width=host.width if own else site.width,
    )


BOTH: tuple[SiteKind, ...] = ("after_attention", ENCODER_OUTPUT)
