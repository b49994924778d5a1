"""The reader of bundles in C++: what it refuses, with which sentence, and that nothing crashes it."""

import hashlib
import json
import os
import random
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tests.runtime import counter_bundles
from tests.runtime.cpp.conftest import Built
from tests.runtime.cpp.driving import Job
from trt_compress.errors import BundleError
from trt_compress.export.bundle import write_bundle
from trt_compress.format.bundle import Bundle
from trt_compress.format.manifest import Manifest

CONFIG, SHAPE, BUNDLE, UNSUPPORTED, PLUGIN, BUSY = 1, 2, 3, 4, 5, 6


def checked(program: Path, files: list[Path], *options: str) -> list[str]:
    """One line for each file; a report of a sanitizer ends the program."""
    done = subprocess.run([program, *options, *files], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory, exported: Callable[..., Path]) -> list[Path]:
    """Manifests of several kinds: a compressed model, a procedure with upkeep, one with media."""
    folder = tmp_path_factory.mktemp("manifests")
    counter_bundles.write(folder / "counter")
    counter_bundles.write_viewer(folder / "viewer")
    return [exported() / "manifest.json", folder / "counter" / "manifest.json", folder / "viewer" / "manifest.json"]


def test_digests_are_those_of_python(sanitized: Path, manifests: list[Path], tmp_path: Path) -> None:
    """Floats, characters and free objects are written as Python writes them, or the digest would be another."""
    odd = json.loads(manifests[1].read_text())
    odd["recipe"] = {
        "floats": [
            1.0,
            0.1,
            1e16,
            1e15,
            123456789012345680.0,
            1e-4,
            1e-5,
            -0.0,
            5e-324,
            1.7976931348623157e308,
            2.5e-7,
        ],
        "texts": ["ü", "\u2028", 'a\tb\n"\\/\x7f', "\x01", "𝄞", ""],
        "numbers": [0, -1, 2**63, -(2**63), 2**64 - 1],
        "é": {"b": None, "a": [True, False, [], {}]},
    }
    odd["unknown"] = {"kept": 1}
    odd["graphs"][0]["unknown"] = 1.5
    manifest = Manifest.from_json(odd, "odd")
    odd["digest"] = manifest.compute_digest()
    file = tmp_path / "odd.json"
    file.write_text(json.dumps(odd))
    lines = checked(sanitized, [*manifests, file])
    wanted = [json.loads(each.read_text())["digest"] for each in [*manifests, file]]
    assert lines == [f"ok {digest}" for digest in wanted]


DEEP = "[" * 100_000
BOMBS: dict[str, tuple[bytes, str]] = {
    "depth": (b'{"schema_version": "1.0", "x": ' + DEEP.encode(), "nested deeper than 64 levels"),
    "number": (b'{"schema_version": "1.0", "x": ' + b"9" * 100 + b"}", "of 100 characters, is too large"),
    "float": (b'{"schema_version": "1.0", "x": 1e999}', "it is no JSON|is too large"),
    "nan": (b'{"schema_version": "1.0", "x": NaN}', "it is no JSON"),
    "text": (b'{"x": "' + b"a" * 70_000 + b'"}', "a text of 70000 characters"),
    "name": (b'{"' + b"a" * 70_000 + b'": 1}', "a text of 70000 characters"),
    "values": (b"[" + b"0," * 600_000 + b"0]", "more than 524288 values"),
    "bytes": (b" " * (16 << 20) + b"{}", "and may have 16777216"),
    "utf-8": (b'{"x": "\xff\xfe"}', "it is no JSON"),
    "half": (b'{"x": "\\ud800"}', "it is no JSON"),
    "empty": (b"", "it is no JSON"),
    "newer": (b'{"schema_version": "2.0"}', "has schema version 2.0, and this library reads up to 1.x"),
    "unversioned": (b'{"schema_version": 1}', "has no 'schema_version'"),
    "list": (b"[]", "has no 'schema_version'"),
    "fields": (b'{"schema_version": "1.0"}', "has no field 'name', which is required"),
}


def test_bombs_are_refused(sanitized: Path, tmp_path: Path) -> None:
    files = []
    for name, (content, _) in BOMBS.items():
        files.append(tmp_path / f"{name}.json")
        files[-1].write_bytes(content)
    for line, (name, (_, wanted)) in zip(checked(sanitized, files), BOMBS.items(), strict=True):
        assert line.startswith("refused ") and any(part in line for part in wanted.split("|")), (name, line)


def mutated(data: Any, dice: random.Random) -> Any:
    """A manifest with one part replaced, taken out, doubled or exchanged."""
    places: list[tuple[Any, Any]] = []

    def collect(value: Any) -> None:
        keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
        for key in keys:
            places.append((value, key))
            collect(value[key])

    collect(data)
    holder, key = dice.choice(places)
    other = dice.choice(places)
    odd = [None, -1, 0, 1, 2**31, 2**63 - 1, -(2**63), 1.5, "", ".", "..", "a.b", "/", "batch", [], {}, True, "x" * 300]
    match dice.randrange(4):
        case 0:
            holder[key] = dice.choice(odd)
        case 1:
            del holder[key]
        case 2:
            holder[key] = json.loads(json.dumps(other[0][other[1]]))
        case _ if isinstance(holder, list):
            holder.append(json.loads(json.dumps(holder[key])))
        case _:
            holder[f"{key}{key}"] = holder[key]
    return data


@pytest.mark.parametrize("number", range(3))
def test_mutated_manifests_are_read_or_refused_as_python_does(
    sanitized: Path, manifests: list[Path], tmp_path: Path, number: int
) -> None:
    """What Python refuses C++ refuses too, and no sanitizer finds anything. The other way round C++ may be stricter."""
    dice = random.Random(number)
    files, verdicts = [], []
    for count in range(120):
        data = json.loads(manifests[number].read_text())
        for _ in range(dice.choice((1, 1, 2, 3))):
            data = mutated(data, dice)
        files.append(tmp_path / f"{count}.json")
        files[-1].write_text(json.dumps(data))
        try:
            manifest = Manifest.from_text(files[-1].read_bytes())
            manifest.check()
            verdicts.append(manifest.compute_digest() == manifest.digest)
        except BundleError:
            verdicts.append(False)
    found = checked(sanitized, files)
    assert [line.split()[0] for line in found] == ["ok" if right else "refused" for right in verdicts]
    behind = checked(sanitized, files, "--no-digest")
    assert sum(line.startswith("ok") for line in behind) >= sum(verdicts)
    assert len({line[:40] for line in behind}) > 10


def test_mutated_bytes_never_crash_it(sanitized: Path, manifests: list[Path], tmp_path: Path) -> None:
    dice = random.Random(7)
    model = onnx.helper.make_model(
        onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "g", [], [], [_outside("w.bin")])
    )
    files = []
    for count in range(150):
        content = bytearray(model.SerializeToString() if count % 3 else manifests[1].read_bytes())
        for _ in range(dice.choice((1, 2, 8))):
            content[dice.randrange(len(content))] = dice.randrange(256)
        files.append(tmp_path / f"{count}.{'onnx' if count % 3 else 'json'}")
        files[-1].write_bytes(bytes(content[: dice.randrange(1, len(content) + 1)] if count % 5 == 0 else content))
    assert len(checked(sanitized, files)) == len(files)


def _outside(location: str) -> onnx.TensorProto:
    tensor = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[2])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "8")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def rewritten(bundle: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Change a manifest in place, and make its digest right again."""
    file = bundle / "manifest.json"
    data = json.loads(file.read_text())
    change(data)
    data["digest"] = Manifest.from_json(data, "").compute_digest()
    file.write_text(json.dumps(data))
    return bundle


def weighted(folder: Path, location: str, *, listed: bool = True) -> Path:
    """A bundle whose weight lies in another file."""
    text = "add (float[batch,2] x) => (float[batch,2] y) { y = Add(x, w) }"
    entry = counter_bundles.graph_of(text, "model")[0]
    model = onnx.parser.parse_model(counter_bundles.HEAD + text)
    model.graph.initializer.append(_outside(location))
    manifest = counter_bundles.manifest_of([replace(entry, external_data=("w.bin",) if listed else ())])
    files = {"add.onnx": model.SerializeToString(), "w.bin": np.array([1.5, -2], np.float32).tobytes()}
    if not listed:
        files["notes.txt"] = files.pop("w.bin")
    write_bundle(folder, manifest, files)
    return folder


def test_bundles_that_are_refused(cpp: Built, exported: Callable[..., Path], tmp_path: Path) -> None:
    """Everything of a bundle that was changed or leads out of it, with its status and its sentence."""
    cases: list[tuple[str, int, str]] = []
    (tmp_path / "secret").write_bytes(b"\0" * 8)

    def case(name: str, status: int, wanted: str, change: Callable[[Path], object]) -> None:
        bundle = tmp_path / name
        shutil.copytree(exported(), bundle)
        change(bundle)
        cases.append((name, status, wanted))

    def replaced(bundle: Path, name: str, target: Path) -> None:
        (bundle / name).unlink()
        os.symlink(target, bundle / name)

    case("hash", BUNDLE, "was changed: its hash differs", lambda b: (b / "model.onnx").write_bytes(
        (b / "model.onnx").read_bytes()[:-1] + b"\0"))  # fmt: skip
    case("size", BUNDLE, "bytes, not", lambda b: (b / "verify.json").write_text("{}"))
    case("lacks", BUNDLE, "lacks its file 'model.onnx'", lambda b: (b / "model.onnx").unlink())
    case("edited", BUNDLE, "was changed after it was written", lambda b: (b / "manifest.json").write_text(
        (b / "manifest.json").read_text().replace('"min": 1,', '"min": 2,', 1)))  # fmt: skip
    case("no manifest", BUNDLE, "it has no manifest.json", lambda b: (b / "manifest.json").unlink())
    case("link", BUNDLE, "it is a link out of the bundle", lambda b: replaced(b, "model.onnx", tmp_path / "secret"))
    case("manifest link", BUNDLE, "it is a link out", lambda b: replaced(b, "manifest.json", tmp_path / "secret"))
    case("pipe", BUNDLE, "it is no regular file", lambda b: ((b / "model.onnx").unlink(), os.mkfifo(b / "model.onnx")))
    case("code", BUNDLE, "holds 'extra.so', which its manifest does not list", lambda b: (b / "extra.so").touch())
    case("leaves", BUNDLE, "leads out of the bundle", lambda b: rewritten(b, lambda data: data["files"].update(
        {"../secret": {"sha256": hashlib.sha256(b"\0" * 8).hexdigest(), "bytes": 8}})))  # fmt: skip
    case("newer", BUNDLE, "schema version 2.0", lambda b: (b / "manifest.json").write_text(
        (b / "manifest.json").read_text().replace('"1.0"', '"2.0"', 1)))  # fmt: skip
    weighted(tmp_path / "weights out", "../secret")
    cases.append(("weights out", BUNDLE, "which leads out of the bundle"))
    weighted(tmp_path / "unlisted", "w.bin", listed=False)
    cases.append(("unlisted", BUNDLE, "which the manifest does not list"))
    jobs = [Job("refuse", {"bundle": tmp_path / name}) for name, _, _ in cases]
    jobs += [Job("refuse", {"bundle": tmp_path / "nothing"}), Job("refuse", {"bundle": tmp_path / "secret"})]
    cases += [("nothing", BUNDLE, "does not exist"), ("secret", BUNDLE, "is not a directory")]
    for done, (name, status, wanted) in zip(cpp.drive(jobs, tmp_path / "work"), cases, strict=True):
        assert done.refused is not None and done.refused[0] == status and wanted in done.refused[1], (name, done.said)
        assert done.refused[1].endswith("."), done.refused[1]


def test_weights_beside_the_graph_are_handed_over(cpp: Built, tmp_path: Path) -> None:
    bundle = weighted(tmp_path / "bundle", "w.bin")
    given = {"0.x": np.array([[1, 2], [3, 4]], np.float32)}
    (done,) = cpp.drive([Job("run", {"bundle": bundle, "steps": 1}, given)], tmp_path / "work")
    assert done.refused is None
    assert done.arrays["0.y"].tolist() == [[2.5, 0.0], [4.5, 2.0]]


def test_options_that_are_refused(cpp: Built, exported: Callable[..., Path], tmp_path: Path) -> None:
    bundle = exported()
    digest = Bundle.open(bundle).manifest.digest
    counter_bundles.write(tmp_path / "counter")
    image = np.zeros((1, 1, 8, 8), np.float32)
    cases: list[tuple[Job, tuple[int, str] | None]] = [
        (Job("refuse", {"bundle": bundle, "options": {"require_digest": digest}}), None),
        (Job("refuse", {"bundle": bundle, "options": {"require_digest": "0" * 64}}), (BUNDLE, "is required")),
        (Job("refuse", {"bundle": bundle, "options": {"require_digest": "12"}}), (CONFIG, "is no digest")),
        (Job("refuse", {"bundle": bundle, "options": {"backend": "rtx"}}), (CONFIG, "backend 'rtx' is not known")),
        (Job("refuse", {"bundle": bundle, "options": {"threads": -1}}), (CONFIG, "threads=-1")),
        (Job("refuse", {"bundle": bundle, "options": {"graphs": ["none"]}}), (BUNDLE, "has no graph 'none'")),
        (Job("refuse", {"bundle": bundle, "options": {"onnxruntime": "/none.so"}}), (UNSUPPORTED, "cannot be loaded")),
        (Job("refuse", {"bundle": bundle, "options": {"native_library": "/none.so"}}), (PLUGIN, "'/none.so'")),
        (Job("refuse", {"bundle": bundle, "options": {"size": 3}}), (CONFIG, "the size 3")),
        (Job("refuse", {"bundle": bundle, "states": {"capacity": 5}}), (CONFIG, "capacity=5")),
        (Job("refuse", {"bundle": tmp_path / "counter", "states": {"capacity": 17}}), (CONFIG, "allows 4 to 16")),
        (Job("refuse", {"bundle": tmp_path / "counter", "states": {"batch": -1}}), (CONFIG, "batch=-1")),
        (Job("refuse", {"bundle": bundle, "outputs": ["none"]}, {"image": image}), (CONFIG, "'none' is not known")),
        (Job("refuse", {"bundle": bundle}, {"image": image[0]}), (SHAPE, "has 3 axes")),
        (Job("refuse", {"bundle": bundle}, {"image": image[:, :, :7]}), (SHAPE, "has 7 on axis 2")),
        (Job("refuse", {"bundle": bundle}, {"image": image.astype(np.float64)}), (SHAPE, "is float64")),
        (Job("refuse", {"bundle": bundle, "most": 1}, {"image": image}), (SHAPE, "and the buffer has 1")),
    ]
    for done, (job, wanted) in zip(cpp.drive([job for job, _ in cases], tmp_path / "work"), cases, strict=True):
        if wanted is None:
            assert done.refused is None
        else:
            assert done.refused is not None and done.refused[0] == wanted[0], (job, done.said)
            assert wanted[1] in done.refused[1] and done.refused[1].endswith("."), done.refused[1]


def test_calls_that_no_program_should_make(cpp: Built, exported: Callable[..., Path], tmp_path: Path) -> None:
    bundle = exported()
    (output,) = (info.name for info in Bundle.open(bundle).manifest.graphs[0].outputs)
    image = np.zeros((1, 1, 8, 8), np.float32)
    (done,) = cpp.drive([Job("misuse", {"bundle": bundle, "output": output}, {"image": image})], tmp_path / "work")
    wanted = {
        "no path": (CONFIG, "path is NULL"),
        "no session": (CONFIG, "session is NULL"),
        "no states": (CONFIG, "states is NULL"),
        "no sequences": (CONFIG, "sequences is NULL"),
        "no info": (CONFIG, "info is NULL"),
        "index": (CONFIG, "index=99"),
        "file": (BUNDLE, "has no file '../secret'"),
        "no inputs": (CONFIG, "inputs is NULL"),
        "input missing": (CONFIG, "is missing; give float32"),
        "dtype": (SHAPE, "of no dtype"),
        "rank": (SHAPE, "has 9 axes"),
        "bytes": (SHAPE, "takes 256 bytes, and 255 were given"),
        "data": (SHAPE, "its data are NULL"),
        "shape": (SHAPE, "has the shape [-1, 1, 8, 8]"),
        "huge": (SHAPE, "takes more bytes"),
        "small": (SHAPE, "and the buffer has 1"),
        "unknown": (CONFIG, "'nonsense' is not known; there is image"),
        "closed": (CONFIG, "is closed; open the bundle again"),
    }
    for name, (status, text) in wanted.items():
        found = done.said[name]
        assert found[0] == status and text in found[1], (name, found)
    assert done.said["null counts"] == [0, 0]
    assert done.said["clashes"] in ([0], [0, BUSY])
