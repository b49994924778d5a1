"""What is timed on a GPU: operators at large and at small sizes, what is wanted, and what is expected of the kernels.

The expectations were written down before any of these kernels had run on a GPU. A floor is the larger of two times: the
bytes of the contract at the rate of a copy, and the operations of the contract at the rate of fp32 multiply-adds.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from trt_compress.plugins.kv_attention.op import OPERATOR as KV_ATTENTION
from trt_compress.plugins.operator import Operator
from trt_compress.plugins.registry import operators
from trt_compress.plugins.spec import Sample

Axes = Mapping[str, int]
Attributes = Callable[[Axes], Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelCase:
    """One operator at one size.

    Attributes:
        name: Of the record.
        op_type: The operator.
        axes: Sizes.
        tiny: Sizes for a rehearsal.
        attributes: Made from the sizes.
        values: How inputs are made; see `Sample`.
        wanted: Least share of the floor; None: it is reported only.
        expected: The share that is expected.
        why: How the expectation was come by.
    """

    name: str
    op_type: str
    axes: Axes
    tiny: Axes
    attributes: Attributes
    values: str = "normal"
    wanted: float | None = None
    expected: float
    why: str

    @property
    def operator(self) -> Operator:
        """The operator."""
        return operators()[self.op_type]

    def sample(self, dry_run: bool) -> Sample:
        """Sizes and attributes."""
        axes = self.tiny if dry_run else self.axes
        return Sample(axes=axes, attributes=dict(self.attributes(axes)), reason=self.name, values=self.values)


def _select(fuse: int, divisor: int = 2) -> Attributes:
    return lambda axes: {"num_kept": axes["N"] // divisor, "forced": [0], "order": 0, "remainder": fuse}


def _packed(bits: int, axis: int, group: int, **more: int) -> Attributes:
    return lambda axes: {"bits": bits, "axis": axis, "group": group if axes["L"] % group == 0 else 0, **more}


LARGE: tuple[KernelCase, ...] = (
    KernelCase(
        name="TokenSelect, dropping",
        op_type="TrtcTokenSelect",
        axes={"B": 64, "N": 4096, "C": 1024},
        tiny={"B": 2, "N": 16, "C": 8},
        attributes=_select(0),
        wanted=0.8,
        expected=0.75,
        why="rows of 2 KiB are copied at full width, but every block of an item selects by itself first",
    ),
    KernelCase(
        name="TokenSelect, fusing",
        op_type="TrtcTokenSelect",
        axes={"B": 64, "N": 4096, "C": 1024},
        tiny={"B": 2, "N": 16, "C": 8},
        attributes=_select(1),
        expected=0.55,
        why="sums over the rest run along N, with few blocks for each item",
    ),
    KernelCase(
        name="TokenRestore, unmerge",
        op_type="TrtcTokenRestore",
        axes={"B": 32, "N": 4096, "M": 2048, "C": 1024},
        tiny={"B": 2, "N": 16, "M": 8, "C": 8},
        attributes=lambda axes: {"mode": 0},
        wanted=0.8,
        expected=0.85,
        why="one warp copies one row; an item's rows stay in the level 2 cache",
    ),
    KernelCase(
        name="TokenRestore, unpermute",
        op_type="TrtcTokenRestore",
        axes={"B": 32, "N": 4096, "M": 4096, "C": 1024},
        tiny={"B": 2, "N": 16, "M": 16, "C": 8},
        attributes=lambda axes: {"mode": 1},
        wanted=0.8,
        expected=0.8,
        why="rows are read in order and written anywhere, 2 KiB at a time; the check of the index runs beside it",
    ),
    KernelCase(
        name="KVQuantize, 4 bits, groups of tokens",
        op_type="TrtcKVQuantize",
        axes={"B": 4, "G": 8, "L": 32768, "D": 128},
        tiny={"B": 1, "G": 2, "L": 64, "D": 16},
        attributes=_packed(4, 0, 64, scale_type=10),
        wanted=0.8,
        expected=0.6,
        why="values are read twice, the second time from the caches, and IEEE divisions take 8 instructions a value",
    ),
    KernelCase(
        name="KVQuantize, 4 bits, groups of channels",
        op_type="TrtcKVQuantize",
        axes={"B": 4, "G": 8, "L": 32768, "D": 128},
        tiny={"B": 1, "G": 2, "L": 64, "D": 16},
        attributes=lambda axes: {"bits": 4, "axis": 1, "group": axes["D"] // 2, "scale_type": 10},
        wanted=0.8,
        expected=0.7,
        why="values stay in registers; the same divisions",
    ),
    KernelCase(
        name="KVDequantize, 4 bits, groups of tokens",
        op_type="TrtcKVDequantize",
        axes={"B": 4, "G": 8, "L": 32768, "D": 128},
        tiny={"B": 1, "G": 2, "L": 64, "D": 16},
        attributes=_packed(4, 0, 64, to=10),
        expected=0.75,
        why="codes in, four times as many bytes out: nearly all of it is writing",
    ),
    KernelCase(
        name="KVAppend, a prefill of 2048 tokens, in place",
        op_type="TrtcKVAppend",
        axes={"B": 32, "G": 8, "L": 4096, "T": 2048, "W": 128},
        tiny={"B": 2, "G": 2, "L": 8, "T": 4, "W": 8},
        attributes=lambda axes: {"layout": 0, "sinks": 0},
        wanted=0.8,
        expected=0.85,
        why="a copy of whole runs, 16 bytes at an access",
    ),
    KernelCase(
        name="KVCompact, half of 32768 slots, in place",
        op_type="TrtcKVCompact",
        axes={"B": 8, "G": 8, "L": 32768, "K": 16384, "W": 128},
        tiny={"B": 1, "G": 2, "L": 16, "K": 8, "W": 8},
        attributes=lambda axes: {},
        wanted=0.8,
        expected=0.6,
        why="a block goes through its columns tile by tile with a barrier between loads and stores; few are in flight",
    ),
    KernelCase(
        name="CodebookDecode, vectors",
        op_type="TrtcCodebookDecode",
        axes={"B": 64, "N": 4096, "D": 512, "S": 1, "K": 8192},
        tiny={"B": 1, "N": 16, "D": 8, "S": 1, "K": 16},
        attributes=lambda axes: {"kind": 0, "group": 1},
        wanted=0.8,
        expected=0.8,
        why="the codebook of 8 MiB stays in the level 2 cache; the rest is writing",
    ),
    KernelCase(
        name="CodebookDecode, table",
        op_type="TrtcCodebookDecode",
        axes={"B": 16, "N": 4096, "D": 512, "S": 1, "K": 16},
        tiny={"B": 1, "N": 16, "D": 8, "S": 1, "K": 4},
        attributes=lambda axes: {"kind": 1, "group": 1},
        wanted=0.8,
        expected=0.75,
        why="8 bytes of number for 2 bytes of value: nearly all of it is reading, in order",
    ),
    KernelCase(
        name="TokenMix, one matrix for all",
        op_type="TrtcTokenMix",
        axes={"B": 64, "N": 576, "M": 144, "C": 4096},
        tiny={"B": 2, "N": 16, "M": 4, "C": 16},
        attributes=lambda axes: {"normalize": 0},
        values="shared",
        wanted=0.8,
        expected=0.45,
        why="fp32 products on CUDA cores from shared memory: its floor is arithmetic; such a tile reaches about half",
    ),
    KernelCase(
        name="TokenSelectDynamic, by mass",
        op_type="TrtcTokenSelectDynamic",
        axes={"B": 64, "N": 4096, "C": 1024},
        tiny={"B": 2, "N": 16, "C": 8},
        attributes=lambda axes: {
            **{"mode": 1, "threshold": 0.75, "min_kept": 1, "max_kept": axes["N"] // 2, "forced": [0], "trim": 0}
        },
        expected=0.6,
        why="as TokenSelect, with sums in order of the score before",
    ),
)

SMALL: tuple[KernelCase, ...] = (
    KernelCase(
        name="TokenMerge, one image",
        op_type="TrtcTokenMerge",
        axes={"B": 1, "N": 197, "C": 768, "D": 64},
        tiny={"B": 1, "N": 17, "C": 8, "D": 8},
        attributes=lambda axes: {"num_merged": min(13, axes["N"] // 3), "num_protected": 1, "order": 0},
        wanted=2.0,
        expected=4.0,
        why="one launch, in which each block finds all 98 x 98 similarities of 64 features by itself: about 10 us",
    ),
    KernelCase(
        name="TokenSelect, one image",
        op_type="TrtcTokenSelect",
        axes={"B": 1, "N": 197, "C": 768},
        tiny={"B": 1, "N": 17, "C": 8},
        attributes=_select(1, 2),
        wanted=2.0,
        expected=2.5,
        why="one launch with a radix selection of four passes",
    ),
    KernelCase(
        name="TokenRestore, one image",
        op_type="TrtcTokenRestore",
        axes={"B": 1, "N": 197, "M": 138, "C": 768},
        tiny={"B": 1, "N": 17, "M": 9, "C": 8},
        attributes=lambda axes: {"mode": 0},
        wanted=2.0,
        expected=1.3,
        why="one short launch",
    ),
    KernelCase(
        name="KVAppend, one decoded token",
        op_type="TrtcKVAppend",
        axes={"B": 1, "G": 8, "L": 32768, "T": 1, "W": 128},
        tiny={"B": 1, "G": 2, "L": 8, "T": 1, "W": 8},
        attributes=lambda axes: {"layout": 0, "sinks": 0},
        wanted=2.0,
        expected=1.2,
        why="one short launch",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheCase:
    """KVAttention against attention over a cache of fp16: the speed-up that is wanted and expected."""

    bits: int
    batch: int
    wanted: float | None
    expected: float
    why: str


_SPEED = "instructions bound it, about 10 for each code and its 4 query heads"
CACHES: tuple[CacheCase, ...] = (
    CacheCase(bits=4, batch=1, wanted=2.8, expected=1.8, why=f"3.2 times fewer bytes; {_SPEED}"),
    CacheCase(bits=8, batch=1, wanted=1.7, expected=1.4, why=f"1.8 times fewer bytes; {_SPEED}"),
    CacheCase(bits=2, batch=1, wanted=None, expected=1.9, why=f"5.3 times fewer bytes; {_SPEED}"),
    CacheCase(bits=4, batch=8, wanted=None, expected=2.0, why=f"as with one item, with fuller waves; {_SPEED}"),
)


def cache_axes(case: CacheCase, dry_run: bool) -> dict[str, int]:
    """Llama-3-8B's heads, 32k tokens of context."""
    if dry_run:
        return {"B": 1, "H": 4, "G": 2, "T": 1, "D": 32, "L": 64}
    return {"B": case.batch, "H": 32, "G": 8, "T": 1, "D": 128, "L": 32768}


def cache_attributes(case: CacheCase) -> dict[str, Any]:
    """As KIVI packs: keys by channel in groups of 32 tokens, values by token in groups of 32 channels."""
    own = {"scale": 0.0, "causal": 0, "window": 0, "softcap": 0.0, "layout": 0, "sinks": 0, "indexed": 0}
    own |= {"k_rank": 0, "v_rank": 0, "block": 0, "turned": 0}
    for which, axis in (("k", 0), ("v", 1)):
        own |= {f"{which}_bits": case.bits, f"{which}_axis": axis, f"{which}_group": 32}
    return {attribute.name: own[attribute.name] for attribute in KV_ATTENTION.spec.attributes}


MERGE = {"batch": 64, "tokens": 197, "channels": 768, "features": 64, "num_merged": 13}
MERGE_WANTED = {"over_textbook": 8.0, "share_of_block": 0.12}
MERGE_EXPECTED = {
    "over_textbook": 3.5,
    "share_of_block": 0.13,
    "why": "floor 13 us at 3 TB/s; about 45 us, as matching is repeated by the blocks of an item; the textbook "
    "captured about 160 us, a block about 350 us",
}
SCORE = {"tokens": 640, "start": 32, "stop": 608, "heads": 32, "width": 4096}
SCORE_WANTED = 0.10
SCORE_EXPECTED = {
    "last row": (0.05, "two or three short launches, about 12 us, against 230 us"),
    "64 text rows": (0.15, "logits twice on CUDA cores, 0.7 GFLOP, about 35 us, against 230 us"),
}
