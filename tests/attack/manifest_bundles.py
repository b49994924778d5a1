"""Bundles of a few bytes with manifests as the hosts write them: all kinds, links, states, engines."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from trt_compress.export.bundle import write_bundle
from trt_compress.format.manifest import Manifest

Tensors = Mapping[str, Sequence[int | str]]
HASH = "0" * 64
FRAME = ["batch", 3, 4, 4]


def graph(
    name: str,
    inputs: Tensors,
    outputs: Tensors,
    nodes: Sequence[onnx.NodeProto],
    role: str = "model",
    integers: Sequence[str] = (),
    **arrays: Any,
) -> tuple[dict[str, Any], bytes]:
    """A graph of float32 and int64 tensors: its entry in the manifest, and its file."""
    infos = [
        [
            helper.make_tensor_value_info(key, TensorProto.INT64 if key in integers else TensorProto.FLOAT, shape)
            for key, shape in side.items()
        ]
        for side in (inputs, outputs)
    ]
    constants = [numpy_helper.from_array(np.asarray(value), key) for key, value in arrays.items()]
    model = helper.make_model(
        helper.make_graph(nodes, name, infos[0], infos[1], constants),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    sides = [
        [
            {"name": key, "dtype": "int64" if key in integers else "float32", "shape": list(shape)}
            for key, shape in side.items()
        ]
        for side in (inputs, outputs)
    ]
    entry = {
        "name": name,
        "role": role,
        "file": f"{name}.onnx",
        "inputs": sides[0],
        "outputs": sides[1],
        "external_data": [],
    }
    return entry, model.SerializeToString()


def small_manifest(*graphs: Mapping[str, Any], **fields: Any) -> dict[str, Any]:
    """A manifest with every part that an export and a build write."""
    name = graphs[0]["name"]
    first = graphs[0]["inputs"][0]
    usual = [dim if isinstance(dim, int) else 2 for dim in first["shape"]]
    return {
        "schema_version": "1.0",
        "name": "small",
        "created_with": {"trt-compress": "0.1.0", "torch": "2.9"},
        "model": {
            "source": "zoo:digits_vit",
            "family": "timm_vit",
            "weights": {"source": "digits_vit", "sha256": HASH, "license": "Apache-2.0", "provenance": "made here"},
        },
        "recipe": {
            "model": "zoo:digits_vit",
            "targets": ["cpu"],
            "batch": "1:2:4",
            "lengths": {"time": "1:2:4"},
            "precision": "fp32",
            "opset": 20,
            "compressors": [{"name": "tome", "num_merged": 2}],
        },
        "precision": "fp32",
        "opset": 20,
        "batch": {"min": 1, "opt": 2, "max": 4},
        "graphs": list(graphs),
        "lengths": {"time": {"min": 1, "opt": 2, "max": 4}},
        "compression": [
            {
                "site": "blocks.1",
                "compressor": "tome",
                "config": {"num_merged": 2, "keep": [1, 2], "mode": None},
                "tokens_in": 17,
                "tokens_out": 15,
                "groups": 2,
                "padding": 1,
            },
            {"site": "blocks.2", "compressor": "tome", "config": {}, "tokens_in": 15, "tokens_out": "n"},
        ],
        "operators": [
            {
                "name": "TokenMerge",
                "op_type": "TrtcTokenMerge",
                "domain": "trt_compress",
                "version": 1,
                "nodes": 2,
                "lowering": "function",
            }
        ],
        "flops": {"total": 128009088, "operators": 0, "convention": "two for each multiply-add, one input"},
        "baseline_flops": 3e8,
        "lowered": [{"graph": name, "target": "rtx", "file": "lowered.onnx", "lowering": "inline", "sha256": HASH}],
        "engines": [
            {
                "graph": name,
                "target": "rtx",
                "file": "small.engine",
                "sha256": HASH,
                "bytes": 5,
                "library": "tensorrt_rtx",
                "library_version": "1.1",
                "onnx_sha256": HASH,
                "precision_asked": "fp32",
                "precision_achieved": {"evidence": "network", "model": {"fp32": 2}, "operators": {}},
                "paths": {"TokenMerge": {"plugin": 0, "function": 2}},
                "profile": {first["name"]: {end: usual for end in ("min", "opt", "max")}},
                "seconds": 4.5,
                "plugins": "0123456789abcdef",
            }
        ],
        "verification": {"passed": True, "max_abs_error": 1e-6, "file": "verify.json"},
        "targets": ["cpu", "rtx"],
        **fields,
    }


def write(path: Path, data: dict[str, Any], models: Sequence[bytes], files: Mapping[str, bytes] | None = None) -> Path:
    """Write a bundle of this manifest."""
    held = {entry["file"]: model for entry, model in zip(data["graphs"], models, strict=True)}
    other = {"lowered.onnx": models[0], "small.engine": b"12345", "verify.json": b"{}\n", **(files or {})}
    for part in (*data["lowered"], *data["engines"]):
        part["sha256"] = hashlib.sha256(other[part["file"]]).hexdigest()
    write_bundle(path, Manifest.from_json({"files": {}, "digest": "", **data}, "manifest.json"), {**held, **other})
    return path


def classifier(path: Path) -> Path:
    """A picture of 8 by 8 grey pixels → ten classes."""
    entry, model = graph(
        "model",
        {"image": ["batch", 1, 8, 8]},
        {"logits": ["batch", 10]},
        [helper.make_node("Flatten", ["image"], ["pixels"]), helper.make_node("MatMul", ["pixels", "w"], ["logits"])],
        w=np.ones((64, 10), np.float32),
    )
    before = {
        "input": "image",
        "kind": "image",
        "layout": "NCHW",
        "scale": 1 / 255,
        "mean": [0.5],
        "std": [0.5],
        "interpolation": "bicubic",
        "crop": 0.9,
    }
    after = {"output": "logits", "kind": "classification", "classes": 10, "labels": [f"{n}" for n in range(10)]}
    return write(path, small_manifest(entry, preprocess=before, postprocess=after), [model])


def video(path: Path) -> Path:
    """Frames in colour → classes and a place, with a state that a file starts."""
    entry, model = graph(
        "model",
        {"frame": FRAME, "past": FRAME},
        {"logits": ["batch", 3], "centre": ["batch", 2], "now": FRAME},
        [
            helper.make_node("Add", ["frame", "past"], ["now"]),
            helper.make_node("ReduceMean", ["now", "axes"], ["logits"], keepdims=0),
            helper.make_node("Slice", ["logits", "zero", "two", "one"], ["centre"]),
        ],
        axes=[2, 3],
        zero=[0],
        one=[1],
        two=[2],
    )
    state = {"graph": "model", "input": "past", "output": "now", "shape": FRAME, "dtype": "float32"}
    before = {
        "kind": "image",
        "layout": "NCHW",
        "channels": "RGB",
        "scale": 1 / 255,
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
    }
    after = {"kind": "classification", "classes": 3, "place": {"output": "centre", "is": "shares of the frame"}}
    states = [state | {"initial": {"fill": 0.5}, "capacity": None, "name": None}]
    return write(path, small_manifest(entry, preprocess=before, postprocess=after, states=states), [model])


def keyword(path: Path) -> Path:
    """A tenth of a second of sound → features by frame, each of its own length."""
    entry, model = graph(
        "model",
        {"audio": ["batch", 160]},
        {"frames": ["batch", 10, 16], "frame_size": ["batch", 10]},
        [
            helper.make_node("Reshape", ["audio", "shape"], ["frames"]),
            helper.make_node("ReduceMax", ["frames", "axes"], ["frame_size"], keepdims=0),
        ],
        shape=[-1, 10, 16],
        axes=[2],
    )
    before = {
        "input": "audio",
        "kind": "audio",
        "sample_rate": 16000,
        "channels": 1,
        "samples": 160,
        "range": [-1, 1],
        "hop_samples": 80,
        "mean": 0.1,
        "std": 2.0,
    }
    after = {"output": "frames", "kind": "frames", "sizes": "frame_size", "seconds": 0.01}
    return write(path, small_manifest(entry, preprocess=before, postprocess=after), [model])


def codec(path: Path) -> Path:
    """Sound → numbers → sound: two graphs and a link."""
    encode, first = graph(
        "encode",
        {"audio": ["batch", 160]},
        {"codes": ["batch", 10, 16]},
        [helper.make_node("Reshape", ["audio", "shape"], ["codes"])],
        role="encode",
        shape=[-1, 10, 16],
    )
    decode, second = graph(
        "decode",
        {"codes": ["batch", 10, 16]},
        {"decoded": ["batch", 160]},
        [helper.make_node("Reshape", ["codes", "shape"], ["decoded"])],
        role="decode",
        shape=[-1, 160],
    )
    data = small_manifest(
        encode,
        decode,
        links=[{"from": "encode.codes", "to": "decode.codes"}],
        preprocess={"kind": "audio", "input": "encode.audio", "sample_rate": 16000, "channels": 1, "samples": 160},
        postprocess={
            "kind": "audio",
            "output": "decode.decoded",
            "codes": "encode.codes",
            "sample_rate": 16000,
            "samples": 150,
            "bits_per_second": 500.0,
        },
        flops={"graphs": {"encode": {"total": 230732800}, "decode": {"total": 293043200}}},
    )
    return write(path, data, [first, second])


def detector(path: Path) -> Path:
    """Two cameras and their calibration → boxes and scores."""
    entry, model = graph(
        "model",
        {"images": ["batch", 2, 3, 4, 4], "lens": ["batch", 2, 2]},
        {"boxes": ["batch", 3, 8], "scores": ["batch", 3, 2]},
        [
            helper.make_node("Reshape", ["images", "shape"], ["pixels"]),
            helper.make_node("MatMul", ["pixels", "w"], ["flat"]),
            helper.make_node("Reshape", ["flat", "wide"], ["boxes"]),
            helper.make_node("Slice", ["boxes", "zero", "two", "last"], ["scores"]),
        ],
        shape=[-1, 96],
        w=np.full((96, 24), 0.01, np.float32),
        wide=[-1, 3, 8],
        zero=[0],
        two=[2],
        last=[2],
    )
    before = {
        "input": "images",
        "kind": "cameras",
        "layout": "NCHW",
        "scale": 1.0,
        "cameras": ["ahead", "behind"],
        "constants": {"lens": "lens.npy"},
    }
    after = {
        "output": "boxes",
        "kind": "detection3d",
        "boxes": "boxes",
        "scores": "scores",
        "columns": ["x", "y", "z", "length", "width", "height", "sin_yaw", "cos_yaw"],
        "classes": ["car", "truck"],
        "threshold": 0.3,
    }
    np.save(path.with_suffix(".npy"), np.ones((1, 2, 2), np.float32))
    lens = path.with_suffix(".npy").read_bytes()
    return write(path, small_manifest(entry, preprocess=before, postprocess=after), [model], {"lens.npy": lens})


def levels(path: Path) -> Path:
    """Two graphs that take the same, give the same and share a state that starts from a file."""
    graphs = [
        graph(
            name,
            {"x": ["batch", 4], "past": [1, 4]},
            {"y": ["batch", 4], "now": [1, 4]},
            [helper.make_node("Add", ["x", "past"], ["y"]), helper.make_node("Identity", ["past"], ["now"])],
        )
        for name in ("full", "half")
    ]
    state = {"input": "past", "output": "now", "shape": [1, 4], "dtype": "float32", "name": "cache", "capacity": 8}
    np.save(path.with_suffix(".npy"), np.zeros((1, 4), np.float32))
    data = small_manifest(
        *(entry for entry, _ in graphs),
        states=[state | {"graph": name, "initial": {"file": "zero.npy"}} for name in ("full", "half")],
        preprocess={"kind": "tensors", "reason": "numbers are no picture", "mean": [0.5], "std": [0.5]},
        postprocess={"kind": "raw"},
        flops={"graphs": {"full": {"total": 10}, "half": {"total": 5}}},
    )
    zero = path.with_suffix(".npy").read_bytes()
    return write(path, data, [model for _, model in graphs], {"zero.npy": zero})


def decoder(path: Path) -> Path:
    """Tokens → logits, with a cache whose capacity is chosen, a count of its slots, and a flush that empties it."""
    cache = {"past": ["batch", "slots", 4], "length": ["batch"]}
    new = {"now": ["batch", "slots", 4], "length_now": ["batch"]}
    step, first = graph(
        "step",
        {"tokens": ["batch", "time"], "seen": ["batch"], **cache},
        {"logits": ["batch", 5], **new},
        [
            helper.make_node("Cast", ["tokens"], ["numbers"], to=TensorProto.FLOAT),
            helper.make_node("ReduceSum", ["numbers", "axes"], ["sum"]),
            helper.make_node("MatMul", ["sum", "w"], ["logits"]),
            helper.make_node("Identity", ["past"], ["now"]),
            helper.make_node("Add", ["length", "seen"], ["length_now"]),
        ],
        role="step",
        integers=("tokens", "seen", "length", "length_now"),
        axes=[1],
        w=np.ones((1, 5), np.float32),
    )
    flush, second = graph(
        "flush",
        cache,
        new,
        [
            helper.make_node("Identity", ["past"], ["now"]),
            helper.make_node("Sub", ["length", "length"], ["length_now"]),
        ],
        role="flush",
        integers=("length", "length_now"),
    )
    past = {"input": "past", "output": "now", "shape": cache["past"], "dtype": "float32", "name": "past"}
    past |= {"kind": "cache", "layer": 0, "compare": "close", "alias": True}
    length = {"input": "length", "output": "length_now", "shape": ["batch"], "dtype": "int64", "name": "length"}
    reading = {"graphs": ["step"], "logits": "step.logits", "rows": "last"}
    data = small_manifest(
        step,
        flush,
        states=[
            *({**past, "graph": name} for name in ("step", "flush")),
            *({**length, "kind": "length", "graph": name} for name in ("step", "flush")),
        ],
        lengths={"time": {"min": 1, "opt": 2, "max": 4}, "slots": {"min": 4, "opt": 8, "max": 64}},
        capacities=[{"symbol": "slots", "used": "length", "adds": {"step": "tokens"}, "multiple": 4}],
        procedure={
            "prompt": {**reading, "tokens": "time"},
            "step": {**reading, "tokens": 1},
            "feeds": {"step.tokens": "tokens", "step.seen": "seen"},
            "position": "slots",
            "upkeep": [{"graph": "flush", "after": "run", "capacity": "slots", "at_least": 16}],
        },
        preprocess={"kind": "tensors", "input": "step.tokens"},
        postprocess={"kind": "raw", "output": "step.logits"},
        flops={"graphs": {"step": {"total": 10}, "flush": {"total": 0}}},
    )
    return write(path, data, [first, second])


SMALL_BUNDLES = (classifier, video, keyword, codec, detector, levels, decoder)
