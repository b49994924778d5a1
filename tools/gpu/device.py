"""A GPU by the CUDA driver alone: memory, a stream, graphs and events, without any CUDA package.

Kernels of a library that uses the CUDA runtime run in the same primary context.
"""

import ctypes
from collections.abc import Callable, Mapping
from ctypes import POINTER, c_char_p, c_float, c_int, c_size_t, c_ubyte, c_uint, c_uint64, c_ulonglong, c_void_p
from typing import Any

import numpy as np

from trt_compress.errors import NativeError, UnsupportedError
from trt_compress.tools.gpu.guarded import Bytes

_L2_FACTOR = 4  # this many times the level 2 cache is written to empty it
_LEAST_FLUSH_BYTES = 64 << 20
_COPY_BYTES = 256 << 20
_WARM_UP = 5
_ATTRIBUTES = {"l2_bytes": 38, "major": 75, "minor": 76, "sms": 16, "clock_khz": 13, "memory_clock_khz": 36}
_CAPTURE_THREAD_LOCAL = 1
_NON_BLOCKING = 1

# What is called of the driver, with the types of cuda.h (CUDA 12 and 13): CUdevice is an int, CUdeviceptr 64 bits,
# every other handle a pointer. Without them ctypes would pass a handle as an int of 32 bits.
SIGNATURES: Mapping[str, tuple[Any, ...]] = {
    "cuInit": (c_uint,),
    "cuDriverGetVersion": (POINTER(c_int),),
    "cuDeviceGetCount": (POINTER(c_int),),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDeviceGetName": (c_char_p, c_int, c_int),
    "cuDeviceTotalMem_v2": (POINTER(c_size_t), c_int),
    "cuDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cuDevicePrimaryCtxRetain": (POINTER(c_void_p), c_int),
    "cuCtxSetCurrent": (c_void_p,),
    "cuCtxSynchronize": (),
    "cuMemAlloc_v2": (POINTER(c_uint64), c_size_t),
    "cuMemFree_v2": (c_uint64,),
    "cuMemcpyHtoD_v2": (c_uint64, c_void_p, c_size_t),
    "cuMemcpyDtoH_v2": (c_void_p, c_uint64, c_size_t),
    "cuMemsetD8_v2": (c_uint64, c_ubyte, c_size_t),
    "cuMemsetD8Async": (c_uint64, c_ubyte, c_size_t, c_void_p),
    "cuMemcpyDtoDAsync_v2": (c_uint64, c_uint64, c_size_t, c_void_p),
    "cuStreamCreate": (POINTER(c_void_p), c_uint),
    "cuStreamSynchronize": (c_void_p,),
    "cuStreamBeginCapture_v2": (c_void_p, c_int),
    "cuStreamEndCapture": (c_void_p, POINTER(c_void_p)),
    "cuGraphInstantiateWithFlags": (POINTER(c_void_p), c_void_p, c_ulonglong),
    "cuGraphLaunch": (c_void_p, c_void_p),
    "cuGraphDestroy": (c_void_p,),
    "cuGraphExecDestroy": (c_void_p,),
    "cuEventCreate": (POINTER(c_void_p), c_uint),
    "cuEventDestroy_v2": (c_void_p,),
    "cuEventRecord": (c_void_p, c_void_p),
    "cuEventSynchronize": (c_void_p,),
    "cuEventElapsedTime": (POINTER(c_float), c_void_p, c_void_p),
    "cuGetErrorString": (c_int, POINTER(c_char_p)),
}
DRIVER = "libcuda.so.1"


def load_driver(name: str) -> ctypes.CDLL:
    """The driver's library with the types of all that is called.

    Raises:
        UnsupportedError: It is not there, or is older than CUDA 12.
    """
    try:
        library = ctypes.CDLL(name)
    except OSError:
        raise UnsupportedError("there is no NVIDIA driver (libcuda.so.1)") from None
    for function, types in SIGNATURES.items():
        try:
            found = getattr(library, function)
        except AttributeError:
            raise UnsupportedError(f"the NVIDIA driver has no {function}: it is older than CUDA 12") from None
        found.argtypes, found.restype = types, c_int
    return library


class CudaDevice:
    """The first GPU that the driver shows (`CUDA_VISIBLE_DEVICES` chooses)."""

    can_capture = True

    def __init__(self) -> None:
        """Open it.

        Raises:
            UnsupportedError: There is no driver, or no GPU.
        """
        self._cuda = load_driver(DRIVER)
        count = ctypes.c_int()
        if self._cuda.cuInit(0) or self._cuda.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
            raise UnsupportedError("the NVIDIA driver shows no GPU")
        self._device = ctypes.c_int()
        self._must("cuDeviceGet", ctypes.byref(self._device), 0)
        context = ctypes.c_void_p()
        self._must("cuDevicePrimaryCtxRetain", ctypes.byref(context), self._device)
        self._must("cuCtxSetCurrent", context)
        stream = ctypes.c_void_p()
        self._must("cuStreamCreate", ctypes.byref(stream), _NON_BLOCKING)  # it does not wait for the default stream
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
        self._must("cuMemAlloc_v2", ctypes.byref(pointer), max(num_bytes, 1))
        return pointer.value

    def free(self, pointer: int) -> None:
        """Give it back. After a kernel's fault the context is lost, and with it the memory: that is no second error."""
        self._cuda.cuMemFree_v2(pointer)

    def write(self, pointer: int, data: Bytes) -> None:
        """Copy to the device."""
        if data.size:
            flat = np.ascontiguousarray(data)
            self._must("cuMemcpyHtoD_v2", pointer, flat.ctypes.data, flat.nbytes)
            self._must("cuCtxSynchronize")

    def read(self, pointer: int, num_bytes: int) -> Bytes:
        """Copy from the device."""
        data = np.empty(num_bytes, dtype=np.uint8)
        if num_bytes:
            self._must("cuMemcpyDtoH_v2", data.ctypes.data, pointer, num_bytes)
        return data

    def fill(self, pointer: int, value: int, num_bytes: int) -> None:
        """Set every byte, and wait: the stream does not."""
        if num_bytes:
            self._must("cuMemsetD8_v2", pointer, value, num_bytes)
            self._must("cuCtxSynchronize")

    def synchronize(self) -> None:
        """Wait for the stream."""
        self._must("cuStreamSynchronize", self.stream)

    def before_run(self, number: int) -> None:
        """A GPU takes its own order."""

    def captured(self, call: Callable[[], None]) -> "CapturedGraph":
        """`call` captured in a CUDA graph; what comes back launches it when it is called."""
        graph, executable = ctypes.c_void_p(), ctypes.c_void_p()
        self._must("cuStreamBeginCapture_v2", self.stream, _CAPTURE_THREAD_LOCAL)
        try:
            call()
        except BaseException:
            # The capture has to end; what went wrong in it is said by the error that is on its way.
            if not self._cuda.cuStreamEndCapture(self.stream, ctypes.byref(graph)):
                self._cuda.cuGraphDestroy(graph)
            raise
        self._must("cuStreamEndCapture", self.stream, ctypes.byref(graph))
        try:
            self._must("cuGraphInstantiateWithFlags", ctypes.byref(executable), graph, 0)
        finally:
            self._cuda.cuGraphDestroy(graph)
        return CapturedGraph(self, executable)

    def latencies_us(self, call: Callable[[], None], repeats: int) -> list[float]:
        """Times by events around a captured graph; the level 2 cache is overwritten before each.

        That also keeps the GPU busy while the host submits, so that no time of the host is measured.
        """
        launch = self.captured(call)
        events = [ctypes.c_void_p(), ctypes.c_void_p()]
        for event in events:
            self._must("cuEventCreate", ctypes.byref(event), 0)
        if self._flush is None:
            num_bytes = max(_L2_FACTOR * self._attribute("l2_bytes"), _LEAST_FLUSH_BYTES)
            self._flush = (self.allocate(num_bytes), num_bytes)
        times = []
        try:
            for number in range(_WARM_UP + repeats):
                self._must("cuMemsetD8Async", self._flush[0], number % 256, self._flush[1], self.stream)
                self._must("cuEventRecord", events[0], self.stream)
                launch()
                self._must("cuEventRecord", events[1], self.stream)
                self._must("cuEventSynchronize", events[1])
                milliseconds = ctypes.c_float()
                self._must("cuEventElapsedTime", ctypes.byref(milliseconds), *events)
                if number >= _WARM_UP:
                    times.append(1000.0 * milliseconds.value)
        finally:
            launch.close()
            for event in events:
                self._cuda.cuEventDestroy_v2(event)
        return times

    def copy_bytes_per_second(self, repeats: int = 30) -> float:
        """Bytes read and written in a second by the driver's own copy from memory to memory: the yardstick."""
        num_bytes = _COPY_BYTES
        a, b = self.allocate(num_bytes), self.allocate(num_bytes)
        self.fill(a, 1, num_bytes)

        def copy() -> None:
            self._must("cuMemcpyDtoDAsync_v2", b, a, num_bytes, self.stream)

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
            raise NativeError(f"{function}: {text.value.decode() if text.value else status}.")


class CapturedGraph:
    """A call captured in a CUDA graph."""

    def __init__(self, device: CudaDevice, executable: ctypes.c_void_p) -> None:
        self._device = device
        self._executable = executable

    def __call__(self) -> None:
        """Launch it on the device's stream."""
        self._device._must("cuGraphLaunch", self._executable, self._device.stream)

    def close(self) -> None:
        """Give it back."""
        self._device._cuda.cuGraphExecDestroy(self._executable)
