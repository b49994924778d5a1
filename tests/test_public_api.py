"""What `import trt_compress` offers: everything by its public name, nothing heavy before use, all of it typed."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import trt_compress

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("torch", "onnx", "onnxruntime", "timm", "numpy", "typer", "rich")

USE = """
import trt_compress

def use() -> str:
    result = trt_compress.export_model("zoo:digits_vit", output="out", compress="tome:num_merged=4", targets=["rtx"])
    report = trt_compress.verify("out")
    record = trt_compress.build("out", target="rtx", force=True)
    findings = trt_compress.preflight("out", target="rtx")
    session = trt_compress.runtime.Session.open("out")
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
"""


def run_python(program: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)


def test_what_is_public_is_pinned() -> None:
    names = [
        "TrtCompressError",
        "__version__",
        "build",
        "evaluate",
        "export_model",
        "preflight",
        "runtime",
        "sweep",
        "verify",
    ]
    assert sorted(trt_compress.__all__) == names
    assert sorted(dir(trt_compress)) == names


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
assert trt_compress.build is build is api.build
assert trt_compress.verify is verify is api.verify
assert trt_compress.preflight is api.preflight
assert trt_compress.export_model is api.export_model
assert trt_compress.runtime.Session.__name__ == "Session"
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
    assert len(errors) == 1 and "misuse.py:4" in errors[0] and "output" in errors[0], finished.stdout + finished.stderr
