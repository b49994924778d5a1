"""Run a graph with ONNX Runtime, on the CPU or with CUDA, and never on the one when the other was asked for."""

import ctypes
import importlib
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np

from trt_compress.errors import BundleError, PluginError, UnsupportedError
from trt_compress.files import mapped
from trt_compress.foreign import reading
from trt_compress.format.bundle import Bundle
from trt_compress.format.manifest import Graph, TensorInfo
from trt_compress.plugins.library import Library
from trt_compress.runtime.backends.base import Buffer, carrier
from trt_compress.runtime.backends.in_place import DOMAIN, aliases_of, writers
from trt_compress.runtime.onnx_nodes import Node, read_nodes
from trt_compress.runtime.onnx_source import OnnxSource
from trt_compress.strays import temporary_folder

Array = np.ndarray[Any, np.dtype[Any]]

_PROVIDERS = {"ort-cpu": "CPUExecutionProvider", "ort-cuda": "CUDAExecutionProvider"}
_EXTRAS = {"ort-cpu": "cpu", "ort-cuda": "gpu"}
_DEVICES = {"ort-cpu": "cpu", "ort-cuda": "cuda"}
_TYPES = {f"tensor({name})": name for name in ("bool", "int4", "uint4", "int8", "uint8", "int16", "uint16", "int32")}
_TYPES |= {f"tensor({name})": name for name in ("uint32", "int64", "uint64", "float16", "bfloat16")}
_TYPES |= {"tensor(float)": "float32", "tensor(double)": "float64"}
_FOLDER = "session.model_external_initializers_file_folder_path"
_SMALL = 1 << 16  # bytes that are copied sooner than ONNX Runtime is told of other memory
_NUMBERS = {"bfloat16": 16, "float8_e4m3fn": 17, "float8_e4m3fnuz": 18, "float8_e5m2": 19, "float8_e5m2fnuz": 20}
"""Of those that numpy has no name for: ONNX's number."""

OperatorPath = Literal["native", "function"]
"""How an operator runs: as a custom operator of the native library, or as the standard operators of its body."""


class OrtBuffer:
    """Memory of ONNX Runtime's device that holds a state."""

    def __init__(self, value: Any, dtype: str, content: Array | None = None) -> None:
        self.value = value
        self.dtype = dtype
        self.shape = tuple(value.shape())
        self._content = content

    @property
    def address(self) -> int:
        """Where it begins, on the device."""
        return int(self.value.data_ptr())

    def read(self) -> Array:
        """The content, in integers where numpy lacks the dtype: the memory itself on the CPU, elsewhere a copy."""
        return _content_of(self.value, self.dtype) if self._content is None else self._content


class OrtBinding:
    """A graph with memory tied to its states.

    Small inputs and outputs have memory tied to them as well, and are copied into it and out of it: that takes less
    than telling ONNX Runtime of other memory. Large ones are read and given where they are.
    """

    def __init__(
        self,
        graph: "OrtGraph",
        reads: Mapping[str, Buffer],
        writes: Mapping[str, Buffer],
        makes: Sequence[str],
    ) -> None:
        self._graph = graph
        self._binding = graph.session.io_binding()
        for name, buffer in reads.items():
            self._binding.bind_ortvalue_input(name, buffer.value)
        for name, buffer in writes.items():
            self._binding.bind_ortvalue_output(name, buffer.value)
        self._made = dict.fromkeys(makes, graph.device)
        self._given = {name: "cpu" for name in graph.outputs if name not in writes and name not in makes}
        order = (*writes, *self._made, *self._given)  # in which they are first bound, and given
        self._places = {name: at for at, name in enumerate(order)}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._inputs: dict[str, Array] = {}
        self._outputs: dict[str, Array] = {}

    def run(self, inputs: Mapping[str, Array], held: Mapping[str, Buffer]) -> tuple[dict[str, Array], list[Buffer]]:
        """See `Binding`."""
        binding = self._binding
        shapes = {name: array.shape for name, array in inputs.items()}
        if held:
            shapes |= {name: buffer.shape for name, buffer in held.items()}
        if shapes != self._shapes:
            self._shapes, self._inputs, self._outputs = shapes, {}, {}
        for name, array in inputs.items():
            mine = self._inputs.get(name)
            if mine is None:
                self._bind_input(name, array)
            else:
                np.copyto(mine, array)
        for name, buffer in held.items():
            binding.bind_ortvalue_input(name, buffer.value)
        for anew in (self._made, self._given):
            for name, device in anew.items():
                if name not in self._outputs:  # else the next run would write over what this one gives
                    binding.bind_output(name, device)
        try:
            self._graph.session.run_with_iobinding(binding)
        except Exception as error:  # ONNX Runtime's exceptions have no common base
            raise self._graph.failed(error) from error
        outputs = {name: self._outputs[name].copy() for name in self._given if name in self._outputs}
        if len(outputs) == len(self._given) and not self._made:
            return outputs, []
        found = binding.get_outputs_as_ortvaluevector()
        for name in self._given.keys() - outputs.keys():
            outputs[name] = found[self._places[name]].numpy()
            self._bind_output(name, outputs[name])
        outputs = {name: outputs[name] for name in self._given}
        graph = self._graph
        made: list[Buffer] = [OrtBuffer(graph.wrap(found[self._places[n]]), graph.outputs[n].dtype) for n in self._made]
        return outputs, made

    def _bind_input(self, name: str, array: Array) -> None:
        if array.nbytes > _SMALL or self._graph.device != "cpu":
            self._binding.bind_cpu_input(name, array)
            return
        mine = self._inputs[name] = np.array(array, order="C")
        self._binding.bind_ortvalue_input(name, self._graph.wrap.ortvalue_from_numpy(mine))

    def _bind_output(self, name: str, array: Array) -> None:
        """Tie memory to an output that is as long in every run on inputs of these shapes."""
        if array.nbytes <= _SMALL and name in self._graph.determined and self._graph.device == "cpu":
            mine = self._outputs[name] = np.empty(array.shape, array.dtype)
            self._binding.bind_ortvalue_output(name, self._graph.wrap.ortvalue_from_numpy(mine))


class OrtGraph:
    """One graph, loaded.

    Attributes:
        files: What was read of the bundle for it.
        in_place: Output of a state → the input whose memory it may have.
        session: ONNX Runtime's own.
        outputs: By name.
        determined: Those of them whose shape follows from the shapes of inputs and states.
        wrap: ONNX Runtime's class of values.
        device: Where its states are: "cpu" or "cuda".
    """

    def __init__(
        self,
        bundle: Bundle,
        graph: Graph,
        backend: str,
        threads: int | None,
        spin: bool,
        native: Library | None = None,
        pack: bool = True,
    ) -> None:
        ort = _load(backend)
        options = _options(ort)
        if threads is not None:
            options.intra_op_num_threads = threads
        if not spin:
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if native is not None:
            register_native(options, native)
        if not pack:
            options.add_session_config_entry("session.disable_prepacking", "1")
        provider = _PROVIDERS[backend]
        with ExitStack() as stack:
            source = stack.enter_context(OnnxSource(bundle, graph.file))
            might = _might_be_in_place(source, bundle, graph, native)
            if might:
                options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
            self.session = _load_source(source, options, provider)
            if not source.is_as_it_was:
                del self.session
                source = stack.enter_context(OnnxSource(bundle, graph.file, by_name=False))
                self.session = _load_source(source, options, provider)
            self.in_place = _in_place(might, self.session, source, native)
            source.confirm()
            source.rest()
        self.files = source.files
        self._weights = source.weights  # the session reads from their memory
        if self.session.get_providers()[0] != provider:
            raise UnsupportedError(
                f"The backend '{backend}' was asked for and ONNX Runtime could not start it; it would have run on "
                f"{self.session.get_providers()[0]}. Install the CUDA and cuDNN that onnxruntime-gpu "
                f"{ort.__version__} needs, or choose the backend 'ort-cpu'."
            )
        self._name = graph.name
        self.outputs = {info.name: info for info in graph.outputs}
        known = {dim for info in graph.inputs for dim in info.shape}
        self.determined = {
            info.name for info in graph.outputs if all(isinstance(dim, int) or dim in known for dim in info.shape)
        }
        self.device = _DEVICES[backend]
        self.wrap = ort.OrtValue
        _compare(graph, "inputs", self.session.get_inputs())
        _compare(graph, "outputs", self.session.get_outputs())

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the graph on all of its inputs and return all of its outputs, by bare name."""
        try:
            results = self.session.run([*self.outputs], inputs)
        except Exception as error:  # ONNX Runtime's exceptions have no common base
            raise self.failed(error) from error
        return dict(zip(self.outputs, results, strict=True))

    def buffer(self, content: Array, dtype: str) -> OrtBuffer:
        """Memory of the device with this content, which is given away: on the CPU it becomes the memory."""
        if dtype in _NUMBERS:  # those that numpy has no name for
            value = self.wrap.ortvalue_from_numpy_with_onnx_type(content, _NUMBERS[dtype])
        else:
            value = self.wrap.ortvalue_from_numpy(content, self.device)
        return OrtBuffer(value, dtype, content if self.device == "cpu" else None)

    def bind(self, reads: Mapping[str, Buffer], writes: Mapping[str, Buffer], makes: Sequence[str]) -> OrtBinding:
        """Tie memory to states."""
        return OrtBinding(self, reads, writes, makes)

    def failed(self, error: Exception) -> UnsupportedError:
        """What ONNX Runtime raised, in one sentence."""
        return UnsupportedError(f"ONNX Runtime failed in the graph '{self._name}': {_first_line(error)}.")


def register_native(options: Any, library: Library) -> None:
    """Let the native operators run in sessions that are made with these options. The library has been checked.

    Raises:
        PluginError: ONNX Runtime cannot load it.
    """
    ort = importlib.import_module("onnxruntime")
    try:
        options.register_custom_ops_library(str(library.path))
    except Exception as error:  # ONNX Runtime's exceptions have no common base
        raise PluginError(
            f"ONNX Runtime {ort.__version__} cannot load '{library.path}' ({_first_line(error)}); build it again with "
            "'trt-compress plugins build --force'."
        ) from error


def operator_paths(model: OnnxSource | Path, library: Library | None) -> dict[str, OperatorPath]:
    """What ONNX Runtime makes of every operator of ours in a graph, read from the graph that it runs.

    Args:
        model: The ONNX file: of a bundle, or one that the caller has made.
        library: The native library that is registered; None: none is.

    Returns:
        By node name (the op type where a node has none, numbered where names repeat): "native" if the node is still
        there when ONNX Runtime has prepared the graph, "function" if its body took its place.

    Raises:
        BundleError: The file cannot be loaded.
        PluginError: The library cannot be loaded.
    """
    asked = _unique_names(_nodes(model))
    if not asked:
        return {}
    ort = importlib.import_module("onnxruntime")
    with temporary_folder("prepared") as folder:
        prepared = folder / "prepared.onnx"
        options = _options(ort)
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.optimized_model_filepath = str(prepared)
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights.bin")
        if library is not None:
            register_native(options, library)
        _load_source(model, options, "CPUExecutionProvider")
        left = set(_unique_names(_nodes(prepared)))
    return {name: "native" if name in left else "function" for name in asked}


def _options(ort: ModuleType) -> Any:
    """Options of every session: errors come back as exceptions with the same text, and ONNX is what is loaded."""
    options = ort.SessionOptions()
    options.log_severity_level = 4  # its own log would put what stands in a graph on the terminal as it is
    options.add_session_config_entry("session.load_model_format", "ONNX")
    return options


def _load_source(source: OnnxSource | Path, options: Any, provider: str) -> Any:
    """An ONNX Runtime session of a file, with the weights that are handed over beside it.

    Raises:
        BundleError: ONNX Runtime cannot load it.
    """
    ort = importlib.import_module("onnxruntime")
    model, name = (source.model, source) if isinstance(source, OnnxSource) else (str(source), f"'{source}'")
    try:
        if isinstance(source, OnnxSource) and source.weights:
            make = ort.OrtValue.ortvalue_from_numpy_with_onnx_type
            values = [make(weight.data, weight.dtype) for weight in source.weights.values()]
            options.add_external_initializers(list(source.weights), values)
        if isinstance(source, OnnxSource) and source.folder is not None:
            options.add_session_config_entry(_FOLDER, source.folder)
        session = ort.InferenceSession(model, options, providers=[provider])
    except Exception as error:  # ONNX Runtime's exceptions have no common base
        raise BundleError(f"ONNX Runtime {ort.__version__} cannot load {name}: {_first_line(error)}.") from error
    if isinstance(model, bytes) and hasattr(session, "_model_bytes"):
        session._model_bytes = None  # kept there to start it again with other providers, which is never done here
    return session


def _nodes(model: OnnxSource | Path) -> list[Node]:
    """The nodes of our operators in an ONNX file."""
    with reading(str(model) if isinstance(model, OnnxSource) else f"'{model}'", "export it again", error=BundleError):
        if isinstance(model, OnnxSource):
            view = model.view
        else:
            with model.open("rb") as file:
                view = mapped(file)
        return [node for node in read_nodes(view) if node.domain == DOMAIN]


def _unique_names(nodes: list[Node]) -> list[str]:
    names = [node.name or node.op_type for node in nodes]
    seen: Counter[str] = Counter()
    unique = []
    for name in names:
        unique.append(f"{name}_{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return unique


def onnxruntime_version() -> str:
    """Version of the installed ONNX Runtime."""
    return str(importlib.import_module("onnxruntime").__version__)


def _load(backend: str) -> ModuleType:
    extra = f"install trt-compress[{_EXTRAS[backend]}]"
    try:
        ort = importlib.import_module("onnxruntime")
    except ImportError as error:
        raise UnsupportedError(f"The backend '{backend}' needs ONNX Runtime, and {error}; {extra}.") from None
    available = ort.get_available_providers()
    if _PROVIDERS[backend] not in available:
        raise UnsupportedError(
            f"The backend '{backend}' needs {_PROVIDERS[backend]}, and the installed onnxruntime {ort.__version__} has "
            f"{', '.join(available)}; {extra} in place of onnxruntime, or choose the backend 'ort-cpu'."
        )
    return ort


def _compare(graph: Graph, kind: str, found: Sequence[Any]) -> None:
    listed: tuple[TensorInfo, ...] = getattr(graph, kind)
    types = {one.name: _TYPES.get(one.type, one.type) for one in found}
    if sorted(info.name for info in listed) != sorted(types):
        raise BundleError(
            f"The {kind} of '{graph.file}' are {', '.join(types)}, and the manifest lists "
            f"{', '.join(info.name for info in listed)}; export the bundle again."
        )
    for info in listed:
        if info.dtype in _TYPES.values() and types[info.name] != info.dtype:
            raise BundleError(
                f"'{info.name}' is {types[info.name]} in '{graph.file}', and the manifest has it as {info.dtype}; "
                "export the bundle again."
            )


def _might_be_in_place(
    source: OnnxSource, bundle: Bundle, graph: Graph, native: Library | None
) -> dict[tuple[str, str], list[Node]]:
    """States (output, input) that may be updated in place if these nodes run natively."""
    states = {
        state.output: state.input
        for state in bundle.manifest.states
        if state.graph == graph.name and state.input and state.output
    }
    if native is None or not states:
        return {}
    with reading(str(source), "export it again", error=BundleError):
        nodes = list(read_nodes(source.view))
    found = writers(nodes, states, [info.name for info in graph.outputs], aliases_of(native.info["operators"]))
    return {(output, states[output]): needed for output, needed in found.items()}


def _in_place(
    might: Mapping[tuple[str, str], list[Node]], session: Any, source: OnnxSource, native: Library | None
) -> dict[str, str]:
    """Those of them whose nodes are native in the loaded session, as ONNX Runtime itself says."""
    if not might:
        return {}
    if hasattr(session, "get_provider_graph_assignment_info"):
        parts = session.get_provider_graph_assignment_info()
        kept = {node.name for part in parts for node in part.get_nodes() if node.domain == DOMAIN}
    else:  # before ONNX Runtime 1.24
        kept = {name for name, path in operator_paths(source, native).items() if path == "native"}
    names = Counter(node.name for node in _nodes(source))
    return {
        output: given
        for (output, given), needed in might.items()
        if all(node.name and names[node.name] == 1 and node.name in kept for node in needed)
    }


def _content_of(value: Any, dtype: str) -> Array:
    if dtype not in _NUMBERS:
        content: Array = value.numpy()
        return content
    holds = carrier(dtype)
    count = value.tensor_size_in_bytes()
    memory = (ctypes.c_char * count).from_address(value.data_ptr())  # numpy() knows no such dtype
    return np.frombuffer(memory, holds).reshape(value.shape())


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
