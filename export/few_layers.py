"""Verification of the first layers of a model that is too large to be run twice: which they are, what is left out."""

from collections.abc import Sequence
from dataclasses import replace

from trt_compress.errors import ConfigError, UnsupportedError
from trt_compress.models.hosts.base import GraphSpec


def check_layers(graphs: Sequence[GraphSpec], wanted: int | None, model: str, family: str) -> None:
    """Refuse a number of layers with which there would be nothing to leave out, or no compressor to verify.

    Raises:
        ConfigError: the number does not fit.
        UnsupportedError: the model's host cannot leave layers out.
    """
    if wanted is None:
        return
    layered = [graph.layers for graph in graphs if graph.layers is not None]
    if not layered:
        raise UnsupportedError(
            f"--verify-layers {wanted}: {model} is driven by the host '{family}', which cannot leave layers out; leave "
            "the option out, so that all of the model is verified."
        )
    most = min(layers.count for layers in layered) - 1
    if not 1 <= wanted <= most:
        raise ConfigError(
            f"--verify-layers {wanted}: {model} has {most + 1} layer{'s'[:most]}; "
            + (f"give {_numbers(1, most)}, or " if most else "")
            + f"leave the option out, so that all of {'them' if most else 'it'} is verified."
        )
    acting = [site for graph in graphs if graph.layers for site in graph.module.plan]
    kept = [site for graph in graphs if graph.layers for site in first_of(graph, wanted).module.plan]
    if acting and not kept:
        first = min(site.layer for site in acting)
        raise ConfigError(
            f"--verify-layers {wanted} would leave out every compressor of {model}: the first acts at "
            f"{acting[0].name}; " + (f"give {_numbers(first + 1, most)}." if first < most else "leave the option out.")
        )


def first_of(graph: GraphSpec, layers: int | None) -> GraphSpec:
    """A graph with its first layers only, and the lengths that the recipe gives; all of it if none may be left out."""
    if layers is None or graph.layers is None:
        return graph
    short = graph.layers.first(layers)
    return replace(short, lengths={symbol: graph.lengths[symbol] for symbol in short.lengths})


def left_out(graph: GraphSpec, layers: int) -> tuple[str, ...]:
    """What does not act in the first layers of a graph: `tome at blocks.2 to blocks.7`, one for each method."""
    kept = {(site.name, site.compressor) for site in first_of(graph, layers).module.plan}
    names: dict[str, list[str]] = {}
    for site in graph.module.plan:
        if (site.name, site.compressor) not in kept:
            names.setdefault(site.compressor, []).append(site.name)
    return tuple(
        f"{method} at {found[0]}" + (f" to {found[-1]}" if len(found) > 1 else "") for method, found in names.items()
    )


def _numbers(low: int, high: int) -> str:
    return str(low) if low == high else f"{low} to {high}"
