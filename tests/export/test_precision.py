"""Numbers of a graph: bf16 that rounds where it says so, quantized weights as the file has them, ends as declared."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor, nn

from trt_compress.errors import ConfigError, ExportError
from trt_compress.export.api import export_model, verify
from trt_compress.export.precision import quantize, with_precision
from trt_compress.export.rounded import rounded_to_bfloat16
from trt_compress.export.runners import Runner
from trt_compress.export.trace import TraceOptions, onnx_from_graph, onnx_from_module
from trt_compress.format.bundle import Bundle
from trt_compress.format.graphs import StateSpec
from trt_compress.models.hosts.base import CompressedModule, GraphSpec, TensorSpec
from trt_compress.models.layers.block_form import BlockForm
from trt_compress.models.layers.blocks import BlockLinear

OPTIONS = TraceOptions(input_name="x", output_name="y", max_batch=4, opset=22)


class Accumulating(CompressedModule):
    """Sums in float32 whatever the precision, and keeps the newest row in float16."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(8, 8)

    def forward(self, x: Tensor, total: Tensor, newest: Tensor) -> tuple[Tensor, ...]:
        y = self.mix(x + newest.to(x.dtype))
        assert total.dtype == torch.float32 and newest.dtype == torch.float16
        return y, total + y.float(), y.to(newest.dtype)


def accumulating(dtype: str = "float16") -> GraphSpec:
    return GraphSpec(
        module=Accumulating().eval(),
        inputs=(TensorSpec(name="x", shape=("batch", 8)),),
        outputs=(TensorSpec(name="y", shape=("batch", 8)),),
        states=(
            StateSpec(input="total", output="total_out", shape=("batch", 8)),
            StateSpec(input="newest", output="newest_out", shape=("batch", 8), dtype=dtype),
        ),
        exact=frozenset({"total"}),
    )


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_ends_are_what_the_host_declares_and_an_accumulator_stays_exact(precision: str) -> None:
    graph = accumulating()
    model = onnx_from_graph(graph, with_precision(graph.module, precision, graph), max_batch=4, opset=22)
    ends = [value.type.tensor_type.elem_type for value in (*model.graph.input, *model.graph.output)]
    assert ends == [TensorProto.FLOAT, TensorProto.FLOAT, TensorProto.FLOAT16] * 2
    assert not [node for node in model.graph.node if node.op_type == "Cast" and "total" in node.input]


def test_an_end_that_numpy_does_not_have_is_refused() -> None:
    graph = accumulating("bfloat16")
    with pytest.raises(ExportError, match="'newest' is declared bfloat16, which numpy does not have"):
        with_precision(graph.module, "fp32", graph)


def test_bfloat16_is_rounded_after_every_operator(tmp_path: Path) -> None:
    class Sum(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x + 256.0) - 256.0

    model = onnx_from_module(with_precision(Sum(), "bf16"), (4,), OPTIONS)
    x = np.array([[0.4, 0.9, 1.1, 3.0], [5.2, 7.9, 1.0, 2.0]], np.float32)
    (found,) = Runner(rounded_to_bfloat16(model), tmp_path, None)({"x": x}).values()
    narrow = torch.from_numpy(x).bfloat16()  # between 256 and 512 bfloat16 holds even numbers only
    assert torch.equal(found, ((narrow + 256) - 256).float()) and not np.allclose(found, x, atol=0.3)


@pytest.mark.parametrize("bits", [8, 4])
def test_codes_in_the_file_are_those_of_the_module(bits: int) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(64, 33)
    wanted = linear.weight.detach().clone()
    module = nn.Sequential(linear)
    quantize([module], BlockForm(bits=bits, group=16), "fp32")
    model = onnx_from_module(module, (64,), OPTIONS)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    (node,) = (node for node in model.graph.node if node.op_type == "DequantizeLinear")
    codes, scale = (tensors[name] for name in node.input)
    assert codes.data_type == {8: TensorProto.INT8, 4: TensorProto.INT4}[bits] and list(codes.dims) == [64, 33]
    whole = numpy_helper.to_array(codes).astype(np.float32)  # by onnx, not by us
    by_hand = (whole.reshape(4, 16, 33) * numpy_helper.to_array(scale)[:, None]).reshape(64, 33).T
    weight = module[0].weight
    assert isinstance(weight, torch.Tensor) and np.array_equal(by_hand, weight.numpy())
    half_a_step = np.repeat(numpy_helper.to_array(scale), 16, axis=0).T / 2
    assert (np.abs(by_hand - wanted.numpy()) <= half_a_step * 1.001).all() and np.abs(whole).max() == 2 ** (bits - 1)


def test_layers_that_take_no_blocks_stay_and_shared_ones_stay_shared() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(7, 32)
            self.head = nn.Linear(32, 7, bias=False)
            self.head.weight = self.embed.weight
            self.narrow = nn.Linear(24, 8)
            self.one = self.other = nn.Linear(32, 8)

    module = Tied()
    found = quantize([module, module], BlockForm(bits=4, group=32), "fp32")
    assert found.layers == 2 and isinstance(module.embed.weight, nn.Parameter)
    assert isinstance(module.head, BlockLinear) and module.head.form == BlockForm(bits=8, group=32)
    torch.testing.assert_close(module.head.weight, module.embed.weight, atol=0.02, rtol=0)
    assert isinstance(module.one, BlockLinear) and module.one.form == BlockForm(bits=4, group=32)
    assert found.kept["narrow"] == "its 24 inputs are no multiple of 16"
    assert isinstance(module.one, BlockLinear) and module.one is module.other
    with pytest.raises(ConfigError, match=r"^weights_bits 4:128: the model has no linear layer .* \(0: its 24"):
        quantize([nn.Sequential(nn.Linear(24, 8))], BlockForm(bits=4, group=128), "fp32")


def test_a_group_that_does_not_divide_becomes_a_smaller_one() -> None:
    module = nn.ModuleDict(
        {"a": nn.Linear(576, 8), "b": nn.Linear(1536, 8), "c": nn.Linear(48, 8), "d": nn.Linear(24, 8)}
    )
    found = quantize([module], BlockForm(bits=4, group=128), "fp32")
    forms = {name: layer.form.group for name, layer in module.items() if isinstance(layer, BlockLinear)}
    assert forms == {"a": 64, "b": 128, "c": 16}
    assert found.sentences(BlockForm(bits=4, group=128)) == (
        "weights_bits 4:128: the weights of d stay as they are: its 24 inputs are no multiple of 16",
        "weights_bits 4:128: the weights of a have groups of 64, as 128 does not divide their inputs",
        "weights_bits 4:128: the weights of c have groups of 16, as 128 does not divide their inputs",
    )


@pytest.mark.parametrize("text", ["16", "4:48", "4:", ":32", "8:x", "4:32:1", ""])
def test_a_form_of_weights_that_there_is_not(text: str) -> None:
    with pytest.raises(ConfigError, match=r"is not a form of weights; give 8 or 4, or with the weights that share"):
        export_model("zoo:digits_vit", output="unused", weights_bits=text)


def test_a_bundle_says_what_its_weights_are_and_what_that_costs(tmp_path: Path) -> None:
    path = export_model("zoo:digits_vit", output=tmp_path / "b", weights_bits="4:16", batch="1").path
    assert path is not None
    manifest = Bundle.open(path).manifest
    form = next(form for form in manifest.weights if form.dtype == "int4")
    assert (form.group, form.tensors, manifest.recipe["weights_bits"], manifest.opset) == (16, 33, "4:16", 21)
    assert form.bytes == form.parameters // 2 + form.parameters // 16 * 4
    graph = onnx.load(path / "model.onnx", load_external_data=False).graph
    assert sum(tensor.data_type == TensorProto.INT4 for tensor in graph.initializer) == form.tensors
    report = json.loads((path / "verify.json").read_text())
    moved, rounded = (found["relative_error"] for found in report["distances"])
    assert manifest.verification is not None and manifest.verification.max_abs_error is not None
    assert manifest.verification.max_abs_error < 1e-4
    assert moved > 1e-3 and moved == manifest.verification.quantization_error
    assert rounded > 1e-5 and rounded == manifest.verification.deployment_error
    assert verify(path).passed
