"""The search of DiffRate: how many tokens pruning and merging leave in each layer, found by gradients."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn import functional

from trt_compress.errors import ConfigError
from trt_compress.methods import CompressorConfig, CompressorSpec, Method
from trt_compress.models.compressors.base import Compressor, after_attention
from trt_compress.models.compressors.passing import Taps, Tokens
from trt_compress.models.compressors.sites import Arrival, HostInfo, Placement
from trt_compress.plugins.operator import cast

GONE = 2.0**-26
"""Size of a token that was removed: so small a weight changes no sum in float32, and its logarithm has a gradient."""
LEAST_SIZE = 2.0**-20
_NEVER = -8.0  # below any cosine
_RATE, _WEIGHT_OF_FLOPS, _WIDTH = 0.1, 200.0, 12.0


class Search:
    """Probabilities of every count, for pruning and for merging in each layer; the first layer removes nothing.

    They start around what removes as many tokens in every layer and meets the target.

    Args:
        host: The model.
        flops_ratio: The target: FLOPs of the blocks against those of the whole model.

    Raises:
        ConfigError: The target is out of reach.
    """

    def __init__(self, host: HostInfo, flops_ratio: float) -> None:
        self.host, self.target = host, flops_ratio
        self.tokens = host.num_tokens
        self.start = even_counts(host, flops_ratio)
        centre = torch.tensor(self.start, dtype=torch.float32)
        counts = torch.arange(1, self.tokens + 1, dtype=torch.float32)
        width = max(1.0, self.tokens / _WIDTH)
        logits = -((counts - centre[..., None]) ** 2) / (2 * width**2)
        self.logits = logits.requires_grad_()
        self._optimizer = torch.optim.Adam([self.logits], lr=_RATE)

    def expected(self) -> Tensor:
        """Counts that the probabilities expect, rounded up with the gradient of what they were, [layers, 2]."""
        counts = torch.arange(1, self.tokens + 1, dtype=torch.float32)
        mean = (self.logits.softmax(dim=-1) * counts).sum(dim=-1)
        found = mean + ((mean - 1e-4).ceil() - mean).detach()
        whole = torch.full((1, 2), float(self.tokens))
        rows, before = [], whole[0, 1]
        for layer, row in enumerate(found):
            pruned = torch.minimum(row[0] if layer else before, before)
            merged = torch.minimum(row[1] if layer else before, pruned)
            rows.append(torch.stack([pruned, merged]))
            before = merged
        return torch.stack(rows)

    def kept_at(self, layer: int, step: int, rank: Tensor, count: int) -> Tensor:
        """1 for ranks [B, N] below a count, else 0, with the gradient of the probability that so many are kept."""
        parts = self.logits[layer, step].softmax(dim=-1)
        soft = parts.flip(0).cumsum(0).flip(0)[rank]
        return cast(rank < count, torch.float32) + soft - soft.detach()

    def flops(self, counts: Tensor) -> Tensor:
        """Of the blocks, as a share of those without compression."""
        return flops_ratio(counts, self.host)

    def step(self, distance: Tensor) -> None:
        """One step of the probabilities, of how far the outputs are from those of the whole model."""
        loss = distance + _WEIGHT_OF_FLOPS * (self.flops(self.expected()) - self.target) ** 2
        (self.logits.grad,) = torch.autograd.grad(loss, [self.logits])
        self._optimizer.step()

    def counts(self) -> tuple[tuple[int, int], ...]:
        """What pruning and merging leave in each layer, within the target."""
        with torch.no_grad():
            found = [(int(pruned), int(merged)) for pruned, merged in self.expected()]
        return within(found, self.host, self.target)


def flops_ratio(counts: Tensor, host: HostInfo) -> Tensor:
    """FLOPs of blocks that are left so many tokens, [layers, 2] (pruning, merging), as a share of those of all tokens.

    Of a block with a feed-forward part four times as wide as the tokens: 4 N C^2 + 2 N^2 C for the attention of its N
    tokens, and 8 M C^2 for the M that are left.
    """
    width, whole = float(host.width or 1), float(host.num_tokens)
    left = counts[:, 1]
    come = torch.cat([torch.full((1,), whole), left[:-1]])
    attention = 4 * come * width**2 + 2 * come**2 * width
    dense = len(counts) * (12 * whole * width**2 + 2 * whole**2 * width)
    return (attention + 8 * left * width**2).sum() / dense


def even_counts(host: HostInfo, target: float) -> tuple[tuple[int, int], ...]:
    """As many tokens fewer in every layer but the first, half of them pruned and half merged.

    Raises:
        ConfigError: Even one patch behind the second layer is above the target.
    """
    least = host.num_prefix + 1

    def of(step: float) -> list[tuple[int, int]]:
        rows, before = [], host.num_tokens
        for layer in range(host.depth):
            left = max(least, host.num_tokens - int(step * layer))
            rows.append(((before + left + 1) // 2, left))
            before = left
        return rows

    def ratio(step: float) -> float:
        return float(flops_ratio(torch.tensor(of(step), dtype=torch.float32), host))

    low, high = 0.0, float(host.num_tokens)
    if ratio(high) > target:
        raise ConfigError(
            f"diffrate: flops_ratio={target} is out of reach of {host.name}; with one patch from the second layer on "
            f"it is {math.ceil(1000 * ratio(high)) / 1000}; give that or more."
        )
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if ratio(middle) <= target else (middle, high)
    return tuple(of(high))


def within(counts: Sequence[tuple[int, int]], host: HostInfo, target: float) -> tuple[tuple[int, int], ...]:
    """Counts that fall from layer to layer and meet the target, by removing more, or fewer, everywhere alike."""
    least, whole = host.num_prefix + 1, host.num_tokens

    def of(share: float) -> tuple[tuple[int, int], ...]:
        rows, before = [], whole
        for pruned, merged in counts:
            first = min(before, max(least, math.ceil(whole - share * (whole - pruned))))
            second = min(first, max(least, math.ceil(whole - share * (whole - merged))))
            rows.append((first, second))
            before = second
        return tuple(rows)

    low, high = 0.0, float(whole)
    for _ in range(40):
        middle = (low + high) / 2
        fits = float(flops_ratio(torch.tensor(of(middle), dtype=torch.float32), host)) <= target
        low, high = (low, middle) if fits else (middle, high)
    return of(high)


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchConfig(CompressorConfig):
    """The search that a model is run in."""

    search: Search = field(compare=False)


SEARCH = Method(
    name="diffrate_search",
    summary="weighs tokens by the probability that they are kept",
    source="DiffRate, arXiv:2305.17997; code OpenGVLab/DiffRate 91ae3e3, DiffRate/ddp.py",
    differs="removed tokens stay with a size near 0; merged ones take no part in the gradient of the counts.",
    config=SearchConfig,
    implementation="models.compressors.diffrate_search:SoftDiffRate",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSpec(CompressorSpec):
    """The place of the search among the methods of a spec."""

    @property
    def method(self) -> Method:
        """The search, which no spec string names."""
        return SEARCH


class SoftDiffRate(Compressor):
    """All tokens of a layer, of which those that it removes have nearly no size."""

    method = SEARCH
    asks = frozenset({"class_attention"})

    @classmethod
    def placements(cls, config: SearchConfig, host: HostInfo) -> tuple[Placement, ...]:
        """Every layer."""
        return after_attention(range(host.depth))

    def __init__(self, config: SearchConfig, arrival: Arrival) -> None:
        super().__init__(config, arrival)
        self.search, self.layer, self.prefix = config.search, arrival.layer, arrival.prefix
        self.tokens_out = arrival.tokens

    @property
    def acts(self) -> bool:
        """Always: it weighs tokens."""
        return True

    @property
    def proportional_attention(self) -> bool:
        """Attention after this site weighs keys by size."""
        return True

    def forward(self, tokens: Tokens, taps: Taps) -> Tokens:
        """Tokens in their places, with those in them that merge; sizes carry the gradient of the counts."""
        if self.layer == 0:
            return replace(tokens, size=tokens.sizes)
        x, size = tokens.x, tokens.sizes[..., 0]
        number = torch.arange(x.shape[1], device=x.device)
        there = size > LEAST_SIZE / 2
        score = torch.where(number < self.prefix, torch.inf, torch.where(there, taps["class_attention"].float(), -1.0))
        rank = score.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        pruned, merged = (int(count) for count in self.search.expected().detach()[self.layer])
        by_pruning, by_merging = (
            self.search.kept_at(self.layer, step, rank, count) for step, count in enumerate((pruned, merged))
        )
        stays = torch.where(rank >= pruned, by_pruning, by_merging)
        unit = functional.normalize(x.float(), dim=-1)
        takes = (rank < merged) & (rank >= self.prefix)
        likeness = torch.where(takes[:, None], unit @ unit.transpose(1, 2), _NEVER)
        best, to = likeness.max(dim=2)
        goes = (rank >= merged) & (rank < pruned)
        joins = cast((to[..., None] == number) & goes[..., None], x.dtype).transpose(1, 2)
        met = (x + joins @ x) / (1 + joins.sum(dim=2, keepdim=True))
        grown = (size + (joins @ (best * size)[..., None])[..., 0]).clamp_min(LEAST_SIZE)
        left = torch.where(there, grown * stays + GONE * (1 - stays), size)
        return replace(tokens, x=met, size=left[..., None])
