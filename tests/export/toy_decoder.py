"""A small decoder with a quantized cache: a step graph with the weights, and a flush that packs its tail.

The cache of one layer is kept in two parts: the newest rows in float16 in a tail, and older ones as codes of 4 bits,
two to a byte, with one scale for each row. Attention reads both. It may have a graph that drops every other packed row
behind the prompt, too.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from tests.export.toy_hosts import host_of
from trt_compress.format.graphs import Capacity, StateSpec
from trt_compress.format.procedure import Pass, Procedure, Upkeep
from trt_compress.models.hosts.base import CompressedModule, GraphSpec, LoadedHost, Scenario, TensorSpec

VOCABULARY, WIDTH, CHUNK, PERIOD = 50, 32, 4, 8


def packed(codes: Tensor) -> Tensor:
    """Codes from 0 to 15, the second half of the row in the upper bits."""
    low, high = codes.chunk(2, dim=-1)
    return (low + 16 * high).to(torch.uint8)


def unpacked(packed: Tensor, dtype: torch.dtype) -> Tensor:
    whole = packed.to(torch.int64)
    return torch.cat([whole % 16, whole // 16], dim=-1).to(dtype)


class Step(CompressedModule):
    """Reads T tokens: their keys go to the tail, each token attends to all rows up to itself."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.query, self.key, self.head = (nn.Linear(WIDTH, n, bias=False) for n in (WIDTH, WIDTH, VOCABULARY))

    def forward(
        self, ids: Tensor, count: Tensor, codes: Tensor, scale: Tensor, packed_rows: Tensor, tail: Tensor, held: Tensor
    ) -> tuple[Tensor, ...]:
        x = self.embed(ids)
        place = torch.arange(ids.shape[1])
        row = held[:, None] + place  # [B, T], where each token's key goes
        goes = (row[:, :, None] == torch.arange(tail.shape[1])) & (place < count[:, None])[:, :, None]
        new = goes.to(x.dtype).transpose(1, 2) @ self.key(x)
        stays = torch.arange(tail.shape[1]) < held[:, None]
        tail = torch.where(stays[:, :, None], tail, new.to(tail.dtype))
        old = (unpacked(codes, x.dtype) - 7) * scale.to(x.dtype)
        keys = torch.cat([old, tail.to(x.dtype)], dim=1)
        in_old = (torch.arange(codes.shape[1]) < packed_rows[:, None])[:, None].expand(-1, ids.shape[1], -1)
        in_tail = torch.arange(tail.shape[1]) <= row[:, :, None]
        weight = self.query(x) @ keys.transpose(1, 2) / WIDTH**0.5
        weight = weight.masked_fill(~torch.cat([in_old, in_tail], dim=2), -1e4).softmax(dim=2)
        y = self.head(x + weight @ keys)
        last = (count - 1).clamp(min=0)[:, None, None].expand(-1, 1, VOCABULARY)
        return y.gather(1, last)[:, 0], tail, held + count


class Flush(CompressedModule):
    """Packs the first PERIOD rows of the tail behind the codes, and moves the rest to its front."""

    def forward(
        self, codes: Tensor, scale: Tensor, packed_rows: Tensor, tail: Tensor, held: Tensor
    ) -> tuple[Tensor, ...]:
        full = (held >= PERIOD)[:, None, None]
        rows = tail[:, :PERIOD].float()
        step = (rows.abs().amax(dim=2, keepdim=True) / 7).clamp_min(1e-4).to(scale.dtype)
        new = packed((rows / step.float()).round().clamp(-7, 7) + 7)
        where = torch.arange(codes.shape[1]) - packed_rows[:, None]
        inside = ((where >= 0) & (where < PERIOD))[:, :, None] & full
        index = where.clamp(0, PERIOD - 1)[:, :, None]
        codes = torch.where(inside, new.int().gather(1, index.expand(-1, -1, codes.shape[2])).to(torch.uint8), codes)
        scale = torch.where(inside, step.gather(1, index), scale)
        moved = torch.cat([tail[:, PERIOD:], torch.zeros_like(tail[:, :PERIOD])], dim=1)
        took = PERIOD * (held >= PERIOD).to(held.dtype)
        return codes, scale, packed_rows + took, torch.where(full, moved, tail), held - took


class Compact(CompressedModule):
    """Keeps the packed rows of even number, and moves them to the front."""

    def forward(self, codes: Tensor, scale: Tensor, packed_rows: Tensor) -> tuple[Tensor, ...]:
        slot = torch.arange(codes.shape[1])
        kept = (packed_rows + 1) // 2
        index = torch.where(slot < kept[:, None], slot * 2, slot)[:, :, None]
        codes = codes.gather(1, index.expand(-1, -1, codes.shape[2]))
        return codes, scale.gather(1, index), kept


def states(writes: Sequence[str], reads: Sequence[str] | None = None) -> tuple[StateSpec, ...]:
    """The states, all or some of them, as a graph that writes these takes them."""
    known = {
        "codes": StateSpec(shape=("batch", "slots", WIDTH // 2), dtype="uint8", kind="cache", compare="codes", bits=4),
        "scale": StateSpec(shape=("batch", "slots", 1), dtype="float16", kind="scale"),
        "packed": StateSpec(shape=("batch",), dtype="int64", kind="length"),
        "tail": StateSpec(shape=("batch", "fill", WIDTH), dtype="float16", kind="tail"),
        "held": StateSpec(shape=("batch",), dtype="int64", kind="length"),
    }
    return tuple(
        StateSpec(
            input=f"{name}_in",
            output=f"{name}_out" if name in writes else None,
            shape=state.shape,
            dtype=state.dtype,
            kind=state.kind,
            compare=state.compare,
            bits=state.bits,
            name=name,
        )
        for name, state in known.items()
        if reads is None or name in reads
    )


def decoder(
    *,
    period: int = PERIOD,
    values: tuple[int, int] | None = (0, VOCABULARY - 1),
    real: bool = False,
    compact: bool = False,
) -> LoadedHost:
    """The decoder; a flush is due when the tail holds `period` rows. With `compact` half of a prompt's rows go."""
    slots = Capacity(symbol="slots", used="packed", adds={"flush": PERIOD}, multiple=8)
    fill = Capacity(symbol="fill", used="held", adds={"step": "tokens"})
    step = GraphSpec(
        name="step",
        role="step",
        module=Step().eval(),
        inputs=(
            TensorSpec(name="ids", shape=("batch", "time"), dtype="int64", values=values),
            TensorSpec(name="count", shape=("batch",), dtype="int64", values=(1, CHUNK)),
        ),
        outputs=(TensorSpec(name="logits", shape=("batch", VOCABULARY)),),
        states=states(("tail", "held")),
        lengths={"time": (1, CHUNK, CHUNK), "slots": (8, 16, 64), "fill": (16, 20, 32)},
        capacities=(slots, fill),
    )
    packing = GraphSpec(
        name="flush",
        role="flush",
        module=Flush().eval(),
        inputs=(),
        outputs=(),
        states=states(("codes", "scale", "packed", "tail", "held")),
        lengths={"slots": (8, 16, 64), "fill": (16, 20, 32)},
        capacities=(slots, fill),
    )
    dropping = GraphSpec(
        name="compact",
        role="compact",
        module=Compact().eval(),
        inputs=(),
        outputs=(),
        states=states(("codes", "scale", "packed"), ("codes", "scale", "packed")),
        lengths={"slots": (8, 16, 64)},
        capacities=(slots,),
    )
    host = host_of(step, packing, *([dropping] if compact else []))

    def procedure(graphs: Sequence[GraphSpec]) -> Procedure:
        read = Pass(graphs=("step",), tokens="time", logits="step.logits")
        return Procedure(
            prompt=read,
            step=read,
            feeds={"step.ids": "tokens", "step.count": "count"},
            upkeep=(
                Upkeep(graph="flush", after="run", capacity="fill", at_least=period),
                *([Upkeep(graph="compact", after="prompt")] if compact else []),
            ),
        )

    def given(batch: int) -> Sequence[Scenario]:
        text = np.arange(batch * 20).reshape(batch, 20) % VOCABULARY
        return [Scenario(prompt=list(text[:, :6]), steps=list(text[:, 6:]))]

    return replace(host, procedure=procedure, scenarios=given if real else None)
