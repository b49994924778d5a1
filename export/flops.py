"""Floating-point operations of one run, counted while the model runs in torch."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from trt_compress.plugins.operator import Operator
from trt_compress.plugins.registry import operators
from trt_compress.plugins.spec import DOMAIN


def count_flops(module: nn.Module, input_shape: Sequence[int]) -> dict[str, int]:
    """FLOPs of one fp32 input of this shape, given without the batch axis; see `flops_of_call`."""
    return flops_of_call(module, (torch.zeros(1, *input_shape),))


def flops_of_call(module: nn.Module, tensors: Sequence[Tensor]) -> dict[str, int]:
    """FLOPs of one call, two for each multiply-add.

    Args:
        module: In eval mode, fp32.
        tensors: Inputs and states.

    Returns:
        `total`, and of it `operators`: what the compressors' own operators cost. Element-wise work and softmax are not
        counted, as in the field's usual figures.
    """
    custom = {_packet(operator): _formula(operator) for operator in operators().values()}
    counter = FlopCounterMode(display=False, custom_mapping=custom)
    with torch.no_grad(), counter:
        module(*tensors)
    counts = counter.get_flop_counts().get("Global", {})
    own = sum(count for packet, count in counts.items() if packet in custom)
    return {"total": int(counter.get_total_flops()), "operators": int(own)}


def _packet(operator: Operator) -> Any:
    return getattr(getattr(torch.ops, DOMAIN), operator.spec.torch_name)


def _formula(operator: Operator) -> Callable[..., int]:
    spec = operator.spec

    def flops(*arguments: Any, out_shape: Any = None, **kwargs: Any) -> int:
        shapes, given = arguments[: len(spec.inputs)], arguments[len(spec.inputs) :]
        attributes = dict(zip((a.name for a in spec.attributes), given, strict=True))
        return spec.flops(spec.sizes(shapes, attributes))

    return flops
