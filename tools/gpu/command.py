"""The command line of the GPU benchmarks: the options that all have, the device, the record, and what is printed."""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

from trt_compress.errors import GateError, TrtCompressError
from trt_compress.plugins.build import build
from trt_compress.plugins.library import require
from trt_compress.plugins.native_torch import CudaKernels
from trt_compress.tools.console import print_table
from trt_compress.tools.gpu.report import RESULTS
from trt_compress.tools.gpu.timing import CudaClock, DeviceClock, HostClock, Recorder, run_record

_SHOWN = 100  # characters of what was found


def parser_of(description: str | None, who: str, *, rounds: int) -> argparse.ArgumentParser:
    """The parser of a benchmark, to which its own options are added."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.0, help="time for everything (default: 9)")
    parser.add_argument("--rounds", type=int, default=rounds, help="of each measurement")
    parser.add_argument("--output", type=Path, default=None, help=f"lines of JSON (default: {who}.jsonl)")
    parser.add_argument("--commit", default=None, help="what to record where the sources are no git checkout")
    parser.add_argument("--dry-run", action="store_true", help="all of it on the CPU, tiny; nothing is kept")
    parser.add_argument("--library", type=Path, default=None, help="libtrtc_cuda for the dry run (the tests' own)")
    return parser


def measure(
    who: str,
    given: argparse.Namespace,
    run: Callable[[DeviceClock, CudaKernels | None, Recorder, float], None],
) -> int:
    """Open the device, run, and print what was recorded.

    Args:
        who: Of the record, whose file has this name.
        given: What a parser of `parser_of` has read.
        run: Takes the clock, the kernels, the record and the deadline on the monotonic clock.

    Returns:
        The exit code; 0: measured, 2: not possible here, 3: something is not what it must be.
    """
    start = time.monotonic()
    try:
        clock: DeviceClock = HostClock() if given.dry_run else CudaClock(who)
        kernels = _open_kernels(clock, given.library if given.dry_run else None, dry_run=given.dry_run)
    except TrtCompressError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    output = given.output or (Path("/dev/null") if given.dry_run else RESULTS / f"{who}.jsonl")
    recorder = Recorder(output, run_record(who, clock, commit=given.commit, dry_run=given.dry_run))
    run(clock, kernels, recorder, start + 60.0 * given.minutes)
    rows = [(line["case"], line["verdict"], line.get("detail", "")[:_SHOWN]) for line in recorder.lines]
    print_table(f"{recorder.run['gpu']['name']}, commit {recorder.run['commit']}", ("case", "", "measured"), rows)
    print(f"written to {output}")
    return GateError.exit_code if any(line["verdict"] == "failed" for line in recorder.lines) else 0


def _open_kernels(clock: DeviceClock, library: Path | None, *, dry_run: bool) -> CudaKernels | None:
    """The kernels, built if they are not there; None for a dry run that was given no library."""
    if dry_run:
        return CudaKernels(library, device_type="cpu") if library else None
    sm = clock.facts()["sm"]
    print(f"building the kernels for SM {sm}", file=sys.stderr, flush=True)
    build(only=("cuda",), cuda=[sm])
    return CudaKernels(require("cuda", sms=[sm]).path)
