"""Packed key-value caches: wrong calls, wrong data, and how the operators work together."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnxruntime.capi.onnxruntime_pybind11_state import InvalidArgument
from torch import Tensor, nn

from trt_compress.errors import ConfigError, ShapeError
from trt_compress.export.lower import add_bodies, operator_nodes
from trt_compress.plugins.kv_append.op import kv_append
from trt_compress.plugins.kv_attention.op import kv_attention
from trt_compress.plugins.kv_compact.op import kv_compact
from trt_compress.plugins.kv_dequantize.op import kv_dequantize
from trt_compress.plugins.kv_quantize.op import kv_quantize
from trt_compress.plugins.registry import operators
from trt_compress.plugins.spec import Sample
from trt_compress.plugins.testing import call_torch, onnx_model

X = torch.arange(2 * 3 * 6 * 8.0).reshape(2, 3, 6, 8)
CODE, SCALE, MINIMUM = kv_quantize(X, bits=4, axis="token")
ROWS, POSITION, INDEX = X[:, :, :2], torch.tensor([0, 4]), torch.tensor([[[0, 3, 5]] * 3] * 2)
Q, LENGTH = torch.ones(2, 6, 1, 8), torch.tensor([6, 2])


def quantize(x: Any = X, **attributes: Any) -> object:
    return kv_quantize(x, **{"bits": 4, "axis": "token", **attributes})


def dequantize(code: Any = CODE, scale: Any = SCALE, minimum: Any = MINIMUM, **attributes: Any) -> object:
    return kv_dequantize(code, scale, minimum, **{"bits": 4, "axis": "token", "to": torch.float32, **attributes})


def append(cache: Any = X, rows: Any = ROWS, position: Any = POSITION, **attributes: Any) -> object:
    return kv_append(cache, rows, position, **attributes)


def attend(q: Any = Q, code: Any = CODE, length: Any = LENGTH, bias: Any = None, **attributes: Any) -> object:
    tensors = (code, SCALE, MINIMUM, CODE, SCALE, MINIMUM)
    return kv_attention(q, *tensors, length, bias, **{"k_bits": 4, "k_axis": "token", "v_bits": 4, **attributes})


CONFIG: list[tuple[Callable[[], object], str]] = [
    (lambda: quantize(bits=3), r"^kv_quantize: bits 3 is not known; there are 8, 4, 2\.$"),
    (lambda: quantize(bits=True), r"kv_quantize: bits True is not known"),
    (lambda: quantize(bits=4.0), r"kv_quantize: bits 4\.0 is not known"),
    (lambda: quantize(axis="head"), r"^kv_quantize: axis 'head' is not known; there are channel, token\.$"),
    (lambda: quantize(axis=1), r"kv_quantize: axis 1 is not known; there are channel, token\."),
    (
        lambda: quantize(group=3),
        r"^kv_quantize: group=3 does not divide D=8; give 0 \(all of it\) or a divisor\.$",
    ),
    (lambda: quantize(group=4, axis="channel"), r"kv_quantize: group=4 does not divide L=6"),
    (lambda: quantize(group=-1), r"kv_quantize: group=-1 is not allowed; give 0 \(all of D\) or a divisor of D\."),
    (lambda: quantize(group=2.0), r"kv_quantize: group=2\.0 is not allowed"),
    (
        lambda: quantize(scale_type=torch.bfloat16),
        r"^kv_quantize: scale_type 'bfloat16' is not known; there are float16, float32\. Did you mean 'float16'",
    ),
    (lambda: dequantize(bits=16), r"kv_dequantize: bits 16 is not known; there are 8, 4, 2\."),
    (lambda: dequantize(axis="x"), r"kv_dequantize: axis 'x' is not known"),
    (
        lambda: dequantize(to=torch.float64),
        r"kv_dequantize: to 'float64' is not known; there are float32, float16, bfloat16\.",
    ),
    (lambda: dequantize(group=5), r"kv_dequantize: group=5 does not divide D=8"),
    (lambda: append(layout="circle"), r"^kv_append: layout 'circle' is not known; there are linear, ring\.$"),
    (lambda: append(sinks=1), r"^kv_append: sinks=1 needs layout='ring'; a linear cache keeps all slots: give 0\.$"),
    (
        lambda: append(layout="ring", sinks=6),
        r"kv_append: sinks=6 is out of range; a ring of L=6 slots allows 0\.\.5\.",
    ),
    (
        lambda: append(layout="ring", sinks=5),
        r"^kv_append: T=2 tokens at once do not fit into a ring of L=6 slots with sinks=5; "
        r"append at most 1 at a time\.$",
    ),
    (lambda: attend(k_bits=5), r"kv_attention: k_bits 5 is not known"),
    (lambda: attend(v_axis="head"), r"kv_attention: v_axis 'head' is not known"),
    (lambda: attend(k_group=3), r"kv_attention: k_group=3 does not divide D=8"),
    (
        lambda: attend(scale=-1.0),
        r"kv_attention: scale=-1\.0 is not allowed; give a positive number, or 0 for 1 / sqrt",
    ),
    (lambda: attend(scale=float("nan")), r"kv_attention: scale=nan is not allowed"),
    (lambda: attend(causal=1), r"kv_attention: causal 1 is not known; there are False, True\."),
    (
        lambda: attend(window=-4),
        r"^kv_attention: window=-4 is not allowed; give the slots a query sees, at most 2147483647, or 0 for "
        r"no limit\.$",
    ),
]
SHAPE: list[tuple[Callable[[], object], str]] = [
    (lambda: quantize(X[0]), r"kv_quantize: x has shape \[3, 6, 8\]; it must be \[B, G, L, D\] with axes BGLD\."),
    (lambda: quantize(X.double()), r"kv_quantize: x has dtype float64; it must be float32 or float16 or bfloat16\."),
    (
        lambda: quantize(X[..., :7]),
        r"^kv_quantize: x has D=7, which 4-bit codes do not pack into whole bytes; it must be a multiple of 2\.$",
    ),
    (lambda: dequantize(CODE.to(torch.int8)), r"kv_dequantize: code has dtype int8; it must be uint8\."),
    (
        lambda: dequantize(scale=SCALE[:, :, 1:]),
        r"kv_dequantize: scale has shape \[2, 3, 5, 1\]; it must be \[1 \| 2, 1 \| 3, 6, 1\] with axes BGLD\.",
    ),
    (
        lambda: dequantize(group=4),
        r"kv_dequantize: scale has shape \[2, 3, 6, 1\]; it must be \[1 \| 2, 1 \| 3, 6, 2\] with axes BGLD\.",
    ),
    (lambda: dequantize(minimum=MINIMUM.float()), r"kv_dequantize: minimum has dtype float32; it must be float16\."),
    (lambda: append(X.long()), r"kv_append: cache has dtype int64; it must be float32 or .* or uint8\."),
    (lambda: append(rows=ROWS.half()), r"kv_append: rows has dtype float16; it must be float32\."),
    (
        lambda: append(rows=ROWS[..., :5]),
        r"kv_append: rows has shape \[2, 3, 2, 5\]; it must be \[2, 3, T, 8\] with axes BGTW\.",
    ),
    (lambda: append(position=torch.zeros(2)), r"kv_append: position has dtype float32; it must be int64\."),
    (
        lambda: append(position=POSITION[:, None].expand(2, 2)),
        r"kv_append: position has shape \[2, 2\]; it must be \[2\] with axes B\.",
    ),
    (lambda: append(position=POSITION[:1]), r"kv_append: position has shape \[1\]; it must be \[2\] with axes B\."),
    (
        lambda: append(position=torch.tensor([0, 5])),
        r"^kv_append: position holds 5, and T=2 more tokens exceed the cache of L=6 slots; "
        r"give a longer cache or use layout='ring'\.$",
    ),
    (
        lambda: append(position=torch.tensor([-1, 0]), layout="ring"),
        r"^kv_append: position holds -1; it counts the tokens written before and is 0 or more\.$",
    ),
    (lambda: kv_compact(X, INDEX.int()), r"kv_compact: index has dtype int32; it must be int64\."),
    (lambda: kv_compact(X, INDEX[:, :1]), r"kv_compact: index has shape \[2, 1, 3\]; it must be \[2, 3, K\]"),
    (
        lambda: kv_compact(X, torch.zeros(2, 3, 7, dtype=torch.int64)),
        r"^kv_compact: index names K=7 slots of a cache that has L=6\.$",
    ),
    (lambda: kv_compact(X, INDEX + 1), r"^kv_compact: index holds 6; slots are 0\.\.5\.$"),
    (lambda: kv_compact(X, INDEX - 1), r"^kv_compact: index holds -1; slots are 0\.\.5\.$"),
    (
        lambda: kv_compact(X, INDEX.flip(2)),
        r"^kv_compact: index is not strictly ascending; sort the slots of each KV head, each once\.$",
    ),
    (lambda: kv_compact(X, INDEX * 0), r"kv_compact: index is not strictly ascending"),
    (
        lambda: attend(Q[:, :4]),
        r"^kv_attention: q has H=4 heads and the cache G=3 KV heads; H must be a multiple of G\.$",
    ),
    (lambda: attend(Q[..., :6]), r"kv_attention: k_code has shape \[2, 3, 6, 4\]; it must be \[2, G, L, 3\]"),
    (lambda: attend(Q[..., :5]), r"kv_attention: q has D=5, which 4-bit codes do not pack into whole bytes"),
    (
        lambda: attend(code=CODE[:, :, :5]),
        r"kv_attention: k_scale has shape \[2, 3, 6, 1\]; it must be \[1 \| 2, 1 \| 3, 5, 1\]",
    ),
    (lambda: attend(length=LENGTH.int()), r"kv_attention: length has dtype int32; it must be int64\."),
    (
        lambda: attend(bias=torch.zeros(2, 2, 1, 6)),
        r"^kv_attention: bias has shape \[2, 2, 1, 6\]; it must be \[1 \| 2, 1 \| 3 \| 6, 1, 1 \| 6\] with axes "
        r"B, G or H, T, L\.$",
    ),
    (
        lambda: attend(bias=torch.zeros(1, 1, 1, 6).double()),
        r"kv_attention: bias has dtype float64; it must be float32",
    ),
]


@pytest.mark.parametrize(("call", "message"), CONFIG, ids=[message for _, message in CONFIG])
def test_bad_attribute(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call()


@pytest.mark.parametrize(("call", "message"), SHAPE, ids=[message for _, message in SHAPE])
def test_bad_tensor(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        call()


def test_the_most_that_is_allowed_is_allowed() -> None:
    append(position=torch.tensor([4, 4]))
    append(layout="ring", sinks=4, position=torch.tensor([10**12, 0]))
    kv_compact(X, torch.arange(6).expand(2, 3, 6))
    attend(bias=torch.full((2, 6, 1, 6), -torch.inf), scale=3, window=1, causal=True)


# ---- wrong data, which only shows while the graph runs --------------------------------------------------------------


def run_body(op_type: str, attributes: dict[str, Any], *inputs: Tensor) -> list[np.ndarray[Any, Any]]:
    """The body in ONNX Runtime, without torch, which would refuse first."""
    operator, sample = operators()[op_type], Sample(axes={}, attributes=attributes, reason="wrong data")
    model = onnx_model(operator, sample, inputs, inputs[:1])
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feeds = {spec.name: tensor.numpy() for spec, tensor in zip(operator.spec.inputs, inputs, strict=True)}
    return [np.asarray(output) for output in session.run(None, feeds)]


LINEAR, RING = {"layout": 0, "sinks": 0}, {"layout": 1, "sinks": 2}
OUT_OF_BOUNDS = "INVALID_ARGUMENT.*(indices element out of data bounds|invalid index found)"


@pytest.mark.parametrize(
    ("attributes", "position"),
    [
        (LINEAR, [0, 5]),
        (LINEAR, [6, 0]),
        (LINEAR, [0, -1]),
        (LINEAR, [-6, 0]),
        (LINEAR, [0, 2**62]),
        (LINEAR, [2**63 - 1, 0]),
        (RING, [0, -1]),
        (RING, [-4, 0]),
        (RING, [2**63 - 1, 0]),
    ],
)
def test_a_body_never_writes_out_of_range(attributes: dict[str, Any], position: list[int]) -> None:
    run_body("TrtcKVAppend", attributes, X, ROWS, POSITION)
    with pytest.raises(InvalidArgument, match=OUT_OF_BOUNDS):
        run_body("TrtcKVAppend", attributes, X, ROWS, torch.tensor(position))


def test_a_body_takes_no_more_tokens_at_once_than_the_ring_holds() -> None:
    run_body("TrtcKVAppend", RING, X, X[:, :, :4].contiguous(), POSITION)
    with pytest.raises(InvalidArgument, match=OUT_OF_BOUNDS):
        run_body("TrtcKVAppend", RING, X, X[:, :, :5].contiguous(), POSITION)


@pytest.mark.parametrize("bad", [[0, 3, 6], [-1, 3, 5], [0, 3, 3], [3, 0, 5], [0, 5, -1], [-3, -2, -1], [0, 3, 2**62]])
def test_a_body_moves_no_slots_that_are_not_there_or_not_ascending(bad: list[int]) -> None:
    run_body("TrtcKVCompact", {}, X, INDEX)
    index = INDEX.clone()
    index[1, 2] = torch.tensor(bad)
    with pytest.raises(InvalidArgument, match=OUT_OF_BOUNDS):
        run_body("TrtcKVCompact", {}, X, index)
    with pytest.raises(ShapeError):
        kv_compact(X, index)


# ---- numbers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bits", "axis", "group"), [*itertools.product([8, 4, 2], ["channel", "token"], [0, 2])])
def test_there_and_back_is_within_half_a_step(bits: int, axis: str, group: int) -> None:
    x = torch.randn(2, 3, 6, 8, generator=torch.Generator().manual_seed(1))
    code, scale, minimum = kv_quantize(x, bits=bits, axis=axis, group=group, scale_type=torch.float32)
    back = kv_dequantize(code, scale, minimum, bits=bits, axis=axis, group=group, to=torch.float32)
    along = 2 if axis == "channel" else 3
    step = scale.repeat_interleave(x.shape[along] // scale.shape[along], dim=along)
    assert ((back - x).abs() <= step * 0.5001).all()
    assert (back != x).any()


@pytest.mark.parametrize("scale_type", [torch.float16, torch.float32])
def test_scales_have_the_type_that_was_asked_for(scale_type: torch.dtype) -> None:
    code, scale, minimum = kv_quantize(X, bits=2, axis="channel", scale_type=scale_type)
    assert (code.dtype, scale.dtype, minimum.dtype) == (torch.uint8, scale_type, scale_type)


def test_dequantizing_to_bfloat16_rounds_once() -> None:
    wide = kv_dequantize(CODE, SCALE, MINIMUM, bits=4, axis="token", to=torch.float32)
    short = kv_dequantize(CODE, SCALE, MINIMUM, bits=4, axis="token", to=torch.bfloat16)
    assert short.dtype == torch.bfloat16 and torch.equal(short, wide.bfloat16())


def test_a_packed_cache_takes_at_most_0_29_of_float16() -> None:
    k = torch.randn(1, 2, 256, 128)
    packed = [*kv_quantize(k, bits=4, axis="channel", group=64), *kv_quantize(k, bits=4, axis="token", group=64)]
    assert sum(tensor.nbytes for tensor in packed) / (2 * k.half().nbytes) == 0.28125


# ---- together -------------------------------------------------------------------------------------------------------


def random_cache(*, length: int, seed: int = 0) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    k, v = (torch.randn(2, 2, length, 8, generator=generator) for _ in "kv")
    return (*kv_quantize(k, bits=4, axis="token"), *kv_quantize(v, bits=4, axis="token"))


FORMAT: dict[str, Any] = {"k_bits": 4, "k_axis": "token", "v_bits": 4, "v_axis": "token"}
attention: Callable[..., tuple[Tensor, Tensor]] = kv_attention  # a cache is handed over as one tuple


def test_parts_of_a_cache_merge_by_their_logarithms() -> None:
    q, cache = torch.randn(2, 4, 3, 8, generator=torch.Generator().manual_seed(2)), random_cache(length=12)
    whole, whole_lse = attention(q, *cache, torch.tensor([12, 12]), **FORMAT)
    parts = []
    for part in (slice(0, 5), slice(5, 12)):
        tensors = [tensor[:, :, part].contiguous() for tensor in cache]
        parts.append(attention(q, *tensors, torch.full((2,), part.stop - part.start), **FORMAT))
    lse = torch.logaddexp(parts[0][1], parts[1][1])
    merged = sum((y * (part_lse - lse).exp()[..., None] for y, part_lse in parts), torch.zeros(()))
    torch.testing.assert_close(lse, whole_lse)
    torch.testing.assert_close(merged, whole)


def test_causal_and_window_are_the_masks_they_stand_for() -> None:
    q, cache, length = torch.randn(2, 4, 3, 8), random_cache(length=10), torch.tensor([10, 7])
    bias = torch.full((2, 1, 3, 10), -torch.inf)
    for item, used in enumerate(length.tolist()):
        for query in range(3):
            own = used - 3 + query
            bias[item, 0, query, own - 3 : own + 1] = 0
    masked = attention(q, *cache, length, bias, **FORMAT)
    given = attention(q, *cache, length, causal=True, window=4, **FORMAT)
    assert all(torch.equal(first, second) for first, second in zip(masked, given, strict=True))


def test_an_empty_cache_gives_zeros_and_no_weight() -> None:
    y, lse = attention(torch.randn(2, 4, 1, 8), *random_cache(length=5), torch.tensor([0, 5]), **FORMAT)
    assert not y[0].any() and (lse[0] == -torch.inf).all()
    assert y[1].any() and lse[1].isfinite().all()


@pytest.mark.parametrize("sinks", [0, 2])
def test_a_ring_holds_the_sinks_and_the_newest(sinks: int) -> None:
    cache, tokens = torch.zeros(1, 1, 7, 1), torch.arange(1.0, 24.0)
    written = 0
    for count in (1, 3, 2, 5, 1, 4, 5, 2):
        rows = tokens[written : written + count].reshape(1, 1, count, 1)
        cache = kv_append(cache, rows, torch.tensor([written]), layout="ring", sinks=sinks)
        written += count
        newest = set(tokens[max(written - (7 - sinks), 0) : written].tolist())
        assert set(cache.flatten().tolist()) - {0.0} == newest | set(tokens[: min(sinks, written)].tolist())
    assert written == 23


class Decoder(nn.Module):
    """One decoded token: quantized, appended, attended over; a cache is dropped to its first slots at the end."""

    def forward(self, q: Tensor, k: Tensor, code: Tensor, scale: Tensor, minimum: Tensor, position: Tensor) -> Any:
        new = kv_quantize(k, bits=4, axis="token", group=4)
        cache = [kv_append(old, rows, position) for old, rows in zip((code, scale, minimum), new, strict=True)]
        y, lse = attention(
            q, *cache, *cache, position + 1, k_bits=4, k_axis="token", k_group=4, v_bits=4, v_group=4, scale=0.3
        )
        index = torch.arange(2).expand(q.shape[0], k.shape[1], 2)
        return y, lse, kv_compact(cache[0], index), kv_dequantize(*cache, bits=4, axis="token", group=4, to=k.dtype)


@pytest.mark.filterwarnings("ignore:# The axis name")  # torch says it once more for every input with the same batch
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_an_exported_decoder_computes_the_same(dtype: torch.dtype) -> None:
    module, generator = Decoder().eval(), torch.Generator().manual_seed(3)
    k = torch.randn(2, 2, 9, 8, generator=generator).to(dtype)
    cache = kv_quantize(k, bits=4, axis="token", group=4)
    inputs = (torch.randn(2, 4, 1, 8, generator=generator).to(dtype), k[:, :, :1], *cache, torch.tensor([3, 8]))
    names = ("q", "k", "code", "scale", "minimum", "position")
    batch = torch.export.Dim("batch")
    shapes: dict[str, Any] = dict.fromkeys(names, {0: batch})
    program = torch.onnx.export(module, inputs, dynamo=True, dynamic_shapes=shapes, opset_version=20, verbose=False)
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    assert operator_nodes(model) == {
        **{"TrtcKVQuantize": 1, "TrtcKVAppend": 3, "TrtcKVAttention": 1, "TrtcKVCompact": 1, "TrtcKVDequantize": 1}
    }
    session = onnxruntime.InferenceSession(add_bodies(model).SerializeToString(), providers=["CPUExecutionProvider"])
    given = [tensor[[1, 0, 1]] for tensor in inputs]
    names_in = [value.name for value in session.get_inputs()]
    found = session.run(None, {name: tensor.numpy() for name, tensor in zip(names_in, given, strict=True)})
    wanted = module(*given)
    for value, tensor in zip(found[2:], wanted[2:], strict=True):
        np.testing.assert_array_equal(value, tensor.numpy())
    torch.testing.assert_close(torch.from_numpy(found[1]), wanted[1])
    torch.testing.assert_close(torch.from_numpy(found[0]), wanted[0])


def test_torch_and_samples_agree_on_what_a_call_is() -> None:
    """The public functions hand their attributes on as the samples write them."""
    sample = operators()["TrtcKVQuantize"].samples[4]
    inputs = (torch.randn(2, 2, 12, 20),)
    public = kv_quantize(*inputs, bits=2, axis="channel", group=3)
    direct = call_torch(operators()["TrtcKVQuantize"], sample, inputs)
    assert all(torch.equal(first, second) for first, second in zip(public, direct, strict=True))
