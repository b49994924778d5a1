"""A bundle in words and tables."""

from collections.abc import Mapping, Sequence

from trt_compress.runtime.bundle import Bundle
from trt_compress.runtime.manifest import Compression, Engine, Graph, Manifest, State, TensorInfo
from trt_compress.runtime.tokens import part_text, token_flows, tokens_text
from trt_compress.tools.console import format_bytes, print_pairs, print_table


def print_bundle(bundle: Bundle) -> None:
    """Print what a bundle holds."""
    manifest = bundle.manifest
    print_pairs(str(bundle.path), _overview(manifest))
    graphs = [_graph(graph, manifest) for graph in manifest.graphs]
    _print_if_any("Graphs", ("graph", "file", "size", "inputs", "outputs"), graphs)
    states = [
        (state.name or f"{state.graph}.{state.input}", state.graph, f"{state.output} → {state.input}", _tensor(state))
        for state in manifest.states
    ]
    _print_if_any("States", ("state", "graph", "from run to run", "tensor"), states)
    sites = [(part.site, part.compressor, _site_tokens(part)) for part in manifest.compression]
    _print_if_any("Compression", ("site", "compressor", "tokens"), sites)
    operators = [(part.name, part.op_type, part.version, part.nodes, part.lowering) for part in manifest.operators]
    _print_if_any("Operators", ("operator", "op type", "version", "nodes", "lowering"), operators)
    lowered = [(part.target, part.graph, part.file, part.lowering) for part in manifest.lowered]
    _print_if_any("Files for targets that need another form", ("target", "graph", "file", "operators as"), lowered)
    engines = [_engine(engine) for engine in manifest.engines]
    _print_if_any("Engines", ("target", "graph", "size", "library", "precision", "paths", "seconds"), engines)


def bundle_bytes(manifest: Manifest) -> int:
    """Size of all files of a bundle but the manifest."""
    return sum(info.bytes for info in manifest.files.values())


def compression_text(manifest: Manifest) -> str:
    """Write what compresses a model, each compressor with its settings once: `tome:num_merged=13`, or `none`."""
    return sites_text(manifest.compression)


def sites_text(sites: Sequence[Compression]) -> str:
    """As `compression_text`, of the sites themselves."""
    parts = (f"{part.compressor}:{_settings(part.config, ',')}".rstrip(":") for part in sites)
    return "+".join(dict.fromkeys(parts)) or "none"


def _overview(manifest: Manifest) -> list[tuple[str, object]]:
    weights = manifest.model.weights
    origin = ", ".join(part for part in (weights.source, weights.license, weights.provenance) if part)
    batch = manifest.batch
    return [
        ("model", f"{manifest.model.source} ({manifest.model.family})"),
        ("weights", origin),
        ("compression", compression_text(manifest)),
        ("tokens", _sample_tokens(manifest)),
        ("precision", f"{manifest.precision}, opset {manifest.opset}"),
        ("batch", f"{batch.min}:{batch.opt}:{batch.max}"),
        ("FLOPs an input", _flops(manifest)),
        ("targets", ", ".join(manifest.targets) or None),
        ("verification", _verification(manifest)),
        ("size", f"{format_bytes(bundle_bytes(manifest))}, files: {len(manifest.files)}"),
        ("made with", _settings(manifest.created_with)),
    ]


def _verification(manifest: Manifest) -> str:
    summary = manifest.verification
    if summary is None:
        return "not verified"
    error = "" if summary.max_abs_error is None else f", largest error {summary.max_abs_error:.1e}"
    return ("passed" if summary.passed else "FAILED") + error


def _sample_tokens(manifest: Manifest) -> str | None:
    flows = token_flows(manifest.compression)
    notes = "; ".join(dict.fromkeys(flow.note for flow in flows))
    return f"{tokens_text(manifest.compression)} ({notes})" if flows else None


def _site_tokens(site: Compression) -> str:
    if site.keeps_rest or site.groups > 1:
        return part_text(site.groups, site.tokens_in, site.tokens_out)
    return f"{site.tokens_in} → {site.tokens_out}"


def _flops(manifest: Manifest) -> str | None:
    total, dense = (manifest.flops or {}).get("total"), manifest.baseline_flops
    if not total:
        return None
    return f"{total / 1e9:.3g} G" + (f", {dense / total:.2f} times fewer than uncompressed" if dense else "")


def _graph(graph: Graph, manifest: Manifest) -> tuple[object, ...]:
    size = sum(manifest.files[file].bytes for file in (graph.file, *graph.external_data))
    return graph.name, graph.file, format_bytes(size), _tensors(graph.inputs), _tensors(graph.outputs)


def _tensors(tensors: Sequence[TensorInfo]) -> str:
    return "\n".join(f"{info.name} {_tensor(info)}" for info in tensors)


def _tensor(info: TensorInfo | State) -> str:
    return f"{info.dtype} [{', '.join(map(str, info.shape))}]"


def _engine(engine: Engine) -> tuple[object, ...]:
    return (
        engine.target,
        engine.graph,
        format_bytes(engine.bytes),
        f"{engine.library} {engine.library_version}",
        f"{engine.precision_asked} asked; {_settings(engine.precision_achieved)}",
        "; ".join(f"{name}: {_settings(count)}" for name, count in engine.paths.items()),
        f"{engine.seconds:.1f}",
    )


def _settings(values: Mapping[str, object], separator: str = ", ") -> str:
    return separator.join(f"{name}={value}" for name, value in values.items())


def _print_if_any(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    if rows:
        print_table(title, columns, rows)
