"""The child process of `trial`: lets the library that runs a target read one file, and says how far it came.

It reads request.json in a folder and keeps reply.json there up to date, so that a library that takes the process down
is found at the step where it died. It imports neither onnx nor torch.
"""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

from trt_compress.export.engine_worker import parser_errors, strongly_typed


def main(folder: Path) -> None:
    """Answer the request in this folder."""
    request = json.loads((folder / "request.json").read_text())
    reply = _Reply(folder / "reply.json")
    try:
        library: Any = importlib.import_module(request["backend"])
    except (ImportError, OSError) as error:
        reply.say("import", message=str(error))
        return
    reply.version = str(library.__version__)
    (_load if request["backend"] == "onnxruntime" else _parse)(library, request, reply)


class _Reply:
    def __init__(self, path: Path) -> None:
        self.path, self.version = path, ""

    def say(self, stage: str, **more: Any) -> None:
        self.path.write_text(json.dumps({"stage": stage, "version": self.version, **more}))


def _load(ort: Any, request: dict[str, Any], reply: _Reply) -> None:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    wanted = [name for name in request["providers"] if name in ort.get_available_providers()]
    reply.say("loading", providers=wanted)
    try:
        ort.InferenceSession(request["file"], options, providers=wanted)
    except Exception as error:  # onnxruntime has a class of its own for each status
        reply.say("load", providers=wanted, message=str(error))
    else:
        reply.say("loaded", providers=wanted)


def _parse(trt: Any, request: dict[str, Any], reply: _Reply) -> None:
    logger = _logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(strongly_typed(trt))
    parser = trt.OnnxParser(network, logger)
    reply.say("parsing")
    if not parser.parse_from_file(request["file"]):
        reply.say("parse", message="; ".join(parser_errors(parser)))
        return
    reply.say("parsed")
    for shapes in request["profiles"]:
        config = builder.create_builder_config()
        _add_profile(builder, config, network, shapes)
        logger.errors.clear()
        reply.say("building")
        engine = builder.build_serialized_network(network, config)
        if engine is not None and engine.nbytes:
            reply.say("built", shapes=shapes)
            return
        reply.say("build", message="; ".join(logger.errors) or "the builder returned nothing")


def _add_profile(builder: Any, config: Any, network: Any, shapes: dict[str, list[list[int]]]) -> None:
    profile, used = builder.create_optimization_profile(), False
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if tensor.is_shape_tensor:  # its values are sizes
            count = max(1, abs(int(tensor.shape[0]))) if len(tensor.shape) else 1
            profile.set_shape_input(tensor.name, *([[size] * count for size in (1, 1, 2)]))
            used = True
        elif -1 in tuple(tensor.shape) and tensor.name in shapes:
            profile.set_shape(tensor.name, *shapes[tensor.name])
            used = True
    if used:
        config.add_optimization_profile(profile)


def _logger(trt: Any) -> Any:
    class Errors(trt.ILogger):  # type: ignore[misc]  # a class of the library that is imported by name
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            # Without a GPU the library says so at every step, and goes on.
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR) and "CUDA driver" not in message:
                self.errors.append(message.strip())

    return Errors()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
