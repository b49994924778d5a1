"""CodebookEncode and CodebookDecode in ONNX Runtime: every way the search lays out tokens, and what is refused."""

import itertools
import math
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor

from trt_compress.errors import ConfigError, ShapeError
from trt_compress.plugins.codebook_decode.op import codebook_decode
from trt_compress.plugins.codebook_encode.op import KINDS, codebook_encode, fsq_codebook, sign_codebook
from trt_compress.plugins.library import Library
from trt_compress.plugins.registry import operators
from trt_compress.plugins.spec import Sample
from trt_compress.plugins.testing import onnx_model

Array = np.ndarray[Any, Any]
IN_OUT = {"TrtcCodebookEncode": (("x", "codebook"), "code"), "TrtcCodebookDecode": (("code", "codebook"), "y")}


def session_of(op_type: str, library: Library, kind: str, group: int = 1, x_type: int = TensorProto.FLOAT) -> Any:
    """One node whose inputs have any shape; without a body."""
    inputs, output = IN_OUT[op_type]
    attributes: dict[str, Any] = {"kind": KINDS.index(kind), "group": group}
    node = helper.make_node(op_type, inputs, [output], domain="trt_compress", **attributes)

    def value(name: str) -> onnx.ValueInfoProto:
        types = {"x": x_type, "code": TensorProto.INT64}
        return helper.make_tensor_value_info(name, types.get(name, TensorProto.FLOAT), None)

    graph = helper.make_graph([node], "one", [value(name) for name in inputs], [value(output)])
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("trt_compress", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.register_custom_ops_library(str(library.path))
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def encode(session: Any, x: Tensor, codebook: Tensor) -> Array:
    found: Array = session.run(None, {"x": x.numpy(), "codebook": codebook.numpy()})[0]
    return found


@pytest.mark.parametrize("width", [1, 3, 16, 31, 64, 513])
def test_every_number_of_tokens(width: int, native_library: Library) -> None:
    """Whole numbers, whose sums are exact in any order, with every code twice: the numbers must be torch's."""
    session = session_of("TrtcCodebookEncode", native_library, "vector")
    generator = torch.Generator().manual_seed(width)
    for tokens, (stages, codes) in itertools.product([*range(1, 19), 31, 32, 33, 75, 300], [(1, 130), (3, 9)]):
        half = torch.randint(-3, 4, (stages, (codes + 1) // 2, width), generator=generator).float()
        codebook = torch.cat([half, half], dim=1)[:, :codes].contiguous()
        x = torch.randint(-3, 4, (1, tokens, width), generator=generator).float()
        wanted = codebook_encode(x, codebook).numpy()
        np.testing.assert_array_equal(encode(session, x, codebook), wanted, err_msg=f"{tokens} tokens, {codes} codes")
        assert wanted.max() < (codes + 1) // 2, "the first of two equal codes"


def test_tokens_and_codebook_may_have_different_types(native_library: Library) -> None:
    session = session_of("TrtcCodebookEncode", native_library, "vector", x_type=TensorProto.FLOAT16)
    x, codebook = torch.randint(-3, 4, (2, 7, 5)).half(), torch.randint(-3, 4, (2, 9, 5)).float()
    np.testing.assert_array_equal(encode(session, x, codebook), codebook_encode(x, codebook).numpy())


def test_fsq_of_a_fine_grid(native_library: Library) -> None:
    """Every digit is that of float64, but where the value is within float32's rounding of the middle of two."""
    levels = [2, 3, 5, 8, 16, 31]
    x = np.linspace(-12, 12, 20011, dtype=np.float32)
    session = session_of("TrtcCodebookEncode", native_library, "fsq")
    decoder = session_of("TrtcCodebookDecode", native_library, "fsq")
    code = encode(session, torch.from_numpy(x)[None, :, None].repeat(1, 1, len(levels)), fsq_codebook(levels))
    seen: list[set[int]] = [set() for _ in levels]
    rest = code[0, :, 0]
    for channel, number in enumerate(levels):
        rest, digit = np.divmod(rest, number)
        down = 0.5 if number % 2 == 0 else 0.0
        reach = (number - 1) * 1.001 / 2
        bounded = np.tanh(x.astype(np.float64) + math.atanh(down / reach)) * reach - down
        clear = np.abs(np.abs(bounded - np.floor(bounded)) - 0.5) > 1e-6 * number
        assert clear.mean() > 0.99
        np.testing.assert_array_equal(digit[clear], (np.round(bounded) + number // 2)[clear])
        seen[channel] |= set(digit.tolist())
    assert [len(digits) for digits in seen] == levels, "every level is reached"
    wanted = codebook_decode(torch.from_numpy(code), fsq_codebook(levels), kind="fsq").numpy()
    found = decoder.run(None, {"code": code, "codebook": fsq_codebook(levels).numpy()})[0]
    np.testing.assert_array_equal(found, wanted)


def test_all_codes_of_the_largest_fsq_codebook(native_library: Library) -> None:
    """Digits are computed by rounded quotients; near 2**24 they must still be whole."""
    levels = [7, 11, 13, 16, 17, 61]
    last = math.prod(levels) - 1
    assert last > 0.9 * 2**24
    code = torch.tensor([*range(1000), *range(last - 1000, last + 1), *range(0, last, 997)])[None, :, None]
    session = session_of("TrtcCodebookDecode", native_library, "fsq")
    found = session.run(None, {"code": code.numpy(), "codebook": fsq_codebook(levels).numpy()})[0]
    np.testing.assert_array_equal(found, codebook_decode(code, fsq_codebook(levels), kind="fsq").numpy())


@pytest.mark.parametrize("group", [1, 2, 7, 16, 30])
def test_signs_of_every_length(group: int, native_library: Library) -> None:
    x = torch.randn(1, 37, 3 * group)
    x[0, ::3] = 0.0
    codebook = sign_codebook(3 * group)
    code = encode(session_of("TrtcCodebookEncode", native_library, "sign", group), x, codebook)
    np.testing.assert_array_equal(code, codebook_encode(x, codebook, kind="sign", group=group).numpy())
    decoder = session_of("TrtcCodebookDecode", native_library, "sign", group)
    found = decoder.run(None, {"code": code, "codebook": codebook.numpy()})[0]
    np.testing.assert_array_equal(found, torch.where(x > 0, 1.0, -1.0).numpy())


# kind, group, shape of the codebook, shape of x, message
SHAPES: list[tuple[str, int, list[int], list[int], str]] = [
    ("vector", 1, [1, 7, 4], [2, 3, 5], "codebook has shape [1, 7, 4]; it must be [S, K, 5] with axes SKD."),
    ("vector", 1, [1, 0, 5], [2, 3, 5], "codebook has shape [1, 0, 5]; it must hold at least one code."),
    ("table", 1, [2, 7, 5], [2, 3, 5], "codebook has shape [2, 7, 5]; a table has one stage, [1, K, D]."),
    ("fsq", 1, [1, 7, 5], [2, 3, 5], "codebook has shape [1, 7, 5]; kind='fsq' takes [1, 1, D], see fsq_codebook."),
    ("sign", 5, [2, 1, 5], [2, 3, 5], "codebook has shape [2, 1, 5]; kind='sign' takes [1, 1, D], see sign_codebook."),
    ("sign", 3, [1, 1, 5], [2, 3, 5], "group=3 does not divide D=5 channels; give a divisor."),
    ("vector", 5, [1, 7, 5], [2, 3, 5], "group=5 is for sign bits, and kind='vector'; leave it at 1."),
    (
        "fsq",
        1,
        [1, 1, 25],
        [2, 3, 25],
        "codebook has shape [1, 1, 25]; kind='fsq' takes at most 24 channels, for at most 2**24 codes of a token.",
    ),
]
LEVELS: list[tuple[list[float], str]] = [
    ([8, 1], "codebook holds 1.000000 as the number of levels of channel 1; it must be a whole number in 2..256, see"),
    ([8, 0], "codebook holds 0.000000 as the number of levels of channel 1; it must be a whole number in 2..256, see"),
    ([2.5, 8], "codebook holds 2.500000 as the number of levels of channel 0; it must be a whole number in 2..256"),
    ([257, 8], "codebook holds 257.000000 as the number of levels of channel 0; it must be a whole number in 2..256"),
    ([math.nan, 8], "codebook holds nan as the number of levels of channel 0; it must be a whole number in 2..256"),
    ([256, 256, 256, 2], "codebook holds levels that give more than 2**24 codes; give fewer levels or channels."),
]
# kind, group, codebook, code, message
CODES: list[tuple[str, int, Tensor, list[int], str]] = [
    ("vector", 1, torch.ones(2, 7, 3), [6, 7], "code holds 7, and the codebook has the codes 0..6; give codes that"),
    ("vector", 1, torch.ones(2, 7, 3), [-1, 9], "code holds -1, and the codebook has the codes 0..6; give codes that"),
    ("table", 1, torch.ones(1, 4, 3), [0, 3, 2**40], "code holds 1099511627776, and the codebook has the codes 0..3;"),
    ("fsq", 1, fsq_codebook([8, 5, 3]), [120], "code holds 120, and the codebook has the codes 0..119; give"),
    ("sign", 3, sign_codebook(6), [7, 8], "code holds 8, and the codebook has the codes 0..7; give codes that this"),
]


def refused(session: Any, feeds: dict[str, Array]) -> str:
    with pytest.raises(Exception) as caught:  # noqa: B017, PT011  ONNX Runtime's exceptions have no common base
        session.run(None, feeds)
    return str(caught.value)


@pytest.mark.parametrize(("kind", "group", "book", "shape", "message"), SHAPES)
def test_wrong_shapes(
    kind: str, group: int, book: list[int], shape: list[int], message: str, native_library: Library
) -> None:
    session = session_of("TrtcCodebookEncode", native_library, kind, group)
    feeds = {"x": np.ones(shape, np.float32), "codebook": np.ones(book, np.float32)}
    assert f"TrtcCodebookEncode: {message}" in refused(session, feeds)
    with pytest.raises((ConfigError, ShapeError)) as caught:
        codebook_encode(torch.ones(shape), torch.ones(book), kind=kind, group=group)
    assert str(caught.value).startswith(f"codebook_encode: {message}")


def test_a_code_of_the_wrong_shape(native_library: Library) -> None:
    session = session_of("TrtcCodebookDecode", native_library, "vector")
    feeds = {"code": np.zeros((2, 3, 2), np.int64), "codebook": np.ones((3, 7, 5), np.float32)}
    message = "TrtcCodebookDecode: code has shape [2, 3, 2]; it must be [B, N, 3] with axes BNS."
    assert message in refused(session, feeds)


@pytest.mark.parametrize(("levels", "message"), LEVELS)
def test_numbers_of_levels_that_are_none(levels: list[float], message: str, native_library: Library) -> None:
    codebook = np.array(levels, np.float32)[None, None]
    feeds = {"x": np.ones((1, 2, len(levels)), np.float32), "codebook": codebook}
    assert f"TrtcCodebookEncode: {message}" in refused(session_of("TrtcCodebookEncode", native_library, "fsq"), feeds)
    feeds = {"code": np.zeros((1, 2, 1), np.int64), "codebook": codebook}
    assert f"TrtcCodebookDecode: {message}" in refused(session_of("TrtcCodebookDecode", native_library, "fsq"), feeds)
    for name, call in (
        ("encode", lambda: codebook_encode(torch.ones(1, 2, len(levels)), torch.from_numpy(codebook), kind="fsq")),
        ("decode", lambda: codebook_decode(torch.zeros(1, 2, 1).long(), torch.from_numpy(codebook), kind="fsq")),
    ):
        with pytest.raises(ConfigError) as caught:
            call()
        assert str(caught.value).startswith(f"codebook_{name}: {message}")


@pytest.mark.parametrize(("levels", "message"), [*LEVELS, ([8.0, 5.0], "")])
@pytest.mark.parametrize("op_type", sorted(IN_OUT))
def test_the_body_does_not_compute_with_levels_that_are_none(op_type: str, levels: list[float], message: str) -> None:
    operator = operators()[op_type]
    is_encoder = op_type == "TrtcCodebookEncode"
    first = torch.ones(1, 2, len(levels)) if is_encoder else torch.zeros(1, 2, 1, dtype=torch.int64)
    codebook = torch.tensor(levels, dtype=torch.float32)[None, None]
    output = torch.zeros(1, 2, 1, dtype=torch.int64) if is_encoder else torch.ones(1, 2, len(levels))
    sample = Sample(axes={}, attributes={"kind": 2, "group": 1}, reason="here")
    model = onnx_model(operator, sample, (first, codebook), (output,)).SerializeToString()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feeds = {IN_OUT[op_type][0][0]: first.numpy(), "codebook": codebook.numpy()}
    if message:
        assert "out of data bounds" in refused(session, feeds)
    else:
        session.run(None, feeds)


@pytest.mark.parametrize(("kind", "group", "codebook", "wrong", "message"), CODES)
def test_numbers_that_are_no_codes(
    kind: str, group: int, codebook: Tensor, wrong: list[int], message: str, native_library: Library
) -> None:
    """The first of them is named, wherever it stands; torch says the same."""
    session = session_of("TrtcCodebookDecode", native_library, kind, group)
    code = torch.zeros(3, 9000, len(wrong), dtype=torch.int64)
    code[1, 4321] = torch.tensor(wrong)
    code[2, 17] = 5_000_000
    assert f"TrtcCodebookDecode: {message}" in refused(session, {"code": code.numpy(), "codebook": codebook.numpy()})
    with pytest.raises(ValueError, match="codebook_decode: " + message.split(";")[0]):
        codebook_decode(code, codebook, kind=kind, group=group)
