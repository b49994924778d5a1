"""States apart from their session: many on one, cut and repeated, saved and loaded, grown and refused."""

import dataclasses
import io
import re
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from trt_compress.errors import BundleError, ConfigError, ShapeError, UnsupportedError
from trt_compress.export.bundle import write_bundle
from trt_compress.export.lower import add_bodies
from trt_compress.format.graphs import Capacity, Graph, Range, State, TensorInfo
from trt_compress.format.manifest import Batch, Manifest, Model, Weights
from trt_compress.runtime import Bundle, Session, States
from trt_compress.runtime.initial import Initial

Tensors = dict[str, tuple[str, tuple[int | str, ...]]]
NUMBERS = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64, "bfloat16": TensorProto.BFLOAT16}
ROW = ("float32", ("batch", 2))


def graph_of(name: str, nodes: list[onnx.NodeProto], inputs: Tensors, outputs: Tensors) -> tuple[Graph, bytes]:
    sides = [
        [helper.make_tensor_value_info(key, NUMBERS[dtype], list(shape)) for key, (dtype, shape) in side.items()]
        for side in (inputs, outputs)
    ]
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("trt_compress", 1)]
    model = helper.make_model(helper.make_graph(nodes, name, sides[0], sides[1]), opset_imports=opsets, ir_version=10)
    infos = [
        tuple(TensorInfo(name=key, dtype=dtype, shape=shape) for key, (dtype, shape) in side.items())
        for side in (inputs, outputs)
    ]
    entry = Graph(name=name, file=f"{name}.onnx", inputs=infos[0], outputs=infos[1])
    return entry, add_bodies(model).SerializeToString()


def bundle_of(folder: Path, graphs: list[tuple[Graph, bytes]], *states: State, **more: Any) -> Bundle:
    manifest = Manifest(
        name="states",
        created_with={},
        model=Model(source="zoo:test", family="test", weights=Weights(source="none")),
        recipe={},
        precision="fp32",
        opset=20,
        batch=Batch(min=1, opt=1, max=8),
        graphs=tuple(entry for entry, _ in graphs),
        states=states,
        preprocess={"kind": "tensors"},
        **more,
    )
    return write_bundle(folder, manifest, {entry.file: content for entry, content in graphs})


def counter(folder: Path, op_type: str = "Add", **fields: Any) -> Bundle:
    """total = seen + x, as state and output."""
    nodes = [helper.make_node(op_type, ["seen", "x"], ["total"]), helper.make_node("Identity", ["total"], ["kept"])]
    graph = graph_of("model", nodes, {"x": ROW, "seen": ROW}, {"total": ROW, "kept": ROW})
    state = State(graph="model", input="seen", output="kept", shape=("batch", 2), dtype="float32")
    return bundle_of(folder, [graph], dataclasses.replace(state, **fields))


def cache(folder: Path, *, limit: int = 12, multiple: int = 1) -> Bundle:
    """`held` = all slots after `rows` were appended at `position`; the number of slots is a capacity."""
    slots = ("float32", ("batch", 1, "slots", 2))
    append = helper.make_node(
        "TrtcKVAppend", ["cache", "rows", "position"], ["kept"], name="append", domain="trt_compress", layout=0, sinks=0
    )
    inputs: Tensors = {"rows": ("float32", ("batch", 1, "tokens", 2)), "position": ("int64", ("batch",))}
    graph = graph_of(
        "model",
        [append, helper.make_node("Neg", ["kept"], ["held"])],
        {**inputs, "cache": slots},
        {"held": slots, "kept": slots},
    )
    state = State(
        graph="model",
        input="cache",
        output="kept",
        shape=slots[1],
        dtype="float32",
        initial={"fill": 7},
        kind="cache",
        alias=True,
    )
    return bundle_of(
        folder,
        [graph],
        state,
        capacities=(Capacity(symbol="slots", adds={"model": "tokens"}, multiple=multiple),),
        lengths={"slots": Range(min=2, opt=4, max=limit), "tokens": Range(min=1, opt=1, max=4)},
    )


def rows(*values: float) -> dict[str, np.ndarray]:
    return {"x": np.array([[value, value] for value in values], np.float32)}


def seen(states: States) -> list[float]:
    value = states.value("model.seen")
    assert value is not None
    return [float(one) for one in value[:, 0]]


# ---- memory ---------------------------------------------------------------------------------------------------------


def test_a_state_without_a_native_writer_changes_places_and_is_never_copied(tmp_path: Path) -> None:
    with Session.open(counter(tmp_path / "b"), threads=1) as session:
        states = session.new_states()
        assert states.infos()[0].addresses == () and states.bytes == 0 and states.batch is None
        session.run(rows(1, 2), states)
        (first,) = states.infos()
        outputs = []
        for _ in range(9):
            outputs.append(session.run(rows(1, 2), states)["total"])
            (info,) = states.infos()
            assert info.addresses == first.addresses and len(set(info.addresses)) == 2
        assert first.update == "swapped" and states.bytes == 16 and states.allocated_bytes == 32
        assert [float(one[1, 0]) for one in outputs] == [2.0 * n for n in range(2, 11)]  # none was written over
        assert states.batch == 2 and states.lengths == {"batch": 2}


def test_states_in_turns_on_one_session_equal_sessions_of_their_own(tmp_path: Path) -> None:
    bundle = counter(tmp_path / "b")
    with Session.open(bundle, threads=1) as session:
        many = [session.new_states() for _ in range(4)]
        found = [[session.run(rows(step * 10 + n), many[n])["total"] for step in range(5)] for n in range(4)]
        assert session.run(rows(5, 6))["total"][0, 0] == 5  # those of the session itself have seen nothing of it
    for n in range(4):
        with Session.open(bundle, threads=1) as alone:
            for step in range(5):
                np.testing.assert_array_equal(alone.run(rows(step * 10 + n))["total"], found[n][step])


def test_inputs_and_outputs_belong_to_the_caller(tmp_path: Path) -> None:
    """Also those that are large, read-only, not contiguous, or of another length than before."""
    nodes = [helper.make_node("Add", ["x", "seen"], ["y"]), helper.make_node("Neg", ["seen"], ["kept"])]
    wide: tuple[str, tuple[int | str, ...]] = ("float32", ("batch", "n"))
    one: tuple[str, tuple[int | str, ...]] = ("float32", ("batch", 1))
    graph = graph_of("model", nodes, {"x": wide, "seen": one}, {"y": wide, "kept": one})
    state = State(graph="model", input="seen", output="kept", shape=("batch", 1), dtype="float32", initial={"fill": 1})
    with Session.open(bundle_of(tmp_path / "b", [graph], state), threads=1) as session:
        kept, sign = [], 1.0
        for n in (3, 3, 40_000, 40_000, 3):
            for array in (np.full((1, n), n, np.float32), np.full((n, 1), 2.0, np.float32).T, np.zeros((1, n), "f4")):
                array.flags.writeable = False
                before = array.copy()
                kept.append((session.run({"x": array})["y"], before + sign))
                sign = -sign
                np.testing.assert_array_equal(array, before)
        for given, expected in kept:
            np.testing.assert_array_equal(given, expected)
            given[:] = 0  # and may be written to


def test_a_state_that_grows_has_new_memory_and_other_outputs_each_time(tmp_path: Path) -> None:
    """What is given has the length of the state before the run, which no input says."""
    nodes = [helper.make_node("Concat", ["past", "x"], ["present"], axis=1), helper.make_node("Neg", ["past"], ["y"])]
    past, token = ("float32", ("batch", "held")), ("float32", ("batch", "tokens"))
    after = ("float32", ("batch", "held_after"))
    graph = graph_of("model", nodes, {"x": token, "past": past}, {"y": past, "present": after})
    state = State(graph="model", input="past", output="present", shape=past[1], dtype="float32", capacity=9)
    with Session.open(bundle_of(tmp_path / "b", [graph], state), threads=1) as session:
        states = session.new_states(capacity=5)
        for held in range(5):
            given = session.run(MappingProxyType({"x": np.full((1, 1), held, np.float32)}), states)["y"]
            assert given.tolist() == [[-float(n) for n in range(held)]]
        forked = states.fork()
        with pytest.raises(ShapeError, match=r"'model\.past' 6 long on 'held'; its capacity is 5\."):
            session.run(np.zeros((1, 1), np.float32), states)
        forked.repeat(2)
        assert session.run(np.zeros((2, 0), np.float32), forked)["y"].shape == (2, 5)
        states.save(tmp_path / "s.npz")
        assert session.run(np.zeros((1, 0), np.float32), session.load_states(tmp_path / "s.npz"))["y"].shape == (1, 5)


def test_sequences_are_forked_repeated_and_kept(tmp_path: Path) -> None:
    with Session.open(counter(tmp_path / "b", initial={"fill": 100}), threads=1) as session:
        states = session.new_states()
        session.run(rows(1, 2, 3), states)
        other = states.fork()
        session.run(rows(10, 10, 10), other)
        assert seen(states) == [101, 102, 103] and seen(other) == [111, 112, 113]
        states.keep([2, 0])
        assert states.batch == 2 and seen(states) == [103, 101]
        session.run(rows(1, 1), states)
        states.repeat(2)
        assert seen(states) == [104, 104, 102, 102]
        states.keep(np.array([0, 3, 3]))
        session.run(rows(0, 0, 1), states)
        assert seen(states) == [104, 102, 103] and seen(other) == [111, 112, 113]
        states.reset()
        assert session.run(rows(5), states)["total"][0, 0] == 105


def test_a_state_of_half_the_bits_is_carried_saved_and_repeated(tmp_path: Path) -> None:
    """bfloat16, which numpy lacks; 3 + 1/512 rounds to even, so that the state is seen to hold 8 bits."""
    half = ("bfloat16", ("batch", 2))
    nodes = [
        helper.make_node("Cast", ["seen"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["wide", "x"], ["total"]),
        helper.make_node("Cast", ["total"], ["kept"], to=TensorProto.BFLOAT16),
    ]
    graph = graph_of("model", nodes, {"x": ROW, "seen": half}, {"total": ROW, "kept": half})
    state = State(graph="model", input="seen", output="kept", shape=half[1], dtype="bfloat16", initial={"fill": 1.5})
    with Session.open(bundle_of(tmp_path / "b", [graph], state), threads=1) as session:
        states = session.new_states()
        session.run(rows(1.5 + 1 / 512), states)
        states.save(tmp_path / "s.npz")
        states = session.load_states(tmp_path / "s.npz")
        states.repeat(2)
        assert session.run(rows(0, 1), states)["total"].tolist() == [[3, 3], [4, 4]] and states.bytes == 8


def test_a_state_may_be_written_by_one_graph_and_read_by_another(tmp_path: Path) -> None:
    write = graph_of("vision", [helper.make_node("Neg", ["x"], ["found"])], {"x": ROW}, {"found": ROW})
    read = graph_of("text", [helper.make_node("Add", ["found", "q"], ["y"])], {"q": ROW, "found": ROW}, {"y": ROW})
    graphs = [(dataclasses.replace(one, role=one.name), content) for one, content in (write, read)]
    features: dict[str, Any] = {"shape": ("batch", 2), "dtype": "float32", "name": "features", "kind": "features"}
    bundle = bundle_of(
        tmp_path / "b",
        graphs,
        State(graph="vision", output="found", **features),
        State(graph="text", input="found", **features),
    )
    with Session.open(bundle, threads=1) as session:
        states = session.new_states(batch=1)
        assert session.inputs.keys() == {"vision.x", "text.q"} and session.outputs.keys() == {"text.y"}
        assert session.run_graph("text", {"q": rows(1)["x"]}, states)["y"][0, 0] == 1  # nothing was found yet
        assert session.run_graph("vision", rows(5), states) == {}
        assert session.run_graph("text", {"q": rows(1)["x"]}, states)["y"][0, 0] == -4
        assert session.run({"vision.x": rows(8)["x"], "text.q": rows(1)["x"]}, states)["text.y"][0, 0] == -7


# ---- capacities -----------------------------------------------------------------------------------------------------


def step(position: int, *values: float) -> dict[str, np.ndarray]:
    array = np.array(values, np.float32).reshape(1, 1, -1, 1).repeat(2, axis=3)
    return {"rows": array, "position": np.array([position])}


def test_a_capacity_starts_small_and_doubles_up_to_the_limit(tmp_path: Path) -> None:
    with Session.open(cache(tmp_path / "b"), threads=1) as session:
        states = session.new_states(capacity=10)
        for position in range(10):
            states.reserve({"slots": position + 1})
            held = -session.run(step(position, position + 1), states)["held"][0, 0, :, 0]
            length = states.lengths["slots"]
            assert length == {1: 2, 2: 2, 3: 4, 4: 4}.get(position + 1, 8 if position < 8 else 10)
            assert held.tolist() == [*range(1, position + 2), *[7] * (length - position - 1)]
        with pytest.raises(
            ShapeError, match=r"^11 slots are needed on 'slots', and these states may have 10; make them "
        ):
            states.reserve({"slots": 11})
        assert states.lengths["slots"] == 10
        states.reset()
        assert states.lengths == {"slots": 2}


def test_a_capacity_is_a_multiple_and_within_the_bundle_s_range(tmp_path: Path) -> None:
    with Session.open(cache(tmp_path / "b", multiple=4), threads=1) as session:
        assert session.new_states().lengths["slots"] == 4
        states = session.new_states(capacity={"slots": 5})
        states.reserve({"slots": 6})
        assert states.lengths["slots"] == 8
        for capacity in (1, 13, {"slots": 13}):
            with pytest.raises(
                ConfigError, match=r"^capacity=1?\d; the bundle allows from 2 to 12: give that, or export"
            ):
                session.new_states(capacity=capacity)
        with pytest.raises(
            ConfigError, match=r"^The bundle has no capacity 'slot'; there is slots\. Did you mean 'slots'"
        ):
            session.new_states(capacity={"slot": 4})
        with pytest.raises(ConfigError, match=r"^The bundle has no capacity 'cache'; there is 'slots'\.$"):
            states.reserve({"cache": 3})
    with Session.open(counter(tmp_path / "c")) as other:
        with pytest.raises(
            ConfigError, match=r"^capacity=4; the states of this bundle have a fixed size: leave it out\.$"
        ):
            other.new_states(capacity=4)


def test_too_little_memory_is_one_sentence_and_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> None:
        raise MemoryError

    with Session.open(cache(tmp_path / "b"), threads=1) as session:
        states = session.new_states()
        session.run(step(0, 1), states)
        monkeypatch.setattr(Initial, "value", full)
        with pytest.raises(
            UnsupportedError, match=r"^There is no memory for the states, which would take 64 bytes; run"
        ):
            states.reserve({"slots": 5})
        assert (-session.run(step(1, 2), states)["held"][0, 0, :, 0]).tolist() == [1, 2]


# ---- files ----------------------------------------------------------------------------------------------------------


def test_saved_states_go_on_where_they_were(tmp_path: Path) -> None:
    bundle = cache(tmp_path / "b")
    with Session.open(bundle, threads=1) as session:
        states = session.new_states()
        states.reserve({"slots": 5})
        session.run(step(0, 1, 2, 3), states)
        states.save(tmp_path / "saved.npz")
        after = session.run(step(3, 4), states)["held"]
    with Session.open(bundle, threads=1) as session:
        again = session.load_states(tmp_path / "saved.npz")
        assert again.lengths == {"batch": 1, "slots": 8}
        np.testing.assert_array_equal(session.run(step(3, 4), again)["held"], after)
        with pytest.raises(
            ConfigError, match=r"holds 8 slots on 'slots', and the capacity is 4; load it with capacity=8"
        ):
            session.load_states(tmp_path / "saved.npz", capacity=4)


def test_states_of_another_bundle_are_refused(tmp_path: Path) -> None:
    """The same shapes and names, and another graph."""
    with Session.open(counter(tmp_path / "a")) as first, Session.open(counter(tmp_path / "b", "Sub")) as second:
        states = first.new_states()
        first.run(rows(1), states)
        states.save(tmp_path / "s.npz")
        with pytest.raises(
            BundleError, match=r"s\.npz' holds states of another bundle, 'states' with the digest \w{12};"
        ):
            States.load(tmp_path / "s.npz", second)
        with pytest.raises(
            ConfigError, match=r"^These states are of another session, of 'states'; make them by new_sta"
        ):
            second.run(rows(1), states)


def changed(data: bytes, **members: bytes | None) -> bytes:
    """The archive with members changed, or taken out."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            content = members.get(name.removesuffix(".npy").replace("/", "_").replace(".", "_"), old.read(name))
            if content is not None:
                new.writestr(name, content)
    return out.getvalue()


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


DAMAGED: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "cut": (lambda data: data[: len(data) // 2], "cannot be read"),
    "empty": (lambda data: b"", "cannot be read"),
    "no archive": (lambda data: npy(np.zeros(3)), r"cannot be read \(it holds one array without a name\)"),
    "of something else": (lambda data: changed(data, about=None), r"cannot be read \(it holds no states\)"),
    "no description": (lambda data: changed(data, about=npy(np.zeros(9, np.uint8))), "cannot be read"),
    "another shape": (
        lambda data: changed(data, state_model_seen=npy(np.zeros((3, 2), np.float32))),
        r"it holds float32 of shape \[3, 2\] for the state 'model\.seen', which is float32 of shape \['batch', 2\]",
    ),
    "another dtype": (
        lambda data: changed(data, state_model_seen=npy(np.zeros((2, 2)))),
        r"it holds float64 of shape \[2, 2\] for the state",
    ),
    "a state is gone": (lambda data: changed(data, state_model_seen=None), "a state is missing"),
    "objects": (
        lambda data: changed(data, state_model_seen=npy(np.array([[None, None]] * 2))),
        "objects of Python, which are not read",
    ),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_damaged_file_of_states_is_one_sentence(tmp_path: Path, damage: str) -> None:
    change, message = DAMAGED[damage]
    with Session.open(counter(tmp_path / "b")) as session:
        states = session.new_states()
        session.run(rows(1, 2), states)
        states.save(tmp_path / "s.npz")
        (tmp_path / "s.npz").write_bytes(change((tmp_path / "s.npz").read_bytes()))
        with pytest.raises(BundleError, match=message) as caught:
            session.load_states(tmp_path / "s.npz")
        assert "\n" not in caught.value.message


# ---- what does not go -----------------------------------------------------------------------------------------------

WRONG: dict[str, tuple[Callable[[Session, States], object], type[Exception], str]] = {
    "another batch": (
        lambda session, states: session.run(rows(1), states),
        ShapeError,
        r"^This run has 'batch' = 1, and the state 'model\.seen' holds 2 from the run before; call reset\(\)",
    ),
    "another batch than was said": (
        lambda session, states: session.run(rows(1), session.new_states(batch=3)),
        ShapeError,
        r"^This run has 'batch' = 1, and the states are of 3 sequences; make others with batch=1\.$",
    ),
    "no batch": (
        lambda session, states: session.new_states(batch=0),
        ConfigError,
        r"^batch=0; give a whole number of at",
    ),
    "a row too many": (
        lambda session, states: states.keep([0, 2]),
        ConfigError,
        r"names 2; the sequences are 0 to 1\.$",
    ),
    "a row before the first": (lambda session, states: states.keep([-1]), ConfigError, r"names -1; the sequences are"),
    "a mask for rows": (
        lambda session, states: states.keep([True, False]),
        ConfigError,
        "names True; the sequences are",
    ),
    "no row": (
        lambda session, states: states.keep([]),
        ConfigError,
        r"^rows=\[\] keeps no sequence; give at least one",
    ),
    "repeated never": (
        lambda session, states: states.repeat(0),
        ConfigError,
        r"^count=0; give a whole number of at least",
    ),
    "an unknown state": (
        lambda session, states: states.value("seen"),
        ConfigError,
        r"no state 'seen'; there are model\.",
    ),
    "no batch yet": (
        lambda session, states: session.new_states().repeat(2),
        ConfigError,
        "have no batch yet; make them",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_go_is_one_sentence_and_changes_nothing(tmp_path: Path, case: str) -> None:
    call, error, message = WRONG[case]
    with Session.open(counter(tmp_path / "b"), threads=1) as session:
        states = session.new_states()
        session.run(rows(1, 2), states)
        with pytest.raises(error, match=message):
            call(session, states)
        assert session.run(rows(1, 1), states)["total"][:, 0].tolist() == [2, 3]


def test_sequences_of_a_fixed_batch_are_not_taken_apart(tmp_path: Path) -> None:
    fixed = ("float32", (2, 2))
    nodes = [helper.make_node("Add", ["seen", "x"], ["total"])]
    graph = graph_of("model", nodes, {"x": fixed, "seen": fixed}, {"total": fixed})
    state = State(graph="model", input="seen", output="total", shape=(2, 2), dtype="float32")
    with Session.open(bundle_of(tmp_path / "b", [graph], state)) as session:
        with pytest.raises(
            UnsupportedError, match="no axis of sequences, as it was exported for a fixed batch; export"
        ):
            session.states.keep([0])
        with pytest.raises(ConfigError, match=r"^batch=2; the bundle was exported for a fixed batch: leave it out\.$"):
            session.new_states(batch=2)


def test_states_of_a_closed_session_say_so(tmp_path: Path) -> None:
    session = Session.open(counter(tmp_path / "b"))
    states = session.new_states()
    session.run(rows(1), states)
    forked = states.fork()
    session.close()
    for call in (lambda: session.run(rows(1), states), lambda: states.fork(), lambda: session.new_states()):
        with pytest.raises(ConfigError, match=r"closed; open the bundle again\.$"):
            call()
    assert states.allocated_bytes == forked.allocated_bytes == 0 and repr(states) == "<States of a closed session>"


def test_a_first_run_that_fails_fixes_no_batch(tmp_path: Path) -> None:
    """The graph refuses an index out of range; what had been made for it is let go of."""
    nodes = [
        helper.make_node("Gather", ["seen", "index"], ["total"], axis=1),
        helper.make_node("Identity", ["seen"], ["kept"]),
    ]
    inputs: Tensors = {"index": ("int64", ("n",)), "x": ROW, "seen": ROW}
    graph = graph_of("model", nodes, inputs, {"total": ("float32", ("batch", "n")), "kept": ROW})
    state = State(graph="model", input="seen", output="kept", shape=("batch", 2), dtype="float32")
    with Session.open(bundle_of(tmp_path / "b", [graph], state)) as session:
        for index, count in ((9, 2), (1, 1), (9, 1), (0, 1)):
            feed = {"index": np.array([index]), **rows(*range(count))}
            if index == 9:
                with pytest.raises(UnsupportedError, match="idx=9"):
                    session.run(feed)
            else:
                assert session.run(feed)["total"].shape == (1, 1)


def test_states_are_for_one_thread_at_a_time(tmp_path: Path) -> None:
    """A run that is held up inside the graph; meanwhile the states may not even be looked into."""
    with Session.open(counter(tmp_path / "b"), threads=1) as session:
        states, entered, go_on = session.new_states(batch=1), threading.Event(), threading.Event()
        loaded = session.loaded.graphs["model"]

        class Slow:
            def __getattr__(self, name: str) -> Any:
                return getattr(loaded.executable, name)

            def bind(self, *arguments: Any) -> Any:
                binding = loaded.executable.bind(*arguments)
                self.run = lambda *given: (entered.set(), go_on.wait(120), binding.run(*given))[2]
                return self

        session.loaded.graphs["model"] = dataclasses.replace(loaded, executable=Slow())  # type: ignore[arg-type]
        thread = threading.Thread(target=lambda: session.run(rows(1), states), daemon=True)
        thread.start()
        assert entered.wait(120)
        refused = re.compile(
            r"^Another thread is using these states \('model\.seen'\), which hold the history of one caller"
        )
        calls: list[Callable[[], object]] = [
            lambda: session.run(rows(1), states), states.fork, states.reset, lambda: states.save(tmp_path / "s"),
            lambda: states.keep([0]), lambda: states.value("model.seen"),
        ]  # fmt: skip
        for call in calls:
            with pytest.raises(ConfigError, match=refused):
                call()
        go_on.set()
        thread.join(120)
        assert seen(states) == [1] and not (tmp_path / "s").exists()


def test_inputs_in_another_order_are_the_same_inputs(tmp_path: Path) -> None:
    """The memory that is kept for inputs goes by their names: [1] and [3], then [3] and [1] the other way round."""
    nodes = [
        helper.make_node("Mul", ["b", "ten"], ["tens"]),
        helper.make_node("Concat", ["a", "tens"], ["digits"], axis=0),
        helper.make_node("ReduceSum", ["digits"], ["sum"], keepdims=0),
        helper.make_node("Add", ["total_in", "sum"], ["total_out"]),
        helper.make_node("Constant", [], ["ten"], value_floats=[10.0]),
    ]
    nodes.insert(0, nodes.pop())
    entry, content = graph_of(
        "model",
        nodes,
        {"a": ("float32", ("m",)), "b": ("float32", ("n",)), "total_in": ("float32", ("batch",))},
        {"total_out": ("float32", ("batch",))},
    )
    total = State(graph="model", input="total_in", output="total_out", dtype="float32", shape=("batch",))
    with Session.open(bundle_of(tmp_path / "b", [(entry, content)], total)) as session:
        states = session.new_states(batch=1)
        one, three = np.array([1], np.float32), np.array([1, 2, 3], np.float32)
        session.run({"a": one, "b": three}, states)
        session.run({"b": one, "a": three}, states)
        assert states.value("model.total_in").tolist() == [1 + 60 + 10 + 6]  # type: ignore[union-attr]
