"""Small ONNX models of many kinds, and what a stranger may have made of them."""

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
from google.protobuf.message import Message  # type: ignore[import-untyped]
from onnx import ModelProto, TensorProto, helper, numpy_helper

from trt_compress.export.lower import add_bodies

_NUMBERS = (0, 1, -1, 2, 3, 7, 127, 2**31 - 1, -(2**31), 2**31, 2**62, 2**63 - 1, -(2**63))
_TEXTS = ("", "x", "y", "w", "Add", "If", "Loop", "Reshape", "MatMul", "ai.onnx", "trt_compress", "com.microsoft", "é")
_TEXTS += (
    "TrtcTokenMerge",
    "batch",
    "../../etc/passwd",
    "/dev/zero",
    "a\x1b[2J",
    "x" * 5000,
    "location",
    "axis",
    "to",
    "9" * 5000,
    "offset",
    "\0",
)


def models() -> tuple[bytes, ...]:
    """A classifier, an operator of ours with its body, branches, a loop, quantization and weights beside the file."""
    return (_classifier(), _merging(), _branches(), _loop(), _quantized(), _external())


def _model(nodes: list[Any], inputs: Any, outputs: Any, imports: Any = (("", 20),), **arrays: Any) -> ModelProto:
    infos = [
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in side.items()]
        for side in (inputs, outputs)
    ]
    constants = [numpy_helper.from_array(np.asarray(value), name) for name, value in arrays.items()]
    graph = helper.make_graph(nodes, "model", infos[0], infos[1], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid(*one) for one in imports], ir_version=10)


_F, _B, _I = TensorProto.FLOAT, TensorProto.BOOL, TensorProto.INT64
_node = helper.make_node


def _classifier() -> bytes:
    nodes = [
        _node("Shape", ["x"], ["shape"], name="shape"),
        _node("Gather", ["shape", "zero"], ["batch"], name="gather"),
        _node("Concat", ["batch", "rest"], ["wanted"], axis=0, name="concat"),
        _node("Reshape", ["x", "wanted"], ["flat"], name="reshape"),
        _node("MatMul", ["flat", "w"], ["scores"], name="matmul"),
        _node("LayerNormalization", ["scores", "scale"], ["normal"], name="norm"),
        _node("TopK", ["normal", "k"], ["values", "indices"], name="topk"),
        _node("Softmax", ["values"], ["y"], name="softmax"),
    ]
    arrays = {"zero": [0], "rest": [16], "w": np.ones((16, 8), np.float32), "scale": np.ones(8, np.float32), "k": [3]}
    return bytes(_model(nodes, {"x": (_F, ["batch", 4, 4])}, {"y": (_F, ["batch", 3])}, **arrays).SerializeToString())


def _merging() -> bytes:
    node = _node(
        "TrtcTokenMerge",
        ["x", "x", "size"],
        ["y", "sizes", "dest"],
        domain="trt_compress",
        name="merge",
        num_merged=2,
        num_protected=0,
        order=0,
    )
    tokens = (_F, ["batch", 9, 8])
    model = _model(
        [node],
        {"x": tokens, "size": (_F, ["batch", 9, 1])},
        {"y": (_F, ["batch", 7, 8])},
        (("", 20), ("trt_compress", 1)),
    )
    return bytes(add_bodies(model).SerializeToString())


def _branches() -> bytes:
    parts = [
        helper.make_graph(
            [_node(kind, ["x", "w"], [f"r{kind}"])], kind, [], [helper.make_empty_tensor_value_info(f"r{kind}")]
        )
        for kind in ("Add", "Mul")
    ]
    node = _node("If", ["c"], ["y"], then_branch=parts[0], else_branch=parts[1], name="if")
    shape = (_F, ["n", 4])
    return bytes(
        _model([node], {"x": shape, "c": (_B, [])}, {"y": shape}, w=np.ones(4, np.float32)).SerializeToString()
    )


def _loop() -> bytes:
    body = helper.make_graph(
        [_node("Add", ["before", "x"], ["after"]), _node("Identity", ["go"], ["on"])],
        "body",
        [
            helper.make_tensor_value_info("i", _I, []),
            helper.make_tensor_value_info("go", _B, []),
            helper.make_tensor_value_info("before", _F, [4]),
        ],
        [helper.make_tensor_value_info("on", _B, []), helper.make_tensor_value_info("after", _F, [4])],
    )
    node = _node("Loop", ["trips", "", "x"], ["y"], body=body, name="loop")
    return bytes(_model([node], {"x": (_F, [4])}, {"y": (_F, [4])}, trips=np.int64(3)).SerializeToString())


def _quantized() -> bytes:
    nodes = [
        _node("QuantizeLinear", ["x", "s", "z"], ["q"], name="quantize"),
        _node("DequantizeLinear", ["q", "s", "z"], ["d"], axis=1, name="dequantize"),
        _node("Conv", ["d", "w"], ["c"], kernel_shape=[3, 3], pads=[1, 1, 1, 1], name="conv"),
        _node("ReduceMean", ["c", "axes"], ["y"], keepdims=0, name="mean"),
    ]
    arrays = {"s": np.float32(0.1), "z": np.int8(0), "w": np.ones((4, 3, 3, 3), np.float32), "axes": [2, 3]}
    return bytes(
        _model(nodes, {"x": (_F, ["batch", 3, 8, 8])}, {"y": (_F, ["batch", 4])}, **arrays).SerializeToString()
    )


def _external() -> bytes:
    model = _model([_node("MatMul", ["x", "w"], ["y"])], {"x": (_F, ["n", 4])}, {"y": (_F, ["n", 4])})
    weight = model.graph.initializer.add(name="w", data_type=_F, dims=[4, 4], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": "w.data", "offset": "0", "length": "64"}.items():
        weight.external_data.add(key=key, value=value)
    return bytes(model.SerializeToString())


def mutated_model(data: bytes, rng: random.Random) -> bytes:
    """Flipped bits, a cut, or one to four changed fields."""
    if rng.random() < 0.3:
        raw = bytearray(data)
        if rng.random() < 0.2:
            return bytes(raw[: rng.randrange(len(raw))])
        for _ in range(rng.choice((1, 1, 2, 5, 30))):
            raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        return bytes(raw)
    model = ModelProto()
    model.ParseFromString(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 4))):
        found = list(_messages(model))
        _change(rng.choice(found), found, rng)
    return bytes(model.SerializeToString())


def _messages(message: Message) -> Iterator[Message]:
    yield message
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for item in [value] if isinstance(value, Message) else value:
                yield from _messages(item)


def _change(message: Message, found: list[Message], rng: random.Random) -> None:
    fields = list(message.DESCRIPTOR.fields)
    present = [field for field, _ in message.ListFields()]
    field = rng.choice(present if present and rng.random() < 0.8 else fields)
    value = getattr(message, field.name)
    if rng.random() < 0.12:
        message.ClearField(field.name)
    elif field.type == field.TYPE_MESSAGE:
        alike = [other for other in found if other.DESCRIPTOR is field.message_type]
        source = rng.choice(alike) if alike else None
        if isinstance(value, Message):
            if source is not None and source is not value:
                copied = type(value)()
                copied.CopyFrom(source)
                value.CopyFrom(copied)
        elif len(value) and rng.random() < 0.3:
            del value[rng.randrange(len(value))]
        elif source is not None and source.ByteSize() < 20_000:
            copied = type(source)()
            copied.CopyFrom(source)
            for _ in range(rng.choice((1, 1, 2, 50))):
                value.append(copied)
    elif hasattr(value, "append"):
        _change_list(value, field, rng)
    else:
        setattr(message, field.name, _scalar(field, rng, value))


def _change_list(value: Any, field: Any, rng: random.Random) -> None:
    if len(value) and rng.random() < 0.6:
        place = rng.randrange(len(value))
        if rng.random() < 0.3:
            del value[place]
        else:
            value[place] = _scalar(field, rng, value[place])
    else:
        value.extend([_scalar(field, rng, None)] * rng.choice((1, 1, 2, 9, 5000)))


def _scalar(field: Any, rng: random.Random, before: Any) -> Any:
    if field.type == field.TYPE_STRING:
        return rng.choice(_TEXTS)
    if field.type == field.TYPE_BYTES:
        return rng.choice((b"", b"\xff\xfe", b"x", bytes(rng.randrange(256) for _ in range(40)), (before or b"")[:-1]))
    if field.cpp_type in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
        return rng.choice((0.0, -1.0, float("nan"), float("inf"), 1e30))
    if field.cpp_type == field.CPPTYPE_ENUM:
        return rng.choice(list(field.enum_type.values_by_number))
    number = rng.choice((*_NUMBERS, *range(25), *range(25)))
    if field.cpp_type in (field.CPPTYPE_INT32, field.CPPTYPE_UINT32):
        number = max(-(2**31), min(number, 2**31 - 1))
    return max(0, number) if field.cpp_type in (field.CPPTYPE_UINT32, field.CPPTYPE_UINT64) else number
