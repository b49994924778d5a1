"""Attention over chosen slots: as ONNX text, which they are and the rows of a cache that belong to them; samples.

`index` [1 | B, 1 | G, K] names slots of each KV head; what is no slot (below 0, or behind the cache) is masked later.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from trt_compress.plugins.kv_format import format_text, parts_text
from trt_compress.plugins.spec import Sample

Calls = Sequence[Mapping[str, Any]]


def some_choose(calls: Calls) -> bool:
    """Whether any of the nodes attends to chosen slots only."""
    return any(call.get("indexed") for call in calls)


def chosen_text(calls: Calls, cache: str) -> str:
    """Nodes for `safe` [.., .., C], the chosen slots where they are some, and `is_there`.

    C is K. Where other nodes of the same function choose nothing it is L for these: every slot is chosen. `cache` is
    [B, G, L, W]. Uses i0, i1, v0, v1.
    """
    if all(call.get("indexed") for call in calls):
        chosen = "  chosen = Identity (index)"
    else:
        chosen = """
  indexed_ = Constant <value_int: int = @indexed> ()
  is_indexed = Equal (indexed_, i1)
  all_slots = Range (i0, slot_count, i1)
  every_slot = Unsqueeze (all_slots, v01)
  index_heads = Shape <start = 0, end = 2> (index)
  every_shape = Concat <axis = 0> (index_heads, v_slots)
  every = Expand (every_slot, every_shape)
  either = Concat <axis = 2> (index, every)
  v_index = Shape <start = 2, end = 3> (index)
  v_either = Shape <start = 2, end = 3> (either)
  v_from = Where (is_indexed, v0, v_index)
  v_to = Where (is_indexed, v_index, v_either)
  chosen = Slice (either, v_from, v_to, v2)"""
    return f"""
  v2 = Constant <value_ints = [2]> ()
  v01 = Constant <value_ints = [0, 1]> ()
  v23 = Constant <value_ints = [2, 3]> ()
  v_four = Constant <value_ints = [4]> ()
  v_rest = Constant <value_ints = [-1]> ()
  v_slots = Shape <start = 2, end = 3> ({cache})
  slot_count = Squeeze (v_slots, v0)
{chosen}
  v_chosen = Shape <start = 2, end = 3> (chosen)
  last_slot = Sub (slot_count, i1)
  not_before = Max (chosen, i0)
  safe = Min (not_before, last_slot)
  is_there = Equal (safe, chosen)
  pair_sizes = Shape <start = 0, end = 2> ({cache})
"""


def taken_text(result: str, cache: str) -> str:
    """Nodes for the rows [B, G, C, W] that belong to the chosen slots, of a cache [1 | B, 1 | G, P, W].

    A row is of L / P slots. What all items or KV heads share stays so where they share the slots, too.
    """
    return f"""
  {result}_v_rows = Shape <start = 2, end = 3> ({cache})
  {result}_v_width = Shape <start = 3, end = 4> ({cache})
  {result}_slots_of_row = Div (v_slots, {result}_v_rows)
  {result}_in_head = Div (safe, {result}_slots_of_row)
  {result}_pair_sizes = Shape <start = 0, end = 2> ({cache})
  {result}_pair_count = ReduceProd <keepdims = 0> ({result}_pair_sizes)
  {result}_pair_numbers = Range (i0, {result}_pair_count, i1)
  {result}_pair_shape = Concat <axis = 0> ({result}_pair_sizes, v1)
  {result}_pairs = Reshape ({result}_pair_numbers, {result}_pair_shape)
  {result}_rows_before = Mul ({result}_pairs, {result}_v_rows)
  {result}_row = Add ({result}_rows_before, {result}_in_head)
  {result}_flat_shape = Concat <axis = 0> (v_rest, {result}_v_width)
  {result}_flat = Reshape ({cache}, {result}_flat_shape)
  {result} = Gather <axis = 0> ({result}_flat, {result}_row)
"""


def taken_values_text(prefix: str) -> str:
    """Nodes for `{prefix}values` [B, G, C, D] in float32: the chosen rows of codes with the scales of each."""
    code, scale, minimum = (f"{prefix}{name}" for name in ("code", "scale", "minimum"))
    taken = "".join(taken_text(f"{name}_taken", name) for name in (code, scale, minimum))
    return f"""
  {format_text(prefix)}
  {taken}
  {parts_text(prefix, f"{code}_taken")}
  # channels that share a scale are on the last axis, whichever way groups run
  {prefix}v_groups = Shape <start = 3, end = 4> ({scale})
  {prefix}v_w = Shape <start = 3, end = 4> ({code})
  {prefix}v_d = Mul ({prefix}v_w, {prefix}num_parts)
  {prefix}v_some = Max ({prefix}v_groups, v1)
  {prefix}v_sharing = Div ({prefix}v_d, {prefix}v_some)
  {prefix}group_shape = Concat <axis = 0> (v00, v_chosen, {prefix}v_groups, {prefix}v_sharing)
  {prefix}codes = Reshape ({prefix}parts32, {prefix}group_shape)
  {prefix}scale32 = Cast <to = 1> ({scale}_taken)
  {prefix}scale_column = Unsqueeze ({prefix}scale32, v_four)
  {prefix}minimum32 = Cast <to = 1> ({minimum}_taken)
  {prefix}low = Unsqueeze ({prefix}minimum32, v_four)
  {prefix}product = Mul ({prefix}codes, {prefix}scale_column)
  {prefix}sum = Add ({prefix}product, {prefix}low)
  {prefix}values_shape = Concat <axis = 0> (v00, v_chosen, {prefix}v_d)
  {prefix}values = Reshape ({prefix}sum, {prefix}values_shape)
"""


def choices(sample: Sample, generator: torch.Generator) -> Tensor:
    """An index for a sample: slots in any order, some of them not in use, and entries that are none."""
    if not sample.attributes["indexed"]:
        return torch.full((1, 1, 1), -1)
    b, g, slots, kept = (sample.axes[a] for a in "BGLK")
    b, g = (1, 1) if sample.values == "shared" else (b, g)
    found = [torch.randperm(slots, generator=generator)[:kept] for _ in range(b * g)]
    index = torch.stack(found).reshape(b, g, kept)
    if kept > 2:
        index[..., kept // 2] = -1
    if kept > 4:
        index[..., 0] = slots + 3
        index[-1, -1] = -7  # nothing is left
    return index
