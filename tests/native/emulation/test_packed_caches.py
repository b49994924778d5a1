"""KVQuantize, KVDequantize, KVAttention in the emulation: hard calls, against the reference; what is refused."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.native.emulation.building import PLUGINS, cuda_library
from tests.native.emulation.host_device import HostDevice
from tests.native.kv_cases import (
    Call,
    attention,
    attention_calls,
    attention_problem,
    dequantize_call,
    exact_problem,
    plain_calls,
    poison_others,
    quantize_calls,
    shared_dequantize_calls,
)
from trt_compress.errors import PluginError
from trt_compress.plugins.registry import operators
from trt_compress.plugins.spec import Sample
from trt_compress.tools.gpu.check import case_of
from trt_compress.tools.gpu.guarded import Bytes, Case, Kernels, run_case
from trt_compress.tools.gpu.guarded import Tensor as Described

TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "uint8": torch.uint8}
NOTHING = torch.zeros(0, dtype=torch.uint8).numpy()
MOST_TOKENS = 300  # of a call here: the emulation is slow
MOST_PLAIN_QUERIES = 64
AXES = dict.fromkeys("BHGTLDK", 1)


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert all(
        (PLUGINS / name / "cuda_op.cpp").is_file() for name in ("kv_attention", "kv_attention_plain", "kv_quantize")
    )
    return cuda_library(tmp_path_factory.mktemp("emulated"), ["-O2"])


def run(call: Call, library: Path) -> tuple[list[Tensor], str]:
    """Outputs, and what was broken of the rules of gpu-check in three orders of threads."""
    operator = operators()[call.op_type]
    sample = Sample(axes=AXES, attributes={**call.attributes}, reason=call.name)
    case = case_of(operator, sample, call.inputs, "case", 4)
    ran = run_case(Kernels(library), HostDevice(library), case)
    found = [_tensor(raw, output) for raw, output in zip(ran.outputs, case.outputs, strict=True)] if ran.outputs else []
    return found, "; ".join(ran.problems)


def _tensor(raw: Bytes, described: Described) -> Tensor:
    return torch.frombuffer(bytearray(raw.tobytes()) or bytearray(8), dtype=TYPES[described.dtype])[
        : raw.nbytes // (1 if described.dtype == "uint8" else TYPES[described.dtype].itemsize)
    ].reshape(described.shape)


@pytest.mark.parametrize("calls", [attention_calls, plain_calls], ids=["codes", "plain"])
def test_attention(calls: Callable[[], list[Call]], emulated: Path) -> None:
    wrong = {}
    for call in calls():
        if call.op_type == "TrtcKVAttentionPlain" and math.prod(call.inputs[0].shape[:3]) > MOST_PLAIN_QUERIES:
            continue
        if call.inputs[1].shape[2] > MOST_TOKENS and "splits" not in call.name and "one query" not in call.name:
            continue
        found, problem = run(call, emulated)
        problem = problem or attention_problem(call, found[0], found[1])
        if problem:
            wrong[call.name] = problem
    assert wrong == {}


def test_quantization_there_and_back(emulated: Path) -> None:
    wrong = {}
    for index, call in enumerate(quantize_calls()):
        packed, problem = run(call, emulated)
        wrong[call.name] = problem or exact_problem(call, packed)
        if problem:
            continue
        back = dequantize_call(call, packed, (1, 10, 16)[index % 3])
        values, problem = run(back, emulated)
        wrong[back.name] = problem or exact_problem(back, values)
    assert {name: problem for name, problem in wrong.items() if problem} == {}


def test_scales_that_heads_or_items_share(emulated: Path) -> None:
    wrong = {}
    for call in shared_dequantize_calls():
        values, problem = run(call, emulated)
        wrong[call.name] = problem or exact_problem(call, values)
    assert {name: problem for name, problem in wrong.items() if problem} == {}


@pytest.mark.parametrize("sides", [{}, {"ranks": (2, 1), "block": 8}, {"ranks": (1, 1), "turned": 12}])
def test_what_lies_behind_the_length_is_not_used(sides: dict[str, Any], emulated: Path) -> None:
    """Scales of slots that were never written may be anything, NaN included."""
    used = (40, 23, 0)
    call = attention(
        "unused slots", b=3, h=6, g=2, t=2, k=(4, 1, 4), v=(4, 1, 0), used=used, causal=1,
        **sides,
    )  # fmt: skip
    wanted, _ = run(call, emulated)
    for at in (2, 3, 5, 6, *([10, 12] if sides else [])):
        for item, first in enumerate(used):
            call.inputs[at][item, :, first:] = torch.nan
    found, problem = run(call, emulated)
    assert problem == ""
    assert all(torch.equal(one, two) for one, two in zip(found, wanted, strict=True))


@pytest.mark.parametrize(
    ("plain", "sides"),
    [
        ("", {}),
        ("float16", {}),
        ("", {"ranks": (2, 1), "block": 8}),
        ("", {"ranks": (1, 1), "turned": 12, "table": (2, 2)}),
    ],
)
def test_slots_that_are_not_chosen_are_not_used(plain: str, sides: dict[str, Any], emulated: Path) -> None:
    call = attention(
        "chosen",
        b=2,
        h=6,
        g=2,
        t=2,
        k=(4, 1, 4),
        v=(4, 1, 0),
        used=(40, 23),
        chosen=(2, 2, 9),
        causal=1,
        plain=plain,
        **sides,
    )
    wanted, _ = run(call, emulated)
    poison_others(call)
    found, problem = run(call, emulated)
    assert problem == ""
    assert all(torch.equal(one, two) for one, two in zip(found, wanted, strict=True))


def described(name: str, dtype: str, *shape: int) -> Described:
    return Described(name=name, dtype=dtype, shape=shape)


def huge(op_type: str, inputs: Sequence[Described], outputs: Sequence[Described], **attributes: float) -> Case:
    """A call without data: what is asked for before anything is launched needs none."""
    given = tuple((name, value) for name, value in attributes.items())
    data = tuple(NOTHING for _ in inputs)
    return Case(name="huge", op_type=op_type, attributes=given, inputs=tuple(inputs), outputs=tuple(outputs), data=data)


def attention_of(length: int, d: int, *, k_group: int = 0, v_group: int = 0) -> Case:
    """8-bit keys in groups of tokens and values in groups of channels, one head."""
    k_rows, v_columns = (length // k_group if k_group else 1), (d // v_group if v_group else 1)
    inputs = [
        described("q", "float32", 1, 1, 1, d),
        described("k_code", "uint8", 1, 1, length, d),
        *(described(f"k_{name}", "float32", 1, 1, k_rows, d) for name in ("scale", "minimum")),
        described("v_code", "uint8", 1, 1, length, d),
        *(described(f"v_{name}", "float32", 1, 1, length, v_columns) for name in ("scale", "minimum")),
        described("length", "int64", 1),
        described("bias", "float32", 1, 1, 1, 1),
        described("index", "int64", 1, 1, 1),
        *(described(f"{which}_{name}", "float16", 1, 1, 1, 1) for which in "kv" for name in ("factor", "basis")),
        described("rope", "float32", 1, 1, 1, 1),
    ]
    outputs = [described("y", "float32", 1, 1, 1, d), described("lse", "float32", 1, 1, 1)]
    formats = {"k_bits": 8, "k_axis": 0, "k_group": k_group, "v_bits": 8, "v_axis": 1, "v_group": v_group}
    attending = {"scale": 0.0, "causal": 0, "window": 0, "softcap": 0.0, "layout": 0, "sinks": 0, "indexed": 0}
    attending |= {"k_rank": 0, "v_rank": 0, "block": 0, "turned": 0}
    return huge("TrtcKVAttention", inputs, outputs, **formats, **attending)


def quantize_of(length: int, d: int, *, axis: int, group: int, heads: int = 1) -> Case:
    scales = (heads, 1, length // group, d) if axis == 0 else (heads, 1, length, d // group)
    outputs = [described("code", "uint8", heads, 1, length, d)]
    outputs += [described(name, "float32", *scales) for name in ("scale", "minimum")]
    inputs = [described("x", "float32", heads, 1, length, d)]
    return huge("TrtcKVQuantize", inputs, outputs, bits=8, axis=axis, group=group, scale_type=1)


def dequantize_of(length: int, d: int) -> Case:
    inputs = [described("code", "uint8", 1, 1, length, d)]
    inputs += [described(name, "float32", 1, 1, length, 1) for name in ("scale", "minimum")]
    return huge("TrtcKVDequantize", inputs, [described("x", "float32", 1, 1, length, d)], bits=8, axis=1, group=0, to=1)


def moved(op_type: str, length: int) -> Case:
    cache = described("cache", "float16", 1, 1, length, 64)
    if op_type == "TrtcKVAppend":
        inputs = [cache, described("rows", "float16", 1, 1, 1, 64), described("position", "int64", 1)]
        return huge(op_type, inputs, [described("cache_out", "float16", 1, 1, length, 64)], layout=0, sinks=0)
    inputs = [cache, described("index", "int64", 1, 1, 1)]
    return huge(op_type, inputs, [described("cache_out", "float16", 1, 1, length, 64)])


LIMIT = 2**31 - 1 - 4096  # where offsets of 32 bits end, less a tile


@pytest.mark.parametrize(
    ("fits", "too_large", "message"),
    [
        (attention_of(LIMIT // 128, 128), attention_of(LIMIT // 128 + 1, 128), "too much for the GPU form"),
        (
            attention_of(LIMIT // 64, 4),
            attention_of(LIMIT // 4, 4, v_group=1),
            "the codes or scales of one KV head take",
        ),
        (attention_of(9, 512), attention_of(9, 516), "heads of D=516 are too wide for the GPU form; at most 512"),
        (
            quantize_of(LIMIT, 1, axis=1, group=1),
            quantize_of(LIMIT + 1, 1, axis=1, group=1),
            "is too large for the GPU",
        ),
        (
            quantize_of(2, 6144, axis=1, group=1),
            quantize_of(2, 6145, axis=1, group=1),
            "6145 groups of channels are too many for the GPU form; at most 6144 are allowed: take a larger group.",
        ),
        (
            quantize_of(2**30, 1, axis=0, group=1),
            quantize_of(2**30, 1, axis=0, group=1, heads=2),
            "2147483648 groups of tokens are too many for the GPU form; at most 2147483647 are allowed",
        ),
        (dequantize_of(LIMIT, 1), dequantize_of(LIMIT + 1, 1), "is too large for the GPU form; at most 2147479551"),
        (
            moved("TrtcKVAppend", 2**24 - 1),
            moved("TrtcKVAppend", 2**24),
            "the slots of one KV head take 2147483648 bytes",
        ),
        (
            moved("TrtcKVCompact", 2**24 - 1),
            moved("TrtcKVCompact", 2**24),
            "the slots of one KV head take 2147483648 bytes",
        ),
    ],
    ids=lambda value: value.op_type if isinstance(value, Case) else "",
)
def test_what_is_too_large_is_refused(fits: Case, too_large: Case, message: str, emulated: Path) -> None:
    kernels = Kernels(emulated)
    kernels.workspace_bytes(fits)
    with pytest.raises(PluginError) as caught:
        kernels.workspace_bytes(too_large)
    assert message in str(caught.value) and str(caught.value).startswith(f"{too_large.op_type}: ")
