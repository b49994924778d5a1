"""ONNX files in one runtime, as a process that is told line by line which to run: `deit_int8` starts several.

Run as a file by the Python of the runtime's own environment: it takes nothing but that runtime and numpy. The command
line is one JSON object: the runtime, the files by name, the shapes of the inputs by name, the number of threads, and of
ONNX Runtime the library of native operators and the names of the files that are run with it. It is told the name of a
file a line, and answers the nanoseconds that one run took; the first answer is the runtime's version.
"""

import importlib
import json
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

Run = Callable[[], object]


def onnx_runtime(request: Mapping[str, Any], feed: Mapping[str, Any]) -> tuple[str, dict[str, Run]]:
    """The version, and a run of each file; all sessions share one pool of threads."""
    runtime = importlib.import_module("onnxruntime")
    runtime.set_global_thread_pool_sizes(request["threads"], 1)

    def session(name: str, path: str) -> Run:
        options = runtime.SessionOptions()
        options.use_per_session_threads = False
        if name in request["native"]:
            options.register_custom_ops_library(request["library"])
        made = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return lambda: made.run(None, dict(feed))

    return str(runtime.__version__), {name: session(name, path) for name, path in request["files"].items()}


def openvino(request: Mapping[str, Any], feed: Mapping[str, Any]) -> tuple[str, dict[str, Run]]:
    """The same of OpenVINO, set to the least latency; shapes are fixed, which is what it is fastest with."""
    library = importlib.import_module("openvino")
    core = library.Core()
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": request["threads"]}

    def compiled(path: str) -> Run:
        model = core.read_model(path)
        model.reshape({name: list(array.shape) for name, array in feed.items()})
        made = core.compile_model(model, "CPU", settings).create_infer_request()
        return lambda: made.infer(dict(feed))

    return str(library.__version__), {name: compiled(path) for name, path in request["files"].items()}


RUNTIMES: Mapping[str, Callable[[Mapping[str, Any], Mapping[str, Any]], tuple[str, dict[str, Run]]]] = {
    "onnxruntime": onnx_runtime,
    "openvino": openvino,
}


def main(arguments: list[str]) -> None:
    """Do what is told on standard input until that ends."""
    numpy = importlib.import_module("numpy")
    request = json.loads(arguments[0])
    generator = numpy.random.default_rng(0)
    feed = {name: generator.standard_normal(shape, dtype=numpy.float32) for name, shape in request["feed"].items()}
    version, runs = RUNTIMES[request["runtime"]](request, feed)
    print(json.dumps(version), flush=True)
    for line in sys.stdin:
        run = runs[line.rstrip("\n")]
        start = time.perf_counter_ns()
        run()
        print(time.perf_counter_ns() - start, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
