"""The operators in PyTorch on a GPU, by the kernels of libtrtc_cuda instead of their torch form. Only if asked for.

    kernels = use_cuda_kernels()   # from here on
    model(image)
    print(kernels.calls)           # which operators ran by a kernel, and how often

Nothing is registered at import, and no GPU is asked for before `use_cuda_kernels` is called.
"""

import importlib
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trt_compress.errors import NativeError, PluginError, ShapeError, UnsupportedError
from trt_compress.plugins.cuda_library import AttributeValue, CudaLibrary, Described, PreparedCall
from trt_compress.plugins.library import check, require
from trt_compress.plugins.registry import specs
from trt_compress.plugins.spec import DOMAIN, OpSpec

_MOST_PREPARED = 4096  # calls whose sizes are remembered; a model has some dozens


@dataclass(frozen=True, slots=True)
class _Prepared:
    call: PreparedCall
    outputs: tuple[tuple[tuple[int, ...], torch.dtype], ...]
    trimmed: bool  # the outputs have room for more than the data will need


class CudaKernels:
    """The kernels of one library, as they run the registered torch operators on one kind of device.

    Attributes:
        operators: Op types that run by a kernel.
        calls: Kernel calls so far, by op type: what is not in it ran in its torch form.
    """

    def __init__(self, path: Path, device_type: str = "cuda") -> None:
        self.library = CudaLibrary(path)
        self.device_type = device_type
        known = specs()
        self.operators = tuple(op_type for op_type in self.library.op_types() if op_type in known)
        self.calls: Counter[str] = Counter()
        self._prepared: dict[Any, _Prepared] = {}

    def run(self, spec: OpSpec, arguments: Sequence[Any]) -> tuple[Tensor, ...]:
        """Run one operator on the current stream.

        Args:
            spec: The operator.
            arguments: Its tensors, then its attributes, as the registered torch operator takes them.

        Raises:
            ShapeError: The library does not take these sizes, types or attributes.
            PluginError: The launch failed, or an earlier kernel found a mistake in its data.
        """
        count = len(spec.inputs)
        inputs = [tensor.contiguous() for tensor in arguments[:count]]
        device = inputs[0].device
        if any(tensor.device != device for tensor in inputs):
            places = ", ".join(f"{d.name} on {t.device}" for d, t in zip(spec.inputs, inputs, strict=True))
            raise ShapeError(f"{spec.torch_name}: its tensors must be on one device, and are not: {places}.")
        self._refuse_after_fault()
        key = (spec.op_type, *((t.dtype, t.shape) for t in inputs), *map(_frozen, arguments[count:]))
        prepared = self._prepared.get(key)
        if prepared is None:
            if len(self._prepared) >= _MOST_PREPARED:
                self._prepared.clear()
            prepared = self._prepared[key] = self._prepare(spec, inputs, arguments[count:])
        outputs = [torch.empty(shape, dtype=dtype, device=device) for shape, dtype in prepared.outputs]
        self.enqueue(prepared.call, [*inputs, *outputs])
        self.calls[spec.op_type] += 1
        return _trim(spec, outputs) if prepared.trimmed else tuple(outputs)

    def enqueue(self, call: PreparedCall, tensors: Sequence[Tensor], workspace: Tensor | None = None) -> None:
        """Launch a prepared call on the current stream of its tensors' device.

        Args:
            call: From `prepare`, or from the library.
            tensors: Inputs, then outputs, contiguous, of the sizes and types that were prepared.
            workspace: Scratch memory of `call.workspace_bytes`; None allocates it.
        """
        device = tensors[0].device
        if workspace is None:
            workspace = torch.empty(call.workspace_bytes, dtype=torch.uint8, device=device)
        pointers = [tensor.data_ptr() for tensor in tensors]
        if device.type != "cuda":
            call.enqueue(pointers, workspace.data_ptr(), None)
        elif device.index == torch.cuda.current_device():
            call.enqueue(pointers, workspace.data_ptr(), torch.cuda.current_stream(device).cuda_stream)
        else:
            with torch.cuda.device(device):
                call.enqueue(pointers, workspace.data_ptr(), torch.cuda.current_stream(device).cuda_stream)

    def prepare(self, spec: OpSpec, inputs: Sequence[Tensor], attributes: Sequence[Any]) -> PreparedCall:
        """A call for tensors like these, to be enqueued with memory of the caller's own."""
        return self._prepare(spec, inputs, attributes).call

    def bind(self, spec: OpSpec, inputs: Sequence[Tensor], attributes: Sequence[Any]) -> "BoundCall":
        """A call on these very tensors, with outputs and scratch memory allocated now: what is timed and captured.

        An output that may share the buffer of an input does. Nothing is checked between calls.
        """
        prepared = self._prepare(spec, inputs, attributes)
        names = [described.name for described in spec.inputs]
        outputs = tuple(
            inputs[names.index(described.aliases)]
            if described.aliases
            else torch.empty(shape, dtype=dtype, device=inputs[0].device)
            for described, (shape, dtype) in zip(spec.outputs, prepared.outputs, strict=True)
        )
        workspace = torch.empty(prepared.call.workspace_bytes, dtype=torch.uint8, device=inputs[0].device)
        return BoundCall(kernels=self, call=prepared.call, inputs=tuple(inputs), outputs=outputs, workspace=workspace)

    def check(self) -> None:
        """Wait for the GPU, and raise what a kernel found wrong with its data.

        Raises:
            PluginError: The kernel's own sentence; its output was not written.
        """
        if self.device_type == "cuda":
            torch.cuda.synchronize()
        self._refuse_after_fault()

    def _refuse_after_fault(self) -> None:
        fault = self.library.take_fault()
        if fault:
            raise NativeError(f"A CUDA kernel that ran before this reported: {fault}")

    def _prepare(self, spec: OpSpec, inputs: Sequence[Tensor], attributes: Sequence[Any]) -> _Prepared:
        by_name = dict(zip((attribute.name for attribute in spec.attributes), attributes, strict=True))
        given = [Described(_name(tensor.dtype), tuple(tensor.shape)) for tensor in inputs]
        shapes = spec.output_shapes([described.shape for described in given], by_name)
        dtypes = spec.output_dtypes([described.dtype for described in given], by_name)
        made = [Described(dtype, tuple(shape)) for dtype, shape in zip(dtypes, shapes, strict=True)]
        values = [_value(value, a.kind) for value, a in zip(attributes, spec.attributes, strict=True)]
        try:
            call = self.library.prepare(spec.op_type, values, given, made)
        except PluginError as error:
            raise ShapeError(error.message) from None
        outputs = tuple((described.shape, getattr(torch, described.dtype)) for described in made)
        return _Prepared(call, outputs, bool(spec.decided_by_data(by_name)))


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundCall:
    """An operator with its memory; calling it launches the kernels on the current stream."""

    kernels: CudaKernels
    call: PreparedCall
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    workspace: Tensor

    def __call__(self) -> None:
        """Launch."""
        self.kernels.enqueue(self.call, [*self.inputs, *self.outputs], self.workspace)


_active: dict[str, CudaKernels] = {}
_registered: set[tuple[str, str]] = set()


def use_cuda_kernels(library: Path | None = None) -> CudaKernels:
    """From now on run the torch operators on CUDA tensors by the kernels of libtrtc_cuda; their torch form is not used.

    Operators that the library lacks, and tensors that are not on a GPU, keep the torch form: `calls` tells. Captures in
    CUDA graphs, but for operators whose output sizes the data decide.

    Args:
        library: The library; None: the one that `trt-compress plugins build` made for this GPU.

    Raises:
        UnsupportedError: There is no GPU that torch can use.
        PluginError: The library is not built, or not for this GPU and these sources.
    """
    if not torch.cuda.is_available():
        raise UnsupportedError("use_cuda_kernels needs an NVIDIA GPU and a torch built for CUDA; torch sees none here.")
    major, minor = torch.cuda.get_device_capability()
    sms = [10 * major + minor]
    found = require("cuda", sms=sms) if library is None else check(library, "cuda", sms=sms, named=True)
    return install(CudaKernels(found.path))


def install(kernels: CudaKernels) -> CudaKernels:
    """Make `kernels` run the operators it holds, in place of those of before on the same kind of device."""
    device_type = kernels.device_type
    for op_type in kernels.operators:
        if (op_type, device_type) not in _registered:
            spec = specs()[op_type]
            definition(spec).register_kernel(device_type)(partial(_run, spec, device_type))
            _registered.add((op_type, device_type))
    _active[device_type] = kernels
    return kernels


def uninstall(device_type: str = "cuda") -> None:
    """Go back to the torch forms."""
    _active.pop(device_type, None)


@contextmanager
def torch_forms(device_type: str = "cuda") -> Iterator[None]:
    """Inside, the operators run in their torch form: the reference that kernels are compared with."""
    kernels = _active.pop(device_type, None)
    try:
        yield
    finally:
        if kernels is not None:
            _active[device_type] = kernels


def definition(spec: OpSpec) -> Any:
    """The `torch.library.custom_op` of an operator."""
    return getattr(importlib.import_module(f"trt_compress.plugins.{spec.torch_name}.op"), f"_{spec.torch_name}")


def _run(spec: OpSpec, device_type: str, *arguments: Any) -> Any:
    kernels = _active.get(device_type)
    if kernels is None or spec.op_type not in kernels.operators:
        with definition(spec).set_kernel_enabled(device_type, False):
            return getattr(getattr(torch.ops, DOMAIN), spec.torch_name)(*arguments)
    first, *others = kernels.run(spec, arguments)
    return (first, *others) if others else first


def _trim(spec: OpSpec, outputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Cut what the data decide: `largest` is the size of the axis M, and the kernel wrote rows of that size."""
    names = [described.name for described in spec.outputs]
    largest = int(outputs[names.index("largest")])
    cut = []
    for described, tensor in zip(spec.outputs, outputs, strict=True):
        axis = described.axes.index("M") if "M" in described.axes else None
        if axis is None:
            cut.append(tensor)
            continue
        shape = [*tensor.shape[:axis], largest, *tensor.shape[axis + 1 :]]
        cut.append(tensor.flatten()[: math.prod(shape)].reshape(shape).clone())
    return tuple(cut)


def _value(value: Any, kind: str) -> AttributeValue:
    return float(value) if kind == "float" else tuple(int(v) for v in value) if kind == "ints" else int(value)


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
