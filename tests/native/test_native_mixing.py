"""TokenMix in ONNX Runtime: every way the kernel goes, against sums in float64."""

import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from trt_compress.plugins.library import Library

Array = np.ndarray[Any, Any]
TYPES = {np.float32: (TensorProto.FLOAT, 2e-6), np.float16: (TensorProto.FLOAT16, 1e-3)}


def session_of(library: Library, normalize: int, dtype: Any, weight: Array | None = None, threads: int = 2) -> Any:
    """One node whose inputs have any shape; `weight`, if given, is part of the graph."""
    node = helper.make_node("TrtcTokenMix", ["x", "weight"], ["y"], domain="trt_compress", normalize=normalize)
    given = ["x"] if weight is not None else ["x", "weight"]
    values = [helper.make_tensor_value_info(name, TYPES[dtype][0], None) for name in (*given, "y")]
    weights = [] if weight is None else [numpy_helper.from_array(weight, "weight")]
    graph = helper.make_graph([node], "one", values[:-1], values[-1:], weights)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("trt_compress", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.register_custom_ops_library(str(library.path))
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def wanted(x: Array, weight: Array, normalize: int) -> Array:
    matrix = weight.astype(np.float64)
    if normalize:
        powers = np.exp(matrix - matrix.max(axis=-1, keepdims=True))
        matrix = powers / powers.sum(axis=-1, keepdims=True)
    result: Array = matrix @ x.astype(np.float64)
    return result


def check(found: Array, x: Array, weight: Array, normalize: int, dtype: Any) -> None:
    expected = wanted(x, weight, normalize)
    assert found.shape == expected.shape and found.dtype == dtype
    scale = (np.abs(weight.astype(np.float64)) if not normalize else np.ones_like(weight, np.float64) / x.shape[1]).sum(
        axis=-1, initial=0
    ).max(initial=0) * np.abs(x).max(initial=0) + 1e-30
    np.testing.assert_allclose(found, expected, rtol=TYPES[dtype][1], atol=TYPES[dtype][1] * float(scale))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("normalize", [0, 1])
def test_rows_and_channels_of_every_number(dtype: Any, normalize: int, native_library: Library) -> None:
    session = session_of(native_library, normalize, dtype)
    generator = np.random.default_rng(0)
    for rows, channels in itertools.product(range(1, 27), (1, 2, 3, 5, 8, 15, 16, 17, 20, 31, 32, 33, 47, 49, 65, 100)):
        x = generator.standard_normal((2, 37, channels)).astype(dtype)
        weight = generator.standard_normal((1 if rows % 2 else 2, rows, 37)).astype(dtype)
        check(session.run(None, {"x": x, "weight": weight})[0], x, weight, normalize, dtype)


@pytest.mark.parametrize("tokens", [1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 64, 1024])
def test_tokens_of_every_number(tokens: int, native_library: Library) -> None:
    session = session_of(native_library, 0, np.float32)
    generator = np.random.default_rng(tokens)
    for rows, channels in itertools.product((1, 2, 3, 4, 5, 12, 13, 40), (1, 4, 16, 40, 1000, 1100)):
        x = generator.standard_normal((1, tokens, channels), np.float32)
        weight = generator.standard_normal((1, rows, tokens), np.float32)
        check(session.run(None, {"x": x, "weight": weight})[0], x, weight, 0, np.float32)


@pytest.mark.parametrize(
    ("batch", "rows", "tokens", "channels"), [(0, 3, 5, 7), (2, 0, 5, 7), (2, 3, 5, 0), (2, 3, 0, 7)]
)
@pytest.mark.parametrize("channels_of", [1, 40])
def test_sizes_of_zero(
    batch: int, rows: int, tokens: int, channels: int, channels_of: int, native_library: Library
) -> None:
    x = np.ones((batch, tokens, channels * channels_of), np.float32)
    weight = np.ones((1, rows, tokens), np.float32)
    found = session_of(native_library, 0, np.float32).run(None, {"x": x, "weight": weight})[0]
    np.testing.assert_array_equal(found, np.full((batch, rows, channels * channels_of), float(tokens)))


@pytest.mark.parametrize("channels", [3, 16, 20, 40])
@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_what_is_no_number_stays_in_its_channel_and_item(bad: float, channels: int, native_library: Library) -> None:
    """Vectors are read beyond a token and beyond a row: nothing of that may be seen."""
    session = session_of(native_library, 0, np.float32)
    generator = np.random.default_rng(0)
    for rows, token in itertools.product((2, 5, 30), (0, 8, 18)):
        x = generator.standard_normal((3, 19, channels), np.float32)
        weight = generator.uniform(0.5, 1, (3, rows, 19)).astype(np.float32)
        x[1, token, 1] = bad
        found = session.run(None, {"x": x, "weight": weight})[0]
        touched = ~np.isfinite(found)
        assert touched[1, :, 1].all() and touched.sum() == rows
        weight[1, 1, token] = bad
        touched = ~np.isfinite(session.run(None, {"x": np.abs(x) + 1, "weight": weight})[0])
        assert touched[1, 1].all() and touched.sum() == channels + rows - 1


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("normalize", [0, 1])
@pytest.mark.parametrize(("rows", "tokens"), [(1, 9), (4, 40), (5, 40), (49, 197), (784, 196)])
def test_a_matrix_of_the_graph_is_packed_once(
    rows: int, tokens: int, normalize: int, dtype: Any, native_library: Library
) -> None:
    """Its sessions take other batches and channels from run to run, also at the same time."""
    generator = np.random.default_rng(rows)
    weight = generator.standard_normal((1, rows, tokens)).astype(dtype)
    session = session_of(native_library, normalize, dtype, weight)
    inputs = [
        generator.standard_normal((batch, tokens, channels)).astype(dtype)
        for batch, channels in ((1, 40), (3, 5), (2, 64), (1, 1), (4, 33), (1, 16))
    ]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda x: session.run(None, {"x": x})[0], [*inputs, *inputs]))
    other = session_of(native_library, normalize, dtype, threads=1)
    for x, found in zip([*inputs, *inputs], results, strict=True):
        check(found, x, weight, normalize, dtype)
        np.testing.assert_allclose(
            found, other.run(None, {"x": x, "weight": weight})[0], rtol=TYPES[dtype][1] * 2, atol=1e-3
        )


def test_a_matrix_for_each_item_of_the_graph(native_library: Library) -> None:
    generator = np.random.default_rng(0)
    weight = generator.standard_normal((3, 20, 30), np.float32)
    x = generator.standard_normal((3, 30, 70), np.float32)
    check(session_of(native_library, 0, np.float32, weight).run(None, {"x": x})[0], x, weight, 0, np.float32)
