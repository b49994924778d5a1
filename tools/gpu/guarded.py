"""Run kernels through the C interface of libtrtc_cuda, between guard bytes, and say what they did wrong.

What a device is stands in `Device`: a GPU (`tools/gpu/device.py`), or the emulation of the tests.
"""

import json
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from trt_compress.errors import PluginError
from trt_compress.plugins.cuda_library import CudaLibrary, Described, PreparedCall

Array = np.ndarray[Any, np.dtype[Any]]
Bytes = np.ndarray[Any, np.dtype[np.uint8]]

ITEM_BYTES: Mapping[str, int] = {"float32": 4, "uint8": 1, "int32": 4, "int64": 8, "float16": 2, "bfloat16": 2}

GUARD_BYTES = 256
GUARD = 0xA5
FILLS = (0xCC, 0x33, 0xCC)  # of outputs and scratch memory before each run: what is left of it shows


class Captured(Protocol):
    """A captured graph: to be called, and closed."""

    def __call__(self) -> None: ...
    def close(self) -> None: ...


class Device(Protocol):
    """Memory and a stream: a GPU, or the emulation of the tests."""

    can_capture: bool

    @property
    def stream(self) -> int | None:
        """What kernels are launched on: a CUDA stream's handle."""
        ...

    def allocate(self, num_bytes: int) -> int: ...
    def free(self, pointer: int) -> None: ...
    def write(self, pointer: int, data: Bytes) -> None: ...
    def read(self, pointer: int, num_bytes: int) -> Bytes: ...
    def fill(self, pointer: int, value: int, num_bytes: int) -> None: ...
    def synchronize(self) -> None:
        """Wait for the stream; a PluginError says what a kernel did wrong."""
        ...

    def before_run(self, number: int) -> None:
        """Called before each run of a case; the emulation takes another order of threads."""
        ...

    def captured(self, call: Callable[[], object]) -> "Captured":
        """`call` captured in a CUDA graph; what comes back launches it when it is called."""
        ...

    def latencies_us(self, call: Callable[[], object], repeats: int) -> list[float]:
        """Times of `call` on the stream alone, with cold caches."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """One input or output of a case.

    `alias` is the input that an output is written into. `num_used` is how many values of an output are written, where
    the data decide that; None: all.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    alias: int | None = None
    num_used: int | None = None

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    @property
    def used_bytes(self) -> int:
        """Bytes that a kernel must write."""
        return self.num_bytes if self.num_used is None else self.num_used * ITEM_BYTES[self.dtype]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One call of one operator. Outputs have the largest size they may have.

    With `must_report` the data is wrong: the kernel must report a fault and write nothing.
    """

    name: str
    op_type: str
    attributes: tuple[tuple[str, int | float | tuple[int, ...]], ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    data: tuple[Bytes, ...]
    bytes_moved: int = 0
    must_report: bool = False

    def save(self, folder: Path) -> None:
        """Write to `<folder>/<name>.npz`."""
        described = {
            "name": self.name,
            "op_type": self.op_type,
            "attributes": self.attributes,
            "inputs": [_tensor_json(tensor) for tensor in self.inputs],
            "outputs": [_tensor_json(tensor) for tensor in self.outputs],
            "bytes_moved": self.bytes_moved,
            "must_report": self.must_report,
        }
        arrays: dict[str, Any] = {f"input{i}": data for i, data in enumerate(self.data)}
        np.savez(folder / f"{self.name}.npz", described=np.array(json.dumps(described)), **arrays)

    @staticmethod
    def load(path: Path) -> "Case":
        """Read what `save` wrote."""
        with np.load(path) as file:
            described = json.loads(str(file["described"]))
            data = tuple(file[f"input{i}"] for i in range(len(described["inputs"])))
        attributes = ((name, tuple(v) if isinstance(v, list) else v) for name, v in described["attributes"])
        return Case(
            name=described["name"],
            op_type=described["op_type"],
            attributes=tuple(attributes),
            inputs=tuple(_tensor_of(tensor) for tensor in described["inputs"]),
            outputs=tuple(_tensor_of(tensor) for tensor in described["outputs"]),
            data=data,
            bytes_moved=described["bytes_moved"],
            must_report=described["must_report"],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """What came of one case: raw outputs, and every rule that was broken."""

    outputs: tuple[Bytes, ...]
    problems: tuple[str, ...]
    latencies_us: tuple[float, ...] = ()
    was_captured: bool = False

    def to_json(self, name: str) -> dict[str, Any]:
        """Without the outputs."""
        times = sorted(self.latencies_us)
        return {
            "case": name,
            "problems": list(self.problems),
            "has_outputs": bool(self.outputs),
            "was_captured": self.was_captured,
            "repeats": len(times),
            "median_us": round(statistics.median(times), 3) if times else None,
            "min_us": round(times[0], 3) if times else None,
            "p90_us": round(times[int(0.9 * (len(times) - 1))], 3) if times else None,
        }


class Kernels:
    """libtrtc_cuda."""

    def __init__(self, path: Path) -> None:
        self._library = CudaLibrary(path)

    def op_types(self) -> tuple[str, ...]:
        """The operators it holds."""
        return self._library.op_types()

    def prepare(self, case: Case) -> PreparedCall:
        """The case as the library takes it, without pointers."""
        return self._library.prepare(
            case.op_type,
            [value for _, value in case.attributes],
            [Described(tensor.dtype, tensor.shape) for tensor in case.inputs],
            [Described(tensor.dtype, tensor.shape) for tensor in case.outputs],
        )

    def workspace_bytes(self, case: Case) -> int:
        """Scratch memory that the case needs."""
        return self.prepare(case).workspace_bytes

    def enqueue(self, case: Case, pointers: Sequence[int], workspace: int, stream: int | None) -> None:
        """Launch on `stream`; pointers of the inputs, then of the outputs."""
        self.prepare(case).enqueue(pointers, workspace, stream)

    def take_fault(self) -> str:
        """What a kernel found wrong with its data since the last call, or nothing."""
        return self._library.take_fault()


def run_case(kernels: Kernels, device: Device, case: Case, *, once: bool = False, repeats: int = 0) -> Ran:
    """Run one case under every rule.

    Args:
        kernels: The library.
        device: Where it runs.
        case: Inputs, and sizes of the outputs.
        once: One run only, each tensor in memory of its own size: for compute-sanitizer.
        repeats: Also time this many runs.
    """
    problems: list[str] = []

    def note(fine: bool, problem: str) -> None:
        if not fine and problem not in problems:
            problems.append(problem)

    # Without guard bytes the sanitizer sees what is read beyond a tensor too.
    guard = 0 if once else GUARD_BYTES
    try:
        first = _run(kernels, device, case, 0, note, guard=guard)
        if case.must_report:
            for tensor, found in zip(case.outputs, first, strict=True):
                before = FILLS[0] if tensor.alias is None else case.data[tensor.alias]
                note(bool((found == before).all()), f"wrong data, and yet output {tensor.name} was written")
            return Ran(outputs=(), problems=tuple(problems))
        is_aliased = any(tensor.alias is not None for tensor in case.outputs)
        if not once:
            for number in (1, 2):
                again = _run(kernels, device, case, number, note)
                note(_same(case, first, again), "a second run gives other bits, or an output is not written everywhere")
            if is_aliased:
                apart = _run(kernels, device, case, 1, note, in_place=False)
                note(_same(case, first, apart), "in place and copied outputs differ")
        captures = device.can_capture and not once
        if captures:
            replayed = _run(kernels, device, case, 1, note, capture=True)
            note(_same(case, first, replayed), "a captured CUDA graph gives other bits")
        times = _time(kernels, device, case, repeats) if repeats and not problems else []
    except PluginError as error:
        return Ran(outputs=(), problems=(*problems, str(error)))
    return Ran(outputs=first, problems=tuple(problems), latencies_us=tuple(times), was_captured=captures)


@dataclass(slots=True)
class _Memory:
    """Buffers between guard bytes; everything is freed at the end."""

    device: Device
    guard: int
    sizes: dict[int, int] = field(default_factory=dict)

    def make(self, num_bytes: int) -> int:
        start = self.device.allocate(num_bytes + 2 * self.guard)
        self.device.fill(start, GUARD, num_bytes + 2 * self.guard)
        self.sizes[start + self.guard] = num_bytes
        return start + self.guard

    def is_whole(self, pointer: int) -> bool:
        size = self.sizes[pointer]
        after = self.device.read(pointer + size, self.guard)
        before = self.device.read(pointer - self.guard, self.guard)
        return bool((before == GUARD).all() and (after == GUARD).all())

    def close(self) -> None:
        for pointer in self.sizes:
            self.device.free(pointer - self.guard)


@contextmanager
def _memory(device: Device, guard: int = GUARD_BYTES) -> Iterator[_Memory]:
    memory = _Memory(device, guard)
    try:
        yield memory
    finally:
        memory.close()


def _run(
    kernels: Kernels,
    device: Device,
    case: Case,
    number: int,
    note: Callable[[bool, str], None],
    *,
    in_place: bool = True,
    capture: bool = False,
    guard: int = GUARD_BYTES,
) -> tuple[Bytes, ...]:
    """One run on fresh memory; the outputs."""
    prepared = kernels.prepare(case)
    scratch_bytes = prepared.workspace_bytes
    with _memory(device, guard) as memory:
        inputs = [memory.make(tensor.num_bytes) for tensor in case.inputs]
        owned = [memory.make(tensor.num_bytes) for tensor in case.outputs]
        outputs = [
            inputs[tensor.alias] if in_place and tensor.alias is not None else own
            for tensor, own in zip(case.outputs, owned, strict=True)
        ]
        scratch = memory.make(scratch_bytes)

        def refill() -> None:
            for pointer, data in zip(inputs, case.data, strict=True):
                device.write(pointer, data)
            for pointer, tensor in zip(owned, case.outputs, strict=True):
                device.fill(pointer, FILLS[number], tensor.num_bytes)
            device.fill(scratch, FILLS[number], scratch_bytes)

        def enqueue() -> None:
            prepared.enqueue([*inputs, *outputs], scratch, device.stream)

        refill()
        device.before_run(number)
        if capture:
            launch = device.captured(enqueue)
            for _ in range(2):
                refill()
                launch()
                device.synchronize()
            launch.close()
        else:
            enqueue()
            device.synchronize()
        fault = kernels.take_fault()
        if case.must_report:
            note(bool(fault), "wrong data was not reported")
        else:
            note(not fault, f"a fault was reported: {fault}")
        replaced = {tensor.alias for tensor in case.outputs} if in_place else set()
        for i, (tensor, pointer) in enumerate(zip(case.inputs, inputs, strict=True)):
            note(memory.is_whole(pointer), f"wrote beyond input {tensor.name}")
            unchanged = np.array_equal(device.read(pointer, tensor.num_bytes), case.data[i])
            note(i in replaced or unchanged, f"wrote into input {tensor.name}")
        for tensor, pointer in zip(case.outputs, owned, strict=True):
            note(memory.is_whole(pointer), f"wrote beyond output {tensor.name}")
        note(memory.is_whole(scratch), "wrote beyond its workspace")
        return tuple(
            device.read(pointer, tensor.num_bytes) for tensor, pointer in zip(case.outputs, outputs, strict=True)
        )


def run_in_turns(kernels: Kernels, device: Device, cases: Sequence[Case], seed: int = 0) -> list[str]:
    """Sizes that change between calls: all cases in one stream, one after the other and without waiting, in an order
    that `seed` makes, with one workspace for all. Each must give what it gives alone.

    Args:
        kernels: The library.
        device: Where they run.
        cases: Of one operator; its data must be right.
        seed: Of the order.

    Returns:
        Every rule that was broken.
    """
    prepared = [kernels.prepare(case) for case in cases]
    scratch_bytes = max((call.workspace_bytes for call in prepared), default=0)
    problems = []
    with _memory(device) as memory:
        scratch = memory.make(scratch_bytes)
        inputs = [[memory.make(tensor.num_bytes) for tensor in case.inputs] for case in cases]
        outputs = [[memory.make(tensor.num_bytes) for tensor in case.outputs] for case in cases]

        def read(number: int) -> list[Bytes]:
            described = zip(cases[number].outputs, outputs[number], strict=True)
            return [device.read(pointer, tensor.num_bytes) for tensor, pointer in described]

        alone = []
        for turn in range(2):
            for case, sources, targets in zip(cases, inputs, outputs, strict=True):
                for pointer, data in zip(sources, case.data, strict=True):
                    device.write(pointer, data)
                for pointer, tensor in zip(targets, case.outputs, strict=True):
                    device.fill(pointer, FILLS[turn], tensor.num_bytes)
            device.fill(scratch, FILLS[turn], scratch_bytes)
            order = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(cases)), 3 if turn else 1))
            for number in order if turn else range(len(cases)):
                prepared[number].enqueue([*inputs[number], *outputs[number]], scratch, device.stream)
                if not turn:
                    device.synchronize()
                    alone.append(read(number))
            device.synchronize()
        fault = kernels.take_fault()
        problems += [f"a fault was reported: {fault}"] if fault else []
        problems += [
            f"{case.name}: other bits than alone"
            for number, case in enumerate(cases)
            if not _same(case, alone[number], read(number))
        ]
        if not all(memory.is_whole(pointer) for pointer in memory.sizes):
            problems.append("wrote beyond a tensor or the workspace")
    return problems


def _time(kernels: Kernels, device: Device, case: Case, repeats: int) -> list[float]:
    prepared = kernels.prepare(case)
    with _memory(device) as memory:
        inputs = [memory.make(tensor.num_bytes) for tensor in case.inputs]
        for pointer, data in zip(inputs, case.data, strict=True):
            device.write(pointer, data)
        owned = [memory.make(tensor.num_bytes) for tensor in case.outputs]
        outputs = [
            own if tensor.alias is None else inputs[tensor.alias]
            for tensor, own in zip(case.outputs, owned, strict=True)
        ]
        scratch = memory.make(prepared.workspace_bytes)
        pointers = [*inputs, *outputs]
        return device.latencies_us(lambda: prepared.enqueue(pointers, scratch, device.stream), repeats)


def _same(case: Case, first: Sequence[Bytes], second: Sequence[Bytes]) -> bool:
    used = [tensor.used_bytes for tensor in case.outputs]
    return all(np.array_equal(a[:n], b[:n]) for a, b, n in zip(first, second, used, strict=True))


def _tensor_json(tensor: Tensor) -> list[Any]:
    return [tensor.name, tensor.dtype, list(tensor.shape), tensor.alias, tensor.num_used]


def _tensor_of(described: Sequence[Any]) -> Tensor:
    name, dtype, shape, alias, num_used = described
    return Tensor(name=name, dtype=dtype, shape=tuple(shape), alias=alias, num_used=num_used)
