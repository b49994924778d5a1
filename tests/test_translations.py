"""The shared table of translations is torch's own, and what one export adds to it no other one sees."""

import subprocess
import sys
from pathlib import Path

from tests.processes import environment

CODE = """
from torch.onnx._internal.exporter._registration import ONNXRegistry
from tests.translations import build_once
def facts(table):
    return table.opset_version, {
        str(name): [(found.onnx_function.name, found.is_custom, found.is_complex, found.opset_introduced)
                    if hasattr(found.onnx_function, "name") else found for found in listed]
        for name, listed in table.functions.items()
    }
own = {opset: ONNXRegistry.from_torchlib(opset_version=opset) for opset in (18, 20)}
build_once(20)
build_once()
for opset, table in own.items():
    one, other = (ONNXRegistry.from_torchlib(opset_version=opset) for _ in range(2))
    assert facts(one) == facts(other) == facts(table), opset
    assert one.functions is not other.functions and len(one.functions) > 500
    name = next(iter(one.functions))
    one.functions[name].clear()
    one.functions["added"] = []
    assert facts(other) == facts(table) == facts(ONNXRegistry.from_torchlib(opset_version=opset))
"""


def test_tables_are_those_of_torch_and_nobody_changes_anothers() -> None:
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", CODE], cwd=root, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
