"""The part of `cuda.bindings.runtime` that is used here, in memory of the host, and strict.

What is given to a stream runs when somebody waits for the stream, so that what is read too early is old. Whatever CUDA
would leave undefined raises `Misuse`: memory that was freed or never there, pageable memory in an asynchronous copy, an
allocation in a capture.
"""

import ctypes
import enum
import itertools
import sys
import types
from collections.abc import Callable
from typing import Any

import pytest

Work = Callable[[], None]


class Misuse(AssertionError):
    """A call that the real library does not allow there."""


class cudaError_t(enum.IntEnum):  # noqa: N801  the real names, here and below
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorStreamCaptureInvalidated = 901


class cudaMemcpyKind(enum.IntEnum):  # noqa: N801
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2


class cudaDeviceAttr(enum.IntEnum):  # noqa: N801
    cudaDevAttrComputeCapabilityMajor = 75
    cudaDevAttrComputeCapabilityMinor = 76


class cudaStreamCaptureMode(enum.IntEnum):  # noqa: N801
    cudaStreamCaptureModeThreadLocal = 1


OK = cudaError_t.cudaSuccess


class _Handle:
    numbers = itertools.count(0x1000)

    def __init__(self) -> None:
        self._number = next(self.numbers)

    def __int__(self) -> int:
        return self._number


class _Stream(_Handle):
    def __init__(self) -> None:
        super().__init__()
        self.queue: list[Work] = []
        self.captured: list[Work] | None = None
        self.spoiled = False


class _Graph(_Handle):
    def __init__(self, work: list[Work]) -> None:
        super().__init__()
        self.work = work


class FakeCuda:
    """One GPU.

    Attributes:
        calls: How often each function was called.
        limit: Bytes of the GPU's memory.
    """

    cudaError_t = cudaError_t
    cudaMemcpyKind = cudaMemcpyKind
    cudaDeviceAttr = cudaDeviceAttr
    cudaStreamCaptureMode = cudaStreamCaptureMode
    cudaStreamNonBlocking = 1
    cudaHostAllocDefault = 0

    def __init__(self, *, sm: int = 87, driver: int = 12060, devices: int = 1) -> None:
        self.sm, self.driver, self.devices = sm, driver, devices
        self.limit = 1 << 30
        self.calls: dict[str, int] = {}
        self._memory: dict[int, tuple[str, Any, int]] = {}
        self._streams: dict[int, _Stream] = {}
        self._graphs: set[int] = set()

    def module(self) -> types.ModuleType:
        """It as a module; every function counts its calls."""
        made = types.ModuleType("cuda.bindings.runtime")
        for name in dir(type(self)):
            if name.startswith("cuda"):
                value = getattr(self, name)
                is_call = callable(value) and not isinstance(value, type)
                setattr(made, name, self._counted(name, value) if is_call else value)
        return made

    def _counted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            self.calls[name] = self.calls.get(name, 0) + 1
            return function(*arguments)

        return call

    # ---- for the fake TensorRT

    def enqueue(self, handle: int, work: Work) -> None:
        """Give work to a stream: run when somebody waits, or recorded."""
        stream = self._stream(handle)
        (stream.queue if stream.captured is None else stream.captured).append(work)

    def captures(self, handle: int) -> bool:
        return self._stream(handle).captured is not None

    def spoil(self, handle: int) -> None:
        """What a library does in a capture that no graph can hold."""
        self._stream(handle).spoiled = True

    def content(self, address: int, nbytes: int, kind: str) -> Any:
        """Bytes of memory of this kind."""
        for start, (what, buffer, size) in self._memory.items():
            if start <= address and address + nbytes <= start + size:
                if what != kind:
                    raise Misuse(f"{nbytes} bytes of memory of the {what}, where that of the {kind} has to be")
                return (ctypes.c_char * max(nbytes, 1)).from_buffer(buffer, address - start)
        raise Misuse(f"no memory holds {nbytes} bytes from {address} on")

    @property
    def held(self) -> dict[str, int]:
        """Bytes that are allocated, by kind."""
        found = {"device": 0, "host": 0}
        for kind, _, size in self._memory.values():
            found[kind] += size
        return found

    def _stream(self, handle: Any) -> _Stream:
        if int(handle) not in self._streams:
            raise Misuse(f"there is no stream {handle}")
        return self._streams[int(handle)]

    # ---- the real names

    def cudaGetDeviceCount(self) -> tuple[Any, ...]:
        return (OK, self.devices) if self.devices else (cudaError_t.cudaErrorInsufficientDriver, None)

    def cudaGetDevice(self) -> tuple[Any, ...]:
        return OK, 0

    def cudaDeviceGetAttribute(self, attr: cudaDeviceAttr, device: int) -> tuple[Any, ...]:
        return OK, divmod(self.sm, 10)[attr - cudaDeviceAttr.cudaDevAttrComputeCapabilityMajor]

    def cudaDriverGetVersion(self) -> tuple[Any, ...]:
        return OK, self.driver

    def cudaGetErrorString(self, error: cudaError_t) -> tuple[Any, ...]:
        return OK, error.name.encode()

    def cudaGetLastError(self) -> tuple[Any, ...]:
        return (OK,)

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:
        return self._allocate("device", size)

    def cudaHostAlloc(self, size: int, flags: int) -> tuple[Any, ...]:
        return self._allocate("host", size)

    def _allocate(self, kind: str, size: int) -> tuple[Any, ...]:
        if size < 1 or any(stream.captured is not None for stream in self._streams.values()):
            raise Misuse(f"{size} bytes are allocated" + (", in a capture" if size else ""))
        if kind == "device" and self.held["device"] + size > self.limit:
            return cudaError_t.cudaErrorMemoryAllocation, None
        buffer = ctypes.create_string_buffer(b"\xa5" * size, size)  # nothing of use
        address = ctypes.addressof(buffer)
        self._memory[address] = (kind, buffer, size)
        return OK, address

    def cudaFree(self, devPtr: int) -> tuple[Any, ...]:  # noqa: N803
        return self._let_go("device", devPtr)

    def cudaFreeHost(self, ptr: int) -> tuple[Any, ...]:
        return self._let_go("host", ptr)

    def _let_go(self, kind: str, address: int) -> tuple[Any, ...]:
        if self._memory.get(address, ("",))[0] != kind:
            raise Misuse(f"{address} is freed, and is no memory of the {kind}")
        del self._memory[address]
        return (OK,)

    def cudaMemcpy(self, dst: int, src: int, count: int, kind: cudaMemcpyKind) -> tuple[Any, ...]:
        if kind == cudaMemcpyKind.cudaMemcpyHostToDevice:
            ctypes.memmove(self.content(dst, count, "device"), src, count)
        else:
            ctypes.memmove(dst, self.content(src, count, "device"), count)
        return (OK,)

    def cudaMemcpyAsync(self, dst: int, src: int, count: int, kind: cudaMemcpyKind, stream: Any) -> tuple[Any, ...]:
        up = kind == cudaMemcpyKind.cudaMemcpyHostToDevice
        to, of = ("device", "host") if up else ("host", "device")

        def work() -> None:
            ctypes.memmove(self.content(dst, count, to), self.content(src, count, of), count)

        self.content(dst, count, to)
        self.content(src, count, of)
        self.enqueue(stream, work)
        return (OK,)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        stream = _Stream()
        self._streams[int(stream)] = stream
        return OK, stream

    def cudaStreamDestroy(self, stream: Any) -> tuple[Any, ...]:
        if self._stream(stream).queue:
            raise Misuse("a stream is destroyed that nobody has waited for")
        del self._streams[int(stream)]
        return (OK,)

    def cudaStreamSynchronize(self, stream: Any) -> tuple[Any, ...]:
        mine = self._stream(stream)
        if mine.captured is not None:
            raise Misuse("a stream is waited for in a capture")
        work, mine.queue = mine.queue, []
        for one in work:
            one()
        return (OK,)

    def cudaStreamBeginCapture(self, stream: Any, mode: cudaStreamCaptureMode) -> tuple[Any, ...]:
        mine = self._stream(stream)
        if mine.captured is not None:
            raise Misuse("a capture begins in a capture")
        mine.captured = []
        return (OK,)

    def cudaStreamEndCapture(self, stream: Any) -> tuple[Any, ...]:
        mine = self._stream(stream)
        if mine.captured is None:
            raise Misuse("a capture ends that never began")
        work, mine.captured, spoiled, mine.spoiled = mine.captured, None, mine.spoiled, False
        if spoiled:
            return cudaError_t.cudaErrorStreamCaptureInvalidated, None
        return OK, self._kept(_Graph(work))

    def cudaGraphInstantiate(self, graph: Any, flags: int) -> tuple[Any, ...]:
        self._require(graph)
        return OK, self._kept(_Graph(graph.work))

    def cudaGraphLaunch(self, graphExec: Any, stream: Any) -> tuple[Any, ...]:  # noqa: N803
        self._require(graphExec)
        for work in graphExec.work:
            self.enqueue(stream, work)
        return (OK,)

    def cudaGraphDestroy(self, graph: Any) -> tuple[Any, ...]:
        self._require(graph)
        self._graphs.discard(int(graph))
        return (OK,)

    def cudaGraphExecDestroy(self, graphExec: Any) -> tuple[Any, ...]:  # noqa: N803
        return self.cudaGraphDestroy(graphExec)

    def _kept(self, graph: _Graph) -> _Graph:
        self._graphs.add(int(graph))
        return graph

    def _require(self, graph: Any) -> None:
        if int(graph) not in self._graphs:
            raise Misuse(f"there is no graph {graph}")


def install(monkeypatch: pytest.MonkeyPatch, **gpu: int) -> FakeCuda:
    """Put it in place of the real binding."""
    made = FakeCuda(**gpu)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", made.module())
    return made
