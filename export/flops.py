"""Floating-point operations of one run, counted on fake tensors: shapes are followed and nothing is computed.

A module on the meta device, which has no weights in memory at all, is counted as well as one with weights.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
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
        module: In eval mode; its weights are not read.
        tensors: Inputs and states; only their shapes and types matter.

    Returns:
        `total`, and of it `operators`: what the compressors' own operators cost. Element-wise work and softmax are not
        counted, as in the field's usual figures. Where the data decide how many tokens are left, the most that can be
        are counted.
    """
    custom = {_packet(operator): _formula(operator) for operator in operators().values()}
    counter = FlopCounterMode(display=False, custom_mapping=custom)
    devices = {tensor.device for tensor in (*module.parameters(), *module.buffers())}
    device = devices.pop() if len(devices) == 1 else torch.device("cpu")
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv()) as fake:
        given = [fake.from_tensor(tensor, static_shapes=True).to(device) for tensor in tensors]
        with counter:
            module(*given)
    counts = counter.get_flop_counts().get("Global", {})
    own = sum(count for packet, count in counts.items() if packet in custom)
    return {"total": _most(counter.get_total_flops()), "operators": _most(own)}


def _most(count: int | torch.SymInt) -> int:
    """A count, or the most that it can be where it hangs on sizes that the data decide."""
    if isinstance(count, int):
        return count
    shapes = count.node.shape_env
    if shapes is None:
        raise TypeError(f"the size {count} is known by no graph")
    size: Any = count.node.expr
    return int(shapes.bound_sympy(size).upper)


def _packet(operator: Operator) -> Any:
    return getattr(getattr(torch.ops, DOMAIN), operator.spec.torch_name)


def _formula(operator: Operator) -> Callable[..., int]:
    spec = operator.spec

    def flops(*arguments: Any, out_shape: Any = None, **kwargs: Any) -> int:
        shapes, given = arguments[: len(spec.inputs)], arguments[len(spec.inputs) :]
        attributes = dict(zip((a.name for a in spec.attributes), given, strict=True))
        return spec.flops(spec.sizes(shapes, attributes))

    return flops
