"""The torch operators by the kernels of libtrtc_cuda: the whole layer, with kernels that the emulation runs."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.native.emulation.building import HERE, cuda_library, link, objects
from trt_compress.errors import PluginError, ShapeError, UnsupportedError
from trt_compress.plugins import native_torch
from trt_compress.plugins.cuda_library import CudaLibrary, Described
from trt_compress.plugins.native_torch import CudaKernels, install, torch_forms, uninstall, use_cuda_kernels
from trt_compress.plugins.operator import Operator
from trt_compress.plugins.registry import operators, specs
from trt_compress.plugins.testing import call_torch, sample_inputs
from trt_compress.plugins.token_merge.op import token_merge
from trt_compress.tools.machine import gpus

MOST_VALUES = 8_000  # of one tensor: the emulation is slow
EACH = 4  # samples of an operator
MERGE_TOLERANCE = specs()["TrtcTokenMerge"].tolerance["float32"]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cuda_library(tmp_path_factory.mktemp("emulated"), ["-O2"])


@pytest.fixture
def kernels(library: Path) -> Iterator[CudaKernels]:
    yield install(CudaKernels(library, device_type="cpu"))
    uninstall("cpu")


def largest_difference(ours: torch.Tensor, reference: torch.Tensor) -> float:
    if ours.numel() == 0:
        return 0.0
    scale = float(reference.double().abs().nan_to_num(posinf=0, neginf=0).amax()) or 1.0
    return float((ours.double() - reference.double()).nan_to_num(0).abs().amax()) / scale


@pytest.mark.parametrize("operator", operators().values(), ids=lambda operator: operator.spec.torch_name)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_kernels_give_what_the_torch_form_gives(operator: Operator, dtype: str, kernels: CudaKernels) -> None:
    spec = operator.spec
    samples = [
        sample
        for sample in operator.samples
        if max(tensor.numel() for tensor in sample_inputs(operator, sample)) <= MOST_VALUES
    ][:EACH]
    assert spec.op_type in kernels.operators and samples
    for sample in samples:
        inputs = sample_inputs(operator, sample, dtype=dtype, seed=7)
        with torch_forms("cpu"):
            wanted = call_torch(operator, sample, inputs)
        assert kernels.calls[spec.op_type] == samples.index(sample)
        found = call_torch(operator, sample, inputs)
        assert kernels.calls[spec.op_type] == samples.index(sample) + 1
        for described, ours, reference in zip(spec.outputs, found, wanted, strict=True):
            assert (ours.shape, ours.dtype) == (reference.shape, reference.dtype), described.name
            tolerance = 2 * spec.tolerance[dtype] if ours.is_floating_point() else 0.0
            assert largest_difference(ours, reference) <= tolerance, (sample.label, described.name)
    kernels.check()


def test_public_functions_and_strided_tensors_run_by_kernels(kernels: CudaKernels) -> None:
    x = torch.randn(3, 6, 20).transpose(1, 2)
    metric, size = torch.randn(3, 20, 4), torch.ones(3, 20, 1)
    y, y_size, dest = token_merge(x, metric, size, num_merged=7, num_protected=1)
    with torch_forms("cpu"):
        wanted = token_merge(x, metric, size, num_merged=7, num_protected=1)
    assert not x.is_contiguous() and kernels.calls == {"TrtcTokenMerge": 1}
    assert torch.equal(dest, wanted[2]) and torch.equal(y_size, wanted[1])
    assert largest_difference(y, wanted[0]) <= 2 * MERGE_TOLERANCE


def test_sizes_that_change_between_calls(kernels: CudaKernels) -> None:
    for batch, tokens in ((2, 9), (1, 30), (2, 9), (4, 17)):
        x, metric = torch.randn(batch, tokens, 5), torch.randn(batch, tokens, 4)
        ours = token_merge(x, metric, torch.ones(batch, tokens, 1), num_merged=3)[0]
        with torch_forms("cpu"):
            wanted = token_merge(x, metric, torch.ones(batch, tokens, 1), num_merged=3)[0]
        assert largest_difference(ours, wanted) <= 2 * MERGE_TOLERANCE
    assert len(kernels._prepared) == 3


def test_memory_of_the_caller(kernels: CudaKernels) -> None:
    spec = operators()["TrtcKVAppend"].spec
    cache, rows, position = torch.zeros(1, 2, 6, 4), torch.ones(1, 2, 1, 4), torch.tensor([3])
    call = kernels.prepare(spec, [cache, rows, position], [0, 0])
    kernels.enqueue(call, [cache, rows, position, cache])
    assert cache[0, :, 3].eq(1).all() and cache.sum() == 8
    with pytest.raises(PluginError, match="3 pointers were given for 4 tensors"):
        call.enqueue([1, 2, 3], 0, None)


def test_wrong_data_is_refused_at_the_next_call_or_the_check(kernels: CudaKernels) -> None:
    restore = torch.ops.trt_compress.token_restore
    y, index = torch.randn(1, 4, 2), torch.tensor([[0, 9]])
    restore(y, index, 0)
    with pytest.raises(PluginError, match="ran before this reported: TrtcTokenRestore: an index is out of range"):
        kernels.check()
    kernels.check()
    restore(y, index, 0)
    with pytest.raises(PluginError, match="an index is out of range"):
        restore(y, torch.zeros(1, 2, dtype=torch.int64), 0)


def test_what_the_contract_refuses_is_a_shape_error(kernels: CudaKernels) -> None:
    library = kernels.library
    with pytest.raises(PluginError, match="has no operator TrtcNothing"):
        library.prepare("TrtcNothing", [], [], [])
    with pytest.raises(PluginError, match="2 inputs and 1 outputs"):
        library.prepare("TrtcTokenRestore", [0], [Described("float32", (1, 2, 3))], [])
    y = torch.randn(1, 4, 2, dtype=torch.float32)
    with pytest.raises(ShapeError, match="TrtcTokenRestore: index is int32; it must be int64"):
        torch.ops.trt_compress.token_restore(y, torch.zeros(1, 2, dtype=torch.int32), 0)


def test_going_back_to_the_torch_form(kernels: CudaKernels) -> None:
    arguments: Any = (torch.randn(1, 4, 2), torch.zeros(1, 2, dtype=torch.int64), 0)
    torch.ops.trt_compress.token_restore(*arguments)
    uninstall("cpu")
    torch.ops.trt_compress.token_restore(*arguments)
    assert kernels.calls == {"TrtcTokenRestore": 1}
    install(kernels)
    torch.ops.trt_compress.token_restore(*arguments)
    assert kernels.calls == {"TrtcTokenRestore": 2}


def test_a_library_without_an_operator_leaves_it_to_torch(
    kernels: CudaKernels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = objects((HERE / "faulty_kernels.cpp", HERE / "cuda_emulation.cpp"))
    other = install(CudaKernels(link(tmp_path / "libtrtc_cuda.so", parts, ["-shared"]), device_type="cpu"))
    assert other.operators == ("TrtcTokenRestore",)
    y = token_merge(torch.randn(1, 6, 2), torch.randn(1, 6, 2), torch.ones(1, 6, 1), num_merged=2)[0]
    assert y.shape == (1, 4, 2) and not other.calls


def test_what_is_no_such_library_is_said(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="does not load"):
        CudaLibrary(tmp_path / "nothing.so")
    empty = tmp_path / "empty.cpp"
    empty.write_text("int nothing;\n")
    with pytest.raises(PluginError, match=r"does not load: .*trtcDescribe"):
        CudaLibrary(link(tmp_path / "empty.so", objects([empty]), ["-shared"]))


@pytest.mark.skipif(bool(gpus()), reason="there is a GPU")
def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnsupportedError, match="use_cuda_kernels needs an NVIDIA GPU and a torch built for CUDA"):
        use_cuda_kernels()


def test_nothing_touches_cuda_at_import() -> None:
    program = (
        "import torch\nfrom trt_compress.plugins import native_torch\n"
        "assert not torch.cuda.is_initialized() and not native_torch._registered"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
def test_on_a_gpu_the_current_stream_and_captures_are_used() -> None:
    kernels = use_cuda_kernels()
    try:
        x, metric = torch.randn(2, 2, 50, 64, device="cuda", dtype=torch.float16)
        size = torch.ones(2, 50, 1, device="cuda")
        with torch_forms():
            wanted = token_merge(x, metric, size, num_merged=11, num_protected=1)
        stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        with torch.cuda.stream(stream):
            token_merge(x, metric, size, num_merged=11, num_protected=1)
        with torch.cuda.graph(graph):
            captured = token_merge(x, metric, size, num_merged=11, num_protected=1)
        graph.replay()
        kernels.check()
        assert torch.equal(captured[2], wanted[2]) and kernels.calls == {"TrtcTokenMerge": 2}
        assert native_torch._active["cuda"] is kernels
    finally:
        uninstall()
