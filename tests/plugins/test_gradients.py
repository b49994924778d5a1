"""Operators that compressors are trained through have the gradients that finite differences show."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from trt_compress.plugins.token_mix.op import token_mix
from trt_compress.plugins.token_restore.op import token_restore
from trt_compress.plugins.token_select.op import token_select

Function = Callable[..., Tensor]


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).requires_grad_()


def mostly_ascending(rows: int, n: int) -> Tensor:
    """Scores whose order no small step changes."""
    return (torch.arange(n).float().roll(2).expand(rows, -1) + 0.5).clone().requires_grad_()


def select(**attributes: object) -> Function:
    return lambda x, score: token_select(x, score, **attributes)[0]  # type: ignore[arg-type]


CASES: dict[str, tuple[Function, tuple[Tensor, ...]]] = {
    "select": (select(num_kept=3), (random(2, 7, 2), mostly_ascending(2, 7))),
    "select, by score": (select(num_kept=3, order="score", forced=(1,)), (random(2, 7, 2), mostly_ascending(2, 7))),
    "select, fused": (select(num_kept=3, remainder="fuse"), (random(2, 7, 2), mostly_ascending(2, 7))),
    "mix": (token_mix, (random(2, 5, 3), random(2, 4, 5))),
    "mix, one matrix": (token_mix, (random(2, 5, 3), random(4, 5))),
    "mix, softmax": (lambda x, w: token_mix(x, w, normalize="softmax"), (random(2, 5, 3), random(2, 4, 5))),
    "unmerge": (
        lambda y: token_restore(y, torch.tensor([[0, 0, 2, 1], [1, 1, 1, 0]])),
        (random(2, 3, 2),),
    ),
    "unpermute": (
        lambda y: token_restore(y, torch.tensor([[2, 0, 1], [1, 2, 0]]), mode="unpermute"),
        (random(2, 3, 2),),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_gradients(case: str) -> None:
    function, inputs = CASES[case]
    output = function(*inputs)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    found = torch.autograd.grad((output * weights).sum(), inputs)
    step = 1e-2  # each function is linear in each input, or nearly so
    for tensor, gradient in zip(inputs, found, strict=True):
        expected = torch.zeros_like(tensor)
        for place in range(tensor.numel()):
            sides = []
            for sign in (1, -1):
                moved = tensor.detach().clone()
                moved.view(-1)[place] += sign * step
                with torch.no_grad():
                    changed = function(*(moved if other is tensor else other for other in inputs))
                sides.append(float((changed.double() * weights).sum()))
            expected.view(-1)[place] = (sides[0] - sides[1]) / (2 * step)
        assert torch.allclose(gradient, expected, atol=2e-3), case
