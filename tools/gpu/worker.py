"""Run the cases in a folder on the GPU; one JSON line a case in `results.jsonl`, outputs in `<case>.out.npz`.

A process of its own: a kernel that faults takes its CUDA context along, and compute-sanitizer watches a whole process.
"""

import argparse
import json
import os
import sys
from pathlib import Path

import numpy as np

from trt_compress.errors import PluginError
from trt_compress.tools.gpu.guarded import Case, Device, Kernels, run_case, run_in_turns

RESULTS = "results.jsonl"
LOST = 5  # exit code: a kernel took the CUDA context along, so the cases after it need another process


def run_folder(
    kernels: Kernels, device: Device, folder: Path, names: list[str], *, once: bool = False, repeats: int = 0
) -> None:
    """Run the named cases; a line is written before the next one starts. Ends early if the device is lost."""
    with (folder / RESULTS).open("a", encoding="utf-8") as results:
        for name in names:
            ran = run_case(kernels, device, Case.load(folder / f"{name}.npz"), once=once, repeats=repeats)
            np.savez(folder / f"{name}.out.npz", *ran.outputs)
            results.write(json.dumps(ran.to_json(name)) + "\n")
            results.flush()
            try:
                device.synchronize()
            except PluginError:
                sys.exit(LOST)


def run_turns(kernels: Kernels, device: Device, folder: Path, names: list[str]) -> None:
    """The named cases, operator by operator, in turns; a line for each operator."""
    cases = [Case.load(folder / f"{name}.npz") for name in names]
    with (folder / RESULTS).open("a", encoding="utf-8") as results:
        for op_type in dict.fromkeys(case.op_type for case in cases):
            try:
                problems = run_in_turns(kernels, device, [case for case in cases if case.op_type == op_type])
            except PluginError as error:
                problems = [str(error)]
            results.write(json.dumps({"case": op_type, "problems": problems, "has_outputs": False}) + "\n")
            results.flush()
            try:
                device.synchronize()
            except PluginError:
                sys.exit(LOST)


def main() -> None:
    """What the checks start: `python -m trt_compress.tools.gpu.worker LIBRARY FOLDER NAMES`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("library", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", type=Path, help="a file with the name of a case on each line")
    parser.add_argument("--once", action="store_true")
    parser.add_argument("--repeats", type=int, default=0)
    parser.add_argument("--turns", action="store_true")
    given = parser.parse_args()
    if given.once:
        os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"  # each tensor by itself, so that its borders are seen
    from trt_compress.tools.gpu.device import CudaDevice

    names = given.names.read_text(encoding="utf-8").split()
    kernels, device = Kernels(given.library), CudaDevice()
    if given.turns:
        run_turns(kernels, device, given.folder, names)
    else:
        run_folder(kernels, device, given.folder, names, once=given.once, repeats=given.repeats)


if __name__ == "__main__":
    main()
