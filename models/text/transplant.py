"""Rows of embeddings for the tokens of another tokenizer, made of those that a model has: TokenAdapt.

A token that both know is copied. Another is a weighted sum of rows: of the pieces that the old tokenizer makes of it
(local), and of the old tokens whose text an encoder finds most alike (global).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from trt_compress.errors import ShapeError
from trt_compress.models.text.heuristics import Heuristics, RowOrigin

_TO_TEMPERATURE = 1e-5
_AT_ONCE = 1 << 25  # similarities


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """Of each new token what its row is made of. U tokens are unique, which the old tokenizer does not have.

    Attributes:
        copied: The old token that a new one is, or -1, [N] int64.
        origin: `RowOrigin` of each row, [N] uint8.
        unique: The new tokens that are made, [U] int64.
        pieces: Old tokens that they are cut into, all joined, [P] int64.
        piece_of: Which of `unique` each belongs to, [P] int64.
        piece_weights: Their weights, which sum to 1 for each token, [P] float32.
        neighbours: The most similar old tokens, [U, K] int64; -1: none.
        similarities: Their cosines, [U, K] float32.
        neighbour_weights: Their weights, which sum to 1 or are all 0, [U, K] float32.
        global_weight: Share of the global estimate where there are both.
    """

    copied: Tensor
    origin: Tensor
    unique: Tensor
    pieces: Tensor
    piece_of: Tensor
    piece_weights: Tensor
    neighbours: Tensor
    similarities: Tensor
    neighbour_weights: Tensor
    global_weight: float


def mixture(
    heuristics: Heuristics,
    *,
    copied: Tensor,
    pieces: Sequence[Sequence[int]],
    lengths: Tensor,
    old_lengths: Tensor,
    external: Tensor,
    old_external: Tensor,
) -> Mixture:
    """Decide what each new row is made of.

    Args:
        heuristics: The weights' settings.
        copied: The old token that each new one is, -1 for those that are unique, [N] int64.
        pieces: Of each new token the old ones that its text is cut into; empty where it is copied.
        lengths: Characters of each new token's text, [N] int64.
        old_lengths: Those of each old one, [V] int64.
        external: What an encoder makes of each new token's text, [N, E] float32; only rows of unique ones are read, and
            those of zeros have no neighbours.
        old_external: The same of the old ones, [V, E] float32; rows of zeros are no neighbours.

    Raises:
        ShapeError: The arguments are not of one vocabulary.

    Source: TokenAdapt, arXiv:2505.09738; code Tinycompany-AI/tokenadapt 3f7ff1d, src/heuristics.py.
    Differs: of equally similar neighbours the smaller number is taken (the search library leaves it open).
    """
    if not len(copied) == len(pieces) == len(lengths) == len(external) or len(old_lengths) != len(old_external):
        raise ShapeError("mixture: every argument has a row for each token of its vocabulary; give all of the same.")
    unique = torch.nonzero(copied < 0)[:, 0]
    news, olds = F.normalize(external.float(), dim=1)[unique], F.normalize(old_external.float(), dim=1)
    cut = [list(pieces[token]) for token in unique.tolist()] if heuristics.global_weight < 1 else [[]] * len(unique)
    flat = torch.tensor([piece for row in cut for piece in row], dtype=torch.int64)
    of = torch.repeat_interleave(torch.arange(len(unique)), torch.tensor([len(row) for row in cut], dtype=torch.int64))
    weights = _piece_weights(news, olds, flat, of, lengths[unique], old_lengths, heuristics.temperature)
    count = min(heuristics.neighbours, len(olds)) if heuristics.global_weight > 0 else 0
    near, similar = _nearest(news, olds, count)
    near_weights = _neighbour_weights(similar, heuristics)
    has_local = torch.zeros(len(unique), dtype=torch.bool).index_fill_(0, of, True)
    has_global = near_weights.sum(1) > 0
    made = torch.full((len(unique),), RowOrigin.RANDOM, dtype=torch.uint8)
    made[has_local] = RowOrigin.LOCAL
    made[has_global] = RowOrigin.GLOBAL
    made[has_local & has_global] = RowOrigin.BOTH
    origin = torch.full((len(copied),), RowOrigin.COPIED, dtype=torch.uint8)
    origin[unique] = made
    return Mixture(
        copied=copied,
        origin=origin,
        unique=unique,
        pieces=flat,
        piece_of=of,
        piece_weights=weights,
        neighbours=near,
        similarities=similar,
        neighbour_weights=near_weights,
        global_weight=heuristics.global_weight,
    )


def transplanted(old: Tensor, made: Mixture, rows: int, *, seed: int = 0) -> Tensor:
    """A new table of embeddings, or of an output head.

    Args:
        old: The table that there is, [V, C]; of a bias [V].
        made: What each row is made of.
        rows: Of the new table, at least the new tokens; what is beyond them is random.
        seed: Of the rows that nothing makes, which are normal with the mean and the deviation of all old numbers.

    Returns:
        [rows, C], of the dtype of `old`; sums are made in float32.

    Raises:
        ShapeError: There are fewer rows than tokens.
    """
    if rows < len(made.copied):
        raise ShapeError(f"transplanted: {rows} rows for {len(made.copied)} tokens; give as many rows or more.")
    table = old.float().reshape(len(old), -1)
    deviation, mean = torch.std_mean(table)
    chance = torch.Generator().manual_seed(seed)
    new = torch.normal(float(mean), float(deviation), (rows, table.shape[1]), generator=chance)
    shared = torch.nonzero(made.copied >= 0)[:, 0]
    new[shared] = table[made.copied[shared]]
    origin = made.origin[made.unique]
    local, wide = local_rows(table, made), global_rows(table, made)
    share = made.global_weight
    for kind, estimate in (
        (RowOrigin.BOTH, (1 - share) * local + share * wide),
        (RowOrigin.LOCAL, local),
        (RowOrigin.GLOBAL, wide),
    ):
        chosen = origin == kind
        new[made.unique[chosen]] = estimate[chosen]
    return new.to(old.dtype).reshape(rows, *old.shape[1:])


def local_rows(table: Tensor, made: Mixture) -> Tensor:
    """The local estimate of each unique token, [U, C] float32; zeros where there is none.

    Args:
        table: [V, C] float32.
        made: What each row is made of.
    """
    rows = torch.zeros(len(made.unique), table.shape[1])
    step = max(1, _AT_ONCE // max(1, table.shape[1]))
    for start in range(0, len(made.pieces), step):
        part = slice(start, start + step)
        rows.index_add_(0, made.piece_of[part], table[made.pieces[part]] * made.piece_weights[part, None])
    return rows


def global_rows(table: Tensor, made: Mixture) -> Tensor:
    """The global estimate of each unique token, [U, C] float32; zeros where there is none.

    Args:
        table: [V, C] float32.
        made: What each row is made of.
    """
    rows = torch.zeros(len(made.unique), table.shape[1])
    for neighbours, weights in zip(made.neighbours.T, made.neighbour_weights.T, strict=True):
        rows += table[neighbours.clamp(min=0)] * weights[:, None]
    return rows


def _piece_weights(
    news: Tensor, olds: Tensor, pieces: Tensor, of: Tensor, lengths: Tensor, old_lengths: Tensor, temperature: float
) -> Tensor:
    """A softmax over cosines, averaged with the shares of the length, and a softmax of that."""
    alike = _softmax((news[of] * olds[pieces]).sum(1), of, len(news))
    shares = old_lengths[pieces].float() / lengths[of].clamp(min=1).float()
    return _softmax((alike + shares) / 2 / (temperature + _TO_TEMPERATURE), of, len(news))


def _softmax(scores: Tensor, of: Tensor, groups: int) -> Tensor:
    """A softmax within each group."""
    largest = torch.full((groups,), -math.inf).scatter_reduce_(0, of, scores, "amax")
    powers = (scores - largest[of]).exp()
    return powers / torch.zeros(groups).index_add_(0, of, powers)[of]


def _nearest(news: Tensor, olds: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The most similar old rows, and how similar; equals in the order of their numbers."""
    numbers = torch.full((len(news), count), -1, dtype=torch.int64)
    values = torch.zeros(len(news), count)
    nothing = (olds == 0).all(1)
    for start in range(0, len(news) if count else 0, step := max(1, _AT_ONCE // max(1, len(olds)))):
        part = slice(start, start + step)
        alike = (news[part] @ olds.T).masked_fill_(nothing, -math.inf)
        alike[(news[part] == 0).all(1)] = -math.inf
        best, which = alike.topk(count)
        tied = (alike >= best[:, -1:]).sum(1) > count
        if tied.any() or (best[:, 1:] == best[:, :-1]).any():
            again = tied | (best[:, 1:] == best[:, :-1]).any(1)
            ordered, order = alike[again].sort(dim=1, descending=True, stable=True)
            best[again], which[again] = ordered[:, :count], order[:, :count]
        found = best.isfinite()
        numbers[part] = torch.where(found, which, -1)
        values[part] = torch.where(found, best, 0.0)
    return numbers, values.masked_fill_(numbers < 0, -math.inf)


def _neighbour_weights(similar: Tensor, heuristics: Heuristics) -> Tensor:
    """A softmax over all, then those below the threshold are left out and the rest fill up to 1."""
    taken = similar.isfinite() & (similar >= heuristics.threshold)
    weights = (similar / (heuristics.temperature + _TO_TEMPERATURE)).softmax(1).nan_to_num(0.0) * taken
    total = weights.sum(1, keepdim=True)
    return torch.where(total > 0, weights / total.clamp(min=1e-30), 0.0)
