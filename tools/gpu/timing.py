"""Time GPU work honestly: captured in CUDA graphs, cold level 2 cache, events, sides in turns; and records that last.

Nothing here asks for a GPU at import. The host clock does the same on a CPU, for rehearsals.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from trt_compress.errors import UnsupportedError
from trt_compress.plugins.library import source_hash
from trt_compress.runtime.measure.latency import speedup
from trt_compress.tools.bench.records import measured_with, write_line
from trt_compress.tools.machine import command_output

RESULT_VERSION = "1.0"
WARM_UP = 3
L2_FACTOR = 4  # this many times the level 2 cache is read to empty it
LEAST_FLUSH_BYTES = 64 << 20
COPY_BYTES = 512 << 20  # of the large copy, read and written together 1 GiB
_NVIDIA_SMI = ("clocks.sm", "clocks.mem", "clocks.max.sm", "temperature.gpu", "power.draw", "pstate", "driver_version")

_REHEARSE = "go through all of it on the CPU with tiny sizes by --dry-run"
WITHOUT = {
    "gpu-check": "test the kernels' logic without: make test PYTEST_ARGS=tests/native",
    "gpu_kernels": _REHEARSE,
    "gpu_end_to_end": _REHEARSE,
}
"""What can be done without a GPU, by who needs one."""

Call = Callable[[], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """Something to time. `note` says how it runs where that is not as asked: not captured, and why."""

    call: Call
    note: str = ""


class DeviceClock(Protocol):
    """Where and how time is taken."""

    device: torch.device

    def side(self, call: Call, *, capture: bool = True) -> Timed:
        """`call` ready to be timed."""
        ...

    def in_turns(self, sides: Mapping[str, Timed], rounds: int, deadline: float) -> dict[str, list[float]]:
        """Microseconds of each side, one of each in every round; fewer rounds if time runs out."""
        ...

    def facts(self) -> dict[str, Any]:
        """The device, as a record tells it."""
        ...


class CudaClock:
    """Events around replays on the GPU. Before each the level 2 cache is filled by reading, so nothing is written back.

    That reading also keeps the GPU busy while the host submits, so that no time of the host is measured.

    Raises:
        UnsupportedError: torch sees no GPU.
    """

    def __init__(self, who: str) -> None:
        if not torch.cuda.is_available():
            raise UnsupportedError(
                f"{who} needs an NVIDIA GPU, and torch {torch.__version__} sees none here; run it on a machine with "
                f"one, or {WITHOUT[who]}."
            )
        self.device = torch.device("cuda", torch.cuda.current_device())
        self.properties = torch.cuda.get_device_properties(self.device)

    @cached_property
    def _flush(self) -> torch.Tensor:
        num_bytes = max(L2_FACTOR * int(self.properties.L2_cache_size), LEAST_FLUSH_BYTES)
        return torch.ones(num_bytes // 4, dtype=torch.int32, device=self.device)

    def side(self, call: Call, *, capture: bool = True) -> Timed:
        """Warmed up, and captured in a CUDA graph if asked; what refuses to be captured runs as it is, and is noted."""
        cuda: Any = torch.cuda  # its streams and events have no types
        stream = cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                call()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        if not capture:
            return Timed(call=call, note="not captured: host time between its launches counts")
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                call()
        except RuntimeError as error:
            torch.cuda.synchronize()
            return Timed(call=call, note=f"not captured: {str(error).splitlines()[0]}")
        return Timed(call=graph.replay)

    def in_turns(self, sides: Mapping[str, Timed], rounds: int, deadline: float) -> dict[str, list[float]]:
        """As the protocol says; the first two rounds are not counted."""
        cuda: Any = torch.cuda
        found: dict[str, list[float]] = {name: [] for name in sides}
        for number in range(2 + rounds):
            if number > 2 and time.monotonic() > deadline:
                break
            events = {}
            for name, side in sides.items():
                start, end = (cuda.Event(enable_timing=True) for _ in range(2))
                self._flush.sum()
                start.record()
                side.call()
                end.record()
                events[name] = (start, end)
            torch.cuda.synchronize()
            if number >= 2:
                for name, (start, end) in events.items():
                    found[name].append(1000.0 * start.elapsed_time(end))
        return found

    def facts(self) -> dict[str, Any]:
        """Name, SM and memory from torch; clocks, temperature and driver as nvidia-smi has them now."""
        properties = self.properties
        query = f"--query-gpu={','.join(_NVIDIA_SMI)}"
        told = command_output("nvidia-smi", query, "--format=csv,noheader,nounits", "-i", str(self.device.index))
        values = [value.strip() for value in told.split(",")] if told else []
        return {
            "name": properties.name,
            "sm": 10 * properties.major + properties.minor,
            "multiprocessors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
            "l2_bytes": properties.L2_cache_size,
            "cuda": torch.version.cuda,
            "now": dict(zip(_NVIDIA_SMI, values, strict=False)),
        }


class HostClock:
    """The same on the CPU, for a rehearsal: its times say nothing of a GPU."""

    device = torch.device("cpu")

    def side(self, call: Call, *, capture: bool = True) -> Timed:
        """As it is, run once."""
        call()
        return Timed(call=call, note="rehearsal on the CPU")

    def in_turns(self, sides: Mapping[str, Timed], rounds: int, deadline: float) -> dict[str, list[float]]:
        """By the host's clock."""
        found: dict[str, list[float]] = {name: [] for name in sides}
        for number in range(rounds):
            if number and time.monotonic() > deadline:
                break
            for name, side in sides.items():
                start = time.perf_counter()
                side.call()
                found[name].append(1e6 * (time.perf_counter() - start))
        return found

    def facts(self) -> dict[str, Any]:
        """What the rehearsal ran on."""
        return {"name": "rehearsal on the CPU", "sm": 0, "multiprocessors": 1, "now": {}}


def copy_bytes_per_s(clock: DeviceClock, deadline: float, num_bytes: int = COPY_BYTES, rounds: int = 20) -> float:
    """Bytes read and written in a second by a large copy in the device's memory, the faster of two: the yardstick."""
    source = torch.ones(num_bytes // 4, dtype=torch.int32, device=clock.device)
    target = torch.empty_like(source)
    sides = {
        "copy": clock.side(lambda: target.copy_(source)),
        "kernel": clock.side(lambda: torch.neg(source, out=target)),
    }
    times = clock.in_turns(sides, rounds, deadline)
    return 2.0 * num_bytes / (min(float(np.median(values)) for values in times.values()) * 1e-6)


def summary(times: Sequence[float]) -> dict[str, float]:
    """Median, spread and number of times in microseconds."""
    values = np.asarray(times)
    low, high = np.percentile(values, [25, 75])
    return {
        "median_us": round(float(np.median(values)), 3),
        "min_us": round(float(values.min()), 3),
        "quartiles_us": [round(float(low), 3), round(float(high), 3)],  # type: ignore[dict-item]
        "n": len(values),
    }


def ratio(of: Sequence[float], to: Sequence[float]) -> dict[str, Any]:
    """Median of `of` / `to` over the rounds, with its 95 % interval."""
    nanoseconds = [[max(round(1000 * value), 1) for value in values] for values in (to, of)]
    found = speedup(*nanoseconds)
    return {
        "median": round(found.median, 4),
        "interval": [round(found.low, 4), round(found.high, 4)] if found.low and found.high else None,
        "n": found.n,
    }


def run_record(benchmark: str, clock: DeviceClock, *, commit: str | None, dry_run: bool) -> dict[str, Any]:
    """What every line of a run was measured with."""
    return {
        **measured_with(benchmark, commit=commit),
        "result_version": RESULT_VERSION,
        "kernels": source_hash("cuda"),
        "dry_run": dry_run,
        "gpu": clock.facts(),
        "torch": torch.__version__,  # with its CUDA, which a package's version may leave out
    }


@dataclass(slots=True)
class Recorder:
    """Writes a line of JSON as soon as there is one, so that a run that is ended keeps what it had."""

    path: Path
    run: Mapping[str, Any]
    lines: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        write_line(self.path, {**self.run, "case": "run"})

    def add(self, line: Mapping[str, Any]) -> None:
        """One result; it carries what identifies the run."""
        keys = ("benchmark", "result_version", "date", "commit", "kernels", "dry_run")
        gpu = {key: self.run["gpu"].get(key) for key in ("name", "sm")}
        full = {**{key: self.run[key] for key in keys}, "gpu": gpu, **line}
        self.lines.append(full)
        write_line(self.path, full)
