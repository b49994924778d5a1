"""What is done to packed rows as they are read: products of low rank are added, keys are turned; torch and ONNX text.

A cache may have, for each block of tokens, factors [tokens, R] and [R, D] whose product is added to its rows. Rotary
positions turn channel i of a key with channel i + turned / 2, by the cosines and sines that `rope` has for its slot.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from trt_compress.errors import ShapeError
from trt_compress.plugins.kv_attention.choosing import Calls, some_choose, taken_text
from trt_compress.plugins.kv_format import check_group
from trt_compress.plugins.kv_sizes import SCALES
from trt_compress.plugins.operator import check_broadcast, check_tensor
from trt_compress.plugins.spec import Sample

Factors = tuple[Tensor | None, Tensor | None]


def corrected(rows: Tensor, factor: Tensor, basis: Tensor) -> Tensor:
    """Rows [B, G, L, D] in float32 with the products of factors [B, G, L, R] and [B, G, P, R * D]."""
    b, g, length, d = rows.shape
    blocks, rank = basis.shape[2], factor.shape[3]
    left = factor.float().reshape(b, g, blocks, length // max(blocks, 1), rank)
    return rows + (left @ basis.float().reshape(b, g, blocks, rank, d)).reshape(rows.shape)


def turned(rows: Tensor, rope: Tensor) -> Tensor:
    """Rows [B, G, L, D] in float32 turned by cosines and sines [.., .., L, turned / 2 + turned / 2]."""
    half = rope.shape[3] // 2
    cosine, sine = rope[..., :half], rope[..., half:]
    first, second, rest = rows[..., :half], rows[..., half : 2 * half], rows[..., 2 * half :]
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine, rest], dim=3)


def checked_factors(
    op: str, q: Tensor, k: Factors, v: Factors, shape: tuple[int, int, int, int], block: object
) -> tuple[list[Tensor], Mapping[str, int]]:
    """The factors of a cache of `shape` [B, G, L, D], zeros where there are none, and their attributes.

    Raises:
        ConfigError: `block` is not allowed.
        ShapeError: a factor has the wrong shape or dtype, or is alone.
    """
    b, g, slots, d = shape
    size = check_group(op, "block", block, slots, "L")
    found: list[Tensor] = []
    ranks = {}
    given = next((one for one in (*k, *v) if one is not None), None)
    dtype = torch.float16 if given is None else given.dtype
    for which, (factor, basis) in (("k", k), ("v", v)):
        if factor is None and basis is None:
            found += [q.new_zeros(1, 1, 1, 1, dtype=dtype) for _ in range(2)]
            ranks[f"{which}_rank"] = 0
            continue
        if factor is None or basis is None:
            have, want = ("basis", "factor") if factor is None else ("factor", "basis")
            raise ShapeError(f"{op}: {which}_{have} is given without {which}_{want}; give both, or neither.")
        types = SCALES if factor is given else [str(dtype).removeprefix("torch.")]
        check_tensor(op, f"{which}_factor", factor, (b, g, slots, None), "BGLR", types)
        rank = factor.shape[3]
        if rank < 1:
            raise ShapeError(f"{op}: {which}_factor has R=0 columns; give at least one, or no factors.")
        blocks = slots // size if size else 1
        check_tensor(op, f"{which}_basis", basis, (b, g, blocks, rank * d), "BGPW", [str(dtype).removeprefix("torch.")])
        found += [factor, basis]
        ranks[f"{which}_rank"] = rank
    return found, {**ranks, "block": size}


def checked_rope(
    op: str, q: Tensor, rope: Tensor | None, shape: tuple[int, int, int, int]
) -> tuple[Tensor, Mapping[str, int]]:
    """The table for a cache of `shape` [B, G, L, D], or a zero, and its attribute.

    Raises:
        ShapeError: it has the wrong shape or dtype.
    """
    if rope is None:
        return q.new_zeros(1, 1, 1, 1, dtype=torch.float32), {"turned": 0}
    b, g, slots, d = shape
    width = rope.shape[3] if rope.ndim == 4 else -1
    check_broadcast(op, "rope", rope, ((1, b), (1, g), (slots,), (width,)), "BGLD", ["float32"])
    if not 0 < width <= d or width % 2:
        raise ShapeError(f"{op}: rope turns {width} channels; it must be an even number of them, at most D={d}.")
    return rope, {"turned": width}


# ---- the same in ONNX text, for bodies ------------------------------------------------------------------------------


def some_add(calls: Calls, which: str) -> bool:
    """Whether any of the nodes adds products to its keys ("k") or values ("v")."""
    return any(call.get(f"{which}_rank") for call in calls)


def some_turn(calls: Calls) -> bool:
    """Whether any of the nodes turns its keys."""
    return any(call.get("turned") for call in calls)


def corrected_text(calls: Calls, which: str, rows: str) -> tuple[str, str]:
    """Nodes that add the products to `rows` [B, G, C, D], and the name of what comes out.

    C is L, or what chosen_text() says. Without factors a call has zeros [1, 1, 1, 1], whose product is left out. Uses
    i0, v00 and v3.
    """
    if not some_add(calls, which):
        return "", rows
    factor, basis, p = f"{which}_factor", f"{which}_basis", f"{which}_added"
    sizes = f"""
  {p}_v_rank = Shape <start = 3, end = 4> ({factor})
  {p}_v_width = Shape <start = 3, end = 4> ({basis})
  {p}_v_right = Div ({p}_v_width, {p}_v_rank)
"""
    if some_choose(calls):  # each slot with the factor of its block
        products = f"""
  {taken_text(f"{p}_rows", factor)}
  {taken_text(f"{p}_bases", basis)}
  {p}_left32 = Cast <to = 1> ({p}_rows)
  {p}_left = Unsqueeze ({p}_left32, v3)
  {p}_right32 = Cast <to = 1> ({p}_bases)
  {p}_right_shape = Concat <axis = 0> (v00, v_chosen, {p}_v_rank, {p}_v_right)
  {p}_right = Reshape ({p}_right32, {p}_right_shape)
  {p}_products = MatMul ({p}_left, {p}_right)
  {p}_all = Squeeze ({p}_products, v3)
"""
    else:
        products = f"""
  {p}_v_tokens = Shape <start = 2, end = 3> ({factor})
  {p}_v_blocks = Shape <start = 2, end = 3> ({basis})
  {p}_v_block = Div ({p}_v_tokens, {p}_v_blocks)
  {p}_left32 = Cast <to = 1> ({factor})
  {p}_left_shape = Concat <axis = 0> (v00, {p}_v_blocks, {p}_v_block, {p}_v_rank)
  {p}_left = Reshape ({p}_left32, {p}_left_shape)
  {p}_right32 = Cast <to = 1> ({basis})
  {p}_right_shape = Concat <axis = 0> (v00, {p}_v_blocks, {p}_v_rank, {p}_v_right)
  {p}_right = Reshape ({p}_right32, {p}_right_shape)
  {p}_products = MatMul ({p}_left, {p}_right)
  {p}_shape = Concat <axis = 0> (v00, {p}_v_tokens, {p}_v_right)
  {p}_all = Reshape ({p}_products, {p}_shape)
"""
    kept = f"  {p} = Identity ({p}_all)"
    if not all(call.get(f"{which}_rank") for call in calls):
        kept = f"""
  {p}_rank_ = Constant <value_int: int = @{which}_rank> ()
  {p}_is_there = Greater ({p}_rank_, i0)
  {p}_nothing = Constant <value_float = 0.0> ()
  {p} = Where ({p}_is_there, {p}_all, {p}_nothing)
"""
    return f"{sizes}{products}{kept}\n  {which}_corrected = Add ({rows}, {p})", f"{which}_corrected"


def turned_text(calls: Calls, rows: str) -> tuple[str, str]:
    """Nodes that turn `rows` [B, G, C, D], and the name of what comes out. Uses v0, v1 and v3.

    Without a table a call turns no channels.
    """
    if not some_turn(calls):
        return "", rows
    table, taken = "rope", ""
    if some_choose(calls):
        table, taken = "rope_taken", taken_text("rope_taken", "rope")
    return (
        f"""
  {taken}
  turned_ = Constant <value_int: int = @turned> ()
  turned_half = Div (turned_, i2)
  v_turned = Reshape (turned_, v1)
  v_turned_half = Reshape (turned_half, v1)
  v_turned_all = Constant <value_ints = [{2**31 - 1}]> ()
  turning_cosine = Slice ({table}, v0, v_turned_half, v3)
  turning_sine = Slice ({table}, v_turned_half, v_turned, v3)
  turning_first = Slice ({rows}, v0, v_turned_half, v3)
  turning_second = Slice ({rows}, v_turned_half, v_turned, v3)
  turning_rest = Slice ({rows}, v_turned, v_turned_all, v3)
  first_by_cosine = Mul (turning_first, turning_cosine)
  second_by_sine = Mul (turning_second, turning_sine)
  turned_first = Sub (first_by_cosine, second_by_sine)
  second_by_cosine = Mul (turning_second, turning_cosine)
  first_by_sine = Mul (turning_first, turning_sine)
  turned_second = Add (second_by_cosine, first_by_sine)
  k_turned = Concat <axis = 3> (turned_first, turned_second, turning_rest)
""",
        "k_turned",
    )


# ---- samples --------------------------------------------------------------------------------------------------------


def side_inputs(sample: Sample, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Factors and table for a sample, in the order of the inputs; the table belongs to positions with gaps."""
    b, g, length, d = (sample.axes[a] for a in "BGLD")
    given = {name: int(sample.attributes[name]) for name in ("k_rank", "v_rank", "block", "turned")}  # type: ignore[arg-type]
    dtype = torch.float32 if sample.values == "fp32_scales" else torch.float16
    found = []
    for which in "kv":
        rank = given[f"{which}_rank"]
        blocks = length // given["block"] if given["block"] else 1
        shapes = ((b, g, length, rank), (b, g, blocks, rank * d)) if rank else ((1, 1, 1, 1),) * 2
        made = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
        found += made if rank else [torch.zeros_like(one) for one in made]
    if not given["turned"]:
        return (*found, torch.zeros(1, 1, 1, 1))
    shared = sample.values == "shared"
    steps = torch.randint(1, 5, (1 if shared else b, 1 if shared else g, length), generator=generator)
    angle = steps.cumsum(dim=2)[..., None] * 0.5 ** torch.arange(given["turned"] // 2)
    return (*found, torch.cat([angle.cos(), angle.sin()], dim=3))
