"""CodebookEncode: numbers of the nearest codes: vectors, residual stages, scalar tables, FSQ levels or sign bits."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from trt_compress.errors import ConfigError, ShapeError
from trt_compress.plugins.codebook_encode.spec import MOST_BITS, MOST_CHANNELS, MOST_LEVELS, SPEC
from trt_compress.plugins.operator import Operator, check_tensor, register_fake, run_operator
from trt_compress.plugins.spec import Sample
from trt_compress.suggest import not_known

KINDS = ("vector", "table", "fsq", "sign")
MOST_CODES = 2**24  # of one FSQ token, whole numbers of float32

POWERS = ", ".join(str(2**bit) for bit in range(MOST_BITS))
FSQ_LEVELS = f"""
      first_stage = Gather <axis = 0> (table32, zero)
      given_levels = Gather <axis = 0> (first_stage, zero)
      least_level = Constant <value_float = 2.0> ()
      most_levels = Constant <value_float = {MOST_LEVELS}.0> ()
      most_codes = Constant <value_float = {MOST_CODES}.0> ()
      whole_level = Floor (given_levels)
      is_whole = Equal (given_levels, whole_level)
      is_enough = GreaterOrEqual (given_levels, least_level)
      is_few = LessOrEqual (given_levels, most_levels)
      is_in_range = And (is_enough, is_few)
      is_level = And (is_in_range, is_whole)
      all_codes = ReduceProd <keepdims = 0> (given_levels)
      is_code = LessOrEqual (all_codes, most_codes)
      is_sound = And (is_level, is_code)
      is_unsound = Not (is_sound)
      unsound = Cast <to = 7> (is_unsound)  # a list of one has no element 1, which ONNX Runtime says
      no_level = Gather <axis = 0> (v0, unsound)
      no_level32 = Cast <to = 1> (no_level)
      levels = Add (given_levels, no_level32)
      half_levels = Mul (levels, half)
      middle = Floor (half_levels)
      v_d = Shape <start = 0, end = 1> (levels)
      d = Squeeze (v_d, v0)
      channel = Range (zero, d, one)
      channel_column = Unsqueeze (channel, v1)
      is_before = Less (channel, channel_column)
      factors = Where (is_before, levels, one32)
      base32 = ReduceProd <keepdims = 0> (factors, v1)
      base = Cast <to = 7> (base32)
"""

BODY = f"""
  which = Constant <value_int: int = @kind> ()
  width = Constant <value_int: int = @group> ()
  zero = Constant <value_int = 0> ()
  one = Constant <value_int = 1> ()
  two = Constant <value_int = 2> ()
  v0 = Constant <value_ints = [0]> ()
  v1 = Constant <value_ints = [1]> ()
  v2 = Constant <value_ints = [2]> ()
  v3 = Constant <value_ints = [3]> ()
  zero32 = Constant <value_float = 0.0> ()
  half = Constant <value_float = 0.5> ()
  one32 = Constant <value_float = 1.0> ()
  widening = Constant <value_float = 1.001> ()
  is_vector = Equal (which, zero)
  is_table = Equal (which, one)
  is_fsq = Equal (which, two)
  x32 = Cast <to = 1> (x)
  table32 = Cast <to = 1> (codebook)
  code = If (is_vector) <
    then_branch = vector () => (vector_code) {{
      v_stages = Shape <start = 0, end = 1> (codebook)
      stages = Squeeze (v_stages, v0)
      go_on = Cast <to = 9> (one)
      left_over, stage_codes = Loop (stages, go_on, x32) <
        body = stage (int64 number, bool go, float[b, n, d] residual) =>
          (bool going, float[b, n, d] rest, int64[b, n] best) {{
          going = Identity (go)
          words = Gather <axis = 0> (table32, number)
          words_turned = Transpose <perm = [1, 0]> (words)
          product = MatMul (residual, words_turned)
          squares = Mul (words, words)
          square = ReduceSum <keepdims = 0> (squares, v1)
          half_square = Mul (square, half)
          nearness = Sub (product, half_square)
          best = ArgMax <axis = 2, keepdims = 0> (nearness)
          word = Gather <axis = 0> (words, best)
          rest = Sub (residual, word)
        }}
      >
      vector_code = Transpose <perm = [1, 2, 0]> (stage_codes)
    }},
    else_branch = scalar () => (scalar_code) {{
      scalar_code = If (is_table) <
        then_branch = table () => (table_code) {{
          x_column = Unsqueeze (x32, v2)
          table_levels = Gather <axis = 0> (table32, zero)
          differences = Sub (x_column, table_levels)
          distances = Abs (differences)
          table_code = ArgMin <axis = 2, keepdims = 0> (distances)
        }},
        else_branch = bits_or_digits () => (digit_code) {{
          digit_code = If (is_fsq) <
            then_branch = fsq () => (fsq_code) {{ {FSQ_LEVELS}
              odd_half = Sub (half_levels, middle)
              is_even = Less (odd_half, half)
              shift_down = Where (is_even, half, zero32)
              less_one = Sub (levels, one32)
              widened = Mul (less_one, widening)
              reach = Mul (widened, half)
              ratio = Div (shift_down, reach)
              shift = Atanh (ratio)
              shifted = Add (x32, shift)
              squashed = Tanh (shifted)
              stretched = Mul (squashed, reach)
              bounded = Sub (stretched, shift_down)
              rounded = Round (bounded)
              digits32 = Add (rounded, middle)
              digits = Cast <to = 7> (digits32)
              placed = Mul (digits, base)
              fsq_code = ReduceSum <keepdims = 1> (placed, v2)
            }},
            else_branch = sign () => (sign_code) {{
              v_width = Reshape (width, v1)
              v_channels = Shape <start = 2, end = 3> (x)
              v_groups = Div (v_channels, v_width)
              group_shape = Concat <axis = 0> (v0, v0, v_groups, v_width)
              is_positive = Greater (x32, zero32)
              bits = Cast <to = 7> (is_positive)
              groups = Reshape (bits, group_shape)
              every_power = Constant <value_ints = [{POWERS}]> ()
              powers = Slice (every_power, v0, v_width, v0)
              weighted = Mul (groups, powers)
              sign_code = ReduceSum <keepdims = 0> (weighted, v3)
            }}
          >
        }}
      >
    }}
  >
"""


def nearness(residual: Tensor, words: Tensor) -> Tensor:
    """How near each code is to each row, [..., K]; half the squared distance, less the same for all and negated."""
    return residual @ words.T - words.square().sum(dim=1) * 0.5


def fsq_bounded(x: Tensor, levels: Tensor) -> Tensor:
    """Values before they are rounded to a level, centred so that level number floor(L / 2) is 0."""
    down = torch.where(levels % 2 == 0, 0.5, 0.0)
    reach = (levels - 1) * levels.new_tensor(1.001) * 0.5
    return torch.tanh(x + torch.atanh(down / reach)) * reach - down


def fsq_base(levels: Tensor) -> Tensor:
    """What one step of each digit adds to the code, int64."""
    return torch.cat([levels.new_ones(1, dtype=torch.int64), levels.long().cumprod(0)[:-1]])


@torch.library.custom_op("trt_compress::codebook_encode", mutates_args=())
def _codebook_encode(x: Tensor, codebook: Tensor, kind: int, group: int) -> Tensor:
    x32, table = x.float(), codebook.float()
    if KINDS[kind] == "vector":
        residual, codes = x32, []
        for words in table:
            codes.append(nearness(residual, words).argmax(dim=-1))
            residual = residual - words[codes[-1]]
        return torch.stack(codes, dim=2)
    if KINDS[kind] == "table":
        return (x32[:, :, None] - table[0]).abs().argmin(dim=2)
    if KINDS[kind] == "fsq":
        levels = table[0, 0]
        check_levels("codebook_encode", levels)
        digits = (fsq_bounded(x32, levels).round() + (levels / 2).floor()).long()
        return (digits * fsq_base(levels)).sum(dim=2, keepdim=True)
    bits = (x32 > 0).long().reshape(*x.shape[:2], x.shape[2] // group, group)
    return (bits << torch.arange(group, device=x.device)).sum(dim=3)


register_fake(SPEC, _codebook_encode)


def check_levels(name: str, levels: Tensor) -> None:
    """Raise ConfigError unless these are numbers of FSQ levels."""
    for channel, number in enumerate(levels.tolist()):
        if not (2 <= number <= MOST_LEVELS and number == math.floor(number)):
            raise ConfigError(
                f"{name}: codebook holds {number:.6f} as the number of levels of channel {channel}; it must be a whole "
                f"number in 2..{MOST_LEVELS}, see fsq_codebook."
            )
    if math.prod(levels.tolist()) > MOST_CODES:
        raise ConfigError(
            f"{name}: codebook holds levels that give more than 2**24 codes; give fewer levels or channels."
        )


def check_codebook(name: str, codebook: Tensor, kind: str, group: int, width: int | None) -> int:
    """Raise unless `codebook`, `kind` and `group` belong together; return the number of the kind.

    Raises:
        ConfigError: kind or group is not allowed.
        ShapeError: the codebook has the wrong shape.
    """
    if kind not in KINDS:
        raise ConfigError(not_known(f"{name}: kind", kind, KINDS))
    check_tensor(name, "codebook", codebook, (None, None, width), "SKD")
    stages, number, width = codebook.shape
    if kind == "table" and stages != 1:
        raise ShapeError(f"{name}: codebook has shape {list(codebook.shape)}; a table has one stage, [1, K, D].")
    if kind in ("fsq", "sign") and (stages, number) != (1, 1):
        raise ShapeError(
            f"{name}: codebook has shape {list(codebook.shape)}; kind={kind!r} takes [1, 1, D], see {kind}_codebook."
        )
    if stages < 1 or number < 1:
        raise ShapeError(f"{name}: codebook has shape {list(codebook.shape)}; it must hold at least one code.")
    if kind == "fsq" and width > MOST_CHANNELS:
        raise ShapeError(
            f"{name}: codebook has shape {list(codebook.shape)}; kind='fsq' takes at most {MOST_CHANNELS} channels, "
            "for at most 2**24 codes of a token."
        )
    if isinstance(group, bool) or not isinstance(group, int) or not 1 <= group <= MOST_BITS:
        raise ConfigError(f"{name}: group={group!r} is out of range; a code has 1..{MOST_BITS} bits.")
    if kind == "sign" and width % group:
        raise ConfigError(f"{name}: group={group} does not divide D={width} channels; give a divisor.")
    if kind != "sign" and group != 1:
        raise ConfigError(f"{name}: group={group} is for sign bits, and kind={kind!r}; leave it at 1.")
    return KINDS.index(kind)


def codebook_encode(x: Tensor, codebook: Tensor, *, kind: str = "vector", group: int = 1) -> Tensor:
    """Replace each token by the numbers of its nearest codes.

    Args:
        x: Tokens, [B, N, D], fp16 | bf16 | fp32, finite.
        codebook: What the codes stand for, fp16 | bf16 | fp32. "vector": [S, K, D], one stage or S residual ones, each
            coding what the stages before it left over. "table": [1, K, D], the K levels of each channel, in any
            order. "fsq": [1, 1, D], how many levels each channel has, see fsq_codebook. "sign": [1, 1, D], see
            sign_codebook.
        kind: "vector", "table", "fsq" or "sign".
        group: Channels whose sign bits make one code, for "sign"; a divisor of D, at most 30.

    Returns:
        Code numbers, int64: [B, N, S] for vectors, [B, N, D] for tables, [B, N, 1] for FSQ and [B, N, D / group] for
        sign bits.

    Raises:
        ConfigError: an attribute is not allowed, or the numbers of levels are none (not seen while tracing).
        ShapeError: a tensor has the wrong shape.

    Source: WavTokenizer, arXiv:2408.16532; KVQuant, arXiv:2401.18079; FlexTok, arXiv:2502.13967; WeTok,
        arXiv:2508.05599.
    Differs: see SPEC.differs.
    """
    check_tensor("codebook_encode", "x", x, (None, None, None), "BND")
    which = check_codebook("codebook_encode", codebook, kind, group, x.shape[2])
    return run_operator(SPEC, [x, codebook], {"kind": which, "group": group})[0]


def table_codebook(levels: Tensor, width: int) -> Tensor:
    """Codebook of one table of levels, [K], for all of `width` channels."""
    return levels[None, :, None].repeat(1, 1, width)


def fsq_codebook(levels: Sequence[int]) -> Tensor:
    """Codebook of finite scalar quantization with these numbers of levels.

    Raises:
        ConfigError: a number of levels is not allowed, or there are too many codes.
    """
    if not levels or any(not 2 <= number <= MOST_LEVELS for number in levels):
        raise ConfigError(f"fsq_codebook: levels={list(levels)} is out of range; each must be in 2..{MOST_LEVELS}.")
    if math.prod(levels) > MOST_CODES:
        raise ConfigError(f"fsq_codebook: levels={list(levels)} give {math.prod(levels)} codes; at most 2**24 may be.")
    return torch.tensor(levels, dtype=torch.float32)[None, None]


def sign_codebook(width: int) -> Tensor:
    """Codebook of sign bits of `width` channels; only its shape says something."""
    return torch.ones(1, 1, width)


def _regret(inputs: Mapping[str, Tensor], attributes: Mapping[str, Any], outputs: Mapping[str, Tensor]) -> Tensor:
    x, table, code = inputs["x"].float(), inputs["codebook"].float(), outputs["code"]
    kind, group = KINDS[attributes["kind"]], attributes["group"]
    lawful = code.flatten(1) >= 0
    scale = x.abs().amax(dim=(1, 2)).clamp_min(1e-30)
    if kind == "vector":
        lawful &= (code < table.shape[1]).flatten(1)
        worse, residual = [], x
        for stage, words in enumerate(table):
            near, chosen = nearness(residual, words), code[..., stage].clamp(0, len(words) - 1)
            worse.append(near.amax(dim=2) - near.gather(2, chosen[..., None])[..., 0])
            residual = residual - words[chosen]
        regret, scale = torch.stack(worse, dim=2), scale.square()
    elif kind == "table":
        lawful &= (code < table.shape[1]).flatten(1)
        distance = (x[:, :, None] - table[0]).abs()
        chosen = code[:, :, None].clamp(0, table.shape[1] - 1)
        regret = distance.gather(2, chosen)[:, :, 0] - distance.amin(dim=2)
    elif kind == "fsq":
        levels = table[0, 0]
        lawful &= (code < math.prod(levels.long().tolist())).flatten(1)
        bounded, middle = fsq_bounded(x, levels), (levels / 2).floor()
        digit = (code // fsq_base(levels) % levels.long()) - middle
        regret, scale = (bounded - digit).abs() - (bounded - bounded.round()).abs(), torch.ones_like(scale)
    else:
        lawful &= (code < 2**group).flatten(1)
        bit = (code[..., None] >> torch.arange(group, device=code.device) & 1).flatten(2) > 0
        regret = torch.where(bit == (x > 0), 0, x.abs())
    worst = regret.flatten(1).amax(dim=1) / scale
    return torch.where(lawful.all(dim=1), worst, torch.inf)


def _make_inputs(sample: Sample, generator: torch.Generator) -> tuple[Tensor, ...]:
    b, n, d, s, k = (sample.axes[a] for a in "BNDSK")
    kind = KINDS[cast(int, sample.attributes["kind"])]
    x = torch.randn(b, n, d, generator=generator)
    if kind == "vector":
        codebook = torch.randn(s, k, d, generator=generator) * 0.5 ** torch.arange(s)[:, None, None]
        if sample.values == "ties":  # whole numbers, every code twice: sums are exact
            codebook = torch.randint(-4, 5, (s, k, d), generator=generator).float()
            codebook[:, k // 2 :] = codebook[:, : k - k // 2].clone()
            x = torch.randint(-4, 5, (b, n, d), generator=generator).float()
        if sample.values == "exact":  # tokens that are codes
            x = codebook[0, torch.randint(0, k, (b, n), generator=generator)]
        if sample.values == "fp16_range":
            x, codebook = x.clamp(-2, 2) * 3e4, codebook.clamp(-2, 2) * 3e4
        return x, codebook
    if kind == "table":
        levels = torch.linspace(-2, 2, k)[:, None] + torch.arange(d) / 8  # sorted, another offset for each channel
        if sample.values == "ties":  # halfway between two levels, which are whole numbers and not sorted
            levels = (torch.randperm(k, generator=generator) * 2.0)[:, None].repeat(1, d)
            x = torch.randint(0, 2 * k, (b, n, d), generator=generator).float()
        else:  # away from the middle between two levels, where rounding would decide
            number = torch.randint(0, k, (b, n, d), generator=generator)
            near = torch.rand(b, n, d, generator=generator) - 0.5
            x = levels.expand(b, k, d).gather(1, number) + near * 2.4 / max(k - 1, 1)
        return x, levels[None]
    if kind == "fsq":
        levels = torch.tensor([8, 5, 4, 7, 3, 2, 6, 16])[torch.arange(d) % 8]
        if sample.values == "extremes":
            x = x.sign() * 1e4
        if sample.values == "zeros":
            x = torch.zeros_like(x)
        return x, levels.float()[None, None]
    if sample.values == "zeros":
        x = x * (torch.arange(d) % 2)
    return x, sign_codebook(d)


def _sample(
    sizes: tuple[int, int, int], book: tuple[int, int], kind: str, reason: str, values: str = "normal", group: int = 1
) -> Sample:
    axes = dict(zip("BNDSK", (*sizes, *book), strict=True))
    attributes = {"kind": KINDS.index(kind), "group": group}
    return Sample(axes=axes, attributes=attributes, reason=reason, values=values)


OPERATOR = Operator(
    spec=SPEC,
    function=codebook_encode,
    body=BODY,
    make_inputs=_make_inputs,
    regret=_regret,
    samples=(
        _sample((1, 1, 1), (1, 1), "vector", "one code"),
        _sample((2, 13, 5), (1, 7), "vector", "primes"),
        _sample((2, 13, 5), (3, 7), "vector", "residual stages"),
        _sample((2, 13, 5), (1, 7), "table", "a table for each channel"),
        _sample((2, 13, 3), (1, 1), "fsq", "even and odd numbers of levels"),
        _sample((2, 13, 12), (1, 1), "sign", "bits in groups of four", group=4),
        _sample((2, 17, 6), (1, 10), "vector", "every code twice, and equal distances", "ties"),
        _sample((2, 17, 6), (2, 16), "vector", "tokens that are codes, so that nothing is left", "exact"),
        _sample((1, 19, 6), (2, 9), "vector", "products beyond the range of fp16", "fp16_range"),
        _sample((1, 11, 4), (1, 1), "vector", "a single code to choose from"),
        _sample((2, 17, 6), (1, 8), "table", "halfway between levels that are not sorted", "ties"),
        _sample((2, 5, 4), (1, 1), "table", "a single level"),
        _sample((2, 13, 6), (1, 1), "fsq", "values beyond the last level", "extremes"),
        _sample((2, 5, 6), (1, 1), "fsq", "zeros, the middle level", "zeros"),
        _sample((2, 5, 8), (1, 1), "sign", "exact zeros, whose bit is 0", "zeros", group=8),
        _sample((1, 7, 60), (1, 1), "sign", "the longest code", group=30),
        _sample((1, 7, 5), (1, 1), "sign", "one bit a code"),
        _sample((1, 129, 33), (1, 65), "vector", "one above a block of 128, 32 and 64"),
        _sample((1, 75, 64), (1, 16), "table", "KVQuant's 4-bit table of a head"),
        _sample((1, 256, 32), (1, 1), "sign", "WeTok at ratio 48, 4 groups of 8", group=8),
        _sample((1, 75, 512), (1, 4096), "vector", "WavTokenizer, one second"),
        _sample((1, 12, 512), (8, 1024), "vector", "XY-Tokenizer, one second"),
        _sample((1, 2000, 6), (1, 1), "fsq", "many tokens"),
    ),
)
