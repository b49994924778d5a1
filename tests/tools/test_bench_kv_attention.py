"""The benchmark of attention over a packed cache, on a small one: what it checks, what it says."""

import shutil
from dataclasses import replace
from typing import Any

import pytest

from trt_compress.errors import InternalError
from trt_compress.plugins.build import build
from trt_compress.plugins.library import Library
from trt_compress.tools.bench.kv_attention import (
    LAYERS,
    MOST_CACHE_SHARE,
    Heads,
    calls_of,
    errors_of,
    figure_rows,
    measure,
    problem_of,
)

SMALL = (
    Heads(name="grouped", heads=6, kv_heads=2, size=64),
    Heads(name="not grouped", heads=2, kv_heads=2, size=64),
)


@pytest.fixture(scope="module")
def library() -> Library:
    if shutil.which("cmake") is None or not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("the native operators cannot be built without cmake and a C++ compiler")
    (outcome,) = build(only=("onnxruntime",))
    assert outcome.library is not None, outcome.note
    return outcome.library


@pytest.fixture(scope="module")
def figures(library: Library) -> dict[str, Any]:
    return measure(SMALL, tokens=128, threads=(1,), pairs=6, step=lambda _: None)


def test_all_sides_are_timed_in_pairs(figures: dict[str, Any]) -> None:
    assert [layer["name"] for layer in figures["layers"]] == ["grouped", "not grouped"]
    for layer in figures["layers"]:
        assert set(layer["errors"]) == {"native", *layer["speedup_over"]["1"]}
        assert len(layer["speedup_over"]["1"]) == 3
        for name, ratio in layer["speedup_over"]["1"].items():
            assert ratio["n"] == 6 and ratio["low"] <= ratio["median"] <= ratio["high"]
            assert layer["latency"]["1"][name]["native"]["n"] == 6
    assert figures["protocol"]["order"] == "interleaved ABAB" and figures["protocol"]["tokens"] == 128


def test_bytes_are_those_of_the_tensors(figures: dict[str, Any]) -> None:
    layer = figures["layers"][0]
    elements = 2 * 2 * 128 * 64  # keys and values of 2 heads
    # half a byte for each code; for every 64 of them a scale and a minimum of 2 bytes
    assert layer["cache_bytes"] == elements // 2 + elements // 64 * 4
    assert layer["cache_bytes_fp16"] == 2 * elements
    assert layer["cache_share"] == 0.28125 <= MOST_CACHE_SHARE


def test_the_table_has_every_figure(figures: dict[str, Any]) -> None:
    rows = figure_rows(figures)
    assert len(rows) == 2 * (3 + 2)
    assert rows[0][0] == "H=6, G=2, D=64, 1 thread: speed-up over MatMul, Softmax, MatMul" and rows[0][2] == "above 1"
    assert rows[3] == (
        "H=6, G=2, D=64: bytes of the cache over float16's, scales included",
        "0.281 (18432 of 65536)",
        "at most 0.29",
    )


def test_a_side_that_computes_something_else_is_not_timed(library: Library) -> None:
    problem = problem_of(SMALL[0], 128)
    errors_of(problem, calls_of(problem, 1, library))
    other = replace(problem, values=problem.values + 0.01)
    with pytest.raises(InternalError, match="native differs from attention in float64 by 1.0e-02; timing it means"):
        errors_of(other, calls_of(other, 1, library))


def test_the_layers_on_record_are_of_real_models() -> None:
    assert {(layer.heads, layer.kv_heads, layer.size) for layer in LAYERS} == {(32, 8, 128), (8, 8, 64)}
