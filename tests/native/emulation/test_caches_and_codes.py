"""Kernels of caches and codebooks in the emulation: data that is wrong in one place, and sizes around their blocks."""

import ctypes
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.native.emulation.building import PLUGINS, cuda_library
from tests.native.emulation.host_device import HostDevice
from trt_compress.plugins.codebook_encode.op import codebook_encode
from trt_compress.plugins.kv_append.op import kv_append
from trt_compress.plugins.kv_compact.op import kv_compact
from trt_compress.plugins.registry import operators
from trt_compress.plugins.spec import Sample
from trt_compress.plugins.testing import call_torch
from trt_compress.tools.gpu.check import case_of
from trt_compress.tools.gpu.guarded import Kernels, run_case

Array = np.ndarray[Any, Any]
LINEAR = {"layout": 0, "sinks": 0}


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    needed = ("kv_append", "kv_compact", "codebook_encode", "codebook_decode")
    assert all((PLUGINS / name / "cuda_op.cpp").is_file() for name in needed)
    return cuda_library(tmp_path_factory.mktemp("emulated"), ["-O2"])


def run_sound(library: Path, op_type: str, attributes: Mapping[str, int], *inputs: Tensor) -> Array:
    """The only output, under every rule of gpu-check and in three orders of threads, in place and not."""
    operator = operators()[op_type]
    sample = Sample(axes=dict.fromkeys("BGLTKWNDS", 1), attributes={"kind": 0, "group": 1, **attributes}, reason="here")
    case = case_of(operator, sample, inputs, "case", 4)
    ran = run_case(Kernels(library), HostDevice(library), case)
    assert ran.problems == ()
    (like,) = call_torch(operator, sample, inputs)
    found: Array = ran.outputs[0].view(like.numpy().dtype).reshape(like.shape)
    return found


def run_wrong(
    library: Path, op_type: str, attributes: Mapping[str, int], good: Sequence[Tensor], bad: Sequence[Tensor]
) -> tuple[Array, Array, str]:
    """Before and after of the output's memory, or of the cache that it replaces, and what was reported."""
    operator, kernels = operators()[op_type], Kernels(library)
    sample = Sample(axes=dict.fromkeys("BGLTKWNDS", 1), attributes=attributes, reason="here")
    case = case_of(operator, sample, good, "case", 4)
    arrays = [tensor.numpy().copy() for tensor in bad]
    (like,) = call_torch(operator, sample, good)
    (alias,) = (output.alias for output in case.outputs)
    memory = np.full(like.shape, 77, like.numpy().dtype) if alias is None else arrays[alias]
    before = memory.copy()
    kernels.take_fault()
    pointers = [array.ctypes.data for array in (*arrays, memory)]
    scratch = ctypes.create_string_buffer(kernels.workspace_bytes(case) + 16)
    kernels.enqueue(case, pointers, (ctypes.addressof(scratch) + 15) // 16 * 16, None)
    HostDevice(library).synchronize()
    return before, memory, kernels.take_fault()


@pytest.mark.parametrize("attributes", [LINEAR, {"layout": 1, "sinks": 2}], ids=["linear", "ring"])
def test_one_wrong_position_leaves_the_whole_cache(attributes: dict[str, int], emulated: Path) -> None:
    cache, rows = torch.randn(300, 2, 6, 3), torch.randn(300, 2, 2, 3)
    good = torch.zeros(300, dtype=torch.int64)
    for where, value in ((0, -1), (299, -1), (299, -(2**63)), (7, 5), (299, 2**62)):
        if attributes["layout"] == 1 and value >= 0:
            continue
        wrong = good.clone()
        wrong[where] = value
        before, after, fault = run_wrong(
            emulated, "TrtcKVAppend", attributes, (cache, rows, good), (cache, rows, wrong)
        )
        np.testing.assert_array_equal(after, before)
        assert fault == "TrtcKVAppend: a position lies outside of the cache; that output was not written."


@pytest.mark.parametrize(
    ("wrong", "fault"),
    [
        ([0, 1, 9], "an index is out of range"),
        ([-1, 1, 2], "an index is out of range"),
        ([3, 1, 2**40], "an index is out of range"),
        ([3, 4, 4], "the indices are not strictly ascending"),
        ([3, 4, 0], "the indices are not strictly ascending"),
    ],
)
def test_a_head_with_a_wrong_choice_is_left_as_it_was(wrong: list[int], fault: str, emulated: Path) -> None:
    cache = torch.randn(1, 3, 9, 5)
    good = torch.tensor([[[2, 5, 8]] * 3])
    index = good.clone()
    index[0, 1] = torch.tensor(wrong)
    before, after, said = run_wrong(emulated, "TrtcKVCompact", {}, (cache, good), (cache, index))
    assert said == f"TrtcKVCompact: {fault}; that output was not written."
    np.testing.assert_array_equal(after[0, 1], before[0, 1])
    wanted = kv_compact(cache, good).numpy()
    np.testing.assert_array_equal(after[0, [0, 2]], wanted[0, [0, 2]])


@pytest.mark.parametrize(("kind", "width"), [(0, 8), (0, 5), (1, 8), (2, 6), (3, 8)])
def test_a_number_that_is_no_code_is_not_looked_up(kind: int, width: int, emulated: Path) -> None:
    book = torch.randn(2, 7, width) if kind == 0 else torch.randn(1, 7, width) if kind == 1 else torch.ones(1, 1, width)
    if kind == 2:
        book = torch.full((1, 1, width), 3.0)
    number = {0: 2, 1: width, 2: 1, 3: width // 4}[kind]
    attributes = {"kind": kind, "group": 4 if kind == 3 else 1}
    good = torch.randint(0, 7, (1, 40, number))
    wanted = call_torch(
        operators()["TrtcCodebookDecode"], Sample(axes={}, attributes=attributes, reason=""), (good, book)
    )[0].numpy()
    for value in (-1, 2**40, {0: 7, 1: 7, 2: 3**width, 3: 16}[kind]):
        bad = good.clone()
        bad[0, 13] = value
        before, after, said = run_wrong(emulated, "TrtcCodebookDecode", attributes, (good, book), (bad, book))
        assert said == "TrtcCodebookDecode: a number is none of the codebook's codes; that output was not written."
        np.testing.assert_array_equal(after[0, 13], before[0, 13])
        others = [*range(12), *range(15, 40)]  # the neighbours may share an access of 16 bytes
        np.testing.assert_array_equal(after[0, others], wanted[0, others])


@pytest.mark.parametrize("levels", [[8.0, 1.0], [2.5, 4.0], [300.0, 2.0], [float("nan"), 4.0], [256.0] * 3 + [2.0]])
def test_levels_that_are_none(levels: list[float], emulated: Path) -> None:
    why = "the codebook's numbers of levels are not whole numbers of 2 to 256, or give more than 2**24 codes"
    attributes = {"kind": 2, "group": 1}
    good, bad = torch.full((1, 1, len(levels)), 3.0), torch.tensor(levels)[None, None]
    x, code = torch.randn(1, 300, len(levels)), torch.zeros(1, 300, 1, dtype=torch.int64)
    for op_type, first in (("TrtcCodebookEncode", x), ("TrtcCodebookDecode", code)):
        before, after, said = run_wrong(emulated, op_type, attributes, (first, good), (first, bad))
        assert said == f"{op_type}: {why}; that output was not written."
        np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize("width", [1, 3, 8, 40])
@pytest.mark.parametrize("kept", [1, 255, 256, 257, 700])
def test_compaction_in_tiles(width: int, kept: int, emulated: Path) -> None:
    """Rows of one access and of many, more of them than a tile holds; the worst case moves every row by one."""
    generator = torch.Generator().manual_seed(kept)
    cache = torch.randn(1, 2, 701, width, generator=generator)
    chosen = torch.randperm(701, generator=generator)[:kept].sort().values
    index = torch.stack([chosen, torch.arange(1, kept + 1)])[None]
    found = run_sound(emulated, "TrtcKVCompact", {}, cache, index)
    np.testing.assert_array_equal(found, kv_compact(cache, index).numpy())


@pytest.mark.parametrize(("layout", "sinks"), [("linear", 0), ("ring", 0), ("ring", 3)])
def test_appending_at_every_position(layout: str, sinks: int, emulated: Path) -> None:
    attributes = {"layout": int(layout == "ring"), "sinks": sinks}
    length = 7
    for new, position in itertools.product((0, 1, 3, length - sinks), (0, 2, 4, 11, 2**40)):
        if layout == "linear" and position + new > length:
            continue
        cache, rows = torch.randn(2, 2, length, 3), torch.randn(2, 2, new, 3)
        positions = torch.tensor([position, 0])
        found = run_sound(emulated, "TrtcKVAppend", attributes, cache, rows, positions)
        wanted = kv_append(cache, rows, positions, layout=layout, sinks=sinks)
        np.testing.assert_array_equal(found, wanted.numpy())


@pytest.mark.parametrize("tokens", [1, 16, 17, 32, 33, 64, 65])
@pytest.mark.parametrize(("codes", "width"), [(1, 1), (64, 16), (65, 17), (200, 8)])
def test_search_around_its_tiles(tokens: int, codes: int, width: int, emulated: Path) -> None:
    """Whole numbers, whose sums are exact in any order, with every code twice."""
    generator = torch.Generator().manual_seed(tokens)
    half = torch.randint(-3, 4, (2, (codes + 1) // 2, width), generator=generator).float()
    codebook = torch.cat([half, half], dim=1)[:, :codes].contiguous()
    x = torch.randint(-3, 4, (1, tokens, width), generator=generator).float()
    found = run_sound(emulated, "TrtcCodebookEncode", {"kind": 0}, x, codebook)
    np.testing.assert_array_equal(found, codebook_encode(x, codebook).numpy())


def test_a_table_of_more_levels_than_shared_memory_holds(emulated: Path) -> None:
    levels = torch.arange(700.0)[torch.randperm(700)][None, :, None].repeat(1, 1, 3)
    x = torch.randint(0, 1400, (1, 70, 3)) / 2.0  # halfway too
    found = run_sound(emulated, "TrtcCodebookEncode", {"kind": 1}, x, levels)
    np.testing.assert_array_equal(found, codebook_encode(x, levels, kind="table").numpy())


def test_scratch_memory_does_not_shrink_with_more_tokens(emulated: Path) -> None:
    operator, kernels = operators()["TrtcCodebookEncode"], Kernels(emulated)
    sample = Sample(axes=dict.fromkeys("BNDSK", 1), attributes={"kind": 0, "group": 1}, reason="here")
    for codes in (1, 65, 5000):
        codebook = torch.zeros(2, codes, 2)
        sizes = [
            kernels.workspace_bytes(case_of(operator, sample, (torch.zeros(1, tokens, 2), codebook), "case", 4))
            for tokens in (1, 16, 17, 31, 32, 33, 64, 65, 129, 1000, 16383, 16384, 16385)
        ]
        assert sizes == sorted(sizes)
