"""SCOUT: a layer keeps every so many-th entry, a checkpoint; a token attends to those before it and to itself.

Source, Differs: see the method's entry, `methods.cache_readers.SCOUT`.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from trt_compress.errors import ConfigError
from trt_compress.methods.cache_readers import SCOUT, ScoutConfig
from trt_compress.models.cache.contract import CacheLayer, CacheState, Length, Memory, NewEntries, Store
from trt_compress.models.cache.packing import merged
from trt_compress.models.cache.plain import Fixed
from trt_compress.models.compressors.sites import Arrival
from trt_compress.plugins.kv_append.op import kv_append
from trt_compress.plugins.kv_attention_plain.op import kv_attention_plain
from trt_compress.plugins.operator import cast


class Checkpoints(Fixed):
    """The entries of the tokens period - 1, 2 * period - 1, …, in slots that are there from the beginning.

    Behind those in use stands what the next of them will overwrite.

    Attributes:
        period: Tokens of which one is kept.
        slots: As many as the tokens of a context and a chunk behind it need.
    """

    def __init__(self, layer: CacheLayer, period: int) -> None:
        super().__init__()
        self.layer, self.period = layer, period
        self.slots = (layer.context + layer.chunk) // period + 1

    def cache_states(self) -> tuple[CacheState, ...]:
        """Keys and values of checkpoints."""
        shape = (self.layer.groups, self.slots, self.layer.head_dim)
        return tuple(CacheState(name=name, shape=shape, dtype=self.layer.dtype) for name in ("keys", "values"))

    def forward(self, reading: NewEntries, memory: Memory) -> Tensor:
        """Keep the checkpoints among T tokens, and attend: [B, H, T, D]."""
        self._append(reading, memory)
        layer, query = self.layer, reading.query
        position = reading.seen[:, None] + torch.arange(query.shape[2], device=query.device)
        before = position // self.period  # checkpoints in front of each token
        slot = torch.arange(self.slots, device=query.device)
        hidden = torch.where(slot < before[..., None], 0.0, -torch.inf)[:, None]
        others = kv_attention_plain(
            query,
            memory["keys"],
            memory["values"],
            (reading.seen + query.shape[2]) // self.period,
            hidden,
            scale=layer.scale,
            softcap=layer.softcap,
        )
        return merged(others, self._own(reading))

    def _own(self, reading: NewEntries) -> tuple[Tensor, Tensor]:
        """What each token sees of itself, [B, H, T, D], and its product, [B, H, T]."""
        layer, repeats = self.layer, self.layer.heads // self.layer.groups
        key, value = (each.repeat_interleave(repeats, dim=1) for each in (reading.key, reading.value))
        product = (cast(reading.query, torch.float32) * cast(key, torch.float32)).sum(dim=3) * layer.scale
        if layer.softcap:
            product = torch.tanh(product / layer.softcap) * layer.softcap
        return value, product

    def _append(self, reading: NewEntries, memory: Memory) -> None:
        count = reading.key.shape[2]
        first = reading.seen // self.period
        place = torch.arange(count // self.period + 1, device=reading.key.device)
        token = (first[:, None] + place + 1) * self.period - 1 - reading.seen[:, None]
        index = token.clamp(max=count - 1)[:, None, :, None]  # one behind the run is written again by a later one
        for name, new in (("keys", reading.key), ("values", reading.value)):
            rows = new.gather(2, index.expand(-1, new.shape[1], -1, new.shape[3]))
            memory[name] = kv_append(memory[name], cast(rows, memory[name].dtype), first)


class Scout(Store):
    """Checkpoints in place of all entries, for a model that was trained so."""

    method = SCOUT
    keeps_rest = False

    def __init__(self, config: ScoutConfig, arrival: Arrival) -> None:
        super().__init__(config, arrival)
        if config.period > self.layer.context:
            raise ConfigError(
                f"scout: period={config.period} is more than the {self.layer.context} tokens of the context, so that "
                "nothing is kept; give a smaller one."
            )
        self.kept = Checkpoints(self.layer, config.period)
        self.tokens_out = self.tokens_in // config.period

    @property
    def not_selectable(self) -> str:
        """What is kept is decided by positions."""
        return "keeps the entries of fixed positions"

    @property
    def not_readable(self) -> str:
        """Every token reads all."""
        return "keeps checkpoints alone, which every token reads"

    def lengths(self) -> tuple[Length, ...]:
        """None that grow."""
        return ()

    def settled(self, tokens: int) -> Mapping[str, int]:
        """None that grow."""
        return {}

    @property
    def bytes_per_token(self) -> float:
        """A row of the slots that there are every period."""
        return self.bytes_of(self.layer.context) / self.kept.slots / self.kept.period

    def cache_states(self) -> tuple[CacheState, ...]:
        """Keys and values of checkpoints."""
        return self.kept.cache_states()

    def forward(self, reading: NewEntries, memory: Memory) -> Tensor:
        """As the checkpoints say."""
        y: Tensor = self.kept(reading, memory)
        return y
