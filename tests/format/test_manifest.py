import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import jsonschema
import pytest

from trt_compress.errors import BundleError
from trt_compress.runtime import Manifest
from trt_compress.tools.gen_schemas import schema_of

SCHEMA = schema_of("manifest")
HASH = "0" * 64


def full_json() -> dict[str, Any]:
    """A manifest with every field in use: a vision-language model with a state."""
    tensor = {"name": "features", "dtype": "float32", "shape": ["batch", 49, 64]}
    hidden = {"name": "hidden", "dtype": "float32", "shape": ["batch", 64]}
    features = {
        "initial": "zeros",
        "shape": ["batch", 49, 64],
        "dtype": "float32",
        "capacity": None,
        "name": "features",
        "kind": "features",
        "layer": None,
        "compare": None,
        "bits": None,
        "alias": False,
    }
    return {
        "schema_version": "1.0",
        "name": "vlm",
        "created_with": {"trt-compress": "0.1.0", "torch": "2.15"},
        "model": {
            "source": "hf:vlm",
            "family": "vlm",
            "weights": {
                "source": "w.safetensors",
                "sha256": HASH,
                "license": "Apache-2.0",
                "provenance": None,
                "license_files": ["license/LICENSE"],
            },
        },
        "recipe": {"model": "hf:vlm", "compress": [{"name": "tome", "num_merged": 13}]},
        "precision": "fp16",
        "opset": 20,
        "batch": {"min": 1, "opt": 4, "max": 8},
        "graphs": [
            {
                "name": "encoder",
                "role": "vision",
                "file": "encoder.onnx",
                "external_data": ["encoder.data"],
                "inputs": [{"name": "pixels", "dtype": "float32", "shape": ["batch", 3, 224, 224]}],
                "outputs": [tensor],
            },
            {
                "name": "decode",
                "role": "step",
                "file": "decode.onnx",
                "external_data": [],
                "inputs": [
                    {"name": "tokens", "dtype": "int64", "shape": ["batch", "time"]},
                    {"name": "features_in", "dtype": "float32", "shape": ["batch", 49, 64]},
                    {"name": "past", "dtype": "uint8", "shape": ["batch", 4, "cache", 64]},
                ],
                "outputs": [hidden, {"name": "present", "dtype": "uint8", "shape": ["batch", 4, "cache", 64]}],
            },
            {
                "name": "head",
                "role": "head",
                "file": "head.onnx",
                "external_data": [],
                "inputs": [dict(hidden)],
                "outputs": [{"name": "logits", "dtype": "float32", "shape": ["batch", 100]}],
            },
        ],
        "links": [{"from": "decode.hidden", "to": "head.hidden"}],
        "states": [
            {
                "graph": "decode",
                "input": "past",
                "output": "present",
                "initial": {"fill": 128},
                "shape": ["batch", 4, "cache", 64],
                "dtype": "uint8",
                "capacity": None,
                "name": "cache",
                "kind": "cache",
                "layer": 3,
                "compare": "codes",
                "bits": 4,
                "alias": True,
            },
            features | {"graph": "encoder", "input": None, "output": "features"},
            features | {"graph": "decode", "input": "features_in", "output": None},
        ],
        "lengths": {"time": {"min": 1, "opt": 64, "max": 256}, "cache": {"min": 256, "opt": 1024, "max": 4096}},
        "capacities": [{"symbol": "cache", "used": None, "adds": {"decode": "tokens"}, "multiple": 64}],
        "procedure": {
            "prompt": {
                "graphs": ["decode", "head"],
                "tokens": "time",
                "logits": "head.logits",
                "rows": "last",
                "whole": False,
            },
            "step": {
                "graphs": ["decode", "head"],
                "tokens": 1,
                "logits": "head.logits",
                "rows": "last",
                "whole": False,
            },
            "feeds": {"decode.tokens": "tokens"},
            "position": "seen",
            "upkeep": [],
            "media": [
                {
                    "graphs": ["encoder"],
                    "input": {"kind": "image", "input": "encoder.pixels", "mean": [0.5], "std": [0.5]},
                    "token": 7,
                    "rows": 49,
                }
            ],
            "score": None,
        },
        "text": {
            "tokenizer": "text/tokenizer.json",
            "vocabulary": 100,
            "stop": [2, 7],
            "bos": 1,
            "pad": 2,
            "chat_template": "text/chat_template.jinja",
            "special": {"bos_token": "<s>"},
            "generation": {"temperature": 0.5},
            "context": 4096,
        },
        "preprocess": {"input": "decode.tokens", "mean": [0.5, 0.5, 0.5], "audio": {"rate_hz": 16000}},
        "postprocess": {"kind": "raw"},
        "compression": [
            {
                "site": "blocks.3",
                "compressor": "tome",
                "config": {"num_merged": 13},
                "tokens_in": 197,
                "tokens_out": "n",
            }
        ],
        "operators": [
            {
                "name": "TokenMerge",
                "op_type": "TrtcTokenMerge",
                "domain": "trt_compress",
                "version": 1,
                "nodes": 12,
                "lowering": "function",
            }
        ],
        "flops": {"total": 2.6e9},
        "baseline_flops": 4.6e9,
        "lowered": [
            {"graph": "encoder", "target": "rtx", "file": "lowered/rtx.onnx", "lowering": "inline", "sha256": HASH}
        ],
        "engines": [
            {
                "graph": "encoder",
                "target": "rtx",
                "file": "engines/rtx/model.engine",
                "sha256": HASH,
                "bytes": 5,
                "library": "tensorrt_rtx",
                "library_version": "1.7.1",
                "onnx_sha256": HASH,
                "precision_asked": "fp16",
                "precision_achieved": {"fp16": 48, "fp32": 2},
                "paths": {"TokenMerge": {"plugin": 0, "function": 12}},
                "profile": {"pixels": {"min": [1, 3, 224, 224], "opt": [4, 3, 224, 224], "max": [8, 3, 224, 224]}},
                "seconds": 4.5,
                "plugins": "0123456789abcdef",
            }
        ],
        "weights": [
            {"graph": "encoder", "dtype": "int4", "group": 32, "tensors": 3, "parameters": 192, "bytes": 120},
        ],
        "verification": {
            "passed": True,
            "max_abs_error": 1e-6,
            "file": "verify.json",
            "method": "rounded",
            "quantization_error": 0.01,
            "deployment_error": 0.02,
        },
        "targets": ["cpu", "rtx"],
        "files": {
            name: {"sha256": HASH, "bytes": 5}
            for name in (
                "encoder.onnx",
                "encoder.data",
                "decode.onnx",
                "head.onnx",
                "lowered/rtx.onnx",
                "engines/rtx/model.engine",
                "verify.json",
                "text/tokenizer.json",
                "text/chat_template.jinja",
                "license/LICENSE",
            )
        },
        "digest": HASH,
    }


def record_objects(data: Any) -> Iterator[dict[str, Any]]:
    """Every JSON object that stands for a record, walked by the schema rather than by the code under test."""

    def walk(value: Any, schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if "anyOf" in schema:
            schema = schema["anyOf"][0]
        if "$ref" in schema:
            schema = SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]]
        if value is None:
            return
        if "properties" in schema:
            yield value
            for name, item in value.items():
                yield from walk(item, schema["properties"].get(name, {}))
        elif isinstance(value, list):
            for item in value:
                yield from walk(item, schema.get("items", {}))
        elif isinstance(value, dict) and isinstance(schema.get("additionalProperties"), dict):
            for item in value.values():
                yield from walk(item, schema["additionalProperties"])

    yield from walk(data, SCHEMA)


def load(data: dict[str, Any]) -> Manifest:
    return Manifest.from_text(json.dumps(data))


def test_every_field_survives_a_round_trip() -> None:
    parsed = load(full_json())
    parsed.check()
    assert json.loads(parsed.to_text()) == full_json()
    assert Manifest.from_text(parsed.to_text()) == parsed


def test_unknown_fields_survive_in_every_object_and_do_not_change_the_digest() -> None:
    data = full_json()
    objects = list(record_objects(data))
    assert len(objects) == 44  # 34 records and 10 files
    for index, item in enumerate(objects):
        item["x-foreign"] = {"index": [index, None]}
        item["extra"] = index
    parsed = load(data)
    assert json.loads(parsed.to_text()) == data
    assert parsed.compute_digest() == load(full_json()).compute_digest()


def test_the_digest_notices_every_known_value() -> None:
    original = load(full_json()).compute_digest()

    def leaves(value: Any) -> Iterator[tuple[Any, Any]]:
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(item, dict | list):
                yield from leaves(item)
            elif item is not None:
                yield value, key

    data = full_json()
    del data["digest"], data["schema_version"]
    for holder, key in leaves(data):
        before = holder[key]
        match before:
            case bool():
                holder[key] = not before
            case int() | float():
                holder[key] = before + 1
            case _:
                holder[key] = f"{before}x"
        assert load({"schema_version": "1.0", **data}).compute_digest() != original, key
        holder[key] = before
    assert load({"schema_version": "1.0", **data}).compute_digest() == original


def test_the_digest_is_the_documented_canonical_json() -> None:
    data = full_json()
    del data["digest"], data["schema_version"]
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert load(full_json()).compute_digest() == hashlib.sha256(text.encode("utf-8")).hexdigest()


def test_the_schema_accepts_a_full_manifest_with_foreign_fields() -> None:
    data = full_json()
    for item in record_objects(data):
        item["x-foreign"] = 1
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(data, SCHEMA)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("schema_version",), "2.0"),
        (("graphs",), []),
        (("graphs", 0, "inputs", 0, "shape"), [1.5]),
        (("files", "encoder.onnx", "sha256"), "short"),
        (("links", 0, "from"), None),
        (("verification", "passed"), "yes"),
    ],
)
def test_the_schema_refuses_what_the_reader_refuses(path: tuple[Any, ...], value: Any) -> None:
    data = full_json()
    holder = data
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(data, SCHEMA)
    if path[-1] != "sha256":  # the reader compares hashes with the files instead
        with pytest.raises(BundleError):
            load(data).check()


def test_a_newer_minor_version_is_read_and_kept() -> None:
    data = full_json() | {"schema_version": "1.7", "streams": [{"fps": 30}]}
    parsed = load(data)
    assert parsed.schema_version == "1.7"
    assert json.loads(parsed.to_text()) == data


def test_a_newer_major_version_is_refused_before_anything_else() -> None:
    message = r"schema version 2\.0, and this trt-compress reads up to 1\.x; install a newer trt-compress"
    with pytest.raises(BundleError, match=message):
        load({"schema_version": "2.0", "graphs": "of another kind"})


@pytest.mark.parametrize("version", [None, 1, "1", "one.two", "1.0.0"])
def test_a_strange_version_is_refused(version: object) -> None:
    with pytest.raises(BundleError, match="has no 'schema_version' such as"):
        load(full_json() | {"schema_version": version})


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe", b'{"schema_version": "1.0", "opset": NaN}', b"[" * 100_000])
def test_what_is_not_json_is_refused(text: bytes) -> None:
    with pytest.raises(BundleError, match="m.json is not valid JSON"):
        Manifest.from_text(text, "m.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.pop("batch"), r"manifest\.json has no field 'batch', which is required"),
        (lambda data: data["links"][0].pop("from"), r"links\[0\] has no field 'from'"),
        (lambda data: data.update(opset="20"), r'manifest\.json\.opset is "20"; it must be an integer'),
        (lambda data: data.update(opset=True), r"opset is true; it must be an integer"),
        (lambda data: data.update(graphs={}), r"graphs is \{\}; it must be a list"),
        (
            lambda data: data["graphs"][1]["inputs"][0].update(shape=[None]),
            r"graphs\[1\]\.inputs\[0\]\.shape\[0\] is null",
        ),
        (lambda data: data.update(verification="ok"), r'verification is "ok"; it must be an object'),
        (lambda data: data["files"].update(x=5), r"files\['x'\] is 5; it must be an object"),
        (lambda data: data.update(baseline_flops="many"), r'baseline_flops is "many"; it must be a number'),
    ],
)
def test_a_field_of_the_wrong_kind_is_named(change: Callable[[dict[str, Any]], object], message: str) -> None:
    data = full_json()
    change(data)
    with pytest.raises(BundleError, match=message):
        load(data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(graphs=[]), "'graphs' is empty"),
        (lambda d: d["graphs"][1].update(name="encoder"), "two graphs are named 'encoder'"),
        (lambda d: d["graphs"][1].update(name="a.b"), r"the graph name 'a\.b' has a dot"),
        (lambda d: d["files"].pop("encoder.data"), r"'encoder' needs the file 'encoder\.data', which is not listed"),
        (lambda d: d["files"].pop("verify.json"), r"verification needs the file 'verify\.json'"),
        (lambda d: d["files"].pop("engines/rtx/model.engine"), "engine for 'rtx' needs the file"),
        (lambda d: d["states"][0].update(initial={"file": "s.npy"}), r"state 'cache' needs the file 's\.npy'"),
        (lambda d: d["links"][0].update({"from": "decode.x"}), r"'decode\.x' is linked to .* no output of a graph"),
        (lambda d: d["links"][0].update(to="head.x"), r"linked to 'head\.x', which is no input of a graph"),
        (lambda d: d["graphs"].reverse(), r"'decode\.hidden' is linked to 'head\.hidden', which runs no later"),
        (lambda d: d["links"].append(d["links"][0]), r"input 'head\.hidden' is fed 2 times"),
        (lambda d: d["states"][0].update(output="x"), r"state 'cache' leaves as 'decode\.x', which is no output"),
        (lambda d: d["states"][0].update(input="x"), r"state 'cache' enters 'decode\.x', which is no input"),
    ],
)
def test_parts_that_do_not_fit_are_named(change: Callable[[dict[str, Any]], object], message: str) -> None:
    data = full_json()
    change(data)
    with pytest.raises(BundleError, match=message):
        load(data).check()


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x", "a\\b", "C:/x", "", ".", "a//b", "./a", "a/"])
def test_a_file_path_that_escapes_is_refused(name: str) -> None:
    data = full_json()
    data["files"][name] = {"sha256": HASH, "bytes": 1}
    with pytest.raises(BundleError, match="file path '.*' (leads out of|is not a relative|cannot be the name)"):
        load(data).check()


def test_a_graph_is_found_by_name() -> None:
    assert load(full_json()).graph("decode").file == "decode.onnx"
    with pytest.raises(BundleError, match="has no graph 'prefill'; it has 'encoder', 'decode'"):
        load(full_json()).graph("prefill")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["batch"].update(opt=9), "batch 1:9:8 is not in ascending order"),
        (lambda d: d["graphs"][0].update(name="a/b"), "'a/b' cannot be the name of a graph"),
        (lambda d: d["graphs"][0]["inputs"].append(d["graphs"][0]["inputs"][0]), "two tensors named 'pixels'"),
        (lambda d: d["graphs"][0]["inputs"][0].update(dtype="O"), "is of the dtype 'O'; there are bfloat16"),
        (lambda d: d["graphs"][0]["inputs"][0].update(shape=[1] * 9), "has 9 axes; there are at most 8"),
        (lambda d: d["graphs"][0]["inputs"][0].update(shape=[-1]), "an axis is a name, or a number from 0"),
        (lambda d: d["graphs"][0]["inputs"][0].update(shape=[2**20] * 2), "a tensor has at most"),
        (lambda d: d["states"][0].update(capacity=-1), "has the capacity -1"),
        (lambda d: d["lowered"][0].update(graph="x"), "a lowered is of the graph 'x', which there is not"),
        (lambda d: d.update(flops={"total": "many"}), "the FLOPs are many"),
        (lambda d: d.update(flops={"graphs": [1]}), "'flops.graphs' is no object"),
        (lambda d: d["lengths"]["time"].update(min=300), "the lengths 300:64:256 of 'time' are not in ascending order"),
        (lambda d: d["engines"][0]["profile"]["pixels"].pop("opt"), "without min, opt and max"),
        (
            lambda d: d["engines"][0]["profile"]["pixels"].update(opt=[-1, 3, 224, 224]),
            "with an axis that is not from 0",
        ),
        (lambda d: d["preprocess"].update(input="x"), "'preprocess.input' names 'x', which is no input of a graph"),
        (lambda d: d["preprocess"].update(kind="image", input="pixels", std=[0.0]), "std is 0; it is not 0"),
        (lambda d: d["preprocess"].update(kind="image", input="pixels", mean=[0.5, 0.5]), "2 numbers for 3 channels"),
        (lambda d: d.update(preprocess={"kind": "audio"}), "preprocess has no field 'sample_rate'"),
        (
            lambda d: d["preprocess"].update(constants={"pixels": "p.npy"}),
            "needs the file 'p.npy', which is not listed",
        ),
        (lambda d: d.update(postprocess={"kind": "raw", "output": "x"}), "'postprocess.output' names 'x'"),
        (lambda d: d.update(postprocess={"kind": "classification", "classes": 0}), "classes is 0; it is 1 to"),
        (lambda d: d.update(postprocess={"kind": ["raw"]}), "'postprocess.kind' is no text"),
    ],
)
def test_values_that_no_bundle_has_are_named(change: Callable[[dict[str, Any]], object], message: str) -> None:
    data = full_json()
    change(data)
    with pytest.raises(BundleError, match=message):
        load(data).check()


def test_a_kind_of_a_later_version_is_read_and_kept() -> None:
    data = full_json()
    data["preprocess"], data["postprocess"] = {"kind": "smell", "nose": [1]}, {"kind": "taste"}
    parsed = load(data)
    parsed.check()
    assert parsed.to_json()["preprocess"] == {"kind": "smell", "nose": [1]}
