"""The child process of a build: reads request.json in a folder and the model it names, writes engine and reply.json.

It imports neither onnx nor torch, so that memory is left for the builder. What the library logs goes to the output of
this process, where it is safe if the library takes the process down.
"""

import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

from trt_compress.errors import UnsupportedError
from trt_compress.export.targets import Target, get_target
from trt_compress.runtime.backends.cuda import Cuda


def main(folder: Path) -> None:
    """Answer the request in this folder."""
    request = json.loads((folder / "request.json").read_text())
    (folder / "reply.json").write_text(json.dumps(_answer(folder, request)))


def _answer(folder: Path, request: dict[str, Any]) -> dict[str, Any]:
    target = get_target(request["target"])
    try:
        trt: Any = importlib.import_module(target.backend)
    except (ImportError, OSError) as error:
        return {"stage": "import", "message": str(error)}
    version: str = trt.__version__
    if not target.takes_version(version):
        return {"stage": "version", "version": version, "message": ""}
    started = time.perf_counter()
    logger = trt.Logger(trt.Logger.WARNING)
    try:
        builder = trt.Builder(logger)
    except (TypeError, RuntimeError) as error:
        return {"stage": "device", "version": version, "message": str(error)}
    if request["plugin_library"]:
        builder.get_plugin_registry().load_library(request["plugin_library"])

    network = builder.create_network(strongly_typed(trt))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(request["model"]):
        return {"stage": "parse", "version": version, "message": "; ".join(parser_errors(parser))}
    if request.get("parse_only"):
        return {"stage": "done", "version": version}
    config = builder.create_builder_config()
    if request["plugin_library"]:  # operators that write into their input need it; TensorRT names it by its version
        config.set_preview_feature(trt.PreviewFeature.ALIASED_PLUGIN_IO_10_03, True)
    _add_profile(builder, config, request["profile"])
    all_layers = [network.get_layer(index) for index in range(network.num_layers)]
    producer = {layer.get_output(n).name: layer for layer in all_layers for n in range(layer.num_outputs)}
    layers = [_layer(layer, producer) for layer in all_layers]
    engine = builder.build_serialized_network(network, config)
    if engine is None or engine.nbytes == 0:
        return {"stage": "build", "version": version, "message": "the builder returned nothing"}
    (folder / "engine").write_bytes(engine)
    seconds = time.perf_counter() - started
    return {"stage": "done", "version": version, "seconds": seconds, "layers": layers, **_built_on(target)}


def _built_on(target: Target) -> dict[str, Any]:
    """The GPU and driver that an engine is bound to: those here for TensorRT; TensorRT-RTX builds for all of them."""
    try:
        gpu = Cuda().gpu if target.backend == "tensorrt" else None
    except UnsupportedError:  # a session then says that the record lacks them
        gpu = None
    return {"sm": gpu.sm if gpu else None, "driver": gpu.driver if gpu else None}


def strongly_typed(trt: Any) -> int:
    """Flag that takes precision from the graph; a version without the flag knows no other mode."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def parser_errors(parser: Any) -> list[str]:
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    return [f"node '{error.node_name()}' ({error.node_operator()}): {error.desc()}" for error in errors]


def _add_profile(builder: Any, config: Any, shapes: dict[str, dict[str, list[int]]]) -> None:
    if shapes:
        profile = builder.create_optimization_profile()
        for name, shape in shapes.items():
            profile.set_shape(name, shape["min"], shape["opt"], shape["max"])
        config.add_optimization_profile(profile)


def _layer(layer: Any, producer: dict[str, Any]) -> dict[str, Any]:
    """A layer in words; also whether all that it multiplies is dequantized, and whether some of that is weights."""
    dtypes = [layer.get_output_type(index).name for index in range(layer.num_outputs)]
    chains = [_chain(layer.get_input(index), producer) for index in range(min(layer.num_inputs, 2))]
    return {
        "name": layer.name,
        "type": layer.type.name,
        "metadata": layer.metadata,
        "output_dtypes": dtypes,
        "dequantized": len(chains) == 2 and all("DEQUANTIZE" in chain for chain in chains),
        "weights": layer.type.name.endswith("CONVOLUTION") or any(chain[-1:] == ["CONSTANT"] for chain in chains),
    }


def _chain(tensor: Any, producer: dict[str, Any]) -> list[str]:
    """Types of the layers that a tensor comes through, from the last on, as long as they only move or dequantize it."""
    types: list[str] = []
    while tensor is not None and tensor.name in producer:
        layer = producer[tensor.name]
        types.append(layer.type.name)
        if types[-1] not in ("DEQUANTIZE", "SHUFFLE", "CAST", "IDENTITY"):
            break
        tensor = layer.get_input(0)
    return types


if __name__ == "__main__":
    main(Path(sys.argv[1]))
