"""A GPU's memory, stream and graphs, by NVIDIA's own binding of the CUDA runtime (`cuda.bindings`).

Memory goes back when nobody holds it any more. A stream of this module waits for no other, so whoever hands memory from
one to another waits for the first to be through.
"""

import ctypes
import importlib
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from trt_compress.errors import UnsupportedError
from trt_compress.memory import format_bytes
from trt_compress.runtime.backends.base import carrier

Array = np.ndarray[Any, np.dtype[Any]]

INSTALL = 'pip install "trt-compress[cuda]"'


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """The GPU that is used.

    Attributes:
        sm: Its compute capability times ten: 87, 90, …
        driver: The CUDA version that its driver knows: "13.0".
    """

    sm: int
    driver: str


class CudaMemory:
    """Bytes of the GPU, or of the host where the GPU reads and writes them itself.

    Attributes:
        address: Where they begin.
    """

    def __init__(self, address: int, free: Callable[[int], object]) -> None:
        self.address = address
        weakref.finalize(self, free, address)


class CudaGraph:
    """Work of a stream that was recorded, and is launched as one."""

    def __init__(self, launchable: Any, destroy: Callable[[Any], object]) -> None:
        self.launchable = launchable
        weakref.finalize(self, destroy, launchable)


class Cuda:
    """The CUDA runtime, with one stream.

    Attributes:
        gpu: The GPU that it uses, the first of those that CUDA shows.
        stream: The stream's handle, as TensorRT takes it.

    Raises:
        UnsupportedError: The binding is not installed, or there is no GPU, or no driver for this binding.
    """

    def __init__(self) -> None:
        try:
            self._api: Any = importlib.import_module("cuda.bindings.runtime")
        except (ImportError, OSError, RuntimeError) as error:
            raise UnsupportedError(f"Running an engine needs 'cuda-bindings', and {error}; {INSTALL}.") from None
        self.gpu = self._find_gpu()
        self._stream = self._do("cudaStreamCreateWithFlags", self._api.cudaStreamNonBlocking)
        self.stream = int(self._stream)
        weakref.finalize(self, self._api.cudaStreamDestroy, self._stream)

    def _find_gpu(self) -> Gpu:
        error, count = self._api.cudaGetDeviceCount()
        if error != self._api.cudaError_t.cudaSuccess or not count:
            said = self._said(error) if error != self._api.cudaError_t.cudaSuccess else "it shows none"
            raise UnsupportedError(
                f"Running an engine needs an NVIDIA GPU and its driver, and CUDA finds none ({said}); run it on the "
                "device, or choose the backend 'ort-cpu'."
            )
        attribute = self._api.cudaDeviceAttr
        device = self._do("cudaGetDevice")
        major, minor = (
            self._do("cudaDeviceGetAttribute", part, device)
            for part in (attribute.cudaDevAttrComputeCapabilityMajor, attribute.cudaDevAttrComputeCapabilityMinor)
        )
        driver = self._do("cudaDriverGetVersion")
        return Gpu(sm=10 * major + minor, driver=f"{driver // 1000}.{driver % 1000 // 10}")

    def memory(self, nbytes: int) -> CudaMemory:
        """Memory of the GPU, at least a byte of it, so that it has an address.

        Raises:
            UnsupportedError: There is not so much.
        """
        return self._allocated("cudaMalloc", self._api.cudaFree, nbytes)

    def pinned(self, shape: tuple[int, ...], dtype: str) -> tuple[CudaMemory, Array]:
        """Memory of the host that the GPU copies from and to by itself, and an array in it.

        The array does not hold the memory; keep both.

        Raises:
            UnsupportedError: There is not so much.
        """
        holds = carrier(dtype)
        nbytes = int(np.prod(shape, dtype=np.int64)) * holds.itemsize
        memory = self._allocated("cudaHostAlloc", self._api.cudaFreeHost, nbytes, self._api.cudaHostAllocDefault)
        content = memoryview((ctypes.c_char * nbytes).from_address(memory.address)).cast("B")
        return memory, np.frombuffer(content, holds).reshape(shape)

    def write(self, address: int, content: Array) -> None:
        """Copy an array to the GPU, and wait for it."""
        content = np.ascontiguousarray(content)
        kind = self._api.cudaMemcpyKind.cudaMemcpyHostToDevice
        if content.nbytes:
            self._do("cudaMemcpy", address, content.ctypes.data, content.nbytes, kind)

    def read(self, address: int, into: Array) -> None:
        """Copy from the GPU into an array, and wait for it."""
        if into.nbytes:
            self._do(
                "cudaMemcpy", into.ctypes.data, address, into.nbytes, self._api.cudaMemcpyKind.cudaMemcpyDeviceToHost
            )

    def send(self, device: int, host: int, nbytes: int) -> None:
        """Let the stream copy from pinned memory to the GPU."""
        if nbytes:
            kind = self._api.cudaMemcpyKind.cudaMemcpyHostToDevice
            self._do("cudaMemcpyAsync", device, host, nbytes, kind, self._stream)

    def fetch(self, host: int, device: int, nbytes: int) -> None:
        """Let the stream copy from the GPU to pinned memory."""
        if nbytes:
            kind = self._api.cudaMemcpyKind.cudaMemcpyDeviceToHost
            self._do("cudaMemcpyAsync", host, device, nbytes, kind, self._stream)

    def wait(self) -> None:
        """Wait until the stream is through.

        Raises:
            UnsupportedError: Something in it failed.
        """
        self._do("cudaStreamSynchronize", self._stream)

    def capture(self, work: Callable[[], None]) -> CudaGraph:
        """Record what `work` gives to the stream; nothing of it runs.

        Raises:
            UnsupportedError: `work` raised it, or it cannot be recorded. The stream is as before.
        """
        api = self._api
        self._do("cudaStreamBeginCapture", self._stream, api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
        try:
            work()
        except BaseException:
            _, graph = api.cudaStreamEndCapture(self._stream)
            if graph is not None and int(graph):
                api.cudaGraphDestroy(graph)
            api.cudaGetLastError()  # a capture that failed is no failure of what comes next
            raise
        try:
            graph = self._do("cudaStreamEndCapture", self._stream)
            try:
                launchable = self._do("cudaGraphInstantiate", graph, 0)
            finally:
                api.cudaGraphDestroy(graph)
        except UnsupportedError:
            api.cudaGetLastError()
            raise
        return CudaGraph(launchable, api.cudaGraphExecDestroy)

    def launch(self, captured: CudaGraph) -> None:
        """Let the stream run what was recorded."""
        self._do("cudaGraphLaunch", captured.launchable, self._stream)

    def _allocated(self, name: str, free: Callable[[int], object], nbytes: int, *more: int) -> CudaMemory:
        result = getattr(self._api, name)(max(nbytes, 1), *more)
        if result[0] == self._api.cudaError_t.cudaErrorMemoryAllocation:
            self._api.cudaGetLastError()
            where = "The GPU" if name == "cudaMalloc" else "The host"
            raise UnsupportedError(
                f"{where} has no {format_bytes(nbytes)} of memory left for the engine; run a smaller batch or fewer "
                "sequences, or close what else uses it."
            )
        if result[0] != self._api.cudaError_t.cudaSuccess:
            raise self._failed(name, result[0])
        return CudaMemory(int(result[1]), free)

    def _do(self, name: str, *arguments: Any) -> Any:
        """Call a function of the runtime, and return what it gives beside its code."""
        error, *given = getattr(self._api, name)(*arguments)
        if error != self._api.cudaError_t.cudaSuccess:
            raise self._failed(name, error)
        return given[0] if given else None

    def _failed(self, name: str, error: Any) -> UnsupportedError:
        return UnsupportedError(f"CUDA failed in {name}: {self._said(error)}.")

    def _said(self, error: Any) -> str:
        _, text = self._api.cudaGetErrorString(error)
        return text.decode(errors="replace") if isinstance(text, bytes) else str(text)
