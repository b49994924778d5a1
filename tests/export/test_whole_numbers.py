"""Weights that came as whole numbers stay the same numbers in the graph."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import nn

from trt_compress.export.precision import quantize, with_precision
from trt_compress.export.trace import TraceOptions, onnx_from_module
from trt_compress.export.weight_forms import weight_forms
from trt_compress.models.layers.block_form import BlockForm
from trt_compress.models.layers.blocks import BlockLinear, WholeNumbers

OPTIONS = TraceOptions(input_name="x", output_name="y", max_batch=4, opset=22)


def stored_linear(bits: int, group: int, *, zeros: bool, offset: bool = False) -> tuple[nn.Linear, WholeNumbers]:
    """A layer whose weight came as whole numbers; of one block all are 0, and its scale too."""
    torch.manual_seed(bits)
    limit = 2 ** (bits - 1)
    codes = torch.randint(-limit, limit, (33, 64), dtype=torch.int8)
    scale = (torch.rand(33, 64 // group) / 8 + 0.01).half()
    scale[3, 0] = 0
    zero = torch.randint(-limit, limit, scale.shape, dtype=torch.int8) if zeros else None
    least = torch.randn(scale.shape) / 4 if offset else None
    whole = WholeNumbers(bits=bits, group=group, codes=codes, scale=scale, zero=zero, least=least)
    linear = nn.Linear(64, 33)
    shift = 0 if zero is None else zero.repeat_interleave(group, 1)
    with torch.no_grad():
        weight = (codes.int() - shift) * scale.float().repeat_interleave(group, 1)
        linear.weight.copy_(weight if least is None else weight + least.repeat_interleave(group, 1))
    linear.stored = lambda: whole  # type: ignore[assignment]
    return linear, whole


@pytest.mark.parametrize(
    ("bits", "group", "zeros", "offset", "form"),
    [
        (4, 32, False, False, "4:32"),
        (4, 32, True, False, "4:16"),
        (4, 32, True, False, "8:32"),
        (8, 64, True, False, "8:32"),
        (8, 16, False, False, "8:16"),
        (4, 32, False, True, "4:32"),
        (4, 32, True, True, "8:16"),
    ],
)
def test_whole_numbers_that_came_with_the_weights_are_taken_over(
    bits: int, group: int, zeros: bool, offset: bool, form: str, tmp_path: Path
) -> None:
    linear, _ = stored_linear(bits, group, zeros=zeros, offset=offset)
    wanted = linear.weight.detach().clone()
    module = nn.Sequential(linear)
    quantize([module], BlockForm.parse(form), "fp32")
    weight = module[0].weight
    assert isinstance(module[0], BlockLinear) and torch.equal(weight, wanted)  # type: ignore[arg-type]
    file = tmp_path / "a.onnx"
    onnx.save_model(onnx_from_module(module, (64,), OPTIONS), file)
    x = torch.randn(2, 64)
    plain = ort.SessionOptions()  # as it stands there: by default ONNX Runtime rounds what it multiplies with blocks
    plain.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    (found,) = ort.InferenceSession(file, plain).run(None, {"x": x.numpy()})
    expected = nn.functional.linear(x.double(), wanted.double(), linear.bias.detach().double()).numpy()
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()
    (shape,) = (form_ for form_ in weight_forms(file) if form_.dtype.startswith("int"))
    asked = BlockForm.parse(form)
    blocks = 33 * 64 // asked.group
    kept = zeros and asked.bits == bits
    assert shape.bytes == 33 * 64 * asked.bits // 8 + blocks * 4 * (1 + offset) + (blocks * asked.bits + 7) // 8 * kept


def test_whole_numbers_of_another_form_are_made_anew() -> None:
    for form in ("4:32", "8:64"):
        linear, _ = stored_linear(8, 32, zeros=False)
        before = linear.weight.detach().clone()
        module = nn.Sequential(linear)
        found = quantize([module], BlockForm.parse(form), "fp32")
        assert not torch.equal(module[0].weight, before)  # type: ignore[arg-type]
        assert found.sentences(BlockForm.parse(form)) == (
            f"weights_bits {form}: the weights of 0 came in other blocks, and are rounded once more; 8:32 keeps them "
            "as they are",
        )


def test_layers_are_joined_if_they_have_one_form() -> None:
    parts = [stored_linear(4, 32, zeros=zeros)[1] for zeros in (False, True)]
    both = WholeNumbers.joined(parts)
    assert both is not None and both.codes.shape == (66, 64) and both.zero is not None
    assert not both.zero[:33].any() and parts[1].zero is not None and torch.equal(both.zero[33:], parts[1].zero)
    assert WholeNumbers.joined([parts[0], None]) is None
    other = stored_linear(8, 16, zeros=False, offset=True)[1]
    mixed = WholeNumbers.joined([parts[1], other])
    assert mixed is not None and (mixed.bits, mixed.group) == (8, 16)
    assert torch.equal(mixed.numbers(), torch.cat([parts[1].numbers(), other.numbers()]))


def test_weights_that_were_rounded_to_half_precision_are_read_anew_for_fp32() -> None:
    linear, whole = stored_linear(8, 32, zeros=True, offset=True)
    module = nn.Sequential(linear.half())
    assert not torch.equal(linear.weight.float(), whole.numbers())
    with_precision(module, "fp32")
    assert torch.equal(linear.weight, whole.numbers())
