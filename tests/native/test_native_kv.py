"""KVAppend and KVCompact in ONNX Runtime: in place where the output is bound to the cache's memory, never half done."""

import itertools
import json
import mmap
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from trt_compress.plugins.kv_append.op import kv_append
from trt_compress.plugins.kv_compact.op import kv_compact
from trt_compress.plugins.library import Library

WORKER = Path(__file__).with_name("in_place_worker.py")
HEAD_BYTES, PAGE = 4 * mmap.PAGESIZE, mmap.PAGESIZE
TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "uint8": TensorProto.UINT8,
    "int64": TensorProto.INT64,
}
INPUTS = {"TrtcKVAppend": ("cache", "rows", "position"), "TrtcKVCompact": ("cache", "index")}
LINEAR: dict[str, Any] = {"layout": 0, "sinks": 0}


def model_of(op_type: str, dtype: str = "float32", **attributes: Any) -> onnx.ModelProto:
    """One node whose inputs have any shape; without a body."""
    node = helper.make_node(op_type, INPUTS[op_type], ["cache_out"], domain="trt_compress", **attributes)

    def value(name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TYPES["int64" if name in ("position", "index") else dtype], None)

    graph = helper.make_graph([node], "one", [value(name) for name in INPUTS[op_type]], [value("cache_out")])
    return as_model(graph)


def as_model(graph: onnx.GraphProto) -> onnx.ModelProto:
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("trt_compress", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def session_of(model: onnx.ModelProto, library: Library) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.register_custom_ops_library(str(library.path))
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run_in_place(session: Any, cache: np.ndarray[Any, Any], **feeds: Any) -> Any:
    """Run with the memory of `cache` as input and as output."""
    value = onnxruntime.OrtValue.ortvalue_from_numpy(cache)
    assert value.data_ptr() == cache.ctypes.data
    binding = session.io_binding()
    binding.bind_ortvalue_input("cache", value)
    binding.bind_ortvalue_output("cache_out", value)
    for name, array in feeds.items():
        binding.bind_cpu_input(name, array)
    session.run_with_iobinding(binding)
    return binding.get_outputs()[0]


def cache_of(dtype: str) -> np.ndarray[Any, Any]:
    """Two KV heads of four pages each."""
    width = 64
    length = HEAD_BYTES // (width * np.dtype(dtype).itemsize)
    values = np.random.default_rng(0).integers(0, 256, (1, 2, length, width))
    return values.astype(dtype)


def case_of(op_type: str, dtype: str) -> tuple[dict[str, Any], np.ndarray[Any, Any]]:
    """Inputs that change the second page of each head (append) or the first one (compact), and what must come out."""
    cache = cache_of(dtype)
    row_bytes = cache[0, 0, 0].nbytes
    if op_type == "TrtcKVAppend":
        rows = (cache[:, :, :2] * 0 + 7).astype(dtype)
        position = np.array([PAGE // row_bytes + 3])
        wanted = kv_append(torch.from_numpy(cache), torch.from_numpy(rows), torch.from_numpy(position))
        return {"cache": cache, "rows": rows, "position": position}, wanted.numpy()
    kept, length = PAGE // row_bytes, cache.shape[2]
    index = np.stack([np.arange(length - kept, length), np.arange(0, 4 * kept, 4)])[None]
    wanted = kv_compact(torch.from_numpy(cache), torch.from_numpy(index))
    return {"cache": cache, "index": index}, wanted.numpy()


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
@pytest.mark.parametrize("op_type", INPUTS)
def test_bound_to_the_cache_only_new_rows_are_written(
    op_type: str, dtype: str, native_library: Library, tmp_path: Path
) -> None:
    feeds, wanted = case_of(op_type, dtype)
    np.savez(tmp_path / "in.npz", **feeds)
    onnx.save(model_of(op_type, dtype, **(LINEAR if op_type == "TrtcKVAppend" else {})), tmp_path / "model.onnx")
    pages = (1, 2) if op_type == "TrtcKVAppend" else (0, 1)

    def run(first: int, last: int) -> subprocess.CompletedProcess[str]:
        files = [str(native_library.path), str(tmp_path / "model.onnx"), str(tmp_path / "in.npz")]
        command = [sys.executable, str(WORKER), *files, str(first), str(last)]
        return subprocess.run(command, capture_output=True, text=True)

    done = run(*pages)
    assert done.returncode == 0, done.stderr
    addresses = json.loads(done.stdout)
    assert addresses["memory"] == addresses["input"] == addresses["output"]
    np.testing.assert_array_equal(np.load(f"{tmp_path}/in.npz.out.npy"), wanted)
    assert not np.array_equal(wanted, feeds["cache"])
    # The proof itself is sound: if the pages of the new rows are not to be written either, the process ends.
    assert run(2, 3).returncode == -signal.SIGSEGV


@pytest.mark.parametrize("op_type", INPUTS)
def test_another_output_leaves_the_cache_as_it_was(op_type: str, native_library: Library) -> None:
    feeds, wanted = case_of(op_type, "float32")
    session = session_of(model_of(op_type, **(LINEAR if op_type == "TrtcKVAppend" else {})), native_library)
    before = feeds["cache"].copy()
    np.testing.assert_array_equal(session.run(None, feeds)[0], wanted)
    np.testing.assert_array_equal(feeds["cache"], before)


def test_a_cache_that_is_still_needed_is_not_overwritten(native_library: Library) -> None:
    """Two nodes one after the other; both caches are outputs, so the second must not write into the first."""
    names = ["cache", "rows", "position", "next", "index"]
    nodes = [
        helper.make_node("TrtcKVAppend", names[:3], ["one"], domain="trt_compress", **LINEAR),
        helper.make_node("TrtcKVAppend", ["one", "rows", "next"], ["two"], domain="trt_compress", **LINEAR),
        helper.make_node("TrtcKVCompact", ["two", "index"], ["three"], domain="trt_compress"),
        helper.make_node("TrtcKVCompact", ["three", "index"], ["four"], domain="trt_compress"),
    ]
    kinds = [TensorProto.FLOAT, TensorProto.FLOAT, *[TensorProto.INT64] * 3]
    given = [helper.make_tensor_value_info(name, kind, None) for name, kind in zip(names, kinds, strict=True)]
    made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("one", "two", "four")]
    session = session_of(as_model(helper.make_graph(nodes, "chain", given, made)), native_library)
    cache, rows = torch.randn(2, 3, 9, 4), torch.randn(2, 3, 2, 4)
    position, index = torch.tensor([0, 5]), torch.tensor([1, 2, 6, 8]).expand(2, 3, 4).contiguous()
    tensors = (cache, rows, position, position + 2, index)
    found = session.run(None, {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)})
    one = kv_append(cache, rows, position)
    two = kv_append(one, rows, position + 2)
    wanted = (one, two, kv_compact(kv_compact(two, index), index))
    for array, tensor in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(array, tensor.numpy())


@pytest.mark.parametrize(("layout", "sinks"), [("linear", 0), ("ring", 0), ("ring", 1), ("ring", 3)])
def test_every_position_of_a_small_cache(layout: str, sinks: int, native_library: Library) -> None:
    length = 5
    session = session_of(model_of("TrtcKVAppend", layout=int(layout == "ring"), sinks=sinks), native_library)
    last = 3 * length if layout == "ring" else length
    for new, position in itertools.product(range(length - sinks + 1), range(last + 1)):
        if layout == "linear" and position + new > length:
            continue
        cache, rows = torch.randn(2, 2, length, 3), torch.randn(2, 2, new, 3)
        # the other item of the batch is one step behind
        positions = torch.tensor([position, max(position - 1, 0)])
        wanted = kv_append(cache, rows, positions, layout=layout, sinks=sinks).numpy()
        feeds = {"rows": rows.numpy(), "position": positions.numpy()}
        np.testing.assert_array_equal(session.run(None, {"cache": cache.numpy(), **feeds})[0], wanted)
        in_place = cache.numpy().copy()
        run_in_place(session, in_place, **feeds)
        np.testing.assert_array_equal(in_place, wanted)


def test_every_choice_of_a_small_cache(native_library: Library) -> None:
    session = session_of(model_of("TrtcKVCompact"), native_library)
    choices: list[Sequence[int]] = [c for k in range(7) for c in itertools.combinations(range(6), k)]
    for choice in choices:
        cache = torch.randn(1, 2, 6, 3)
        other = sorted(5 - slot for slot in choice)
        index = torch.tensor([[choice, other]], dtype=torch.int64)
        wanted = kv_compact(cache, index).numpy()
        np.testing.assert_array_equal(session.run(None, {"cache": cache.numpy(), "index": index.numpy()})[0], wanted)
        in_place = cache.numpy().copy()
        run_in_place(session, in_place, index=index.numpy())
        np.testing.assert_array_equal(in_place, wanted)


RING: dict[str, Any] = {"layout": 1, "sinks": 2}
CACHE, ROWS = (2, 1, 6, 3), (2, 1, 2, 3)
APPEND: list[tuple[dict[str, Any], tuple[int, ...], tuple[int, ...], list[int], str]] = [
    (LINEAR, CACHE, (2, 1, 2, 4), [0, 0], "rows has shape [2, 1, 2, 4]; it must be [2, 1, T, 3] with axes BGTW."),
    (LINEAR, CACHE, (2, 2, 2, 3), [0, 0], "rows has shape [2, 2, 2, 3]; it must be [2, 1, T, 3] with axes BGTW."),
    (LINEAR, CACHE, ROWS, [0], "position has shape [1]; it must be [2] with axes B."),
    ({"layout": 0, "sinks": 1}, CACHE, ROWS, [0, 0], "sinks=1 needs layout='ring'; a linear cache keeps all slots"),
    ({"layout": 1, "sinks": 6}, CACHE, ROWS, [0, 0], "sinks=6 is out of range; a ring of L=6 slots allows 0..5."),
    (
        RING,
        CACHE,
        (2, 1, 5, 3),
        [0, 0],
        "T=5 tokens at once do not fit into a ring of L=6 slots with sinks=2; append at most 4 at a time.",
    ),
    (LINEAR, CACHE, ROWS, [3, -1], "position holds -1; it counts the tokens written before and is 0 or more."),
    (RING, CACHE, ROWS, [-4, 1], "position holds -4; it counts the tokens written before and is 0 or more."),
    (
        LINEAR,
        CACHE,
        ROWS,
        [0, 5],
        "position holds 5, and T=2 more tokens exceed the cache of L=6 slots; give a longer cache or use layout='ring'",
    ),
    (LINEAR, CACHE, ROWS, [2**62, 0], "position holds 4611686018427387904, and T=2 more tokens exceed"),
]
COMPACT: list[tuple[Any, str]] = [
    ([[[0, 1, 6]]], "index holds 6; slots are 0..5."),
    ([[[-1, 1, 7]]], "index holds -1; slots are 0..5."),
    ([[[0, 2, 1]]], "index is not strictly ascending; sort the slots of each KV head, each once."),
    ([[[0, 2, 2]]], "index is not strictly ascending; sort the slots of each KV head, each once."),
    ([[[0, 1, 2, 3, 4, 5, 6]]], "index names K=7 slots of a cache that has L=6."),
    ([[[0], [1]]], "index has shape [1, 2, 1]; it must be [1, 1, K] with axes BGK."),
]


@pytest.mark.parametrize(("attributes", "cache", "rows", "position", "message"), APPEND)
def test_append_refuses_and_writes_nothing(
    attributes: dict[str, Any],
    cache: tuple[int, ...],
    rows: tuple[int, ...],
    position: list[int],
    message: str,
    native_library: Library,
) -> None:
    session = session_of(model_of("TrtcKVAppend", **attributes), native_library)
    memory = np.ones(cache, np.float32)
    with pytest.raises(Exception) as caught:  # noqa: B017, PT011  ONNX Runtime's exceptions have no common base
        run_in_place(session, memory, rows=np.zeros(rows, np.float32), position=np.array(position))
    assert f"TrtcKVAppend: {message}" in str(caught.value)
    assert (memory == 1).all()


@pytest.mark.parametrize(("index", "message"), COMPACT)
def test_compact_refuses_and_writes_nothing(index: Any, message: str, native_library: Library) -> None:
    session = session_of(model_of("TrtcKVCompact"), native_library)
    memory = np.arange(18, dtype=np.float32).reshape(1, 1, 6, 3)
    before = memory.copy()
    with pytest.raises(Exception) as caught:  # noqa: B017, PT011
        run_in_place(session, memory, index=np.array(index))
    assert f"TrtcKVCompact: {message}" in str(caught.value)
    np.testing.assert_array_equal(memory, before)


def test_a_wrong_attribute_is_refused_when_the_model_is_loaded(native_library: Library) -> None:
    with pytest.raises(Exception, match="TrtcKVAppend: layout is 2; allowed is 0 to 1"):  # noqa: B017, PT011
        session_of(model_of("TrtcKVAppend", layout=2, sinks=0), native_library)
    with pytest.raises(Exception, match="TrtcKVAppend: the attribute sinks is missing"):  # noqa: B017, PT011
        session_of(model_of("TrtcKVAppend", layout=0), native_library)
