"""A model computed more precisely than its graph says, which shows what the rounding in between is worth."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from trt_compress.plugins.spec import DOMAIN

_PRODUCTS = {
    torch.matmul,
    torch.mm,
    torch.bmm,
    torch.einsum,
    torch.nn.functional.linear,
    Tensor.matmul,
    Tensor.__matmul__,
    Tensor.mm,
    Tensor.bmm,
    Tensor.__rmatmul__,
}


class Doubles(TorchFunctionMode):
    """Matrix products of floating-point numbers are summed in float64 and rounded once, to the dtype they had.

    A library sums a product of one row in another order than one of three rows, and another on the next processor. A
    choice among entries, or a code, that is nearly a tie then turns out another way for no fault of who chooses. How
    far a model is from itself in this mode is what its own rounding costs.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """See `TorchFunctionMode`."""
        short = next((each.dtype for each in args if _shorter(each)), None)
        if func not in _PRODUCTS or short is None:
            return func(*args, **(kwargs or {}))
        return func(*map(_doubled, args), **{name: _doubled(each) for name, each in (kwargs or {}).items()}).to(short)


class Wide(TorchFunctionMode):
    """What is computed from weights and states in half precision is computed in float32, and rounded only by who asks.

    In half precision torch and ONNX Runtime round after other operators, and in a deep model one token may turn on
    that. Operators of ours take half precision where one of their inputs has it, as a cache.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """See `TorchFunctionMode`."""
        named = dict(kwargs or {})
        if getattr(func, "__name__", "") in _AS_THEY_ARE:
            return func(*args, **named)
        halves = [each.dtype for each in (*args, *named.values()) if _is_half(each)]
        to = torch.float32
        if DOMAIN in str(func) and halves:
            to = halves[0]
        return func(*(_floats_to(each, to) for each in args), **{n: _floats_to(each, to) for n, each in named.items()})


_AS_THEY_ARE = frozenset({"to", "half", "bfloat16", "float", "double", "type", "copy_", "set_", "__get__", "__set__"})
"""What says a dtype itself, or changes a tensor where it is."""


def _is_half(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16)


def _floats_to(value: Any, dtype: torch.dtype) -> Any:
    """Floating-point tensors of at most 32 bits in another dtype, also in lists of them."""
    if isinstance(value, list | tuple) and any(isinstance(each, Tensor) for each in value):
        return type(value)(_floats_to(each, dtype) for each in value)
    return value.to(dtype) if isinstance(value, Tensor) and _shorter(value) else value


def _doubled(value: Any) -> Any:
    return value.double() if _shorter(value) else value


def _shorter(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64
