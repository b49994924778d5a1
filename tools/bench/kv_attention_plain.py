"""Attention over a cache of floats: `python -m trt_compress.tools.bench.kv_attention_plain [--quick]`.

One layer of a decoder, from new rows to means: native KVAppend for keys and values, in place, then KVAttentionPlain
over caches of float32 and float16, against ONNX Runtime's GroupQueryAttention over a shared buffer, and for prompts
against an ordinary causal graph (MatMul, Add of a mask, Softmax, MatMul), which writes no cache. Decoding has one new
token, prompts chunks of 256. All of them compute the same before they are timed. One JSON line is appended to
`tools/bench/results/kv_attention_plain.jsonl`.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnx import helper

from trt_compress.errors import InternalError
from trt_compress.plugins.build import build as build_native
from trt_compress.plugins.library import Library, require
from trt_compress.plugins.spec import DOMAIN
from trt_compress.runtime.measure.latency import interleave, speedup, summarize, verdict
from trt_compress.tools.bench.kv_attention import model_of, session_of
from trt_compress.tools.bench.records import append_record, speedup_text
from trt_compress.tools.console import print_table, progress
from trt_compress.tools.machine import cpu_cores

RESULTS = Path(__file__).parent / "results" / "kv_attention_plain.jsonl"
WARMUP = 3
LARGEST_ERROR = {"float32": 1e-5, "float16": 2e-3}

Array = np.ndarray[Any, Any]
Call = Callable[[], Array]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCase:
    """New tokens of one layer behind `fill` others; H query heads share G KV heads of size D."""

    name: str
    heads: int
    kv_heads: int
    size: int
    new: int
    fill: int

    @property
    def length(self) -> int:
        return self.fill + self.new


_LAYERS = (("SmolLM2-135M", 9, 3, 64), ("Llama-3-8B", 32, 8, 128))
CASES = tuple(
    LayerCase(name=name, heads=h, kv_heads=g, size=d, new=new, fill=fill)
    for name, h, g, d in _LAYERS
    for new, fills in ((1, (127, 2047, 8191)), (256, (0, 2048, 8192)))
    for fill in fills
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few samples, nothing recorded: to see that it runs")
    quick = parser.parse_args(arguments).quick
    with progress("KVAttentionPlain") as step:
        figures = measure(CASES, threads=sorted({1, cpu_cores()}), pairs=6 if quick else 30, step=step)
    print_table("one layer of attention, ONNX Runtime on the CPU", ("figure", "measured", "wanted"), rows_of(figures))
    if not quick:
        append_record(RESULTS, "kv_attention_plain", figures)
    return 0


def measure(
    cases: Sequence[LayerCase], *, threads: Sequence[int], pairs: int, step: Callable[[str], None]
) -> dict[str, Any]:
    """All figures.

    Args:
        cases: What is timed.
        threads: Numbers of threads, ascending; after one above 1 every session of this process shares a pool.
        pairs: Timed runs of each side.
        step: Takes what is being done.

    Raises:
        InternalError: A side does not compute attention.
    """
    step("building the native operators")
    build_native(only=("onnxruntime",))
    library = require("onnxruntime")
    found: list[dict[str, Any]] = []
    for count in threads:
        if count > 1:
            # One pool for all sessions: pools of their own take the cores from each other.
            onnxruntime.set_global_thread_pool_sizes(count, 1)
        for case in cases:
            step(f"{case.name}: {case.new} new behind {case.fill}, {count} threads")
            found += timed(case, count, library, pairs)
    protocol = {"batch": 1, "pairs": pairs, "warmup": WARMUP, "order": "interleaved ABAB", "inputs": "random, seed 0"}
    return {"cases": found, "protocol": {**protocol, "threads": list(threads)}}


def timed(case: LayerCase, threads: int, library: Library, pairs: int) -> list[dict[str, Any]]:
    """The figures of one case: each store of the native side against each other side."""
    arrays = arrays_of(case)
    expected = expected_of(case, arrays)
    others: dict[str, Call] = {"GroupQueryAttention": _grouped(case, arrays, threads)}
    if case.new > 1:
        others["causal graph"] = _causal(case, arrays, threads)
    results = []
    for store in LARGEST_ERROR:
        native = _native(case, arrays, threads, library, store)
        for name, call in {"native": native, **others}.items():
            error = float(np.abs(_by_head(case, call()) - expected).max())
            if not error <= LARGEST_ERROR[store if name == "native" else "float32"]:
                raise InternalError(
                    f"{name} differs from attention in float64 by {error:.1e}; timing it means nothing."
                )
        for name, call in others.items():
            samples = interleave(native, call, warmup=WARMUP, pairs=pairs)
            results.append(
                {
                    **{"layer": case.name, "heads": case.heads, "kv_heads": case.kv_heads, "head_size": case.size},
                    **{"new": case.new, "fill": case.fill, "store": store, "threads": threads, "over": name},
                    "speedup": speedup(samples.a_ns, samples.b_ns).to_json(),
                    "latency": {
                        "native": summarize(samples.a_ns).to_json(),
                        "other": summarize(samples.b_ns).to_json(),
                    },
                    "verdict": verdict(samples.a_ns, device="cpu").to_json(),
                }
            )
    return results


def arrays_of(case: LayerCase) -> dict[str, Array]:
    """Random queries, keys and values in float32, by [1, heads, tokens, D]."""
    random = np.random.default_rng(0)
    shapes = {"q": (case.heads, case.new), "k": (case.kv_heads, case.length), "v": (case.kv_heads, case.length)}
    return {name: random.standard_normal((1, *shape, case.size), np.float32) for name, shape in shapes.items()}


def expected_of(case: LayerCase, arrays: Mapping[str, Array]) -> Array:
    """Causal attention in float64, [1, H, T, D]."""
    repeats, found = case.heads // case.kv_heads, []
    hidden = np.arange(case.length)[None] > np.arange(case.fill, case.length)[:, None]
    for head in range(case.heads):
        keys, values = (arrays[name][0, head // repeats].astype(np.float64) for name in "kv")
        products = arrays["q"][0, head].astype(np.float64) @ keys.T / np.sqrt(case.size)
        products[hidden] = -np.inf
        weights = np.exp(products - products.max(axis=1, keepdims=True))
        found.append(weights @ values / weights.sum(axis=1, keepdims=True))
    return np.stack(found)[None]


def _by_head(case: LayerCase, y: Array) -> Array:
    """What a side gives, as [1, H, T, D]."""
    if y.ndim == 3:
        return y.reshape(1, case.new, case.heads, case.size).transpose(0, 2, 1, 3)
    return y.reshape(1, case.heads, case.new, case.size)


def _native(case: LayerCase, arrays: Mapping[str, Array], threads: int, library: Library, store: str) -> Call:
    linear, fill = {"layout": 0, "sinks": 0}, case.fill
    feed = {
        "q": arrays["q"],
        **{f"{name}_rows": arrays[name][:, :, fill:].astype(store) for name in "kv"},
        **{f"{name}_cache": arrays[name].astype(store) for name in "kv"},
        "position": np.array([fill]),
        "length": np.array([case.length]),
        "bias": np.zeros((1, 1, 1, 1), np.float32),
        "index": np.full((1, 1, 1), -1),
    }
    for name in "kv":
        feed[f"{name}_cache"][:, :, fill:] = 0
    nodes = [
        helper.make_node(
            "TrtcKVAppend",
            [f"{name}_cache", f"{name}_rows", "position"],
            [f"{name}_out"],
            domain=DOMAIN,
            **linear,  # type: ignore[arg-type]
        )
        for name in "kv"
    ]
    attributes = {"scale": 0.0, "causal": 1, "window": 0, "softcap": 0.0, **linear, "indexed": 0}
    inputs = ["q", "k_out", "v_out", "length", "bias", "index"]
    nodes.append(
        helper.make_node("TrtcKVAttentionPlain", inputs, ["y", "lse"], domain=DOMAIN, **attributes)  # type: ignore[arg-type]
    )
    outputs = {"y": arrays["q"].shape, **{f"{name}_out": feed[f"{name}_cache"].shape for name in "kv"}}
    types = {f"{name}_out": helper.np_dtype_to_tensor_dtype(np.dtype(store)) for name in "kv"}
    session = session_of(model_of(nodes, feed, outputs, opset=20, types=types), threads, library)
    return _bound(session, feed, {"k_out": "k_cache", "v_out": "v_cache"})


def _grouped(case: LayerCase, arrays: Mapping[str, Array], threads: int) -> Call:
    def flat(array: Array) -> Array:
        return np.ascontiguousarray(array.transpose(0, 2, 1, 3)).reshape(1, case.new, -1)

    feed = {
        "q": flat(arrays["q"]),
        **{name: flat(arrays[name][:, :, case.fill :]) for name in "kv"},
        **{f"{name}_cache": arrays[name].copy() for name in "kv"},
        "last": np.array([case.length - 1], np.int32),
        "total": np.array(case.length, np.int32),
    }
    outputs = {"y": feed["q"].shape, **{f"{name}_out": arrays[name].shape for name in "kv"}}
    sizes = {"num_heads": case.heads, "kv_num_heads": case.kv_heads}
    node = helper.make_node("GroupQueryAttention", list(feed), list(outputs), domain="com.microsoft", **sizes)  # type: ignore[arg-type]
    return _bound(
        session_of(model_of([node], feed, outputs, opset=20), threads), feed, {"k_out": "k_cache", "v_out": "v_cache"}
    )


def _causal(case: LayerCase, arrays: Mapping[str, Array], threads: int) -> Call:
    """Query heads of one KV head are rows of one product, so that no key is copied; the mask is there already."""
    repeats = case.heads // case.kv_heads
    hidden = np.arange(case.length)[None] > np.arange(case.fill, case.length)[:, None]
    feed = {
        "q": arrays["q"].reshape(1, case.kv_heads, -1, case.size),
        "k": arrays["k"],
        "v": arrays["v"],
        "mask": np.tile(np.where(hidden, -np.inf, 0).astype(np.float32), (repeats, 1)),
    }
    nodes = [
        helper.make_node("Transpose", ["k"], ["columns"], perm=[0, 1, 3, 2]),
        helper.make_node("Constant", [], ["scale"], value_float=float(1 / np.sqrt(case.size))),
        helper.make_node("MatMul", ["q", "columns"], ["products"]),
        helper.make_node("Mul", ["products", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "mask"], ["masked"]),
        helper.make_node("Softmax", ["masked"], ["weights"], axis=-1),
        helper.make_node("MatMul", ["weights", "v"], ["y"]),
    ]
    return _bound(session_of(model_of(nodes, feed, {"y": feed["q"].shape}, opset=20), threads), feed, {})


def _bound(session: Any, feed: Mapping[str, Array], in_place: Mapping[str, str]) -> Call:
    """Runs with everything bound; `in_place` names outputs that are written into an input."""
    binding = session.io_binding()
    given = {
        name: onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array)) for name, array in feed.items()
    }
    for name, value in given.items():
        binding.bind_ortvalue_input(name, value)
    binding.bind_output("y")
    for name, source in in_place.items():
        binding.bind_ortvalue_output(name, given[source])

    def call() -> Array:
        session.run_with_iobinding(binding)
        found: Array = binding.get_outputs()[0].numpy()
        return found

    return call


def rows_of(figures: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """What was measured beside what is wanted, in words."""
    rows = []
    for one in figures["cases"]:
        times = [one["latency"][side]["median_ns"] / 1e6 for side in ("native", "other")]
        threads = f"{one['threads']} thread{'s' if one['threads'] > 1 else ''}"
        what = f"{one['layer']}, {one['new']} new behind {one['fill']}, {one['store']}, {threads}: over {one['over']}"
        wanted = "1 or more" if one["store"] == "float32" else "reported"
        rows.append((what, f"{speedup_text(one['speedup'])} ({times[0]:.3f} ms against {times[1]:.3f} ms)", wanted))
    return rows


if __name__ == "__main__":
    sys.exit(main())
