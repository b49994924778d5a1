"""KVCompact: keep the chosen rows of a cache at its front, in place."""

import torch
from torch import Tensor

from trt_compress.errors import ShapeError
from trt_compress.plugins.kv_append.spec import ROWS
from trt_compress.plugins.kv_compact.spec import SPEC
from trt_compress.plugins.operator import Operator, check_tensor, register_fake, run_operator
from trt_compress.plugins.spec import Sample

BODY = """
  minus_one = Constant <value_int = -1> ()
  v0 = Constant <value_ints = [0]> ()
  v1 = Constant <value_ints = [1]> ()
  v2 = Constant <value_ints = [2]> ()
  v3 = Constant <value_ints = [3]> ()
  v_last = Constant <value_ints = [-1]> ()
  v_end = Constant <value_ints = [9223372036854775807]> ()
  v_l = Shape <start = 2, end = 3> (cache)
  v_k = Shape <start = 2, end = 3> (index)

  # a slot that is not above the one before it is replaced by one that does not exist
  head = Slice (index, v0, v1, v2)
  no_head = Sub (head, head)
  below_all = Add (no_head, minus_one)
  but_last = Slice (index, v0, v_last, v2)
  previous = Concat <axis = 2> (below_all, but_last)
  is_good = Greater (index, previous)
  checked = Where (is_good, index, v_l)
  index_nd = Unsqueeze (checked, v3)
  # float32 holds every value of every type a cache may have
  cache32 = Cast <to = 1> (cache)
  kept = GatherND <batch_dims = 2> (cache32, index_nd)
  rest = Slice (cache32, v_k, v_end, v2)
  moved = Concat <axis = 2> (kept, rest)
  cache_out = CastLike (moved, cache)
"""


@torch.library.custom_op("trt_compress::kv_compact", mutates_args=())
def _kv_compact(cache: Tensor, index: Tensor) -> Tensor:
    length, kept = cache.shape[2], index.shape[2]
    if index.numel():
        lowest, highest = int(index.amin()), int(index.amax())
        if lowest < 0 or highest >= length:
            raise ShapeError(f"kv_compact: index holds {lowest if lowest < 0 else highest}; slots are 0..{length - 1}.")
        if bool((index.diff(dim=2) <= 0).any()):
            raise ShapeError("kv_compact: index is not strictly ascending; sort the slots of each KV head, each once.")
    rows = cache.gather(2, index[..., None].expand(-1, -1, -1, cache.shape[3]))
    return torch.cat([rows, cache[:, :, kept:]], dim=2)


register_fake(SPEC, _kv_compact)


def kv_compact(cache: Tensor, index: Tensor) -> Tensor:
    """Move the chosen rows of a cache to its front.

    Args:
        cache: One row for each slot, [B, G, L, W], fp32 | fp16 | bf16 | uint8 (packed codes).
        index: Slots to keep, [B, G, K] int64, strictly ascending.

    Returns:
        The cache after it, [B, G, L, W]: slots 0..K-1 hold the chosen rows, the others are as they were. In torch a new
        tensor; a plugin or native operator works in place.

    Raises:
        ShapeError: a tensor has the wrong shape or dtype, or index is out of range or not strictly ascending.

    Source: SnapKV, arXiv:2404.14469; code FasterDecoding/SnapKV, snapkv_utils.py.
    Differs: see SPEC.differs.
    """
    check_tensor("kv_compact", "cache", cache, (None, None, None, None), "BGLW", ROWS)
    b, g, length, _ = cache.shape
    check_tensor("kv_compact", "index", index, (b, g, None), "BGK", ["int64"])
    if index.shape[2] > length:
        raise ShapeError(f"kv_compact: index names K={index.shape[2]} slots of a cache that has L={length}.")
    return run_operator(SPEC, [cache, index], {})[0]


def _make_inputs(sample: Sample, generator: torch.Generator) -> tuple[Tensor, ...]:
    b, g, length, kept, width = (sample.axes[a] for a in "BGLKW")
    cache = torch.randn(b, g, length, width, generator=generator)
    if sample.values == "codes":
        cache = torch.randint(0, 256, cache.shape, generator=generator, dtype=torch.uint8)
    choices = [torch.randperm(length, generator=generator)[:kept].sort().values for _ in range(b * g)]
    if sample.values == "last":
        choices = [torch.arange(length - kept, length)] * (b * g)
    return cache, torch.stack(choices).reshape(b, g, kept)


def _sample(b: int, g: int, length: int, kept: int, width: int, reason: str, *, values: str = "normal") -> Sample:
    return Sample(axes={"B": b, "G": g, "L": length, "K": kept, "W": width}, reason=reason, values=values)


OPERATOR = Operator(
    spec=SPEC,
    function=kv_compact,
    body=BODY,
    make_inputs=_make_inputs,
    samples=(
        _sample(1, 1, 1, 1, 1, "one slot"),
        _sample(2, 2, 5, 0, 3, "nothing kept"),
        _sample(2, 2, 5, 5, 3, "everything kept"),
        _sample(2, 3, 13, 7, 5, "primes"),
        _sample(2, 3, 13, 1, 5, "one slot of many"),
        _sample(2, 2, 40, 20, 6, "the later half: every row moves far", values="last"),
        _sample(2, 2, 12, 11, 16, "codes", values="codes"),
        _sample(1, 4, 257, 128, 32, "2-bit codes, one above a block", values="codes"),
        _sample(1, 2, 1025, 512, 64, "SnapKV: a prompt to 512 entries"),
    ),
)
