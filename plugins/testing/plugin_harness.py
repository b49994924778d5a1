"""Build the plugin harness, ask it about operators and their samples, and read what it says.

The harness (`harness/plugin_harness.cpp`) takes TensorRT plugins through their life; it needs the headers of TensorRT
only.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trt_compress.cache import cache_folder
from trt_compress.children import run
from trt_compress.errors import ConfigError, NativeError, PluginError, ShapeError
from trt_compress.files import write_whole
from trt_compress.plugins.build import tensorrt_headers, tensorrt_version
from trt_compress.plugins.operator import Operator
from trt_compress.plugins.spec import DOMAIN, Sample
from trt_compress.plugins.testing import call_torch, sample_inputs

SOURCE = Path(__file__).with_name("harness") / "plugin_harness.cpp"
HEADERS = cache_folder() / "tensorrt"
NO_HEADERS = (
    "no TensorRT headers: they are looked for where TensorRT's packages put them (as `plugins build` does), and in "
    f"{HEADERS}/<version>, which may be a link to the folder of NvInfer.h"
)
# Plugins have no UINT8; packed bytes go by INT8.
PLUGIN_DTYPES: Mapping[str, str] = {"uint8": "int8"}


def all_headers() -> dict[str, Path]:
    """Folders of NvInfer.h by version: the one that is installed, and those in the cache folder."""
    folders = [tensorrt_headers(), *(HEADERS.iterdir() if HEADERS.is_dir() else ())]
    found: dict[str, Path] = {}
    for folder in filter(None, folders):
        try:
            headers = tensorrt_headers(folder)
        except PluginError:
            continue
        if headers is not None:
            found.setdefault(tensorrt_version(headers), headers)
    return dict(sorted(found.items()))


def harness_on_gpu(folder: Path, headers: Path) -> Path:
    """The harness with the real CUDA runtime; it starts without a GPU too, and then does not enqueue.

    Raises:
        NativeError: nvcc does not compile it.
        OSError: There is no nvcc.
    """
    program = folder / "plugin_harness"
    done = run(["nvcc", "-std=c++17", "-isystem", str(headers), str(SOURCE), "-o", str(program), "-ldl"])
    if done.returncode:
        said = done.stderr.decode(errors="replace").splitlines()
        errors = [line for line in said if "error" in line] or said
        raise NativeError("\n".join([f"nvcc ended with {done.returncode}:", *errors[:20]]))
    return program


def plugin_dtype(tensor: Tensor) -> str:
    """The dtype by TensorRT's name."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    return PLUGIN_DTYPES.get(dtype, dtype)


@dataclass(frozen=True, kw_only=True)
class Question:
    """One sample of one operator in one dtype."""

    operator: Operator
    sample: Sample
    dtype: str = "float32"
    seed: int = 0

    @property
    def label(self) -> str:
        number = self.operator.samples.index(self.sample)
        return f"{self.operator.spec.torch_name}-{number}-{self.dtype}"

    @cached_property
    def inputs(self) -> tuple[Tensor, ...]:
        return sample_inputs(self.operator, self.sample, dtype=self.dtype, seed=self.seed)

    @cached_property
    def outputs(self) -> tuple[Tensor, ...]:
        return call_torch(self.operator, self.sample, self.inputs)

    @property
    def others(self) -> list[tuple[list[list[int]], list[list[int]]]]:
        """Shapes of inputs and outputs for other sizes that the same attributes allow: one more item, more tokens."""
        return [
            ([list(tensor.shape) for tensor in inputs], [list(tensor.shape) for tensor in outputs])
            for inputs, outputs in self.other_tensors
        ]

    @cached_property
    def other_tensors(self) -> list[tuple[tuple[Tensor, ...], tuple[Tensor, ...]]]:
        """Inputs and outputs of these other sizes."""
        found = []
        for axis, more in (("B", 1), ("N", 3), ("T", 1)):
            if axis not in self.sample.axes:
                continue
            changed = replace(self.sample, axes={**self.sample.axes, axis: self.sample.axes[axis] + more})
            try:
                inputs = sample_inputs(self.operator, changed, dtype=self.dtype)
                outputs = call_torch(self.operator, changed, inputs)
                found.append((inputs, outputs))
            except (ConfigError, ShapeError, RuntimeError, IndexError):
                continue  # these attributes belong to the sample's sizes
        return found

    def lines(self, folder: Path | None, *, changes: bool = True) -> Iterable[str]:
        """The question as the harness reads it; with a folder the inputs are written there, and if there shall be
        changes of the sizes, those of the other sizes."""
        spec = self.operator.spec
        yield f"case {self.label}"
        yield f"plugin {spec.op_type} {spec.version} {DOMAIN}"
        for attribute in spec.attributes:
            value = self.sample.attributes[attribute.name]
            values = value if isinstance(value, Sequence) else [value]
            yield f"field {attribute.name} declared {' '.join(map(repr, values))}"
        for described, tensor in zip(spec.inputs, self.inputs, strict=True):
            # No two dimensions of a network are known to be the same one.
            dims = [f"{described.name}.{axis}={size}" for axis, size in enumerate(tensor.shape)]
            yield f"input {described.name} {plugin_dtype(tensor)} {' '.join(dims)}"
            if folder is not None:
                path = folder / f"{self.label}.{described.name}.in"
                write_whole(path, raw_bytes(tensor))
                yield f"data {described.name} {path}"
        for number, (tensors, _) in enumerate(self.other_tensors):
            sizes = [
                f"{described.name}.{axis}={size}"
                for described, tensor in zip(spec.inputs, tensors, strict=True)
                for axis, size in enumerate(tensor.shape)
            ]
            yield f"bind {' '.join(sizes)}"
            if folder is None or not changes:
                continue
            for described, tensor in zip(spec.inputs, tensors, strict=True):
                path = folder / f"{self.label}.{described.name}.{number}.in"
                write_whole(path, raw_bytes(tensor))
                yield f"data {described.name} {path}"
        yield "run"


def raw_bytes(tensor: Tensor) -> bytes:
    """The values as they lie in memory."""
    return bytes(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()) if tensor.numel() else b""


def tensor_from(path: Path, like: Tensor, shape: Sequence[int]) -> Tensor:
    """The tensor that the harness wrote, in the dtype of `like`."""
    data = bytearray(path.read_bytes())
    flat = torch.frombuffer(data, dtype=like.dtype) if data else torch.empty(0, dtype=like.dtype)
    return flat.reshape(list(shape))


def ask(
    program: Path, library: Path, lines: Iterable[str], folder: Path, *, enqueue: bool, timeout_s: float | None = None
) -> "HarnessAnswers":
    """Run the harness on a request.

    Raises:
        NativeError: It did not end well.
        subprocess.TimeoutExpired: It was ended after `timeout_s`.
    """
    request = folder / "request.txt"
    write_whole(request, "\n".join([*lines, ""]))
    command = [str(program), str(library), str(request), *(["--enqueue", str(folder)] if enqueue else [])]
    done = run(command, timeout=timeout_s)
    answers = [json.loads(line) for line in done.stdout.decode().splitlines()]
    last = answers[-1].get("case", "the library") if answers else "nothing"
    if done.returncode:
        raise NativeError(f"ended with {done.returncode} after {last}:\n{done.stderr.decode(errors='replace')[-3000:]}")
    return HarnessAnswers(library=answers[0], cases={answer["case"]: answer for answer in answers[1:]})


@dataclass(frozen=True, slots=True, kw_only=True)
class HarnessAnswers:
    """What the harness said: of the library, and of each case by its label."""

    library: dict[str, Any]
    cases: dict[str, dict[str, Any]]


def input_types(operator: Operator) -> set[tuple[str, ...]]:
    """Every combination of types that the contract allows for the inputs."""
    spec = operator.spec
    choices = [[PLUGIN_DTYPES.get(dtype, dtype) for dtype in tensor.dtypes] for tensor in spec.inputs]
    names = [tensor.name for tensor in spec.inputs]
    leaders = [names.index(tensor.same_dtype_as) if tensor.same_dtype_as else None for tensor in spec.inputs]
    return {
        types
        for types in product(*choices)
        if all(leader is None or types[leader] == types[i] for i, leader in enumerate(leaders))
    }
