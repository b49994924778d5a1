"""KVAppend: write new tokens into a cache, in place."""

import torch
from torch import Tensor

from trt_compress.errors import ConfigError, ShapeError
from trt_compress.plugins.kv_append.spec import ROWS, SPEC
from trt_compress.plugins.kv_format import check_choice
from trt_compress.plugins.operator import Operator, check_count, check_tensor, register_fake, run_operator
from trt_compress.plugins.spec import Sample

LAYOUTS = ("linear", "ring")

BODY = """
  layout_ = Constant <value_int: int = @layout> ()
  sinks_ = Constant <value_int: int = @sinks> ()
  i0 = Constant <value_int = 0> ()
  i1 = Constant <value_int = 1> ()
  v0 = Constant <value_ints = [0]> ()
  v2 = Constant <value_ints = [2]> ()
  v3 = Constant <value_ints = [3]> ()
  one = Constant <value_ints = [1]> ()
  v_l = Shape <start = 2, end = 3> (cache)
  v_t = Shape <start = 2, end = 3> (rows)
  length = Squeeze (v_l, v0)
  new = Squeeze (v_t, v0)
  steps = Range (i0, new, i1)
  # [B, 1 | G, 1]: a position for each item may come without the axis of KV heads
  position_sizes = Shape (position)
  position_and_one = Concat <axis = 0> (position_sizes, one)
  head_sizes = Slice (position_and_one, v0, v2, v0)
  first_shape = Concat <axis = 0> (head_sizes, one)
  first = Reshape (position, first_shape)
  number = Add (first, steps)

  # length behind the sinks is 1 at least, so that a linear cache, too, can be divided by it
  behind = Sub (length, sinks_)
  period = Max (behind, i1)
  after_sinks = Sub (number, sinks_)
  turned = Mod (after_sinks, period)
  turned_slot = Add (turned, sinks_)
  is_sink = Less (number, sinks_)
  ring_slot = Where (is_sink, number, turned_slot)
  is_ring = Equal (layout_, i1)
  slot = Where (is_ring, ring_slot, number)

  # what must not be written gets a slot that does not exist: a negative one would count from the end
  is_negative = Less (number, i0)
  too_many = Greater (new, behind)
  ring_too_many = And (is_ring, too_many)
  is_bad = Or (is_negative, ring_too_many)
  checked = Where (is_bad, length, slot)
  column = Unsqueeze (checked, v3)
  rows_shape = Shape (rows)
  index = Expand (column, rows_shape)
  # float32 holds every value of every type a cache may have
  cache32 = Cast <to = 1> (cache)
  rows32 = Cast <to = 1> (rows)
  written = ScatterElements <axis = 2> (cache32, index, rows32)
  cache_out = CastLike (written, cache)
"""


def _check_fits(layout: int, length: int, new: int, sinks: int) -> None:
    if layout == 1 and new > length - sinks:
        raise ConfigError(
            f"kv_append: T={new} tokens at once do not fit into a ring of L={length} slots with sinks={sinks}; "
            f"append at most {length - sinks} at a time."
        )


@torch.library.custom_op("trt_compress::kv_append", mutates_args=())
def _kv_append(cache: Tensor, rows: Tensor, position: Tensor, layout: int, sinks: int) -> Tensor:
    length, new = cache.shape[2], rows.shape[2]
    _check_fits(layout, length, new, sinks)
    first, last = (int(value) for value in (position.amin(), position.amax())) if position.numel() else (0, 0)
    if first < 0:
        raise ShapeError(f"kv_append: position holds {first}; it counts the tokens written before and is 0 or more.")
    if layout == 0 and last + new > length:
        raise ShapeError(
            f"kv_append: position holds {last}, and T={new} more tokens exceed the cache of L={length} slots; "
            f"give a longer cache or use layout='ring'."
        )
    of_heads = position if position.ndim == 2 else position[:, None]
    number = of_heads[..., None] + torch.arange(new, device=position.device)
    slot = number
    if layout == 1:
        slot = torch.where(number < sinks, number, sinks + (number - sinks).remainder(length - sinks))
    index = slot[..., None].expand(rows.shape)
    return cache.contiguous().scatter(2, index, rows)


register_fake(SPEC, _kv_append)


def kv_append(
    cache: Tensor, rows: Tensor, position: Tensor, *, layout: str = "linear", sinks: int = 0
) -> Tensor:  # fmt: skip
    """Write the rows of new tokens into a cache.

    Args:
        cache: One row for each slot, [B, G, L, W], fp32 | fp16 | bf16 | uint8 (packed codes).
        rows: Rows of the new tokens, [B, G, T, W], of cache's dtype.
        position: Tokens written before, [B] int64, 0 or more; or [B, G], those of each KV head.
        layout: "linear": token p goes to slot p < L. "ring": from token L on the oldest is overwritten.
        sinks: First slots that the ring never overwrites; less than L, and at most L - T.

    Returns:
        The cache after it, [B, G, L, W]. In torch a new tensor; a plugin or native operator writes in place.

    Raises:
        ConfigError: an attribute is not allowed, or T tokens are too many for the ring.
        ShapeError: a tensor has the wrong shape or dtype, or a position is out of range.

    Source: StreamingLLM, arXiv:2309.17453; TensorScatter of ONNX opset 24.
    Differs: see SPEC.differs.
    """
    check_tensor("kv_append", "cache", cache, (None, None, None, None), "BGLW", ROWS)
    b, g, length, width = cache.shape
    check_tensor("kv_append", "rows", rows, (b, g, None, width), "BGTW", [str(cache.dtype).removeprefix("torch.")])
    is_of_heads = position.ndim == 2 and position.shape[1] in (1, g)
    wanted, letters = ((b, None), "BG") if is_of_heads else ((b,), "B")
    check_tensor("kv_append", "position", position, wanted, letters, ["int64"])
    check_choice("kv_append", "layout", layout, LAYOUTS)
    if layout == "linear" and sinks:
        raise ConfigError(f"kv_append: sinks={sinks!r} needs layout='ring'; a linear cache keeps all slots: give 0.")
    check_count("kv_append", "sinks", sinks, length - 1, f"a ring of L={length} slots allows")
    _check_fits(LAYOUTS.index(layout), length, rows.shape[2], sinks)
    attributes = {"layout": LAYOUTS.index(layout), "sinks": sinks}
    return run_operator(SPEC, [cache, rows, position], attributes)[0]


def _make_inputs(sample: Sample, generator: torch.Generator) -> tuple[Tensor, ...]:
    b, g, length, new, width = (sample.axes[a] for a in "BGLTW")
    shapes = (b, g, length, width), (b, g, new, width)
    cache, rows = (torch.randn(shape, generator=generator) for shape in shapes)
    if sample.values == "codes":
        cache, rows = (torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8) for shape in shapes)
    if sample.values == "fp16_range":
        cache, rows = cache.clamp(-2, 2) * 3e4, torch.full(shapes[1], -torch.inf)
    # each item of the batch elsewhere, the first at the last place that is allowed
    last = length - new if sample.attributes["layout"] == 0 else 5 * length
    position = (last - 3 * torch.arange(b)).clamp_min(0)
    if sample.values == "of_heads":
        position = (position[:, None] - 2 * torch.arange(g)).clamp_min(0)
    return cache, rows, position


def _sample(
    b: int, g: int, length: int, new: int, width: int, reason: str, *, layout: int = 0, sinks: int = 0,
    values: str = "normal",
) -> Sample:  # fmt: skip
    axes = {"B": b, "G": g, "L": length, "T": new, "W": width}
    return Sample(axes=axes, attributes={"layout": layout, "sinks": sinks}, reason=reason, values=values)


OPERATOR = Operator(
    spec=SPEC,
    function=kv_append,
    body=BODY,
    make_inputs=_make_inputs,
    samples=(
        _sample(1, 1, 1, 1, 1, "one slot, one token"),
        _sample(1, 1, 1, 1, 1, "a ring of one slot", layout=1),
        _sample(2, 3, 7, 7, 5, "the cache filled at once"),
        _sample(3, 2, 13, 2, 5, "primes"),
        _sample(3, 2, 13, 3, 5, "a ring, some items across its end", layout=1),
        _sample(3, 2, 13, 3, 5, "sinks and a ring", layout=1, sinks=4),
        _sample(2, 2, 12, 8, 4, "a ring overwritten whole behind its sinks", layout=1, sinks=4),
        _sample(3, 2, 13, 2, 5, "a position for each KV head", values="of_heads"),
        _sample(2, 3, 13, 3, 5, "the same in a ring behind sinks", layout=1, sinks=4, values="of_heads"),
        _sample(2, 2, 9, 1, 16, "codes", values="codes"),
        _sample(3, 2, 13, 3, 7, "codes in a ring", layout=1, sinks=2, values="codes"),
        _sample(2, 2, 9, 1, 4, "infinities, and the range of float16", values="fp16_range"),
        _sample(1, 4, 256, 1, 64, "one decoded token of 4-bit codes", values="codes"),
        _sample(1, 4, 257, 128, 32, "a flush of KIVI's 2-bit keys, one above a block", values="codes"),
        _sample(1, 2, 1028, 1, 64, "StreamingLLM: 4 sinks and 1024 recent tokens", layout=1, sinks=4),
    ),
)
