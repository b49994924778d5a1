"""Time one layer of a model against the number of its tokens, with ONNX Runtime and numpy alone.

`python measure_block.py FOLDER` reads FOLDER/request.json and FOLDER/block.onnx, and writes FOLDER/staircase.json.
Nothing else of trt-compress is needed, so that it runs on the device that a model is compressed for.
"""

import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def staircase(folder: Path, request: dict[str, Any], tell: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Time the layer at every count of tokens and every batch, all in turns.

    Args:
        folder: Holds block.onnx.
        request: `counts` of tokens, `batches`, `width` of a token, `rounds`, `warmup`, `threads`, `provider`.
        tell: Is told what is done.

    Returns:
        For each batch the latencies in nanoseconds of every count, round by round.
    """
    import numpy
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = request["threads"] or 0
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(folder / "block.onnx"), options, providers=[request["provider"]])
    if session.get_providers()[0] != request["provider"]:
        raise SystemExit(f"ONNX Runtime has no {request['provider']} here; it has {session.get_providers()}.")
    generator = numpy.random.default_rng(0)
    found: dict[str, dict[str, list[int]]] = {}
    for batch in request["batches"]:
        width = request["width"]
        feeds = [
            {"x": generator.standard_normal((batch, count, width)).astype("float32")} for count in request["counts"]
        ]
        taken: list[list[int]] = [[] for _ in feeds]
        for number in range(request["warmup"] + request["rounds"]):
            tell(f"batch {batch}, round {number + 1} of {request['warmup'] + request['rounds']}")
            order = range(len(feeds))
            for place in reversed(order) if number % 2 else order:
                start = time.perf_counter_ns()
                session.run(None, feeds[place])
                taken[place].append(time.perf_counter_ns() - start)
        counts = map(str, request["counts"])
        found[str(batch)] = {count: own[request["warmup"] :] for count, own in zip(counts, taken, strict=True)}
    return {"latencies_ns": found, "machine": platform.machine(), "onnxruntime": onnxruntime.__version__}


if __name__ == "__main__":
    where = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    asked = json.loads((where / "request.json").read_text())
    measured = {"request": asked, **staircase(where, asked, lambda text: print(text, file=sys.stderr))}
    (where / "staircase.json").write_text(json.dumps(measured))
    print(where / "staircase.json")
