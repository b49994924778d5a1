"""A bundle in words and tables."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trt_compress.export.targets import TARGETS
from trt_compress.format.bundle import Bundle
from trt_compress.format.manifest import (
    Capacity,
    Compression,
    Engine,
    Graph,
    Int8Use,
    Manifest,
    Procedure,
    State,
    TensorInfo,
    Text,
    WeightForm,
)
from trt_compress.format.procedure import Pass, Upkeep, range_of
from trt_compress.memory import format_bytes
from trt_compress.runtime.tokens import part_text, token_flows, tokens_text
from trt_compress.tools.console import print_pairs, print_table

if TYPE_CHECKING:
    from trt_compress.export.engines import BuildPlan

_FORMS = {"function": "ONNX bodies", "plugin": "plugins, without bodies", "inline": "standard operators"}
_PATHS = {"plugin": "plugins", "function": "ONNX bodies", "native": "native operators"}


def print_bundle(bundle: Bundle) -> None:
    """Print what a bundle holds."""
    manifest = bundle.manifest
    print_pairs(str(bundle.path), _overview(manifest))
    graphs = [_graph(graph, manifest) for graph in manifest.graphs]
    _print_if_any("Graphs", ("graph", "role", "file", "size", "inputs", "outputs"), graphs)
    columns = ("state", "graph", "holds", "from run to run", "tensor")
    _print_if_any("States", columns, list(state_rows(manifest.states)))
    capacities = [
        (part.symbol, str(manifest.lengths[part.symbol].min), str(manifest.lengths[part.symbol].max), _growth(part))
        for part in manifest.capacities
    ]
    _print_if_any("Capacities", ("slots", "at first", "at most", "used"), capacities)
    if manifest.procedure is not None:
        print_pairs("Procedure", _procedure(manifest.procedure, manifest))
    sites = [(part.site, part.compressor, _site_tokens(part)) for part in manifest.compression]
    _print_if_any("Compression", ("site", "compressor", "tokens"), sites)
    operators = [
        (part.name, part.op_type, part.version, part.nodes, _FORMS.get(part.lowering, part.lowering))
        for part in manifest.operators
    ]
    _print_if_any("Operators", ("operator", "op type", "version", "nodes", "in the file as"), operators)
    lowered = [
        (part.target, part.graph, part.file, _FORMS.get(part.lowering, part.lowering)) for part in manifest.lowered
    ]
    _print_if_any("Files for targets that need another form", ("target", "graph", "file", "operators as"), lowered)
    engines = [_engine(engine) for engine in manifest.engines]
    _print_if_any("Engines", ("target", "graph", "size", "built by", "precision", "operators", "seconds"), engines)


def bundle_bytes(manifest: Manifest) -> int:
    """Size of all files of a bundle but the manifest."""
    return sum(info.bytes for info in manifest.files.values())


def compression_text(manifest: Manifest) -> str:
    """Write what compresses a model, each compressor with its settings once: `tome:num_merged=13`, or `none`."""
    return sites_text(manifest.compression)


def sites_text(sites: Sequence[Compression]) -> str:
    """As `compression_text`, of the sites themselves."""
    parts = (f"{part.compressor}:{_spec_settings(part.config)}".rstrip(":") for part in sites)
    return "+".join(dict.fromkeys(parts)) or "none"


def engine_pairs(engine: Engine) -> list[tuple[str, object]]:
    """A built engine in words and units."""
    plugins = f"a plugin library of the sources {engine.plugins}" if engine.plugins else None
    return [
        ("target", engine.target),
        ("graph", engine.graph),
        ("file", f"{engine.file}, {format_bytes(engine.bytes)}"),
        ("built by", f"{library_words(engine.library)} {engine.library_version} in {engine.seconds:.1f} s"),
        ("precision", _precision(engine)),
        ("operators", _paths(engine.paths) or "none"),
        *([("needs to run", plugins)] if plugins else []),
        ("inputs", "\n".join(_profiles(engine.profile)) or "fixed shapes"),
        ("hash", f"{engine.sha256} (SHA-256)"),
    ]


def plan_pairs(plan: "BuildPlan") -> list[tuple[str, object]]:
    """A build that is planned, in words and units."""
    return [
        ("target", plan.target),
        ("file", plan.file + (", in place of the one that is there" if plan.replaces else "")),
        ("by", library_words(plan.library)),
        ("batch", batch_words(*map(int, plan.batch.split(":")))),
        ("precision", plan.precision_asked),
        ("operators", f"as plugins of {plan.plugins}" if plan.plugins else "as ONNX bodies"),
    ]


def export_pairs(summary: Mapping[str, Any]) -> list[tuple[str, object]]:
    """The summary of an export in words and units."""
    gflops, fewer, operators = summary["gflops"], summary["flops_reduction"], summary["operators"]
    reduction = f", {fewer:.2f} times fewer than uncompressed" if fewer and summary["compressors"] != "none" else ""
    return [
        ("bundle", summary["bundle"] or "none: a dry run writes nothing"),
        ("model", summary["model"]),
        ("weights", ", ".join(filter(None, (summary["weights"], summary.get("provenance"))))),
        ("compressors", summary["compressors"]),
        ("tokens", _token_words(summary["tokens"])),
        ("FLOPs an input", f"{gflops:g} G{reduction}" if gflops is not None else "not counted"),
        (
            "operators",
            ", ".join(f"{name} {count} times" for name, count in operators.items())
            or ("none" if summary["bundle"] else "not known yet"),
        ),
        ("precision", f"{summary['precision']}, opset {summary['opset']}"),
        ("batch", batch_words(*map(int, summary["batch"].split(":")))),
        ("targets", ", ".join(summary["targets"])),
        *((f"on {name}", note) for name in summary["targets"] if (note := TARGETS[name].notes)),
        ("weights as", weights_text([WeightForm.from_json(form, "") for form in summary["weight_forms"]])),
        *_int8([Int8Use.from_json(record, "") for record in summary["int8"]]),
        ("verified", _verified(summary) or "not yet: nothing was traced"),
        *(("warning", warning) for warning in summary["warnings"]),
    ]


def batch_words(low: int, usual: int, high: int) -> str:
    """A range of batch sizes: `1 to 8, best at 4`."""
    return str(low) if low == high else f"{low} to {high}, best at {usual}"


def library_words(module: str) -> str:
    """Name of a library as its maker writes it."""
    names = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX", "onnxruntime": "ONNX Runtime"}
    return names.get(module, module)


def _token_words(tokens: Any) -> str:
    if isinstance(tokens, dict):
        return "\n".join(f"{name}: {_token_words(chain)}" for name, chain in tokens.items()) or "all kept"
    return (" → ".join(map(str, tokens)) or "all kept") if isinstance(tokens, list) else str(tokens)


def _precision(engine: Engine) -> str:
    """What an engine computes in: `fp16 asked; the model's layers: 50 in fp16; inside operators: 24 in fp32`."""
    model, inside = (_counts(engine.precision_achieved.get(part, {})) for part in ("model", "operators"))
    said = [f"the model's layers: {model}" if model else "", f"inside operators: {inside}" if inside else ""]
    return "; ".join(filter(None, (f"{engine.precision_asked} asked", *said)))


def _counts(layers: Any) -> str:
    return " and ".join(f"{count} in {name}" for name, count in layers.items()) if isinstance(layers, dict) else ""


def _paths(paths: Mapping[str, Mapping[str, int]]) -> str:
    """How operators run: `TokenMerge: 8 as ONNX bodies`."""
    return "; ".join(
        f"{name.removeprefix('Trtc')}: "
        + ", ".join(f"{count} as {_PATHS.get(form, form)}" for form, count in forms.items() if count)
        for name, forms in paths.items()
    )


def _profiles(profile: Mapping[str, Mapping[str, Sequence[int]]]) -> Iterator[str]:
    """The shapes of every input; those of inputs that are alike but for a number, once for all of them."""
    alike: dict[tuple[str, str], list[str]] = {}
    for name, shapes in profile.items():
        low, usual, high = (f"[{', '.join(map(str, shapes[end]))}]" for end in ("min", "opt", "max"))
        said = low if low == high else f"{low} to {high}, best at {usual}"
        alike.setdefault((re.sub(r"\d+", "#", name), said), []).append(name)
    for (_, said), names in alike.items():
        yield f"{names[0]} {said}" if len(names) == 1 else f"{names[0]} … {names[-1]} ({len(names)}) {said}"


def _spec_settings(config: Mapping[str, object]) -> str:
    """Settings as a spec string has them; what is left to the compressor is left out."""
    return ",".join(f"{name}={_spec_value(value)}" for name, value in config.items() if value is not None)


def _spec_value(value: object) -> str:
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_spec_value, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _overview(manifest: Manifest) -> list[tuple[str, object]]:
    weights = manifest.model.weights
    origin = ", ".join(part for part in (weights.source, weights.provenance) if part)
    terms = ", ".join(filter(None, (weights.license, *weights.license_files)))
    batch = manifest.batch
    return [
        ("model", f"{manifest.model.source} ({manifest.model.family})"),
        ("weights", origin),
        ("licence", terms or "not stated"),
        *([] if manifest.text is None else [("text", _text(manifest.text))]),
        ("compression", compression_text(manifest)),
        ("tokens", _sample_tokens(manifest)),
        ("precision", f"{manifest.precision}, opset {manifest.opset}"),
        ("weights as", weights_text(manifest.weights)),
        *_int8(manifest.int8),
        ("batch", batch_words(batch.min, batch.opt, batch.max)),
        ("FLOPs an input", _flops(manifest)),
        ("targets", ", ".join(manifest.targets) or "none named"),
        ("verification", _verification(manifest)),
        ("tensors", _shared(manifest)),
        ("size", f"{format_bytes(bundle_bytes(manifest))}, files: {len(manifest.files)}"),
        ("digest", manifest.digest),
        ("made with", ", ".join(f"{name} {version}" for name, version in manifest.created_with.items())),
    ]


def _text(text: Text) -> str:
    """What makes tokens of a text, in words."""
    context = "" if text.context is None else f", trained for sequences of {text.context}"
    template = "without a chat template" if text.chat_template is None else f"with {text.chat_template}"
    return f"{text.vocabulary} tokens by {text.tokenizer}, {template}{context}"


def weights_text(forms: Sequence[WeightForm]) -> str | None:
    """The weights that were found in the ONNX files: `48 in int4 by 32 (53.1 MB); 102 in float32 (1.2 MB)`.

    Graphs that have the same ones share them in the file of weights; they are not counted again for each.
    """
    graphs: dict[str, dict[str, tuple[int, int]]] = {}
    for form in forms:
        name = form.dtype + (f" by {form.group}" if form.group else "")
        graphs.setdefault(form.graph, {})[name] = form.tensors, form.bytes
    counted = list(graphs.values())
    are_alike = len(counted) > 1 and all(other == counted[0] for other in counted)
    found: dict[str, tuple[int, int]] = {}
    for one in counted[:1] if are_alike else counted:
        for name, (tensors, size) in one.items():
            before = found.get(name, (0, 0))
            found[name] = before[0] + tensors, before[1] + size
    said = "; ".join(f"{count} in {name} ({format_bytes(size)})" for name, (count, size) in found.items())
    return f"{said}, in each of {len(counted)} graphs" if are_alike else said or None


def _int8(records: Sequence[Int8Use]) -> list[tuple[str, object]]:
    """What runs in INT8: `48 of 49 layers with weights (static:minmax, by 256 samples of images); in fp32 stay …`."""
    said = []
    for record in records:
        by = f"{record.way}:{record.method}" if record.method else record.way
        by += "" if record.samples is None else f", by {record.samples} samples of {record.data}"
        text = f"{record.in_int8} of {record.layers} layers with weights ({by})"
        stay = [f"{record.products} products of activations"] if record.products else []
        reasons = dict.fromkeys(record.kept.values())
        names = {why: [name for name, own in record.kept.items() if own == why] for why in reasons}
        stay += [f"{', '.join(found)} ({why})" for why, found in names.items()]
        of = f"{record.graph}: " if len(records) > 1 else ""
        said.append(of + text + (f"; in floating point stay {', '.join(stay)}" if stay else ""))
    return [("in INT8", "\n".join(said))] if said else []


def _verification(manifest: Manifest) -> str:
    summary = manifest.verification
    if summary is None:
        return "not verified"
    said = ", ".join(filter(None, ("passed" if summary.passed else "FAILED", summary.text)))
    return said + _rounding(summary.to_json())


def _verified(summary: Mapping[str, Any]) -> str:
    return summary["verified"] + _rounding(summary) if summary["verified"] else ""


def _rounding(found: Mapping[str, Any]) -> str:
    """How a graph was run for its verification, and what quantized weights cost."""
    said = ""
    if (moved := found.get("quantization_error")) is not None:
        said += f"\nquantized weights move the outputs by {moved:.1e} of the largest"
    if (moved := found.get("deployment_error")) is not None:
        said += f"\nONNX Runtime rounds what they are multiplied by to 8 bits, which moves them by {moved:.1e}"
    return said + (f"\nrun as {found['method']}" if found.get("method") else "")


def _shared(manifest: Manifest) -> str | None:
    """The files of tensors, which all graphs share."""
    names = dict.fromkeys(name for graph in manifest.graphs for name in graph.external_data if name in manifest.files)
    return ", ".join(f"{name}, {format_bytes(manifest.files[name].bytes)}" for name in names) or None


def _sample_tokens(manifest: Manifest) -> str | None:
    flows = token_flows(manifest.compression)
    notes = "; ".join(dict.fromkeys(flow.note for flow in flows))
    return f"{tokens_text(manifest.compression)} ({notes})" if notes else tokens_text(manifest.compression)


def _site_tokens(site: Compression) -> str:
    if site.keeps_rest or site.groups > 1:
        tokens = part_text(site.groups, site.tokens_in, site.tokens_out)
    else:
        tokens = f"{site.tokens_in} → {site.tokens_out}"
    if site.bytes_per_token is None or site.bytes is None:
        return tokens
    return f"{tokens}; {site.bytes_per_token:g} B each, {format_bytes(site.bytes)} in all"


def _flops(manifest: Manifest) -> str | None:
    total, dense = (manifest.flops or {}).get("total"), manifest.baseline_flops
    if not total:
        return None
    return f"{total / 1e9:.3g} G" + (f", {dense / total:.2f} times fewer than uncompressed" if dense else "")


def _graph(graph: Graph, manifest: Manifest) -> tuple[object, ...]:
    size = format_bytes(manifest.files[graph.file].bytes) if graph.file in manifest.files else "pruned"
    carried = [state for state in manifest.states if state.graph == graph.name]
    read, written = {state.input for state in carried}, {state.output for state in carried}
    inputs = _tensors([info for info in graph.inputs if info.name not in read])
    outputs = _tensors([info for info in graph.outputs if info.name not in written])
    return graph.name, graph.role, graph.file, size, inputs, outputs


def state_rows(states: Sequence[State]) -> Iterator[tuple[str, ...]]:
    """A row for each state; of states that are alike but for a number, those of many layers, for all of them."""
    alike: dict[tuple[str, ...], list[State]] = {}
    for state in states:
        row = (
            re.sub(r"\d+", "#", state.key),
            state.graph,
            state.kind,
            re.sub(r"\d+", "#", _ends(state)),
            _tensor(state),
        )
        alike.setdefault((*row, str(state.bits)), []).append(state)
    for first, *rest in alike.values():
        if not rest:
            yield first.key, first.graph, _state_kind(first), _ends(first), _tensor(first)
            continue
        layers = [state.layer for state in (first, *rest) if state.layer is not None]
        codes = f", {first.bits}-bit codes" if first.bits else ""
        held = f"{first.kind} of {len(layers)} layers{codes}" if layers else _state_kind(first)
        yield f"{first.key} … {rest[-1].key} ({len(rest) + 1})", first.graph, held, _ends(first), _tensor(first)


def _state_kind(state: State) -> str:
    """What a state holds: `cache of layer 3, 4-bit codes`."""
    layer = "" if state.layer is None else f" of layer {state.layer}"
    return f"{state.kind}{layer}" + (f", {state.bits}-bit codes" if state.bits else "")


def _ends(state: State) -> str:
    """Where a state leaves and enters a graph."""
    if state.input is None:
        return f"written as {state.output}"
    if state.output is None:
        return f"read as {state.input}"
    return f"{state.output} → {state.input}" + (", in place" if state.alias else "")


def _growth(capacity: Capacity) -> str:
    adds = ", ".join(
        f"{graph} adds {'one a token' if count == 'tokens' else count}" for graph, count in capacity.adds.items()
    )
    used = "one a token read" if capacity.used is None else f"as '{capacity.used}' says"
    return f"{used}; {adds}" if adds else used


def _procedure(procedure: Procedure, manifest: Manifest) -> list[tuple[str, object]]:
    """How sequences of tokens are read, in words."""

    def turn(part: Pass) -> str:
        low, high = range_of(part, manifest.lengths)
        count = f"{low}" if low == high else f"{low} to {high}"
        at_once = ", all at once" if part.whole else ""
        return f"{' → '.join(part.graphs)}, {count} tokens a run{at_once}; {part.logits} ({part.rows})"

    def upkeep(part: Upkeep) -> str:
        when = "" if part.capacity is None else f", while '{part.capacity}' has {part.at_least} slots or more in use"
        return f"{part.graph} after {'the' if part.after == 'prompt' else 'every'} {part.after}{when}"

    media = [
        f"{' → '.join(part.graphs)} ({part.input.get('kind')})"
        + (f" for the token {part.token}" if part.token is not None else "")
        for part in procedure.media
    ]
    return [
        *(("before the prompt", each) for each in media),
        *((name if name != "prompt" else "the prompt", turn(part)) for name, part in procedure.passes.items()),
        *(("upkeep", upkeep(part)) for part in procedure.upkeep),
        ("given", ", ".join(f"{what} to {name}" for name, what in procedure.feeds.items())),
        ("positions", {"seen": "tokens read before", "kept": "in a state"}.get(procedure.position, procedure.position)),
    ]


def _tensors(tensors: Sequence[TensorInfo]) -> str:
    return "\n".join(f"{info.name} {_tensor(info)}" for info in tensors)


def _tensor(info: TensorInfo | State) -> str:
    return f"{info.dtype} [{', '.join(map(str, info.shape))}]"


def _engine(engine: Engine) -> tuple[object, ...]:
    return (
        engine.target,
        engine.graph,
        format_bytes(engine.bytes),
        f"{library_words(engine.library)} {engine.library_version}",
        _precision(engine),
        _paths(engine.paths) or "none",
        f"{engine.seconds:.1f}",
    )


def _print_if_any(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    if rows:
        print_table(title, columns, rows)
