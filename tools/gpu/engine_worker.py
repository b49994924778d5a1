"""The child process of gpu_end_to_end: dense and compressed ONNX files in one engine library, timed in turns.

Reads a request (JSON) and prints a line of JSON for each batch, or for what went wrong, with what the library said. A
process of its own: an engine that a device does not take may end it.
"""

import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from trt_compress.tools.gpu.timing import Call, CudaClock, DeviceClock, HostClock, ratio, summary

MOST_LINES = 12


class Refused(Exception):
    """The library does not do it; at which stage, and what it said."""

    def __init__(self, stage: str, said: str) -> None:
        super().__init__(said)
        self.stage = stage


def main(path: Path) -> None:
    """Answer the request in this file."""
    request = json.loads(path.read_text(encoding="utf-8"))
    clock: DeviceClock = HostClock() if request["dry_run"] else CudaClock("gpu_end_to_end")
    open_file = _onnxruntime if request["backend"] == "onnxruntime" else _engine
    deadline = time.monotonic() + request["seconds"]
    built: dict[str, Any] = {}
    try:
        for name in ("dense", "tome"):
            started = time.monotonic()
            built[name] = open_file(request, Path(request[name]), clock)
            _say({"stage": "built", "side": name, "seconds": round(time.monotonic() - started, 1)})
        for batch in request["batches"]:
            image = torch.randn(batch, *request["shape"], device=clock.device)
            sides = {name: clock.side(make(image), capture=request["capture"]) for name, make in built.items()}
            times = clock.in_turns(sides, request["rounds"], deadline)
            _say(
                {
                    "stage": "timed",
                    "batch": batch,
                    "speedup": ratio(times["dense"], times["tome"]),
                    "time_us": {name: summary(values) for name, values in times.items()},
                    "notes": {name: side.note for name, side in sides.items() if side.note},
                }
            )
    except Refused as error:
        _say({"stage": error.stage, "error": str(error)})


def _say(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


def _onnxruntime(request: dict[str, Any], path: Path, clock: DeviceClock) -> Any:
    """A session on the provider that was asked for; on a GPU on torch's stream, with memory bound once."""
    import onnxruntime

    on_gpu = clock.device.type == "cuda"
    options: dict[str, str] = {}
    if on_gpu:
        cuda: Any = torch.cuda
        cuda.set_stream(cuda.Stream())  # one stream for all: the default one has no handle to give away
        options = {"device_id": "0", "user_compute_stream": str(torch.cuda.current_stream().cuda_stream)}
    provider = "CUDAExecutionProvider" if on_gpu else "CPUExecutionProvider"
    try:
        session = onnxruntime.InferenceSession(str(path), providers=[(provider, options)])
    except Exception as error:
        raise Refused("load", str(error)[:2000]) from error
    if provider not in session.get_providers():
        raise Refused("load", f"{provider} did not load; the session has {', '.join(session.get_providers())}")
    name, output = session.get_inputs()[0].name, session.get_outputs()[0].name

    def make(image: torch.Tensor) -> Call:
        binding = session.io_binding()
        device = clock.device.type
        binding.bind_input(name, device, 0, "float32", list(image.shape), image.data_ptr())
        binding.bind_output(output, device)
        return lambda: session.run_with_iobinding(binding)

    return make


def _engine(request: dict[str, Any], path: Path, clock: DeviceClock) -> Any:
    """An engine of TensorRT or TensorRT-RTX, built for the capability that was asked for, then run on this device."""
    trt: Any = importlib.import_module(request["backend"])
    lines: list[str] = []

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR, trt.ILogger.WARNING):
                lines.append(message)

    def said() -> str:
        return " | ".join(lines[-MOST_LINES:])[:3000] or "nothing"

    logger = Logger()
    try:
        builder = trt.Builder(logger)
    except (TypeError, RuntimeError) as error:
        raise Refused("device", f"{error}; {said()}") from error
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    if not trt.OnnxParser(network, logger).parse_from_file(str(path)):
        raise Refused("parse", said())
    config = builder.create_builder_config()
    if request["capability"] is not None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, request["capability"]), 0)
    profile, name = builder.create_optimization_profile(), network.get_input(0).name
    smallest, largest = min(request["batches"]), max(request["batches"])
    profile.set_shape(name, (smallest, *request["shape"]), (largest, *request["shape"]), (largest, *request["shape"]))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None or plan.nbytes == 0:
        raise Refused("build", said())
    _say({"stage": "plan", "bytes": plan.nbytes, "said": said() if lines else ""})
    lines.clear()
    try:
        runtime = trt.Runtime(logger)
        engine = runtime.deserialize_cuda_engine(plan)
    except (TypeError, RuntimeError) as error:
        raise Refused("deserialize", f"{error}; {said()}") from error
    if engine is None:
        raise Refused("deserialize", said())
    context = engine.create_execution_context()
    if context is None:
        raise Refused("context", said())
    output = network.get_output(0).name

    def make(image: torch.Tensor) -> Call:
        if not context.set_input_shape(name, tuple(image.shape)):
            raise Refused("shape", said())
        made = torch.empty(tuple(context.get_tensor_shape(output)), device=clock.device)
        context.set_tensor_address(name, image.data_ptr())
        context.set_tensor_address(output, made.data_ptr())

        def run(kept: Any = (runtime, engine, image, made)) -> None:
            if not context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
                raise RuntimeError(f"execute_async_v3 failed: {said()}")

        return run

    return make


if __name__ == "__main__":
    main(Path(sys.argv[1]))
