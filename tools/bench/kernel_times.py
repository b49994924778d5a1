"""Where the time of an ONNX file goes, by kind of node, as ONNX Runtime's profile has it."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime

from trt_compress.plugins.library import Library
from trt_compress.runtime.backends.ort import register_native

RUNS = 6


def kernel_times(file: Path, feed: Mapping[str, Any], folder: Path, native: Library | None = None) -> Counter[str]:
    """Time of one thread by kind of node, profiled in runs of its own.

    Args:
        file: The ONNX file.
        feed: Its inputs.
        folder: Where the profile is written.
        native: The library of native operators; None: their bodies run.

    Returns:
        Microseconds of all runs together, by the operator's name.
    """
    options = onnxruntime.SessionOptions()
    if native is not None:
        register_native(options, native)
    options.intra_op_num_threads = 1
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    for _ in range(RUNS):
        session.run(None, dict(feed))
    spent: Counter[str] = Counter()
    for event in json.loads(Path(session.end_profiling()).read_text()):
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            spent[event["args"]["op_name"]] += event["dur"]
    return spent
