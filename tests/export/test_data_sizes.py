"""Exported sizes that the data decide: TokenSelectDynamic with trim, and what stands behind it in the graph."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.checker
import onnxruntime
import pytest
import torch
from onnx import ModelProto, NodeProto
from torch import Tensor, nn

from trt_compress.errors import ExportError
from trt_compress.export import engine_worker
from trt_compress.export.lower import add_bodies, lower_for_target
from trt_compress.export.precision import with_precision
from trt_compress.export.preflight import Finding, preflight
from trt_compress.export.targets import TARGETS, get_target
from trt_compress.export.trace import TraceOptions, onnx_from_module
from trt_compress.plugins.operator import at_site
from trt_compress.plugins.spec import DOMAIN
from trt_compress.plugins.token_select_dynamic.op import token_select_dynamic

TOKENS, CHANNELS, MOST = 9, 8, 6
OPTIONS = TraceOptions(input_name="x", output_name="y", max_batch=8, opset=20)
ON_TENSORRT = [name for name, target in TARGETS.items() if target.is_tensorrt]


class Classifier(nn.Module):
    """Selects by a channel of the input, attends among the tokens that are left, and takes their mean."""

    def __init__(
        self, *, trim: bool, times: int = 1, mode: str = "threshold", min_kept: int = 1, after: int = 1
    ) -> None:
        super().__init__()
        self.trim, self.times, self.mode, self.min_kept, self.after = trim, times, mode, min_kept, after
        self.norm, self.qkv = nn.LayerNorm(CHANNELS), nn.Linear(CHANNELS, 3 * CHANNELS)
        self.head = nn.Linear(CHANNELS, 3)

    def forward(self, x: Tensor) -> Tensor:
        valid = x.new_ones(x.shape[:2])
        for layer in range(self.times):
            most = MOST if layer == 0 else self.after
            with at_site(f"blocks.{layer}"):
                x, _, valid, _, _ = token_select_dynamic(
                    x,
                    (x[..., layer] * valid).abs(),
                    mode=self.mode,
                    threshold=0.5,
                    min_kept=min(self.min_kept, most),
                    max_kept=most,
                    trim=self.trim,
                )
        batch, length, _ = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(batch, length, 3, 2, CHANNELS // 2).permute(2, 0, 3, 1, 4)
        bias = (valid - 1)[:, None, None] * 1e4
        x = x + ((q @ k.mT + bias).softmax(-1) @ v).transpose(1, 2).reshape(batch, length, CHANNELS)
        mean: Tensor = (x * valid[..., None]).sum(dim=1) / (valid.sum(dim=1, keepdim=True) + 1)
        logits: Tensor = self.head(mean)
        return logits


class Selection(nn.Module):
    """The tokens that are left are the output, or how many there are."""

    def __init__(self, output: int) -> None:
        super().__init__()
        self.output = output

    def forward(self, x: Tensor) -> Tensor:
        chosen: Tensor = token_select_dynamic(x, x[..., 0], threshold=0.5, max_kept=MOST, trim=True)[self.output]
        return chosen


def exported(module: nn.Module) -> ModelProto:
    torch.manual_seed(0)
    return onnx_from_module(module.eval(), (TOKENS, CHANNELS), OPTIONS)


def tokens(*reaching: int) -> Tensor:
    """One item for each number: so many of its tokens reach the threshold, in the first channel."""
    x = torch.randn(len(reaching), TOKENS, CHANNELS, generator=torch.Generator().manual_seed(len(reaching)))
    places = torch.stack([torch.randperm(TOKENS, generator=torch.Generator().manual_seed(n)) for n in reaching])
    x[..., 0] = torch.where(places < torch.tensor(reaching)[:, None], 0.75, 0.25)
    return x


def run(model: ModelProto, x: Tensor) -> Tensor:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    serialized = add_bodies(model).SerializeToString()
    session = onnxruntime.InferenceSession(serialized, options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"x": x.numpy()})[0])


def node_of(model: ModelProto) -> NodeProto:
    (node,) = (node for node in model.graph.node if node.domain == DOMAIN)
    return node


def stated(model: ModelProto, name: str) -> list[int | str] | None:
    values = {value.name: value for value in (*model.graph.value_info, *model.graph.output)}
    dims = values[name].type.tensor_type.shape.dim if name in values else None
    return None if dims is None else [dim.dim_param or dim.dim_value for dim in dims]


@pytest.fixture(scope="module")
def trimmed() -> ModelProto:
    return exported(Classifier(trim=True))


def test_it_is_one_node_that_trims(trimmed: ModelProto) -> None:
    node = node_of(trimmed)
    attributes: dict[str, Any] = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    assert (node.op_type, node.name) == ("TrtcTokenSelectDynamic", "blocks.0/TokenSelectDynamic")
    assert (attributes["trim"], attributes["max_kept"]) == (1, MOST)
    assert [name.rpartition("/")[2] for name in node.output] == ["y", "index", "valid", "count", "largest"]
    onnx.checker.check_model(add_bodies(trimmed), full_check=True)


def test_no_size_of_its_outputs_is_stated_that_the_data_decide(trimmed: ModelProto) -> None:
    """ONNX Runtime plans its memory by the sizes that are stated, of outputs that nobody reads too."""
    y, index, valid, *_ = node_of(trimmed).output
    batch, length, channels = stated(trimmed, y) or []
    assert (batch, channels) == ("batch", CHANNELS) and isinstance(length, str) and length
    assert stated(trimmed, valid) == ["batch", length] and stated(trimmed, index) is None


@pytest.mark.parametrize(
    "options",
    [{}, {"mode": "mass"}, {"times": 2, "min_kept": 3, "after": 3}, {"min_kept": 0}],
    ids=["threshold", "mass", "two in a row", "down to none"],
)
def test_it_computes_what_torch_does(options: dict[str, Any]) -> None:
    module = Classifier(trim=True, **options).eval()
    model = exported(module)
    for reaching in ((3,), (0,), (0, 0), (1, 6), (9, 2, 5), (4, 4, 4, 4)):
        with torch.no_grad():
            wanted = module(tokens(*reaching))
        assert (run(model, tokens(*reaching)) - wanted).abs().max() <= 1e-5, reaching


def test_trimming_changes_no_value_where_padding_is_masked() -> None:
    module, other = Classifier(trim=True).eval(), Classifier(trim=False).eval()
    other.load_state_dict(module.state_dict())
    with torch.no_grad():
        wanted = other(tokens(2, 5, 1))
    assert (run(exported(module), tokens(2, 5, 1)) - wanted).abs().max() <= 1e-6


def test_in_float16() -> None:
    module = with_precision(Classifier(trim=True), "fp16").eval()
    model = exported(module)
    for reaching in ((4,), (1, 6)):
        with torch.no_grad():
            wanted = module(tokens(*reaching))
        assert (run(model, tokens(*reaching)) - wanted).abs().max() <= 5e-3 * wanted.abs().max()


def test_more_than_the_data_may_leave_cannot_be_asked_for() -> None:
    with pytest.raises(
        ExportError, match="max_kept=4 may be more than the data leave; .* keep at least 4 tokens, or pad"
    ):
        exported(Classifier(trim=True, times=2, min_kept=3, after=4))


@pytest.mark.parametrize("output", range(5))
def test_any_of_its_outputs_may_be_that_of_the_graph(output: int) -> None:
    module = Selection(output).eval()
    model = exported(module)
    for reaching in ((3,), (0,), (9, 2)):
        wanted = module(tokens(*reaching))
        got = run(model, tokens(*reaching))
        assert got.shape == wanted.shape and got.dtype == wanted.dtype and torch.equal(got, wanted)


@pytest.mark.parametrize("target", ON_TENSORRT)
def test_preflight_says_what_it_costs_on_tensorrt(target: str, trimmed: ModelProto) -> None:
    def of_size(model: ModelProto) -> list[Finding]:
        return [item for item in preflight(model, get_target(target)) if item.rule == "data-dependent-size"]

    (found,) = of_size(trimmed)
    assert (found.severity, found.node) == ("warning", "blocks.0/TokenSelectDynamic")
    assert "TokenSelectDynamic with trim=1 has outputs whose size the data decide" in found.message
    assert f"no CUDA graph is captured on '{target}'" in found.message and found.fix.startswith("trim=0 keeps the size")
    assert ("tunes what follows for a size of one" in found.message) == (get_target(target).lowering != "plugin")
    assert of_size(exported(Classifier(trim=False))) == []


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_onnxruntime_takes_it_as_it_is(target: str, trimmed: ModelProto) -> None:
    assert preflight(trimmed, get_target(target)) == ()


@pytest.mark.parametrize("target", [name for name in ON_TENSORRT if TARGETS[name].lowering == "plugin"])
def test_a_target_with_plugins_gets_the_node(target: str, trimmed: ModelProto) -> None:
    lowered = lower_for_target(trimmed, get_target(target))
    assert node_of(lowered) == node_of(trimmed) and not lowered.functions


def test_tensorrt_rtx_builds_it_and_what_follows(trimmed: ModelProto, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs the real builder: pip install 'trt-compress[rtx]'")
    onnx.save(lower_for_target(trimmed, get_target("rtx")), tmp_path / "model.onnx")
    shapes = {name: [size, TOKENS, CHANNELS] for name, size in (("min", 1), ("opt", 2), ("max", 8))}
    request = {"target": "rtx", "model": str(tmp_path / "model.onnx"), "profile": {"x": shapes}, "plugin_library": None}
    (tmp_path / "request.json").write_text(json.dumps(request))
    engine_worker.main(tmp_path)
    reply = json.loads((tmp_path / "reply.json").read_text())
    assert (reply["stage"], reply.get("message", "")) == ("done", "")
    assert np.fromfile(tmp_path / "engine", np.uint8).size > 0
