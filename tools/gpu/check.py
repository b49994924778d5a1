"""Check every CUDA kernel on the GPU of this machine: `make gpu-check`.

Each kernel against a float64 reference of its contract on fresh random inputs, ties and determinism, guard bytes, a
captured CUDA graph, sizes that change between calls, the TensorRT plugins through their life, compute-sanitizer, and a
benchmark against the measured copy bandwidth. What is left out is said. Needs a GPU and nvcc.
"""

import argparse
import random
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from trt_compress.children import TimeoutExpired, find_program
from trt_compress.errors import ConfigError, NativeError, PluginError, ShapeError, TrtCompressError, UnsupportedError
from trt_compress.plugins.build import build, tensorrt_headers
from trt_compress.plugins.library import source_hash
from trt_compress.plugins.operator import Operator
from trt_compress.plugins.registry import operators
from trt_compress.plugins.spec import Sample
from trt_compress.plugins.testing import call_torch, plugin_harness, sample_inputs
from trt_compress.plugins.testing.comparing import CLEAR, as_array, differences, dtype_name
from trt_compress.plugins.testing.reference import reference
from trt_compress.strays import temporary_folder
from trt_compress.tools.bench.records import measured_with, write_line
from trt_compress.tools.gpu.guarded import Array, Bytes, Case, Tensor
from trt_compress.tools.gpu.runs import NO_TIME, RESERVE_S, CaseRunner, Sanitized, sanitize
from trt_compress.tools.gpu.timing import CudaClock, DeviceClock, copy_bytes_per_s
from trt_compress.tools.machine import command_output

EXIT_FAILED = 3
RESULT_VERSION = "1.0"
DTYPES = ("float32", "float16", "bfloat16")
LARGE = 1000  # tokens, or slots of a cache; above it one dtype is enough
TRIES = 20  # seeds tried until no decision hangs on rounding
SMALL_BYTES = 100_000  # largest tensor that compute-sanitizer sees, which is slow, and that runs in turns
REPEATS = 100
BENCHMARK_DTYPE = "float16"  # of operators that take it

State = Literal["passed", "failed", "skipped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorCheck:
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


def checks_of(operator: Operator, seed: int) -> tuple[list[OperatorCheck], list[Line]]:
    """Fresh inputs for every sample and dtype, with what must come out; and what could not be made, with the reason."""
    made: list[OperatorCheck] = []
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
            check = _check(operator, sample, dtype, seed, name)
            if check is None:
                reason = f"in {TRIES} random inputs a decision always hung on rounding"
                lines.append(Line(step="kernels", subject=name, state="skipped", detail=reason))
            else:
                made.append(check)
    return [*made, *_wrong_data(operator, seed)], lines


def _wrong_data(operator: Operator, seed: int) -> list[OperatorCheck]:
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
            made.append(
                OperatorCheck(case=named, operator=operator, sample=sample, dtype=dtype, seed=seed, expected=())
            )
    return made


def _check(operator: Operator, sample: Sample, dtype: str, seed: int, name: str) -> OperatorCheck | None:
    for attempt in range(TRIES):
        inputs = sample_inputs(operator, sample, dtype=dtype, seed=seed + attempt)
        expected = reference(operator.spec.op_type, tuple(as_array(tensor) for tensor in inputs), sample.attributes)
        if expected.margin > CLEAR:
            itemsize = torch.empty(0, dtype=getattr(torch, dtype)).element_size()
            return OperatorCheck(
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
            Tensor(name=described.name, dtype=dtype_name(output), shape=_sizes(shape), alias=alias, num_used=used)
        )
    return Case(
        name=name,
        op_type=spec.op_type,
        attributes=tuple((a.name, _attribute(attributes[a.name], a.kind)) for a in spec.attributes),
        inputs=tuple(
            Tensor(name=described.name, dtype=dtype_name(tensor), shape=_sizes(tensor.shape))
            for described, tensor in zip(spec.inputs, inputs, strict=True)
        ),
        outputs=tuple(outputs),
        data=tuple(_raw(tensor) for tensor in inputs),
        bytes_moved=int(spec.bytes_moved({**sample.axes, **attributes}, itemsize)),
    )


def compare(check: OperatorCheck, outputs: Sequence[Bytes]) -> list[str]:
    """What is wrong with the outputs: floats outside the contract's tolerance, or any other whole number."""
    wanted = check.expected
    # A size that the data decide may leave a tail that nobody reads.
    values = [
        _values(raw, described.dtype)[: right.size].reshape(right.shape)
        for described, raw, right in zip(check.case.outputs, outputs, wanted, strict=True)
    ]
    return differences(check.operator.spec, values, [described.dtype for described in check.case.outputs], wanted)


def _sizes(shape: Iterable[Any]) -> tuple[int, ...]:
    return tuple(int(size) for size in shape)


def _attribute(value: Any, kind: str) -> int | float | tuple[int, ...]:
    return float(value) if kind == "float" else tuple(int(v) for v in value) if kind == "ints" else int(value)


def _raw(tensor: torch.Tensor) -> Bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy() if tensor.numel() else np.empty(0, dtype=np.uint8)


def _values(raw: Bytes, dtype: str) -> Array:
    if dtype == "bfloat16":
        return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return raw.view(np.dtype(dtype))


# ---- judging ---------------------------------------------------------------------------------------------------------


def judge(
    checks: Sequence[OperatorCheck], results: Mapping[str, Mapping[str, Any]], outputs: Callable[[Case], list[Bytes]]
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


def check_turns(runner: CaseRunner, checks: Sequence[OperatorCheck], deadline: float) -> list[Line]:
    """Sizes that change between calls: every case of an operator in one stream and one workspace."""
    cases = [check.case for check in checks if not check.case.must_report and _largest(check.case) <= SMALL_BYTES]
    found = runner.run_in_turns(cases, deadline=deadline, step="turns")
    lines = []
    for op_type in dict.fromkeys(case.op_type for case in cases):
        problems = found.get(op_type)
        state: State = "skipped" if problems is None else "failed" if problems else "passed"
        number = sum(case.op_type == op_type for case in cases)
        detail = f"{NO_TIME}, or the GPU was lost" if problems is None else "; ".join(problems) or f"{number} sizes"
        lines.append(Line(step="turns", subject=op_type, state=state, detail=detail))
    return lines


def check_sanitizer(runner: CaseRunner, checks: Sequence[OperatorCheck], tool: str, sm: int, deadline: float) -> Line:
    """One tool of compute-sanitizer over the small cases."""
    cases = [check.case for check in checks if _largest(check.case) <= SMALL_BYTES]
    try:
        found = sanitize(runner, cases, tool, sm, deadline)
    except (OSError, NativeError, TimeoutExpired) as error:
        found = Sanitized(is_fine=None, detail=f"the program with a planted mistake could not be made: {error}")
    state: State = "skipped" if found.is_fine is None else "passed" if found.is_fine else "failed"
    return Line(step=f"sanitizer-{tool}", subject="kernels", state=state, detail=found.detail)


def _largest(case: Case) -> int:
    return max(max(data.nbytes for data in case.data), max(tensor.num_bytes for tensor in case.outputs))


def check_plugins(
    checks: Sequence[OperatorCheck], sm: int, given: Path | None, folder: Path, deadline: float
) -> list[Line]:
    """The TensorRT plugins through their harness: enqueue, sizes that change, a captured graph."""

    def line(state: State, subject: str, detail: str) -> Line:
        return Line(step="plugins", subject=subject, state=state, detail=detail)

    try:
        here = list(plugin_harness.all_headers().values())
        headers = tensorrt_headers(given) if given else here[-1] if here else None
        if headers is None:
            return [line("skipped", "harness", plugin_harness.NO_HEADERS)]
        if deadline - time.monotonic() < RESERVE_S:
            return [line("skipped", "harness", NO_TIME)]
        (outcome,) = build(only=("tensorrt",), cuda=[sm], tensorrt=headers)
        if outcome.library is None:
            return [line("skipped", "harness", outcome.note)]
        folder.mkdir()
        program = plugin_harness.harness_on_gpu(folder, headers)
    except (TrtCompressError, OSError) as error:
        return [line("failed", "harness", f"the plugins or their harness do not compile: {error}")]
    held = [check for check in checks if check.operator.spec.op_type in outcome.library.operators]
    lines = []
    for op_type in dict.fromkeys(check.operator.spec.op_type for check in held):
        asked = [check for check in held if check.operator.spec.op_type == op_type and not check.case.must_report]
        inside = folder / op_type
        inside.mkdir()
        try:
            answers = _ask_plugins(program, outcome.library.path, asked, inside, deadline)
        except NativeError as error:
            lines.append(line("failed", op_type, str(error)))
        except TimeoutExpired:
            lines.append(line("skipped", op_type, NO_TIME))
        else:
            lines += [_judge_plugin(check, answers[check.case.name]) for check in asked]
    return lines


def _ask_plugins(
    program: Path, library: Path, asked: Sequence[OperatorCheck], folder: Path, deadline: float
) -> Mapping[str, Mapping[str, Any]]:
    questions = [
        plugin_harness.Question(operator=check.operator, sample=check.sample, dtype=check.dtype, seed=check.seed)
        for check in asked
    ]
    text = [
        text
        for check, question in zip(asked, questions, strict=True)
        for text in question.lines(folder, changes=_largest(check.case) <= SMALL_BYTES)
    ]
    seconds = max(deadline - time.monotonic(), 1.0)
    answers: Mapping[str, Mapping[str, Any]] = plugin_harness.ask(
        program, library, text, folder, enqueue=True, timeout_s=seconds
    ).cases
    return answers


def _judge_plugin(check: OperatorCheck, answer: Mapping[str, Any]) -> Line:
    problems = [*answer["problems"], *answer["errors"]]
    written = answer.get("outputs", [])
    if len(written) == len(check.expected):
        problems += compare(check, [np.fromfile(output["path"], dtype=np.uint8) for output in written])
    state: State = "failed" if problems else "passed"
    detail = "; ".join(problems) or f"graph: {answer.get('graph', 'not reached')}, {answer.get('changes', 0)} changes"
    return Line(step="plugins", subject=check.case.name, state=state, detail=detail)


# ---- the command -----------------------------------------------------------------------------------------------------


def device_record(clock: DeviceClock, given: argparse.Namespace) -> dict[str, Any]:
    """What every result of this run was measured with."""
    nvcc = command_output("nvcc", "--version") or ""
    return {
        **measured_with("gpu_check", commit=given.commit),
        "step": "run",
        "result_version": RESULT_VERSION,
        "kernels": source_hash("cuda"),
        "gpu": clock.facts(),
        "nvcc": nvcc.strip().splitlines()[-1:] or None,
        "seed": given.seed,
        "minutes": given.minutes,
    }


def run(given: argparse.Namespace, clock: DeviceClock, report: Report, folder: Path) -> None:
    """All steps in order, each as far as time allows."""
    start = time.monotonic()
    end = start + 60.0 * float(given.minutes)
    sm = int(clock.facts()["sm"])
    print(f"building the kernels for SM {sm}", file=sys.stderr)
    with ThreadPoolExecutor(1) as pool:
        building = pool.submit(build, only=("cuda",), cuda=[sm])
        made = {o.spec.op_type: checks_of(o, given.seed) for o in operators().values()}
        (outcome,) = building.result()
    if outcome.library is None:
        raise PluginError(f"The kernels were not built: {outcome.note}.")
    report(Line(step="build", subject=f"SM {sm}", state="passed", detail=f"{outcome.seconds:.1f} s",
                numbers={"seconds": round(outcome.seconds, 1), "was_built": outcome.was_built}))  # fmt: skip
    runner = CaseRunner(outcome.library.path, folder)
    checks: list[OperatorCheck] = []
    for op_type, (own, lines) in made.items():
        if op_type in outcome.library.operators:
            checks += own
        else:
            lines = [Line(step="kernels", subject=op_type, state="skipped", detail="it has no CUDA kernel")]
        for line in lines:
            report(line)
    cases = [check.case for check in checks]

    def until(share: float) -> float:
        return start + share * (end - start)

    results = runner.run(cases, deadline=until(0.5), step="kernels")
    for line in judge(checks, results, lambda case: runner.outputs(case, "kernels")):
        report(line)
    for line in check_turns(runner, checks, until(0.55)):
        report(line)
    timed = benchmark_cases([o for t, o in operators().items() if t in outcome.library.operators], given.seed)
    copied = copy_bytes_per_s(clock, until(0.6))
    report(
        Line(step="benchmark", subject="copy", state="passed", detail=f"{copied / 1e9:.0f} GB/s",
             numbers={"gb_per_s": round(copied / 1e9, 2)})
    )  # fmt: skip
    timings = runner.run(timed, repeats=REPEATS, deadline=until(0.62), step="benchmark")
    for line in judge_speed(timed, timings, copied):
        report(line)
    for line in check_plugins(checks, sm, given.tensorrt, folder / "plugins", until(0.78)):
        report(line)
    for tool, share in (("memcheck", 0.89), ("racecheck", 1.0)):
        report(check_sanitizer(runner, checks, tool, sm, until(share)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; 0: all passed, 3: something failed, 2: not possible here."""
    parser = argparse.ArgumentParser(prog="gpu-check", description=__doc__)
    parser.add_argument("--minutes", type=float, default=9.0, help="time for everything (default: 9)")
    parser.add_argument("--seed", type=int, default=None, help="of the random inputs (default: another each time)")
    parser.add_argument("--tensorrt", type=Path, default=None, help="folder of NvInfer.h, as for `plugins build`")
    parser.add_argument("--commit", default=None, help="what to record where the sources are no git checkout")
    parser.add_argument("--output", type=Path, default=Path("out/gpu_check.jsonl"), help="results, one JSON a line")
    given = parser.parse_args(arguments)
    given.seed = random.randrange(1 << 30) if given.seed is None else given.seed
    lines: list[Line] = []
    try:
        clock = _clock()
        with temporary_folder("gpu-check") as folder:
            record = device_record(clock, given)
            write_line(given.output, record)
            gpu = record["gpu"]
            print(f"{gpu['name']}, SM {gpu['sm']}, CUDA {gpu['cuda']}, seed {given.seed}", flush=True)

            def report(line: Line) -> None:
                lines.append(line)
                write_line(given.output, line.to_json())
                if line.step not in ("kernels", "plugins", "turns") or line.state != "passed":
                    print(f"{line.state:8}{line.step:20}{line.subject}  {line.detail}", flush=True)

            try:
                run(given, clock, report, folder)
            except TrtCompressError as error:
                if not lines:
                    raise
                report(Line(step="run", subject="it ended early", state="failed", detail=str(error)))
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


def _clock() -> CudaClock:
    """The clock of the GPU.

    Raises:
        UnsupportedError: There is none, or no nvcc to compile for it.
    """
    clock = CudaClock("gpu-check")
    if find_program("nvcc") is None:
        raise UnsupportedError(
            "gpu-check compiles the kernels for this GPU, and nvcc is not on the path; install CUDA."
        )
    return clock


if __name__ == "__main__":
    sys.exit(main())
