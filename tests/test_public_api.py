"""What `import trt_compress` offers: everything by its public name, nothing heavy before use, all of it typed."""

import errno
import inspect
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from types import FunctionType

import numpy as np
import pytest

import trt_compress
from trt_compress.tools.cli.main import app

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("torch", "onnx", "onnxruntime", "timm", "numpy", "typer", "rich")

USE = """
import trt_compress

def use() -> str:
    result = trt_compress.export_model("zoo:digits_vit", output="out", compress="tome:num_merged=4", targets=["rtx"])
    report = trt_compress.verify("out")
    record = trt_compress.build("out", target="rtx", force=True)
    findings = trt_compress.preflight("out", target="rtx")
    session = trt_compress.Session.open("out")
    timed = trt_compress.bench("out", baseline="dense", pairs=64, native=False)
    streamed = trt_compress.run("out", source=["a.mp4", "b.mp4"], fps=30, deadline_ms=33, policy="latest")
    page = trt_compress.report(streamed, output="report")
    broken = trt_compress.compare(timed, "before.json", budget="p99_ms<=33").broken()
    rows = [*trt_compress.list_models("deit"), *trt_compress.list_compressors(), *trt_compress.list_operators()]
    exported = trt_compress.list_targets()[0].exports[0]
    print(timed.started_at, streamed.counts.delivered, page.title, broken, [row.name for row in rows], exported)
    try:
        session.run({})
    except trt_compress.TrtCompressError as error:
        print(error.hint)
    print(result.manifest.opset, report.passed, record.target, [finding.rule for finding in findings])
    return trt_compress.__version__
"""
MISUSE = """
import trt_compress

trt_compress.export_model("zoo:digits_vit")
trt_compress.run("out", source="a.mp4", policy="newest")
"""


def run_python(program: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)


def test_what_is_public_is_pinned() -> None:
    names = [
        *("Session", "TrtCompressError", "__version__", "bench", "build", "calibrate", "compare"),
        *("evaluate", "evaluate_text", "export_model"),
        *("list_compressors", "list_models", "list_operators", "list_targets"),
        *("preflight", "report", "run", "runtime", "sweep", "tune", "verify"),
    ]
    assert sorted(trt_compress.__all__) == names
    assert sorted(dir(trt_compress)) == names
    section = (ROOT / "README.md").read_text().partition("\n## Python\n")[2].partition("\n## ")[0]
    assert [name for name in names if f"`{name}`" not in section and f"`trt_compress.{name}`" not in section] == [
        "__version__"
    ]


def test_importing_the_package_loads_nothing_heavy() -> None:
    finished = run_python(f"import sys, trt_compress; print([name for name in {HEAVY} if name in sys.modules])")
    assert (finished.stdout, finished.stderr) == ("[]\n", "")


@pytest.mark.parametrize("first", ["", "import trt_compress.export.verify", "import trt_compress.runtime.session"])
def test_names_mean_the_same_whatever_was_imported_before(first: str) -> None:
    program = f"""
import trt_compress
{first}
from trt_compress.export import api, preflight
from trt_compress import build, verify
from trt_compress.tools import verifying
assert trt_compress.build is build is api.build
assert trt_compress.verify is verify is verifying.verify
assert trt_compress.preflight is api.preflight
assert trt_compress.export_model is api.export_model
assert trt_compress.runtime.Session.__name__ == "Session"
assert not callable(trt_compress.export)
try:
    trt_compress.export_model("zoo:nothing", output="nowhere")
except trt_compress.TrtCompressError as error:
    assert str(error).startswith("model 'zoo:nothing' is not known"), error
else:
    raise SystemExit("no error")
"""
    finished = run_python(program)
    assert (finished.returncode, finished.stderr) == (0, "")


def test_the_main_function_shows_its_arguments_in_help() -> None:
    finished = run_python("import trt_compress; help(trt_compress.export_model)")
    first = finished.stdout.splitlines()[2]
    assert first.startswith("export_model(model: str, *, output: "), finished.stdout
    assert all(f"{name}:" in first for name in ("compress", "weights", "targets", "batch", "precision", "opset"))
    assert "Raises:" in finished.stdout and "compress: Spec string" in finished.stdout


@pytest.mark.parametrize("name", [name for name in trt_compress.__all__ if name not in ("__version__", "runtime")])
def test_every_public_name_says_what_it_is(name: str) -> None:
    public = getattr(trt_compress, name)
    assert public.__name__ == name and public.__doc__
    parameters = inspect.signature(public).parameters.values()
    undocumented = [one.name for one in parameters if name != "Session" and f"{one.name}" not in public.__doc__]
    assert not isinstance(public, FunctionType) or undocumented == []


@pytest.mark.parametrize(
    ("function", "command"),
    [
        (name, name)
        for name in ("bench", "build", "calibrate", "compare", "evaluate", "preflight", "report", "run", "verify")
    ]
    + [("export_model", "export")],
)
def test_functions_take_what_their_commands_take(function: str, command: str) -> None:
    """In the same words, but for what is of one side only."""
    commands = {info.name: info.callback for info in app.registered_commands}
    callback = commands[command]
    assert callback is not None
    plural = {"target": "targets", "results": "result", "idle_s": "power_idle_s"}
    rename = plural if command != "build" and command != "preflight" else {}
    of_cli = {rename.get(name, name) for name in inspect.signature(callback).parameters}
    of_cli -= {"typed", "verbose", "log_json", "json", "budget", "max_drop", "model_option"}
    functions = (
        [trt_compress.evaluate, trt_compress.evaluate_text]
        if function == "evaluate"
        else [getattr(trt_compress, function)]
    )
    of_function = {name for one in functions for name in inspect.signature(one).parameters}
    assert of_cli - of_function == set()


def test_results_are_reported_and_compared_as_they_are(exported: Callable[..., Path], tmp_path: Path) -> None:
    bundle = exported("tome:num_merged=4", batch="1")
    timed = trt_compress.bench(bundle, pairs=8)
    assert datetime.fromisoformat(timed.started_at).tzinfo is not None
    np.savez(tmp_path / "frames.npz", image=np.zeros((5, 1, 8, 8), np.float32))
    streamed = trt_compress.run(bundle, source=str(tmp_path / "frames.npz"))
    assert streamed.counts.delivered == 5
    files: list[Path] = []
    report = trt_compress.report(streamed, output=tmp_path / "out", wrote=files.append)
    assert [file.name for file in files] == ["result.report.json", "result.report.html", "result.trace.json"]
    assert trt_compress.report(tmp_path / "out" / "result.report.json").to_json() == report.to_json()
    compared = trt_compress.compare(timed, report, budget="inference_n>=1000")
    assert [held.limit.metric for held in compared.broken()] == ["inference_n"]
    with pytest.raises(trt_compress.TrtCompressError, match="a result was expected, and a int was given"):
        trt_compress.report(3)  # type: ignore[arg-type]


def test_lists_are_filtered_by_words() -> None:
    assert [row.name for row in trt_compress.list_compressors("ToMe", "every")][:1] == ["tome"]
    assert {row.name for row in trt_compress.list_targets("jetson")} > {"jetson-thor"}
    assert trt_compress.list_targets("no such word") == ()
    forms = {row.name for row in trt_compress.list_models()}
    assert forms > {"zoo:digits_vit", "hf:DIR", "wavtokenizer:FILE", "xytokenizer:FILE", "FILE.py:FACTORY", "FILE.toml"}
    assert all("deit" in row.name for row in trt_compress.list_models("deit"))


def test_a_target_is_listed_with_what_is_done_with_it() -> None:
    rows = {row.name: row for row in trt_compress.list_targets()}
    assert "ort-cpu" in rows["cpu"].run_by and rows["cpu"].engine.startswith("none")
    assert (
        rows["jetson-thor"].exports == ("fp32", "fp16", "bf16", "int8")
        and rows["jetson-thor"].engine == "builds on the device only"
    )
    runs = {name: row.run_by for name, row in rows.items()}
    assert (runs["rtx"], runs["jetson-orin-jp6"], runs["x86-trt11"]) == ("rtx", "tensorrt", "tensorrt")


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="^module 'trt_compress' has no attribute 'exprot'$"):
        trt_compress.exprot  # noqa: B018


CHECKERS = {
    "mypy": ("-m", "mypy", "--strict", "--cache-dir=.cache"),
    "pyright": ("-m", "pyright", "--pythonpath", sys.executable),
}


@pytest.mark.slow
@pytest.mark.parametrize("checker", CHECKERS)
def test_type_checkers_know_the_public_names(checker: str, tmp_path: Path) -> None:
    if find_spec(checker) is None:
        pytest.skip(f"{checker} is not installed")
    (tmp_path / "pyrightconfig.json").write_text(f'{{"extraPaths": ["{ROOT / "src"}"]}}')
    (tmp_path / "use.py").write_text(USE)
    (tmp_path / "misuse.py").write_text(MISUSE)
    command = [sys.executable, *CHECKERS[checker], "use.py", "misuse.py"]
    environment = {**os.environ, "MYPYPATH": str(ROOT / "src")}
    finished = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    errors = [line for line in finished.stdout.splitlines() if "error" in line and ".py:" in line]
    assert len(errors) == 2, finished.stdout + finished.stderr
    assert "misuse.py:4" in errors[0] and "output" in errors[0]
    assert "misuse.py:5" in errors[1] and "policy" in errors[1]


def test_one_level_needs_no_list(tmp_path: Path) -> None:
    with pytest.raises(trt_compress.TrtCompressError, match="^--level gives levels to choose from"):
        trt_compress.run("bundle", source="a.npz", level=tmp_path)


class Closed:
    """A path to what the system lets nobody look at."""

    def __fspath__(self) -> str:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/closed/place")


@pytest.mark.parametrize(
    ("function", "first", "more"),
    [
        ("verify", Closed(), {}),
        ("preflight", Closed(), {"target": "cpu"}),
        ("build", Closed(), {"target": "rtx"}),
        ("bench", Closed(), {}),
        ("run", Closed(), {"source": ["x.png"]}),
        ("evaluate", Closed(), {"data": Closed()}),
        ("export_model", "zoo:digits_vit", {"output": Closed()}),
        ("sweep", "zoo:digits_vit", {"data": Closed()}),
        ("tune", "zoo:digits_vit", {"data": Closed(), "output": "out"}),
        ("report", "x" * 300, {}),
        ("compare", "x" * 300, {}),
    ],
)
def test_what_the_system_refuses_is_an_error_of_ours(function: str, first: object, more: dict[str, object]) -> None:
    with pytest.raises(trt_compress.TrtCompressError, match="Permission denied|File name too long"):
        getattr(trt_compress, function)(first, **more)
