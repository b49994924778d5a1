"""CodebookDecode: the tokens that code numbers stand for."""

from typing import cast

import torch
from torch import Tensor

from trt_compress.errors import ConfigError
from trt_compress.plugins.codebook_decode.spec import SPEC
from trt_compress.plugins.codebook_encode.op import FSQ_LEVELS, KINDS, POWERS, check_codebook, check_levels, fsq_base
from trt_compress.plugins.codebook_encode.spec import MOST_BITS, codes_per_token
from trt_compress.plugins.operator import Operator, check_tensor, register_fake, run_operator
from trt_compress.plugins.spec import Sample


def _checked(kind: str) -> str:
    """`{kind}_checked`: the code, if every number is one of `{kind}_num_codes`.

    A list of one has no element 1, which ONNX Runtime says; a negative number itself would count from the end.
    """
    return f"""
      {kind}_is_negative = Less (code, zero)
      {kind}_is_beyond = GreaterOrEqual (code, {kind}_num_codes)
      {kind}_is_wrong = Or ({kind}_is_negative, {kind}_is_beyond)
      {kind}_wrong = Cast <to = 7> ({kind}_is_wrong)
      {kind}_nothing = Gather <axis = 0> (v0, {kind}_wrong)
      {kind}_checked = Add (code, {kind}_nothing)
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
  half = Constant <value_float = 0.5> ()
  one32 = Constant <value_float = 1.0> ()
  two32 = Constant <value_float = 2.0> ()
  is_vector = Equal (which, zero)
  is_table = Equal (which, one)
  is_fsq = Equal (which, two)
  table32 = Cast <to = 1> (codebook)
  v_k = Shape <start = 1, end = 2> (codebook)
  code_shape = Shape (code)
  v_codes = Shape <start = 2, end = 3> (code)
  y32 = If (is_vector) <
    then_branch = vector () => (vector_y) {{
      vector_num_codes = Squeeze (v_k, v0) {_checked("vector")}
      v_width = Shape <start = 2, end = 3> (codebook)
      v_stages = Shape <start = 0, end = 1> (codebook)
      v_words = Mul (v_stages, v_k)
      row_shape = Concat <axis = 0> (v_words, v_width)
      words = Reshape (table32, row_shape)
      num_stages = Squeeze (v_codes, v0)
      stage = Range (zero, num_stages, one)
      first_row = Mul (stage, vector_num_codes)
      row = Add (vector_checked, first_row)
      chosen = Gather <axis = 0> (words, row)
      vector_y = ReduceSum <keepdims = 0> (chosen, v2)
    }},
    else_branch = scalar () => (scalar_y) {{
      scalar_y = If (is_table) <
        then_branch = table () => (table_y) {{
          table_num_codes = Squeeze (v_k, v0) {_checked("table")}
          v_batch = Shape <start = 0, end = 1> (code)
          v_tokens = Shape <start = 1, end = 2> (code)
          v_rows = Mul (v_batch, v_tokens)
          column_shape = Concat <axis = 0> (v_rows, v_codes)
          number = Reshape <allowzero = 1> (table_checked, column_shape)
          table_levels = Gather <axis = 0> (table32, zero)
          values = GatherElements <axis = 0> (table_levels, number)
          table_y = Reshape <allowzero = 1> (values, code_shape)
        }},
        else_branch = bits_or_digits () => (digit_y) {{
          digit_y = If (is_fsq) <
            then_branch = fsq () => (fsq_y) {{ {FSQ_LEVELS}
              level_int = Cast <to = 7> (levels)
              product32 = ReduceProd <keepdims = 0> (levels)
              fsq_num_codes = Cast <to = 7> (product32) {_checked("fsq")}
              one_code = Slice (fsq_checked, v0, v1, v2)
              above = Div (one_code, base)
              digit = Mod (above, level_int)
              digit32 = Cast <to = 1> (digit)
              centred = Sub (digit32, middle)
              fsq_y = Div (centred, middle)
            }},
            else_branch = sign () => (sign_y) {{
              v_bits = Reshape (width, v1)
              every_power = Constant <value_ints = [{POWERS}, {2**MOST_BITS}]> ()
              sign_num_codes = Gather <axis = 0> (every_power, width) {_checked("sign")}
              powers = Slice (every_power, v0, v_bits, v0)
              code_column = Unsqueeze (sign_checked, v3)
              shifted = Div (code_column, powers)
              bit = Mod (shifted, two)
              bit32 = Cast <to = 1> (bit)
              twice = Mul (bit32, two32)
              signs = Sub (twice, one32)
              v_channels = Shape <start = 2, end = 3> (codebook)
              token_shape = Concat <axis = 0> (v0, v0, v_channels)
              sign_y = Reshape (signs, token_shape)
            }}
          >
        }}
      >
    }}
  >
  y = CastLike (y32, codebook)
"""


@torch.library.custom_op("trt_compress::codebook_decode", mutates_args=())
def _codebook_decode(code: Tensor, codebook: Tensor, kind: int, group: int) -> Tensor:
    table = codebook.float()
    if KINDS[kind] == "fsq":
        check_levels("codebook_decode", table[0, 0])
    levels = table[0, 0].long()
    number = (table.shape[1], table.shape[1], int(levels.prod()), 2**group)[kind]
    is_wrong = (code < 0) | (code >= number)
    if bool(is_wrong.any()):
        raise ConfigError(
            f"codebook_decode: code holds {int(code[is_wrong][0])}, and the codebook has the codes 0..{number - 1}; "
            "give codes that this codebook made."
        )
    if KINDS[kind] == "vector":
        y = table.new_zeros(())
        for stage, words in enumerate(table):
            y = y + words[code[..., stage]]
    elif KINDS[kind] == "table":
        y = table[0].gather(0, code.flatten(0, 1)).reshape(code.shape)
    elif KINDS[kind] == "fsq":
        middle = levels // 2
        y = (code // fsq_base(levels) % levels - middle).float() / middle
    else:
        y = (code[..., None] >> torch.arange(group, device=code.device) & 1).flatten(2).float() * 2 - 1
    return y.to(codebook.dtype)


register_fake(SPEC, _codebook_decode)


def codebook_decode(code: Tensor, codebook: Tensor, *, kind: str = "vector", group: int = 1) -> Tensor:
    """Put back the tokens that code numbers stand for.

    Args:
        code: Code numbers as codebook_encode gives them, int64: [B, N, S] for vectors, [B, N, D] for tables,
            [B, N, 1] for FSQ and [B, N, D / group] for sign bits.
        codebook: What the codes stand for, [S, K, D], fp16 | bf16 | fp32, see codebook_encode.
        kind: "vector", "table", "fsq" or "sign".
        group: Channels whose sign bits make one code, for "sign".

    Returns:
        Tokens, [B, N, D], in the codebook's dtype: the sum of the stages' codes, the levels, FSQ levels from -1 to 1
        (an even number of them ends at 1 - 2 / L), or signs of -1 and 1.

    Raises:
        ConfigError: an attribute is not allowed, or a number is no code (not seen while tracing).
        ShapeError: a tensor has the wrong shape.

    Source: WavTokenizer, arXiv:2408.16532; KVQuant, arXiv:2401.18079; FlexTok, arXiv:2502.13967; WeTok,
        arXiv:2508.05599.
    Differs: see SPEC.differs.
    """
    which = check_codebook("codebook_decode", codebook, kind, group, None)
    stages, _, width = codebook.shape
    number = codes_per_token(which, stages, width, group)
    check_tensor("codebook_decode", "code", code, (None, None, number), "BNS", ("int64",))
    return run_operator(SPEC, [code, codebook], {"kind": which, "group": group})[0]


def _make_inputs(sample: Sample, generator: torch.Generator) -> tuple[Tensor, ...]:
    b, n, d, s, k = (sample.axes[a] for a in "BNDSK")
    kind, group = (cast(int, sample.attributes[name]) for name in ("kind", "group"))
    codebook = torch.randn(s, k, d, generator=generator)
    most = k
    if KINDS[kind] == "fsq":
        codebook = torch.tensor([8, 5, 4, 7, 3, 2, 6, 16]).float()[torch.arange(d) % 8][None, None]
        most = int(codebook.prod())
    if KINDS[kind] == "sign":
        codebook, most = torch.ones(1, 1, d), 2**group
    shape = (b, n, codes_per_token(kind, s, d, group))
    if sample.values == "last":
        return torch.full(shape, most - 1), codebook
    return torch.randint(0, most, shape, generator=generator), codebook


def _sample(
    sizes: tuple[int, int, int], book: tuple[int, int], kind: str, reason: str, values: str = "normal", group: int = 1
) -> Sample:
    axes = dict(zip("BNDSK", (*sizes, *book), strict=True))
    attributes = {"kind": KINDS.index(kind), "group": group}
    return Sample(axes=axes, attributes=attributes, reason=reason, values=values)


OPERATOR = Operator(
    spec=SPEC,
    function=codebook_decode,
    body=BODY,
    make_inputs=_make_inputs,
    samples=(
        _sample((1, 1, 1), (1, 1), "vector", "one code"),
        _sample((2, 13, 5), (1, 7), "vector", "primes"),
        _sample((2, 13, 5), (3, 7), "vector", "residual stages"),
        _sample((2, 13, 5), (1, 7), "table", "a table for each channel"),
        _sample((2, 13, 3), (1, 1), "fsq", "even and odd numbers of levels"),
        _sample((2, 13, 12), (1, 1), "sign", "bits in groups of four", group=4),
        _sample((2, 13, 5), (3, 7), "vector", "the last code of every stage", "last"),
        _sample((2, 13, 5), (1, 7), "table", "the last level", "last"),
        _sample((2, 5, 6), (1, 1), "fsq", "the last code", "last"),
        _sample((1, 7, 60), (1, 1), "sign", "the longest code, all bits set", "last", group=30),
        _sample((1, 7, 5), (1, 1), "sign", "one bit a code"),
        _sample((1, 129, 33), (1, 65), "vector", "one above a block of 128, 32 and 64"),
        _sample((1, 75, 64), (1, 16), "table", "KVQuant's 4-bit table of a head"),
        _sample((1, 12, 512), (8, 1024), "vector", "XY-Tokenizer, one second"),
        _sample((1, 256, 32), (1, 1), "sign", "WeTok at ratio 48, 4 groups of 8", group=8),
        _sample((1, 2000, 6), (1, 1), "fsq", "many tokens"),
    ),
)
