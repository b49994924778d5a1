"""One session under several threads, in a process under ThreadSanitizer.

    python -m tests.attack.threads_worker LIBRARY SEED COUNT

ONNX Runtime and Python are not built for it, so a session has no pool of its own: whatever two threads of ours do at
once in the library, they do in two runs of one node. In every second session all inputs but the first are weights,
since a node keeps what follows from them. The last line is JSON: how many calls there were and how many went wrong.
"""

import ctypes
import json
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnx import numpy_helper

from tests.attack.calls import ATTRIBUTES, NAMES, Call, lawful_call, types_of
from tests.attack.sessions import model_of

THREADS = 4
RUNS = 5  # of each thread


def together(session: Any, feeds: dict[str, Any]) -> bool:
    """Whether all runs of all threads give the same bits."""
    barrier, found = threading.Barrier(THREADS), list[list[bytes]]()

    def work() -> None:
        barrier.wait(60)
        found.extend([output.tobytes() for output in session.run(None, feeds)] for _ in range(RUNS))

    threads = [threading.Thread(target=work) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(found) == THREADS * RUNS and all(outputs == found[0] for outputs in found)


def opened(contract: dict[str, Any], call: Call, options: Any, *, weights: bool) -> tuple[Any, dict[str, Any]]:
    """A session of the call's node, and what to feed it."""
    model = model_of(contract, call, None, 20)
    feeds = {value.name: array for value, array in zip(model.graph.input, call.inputs, strict=True)}
    if weights:
        for value in list(model.graph.input)[1:]:
            model.graph.initializer.append(numpy_helper.from_array(feeds.pop(value.name), value.name))
            model.graph.input.remove(value)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"]), feeds


def main(library: Path, seed: int, count: int) -> None:
    loaded = ctypes.CDLL(str(library))
    loaded.trtcDescribe.restype = ctypes.c_char_p
    contracts = {contract["name"]: contract for contract in json.loads(loaded.trtcDescribe())["operators"]}
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    options.register_custom_ops_library(str(library))
    random = np.random.default_rng(seed)
    names, wrong = [name for name in NAMES if name in contracts], 0
    for number in range(count):
        name = names[number // 2 % len(names)]
        call = lawful_call(random, name, ATTRIBUTES[name](random), types_of(random, name))
        wrong += not together(*opened(contracts[name], call, options, weights=number % 2 == 1))
    print(json.dumps({"calls": count, "wrong": wrong}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
