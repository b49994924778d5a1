"""Sessions on engines, by a strict fake of TensorRT that computes with ONNX Runtime, and on a fake GPU."""

import gc
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from tests.fakes import cuda as fake_cuda
from tests.fakes import tensorrt as fake_tensorrt
from tests.fakes.cuda import FakeCuda
from tests.fakes.engines import add_engines
from tests.runtime.test_states import bundle_of, cache, counter, graph_of
from trt_compress.errors import BundleError, ConfigError, PluginError, ShapeError, UnsupportedError
from trt_compress.export.bundle import update_bundle
from trt_compress.format.graphs import State
from trt_compress.runtime import Bundle, Session

BACKENDS = {"tensorrt": "jetson-orin-jp6", "rtx": "rtx"}
X = np.arange(6, dtype=np.float32).reshape(2, 3)
ROW = np.ones((2, 2), np.float32)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    """A GPU with both TensorRTs."""
    made = fake_cuda.install(monkeypatch)
    fake_tensorrt.install(monkeypatch, made)
    fake_tensorrt.install(monkeypatch, made, "tensorrt_rtx", "1.7.1.116")
    return made


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_engine_runs_as_the_file_does(double_bundle: Bundle, gpu: FakeCuda, backend: str) -> None:
    bundle = add_engines(double_bundle, BACKENDS[backend])
    with Session.open(bundle.path, backend=backend) as session:
        assert repr(session) == f"<Session test on {backend}: x float32 [batch, 3] → y float32 [batch, 3]>"
        assert session.engines["model"].target == BACKENDS[backend]
        assert session.native is None and "built without plugins" in str(session.native_reason)
        for rows in (2, 8, 1, 2):
            for x in (X[:1].repeat(rows, axis=0), np.random.default_rng(rows).random((rows, 3), np.float32)):
                found = session.run({"x": x})
                np.testing.assert_array_equal(found["y"], x + x)


def test_what_was_given_stays_as_it_was(double_bundle: Bundle, gpu: FakeCuda) -> None:
    with Session.open(add_engines(double_bundle), backend="tensorrt") as session:
        first = session.run(X)["y"]
        second = session.run(np.asfortranarray(X * 3))["y"]  # not in the order of the memory
        np.testing.assert_array_equal(first, X * 2)
        np.testing.assert_array_equal(second, X * 6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_steady_state_allocates_nothing_and_launches_graphs(
    double_bundle: Bundle, gpu: FakeCuda, backend: str
) -> None:
    with Session.open(add_engines(double_bundle, BACKENDS[backend]), backend=backend) as session:
        session.run(X)
        assert "cudaGraphLaunch" not in gpu.calls
        session.run(X)
        before = dict(gpu.calls)
        for step in range(20):
            np.testing.assert_array_equal(session.run(X + step)["y"], 2 * (X + step))
        new = {name: count - before.get(name, 0) for name, count in gpu.calls.items()}
        assert {name: count for name, count in new.items() if count} == {
            "cudaGraphLaunch": 20,
            "cudaStreamSynchronize": 20,
        }


@pytest.mark.parametrize(
    ("backend", "reason"),
    [("tensorrt", "operation not permitted when stream is capturing."), ("rtx", "says that it cannot be captured.")],
)
def test_what_cannot_be_captured_runs_without_and_says_so_once(
    double_bundle: Bundle, gpu: FakeCuda, caplog: pytest.LogCaptureFixture, backend: str, reason: str
) -> None:
    bundle = add_engines(double_bundle, BACKENDS[backend], engine={"capturable": False})
    with caplog.at_level(logging.INFO), Session.open(bundle, backend=backend) as session:
        for rows in (2, 2, 2, 1, 1):
            np.testing.assert_array_equal(session.run(X[:rows])["y"], 2 * X[:rows])
    (said,) = [record.getMessage() for record in caplog.records if "CUDA graphs" in record.getMessage()]
    assert said.startswith(f"The engine 'engines/{BACKENDS[backend]}/model.engine' runs without CUDA graphs: TensorRT")
    assert said.endswith(reason) and "cudaGraphLaunch" not in gpu.calls


def test_memory_goes_back_with_the_session(double_bundle: Bundle, gpu: FakeCuda) -> None:
    session = Session.open(add_engines(double_bundle), backend="tensorrt")
    for rows in range(1, 9):
        session.run(np.ones((rows, 3), np.float32))
    assert gpu.held["device"] < 512 + 4 * 2 * 8 * 3 * 4 + 1  # four shapes, in and out, and what it computes in
    session.close()
    del session
    gc.collect()
    assert gpu.held == {"device": 0, "host": 0}


def test_the_profile_is_that_which_fits_best(double_bundle: Bundle, gpu: FakeCuda) -> None:
    ends = [((1, 3), (1, 3), (2, 3)), ((2, 3), (4, 3), (8, 3)), ((5, 3), (8, 3), (8, 3))]
    profiles: Any = [{"x": dict(zip(("min", "opt", "max"), one, strict=True))} for one in ends]
    with Session.open(add_engines(double_bundle, profiles=profiles), backend="tensorrt") as session:
        graph: Any = session.loaded.graphs["model"].executable
        assert [graph.profile({"x": (rows, 3)}) for rows in (1, 2, 3, 5, 7, 8)] == [0, 0, 1, 1, 2, 2]
        for rows in (1, 8, 3, 1):
            assert session.run(np.ones((rows, 3), np.float32))["y"].sum() == 6 * rows
        with pytest.raises(
            ShapeError, match=r"'x' has the shape \[9, 3\], and it takes \[1 to 2, 3\]; give a shape in"
        ):
            session.run(np.ones((9, 3), np.float32))
        assert session.run(X)["y"].sum() == 30


def test_inputs_go_by_name_whatever_their_order(make_bundle: Callable[..., Bundle], gpu: FakeCuda) -> None:
    sides = {"a": ("float32", ["n", 2]), "b": ("float32", ["m", 2])}
    bundle = make_bundle(
        {"model": ([helper.make_node("Concat", ["a", "b"], ["y"], axis=0)], sides, {"y": ("float32", ["k", 2])})}
    )
    profiles: Any = [{name: {"min": (1, 2), "opt": (1, 2), "max": (4, 2)} for name in sides}]
    a, b = np.zeros((1, 2), np.float32), np.ones((3, 2), np.float32)
    with Session.open(add_engines(bundle, profiles=profiles), backend="tensorrt") as session:
        for feed in ({"a": a, "b": b}, {"b": b, "a": a}, {"b": a, "a": b}, {"a": b, "b": a}):
            np.testing.assert_array_equal(session.run(feed)["y"], np.concatenate([feed["a"], feed["b"]]))


def test_values_that_say_shapes_are_read_on_the_host(make_bundle: Callable[..., Bundle], gpu: FakeCuda) -> None:
    nodes = [helper.make_node("Expand", ["x", "to"], ["y"])]
    sides = {"x": ("float32", [1, 3]), "to": ("int64", [2])}
    bundle = make_bundle({"model": (nodes, sides, {"y": ("float32", ["rows", 3])})})
    with Session.open(add_engines(bundle, engine={"on_host": ["to"]}), backend="tensorrt") as session:
        for rows in (2, 5, 2, 2, 5):
            assert session.run({"x": X[:1], "to": np.array([rows, 3])})["y"].shape == (rows, 3)


def test_an_input_that_nothing_reads_may_be_left_out(make_bundle: Callable[..., Bundle], gpu: FakeCuda) -> None:
    sides = {"x": ("float32", ["batch", 3]), "mask": ("float32", ["batch", 3])}
    nodes = [helper.make_node("Neg", ["x"], ["y"])]
    bundle = make_bundle({"model": (nodes, sides, {"y": ("float32", ["batch", 3])})})
    with Session.open(add_engines(bundle, engine={"left_out": ["mask"]}), backend="tensorrt") as session:
        np.testing.assert_array_equal(session.run({"x": X, "mask": X})["y"], -X)


# ---- states ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_states_stay_on_the_gpu_and_change_places(tmp_path: Path, gpu: FakeCuda, backend: str) -> None:
    bundle = add_engines(counter(tmp_path / "b"), BACKENDS[backend])
    with Session.open(bundle, backend=backend) as session:
        for step in range(1, 5):
            np.testing.assert_array_equal(session.run({"x": ROW})["total"], step * ROW)
        (info,) = session.states.infos()
        assert info.update == "swapped" and len(info.addresses) == 2
        before = dict(gpu.calls)
        for step in range(5, 15):
            np.testing.assert_array_equal(session.run({"x": ROW})["total"], step * ROW)
        new = {name: count - before.get(name, 0) for name, count in gpu.calls.items()}
        assert {name for name, count in new.items() if count} == {"cudaGraphLaunch", "cudaStreamSynchronize"}
        other = session.new_states()
        np.testing.assert_array_equal(session.run({"x": ROW}, other)["total"], ROW)
        forked = session.states.fork()
        np.testing.assert_array_equal(session.run({"x": ROW}, forked)["total"], 15 * ROW)
        np.testing.assert_array_equal(session.states.value("model.seen"), 14 * ROW)
        session.reset()
        np.testing.assert_array_equal(session.run({"x": ROW[:1]})["total"], ROW[:1])


def test_states_have_one_memory_where_the_engine_writes_in_place(tmp_path: Path, gpu: FakeCuda) -> None:
    bundle = add_engines(counter(tmp_path / "b"), engine={"aliases": {"kept": "seen"}})
    with Session.open(bundle, backend="tensorrt") as session:
        for step in range(1, 6):
            np.testing.assert_array_equal(session.run({"x": ROW})["total"], step * ROW)
        (info,) = session.states.infos()
        assert info.update == "in place" and len(info.addresses) == 1


def test_states_as_inputs_and_outputs_of_a_cache_go_on_as_with_onnx_runtime(tmp_path: Path, gpu: FakeCuda) -> None:
    bundle = cache(tmp_path / "b", limit=12)
    made = add_engines(bundle)
    draw = np.random.default_rng(0)
    with Session.open(made) as plain, Session.open(made, backend="tensorrt") as session:
        theirs, mine = plain.new_states(batch=2), session.new_states(batch=2)
        for tokens, position in ((2, 0), (1, 2), (1, 3), (4, 4), (1, 8)):
            rows = draw.random((2, 1, tokens, 2), np.float32)
            feed = {"rows": rows, "position": np.full(2, position)}
            for states in (theirs, mine):
                states.reserve({"slots": position + tokens})
            np.testing.assert_array_equal(session.run(feed, mine)["held"], plain.run(feed, theirs)["held"])
        assert mine.lengths == theirs.lengths


def test_a_capacity_beyond_the_profile_is_said(tmp_path: Path, gpu: FakeCuda) -> None:
    bundle = cache(tmp_path / "b", limit=12)
    ends = {"min": 2, "opt": 2, "max": 4}
    profile: Any = {
        "rows": {end: (2, 1, min(n, 4), 2) if end == "max" else (1, 1, 1, 2) for end, n in ends.items()},
        "position": {end: (2,) if end == "max" else (1,) for end in ends},
        "cache": {end: (2 if end == "max" else 1, 1, n, 2) for end, n in ends.items()},
    }
    with Session.open(add_engines(bundle, profiles=[profile]), backend="tensorrt") as session:
        states = session.new_states(batch=1)
        feed = {"rows": np.ones((1, 1, 2, 2), np.float32), "position": np.zeros(1, np.int64)}
        session.run(feed, states)
        states.reserve({"slots": 8})
        with pytest.raises(
            ShapeError, match=r"'cache' has the shape \[1, 1, 8, 2\], and it takes \[1 to 2, 1, 2 to 4, 2"
        ):
            session.run(feed, states)


def test_a_state_may_get_longer_with_each_run(tmp_path: Path, gpu: FakeCuda) -> None:
    rows = ("float32", ("batch", "time", 2))
    nodes = [helper.make_node("Concat", ["past", "x"], ["now"], axis=1), helper.make_node("Neg", ["now"], ["y"])]
    graph = graph_of(
        "model",
        nodes,
        {"x": ("float32", ("batch", 1, 2)), "past": ("float32", ("batch", "past", 2))},
        {"y": rows, "now": ("float32", ("batch", "past", 2))},
    )
    state = State(graph="model", input="past", output="now", shape=("batch", "past", 2), dtype="float32", capacity=8)
    profile: Any = {
        "x": {end: (n, 1, 2) for end, n in (("min", 1), ("opt", 1), ("max", 8))},
        "past": {end: (n, m, 2) for end, n, m in (("min", 1, 0), ("opt", 1, 1), ("max", 8, 8))},
    }
    bundle = add_engines(bundle_of(tmp_path / "b", [graph], state), profiles=[profile])
    with Session.open(bundle, backend="tensorrt") as session:
        for step in range(1, 5):
            found = session.run({"x": np.full((1, 1, 2), step, np.float32)})["y"]
            np.testing.assert_array_equal(found[0, :, 0], -np.arange(1.0, step + 1))


def test_outputs_and_states_that_are_no_pair_are_not_in_place(tmp_path: Path, gpu: FakeCuda) -> None:
    bundle = add_engines(counter(tmp_path / "b"), engine={"aliases": {"total": "seen"}})
    with pytest.raises(BundleError, match="writes 'total' into the memory of 'seen', and the manifest has them as no"):
        Session.open(bundle, backend="tensorrt")


# ---- what does not fit is a sentence, before the engine is read -----------------------------------------------------


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            {"library_version": "10.4.0"},
            r"was built by TensorRT 10\.4\.0, and 10\.3\.0 is installed, .*; build it again",
        ),
        (
            {"sm": 90},
            r"was built for SM 90, and this GPU is SM 87; build it again with 'trt-compress build .* --force'",
        ),
        ({"sm": None}, r"does not say which GPU it was built for; build it again .* where trt-compress\[cuda\] is"),
        (
            {"driver": "13.0"},
            r"was built with a driver for CUDA 13\.0, and the driver here is for CUDA 12\.6; install a newer one",
        ),
        ({"onnx_sha256": "0" * 64}, r"was built from another ONNX file than the bundle holds; build it again"),
        ({"precision_asked": "fp16"}, r"was built for fp16, and the bundle is fp32; build it again"),
        (
            {"precision_achieved": {"model": {"fp32": 3, "fp16": 1}}},
            r"was to compute in fp32, and its record has layers in fp16; build it again",
        ),
    ],
)
def test_a_record_that_does_not_fit_the_machine(
    double_bundle: Bundle, gpu: FakeCuda, monkeypatch: pytest.MonkeyPatch, record: dict[str, Any], message: str
) -> None:
    bundle = add_engines(double_bundle, **record)

    def read(*_: object) -> None:
        raise AssertionError("the engine was read")

    monkeypatch.setattr(sys.modules["tensorrt"].Runtime, "deserialize_cuda_engine", read)
    with pytest.raises(UnsupportedError, match=rf"^The engine 'engines/jetson-orin-jp6/model\.engine' {message}"):
        Session.open(bundle, backend="tensorrt")


def test_of_several_targets_the_one_that_fits_runs(double_bundle: Bundle, gpu: FakeCuda) -> None:
    bundle = add_engines(double_bundle, "x86-trt10", sm=90, engine={"sm": 90})
    bundle = add_engines(bundle, "jetson-orin-jp6")
    with Session.open(bundle, backend="tensorrt") as session:
        assert session.engines["model"].target == "jetson-orin-jp6"


def test_plugins_of_another_build(
    double_bundle: Bundle, gpu: FakeCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trt_compress.plugins import library

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bundle = add_engines(double_bundle, engine={"needs_plugins": True}, plugins="0123456789abcdef")
    with pytest.raises(PluginError, match="are not built for this version of the sources; run 'trt-compress plugins"):
        Session.open(bundle, backend="tensorrt")
    with pytest.raises(
        UnsupportedError, match=r"was built with plugins and cannot run without them; leave native=False"
    ):
        Session.open(bundle, backend="tensorrt", native=False)
    info = {"source_hash": "fedcba9876543210", "operators": []}
    there = library.Library(kind="tensorrt", path=tmp_path / "lib.so", info=info)
    monkeypatch.setattr(library, "choose", lambda *_, **__: there)
    with pytest.raises(UnsupportedError, match=r"with the plugins 0123456789abcdef, and '.*' is of fedcba9876543210"):
        Session.open(bundle, backend="tensorrt")
    info["source_hash"] = "0123456789abcdef"
    with Session.open(bundle, backend="tensorrt") as session:
        assert session.native is there
        np.testing.assert_array_equal(session.run(X)["y"], 2 * X)


def test_plugins_that_are_not_wanted(double_bundle: Bundle, gpu: FakeCuda) -> None:
    bundle = add_engines(add_engines(double_bundle), "rtx")
    with pytest.raises(PluginError, match="TensorRT-RTX takes no plugins"):
        Session.open(bundle, backend="rtx", native=True)
    with pytest.raises(UnsupportedError, match="were built without plugins, and native='True' asks for them"):
        Session.open(bundle, backend="tensorrt", native=True)


def test_no_engine_no_module_no_gpu(double_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        BundleError, match="has no engine, and TensorRT runs nothing else; build one with 'trt-compress"
    ):
        Session.open(double_bundle, backend="tensorrt")
    bundle = add_engines(double_bundle)
    with pytest.raises(
        BundleError, match="has engines for jetson-orin-jp6 only, and TensorRT-RTX runs .* --target rtx'"
    ):
        Session.open(bundle, backend="rtx")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(
        UnsupportedError, match=r"backend 'tensorrt' needs TensorRT, and .*; pip install .*JETSON|gpu\]"
    ):
        Session.open(bundle, backend="tensorrt")
    cuda = fake_cuda.install(monkeypatch, devices=0)
    fake_tensorrt.install(monkeypatch, cuda)
    with pytest.raises(
        UnsupportedError, match=r"needs an NVIDIA GPU .* finds none \(cudaErrorInsufficientDriver\); run it"
    ):
        Session.open(bundle, backend="tensorrt")
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(
        UnsupportedError, match=r"Running an engine needs 'cuda-bindings', and .*; pip install .*cuda\]"
    ):
        Session.open(bundle, backend="tensorrt")


def test_a_graph_without_an_engine(make_bundle: Callable[..., Bundle], gpu: FakeCuda) -> None:
    sides = {"x": ("float32", ["batch", 3])}
    spec = ([helper.make_node("Neg", ["x"], ["y"])], sides, {"y": ("float32", ["batch", 3])})
    bundle = add_engines(make_bundle({"encoder": spec, "decoder": spec}), graphs=["encoder"])
    with pytest.raises(BundleError, match="has no engine of 'decoder' for 'jetson-orin-jp6'; build it again"):
        Session.open(bundle, backend="tensorrt")
    with Session.open(bundle, backend="tensorrt", graphs=["encoder"]) as session:
        np.testing.assert_array_equal(session.run(X)["y"], -X)


def test_tensorrt_rtx_is_asked_before_it_loads_an_engine(double_bundle: Bundle, gpu: FakeCuda) -> None:
    bundle = add_engines(double_bundle, "rtx", engine={"sm": 120})
    with pytest.raises(UnsupportedError, match=r"does not fit this GPU \(SM 87; UNSUPPORTED_CC\); build it again"):
        Session.open(bundle, backend="rtx")


def test_an_engine_that_cannot_be_loaded(double_bundle: Bundle, gpu: FakeCuda) -> None:
    bundle = add_engines(double_bundle, engine={"needs_plugins": True})
    with pytest.raises(UnsupportedError, match=r"cannot load the engine '.*' \(Cannot find plugin: TrtcTokenMerge, "):
        Session.open(bundle, backend="tensorrt")


def test_an_engine_of_another_graph(double_bundle: Bundle, gpu: FakeCuda) -> None:
    other = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 20]> g (float16[batch,3] x) => (float16[batch,3] y) { y = Neg(x) }'
    )
    bundle = add_engines(double_bundle, models={"model": other.SerializeToString()})
    with pytest.raises(
        BundleError, match=r"'x' is float16 in 'engines/.*', and the manifest has it as float32; build it"
    ):
        Session.open(bundle, backend="tensorrt")


def test_a_changed_engine_is_seen(double_bundle: Bundle, gpu: FakeCuda) -> None:
    bundle = add_engines(double_bundle)
    file = bundle.path / bundle.manifest.engines[0].file
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    with pytest.raises(BundleError, match="its hash differs"):
        Session.open(bundle.path, backend="tensorrt")


def test_no_memory_is_a_sentence_and_nothing_is_left(double_bundle: Bundle, gpu: FakeCuda) -> None:
    with Session.open(add_engines(double_bundle), backend="tensorrt") as session:
        gpu.limit = gpu.held["device"] + 20
        with pytest.raises(UnsupportedError, match="The GPU has no 24 B of memory left for the engine; run a smaller"):
            session.run(X)
        gpu.limit += 1000
        np.testing.assert_array_equal(session.run(X)["y"], 2 * X)


def test_operators_are_counted_by_the_records(double_bundle: Bundle, gpu: FakeCuda) -> None:
    paths = {"TrtcTokenMerge": {"plugin": 2, "function": 1}}
    with Session.open(add_engines(double_bundle, paths=paths), backend="tensorrt") as session:
        assert session.engines["model"].paths == paths
        with pytest.raises(ConfigError, match=r"runs engines, in which operators have no nodes any more"):
            session.operator_paths()


def test_the_files_are_still_checked(double_bundle: Bundle, gpu: FakeCuda) -> None:
    bundle = add_engines(double_bundle)
    (bundle.path / "model.onnx").write_bytes((bundle.path / "model.onnx").read_bytes()[:-1] + b"!")
    with pytest.raises(BundleError, match="'model.onnx' .* was changed"):
        Session.open(bundle.path, backend="tensorrt")


def test_update_keeps_the_record(double_bundle: Bundle) -> None:
    bundle = add_engines(double_bundle)
    update_bundle(bundle, bundle.manifest, {})
    (record,) = Bundle.open(bundle.path).manifest.engines
    assert (record.sm, record.driver) == (87, "12.6")
