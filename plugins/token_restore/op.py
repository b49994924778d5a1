"""TokenRestore: bring compressed tokens back to all positions."""

from typing import Any

import torch
from torch import Tensor

from trt_compress.errors import ConfigError
from trt_compress.plugins.operator import Operator, check_tensor, register_fake, run_operator
from trt_compress.plugins.spec import Sample
from trt_compress.plugins.token_restore.spec import SPEC
from trt_compress.suggest import not_known

MODES = ("unmerge", "unpermute")

BODY = """
  inverse_asked = Constant <value_int: int = @mode> ()
  one = Constant <value_int = 1> ()
  zero = Constant <value_int = 0> ()
  v2 = Constant <value_ints = [2]> ()
  v0 = Constant <value_ints = [0]> ()
  v_n = Shape <start = 1, end = 2> (index)
  n = Squeeze (v_n, v0)
  range_n = Range (zero, n, one)
  zeros = Sub (index, index)
  updates = Add (zeros, range_n)
  # an index that is no permutation may hold rows beyond N; it is not inverted, so any valid place will do
  is_inverse = Equal (inverse_asked, one)
  places = Where (is_inverse, index, updates)
  inverse = ScatterElements <axis = 1> (zeros, places, updates)
  rows = Where (is_inverse, inverse, index)
  rows_nd = Unsqueeze (rows, v2)
  x = GatherND <batch_dims = 1> (y, rows_nd)
"""


@torch.library.custom_op("trt_compress::token_restore", mutates_args=())
def _token_restore(y: Tensor, index: Tensor, mode: int) -> Tensor:
    if mode == MODES.index("unpermute"):
        index = index.argsort(dim=1)
    return y.gather(1, index[..., None].expand(-1, -1, y.shape[2]))


register_fake(SPEC, _token_restore)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    y, index, ctx.mode = inputs
    ctx.rows = y.shape[1]
    ctx.save_for_backward(index)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    (index,) = ctx.saved_tensors
    places = index[..., None].expand(-1, -1, grad.shape[2])
    if ctx.mode == MODES.index("unpermute"):
        return grad.gather(1, places), None, None
    return grad.new_zeros(grad.shape[0], ctx.rows, grad.shape[2]).scatter_add(1, places, grad), None, None


_token_restore.register_autograd(_backward, setup_context=_save_for_backward)


def token_restore(y: Tensor, index: Tensor, *, mode: str = "unmerge") -> Tensor:
    """Bring compressed tokens back to all positions.

    Args:
        y: Compressed tokens, [B, M, C], fp16 | bf16 | fp32.
        index: int64. For "unmerge" [B, N], the row of y for each position (`dest` of token_merge). For "unpermute"
            [B, M], the position of each row of y, each position once (kept and dropped indices of token_select,
            concatenated).
        mode: "unmerge" or "unpermute".

    Returns:
        Tokens in order of position, [B, N, C].

    Raises:
        ConfigError: mode is not known.
        ShapeError: a tensor has the wrong shape or dtype.

    Source: ToMe, arXiv:2210.09461; ToC3D, arXiv:2409.00633.
    Differs: see SPEC.differs.
    """
    if mode not in MODES:
        raise ConfigError(not_known("token_restore: mode", mode, MODES))
    check_tensor("token_restore", "y", y, (None, None, None), "BMC")
    batch, m, _ = y.shape
    check_tensor("token_restore", "index", index, (batch, m if mode == "unpermute" else None), "BN", ["int64"])
    return run_operator(SPEC, [y, index], {"mode": MODES.index(mode)})[0]


def _make_inputs(sample: Sample, generator: torch.Generator) -> tuple[Tensor, ...]:
    b, n, m, c = (sample.axes[a] for a in "BNMC")
    if sample.attributes["mode"] == MODES.index("unpermute"):
        index = torch.stack([torch.randperm(n, generator=generator) for _ in range(b)])
    else:
        index = torch.randint(0, m, (b, n), generator=generator)
    return torch.randn(b, m, c, generator=generator), index


def _sample(b: int, n: int, m: int, c: int, mode: str, reason: str) -> Sample:
    return Sample(axes={"B": b, "N": n, "M": m, "C": c}, attributes={"mode": MODES.index(mode)}, reason=reason)


OPERATOR = Operator(
    spec=SPEC,
    function=token_restore,
    body=BODY,
    make_inputs=_make_inputs,
    samples=(
        _sample(1, 1, 1, 1, "unmerge", "one token"),
        _sample(1, 1, 1, 1, "unpermute", "one token, inverse"),
        _sample(2, 13, 7, 5, "unmerge", "primes"),
        _sample(3, 13, 13, 5, "unpermute", "primes, inverse"),
        _sample(2, 9, 23, 4, "unmerge", "fewer positions than rows"),
        _sample(2, 129, 128, 4, "unmerge", "one above a block of 128"),
        _sample(2, 197, 98, 384, "unmerge", "DeiT-S, every second token merged"),
        _sample(1, 4001, 4001, 3, "unpermute", "more than 3840 tokens: the limit of TensorRT's TopK"),
    ),
)
