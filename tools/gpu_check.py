"""Check every CUDA kernel on the GPU of this machine: `make gpu-check`.

Each kernel against a float64 restatement of its contract on fresh random inputs, ties and determinism, guard bytes, a
captured CUDA graph, compute-sanitizer, the TensorRT plugins through their life, and a benchmark against the measured
copy bandwidth. What is left out is said. Needs a checkout (the restatements are in `tests`), a GPU and nvcc.
"""

import argparse
import importlib
import json
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from trt_compress import __version__
from trt_compress.errors import ConfigError, PluginError, ShapeError, TrtCompressError, UnsupportedError
from trt_compress.plugins.build import build, tensorrt_headers
from trt_compress.plugins.library import sources_folder
from trt_compress.plugins.operator import Operator
from trt_compress.plugins.registry import operators
from trt_compress.plugins.spec import Sample
from trt_compress.plugins.testing import call_torch, sample_inputs
from trt_compress.tools.gpu_check_device import CudaDevice
from trt_compress.tools.gpu_check_kernels import Array, Bytes, Case, Tensor
from trt_compress.tools.gpu_check_worker import LOST, RESULTS
from trt_compress.tools.machine import command_output, describe_device, package_versions

EXIT_FAILED = 3
RESULT_VERSION = "1.0"
DTYPES = ("float32", "float16", "bfloat16")
LARGE = 1000  # tokens, or slots of a cache; above it one dtype is enough
CLEAR = 1e-5  # two numbers closer than this may be ordered either way by float32 rounding
TRIES = 20  # seeds tried until no decision hangs on rounding
SANITIZED_VALUES = 100_000  # largest tensor that compute-sanitizer sees: it is slow
REPEATS = 100
BENCHMARK_DTYPE = "float16"  # of operators that take it
CRASHES = 5  # after so many the GPU is not asked again
_RESERVE_S = 20.0
_WORKER = ("-m", "trt_compress.tools.gpu_check_worker")

State = Literal["passed", "failed", "skipped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One question to one operator in one dtype: the case that runs, and what must come out."""

    case: Case
    operator: Operator
    sample: Sample
    dtype: str
    seed: int
    expected: tuple[Array, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of the report."""

    step: str
    subject: str
    state: State
    detail: str = ""
    numbers: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Write as plain JSON data."""
        return {"step": self.step, "subject": self.subject, "state": self.state, "detail": self.detail, **self.numbers}


Report = Callable[[Line], None]


# ---- cases -----------------------------------------------------------------------------------------------------------


def restatement() -> Callable[..., Any]:
    """`restate(op_type, inputs, attributes)` of the tests: the contract in plain float64 loops.

    Raises:
        ConfigError: This is not a checkout.
    """
    folder = sources_folder().parent / "tests" / "plugins"
    if not (folder / "restatement.py").is_file():
        raise ConfigError(
            f"gpu-check needs a checkout: '{folder}' with the restatements of the contracts is not there."
        )
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    found: Callable[..., Any] = importlib.import_module("restatement").restate
    return found


def checks_of(operator: Operator, restate: Callable[..., Any], seed: int) -> tuple[list[Check], list[Line]]:
    """Fresh inputs for every sample and dtype, with what must come out; and what could not be made, with the reason."""
    made: list[Check] = []
    lines: list[Line] = []
    for number, sample in enumerate(operator.samples):
        is_large = max(sample.axes.get(axis, 0) for axis in "NL") > LARGE
        first_types: list[torch.dtype] = []
        for dtype in DTYPES[:1] if is_large else DTYPES:
            types = [tensor.dtype for tensor in sample_inputs(operator, sample, dtype=dtype, seed=seed)]
            if dtype != DTYPES[0] and types == first_types:
                continue
            first_types = first_types or types
            name = f"{operator.spec.torch_name}-{number}-{dtype}"
            check = _check(operator, sample, dtype, restate, seed, name)
            if check is None:
                reason = f"in {TRIES} random inputs a decision always hung on rounding"
                lines.append(Line(step="kernels", subject=name, state="skipped", detail=reason))
            else:
                made.append(check)
    return [*made, *_wrong_data(operator, seed)], lines


def _wrong_data(operator: Operator, seed: int) -> list[Check]:
    """Positions and indices that are out of range, where the contract calls that an error."""
    made = []
    spec, dtype = operator.spec, DTYPES[0]
    sample = next((s for s in operator.samples if "primes" in s.reason), operator.samples[-1])
    inputs = sample_inputs(operator, sample, dtype=dtype, seed=seed)
    case = case_of(operator, sample, inputs, spec.torch_name, 4)
    for described, tensor in zip(spec.inputs, inputs, strict=True):
        for what, value in (("negative", -1), ("huge", 1 << 40)):
            if tensor.dtype != torch.int64:
                continue
            wrong = [torch.full_like(t, value) if t is tensor else t for t in inputs]
            try:
                call_torch(operator, sample, wrong)
                continue  # the contract has a meaning for it
            except (ConfigError, ShapeError, RuntimeError, IndexError):
                data = tuple(_raw(t) for t in wrong)
            named = replace(case, name=f"{case.name}-{described.name}-{what}", data=data, must_report=True)
            made.append(Check(case=named, operator=operator, sample=sample, dtype=dtype, seed=seed, expected=()))
    return made


def _check(
    operator: Operator, sample: Sample, dtype: str, restate: Callable[..., Any], seed: int, name: str
) -> Check | None:
    for attempt in range(TRIES):
        inputs = sample_inputs(operator, sample, dtype=dtype, seed=seed + attempt)
        expected = restate(operator.spec.op_type, tuple(_as_array(tensor) for tensor in inputs), sample.attributes)
        if expected.margin > CLEAR:
            itemsize = torch.empty(0, dtype=getattr(torch, dtype)).element_size()
            return Check(
                case=case_of(operator, sample, inputs, name, itemsize),
                operator=operator,
                sample=sample,
                dtype=dtype,
                seed=seed + attempt,
                expected=tuple(np.asarray(output) for output in expected.outputs),
            )
    return None


def case_of(operator: Operator, sample: Sample, inputs: Sequence[torch.Tensor], name: str, itemsize: int) -> Case:
    """The call as the library gets it. Where the data decide a size, outputs are as large as the attributes allow."""
    spec, attributes = operator.spec, sample.attributes
    names = [described.name for described in spec.inputs]
    outputs = []
    for described, output in zip(spec.outputs, call_torch(operator, sample, inputs), strict=True):
        shape = [
            attributes["max_kept"] if axis == "M" and attributes.get("trim") == 1 else size
            for axis, size in zip(described.axes, output.shape, strict=True)
        ]
        alias = names.index(described.aliases) if described.aliases else None
        used = output.numel() if _sizes(shape) != _sizes(output.shape) else None
        outputs.append(
            Tensor(name=described.name, dtype=_dtype_name(output), shape=_sizes(shape), alias=alias, num_used=used)
        )
    return Case(
        name=name,
        op_type=spec.op_type,
        attributes=tuple((a.name, _attribute(attributes[a.name], a.kind)) for a in spec.attributes),
        inputs=tuple(
            Tensor(name=described.name, dtype=_dtype_name(tensor), shape=_sizes(tensor.shape))
            for described, tensor in zip(spec.inputs, inputs, strict=True)
        ),
        outputs=tuple(outputs),
        data=tuple(_raw(tensor) for tensor in inputs),
        bytes_moved=int(spec.bytes_moved({**sample.axes, **attributes}, itemsize)),
    )


def compare(check: Check, outputs: Sequence[Bytes]) -> list[str]:
    """What is wrong with the outputs: floats outside the contract's tolerance, or any other whole number."""
    problems = []
    spec = check.operator.spec
    for described, raw, wanted in zip(check.case.outputs, outputs, check.expected, strict=True):
        # A size that the data decide may leave a tail that nobody reads.
        values = _values(raw, described.dtype)[: wanted.size].reshape(wanted.shape)
        if not np.issubdtype(values.dtype, np.floating):
            wrong = int((values != wanted).sum())
            if wrong:
                problems.append(f"{described.name}: {wrong} of {wanted.size} whole numbers are not as they must be")
            continue
        finite = np.isfinite(wanted)
        if not np.array_equal(values[~finite], wanted[~finite], equal_nan=True):
            problems.append(f"{described.name}: infinities or NaN are not where they must be")
        error = float(np.abs(values[finite].astype(np.float64) - wanted[finite]).max(initial=0.0))
        largest = float(np.abs(wanted[finite]).max(initial=0.0))
        if not error <= spec.tolerance[described.dtype] * largest:
            problems.append(f"{described.name}: off by {error:.2g}, of {largest:.2g}")
    return problems


def _dtype_name(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _sizes(shape: Iterable[Any]) -> tuple[int, ...]:
    return tuple(int(size) for size in shape)


def _attribute(value: Any, kind: str) -> int | float | tuple[int, ...]:
    return float(value) if kind == "float" else tuple(int(v) for v in value) if kind == "ints" else int(value)


def _as_array(tensor: torch.Tensor) -> Array:
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _raw(tensor: torch.Tensor) -> Bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy() if tensor.numel() else np.empty(0, dtype=np.uint8)


def _values(raw: Bytes, dtype: str) -> Array:
    if dtype == "bfloat16":
        return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return raw.view(np.dtype(dtype))


# ---- running ---------------------------------------------------------------------------------------------------------


class Runner:
    """Runs cases in a process of its own, and goes on after one that took it down."""

    def __init__(self, library: Path, folder: Path) -> None:
        self.library = library
        self.folder = folder
        self.crashes = 0

    def run(self, cases: Sequence[Case], *, repeats: int = 0, deadline: float, step: str) -> dict[str, dict[str, Any]]:
        """Results by name of the case; one that crashed has that as its problem, one without time is missing."""
        folder = self.folder / step
        folder.mkdir()
        for case in cases:
            case.save(folder)
        left = [case.name for case in cases]
        found: dict[str, dict[str, Any]] = {}
        while left and self.crashes < CRASHES and time.monotonic() < deadline:
            (folder / "names").write_text("\n".join(left), encoding="utf-8")
            (folder / RESULTS).write_text("", encoding="utf-8")
            command = [sys.executable, *_WORKER, str(self.library), str(folder), str(folder / "names")]
            try:
                done = subprocess.run(
                    [*command, "--repeats", str(repeats)],
                    capture_output=True,
                    text=True,
                    timeout=max(deadline - time.monotonic(), 1.0),
                )
            except subprocess.TimeoutExpired:
                done = None
            lines = (folder / RESULTS).read_text(encoding="utf-8").splitlines()
            found |= {result["case"]: result for result in map(json.loads, lines[: _whole(lines)])}
            left = [name for name in left if name not in found]
            if left and done is not None:
                self.crashes += 1
                if done.returncode != LOST:
                    why = f"the process ended with {done.returncode}: {done.stderr.strip()[-400:]}"
                    found[left[0]] = {"case": left[0], "problems": [why], "has_outputs": False}
                    del left[0]
        return found

    def outputs(self, case: Case, step: str) -> list[Bytes]:
        """What the worker wrote for a case."""
        with np.load(self.folder / step / f"{case.name}.out.npz") as file:
            return [file[f"arr_{i}"] for i in range(len(file.files))]


def _whole(lines: Sequence[str]) -> int:
    """How many of the lines are whole: a process that was ended may leave half a line."""
    return len(lines) - bool(lines and not lines[-1].endswith("}"))


def judge(
    checks: Sequence[Check], results: Mapping[str, Mapping[str, Any]], outputs: Callable[[Case], list[Bytes]]
) -> list[Line]:
    """One line for each check: what the run broke, then what the comparison found."""
    lines = []
    for check in checks:
        name = check.case.name
        if name not in results:
            lines.append(
                Line(step="kernels", subject=name, state="skipped", detail="no time was left, or the GPU was lost")
            )
            continue
        problems = list(results[name]["problems"])
        problems += compare(check, outputs(check.case)) if results[name]["has_outputs"] else []
        state: State = "failed" if problems else "passed"
        numbers = {"sample": check.sample.label, "seed": check.seed, "reason": check.sample.reason}
        lines.append(Line(step="kernels", subject=name, state=state, detail="; ".join(problems), numbers=numbers))
    return lines


def sanitize(runner: Runner, cases: Sequence[Case], tool: str, deadline: float) -> Line:
    """One tool of compute-sanitizer over one run of each case."""
    program = _beside_nvcc("compute-sanitizer")
    step = f"sanitizer-{tool}"
    if program is None:
        return Line(step=step, subject="kernels", state="skipped", detail="compute-sanitizer is not installed")
    seconds = deadline - time.monotonic()
    if seconds < _RESERVE_S:
        return Line(step=step, subject="kernels", state="skipped", detail="no time was left")
    folder = runner.folder / step
    folder.mkdir()
    for case in cases:
        case.save(folder)
    (folder / "names").write_text("\n".join(case.name for case in cases), encoding="utf-8")
    worker = [sys.executable, *_WORKER, str(runner.library), str(folder), str(folder / "names"), "--once"]
    command = [program, "--tool", tool, "--error-exitcode", "9", *worker]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        ran = len((folder / RESULTS).read_text(encoding="utf-8").splitlines()) if (folder / RESULTS).exists() else 0
        detail = f"no time was left after {ran} of {len(cases)} cases"
        return Line(step=step, subject="kernels", state="skipped", detail=detail)
    if done.returncode == 0:
        return Line(step=step, subject="kernels", state="passed", detail=f"{len(cases)} cases")
    text = (done.stdout + done.stderr).strip()
    told = [line for line in text.splitlines() if line.startswith("=========")]
    return Line(step=step, subject="kernels", state="failed", detail="\n".join(told[:20]) or text[-1000:])


def benchmark_cases(chosen: Sequence[Operator], seed: int) -> list[Case]:
    """The sample of each operator that moves the most bytes, in float16 where it takes that."""
    cases = []
    for operator in chosen:
        spec = operator.spec
        itemsize = torch.empty(0, dtype=getattr(torch, BENCHMARK_DTYPE)).element_size()
        sample = max(operator.samples, key=lambda s: spec.bytes_moved({**s.axes, **s.attributes}, itemsize))
        inputs = sample_inputs(operator, sample, dtype=BENCHMARK_DTYPE, seed=seed)
        cases.append(
            case_of(operator, sample, inputs, f"{spec.torch_name}-{sample.label}"[:120].replace("/", "_"), itemsize)
        )
    return cases


def judge_speed(cases: Sequence[Case], results: Mapping[str, Mapping[str, Any]], copy_bytes_per_s: float) -> list[Line]:
    """Bytes of the contract over the time, against the copy; there is no bound that can fail."""
    lines = []
    for case in cases:
        result = results.get(case.name)
        if result is None or result["problems"]:
            detail = "; ".join(result["problems"]) if result else "no time was left, or the GPU was lost"
            lines.append(
                Line(step="benchmark", subject=case.name, state="failed" if result else "skipped", detail=detail)
            )
            continue
        bytes_per_s = case.bytes_moved / (result["median_us"] * 1e-6)
        numbers = {
            **{key: result[key] for key in ("median_us", "min_us", "p90_us", "repeats")},
            "bytes_moved": case.bytes_moved,
            "gb_per_s": round(bytes_per_s / 1e9, 2),
            "share_of_copy": round(bytes_per_s / copy_bytes_per_s, 4),
        }
        share = 100 * bytes_per_s / copy_bytes_per_s
        detail = f"{result['median_us']:.1f} us, {bytes_per_s / 1e9:.1f} GB/s, {share:.1f} % of a copy"
        lines.append(Line(step="benchmark", subject=case.name, state="passed", detail=detail, numbers=numbers))
    return lines


def check_plugins(checks: Sequence[Check], sm: int, given: Path | None, folder: Path, deadline: float) -> list[Line]:
    """The TensorRT plugins through the harness of the tests, with enqueue and in a captured graph."""

    def line(state: State, subject: str, detail: str) -> Line:
        return Line(step="plugins", subject=subject, state=state, detail=detail)

    native = sources_folder().parent / "tests" / "native"
    if str(native) not in sys.path:
        sys.path.insert(0, str(native))
    driving = importlib.import_module("harness.driving")
    found = {"given": tensorrt_headers(given)} if given else driving.all_headers()
    if not found:
        return [line("skipped", "harness", driving.NO_HEADERS)]
    headers = list(found.values())[-1]
    if deadline - time.monotonic() < _RESERVE_S:
        return [line("skipped", "harness", "no time was left")]
    (outcome,) = build(only=("tensorrt",), cuda=[sm], tensorrt=headers)
    if outcome.library is None:
        return [line("skipped", "harness", outcome.note)]
    folder.mkdir()
    held = [
        check
        for check in checks
        if check.operator.spec.op_type in outcome.library.operators and not check.case.must_report
    ]
    asked = {
        check.case.name: driving.Question(
            operator=check.operator, sample=check.sample, dtype=check.dtype, seed=check.seed
        )
        for check in held
    }
    lines = [text for question in asked.values() for text in question.lines(folder)]
    program = importlib.import_module("emulation.building").harness_on_gpu(folder, headers)
    try:
        seconds = max(deadline - time.monotonic(), 1.0)
        answers = driving.ask(program, outcome.library.path, lines, folder, enqueue=True, timeout_s=seconds)
    except AssertionError as error:
        return [line("failed", "harness", str(error))]
    except subprocess.TimeoutExpired:
        return [line("skipped", "harness", "no time was left")]
    return [_judge_plugin(check, answers.cases[check.case.name]) for check in held]


def _judge_plugin(check: Check, answer: Mapping[str, Any]) -> Line:
    problems = [*answer["problems"], *answer["errors"]]
    written = answer.get("outputs", [])
    if len(written) == len(check.expected):
        problems += compare(check, [np.fromfile(output["path"], dtype=np.uint8) for output in written])
    state: State = "failed" if problems else "passed"
    detail = "; ".join(problems) or f"graph: {answer.get('graph', 'not reached')}"
    return Line(step="plugins", subject=check.case.name, state=state, detail=detail)


def _beside_nvcc(name: str) -> str | None:
    nvcc = shutil.which("nvcc")
    beside = Path(nvcc).resolve().parent / name if nvcc else None
    return shutil.which(name) or (str(beside) if beside and beside.is_file() else None)


# ---- the command -----------------------------------------------------------------------------------------------------


def device_record(device: CudaDevice, seed: int, minutes: float) -> dict[str, Any]:
    """What every result of this run was measured with."""
    status = command_output("git", "-C", str(sources_folder().parent), "status", "--porcelain")
    nvcc = command_output("nvcc", "--version") or ""
    return {
        "step": "run",
        "result_version": RESULT_VERSION,
        "trt_compress": __version__,
        "commit": command_output("git", "-C", str(sources_folder().parent), "rev-parse", "HEAD"),
        "is_clean": status == "" if status is not None else None,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "gpu": device.facts(),
        "nvcc": nvcc.strip().splitlines()[-1:] or None,
        "machine": describe_device(),
        "packages": package_versions(),
        "platform": platform.platform(),
        "seed": seed,
        "minutes": minutes,
    }


def run(given: argparse.Namespace, device: CudaDevice, report: Report, folder: Path) -> None:
    """All steps in order, each as far as time allows."""
    start = time.monotonic()
    end = start + 60.0 * given.minutes
    restate = restatement()
    print(f"building the kernels for SM {device.sm}", file=sys.stderr)
    (outcome,) = build(only=("cuda",), cuda=[device.sm])
    if outcome.library is None:
        raise PluginError(f"The kernels were not built: {outcome.note}.")
    runner = Runner(outcome.library.path, folder)
    held = set(outcome.library.operators)
    chosen = [operator for operator in operators().values() if operator.spec.op_type in held]
    for operator in operators().values():
        if operator not in chosen:
            report(Line(step="kernels", subject=operator.spec.op_type, state="skipped", detail="it has no CUDA kernel"))

    checks: list[Check] = []
    for operator in chosen:
        made, lines = checks_of(operator, restate, given.seed)
        checks += made
        for line in lines:
            report(line)
    cases = [check.case for check in checks]
    # What is left after this is for the sanitizer, the plugins and the benchmark.
    results = runner.run(cases, deadline=start + 0.55 * (end - start), step="kernels")
    for line in judge(checks, results, lambda case: runner.outputs(case, "kernels")):
        report(line)
    timed = benchmark_cases(chosen, given.seed)
    copied = device.copy_bytes_per_second()
    report(
        Line(step="benchmark", subject="copy", state="passed", detail=f"{copied / 1e9:.0f} GB/s",
             numbers={"gb_per_s": round(copied / 1e9, 2)})
    )  # fmt: skip
    timings = runner.run(timed, repeats=REPEATS, deadline=start + 0.65 * (end - start), step="benchmark")
    for line in judge_speed(timed, timings, copied):
        report(line)
    for line in check_plugins(checks, device.sm, given.tensorrt, folder / "plugins", start + 0.8 * (end - start)):
        report(line)
    small = [case for case in cases if max(data.nbytes for data in case.data) <= SANITIZED_VALUES]
    report(sanitize(runner, small, "memcheck", start + 0.9 * (end - start)))
    report(sanitize(runner, small, "racecheck", end))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; 0: all passed, 3: something failed, 2: not possible here."""
    parser = argparse.ArgumentParser(prog="gpu-check", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="time for everything (default: 10)")
    parser.add_argument("--seed", type=int, default=None, help="of the random inputs (default: another each time)")
    parser.add_argument("--tensorrt", type=Path, default=None, help="folder of NvInfer.h, as for `plugins build`")
    parser.add_argument("--output", type=Path, default=Path("out/gpu_check.jsonl"), help="results, one JSON a line")
    given = parser.parse_args(arguments)
    given.seed = random.randrange(1 << 30) if given.seed is None else given.seed
    lines: list[Line] = []
    try:
        device = _usable_device()
        given.output.parent.mkdir(parents=True, exist_ok=True)
        with given.output.open("a", encoding="utf-8") as file, tempfile.TemporaryDirectory(prefix="gpu-check-") as name:
            record = device_record(device, given.seed, given.minutes)
            file.write(json.dumps(record) + "\n")
            gpu = record["gpu"]
            print(f"{gpu['name']}, SM {gpu['sm']}, CUDA driver {gpu['cuda_driver']}, seed {given.seed}", flush=True)

            def report(line: Line) -> None:
                lines.append(line)
                file.write(json.dumps(line.to_json()) + "\n")
                file.flush()
                if line.step not in ("kernels", "plugins") or line.state != "passed":
                    print(f"{line.state:8}{line.step:20}{line.subject}  {line.detail}", flush=True)

            run(given, device, report, Path(name))
    except TrtCompressError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return summarize(lines, given.output)


def summarize(lines: Sequence[Line], output: Path) -> int:
    """Print the counts of each step; the exit code."""
    for step in dict.fromkeys(line.step for line in lines):
        states = [line.state for line in lines if line.step == step]
        counts = ", ".join(f"{states.count(state)} {state}" for state in ("passed", "failed", "skipped"))
        print(f"{step:20}{counts}")
    print(f"written to {output}")
    return EXIT_FAILED if any(line.state == "failed" for line in lines) else 0


def _usable_device() -> CudaDevice:
    """The GPU.

    Raises:
        UnsupportedError: There is none, or no nvcc to compile for it.
    """
    try:
        device = CudaDevice()
    except UnsupportedError as error:
        raise UnsupportedError(
            f"gpu-check needs an NVIDIA GPU, and {error}; run it on a machine with one (the kernels' logic is tested "
            "without: make test PYTEST_ARGS=tests/native)."
        ) from None
    if shutil.which("nvcc") is None:
        raise UnsupportedError(
            "gpu-check compiles the kernels for this GPU, and nvcc is not on the path; install CUDA."
        )
    return device


if __name__ == "__main__":
    sys.exit(main())
