"""Run the engines of a bundle with TensorRT or TensorRT-RTX, whose modules have the same surface.

States stay on the GPU. What a caller gives and takes goes through pinned memory. For inputs of the same shapes all of
it is there from the first run on: an execution context, the memory of every tensor, and from the second run on a CUDA
graph of copies and engine, which is launched as one. Nothing is allocated then but the arrays that the caller gets.
"""

import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trt_compress.errors import BundleError, PluginError, ShapeError, UnsupportedError
from trt_compress.format.bundle import Bundle
from trt_compress.format.manifest import Engine, Graph, TensorInfo
from trt_compress.plugins.library import Library, refuse_on
from trt_compress.runtime.backends.base import Buffer, carrier
from trt_compress.runtime.backends.cuda import Cuda, CudaGraph, CudaMemory
from trt_compress.runtime.backends.engines import PRODUCTS, EngineMachine, Engines

Array = np.ndarray[Any, np.dtype[Any]]
Shape = tuple[int, ...]

_LOGGER = logging.getLogger(__name__)

_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "FP8": "float8_e4m3fn",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "UINT8": "uint8",
    "BOOL": "bool",
}
"""TensorRT's name → the manifest's."""

_MOST_PLANS = 4  # shapes that a binding keeps ready: a chunk of a prompt, its rest, a step, and one more
_LINES_KEPT = 12


class EngineRuntime:
    """TensorRT in this process: its runtime with the plugins of a bundle, and what it says.

    Raises:
        PluginError: TensorRT cannot load the library of plugins.
    """

    def __init__(self, machine: EngineMachine, plugins: Library | None) -> None:
        self.machine = machine
        self.product = f"{PRODUCTS[machine.library]} {machine.version}"
        trt, lines = machine.trt, deque[str](maxlen=_LINES_KEPT)
        shown = (trt.ILogger.WARNING, trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR)

        class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
            """Keeps what is said, for the sentence of an error."""

            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, msg: str) -> None:
                if severity in shown:
                    lines.append(" ".join(msg.split()))

        self._lines, self._logger = lines, Logger()
        self.runtime = trt.Runtime(self._logger)
        if plugins is not None:
            refuse_on(machine.library)
            if not self.runtime.get_plugin_registry().load_library(str(plugins.path)):
                raise PluginError(
                    f"{self.product} cannot load '{plugins.path}' ({self.said()}); build it again with "
                    "'trt-compress plugins build --force'."
                )

    def said(self) -> str:
        """The last error or warning, and forget all of them."""
        last = self._lines[-1] if self._lines else "it said nothing"
        self._lines.clear()
        return last.rstrip(".")

    def engine(self, record: Engine, data: bytes) -> Any:
        """Load an engine, of which TensorRT says first whether it fits this GPU, where it can say so.

        Raises:
            UnsupportedError: It does not, or cannot be loaded.
        """
        trt, again = (
            self.machine.trt,
            f"build it again with 'trt-compress build BUNDLE --target {record.target} --force'",
        )
        if hasattr(self.runtime, "get_engine_validity"):
            validity, reasons = self.runtime.get_engine_validity(data)
            if validity == trt.EngineValidity.INVALID:
                names = [
                    name for name, one in trt.EngineInvalidityDiagnostics.__members__.items() if int(one) & reasons
                ]
                raise UnsupportedError(
                    f"{self.product} says that the engine '{record.file}' does not fit this GPU (SM "
                    f"{self.machine.gpu.sm}; {', '.join(names) or self.said()}); {again}."
                )
            if validity == trt.EngineValidity.SUBOPTIMAL:
                _LOGGER.warning(
                    "%s says that '%s' would be faster if it was built for this GPU.", self.product, record.file
                )
        engine = self.runtime.deserialize_cuda_engine(data)
        if engine is None:
            raise UnsupportedError(f"{self.product} cannot load the engine '{record.file}' ({self.said()}); {again}.")
        return engine


class EngineBuffer:
    """Memory of the GPU that holds a state."""

    def __init__(self, cuda: Cuda, shape: Shape, dtype: str) -> None:
        self.shape = shape
        self.dtype = dtype
        self._cuda = cuda
        self.value = cuda.memory(_bytes(shape, dtype))

    @property
    def address(self) -> int:
        """Where it begins, on the device."""
        return self.value.address

    def read(self) -> Array:
        """A copy of the content, in integers where numpy lacks the dtype."""
        content = np.empty(self.shape, carrier(self.dtype))
        self._cuda.read(self.address, content)
        return content


@dataclass(frozen=True, slots=True)
class _Tensor:
    """An input or output of an engine; of one on the host TensorRT reads the values, to know shapes by them."""

    name: str
    dtype: str
    is_input: bool
    on_host: bool


class EngineGraph:
    """One graph, as a loaded engine.

    Attributes:
        files: What was read of the bundle for it.
        in_place: Output of a state → the input whose memory it has, as a plugin writes there.
        cuda: Where it runs; its stream is this graph's alone.
        captured: Whether runs of the same shapes are launched as CUDA graphs; False once TensorRT could not.
    """

    def __init__(self, bundle: Bundle, graph: Graph, chosen: Engines, runtime: EngineRuntime) -> None:
        record = chosen.records[graph.name]
        self.name = graph.name
        self.record = record
        self.files = frozenset((record.file,))
        self.trt: Any = chosen.machine.trt
        self.cuda = Cuda()
        self.lock = threading.Lock()  # one run at a time: its contexts share one memory to compute in
        self.captured = True
        self._runtime = runtime
        self.engine = runtime.engine(record, bundle.read(record.file))
        self.outputs = {info.name: info for info in graph.outputs}
        self.tensors = _tensors(self.trt, self.engine)
        _compare(record, "inputs", graph.inputs, [one for one in self.tensors.values() if one.is_input])
        _compare(record, "outputs", graph.outputs, [one for one in self.tensors.values() if not one.is_input])
        self.aliases: dict[str, str] = {}
        for one in self.tensors.values():
            if not one.is_input and (of := self.engine.get_aliased_input_tensor(one.name)):
                self.aliases[one.name] = of
        self.in_place = self._states_in_place(bundle)
        self._scratch_bytes = int(self.engine.device_memory_size_v2)
        self._scratch = self.cuda.memory(self._scratch_bytes) if self._scratch_bytes else None
        self._free: list[Any] = []
        self._whole: EngineBinding | None = None

    def _states_in_place(self, bundle: Bundle) -> dict[str, str]:
        states = [state for state in bundle.manifest.states if state.graph == self.name]
        reads = {state.input for state in states if state.input}
        pairs = {state.output: state.input for state in states if state.input and state.output}
        for output, of in self.aliases.items():
            if (of in reads or output in pairs) and pairs.get(output) != of:
                raise BundleError(
                    f"The engine '{self.record.file}' writes '{output}' into the memory of '{of}', and the manifest "
                    "has them as no one state; export the bundle again."
                )
        return {output: of for output, of in self.aliases.items() if output in pairs}

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the graph on all of its inputs and return all of its outputs, by bare name."""
        with self.lock:
            if self._whole is None:
                self._whole = EngineBinding(self, {}, {}, ())
        return self._whole.run(inputs, {})[0]

    def buffer(self, content: Array, dtype: str) -> EngineBuffer:
        """Memory of the GPU with this content."""
        made = EngineBuffer(self.cuda, content.shape, dtype)
        self.cuda.write(made.address, content)
        return made

    def bind(self, reads: Mapping[str, Buffer], writes: Mapping[str, Buffer], makes: Sequence[str]) -> "EngineBinding":
        """Tie memory to states."""
        return EngineBinding(self, reads, writes, makes)

    def context(self) -> Any:
        """An execution context that nobody uses; all compute in the same memory."""
        if self._free:
            return self._free.pop()
        trt, managed = self.trt, self.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if hasattr(trt, "DynamicShapesKernelSpecializationStrategy"):  # what it compiles later no CUDA graph would have
            config = self.engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(managed)
            config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
            context = self.engine.create_execution_context(config)
        else:
            context = self.engine.create_execution_context(managed)
        if context is None:
            raise self.failed()
        if self._scratch is not None:
            context.set_device_memory(self._scratch.address, self._scratch_bytes)
        return context

    def give_back(self, context: Any) -> None:
        """Keep a context for another shape."""
        self._free.append(context)

    def profile(self, shapes: Mapping[str, Shape]) -> int:
        """The profile for inputs of these shapes: of those that take them the one that is best for the nearest.

        Raises:
            ShapeError: None takes them.
        """
        distances: dict[int, int] = {}
        misfits: list[str] = []
        for index in range(max(int(self.engine.num_optimization_profiles), 1)):
            distance = 0
            for name, shape in shapes.items():
                declared = tuple(self.engine.get_tensor_shape(name))
                ends = self.engine.get_tensor_profile_shape(name, index) if -1 in declared else [declared] * 3
                least, best, most = (tuple(one) for one in ends)
                if not all(low <= n <= high for low, n, high in zip(least, shape, most, strict=True)):
                    misfits.append(f"'{name}' has the shape {list(shape)}, and it takes {_range_text(least, most)}")
                    break
                distance += sum(abs(n - at) for n, at in zip(shape, best, strict=True))
            else:
                distances[index] = distance
        if not distances:
            raise ShapeError(
                f"The engine '{self.record.file}' was not built for this: {misfits[0]}; give a shape in that range, or "
                f"export for a wider one and build again for '{self.record.target}'."
            )
        return min(distances, key=distances.__getitem__)

    def failed(self) -> UnsupportedError:
        """What TensorRT said last, in one sentence."""
        return UnsupportedError(f"{self._runtime.product} failed in the graph '{self.name}': {self._runtime.said()}.")

    def not_captured(self, error: UnsupportedError) -> None:
        """Run without CUDA graphs from now on, and say so once."""
        if self.captured:
            _LOGGER.info("The engine '%s' runs without CUDA graphs: %s", self.record.file, error.message)
        self.captured = False


class EngineBinding:
    """An engine with memory tied to its states."""

    def __init__(
        self, graph: EngineGraph, reads: Mapping[str, Buffer], writes: Mapping[str, Buffer], makes: Sequence[str]
    ) -> None:
        self.graph = graph
        self.reads = dict(reads)
        self.writes = dict(writes)
        self.makes = tuple(makes)
        self._plans: OrderedDict[object, _Plan] = OrderedDict()
        given = [one for one in graph.tensors.values() if one.is_input and one.name not in reads]
        self._names = [one.name for one in given]
        self._by_value = [one.name for one in given if one.on_host]

    def run(self, inputs: Mapping[str, Array], held: Mapping[str, Buffer]) -> tuple[dict[str, Array], list[Buffer]]:
        """See `Binding`."""
        with self.graph.lock:
            plan = self._plan(inputs, held)
            plan.take(inputs)
            made = plan.run(held)
            return plan.give(), made

    def _plan(self, inputs: Mapping[str, Array], held: Mapping[str, Buffer]) -> "_Plan":
        key: object = tuple([(held[name] if name in held else inputs[name]).shape for name in self._names])
        if self._by_value:
            key = (key, tuple([inputs[name].tobytes() for name in self._by_value]))
        plan = self._plans.get(key)
        if plan is None:
            while len(self._plans) >= (1 if held else _MOST_PLANS):
                self.graph.give_back(self._plans.popitem(last=False)[1].context)
            plan = self._plans[key] = _Plan(self, inputs, held)
        elif len(self._plans) > 1:
            self._plans.move_to_end(key)
        return plan


class _Plan:
    """All that runs on inputs of the same shapes need: made once, and the same in each run.

    Attributes:
        context: TensorRT's own, with shapes and addresses set.
    """

    def __init__(self, binding: EngineBinding, inputs: Mapping[str, Array], held: Mapping[str, Buffer]) -> None:
        self._graph = graph = binding.graph
        self._makes = binding.makes
        self._kept: list[CudaMemory] = []
        self._up: list[tuple[str, Array, int]] = []  # from an array in pinned memory to an address on the GPU
        self._down: list[tuple[str, Array, int]] = []
        self._on_host: list[tuple[str, Array]] = []
        self._shapes: dict[str, Shape] = {}
        self._captured: CudaGraph | None = None
        self._has_run = False
        self.context = graph.context()
        try:
            self._give_inputs(binding, inputs, held)
            self._give_outputs(binding)
        except BaseException:
            graph.give_back(self.context)
            raise
        self._may_capture = not held and not self._makes

    def _give_inputs(self, binding: EngineBinding, inputs: Mapping[str, Array], held: Mapping[str, Buffer]) -> None:
        graph, context = self._graph, self.context
        tensors = {name: one for name, one in graph.tensors.items() if one.is_input}
        bound: dict[str, Buffer] = {**binding.reads, **held}
        shapes = {name: bound[name].shape if name in bound else inputs[name].shape for name in tensors}
        index = graph.profile({name: shape for name, shape in shapes.items() if not tensors[name].on_host})
        if context.active_optimization_profile != index:
            if not context.set_optimization_profile_async(index, graph.cuda.stream):
                raise graph.failed()
            graph.cuda.wait()
        for name, one in tensors.items():
            if not context.set_input_shape(name, shapes[name]):
                raise graph.failed()
            if name in bound:
                self._address(name, bound[name].address)
                continue
            memory, mine = graph.cuda.pinned(shapes[name], one.dtype)
            self._kept.append(memory)
            if one.on_host:
                np.copyto(mine, inputs[name])  # shapes are known by its values
                self._on_host.append((name, mine))
                self._address(name, memory.address)
            else:
                self._up.append((name, mine, self._device(name, mine.nbytes)))
        if missing := context.infer_shapes():
            raise UnsupportedError(
                f"The engine '{graph.record.file}' does not know its shapes without {', '.join(missing)}; build it "
                f"again for '{graph.record.target}'."
            )

    def _give_outputs(self, binding: EngineBinding) -> None:
        graph = self._graph
        given = dict[str, int]((name, address) for name, _, address in self._up)
        for one in graph.tensors.values():
            if one.is_input:
                continue
            shape = tuple(self.context.get_tensor_shape(one.name))
            if -1 in shape:
                raise UnsupportedError(
                    f"How long '{one.name}' is stands in no shape of an input of '{graph.name}', and engines whose "
                    "outputs depend on values are not run yet; choose the backend 'ort-cpu' or 'ort-cuda'."
                )
            self._shapes[one.name] = shape
            buffer = binding.writes.get(one.name)
            if buffer is not None:
                if buffer.shape != shape:
                    raise UnsupportedError(
                        f"The engine '{graph.record.file}' gives '{one.name}' the shape {list(shape)}, and the state "
                        f"has {list(buffer.shape)}; export the bundle again."
                    )
                self._address(one.name, buffer.address)
                continue
            if one.name in self._makes:
                continue
            memory, mine = graph.cuda.pinned(shape, one.dtype)
            self._kept.append(memory)
            if one.on_host:
                self._down.append((one.name, mine, 0))
                self._address(one.name, memory.address)
                continue
            of = graph.aliases.get(one.name)
            if of in given:
                self._address(one.name, given[of])
                self._down.append((one.name, mine, given[of]))
            else:
                self._down.append((one.name, mine, self._device(one.name, mine.nbytes)))

    def _device(self, name: str, nbytes: int) -> int:
        memory = self._graph.cuda.memory(nbytes)
        self._kept.append(memory)
        self._address(name, memory.address)
        return memory.address

    def _address(self, name: str, address: int) -> None:
        if not self.context.set_tensor_address(name, address):
            raise self._graph.failed()

    def take(self, inputs: Mapping[str, Array]) -> None:
        """Copy what the caller gives into pinned memory."""
        for name, mine, _ in self._up:
            np.copyto(mine, inputs[name])
        for name, mine in self._on_host:
            np.copyto(mine, inputs[name])

    def run(self, held: Mapping[str, Buffer]) -> list[Buffer]:
        """Run on what was taken, and wait for it; returns the memory of the states that it made."""
        graph, cuda = self._graph, self._graph.cuda
        for name, buffer in held.items():
            self._address(name, buffer.address)
        made: list[Buffer] = []
        for name in self._makes:
            buffer = EngineBuffer(cuda, self._shapes[name], graph.outputs[name].dtype)
            self._address(name, buffer.address)
            made.append(buffer)
        if self._captured is None and self._has_run and self._may_capture and graph.captured:
            self._capture()
        try:
            if self._captured is not None:
                cuda.launch(self._captured)
            else:
                self._enqueue()
        finally:
            cuda.wait()  # also behind a failure: nobody lets go of memory that is still written to
        self._has_run = True
        return made

    def give(self) -> dict[str, Array]:
        """Arrays of the caller's own with what the run gave, in the order of the graph's outputs."""
        found = {name: mine.copy() for name, mine, _ in self._down}
        return {name: found[name] for name in self._graph.outputs if name in found}

    def _enqueue(self) -> None:
        cuda = self._graph.cuda
        for _, mine, address in self._up:
            cuda.send(address, mine.ctypes.data, mine.nbytes)
        if not self.context.execute_async_v3(cuda.stream):
            raise self._graph.failed()
        for _, mine, address in self._down:
            if address:
                cuda.fetch(mine.ctypes.data, address, mine.nbytes)

    def _capture(self) -> None:
        """Record a run, where TensorRT allows it; the first one was not recorded, as it prepares what others need."""
        graph = self._graph
        try:
            if hasattr(self.context, "is_stream_capturable") and not self.context.is_stream_capturable(
                graph.cuda.stream
            ):
                raise UnsupportedError("TensorRT says that it cannot be captured.")
            self._captured = graph.cuda.capture(self._enqueue)
        except UnsupportedError as error:
            graph.not_captured(error)


def _tensors(trt: Any, engine: Any) -> dict[str, _Tensor]:
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    return {
        name: _Tensor(
            name=name,
            dtype=_dtype_of(engine.get_tensor_dtype(name).name),
            is_input=engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT,
            on_host=engine.get_tensor_location(name) == trt.TensorLocation.HOST,
        )
        for name in names
    }


def _dtype_of(name: str) -> str:
    """The manifest's name of a dtype; one that it has none for stays as TensorRT has it."""
    return _DTYPES.get(name, name.lower())


def _compare(record: Engine, kind: str, listed: Sequence[TensorInfo], found: Sequence[_Tensor]) -> None:
    """Refuse an engine with other tensors than the manifest's; inputs that nothing reads it may have left out."""
    again = f"build it again for '{record.target}' with --force"
    dtypes = {info.name: info.dtype for info in listed}
    names = {one.name for one in found}
    if names - dtypes.keys() or (kind == "outputs" and dtypes.keys() - names):
        raise BundleError(
            f"The {kind} of '{record.file}' are {', '.join(one.name for one in found)}, and the manifest lists "
            f"{', '.join(dtypes)}; {again}."
        )
    for one in found:
        if one.dtype != dtypes[one.name]:
            raise BundleError(
                f"'{one.name}' is {one.dtype} in '{record.file}', and the manifest has it as {dtypes[one.name]}; "
                f"{again}."
            )


def _range_text(least: Shape, most: Shape) -> str:
    ends = zip(least, most, strict=True)
    return f"[{', '.join(str(low) if low == high else f'{low} to {high}' for low, high in ends)}]"


def _bytes(shape: Shape, dtype: str) -> int:
    return int(np.prod(shape, dtype=np.int64)) * carrier(dtype).itemsize
