"""Bundles that read tokens and count what they read, small enough to be checked by hand."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx

from trt_compress.export.bundle import write_bundle
from trt_compress.format.graphs import Capacity, Graph, Range, State, TensorInfo
from trt_compress.format.manifest import Batch, Manifest, Model, Weights
from trt_compress.format.procedure import Media, Pass, Procedure, Upkeep
from trt_compress.runtime import Bundle

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
       float[batch] sum_in) => (float[batch,VOCABULARY] logits, float[batch] sum_out) {
  i0 = Constant<value_int = 0>()
  axis = Constant<value_ints = [1]>()
  is_text = Less(rows, i0)
  text = Cast<to = 1>(tokens)
  row = Max(rows, i0)
  shown = GatherElements<axis = 1>(picture_in, row)
  each = Where(is_text, text, shown)
  sum = ReduceSum<keepdims = 0>(each, axis)
  sum_out = Add(sum_in, sum)
  column = Unsqueeze(sum_out, axis)
  sizes = Constant<value_ints = [1, VOCABULARY]>()
  logits = Expand(column, sizes)
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


def write_viewer(folder: Path, *, vocabulary: int = 1) -> Bundle:
    """A bundle whose prompt has the token 9 for each of the two rows of a picture; its logits are all alike."""
    place = PLACE.replace("VOCABULARY", str(vocabulary))
    graphs = [graph_of(SHOW, "vision"), graph_of(place, "step")]
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
