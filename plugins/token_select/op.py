"""TokenSelect: keep the tokens of the largest scores."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from trt_compress.errors import ConfigError
from trt_compress.plugins.operator import (
    Operator,
    check_count,
    check_tensor,
    check_tokens,
    ordinary,
    register_fake,
    run_operator,
)
from trt_compress.plugins.spec import Sample
from trt_compress.plugins.token_select.spec import SPEC
from trt_compress.suggest import not_known

ORDERS = ("position", "score")
REMAINDERS = ("drop", "fuse")
NOTHING_FORCED = (-1,)  # an ONNX attribute cannot be an empty list everywhere; -1 matches no position

BODY = """
  k = Constant <value_int: int = @num_kept> ()
  forced_positions = Constant <value_ints: ints = @forced> ()
  by_score = Constant <value_int: int = @order> ()
  fuse = Constant <value_int: int = @remainder> ()
  zero = Constant <value_int = 0> ()
  one = Constant <value_int = 1> ()
  v0 = Constant <value_ints = [0]> ()
  v1 = Constant <value_ints = [1]> ()
  v2 = Constant <value_ints = [2]> ()
  v_end = Constant <value_ints = [9223372036854775807]> ()
  zero32 = Constant <value_float = 0.0> ()

  # the k best, forced positions before all others
  v_n = Shape <start = 1, end = 2> (score)
  n = Squeeze (v_n, v0)
  range_n = Range (zero, n, one)
  range_column = Unsqueeze (range_n, v1)
  is_each = Equal (range_column, forced_positions)
  is_each_int = Cast <to = 7> (is_each)
  forced_count = ReduceSum <keepdims = 0> (is_each_int, v1)
  is_forced = Greater (forced_count, zero)
  above_all = Constant <value_float = inf> ()
  score32 = Cast <to = 1> (score)
  largest_number = Constant <value_float = 3.4028234663852886e38> ()
  is_number = Less (score32, largest_number)
  ordinary = Where (is_number, score32, largest_number)  # infinity and NaN count as the largest number
  keyed = Where (is_forced, above_all, ordinary)
  v_k = Reshape (k, v1)
  best, best_index = TopK <axis = 1, largest = 1, sorted = 1> (keyed, v_k)

  # positions in a row: first the rest, then the kept, both ascending
  best_zero = Sub (best_index, best_index)
  best_one = Add (best_zero, one)
  never = Greater (keyed, above_all)
  zeros = Cast <to = 7> (never)
  kept_int = ScatterElements <axis = 1> (zeros, best_index, best_one)
  is_kept = Greater (kept_int, zero)
  kept_before = CumSum <exclusive = 1> (kept_int, one)
  num_rest = Sub (n, k)
  place_kept = Add (kept_before, num_rest)
  place_rest = Sub (range_n, kept_before)
  place = Where (is_kept, place_kept, place_rest)
  updates = Add (zeros, range_n)
  in_order = ScatterElements <axis = 1> (zeros, place, updates)
  v_rest = Reshape (num_rest, v1)
  rest = Slice (in_order, v0, v_rest, v1)
  ascending = Slice (in_order, v_rest, v_end, v1)
  score_order = Equal (by_score, one)
  index = Where (score_order, best_index, ascending)
  index_nd = Unsqueeze (index, v2)
  kept = GatherND <batch_dims = 1> (x, index_nd)

  # sum of score * x over the rest, one row; without it the product has no rows to read
  weight = Where (is_kept, zero32, score32)
  weight_row = Unsqueeze (weight, v1)
  n_used = Mul (n, fuse)
  v_used = Reshape (n_used, v1)
  v_fuse = Reshape (fuse, v1)
  weight_used = Slice (weight_row, v0, v_used, v2)
  x_used = Slice (x, v0, v_used, v1)
  x_used32 = Cast <to = 1> (x_used)
  fused32 = MatMul (weight_used, x_used32)
  fused_all = CastLike (fused32, x)
  fused = Slice (fused_all, v0, v_fuse, v1)
  y = Concat <axis = 1> (kept, fused)
"""


@torch.library.custom_op("trt_compress::token_select", mutates_args=())
def _token_select(
    x: Tensor, score: Tensor, num_kept: int, forced: Sequence[int], order: int, remainder: int
) -> tuple[Tensor, Tensor, Tensor]:
    keyed = ordinary(score.float())
    keyed[:, [position for position in forced if position >= 0]] = torch.inf
    ranking = keyed.argsort(dim=1, descending=True, stable=True)
    index, rest = ranking[:, :num_kept], ranking[:, num_kept:].sort(dim=1).values
    if order == 0:
        index = index.sort(dim=1).values
    y = x.gather(1, index[..., None].expand(-1, -1, x.shape[2]))
    if remainder == 1:
        dropped = x.gather(1, rest[..., None].expand(-1, -1, x.shape[2]))
        fused = (dropped.float() * score.float().gather(1, rest)[..., None]).sum(dim=1, keepdim=True)
        y = torch.cat([y, fused.to(x.dtype)], dim=1)
    return y, index.clone(), rest


register_fake(SPEC, _token_select)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, score, *_, remainder = inputs
    ctx.remainder = remainder
    ctx.save_for_backward(x, score, *output[1:])


def _backward(ctx: Any, grad_y: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of x and, through a fused token, of the score; which tokens are kept has none."""
    x, score, index, rest = ctx.saved_tensors
    num_kept, channels = index.shape[1], x.shape[2]
    grad_x = torch.zeros_like(x).scatter(1, index[..., None].expand(-1, -1, channels), grad_y[:, :num_kept])
    grad_score = torch.zeros_like(score)
    if ctx.remainder == 1:
        fused, places = grad_y[:, num_kept:], rest[..., None].expand(-1, -1, channels)
        grad_x.scatter_(1, places, score.gather(1, rest)[..., None].to(x.dtype) * fused)
        grad_score.scatter_(1, rest, (x.gather(1, places) * fused).sum(dim=2).to(score.dtype))
    return grad_x, grad_score, None, None, None, None


_token_select.register_autograd(_backward, setup_context=_save_for_backward)


def token_select(
    x: Tensor,
    score: Tensor,
    *,
    num_kept: int,
    forced: Sequence[int] = (),
    order: str = "position",
    remainder: str = "drop",
) -> tuple[Tensor, Tensor, Tensor]:
    """Keep the tokens of the largest scores.

    Args:
        x: Tokens, [B, N, C], fp16 | bf16 | fp32.
        score: Importance, [B, N], fp16 | bf16 | fp32; scores of forced tokens do not matter. Infinity and NaN
            count as the largest number.
        num_kept: Tokens kept, K, len(forced) <= K <= N.
        forced: Positions that are always kept.
        order: Kept tokens come by "position", or by "score" (forced ones first, then descending).
        remainder: "drop" the rest, or "fuse" it: one more token at the end, the sum of score * x over the rest, not
            renormalised; needs K < N.

    Returns:
        Tokens [B, M, C] with M = K, or K + 1 if fused; kept positions [B, K] in the order of the tokens; the other
        positions [B, N - K], ascending. Positions are int64.

    Raises:
        ConfigError: an attribute is not allowed.
        ShapeError: a tensor has the wrong shape.

    Source: EViT, arXiv:2202.07800; code youweiliang/evit 5ca95a7, evit.py and helpers.py.
    Differs: see SPEC.differs.
    """
    check_tensor("token_select", "x", x, (None, None, None), "BNC")
    batch, n, _ = x.shape
    check_tensor("token_select", "score", score, (batch, n), "BN")
    check_tokens("token_select", n)
    check_count("token_select", "num_kept", num_kept, n, f"N={n} tokens allow")
    if order not in ORDERS:
        raise ConfigError(not_known("token_select: order", order, ORDERS))
    if remainder not in REMAINDERS:
        raise ConfigError(not_known("token_select: remainder", remainder, REMAINDERS))
    fuse = REMAINDERS.index(remainder)
    if fuse and num_kept == n:
        raise ConfigError(f"token_select: num_kept={n} keeps all N={n} tokens, so nothing is left to fuse; drop it.")
    places = sorted(set(forced))
    if places and not 0 <= places[0] <= places[-1] < n:
        raise ConfigError(f"token_select: forced={list(forced)} is out of range; positions are 0..{n - 1}.")
    if len(places) > num_kept:
        raise ConfigError(f"token_select: num_kept={num_kept} is less than the {len(places)} forced tokens.")
    y, index, rest = run_operator(
        SPEC,
        [x, score],
        {
            "num_kept": num_kept,
            "forced": places or list(NOTHING_FORCED),
            "order": ORDERS.index(order),
            "remainder": fuse,
        },
    )
    return y, index, rest


def _regret(inputs: Mapping[str, Tensor], attributes: Mapping[str, Any], outputs: Mapping[str, Tensor]) -> Tensor:
    score, index, rest = inputs["score"].float(), outputs["index"], outputs["rest"]
    batch, n = score.shape
    places = [position for position in attributes["forced"] if position >= 0]
    keyed = score.clone()
    keyed[:, places] = torch.inf
    kept = keyed.gather(1, index.clamp(0, n - 1))
    dropped = keyed.gather(1, rest.clamp(0, n - 1))
    worse = [score.new_zeros(batch, 1)]
    if kept.numel() and dropped.numel():
        worse.append(dropped.amax(dim=1, keepdim=True) - kept.amin(dim=1, keepdim=True))
    if attributes["order"] == 1:
        worse.append(kept[:, len(places) :].diff(dim=1))
        in_order = index[:, : len(places)] == index.new_tensor(places)
    else:
        in_order = index.diff(dim=1) > 0
    regret = torch.cat(worse, dim=1).amax(dim=1)

    everything = torch.cat([index, rest], dim=1).sort(dim=1).values
    lawful = (everything == torch.arange(n, device=index.device)).all(dim=1) & (kept.isinf().sum(dim=1) == len(places))
    lawful &= in_order.all(dim=1) & (rest.diff(dim=1) > 0).all(dim=1)
    return torch.where(lawful, regret / score.abs().amax(dim=1).clamp_min(1e-30), torch.inf)


def _make_inputs(sample: Sample, generator: torch.Generator) -> tuple[Tensor, ...]:
    b, n, c = (sample.axes[a] for a in "BNC")
    x = torch.randn(b, n, c, generator=generator)
    score = torch.stack([torch.randperm(n, generator=generator) for _ in range(b)]) / n
    if sample.values == "ties":
        score = torch.randint(0, 3, (b, n), generator=generator).float()
    if sample.values == "fp16_range":
        x = x.clamp(-2, 2) * 3e4
        score = score / n
    return x, score


def _sample(
    b: int, n: int, c: int, k: int, reason: str, *, forced: Sequence[int] = NOTHING_FORCED, order: int = 0,
    remainder: int = 0, **kw: object,
) -> Sample:  # fmt: skip
    attributes = {"num_kept": k, "forced": list(forced), "order": order, "remainder": remainder}
    return Sample(axes={"B": b, "N": n, "C": c}, attributes=attributes, reason=reason, **kw)  # type: ignore[arg-type]


OPERATOR = Operator(
    spec=SPEC,
    function=token_select,
    body=BODY,
    make_inputs=_make_inputs,
    regret=_regret,
    samples=(
        _sample(1, 1, 1, 1, "one token, kept"),
        _sample(2, 5, 3, 0, "nothing kept"),
        _sample(2, 5, 3, 5, "everything kept, by score", order=1),
        _sample(2, 13, 7, 5, "primes"),
        _sample(2, 13, 7, 5, "forced tokens by position", forced=(3, 12)),
        _sample(2, 13, 7, 5, "forced tokens by score", forced=(3, 12), order=1),
        _sample(2, 13, 7, 2, "only the forced ones are kept", forced=(0, 6)),
        _sample(2, 17, 6, 9, "the rest fused, score order", forced=(0,), order=1, remainder=1),
        _sample(2, 17, 6, 16, "one token left to fuse", forced=(0,), remainder=1),
        _sample(2, 40, 6, 20, "ties at the cut and inside", values="ties"),
        _sample(2, 40, 6, 20, "ties, score order", order=1, values="ties"),
        _sample(1, 19, 6, 7, "sums beyond the range of fp16", remainder=1, values="fp16_range"),
        _sample(2, 129, 3, 64, "one above a block of 128"),
        _sample(2, 197, 384, 138, "EViT on DeiT-S", forced=(0,), order=1, remainder=1),
        _sample(1, 576, 1024, 192, "LLaVA-1.5 features to a third"),
        _sample(1, 5000, 4, 3840, "as many as TensorRT's TopK takes"),
        _sample(1, 5000, 4, 3841, "one more than TensorRT's TopK takes", refused="topk-k"),
    ),
)
