"""Graphs that are not sound, and what each reader of ONNX says to them: findings, and the libraries themselves."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from trt_compress.export.preflight import Finding, preflight
from trt_compress.export.soundness import KINDS
from trt_compress.export.targets import get_target

Node = helper.make_node
WEIGHT = numpy_helper.from_array(np.ones(8, np.float32), "w")


def value(name: str, dtype: int = TensorProto.FLOAT, shape: tuple[int, ...] = (2, 8)) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def model(
    nodes: list[NodeProto],
    *,
    inputs: tuple[ValueInfoProto, ...] = (value("x"),),
    outputs: tuple[ValueInfoProto, ...] = (value("y"),),
    weights: tuple[TensorProto, ...] = (),
    opset: int = 20,
    ir_version: int = 10,
    functions: tuple[onnx.FunctionProto, ...] = (),
) -> ModelProto:
    graph = helper.make_graph(nodes, "g", list(inputs), list(outputs), list(weights))
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("my", 1), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=ir_version, functions=list(functions))


def function(name: str, nodes: list[NodeProto]) -> onnx.FunctionProto:
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("my", 1)]
    return helper.make_function("my", name, ["a"], ["b"], nodes, imports)


def changed(change: Callable[[ModelProto], None], *, weights: tuple[TensorProto, ...] = ()) -> ModelProto:
    nodes = [Node("Add", ["x", "w"], ["y"])] if weights else [Node("Relu", ["x"], ["y"])]
    made = model(nodes, weights=weights)
    change(made)
    return made


def weighted(change: Callable[[TensorProto], None]) -> ModelProto:
    weight = TensorProto()
    weight.CopyFrom(WEIGHT)
    change(weight)
    return model([Node("Add", ["x", "w"], ["y"])], weights=(weight,))


def branch(nodes: list[NodeProto], output: str) -> GraphProto:
    return helper.make_graph(nodes, "b", [], [value(output)])


def choice(then: GraphProto, *before: NodeProto) -> ModelProto:
    other = branch([Node("Abs", ["x"], ["o"])], "o")
    node = Node("If", ["c"], ["y"], then_branch=then, else_branch=other)
    return model([*before, node], inputs=(value("x"), value("c", TensorProto.BOOL, ())))


def _shorten(tensor: TensorProto) -> None:
    tensor.raw_data = tensor.raw_data[:5]


def _outside(tensor: TensorProto) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../elsewhere.bin")


def _negative(tensor: TensorProto) -> None:
    tensor.dims[0] = -8


def _no_such_type(tensor: TensorProto) -> None:
    tensor.data_type = 99


def _repeat_attribute(made: ModelProto) -> None:
    made.graph.node[0].CopyFrom(Node("Softmax", ["x"], ["y"], axis=1))
    made.graph.node[0].attribute.append(helper.make_attribute("axis", 0))


def _input_without_type(made: ModelProto) -> None:
    made.graph.input[0].ClearField("type")


def _sparse(made: ModelProto) -> None:
    values, places = helper.make_tensor("w", 1, [1], [1.0]), helper.make_tensor("i", TensorProto.INT64, [1], [2])
    made.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [8]))
    made.graph.node[0].CopyFrom(Node("Add", ["x", "w"], ["y"]))


RELU = Node("Relu", ["x"], ["y"])
CALL = [Node("F", ["x"], ["y"], domain="my")]
IN_F = [Node("F", ["a"], ["b"], domain="my")]
# The model, the rule, and whether TensorRT-RTX and ONNX Runtime refuse it.
CASES: dict[str, tuple[ModelProto, str, bool, bool]] = {
    "cycle": (
        model([Node("Add", ["x", "b"], ["a"]), Node("Neg", ["a"], ["b"]), Node("Abs", ["b"], ["y"])]),
        "graph-cycle",
        True,
        True,
    ),
    "reads_itself": (model([Node("Add", ["x", "y"], ["y"])]), "graph-cycle", True, True),
    "cycle_in_a_branch": (
        choice(branch([Node("Add", ["x", "q"], ["p"]), Node("Neg", ["p"], ["q"])], "q")),
        "graph-cycle",
        True,
        True,
    ),
    "ghost_input": (model([Node("Add", ["x", "ghost"], ["y"])]), "undefined-tensor", True, True),
    "ghost_output": (model([RELU], outputs=(value("y"), value("ghost"))), "undefined-tensor", True, True),
    "ghost_in_a_branch": (choice(branch([Node("Neg", ["ghost"], ["p"])], "p")), "undefined-tensor", True, True),
    "inner_name_read_outside": (
        model(
            [
                Node(
                    "If",
                    ["c"],
                    ["q"],
                    then_branch=branch([Node("Neg", ["x"], ["p"])], "p"),
                    else_branch=branch([Node("Abs", ["x"], ["o"])], "o"),
                ),
                Node("Add", ["q", "p"], ["y"]),
            ],
            inputs=(value("x"), value("c", TensorProto.BOOL, ())),
        ),
        "undefined-tensor",
        True,
        True,
    ),
    "made_twice": (
        model([Node("Relu", ["x"], ["z"]), Node("Neg", ["x"], ["z"]), Node("Abs", ["z"], ["y"])]),
        "duplicate-tensor",
        True,
        True,
    ),
    "input_twice": (model([RELU], inputs=(value("x"), value("x"))), "duplicate-tensor", True, True),
    "weight_twice": (model([Node("Add", ["x", "w"], ["y"])], weights=(WEIGHT, WEIGHT)), "weight-twice", True, False),
    "unsorted": (model([Node("Neg", ["a"], ["y"]), Node("Relu", ["x"], ["a"])]), "node-order", False, False),
    "unsorted_in_a_function": (
        model(CALL, functions=(function("F", [Node("Neg", ["q"], ["b"]), Node("Relu", ["a"], ["q"])]),)),
        "inner-order",
        True,
        True,
    ),
    "shadowed": (
        choice(branch([Node("Neg", ["x"], ["z"])], "z"), Node("Relu", ["x"], ["z"])),
        "shadowed-tensor",
        False,
        True,
    ),
    "outer_given_out": (choice(branch([], "x")), "outer-output", False, True),
    "recursive": (model(CALL, functions=(function("F", IN_F),)), "recursive-function", True, True),
    "mutually_recursive": (
        model(CALL, functions=(function("F", [Node("G", ["a"], ["b"], domain="my")]), function("G", IN_F))),
        "recursive-function",
        True,
        True,
    ),
    "called_with_too_much": (
        model([Node("F", ["x", "x"], ["y"], domain="my")], functions=(function("F", [Node("Relu", ["a"], ["b"])]),)),
        "function-call",
        True,
        True,
    ),
    "same_node_name": (
        model([Node("Relu", ["x"], ["z"], name="n"), Node("Neg", ["z"], ["y"], name="n")]),
        "node-name",
        False,
        True,
    ),
    "short_weight": (weighted(_shorten), "tensor-data", True, True),
    "negative_weight": (weighted(_negative), "tensor-data", True, True),
    "weight_outside": (weighted(_outside), "tensor-data", True, True),
    "weight_of_no_type": (weighted(_no_such_type), "tensor-data", True, True),
    "input_without_type": (changed(_input_without_type), "input-type", True, True),
    "sparse": (changed(_sparse), "sparse-weight", True, False),
    "unknown_attribute": (model([Node("Relu", ["x"], ["y"], foo=1)]), "unknown-attribute", False, True),
    "attribute_of_another_type": (model([Node("Softmax", ["x"], ["y"], axis=1.0)]), "attribute-type", False, True),
    "attribute_twice": (changed(_repeat_attribute), "attribute-type", False, True),
    "missing_attribute": (model([Node("Concat", ["x", "x"], ["y"])]), "missing-attribute", True, True),
    "no_operands": (model([Node("Relu", [], ["y"])]), "operand-count", True, True),
    "too_new_for_its_opset": (model([Node("Gelu", ["x"], ["y"])], opset=19), "operator-version", False, True),
    "declared_otherwise": (model([RELU], outputs=(value("y", TensorProto.INT32),)), "declared-type", False, True),
    "not_of_microsoft": (
        model([Node("NotAnOp", ["x"], ["y"], domain="com.microsoft")]),
        "unknown-operator",
        True,
        True,
    ),
    "future_opset": (model([RELU], opset=99), "opset", False, True),
    "future_ir": (model([RELU], ir_version=99), "ir-version", False, True),
    "matrices_that_do_not_fit": (model([Node("MatMul", ["x", "x"], ["y"])]), "shape-inference", True, True),
}


def errors(made: ModelProto, target: str) -> list[Finding]:
    return [finding for finding in preflight(made, get_target(target)) if finding.severity == "error"]


@pytest.mark.parametrize("name", CASES)
def test_onnxruntime_and_preflight_say_the_same(name: str) -> None:
    made, rule, _, refused = CASES[name]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        onnxruntime.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception:
        loads = False
    else:
        loads = True
    assert loads is not refused
    found = errors(made, "cpu")
    assert (rule in {finding.rule for finding in found}) if refused else not found


@pytest.mark.parametrize("name", CASES)
def test_the_flaw_is_an_error_where_tensorrt_rtx_refuses_it_and_a_warning_where_it_does_not(name: str) -> None:
    made, rule, refused, _ = CASES[name]
    found = preflight(made, get_target("rtx"))
    severities = {finding.severity for finding in found if finding.rule == rule}
    assert severities == {"error"} if refused else "error" not in {finding.severity for finding in found}


def test_what_tensorrt_rtx_says_of_unsound_graphs(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs the real parser: pip install 'trt-compress[rtx]'")
    from tests.export.rtx_cases import model_verdicts

    said = model_verdicts({name: case[0] for name, case in CASES.items()}, tmp_path)
    assert {name: not verdict.accepted for name, verdict in said.items()} == {
        name: refused for name, (_, _, refused, _) in CASES.items()
    }


def test_a_finding_names_the_circle() -> None:
    (finding,) = errors(CASES["cycle"][0], "rtx")
    assert finding.message == "nodes wait for each other in a circle: a → b → a" or "b → a → b" in finding.message
    (finding,) = errors(CASES["mutually_recursive"][0], "cpu")
    assert "my::F → my::G → my::F" in finding.message


def test_every_kind_of_flaw_can_be_found() -> None:
    by_model = {
        finding.rule for case in CASES.values() for t in ("rtx", "cpu") for finding in preflight(case[0], get_target(t))
    }
    rare = {"function-twice", "opset-import", "output-type", "no-output", "bad-node"}
    assert set(KINDS) - rare <= by_model
