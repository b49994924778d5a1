"""TokenMix: each output token is a weighted sum of the tokens."""

from typing import Any

import torch
from torch import Tensor

from trt_compress.errors import ConfigError, ShapeError
from trt_compress.plugins.operator import Operator, check_tensor, register_fake, run_operator
from trt_compress.plugins.spec import Sample
from trt_compress.plugins.token_mix.spec import SPEC
from trt_compress.suggest import not_known

NORMALIZE = ("none", "softmax")

BODY = """
  how = Constant <value_int: int = @normalize> ()
  one = Constant <value_int = 1> ()
  soft = Equal (how, one)
  weight32 = Cast <to = 1> (weight)
  matrix = If (soft) <
    then_branch = rows_to_one () => (softened) { softened = Softmax <axis = -1> (weight32) },
    else_branch = as_it_is () => (plain) { plain = Identity (weight32) }
  >
  x32 = Cast <to = 1> (x)
  y32 = MatMul (matrix, x32)
  y = CastLike (y32, x)
"""


@torch.library.custom_op("trt_compress::token_mix", mutates_args=())
def _token_mix(x: Tensor, weight: Tensor, normalize: int) -> Tensor:
    matrix = weight.float().softmax(dim=-1) if normalize == 1 else weight.float()
    return (matrix @ x.float()).to(x.dtype)


register_fake(SPEC, _token_mix)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, ctx.normalize = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
    x, weight = ctx.saved_tensors
    matrix = weight.float().softmax(dim=-1) if ctx.normalize == 1 else weight.float()
    grad_x = matrix.transpose(1, 2) @ grad.float()
    grad_matrix = grad.float() @ x.float().transpose(1, 2)
    if ctx.normalize == 1:
        grad_matrix = matrix * (grad_matrix - (grad_matrix * matrix).sum(dim=-1, keepdim=True))
    return grad_x.to(x.dtype), grad_matrix.sum_to_size(weight.shape).to(weight.dtype), None


_token_mix.register_autograd(_backward, setup_context=_save_for_backward)


def token_mix(x: Tensor, weight: Tensor, *, normalize: str = "none") -> Tensor:
    """Mix the tokens of each sequence by a matrix.

    Args:
        x: Tokens, [B, N, C], fp16 | bf16 | fp32.
        weight: Matrix of all items, [M, N] or [1, M, N], or one for each item, [B, M, N], fp16 | bf16 | fp32.
        normalize: "none" takes the matrix as it is; "softmax" makes each row sum to one by a softmax over N.

    Returns:
        Mixed tokens, [B, M, C], in x's dtype; row m is the sum over n of weight[m, n] * x[n].

    Raises:
        ConfigError: normalize is not known.
        ShapeError: a tensor has the wrong shape.

    Source: y = W x of Fourier-VLM, arXiv:2508.06038, LLaVolta, arXiv:2406.20092, and other linear compressors.
    Differs: see SPEC.differs.
    """
    check_tensor("token_mix", "x", x, (None, None, None), "BNC")
    batch, n, channels = x.shape
    if normalize not in NORMALIZE:
        raise ConfigError(not_known("token_mix: normalize", normalize, NORMALIZE))
    matrix = weight[None] if weight.ndim == 2 else weight
    check_tensor("token_mix", "weight", matrix, (None, None, n), "BMN")
    if matrix.shape[0] != 1 and matrix.shape[0] != batch:
        raise ShapeError(
            f"token_mix: weight has shape {list(weight.shape)}; its first axis must be 1, or B={batch} as that of x."
        )
    return run_operator(SPEC, [x, matrix], {"normalize": NORMALIZE.index(normalize)})[0]


def _make_inputs(sample: Sample, generator: torch.Generator) -> tuple[Tensor, ...]:
    b, m, n, c = (sample.axes[a] for a in "BMNC")
    x = torch.randn(b, n, c, generator=generator)
    weight = torch.randn(1 if sample.values.startswith("shared") else b, m, n, generator=generator)
    if sample.values == "fp16_range":
        x, weight = x.clamp(-2, 2) * 3e4, weight.abs() / n
    if sample.values == "large_logits":
        weight = weight.sign() * 6e4 + weight
    return x, weight


def _sample(b: int, m: int, n: int, c: int, normalize: int, reason: str, values: str = "normal") -> Sample:
    axes = {"B": b, "M": m, "N": n, "C": c}
    return Sample(axes=axes, attributes={"normalize": normalize}, reason=reason, values=values)


OPERATOR = Operator(
    spec=SPEC,
    function=token_mix,
    body=BODY,
    make_inputs=_make_inputs,
    samples=(
        _sample(1, 1, 1, 1, 0, "one token"),
        _sample(1, 1, 1, 1, 1, "one token, whose softmax is 1"),
        _sample(2, 5, 13, 7, 0, "primes, one matrix for each item"),
        _sample(2, 5, 13, 7, 0, "primes, one matrix for all", "shared"),
        _sample(2, 5, 13, 7, 1, "soft assignment"),
        _sample(2, 5, 13, 7, 1, "learned queries that are the same for all", "shared"),
        _sample(3, 13, 5, 3, 0, "more tokens out than in, as a resize", "shared"),
        _sample(1, 4, 19, 6, 0, "sums beyond the range of fp16 on the way", "fp16_range"),
        _sample(1, 4, 19, 6, 1, "logits whose exponentials overflow without their maximum", "large_logits"),
        _sample(2, 65, 129, 33, 0, "one above a block of 64, 128 and 32"),
        _sample(2, 64, 128, 32, 1, "whole blocks"),
        _sample(1, 144, 576, 1024, 0, "Fourier-VLM on LLaVA-1.5, 24 x 24 to 12 x 12", "shared"),
        _sample(1, 3, 4000, 5, 1, "many tokens into few"),
    ),
)
