"""Host memory as a device, for kernels that run in the emulation."""

import ctypes
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from trt_compress.errors import PluginError
from trt_compress.tools.gpu.guarded import Bytes

# Ascending, descending, and a permutation: a missing barrier gives other bits.
ORDERS = ((0, 0), (1, 0), (2, 7))


class HostDevice:
    """Each run of a case takes another order of threads and blocks."""

    stream: int | None = None

    def __init__(self, library: Path, *, captures: bool = False) -> None:
        self.can_capture = captures
        self._library = ctypes.CDLL(str(library))
        self._library.trtcEmulationFault.restype = ctypes.c_char_p
        self._library.trtcEmulationEndCapture.restype = ctypes.c_void_p
        self._library.trtcEmulationReplay.argtypes = self._library.trtcEmulationForget.argtypes = (ctypes.c_void_p,)
        self._held: dict[int, Any] = {}

    def allocate(self, num_bytes: int) -> int:
        # 256 bytes are what cudaMalloc aligns to; vector accesses count on it.
        buffer = ctypes.create_string_buffer(num_bytes + 256)
        pointer = (ctypes.addressof(buffer) + 255) // 256 * 256
        self._held[pointer] = buffer
        return pointer

    def free(self, pointer: int) -> None:
        del self._held[pointer]

    def write(self, pointer: int, data: Bytes) -> None:
        ctypes.memmove(pointer, np.ascontiguousarray(data).ctypes.data, data.nbytes)

    def read(self, pointer: int, num_bytes: int) -> Bytes:
        return np.frombuffer(ctypes.string_at(pointer, num_bytes), dtype=np.uint8).copy()

    def fill(self, pointer: int, value: int, num_bytes: int) -> None:
        ctypes.memset(pointer, value, num_bytes)

    def synchronize(self) -> None:
        fault = self._library.trtcEmulationFault().decode()
        if fault:
            self._library.trtcEmulationClearFault()
            raise PluginError(fault)

    def before_run(self, number: int) -> None:
        order, seed = ORDERS[number]
        self._library.trtcEmulationSetOrder(ctypes.c_int(order), ctypes.c_uint64(seed))

    def captured(self, call: Callable[[], object]) -> "Recorded":
        self._library.trtcEmulationBeginCapture()
        call()
        return Recorded(self._library, self._library.trtcEmulationEndCapture())

    def latencies_us(self, call: Callable[[], object], repeats: int) -> list[float]:
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            call()
            times.append(1e6 * (time.perf_counter() - start))
        return times


class Recorded:
    """What was launched in a capture; each call launches it again."""

    def __init__(self, library: ctypes.CDLL, recording: int) -> None:
        self._library, self._recording = library, recording

    def __call__(self) -> None:
        assert self._library.trtcEmulationReplay(self._recording) == 0

    def close(self) -> None:
        self._library.trtcEmulationForget(self._recording)
