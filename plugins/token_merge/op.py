"""TokenMerge: bipartite soft matching and a size-weighted merge."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from trt_compress.errors import ConfigError
from trt_compress.plugins.operator import (
    Operator,
    cast,
    check_count,
    check_tensor,
    check_tokens,
    register_fake,
    run_operator,
)
from trt_compress.plugins.spec import Sample
from trt_compress.plugins.token_merge.spec import SPEC
from trt_compress.suggest import not_known

ORDERS = ("position", "similarity")
SHORTEST, LONGEST = 2.0**-50, 2.0**64  # lengths of features that have a direction; their squares are within float32


# The protected head is cut off first, so that no row of the matching needs a mask. Ranks are counted by comparison
# (j beats i if it is more similar, or equally similar and earlier): ties do not depend on anybody's TopK, and no
# limit on K applies. Everything that sums runs in float32.
BODY = """
  r = Constant <value_int: int = @num_merged> ()
  p = Constant <value_int: int = @num_protected> ()
  by_similarity = Constant <value_int: int = @order> ()
  zero = Constant <value_int = 0> ()
  one = Constant <value_int = 1> ()
  two = Constant <value_int = 2> ()
  v0 = Constant <value_ints = [0]> ()
  v1 = Constant <value_ints = [1]> ()
  v2 = Constant <value_ints = [2]> ()
  v_last = Constant <value_ints = [-1]> ()
  v_end = Constant <value_ints = [9223372036854775807]> ()
  zero32 = Constant <value_float = 0.0> ()
  shortest = Constant <value_float = 8.881784197001252e-16> ()
  longest = Constant <value_float = 18446744073709551616.0> ()

  # A: even positions, B: odd positions, both without the protected head. Their counts come from the shape of a
  # sum that holds no batch: where N is fixed, ONNX Runtime folds everything that follows from it.
  item = ReduceSum <keepdims = 0> (size, v0)
  item_shape = Shape (item)
  n = Gather <axis = 0> (item_shape, zero)
  odd_head = Mod (p, two)
  num_free = Sub (n, p)
  num_free_next = Add (num_free, one)
  num_free_up = Sub (num_free_next, odd_head)
  num_free_down = Add (num_free, odd_head)
  num_a = Div (num_free_up, two)
  num_b = Div (num_free_down, two)
  p_next = Add (p, one)
  start_a = Add (p, odd_head)
  start_b = Sub (p_next, odd_head)
  v_p = Reshape (p, v1)
  v_a = Reshape (start_a, v1)
  v_b = Reshape (start_b, v1)
  metric32 = Cast <to = 1> (metric)
  length = ReduceL2 <keepdims = 1> (metric32, v_last)
  is_long_enough = GreaterOrEqual (length, shortest)
  is_short_enough = Less (length, longest)
  has_direction = And (is_long_enough, is_short_enough)
  direction = Div (metric32, length)
  unit = Where (has_direction, direction, zero32)
  unit_a = Slice (unit, v_a, v_end, v1, v2)
  unit_b = Slice (unit, v_b, v_end, v1, v2)
  unit_bt = Transpose <perm = [0, 2, 1]> (unit_b)
  similarity = MatMul (unit_a, unit_bt)

  range_a = Range (zero, num_a, one)
  range_b = Range (zero, num_b, one)
  best_kept = ReduceMax <keepdims = 1> (similarity, v2)

  # rank of each row of A; the first r merge
  best = Squeeze (best_kept, v2)
  best_i = Unsqueeze (best, v2)
  best_j = Unsqueeze (best, v1)
  column = Unsqueeze (range_a, v1)
  is_earlier = Less (range_a, column)
  is_more = Greater (best_j, best_i)
  is_same = Equal (best_j, best_i)
  is_tie = And (is_same, is_earlier)
  beats = Or (is_more, is_tie)
  beats32 = Cast <to = 1> (beats)
  rank32 = ReduceSum <keepdims = 0> (beats32, v2)
  rank = Cast <to = 7> (rank32)
  merges = Less (rank, r)
  merges_int = Cast <to = 7> (merges)
  merged_before = CumSum <exclusive = 1> (merges_int, one)
  by_position = Sub (range_a, merged_before)
  num_unmerged = Sub (num_a, r)
  rank_left = Sub (rank, r)
  use_rank = Equal (by_similarity, one)
  place_left = Where (use_rank, rank_left, by_position)
  place_merged = Add (rank, num_unmerged)
  place = Where (merges, place_merged, place_left)
  arange_a = Add (range_a, v0)
  place_zero = Sub (place, place)
  updates = Add (place_zero, arange_a)
  inverse = ScatterElements <axis = 1> (place_zero, place, updates)
  v_unmerged = Reshape (num_unmerged, v1)
  unmerged = Slice (inverse, v0, v_unmerged, v1)
  merged = Slice (inverse, v_unmerged, v_end, v1)

  # partner of each merging row: the largest similarity, then the smallest index
  merged_nd = Unsqueeze (merged, v2)
  similarity_merged = GatherND <batch_dims = 1> (similarity, merged_nd)
  best_merged = GatherND <batch_dims = 1> (best_kept, merged_nd)
  is_best = Equal (similarity_merged, best_merged)
  candidates = Where (is_best, range_b, num_b)
  match_merged = ReduceMin <keepdims = 0> (candidates, v2)

  # gather what stays; rows of B become weighted means with the rows of A that go to them
  unmerged_twice = Mul (unmerged, two)
  merged_twice = Mul (merged, two)
  unmerged_place = Add (unmerged_twice, start_a)
  merged_place = Add (merged_twice, start_a)
  unmerged_index = Unsqueeze (unmerged_place, v2)
  merged_index = Unsqueeze (merged_place, v2)
  x_head = Slice (x, v0, v_p, v1)
  x_b = Slice (x, v_b, v_end, v1, v2)
  size_head = Slice (size, v0, v_p, v1)
  size_b = Slice (size, v_b, v_end, v1, v2)
  x_unmerged = GatherND <batch_dims = 1> (x, unmerged_index)
  size_unmerged = GatherND <batch_dims = 1> (size, unmerged_index)
  x_merged = GatherND <batch_dims = 1> (x, merged_index)
  size_merged = GatherND <batch_dims = 1> (size, merged_index)
  match_row = Unsqueeze (match_merged, v1)
  range_b_column = Unsqueeze (range_b, v1)
  goes_to = Equal (match_row, range_b_column)
  one_hot = Cast <to = 1> (goes_to)
  arriving_size = MatMul (one_hot, size_merged)
  total_size = Add (size_b, arriving_size)
  share_b = Div (size_b, total_size)
  size_merged_row = Transpose <perm = [0, 2, 1]> (size_merged)
  weights_merged = Mul (one_hot, size_merged_row)
  share_merged = Div (weights_merged, total_size)
  x_merged32 = Cast <to = 1> (x_merged)
  x_b32 = Cast <to = 1> (x_b)
  own_part = Mul (x_b32, share_b)
  arriving_part = MatMul (share_merged, x_merged32)
  mean = Add (own_part, arriving_part)
  y_b = CastLike (mean, x)
  y = Concat <axis = 1> (x_head, x_unmerged, y_b)
  y_size = Concat <axis = 1> (size_head, size_unmerged, total_size)

  # where every row of x went, back in the order of x
  dest_match = Add (match_merged, num_unmerged)
  dest_a = ScatterElements <axis = 1> (place_left, merged, dest_match)
  dest_b = Add (range_b, num_unmerged)
  zero_row = ReduceSum <keepdims = 1> (place_zero, v1)
  dest_b_rows = Add (zero_row, dest_b)
  dest_ab = Concat <axis = 1> (dest_a, dest_b_rows)
  dest_tail = Add (dest_ab, p)
  position = Range (zero, n, one)
  is_head = Less (position, p)
  parity = Mod (position, two)
  is_odd = Equal (parity, one)
  from_a = Sub (position, start_a)
  from_b = Sub (position, start_b)
  in_a = Div (from_a, two)
  half_b = Div (from_b, two)
  in_b = Add (half_b, num_a)
  in_tail = Where (is_odd, in_b, in_a)
  source = Where (is_head, zero, in_tail)
  dest_everywhere = Gather <axis = 1> (dest_tail, source)
  dest = Where (is_head, position, dest_everywhere)
"""


def max_merged(num_tokens: int, num_protected: int = 0) -> int:
    """Largest number of tokens that one merge can remove: half of the unprotected ones, rounded down."""
    return max(num_tokens - num_protected, 0) // 2


def _unit(metric: Tensor) -> Tensor:
    """Features of length 1 in float32, zeros where a row has no direction."""
    wide = metric.float()
    length = wide.square().sum(dim=-1, keepdim=True).sqrt()
    return torch.where((length >= SHORTEST) & (length < LONGEST), wide / length, 0)


@torch.library.custom_op("trt_compress::token_merge", mutates_args=())
def _token_merge(
    x: Tensor, metric: Tensor, size: Tensor, num_merged: int, num_protected: int, order: int
) -> tuple[Tensor, Tensor, Tensor]:
    batch, n, _ = x.shape
    head, r, device = num_protected, num_merged, x.device
    unit = _unit(metric)
    position_a = torch.arange(head + head % 2, n, 2, device=device)
    position_b = torch.arange(head + 1 - head % 2, n, 2, device=device)
    similarity = unit[:, position_a] @ unit[:, position_b].transpose(1, 2)
    best, _ = similarity.max(dim=-1)
    columns = torch.arange(similarity.shape[2], device=device)
    match = torch.where(similarity == best[..., None], columns, n).amin(dim=-1)
    ranking = best.argsort(dim=-1, descending=True, stable=True)
    merged, unmerged = ranking[:, :r], ranking[:, r:]
    if order == 0:
        unmerged = unmerged.sort(dim=-1).values

    first_b = head + unmerged.shape[1]
    dest = torch.empty(batch, n, dtype=torch.int64, device=device)
    dest[:, :head] = torch.arange(head, device=device)
    dest[:, position_b] = first_b + torch.arange(position_b.numel(), device=device)
    places = head + torch.arange(unmerged.shape[1], device=device).expand_as(unmerged)
    dest.scatter_(1, position_a[unmerged], places)
    dest.scatter_(1, position_a[merged], first_b + match.gather(1, merged))

    m = n - r
    total = torch.zeros(batch, m, x.shape[2], device=device)
    total.scatter_add_(1, dest[..., None].expand_as(x), x.float() * size)
    total_size = torch.zeros(batch, m, 1, device=device).scatter_add_(1, dest[..., None], size)
    y = (total / total_size).to(x.dtype)
    stays = torch.cat([torch.arange(head, device=device).expand(batch, -1), position_a[unmerged]], dim=1)
    y[:, : stays.shape[1]] = x.gather(1, stays[..., None].expand(-1, -1, x.shape[2]))
    return y, total_size, dest


register_fake(SPEC, _token_merge)


def token_merge(
    x: Tensor, metric: Tensor, size: Tensor, *, num_merged: int, num_protected: int = 0, order: str = "position"
) -> tuple[Tensor, Tensor, Tensor]:
    """Merge the most similar token pairs of each sequence.

    Tokens at even positions look for their most similar token at an odd position; the `num_merged` best pairs become
    the mean of their tokens, weighted by size.

    Args:
        x: Tokens, [B, N, C], fp16 | bf16 | fp32, finite.
        metric: Similarity features, [B, N, D]; compared by cosine, in fp32. A row of zeros, or that holds infinity or
            NaN, has similarity 0 with all.
        size: How many tokens each row stands for, [B, N, 1], fp32, positive.
        num_merged: Tokens removed from each sequence, 0 <= num_merged <= (N - num_protected) // 2.
        num_protected: Leading tokens (class, distillation, registers) that stay as they are.
        order: Unmerged tokens of even position come by "position", or "similarity" (most similar first).

    Returns:
        Tokens [B, M, C] with M = N - num_merged; sizes [B, M, 1]; and dest [B, N], int64, the row of the output that
        each input row went to.

    Raises:
        ConfigError: num_merged or order is not allowed.
        ShapeError: a tensor has the wrong shape.

    Source: ToMe, arXiv:2210.09461; code facebookresearch/ToMe af95e4b, tome/merge.py.
    Differs: see SPEC.differs.
    """
    check_tensor("token_merge", "x", x, (None, None, None), "BNC")
    batch, n, _ = x.shape
    check_tensor("token_merge", "metric", metric, (batch, n, None), "BND")
    check_tensor("token_merge", "size", size, (batch, n, 1), "BN1")
    check_tokens("token_merge", n)
    if n - num_protected < 2:
        raise ConfigError(
            f"token_merge: num_protected={num_protected} leaves {n - num_protected} of N={n} tokens to merge; "
            "at least two must be free."
        )
    check_count("token_merge", "num_protected", num_protected, n - 2, f"N={n} tokens allow")
    why = f"with N={n} tokens of which {num_protected} are protected at most every second one can merge:"
    check_count("token_merge", "num_merged", num_merged, max_merged(n, num_protected), why)
    if order not in ORDERS:
        raise ConfigError(not_known("token_merge: order", order, ORDERS))
    y, y_size, dest = run_operator(
        SPEC,
        [x, metric, cast(size, torch.float32)],
        {"num_merged": num_merged, "num_protected": num_protected, "order": ORDERS.index(order)},
    )
    return y, y_size, dest


def _regret(inputs: Mapping[str, Tensor], attributes: Mapping[str, Any], outputs: Mapping[str, Tensor]) -> Tensor:
    head, r, dest = attributes["num_protected"], attributes["num_merged"], outputs["dest"]
    batch, n = dest.shape
    unit = _unit(inputs["metric"])
    position = torch.arange(n, device=dest.device)
    position_a, position_b = position[head + head % 2 :: 2], position[head + 1 - head % 2 :: 2]
    num_b, num_left = position_b.numel(), position_a.numel() - r
    similarity = unit[:, position_a] @ unit[:, position_b].transpose(1, 2)
    best = similarity.amax(dim=-1)
    place = dest[:, position_a]
    partner = place - (n - r - num_b)
    merges = partner >= 0
    chosen = similarity.gather(2, partner.clamp(0, similarity.shape[2] - 1)[..., None])[..., 0]
    worse_partner = torch.where(merges, best - chosen, 0)
    least_merged = torch.where(merges, best, torch.inf).amin(dim=1, keepdim=True) if r else torch.inf
    merged_too_few = torch.where(merges, 0, best - least_merged)
    left = place.masked_fill(merges, n).argsort(dim=1)[:, :num_left]
    order = left if attributes["order"] == 0 else best.gather(1, left)
    misplaced = order.diff(dim=1) * (-1 if attributes["order"] == 0 else 1)
    regret = torch.cat([best.new_zeros(batch, 1), worse_partner, merged_too_few, misplaced], dim=1).amax(dim=1)

    rows = torch.cat([dest[:, :head], place.gather(1, left), dest[:, position_b]], dim=1)
    lawful = (rows == position[: rows.shape[1]]).all(dim=1) & (merges.sum(dim=1) == r) & (partner < num_b).all(dim=1)
    return torch.where(lawful, regret, torch.inf)


def _make_inputs(sample: Sample, generator: torch.Generator) -> tuple[Tensor, ...]:
    b, n, c, d = (sample.axes[a] for a in "BNCD")
    x = torch.randn(b, n, c, generator=generator)
    metric = torch.randn(b, n, d, generator=generator)
    size = torch.randint(1, 6, (b, n, 1), generator=generator).float()
    if sample.values == "ties":  # similarities are exactly 0 or 1
        metric = torch.nn.functional.one_hot(torch.randint(0, d, (b, n), generator=generator), d).float()
    if sample.values == "fp16_range":  # x * size and the sums overflow fp16, the means do not
        x, size = x.clamp(-2, 2) * 3e4, size * 8
    if sample.values == "zeros":
        metric[:, ::3] = 0
    return x, metric, size


def _sample(b: int, n: int, c: int, d: int, r: int, p: int, reason: str, order: int = 0, **kw: object) -> Sample:
    attributes = {"num_merged": r, "num_protected": p, "order": order}
    return Sample(axes={"B": b, "N": n, "C": c, "D": d}, attributes=attributes, reason=reason, **kw)  # type: ignore[arg-type]


OPERATOR = Operator(
    spec=SPEC,
    function=token_merge,
    body=BODY,
    make_inputs=_make_inputs,
    regret=_regret,
    samples=(
        _sample(1, 2, 1, 1, 1, 0, "the smallest pair there is"),
        _sample(2, 7, 5, 3, 0, 1, "nothing merged"),
        _sample(2, 13, 11, 7, 6, 0, "primes; the maximum without protected tokens"),
        _sample(2, 16, 8, 4, 8, 0, "even N, no class token: A is used up", order=1),
        _sample(3, 17, 5, 8, 8, 1, "odd N, the maximum with a class token"),
        _sample(2, 18, 4, 8, 5, 2, "class and distillation token"),
        _sample(2, 23, 4, 8, 9, 5, "class token and four registers: the maximum"),
        _sample(2, 24, 4, 8, 7, 0, "similarity order", order=1),
        _sample(2, 16, 4, 8, 5, 1, "ties", values="ties"),
        _sample(2, 50, 4, 6, 17, 0, "ties among more than 16 candidates, similarity order", order=1, values="ties"),
        _sample(2, 16, 4, 8, 5, 1, "zero feature rows", values="zeros"),
        _sample(2, 24, 4, 16, 9, 1, "sums beyond the range of fp16", values="fp16_range"),
        _sample(1, 127, 3, 32, 31, 1, "one below a block of 128"),
        _sample(1, 129, 3, 32, 31, 1, "one above a block of 128"),
        _sample(2, 197, 384, 64, 13, 1, "DeiT-S"),
        _sample(1, 577, 1024, 64, 23, 1, "ViT-L at 384 pixels"),
        # With so many candidates no random input keeps its similarities apart by more than rounding; ties are exact.
        _sample(1, 8193, 4, 8, 3900, 1, "more than 3840 tokens merged: the limit of TensorRT's TopK", values="ties"),
    ),
)
