"""Lowering: bodies added, stripped or inlined; the given model is never changed and all forms compute the same."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx.checker
import onnx.parser
import onnxruntime
import pytest
from onnx import ModelProto

from trt_compress.export.lower import (
    add_bodies,
    inline_bodies,
    lower_for_target,
    operator_nodes,
    opset_of,
    strip_bodies,
)
from trt_compress.export.targets import TARGETS, get_target
from trt_compress.plugins.spec import DOMAIN

# Two merges of different counts, so that attributes and inner names of two calls must not be mixed up.
_MERGE = 'order = 0, plugin_version = "1", plugin_namespace = "trt_compress">'
TEXT = f"""<ir_version: 10, opset_import: ["" : 20, "trt_compress" : 1]>
g (float[B,9,4] x, float[B,9,1] s) => (float[B,5,4] y, int64[B,7] second_dest) {{
  a, a_size, first_dest = trt_compress.TrtcTokenMerge<num_merged = 2, num_protected = 1, {_MERGE}(x, x, s)
  half = Constant<value_float = 0.5>()
  b = Mul(a, half)
  y, y_size, second_dest = trt_compress.TrtcTokenMerge<num_merged = 2, num_protected = 0, {_MERGE}(b, b, a_size)
}}"""
OTHER = '<domain: "other", opset_import: ["" : 20]> Twice (a) => (b) { b = Add(a, a) }'
FORMS: list[Callable[[ModelProto], ModelProto]] = [add_bodies, strip_bodies, inline_bodies]


@pytest.fixture
def model() -> ModelProto:
    made = onnx.parser.parse_model(TEXT)
    for node, name in zip(
        made.graph.node, ("blocks.0/TokenMerge", "half", "scale", "blocks.1/TokenMerge"), strict=True
    ):
        node.name = name
    return made


def run(model: ModelProto) -> list[np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    feeds = {"x": rng.normal(size=(3, 9, 4)).astype(np.float32), "s": np.ones((3, 9, 1), np.float32)}
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return [np.asarray(output) for output in session.run(None, feeds)]


@pytest.mark.parametrize("form", FORMS)
def test_the_given_model_is_not_changed(model: ModelProto, form: Callable[[ModelProto], ModelProto]) -> None:
    before = model.SerializeToString(deterministic=True)
    assert form(model) is not model
    assert model.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("form", FORMS)
def test_twice_is_the_same_as_once(model: ModelProto, form: Callable[[ModelProto], ModelProto]) -> None:
    assert form(form(model)) == form(model)


def test_bodies_are_added_once_for_each_operator_used(model: ModelProto) -> None:
    lowered = add_bodies(model)
    assert [(function.domain, function.name) for function in lowered.functions] == [(DOMAIN, "TrtcTokenMerge")]
    assert opset_of(lowered) == 20
    onnx.checker.check_model(lowered, full_check=True)
    assert operator_nodes(lowered) == {"TrtcTokenMerge": 2}


def test_stripping_leaves_foreign_functions(model: ModelProto) -> None:
    lowered = add_bodies(model)
    lowered.functions.append(onnx.parser.parse_function(OTHER))
    assert [function.name for function in strip_bodies(lowered).functions] == ["Twice"]


def test_an_old_body_is_replaced(model: ModelProto) -> None:
    stale = add_bodies(model)
    del stale.functions[0].node[1:]
    assert add_bodies(stale) == add_bodies(model)


def test_inlined_there_are_only_standard_operators_with_names_of_their_own(model: ModelProto) -> None:
    lowered = inline_bodies(model)
    assert not lowered.functions
    assert [entry.domain for entry in lowered.opset_import] == [""]
    assert {node.domain for node in lowered.graph.node} == {""}
    names = [node.name for node in lowered.graph.node]
    values = [value for node in lowered.graph.node for value in node.output]
    assert len(set(names)) == len(names) and len(set(values)) == len(values)
    assert all(
        name.startswith(("blocks.0/TokenMerge/", "blocks.1/TokenMerge/")) or name in ("half", "scale") for name in names
    )
    assert not [attribute for node in lowered.graph.node for attribute in node.attribute if attribute.ref_attr_name]
    onnx.checker.check_model(lowered, full_check=True)


def test_inlining_keeps_inputs_outputs_and_outer_names(model: ModelProto) -> None:
    lowered = inline_bodies(model)
    assert lowered.graph.input == model.graph.input and lowered.graph.output == model.graph.output
    values = {value for node in lowered.graph.node for value in node.output}
    assert {"a", "a_size", "first_dest", "y", "y_size", "second_dest"} <= values


def test_all_runnable_forms_compute_the_same(model: ModelProto) -> None:
    added, inlined = run(add_bodies(model)), run(inline_bodies(model))
    assert added[0].shape == (3, 5, 4) and added[1].shape == (3, 7)
    for first, second in zip(added, inlined, strict=True):
        np.testing.assert_array_equal(first, second)


def test_without_operators_nothing_is_added() -> None:
    plain = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 18]> g (float[2] x) => (float[2] y) { y = Neg(x) }'
    )
    assert add_bodies(plain) == strip_bodies(plain) == plain
    assert opset_of(plain) == 18


def test_a_missing_import_of_the_domain_is_added(model: ModelProto) -> None:
    kept = [entry for entry in model.opset_import if entry.domain != DOMAIN]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    assert {entry.domain: entry.version for entry in add_bodies(model).opset_import} == {"": 20, DOMAIN: 1}


@pytest.mark.parametrize(
    ("target", "form"),
    [("cpu", add_bodies), ("x86-trt10", add_bodies), ("jetson-orin-jp6", strip_bodies), ("rtx", inline_bodies)],
)
def test_each_target_gets_its_form(model: ModelProto, target: str, form: Callable[[ModelProto], ModelProto]) -> None:
    assert lower_for_target(model, get_target(target)) == form(model)


def test_every_target_has_a_form(model: ModelProto) -> None:
    for target in TARGETS.values():
        lower_for_target(model, target)
