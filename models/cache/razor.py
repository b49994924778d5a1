"""RazorAttention: heads that retrieve keep everything; the others keep sinks, a window, and one entry for the rest.

Source, Differs: see the method's entry, `methods.cache_heads.RAZORATTENTION`.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from trt_compress.errors import ConfigError
from trt_compress.methods.cache_heads import RAZORATTENTION, RazorConfig
from trt_compress.models.cache.contract import ROWS, CacheState, Length, Memory, NewEntries, Store
from trt_compress.models.cache.packing import merged
from trt_compress.models.cache.plain import SLOTS
from trt_compress.models.calibrate import echoes
from trt_compress.models.compressors.calibration import (
    Alphabet,
    Calibrated,
    CalibrationData,
    CalibrationHost,
    alike_tensors,
    artifact_tensors,
)
from trt_compress.models.compressors.sites import Arrival
from trt_compress.plugins.kv_append.op import kv_append
from trt_compress.plugins.kv_attention_plain.op import kv_attention_plain
from trt_compress.plugins.operator import cast

_NOTHING = -1e30  # the logarithm of the sum of no exponentials


class Razor(Store):
    """Two caches in one layer: rows of the heads that retrieve, and a ring of the others with the mean of the rest."""

    method = RAZORATTENTION
    keeps_rest = False
    needs_count = True

    @property
    def not_selectable(self) -> str:
        """Its heads differ in how much they keep."""
        return "keeps another number of entries for heads that retrieve than for others"

    @property
    def not_readable(self) -> str:
        """Its heads differ in what they keep."""
        return "keeps other entries for heads that retrieve than for others"

    @classmethod
    def samples(cls, alphabet: Alphabet, config: RazorConfig) -> CalibrationData:
        """Random tokens that are repeated."""
        return echoes.samples(alphabet)

    @classmethod
    def calibrate(cls, host: CalibrationHost, data: CalibrationData, config: RazorConfig) -> Calibrated:
        """The head search; the score `found_again` is the share of the heads that the held-out text finds too."""
        echo, induction = echoes.search(host, data.fit)
        heads = retrieval_heads(echo, induction, config)
        again = retrieval_heads(*echoes.search(host, data.held_out), config)
        return Calibrated(
            tensors={"echo": echo, "induction": induction},
            score={"found_again": float((heads & again).sum() / heads.sum().clamp(min=1))},
        )

    @classmethod
    def adopt(cls, tensors: Mapping[str, Tensor], config: RazorConfig) -> Mapping[str, Tensor]:
        """`echo` and `induction`, [layers, KV heads], both finite."""
        return search_of(tensors, "the file")

    def __init__(self, config: RazorConfig, arrival: Arrival) -> None:
        super().__init__(config, arrival)
        if config.search is None:
            raise ConfigError(
                "razorattention: search=FILE is missing; make it with `trt-compress calibrate MODEL --compress "
                "razorattention -o FILE`."
            )
        layer, where = self.layer, str(config.search)
        found = search_of(artifact_tensors(config.search, "razorattention: search"), where)
        if found["echo"].shape != (layer.count, layer.groups):
            count, groups = found["echo"].shape
            raise ConfigError(
                f"razorattention: {where} is for {count} layers of {groups} KV heads, and {layer.host} has "
                f"{layer.count} of {layer.groups}; make one for it with `trt-compress calibrate`."
            )
        keep = retrieval_heads(found["echo"], found["induction"], config)[layer.place].tolist()
        self.full = tuple(head for head, keeps in enumerate(keep) if keeps)
        self.near = tuple(head for head, keeps in enumerate(keep) if not keeps)
        self.sinks, self.window = config.sinks, min(config.window, layer.context)
        self._slots = self.sinks + self.window + layer.chunk

    def lengths(self) -> tuple[Length, ...]:
        """One row a token, where a head keeps them."""
        return (Length(name=ROWS, symbol=SLOTS, read="tokens"),) if self.full else ()

    def settled(self, tokens: int) -> Mapping[str, int]:
        """One row a token; ring and mean are as large from the beginning."""
        return {ROWS: tokens}

    def cache_states(self) -> tuple[CacheState, ...]:
        """Rows of the heads that retrieve; of the others a ring, and the means of keys and values that left it."""
        made, width, dtype = [], self.layer.head_dim, self.layer.dtype
        for name in ("keys", "values"):
            if self.full:
                made.append(CacheState(name=name, shape=(len(self.full), ROWS, width), dtype=dtype))
            if self.near:
                made += [
                    CacheState(name=f"near_{name}", shape=(len(self.near), self._slots, width), dtype=dtype),
                    CacheState(name=f"mean_{name}", shape=(len(self.near), 1, width)),
                ]
        return tuple(made)

    def forward(self, reading: NewEntries, memory: Memory) -> Tensor:
        """Append and attend, each kind of heads for itself."""
        repeats = self.layer.heads // self.layer.groups
        parts, order = [], []
        for heads, attend in ((self.full, self._attend_all), (self.near, self._attend_near)):
            if heads:
                own = [head * repeats + number for head in heads for number in range(repeats)]
                parts.append(attend(reading, memory, _taken(reading.query, own)))
                order += own
        y = torch.cat(parts, dim=1)
        return y if order == sorted(order) else _taken(y, [order.index(head) for head in range(len(order))])

    def _attend_all(self, reading: NewEntries, memory: Memory, query: Tensor) -> Tensor:
        start = reading.seen
        for name, new in (("keys", reading.key), ("values", reading.value)):
            memory[name] = kv_append(memory[name], cast(_taken(new, self.full), memory[name].dtype), start)
        y, _ = kv_attention_plain(
            query,
            memory["keys"],
            memory["values"],
            start + query.shape[2],
            scale=self.layer.scale,
            causal=True,
            softcap=self.layer.softcap,
        )
        return y

    def _attend_near(self, reading: NewEntries, memory: Memory, query: Tensor) -> Tensor:
        """What a token sees of sinks and window, and of the mean of all between, with the logarithm of their number."""
        for name, new in (("keys", reading.key), ("values", reading.value)):
            near = f"near_{name}"
            rows = cast(_taken(new, self.near), memory[near].dtype)
            memory[near] = kv_append(memory[near], rows, reading.seen, layout="ring", sinks=self.sinks)
        near_part = kv_attention_plain(
            query,
            memory["near_keys"],
            memory["near_values"],
            reading.seen + query.shape[2],
            scale=self.layer.scale,
            causal=True,
            window=self.window,
            softcap=self.layer.softcap,
            layout="ring",
            sinks=self.sinks,
        )
        key, number = self._means(reading, memory, "keys")
        value, _ = self._means(reading, memory, "values")
        batch, heads, count, width = query.shape
        grouped = cast(query, torch.float32).reshape(batch, len(self.near), -1, count, width)
        product = (grouped * key[:, :, None]).sum(dim=4) * self.layer.scale
        if self.layer.softcap:
            product = torch.tanh(product / self.layer.softcap) * self.layer.softcap
        base = torch.where(number > 0, number.clamp(min=1).log(), _NOTHING)[:, None, None]
        y = value[:, :, None].expand(grouped.shape).reshape(query.shape)
        return merged((cast(y, query.dtype), (product + base).reshape(batch, heads, count)), near_part)

    def _means(self, reading: NewEntries, memory: Memory, name: str) -> tuple[Tensor, Tensor]:
        """For each token of a run the mean of what it does not see any more, [B, Gw, T, D] in float32, and of how many
        entries, [B, T]; the mean behind the run goes to the memory."""
        near, mean = memory[f"near_{name}"], memory[f"mean_{name}"]
        count = reading.query.shape[2]
        step = torch.arange(count, device=near.device)
        leaving = reading.seen[:, None] + step - self.window  # the entry that token t is the first not to see
        period = self._slots - self.sinks
        slot = self.sinks + (leaving - self.sinks).clamp(min=0) % period
        rows = near.gather(2, slot[:, None, :, None].expand(-1, near.shape[1], -1, near.shape[3]))
        leaves = ((leaving >= self.sinks) & (step < reading.count[:, None]))[:, None, :, None]
        rows = cast(rows, torch.float32)
        away = torch.where(leaves, rows - mean, torch.zeros_like(rows))
        until = (step <= step[:, None]).float()
        after = (leaving + 1 - self.sinks).clamp(min=0)
        means = mean + (until @ away) / after.clamp(min=1).float()[:, None, :, None]
        last = (reading.seen + reading.count - self.window - self.sinks).clamp(min=1).float()
        memory[f"mean_{name}"] = mean + away.sum(dim=2, keepdim=True) / last[:, None, None, None]
        return means, after.float()


def retrieval_heads(echo: Tensor, induction: Tensor, config: RazorConfig) -> Tensor:
    """Which KV heads keep everything, bool [layers, G]: the largest echo and the largest induction scores of all
    layers, of equal ones the first."""
    chosen = torch.zeros(echo.numel(), dtype=torch.bool)
    for scores, share in ((echo, config.echo), (induction, config.induction)):
        best = scores.flatten().sort(descending=True, stable=True).indices
        chosen[best[: round(share * echo.numel())]] = True
    return chosen.reshape(echo.shape)


def search_of(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The tensors of what `calibrate` made; as `alike_tensors`."""
    return alike_tensors(tensors, f"razorattention: {where}", "a search", ("echo", "induction"), ("layers", "KV heads"))


def _taken(x: Tensor, heads: Sequence[int]) -> Tensor:
    """Some heads [B, len(heads), T, D] of all [B, H, T, D]."""
    return x if list(heads) == list(range(x.shape[1])) else x.index_select(1, torch.tensor(heads, device=x.device))
