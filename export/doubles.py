"""Products that are the same numbers in every batch and on every machine."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

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


def _doubled(value: Any) -> Any:
    return value.double() if _shorter(value) else value


def _shorter(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64
