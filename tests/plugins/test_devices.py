"""Torch forms make what they need on the device of their inputs.

Without a GPU this shows too: where the default device is "meta", a tensor that was made without saying where lies on
another device than the inputs, and torch refuses to compute with both.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._library.custom_ops import OPDEFS

from trt_compress.plugins.operator import Operator, as_float32
from trt_compress.plugins.registry import operators
from trt_compress.plugins.spec import DOMAIN, Sample
from trt_compress.plugins.testing import call_torch, sample_inputs

LARGE = 1000  # tokens, or slots of a cache; sizes do not change what a form makes


def all_samples() -> list[Any]:
    return [
        pytest.param(operator, sample, id=f"{operator.spec.torch_name}[{sample.label}]")
        for operator in operators().values()
        for sample in operator.samples
        if max(sample.axes.get(axis, 0) for axis in "NL") <= LARGE
    ]


def torch_form(operator: Operator) -> Callable[..., Any]:
    """The function behind the registered operator; the registration hides the default device from it."""
    return OPDEFS[f"{DOMAIN}::{operator.spec.torch_name}"]._init_fn


def run_form(operator: Operator, sample: Sample, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    given = [sample.attributes[attribute.name] for attribute in operator.spec.attributes]
    attributes = [as_float32(value) if isinstance(value, float) else value for value in given]
    with torch.device("meta"):
        found = torch_form(operator)(*inputs, *attributes)
    return tuple(found) if isinstance(found, tuple | list) else (found,)


@pytest.mark.parametrize(("operator", "sample"), all_samples())
def test_a_form_computes_where_its_inputs_are(operator: Operator, sample: Sample) -> None:
    inputs = sample_inputs(operator, sample)
    wanted = call_torch(operator, sample, inputs)
    found = run_form(operator, sample, inputs)
    for ours, theirs in zip(found, wanted, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("operator", "sample"), all_samples())
def test_what_judges_a_decision_computes_where_its_inputs_are(operator: Operator, sample: Sample) -> None:
    if operator.regret is None:
        return
    inputs = sample_inputs(operator, sample)
    outputs = call_torch(operator, sample, inputs)
    named = dict(zip((tensor.name for tensor in operator.spec.inputs), inputs, strict=True))
    made = dict(zip((tensor.name for tensor in operator.spec.outputs), outputs, strict=True))
    with torch.device("meta"):
        regret = operator.regret(named, sample.attributes, made)
    assert regret.device.type == "cpu"


def test_a_tensor_made_elsewhere_is_seen() -> None:
    def careless(x: torch.Tensor) -> torch.Tensor:
        return x + torch.arange(x.shape[0])

    with pytest.raises(RuntimeError, match="meta"), torch.device("meta"):
        careless(torch.ones(3, device="cpu"))


@pytest.mark.gpu
@pytest.mark.parametrize(("operator", "sample"), all_samples())
def test_a_form_runs_on_a_gpu(operator: Operator, sample: Sample) -> None:
    inputs = tuple(tensor.cuda() for tensor in sample_inputs(operator, sample))
    assert all(tensor.is_cuda for tensor in call_torch(operator, sample, inputs))
