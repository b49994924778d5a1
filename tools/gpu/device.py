"""The GPU as gpu-check uses it: memory by address, captured graphs and times, all of them torch's."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trt_compress.errors import NativeError
from trt_compress.tools.gpu.guarded import Bytes
from trt_compress.tools.gpu.timing import CudaClock


class TorchMemory:
    """Memory of a torch device by its addresses, as the kernels' C interface takes it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._held: dict[int, Tensor] = {}

    def allocate(self, num_bytes: int) -> int:
        """Memory on the device: its address."""
        with _said():
            memory = torch.empty(max(num_bytes, 1), dtype=torch.uint8, device=self.device)
        self._held[memory.data_ptr()] = memory
        return memory.data_ptr()

    def free(self, pointer: int) -> None:
        """Give it back."""
        del self._held[pointer]

    def write(self, pointer: int, data: Bytes) -> None:
        """Copy to the device."""
        with _said():
            self._view(pointer, data.size).copy_(torch.from_numpy(np.array(data).reshape(-1)))

    def read(self, pointer: int, num_bytes: int) -> Bytes:
        """Copy from the device."""
        with _said():
            return np.array(self._view(pointer, num_bytes).cpu().numpy())

    def fill(self, pointer: int, value: int, num_bytes: int) -> None:
        """Set every byte."""
        with _said():
            self._view(pointer, num_bytes).fill_(value)

    def _view(self, pointer: int, num_bytes: int) -> Tensor:
        for start, memory in self._held.items():
            if start <= pointer and pointer + num_bytes <= start + memory.numel():
                return memory[pointer - start : pointer - start + num_bytes]
        raise NativeError(f"{num_bytes} bytes at {pointer:#x} lie in nothing that was allocated.")


class CudaDevice(TorchMemory):
    """The first GPU that the driver shows (`CUDA_VISIBLE_DEVICES` chooses).

    Raises:
        UnsupportedError: torch sees no GPU.
    """

    can_capture = True

    def __init__(self) -> None:
        self.clock = CudaClock("gpu-check")
        super().__init__(self.clock.device)
        cuda: Any = torch.cuda  # its streams have no types
        cuda.set_stream(cuda.Stream())  # one that does not wait for the default stream

    @property
    def stream(self) -> int:
        """The stream that torch works on now: its own in a capture, else the one of this device."""
        return int(torch.cuda.current_stream().cuda_stream)

    def synchronize(self) -> None:
        """Wait for the GPU."""
        with _said():
            torch.cuda.synchronize()

    def before_run(self, number: int) -> None:
        """A GPU takes its own order."""

    def captured(self, call: Callable[[], object]) -> "CapturedGraph":
        """`call` captured in a CUDA graph; what comes back launches it when it is called."""
        graph = torch.cuda.CUDAGraph()
        with _said(), torch.cuda.graph(graph, capture_error_mode="thread_local"):
            call()
        return CapturedGraph(graph)

    def latencies_us(self, call: Callable[[], object], repeats: int) -> list[float]:
        """Times by the clock of the benchmarks."""
        with _said():
            return self.clock.in_turns({"": self.clock.side(call)}, repeats, math.inf)[""]


@dataclass(frozen=True, slots=True)
class CapturedGraph:
    """A call captured in a CUDA graph."""

    graph: torch.cuda.CUDAGraph

    def __call__(self) -> None:
        """Launch it on the current stream."""
        with _said():
            self.graph.replay()

    def close(self) -> None:
        """Give it back."""
        self.graph.reset()


@contextmanager
def _said() -> Iterator[None]:
    """What torch raises for CUDA, as our error with its first line; after a kernel's fault each call raises one."""
    try:
        yield
    except RuntimeError as error:
        raise NativeError(f"{str(error).splitlines()[0].rstrip('.')}.") from None
