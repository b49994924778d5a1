"""What the commands take: `python -m trt_compress.tools.bench.costs`: wall time and peak memory of each, as typed.

One JSON line is appended to `tools/bench/results/costs.jsonl`; the README has its table.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trt_compress.children import PIPE, python_command, started
from trt_compress.errors import InternalError, TrtCompressError
from trt_compress.memory import format_bytes
from trt_compress.strays import temporary_folder
from trt_compress.tools.bench.records import append_record
from trt_compress.tools.console import print_table, progress, say_error

RESULTS = Path(__file__).parent / "results" / "costs.jsonl"
COLUMNS = ("command", "seconds", "peak memory")
COMMANDS = (
    "list targets",
    "export zoo:digits_vit --compress tome:num_merged=5 --target rtx -o digits",
    "verify digits",
    "build digits --target rtx",
    "export timm:deit_small_patch16_224 --compress tome:num_merged=13 --target rtx -o deit",
    "build deit --target rtx",
    "export timm:vit_large_patch16_224 --compress tome:num_merged=7 -o large",
    "sample video -o samples",
    "export zoo:video_vit --compress static_reuse:keep_ratio=0.25 -o video",
    "run video --source samples/video.mp4 --labels samples/video.jsonl",
)


def main() -> int:
    """Measure, print and record; returns the exit code."""
    try:
        with progress("Costs") as step, temporary_folder("bench") as folder:
            measured = []
            for command in COMMANDS:
                step(command)
                measured.append(measure(command, folder))
    except TrtCompressError as error:
        say_error(error.message, error.hint)
        return error.exit_code
    append_record(RESULTS, "costs", {"commands": measured})
    print_table("Commands, each in a process of its own", COLUMNS, list(_rows(measured)))
    return 0


def measure(command: str, folder: Path) -> dict[str, Any]:
    """Run a command of `trt-compress` in `folder`.

    Raises:
        InternalError: It failed.
    """
    start = time.monotonic()
    with (
        open(os.devnull, "wb") as nothing,
        started(python_command("trt_compress", *command.split()), folder=folder, output=nothing, errors=PIPE) as child,
    ):
        said = child.stderr.read() if child.stderr else b""
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise InternalError(f"'trt-compress {command}' ended with {child.returncode}: {said.decode()[-300:]}")
    return {
        "command": f"trt-compress {command}",
        "seconds": time.monotonic() - start,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_rss_bytes": usage.ru_maxrss * 1024,
    }


def rows() -> Iterator[tuple[str, str, str]]:
    """The last record, as the README shows it; nothing if there is none."""
    if RESULTS.is_file():
        yield from _rows(json.loads(RESULTS.read_text(encoding="utf-8").splitlines()[-1])["commands"])


def _rows(measured: list[dict[str, Any]]) -> Iterator[tuple[str, str, str]]:
    for one in measured:
        yield f"`{one['command']}`", f"{one['seconds']:.1f}", format_bytes(one["peak_rss_bytes"])


if __name__ == "__main__":
    sys.exit(main())
