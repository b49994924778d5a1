"""Preflight: its rules against the real TensorRT-RTX, and what the other targets are told."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import onnx.defs
import onnx.helper
import onnx.parser
import pytest

from tests.export import parser_cases  # noqa: F401  adds its cases
from tests.export.rtx_cases import CASES, Case, Verdict, verdicts
from trt_compress.errors import ConfigError
from trt_compress.export.preflight import RULES, Finding, preflight
from trt_compress.export.subject import Subject
from trt_compress.export.targets import TARGETS, get_target

RTX = get_target("rtx")


def errors(model: onnx.ModelProto, target: str, *, lowered: bool = True) -> list[Finding]:
    return [item for item in preflight(model, get_target(target), lowered=lowered) if item.severity == "error"]


def graph(text: str, imports: str = "", site: str = "") -> onnx.ModelProto:
    """A model from text; a site becomes the name of the first node, which the text form has no way to write."""
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20{imports}]>\n{text}')
    if site:
        model.graph.node[0].name = site
    return model


@contextmanager
def rtx_parser() -> Iterator[tuple[Any, Any]]:
    """A parser and the network it fills."""
    trt = pytest.importorskip("tensorrt_rtx", reason="needs the real parser: pip install 'trt-compress[rtx]'")
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    yield trt.OnnxParser(network, logger), network


def layers_parsed(model: onnx.ModelProto) -> list[str]:
    with rtx_parser() as (parser, network):
        assert parser.parse(model.SerializeToString())
        return [network.get_layer(index).type.name for index in range(network.num_layers)]


# ---- the rules are what TensorRT-RTX says ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Verdict]]:
    pytest.importorskip("tensorrt_rtx", reason="needs the real parser: pip install 'trt-compress[rtx]'")
    yield verdicts(list(CASES), tmp_path_factory.mktemp("verdicts"))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_verdict_equals_that_of_tensorrt_rtx(case: Case, said: dict[str, Verdict]) -> None:
    verdict = said[case.name]
    found = {finding.rule for finding in errors(case.model(), "rtx")}
    assert verdict.accepted is not case.refused, verdict.reason
    assert case.rule in found if case.refused else not found, verdict.reason


def test_every_rule_of_rtx_has_a_refused_and_an_accepted_case() -> None:
    always = {"refused-operator", "unknown-operator", "plugin-not-taken", "duplicate-tensor"}
    for refused in (True, False):
        assert {*RTX.limits, *always} <= {case.rule for case in CASES.values() if case.refused is refused}
    assert {case.rule for case in CASES.values()} <= set(RULES)


def test_refused_operators_are_those_without_an_importer(said: dict[str, Verdict]) -> None:
    with rtx_parser() as (parser, _):
        schemas = [schema for schema in onnx.defs.get_all_schemas() if not schema.domain]
        known = {schema.name for schema in schemas if schema.since_version <= RTX.max_opset}
        without_importer = {name for name in known | RTX.refused_ops if not parser.supports_operator(name)}
    by_plugin = {"NonMaxSuppression", "NonZero", "RoiAlign"}  # imported, and then without a kernel; see the cases
    assert without_importer == RTX.refused_ops - by_plugin
    assert {f"refused-operator/{name}" for name in by_plugin} <= CASES.keys()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("float64/computed_in_float32", "tensor 'x' is float64 and is computed in float32"),
        ("opset/28", "opset 28 is newer than 24, the newest that 'rtx' is known to read"),
        ("foreign-domain/relu", "other::Relu is read as the standard Relu, since the parser ignores the domain"),
    ],
)
def test_what_is_taken_but_not_as_written_is_a_warning(name: str, message: str) -> None:
    findings = preflight(CASES[name].model(), RTX, lowered=True)
    assert {finding.severity for finding in findings} == {"warning"}
    assert message in findings[0].message


def test_the_parser_does_ignore_a_foreign_domain() -> None:
    assert layers_parsed(CASES["foreign-domain/relu"].model()) == ["ACTIVATION"]


# ---- findings say where and what to do ------------------------------------------------------------------------------


def test_a_finding_names_the_node_the_rule_and_the_fix() -> None:
    (finding,) = errors(graph("g (float[2,8] x) => (int64[2,N] y) { [pick] y = NonZero(x) }"), "rtx")
    assert (finding.node, finding.rule) == ("pick", "refused-operator")
    assert finding.message == "NonZero is not implemented on 'rtx'"
    assert "constant count" in finding.fix


def test_a_node_without_a_name_is_called_by_its_output() -> None:
    (finding,) = errors(graph("g (float[2,8] x) => (int64[2,N] where) { where = NonZero(x) }"), "rtx")
    assert finding.node == "where"


def test_topk_says_the_count_and_the_limit() -> None:
    (finding,) = errors(CASES["topk-k/half_of_8000"].model(), "rtx")
    assert "K = 4000 exceeds 3840" in finding.message


def test_weights_are_not_needed(tmp_path: Path) -> None:
    model = graph("g (float[2,100] x) => (float[2,100] y) <float[100,100] w = {}> { y = MatMul(x, w) }")
    model.graph.initializer[0].raw_data = bytes(4 * 100 * 100)
    path = tmp_path / "model.onnx"
    onnx.save_model(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    (tmp_path / "weights.bin").unlink()
    assert preflight(path, RTX) == ()


def test_targets_in_turn_find_what_each_finds_alone(exported: Callable[..., Path]) -> None:
    """Forms that targets share are made once; operators whose bodies are looked into, and findings, are in it."""
    path = exported("tome:num_merged=4") / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    model.graph.node.append(onnx.helper.make_node("ScatterElements", ["a", "i", "u"], ["s"], "s", reduction="add"))
    for tensor, kind in (("a", 1), ("i", 7), ("u", 1)):
        model.graph.input.append(onnx.helper.make_tensor_value_info(tensor, kind, [4, 4]))
    for of in (onnx.load(path, load_external_data=False), model):
        subject = Subject(of)
        alone = {name: preflight(of, target) for name, target in TARGETS.items()}
        assert {name: preflight(subject, target) for name, target in TARGETS.items()} == alone
        assert {name: preflight(subject, TARGETS[name]) for name in [*TARGETS][::-1]} == alone
        assert any(alone.values())


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a model at all", b"\x08"], ids=["empty", "zip", "cut"])
def test_a_file_that_is_not_onnx_is_one_sentence(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="model '.*model.onnx' is not an ONNX file, or is cut off; export it again"):
        preflight(path, RTX)


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="model '.*gone.onnx' cannot be read: No such file or directory; give an ONNX"
    ):
        preflight(tmp_path / "gone.onnx", RTX)


# ---- the other targets ----------------------------------------------------------------------------------------------

_HALF = "g (float16[2,8] x) => (float16[2,8] y) { y = Relu(x) }"


@pytest.mark.parametrize("target", TARGETS)
def test_a_plain_graph_has_no_findings_anywhere(target: str) -> None:
    assert preflight(graph("g (float[B,8] x) => (float[B,8] y) { y = Relu(x) }"), get_target(target)) == ()


@pytest.mark.parametrize(
    ("target", "dtype", "named"),
    [("jetson-orin-jp6", "float8e4m3fn", "fp8"), ("jetson-orin-jp7", "bfloat16", "bf16"), ("cpu", "bfloat16", "bf16")],
)
def test_a_precision_the_target_lacks_is_an_error(target: str, dtype: str, named: str) -> None:
    model = graph(_HALF.replace("float16", dtype))
    (finding,) = errors(model, target)
    assert finding.rule == "precision"
    assert finding.message == f"tensor 'x' is {named}, which '{target}' does not compute in"
    assert errors(graph(_HALF), target) == []
    assert errors(model, "jetson-thor") == []


def test_an_opset_newer_than_jetpack_6_reads_is_an_error() -> None:
    model = CASES["attention-fp32/float16"].model()
    (finding,) = [item for item in errors(model, "jetson-orin-jp6") if item.rule == "opset"]
    assert finding.message == "opset 23 is newer than 20, the newest that 'jetson-orin-jp6' is known to read"
    assert finding.fix == "export with opset 20 or older"


@pytest.mark.parametrize("name", ["scatter-elements-reduction/add", "attention-fp32/opset_23"])
def test_what_only_rtx_was_seen_to_refuse_is_a_warning_elsewhere(name: str) -> None:
    case = CASES[name]
    severities = {item.severity for item in preflight(case.model(), get_target("x86-trt11")) if item.rule == case.rule}
    assert severities == {"warning"}
    assert preflight(case.model(), get_target("cuda"), lowered=True) == () or case.rule == "attention-fp32"


def test_onnxruntime_knows_its_own_domains_and_no_others() -> None:
    text = "g (float[2,8] x) => (float[2,8] y) {{ y = {}.Gelu(x) }}"
    assert errors(graph(text.format("com.microsoft"), ', "com.microsoft" : 1'), "cpu") == []
    (finding,) = errors(graph(text.format("other"), ', "other" : 1'), "cpu")
    assert finding.message == "other::Gelu has neither a function body in the file nor a kernel on 'cpu'"


# ---- operators ------------------------------------------------------------------------------------------------------

_IMPORT = ', "trt_compress" : 1'
_BODY = '<domain: "trt_compress", opset_import: ["" : 20]> TrtcFoo (a) => (b) { b = Neg(a) }'
_NODE = "g (float[2,8] x) => (float[2,8] y) { y = trt_compress.TrtcFoo<%s>(x) }"
_ATTRIBUTES = 'plugin_version = "1", plugin_namespace = ""'


def test_a_body_in_the_file_hides_the_plugin_on_jetpack_6() -> None:
    model = graph(_NODE % _ATTRIBUTES + _BODY, _IMPORT)
    (finding,) = errors(model, "jetson-orin-jp6")
    assert finding.rule == "function-hides-plugin"
    assert finding.message == "the body of 'TrtcFoo' is in the file, and 'jetson-orin-jp6' prefers it to the plugin"
    assert errors(model, "jetson-thor") == []
    assert errors(graph(_NODE % _ATTRIBUTES, _IMPORT), "jetson-orin-jp6") == []


def test_missing_plugin_attributes_are_named() -> None:
    (finding,) = errors(graph(_NODE % 'plugin_version = "1"', _IMPORT, "blocks.3/Foo"), "x86-trt11")
    assert (finding.rule, finding.node) == ("plugin-attributes", "blocks.3/Foo")
    assert "TrtcFoo lacks plugin_namespace" in finding.message


def test_an_operator_left_for_rtx_would_end_the_process() -> None:
    (finding,) = errors(graph(_NODE % _ATTRIBUTES + _BODY, _IMPORT), "rtx")
    assert finding.rule == "plugin-not-taken"
    assert "one ends its process" in finding.message


def test_an_operator_without_a_body_is_an_error_for_onnxruntime() -> None:
    (finding,) = errors(graph(_NODE % _ATTRIBUTES, _IMPORT), "cpu")
    assert finding.rule == "unknown-operator"
    assert errors(graph(_NODE % _ATTRIBUTES + _BODY, _IMPORT), "cpu") == []


def test_a_function_named_as_a_standard_operator_is_never_called() -> None:
    body = '<domain: "other", opset_import: ["" : 20]> Relu (a) => (b) { b = Neg(a) }'
    model = graph("g (float[2,8] x) => (float[2,8] y) { y = other.Relu(x) }" + body, ', "other" : 1')
    (finding,) = errors(model, "rtx")
    assert finding.rule == "function-name"
    assert "has the name of a standard operator, which TensorRT takes instead" in finding.message
    assert layers_parsed(model) == ["ACTIVATION"]  # Relu, where the function says Neg


def test_operators_are_lowered_before_the_rules_look() -> None:
    text = "g (float[B,17,8] x, float[B,17,1] s) => (float[B,15,8] y) { y, t, d = "
    text += "trt_compress.TrtcTokenMerge<num_merged=2, num_protected=1, order=0, " + _ATTRIBUTES + ">(x, x, s) }"
    model = graph(text, _IMPORT, "blocks.0/TokenMerge")
    for target in TARGETS:
        assert errors(model, target, lowered=False) == [], target
