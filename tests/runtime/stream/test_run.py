"""Real bundles on streams: states, several streams, keep levels, bad input."""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from tests.runtime.stream.stream_parts import WAIT_S, KeepingSink, ListSource
from trt_compress.errors import ConfigError, ShapeError, StreamError
from trt_compress.export.bundle import write_bundle
from trt_compress.format.manifest import Batch, Graph, Manifest, Model, State, TensorInfo, Weights
from trt_compress.runtime.session import Session
from trt_compress.runtime.stream.control import ControllerSettings
from trt_compress.runtime.stream.levels import levels_from_sessions
from trt_compress.runtime.stream.pace import Pace
from trt_compress.runtime.stream.parts import Item
from trt_compress.runtime.stream.pipeline import Settings
from trt_compress.runtime.stream.quality import Labels, labels_from_file
from trt_compress.runtime.stream.result import StreamResult
from trt_compress.runtime.stream.run import StreamOptions, open_sources, run_stream

Shape = tuple[int | str, ...]


def adder(
    names: tuple[str, ...] = ("model",), *, rows: int | str = 1, shared: bool = True
) -> tuple[Manifest, dict[str, bytes]]:
    """A bundle of `total = total before + x`, the total a state; several graphs add x as many times as their place."""
    shape: Shape = (rows, 2)
    graphs, states, files = [], [], {}
    for place, name in enumerate(names, start=1):
        nodes = [helper.make_node("Add", ["before" if n == 0 else f"s{n}", "x"], [f"s{n + 1}"]) for n in range(place)]
        nodes.append(helper.make_node("Identity", [f"s{place}"], ["after"]))
        nodes.append(helper.make_node("Identity", [f"s{place}"], ["total"]))
        ins, outs = (
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, list(shape)) for n in side]
            for side in (("x", "before"), ("total", "after"))
        )
        graph = helper.make_graph(nodes, "g", ins, outs)
        files[f"{name}.onnx"] = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10
        ).SerializeToString()
        inputs, outputs = (
            tuple(TensorInfo(name=n, dtype="float32", shape=shape) for n in side)
            for side in (("x", "before"), ("total", "after"))
        )
        graphs.append(Graph(name=name, file=f"{name}.onnx", inputs=inputs, outputs=outputs))
        states.append(State(graph=name, input="before", output="after", shape=shape, dtype="float32",
                            name="total" if shared and len(names) > 1 else None))  # fmt: skip
    manifest = Manifest(
        name="adder",
        created_with={},
        model=Model(source="zoo:adder", family="test", weights=Weights(source="none")),
        recipe={},
        precision="fp32",
        opset=20,
        batch=Batch(min=1, opt=1, max=8),
        graphs=tuple(graphs),
        states=tuple(states),
        preprocess={"kind": "tensors"},
    )
    return manifest, files


@pytest.fixture
def open_adder(tmp_path: Path) -> Callable[..., Session]:
    def make(*args: Any, **options: Any) -> Session:
        folder = tmp_path / f"adder{len(list(tmp_path.iterdir()))}"
        return Session.open(write_bundle(folder, *adder(*args, **options)), threads=1)

    return make


def ones(count: int, value: float = 1.0) -> list[Any]:
    return [Item(data={"x": np.full((1, 2), value, np.float32)}) for _ in range(count)]


def totals(sink: KeepingSink) -> list[float]:
    return [summary["results"][0]["total"]["mean"] for summary in sink.summaries]


def test_a_state_sees_delivered_frames_only_and_starts_anew_with_each_stream(
    open_adder: Callable[..., Session],
) -> None:
    levels = levels_from_sessions([open_adder()])
    items = ones(6)
    items[2] = Item(data={"x": np.full((1, 2), np.nan, np.float32)})
    for _ in range(2):
        sink = KeepingSink()
        result = run_stream(levels, ListSource(items), sinks=[sink], options=StreamOptions(warmup=3))
        assert totals(sink) == [1.0, 2.0, 3.0, 4.0, 5.0]  # neither warm-up nor the bad frame is in the state
        assert result.counts.reasons == {"the input 'x' is not finite": 1}
        assert StreamResult.from_text(result.to_text()) == result
        assert result.first_inference_ns is not None and result.first_inference_ns > 0


def test_a_dropped_frame_leaves_the_state_as_it_was(open_adder: Callable[..., Session]) -> None:
    """Values are powers of two, so a total says exactly which frames are in it."""
    levels = levels_from_sessions([open_adder()])
    items = [Item(data={"x": np.full((1, 2), 2.0**n, np.float32)}) for n in range(20)]
    sink = KeepingSink()
    settings = Settings(pace=Pace(kind="fixed rate", fps=50_000), policy="latest")
    result = run_stream(levels, ListSource(items), sinks=[sink], options=StreamOptions(settings=settings))
    expected = np.cumsum([2.0**n for n in sink.delivered]).tolist()
    assert totals(sink) == expected
    assert result.counts.dropped == 20 - len(sink.delivered)


def test_two_streams_at_once_on_one_session_have_histories_of_their_own(open_adder: Callable[..., Session]) -> None:
    levels = levels_from_sessions([open_adder()])
    first_runs, go_on = threading.Event(), threading.Event()

    def before(index: int) -> None:
        if index == 1:
            first_runs.set()
            assert go_on.wait(WAIT_S)

    sinks = [KeepingSink(), KeepingSink()]
    source = ListSource(ones(3), before)
    options = StreamOptions(warmup=0)
    thread = threading.Thread(target=lambda: run_stream(levels, source, sinks=sinks[:1], options=options))
    thread.start()
    assert first_runs.wait(WAIT_S)
    run_stream(levels, ListSource(ones(5)), sinks=sinks[1:])
    go_on.set()
    thread.join(WAIT_S)
    assert [totals(sink) for sink in sinks] == [[1, 2, 3], [1, 2, 3, 4, 5]]


def test_streams_of_one_query_have_a_row_of_the_state_each(open_adder: Callable[..., Session]) -> None:
    items = [Item(data=({"x": np.full((1, 2), 1.0, np.float32)}, {"x": np.full((1, 2), 10.0, np.float32)}))] * 3
    sink = KeepingSink()
    result = run_stream(levels_from_sessions([open_adder(rows="batch")]), ListSource(items), sinks=[sink], streams=2)
    assert sink.summaries[-1]["results"][0]["total"] == {"shape": [2, 2], "mean": 16.5, "min": 3.0, "max": 30.0}
    assert result.protocol.streams == 2
    with pytest.raises(ConfigError, match="2 streams cannot share the state 'model.before', which has no batch axis"):
        run_stream(levels_from_sessions([open_adder()]), ListSource(items), streams=2)


def test_graphs_of_one_bundle_are_levels_that_share_the_state(open_adder: Callable[..., Session]) -> None:
    session = open_adder(("once", "twice"))
    levels = levels_from_sessions([session])
    assert [level.name for level in levels.levels] == ["once", "twice"]
    sink = KeepingSink()
    # A deadline that nothing fits: after the first look at each level the cheapest runs, but for a probe.
    settings = Settings(deadline_ns=1)
    options = StreamOptions(settings=settings, warmup=0, adapt=ControllerSettings())
    result = run_stream(levels, ListSource(ones(10)), sinks=[sink], options=options)
    used = list(result.frames.level)
    assert used == ["once", *["twice"] * 9]
    assert totals(sink) == np.cumsum([1.0 if name == "once" else 2.0 for name in used]).tolist()
    assert result.controller is not None and result.counts.deadline_missed == 10


def test_stateful_bundles_are_no_levels_of_each_other(open_adder: Callable[..., Session]) -> None:
    with pytest.raises(ConfigError, match="has states, and a level would not see what the others saw"):
        levels_from_sessions([open_adder(), open_adder()])
    with pytest.raises(ConfigError, match="differ in their inputs or outputs"):
        levels_from_sessions([open_adder(), open_adder(rows="batch")])


def save_scene(path: Path, **arrays: Any) -> str:
    np.savez(path, **arrays)
    return str(path)


def test_a_scene_gives_arrays_with_their_times(open_adder: Callable[..., Session], tmp_path: Path) -> None:
    x = np.arange(8, dtype=np.float32).reshape(4, 2)
    path = save_scene(tmp_path / "scene.npz", x=x, timestamp_ns=np.arange(4) * 7)
    levels, sink = levels_from_sessions([open_adder()]), KeepingSink()
    result = run_stream(levels, open_sources([path], levels), sinks=[sink])
    assert totals(sink) == np.cumsum(x, axis=0).mean(axis=1).tolist()
    assert result.frames.capture_ns == (0, 7, 14, 21)


FLOATS = np.zeros((4, 2), np.float32)


@pytest.mark.parametrize(
    ("arrays", "error", "message"),
    [
        ({"y": FLOATS}, ConfigError, "has the array 'y', and the bundle takes x"),
        ({"timestamp_ns": FLOATS}, ConfigError, r"lacks the array 'x' that .* takes: float32 of shape \[T, 1, 2\]"),
        (
            {"x": FLOATS[:, [0, 0, 1]]},
            ShapeError,
            r"has 3 on axis 2 of a frame, where the bundle takes 2; give \[T, 1, 2",
        ),
        ({"x": FLOATS[:, None].repeat(5, 1)}, ShapeError, "has 5 on axis 1 of a frame, where the bundle takes 1"),
        ({"x": FLOATS[:, 0]}, ShapeError, "has 1 axes, and time and the input's axes make 3"),
        ({"x": FLOATS.astype(float)}, ShapeError, r"is float64 and the bundle takes float32; save it with \.astype"),
        ({"x": FLOATS, "timestamp_ns": np.zeros(3)}, ConfigError, r"\(x 4, timestamp_ns 3\)"),
        ({"x": FLOATS[:0]}, StreamError, "gave no frame: it ended at once"),
    ],
)
def test_a_scene_that_does_not_fit_is_refused(
    open_adder: Callable[..., Session], tmp_path: Path, arrays: dict[str, Any], error: type[Exception], message: str
) -> None:
    levels = levels_from_sessions([open_adder()])
    with pytest.raises(error, match=message):
        run_stream(levels, open_sources([save_scene(tmp_path / "scene.npz", **arrays)], levels))


def test_a_truncated_scene_is_refused(open_adder: Callable[..., Session], tmp_path: Path) -> None:
    path = tmp_path / "scene.npz"
    save_scene(path, x=np.zeros((400, 2), np.float32))
    path.write_bytes(path.read_bytes()[:900])
    levels = levels_from_sessions([open_adder()])
    with pytest.raises(StreamError, match=r"scene\.npz' cannot be read \(.*\); write it with numpy\.savez"):
        run_stream(levels, open_sources([str(path)], levels))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothing.what", "The source 'nothing.what' does not exist; give video.mp4, camera:0"),
        ("mic", "'mic' is audio, and the bundle takes none"),
        (".", "'.' is a folder; give a pattern of its files"),
    ],
)
def test_sources_that_mean_nothing_are_refused(open_adder: Callable[..., Session], text: str, message: str) -> None:
    levels = levels_from_sessions([open_adder()])
    with pytest.raises(ConfigError, match=message):
        open_sources([text], levels)


def test_the_protocol_and_the_source_must_fit(open_adder: Callable[..., Session]) -> None:
    levels = levels_from_sessions([open_adder()])
    with pytest.raises(ConfigError, match="The protocol is 'live', and 'list' is no live source"):
        run_stream(levels, ListSource(ones(1)), options=StreamOptions(settings=Settings(pace=Pace(kind="live"))))
    with pytest.raises(ConfigError, match="there is none; give --deadline-ms"):
        StreamOptions(adapt=ControllerSettings())


@pytest.mark.parametrize(
    "text",
    ["", "{}", '{"id": 0}', '{"id": 0, "label": "7"}', "[1]", '{"id": 0.5, "label": 7}', '{"id": -1, "label": 7}'],
)
def test_labels_that_are_none_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "labels.jsonl").write_text(text)
    with pytest.raises(ConfigError, match=r"labels\.jsonl' (is no label; write|holds no label)"):
        Labels.read(tmp_path / "labels.jsonl")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"id": 0, "label": 1}\n{"id": 0, "label": 2}', r"Line 2 of '.*' gives frame 0 another label; give it one"),
        ('{"id": 0, "label": 10}', r"labels\.jsonl' has the label 10, and the bundle's classes are 0 to 9"),
    ],
)
def test_labels_that_contradict_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "labels.jsonl").write_text(text)
    with pytest.raises(ConfigError, match=message):
        labels_from_file(tmp_path / "labels.jsonl", {"kind": "classification", "classes": 10}, {})


def test_labels_of_other_frames_are_said_to_score_nothing(
    open_adder: Callable[..., Session], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "labels.jsonl").write_text('{"id": 100, "label": 7}')
    options = StreamOptions(labels=Labels.read(tmp_path / "labels.jsonl"))
    result = run_stream(levels_from_sessions([open_adder()]), ListSource(ones(4)), options=options)
    assert result.quality == {} and result.counts.delivered == 4
    assert caplog.messages == [
        "None of the frames that were delivered has a label, so nothing is scored; ids count from 0."
    ]


def test_labels_need_a_classification(open_adder: Callable[..., Session], tmp_path: Path) -> None:
    (tmp_path / "labels.jsonl").write_text(json.dumps({"id": 1, "label": 7}))
    levels = levels_from_sessions([open_adder()])
    options = StreamOptions(labels=Labels.read(tmp_path / "labels.jsonl"))
    with pytest.raises(StreamError, match=r"Frame 1 of 'list' failed in 'postprocess': Frame 1 has 1 label") as caught:
        run_stream(levels, ListSource(ones(4)), options=options)
    assert isinstance(caught.value.result, StreamResult)
    assert caught.value.result.counts.failed == 1 and caught.value.exit_code == 2
