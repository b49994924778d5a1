"""A device: it has neither torch nor onnx, and checks and builds a finished bundle all the same."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from trt_compress.export.forms import operator_nodes_of
from trt_compress.runtime import Bundle

TOME = "tome:num_merged=4"
DEVICE = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "onnx", "onnxscript", "timm", "transformers", "safetensors"):
            raise ModuleNotFoundError(f"No module named {name!r} (blocked)", name=name)
sys.meta_path.insert(0, Block())
"""
needs_rtx = pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="the package tensorrt_rtx is not installed")


@pytest.fixture
def bundle(exported: Callable[..., Path], tmp_path: Path) -> Path:
    source = exported(TOME, targets=("cpu", "jetson-orin-jp6"), batch="1")
    subprocess.run(["cp", "-r", source, tmp_path / "bundle"], check=True)
    return tmp_path / "bundle"


def on_device(
    command: str, bundle: Path, *arguments: object, tensorrt: Path | None = None
) -> "subprocess.CompletedProcess[str]":
    program = f"{DEVICE}\nfrom trt_compress.tools.cli.main import main; main()"
    search = os.pathsep.join(filter(None, (str(tensorrt or ""), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": search, "XDG_CACHE_HOME": str(bundle.parent / "cache")}
    words = [sys.executable, "-c", program, command, str(bundle), *map(str, arguments)]
    return subprocess.run(words, env=environment, capture_output=True, text=True)


def fake_tensorrt(folder: Path, version: str) -> Path:
    """A module `tensorrt` of this version that builds as TensorRT-RTX does."""
    (folder / "tensorrt.py").write_text(f'from tensorrt_rtx import *\n__version__ = "{version}"\n')
    return folder


def test_preflight_tells_what_was_found_at_export_and_reads_the_file(bundle: Path) -> None:
    finished = on_device("preflight", bundle, "--target", "cpu")
    assert (finished.returncode, finished.stderr) == (0, "")
    assert finished.stdout.startswith("Nothing stands in the way of 'cpu'.\nChecked: the rules of trt-compress ")
    assert "when the bundle was exported; ONNX Runtime " in finished.stdout
    assert finished.stdout.endswith(", which is installed here, reads the file.\n")


def test_preflight_says_what_it_could_not_check(bundle: Path) -> None:
    document = json.loads(on_device("preflight", bundle, "--target", "jetson-orin-jp6", "--json").stdout)
    assert [finding["rule"] for finding in document["findings"]] == ["needs-plugin"]
    assert document["checked"][1].startswith("TensorRT has not read the file here: target 'jetson-orin-jp6' needs ")


def test_the_record_is_what_the_rules_find(bundle: Path) -> None:
    from trt_compress.export.check import preflight
    from trt_compress.export.findings import recorded_findings
    from trt_compress.export.targets import TARGETS

    for target in TARGETS:
        recorded = recorded_findings(Bundle.open(bundle), target)
        assert recorded is not None and recorded.findings == preflight(bundle, target=target)


def test_a_bare_file_needs_onnx_and_says_so(bundle: Path) -> None:
    finished = on_device("preflight", bundle / "model.onnx", "--target", "rtx")
    assert (
        finished.returncode == 2 and "reading it needs 'onnx', which is not installed; give a bundle" in finished.stderr
    )


def test_advice_on_a_target_of_another_device(bundle: Path) -> None:
    finished = on_device("build", bundle, "--target", "jetson-orin-jp6")
    assert finished.returncode == 2
    assert "engines are built on the device: copy the bundle there" in finished.stderr
    assert "TensorRT comes with JetPack" in finished.stderr and "--system-site-packages" in finished.stderr
    assert "pip install" not in finished.stderr


@needs_rtx
def test_a_device_builds_the_file_as_it_is(bundle: Path) -> None:
    finished = on_device("build", bundle, "--target", "rtx", "--json")
    assert (finished.returncode, finished.stderr) == (0, "")
    (engine,) = Bundle.open(bundle).manifest.engines
    assert json.loads(finished.stdout) == engine.to_json()
    assert engine.paths == {"TrtcTokenMerge": {"plugin": 0, "function": 8}}
    assert engine.precision_achieved["model"].keys() == {"fp32"} and engine.precision_achieved["operators"]
    assert engine.profile["image"] == dict.fromkeys(("min", "opt", "max"), (1, 1, 8, 8))


@needs_rtx
def test_a_jetson_without_plugins_builds_from_the_bodies_when_told_to(bundle: Path, tmp_path: Path) -> None:
    tensorrt = fake_tensorrt(tmp_path, "10.3.0")
    refused = on_device("build", bundle, "--target", "jetson-orin-jp6", tensorrt=tensorrt)
    assert refused.returncode == 2 and "are not built for this version of the sources" in refused.stderr
    found = on_device("preflight", bundle, "--target", "jetson-orin-jp6", tensorrt=tensorrt)
    assert found.returncode == 3 and "would stop the build" in found.stderr
    finished = on_device("build", bundle, "--target", "jetson-orin-jp6", "--plugins", "no", tensorrt=tensorrt)
    assert (finished.returncode, finished.stderr) == (0, "")
    (engine,) = Bundle.open(bundle).manifest.engines
    assert (engine.library_version, engine.paths) == ("10.3.0", {"TrtcTokenMerge": {"plugin": 0, "function": 8}})


@needs_rtx
def test_what_the_library_here_refuses_is_found(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "tensorrt.py").write_text(
        'import tensorrt_rtx\nfrom tensorrt_rtx import *\n__version__ = "11.0"\n'
        "class OnnxParser(tensorrt_rtx.OnnxParser):\n"
        "    def parse_from_file(self, path):\n        self.parse(b'no graph'); return False\n"
    )
    finished = on_device("preflight", bundle, "--target", "x86-trt11", tensorrt=tmp_path)
    assert finished.returncode == 3
    assert "TensorRT 11.0, which is installed here, refuses the file" in finished.stdout


def test_the_operators_are_read_without_onnx(bundle: Path) -> None:
    found = operator_nodes_of(Bundle.open(bundle), "model.onnx")
    assert found == {f"blocks.{layer}/TokenMerge": "TrtcTokenMerge" for layer in range(8)}
