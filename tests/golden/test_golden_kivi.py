"""KIVI's own code (jy-yuan/KIVI 876b4d2) against kv_quantize, kv_dequantize and kv_attention.

Codes of a constant group come from 0 / 0 there and are not compared; their reconstruction is.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.golden.golden_data import FORMS, OPERATOR_TOLERANCE, assert_close, call, cases_on_disk, read
from tests.golden.golden_kv import codes_in_words, dequantize, join, quantize

CHANNEL, TOKEN = 0, 1
QUANTIZERS = {  # bits, axis
    "k_2bit_const_ties": (2, CHANNEL),
    "k_2bit_fp16": (2, CHANNEL),
    "k_4bit_batch_fp32": (4, CHANNEL),
    "kt_2bit_lastdim": (2, TOKEN),  # keys transposed, so that their tokens are the last axis
    "v_2bit_fp16": (2, TOKEN),
    "v_4bit_batch_fp32": (4, TOKEN),
    "v_4bit_const": (4, TOKEN),
}
LAYERS = ("layer_2bit", "layer_2bit_exact", "layer_4bit_short")
each_form = pytest.mark.parametrize("form", FORMS)


def test_every_case_is_compared() -> None:
    assert cases_on_disk("kivi") == {*QUANTIZERS, *LAYERS, "fake_quant"}
    assert all(read("kivi", case)[1]["bits"] == bits for case, (bits, _) in QUANTIZERS.items())


@each_form
@pytest.mark.parametrize("case", QUANTIZERS)
def test_quantizer(case: str, form: str) -> None:
    (arrays, meta), (bits, axis) = read("kivi", case), QUANTIZERS[case]
    group = meta["group_size"]
    codes, scale, minimum = quantize(form, arrays["x"], bits=bits, axis=axis, group=group)
    assert torch.equal(scale, arrays["scale"].reshape(scale.shape)) and scale.dtype == arrays["scale"].dtype
    assert torch.equal(minimum, arrays["mn"].reshape(scale.shape))
    constant = arrays.get("const_group", torch.zeros(scale.shape, dtype=torch.bool)).reshape(scale.shape)
    assert torch.equal(constant, scale == 0)
    is_constant = constant.repeat_interleave(group, dim=2 + axis)
    assert torch.equal(codes[~is_constant], arrays["unpacked"][~is_constant])
    assert not codes[is_constant].any()
    assert torch.equal(dequantize(form, codes, scale, minimum, bits=bits, axis=axis, group=group), arrays["dequant"])


@each_form
@pytest.mark.parametrize(
    ("name", "bits"), [("token_2bit", 2), ("token_4bit", 4), ("channel_2bit", 2), ("channel_4bit", 4)]
)
def test_fake_quantizer(name: str, bits: int, form: str) -> None:
    arrays, meta = read("kivi", "fake_quant")
    axis, group = (TOKEN, meta["group_size"]) if name.startswith("token") else (CHANNEL, 0)
    quantized = quantize(form, arrays["x"][:, None], bits=bits, axis=axis, group=group)
    found = dequantize(form, *quantized, bits=bits, axis=axis, group=group)
    assert torch.equal(found[:, 0], arrays[name])


# ---- a whole layer: keys in groups of tokens with a full-precision tail, values of each token but the newest


def turned(x: Tensor, base: float) -> Tensor:
    """Rotary positions over two halves of the head."""
    half = x.shape[-1] // 2
    angle = torch.arange(x.shape[2])[:, None] / base ** (torch.arange(half) / half)
    cos, sin = angle.cos(), angle.sin()
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def heads_of(arrays: dict[str, Tensor], meta: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (
        (arrays["hidden"] @ arrays[name].T).unflatten(-1, (meta["heads"], -1)).transpose(1, 2)
        for name in ("wq", "wk", "wv")
    )
    return turned(q, meta["rope_theta"]), turned(k, meta["rope_theta"]), v


def caches(arrays: dict[str, Tensor], meta: dict[str, Any]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Codes, scales and minima at the end: keys, which KIVI stores transposed, and values."""
    k_code, k_scale, k_minimum = (arrays[f"end_key_{name}"].transpose(2, 3) for name in ("code", "scale", "mn"))
    k_codes = codes_in_words(k_code.transpose(2, 3), meta["k_bits"]).transpose(2, 3)
    v_codes = codes_in_words(arrays["end_value_code"], meta["v_bits"])
    keys = (k_codes.contiguous(), k_scale.contiguous(), k_minimum.contiguous())
    return keys, (v_codes, arrays["end_value_scale"], arrays["end_value_mn"])


@each_form
@pytest.mark.parametrize("case", LAYERS)
def test_cache_at_the_end_of_a_layer(case: str, form: str) -> None:
    arrays, meta = read("kivi", case)
    keys, values = caches(arrays, meta)
    group = meta["group_size"]
    _, k, v = heads_of(arrays, meta)
    for name, cache, x, axis in (("key", keys, k, CHANNEL), ("value", values, v, TOKEN)):
        wanted, how = arrays[f"end_{name}_dequant"], {"bits": meta[f"{name[0]}_bits"], "axis": axis, "group": group}
        assert torch.equal(dequantize(form, *cache, **how), wanted)
        again = quantize(form, x[:, :, : wanted.shape[2]].contiguous(), **how)
        assert_close(dequantize(form, *again, **how), wanted, OPERATOR_TOLERANCE)


@each_form
@pytest.mark.parametrize("case", LAYERS)
def test_last_token_of_a_layer(case: str, form: str) -> None:
    """Slots whose key and value are packed go through the operator, the others are merged by the log of the sums."""
    arrays, meta = read("kivi", case)
    keys, values = caches(arrays, meta)
    q, k, v = (tensor[:, :, -1:] if number == 0 else tensor for number, tensor in enumerate(heads_of(arrays, meta)))
    num_keys, num_packed = keys[0].shape[2], values[0].shape[2] - 1  # the last value was packed after its use
    k = torch.cat([arrays["end_key_dequant"], k[:, :, num_keys:]], dim=2)
    padded = [torch.nn.functional.pad(tensor, (0, 0, 0, num_keys - tensor.shape[2])) for tensor in values]
    attributes = {"k_bits": meta["k_bits"], "k_axis": CHANNEL, "k_group": meta["group_size"]}
    attributes |= {"v_bits": meta["v_bits"], "v_axis": TOKEN, "v_group": meta["group_size"]}
    attributes |= {"scale": 0.0, "causal": 0, "window": 0, "softcap": 0.0, "layout": 0, "sinks": 0, "indexed": 0}
    attributes |= {"k_rank": 0, "v_rank": 0, "block": 0, "turned": 0}
    packed = [join(keys[0], meta["k_bits"]), *keys[1:], join(padded[0], meta["v_bits"]), *padded[1:]]
    length = torch.full((len(q),), num_packed)
    none = torch.zeros(1, 1, 1, 1)
    others = length, none, torch.full((1, 1, 1), -1), *(none.to(keys[1].dtype),) * 4, none
    mean, lse = call(form, "TrtcKVAttention", attributes, q.contiguous(), *packed, *others)

    logits = q @ k[:, :, num_packed:].transpose(2, 3) / q.shape[-1] ** 0.5
    tail, tail_lse = logits.softmax(dim=3) @ v[:, :, num_packed:], logits.logsumexp(dim=3)
    share = (lse - torch.logaddexp(lse, tail_lse)).exp()[..., None]
    merged = (mean * share + tail * (1 - share)).transpose(1, 2).flatten(2)
    assert_close(merged @ arrays["wo"].T, arrays["output"][:, -1:], OPERATOR_TOLERANCE)
