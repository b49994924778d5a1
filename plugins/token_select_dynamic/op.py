"""TokenSelectDynamic: keep as many tokens as a threshold says, up to a capacity."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from trt_compress.errors import ConfigError
from trt_compress.plugins.operator import (
    Operator,
    as_float32,
    check_count,
    check_tensor,
    check_tokens,
    ordinary,
    register_fake,
    run_operator,
    with_length,
)
from trt_compress.plugins.spec import Sample
from trt_compress.plugins.token_select_dynamic.spec import SPEC
from trt_compress.suggest import not_known

MODES = ("threshold", "mass")
NOTHING_FORCED = (-1,)  # an ONNX attribute cannot be an empty list everywhere; -1 matches no position

BODY = """
  how = Constant <value_int: int = @mode> ()
  threshold32 = Constant <value_float: float = @threshold> ()
  least = Constant <value_int: int = @min_kept> ()
  most = Constant <value_int: int = @max_kept> ()
  forced_positions = Constant <value_ints: ints = @forced> ()
  trimming = Constant <value_int: int = @trim> ()
  zero = Constant <value_int = 0> ()
  one = Constant <value_int = 1> ()
  none = Constant <value_int = -1> ()
  v0 = Constant <value_ints = [0]> ()
  v1 = Constant <value_ints = [1]> ()
  v2 = Constant <value_ints = [2]> ()
  zero32 = Constant <value_float = 0.0> ()
  above_all = Constant <value_float = inf> ()
  by_mass = Equal (how, one)
  trimmed = Equal (trimming, one)

  # the best, forced positions before all others
  v_n = Shape <start = 1, end = 2> (score)
  n = Squeeze (v_n, v0)
  range_n = Range (zero, n, one)
  range_column = Unsqueeze (range_n, v1)
  is_each = Equal (range_column, forced_positions)
  is_each_int = Cast <to = 7> (is_each)
  forced_count = ReduceSum <keepdims = 0> (is_each_int, v1)
  is_forced = Greater (forced_count, zero)
  score32 = Cast <to = 1> (score)
  largest_number = Constant <value_float = 3.4028234663852886e38> ()
  is_number = Less (score32, largest_number)
  ordinary = Where (is_number, score32, largest_number)  # infinity and NaN count as the largest number
  keyed = Where (is_forced, above_all, ordinary)
  v_most = Reshape (most, v1)
  best, best_index = TopK <axis = 1, largest = 1, sorted = 1> (keyed, v_most)

  # those that qualify are the first of them
  qualifies = If (by_mass) <
    then_branch = of_mass () => (before_reached) {
      free_score = Where (is_forced, zero32, ordinary)
      free_mass = Max (free_score, zero32)
      largest_mass = ReduceMax <keepdims = 1> (free_mass, v1)
      huge = Constant <value_float = 1.2676506002282294e30> ()  # 2**100: sums might go beyond float32
      shrinking = Constant <value_float = 8.673617379884035e-19> ()  # 2**-60
      one32 = Constant <value_float = 1.0> ()
      is_huge = GreaterOrEqual (largest_mass, huge)
      unit = Where (is_huge, shrinking, one32)
      is_free = Less (best, above_all)
      best_free = Where (is_free, best, zero32)
      best_mass = Max (best_free, zero32)
      mass = Mul (best_mass, unit)
      mass_before = CumSum <exclusive = 1> (mass, one)
      every_mass = Mul (free_mass, unit)
      total = ReduceSum <keepdims = 1> (every_mass, v1)
      share = Mul (total, threshold32)
      before_reached = Less (mass_before, share)
    },
    else_branch = of_threshold () => (reaches) { reaches = GreaterOrEqual (best, threshold32) }
  >
  qualifies_int = Cast <to = 7> (qualifies)
  num_qualified = ReduceSum <keepdims = 0> (qualifies_int, v1)
  is_forced_int = Cast <to = 7> (is_forced)
  num_forced = ReduceSum <keepdims = 0> (is_forced_int, v0)
  at_least = Max (num_qualified, least, num_forced)
  count = Min (at_least, most)
  largest64 = ReduceMax <keepdims = 0> (count)
  largest = Cast <to = 6> (largest64)

  # by position; what is not kept has position N and so comes last
  rank = Range (zero, most, one)
  count_column = Unsqueeze (count, v1)
  is_kept = Less (rank, count_column)
  place = Where (is_kept, best_index, n)
  in_order, in_order_index = TopK <axis = 1, largest = 0, sorted = 1> (place, v_most)
  is_valid = Less (in_order, n)
  safe = Where (is_valid, in_order, zero)
  safe_nd = Unsqueeze (safe, v2)
  tokens = GatherND <batch_dims = 1> (x, safe_nd)
  is_valid_token = Unsqueeze (is_valid, v2)
  nothing = CastLike (zero32, x)
  padded_y = Where (is_valid_token, tokens, nothing)
  padded_index = Where (is_valid, in_order, none)
  valid32 = Cast <to = 1> (is_valid)
  padded_valid = CastLike (valid32, x)

  y, index, valid = If (trimmed) <
    then_branch = to_the_largest () => (short_y, short_index, short_valid) {
      v_largest = Reshape (largest64, v1)
      short_y = Slice (padded_y, v0, v_largest, v1)
      short_index = Slice (padded_index, v0, v_largest, v1)
      short_valid = Slice (padded_valid, v0, v_largest, v1)
    },
    else_branch = to_the_capacity () => (full_y, full_index, full_valid) {
      full_y = Identity (padded_y)
      full_index = Identity (padded_index)
      full_valid = Identity (padded_valid)
    }
  >
"""


def _rank(score: Tensor, forced: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Scores without those of forced positions, which become infinite, and all positions from best to worst."""
    keyed = ordinary(score.float())
    keyed[:, [position for position in forced if position >= 0]] = torch.inf
    return keyed, keyed.argsort(dim=1, descending=True, stable=True)


def _counts(
    keyed: Tensor, ranking: Tensor, mode: int, threshold: float, min_kept: int, max_kept: int, num_forced: int
) -> Tensor:
    best = keyed.gather(1, ranking)
    limit = keyed.new_tensor(threshold)
    if mode == 1:
        mass = best.masked_fill(best == torch.inf, 0).clamp_min(0)
        mass = mass * torch.where(mass.amax(dim=1, keepdim=True) >= 2.0**100, 2.0**-60, 1.0)  # sums within float32
        before = torch.nn.functional.pad(mass.cumsum(dim=1)[:, :-1], (1, 0))
        qualifies = before < mass.sum(dim=1, keepdim=True) * limit
    else:
        qualifies = best >= limit
    return qualifies.sum(dim=1).clamp_min(max(min_kept, num_forced)).clamp_max(max_kept)


@torch.library.custom_op("trt_compress::token_select_dynamic", mutates_args=())
def _token_select_dynamic(
    x: Tensor,
    score: Tensor,
    mode: int,
    threshold: float,
    min_kept: int,
    max_kept: int,
    forced: Sequence[int],
    trim: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    n, num_forced = x.shape[1], len({position for position in forced if position >= 0})
    keyed, ranking = _rank(score, forced)
    count = _counts(keyed, ranking, mode, threshold, min_kept, max_kept, num_forced)
    largest = count.max() if count.numel() else count.new_zeros(())
    length = int(largest) if trim == 1 else max_kept
    kept = torch.arange(max_kept, device=x.device) < count[:, None]
    place = torch.where(kept, ranking[:, :max_kept], n).sort(dim=1).values[:, :length]
    valid = place < n
    y = x.gather(1, place.where(valid, 0)[..., None].expand(-1, -1, x.shape[2]))
    y = y.masked_fill(~valid[..., None], 0)
    return y, place.where(valid, -1), valid.to(x.dtype), count, largest.to(torch.int32)


register_fake(SPEC, _token_select_dynamic)


def token_select_dynamic(
    x: Tensor,
    score: Tensor,
    *,
    mode: str = "threshold",
    threshold: float,
    min_kept: int = 0,
    max_kept: int,
    forced: Sequence[int] = (),
    trim: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Keep the tokens whose score reaches a threshold, or the best that hold a share of all score.

    Args:
        x: Tokens, [B, N, C], fp16 | bf16 | fp32.
        score: Importance, [B, N], fp16 | bf16 | fp32; scores of forced tokens do not matter. Infinity and NaN count as
            the largest number.
        mode: "threshold" keeps the scores of at least `threshold`; "mass" keeps the smallest number of best tokens
            whose scores sum to at least `threshold` times the sum of all; a negative score counts as 0 in both sums.
        threshold: Least score kept; by mass a share, 0 <= threshold < 1.
        min_kept: If fewer qualify, the best are added up to this number.
        max_kept: If more qualify, the best of this number stay; 1 <= max_kept <= N.
        forced: Positions that are always kept, within max_kept; they do not count toward the mass.
        trim: Outputs as long as the largest count of the batch, instead of max_kept. The length then depends on the
            data.

    Returns:
        Kept tokens by position with zeros behind them, [B, M, C]; their positions with -1 behind, [B, M], int64; 1 for
        a token and 0 for padding, [B, M], in x's dtype; tokens kept of each item, [B], int64; the largest of those
        counts, [], int32.

    Raises:
        ConfigError: an attribute is not allowed.
        ShapeError: a tensor has the wrong shape.

    Source: thresholds of PruMerge, arXiv:2403.15388, MustDrop, arXiv:2411.10803, A-ToMe and TokenCorrCompressor.
    Differs: see SPEC.differs.
    """
    name = "token_select_dynamic"
    check_tensor(name, "x", x, (None, None, None), "BNC")
    batch, n, _ = x.shape
    check_tensor(name, "score", score, (batch, n), "BN")
    check_tokens(name, n)
    if mode not in MODES:
        raise ConfigError(not_known(f"{name}: mode", mode, MODES))
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not abs(threshold) < float("inf"):
        raise ConfigError(f"{name}: threshold={threshold!r} is not a finite number; give one.")
    if mode == "mass" and not 0 <= threshold < 1:
        raise ConfigError(f"{name}: threshold={threshold} is no share of the mass; give one in 0 <= threshold < 1.")
    check_count(name, "max_kept", max_kept, n, f"N={n} tokens allow 1..{n}, so of")
    if max_kept == 0:
        raise ConfigError(f"{name}: max_kept=0 leaves no room for a token; give one in 1..{n}.")
    check_count(name, "min_kept", min_kept, max_kept, f"max_kept={max_kept} allows")
    places = sorted(set(forced))
    if places and not 0 <= places[0] <= places[-1] < n:
        raise ConfigError(f"{name}: forced={list(forced)} is out of range; positions are 0..{n - 1}.")
    if len(places) > max_kept:
        raise ConfigError(f"{name}: max_kept={max_kept} is less than the {len(places)} forced tokens.")
    y, index, valid, count, largest = run_operator(
        SPEC,
        [x, score],
        {
            "mode": MODES.index(mode),
            "threshold": float(threshold),
            "min_kept": min_kept,
            "max_kept": max_kept,
            "forced": places or list(NOTHING_FORCED),
            "trim": int(trim),
        },
    )
    if trim and torch.onnx.is_in_onnx_export():
        length = cast(int, largest.item())
        torch._check(length >= max(min_kept, len(places)))
        torch._check(length <= max_kept)
        y, index, valid = (with_length(tensor, length) for tensor in (y, index, valid))
    return y, index, valid, count, largest


def _regret(inputs: Mapping[str, Tensor], attributes: Mapping[str, Any], outputs: Mapping[str, Tensor]) -> Tensor:
    index, count, largest = outputs["index"], outputs["count"], outputs["largest"]
    n, width = inputs["score"].shape[1], index.shape[1]
    places = [position for position in attributes["forced"] if position >= 0]
    least, most = max(attributes["min_kept"], len(places)), attributes["max_kept"]
    limits = attributes["mode"], as_float32(attributes["threshold"]), attributes["min_kept"], most
    keyed, ranking = _rank(inputs["score"], attributes["forced"])
    wanted = _counts(keyed, ranking, *limits, len(places))

    is_token = torch.arange(width, device=index.device) < count[:, None]
    taken = index.new_zeros(len(index), n + 1)
    taken.scatter_add_(1, torch.where(is_token, index, n).clamp(0, n), torch.ones_like(index))
    kept = taken[:, :n] > 0
    lawful = (kept.sum(dim=1) == count) & (count >= least) & (count <= most) & (count <= width)
    lawful &= (index.diff(dim=1) > 0).where(is_token[:, 1:], index[:, 1:] == -1).all(dim=1)
    lawful &= (outputs["valid"] == is_token).all(dim=1) & kept[:, places].all(dim=1)
    lawful &= (largest == count.max()) & (width == (int(largest) if attributes["trim"] else most))

    free = keyed.isfinite()
    scale = ordinary(inputs["score"].float()).clamp_min(torch.finfo(torch.float32).min).abs().amax(dim=1)
    scale = scale.clamp_min(1e-30)
    worst_kept = keyed.masked_fill(~(kept & free), torch.inf).amin(dim=1)
    best_dropped = keyed.masked_fill(kept | ~free, -torch.inf).amax(dim=1)
    order = (best_dropped - worst_kept).clamp_min(0) / scale
    if attributes["mode"] == 1:
        mass = keyed.masked_fill(~free, 0).double().clamp_min(0)
        total = mass.sum(dim=1)
        share, held = total * limits[1], (mass * kept).sum(dim=1)
        surplus, lack, unit = held - worst_kept.double() - share, share - held, total.clamp_min(1e-30)
    else:
        surplus, lack, unit = limits[1] - worst_kept.double(), best_dropped.double() - limits[1], scale.double()
    number = torch.where(count > wanted, surplus, lack).clamp_min(0) / unit
    number = torch.where(count == wanted, 0, number).float()
    return torch.where(lawful, torch.maximum(order, number), torch.inf)


def _make_inputs(sample: Sample, generator: torch.Generator) -> tuple[Tensor, ...]:
    b, n, c = (sample.axes[a] for a in "BNC")
    x = torch.randn(b, n, c, generator=generator)
    score = torch.stack([torch.randperm(n, generator=generator) for _ in range(b)]) / n
    if sample.values == "ties":
        score = torch.randint(0, 4, (b, n), generator=generator) / 4
    if sample.values == "zeros":
        score = torch.zeros(b, n)
    if sample.values == "negative":
        score = score - 0.5
    if sample.values == "uneven":  # one item keeps much less than the other
        score = torch.stack([torch.full((n,), 1 / n), *(torch.arange(n) == i + 1 for i in range(b - 1))])
    if sample.values == "fp16_range":
        x, score = x.clamp(-2, 2) * 3e4, score * 6e4
    return x, score


def _sample(
    b: int, n: int, c: int, mode: int, threshold: float, kept: tuple[int, int], reason: str, *,
    forced: Sequence[int] = NOTHING_FORCED, trim: int = 0, **kw: str,
) -> Sample:  # fmt: skip
    attributes = {"mode": mode, "threshold": threshold, "min_kept": kept[0], "max_kept": kept[1]}
    axes = {"B": b, "N": n, "C": c}
    return Sample(axes=axes, attributes={**attributes, "forced": list(forced), "trim": trim}, reason=reason, **kw)


OPERATOR = Operator(
    spec=SPEC,
    function=token_select_dynamic,
    body=BODY,
    make_inputs=_make_inputs,
    regret=_regret,
    samples=(
        _sample(1, 1, 1, 0, 0.0, (0, 1), "one token, kept"),
        _sample(1, 1, 1, 0, 0.5, (0, 1), "one token, dropped"),
        _sample(2, 13, 7, 0, 0.4, (0, 11), "primes, by threshold"),
        _sample(2, 13, 7, 1, 0.6, (0, 11), "primes, by mass"),
        _sample(2, 13, 7, 0, 2.0, (0, 5), "nothing reaches the threshold, nothing kept"),
        _sample(2, 13, 7, 0, -1.0, (0, 13), "everything reaches the threshold, everything kept"),
        _sample(2, 13, 7, 0, -0.2, (0, 13), "a negative threshold", values="negative"),
        _sample(2, 13, 7, 0, 0.1, (0, 5), "more qualify than there is room for"),
        _sample(2, 13, 7, 1, 0.97, (0, 5), "more mass than there is room for"),
        _sample(2, 13, 7, 0, 0.9, (6, 9), "fewer qualify than must stay"),
        _sample(2, 13, 7, 1, 0.0, (0, 9), "no mass asked for"),
        _sample(2, 13, 7, 1, 0.5, (2, 9), "no mass at all", values="zeros"),
        _sample(2, 13, 7, 0, 0.9, (0, 9), "forced tokens beside those that qualify", forced=(3, 12)),
        _sample(2, 13, 7, 1, 0.3, (0, 9), "forced tokens and the mass of the others", forced=(0, 6)),
        _sample(2, 13, 7, 0, 0.1, (0, 2), "only the forced ones fit", forced=(0, 6)),
        _sample(2, 40, 6, 0, 0.5, (0, 40), "scores equal to the threshold", values="ties"),
        _sample(2, 40, 6, 0, 0.25, (0, 17), "ties at the capacity", values="ties"),
        _sample(3, 16, 5, 1, 0.7, (1, 16), "counts that differ much, by mass", values="uneven"),
        _sample(3, 16, 5, 1, 0.7, (1, 16), "counts that differ much, trimmed", values="uneven", trim=1),
        _sample(2, 13, 7, 0, 0.4, (0, 11), "trimmed to the largest count", trim=1),
        _sample(2, 13, 7, 0, 2.0, (0, 5), "trimmed to nothing", trim=1),
        _sample(1, 19, 6, 0, 3e4, (0, 19), "values near the end of fp16", values="fp16_range"),
        _sample(2, 129, 3, 0, 0.5, (0, 128), "one above a block of 128"),
        _sample(1, 576, 1024, 1, 0.7, (16, 192), "LLaVA-1.5 features, 0.7 of the attention in at most a third"),
        _sample(1, 5000, 4, 0, 0.5, (0, 3840), "as many as TensorRT's TopK takes"),
        _sample(1, 5000, 4, 0, 0.5, (0, 3841), "one more than TensorRT's TopK takes", refused="topk-k"),
    ),
)
