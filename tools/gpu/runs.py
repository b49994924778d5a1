"""What gpu-check starts: the worker with the cases, and compute-sanitizer around it."""

import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trt_compress.children import Process, TimeoutExpired, end, find_program, python_command, run, started
from trt_compress.errors import NativeError
from trt_compress.plugins.library import sources_folder
from trt_compress.tools.gpu.guarded import Bytes, Case
from trt_compress.tools.gpu.worker import LOST, RESULTS

CRASHES = 5  # after so many the GPU is not asked again
STALL_S = 60.0  # a case without a result for so long hangs
RESERVE_S = 20.0
NO_TIME = "no time was left"
WORKER = "trt_compress.tools.gpu.worker"
_FOUND = 9  # what compute-sanitizer returns where it found something
_TOOLKITS = ("/usr/local/cuda/bin", "/usr/local/cuda/compute-sanitizer")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a program ended; `why` is "time" or "stall" where it was ended from outside, else empty."""

    returncode: int
    text: str
    why: str = ""


def run_program(command: Sequence[str], *, seconds: float, log: Path, progress: Path | None = None) -> Ended:
    """Run a program; end it, with all it started, when time is over or the file `progress` has long not grown.

    Args:
        command: The program.
        seconds: Time for it.
        log: Takes all it prints.
        progress: A file that grows while it gets on.
    """
    with log.open("wb") as out:
        with started(command, output=out) as process:
            why = _watch(process, time.monotonic() + seconds, progress)
            if why:
                end(process)
    return Ended(returncode=process.returncode, text=log.read_text(encoding="utf-8", errors="replace"), why=why)


def _watch(process: "Process[bytes]", end: float, progress: Path | None) -> str:
    size, moved = -1, time.monotonic()
    while True:
        try:
            process.wait(timeout=max(min(0.2, end - time.monotonic()), 0.01))
            return ""
        except TimeoutExpired:
            now = time.monotonic()
        have = progress.stat().st_size if progress is not None and progress.exists() else -1
        if have != size:
            size, moved = have, now
        if now >= end:
            return "time"
        if progress is not None and now - moved > STALL_S:
            return "stall"


class CaseRunner:
    """Runs cases in a process of its own, and goes on after one that took it down."""

    def __init__(self, library: Path, folder: Path) -> None:
        self.library = library
        self.folder = folder
        self.crashes = 0

    def command(self, folder: Path, names: Sequence[str], *options: str, between: bool = False) -> list[str]:
        """What runs the named cases of a folder; `between`: another program starts it."""
        (folder / "names").write_text("\n".join(names), encoding="utf-8")
        return python_command(WORKER, self.library, folder, folder / "names", *options, between=between)

    def run(self, cases: Sequence[Case], *, repeats: int = 0, deadline: float, step: str) -> dict[str, dict[str, Any]]:
        """Results by name of the case; one that crashed has that as its problem, one without time is missing."""
        folder = self.save(cases, step)
        left = [case.name for case in cases]
        found: dict[str, dict[str, Any]] = {}
        while left and self.crashes < CRASHES and time.monotonic() < deadline:
            (folder / RESULTS).write_text("", encoding="utf-8")
            ended = self._start(folder, self.command(folder, left, "--repeats", str(repeats)), deadline)
            found |= read_results(folder)
            left = [name for name in left if name not in found]
            if left and ended.why != "time":
                self.crashes += 1
                if ended.returncode != LOST:
                    found[left[0]] = {"case": left[0], "problems": [_why(ended)], "has_outputs": False}
                    del left[0]
        return found

    def run_in_turns(self, cases: Sequence[Case], *, deadline: float, step: str) -> dict[str, list[str]]:
        """Problems by operator, all its cases in one stream; one without time is missing."""
        folder = self.save(cases, step)
        left = list(dict.fromkeys(case.op_type for case in cases))
        found: dict[str, list[str]] = {}
        while left and self.crashes < CRASHES and time.monotonic() < deadline:
            (folder / RESULTS).write_text("", encoding="utf-8")
            names = [case.name for case in cases if case.op_type in left]
            ended = self._start(folder, self.command(folder, names, "--turns"), deadline)
            found |= {name: list(result["problems"]) for name, result in read_results(folder).items()}
            left = [name for name in left if name not in found]
            if left and ended.why != "time":
                self.crashes += 1
                if ended.returncode != LOST:
                    found[left.pop(0)] = [_why(ended)]
        return found

    def save(self, cases: Sequence[Case], step: str) -> Path:
        """The cases in a folder of their own."""
        folder = self.folder / step
        folder.mkdir()
        for case in cases:
            case.save(folder)
        return folder

    def outputs(self, case: Case, step: str) -> list[Bytes]:
        """What the worker wrote for a case."""
        with np.load(self.folder / step / f"{case.name}.out.npz") as file:
            return [file[f"arr_{i}"] for i in range(len(file.files))]

    @staticmethod
    def _start(folder: Path, command: Sequence[str], deadline: float) -> Ended:
        seconds = max(deadline - time.monotonic(), 1.0)
        return run_program(command, seconds=seconds, log=folder / "log", progress=folder / RESULTS)


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """What a worker has written so far; a process that was ended may have left half a line."""
    if not (folder / RESULTS).exists():
        return {}
    lines = (folder / RESULTS).read_text(encoding="utf-8").splitlines()
    whole = lines[: len(lines) - bool(lines and not lines[-1].endswith("}"))]
    return {result["case"]: result for result in map(json.loads, whole)}


def _why(ended: Ended) -> str:
    if ended.why == "stall":
        return f"it hung: no result in {STALL_S:.0f} s"
    return f"the process ended with {ended.returncode}: {ended.text.strip()[-400:]}"


# ---- compute-sanitizer -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Sanitized:
    """What a tool of compute-sanitizer found; `is_fine` is None where it could not look."""

    is_fine: bool | None
    detail: str


def sanitize(runner: CaseRunner, cases: Sequence[Case], tool: str, sm: int, deadline: float) -> Sanitized:
    """One tool of compute-sanitizer over one run of each case. It is believed only if it finds a planted mistake."""
    program = beside_nvcc("compute-sanitizer")
    if program is None:
        return Sanitized(is_fine=None, detail="compute-sanitizer is not installed")
    if deadline - time.monotonic() < RESERVE_S:
        return Sanitized(is_fine=None, detail=NO_TIME)
    step = f"sanitizer-{tool}"
    folder = runner.save(cases, step)
    command = [program, "--tool", tool, "--target-processes", "all", "--error-exitcode", str(_FOUND)]
    planted = plant(folder, sm)
    seen = run_program([*command, str(planted), tool], seconds=60.0, log=folder / "planted.log")
    if not _found(seen):
        told = seen.why or f"it ended with {seen.returncode}: {_told(seen.text)}"
        return Sanitized(is_fine=None, detail=f"{tool} does not work here, a planted mistake was not found ({told})")
    # One of each operator first: what there is no time for is spread over all of them.
    names = [case.name for case in _spread(cases)]
    seconds = max(deadline - time.monotonic(), 1.0)
    ended = run_program(
        [*command, *runner.command(folder, names, "--once", between=True)], seconds=seconds, log=folder / "log"
    )
    results = read_results(folder)
    problems = [f"{name}: {'; '.join(r['problems'])}" for name, r in results.items() if r["problems"]]
    told = _told(ended.text)
    if _found(ended) or problems:
        return Sanitized(is_fine=False, detail="\n".join([*problems[:10], told]))
    if ended.why:
        return Sanitized(is_fine=None, detail=f"{NO_TIME} after {len(results)} of {len(cases)} cases, all clean so far")
    if ended.returncode or len(results) != len(cases):
        detail = f"it ended with {ended.returncode} after {len(results)} of {len(cases)} cases\n{told}"
        return Sanitized(is_fine=False, detail=detail)
    return Sanitized(is_fine=True, detail=f"{len(cases)} cases; a planted mistake was found")


def plant(folder: Path, sm: int) -> Path:
    """A program with mistakes that the tools must find.

    Raises:
        NativeError, OSError, subprocess.TimeoutExpired: nvcc does not compile it.
    """
    source, program = sources_folder() / "testing" / "planted.cu", folder / "planted"
    command = ["nvcc", f"-arch=sm_{sm}", str(source), "-o", str(program)]
    done = run(command, timeout=120)
    if done.returncode:
        raise NativeError(f"nvcc ended with {done.returncode}: {done.stderr.decode(errors='replace').strip()[-400:]}")
    return program


def beside_nvcc(name: str) -> str | None:
    """A program of the CUDA toolkit: on the path, beside nvcc, or where CUDA is installed."""
    nvcc = find_program("nvcc")
    folders = [*([Path(nvcc).resolve().parent] if nvcc else []), *map(Path, _TOOLKITS)]
    beside = next((folder / name for folder in folders if (folder / name).is_file()), None)
    return find_program(name) or (str(beside) if beside else None)


def _spread(cases: Sequence[Case]) -> list[Case]:
    by_operator: dict[str, list[Case]] = {}
    for case in cases:
        by_operator.setdefault(case.op_type, []).append(case)
    ranked = [(rank, case) for of_one in by_operator.values() for rank, case in enumerate(of_one)]
    return [case for _, case in sorted(ranked, key=lambda item: item[0])]


def _found(ended: Ended) -> bool:
    """Whether the tool found anything: by its exit code, or where the program's own came before it, by its summary."""
    counts = re.findall(r"^=========\s+(?:ERROR|RACECHECK) SUMMARY:\s+(\d+)", ended.text, re.MULTILINE)
    return ended.returncode == _FOUND or any(int(count) for count in counts)


def _told(text: str) -> str:
    lines = [line for line in text.splitlines() if line.startswith("=========")]
    return "\n".join(lines[:20]) or text.strip()[-1000:]
