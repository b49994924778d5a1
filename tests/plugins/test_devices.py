"""Torch forms make what they need on the device of their inputs.

Without a GPU this shows too: on fake CUDA tensors torch knows devices, shapes and types and refuses to compute with two
devices. What a form reads of the data there is answered with what it reads of the same data on the CPU.

What judges a decision reads too much for that: it computes where the default device is "meta", so that a tensor made
without saying where lies on another device than the inputs.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.overrides import TorchFunctionMode

from trt_compress.plugins.operator import Operator, as_float32
from trt_compress.plugins.registry import operators
from trt_compress.plugins.spec import DOMAIN, Sample
from trt_compress.plugins.testing import call_torch, sample_inputs

LARGE = 1000  # tokens, or slots of a cache; sizes do not change what is made
READS = frozenset({torch.Tensor.__bool__, torch.Tensor.__int__, torch.Tensor.item, torch.Tensor.tolist})


class Reads(TorchFunctionMode):
    """Notes the numbers that are read of the data, in order; or gives `answers` to the same reads instead."""

    def __init__(self, answers: Sequence[Any] | None = None) -> None:
        super().__init__()
        self.seen: list[Any] = []
        self.answers = answers

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func not in READS:
            return func(*args, **(kwargs or {}))
        if self.answers is not None:
            self.seen.append(self.answers[len(self.seen)])
            return self.seen[-1]
        found = func(*args)
        self.seen += found if isinstance(found, list) else [found]  # tolist() of a fake tensor is an item() for each
        return found


def samples_up_to(most: float) -> list[Any]:
    return [
        pytest.param(operator, sample, id=f"{operator.spec.torch_name}[{sample.label}]")
        for operator in operators().values()
        for sample in operator.samples
        if max(sample.axes.get(axis, 0) for axis in "NL") <= most
    ]


def torch_form(operator: Operator) -> Callable[..., Any]:
    """The function behind the registered operator."""
    return OPDEFS[f"{DOMAIN}::{operator.spec.torch_name}"]._init_fn


def run_form(form: Callable[..., Any], inputs: Sequence[Tensor], attributes: Sequence[Any]) -> tuple[Tensor, ...]:
    found = form(*inputs, *attributes)
    return tuple(found) if isinstance(found, tuple | list) else (found,)


def on_fake_cuda(
    form: Callable[..., Any], inputs: Sequence[Tensor], attributes: Sequence[Any]
) -> tuple[list[Any], list[Any]]:
    """Device, dtype and shape of each output on fake CUDA tensors, and as they must be: those of the CPU, moved."""
    with Reads() as reads:
        real = run_form(form, inputs, attributes)
    with FakeTensorMode(), Reads(reads.seen) as replayed:
        unreal = [torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda") for tensor in inputs]
        fake = run_form(form, unreal, attributes)
    assert replayed.seen == reads.seen
    found = [(tensor.device.type, tensor.dtype, tuple(tensor.shape)) for tensor in fake]
    return found, [("cuda", tensor.dtype, tuple(tensor.shape)) for tensor in real]


@pytest.mark.parametrize(("operator", "sample"), samples_up_to(float("inf")))
def test_a_form_computes_where_its_inputs_are(operator: Operator, sample: Sample) -> None:
    given = [sample.attributes[attribute.name] for attribute in operator.spec.attributes]
    attributes = [as_float32(value) if isinstance(value, float) else value for value in given]
    found, wanted = on_fake_cuda(torch_form(operator), sample_inputs(operator, sample, dtype="float16"), attributes)
    assert found == wanted


@pytest.mark.parametrize(("operator", "sample"), samples_up_to(LARGE))
def test_what_is_said_of_the_outputs_is_so_on_a_gpu(operator: Operator, sample: Sample) -> None:
    """The registered operator, which tells tracing and torch.compile what comes out."""
    inputs = sample_inputs(operator, sample, dtype="float16")
    with FakeTensorMode(shape_env=ShapeEnv()):
        unreal = [torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda") for tensor in inputs]
        fake = call_torch(operator, sample, unreal)
    assert {tensor.device.type for tensor in fake} == {"cuda"}  # shapes and types: test_contract.py


@pytest.mark.parametrize(("operator", "sample"), samples_up_to(LARGE))
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
    def careless(x: Tensor) -> Tensor:
        return x + torch.arange(x.shape[0])

    with pytest.raises(RuntimeError, match="meta"), torch.device("meta"):
        careless(torch.ones(3, device="cpu"))
    with pytest.raises(RuntimeError, match="cuda:0"):
        on_fake_cuda(careless, [torch.ones(3)], [])


def test_an_output_elsewhere_or_of_another_type_is_seen() -> None:
    def left_behind(x: Tensor) -> Tensor:
        return torch.zeros(x.shape)

    found, wanted = on_fake_cuda(left_behind, [torch.ones(3)], [])
    assert found == [("cpu", torch.float32, (3,))] and wanted == [("cuda", torch.float32, (3,))]


def test_a_form_goes_the_way_that_the_data_show() -> None:
    def longest(x: Tensor) -> Tensor:
        return x[: int(x.max())] if bool((x > 0).all()) else x

    assert on_fake_cuda(longest, [torch.tensor([2, 1, 2])], [])[0] == [("cuda", torch.int64, (2,))]
    assert on_fake_cuda(longest, [torch.tensor([2, 0, 2])], [])[0] == [("cuda", torch.int64, (3,))]


@pytest.mark.gpu
@pytest.mark.parametrize(("operator", "sample"), samples_up_to(LARGE))
def test_a_form_runs_on_a_gpu(operator: Operator, sample: Sample) -> None:
    inputs = tuple(tensor.cuda() for tensor in sample_inputs(operator, sample))
    assert all(tensor.is_cuda for tensor in call_torch(operator, sample, inputs))
