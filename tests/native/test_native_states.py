"""States that native operators update in place: only where it is sure, and then nothing is copied or moves."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from trt_compress.errors import BundleError, ConfigError, UnsupportedError
from trt_compress.export.bundle import write_bundle
from trt_compress.export.lower import add_bodies
from trt_compress.format.bundle import Bundle
from trt_compress.format.graphs import Graph, State, TensorInfo
from trt_compress.format.manifest import Batch, Manifest, Model, Weights
from trt_compress.plugins.library import Library
from trt_compress.runtime.session import Session
from trt_compress.runtime.states import States
from trt_compress.tools.bench.states import token, write_toy

SLOTS = 6
TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "int64": TensorProto.INT64}
Shape = tuple[int | str, ...]


def append(cache: str = "cache", out: str = "kept", rows: str = "rows", name: str = "append") -> onnx.NodeProto:
    return helper.make_node(
        "TrtcKVAppend", [cache, rows, "position"], [out], name=name, domain="trt_compress", layout=0, sinks=0
    )


def node(op_type: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op_type, inputs.split(), [output], name=output, **attributes)


def branch(reads: str) -> onnx.GraphProto:
    out = helper.make_tensor_value_info(f"of_{reads}", TensorProto.FLOAT, None)
    return helper.make_graph([node("Neg", reads, f"of_{reads}")], reads, [], [out])


COMPACT = [  # the two largest slots of the old cache go to its front
    node("ReduceSum", "cache last", "sums", keepdims=0),
    helper.make_node("TopK", ["sums", "two"], ["largest", "chosen"], axis=2),
    node("Cast", "chosen", "as_float", to=TensorProto.FLOAT),
    helper.make_node("TopK", ["as_float", "two"], ["sorted", "order"], axis=2, largest=0),
    node("Cast", "sorted", "index", to=TensorProto.INT64),
    helper.make_node("TrtcKVCompact", ["cache", "index"], ["kept"], name="compact", domain="trt_compress"),
    node("Identity", "kept", "seen"),
]
FORMS: dict[str, tuple[list[onnx.NodeProto], str]] = {
    "nothing else reads it": ([append(), node("Neg", "kept", "seen")], "in place"),
    "the choice comes from the old value": (COMPACT, "in place"),
    "the old value is read by what does not wait": ([append(), node("Neg", "cache", "seen")], "swapped"),
    "a view of the old value": (
        [node("Identity", "cache", "same"), append(), node("Add", "same kept", "seen")],
        "swapped",
    ),
    "a view that the writer waits for is read after it": (
        [
            node("Squeeze", "cache one_axis", "view"),
            node("ReduceMax", "view", "most", keepdims=1),
            node("Add", "rows most", "more"),
            append(rows="more"),
            node("Unsqueeze", "view one_axis", "seen"),
        ],
        "swapped",
    ),
    "a second writer behind the first": (
        [append(out="half"), append("half", name="again"), node("Neg", "kept", "seen")],
        "swapped",
    ),
    "another operator writes it": (
        [append(out="half"), node("Neg", "half", "kept"), node("Neg", "kept", "seen")],
        "swapped",
    ),
    "its rows follow from the old value": (
        [
            node("ReduceMax", "cache", "most", keepdims=1),
            node("Add", "rows most", "more"),
            append(rows="more"),
            node("Neg", "kept", "seen"),
        ],
        "in place",
    ),
    "a branch may read it": (
        [
            append(),
            node("ReduceMax", "position", "furthest", keepdims=0),
            node("Greater", "furthest three", "later"),
            helper.make_node("If", ["later"], ["seen"], then_branch=branch("cache"), else_branch=branch("kept")),
        ],
        "swapped",
    ),
}


def bundle_of(folder: Path, nodes: list[onnx.NodeProto], dtype: str = "float32") -> Bundle:
    cache: Shape = ("batch", 1, SLOTS, 4)
    inputs: dict[str, tuple[str, Shape]] = {
        "rows": (dtype, ("batch", 1, 1, 4)),
        "position": ("int64", ("batch",)),
        "cache": (dtype, cache),
    }
    outputs: dict[str, tuple[str, Shape]] = {"seen": (dtype, cache), "kept": (dtype, cache)}
    constants = {
        "last": np.array([3]), "two": np.array([2]), "one_axis": np.array([1]), "three": np.array(3),
    }  # fmt: skip
    sides = [
        [helper.make_tensor_value_info(name, TYPES[kind], list(shape)) for name, (kind, shape) in side.items()]
        for side in (inputs, outputs)
    ]
    weights = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "model", sides[0], sides[1], weights)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("trt_compress", 1)]
    model = add_bodies(helper.make_model(graph, opset_imports=opsets, ir_version=10))
    infos = [
        tuple(TensorInfo(name=name, dtype=kind, shape=shape) for name, (kind, shape) in side.items())
        for side in (inputs, outputs)
    ]
    manifest = Manifest(
        name="native states",
        created_with={},
        model=Model(source="zoo:test", family="test", weights=Weights(source="none")),
        recipe={},
        precision="fp32",
        opset=20,
        batch=Batch(min=1, opt=1, max=8),
        graphs=(Graph(name="model", file="model.onnx", inputs=infos[0], outputs=infos[1]),),
        states=(State(graph="model", input="cache", output="kept", shape=cache, dtype=dtype, initial={"fill": 0.5}),),
        preprocess={"kind": "tensors"},
    )
    return write_bundle(folder, manifest, {"model.onnx": model.SerializeToString()})


def feeds(dtype: str = "float32") -> list[dict[str, np.ndarray]]:
    generator = np.random.default_rng(0)
    return [
        {
            "rows": generator.normal(size=(2, 1, 1, 4)).astype(dtype),
            "position": np.array([place, SLOTS - 1 - place]),
        }
        for place in (0, 1, 3, 4, 5)
    ]


def runs(session: Session, states: States, dtype: str = "float32") -> list[np.ndarray]:
    found = []
    for feed in feeds(dtype):
        found.append(session.run(feed, states)["seen"])
        kept = states.value("model.cache")
        assert kept is not None
        found.append(kept)
    return found


@pytest.mark.parametrize("form", FORMS)
def test_a_state_is_updated_in_place_only_where_that_is_sure(
    form: str, tmp_path: Path, native_library: Library
) -> None:
    """Native sessions and those of standard operators agree bit by bit over five steps, whichever way it is."""
    nodes, update = FORMS[form]
    bundle = bundle_of(tmp_path / "b", nodes)
    with Session.open(bundle, threads=1, native=native_library.path) as session:
        states = session.new_states()
        native = runs(session, states)
        (info,) = states.infos()
        assert info.update == update and len(info.addresses) == (1 if update == "in place" else 2)
    with Session.open(bundle, threads=1, native=False) as session:
        states = session.new_states()
        for expected, found in zip(runs(session, states), native, strict=True):
            np.testing.assert_array_equal(found, expected)
        assert states.infos()[0].update == "swapped"


def test_nothing_moves_and_nothing_is_copied_in_a_decoder(tmp_path: Path, native_library: Library) -> None:
    """The memory that was bound in the first step is where every step writes, one row a token, and nothing else."""
    with Session.open(write_toy(tmp_path / "b", 2, 64, 8), threads=1, native=native_library.path) as session:
        states = session.new_states()
        session.run(token(0, 8), states)
        buffers = {key: value.current.read() for key, value in states._memory.values.items()}
        places = [info.addresses for info in states.infos()]
        assert [array.ctypes.data for array in buffers.values()] == [address for (address,) in places]
        for number in range(1, 40):
            before = {key: array.copy() for key, array in buffers.items()}
            session.run(token(number, 8), states)
            for key, array in buffers.items():
                changed = np.flatnonzero((array != before[key]).any(axis=(0, 1, 3)))
                assert changed.tolist() == [number]
        assert [info.addresses for info in states.infos()] == places
        assert {info.update for info in states.infos()} == {"in place"} and states.allocated_bytes == states.bytes


def test_a_fork_of_states_in_place_is_independent(tmp_path: Path, native_library: Library) -> None:
    with Session.open(write_toy(tmp_path / "b", 2, 16, 8), threads=1, native=native_library.path) as session:
        states = session.new_states()
        session.run(token(0, 8), states)
        other = states.fork()
        other.repeat(3)
        mine = session.run(token(1, 8), states)["y"]
        session.run(token(5, 8) | {"position": np.array([1])}, states)
        theirs = session.run({name: np.repeat(value, 3, axis=0) for name, value in token(1, 8).items()}, other)["y"]
        np.testing.assert_allclose(theirs, np.repeat(mine, 3, axis=0), rtol=1e-5, atol=1e-6)


def test_a_run_that_fails_between_writes_leaves_no_states_to_go_on_with(
    tmp_path: Path, native_library: Library
) -> None:
    with Session.open(write_toy(tmp_path / "b", 2, 4, 8), threads=1, native=native_library.path) as session:
        states = session.new_states()
        session.run(token(3, 8), states)
        with pytest.raises(UnsupportedError, match="exceed the cache of L=4 slots"):
            session.run(token(4, 8), states)
        calls: list[Callable[[], object]] = [lambda: session.run(token(3, 8), states), states.fork]
        for call in calls:
            with pytest.raises(
                ConfigError, match=r"^A run failed while it was writing these states in place, .*; reset"
            ):
                call()
        states.reset()
        session.run(token(0, 8), states)


def test_a_graph_that_the_manifest_has_otherwise_is_refused(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path / "b", [append(), node("Neg", "kept", "seen")])
    (graph,) = bundle.manifest.graphs
    wrong = tuple(dataclasses.replace(info, dtype="float16") if info.name == "cache" else info for info in graph.inputs)
    manifest = dataclasses.replace(bundle.manifest, graphs=(dataclasses.replace(graph, inputs=wrong),))
    with pytest.raises(
        BundleError, match=r"^'cache' is float32 in 'model\.onnx', and the manifest has it as float16; export"
    ):
        Session.open(dataclasses.replace(bundle, manifest=manifest))
