"""What a stranger named never moves the cursor, sets a title or turns the words: on the terminal, in JSON, on pages."""

import ast
import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from trt_compress.errors import UnsupportedError
from trt_compress.export.bundle import write_bundle
from trt_compress.foreign import plain_json, shown, shown_lines
from trt_compress.format.manifest import Batch, Graph, Model, TensorInfo, Weights
from trt_compress.runtime import Bundle, Manifest, Session
from trt_compress.tools.report.escaping import escape

ROOT = Path(__file__).resolve().parents[2]
SEARCHED = os.pathsep.join(filter(None, (str(ROOT / "src"), os.environ.get("PYTHONPATH"))))
EVIL = (
    "\x1b]0;PWN\x07",
    "\x1b[2J\x1b[H",
    "\x1b[8mPWN",
    "\x9b31mPWN",
    "\u202ePWN",
    "\u2066PWN\u200f\u061c",
    "x\rFORGED",
    "x\nerror: FORGED",
    "\x08\x08\x08PWN\x7f",
    "\ufeff\u200b\u2028PWN",
    "[link=http://evil]PWN[/link]",
    "[red]PWN[/]",
    "\udcff\udc9bPWN",
    "</script><b>PWN",
)
# What Rich writes for colours, the cursor and the line of progress; nothing of it is in EVIL.
OURS = re.compile(
    r"\x1b\[(?:[0-7]?|[13490][0-7]|[0-9]{1,3}(?:;[0-9]{1,3})+)m|\x1b\[\?25[lh]|\x1b\[2K|\x1b\[1A|\r(?=[\n\x1b])"
)
FORBIDDEN = re.compile(
    "[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]"
)


def strings_of(data: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where the texts are in JSON data."""
    if isinstance(data, str):
        yield place
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield from strings_of(value, (*place, key))


def replaced(data: Any, place: tuple[Any, ...], value: str) -> Any:
    copy = json.loads(json.dumps(data))
    inner = copy
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return copy


def classifier(
    folder: Path, *, op_type: str = "MatMul", node: str = "head", reshaped: list[int] | None = None, **fields: Any
) -> Bundle:
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"], axis=1),
        helper.make_node(op_type, ["flat", "weight"], ["logits"], name=node),
    ]
    sides = (("image", ["batch", 1, 8, 8]), ("logits", ["batch", 3]))
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in sides]
    values = np.random.default_rng(1).normal(size=(64, 3)).astype(np.float32)
    weight = numpy_helper.from_array(values if reshaped is None else np.array(reshaped), "weight")
    graph = helper.make_graph(nodes, "model", infos[:1], infos[1:], [weight])
    opset = helper.make_opsetid("", 20)
    data = helper.make_model(graph, opset_imports=[opset], ir_version=10).SerializeToString()
    tensors = [(TensorInfo(name=name, dtype="float32", shape=tuple(shape)),) for name, shape in sides]
    manifest = Manifest(
        name="small",
        created_with={"trt-compress": "0.1.0"},
        model=Model(source="zoo:digits_vit", family="test", weights=Weights(source="random (seed 0)")),
        recipe={"model": "zoo:digits_vit"},
        precision="fp32",
        opset=20,
        batch=Batch(min=1, opt=4, max=8),
        graphs=(Graph(name="model", file="model.onnx", inputs=tensors[0], outputs=tensors[1]),),
        preprocess={"input": "image", "kind": "image", "layout": "NCHW", "scale": 1 / 255, "mean": [0.5], "std": [0.5]},
        postprocess={"output": "logits", "kind": "classification", "classes": 3},
    )
    return write_bundle(folder, replace(manifest, **fields), {"model.onnx": data})


def seen_on_terminal(lines: list[list[str]], folder: Path) -> tuple[list[str], bytes]:
    """Run command lines on a terminal of 100 columns; what each wrote there, and all of it."""
    commands = folder / "commands.json"
    commands.write_text(json.dumps(lines))
    worker = Path(__file__).with_name("terminal_worker.py")
    master, slave = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": SEARCHED, "TERM": "xterm-256color", "PYTHONUTF8": "1"}
    environment |= {"COLUMNS": "100"}
    process = subprocess.Popen(
        [sys.executable, worker, commands], cwd=folder, stdin=slave, stdout=slave, stderr=slave, env=environment
    )
    os.close(slave)
    said, until = b"", time.monotonic() + 300
    try:
        while time.monotonic() < until:
            if select.select([master], [], [], 0.1)[0]:
                try:
                    block = os.read(master, 1 << 16)
                except OSError:  # the worker has ended, and its side is closed
                    break
                said += block
            elif process.poll() is not None:
                break
    finally:
        process.kill()
        process.wait()
        os.close(master)
    parts = said.decode("utf-8", "surrogateescape").split("@@")
    assert len(parts) == 2 * len(lines) + 1, said[-2000:]
    return parts[2::2], said


def check_clean(texts: list[str], lines: list[list[str]]) -> int:
    """No control of a stranger's; how many of the texts showed one."""
    showed = 0
    for text, line in zip(texts, lines, strict=True):
        rest = OURS.sub("", text.replace("\r\n", "\n"))
        assert not FORBIDDEN.search(rest), f"{line}: {text!r}"
        assert not re.search(r"(?m)^error: FORGED", rest), f"{line}: {text!r}"
        assert "\x1b[8m" not in text and "\x1b]" not in text, f"{line}: {text!r}"
        showed += bool(re.search(r"\\x|\\u|\\n|\\r", rest))
    return showed


def command_lines(chance: Any, bundle: Path, png: Path, folder: Path) -> Iterator[list[str]]:
    """Every command with something hostile where it takes a name."""
    for evil in EVIL:
        yield from ([command, f"{folder}/{evil}"] for command in ("inspect", "report", "verify", "evaluate"))
        yield ["compare", evil, f"{folder}/{evil}"]
        yield ["run", str(bundle), "--source", f"{folder}/{evil}.png"]
        yield ["run", str(bundle), "--source", str(png), "--policy", evil]
        yield ["run", str(bundle), "--source", str(png), "--out", f"{folder}/{evil}/out.jsonl"]
        yield ["run", str(bundle), "--source", str(png), "--labels", f"{folder}/{evil}"]
        yield ["bench", str(bundle), "--graph", evil]
        yield ["bench", f"{folder}/{evil}", "--json"]
        yield ["preflight", str(bundle), "--target", evil]
        yield ["build", str(bundle), "--target", evil]
        yield ["export", evil, "--compress", "none"]
        yield ["export", "zoo:digits_vit", "--compress", evil]
        yield ["export", "zoo:digits_vit", "--compress", f"tome:{evil}=3"]
        yield ["export", "zoo:digits_vit", "--compress", f"tome:num_merged={evil}"]
        yield ["plugins", "build", "--cuda", evil]
        yield ["plugins", "build", "--tensorrt", f"{folder}/{evil}"]
        yield ["list", evil]
        yield ["list", "models", evil]
        yield [evil]
        yield ["inspect", f"--{evil}"]
        yield ["inspect", str(bundle), evil]
        yield ["bench", str(bundle), "--pairs", evil]
        yield ["inspect", f"{folder}/{evil}", "--json"]
        yield ["-v", "inspect", f"{folder}/{evil}"]
        yield ["--log-json", "inspect", f"{folder}/{evil}"]


def hostile_bundles(chance: Any, folder: Path, count: int) -> Iterator[list[str]]:
    """Bundles whose manifest is right but for its words."""
    good = json.loads(classifier(folder / "good").manifest.to_text())
    for key in ("digest", "files"):
        good.pop(key)
    places = [place for place in strings_of(good) if place[-1] not in ("dtype", "kind", "schema_version", "file")]
    for number in range(count):
        evil = chance.choice([evil for evil in EVIL if "\udcff" not in evil])
        data = good
        for place in chance.sample(places, chance.randint(1, 3)):
            data = replaced(data, place, evil if chance.random() < 0.7 else f"{data['name']}{evil}")
        data = {**data, "files": {}, "digest": ""}
        place = folder / f"b{number}"
        place.mkdir()
        graph = (folder / "good" / "model.onnx").read_bytes()
        import hashlib

        data["files"] = {"model.onnx": {"sha256": hashlib.sha256(graph).hexdigest(), "bytes": len(graph)}}
        try:
            parsed = Manifest.from_text(json.dumps({**data, "digest": "0" * 64}))
            data["digest"] = parsed.compute_digest()
        except Exception:  # the words are looked at when the command opens it, which then says so
            pass
        (place / "model.onnx").write_bytes(graph)
        (place / "manifest.json").write_text(json.dumps(data))
        yield [chance.choice(["inspect", "verify", "preflight"]), str(place)] + chance.choice([[], ["--json"]])


def test_no_command_writes_an_escape_of_a_stranger(attack: Any, tmp_path: Path) -> None:
    chance = attack.random(21)
    bundle = classifier(tmp_path / "bundle").path
    png = tmp_path / "a.png"
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(png)
    every = list(command_lines(chance, bundle, png, tmp_path))
    lines = chance.sample(every, attack.count(60, len(every)))
    lines += hostile_bundles(chance, tmp_path, 12 if len(lines) < len(every) else 600)
    texts, _ = seen_on_terminal(lines, tmp_path)
    showed = check_clean(texts, lines)
    assert showed > len(lines) // 3
    attack.saw(cases=len(lines), showed=showed, escapes=0)


def test_a_stream_of_hostile_words(attack: Any, tmp_path: Path) -> None:
    """Labels on the live line and in tables, names of files that are no UTF-8, results, reports, and pages."""
    labels = ["\x1b]0;PWN\x07a", "\u202eb[link=http://evil]", "x\rFORGED\x9b8m</script>"]
    postprocess = {"output": "logits", "kind": "classification", "classes": 3, "labels": labels}
    bundle = classifier(tmp_path / "bundle", postprocess=postprocess, name="\x1b[2J</script>\u202e")
    broken = classifier(tmp_path / "broken", op_type="NoSuch\x1b]0;PWN\x07", node="\x1b[2J\u202eFORGED")
    frames = tmp_path / "frames\udcff\x1b[2J"
    frames.mkdir()
    for number in range(6):
        picture = np.random.default_rng(number).integers(0, 255, (8, 8), dtype=np.uint8)
        Image.fromarray(picture).save(frames / f"{number}\x1b]0;PWN\x07\udc9b.png")
    source = ["--source", f"{frames}/*.png", "--warmup", "0"]
    reports = [tmp_path / f"report{number}\u202e\x1b[2J" for number in range(2)]
    results = [str(report / "result.json") for report in reports]
    lines = [
        *(["run", str(bundle.path), *source, "--report", str(report)] for report in reports),
        ["run", str(bundle.path), *source, "--json"],
        ["run", str(bundle.path), *source, "--out", str(tmp_path / "out\udcff\x1b[2J.jsonl")],
        ["bench", str(bundle.path), "--pairs", "4"],
        ["run", str(broken.path), *source],
        ["bench", str(broken.path), "-v"],
        ["inspect", str(broken.path)],
        ["preflight", str(broken.path), "--target", "cpu"],
        ["report", results[0], "-v"],
        ["compare", *results],
        ["compare", *results, "--json"],
    ]
    texts, _ = seen_on_terminal(lines, tmp_path)
    assert check_clean(texts, lines) > len(lines) // 2
    for text, line in zip(texts, lines, strict=True):
        if "--json" in line:
            json.loads(text[text.index("{") : text.rindex("}") + 1])
    pages = [path for report in reports for path in report.glob("*.html")]
    assert pages
    for page in pages:
        content = page.read_text(encoding="utf-8")
        assert not FORBIDDEN.search(content.replace("\n", "")) and "<b>" not in content
        assert content.count("</script>") == content.count("<script>") == 1  # our own
    attack.saw(escapes=0)


def test_what_fails_inside_a_library_is_said_by_us_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """ONNX Runtime would log the node's name as it stands there, past everything that shows it."""
    bundle = classifier(tmp_path / "bundle", op_type="Reshape", node="\x1b]0;PWN\x07", reshaped=[7, 5])
    with Session.open(bundle) as session, pytest.raises(UnsupportedError, match="Reshape"):
        session.run(np.zeros((1, 1, 8, 8), np.float32))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("evil", EVIL)
def test_what_is_shown_can_be_read_and_written(evil: str) -> None:
    for text in (shown(evil), shown_lines(evil), escape(evil)):
        assert not FORBIDDEN.search(text)
        text.encode()
    assert "\n" not in shown(evil) and shown(shown(evil)) == shown(evil)
    written = plain_json({evil: [evil]}, indent=2)
    assert json.loads(written) == {evil: [evil]} and not FORBIDDEN.search(written)
    written.encode()
    assert "<" not in escape(evil)


def test_what_people_write_is_left_alone() -> None:
    for text in ("größer → 3×", "猫", "سلام", "می‌خواهم", "👩‍💻", "a\\x1b", "…"):
        assert shown(text) == text


PRINTS = {"print", "echo", "secho"}
# They run in a process of their own whose output the parent reads, or train models: nothing of a stranger is in it.
NOT_THE_PRODUCT = ("models/zoo/", "tools/bench/", "tools/gpu/", "plugins/resources.py", "plugins/ptxas.py")
WORKERS = ("plugins/describe_worker.py", "tools/tune/measure_block.py")


def test_one_place_prints() -> None:
    """Every other module hands its words to tools/console.py."""
    found = []
    for folder in ("export", "models", "plugins", "runtime", "tools", "src/trt_compress"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            if name == "tools/console.py" or name.startswith((*NOT_THE_PRODUCT, *WORKERS)) or path.is_symlink():
                continue
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call):
                    called = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
                    stream = ast.unparse(node.func)
                    if called in PRINTS or re.fullmatch(r"sys\.std(out|err)\.write(lines)?", stream):
                        found.append(f"{name}:{node.lineno}: {stream}")
    assert found == []
