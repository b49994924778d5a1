"""The part of TensorRT's Python module that running an engine takes, and strict.

It computes with ONNX Runtime what the engine's ONNX graph says, from and into the memory whose addresses it is given,
so that what comes out are real numbers. Every call out of order raises `Misuse`. `test_fakes.py` compares names, kinds
and arguments with the real `tensorrt_rtx`.
"""

import enum
import json
import sys
import types
from collections.abc import Mapping, Sequence
from importlib.machinery import ModuleSpec
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from tests.fakes.cuda import FakeCuda, Misuse

MAGIC = b"an engine of the fake\n"
_ONLY_RTX = (
    "EngineValidity",
    "EngineInvalidityDiagnostics",
    "DynamicShapesKernelSpecializationStrategy",
    "IRuntimeConfig",
)


def engine_bytes(
    model: bytes,
    *,
    profiles: Sequence[Mapping[str, Mapping[str, Sequence[int]]]] = ({},),
    sm: int | None = 87,
    aliases: Mapping[str, str] | None = None,
    on_host: Sequence[str] = (),
    needs_plugins: bool = False,
    capturable: bool = True,
    scratch: int = 512,
    left_out: Sequence[str] = (),
) -> bytes:
    """An engine of the fake, of an ONNX model."""
    header = {
        "profiles": list(profiles),
        "sm": sm,
        "aliases": dict(aliases or {}),
        "on_host": list(on_host),
        "needs_plugins": needs_plugins,
        "capturable": capturable,
        "scratch": scratch,
        "left_out": list(left_out),
    }
    return MAGIC + json.dumps(header).encode() + b"\n" + model


class Severity(enum.IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3
    VERBOSE = 4


class ILogger:
    Severity = Severity
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = Severity

    def __init__(self) -> None:
        self._made = True

    def log(self, severity: Severity, msg: str) -> None:
        raise Misuse("log is to be overridden")


class DataType(enum.IntEnum):
    FLOAT = 0
    HALF = 1
    INT8 = 2
    INT32 = 3
    BOOL = 4
    UINT8 = 5
    FP8 = 6
    BF16 = 7
    INT64 = 8


_OF_NUMPY = {
    "float32": DataType.FLOAT,
    "float16": DataType.HALF,
    "int8": DataType.INT8,
    "int32": DataType.INT32,
    "bool": DataType.BOOL,
    "uint8": DataType.UINT8,
    "int64": DataType.INT64,
}


class TensorIOMode(enum.IntEnum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class TensorLocation(enum.IntEnum):
    DEVICE = 0
    HOST = 1


class ExecutionContextAllocationStrategy(enum.IntEnum):
    STATIC = 0
    ON_PROFILE_CHANGE = 1
    USER_MANAGED = 2


class DynamicShapesKernelSpecializationStrategy(enum.IntEnum):
    LAZY = 0
    EAGER = 1
    NONE = 2


class EngineValidity(enum.IntEnum):
    VALID = 0
    SUBOPTIMAL = 1
    INVALID = 2


class EngineInvalidityDiagnostics(enum.IntEnum):
    VERSION_MISMATCH = 1
    UNSUPPORTED_CC = 2
    OLD_CUDA_DRIVER = 4


class IRuntimeConfig:
    def __init__(self) -> None:
        self._strategy = ExecutionContextAllocationStrategy.STATIC
        self.dynamic_shapes_kernel_specialization_strategy = DynamicShapesKernelSpecializationStrategy.LAZY

    def set_execution_context_allocation_strategy(self, strategy: ExecutionContextAllocationStrategy) -> None:
        self._strategy = strategy


class IPluginRegistry:
    def __init__(self) -> None:
        self._loaded: list[str] = []

    def load_library(self, plugin_path: str) -> object:
        self._loaded.append(plugin_path)
        return object()


class Runtime:
    _cuda: FakeCuda
    _is_rtx: bool

    def __init__(self, logger: ILogger) -> None:
        if not getattr(logger, "_made", False):
            raise Misuse("the logger's base was not initialised")
        self._logger = logger
        self._registry = IPluginRegistry()

    def get_plugin_registry(self) -> IPluginRegistry:
        return self._registry

    def get_engine_validity(self, buffer: bytes) -> tuple[EngineValidity, int]:
        header, _ = _opened(buffer)
        wrong = header["sm"] not in (None, self._cuda.sm)
        return (EngineValidity.INVALID, 2) if wrong else (EngineValidity.VALID, 0)

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> "ICudaEngine | None":
        if not serialized_engine.startswith(MAGIC):
            self._logger.log(Severity.ERROR, "IRuntime::deserializeCudaEngine: Error Code 1: bad magic\nnumber")
            return None
        header, model = _opened(serialized_engine)
        if header["needs_plugins"] and not self._registry._loaded:
            self._logger.log(Severity.ERROR, "Cannot find plugin: TrtcTokenMerge, version: 1, namespace:")
            return None
        return ICudaEngine(header, model, self._logger, self._cuda, self._is_rtx)


def _opened(data: bytes) -> tuple[dict[str, Any], bytes]:
    header, _, model = bytes(data)[len(MAGIC) :].partition(b"\n")
    return json.loads(header), model


class ICudaEngine:
    def __init__(self, header: dict[str, Any], model: bytes, logger: ILogger, cuda: FakeCuda, is_rtx: bool) -> None:
        self._header, self._logger, self._cuda, self._is_rtx = header, logger, cuda, is_rtx
        self._session: Any = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        graph = onnx.load_from_string(model).graph
        self._tensors: dict[str, tuple[TensorIOMode, str, tuple[int, ...]]] = {}
        for mode, values in ((TensorIOMode.INPUT, graph.input), (TensorIOMode.OUTPUT, graph.output)):
            for value in values:
                kind = value.type.tensor_type
                shape = tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in kind.shape.dim)
                dtype = str(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
                self._tensors[value.name] = (mode, dtype, shape)
        self._names = [name for name in self._tensors if name not in header["left_out"]]

    def _of(self, name: str) -> tuple[TensorIOMode, str, tuple[int, ...]]:
        if name not in self._names:
            raise Misuse(f"the engine has no tensor '{name}'")
        return self._tensors[name]

    @property
    def num_io_tensors(self) -> int:
        return len(self._names)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self._header["profiles"])

    @property
    def device_memory_size_v2(self) -> int:
        return int(self._header["scratch"])

    def get_tensor_name(self, index: int) -> str:
        return self._names[index]

    def get_tensor_dtype(self, name: str) -> DataType:
        return _OF_NUMPY[self._of(name)[1]]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return self._of(name)[0]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._of(name)[2]

    def get_tensor_location(self, name: str) -> TensorLocation:
        self._of(name)
        return TensorLocation.HOST if name in self._header["on_host"] else TensorLocation.DEVICE

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        if self._of(name)[0] != TensorIOMode.INPUT or not 0 <= profile_index < self.num_optimization_profiles:
            raise Misuse(f"there is no profile {profile_index} of '{name}'")
        shapes = self._header["profiles"][profile_index].get(name)
        if shapes is None:
            raise Misuse(f"'{name}' has no profile; its shape is fixed")
        return [tuple(shapes[end]) for end in ("min", "opt", "max")]

    def get_aliased_input_tensor(self, name: str) -> str | None:
        self._of(name)
        return self._header["aliases"].get(name)

    def create_runtime_config(self) -> IRuntimeConfig:
        if not self._is_rtx:
            raise AttributeError("create_runtime_config")
        return IRuntimeConfig()

    def create_execution_context(
        self, strategy: Any = ExecutionContextAllocationStrategy.STATIC
    ) -> "IExecutionContext":
        if isinstance(strategy, IRuntimeConfig):
            strategy = strategy._strategy
        if not isinstance(strategy, ExecutionContextAllocationStrategy):
            raise Misuse(f"{strategy!r} is no strategy")
        return (RtxExecutionContext if self._is_rtx else IExecutionContext)(self, strategy)


class IExecutionContext:
    def __init__(self, engine: ICudaEngine, strategy: ExecutionContextAllocationStrategy) -> None:
        self._engine, self._cuda = engine, engine._cuda
        self._managed = strategy == ExecutionContextAllocationStrategy.USER_MANAGED
        self._scratch: tuple[int, int] | None = None
        self._profile = 0
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._inferred: dict[str, tuple[int, ...]] = {}
        self._enqueued = False  # for these shapes

    def _inputs(self) -> list[str]:
        return [name for name in self._engine._names if self._engine._of(name)[0] == TensorIOMode.INPUT]

    def _complain(self, text: str) -> bool:
        self._engine._logger.log(Severity.ERROR, text)
        return False

    @property
    def active_optimization_profile(self) -> int:
        return self._profile

    def set_device_memory(self, memory: int, size: int) -> None:
        if not self._managed or size < self._engine.device_memory_size_v2:
            raise Misuse("device memory is given that was not asked for, or too little")
        self._scratch = memory, size

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        if not 0 <= profile_index < self._engine.num_optimization_profiles:
            return self._complain(f"there is no profile {profile_index}")
        self._cuda.enqueue(stream_handle, lambda: None)
        self._profile, self._shapes, self._inferred, self._enqueued = profile_index, {}, {}, False
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        mode, _, declared = self._engine._of(name)
        if mode != TensorIOMode.INPUT or not isinstance(shape, tuple):
            raise Misuse(f"'{name}' is no input, or {shape!r} no tuple")
        profile = self._engine._header["profiles"][self._profile].get(name)
        low, high = (profile["min"], profile["max"]) if profile else (declared, declared)
        if len(shape) != len(declared) or not all(a <= n <= b for a, n, b in zip(low, shape, high, strict=True)):
            return self._complain(f"{shape} of '{name}' is not in profile {self._profile}")
        if self._shapes.get(name) != shape:
            self._shapes[name], self._inferred, self._enqueued = shape, {}, False
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._engine._of(name)
        if not memory:
            raise Misuse(f"'{name}' is nowhere")
        self._addresses[name] = memory
        return True

    def infer_shapes(self) -> list[str]:
        missing = [name for name in self._inputs() if name not in self._shapes]
        on_host = [name for name in self._inputs() if name in self._engine._header["on_host"]]
        missing += [name for name in on_host if name not in self._addresses]
        if missing:
            return missing
        feed = {
            name: self._array(name, self._shapes[name]) if name in on_host else np.zeros(self._shapes[name], dtype)
            for name in self._inputs()
            for dtype in [self._engine._of(name)[1]]
        }
        self._inferred = {name: value.shape for name, value in self._compute(feed).items()}
        return []

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if self._engine._of(name)[0] == TensorIOMode.INPUT:
            return self._shapes[name]
        if name not in self._inferred:
            raise Misuse(f"the shape of '{name}' is asked for before the shapes of all inputs were inferred")
        return self._inferred[name]

    def execute_async_v3(self, stream_handle: int) -> bool:
        header = self._engine._header
        for name in self._engine._names:
            if name not in self._addresses:
                raise Misuse(f"'{name}' has no address")
        if not self._inferred:
            raise Misuse("shapes were not inferred")
        if self._managed and header["scratch"] and self._scratch is None:
            raise Misuse("it has no memory to compute in")
        for output, of in header["aliases"].items():
            if self._addresses[output] != self._addresses[of]:
                raise Misuse(f"'{output}' is not where '{of}' is, whose memory it has")
        if self._cuda.captures(stream_handle):
            if not self._enqueued:
                raise Misuse("the first run for a shape is captured")
            if not header["capturable"]:
                self._cuda.spoil(stream_handle)
                return self._complain("operation not permitted when stream is capturing")
        addresses, shapes, scratch = dict(self._addresses), dict(self._shapes), self._scratch
        outputs = dict(self._inferred)

        def work() -> None:
            if scratch is not None:
                self._cuda.content(*scratch, "device")[:] = b"\x5a" * scratch[1]
            feed = {name: self._array(name, shapes[name], addresses) for name in self._inputs()}
            for name, value in self._compute(feed).items():
                if value.shape != outputs[name]:
                    raise Misuse(f"'{name}' came out as {value.shape}, and {outputs[name]} was said")
                self._array(name, value.shape, addresses)[...] = value

        self._cuda.enqueue(stream_handle, work)
        self._enqueued = True
        return True

    def _array(
        self, name: str, shape: tuple[int, ...], addresses: Mapping[str, int] | None = None
    ) -> "np.ndarray[Any, Any]":
        """The tensor where it is."""
        dtype = np.dtype(self._engine._of(name)[1])
        nbytes = int(np.prod(shape)) * dtype.itemsize
        kind = "host" if name in self._engine._header["on_host"] else "device"
        content = self._cuda.content((addresses or self._addresses)[name], nbytes, kind)
        return np.frombuffer(content, dtype, count=int(np.prod(shape))).reshape(shape)

    def _compute(self, feed: Mapping[str, "np.ndarray[Any, Any]"]) -> dict[str, "np.ndarray[Any, Any]"]:
        outputs = [name for name in self._engine._names if self._engine._of(name)[0] == TensorIOMode.OUTPUT]
        taken = {name: np.array(value) for name, value in feed.items()}
        for name in self._engine._header["left_out"]:
            _, dtype, shape = self._engine._tensors[name]
            taken[name] = np.zeros([max(n, 1) for n in shape], dtype)
        return dict(zip(outputs, self._engine._session.run(outputs, taken), strict=True))


class RtxExecutionContext(IExecutionContext):
    """What TensorRT-RTX has beside it."""

    def is_stream_capturable(self, stream: int) -> bool:
        return bool(self._engine._header["capturable"])


CLASSES = (
    ILogger,
    Runtime,
    ICudaEngine,
    IExecutionContext,
    IPluginRegistry,
    IRuntimeConfig,
    DataType,
    TensorIOMode,
    TensorLocation,
    ExecutionContextAllocationStrategy,
    DynamicShapesKernelSpecializationStrategy,
    EngineValidity,
    EngineInvalidityDiagnostics,
)


def install(
    monkeypatch: pytest.MonkeyPatch, cuda: FakeCuda, name: str = "tensorrt", version: str = "10.3.0"
) -> types.ModuleType:
    """Put it in place of `tensorrt` or `tensorrt_rtx`, which has more."""
    made = types.ModuleType(name)
    made.__version__ = version  # type: ignore[attr-defined]
    made.__spec__ = ModuleSpec(name, None)  # torch looks for it
    is_rtx = name == "tensorrt_rtx"
    for one in CLASSES:
        if is_rtx or one.__name__ not in _ONLY_RTX:
            setattr(made, one.__name__, one)
    body: dict[str, Any] = {"_cuda": cuda, "_is_rtx": is_rtx}
    if not is_rtx:
        body["get_engine_validity"] = property(lambda self: _lacking("get_engine_validity"))
    made.Runtime = type("Runtime", (Runtime,), body)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, name, made)
    return made


def _lacking(name: str) -> Any:
    raise AttributeError(name)
