"""The GPU kernels, emulated, on calls that a kernel may get wrong: see adversarial.py."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.native.adversarial import Call, decided_calls, many_tokens
from tests.native.emulation.building import cuda_library
from tests.native.emulation.host_device import HostDevice
from trt_compress.plugins.registry import operators
from trt_compress.plugins.spec import Sample
from trt_compress.plugins.testing.reference import reference
from trt_compress.tools.gpu.check import case_of
from trt_compress.tools.gpu.guarded import Kernels, run_case


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cuda_library(tmp_path_factory.mktemp("emulated"), ["-O2"])


def check(library: Path, call: Call) -> None:
    """Under every rule of gpu-check and in three orders of threads."""
    sample = Sample(axes=dict.fromkeys("BNCMD", 1), attributes=call.attributes, reason="here")
    inputs = tuple(torch.from_numpy(array) for array in call.inputs)
    case = case_of(operators()[call.op_type], sample, inputs, "case", 4)
    ran = run_case(Kernels(library), HostDevice(library), case)
    assert ran.problems == (), call.name
    wanted = reference(call.op_type, call.inputs, call.attributes).outputs
    for raw, two, described in zip(ran.outputs, wanted, case.outputs, strict=True):
        one = raw.view(described.dtype)[: two.size].reshape(two.shape)
        if one.dtype.kind == "f":
            largest = np.abs(two[np.isfinite(two)]).max(initial=1e-30)
            tolerance = operators()[call.op_type].spec.tolerance[one.dtype.name]
            np.testing.assert_allclose(one, two, rtol=0, atol=tolerance * largest, err_msg=call.name)
        else:
            np.testing.assert_array_equal(one, two, err_msg=call.name)


@pytest.mark.parametrize("op_type", sorted({call.op_type for call in decided_calls()}))
def test_what_the_contract_decides(op_type: str, emulated: Path) -> None:
    calls = [call for call in decided_calls() if call.op_type == op_type]
    for call in calls[::3]:
        if 0 not in [size for array in call.inputs for size in array.shape]:
            check(emulated, call)


@pytest.mark.slow
@pytest.mark.parametrize("call", many_tokens()[:2], ids=lambda call: call.name)
def test_4097_tokens(call: Call, emulated: Path) -> None:
    check(emulated, call)
