"""Minimal graphs with the preflight rule each is about, and a child process that asks the real TensorRT-RTX.

`python rtx_cases.py OUT FILE…` builds the files and appends a JSON line for each to OUT; the caller starts it again for
the rest when one takes the process down.
"""

import importlib
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx.parser

X, Y = "(float[2,8] x)", "(float[2,8] y)"
BATCH = {"min": 1, "opt": 2, "max": 8}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A graph in ONNX text form; `refused` is what both preflight and TensorRT-RTX must say."""

    name: str
    rule: str
    refused: bool
    text: str

    def model(self) -> onnx.ModelProto:
        return onnx.parser.parse_model(self.text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    accepted: bool
    reason: str


CASES: dict[str, Case] = {}


def _case(rule: str, name: str, refused: bool, signature: str, body: str, opset: int, weights: str, rest: str) -> None:
    text = f'<ir_version: 10, opset_import: ["" : {opset}, "other" : 1, "trt_compress" : 1, "com.microsoft" : 1]>\n'
    text += f"g {signature} {f'<{weights}>' if weights else ''} {{ {body} }} {rest}"
    key = f"{rule}/{name}"
    assert key not in CASES
    CASES[key] = Case(name=key, rule=rule, refused=refused, text=text)


def refuse(
    rule: str, name: str, signature: str, body: str, *, opset: int = 20, weights: str = "", rest: str = ""
) -> None:
    _case(rule, name, True, signature, body, opset, weights, rest)


def accept(
    rule: str, name: str, signature: str, body: str, *, opset: int = 20, weights: str = "", rest: str = ""
) -> None:
    _case(rule, name, False, signature, body, opset, weights, rest)


# ---- topk-k
_SORT = "(float[B,{n}] x) => (float[B,K] v, int64[B,K] i)"
_K = "k = Constant<value_ints=[{k}]>() v, i = TopK(x, k)"
_ALL = "k = Shape<start=1>(x) v, i = TopK(x, k)"
_HALF = "s = Shape<start=1>(x) two = Constant<value_ints=[2]>() k = Div(s, two) v, i = TopK(x, k)"
refuse("topk-k", "3841", _SORT.format(n=5000), _K.format(k=3841))
refuse("topk-k", "float16", _SORT.format(n=5000).replace("float[", "float16["), _K.format(k=4000))
refuse("topk-k", "sort_of_5000", _SORT.format(n=5000), _ALL)
refuse("topk-k", "half_of_8000", _SORT.format(n=8000), _HALF)
refuse("topk-k", "more_than_there_are", _SORT.format(n=10), _K.format(k=11))
refuse(
    "topk-k",
    "inside_a_loop",
    "(float[2,5000] x) => (float[2,5000] y)",
    "n = Constant<value_int=3>() t = Cast<to=9>(n) y = Loop<body = b (int64 i, bool c, float[2,5000] a) => "
    "(bool d, float[2,5000] e) { d = Identity(c) k = Constant<value_ints=[5000]>() e, j = TopK(a, k) }>(n, t, x)",
)
accept("topk-k", "3840", _SORT.format(n=5000), _K.format(k=3840))
accept("topk-k", "none", _SORT.format(n=100), _K.format(k=0))
accept("topk-k", "sort_of_3840", _SORT.format(n=3840), _ALL)
accept("topk-k", "half_of_5000", _SORT.format(n=5000), _HALF)
accept(
    "topk-k",
    "first_axis",
    "(float[16,4] x) => (float[K,4] v, int64[K,4] i)",
    _K.format(k=16).replace("TopK", "TopK<axis=0>"),
)
accept("topk-k", "int64", _SORT.format(n=100).replace("(float[", "(int64[").replace("float[", "int64["), _K.format(k=5))

# ---- scatter
_SCATTER = "(float[4,8] x, int64[4,3] i, float[4,3] u) => (float[4,8] y)"
_SCATTER_ND = "(float[4,8] x, int64[2,1] i, float[2,8] u) => (float[4,8] y)"
for _reduction in ("add", "mul", "max", "min"):
    refuse(
        "scatter-elements-reduction",
        _reduction,
        _SCATTER,
        f'y = ScatterElements<axis=1, reduction="{_reduction}">(x, i, u)',
    )
    refuse("scatter-nd-reduction", _reduction, _SCATTER_ND, f'y = ScatterND<reduction="{_reduction}">(x, i, u)')
accept("scatter-elements-reduction", "none", _SCATTER, 'y = ScatterElements<axis=1, reduction="none">(x, i, u)')
accept("scatter-elements-reduction", "absent", _SCATTER, "y = ScatterElements<axis=1>(x, i, u)")
accept("scatter-nd-reduction", "none", _SCATTER_ND, 'y = ScatterND<reduction="none">(x, i, u)')
accept("scatter-nd-reduction", "absent", _SCATTER_ND, "y = ScatterND(x, i, u)")

# ---- operators without an importer, or with one that finds no plugin
refuse("refused-operator", "NonZero", f"{X} => (int64[2,N] y)", "y = NonZero(x)")
refuse("refused-operator", "Compress", "(float[4,8] x, bool[4] m) => (float[N,8] y)", "y = Compress<axis=0>(x, m)")
refuse("refused-operator", "Unique", "(float[8] x) => (float[N] y)", "y = Unique(x)")
refuse("refused-operator", "DFT", "(float[1,8,1] x) => (float[1,8,2] y)", "y = DFT(x)")
refuse("refused-operator", "BitShift", "(uint8[4] x) => (uint8[4] y)", 'y = BitShift<direction="LEFT">(x, x)')
refuse("refused-operator", "BitwiseNot", "(int32[4] x) => (int32[4] y)", "y = BitwiseNot(x)")
for _name in ("And", "Or", "Xor"):
    refuse("refused-operator", f"Bitwise{_name}", "(int32[4] x) => (int32[4] y)", f"y = Bitwise{_name}(x, x)")
refuse("refused-operator", "Det", "(float[2,3,3] x) => (float[2] y)", "y = Det(x)")
refuse("refused-operator", "Multinomial", f"{X} => (int32[2,3] y)", "y = Multinomial<sample_size=3>(x)")
refuse("refused-operator", "Bernoulli", f"{X} => {Y}", "y = Bernoulli(x)")
refuse(
    "refused-operator",
    "DynamicQuantizeLinear",
    f"{X} => (uint8[2,8] y, float s, uint8 z)",
    "y, s, z = DynamicQuantizeLinear(x)",
)
refuse("refused-operator", "MatMulInteger", "(int8[2,8] x, int8[8,2] w) => (int32[2,2] y)", "y = MatMulInteger(x, w)")
refuse("refused-operator", "CumProd", f"{X} => {Y}", "a = Constant<value_int=1>() y = CumProd(x, a)", opset=26)
refuse(
    "refused-operator",
    "NonMaxSuppression",
    "(float[1,6,4] b, float[1,1,6] s) => (int64[N,3] y)",
    "m = Constant<value_ints=[3]>() t = Constant<value_floats=[0.5]>() y = NonMaxSuppression(b, s, m, t, t)",
)
refuse(
    "refused-operator",
    "RoiAlign",
    "(float[1,3,8,8] x, float[2,4] r, int64[2] b) => (float[2,3,1,1] y)",
    "y = RoiAlign(x, r, b)",
)
refuse(
    "refused-operator",
    "DeformConv",
    "(float[1,1,4,4] x, float[1,1,2,2] w, float[1,8,3,3] o) => (float[1,1,3,3] y)",
    "y = DeformConv<kernel_shape=[2,2]>(x, w, o)",
)
_PLAIN = {  # operators of vision transformers and token merging that must stay free of findings
    "argmax_last_index": (f"{X} => (int64[2,1] y)", "y = ArgMax<axis=1, select_last_index=1>(x)"),
    "cumsum_exclusive": (f"{X} => {Y}", "a = Constant<value_int=1>() y = CumSum<exclusive=1>(x, a)"),
    "gather_nd_batch": ("(float[B,8,4] x, int64[B,3,1] i) => (float[B,3,4] y)", "y = GatherND<batch_dims=1>(x, i)"),
    "gather_elements": ("(float[B,8,4] x, int64[B,3,4] i) => (float[B,3,4] y)", "y = GatherElements<axis=1>(x, i)"),
    "equal_int64": ("(int64[2,8] x) => (bool[2,8] y)", "y = Equal(x, x)"),
    "where_int64": ("(bool[2,8] c, int64[2,8] x) => (int64[2,8] y)", "y = Where(c, x, x)"),
    "mod_float": (f"{X} => {Y}", "y = Mod<fmod=1>(x, x)"),
    "trilu_bool": ("(bool[8,8] x) => (bool[8,8] y)", "y = Trilu<upper=0>(x)"),
    "range_of_batch": (
        "(float[B,8] x) => (int64[B] y)",
        "z = Constant<value_int=0>() o = Constant<value_int=1>() s = Shape<start=0, end=1>(x) q = Squeeze(s) "
        "y = Range(z, q, o)",
    ),
    "isnan_round": (f"{X} => (bool[2,8] y)", "z = Round(x) y = IsNaN(z)"),
    "empty_concat": (f"{X} => {Y}", "v, i = TopK(x, k) y = Concat<axis=1>(v, x)", "int64[1] k = {0}"),
    "stft": (
        "(float[1,64,1] x) => (float[1,F,K,2] y)",
        "n = Constant<value_int=16>() y = STFT(x, n, w)",
        "float[16] w = {1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1}",
    ),
}
for _name, (_signature, _body, *_weights) in _PLAIN.items():
    accept("refused-operator", _name, _signature, _body, weights="".join(_weights))

# ---- names that nobody knows
refuse("unknown-operator", "other_domain", f"{X} => {Y}", "y = other.Foo(x)")
refuse(
    "unknown-operator",
    "com_microsoft",
    f"{X} => (float[2,2] y)",
    "t = Transpose(x) y = com.microsoft.FusedMatMul(x, t)",
)
refuse("unknown-operator", "misspelt", f"{X} => {Y}", "y = Relv(x)")
_F = '<domain: "other", opset_import: ["" : 20]> Foo (a) => (b) { t = Relu(a) b = Neg(t) }'
accept("unknown-operator", "local_function", f"{X} => {Y}", "y = other.Foo(x)", rest=_F)
accept("unknown-operator", "local_function_twice", f"{X} => {Y}", "z = other.Foo(x) y = other.Foo(z)", rest=_F)
refuse(
    "plugin-not-taken",
    "node_left",
    f"{X} => {Y}",
    'y = trt_compress.TrtcFoo<plugin_version="1", plugin_namespace="">(x)',
)
accept("plugin-not-taken", "no_node", f"{X} => {Y}", "y = Relu(x)")
refuse("duplicate-tensor", "two_nodes", f"{X} => {Y}", "z = Relu(x) z = Neg(x) y = Abs(z)")
refuse("duplicate-tensor", "weight_and_node", f"{X} => {Y}", "k = Relu(x) y = Add(k, x)", weights="float k = {0.1}")
accept(
    "duplicate-tensor",
    "two_branches",
    "(float[2,8] x, bool c) => (float[2,8] y)",
    "y = If<then_branch = t () => (float[2,8] a) { a = Neg(x) }, "
    "else_branch = e () => (float[2,8] a) { a = Abs(x) }>(c)",
)
accept("duplicate-tensor", "same_node_name", f"{X} => {Y}", "[n] z = Relu(x) [n] y = Neg(z)")

# ---- quantization
_QDQ = "q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z)"
_COMPUTED = "a = Abs(x) m = ReduceMax<keepdims=0>(a) s = Mul(m, c) "
refuse("zero-point", "uint8_128", f"{X} => {Y}", _QDQ, weights="float s = {0.1}, uint8 z = {128}")
refuse("zero-point", "int8_3", f"{X} => {Y}", _QDQ, weights="float s = {0.1}, int8 z = {3}")
refuse("zero-point", "run_time", "(float[2,8] x, float s, int8 z) => (float[2,8] y)", _QDQ)
accept("zero-point", "zero", f"{X} => {Y}", _QDQ, weights="float s = {0.1}, int8 z = {0}")
accept("zero-point", "folded", f"{X} => {Y}", f"z = Cast<to=3>(i) {_QDQ}", weights="float s = {0.1}, int32 i = {0}")
accept("zero-point", "run_time_scale", f"{X} => {Y}", _COMPUTED + _QDQ, weights="int8 z = {0}, float c = {0.01}")
_PER_AXIS = "q = QuantizeLinear<axis=AXIS, output_dtype=3>(x, s) y = DequantizeLinear<axis=AXIS>(q, s)"
_ROWS = _PER_AXIS.replace("AXIS", "0")
refuse("dynamic-scale-axis", "tokens_of_a_batch", "(float[B,8] x, float[B] s) => (float[B,8] y)", _ROWS, opset=21)
refuse(
    "dynamic-scale-axis",
    "dequantize",
    "(int8[B,8] x, float[B] s) => (float[B,8] y)",
    "y = DequantizeLinear<axis=0>(x, s)",
    opset=21,
)
accept("dynamic-scale-axis", "static_rows", "(float[2,8] x, float[2] s) => (float[2,8] y)", _ROWS, opset=21)
accept(
    "dynamic-scale-axis",
    "static_axis",
    "(float[B,8] x, float[8] s) => (float[B,8] y)",
    _PER_AXIS.replace("AXIS", "1"),
    opset=21,
)
accept(
    "dynamic-scale-axis",
    "one_scale",
    "(float[B,8] x) => (float[B,8] y)",
    _COMPUTED + _QDQ,
    weights="int8 z = {0}, float c = {0.01}",
)

# ---- Attention
_QKV = "({t}[B,4,16,32] q, {t}[B,4,16,32] k, {t}[B,4,16,32] v) => ({t}[B,4,16,32] y)"
_HALF_QKV = _QKV.format(t="float16")
refuse("attention-fp32", "opset_23", _QKV.format(t="float"), "y = Attention(q, k, v)", opset=23)
refuse("attention-fp32", "opset_24", _QKV.format(t="float"), "y = Attention(q, k, v)", opset=24)
accept("attention-fp32", "float16", _HALF_QKV, "y = Attention<is_causal=1>(q, k, v)", opset=23)
accept("attention-fp32", "bfloat16", _QKV.format(t="bfloat16"), "y = Attention(q, k, v)", opset=23)
accept(
    "attention-fp32",
    "cast",
    _QKV.format(t="float"),
    "a = Cast<to=10>(q) b = Cast<to=10>(k) c = Cast<to=10>(v) d = Attention(a, b, c) y = Cast<to=1>(d)",
    opset=23,
)
_ONE = "(float16[2,4,16,32] q) => (float16[2,4,16,32] y)"
refuse("attention-shared-input", "all_three", _ONE, "y = Attention(q, q, q)", opset=23)
refuse("attention-shared-input", "identity", _ONE, "k = Identity(q) v = Neg(q) y = Attention(q, k, v)", opset=23)
accept("attention-shared-input", "key_is_value", _ONE, "k = Neg(q) y = Attention(q, k, k)", opset=23)
accept("attention-shared-input", "query_is_value", _ONE, "k = Neg(q) y = Attention(q, k, q)", opset=23)

# ---- forms of standard operators
refuse("operand-type", "matmul_int32", "(int32[2,8] x, int32[8,2] w) => (int32[2,2] y)", "y = MatMul(x, w)")
refuse("operand-type", "matmul_int64", "(int64[2,8] x, int64[8,2] w) => (int64[2,2] y)", "y = MatMul(x, w)")
refuse("operand-type", "gemm_int32", "(int32[2,8] x, int32[8,2] w) => (int32[2,2] y)", "y = Gemm(x, w)")
refuse(
    "operand-type",
    "einsum_int32",
    "(int32[2,8] x, int32[8,2] w) => (int32[2,2] y)",
    'y = Einsum<equation="ab,bc->ac">(x, w)',
)
_AXIS_1 = "a = Constant<value_ints=[1]>() "
refuse("operand-type", "any_of_bools", "(bool[2,8] x) => (bool[2,1] y)", _AXIS_1 + "y = ReduceMax(x, a)")
refuse("operand-type", "all_of_bools", "(bool[2,8] x) => (bool[2,1] y)", _AXIS_1 + "y = ReduceMin(x, a)")
accept("operand-type", "matmul_bfloat16", "(bfloat16[2,8] x, bfloat16[8,2] w) => (bfloat16[2,2] y)", "y = MatMul(x, w)")
accept(
    "operand-type", "einsum", "(float[2,8] x, float[8,2] w) => (float[2,2] y)", 'y = Einsum<equation="ab,bc->ac">(x, w)'
)
accept("operand-type", "max_of_int64", "(int64[2,8] x) => (int64[2,1] y)", _AXIS_1 + "y = ReduceMax(x, a)")
refuse("constant-input", "cumsum_axis", "(float[2,8] x, int64 a) => (float[2,8] y)", "y = CumSum(x, a)")
refuse("constant-input", "reduce_axes", "(float[2,8] x, int64[1] a) => (float[2,1] y)", "y = ReduceSum(x, a)")
_FROM_SHAPE = "s = Shape<start=0, end=1>(x) o = Constant<value_ints=[1]>() a = Sub(s, o) "
refuse("constant-input", "reduce_axes_of_a_shape", f"{X} => (float[2,1] y)", _FROM_SHAPE + "y = ReduceSum(x, a)")
_VALUES = "v = Constant<value_floats=[0.0,1.0]>() "
_DEPTH = "s = Shape<start={i}, end={j}>(x) d = Squeeze(s) y = OneHot(i, d, v)"
refuse(
    "constant-input",
    "onehot_depth_of_batch",
    "(int64[B,4] i, float[B,8] x) => (float[B,4,N] y)",
    _VALUES + _DEPTH.format(i=0, j=1),
)
accept(
    "constant-input",
    "onehot_depth_of_shape",
    "(int64[B,4] i, float[B,8] x) => (float[B,4,8] y)",
    _VALUES + _DEPTH.format(i=1, j=2),
)
accept("constant-input", "cumsum_axis_of_shape", f"{X} => {Y}", _FROM_SHAPE + "b = Squeeze(a) y = CumSum(x, b)")
refuse(
    "constant-input",
    "reduce_axes_folded",
    f"{X} => (float[2,1] y)",
    _AXIS_1 + "o = Constant<value_ints=[0]>() b = Add(a, o) y = ReduceSum(x, b)",
)
accept("constant-input", "reduce_all", f"{X} => (float[1,1] y)", "y = ReduceSum(x)")
refuse("static-shape", "eyelike_dynamic", "(float[B,8] x) => (float[B,8] y)", "y = EyeLike(x)")
refuse("static-shape", "hardmax_dynamic", "(float[B,N] x) => (float[B,N] y)", "y = Hardmax(x)")
accept("static-shape", "eyelike", "(float[8,8] x) => (float[8,8] y)", "y = EyeLike(x)")
accept("static-shape", "hardmax", "(float[B,8] x) => (float[B,8] y)", "y = Hardmax(x)")
_NORM = "(float[2,8] x, float[8] s, float[8] b) => (float[2,8] y"
refuse("extra-output", "layernorm_mean", f"{_NORM}, float[2,1] m)", "y, m = LayerNormalization(x, s, b)")
refuse("extra-output", "layernorm_unused", f"{_NORM})", "y, m, v = LayerNormalization(x, s, b)")
refuse(
    "extra-output",
    "maxpool_indices",
    "(float[1,1,4,4] x) => (float[1,1,3,3] y)",
    "y, i = MaxPool<kernel_shape=[2,2]>(x)",
)
refuse(
    "extra-output",
    "attention_cache",
    "(float16[2,4,16,32] q, float16[2,4,16,32] k, float16[2,4,16,32] v, float16[2,4,8,32] p, float16[2,4,8,32] r) => "
    "(float16[2,4,16,32] y, float16[2,4,24,32] a, float16[2,4,24,32] b)",
    "y, a, b = Attention(q, k, v, , p, r)",
    opset=23,
)
accept("extra-output", "layernorm", f"{_NORM})", "y = LayerNormalization(x, s, b)")
accept("extra-output", "maxpool", "(float[1,1,4,4] x) => (float[1,1,3,3] y)", "y = MaxPool<kernel_shape=[2,2]>(x)")
_TWICE = "s = Constant<value_floats=[1.0,1.0,2.0,2.0]>() y = Resize"
_IMAGE = "(float[1,3,8,8] x) => (float[1,3,16,16] y)"
refuse("attribute-value", "antialias", _IMAGE, _TWICE + '<mode="cubic", antialias=1>(x, , s)')
refuse(
    "attribute-value",
    "dilations",
    "(float[1,1,8,8] x) => (float[1,1,6,6] y)",
    "y = MaxPool<kernel_shape=[2,2], dilations=[2,2]>(x)",
)
refuse("attribute-value", "softcap", _HALF_QKV, "y = Attention<softcap=5.0>(q, k, v)", opset=23)
accept("attribute-value", "cubic", _IMAGE, _TWICE + '<mode="cubic", antialias=0>(x, , s)')
accept(
    "attribute-value",
    "dilations_of_1",
    "(float[1,1,8,8] x) => (float[1,1,7,7] y)",
    "y = MaxPool<kernel_shape=[2,2], dilations=[1,1]>(x)",
)
accept("attribute-value", "softcap_of_0", _HALF_QKV, "y = Attention<softcap=0.0>(q, k, v)", opset=23)

# ---- types
for _dtype in ("int16", "uint16", "uint32", "uint64", "complex64"):
    refuse("tensor-type", _dtype, f"({_dtype}[4] x) => ({_dtype}[4] y)", "y = Identity(x)")
refuse("tensor-type", "uint32_inside", "(float[4] x) => (float[4] y)", "u = Cast<to=12>(x) y = Cast<to=1>(u)")
refuse(
    "tensor-type",
    "int16_weight",
    "(float[2] x) => (float[2] y)",
    "u = Cast<to=1>(k) y = Add(x, u)",
    weights="int16[2] k = {3,4}",
)
refuse("tensor-type", "uint8_inside", "(float[4] x) => (float[4] y)", "u = Cast<to=2>(x) y = Cast<to=1>(u)")
refuse("tensor-type", "uint8_add", "(uint8[4] x) => (uint8[4] y)", "y = Add(x, x)")
refuse(
    "tensor-type",
    "uint8_unsqueeze",
    "(uint8[4] x) => (float[1,4] y)",
    "o = Constant<value_ints=[0]>() z = Unsqueeze(x, o) y = Cast<to=1>(z)",
)
refuse("tensor-type", "cast_to_fp8", f"{X} => {Y}", "f = Cast<to=17>(x) y = Cast<to=1>(f)")
accept("tensor-type", "uint8_input", "(uint8[4] x) => (int32[4] y)", "y = Cast<to=6>(x)")
accept("tensor-type", "uint8_output", "(float[4] x) => (uint8[4] y)", "y = Cast<to=2>(x)")
accept(
    "tensor-type",
    "uint8_weight",
    "(float[2] x) => (float[2] y)",
    "u = Cast<to=1>(k) y = Add(x, u)",
    weights="uint8[2] k = {3,4}",
)
accept("tensor-type", "uint8_quantized", f"{X} => {Y}", _QDQ, weights="float s = {0.1}, uint8 z = {0}")
accept("tensor-type", "int8_add", "(int8[4] x) => (int8[4] y)", "y = Add(x, x)")

# ---- taken without complaint, though not as written: preflight warns
accept("float64", "computed_in_float32", "(double[2,8] x) => (double[2,8] y)", "y = Relu(x)")
accept("opset", "28", f"{X} => {Y}", "y = Relu(x)", opset=28)
accept("foreign-domain", "relu", f"{X} => {Y}", "y = other.Relu(x)")


def verdicts(names: list[str], folder: Path) -> dict[str, Verdict]:
    """What TensorRT-RTX says to each case; a case that takes the child process down counts as refused."""
    return model_verdicts({name: CASES[name].model() for name in names}, folder)


def model_verdicts(models: Mapping[str, onnx.ModelProto], folder: Path) -> dict[str, Verdict]:
    """What TensorRT-RTX says to each model; one that takes the child process down counts as refused."""
    files = {}
    for number, (name, model) in enumerate(models.items()):
        files[name] = folder / f"{number}.onnx"
        files[name].write_bytes(model.SerializeToString())
    said: dict[str, Verdict] = {}
    for attempt in range(len(files)):
        left = [name for name in files if name not in said]
        if not left:
            break
        out = folder / f"verdicts{attempt}.jsonl"
        out.touch()
        command = [sys.executable, __file__, str(out), *(str(files[name]) for name in left)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        for name, line in zip(left, out.read_text().splitlines(), strict=False):
            accepted, reason = json.loads(line)
            said[name] = Verdict(accepted=accepted, reason=reason)
        if done.returncode == 0:
            break
        if done.returncode > 0:
            raise RuntimeError(done.stderr)
        crashed = next(name for name in left if name not in said)
        said[crashed] = Verdict(accepted=False, reason=f"killed by signal {-done.returncode}")
    return said


def _judge(trt: Any, builder: Any, logger: Any, model: bytes) -> tuple[bool, str]:
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model):
        return False, "; ".join(parser.get_error(index).desc() for index in range(parser.num_errors))
    config, profile, dynamic = builder.create_builder_config(), builder.create_optimization_profile(), False
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shapes = [[size if dim < 0 else dim for dim in tensor.shape] for size in BATCH.values()]
        if tensor.is_shape_tensor:
            profile.set_shape_input(tensor.name, [0], [1], [1])
        elif -1 in tuple(tensor.shape):
            profile.set_shape(tensor.name, *shapes)
        dynamic |= tensor.is_shape_tensor or -1 in tuple(tensor.shape)
    if dynamic:
        config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    return engine is not None, "" if engine is not None else "the builder refused it"


def main(out: str, files: list[str]) -> None:
    trt: Any = importlib.import_module("tensorrt_rtx")
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    with open(out, "a", buffering=1) as file:
        for name in files:
            print(json.dumps(_judge(trt, builder, logger, Path(name).read_bytes())), file=file)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
