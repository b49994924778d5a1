"""ZipCache: entries that probing tokens attend to in more bits than the others, packed anew when new ones are packed.

Source, Differs: see the method's entry, `methods.cache_stores.ZIPCACHE`.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from trt_compress.errors import ConfigError
from trt_compress.methods.cache_stores import ZIPCACHE, ZipCacheConfig
from trt_compress.models.cache.contract import ROWS, CacheState, Length, Memory, NewEntries, Store
from trt_compress.models.cache.packing import both, merged, moved_up, rows_from
from trt_compress.models.cache.plain import append_rows, attend_rows, row_states
from trt_compress.models.cache.scores import attention_beside
from trt_compress.models.compressors.sites import Arrival
from trt_compress.models.layers.attention import last_rows
from trt_compress.plugins.kv_attention.op import kv_attention
from trt_compress.plugins.kv_dequantize.op import kv_dequantize
from trt_compress.plugins.kv_quantize.op import kv_quantize, quantize_tokens
from trt_compress.plugins.operator import cast
from trt_compress.plugins.token_select.op import token_select

SALIENT, ORDINARY = "salient", "ordinary"
KINDS = (SALIENT, ORDINARY)
_AT_ONCE = 1024  # tokens of a long prompt that one run packs
_LAST = 1e30
_PARTS = ("code", "scale", "minimum")


class ZipCache(Store):
    """Rows in full precision until they are packed, as salient or as ordinary ones; all that is packed goes anew then.

    How salient the rows of a prompt are, rows of queries say: some at random, whose attention is added up while they
    are read, and the last, whose queries are kept in a window. Behind steps it is the last query alone.

    Attributes:
        config: Its options.
        bits: Of salient and of ordinary rows.
        at_once: Rows that a run of `flush` packs at most.
    """

    method = ZIPCACHE
    flush_after = ("prompt", "step")
    own_prompts = True
    probes: Tensor
    fewer: Tensor
    recent: Tensor

    def __init__(self, config: ZipCacheConfig, arrival: Arrival) -> None:
        super().__init__(config, arrival)
        layer, self.config = self.layer, config
        self.bits = {SALIENT: config.bits, ORDINARY: config.fewer_bits}
        for name, bits in (("bits", config.bits), ("fewer_bits", config.fewer_bits)):
            if layer.head_dim % (8 // bits):
                raise ConfigError(
                    f"zipcache: {name}={bits} does not pack the {layer.head_dim} channels of a head of {layer.host} "
                    "into whole bytes; give more bits."
                )
        self.at_once = max(min(_AT_ONCE, layer.context), config.every)
        self.probe(probing_rows(layer.context, config.probes, config.seed))
        counts = range(layer.context + 1)
        fewer = [int(config.ordinary * count) for count in range(self.at_once + 1)]
        recent = [min(max(count - int(count - config.probes * count), 1), config.window) for count in counts]
        self.register_buffer("fewer", torch.tensor(fewer).float(), persistent=False)
        self.register_buffer("recent", torch.tensor(recent).float(), persistent=False)
        self._most_of = {ORDINARY: fewer[-1], SALIENT: self.at_once - fewer[-1]}

    def probe(self, rows: Sequence[int]) -> None:
        """Let these rows of prompts ask, by their positions, ascending."""
        self._most_probes = max((sum(row <= each < row + self.layer.chunk for each in rows) for row in rows), default=0)
        self.register_buffer("probes", torch.tensor(rows, dtype=torch.float32), persistent=False)

    @property
    def not_selectable(self) -> str:
        """It chooses by itself."""
        return "chooses by itself which entries get fewer bits, and packs all of them together"

    @property
    def period(self) -> int:
        """Generated tokens behind which all is packed anew."""
        return self.config.every

    def packs_from(self, after: str) -> int:
        """A prompt is packed whatever its length."""
        return 1 if after == "prompt" else self.period

    def lengths(self) -> tuple[Length, ...]:
        """Rows in full precision, and those of both kinds."""
        share = {SALIENT: 1 - self.config.ordinary, ORDINARY: self.config.ordinary}
        most = {SALIENT: self.layer.context, ORDINARY: max(int(self.config.ordinary * self.layer.context), 1)}
        packed = (
            Length(
                name=kind,
                symbol=f"{kind}_slots",
                flush=self._most_of[kind],
                spare=self.at_once,
                most=most[kind],
                share=share[kind],
            )
            for kind in KINDS
        )
        return (Length(name=ROWS, symbol="tail", read="tokens", first=self.at_once), *packed)

    def settled(self, tokens: int) -> Mapping[str, int]:
        """Those of a prompt that was packed at once."""
        ordinary = int(self.config.ordinary * tokens)
        return {ROWS: 0, SALIENT: tokens - ordinary, ORDINARY: ordinary}

    def cache_states(self) -> tuple[CacheState, ...]:
        """Rows; codes, scales and minima of both kinds; and what says how salient the rows are."""
        layer, made = self.layer, list(row_states(self.layer, tail=True))
        for kind, bits in self.bits.items():
            codes, of_keys, of_values = (layer.groups, kind, layer.head_dim * bits // 8), (layer.groups, 1), (1, kind)
            for which, scales in (("k", (*of_keys, layer.head_dim)), ("v", (*of_values, 1))):
                name = f"{which}_{kind}_code"
                made.append(
                    CacheState(name=name, shape=codes, dtype="uint8", compare="codes", bits=bits, read="r", flush="rw")
                )
                made += [self._scale(f"{which}_{kind}_{what}", scales) for what in _PARTS[1:]]
        made.append(self._scale("v_channel", (layer.groups, 1, layer.head_dim)))
        window = (layer.heads, self.config.window, layer.head_dim)
        return (
            *made,
            CacheState(name="window", shape=window, dtype=layer.dtype, kind="score", flush="r"),
            CacheState(name="saliency", shape=(layer.groups, ROWS, 1), kind="score", parts=("prefill",), flush="rw"),
            CacheState(name="asked", shape=(), dtype="int64", kind="score", parts=("prefill",), flush="rw"),
        )

    def _scale(self, name: str, shape: tuple[int | str, ...]) -> CacheState:
        return CacheState(name=name, shape=shape, dtype=self.config.scales, kind="scale", read="r", flush="rw")

    # ---- while tokens are read

    def forward(self, reading: NewEntries, memory: Memory) -> Tensor:
        """Append to the rows, attend to them and to both kinds, and ask those that are probed."""
        append_rows(reading, memory)
        packed = self._attend_packed(reading.query, reading.lengths, memory)
        if reading.part == "prefill":
            self._hear(reading, packed[1], memory)
        window = memory["window"]
        memory["window"] = last_rows(window, cast(reading.query, window.dtype), reading.count)
        return merged(packed, attend_rows(reading, memory, self.layer))

    def _attend_packed(
        self, query: Tensor, lengths: Mapping[str, Tensor], memory: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Attend to what is packed of both kinds; and the logarithm of the sum of exponentials."""
        (y, lse), (other, base) = (self._attend(kind, query, lengths, memory) for kind in KINDS)
        y, lse = both((y, lse), (other, base))
        batch, heads, count, width = y.shape
        grouped = y.reshape(batch, self.layer.groups, -1, count, width)
        channel = cast(memory["v_channel"], y.dtype)[:, :, None]
        return (grouped * channel).reshape(y.shape), lse

    def _attend(
        self, kind: str, query: Tensor, lengths: Mapping[str, Tensor], memory: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        return kv_attention(
            query,
            *self._parts("k", kind, memory),
            *self._parts("v", kind, memory),
            lengths[kind],
            k_bits=self.bits[kind],
            k_axis="channel",
            v_bits=self.bits[kind],
            v_axis="token",
            scale=self.layer.scale,
            softcap=self.layer.softcap,
        )

    def _parts(self, which: str, kind: str, memory: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        code, scale, minimum = (memory[f"{which}_{kind}_{what}"] for what in _PARTS)
        return code, scale, minimum

    def _hear(self, reading: NewEntries, packed: Tensor, memory: Memory) -> None:
        """Add the attention of rows of a prompt that are probed at random to what each row in full precision got."""
        before, asked, count = reading.lengths[ROWS], memory["asked"], reading.count
        slot = torch.arange(memory["saliency"].shape[2], device=before.device)
        of_prompt = (slot >= (before - asked)[:, None]) & (slot < before[:, None])
        heard = torch.where(of_prompt[:, None], memory["saliency"][..., 0], 0.0)
        if self._most_probes:
            number = (self.probes < reading.seen[:, None]).sum(dim=1, keepdim=True)
            number = number + torch.arange(self._most_probes, device=number.device)
            last = self.probes.shape[0] - 1
            position = _looked_up(self.probes, number.clamp(max=last))
            there = (number <= last) & (position < (reading.seen + count)[:, None])
            token = torch.where(there, position - reading.seen[:, None], 0)
            rows = token[:, None].expand(-1, reading.query.shape[1], -1)
            heard = heard + attention_beside(
                reading.query.gather(2, rows[..., None].expand(-1, -1, -1, reading.query.shape[3])),
                memory["keys"],
                torch.where(there, before[:, None] + token, -1),
                packed.gather(2, rows),
                scale=self.layer.scale,
                softcap=self.layer.softcap,
            )
        memory["saliency"], memory["asked"] = heard[..., None], asked + count

    # ---- when rows are packed

    def flush(self, lengths: Mapping[str, Tensor], memory: Memory) -> None:
        """Pack the oldest rows and, with them, all that was packed; sequences without rows stay as they are."""
        rows = lengths[ROWS]
        went, ordinary = self._goes(lengths)
        order = self._order(self._scores(lengths, memory), went, ordinary)
        adds = {ORDINARY: (torch.zeros_like(ordinary), ordinary), SALIENT: (ordinary, went - ordinary)}
        made: dict[str, Tensor] = {}
        for which, name in (("k", "keys"), ("v", "values")):
            new = cast(rows_from(memory[name], rows, self.at_once), torch.float32)
            joined = {
                kind: _joined(self.unpacked(which, kind, memory), lengths[kind], new, order, *adds[kind])
                for kind in KINDS
            }
            made |= self.pack_keys(joined) if which == "k" else self.pack_values(joined)
        item = torch.arange(rows.shape[0], device=rows.device)
        taken = torch.where(rows > 0, item + rows.shape[0], item)
        for name, value in made.items():  # codes may be moved only, and not be compared or chosen as numbers are
            memory[name] = torch.cat([memory[name], value]).index_select(0, taken)
        for name in ("keys", "values"):
            memory[name] = moved_up(memory[name], went)
        there = torch.arange(memory["saliency"].shape[2], device=rows.device) < (rows - went)[:, None]
        left = moved_up(memory["saliency"], went)
        memory["saliency"] = torch.where(there[:, None, :, None], left, torch.zeros_like(left))
        memory["asked"] = torch.minimum(memory["asked"], rows - went)

    def flushed(self, lengths: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Fewer rows, more of both kinds."""
        went, ordinary = self._goes(lengths)
        return {
            ROWS: lengths[ROWS] - went,
            SALIENT: lengths[SALIENT] + went - ordinary,
            ORDINARY: lengths[ORDINARY] + ordinary,
        }

    def _goes(self, lengths: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Rows of each sequence that are packed, and how many of them as ordinary ones, [B]."""
        went = lengths[ROWS].clamp(max=self.at_once)
        return went, _looked_up(self.fewer, went)

    def _scores(self, lengths: Mapping[str, Tensor], memory: Mapping[str, Tensor]) -> Tensor:
        """How salient each row in full precision is, [B, G, L]."""
        rows, asked, window = lengths[ROWS][:, None], memory["asked"][:, None], memory["window"]
        number = torch.arange(window.shape[2], device=window.device)
        slot = torch.arange(memory["saliency"].shape[2], device=window.device)
        is_prompt = asked > 0
        last = torch.where(is_prompt, _looked_up(self.recent, asked), 1)
        place = rows - window.shape[2] + number
        place = torch.where((number >= window.shape[2] - last) & (place >= 0), place, -1)
        query = cast(window, torch.float32)
        _, packed = self._attend_packed(query, lengths, memory)
        fresh = attention_beside(
            query, memory["keys"], place, packed, scale=self.layer.scale, softcap=self.layer.softcap
        )
        heard = torch.where((is_prompt & (slot < rows))[:, None], memory["saliency"][..., 0], 0.0)
        saw = torch.where(is_prompt, torch.minimum(rows - slot, asked), 1).clamp(min=1)
        return (heard + fresh) / saw.float()[:, None]

    def _order(self, score: Tensor, went: Tensor, ordinary: Tensor) -> Tensor:
        """The oldest rows [B, G, at_once] in the order in which they are packed: those of the smallest scores, then the
        others, and then what is none."""
        batch, groups, _ = score.shape
        place = torch.arange(self.at_once, device=score.device)
        there = (place < went[:, None])[:, None]
        flat = torch.where(there, -score[:, :, : self.at_once], -_LAST).reshape(batch * groups, self.at_once)
        index = _sorted(flat).reshape(batch, groups, self.at_once)
        first = (place < ordinary[:, None])[:, None]
        wanted = place.expand_as(index) if self.config.order == "score" else index
        key = torch.where(first, wanted - self.at_once, torch.where(there, index, index + self.at_once))
        again = _sorted(-key.reshape(batch * groups, self.at_once).float()).reshape(index.shape)
        return index.gather(2, again)

    def unpacked(self, which: str, kind: str, memory: Mapping[str, Tensor]) -> Tensor:
        """The rows of a kind, keys ("k") or values ("v"), as numbers [B, G, L, D] in float32."""
        axis = "channel" if which == "k" else "token"
        rows = kv_dequantize(*self._parts(which, kind, memory), bits=self.bits[kind], axis=axis, to=torch.float32)
        return rows if which == "k" else rows * cast(memory["v_channel"], torch.float32)

    def pack_keys(self, joined: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        """Keys of both kinds [B, G, L, D], and where they are rows [B, L], by a scale for each channel of a kind."""
        made: dict[str, Tensor] = {}
        for kind, (rows, there) in joined.items():
            first = torch.where(there[:, None, :, None], rows, rows[:, :, :1])  # widens no channel's range
            scales = getattr(torch, self.config.scales)
            parts = kv_quantize(first, bits=self.bits[kind], axis="channel", scale_type=scales)
            made |= {f"k_{kind}_{what}": part for what, part in zip(_PARTS, parts, strict=True)}
        return made

    def pack_values(self, joined: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        """Values of both kinds, divided by a scale for each channel, by a scale for each row of all heads."""
        kept = getattr(torch, self.config.scales)
        largest = [rows.abs().amax(dim=2, keepdim=True) for rows, _ in joined.values()]
        channel = cast(torch.maximum(*largest).sqrt(), kept)
        channel = torch.where(channel > 0, channel, torch.ones_like(channel))
        made = {"v_channel": channel}
        for kind, (rows, _) in joined.items():
            parts = quantize_tokens(rows / cast(channel, torch.float32), bits=self.bits[kind], scale_type=kept)
            made |= {f"v_{kind}_{what}": part for what, part in zip(_PARTS, parts, strict=True)}
        return made


def probing_rows(context: int, share: float, seed: int) -> list[int]:
    """Positions that probe: one at random of as many rows as make up the share, from the front."""
    if not share:
        return []
    width = round(1 / share)
    drawn = np.random.default_rng(seed).integers(width, size=-(-context // width))
    found = (np.arange(len(drawn)) * width + drawn).tolist()
    return [int(row) for row in found if row < context]


def _looked_up(table: Tensor, number: Tensor) -> Tensor:
    """Whole numbers of a table [N] in floating point, int64 in the shape of `number`.

    They are kept in floating point as shapes are inferred from tables of whole numbers, for which these have to lie in
    the graph itself.
    """
    return cast(table.index_select(0, number.flatten()).reshape(number.shape), torch.int64)


def _sorted(score: Tensor) -> Tensor:
    """Numbers of scores [N, L] from the largest to the smallest, of equal ones the first first."""
    _, index, _ = token_select(score[..., None], score, num_kept=score.shape[1], order="score")
    return index


def _joined(
    kept: Tensor, used: Tensor, new: Tensor, order: Tensor, first: Tensor, count: Tensor
) -> tuple[Tensor, Tensor]:
    """Rows of a kind with new ones behind them.

    Args:
        kept: [B, G, L, D], of which the first `used` [B] count.
        used: How many.
        new: [B, G, N, D].
        order: Numbers of new rows, [B, G, N].
        first, count: Those that come: so many from this place of the order on, [B] each.

    Returns:
        [B, G, L, D], zeros behind the rows; and where rows are, [B, L].
    """
    slot = torch.arange(kept.shape[2], device=kept.device)
    place = (slot - used[:, None] + first[:, None]).clamp(min=0, max=order.shape[2] - 1)
    number = order.gather(2, place[:, None].expand(-1, order.shape[1], -1))
    moved = new.gather(2, number[..., None].expand(-1, -1, -1, new.shape[3]))
    is_old, there = slot < used[:, None], slot < (used + count)[:, None]
    rows = torch.where(is_old[:, None, :, None], kept, moved)
    return torch.where(there[:, None, :, None], rows, torch.zeros_like(rows)), there
