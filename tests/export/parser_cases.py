"""More graphs that the real TensorRT-RTX was asked about: forms of operators, ranks, control flow, Attention.

They join the cases of `rtx_cases`; a pair of a refused and an accepted graph differs in the one thing that counts.
"""

from tests.export.rtx_cases import accept, refuse

X, Y = "(float[2,8] x)", "(float[2,8] y)"

# ---- operand types
for _op, _dtype in (("Relu", "int32"), ("HardSwish", "bfloat16"), ("Mish", "bfloat16")):
    refuse("operand-type", f"{_op}_{_dtype}", f"({_dtype}[2,8] x) => ({_dtype}[2,8] y)", f"y = {_op}(x)")
    accept("operand-type", f"{_op}_float16", "(float16[2,8] x) => (float16[2,8] y)", f"y = {_op}(x)")
refuse("operand-type", "mod_float", f"{X} => {Y}", "y = Mod(x, x)")
accept("operand-type", "mod_with_fmod", f"{X} => {Y}", "y = Mod<fmod=1>(x, x)")
_TO_5 = "(float a) => (float[N] y)"
_ENDS = "float z = {0}, float o = {1}"
refuse("operand-type", "range_float", _TO_5, "y = Range(z, a, o)", weights=_ENDS)
accept(
    "operand-type", "range_constant", "(float[2] a) => (float[2] y)", "r = Range(z, o, o) y = Add(a, r)", weights=_ENDS
)
for _op in ("ReduceL2", "ReduceLogSumExp"):
    refuse("operand-type", f"{_op}_int32", "(int32[2,8] x) => (int32[1,1] y)", f"y = {_op}(x)")
accept("operand-type", "reduce_l1_int32", "(int32[2,8] x) => (int32[1,1] y)", "y = ReduceL1(x)")
refuse(
    "operand-type",
    "resize_int32",
    "(int32[1,2,8,8] x) => (int32[1,2,16,16] y)",
    "y = Resize(x, , s)",
    weights="float[4] s = {1,1,2,2}",
)
refuse(
    "operand-type",
    "conv_transpose_bfloat16",
    "(bfloat16[1,2,6,6] x, bfloat16[2,2,3,3] w) => (bfloat16[1,2,8,8] y)",
    "y = ConvTranspose(x, w)",
    opset=22,
)
refuse(
    "operand-type",
    "window_half",
    "(float[2] x) => (float16[8] y)",
    "y = HannWindow<output_datatype=10>(n)",
    weights="int64 n = {8}",
)

# ---- constants of quantized types
_ONES = "int8[8] w = {1,1,1,1,1,1,1,1}"
refuse("quantized-constant", "add", "(int8[2,8] x) => (int8[2,8] y)", "y = Add(x, w)", weights=_ONES)
refuse("quantized-constant", "cast", f"{X} => {Y}", "c = Cast<to=1>(w) y = Add(x, c)", weights=_ONES)
accept(
    "quantized-constant",
    "dequantize",
    f"{X} => {Y}",
    "d = DequantizeLinear(w, s) y = Add(x, d)",
    weights=f"{_ONES}, float s = {{0.1}}",
)

# ---- ranks and sizes
_ONE = ",".join("1" * 9)
refuse("rank", "nine", f"(float[{_ONE}] x) => (float[{_ONE}] y)", "y = Relu(x)")
refuse(
    "rank",
    "nine_inside",
    f"{X} => {Y}",
    "a = Reshape(x, s) b = Relu(a) y = Reshape(b, t)",
    weights="int64[9] s = {2,8,1,1,1,1,1,1,1}, int64[2] t = {2,8}",
)
refuse(
    "rank",
    "nine_weight",
    f"{X} => {Y}",
    "v = Reshape(w, t) y = Add(x, v)",
    weights=f"float[{_ONE}] w = {{1}}, int64[1] t = {{1}}",
)
accept("rank", "eight", f"(float[{_ONE[:-2]}] x) => (float[{_ONE[:-2]}] y)", "y = Relu(x)")
refuse("operand-rank", "softmax", "(float[8] x) => (float[8] y)", "y = Softmax(x)")
accept("operand-rank", "softmax_of_a_matrix", f"{X} => {Y}", "y = Softmax(x)")
refuse("operand-rank", "argmax", "(float[8] x) => (int64[1] y)", "y = ArgMax(x)")
refuse("operand-rank", "reduce_scalar", "(float x) => (float y)", "y = ReduceSum(x)")
refuse("operand-rank", "global_pool", "(float[2,8] x) => (float[2,8] y)", "y = GlobalAveragePool(x)")
accept("operand-rank", "pool_of_signals", "(float[2,8,3] x) => (float[2,8,1] y)", "y = GlobalAveragePool(x)")
refuse("operand-rank", "reshape", f"{X} => (float[3,5] y)", "y = Reshape(x, s)", weights="int64[2] s = {3,5}")
accept(
    "operand-rank",
    "reshape_that_fits",
    f"{X} => (float[4,4] y)",
    "y = Reshape(x, s)",
    weights="int64[2] s = {4,-1}",
)

# ---- attributes and inputs
refuse(
    "attribute-value",
    "dropout_training",
    f"{X} => {Y}",
    "y = Dropout(x, r, t)",
    weights="float r = {0.5}, bool t = {1}",
)
refuse(
    "attribute-value",
    "dropout_run_time",
    "(float[2,8] x, bool t) => (float[2,8] y)",
    "y = Dropout(x, r, t)",
    weights="float r = {0.5}",
)
accept(
    "attribute-value",
    "dropout_evaluation",
    f"{X} => {Y}",
    "y = Dropout(x, r, t)",
    weights="float r = {0.5}, bool t = {0}",
)
refuse(
    "attribute-value",
    "slice_some_axes",
    "(float[4,8] x) => (float[3,8] y)",
    "y = Slice(x, s, e)",
    weights="int64[1] s = {1}, int64[1] e = {4}",
)
accept(
    "attribute-value",
    "slice_axes",
    "(float[4,8] x) => (float[3,8] y)",
    "y = Slice(x, s, e, a)",
    weights="int64[1] s = {1}, int64[1] e = {4}, int64[1] a = {0}",
)
refuse("attribute-value", "gelu_approximate", f"{X} => {Y}", 'y = Gelu<approximate="none ">(x)')
accept("attribute-value", "gelu_tanh", f"{X} => {Y}", 'y = Gelu<approximate="tanh">(x)')
_IMAGE = "(float[1,2,8,8] x) => (float[1,2,16,16] y)"
_TWICE = "float[4] s = {1,1,2,2}"
for _mode in ("half_pixel_symmetric", "tf_crop_and_resize"):
    refuse(
        "attribute-value",
        _mode,
        _IMAGE,
        f'y = Resize<coordinate_transformation_mode="{_mode}">(x, , s)',
        weights=_TWICE,
    )
accept(
    "attribute-value",
    "pytorch_half_pixel",
    _IMAGE,
    'y = Resize<mode="linear", coordinate_transformation_mode="pytorch_half_pixel">(x, , s)',
    weights=_TWICE,
)
refuse(
    "attribute-value",
    "keep_aspect_ratio",
    _IMAGE,
    'y = Resize<keep_aspect_ratio_policy="not_larger">(x, , , s)',
    weights="int64[4] s = {1,2,16,16}",
)
refuse("attribute-value", "string_constant", f"{X} => {Y}", 'c = Constant<value_strings=["a"]>() y = Relu(x)')
accept("attribute-value", "number_constant", f"{X} => {Y}", "c = Constant<value_floats=[1.0]>() y = Relu(x)")
refuse("constant-input", "unsqueeze_axes", "(float[2,8] x, int64[1] a) => (float[N,M,K] y)", "y = Unsqueeze(x, a)")
refuse(
    "resized-axes",
    "cubic_volume",
    "(float[1,2,4,4,4] x) => (float[1,2,8,8,8] y)",
    'y = Resize<mode="cubic">(x, , s)',
    weights="float[5] s = {1,1,2,2,2}",
)
refuse(
    "resized-axes",
    "linear_batch",
    "(float[1,2,8,8] x) => (float[2,2,8,8] y)",
    'y = Resize<mode="linear">(x, , s)',
    weights="float[4] s = {2,1,1,1}",
)
refuse("resized-axes", "run_time_scales", "(float[1,2,8,8] x, float[4] s) => (float[A,B,C,D] y)", "y = Resize(x, , s)")
accept(
    "resized-axes",
    "linear_volume",
    "(float[1,2,4,4,4] x) => (float[1,2,8,8,8] y)",
    'y = Resize<mode="linear">(x, , s)',
    weights="float[5] s = {1,1,2,2,2}",
)
accept("resized-axes", "cubic_image", _IMAGE, 'y = Resize<mode="cubic">(x, , s)', weights=_TWICE)

# ---- control flow
_IF = "y = If<then_branch = t () => (float[{a}] a) {{ {then} }}, "
_IF += "else_branch = e () => (float[2,8] b) {{ b = Abs(x) }}>(c)"
_BRANCHES = _IF.format(a="2,8", then="a = Neg(x)")
refuse("control-flow", "if_many_conditions", "(float[2,8] x, bool[2] c) => (float[2,8] y)", _BRANCHES)
refuse(
    "control-flow",
    "if_ranks",
    "(float[2,8] x, bool c) => (float[A,B] y)",
    _IF.format(a="16", then="a = Reshape(x, s)"),
    weights="int64[1] s = {16}",
)
accept("control-flow", "if_one_condition", "(float[2,8] x, bool[1] c) => (float[2,8] y)", _BRANCHES)
_BY_SIZE = "h = Shape(x) d = Gather(h, i) c = Equal(d, k) " + _IF.format(a="M", then="a = Reshape(x, s)")
accept(  # as exporters write a squeeze: the size of the batch is open, and the one asked about is not
    "control-flow",
    "if_known",
    "(float[N,8] x) => (float[A,B] y)",
    _BY_SIZE.replace("float[2,8]", "float[N,8]"),
    weights="int64[1] s = {-1}, int64 i = {1}, int64 k = {1}",
)
_LOOP = "y = Loop<body = b (int64 i, bool d, float[2,8] a) => (bool e, float[2,8] f) "
_LOOP += "{{ e = Identity(d) f = Relu(a) }}>({inputs})"
refuse("control-flow", "loop_without_condition", f"{X} => {Y}", _LOOP.format(inputs="n, , x"), weights="int64 n = {3}")
accept("control-flow", "loop", f"{X} => {Y}", _LOOP.format(inputs="n, t, x"), weights="int64 n = {3}, bool t = {1}")

# Inference does not know the sizes that a body makes of open ones; they are no change.
accept(
    "control-flow",
    "loop_of_unknown_sizes",
    f"{X} => (float[N,M] y)",
    "y = Loop<body = b (int64 i, bool d, float[2,8] a) => (bool e, float[N,M] f) "
    "{ e = Identity(d) s = Shape(a) f = Expand(a, s) }>(n, t, x)",
    weights="int64 n = {3}, bool t = {1}",
)

# ---- Attention
_QKV = "({t}[{s}] q, {t}[{s}] k, {t}[{v}] v{more}) => ({t}[{v}] y)"


def _qkv(shape: str, value: str = "", more: str = "", dtype: str = "float16") -> str:
    return _QKV.format(t=dtype, s=shape, v=value or shape, more=more)


refuse("attention-form", "head_size_8", _qkv("2,4,16,8"), "y = Attention(q, k, v)", opset=23)
refuse("attention-form", "head_size_264", _qkv("2,4,16,264"), "y = Attention(q, k, v)", opset=23)
refuse("attention-form", "one_head", _qkv("1,1,16,64"), "y = Attention(q, k, v)", opset=23)
refuse("attention-form", "value_size", _qkv("2,4,16,64", "2,4,16,32"), "y = Attention(q, k, v)", opset=23)
refuse(
    "attention-form",
    "mask_and_causal",
    _qkv("2,4,16,64", more=", bool[16,16] m"),
    "y = Attention<is_causal=1>(q, k, v, m)",
    opset=23,
)
refuse(
    "attention-form", "softmax_precision", _qkv("2,4,16,64"), "y = Attention<softmax_precision=1>(q, k, v)", opset=23
)
accept("attention-form", "head_size_256", _qkv("2,4,16,256"), "y = Attention(q, k, v)", opset=23)
accept("attention-form", "two_heads", _qkv("1,2,16,64"), "y = Attention(q, k, v)", opset=23)
accept("attention-form", "mask", _qkv("2,4,16,64", more=", bool[16,16] m"), "y = Attention(q, k, v, m)", opset=23)
accept("attention-fp32", "one_query", _qkv("2,4,1,64", dtype="float"), "y = Attention(q, k, v)", opset=23)

# ---- soundness
refuse("graph-cycle", "two_nodes", f"{X} => {Y}", "a = Add(x, b) b = Relu(a) y = Neg(b)")
accept("graph-cycle", "none", f"{X} => {Y}", "a = Add(x, x) b = Relu(a) y = Neg(b)")
refuse("undefined-tensor", "input", f"{X} => {Y}", "y = Add(x, ghost)")
refuse("undefined-tensor", "output", f"{X} => (float[2,8] y, float[2,8] ghost)", "y = Relu(x)")
refuse("shape-inference", "mixed_floats", "(float[2,8] x, float16[2,8] h) => (float[2,8] y)", "y = Add(x, h)")
refuse("shape-inference", "shapes", "(float[2,8] x, float[3,8] h) => (float[N,8] y)", "y = Add(x, h)")
refuse("shape-inference", "axis", f"{X} => {Y}", "y = Softmax<axis=5>(x)")
accept("node-order", "sorted_by_the_parser", f"{X} => {Y}", "y = Neg(a) a = Relu(x)")
accept("unknown-attribute", "passed_over", f"{X} => {Y}", "y = Relu<foo=1>(x)")
accept("operator-version", "gelu_of_19", f"{X} => {Y}", "y = Gelu(x)", opset=19)
refuse("missing-attribute", "cast", f"{X} => {Y}", "y = Cast(x)")
