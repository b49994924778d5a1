"""A GPU by the CUDA driver alone: memory, a stream, graphs and events, without any CUDA package.

Kernels of a library that uses the CUDA runtime run in the same primary context.
"""

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np

from trt_compress.errors import PluginError, UnsupportedError
from trt_compress.tools.gpu_check_kernels import Bytes

_L2_FACTOR = 4  # this many times the level 2 cache is written to empty it
_LEAST_FLUSH_BYTES = 64 << 20
_COPY_BYTES = 256 << 20
_WARM_UP = 5
_ATTRIBUTES = {"l2_bytes": 38, "major": 75, "minor": 76, "sms": 16, "clock_khz": 13, "memory_clock_khz": 36}
_CAPTURE_THREAD_LOCAL = 1


class CudaDevice:
    """The first GPU that the driver shows (`CUDA_VISIBLE_DEVICES` chooses)."""

    can_capture = True

    def __init__(self) -> None:
        """Open it.

        Raises:
            UnsupportedError: There is no driver, or no GPU.
        """
        try:
            self._cuda = ctypes.CDLL("libcuda.so.1")
        except OSError:
            raise UnsupportedError("there is no NVIDIA driver (libcuda.so.1)") from None
        count = ctypes.c_int()
        if self._cuda.cuInit(0) or self._cuda.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
            raise UnsupportedError("the NVIDIA driver shows no GPU")
        self._device = ctypes.c_int()
        self._must("cuDeviceGet", ctypes.byref(self._device), 0)
        context = ctypes.c_void_p()
        self._must("cuDevicePrimaryCtxRetain", ctypes.byref(context), self._device)
        self._must("cuCtxSetCurrent", context)
        stream = ctypes.c_void_p()
        self._must("cuStreamCreate", ctypes.byref(stream), 1)  # it does not wait for the default stream
        self.stream = stream.value
        self._flush: tuple[int, int] | None = None

    def facts(self) -> dict[str, Any]:
        """What a record says of the device."""
        name = ctypes.create_string_buffer(256)
        self._must("cuDeviceGetName", name, 256, self._device)
        driver = ctypes.c_int()
        self._must("cuDriverGetVersion", ctypes.byref(driver))
        memory = ctypes.c_size_t()
        self._must("cuDeviceTotalMem_v2", ctypes.byref(memory), self._device)
        return {
            "name": name.value.decode(),
            "sm": self.sm,
            "multiprocessors": self._attribute("sms"),
            "memory_bytes": memory.value,
            "l2_bytes": self._attribute("l2_bytes"),
            "clock_mhz": self._attribute("clock_khz") // 1000,
            "memory_clock_mhz": self._attribute("memory_clock_khz") // 1000,
            "cuda_driver": f"{driver.value // 1000}.{driver.value % 1000 // 10}",
        }

    @property
    def sm(self) -> int:
        """87, 90, …"""
        return 10 * self._attribute("major") + self._attribute("minor")

    def allocate(self, num_bytes: int) -> int:
        """Memory on the device."""
        pointer = ctypes.c_uint64()
        self._must("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(max(num_bytes, 1)))
        return pointer.value

    def free(self, pointer: int) -> None:
        """Give it back. After a kernel's fault the context is lost, and with it the memory: that is no second error."""
        self._cuda.cuMemFree_v2(ctypes.c_uint64(pointer))

    def write(self, pointer: int, data: Bytes) -> None:
        """Copy to the device."""
        if data.size:
            flat = np.ascontiguousarray(data)
            self._must(
                "cuMemcpyHtoD_v2", ctypes.c_uint64(pointer), flat.ctypes.data_as(ctypes.c_void_p), _size(flat.nbytes)
            )
            self._must("cuCtxSynchronize")

    def read(self, pointer: int, num_bytes: int) -> Bytes:
        """Copy from the device."""
        data = np.empty(num_bytes, dtype=np.uint8)
        if num_bytes:
            self._must(
                "cuMemcpyDtoH_v2", data.ctypes.data_as(ctypes.c_void_p), ctypes.c_uint64(pointer), _size(num_bytes)
            )
        return data

    def fill(self, pointer: int, value: int, num_bytes: int) -> None:
        """Set every byte, and wait: the stream does not."""
        if num_bytes:
            self._must("cuMemsetD8_v2", ctypes.c_uint64(pointer), ctypes.c_ubyte(value), _size(num_bytes))
            self._must("cuCtxSynchronize")

    def synchronize(self) -> None:
        """Wait for the stream."""
        self._must("cuStreamSynchronize", ctypes.c_void_p(self.stream))

    def before_run(self, number: int) -> None:
        """A GPU takes its own order."""

    def captured(self, call: Callable[[], None]) -> Callable[[], None]:
        """`call` captured in a CUDA graph; what comes back launches it."""
        stream, graph, executable = ctypes.c_void_p(self.stream), ctypes.c_void_p(), ctypes.c_void_p()
        self._must("cuStreamBeginCapture_v2", stream, _CAPTURE_THREAD_LOCAL)
        try:
            call()
        finally:
            self._must("cuStreamEndCapture", stream, ctypes.byref(graph))
        self._must("cuGraphInstantiateWithFlags", ctypes.byref(executable), graph, ctypes.c_ulonglong(0))
        return lambda: self._must("cuGraphLaunch", executable, stream)

    def latencies_us(self, call: Callable[[], None], repeats: int) -> list[float]:
        """Times by events around a captured graph; the level 2 cache is overwritten before each.

        That also keeps the GPU busy while the host submits, so that no time of the host is measured.
        """
        launch = self.captured(call)
        stream = ctypes.c_void_p(self.stream)
        start, end = ctypes.c_void_p(), ctypes.c_void_p()
        for event in (start, end):
            self._must("cuEventCreate", ctypes.byref(event), 0)
        if self._flush is None:
            num_bytes = max(_L2_FACTOR * self._attribute("l2_bytes"), _LEAST_FLUSH_BYTES)
            self._flush = (self.allocate(num_bytes), num_bytes)
        times = []
        for number in range(_WARM_UP + repeats):
            pointer, num_bytes = self._flush
            self._must(
                "cuMemsetD8Async", ctypes.c_uint64(pointer), ctypes.c_ubyte(number % 256), _size(num_bytes), stream
            )
            self._must("cuEventRecord", start, stream)
            launch()
            self._must("cuEventRecord", end, stream)
            self._must("cuEventSynchronize", end)
            milliseconds = ctypes.c_float()
            self._must("cuEventElapsedTime", ctypes.byref(milliseconds), start, end)
            if number >= _WARM_UP:
                times.append(1000.0 * milliseconds.value)
        return times

    def copy_bytes_per_second(self, repeats: int = 30) -> float:
        """Bytes read and written in a second by the driver's own copy from memory to memory: the yardstick."""
        num_bytes = _COPY_BYTES
        a, b = self.allocate(num_bytes), self.allocate(num_bytes)
        self.fill(a, 1, num_bytes)
        stream = ctypes.c_void_p(self.stream)

        def copy() -> None:
            self._must("cuMemcpyDtoDAsync_v2", ctypes.c_uint64(b), ctypes.c_uint64(a), _size(num_bytes), stream)

        times = self.latencies_us(copy, repeats)
        self.free(a)
        self.free(b)
        return 2.0 * num_bytes / (float(np.median(times)) * 1e-6)

    def _attribute(self, name: str) -> int:
        value = ctypes.c_int()
        self._must("cuDeviceGetAttribute", ctypes.byref(value), _ATTRIBUTES[name], self._device)
        return value.value

    def _must(self, function: str, *arguments: Any) -> None:
        status = getattr(self._cuda, function)(*arguments)
        if status:
            text = ctypes.c_char_p()
            self._cuda.cuGetErrorString(status, ctypes.byref(text))
            raise PluginError(f"{function}: {text.value.decode() if text.value else status}.")


def _size(value: int) -> ctypes.c_size_t:
    return ctypes.c_size_t(value)
