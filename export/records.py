"""What the manifest says of an export: model, sites, operators, lowered files, verification, engines."""

from collections import Counter
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import onnx

from trt_compress.digest import sha256_of_file
from trt_compress.export.flops import flops_of_call
from trt_compress.export.lower import lower_for_target, operator_nodes
from trt_compress.export.packed_bytes import packed_tensors
from trt_compress.export.recipe import Recipe
from trt_compress.export.targets import get_target
from trt_compress.export.trace import example_tensors
from trt_compress.export.verify_report import DEPLOYED, QUANTIZED, AgreementCheck, VerifyReport
from trt_compress.format import manifest as fields
from trt_compress.format.graphs import BATCH_SYMBOL
from trt_compress.format.manifest import Manifest
from trt_compress.format.wiring import Wiring
from trt_compress.models.hosts.base import GraphSpec, LoadedHost, TensorSpec
from trt_compress.plugins.registry import operators
from trt_compress.version import __version__

RECIPE_FILE, VERIFY_FILE = "recipe.toml", "verify.json"
_TOOLS = ("torch", "timm", "onnx", "onnxscript", "onnxruntime", "numpy")


def wiring_of(host: LoadedHost, graphs: Sequence[GraphSpec]) -> Wiring:
    """How the graphs of a host belong together, as its manifest says it."""
    lengths = {symbol: each for graph in graphs for symbol, each in graph.lengths.items()}
    return Wiring(
        graphs=tuple(
            fields.Graph(
                name=graph.name,
                role=graph.role,
                file=graph_file(graph),
                inputs=_tensors(graph.all_inputs),
                outputs=_tensors(graph.all_outputs),
            )
            for graph in graphs
        ),
        links=tuple(fields.Link(source=source, to=to) for source, to in host.links),
        states=tuple(state.of(graph.name) for graph in graphs for state in graph.states),
        lengths={symbol: fields.Range(min=low, opt=usual, max=high) for symbol, (low, usual, high) in lengths.items()},
        capacities=tuple({each.symbol: each for graph in graphs for each in graph.capacities}.values()),
        procedure=None if host.procedure is None else host.procedure(graphs),
    )


def describe(recipe: Recipe, host: LoadedHost, graphs: Sequence[GraphSpec], dense: Sequence[GraphSpec]) -> Manifest:
    """The manifest as far as it is known before tracing; `dense` are the graphs without compressors."""
    weights, wiring = host.weights, wiring_of(host, graphs)
    prefixes = {graph.name: f"{graph.name}/" if len(graphs) > 1 else "" for graph in graphs}
    return Manifest(
        name=f"{recipe.model} {recipe.spec}",
        created_with={"trt-compress": __version__, **_tool_versions()},
        model=fields.Model(
            source=recipe.model,
            family=host.family,
            weights=fields.Weights(
                source=weights.source,
                sha256=weights.sha256,
                license=weights.license,
                provenance=weights.provenance,
                license_files=weights.license_files,
            ),
        ),
        recipe=recipe.to_json(),
        precision=recipe.precision,
        opset=recipe.opset,
        batch=fields.Batch(min=recipe.batch.min, opt=recipe.batch.opt, max=recipe.batch.max),
        graphs=wiring.graphs,
        links=wiring.links,
        states=wiring.states,
        lengths={
            symbol: fields.Range(min=length.min, opt=length.opt, max=length.max)
            for symbol, length in recipe.lengths.items()
        },
        capacities=wiring.capacities,
        procedure=wiring.procedure,
        text=host.text,
        preprocess={"input": graphs[0].inputs[0].name, **host.preprocess},
        postprocess={"output": [graph for graph in graphs if graph.outputs][-1].outputs[0].name, **host.postprocess},
        compression=tuple(
            fields.Compression(
                site=prefixes[graph.name] + site.name,
                compressor=site.compressor,
                config=site.config.to_json(),
                tokens_in=site.tokens_in,
                tokens_out=site.tokens_out,
            )
            .with_groups(groups=site.groups, padding=site.padding, keeps_rest=site.keeps_rest)
            .with_bytes(site.bytes_per_token, site.bytes, site.bits)
            for graph in graphs
            for site in graph.module.plan
        ),
        flops={**_flops(graphs), "convention": "two for each multiply-add, one input"},
        baseline_flops=_flops(dense).get("total"),
        targets=recipe.targets,
    )


def graph_file(graph: GraphSpec) -> str:
    """Name of the ONNX file of a graph."""
    return f"{graph.name}.onnx"


def lowered_file(graph: str, target: str) -> str:
    """Name of the ONNX file of a graph in the form that a target needs."""
    return f"{graph}.{target}.onnx"


def _tensors(specs: Sequence[TensorSpec]) -> tuple[fields.TensorInfo, ...]:
    return tuple(fields.TensorInfo(name=spec.name, dtype=spec.dtype, shape=spec.shape) for spec in specs)


def _flops(graphs: Sequence[GraphSpec]) -> dict[str, Any]:
    """FLOPs of one run at the usual lengths; of several graphs one by one, as they need not all run."""
    counts = {}
    for graph in graphs:
        usual = {name: opt for name, (_, opt, _) in graph.lengths.items()}
        symbols = {dim: 0 for spec in graph.all_inputs for dim in spec.shape if isinstance(dim, str)}
        tensors = example_tensors(graph.all_inputs, {**symbols, BATCH_SYMBOL: 1, **usual})
        counts[graph.name] = flops_of_call(graph.module, tensors)
    return dict(counts[graphs[0].name]) if len(graphs) == 1 else {"graphs": counts}


def _tool_versions() -> dict[str, str]:
    versions = {}
    for tool in _TOOLS:
        try:
            versions[tool] = metadata.version(tool)
        except metadata.PackageNotFoundError:
            continue
    return versions


def lowered_files(
    model: onnx.ModelProto, graph: GraphSpec, recipe: Recipe, folder: Path
) -> tuple[tuple[fields.Lowered, ...], list[Path]]:
    """Files of one graph for targets that need another form than the bundle's: a device cannot make it.

    They lie beside the graph's own file: ONNX takes weights from the folder of the model only.
    """
    records, files = [], []
    for name in recipe.targets:
        target = get_target(name)
        if target.lowering != "plugin" and not (target.is_tensorrt and packed_tensors(model.graph)):
            continue
        file = folder / lowered_file(graph.name, name)
        onnx.save_model(lower_for_target(model, target), file)
        with file.open("rb") as written:
            sha256 = sha256_of_file(written)
        files.append(file)
        records.append(
            fields.Lowered(target=name, file=file.name, lowering=target.lowering, sha256=sha256, graph=graph.name)
        )
    return tuple(records), files


def operator_records(models: Sequence[onnx.ModelProto]) -> tuple[fields.OperatorUse, ...]:
    """The operators of all graphs and how many nodes each has."""
    counts: Counter[str] = sum((operator_nodes(model) for model in models), Counter())
    return tuple(
        fields.OperatorUse(
            name=spec.name,
            op_type=spec.op_type,
            domain=spec.domain,
            version=spec.version,
            nodes=count,
            lowering="function",
        )
        for op_type, count in sorted(counts.items())
        for spec in [operators()[op_type].spec]
    )


def verification_record(report: VerifyReport) -> fields.Verification:
    """The summary of a report."""
    return fields.Verification(
        passed=report.passed,
        max_abs_error=report.max_abs_error,
        file=VERIFY_FILE,
        method=report.method,
        agreement=_agreement(report.agreements),
        quantization_error=report.distance(QUANTIZED),
        deployment_error=report.distance(DEPLOYED),
        layers=report.layers,
        layers_of=report.layers_of,
        left_out=report.left_out,
    )


def _agreement(rows: Sequence[AgreementCheck]) -> fields.Agreement | None:
    """The summary of rows, the worst of each; None: there are none."""
    if not rows:
        return None
    outputs, sites = ([row for row in rows if row.kind == kind] for kind in ("output", "site"))

    def least(values: Iterable[float | None]) -> float | None:
        return min((value for value in values if value is not None), default=None)

    return fields.Agreement(
        inputs=", ".join(dict.fromkeys(row.inputs for row in outputs)),
        samples=max(row.samples for row in outputs),
        cosine=least(row.cosine for row in outputs),
        top1=least(row.same for row in outputs if row.cosine is not None),
        tokens=least(row.cosine for row in sites),
        indices=least(row.same for row in sites),
    )
