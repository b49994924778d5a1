"""The benchmark of attention over a cache of floats, on a small one: what it checks, what it says."""

import shutil
from typing import Any

import numpy as np
import pytest

from trt_compress.errors import InternalError
from trt_compress.plugins.build import build
from trt_compress.tools.bench import kv_attention_plain
from trt_compress.tools.bench.kv_attention_plain import CASES, LayerCase, measure, rows_of

SMALL = (
    LayerCase(name="decode", heads=6, kv_heads=2, size=64, new=1, fill=40),
    LayerCase(name="prompt", heads=6, kv_heads=2, size=64, new=20, fill=30),
)
STORES = ("float32", "float16")


@pytest.fixture(scope="module")
def figures() -> dict[str, Any]:
    if shutil.which("cmake") is None or not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("the native operators cannot be built without cmake and a C++ compiler")
    build(only=("onnxruntime",))
    return measure(SMALL, threads=(1,), pairs=6, step=lambda _: None)


def test_every_store_is_timed_against_every_side(figures: dict[str, Any]) -> None:
    sides = [(one["layer"], one["store"], one["over"]) for one in figures["cases"]]
    decoding = [("decode", store, "GroupQueryAttention") for store in STORES]
    prompts = [("prompt", store, over) for store in STORES for over in ("GroupQueryAttention", "causal graph")]
    assert sides == decoding + prompts
    assert all(one["latency"][side]["n"] == 6 for one in figures["cases"] for side in ("native", "other"))
    assert rows_of(figures)[2][0] == "prompt, 20 new behind 30, float32, 1 thread: over GroupQueryAttention"


def test_a_side_that_computes_something_else_is_not_timed(
    figures: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = kv_attention_plain.expected_of
    monkeypatch.setattr(kv_attention_plain, "expected_of", lambda *given: np.asarray(right(*given)) + 0.01)
    with pytest.raises(InternalError, match="native differs from attention in float64 by 1.0e-02; timing it means"):
        measure(SMALL[:1], threads=(1,), pairs=6, step=lambda _: None)


def test_the_cases_on_record_are_of_real_models() -> None:
    assert {(case.heads, case.kv_heads, case.size) for case in CASES} == {(9, 3, 64), (32, 8, 128)}
    assert {(case.new, case.length) for case in CASES} == {
        *((1, length) for length in (128, 2048, 8192)),
        *((256, length) for length in (256, 2304, 8448)),
    }
