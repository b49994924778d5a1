"""What the manifest says of an export: model, sites, operators, lowered files, verification, engines."""

from importlib import metadata
from pathlib import Path

import onnx

from trt_compress import __version__
from trt_compress.export.build import BuiltEngine, sha256_of
from trt_compress.export.flops import count_flops
from trt_compress.export.lower import lower_for_target, operator_nodes
from trt_compress.export.onnx_file import save_onnx
from trt_compress.export.recipe import Recipe
from trt_compress.export.targets import get_target
from trt_compress.export.trace import BATCH_SYMBOL
from trt_compress.export.verify import VerifyReport
from trt_compress.models.hosts.base import LoadedHost
from trt_compress.models.hosts.timm_vit import CompressedViT, attach
from trt_compress.plugins.registry import operators
from trt_compress.runtime import manifest as fields
from trt_compress.runtime.manifest import Manifest

MODEL_FILE, RECIPE_FILE, VERIFY_FILE = "model.onnx", "recipe.toml", "verify.json"
_TOOLS = ("torch", "timm", "onnx", "onnxscript", "onnxruntime", "numpy")


def describe(recipe: Recipe, host: LoadedHost, module: CompressedViT) -> Manifest:
    """The manifest as far as it is known before tracing."""
    weights = host.weights
    shape: tuple[int | str, ...] = (BATCH_SYMBOL, *host.input_shape)
    classes = host.postprocess["classes"]
    graph = fields.Graph(
        name="model",
        file=MODEL_FILE,
        inputs=(fields.TensorInfo(name=host.input_name, dtype="float32", shape=shape),),
        outputs=(fields.TensorInfo(name=host.output_name, dtype="float32", shape=(BATCH_SYMBOL, classes)),),
    )
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
            ),
        ),
        recipe=recipe.to_json(),
        precision=recipe.precision,
        opset=recipe.opset,
        batch=fields.Batch(min=recipe.batch.min, opt=recipe.batch.opt, max=recipe.batch.max),
        graphs=(graph,),
        preprocess={"input": host.input_name, **host.preprocess},
        postprocess={"output": host.output_name, **host.postprocess},
        compression=tuple(
            fields.Compression(
                site=site.name,
                compressor=site.compressor,
                config=site.config.to_json(),
                tokens_in=site.tokens_in,
                tokens_out=site.tokens_out,
            )
            for site in module.plan
        ),
        flops={**count_flops(module, host.input_shape), "convention": "two for each multiply-add, one input"},
        baseline_flops=count_flops(attach(host.module, (), name=recipe.model), host.input_shape)["total"],
        targets=recipe.targets,
    )


def _tool_versions() -> dict[str, str]:
    versions = {}
    for tool in _TOOLS:
        try:
            versions[tool] = metadata.version(tool)
        except metadata.PackageNotFoundError:
            continue
    return versions


def lowered_files(
    model: onnx.ModelProto, recipe: Recipe, folder: Path
) -> tuple[tuple[fields.Lowered, ...], dict[str, Path]]:
    """Files for targets that need another form than the bundle's graph and build on the device."""
    records, files = [], {}
    for name in recipe.targets:
        target = get_target(name)
        if target.lowering != "plugin":
            continue
        (folder / name).mkdir()
        for file in save_onnx(lower_for_target(model, target), folder / name / MODEL_FILE):
            files[f"engines/{name}/{file.name}"] = file
        records.append(
            fields.Lowered(
                target=name,
                file=f"engines/{name}/{MODEL_FILE}",
                lowering=target.lowering,
                sha256=sha256_of(folder / name / MODEL_FILE),
            )
        )
    return tuple(records), files


def operator_records(model: onnx.ModelProto) -> tuple[fields.Operator, ...]:
    """The operators of a graph and how many nodes each has."""
    return tuple(
        fields.Operator(
            name=spec.name,
            op_type=spec.op_type,
            domain=spec.domain,
            version=spec.version,
            nodes=count,
            lowering="function",
        )
        for op_type, count in sorted(operator_nodes(model).items())
        for spec in [operators()[op_type].spec]
    )


def verification_record(report: VerifyReport) -> fields.Verification:
    """The summary of a report."""
    return fields.Verification(passed=report.passed, max_abs_error=report.max_abs_error, file=VERIFY_FILE)


def engine_record(built: BuiltEngine, file: str, onnx_sha256: str) -> fields.Engine:
    """What the manifest says of an engine."""
    record = built.record
    return fields.Engine(
        target=record.target,
        file=file,
        sha256=record.sha256,
        bytes=len(built.data),
        library=record.library,
        library_version=record.library_version,
        onnx_sha256=onnx_sha256,
        precision_asked=record.precision_asked,
        precision_achieved=record.precision_achieved,
        paths=record.paths,
        profile=record.profile,
        seconds=round(record.seconds, 3),
        plugins=record.plugins,
    )
