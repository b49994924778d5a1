"""What is further apart than is usual is judged by the rounding of the torch model itself, and by nothing else."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from tests.export.test_verify import TOME, Exported, compare
from trt_compress.export.compare import MOST, TOLERANCE
from trt_compress.export.precision import with_precision
from trt_compress.export.trace import TraceOptions, onnx_from_module
from trt_compress.export.verify import verify_onnx
from trt_compress.export.verify_report import VerifyReport
from trt_compress.models.hosts.base import GraphSpec, TensorSpec

_WIDTH = 2048


class Cancelling(nn.Module):
    """[B, 2048] → [B, 16]: the difference of two large products, of which few digits are left."""

    plan = ()

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.large, self.nearly = nn.Linear(_WIDTH, 16, bias=False), nn.Linear(_WIDTH, 16, bias=False)
        self.large.weight.data = 500 * torch.randn(16, _WIDTH, generator=generator)
        self.nearly.weight.data = self.large.weight.data + torch.randn(16, _WIDTH, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        difference: Tensor = self.nearly(x) - self.large(x)
        return difference


def judged(folder: Path, *, wrong: float = 0.0) -> VerifyReport:
    """Verify a file that sums in another order, and is wrong by a share of its result."""
    module: Any = Cancelling().eval()
    options = TraceOptions(input_name="x", output_name="y", max_batch=4, opset=20)
    order = torch.randperm(_WIDTH, generator=torch.Generator().manual_seed(1))
    other = Cancelling().eval()
    for layer in (other.large, other.nearly):
        layer.weight.data = layer.weight.data[:, order]
    other.nearly.weight.data += wrong * (other.nearly.weight.data - other.large.weight.data)
    model = onnx_from_module(other, (_WIDTH,), options)
    entry = next(node for node in model.graph.node if "x" in node.input)
    assert sum("x" in node.input for node in model.graph.node) == 2, entry
    for node in model.graph.node:
        node.input[:] = ["x_in_order" if name == "x" else name for name in node.input]
    model.graph.initializer.append(numpy_helper.from_array(order.numpy(), "order"))
    model.graph.node.insert(0, onnx.helper.make_node("Gather", ["x", "order"], ["x_in_order"], axis=1))
    onnx.save_model(model, folder / "model.onnx")
    values = np.random.default_rng(2).standard_normal((3, _WIDTH)).astype(np.float32)
    return verify_onnx(
        folder / "model.onnx",
        module,
        graph=GraphSpec(
            module=module,
            inputs=(TensorSpec(name="x", shape=("batch", _WIDTH)),),
            outputs=(TensorSpec(name="y", shape=("batch", 16)),),
        ),
        inputs=[[{"x": values}]],
        inputs_label="test",
        precision="fp32",
    )


def test_two_right_orders_of_a_sum_that_cancels_pass_and_the_report_says_how(tmp_path: Path) -> None:
    (check,) = judged(tmp_path).outputs
    usual = TOLERANCE["fp32"]
    assert usual < check.relative_error <= check.tolerance <= MOST * usual, "the case shows nothing on this machine"
    assert check.passed and usual / 4 < check.rounding


def test_an_error_that_rounding_does_not_explain_fails(tmp_path: Path) -> None:
    report = judged(tmp_path, wrong=5e-3)
    assert not report.passed
    assert report.first_divergence == "output y (batch 3)"


@pytest.mark.parametrize("wrong", [3e-4, 8e-4])
def test_a_model_that_rounds_little_is_allowed_no_more_than_before(
    wrong: float, exported: Exported, tmp_path: Path
) -> None:
    model = onnx.load(exported(TOME) / "model.onnx")
    last = next(node for node in model.graph.node if "logits" in node.output)
    for tensor in model.graph.initializer:
        if tensor.name in last.input:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1 + wrong), tensor.name))
    report = compare(model, tmp_path)
    failed = [check for check in report.outputs if not check.passed]
    assert failed and report.first_divergence == "output logits (batch 1)"
    assert all(0 < check.rounding < 2e-5 and check.tolerance == TOLERANCE["fp32"] for check in failed)


# ---- half precision -------------------------------------------------------------------------------------------------


class Losing(nn.Module):
    """[B, 64] → [B, 64]: the same numbers, of which half precision loses most digits on the way."""

    plan = ()

    def forward(self, x: Tensor) -> Tensor:
        large = x + 512
        return large - 512


class Packing(nn.Module):
    """As `Losing`, by way of something that takes half precision alone."""

    plan = ()

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != torch.float16:
            return x  # while it is traced
        kept = (x + 512) - 512
        if kept.dtype != torch.float16:
            raise TypeError("packs half precision only")
        return kept


def halved(folder: Path, made: type[nn.Module], *, wrong: float = 0.0) -> VerifyReport:
    """Verify a file that gives the numbers as they came, but for a share of them."""
    factor = onnx.helper.make_tensor("factor", onnx.TensorProto.FLOAT, [], [1 + wrong])
    ends = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["batch", 64]) for n in ("x", "y")]
    node = onnx.helper.make_node("Mul", ["x", "factor"], ["y"])
    graph = onnx.helper.make_graph([node], "g", ends[:1], ends[1:], [factor])
    opset = [onnx.helper.make_opsetid("", 20)]
    onnx.save_model(onnx.helper.make_model(graph, opset_imports=opset, ir_version=9), folder / "model.onnx")
    module: Any = made().eval()
    spec = GraphSpec(
        module=module,
        inputs=(TensorSpec(name="x", shape=("batch", 64)),),
        outputs=(TensorSpec(name="y", shape=("batch", 64)),),
    )
    values = np.random.default_rng(2).standard_normal((3, 64)).astype(np.float32)
    return verify_onnx(
        folder / "model.onnx",
        with_precision(module, "fp16", spec),
        graph=spec,
        inputs=[[{"x": values}]],
        inputs_label="test",
        precision="fp16",
    )


def test_in_half_precision_what_is_nearer_to_the_truth_than_torch_passes(tmp_path: Path) -> None:
    (check,) = halved(tmp_path, Losing).outputs
    usual = TOLERANCE["fp16"]
    assert check.passed and check.tolerance == usual and check.relative_error < 1e-3
    assert usual < check.rounding < MOST * usual, "torch loses too little, or too much, to show it"


@pytest.mark.parametrize("wrong", [0.03, 0.06, -0.1])
def test_in_half_precision_no_more_is_allowed_than_before(wrong: float, tmp_path: Path) -> None:
    report = halved(tmp_path, Losing, wrong=wrong)
    (check,) = report.outputs
    assert not report.passed and check.relative_error > TOLERANCE["fp16"]


def test_what_takes_half_precision_alone_stays_as_it_was_judged(tmp_path: Path) -> None:
    (check,) = halved(tmp_path, Packing).outputs
    assert not check.passed and check.rounding == 0
