"""A bundle that writes text: a table says what follows a token and all that came before it; and its tokenizer."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from trt_compress.export.bundle import write_bundle
from trt_compress.format.graphs import Capacity, Graph, Range, State, TensorInfo
from trt_compress.format.manifest import Batch, Manifest, Model, Weights
from trt_compress.format.procedure import Pass, Procedure
from trt_compress.format.text import Text
from trt_compress.runtime import Bundle

VOCABULARY, MEMORY, CHUNK, CONTEXT = 300, 97, 5, 96
SPECIAL = ("<s>", "</s>", "<|im_start|>", "<|im_end|>")
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@cache
def tokenizer_json() -> bytes:
    """Bytes of UTF-8 as tokens, some merges, and special tokens; a text begins with <s>."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the quick brown fox jumps over the lazy dog and the other fox"] * 4, trainer)
    begin = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", begin)]
    )
    return tokenizer.to_str().encode()


@cache
def tables(scale: float = 3.0) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """What follows a token [V, V], and what follows a sum of tokens [MEMORY, V]."""
    random = np.random.default_rng(0)
    made = [random.normal(0, scale, (rows, VOCABULARY)).astype(np.float32) for rows in (VOCABULARY, MEMORY)]
    return made[0], made[1]


def logits_of(tokens: Sequence[int]) -> np.ndarray[Any, Any]:
    """Logits behind each token [N, V], by numpy."""
    first, second = tables()
    numbers = np.asarray(tokens, np.int64)
    total = np.cumsum(numbers * (np.arange(len(numbers)) + 1)) % MEMORY
    return np.asarray(first[numbers] + second[total])


def step_graph(*, every: bool, count: bool) -> bytes:
    """The graph: tokens, positions and what came before → logits."""
    first, second = tables()
    ints: dict[str, Any] = {"one": np.array(1), "memory": np.array(MEMORY), "axis": np.array([1]), "at": np.array(1)}
    initial = [numpy_helper.from_array(np.asarray(value, np.int64), name) for name, value in ints.items()]
    initial += [numpy_helper.from_array(first, "first"), numpy_helper.from_array(second, "second")]
    node = helper.make_node
    nodes = [
        node("Add", ["positions", "one"], ["places"]),
        node("Mul", ["tokens", "places"], ["weighed"]),
        node("CumSum", ["weighed", "at"], ["sums"]),
        node("Unsqueeze", ["total_in", "axis"], ["before"]),
        node("Add", ["sums", "before"], ["totals"]),
        node("Mod", ["totals", "memory"], ["kept"]),
        node("Gather", ["first", "tokens"], ["a"]),
        node("Gather", ["second", "kept"], ["b"]),
        node("Add", ["a", "b"], ["all" if not every else "logits"]),
        node("ScatterElements", ["cache_in", "positions", "tokens"], ["cache_out"], axis=1),
    ]
    if count:
        nodes += [node("Identity", ["count"], ["number"])]
    else:
        nodes += [
            node("Shape", ["tokens"], ["length"], start=1, end=2),
            node("Mul", ["total_in", "zero"], ["zeros"]),
            node("Add", ["zeros", "length"], ["number"]),
        ]
        initial.append(numpy_helper.from_array(np.array(0, np.int64), "zero"))
    nodes += [
        node("Sub", ["number", "one"], ["last_"]),
        node("Max", ["last_", "none"], ["last"]),
        node("Unsqueeze", ["last", "axis"], ["last_column"]),
        node("GatherElements", ["kept", "last_column"], ["total_last"], axis=1),
        node("Squeeze", ["total_last", "axis"], ["total_new"]),
        node("Greater", ["number", "none"], ["read"]),
        node("Where", ["read", "total_new", "total_in"], ["total_out"]),
    ]
    initial.append(numpy_helper.from_array(np.array(0, np.int64), "none"))
    if not every:
        nodes += [
            node("Unsqueeze", ["last_column", "two"], ["last_3d"]),
            node("Expand", ["last_3d", "shape"], ["index"]),
            node("GatherElements", ["all", "index"], ["logits_3d"], axis=1),
            node("Squeeze", ["logits_3d", "axis"], ["logits"]),
        ]
        initial.append(numpy_helper.from_array(np.array([2]), "two"))
        initial.append(numpy_helper.from_array(np.array([1, 1, VOCABULARY]), "shape"))
    value = helper.make_tensor_value_info
    inputs = [
        value("tokens", TensorProto.INT64, ["batch", "time"]),
        value("positions", TensorProto.INT64, ["batch", "time"]),
        value("total_in", TensorProto.INT64, ["batch"]),
        value("cache_in", TensorProto.INT64, ["batch", "slots"]),
    ]
    if count:
        inputs.append(value("count", TensorProto.INT64, ["batch"]))
    outputs = [
        value("logits", TensorProto.FLOAT, ["batch", "time", VOCABULARY] if every else ["batch", VOCABULARY]),
        value("total_out", TensorProto.INT64, ["batch"]),
        value("cache_out", TensorProto.INT64, ["batch", "slots"]),
    ]
    graph = helper.make_graph(nodes, "step", inputs, outputs, initial)
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 20)]).SerializeToString()


def write(
    folder: Path,
    *,
    every: bool = False,
    count: bool = True,
    batch: int = 4,
    tokenizer: bytes | None = None,
    template: str | None = CHATML,
    text: bool = True,
    context: int = CONTEXT,
    fixed: int | None = None,
    **said: Any,
) -> Bundle:
    """Write the bundle.

    Args:
        folder: Where.
        every: It gives the logits of every token.
        count: It can tell filling from tokens.
        batch: Its largest.
        tokenizer: The content of its tokenizer.json, if not its own.
        template: Its chat template.
        text: Whether it has a text side at all.
        context: The most tokens of a sequence.
        fixed: It reads so many sequences at once, and no others.
        said: Fields of `Text` that are otherwise.
    """
    content = step_graph(every=every, count=count)
    model = onnx.load_from_string(content)
    if fixed is not None:
        for one in (*model.graph.input, *model.graph.output):
            one.type.tensor_type.shape.dim[0].dim_value = fixed
        content = model.SerializeToString()
    rows: int | str = "batch" if fixed is None else fixed
    sides = [
        tuple(
            TensorInfo(
                name=one.name,
                dtype=str(helper.tensor_dtype_to_np_dtype(one.type.tensor_type.elem_type)),
                shape=tuple(dim.dim_param or dim.dim_value for dim in one.type.tensor_type.shape.dim),
            )
            for one in side
        )
        for side in (model.graph.input, model.graph.output)
    ]
    reading = Pass(graphs=("step",), tokens="time", logits="step.logits", rows="all" if every else "last")
    feeds = {"step.tokens": "tokens", "step.positions": "positions", **({"step.count": "count"} if count else {})}
    files = {"step.onnx": content}
    if text:
        files["text/tokenizer.json"] = tokenizer or tokenizer_json()
        if template is not None:
            files["text/chat_template.jinja"] = template.encode()
    fields: dict[str, Any] = {
        "tokenizer": "text/tokenizer.json",
        "vocabulary": VOCABULARY,
        "stop": (SPECIAL.index("</s>"),),
        "bos": 0,
        "chat_template": None if template is None else "text/chat_template.jinja",
        "special": {"bos_token": "<s>", "eos_token": "</s>"},
    }
    manifest = Manifest(
        name="toy",
        created_with={},
        model=Model(source="zoo:test", family="test", weights=Weights(source="none")),
        recipe={},
        precision="fp32",
        opset=20,
        batch=Batch(min=fixed or 1, opt=fixed or 1, max=fixed or batch),
        graphs=(Graph(name="step", role="step", file="step.onnx", inputs=sides[0], outputs=sides[1]),),
        states=(
            State(graph="step", name="total", input="total_in", output="total_out", shape=(rows,), dtype="int64"),
            State(
                graph="step",
                name="cache",
                input="cache_in",
                output="cache_out",
                shape=(rows, "slots"),
                dtype="int64",
                kind="cache",
            ),
        ),  # fmt: skip
        lengths={"time": Range(min=1, opt=2, max=CHUNK), "slots": Range(min=8, opt=16, max=context)},
        capacities=(Capacity(symbol="slots", adds={"step": "tokens"}),),
        procedure=Procedure(prompt=reading, step=reading, feeds=feeds),
        preprocess={"kind": "text", "input": "step.tokens"},
        text=Text(**{**fields, **said}) if text else None,
    )
    return write_bundle(folder, manifest, files)
