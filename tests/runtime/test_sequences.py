"""A bundle that reads tokens by its procedure, against a plain count of what it has read."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from trt_compress.errors import BundleError, ConfigError, ShapeError
from trt_compress.export.bundle import write_bundle
from trt_compress.format.graphs import Capacity, Graph, Range, State, TensorInfo
from trt_compress.format.manifest import Batch, Manifest, Model, Weights
from trt_compress.format.procedure import Media, Pass, Procedure, Upkeep
from trt_compress.runtime import Bundle, Session
from trt_compress.runtime.sequences import Sequences

HEAD = '<ir_version: 10, opset_import: ["" : 20]>'
PERIOD = 4
# What is held in the tail, behind which the total of what was flushed stands; the last of the given positions.
STEP = """
step (int64[batch,time] tokens, int64[batch] count, int64[batch,time] positions, float[batch] bias_in,
      float[batch,slots] tail_in, int64[batch] length_in, float[batch] total_in)
  => (float[batch,4] logits, float[batch,slots] tail_out, int64[batch] length_out) {
  i0 = Constant<value_int = 0>()
  i1 = Constant<value_int = 1>()
  none = Constant<value_int = -1>()
  axis = Constant<value_ints = [1]>()
  times = Shape<start = 1, end = 2>(tokens)
  new = Squeeze(times)
  number = Range(i0, new, i1)
  first = Unsqueeze(length_in, axis)
  index = Add(first, number)
  rows = Cast<to = 1>(tokens)
  tail_out = ScatterElements<axis = 1>(tail_in, index, rows)
  length_out = Add(length_in, count)
  SUM
  whole = Add(sum, total_in)
  counts = Unsqueeze(count, axis)
  counted = Less(number, counts)
  places = Where(counted, positions, none)
  place = ReduceMax<keepdims = 0>(places, axis)
  last = Cast<to = 1>(place)
  length = Cast<to = 1>(length_out)
  a = Unsqueeze(whole, axis)
  b = Unsqueeze(last, axis)
  c = Unsqueeze(length, axis)
  d = Unsqueeze(bias_in, axis)
  logits = Concat<axis = 1>(a, b, c, d)
}""".replace(
    "SUM",
    """sizes = Shape<start = 1, end = 2>(tail_in)
  size = Squeeze(sizes)
  slot = Range(i0, size, i1)
  end = Unsqueeze(length_out, axis)
  is_held = Less(slot, end)
  held = Cast<to = 1>(is_held)
  kept = Mul(tail_out, held)
  sum = ReduceSum<keepdims = 0>(kept, axis)""",
)
FLUSH = """
flush (float[batch,slots] tail_in, int64[batch] length_in, float[batch] total_in)
  => (int64[batch] length_out, float[batch] total_out) {
  i0 = Constant<value_int = 0>()
  i1 = Constant<value_int = 1>()
  f0 = Constant<value_float = 0.0>()
  period = Constant<value_int = PERIOD>()
  axis = Constant<value_ints = [1]>()
  sizes = Shape<start = 1, end = 2>(tail_in)
  size = Squeeze(sizes)
  slot = Range(i0, size, i1)
  end = Unsqueeze(length_in, axis)
  is_held = Less(slot, end)
  held = Cast<to = 1>(is_held)
  kept = Mul(tail_in, held)
  sum = ReduceSum<keepdims = 0>(kept, axis)
  is_part = Less(length_in, period)
  added = Where(is_part, f0, sum)
  total_out = Add(total_in, added)
  length_out = Where(is_part, length_in, i0)
}"""
LOOK = """
look (float[batch,2] picture) => (float[batch] bias_out) {
  axis = Constant<value_ints = [1]>()
  bias_out = ReduceSum<keepdims = 0>(picture, axis)
}"""


# Adds up tokens, and in place of those that stand for a row of the picture this row.
PLACE = """
place (int64[batch,time] tokens, int64[batch,time] rows, int64[batch] count, float[batch,2] picture_in,
       float[batch] sum_in) => (float[batch,1] logits, float[batch] sum_out) {
  i0 = Constant<value_int = 0>()
  axis = Constant<value_ints = [1]>()
  is_text = Less(rows, i0)
  text = Cast<to = 1>(tokens)
  row = Max(rows, i0)
  shown = GatherElements<axis = 1>(picture_in, row)
  each = Where(is_text, text, shown)
  sum = ReduceSum<keepdims = 0>(each, axis)
  sum_out = Add(sum_in, sum)
  logits = Unsqueeze(sum_out, axis)
}"""
SHOW = """
show (float[batch,2] picture) => (float[batch,2] picture_out) {
  picture_out = Identity(picture)
}"""


SCORE = """
score (int64[batch,time] tokens, int64[batch,time] following) => (float[batch,time] logarithms) {
  pair = Sub(following, tokens)
  logarithms = Cast<to = 1>(pair)
}"""


def graph_of(text: str, role: str) -> tuple[Graph, bytes]:
    model = onnx.parser.parse_model(HEAD + text)
    sides = []
    for values in (model.graph.input, model.graph.output):
        types = [(value.name, value.type.tensor_type) for value in values]
        sides.append(
            tuple(
                TensorInfo(
                    name=name,
                    dtype=str(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)),
                    shape=tuple(dim.dim_param or dim.dim_value for dim in kind.shape.dim),
                )
                for name, kind in types
            )
        )
    name = model.graph.name
    entry = Graph(name=name, role=role, file=f"{name}.onnx", inputs=sides[0], outputs=sides[1])
    return entry, model.SerializeToString()


def state(graph: str, name: str, ends: str, shape: tuple[str | int, ...], **fields: Any) -> State:
    return State(
        graph=graph, name=name, shape=shape, input=f"{name}_in" if "r" in ends else None,
        output=f"{name}_out" if "w" in ends else None, dtype=fields.pop("dtype", "float32"), **fields,
    )  # fmt: skip


def write_viewer(folder: Path) -> Bundle:
    """A bundle whose prompt has the token 9 for each of the two rows of a picture."""
    graphs = [graph_of(SHOW, "vision"), graph_of(PLACE, "step")]
    reading = Pass(graphs=("place",), tokens="time", logits="place.logits")
    manifest = manifest_of(
        [entry for entry, _ in graphs],
        states=(
            state("show", "picture", "w", ("batch", 2), kind="features"),
            state("place", "picture", "r", ("batch", 2), kind="features"),
            state("place", "sum", "rw", ("batch",)),
        ),
        lengths={"time": Range(min=1, opt=2, max=3)},
        procedure=Procedure(
            prompt=reading,
            step=reading,
            feeds={"place.tokens": "tokens", "place.rows": "rows", "place.count": "count"},
            media=(Media(graphs=("show",), input={"kind": "tensors", "input": "show.picture"}, token=9, rows=2),),
        ),
        preprocess={"kind": "text", "input": "place.tokens"},
    )
    return write_bundle(folder, manifest, {entry.file: content for entry, content in graphs})


def manifest_of(graphs: Sequence[Graph], **fields: Any) -> Manifest:
    return Manifest(
        name="counter",
        created_with={},
        model=Model(source="zoo:test", family="test", weights=Weights(source="none")),
        recipe={},
        precision="fp32",
        opset=20,
        batch=Batch(min=1, opt=1, max=8),
        graphs=tuple(graphs),
        **fields,
    )


def write(folder: Path, *, flush: str = FLUSH, **changed: Any) -> Bundle:
    graphs = [
        graph_of(LOOK, "vision"),
        graph_of(STEP, "step"),
        graph_of(flush.replace("PERIOD", str(PERIOD)), "flush"),
        *([graph_of(SCORE, "score")] if "score" in changed else []),
    ]
    length: dict[str, Any] = {"dtype": "int64", "kind": "length"}
    reading = Pass(graphs=("step",), tokens="time", logits="step.logits")
    fields: dict[str, Any] = {
        "prompt": reading,
        "step": reading,
        "feeds": {"step.tokens": "tokens", "step.count": "count", "step.positions": "positions"},
        "upkeep": (Upkeep(graph="flush", after="run", capacity="slots", at_least=PERIOD),),
        "media": (Media(graphs=("look",), input={"kind": "tensors", "input": "look.picture"}),),
    }
    manifest = manifest_of(
        [entry for entry, _ in graphs],
        states=(
            state("look", "bias", "w", ("batch",), kind="features"),
            state("step", "bias", "r", ("batch",), kind="features"),
            state("step", "tail", "rw", ("batch", "slots"), kind="tail"),
            state("flush", "tail", "r", ("batch", "slots"), kind="tail"),
            state("step", "length", "rw", ("batch",), **length),
            state("flush", "length", "rw", ("batch",), **length),
            state("step", "total", "r", ("batch",)),
            state("flush", "total", "rw", ("batch",)),
        ),
        lengths={"time": Range(min=1, opt=2, max=3), "slots": Range(min=4, opt=8, max=16)},
        capacities=(Capacity(symbol="slots", used="length", adds={"step": "tokens"}),),
        procedure=Procedure(**{**fields, **changed}),
        preprocess={"kind": "text", "input": "step.tokens"},
    )
    return write_bundle(folder, manifest, {entry.file: content for entry, content in graphs})


def expected(text: list[int], chunks: list[int], bias: float) -> list[float]:
    """Logits behind a text that was read in chunks: its sum, its last position, and what the flushes left."""
    held = 0
    for count in chunks[:-1]:
        held = 0 if held + count >= PERIOD else held + count
    return [sum(text), len(text) - 1, held + chunks[-1], bias]


def test_prompts_of_unequal_length_and_steps(tmp_path: Path) -> None:
    with Session.open(write(tmp_path / "b")) as session:
        pair = Sequences(session, batch=2)
        pair.attend({"look.picture": np.array([[1, 2], [3, 4]], np.float32)})
        texts = [[5, 6, 7, 8, 9, 1, 2], [4, 3]]
        logits = pair.read([np.array(text) for text in texts])
        chunks = [[3, 3, 1], [2]]
        wanted = [expected(text, parts, bias) for text, parts, bias in zip(texts, chunks, (3, 7), strict=True)]
        np.testing.assert_array_equal(logits, wanted)
        assert pair.seen == (7, 2) and pair.states.lengths["slots"] == 8
        chunks = [[3, 3, 1], [2, 0, 0]]
        for token in range(10, 17):
            logits = pair.step([token, token + 1])
            for text, parts, more in zip(texts, chunks, (0, 1), strict=True):
                text.append(token + more)
                parts.append(1)
            wanted = [expected(text, parts, bias) for text, parts, bias in zip(texts, chunks, (3, 7), strict=True)]
            np.testing.assert_array_equal(logits, wanted)
        before = pair.step([1, 1], ended=[False, True])[0]
        assert pair.seen == (15, 9) and before[1] == 14


def test_sequences_are_kept_and_forked(tmp_path: Path) -> None:
    with Session.open(write(tmp_path / "b")) as session:
        three = Sequences(session, batch=3)
        three.read([np.array([1]), np.array([2, 3]), np.array([4, 5, 6])])
        three.keep([2, 0])
        other = three.fork()
        assert three.seen == other.seen == (3, 1)
        np.testing.assert_array_equal(three.step([7, 8]), [[22, 3, 4, 0], [9, 1, 2, 0]])
        np.testing.assert_array_equal(other.step([1, 1]), [[16, 3, 4, 0], [2, 1, 2, 0]])
        np.testing.assert_array_equal(three.step([1, 1]), [[23, 4, 1, 0], [10, 2, 3, 0]])


def test_tokens_that_stand_for_what_media_found(tmp_path: Path) -> None:
    with Session.open(write_viewer(tmp_path / "b")) as session:
        pair = Sequences(session, batch=2)
        pair.attend({"show.picture": np.array([[100, 200], [1000, 2000]], np.float32)})
        texts = [np.array([1, 9, 2, 3, 9, 4, 5]), np.array([9, 9, 1])]  # 9 stands in runs of three, and on their border
        with pytest.raises(ConfigError, match=r"^The text has the token 9 1 times, .* of which there are 2\.$"):
            pair.read([texts[0], np.array([9, 1])])
        assert pair.seen == (0, 0)
        np.testing.assert_array_equal(pair.read(texts), [[315], [3001]])
        other = pair.fork()
        np.testing.assert_array_equal(pair.step([9, 1]), [[324], [3002]])  # a token of a step is text
        with pytest.raises(ConfigError, match="9 1 times, and it stands for what 'show' finds, in the first text"):
            other.read([np.array([9]), np.array([1])])
        blind = Sequences(session)
        with pytest.raises(ConfigError, match="in the first text that is read after that was run"):
            blind.read([texts[0]])
        np.testing.assert_array_equal(blind.read([np.array([1, 2])]), [[3]])


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with Session.open(write(tmp_path / "b")) as session:
        one = Sequences(session)
        with pytest.raises(ConfigError, match="2 texts were given; there are 1 sequences"):
            one.read([np.array([1]), np.array([2])])
        with pytest.raises(ConfigError, match="There is no token to read"):
            one.read([np.array([], np.int64)])
        with pytest.raises(ConfigError, match=r"float64 \[1\]; give the numbers of its tokens"):
            one.read([np.array([1.5])])
        with pytest.raises(ConfigError, match="input 'look.sound' is not known; there is look.picture"):
            one.attend({"look.sound": np.zeros((1, 2), np.float32)})
        with pytest.raises(ConfigError, match="gives the logits of the last token only"):
            one.score([np.array([1, 2])])
        with pytest.raises(ConfigError, match="give 1 integers"):
            one.step([1, 2])
        one.step([1])
        with pytest.raises(ConfigError, match="read before them; begin new sequences"):
            one.attend({"look.picture": np.zeros((1, 2), np.float32)})
        small = Sequences(session, capacity=4)
        small.step([1])
        with pytest.raises(ShapeError, match="slots"):
            small.read([np.arange(9)])
    with Session.open(tmp_path / "b", graphs=["step"]) as session:
        with pytest.raises(ConfigError, match="runs the graph 'look', which is not loaded; open all graphs"):
            Sequences(session)


def test_upkeep_that_makes_no_room_is_the_bundle_s_fault(tmp_path: Path) -> None:
    idle = FLUSH.replace("Where(is_part, length_in, i0)", "Where(is_part, length_in, length_in)")
    with Session.open(write(tmp_path / "b", flush=idle)) as session:
        sequence = Sequences(session)
        with pytest.raises(BundleError, match="procedure is at fault: 'flush' was run because 'slots' has 6 slots"):
            sequence.read([np.arange(9)])


def test_a_prompt_at_once(tmp_path: Path) -> None:
    whole = Pass(graphs=("step",), tokens="time", logits="step.logits", whole=True)
    with Session.open(write(tmp_path / "b", prompt=whole)) as session:
        np.testing.assert_array_equal(Sequences(session).read([np.array([5, 6, 7])]), [[18, 2, 3, 0]])
        with pytest.raises(ConfigError, match="The prompt has 4 tokens, and from 1 to 3 are read at once"):
            Sequences(session).read([np.arange(4)])


def test_texts_are_scored_in_runs(tmp_path: Path) -> None:
    score = Pass(graphs=("score",), tokens="time", logits="score.logarithms", rows="next")
    feeds = {"step.tokens": "tokens", "step.count": "count", "step.positions": "positions"}
    feeds |= {"score.tokens": "tokens", "score.following": "next"}
    with Session.open(write(tmp_path / "b", score=score, feeds=feeds)) as session:
        texts = [np.array([5, 9, 2, 2, 8, 1]), np.array([4, 6])]
        for found, text in zip(Sequences(session, batch=2).score(texts), texts, strict=True):
            np.testing.assert_array_equal(found, np.diff(text))


def test_a_bundle_without_a_procedure(tmp_path: Path, make_bundle: Any) -> None:
    identity = [onnx.helper.make_node("Identity", ["x"], ["y"])]
    bundle = make_bundle({"model": (identity, {"x": ("float32", ["batch"])}, {"y": ("float32", ["batch"])})})
    with Session.open(bundle) as session, pytest.raises(ConfigError, match="has no procedure .* run it with Session"):
        Sequences(session)
