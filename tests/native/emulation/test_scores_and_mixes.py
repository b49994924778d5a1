"""Kernels of scores, mixes and threshold selection in the emulation, at sizes where they change their way."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.native.emulation.building import PLUGINS, cuda_library
from tests.native.emulation.host_device import HostDevice
from trt_compress.errors import PluginError
from trt_compress.plugins.registry import operators
from trt_compress.plugins.spec import Sample
from trt_compress.plugins.testing import call_torch
from trt_compress.tools.gpu.check import case_of
from trt_compress.tools.gpu.guarded import Case, Kernels, run_case
from trt_compress.tools.gpu.guarded import Tensor as Described

Array = np.ndarray[Any, Any]
Value = int | float | Sequence[int]
KEPT: dict[str, Value] = {"mode": 0, "threshold": 0.5, "min_kept": 0, "max_kept": 1, "forced": [-1], "trim": 0}
SCORED: dict[str, Value] = {
    **{"scale": 0.5, "causal": 0, "softmax": 1, "start": 0, "stop": 0, "rows": 1, "heads": 0, "normalize": 0},
    **{"pool": 0, "head_kernel": [1], "kernel": [1], "counted": 0},
}
NONE = torch.zeros(1, 1, 1, 1)
NO_LENGTH = torch.zeros(1, dtype=torch.int64)


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    needed = ("token_select_dynamic", "token_mix", "attention_score")
    assert all((PLUGINS / name / "cuda_op.cpp").is_file() for name in needed)
    return cuda_library(tmp_path_factory.mktemp("emulated"), ["-O2"])


def case_from(op_type: str, attributes: Mapping[str, Value], *inputs: Tensor) -> Case:
    sizes = dict.fromkeys("BNCMHGRD", 1)
    sample = Sample(axes=sizes, attributes=attributes, reason="here")
    return case_of(operators()[op_type], sample, inputs, "case", 4)


def run(
    library: Path, op_type: str, attributes: Mapping[str, Value], *inputs: Tensor
) -> tuple[list[Array], list[Array]]:
    """Outputs and what torch says, under every rule of gpu-check and in three orders of threads."""
    case = case_from(op_type, attributes, *inputs)
    ran = run_case(Kernels(library), HostDevice(library), case)
    assert ran.problems == ()
    sample = Sample(axes={}, attributes=attributes, reason="here")
    wanted = [tensor.numpy() for tensor in call_torch(operators()[op_type], sample, inputs)]
    found = [
        raw.view(like.dtype)[: like.size].reshape(like.shape) for raw, like in zip(ran.outputs, wanted, strict=True)
    ]
    return found, wanted


# ---- TokenSelectDynamic ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [511, 512, 513, 8192, 8193])
@pytest.mark.parametrize("mode", [0, 1])
def test_keys_in_shared_and_in_global_memory(mode: int, tokens: int, emulated: Path) -> None:
    """Many equal scores, whose sums are exact; more qualify than there is room for, in one item of two."""
    generator = torch.Generator().manual_seed(tokens)
    score = torch.randint(0, 8, (2, tokens), generator=generator) / 8
    score[1, 5:] = 0
    x = torch.randn(2, tokens, 1, generator=generator)
    for most in (tokens // 3, tokens):
        attributes = {**KEPT, "mode": mode, "threshold": 0.625, "max_kept": most, "forced": [0, 3, 4]}
        found, wanted = run(emulated, "TrtcTokenSelectDynamic", attributes, x, score)
        for one, two in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("largest", [1e-44, 1e-38, 1e-3, 1.0, 60000.0, 3e38])
def test_masses_of_any_size(largest: float, emulated: Path) -> None:
    """Powers of two down to nothing beside the largest: the sums are exact, and the smallest hold no mass."""
    score = torch.tensor([[largest * 2.0**-i for i in range(60)]])
    if largest == 3e38:  # their sum is no float32
        score = score / 4
    x = torch.arange(60.0)[None, :, None]
    for share, number in ((0.0, 0), (0.25, 1), (0.7, 2), (0.9, 4)):
        attributes = {**KEPT, "mode": 1, "threshold": share, "max_kept": 60}
        found, wanted = run(emulated, "TrtcTokenSelectDynamic", attributes, x, score)
        assert found[3].tolist() == wanted[3].tolist()
        if largest > 1e-40:  # else it has so few bits that halves are cut off
            assert found[3].tolist() == [number]


@pytest.mark.parametrize("batch", [1, 31, 32, 33, 70])
def test_the_largest_count_of_many_items(batch: int, emulated: Path) -> None:
    counts = torch.randperm(batch, generator=torch.Generator().manual_seed(batch)) % 9
    score = (torch.arange(9) < counts[:, None]).float()
    x = torch.randn(batch, 9, 4)
    for trim in (0, 1):
        attributes = {**KEPT, "max_kept": 9, "trim": trim}
        found, wanted = run(emulated, "TrtcTokenSelectDynamic", attributes, x, score)
        assert int(found[4]) == int(counts.max())
        for one, two in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(one, two)


def check_close(op_type: str, found: Any, wanted: Any) -> None:
    tolerance = operators()[op_type].spec.tolerance["float32"]
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance * float(np.abs(wanted).max()))


# ---- TokenMix --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 32, 33, 64, 65])
@pytest.mark.parametrize("tokens", [1, 15, 17, 255, 256, 700])
@pytest.mark.parametrize("normalize", [0, 1])
def test_mixing_in_tiles_and_shares(rows: int, tokens: int, normalize: int, emulated: Path) -> None:
    generator = torch.Generator().manual_seed(tokens)
    for channels in (4, 65):
        x = torch.randn(1, tokens, channels, generator=generator)
        weight = torch.randn(1, rows, tokens, generator=generator)
        found, wanted = run(emulated, "TrtcTokenMix", {"normalize": normalize}, x, weight)
        check_close("TrtcTokenMix", found[0], wanted[0])


# ---- AttentionScore --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 16, 17, 64, 65])
@pytest.mark.parametrize("keys", [1, 63, 64, 65, 200])
def test_scores_in_tiles_and_shares(rows: int, keys: int, emulated: Path) -> None:
    generator = torch.Generator().manual_seed(rows)
    for width, softmax, how in ((8, 1, 1), (33, 2, 2), (31, 0, 0)):
        q = torch.randn(1, 2, rows, width, generator=generator)
        k = torch.randn(1, 1, keys, width, generator=generator)
        position = torch.linspace(-1, keys, rows).long()
        bias = torch.randn(1, 2, 1, keys, generator=generator)
        attributes = {**SCORED, "softmax": softmax, "rows": how, "causal": int(softmax > 0), "start": keys // 3}
        found, wanted = run(emulated, "TrtcAttentionScore", attributes, q, k, position, bias, NO_LENGTH)
        check_close("TrtcAttentionScore", found[0], wanted[0])


@pytest.mark.parametrize("heads", range(7))
@pytest.mark.parametrize(("pool", "widths"), [(0, (3, 5)), (1, (5, 3)), (0, (1, 901)), (1, (701, 1))])
def test_pooling_before_and_after_the_heads(heads: int, pool: int, widths: tuple[int, int], emulated: Path) -> None:
    generator = torch.Generator().manual_seed(heads)
    q, k = torch.randn(2, 4, 3, 8, generator=generator), torch.randn(2, 2, 300, 8, generator=generator)
    attributes = {**SCORED, "heads": heads, "pool": pool, "head_kernel": [widths[0]], "kernel": [widths[1]]}
    found, wanted = run(
        emulated, "TrtcAttentionScore", attributes, q, k, torch.zeros(3, dtype=torch.int64), NONE, NO_LENGTH
    )
    check_close("TrtcAttentionScore", found[0], wanted[0])


@pytest.mark.parametrize(("softmax", "stop"), [(0, 0), (1, -3), (2, 90)])
def test_nothing_behind_the_length_is_used(softmax: int, stop: int, emulated: Path) -> None:
    generator = torch.Generator().manual_seed(softmax)
    length = torch.tensor([150, 70, 2, 0, 1000])
    q, k = torch.randn(5, 4, 18, 8, generator=generator), torch.randn(5, 2, 150, 8, generator=generator)
    for item, keys in enumerate(length):
        k[item, :, keys:] = torch.nan
    position = length[:, None].clamp(max=150) - 18 + torch.arange(18)
    attributes = {**SCORED, "softmax": softmax, "causal": int(softmax > 0), "start": 2, "stop": stop, "counted": 1}
    for others in ({}, {"heads": 3, "pool": 1, "kernel": [5]}, {"heads": 4, "head_kernel": [7], "normalize": 1}):
        found, wanted = run(emulated, "TrtcAttentionScore", {**attributes, **others}, q, k, position, NONE, length)
        check_close("TrtcAttentionScore", found[0], wanted[0])
        assert np.isfinite(found[0]).all()


# ---- scratch memory --------------------------------------------------------------------------------------------------

NUMBERS = (1, 2, 16, 17, 33, 64, 65, 127, 128, 256, 512, 4095, 4096, 8192, 8193)


@pytest.mark.parametrize("axis", ["batch", "tokens", "other"])
def test_scratch_memory_does_not_shrink_as_sizes_grow(axis: str, emulated: Path) -> None:
    """An engine asks for the largest sizes only."""
    kernels = Kernels(emulated)

    def of(op_type: str, number: int) -> Case:
        b, n, m = (number if axis == name else usual for name, usual in (("batch", 2), ("tokens", 600), ("other", 40)))
        if op_type == "TrtcTokenMix":
            return shaped(op_type, {"normalize": 1}, [[b, n, 40], [1, m, n]], [[b, m, 40]])
        if op_type == "TrtcAttentionScore":
            inputs = [[b, 4, m, 8], [b, 2, n, 8], [m], [1, 1, 1, 1], [1]]
            return shaped(op_type, {**SCORED, "heads": 5}, inputs, [[b, 1, n]])
        return shaped(op_type, KEPT, [[b, n, m], [b, n]], [[b, 1, m], [b, 1], [b, 1], [b], []])

    for op_type in ("TrtcTokenMix", "TrtcAttentionScore", "TrtcTokenSelectDynamic"):
        sizes = [kernels.workspace_bytes(of(op_type, number)) for number in NUMBERS]
        assert sizes == sorted(sizes), op_type


def shaped(
    op_type: str, attributes: Mapping[str, Value], inputs: Sequence[Sequence[int]], outputs: Sequence[Sequence[int]]
) -> Case:
    """A case without data."""
    spec = operators()[op_type].spec

    def described(tensors: Any, shapes: Sequence[Sequence[int]]) -> tuple[Described, ...]:
        dtypes = ["float32" if tensor.same_dtype_as else tensor.dtypes[0] for tensor in tensors]
        return tuple(
            Described(name=tensor.name, dtype=dtype, shape=tuple(shape))
            for tensor, dtype, shape in zip(tensors, dtypes, shapes, strict=True)
        )

    given = ((attribute.name, attributes[attribute.name]) for attribute in spec.attributes)
    values = tuple((name, tuple(value) if isinstance(value, Sequence) else value) for name, value in given)
    return Case(
        name="case",
        op_type=op_type,
        attributes=values,
        inputs=described(spec.inputs, inputs),
        outputs=described(spec.outputs, outputs),
        data=(),
    )


# ---- what only a GPU cannot do ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("op_type", "attributes", "shapes", "message"),
    [
        (
            "TrtcTokenMerge",
            {"num_merged": 1, "num_protected": 3, "order": 0},
            {
                **{"x": (0, 8388484, 1), "metric": (0, 8388484, 1), "size": (0, 8388484, 1)},
                **{"y": (0, 8388483, 1), "y_size": (0, 8388483, 1), "dest": (0, 8388484)},
            },
            "8388481 unprotected tokens are too many for the GPU; at most 8388480 are allowed.",
        ),
        (
            "TrtcTokenSelect",
            {"num_kept": 257, "forced": tuple(range(257)), "order": 0, "remainder": 0},
            {"x": (1, 300, 1), "score": (1, 300), "y": (1, 257, 1), "index": (1, 257), "rest": (1, 43)},
            "257 forced positions are too many for the GPU; at most 256 are allowed.",
        ),
        (
            "TrtcTokenRestore",
            {"mode": 1},
            {"y": (1, 393217, 1), "index": (1, 393217), "x": (1, 393217, 1)},
            "a permutation of 393217 tokens is too long for the GPU; at most 393216 are allowed.",
        ),
    ],
)
def test_limits_of_a_gpu(
    op_type: str, attributes: dict[str, Any], shapes: dict[str, tuple[int, ...]], message: str, emulated: Path
) -> None:
    spec = operators()[op_type].spec
    described = [
        Described(name=t.name, dtype="float32" if t.same_dtype_as else t.dtypes[0], shape=shapes[t.name])
        for t in (*spec.inputs, *spec.outputs)
    ]
    number = len(spec.inputs)
    case = Case(
        name="limits",
        op_type=op_type,
        attributes=tuple(attributes.items()),
        inputs=tuple(described[:number]),
        outputs=tuple(described[number:]),
        data=(),
    )
    with pytest.raises(PluginError) as caught:
        Kernels(emulated).workspace_bytes(case)
    assert f"{op_type}: {message}" in str(caught.value)
    for number in re.findall(r"at most (\d+)", message):
        assert any(number in limit for limit in spec.limits)
