"""Sessions on small bundles; what runs them is the real ONNX Runtime unless a test says otherwise."""

import dataclasses
import io
import sys
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from trt_compress.errors import BundleError, ConfigError, ShapeError, UnsupportedError
from trt_compress.export.bundle import update_bundle
from trt_compress.format.manifest import Link, State
from trt_compress.runtime import Bundle, Session

MakeBundle = Callable[..., Bundle]
X = np.arange(6, dtype=np.float32).reshape(2, 3)


def test_one_graph_runs_by_bare_names(double_bundle: Bundle) -> None:
    for bundle in (double_bundle, double_bundle.path, str(double_bundle.path)):
        with Session.open(bundle, threads=1) as session:
            assert list(session.inputs) == ["x"]
            assert list(session.outputs) == ["y"]
            results = session.run({"x": X})
            assert list(results) == ["y"]
            np.testing.assert_array_equal(results["y"], X + X)


def test_a_closed_session_says_so(double_bundle: Bundle) -> None:
    with Session.open(double_bundle) as session:
        pass
    with pytest.raises(ConfigError, match="The session is closed; open the bundle again"):
        session.run({"x": X})


def test_the_batch_may_differ_from_run_to_run(double_bundle: Bundle) -> None:
    with Session.open(double_bundle) as session:
        for batch in (1, 5, 2):
            assert session.run({"x": np.ones((batch, 3), np.float32)})["y"].shape == (batch, 3)


def test_hashes_are_compared_unless_told_otherwise(double_bundle: Bundle) -> None:
    (double_bundle.path / "notes/readme.txt").write_bytes(b"hellO")
    with pytest.raises(BundleError, match="its hash differs"):
        Session.open(double_bundle.path)
    Session.open(double_bundle.path, check_hashes=False).close()


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        ({}, ConfigError, r"Input 'x' is missing; give float32 of shape \[batch, 3\]"),
        ({"x": X, "X1": X}, ConfigError, r"input 'X1' is not known; there is x"),
        ({"x": X.tolist()}, ShapeError, r"Input 'x' is a list; give a numpy array of float32"),
        ({"x": X.astype(np.float64)}, ShapeError, r"'x' is float64 and the graph takes float32; cast it with \.astype"),
        ({"x": X.astype(">f4")}, ShapeError, r"'x' is >f4 and the graph takes float32"),
        ({"x": X[0]}, ShapeError, r"'x' has 1 axes, shape \[3\]; the graph takes 2, \[batch, 3\]"),
        ({"x": X[:, :2]}, ShapeError, r"'x' has 2 on axis 1, shape \[2, 2\]; the graph takes 3, \[batch, 3\]"),
    ],
)
def test_a_bad_input_is_refused(
    double_bundle: Bundle, inputs: dict[str, np.ndarray], error: type[Exception], message: str
) -> None:
    with Session.open(double_bundle) as session, pytest.raises(error, match=message):
        session.run(inputs)


def test_an_unknown_input_gets_the_nearest_name(make_bundle: MakeBundle) -> None:
    nodes = [helper.make_node("Identity", ["pixels"], ["y"])]
    bundle = make_bundle({"model": (nodes, {"pixels": ("float32", ["batch"])}, {"y": ("float32", ["batch"])})})
    with Session.open(bundle) as session, pytest.raises(ConfigError, match=r"'pixel'.* Did you mean 'pixels'\?"):
        session.run({"pixel": X[0]})


def test_axes_with_one_symbol_must_agree(make_bundle: MakeBundle) -> None:
    nodes = [helper.make_node("Concat", ["a", "b"], ["y"], axis=1)]
    inputs = {"a": ("float32", ["batch", 3]), "b": ("float32", ["batch", 2])}
    bundle = make_bundle({"model": (nodes, inputs, {"y": ("float32", ["batch", 5])})})
    with Session.open(bundle) as session:
        assert session.run({"a": X, "b": X[:, :2]})["y"].shape == (2, 5)
        with pytest.raises(ShapeError, match=r"'b' has 1 on axis 0, where another input has 'batch' = 2"):
            session.run({"a": X, "b": X[:1, :2]})


# --- backends


def test_an_unknown_backend_is_refused(double_bundle: Bundle) -> None:
    with pytest.raises(
        ConfigError,
        match=r"'ort-cup' is not known; there are ort-cpu, ort-cuda, tensorrt, rtx\. Did you mean 'ort-cpu'\?",
    ):
        Session.open(double_bundle, backend="ort-cup")


@pytest.mark.parametrize("threads", [0, -1])
def test_too_few_threads_are_refused(double_bundle: Bundle, threads: int) -> None:
    with pytest.raises(ConfigError, match=rf"threads={threads}; give at least 1"):
        Session.open(double_bundle, threads=threads)


def test_a_missing_onnxruntime_is_a_sentence(double_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UnsupportedError, match=r"'ort-cpu' needs ONNX Runtime.*install trt-compress\[cpu\]"):
        Session.open(double_bundle)


def test_cuda_is_refused_where_onnxruntime_has_none(double_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(UnsupportedError, match=r"needs CUDAExecutionProvider.* has CPUExecutionProvider; .*\[gpu\]"):
        Session.open(double_bundle, backend="ort-cuda")


def test_a_silent_fallback_to_the_cpu_is_refused(double_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime with CUDA built in, on a machine whose driver is missing, loads the graph on the CPU."""
    fallen_back = SimpleNamespace(get_providers=lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: fallen_back)
    with pytest.raises(UnsupportedError, match="'ort-cuda' was asked for .* would have run on CPUExecutionProvider"):
        Session.open(double_bundle, backend="ort-cuda")


def test_a_file_that_is_not_onnx_is_refused(make_bundle: MakeBundle, double_bundle: Bundle) -> None:
    bundle = update_bundle(double_bundle, double_bundle.manifest, {"model.onnx": b"not an ONNX file"})
    with pytest.raises(BundleError, match=r"ONNX Runtime .* cannot load 'model\.onnx' of "):
        Session.open(bundle)


def test_a_graph_that_is_not_the_manifests_is_refused(double_bundle: Bundle) -> None:
    graph = double_bundle.manifest.graphs[0]
    renamed = dataclasses.replace(graph, outputs=(dataclasses.replace(graph.outputs[0], name="z"),))
    manifest = dataclasses.replace(double_bundle.manifest, graphs=(renamed,))
    with pytest.raises(BundleError, match=r"outputs of 'model\.onnx' are y, and the manifest lists z"):
        Session.open(dataclasses.replace(double_bundle, manifest=manifest))


def test_a_dtype_that_numpy_lacks_is_refused(double_bundle: Bundle) -> None:
    graph = double_bundle.manifest.graphs[0]
    posit = dataclasses.replace(graph, inputs=(dataclasses.replace(graph.inputs[0], dtype="posit8"),))
    manifest = dataclasses.replace(double_bundle.manifest, graphs=(posit,))
    with pytest.raises(UnsupportedError, match="'x' is posit8, which numpy does not have"):
        Session.open(dataclasses.replace(double_bundle, manifest=manifest))


def test_a_failure_while_running_is_a_sentence(make_bundle: MakeBundle) -> None:
    nodes = [helper.make_node("Gather", ["table", "index"], ["y"])]
    inputs = {"table": ("float32", ["rows"]), "index": ("int64", ["n"])}
    bundle = make_bundle({"model": (nodes, inputs, {"y": ("float32", ["n"])})})
    with Session.open(bundle) as session:
        with pytest.raises(UnsupportedError, match=r"ONNX Runtime failed in the graph 'model': .*\bidx=7\b") as caught:
            session.run({"table": X[0], "index": np.array([7])})
        assert "\n" not in str(caught.value)


# --- several graphs


@pytest.fixture
def two_graphs(make_bundle: MakeBundle) -> Bundle:
    """encoder: features = 2x, norm = -x; decoder: y = features + bias."""
    vector = ("float32", ["batch", 3])
    encoder = [helper.make_node("Add", ["x", "x"], ["features"]), helper.make_node("Neg", ["x"], ["norm"])]
    decoder = [helper.make_node("Add", ["memory", "bias"], ["y"])]
    return make_bundle(
        {
            "encoder": (encoder, {"x": vector}, {"features": vector, "norm": vector}),
            "decoder": (decoder, {"memory": vector, "bias": ("float32", [3])}, {"y": vector}),
        },
        links=(Link(source="encoder.features", to="decoder.memory"),),
    )


def test_links_feed_graphs_and_are_hidden(two_graphs: Bundle) -> None:
    bias = np.array([10, 20, 30], np.float32)
    with Session.open(two_graphs) as session:
        assert list(session.inputs) == ["encoder.x", "decoder.bias"]
        assert list(session.outputs) == ["encoder.norm", "decoder.y"]
        results = session.run({"encoder.x": X, "decoder.bias": bias})
        assert list(results) == ["encoder.norm", "decoder.y"]
        np.testing.assert_array_equal(results["decoder.y"], 2 * X + bias)
        np.testing.assert_array_equal(results["encoder.norm"], -X)


def test_a_linked_input_is_not_taken_from_outside(two_graphs: Bundle) -> None:
    with Session.open(two_graphs) as session, pytest.raises(ConfigError, match=r"input 'decoder\.memory' is not known"):
        session.run({"encoder.x": X, "decoder.memory": X})


# --- states


def accumulator(make_bundle: MakeBundle, files: dict[str, bytes] | None = None, **fields: object) -> Bundle:
    """total = seen + x; y = -total; `total` is kept and comes back as `seen`."""
    nodes = [helper.make_node("Add", ["seen", "x"], ["total"]), helper.make_node("Neg", ["total"], ["y"])]
    vector = ("float32", ["batch", 3])
    state = State(graph="model", input="seen", output="total", shape=("batch", 3), dtype="float32")
    return make_bundle(
        {"model": (nodes, {"x": vector, "seen": vector}, {"total": vector, "y": vector})},
        files,
        states=(dataclasses.replace(state, **fields),),
    )


def cache(make_bundle: MakeBundle, capacity: int | None) -> Bundle:
    """present = past ++ x along an axis that grows; y = number of tokens held."""
    nodes: list[onnx.NodeProto] = [
        helper.make_node("Concat", ["past", "x"], ["present"], axis=1),
        helper.make_node("Shape", ["present"], ["y"], start=1, end=2),
    ]
    inputs = {"x": ("float32", ["batch", "tokens", 2]), "past": ("float32", ["batch", "held", 2])}
    outputs = {"present": ("float32", ["batch", "held_after", 2]), "y": ("int64", [1])}
    state = State(
        graph="model",
        input="past",
        output="present",
        shape=("batch", "held", 2),
        dtype="float32",
        capacity=capacity,
    )
    return make_bundle({"model": (nodes, inputs, outputs)}, states=(state,))


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def test_a_state_is_kept_between_runs_and_reset(make_bundle: MakeBundle) -> None:
    with Session.open(accumulator(make_bundle)) as session:
        assert list(session.inputs) == ["x"]
        assert list(session.outputs) == ["y"]
        for expected in (X, 2 * X, 3 * X):
            np.testing.assert_array_equal(session.run({"x": X})["y"], -expected)
        session.reset()
        np.testing.assert_array_equal(session.run({"x": X})["y"], -X)


@pytest.mark.parametrize(
    ("initial", "files", "start"),
    [
        ({"fill": 100}, None, 100),
        ({"fill": 0.5}, None, 0.5),
        ({"file": "s.npy"}, {"s.npy": npy(np.array([1, 2, 3], np.float32))}, np.array([1, 2, 3])),
    ],
)
def test_a_state_starts_from_its_initial_value(
    make_bundle: MakeBundle, initial: object, files: dict[str, bytes] | None, start: float | np.ndarray
) -> None:
    with Session.open(accumulator(make_bundle, files, initial=initial)) as session:
        for _ in range(2):
            np.testing.assert_array_equal(session.run({"x": X})["y"], -(X + start))
            session.reset()


@pytest.mark.parametrize(
    ("initial", "files", "message"),
    [
        ("ones", None, r"'model\.seen' starts from 'ones'; this trt-compress knows"),
        ({"file": "s.npy"}, {"s.npy": npy(np.zeros(3))}, r"cannot start from 's\.npy': it holds float64, not float32"),
        ({"file": "s.npy"}, {"s.npy": npy(np.zeros(4, np.float32))}, r"cannot start from 's\.npy': .*broadcast"),
        ({"file": "s.npy"}, {"s.npy": b"no array"}, r"^'s\.npy', from which the state 'model\.\w+' starts, cannot be"),
    ],
)
def test_a_bad_initial_value_is_refused(
    make_bundle: MakeBundle, initial: object, files: dict[str, bytes] | None, message: str
) -> None:
    with Session.open(accumulator(make_bundle, files, initial=initial)) as session:
        with pytest.raises(BundleError, match=message):
            session.run({"x": X})


def test_another_batch_needs_a_reset(make_bundle: MakeBundle) -> None:
    with Session.open(accumulator(make_bundle)) as session:
        session.run({"x": X})
        with pytest.raises(ShapeError, match=r"'batch' = 1, and the state 'model\.seen' holds 2 .*call reset\(\)"):
            session.run({"x": X[:1]})
        np.testing.assert_array_equal(session.run({"x": X})["y"], -2 * X)
        session.reset()
        np.testing.assert_array_equal(session.run({"x": X[:1]})["y"], -X[:1])


def test_a_state_that_changes_its_own_shape_is_refused(make_bundle: MakeBundle) -> None:
    nodes = [helper.make_node("Concat", ["seen", "x"], ["total"], axis=0)]
    vector, longer = ("float32", ["batch", 3]), ("float32", ["twice", 3])
    state = State(graph="model", input="seen", output="total", shape=("batch", 3), dtype="float32")
    bundle = make_bundle({"model": (nodes, {"x": vector, "seen": vector}, {"total": longer})}, states=(state,))
    with Session.open(bundle) as session, pytest.raises(ShapeError, match=r"float32 of shape \[4, 3\] for the state"):
        session.run({"x": X})


def test_a_cache_grows_up_to_its_capacity(make_bundle: MakeBundle) -> None:
    def tokens(count: int) -> dict[str, np.ndarray]:
        return {"x": np.ones((1, count, 2), np.float32)}

    with Session.open(cache(make_bundle, capacity=5)) as session:
        assert session.run(tokens(3))["y"] == 3
        with pytest.raises(ShapeError, match=r"'model\.past' 6 long on 'held'; its capacity is 5"):
            session.run(tokens(3))
        assert session.run(tokens(2))["y"] == 5  # the refused run left no trace
        session.reset()
        assert session.run(tokens(1))["y"] == 1


def test_a_cache_without_a_capacity_grows_on(make_bundle: MakeBundle) -> None:
    with Session.open(cache(make_bundle, capacity=None)) as session:
        for expected in (40, 80, 120):
            assert session.run({"x": np.ones((1, 40, 2), np.float32)})["y"] == expected


def test_a_state_lives_in_one_of_several_graphs(make_bundle: MakeBundle) -> None:
    """encoder: features = 2x; decoder: total = features + seen, kept for the next run."""
    vector = ("float32", ["batch", 3])
    decoder = [helper.make_node("Add", ["features", "seen"], ["total"]), helper.make_node("Neg", ["total"], ["y"])]
    bundle = make_bundle(
        {
            "encoder": ([helper.make_node("Add", ["x", "x"], ["features"])], {"x": vector}, {"features": vector}),
            "decoder": (decoder, {"features": vector, "seen": vector}, {"total": vector, "y": vector}),
        },
        links=(Link(source="encoder.features", to="decoder.features"),),
        states=(State(graph="decoder", input="seen", output="total", shape=("batch", 3), dtype="float32"),),
    )
    with Session.open(bundle) as session:
        assert list(session.inputs) == ["encoder.x"]
        for expected in (2 * X, 4 * X):
            results = session.run({"encoder.x": X})
            assert list(results) == ["decoder.y"]
            np.testing.assert_array_equal(results["decoder.y"], -expected)


# ---- at a prompt ----------------------------------------------------------------------------------------------------


def test_a_session_and_a_bundle_say_what_they_are(double_bundle: Bundle) -> None:
    assert repr(double_bundle) == f"<Bundle '{double_bundle.path}': test, 2 files>"
    with Session.open(double_bundle) as session:
        assert repr(session) == "<Session test on ort-cpu: x float32 [batch, 3] → y float32 [batch, 3]>"
    assert repr(session) == "<Session test, closed>"


def test_one_array_is_enough_where_there_is_one_input(double_bundle: Bundle) -> None:
    with Session.open(double_bundle) as session:
        np.testing.assert_array_equal(session.run(X)["y"], X + X)
        np.testing.assert_array_equal(session.run_graph("model", X)["y"], X + X)


class _Tensor:
    def detach(self) -> "_Tensor":
        return self


WRONG: dict[str, tuple[object, str]] = {
    "a list": (X.tolist(), r"^Input 'x' is a list; give a numpy array of float32, as numpy.asarray\(…, 'float32'\)"),
    "a tensor": (
        _Tensor(),
        r"^Input 'x' is a _Tensor; give a numpy array of float32, as \.detach\(\)\.cpu\(\)\.numpy\(\)",
    ),
    "nothing": (None, r"^Input 'x' is a NoneType; give a numpy array of float32"),
    "a text": ("x", r"^Input 'x' is a str; give a numpy array"),
    "an int64 array": (X.astype(np.int64), r"^Input 'x' is int64 and the graph takes float32; cast it"),
    "big-endian": (X.astype(">f4"), r"^Input 'x' is >f4 and the graph takes float32; cast it"),
    "objects": (X.astype(object), r"^Input 'x' is object and the graph takes float32"),
    "too few axes": (X[0], r"^Input 'x' has 1 axes, shape \[3\]; the graph takes 2, \[batch, 3\]\."),
    "a number for a name": ({3: X}, r"^input 3 is not known; there is x\.$"),
    "a near name": ({"X": X}, r"^input 'X' is not known; there is x\. Did you mean 'x'\?$"),
    "no input": ({}, r"^Input 'x' is missing; give float32 of shape \[batch, 3\]\.$"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_input_gets_a_sentence(double_bundle: Bundle, name: str) -> None:
    given, message = WRONG[name]
    with Session.open(double_bundle) as session, pytest.raises((ConfigError, ShapeError), match=message):
        session.run(given)  # type: ignore[arg-type]


def test_one_array_does_not_do_for_two_inputs(make_bundle: MakeBundle) -> None:
    nodes = [helper.make_node("Add", ["a", "b"], ["y"])]
    tensors = {name: ("float32", ["batch", 3]) for name in "ab"}
    bundle = make_bundle({"model": (nodes, tensors, {"y": ("float32", ["batch", 3])})})
    wanted = r"^One ndarray was given, and the bundle takes a float32 \[batch, 3\], b float32 \[batch, 3\]; give a dict"
    with Session.open(bundle) as session, pytest.raises(ConfigError, match=wanted):
        session.run(X)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threads": "4"}, "^threads='4'; give at least 1"),
        ({"backend": None}, "^backend None is not known; there are ort-cpu, ort-cuda"),
        ({"native": 3}, "^native=3; give True, False, the path of a library, or nothing"),
    ],
    ids=["threads", "backend", "native"],
)
def test_a_wrong_argument_gets_a_sentence(double_bundle: Bundle, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Session.open(double_bundle, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("given", [None, 3, b"bundle", ["bundle"]], ids=repr)
def test_a_bundle_is_a_path(given: object) -> None:
    with pytest.raises(BundleError, match="^A bundle is a directory, and .* was given; give its path"):
        Session.open(given)  # type: ignore[arg-type]
