"""Every form of every operator against the reference, on every sample.

Forms that run are compared by `plugins/testing/comparing.py`. For TensorRT-RTX, which needs a GPU to run, the proof is
that it builds, or that preflight refuses the graph with the reason. What is dear is done for a covering subset:
`covering.py` has the rule.
"""

import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from tests.plugins.covering import covering, is_dear
from trt_compress.export.lower import lower_for_target
from trt_compress.export.preflight import preflight
from trt_compress.export.targets import TARGETS, get_target, newest_common_opset
from trt_compress.plugins.operator import Operator
from trt_compress.plugins.registry import operators
from trt_compress.plugins.spec import Sample
from trt_compress.plugins.testing import call_torch, is_batched, onnx_model, sample_inputs
from trt_compress.plugins.testing.comparing import CLEAR, as_array, differences, dtype_name
from trt_compress.plugins.testing.forms import Form, forms
from trt_compress.plugins.testing.reference import reference
from trt_compress.plugins.testing.reference_base import Expected

RTX = get_target("rtx")
CPU_OPSET = TARGETS["cpu"].max_opset
OPSETS = sorted({18, newest_common_opset(), CPU_OPSET})
DTYPES = {"torch": ("float32", "float16", "bfloat16"), "onnx": ("float32", "float16"), "rtx": ("float32", "float16")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    operator: Operator
    sample: Sample
    form: str
    dtype: str

    @property
    def name(self) -> str:
        short = self.dtype.replace("bfloat", "bf").replace("float", "fp")
        return f"{self.operator.spec.torch_name}[{self.form},{self.sample.label},{short}]"

    @property
    def is_repeated(self) -> bool:
        """Whether no input follows the dtype, so that this is the case of float32 once more."""
        first = sample_inputs(self.operator, self.sample)
        return self.dtype != "float32" and [t.dtype for t in self.inputs()] == [t.dtype for t in first]

    def inputs(self) -> tuple[torch.Tensor, ...]:
        return sample_inputs(self.operator, self.sample, dtype=self.dtype)

    def model(self, opset: int) -> onnx.ModelProto:
        inputs = self.inputs()
        outputs = call_torch(self.operator, self.sample, inputs)
        return onnx_model(self.operator, self.sample, inputs, outputs, opset=opset)


def all_cases() -> list[Case]:
    cases = [
        Case(operator=operator, sample=sample, form=form, dtype=dtype)
        for operator in operators().values()
        for sample in operator.samples
        for form, dtypes in DTYPES.items()
        for dtype in dtypes
    ]
    return [case for case in cases if case.dtype == "float32" or not (is_dear(case.sample) or case.is_repeated)]


CASES = all_cases()
COVERING = {
    name
    for operator in operators().values()
    for form in DTYPES
    for name in covering(
        (case.name, case.sample, case.dtype) for case in CASES if case.operator is operator and case.form == form
    )
}


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in CASES])
def test_conformance(case: Case, request: pytest.FixtureRequest) -> None:
    if case.form == "rtx":
        check_rtx(case, request.getfixturevalue("said"))
    elif case.form == "torch":
        check_form(case, forms()["torch"])
    else:
        is_covering = case.name in COVERING and not is_dear(case.sample)
        for opset in OPSETS if is_covering else [newest_common_opset()]:
            check_form(case, forms(opset=opset)[case.form])


_EXPECTED: dict[bytes, Expected] = {}
MOST_KEPT = 32


def expected_of(op_type: str, inputs: tuple[np.ndarray, ...], attributes: Mapping[str, Any]) -> Expected:
    """What the reference gives; computed once for the forms and opsets that get the very same inputs in turn."""
    key = hashlib.sha256(repr((op_type, sorted(attributes.items()))).encode())
    for array in inputs:
        key.update(f"{array.dtype.str}{array.shape}".encode() + array.tobytes())
    if key.digest() not in _EXPECTED:
        while len(_EXPECTED) >= MOST_KEPT:
            del _EXPECTED[next(iter(_EXPECTED))]
        _EXPECTED[key.digest()] = reference(op_type, inputs, attributes)
    return _EXPECTED[key.digest()]


def check(
    case: Case,
    inputs: Sequence[torch.Tensor],
    outputs: Sequence[torch.Tensor],
    items: Sequence[int] | None = None,
) -> None:
    """Compare outputs with the reference, each within the tolerance of its own dtype; of `items` of the batch only."""
    spec = case.operator.spec
    expected = expected_of(spec.op_type, tuple(as_array(tensor) for tensor in inputs), case.sample.attributes)
    wanted = expected.outputs
    if items is not None:  # the largest count of all is one number
        wanted = tuple(output[list(items)] if output.ndim else output for output in wanted)
    assert expected.margin > CLEAR, f"{case.name}: a decision hangs on rounding; choose other inputs"
    dtype_of = {described.name: dtype_name(tensor) for described, tensor in zip(spec.inputs, inputs, strict=True)}
    dtypes = [dtype_name(output) for output in outputs]
    for described, dtype in zip(spec.outputs, dtypes, strict=True):
        followed = described.same_dtype_as
        assert dtype in ((dtype_of[followed],) if followed else described.dtypes), described.name
    assert differences(spec, [as_array(output) for output in outputs], dtypes, wanted) == []


def check_form(case: Case, form: Form) -> None:
    """Run a form with the sample's batch, and with one item more in another order."""
    inputs, batch = case.inputs(), case.sample.axes["B"]
    run = form(case.operator, case.sample, inputs)
    described = list(zip(case.operator.spec.inputs, inputs, strict=True))
    for items in (list(range(batch)), [*reversed(range(batch)), 0]):
        chosen = [tensor[items] if is_batched(spec, tensor, batch) else tensor for spec, tensor in described]
        check(case, inputs, run(chosen), items)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_merging_compares_directions_however_long_the_features_are(scale: float) -> None:
    operator = operators()["TrtcTokenMerge"]
    case = Case(operator=operator, sample=operator.samples[3], form="onnx", dtype="float32")
    x, metric, size = case.inputs()
    inputs = (x, metric * scale, size)
    *_, wanted = call_torch(operator, case.sample, (x, metric, size))
    assert torch.equal(call_torch(operator, case.sample, inputs)[2], wanted)
    session = onnxruntime.InferenceSession(case.model(20).SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = {spec.name: tensor.numpy() for spec, tensor in zip(operator.spec.inputs, inputs, strict=True)}
    np.testing.assert_array_equal(session.run(["dest"], feeds)[0], wanted)


# ---- TensorRT-RTX ---------------------------------------------------------------------------------------------------

_WORKER = "import sys, pathlib, trt_compress.export.engine_worker as w; [w.main(pathlib.Path(f)) for f in sys.argv[1:]]"


def check_rtx(case: Case, said: dict[str, dict[str, object]]) -> None:
    reply = said[case.name]
    if reply["stage"] == "preflight":
        assert (reply["rule"], reply["severity"]) == (case.sample.refused, "error")
        assert "exceeds 3840" in str(reply["message"])
    else:
        assert not case.sample.refused
        if case.name not in COVERING:
            assert reply["stage"] == "not built"
            return
        assert (reply["stage"], reply.get("message", "")) == ("done", "")
        assert reply["engine_bytes"]


@pytest.fixture(scope="module")
def said(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, object]]:
    """What preflight says to the selected cases, and the builder to the covering ones, all in one child process."""
    pytest.importorskip("tensorrt_rtx", reason="the contract needs the real builder: pip install 'trt-compress[rtx]'")
    calls = [getattr(item, "callspec", None) for item in request.session.items]
    chosen = [call.params.get("case") for call in calls if call]
    cases = [case for case in chosen if isinstance(case, Case) and case.form == "rtx"]
    root = tmp_path_factory.mktemp("rtx")
    replies: dict[str, dict[str, object]] = {}
    folders: dict[str, Path] = {}
    for case in cases:
        model = case.model(newest_common_opset())
        findings = [finding for finding in preflight(model, RTX) if finding.severity == "error"]
        if findings:
            replies[case.name] = {"stage": "preflight", **asdict(findings[0])}
        elif case.name not in COVERING:
            replies[case.name] = {"stage": "not built"}
        else:
            folders[case.name] = root / str(len(folders))
            write_request(case, model, folders[case.name])
    run_workers(list(folders.values()))
    for name, folder in folders.items():
        replies[name] = json.loads((folder / "reply.json").read_text())
        engine = folder / "engine"
        replies[name]["engine_bytes"] = engine.stat().st_size if engine.exists() else 0
    return replies


def write_request(case: Case, model: onnx.ModelProto, folder: Path) -> None:
    folder.mkdir()
    onnx.save(lower_for_target(model, RTX), folder / "model.onnx")
    batch = case.sample.axes["B"]
    profile = {}
    for spec, tensor in zip(case.operator.spec.inputs, case.inputs(), strict=True):
        sizes = {"min": 1, "opt": batch, "max": batch + 1}
        shapes = {name: [size, *tensor.shape[1:]] for name, size in sizes.items()}
        if is_batched(spec, tensor, batch):
            profile[spec.name] = shapes
    request = {"target": "rtx", "model": str(folder / "model.onnx"), "profile": profile, "plugin_library": None}
    (folder / "request.json").write_text(json.dumps(request))


def run_workers(folders: list[Path]) -> None:
    """Build in one child process; if a graph takes it down, note that and go on with the next in another."""
    while left := [folder for folder in folders if not (folder / "reply.json").exists()]:
        done = subprocess.run([sys.executable, "-c", _WORKER, *map(str, left)], capture_output=True, text=True)
        crashed = next((folder for folder in left if not (folder / "reply.json").exists()), None)
        if crashed:
            message = f"exit code {done.returncode}: {done.stderr[-500:]}"
            (crashed / "reply.json").write_text(json.dumps({"stage": "crash", "message": message}))
