"""Expected attention: what the queries of tokens to come are likely to attend to is kept.

Source, Differs: see the method's entry, `methods.cache_heads.EXPECTED`.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from trt_compress.methods.cache_heads import EXPECTED, ExpectedConfig
from trt_compress.models.cache.contract import ROWS, CacheState, Choice, Memory, NewEntries, Selector, Store, best
from trt_compress.models.cache.scores import of_groups
from trt_compress.models.compressors.sites import Arrival
from trt_compress.models.layers.rope import Rope, turned
from trt_compress.plugins.operator import cast

_LOW = -1e30


class ExpectedAttention(Selector):
    """Queries before they are turned as a normal distribution, turned by the mean of the positions to come."""

    method = EXPECTED
    observes = ("prefill",)
    needs_seen = True

    def __init__(self, config: ExpectedConfig, arrival: Arrival) -> None:
        self.config = config
        super().__init__(config, arrival)
        rope = self.layer.rope
        self._rope = None if rope is None else Rope(rope, self.layer.context)

    def entries(self, config: ExpectedConfig) -> int:
        """The same in every layer."""
        return config.budget

    def cache_states(self) -> tuple[CacheState, ...]:
        """How many queries there were, their mean, and the sum of the products of their deviations."""
        heads, width = self.layer.heads, self.layer.head_dim
        shapes: dict[str, tuple[int, ...]] = {"queries": (1,), "query_mean": (heads, width)}
        if self.config.covariance:
            shapes["query_spread"] = (heads, width, width)
        return tuple(
            CacheState(name=name, shape=shape, kind="score", compact="r", parts=("prefill",))
            for name, shape in shapes.items()
        )

    def observe(self, reading: NewEntries, store: Store, memory: Memory) -> None:
        """Bring the queries of a run into count, mean and spread; those of sinks are outliers and left out."""
        number = torch.arange(reading.query.shape[2], device=reading.count.device)
        there = (number < reading.count[:, None]) & (number + reading.seen[:, None] >= self.config.sinks)
        there = there[:, None, :, None]
        query = cast(reading.query_before, torch.float32)
        query = torch.where(there, query, torch.zeros_like(query))
        before, mean = memory["queries"], memory["query_mean"]
        new = there.to(torch.float32).sum(dim=(1, 2, 3))[:, None]
        after = (before + new).clamp(min=1)
        middle = query.sum(dim=2) / new.clamp(min=1)[..., None]
        away = middle - mean
        memory["queries"] = before + new
        memory["query_mean"] = mean + away * (new / after)[..., None]
        if self.config.covariance:
            deviation = torch.where(there, query - middle[:, :, None], torch.zeros_like(query))
            moved = away[..., None] * away[..., None, :] * (before * new / after)[..., None, None]
            memory["query_spread"] = memory["query_spread"] + deviation.transpose(2, 3) @ deviation + moved

    def choose(self, lengths: Mapping[str, Tensor], memory: Memory) -> Choice:
        """The entries of the largest expected attention, weighed by the norms of their values, and the sinks."""
        config, length = self.config, lengths[ROWS]
        slot = torch.arange(memory["keys"].shape[2], device=length.device)
        there = (slot < length[:, None])[:, None]
        keys, values = (
            torch.where(there[..., None], rows, torch.zeros_like(rows))
            for rows in (cast(memory[name], torch.float32) for name in ("keys", "values"))
        )
        score = self._expected(keys, lengths["seen"], memory)
        scored = there & (slot >= config.sinks)
        attention = torch.where(scored, score, _LOW).softmax(dim=2)
        each = of_groups(torch.where(scored, attention, 0.0), self.layer.groups, "mean")
        if config.value_norm:
            each = (each + config.epsilon) * values.square().sum(dim=3).sqrt()
        return best(each, length, self.budget, first=config.sinks)

    def _expected(self, keys: Tensor, seen: Tensor, memory: Memory) -> Tensor:
        """Logarithm of what queries give keys [B, G, L, D] in the mean, [B, H, L]: E exp(q·k) of normal queries."""
        layer, mean = self.layer, memory["query_mean"]
        table = self._table(seen)
        if table is not None:
            mean = turned(mean[:, :, None], table)[:, :, 0]
        batch, groups, slots, width = keys.shape
        each = layer.heads // groups
        score = keys @ mean.reshape(batch, groups, each, width).transpose(2, 3) * layer.scale
        if self.config.covariance:
            spread = memory["query_spread"] / memory["queries"].clamp(min=1)[..., None, None]
            if table is not None:
                spread = turned(turned(spread, table).transpose(2, 3), table)
            spread = spread.reshape(batch, groups, each, width, width)
            through = (keys[:, :, None] @ spread * keys[:, :, None]).sum(dim=4)
            score = score + through.transpose(2, 3) * (layer.scale**2 / 2)
        return score.transpose(2, 3).reshape(batch, layer.heads, slots)

    def _table(self, seen: Tensor) -> tuple[Tensor, Tensor] | None:
        """The mean of the tables of the positions to come, [B, 1, 1, D]; a mean of rotations is linear."""
        if self._rope is None:
            return None
        positions = seen[:, None] + torch.arange(self.config.future, device=seen.device)
        cosine, sine = self._rope.table(positions, torch.float32)
        return cosine.mean(dim=2, keepdim=True), sine.mean(dim=2, keepdim=True)
