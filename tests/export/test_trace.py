"""Tracing: one node for each operator, named after its site, and nothing of the exporting machine."""

from pathlib import Path

import onnx
import onnx.checker
import onnxruntime
import pytest
import torch
from onnx import ModelProto, NodeProto, TensorProto
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from trt_compress.errors import ConfigError, ExportError
from trt_compress.export.lower import add_bodies
from trt_compress.export.precision import with_precision
from trt_compress.export.trace import TraceOptions, onnx_from_module
from trt_compress.methods import parse_spec
from trt_compress.models.hosts.timm_vit import CompressedViT, attach
from trt_compress.plugins.operator import at_site, mark_tensor, recording
from trt_compress.plugins.registry import operators
from trt_compress.plugins.spec import DOMAIN
from trt_compress.plugins.token_select.op import token_select

OPTIONS = TraceOptions(input_name="image", output_name="logits", max_batch=8, opset=20)
SHAPE = (3, 16, 16)
SPEC = "tome:num_merged=[2,0,3,2]+evit:layers=[1],keep_ratio=0.7+random:layers=[1],keep_ratio=0.9"


def make_module(spec: str) -> CompressedViT:
    torch.manual_seed(0)
    vit = VisionTransformer(img_size=16, patch_size=4, embed_dim=16, depth=4, num_heads=2, num_classes=5)
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.2)
    return attach(vit.eval(), parse_spec(spec))


def images(batch: int) -> Tensor:
    return torch.randn(batch, *SHAPE, generator=torch.Generator().manual_seed(1))


def run(model: ModelProto, x: Tensor) -> Tensor:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    serialized = add_bodies(model).SerializeToString()
    session = onnxruntime.InferenceSession(serialized, options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"image": x.numpy()})[0])


def operator_nodes(model: ModelProto) -> list[NodeProto]:
    return [node for node in model.graph.node if node.domain == DOMAIN]


@pytest.fixture(scope="module")
def module() -> CompressedViT:
    return make_module(SPEC)


@pytest.fixture(scope="module")
def model(module: CompressedViT) -> ModelProto:
    return onnx_from_module(module, SHAPE, OPTIONS)


def test_one_node_for_each_operator_named_after_its_site(model: ModelProto) -> None:
    assert [node.name for node in operator_nodes(model)] == [
        "blocks.0/TokenMerge",
        "blocks.1/TokenSelect",
        "blocks.1/TokenSelect_1",
        "blocks.2/TokenMerge",
        "blocks.3/TokenMerge",
    ]
    assert {node.op_type for node in operator_nodes(model)} == {"TrtcTokenMerge", "TrtcTokenSelect"}
    assert not model.functions


def test_node_attributes_are_those_of_the_spec_and_of_the_plugin(model: ModelProto) -> None:
    for node in operator_nodes(model):
        spec = operators()[node.op_type].spec
        given = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        assert list(given) == [*(attribute.name for attribute in spec.attributes), "plugin_version", "plugin_namespace"]
        assert (given["plugin_version"], given["plugin_namespace"]) == (b"1", b"trt_compress")
        kinds = {"int": int, "ints": list, "float": float}
        assert all(type(given[attribute.name]) is kinds[attribute.kind] for attribute in spec.attributes)
        assert (len(node.input), len(node.output)) == (len(spec.inputs), len(spec.outputs))


def test_attributes_say_what_the_compressors_decided(model: ModelProto) -> None:
    values = {
        node.name: {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
        for node in operator_nodes(model)
    }
    assert [values[f"blocks.{layer}/TokenMerge"]["num_merged"] for layer in (0, 2, 3)] == [2, 3, 2]
    assert values["blocks.1/TokenSelect"]["num_kept"] == 1 + 10  # of 14 patches, rounded up
    assert values["blocks.1/TokenSelect"]["remainder"] == 1
    assert values["blocks.1/TokenSelect_1"]["num_kept"] == 1 + 10  # of those and the fused one


def test_values_are_named_as_a_recording_names_them(module: CompressedViT, model: ModelProto) -> None:
    with torch.no_grad(), recording() as record:
        module(images(2))
    made = {name for node in model.graph.node for name in node.output}
    tokens = ["blocks.0/tokens", "blocks.1/tokens", "blocks.1/tokens_1", "blocks.2/tokens", "blocks.3/tokens"]
    assert [name for name in record if "/tokens" in name] == tokens
    decided = [name for name in record if name.endswith(("/dest", "/index", "/rest"))]
    assert len(decided) == 3 + 2 * 2
    assert {*tokens, *decided} <= made


def test_a_site_without_an_operator_is_named_too() -> None:
    module = make_module("avg_pool:layer=2")
    model = onnx_from_module(module, SHAPE, OPTIONS)
    assert operator_nodes(model) == []
    assert [name for node in model.graph.node for name in node.output if "/" in name] == ["blocks.2/tokens"]
    with torch.no_grad():
        wanted = module(images(3))
    assert (run(model, images(3)) - wanted).abs().max() <= 1e-4 * wanted.abs().max()


class _OnlySites(nn.Module):
    """Marks its input and its result, which is an operator's."""

    def forward(self, x: Tensor) -> Tensor:
        with at_site("blocks.0"):
            x = mark_tensor("tokens", x)
            y, index, _ = token_select(x, x.mean(dim=2), num_kept=2)
            return mark_tensor("tokens", y)


def test_a_site_may_be_the_input_or_the_output_of_the_graph() -> None:
    module = _OnlySites().eval()
    x = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    options = TraceOptions(input_name="x", output_name="y", max_batch=4, opset=20)
    model = add_bodies(onnx_from_module(module, (5, 4), options))
    onnx.checker.check_model(model)
    made = {name for node in model.graph.node for name in node.output}
    assert {"blocks.0/tokens", "blocks.0/tokens_1", "blocks.0/TokenSelect/index", "y"} <= made
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (got,) = session.run(["y"], {"x": x.numpy()})
    assert torch.equal(torch.from_numpy(got), module(x))


def test_input_and_output_have_their_names_and_a_dynamic_batch(model: ModelProto) -> None:
    (image,), (logits,) = model.graph.input, model.graph.output
    dims = [[dim.dim_param or dim.dim_value for dim in v.type.tensor_type.shape.dim] for v in (image, logits)]
    assert (image.name, logits.name) == ("image", "logits")
    assert dims == [["batch", 3, 16, 16], ["batch", 5]]
    assert next(entry.version for entry in model.opset_import if not entry.domain) == 20


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_the_graph_computes_the_same_at_every_batch(module: CompressedViT, model: ModelProto, batch: int) -> None:
    x = images(batch)
    with torch.no_grad():
        wanted = module(x)
    assert (run(model, x) - wanted).abs().max() <= 1e-4 * wanted.abs().max()


def test_the_graph_is_valid(model: ModelProto) -> None:
    onnx.checker.check_model(add_bodies(model), full_check=True)
    names = [node.name for node in model.graph.node]
    assert all(names) and len(set(names)) == len(names)


def test_nothing_of_this_machine_is_in_the_file(model: ModelProto) -> None:
    content = model.SerializeToString()
    for trace in (str(Path(__file__).parents[2]), "site-packages", ".py", "Traceback", "torch.nn", str(Path.home())):
        assert trace.encode() not in content, trace
    notes = [*model.graph.node, *model.graph.value_info, *model.graph.initializer, model, model.graph]
    assert not [item for item in notes if item.metadata_props or item.doc_string]


def test_without_compressors_there_are_only_standard_operators() -> None:
    model = onnx_from_module(make_module("none"), SHAPE, OPTIONS)
    assert {node.domain for node in model.graph.node} == {""}


@pytest.mark.parametrize("opset", [18, 21])
def test_other_opsets(module: CompressedViT, opset: int) -> None:
    options = TraceOptions(input_name="x", output_name="y", max_batch=1, opset=opset)
    model = onnx_from_module(module, SHAPE, options)
    assert next(entry.version for entry in model.opset_import if not entry.domain) == opset
    assert (model.graph.input[0].name, model.graph.output[0].name) == ("x", "y")


# ---- precision ------------------------------------------------------------------------------------------------------


def test_half_precision_is_in_the_graph_and_its_ends_are_single() -> None:
    module = with_precision(make_module(SPEC), "fp16")
    model = onnx_from_module(module, SHAPE, OPTIONS)
    for value in (*model.graph.input, *model.graph.output):
        assert value.type.tensor_type.elem_type == TensorProto.FLOAT
    weights = [tensor for tensor in model.graph.initializer if tensor.name.startswith("module.vit.")]
    assert weights and {tensor.data_type for tensor in weights} == {TensorProto.FLOAT16}
    dtypes = {info.name: info.type.tensor_type.elem_type for info in model.graph.value_info}
    merged = next(node for node in operator_nodes(model) if node.name == "blocks.0/TokenMerge")
    assert [dtypes[name] for name in merged.output[:2]] == [TensorProto.FLOAT16, TensorProto.FLOAT]
    with torch.no_grad():
        wanted = module(images(2))
    assert (run(model, images(2)) - wanted).abs().max() <= 2e-2 * wanted.abs().max()


def test_single_precision_is_the_module_itself() -> None:
    module = nn.Linear(2, 2)
    assert with_precision(module, "fp32") is module


def test_unknown_precision() -> None:
    with pytest.raises(ConfigError, match=r"precision 'int8' is not known; there are fp32, fp16, bf16\."):
        with_precision(nn.Linear(2, 2), "int8")


def test_a_weight_beyond_half_precision_is_named() -> None:
    module = nn.Linear(2, 2)
    with torch.no_grad():
        module.weight[0, 0] = 1e5
    with pytest.raises(ConfigError, match=r"precision fp16: weight holds 1e\+05, beyond fp16's 65504; use fp32\."):
        with_precision(module, "fp16")
    assert module.weight.dtype == torch.float32


# ---- what torch cannot export ---------------------------------------------------------------------------------------


class _Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if bool(x.sum() > 0) else x


def test_a_module_torch_cannot_export_is_one_sentence() -> None:
    with pytest.raises(ExportError, match=r"torch cannot export _Branches: .+") as error:
        onnx_from_module(_Branches(), SHAPE, OPTIONS)
    assert len(str(error.value).splitlines()) == 1


def test_an_output_may_be_called_as_torch_calls_a_value_within() -> None:
    """What torch makes of a Linear is called `linear`, too."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2), nn.Tanh()).eval()
    model = onnx_from_module(module, (4,), TraceOptions(input_name="x", output_name="linear", max_batch=4, opset=20))
    made = [name for node in model.graph.node for name in node.output]
    assert [info.name for info in model.graph.output] == ["linear"] and len(set(made)) == len(made)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = torch.randn(3, 4)
    found = session.run(None, {"x": x.numpy()})[0]
    assert torch.allclose(torch.from_numpy(found), module(x), atol=1e-6)
