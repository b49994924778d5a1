"""Times ONNX files in turns in a process that holds nothing else: no torch, no other pool of threads.

What was imported, traced and profiled before would be timed too: pools that spin, a heap in pieces. It is
started with a request on standard input; the latencies go to standard output.
"""

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from trt_compress.children import PIPE, run_python
from trt_compress.errors import InternalError
from trt_compress.plugins.library import Library, require
from trt_compress.runtime.backends.ort import register_native
from trt_compress.strays import temporary_folder
from trt_compress.tools.bench.core_distance import NEAR_NS, core_distance

_SEED = 0
_REST_S = 0.02  # until the pool's threads no longer wait in a busy loop, which would take a core from the measurement


@dataclass(frozen=True, slots=True, kw_only=True)
class Turns:
    """What was timed; entry i of everything is from round i.

    Attributes:
        ns: Latencies in nanoseconds by name.
        core_distance_ns: A round trip between two cores before and after the round, the longer one; None: not known.
    """

    ns: dict[str, list[int]]
    core_distance_ns: list[float | None]

    def rounds(self, *, near: bool) -> list[int]:
        """The rounds in which the cores were near each other, or were not."""
        distances = enumerate(self.core_distance_ns)
        return [number for number, ns in distances if ns is not None and (ns < NEAR_NS) == near]


def time_in_turns(
    files: Mapping[str, Path],
    native: Mapping[str, Path],
    feed: Mapping[str, tuple[int, ...]],
    *,
    threads: int,
    runs: int,
) -> Turns:
    """Run every file in turns, each other round backwards, after 3 rounds that are not counted.

    Args:
        files: Files by name, run as they are.
        native: Files by name, run with the native operators.
        feed: Shapes of the inputs by name; they are filled with normal numbers.
        threads: Threads of the one pool that all sessions share.
        runs: Rounds that are counted.

    Raises:
        InternalError: The process failed.
    """
    request = {
        "files": {name: str(path.absolute()) for name, path in files.items()},
        "native": {name: str(path.absolute()) for name, path in native.items()},
        "feed": {name: list(shape) for name, shape in feed.items()},
        "threads": threads,
        "runs": runs,
    }
    with temporary_folder("bench") as folder:
        given = json.dumps(request).encode()
        done = run_python("trt_compress.tools.bench.ort_turns", folder=folder, given=given, errors=PIPE)
    if done.returncode:
        raise InternalError(
            f"The timing process ended with {done.returncode}: {done.stderr.decode(errors='replace').strip()[-400:]}"
        )
    return Turns(**json.loads(done.stdout))


def _answer(request: Mapping[str, Any], warmup: int = 3) -> dict[str, Any]:
    onnxruntime.set_global_thread_pool_sizes(request["threads"], 1)
    generator = np.random.default_rng(_SEED)
    feed = {name: generator.standard_normal(shape, dtype=np.float32) for name, shape in request["feed"].items()}
    sessions = {name: _session(path, None) for name, path in request["files"].items()}
    sessions |= {name: _session(path, require("onnxruntime")) for name, path in request["native"].items()}
    latencies: dict[str, list[int]] = {name: [] for name in sessions}
    measure = core_distance()
    distances = [measure()]
    for turn in range(warmup + request["runs"]):
        for name in reversed(sessions) if turn % 2 else sessions:
            start = time.perf_counter_ns()
            sessions[name].run(None, feed)
            latencies[name].append(time.perf_counter_ns() - start)
        time.sleep(_REST_S)
        distances.append(measure())
    pairs = zip(distances, distances[1:], strict=False)
    longer = [None if before is None or after is None else max(before, after) for before, after in pairs]
    return {"ns": {name: values[warmup:] for name, values in latencies.items()}, "core_distance_ns": longer[warmup:]}


def _session(path: str, native: Library | None) -> Any:
    options = onnxruntime.SessionOptions()
    options.use_per_session_threads = False
    if native is not None:
        register_native(options, native)
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


if __name__ == "__main__":
    print(json.dumps(_answer(json.load(sys.stdin))))
