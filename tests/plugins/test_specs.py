"""The contracts are plain data: one spec.py beside each op.py, read where there is no torch."""

import json
import subprocess
import sys
from pathlib import Path

import trt_compress.plugins
from trt_compress.plugins.registry import operators, specs

PLUGINS = Path(str(trt_compress.plugins.__file__)).parent
HEAVY = ("torch", "onnx", "onnxruntime", "numpy", "timm")
BLOCK = f"import sys\nfor name in {HEAVY}: sys.modules[name] = None\n"


def run_without(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", BLOCK + program], capture_output=True, text=True, check=False)


def test_specs_are_read_without_torch() -> None:
    program = """
import json
from trt_compress.plugins.registry import specs
print(json.dumps({op_type: [spec.torch_name, spec.summary] for op_type, spec in specs().items()}))
"""
    done = run_without(program)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == {op: [it.spec.torch_name, it.spec.summary] for op, it in operators().items()}


def test_operators_are_not_read_without_torch() -> None:
    """So the test above can fail."""
    done = run_without("from trt_compress.plugins.registry import operators\noperators()")
    assert done.returncode != 0 and "import of torch halted" in done.stderr


def test_operators_are_listed_without_torch() -> None:
    done = run_without("from trt_compress.tools.listing import list_operators\nprint(len(list_operators()))")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{len(specs())}\n", "")


def test_the_operator_has_the_spec_beside_it() -> None:
    assert {path.parent for path in PLUGINS.glob("*/spec.py")} == {path.parent for path in PLUGINS.glob("*/op.py")}
    assert list(specs()) == list(operators())
    for op_type, spec in specs().items():
        assert operators()[op_type].spec is spec
        beside = sys.modules[f"trt_compress.plugins.{spec.torch_name}.spec"]
        assert vars(beside)["SPEC"] is spec
