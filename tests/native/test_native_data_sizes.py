"""A size that the data decide, in ONNX Runtime's native form: the graph as torch exported it."""

from typing import Any

import onnxruntime
import torch
from torch import Tensor, nn

from trt_compress.export.trace import TraceOptions, onnx_from_module
from trt_compress.plugins.library import Library
from trt_compress.plugins.registry import operators
from trt_compress.plugins.spec import DOMAIN
from trt_compress.plugins.token_select_dynamic.op import token_select_dynamic


class Selection(nn.Module):
    """Selects tokens and computes with those that are left, whose number is part of the result."""

    def forward(self, x: Tensor) -> Tensor:
        y, _, valid, _, _ = token_select_dynamic(x, x[..., 0], threshold=0.5, max_kept=6, trim=True)
        similarity = (y @ y.mT).softmax(dim=-1) * valid[:, None]
        result: Tensor = similarity @ y + y.shape[1]
        return result


def test_the_exported_node_runs_natively(native_library: Library) -> None:
    module = Selection().eval()
    options = TraceOptions(input_name="x", output_name="y", max_batch=8, opset=20)
    model = onnx_from_module(module, (9, 4), options)
    assert [node.op_type for node in model.graph.node if node.domain == DOMAIN] == ["TrtcTokenSelectDynamic"]
    assert not model.functions  # so that nothing but the library can run it
    settings = onnxruntime.SessionOptions()
    settings.register_custom_ops_library(str(native_library.path))
    session: Any = onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(0)
    lengths, tolerance = [], operators()["TrtcTokenSelectDynamic"].spec.tolerance["float32"]
    for batch, share in ((1, 0.5), (3, 0.2), (2, 0.0), (2, 1.0), (4, 0.4)):
        x = torch.randn(batch, 9, 4, generator=generator)
        x[..., 0] = (torch.rand(batch, 9, generator=generator) < share).float()
        wanted = module(x)
        scale = float(wanted.abs().max()) if wanted.numel() else 0.0
        got = torch.from_numpy(session.run(None, {"x": x.numpy()})[0])
        assert got.shape == wanted.shape and torch.allclose(got, wanted, rtol=0, atol=tolerance * scale)
        lengths.append(got.shape[1])
    assert min(lengths) == 0 and max(lengths) == 6 and len(set(lengths)) > 2
