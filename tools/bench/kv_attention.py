"""Decode attention over a packed cache: `python -m trt_compress.tools.bench.kv_attention [--quick]`.

One query of every head attends over a cache of 16384 tokens: native KVAttention over 4-bit codes against what ONNX
Runtime has for the same cache in float32: MatMul, Softmax, MatMul; the operator Attention of opset 23; and
GroupQueryAttention, which has the cache in place. All of them compute the same before they are timed. One JSON line is
appended to `tools/bench/results/kv_attention.jsonl`.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper
from torch import Tensor

from trt_compress.errors import InternalError
from trt_compress.plugins.build import build as build_native
from trt_compress.plugins.kv_attention.op import OPERATOR
from trt_compress.plugins.kv_attention.sides import side_inputs
from trt_compress.plugins.kv_format import dequantized
from trt_compress.plugins.kv_quantize.op import kv_quantize
from trt_compress.plugins.library import Library, require
from trt_compress.plugins.spec import DOMAIN, Sample
from trt_compress.plugins.testing import onnx_model
from trt_compress.runtime.backends.ort import register_native
from trt_compress.runtime.measure.latency import interleave, speedup, summarize, verdict
from trt_compress.tools.bench.records import append_record, speedup_text
from trt_compress.tools.console import print_table, progress
from trt_compress.tools.machine import cpu_cores

RESULTS = Path(__file__).parent / "results" / "kv_attention.jsonl"
BITS, GROUP, TOKENS, WARMUP = 4, 64, 16384, 3
MOST_CACHE_SHARE = 0.29
LARGEST_ERROR = 1e-5  # of results that are means of values of about 1, so of about 0.01 at 16384 tokens

Array = np.ndarray[Any, Any]
Step = Callable[[str], None]
Call = Callable[[], Array]


@dataclass(frozen=True, slots=True, kw_only=True)
class Heads:
    """Attention of one layer: H query heads share G KV heads of size D."""

    name: str
    heads: int
    kv_heads: int
    size: int


LAYERS = (
    Heads(name="Llama-3-8B", heads=32, kv_heads=8, size=128),
    Heads(name="no grouped heads", heads=8, kv_heads=8, size=64),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One query of every head and a cache: packed, and the same numbers in float32."""

    layer: Heads
    q: Tensor
    packed: tuple[Tensor, ...]
    keys: Array
    values: Array

    @property
    def expected(self) -> Array:
        """The attention in float64, [H, D]."""
        repeats = self.layer.heads // self.layer.kv_heads
        q = self.q.numpy().astype(np.float64).reshape(self.layer.kv_heads, repeats, self.layer.size)
        products = q @ self.keys[0].astype(np.float64).transpose(0, 2, 1) / np.sqrt(self.layer.size)
        weights = np.exp(products - products.max(axis=2, keepdims=True))
        means: Array = weights @ self.values[0].astype(np.float64) / weights.sum(axis=2, keepdims=True)
        return means.reshape(self.layer.heads, self.layer.size)

    @property
    def packed_bytes(self) -> int:
        """Of codes, scales and minima."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.packed)

    @property
    def half_bytes(self) -> int:
        """Of the same cache in float16."""
        return 2 * (self.keys.size + self.values.size)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few samples, nothing recorded: to see that it runs")
    quick = parser.parse_args(arguments).quick
    with progress("KVAttention") as step:
        threads = sorted({1, cpu_cores()})
        figures = measure(LAYERS, tokens=TOKENS, threads=threads, pairs=6 if quick else 40, step=step)
    title = f"{BITS} bits, {TOKENS} tokens, one query, ONNX Runtime on the CPU"
    print_table(title, ("figure", "measured", "wanted"), figure_rows(figures))
    if not quick:
        append_record(RESULTS, "kv_attention", figures)
    return 0


def measure(layers: Sequence[Heads], *, tokens: int, threads: Sequence[int], pairs: int, step: Step) -> dict[str, Any]:
    """All figures.

    Args:
        layers: What is timed.
        tokens: In the cache, a multiple of GROUP.
        threads: Numbers of threads, ascending; after one above 1 every session of this process shares a pool.
        pairs: Timed runs of each side.
        step: Takes what is being done.

    Raises:
        InternalError: A side does not compute attention.
    """
    step("building the native operators")
    build_native(only=("onnxruntime",))
    library = require("onnxruntime")
    problems = []
    for layer in layers:
        step(f"{layer.name}: quantizing {tokens} tokens")
        problems.append(problem_of(layer, tokens))
    results: list[dict[str, Any]] = [
        {**_facts(problem), "errors": {}, "speedup_over": {}, "latency": {}, "verdict": {}} for problem in problems
    ]
    for count in threads:
        if count > 1:
            # One pool for all sessions: pools of their own take the cores from each other.
            onnxruntime.set_global_thread_pool_sizes(count, 1)
        for problem, result in zip(problems, results, strict=True):
            step(f"{problem.layer.name}: timing {pairs} pairs, {count} threads")
            _time(problem, count, library, pairs, result)
    return {
        "layers": results,
        "protocol": {
            "bits": BITS,
            "group": GROUP,
            "keys": "groups of tokens",
            "values": "groups of channels",
            "scales": "float16",
            "tokens": tokens,
            "queries": 1,
            "batch": 1,
            "pairs": pairs,
            "warmup": WARMUP,
            "order": "interleaved ABAB",
            "threads": list(threads),
            "inputs": "random, seed 0",
        },
    }


def problem_of(layer: Heads, tokens: int) -> Problem:
    """Random queries, keys and values; the cache in float32 is what the codes stand for."""
    generator = torch.Generator().manual_seed(0)
    shape = (1, layer.kv_heads, tokens, layer.size)
    q = torch.randn(1, layer.heads, 1, layer.size, generator=generator)
    k = kv_quantize(torch.randn(shape, generator=generator), bits=BITS, axis="channel", group=GROUP)
    v = kv_quantize(torch.randn(shape, generator=generator), bits=BITS, axis="token", group=GROUP)
    keys = dequantized(*k, bits=BITS, axis=0, group=GROUP).contiguous().numpy()
    values = dequantized(*v, bits=BITS, axis=1, group=GROUP).contiguous().numpy()
    return Problem(layer=layer, q=q, packed=(*k, *v), keys=keys, values=values)


def calls_of(problem: Problem, threads: int, library: Library) -> dict[str, Call]:
    """What is timed, by name; each gives its result as [1, H, 1, D] or an array of the same numbers."""
    return {
        "native": _native(problem, threads, library),
        "MatMul, Softmax, MatMul": _products(problem, threads),
        "Attention (opset 23)": _attention(problem, threads),
        "GroupQueryAttention": _grouped(problem, threads),
    }


def errors_of(problem: Problem, calls: Mapping[str, Call]) -> dict[str, float]:
    """The largest difference of each from attention in float64.

    Raises:
        InternalError: One is not attention over this cache.
    """
    expected, errors = problem.expected, {}
    for name, call in calls.items():
        errors[name] = float(np.abs(call().reshape(expected.shape) - expected).max())
        if not errors[name] <= LARGEST_ERROR:
            raise InternalError(
                f"{name} differs from attention in float64 by {errors[name]:.1e}; timing it means nothing."
            )
    return errors


def _time(problem: Problem, threads: int, library: Library, pairs: int, result: dict[str, Any]) -> None:
    calls = calls_of(problem, threads, library)
    for name, error in errors_of(problem, calls).items():
        result["errors"][name] = max(result["errors"].get(name, 0.0), error)
    native = calls.pop("native")
    ratios, latencies, verdicts = {}, {}, {}
    for name, call in calls.items():
        samples = interleave(native, call, warmup=WARMUP, pairs=pairs)
        ratios[name] = speedup(samples.a_ns, samples.b_ns).to_json()
        latencies[name] = {"native": summarize(samples.a_ns).to_json(), "float32": summarize(samples.b_ns).to_json()}
        verdicts[name] = verdict(samples.a_ns, device="cpu").to_json()
    result["speedup_over"][str(threads)] = ratios
    result["latency"][str(threads)] = latencies
    result["verdict"][str(threads)] = verdicts


def _facts(problem: Problem) -> dict[str, Any]:
    layer = problem.layer
    return {
        "name": layer.name,
        "heads": layer.heads,
        "kv_heads": layer.kv_heads,
        "head_size": layer.size,
        "cache_bytes": problem.packed_bytes,
        "cache_bytes_fp16": problem.half_bytes,
        "cache_share": problem.packed_bytes / problem.half_bytes,
    }


def session_of(model: onnx.ModelProto, threads: int, library: Library | None = None) -> Any:
    """A session with one thread of its own, or with the threads that all sessions share."""
    options = onnxruntime.SessionOptions()
    if library is not None:
        register_native(options, library)
    if threads == 1:
        options.intra_op_num_threads = 1
    else:
        options.use_per_session_threads = False
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _native(problem: Problem, threads: int, library: Library) -> Call:
    b, h, t, d = problem.q.shape
    g, length = problem.keys.shape[1:3]
    attributes = {"k_bits": BITS, "k_axis": 0, "k_group": GROUP, "v_bits": BITS, "v_axis": 1, "v_group": GROUP}
    sample = Sample(
        axes={"B": b, "H": h, "G": g, "T": t, "L": length, "D": d},
        attributes={
            **attributes,
            **{"scale": 0.0, "causal": 0, "window": 0, "softcap": 0.0, "layout": 0, "sinks": 0, "indexed": 0},
            **{"k_rank": 0, "v_rank": 0, "block": 0, "turned": 0},
        },
        reason="benchmark",
    )
    inputs = (
        problem.q,
        *problem.packed,
        torch.full((b,), length),
        torch.zeros(1, 1, 1, 1),
        torch.full((1, 1, 1), -1),
        *side_inputs(sample, torch.Generator()),
    )
    model = onnx_model(OPERATOR, sample, inputs, (problem.q, torch.empty(b, h, t)), body=False)
    session = session_of(model, threads, library)
    feed = {spec.name: tensor.numpy() for spec, tensor in zip(OPERATOR.spec.inputs, inputs, strict=True)}
    return lambda: session.run(["y"], feed)[0]


def _products(problem: Problem, threads: int) -> Call:
    """Query heads of one KV head are rows of one product, so that no key is copied."""
    layer = problem.layer
    q = problem.q.numpy().reshape(1, layer.kv_heads, -1, layer.size)
    nodes = [
        helper.make_node("Transpose", ["k"], ["columns"], perm=[0, 1, 3, 2]),
        helper.make_node("Constant", [], ["scale"], value_float=float(1 / np.sqrt(layer.size))),
        helper.make_node("MatMul", ["q", "columns"], ["products"]),
        helper.make_node("Mul", ["products", "scale"], ["scaled"]),
        helper.make_node("Softmax", ["scaled"], ["weights"], axis=-1),
        helper.make_node("MatMul", ["weights", "v"], ["y"]),
    ]
    feed = {"q": q, "k": problem.keys, "v": problem.values}
    session = session_of(model_of(nodes, feed, {"y": q.shape}, opset=20), threads)
    return lambda: session.run(["y"], feed)[0]


def _attention(problem: Problem, threads: int) -> Call:
    feed = {"q": problem.q.numpy(), "k": problem.keys, "v": problem.values}
    node = helper.make_node("Attention", ["q", "k", "v"], ["y"])
    session = session_of(model_of([node], feed, {"y": tuple(problem.q.shape)}, opset=23), threads)
    return lambda: session.run(["y"], feed)[0]


def _grouped(problem: Problem, threads: int) -> Call:
    """The last token is given apart, and written into the cache, which is bound as input and as output."""
    layer, length = problem.layer, problem.keys.shape[2]
    feed = {
        "q": problem.q.numpy().reshape(1, 1, -1),
        "k": np.ascontiguousarray(problem.keys[:, :, -1]).reshape(1, 1, -1),
        "v": np.ascontiguousarray(problem.values[:, :, -1]).reshape(1, 1, -1),
        "keys": problem.keys.copy(),
        "values": problem.values.copy(),
        "last": np.array([length - 1], np.int32),
        "total": np.array(length, np.int32),
    }
    outputs = {"y": feed["q"].shape, "keys_out": problem.keys.shape, "values_out": problem.values.shape}
    sizes = {"num_heads": layer.heads, "kv_num_heads": layer.kv_heads}
    node = helper.make_node("GroupQueryAttention", list(feed), list(outputs), domain="com.microsoft", **sizes)  # type: ignore[arg-type]
    session = session_of(model_of([node], feed, outputs, opset=20), threads)
    binding = session.io_binding()
    given = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in feed.items()}
    for name, value in given.items():
        binding.bind_ortvalue_input(name, value)
    binding.bind_output("y")
    for name in ("keys", "values"):
        binding.bind_ortvalue_output(f"{name}_out", given[name])

    def call() -> Array:
        session.run_with_iobinding(binding)
        found: Array = binding.get_outputs()[0].numpy()
        return found

    return call


def model_of(
    nodes: Sequence[onnx.NodeProto],
    feed: Mapping[str, Array],
    outputs: Mapping[str, Sequence[int]],
    *,
    opset: int,
    types: Mapping[str, int] | None = None,
) -> onnx.ModelProto:
    """A model of these nodes for inputs as in `feed`; outputs are float32 unless `types` says otherwise."""
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in feed.items()
    ]
    results = [
        helper.make_tensor_value_info(name, (types or {}).get(name, TensorProto.FLOAT), shape)
        for name, shape in outputs.items()
    ]
    domains = {"": opset, "com.microsoft": 1, DOMAIN: 1}
    opsets = [helper.make_opsetid(domain, version) for domain, version in domains.items()]
    graph = helper.make_graph(nodes, "attention", inputs, results)
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def figure_rows(figures: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """What was measured beside what is wanted, in words."""
    rows = []
    for layer in figures["layers"]:
        sizes = f"H={layer['heads']}, G={layer['kv_heads']}, D={layer['head_size']}"
        for threads, ratios in layer["speedup_over"].items():
            for name, ratio in ratios.items():
                latency = layer["latency"][threads][name]
                times = ", ".join(f"{side} {latency[side]['median_ns'] / 1e6:.2f} ms" for side in latency)
                what = f"{sizes}, {threads} threads: speed-up over {name}".replace(", 1 threads", ", 1 thread")
                rows.append((what, f"{speedup_text(ratio)} ({times})", "above 1"))
        rows.append(
            (
                f"{sizes}: bytes of the cache over float16's, scales included",
                f"{layer['cache_share']:.3f} ({layer['cache_bytes']} of {layer['cache_bytes_fp16']})",
                f"at most {MOST_CACHE_SHARE}",
            )
        )
        rows.append((f"{sizes}: largest error against float64", f"{max(layer['errors'].values()):.1e}", "reported"))
    return rows


if __name__ == "__main__":
    sys.exit(main())
