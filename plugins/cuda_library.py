"""libtrtc_cuda from Python: its C interface (`common/cuda_interface.h`) by ctypes. Needs the standard library only."""

import ctypes
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from trt_compress.errors import NativeError, PluginError
from trt_compress.plugins.spec import ONNX_NUMBERS

_MESSAGE_BYTES = 1024
_TEXT_BYTES = 16384

AttributeValue = int | float | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Described:
    """Type and sizes of one tensor."""

    dtype: str
    shape: tuple[int, ...]


class _Attribute(ctypes.Structure):
    _fields_ = [("integers", ctypes.POINTER(ctypes.c_int64)), ("count", ctypes.c_int32), ("real", ctypes.c_float)]


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("rank", ctypes.c_int32),
        ("dtype", ctypes.c_int32),
    ]


class _Call(ctypes.Structure):
    _fields_ = [
        ("op_type", ctypes.c_char_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("inputs", ctypes.POINTER(_Tensor)),
        ("outputs", ctypes.POINTER(_Tensor)),
        ("num_attributes", ctypes.c_int32),
        ("num_inputs", ctypes.c_int32),
        ("num_outputs", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
    ]


class CudaLibrary:
    """A loaded libtrtc_cuda, or what offers the same C interface.

    Raises:
        PluginError: The file does not load, or does not have the interface.
    """

    def __init__(self, path: Path) -> None:
        try:
            library = ctypes.CDLL(os.path.realpath(path))  # a bare name would be looked for by the loader
            message = (ctypes.c_char_p, ctypes.c_size_t)
            library.trtcDescribe.restype = ctypes.c_char_p
            library.trtcDescribe.argtypes = ()
            library.trtcTakeFault.argtypes = message
            library.trtcWorkspaceBytes.argtypes = (
                ctypes.POINTER(_Call),
                ctypes.POINTER(ctypes.c_size_t),
                *message,
            )
            library.trtcEnqueue.argtypes = (ctypes.POINTER(_Call), ctypes.c_void_p, ctypes.c_void_p, *message)
        except (OSError, AttributeError) as error:
            raise PluginError(f"'{path}' does not load: {error}.") from None
        self.path = path
        self._library = library

    def op_types(self) -> tuple[str, ...]:
        """The operators it holds."""
        described = json.loads(self._library.trtcDescribe().decode())
        return tuple(operator["op_type"] for operator in described["operators"])

    def prepare(
        self,
        op_type: str,
        attributes: Sequence[AttributeValue],
        inputs: Sequence[Described],
        outputs: Sequence[Described],
    ) -> "PreparedCall":
        """Everything of a call but its pointers; they may change from one enqueue to the next.

        Args:
            op_type: The operator.
            attributes: Every attribute, in the order of the contract.
            inputs: In the order of the contract.
            outputs: Likewise, each as large as it may become.

        Raises:
            PluginError: The contract does not allow it; the library's own sentence.
        """
        return PreparedCall(self._library, op_type, attributes, inputs, outputs)

    def take_fault(self) -> str:
        """What a kernel found wrong with its data since the last call, or nothing."""
        message = ctypes.create_string_buffer(_MESSAGE_BYTES)
        status = self._library.trtcTakeFault(message, _MESSAGE_BYTES)
        return message.value.decode(errors="replace") or (f"status {status}" if status else "")


class _Structures:
    """One operator with attributes, types and sizes as the C interface takes them."""

    def __init__(
        self,
        op_type: str,
        attributes: Sequence[AttributeValue],
        inputs: Sequence[Described],
        outputs: Sequence[Described],
    ) -> None:
        self._num_pointers = len(inputs) + len(outputs)
        # The structures hold addresses of these arrays, so they live as long as the call does.
        self._lists = [_int64s(v if isinstance(v, tuple) else [int(v)]) for v in attributes]
        self._attributes = (_Attribute * max(len(attributes), 1))()
        for i, (value, numbers) in enumerate(zip(attributes, self._lists, strict=True)):
            self._attributes[i].integers = ctypes.cast(numbers, ctypes.POINTER(ctypes.c_int64))
            self._attributes[i].count = len(value) if isinstance(value, tuple) else 1
            self._attributes[i].real = float(value) if isinstance(value, float) else 0.0
        self._shapes = [_int64s(described.shape) for described in (*inputs, *outputs)]
        self._tensors = (_Tensor * max(self._num_pointers, 1))()
        for i, (described, shape) in enumerate(zip((*inputs, *outputs), self._shapes, strict=True)):
            self._tensors[i].shape = ctypes.cast(shape, ctypes.POINTER(ctypes.c_int64))
            self._tensors[i].rank = len(described.shape)
            self._tensors[i].dtype = ONNX_NUMBERS[described.dtype]
        first = ctypes.addressof(self._tensors)
        pointer = ctypes.POINTER(_Tensor)
        self._call = _Call(
            op_type.encode(),
            ctypes.cast(self._attributes, ctypes.POINTER(_Attribute)),
            ctypes.cast(first, pointer),
            ctypes.cast(first + len(inputs) * ctypes.sizeof(_Tensor), pointer),
            len(attributes),
            len(inputs),
            len(outputs),
            0,
        )


class PreparedCall(_Structures):
    """One operator with attributes, types and sizes; `enqueue` may be called any number of times, by any thread."""

    def __init__(
        self,
        library: ctypes.CDLL,
        op_type: str,
        attributes: Sequence[AttributeValue],
        inputs: Sequence[Described],
        outputs: Sequence[Described],
    ) -> None:
        super().__init__(op_type, attributes, inputs, outputs)
        self._library = library
        self._lock = Lock()
        found = ctypes.c_size_t()
        _must(library.trtcWorkspaceBytes, ctypes.byref(self._call), ctypes.byref(found))
        self.workspace_bytes = found.value

    def enqueue(self, pointers: Sequence[int], workspace: int, stream: int | None) -> None:
        """Launch on `stream`.

        Args:
            pointers: Addresses of the inputs, then of the outputs.
            workspace: Address of `workspace_bytes` bytes of scratch memory.
            stream: A CUDA stream's handle; None: the default stream.

        Raises:
            PluginError: The launch failed; the library's own sentence.
        """
        if len(pointers) != self._num_pointers:
            raise NativeError(f"{len(pointers)} pointers were given for {self._num_pointers} tensors; give one each.")
        with self._lock:
            for i, value in enumerate(pointers):
                self._tensors[i].data = value
            _must(self._library.trtcEnqueue, ctypes.byref(self._call), workspace, stream)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputShapes:
    """What the outputs of a call will be, as a library of ours says it.

    Attributes:
        dtypes: As SPEC writes them.
        shapes: -1 where the data decide.
        formulas: The sizes as expressions of those of the inputs, such as "(x[1] - 13)";
            `data(output, usual, largest)` where the data decide. TensorRT builds by these.
    """

    dtypes: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    formulas: tuple[tuple[str, ...], ...]


def output_shapes(
    library: ctypes.CDLL, op_type: str, attributes: Sequence[AttributeValue], inputs: Sequence[Described]
) -> OutputShapes:
    """Ask a library, of whatever kind, by what rule it computes the shapes of the outputs.

    Raises:
        NativeError: The contract does not allow the call; the library's own sentence.
    """
    structures = _Structures(op_type, attributes, inputs, ())
    text = ctypes.create_string_buffer(_TEXT_BYTES)
    library.trtcOutputShapes.argtypes = (ctypes.POINTER(_Call), *(ctypes.c_char_p, ctypes.c_size_t) * 2)
    _must(library.trtcOutputShapes, ctypes.byref(structures._call), text, _TEXT_BYTES)
    said = json.loads(text.value.decode())
    return OutputShapes(
        dtypes=tuple(said["dtypes"]),
        shapes=tuple(map(tuple, said["shapes"])),
        formulas=tuple(map(tuple, said["formulas"])),
    )


def _int64s(values: Sequence[int]) -> "ctypes.Array[ctypes.c_int64]":
    return (ctypes.c_int64 * max(len(values), 1))(*values)


def _must(function: Callable[..., int], *arguments: object) -> None:
    message = ctypes.create_string_buffer(_MESSAGE_BYTES)
    status = function(*arguments, message, _MESSAGE_BYTES)
    if status:
        raise NativeError(message.value.decode(errors="replace") or f"the library returned {status}.")
