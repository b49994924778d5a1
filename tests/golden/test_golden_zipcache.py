"""ZipCache's own code (ThisisBillhe/ZipCache b6932b9) against kv_quantize and kv_dequantize.

It quantizes all heads of a token together and packs as the operators do, so codes are compared byte by byte. Its
channel quantizer shares minimum and step over the batch: the operator gets the items one after another. A constant
vector's code comes from 0 / 0 there and is not compared.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.golden.golden_data import FORMS, cases_on_disk, read
from tests.golden.golden_kv import dequantize, heads_apart, heads_beside, join, quantize, spread
from trt_compress.plugins.kv_dequantize.op import kv_dequantize
from trt_compress.plugins.kv_quantize.op import quantize_tokens

CHANNEL, TOKEN = 0, 1
each_form = pytest.mark.parametrize("form", FORMS)
each_width = pytest.mark.parametrize("bits", [2, 4])


def test_every_case_is_compared() -> None:
    assert cases_on_disk("zipcache") == {"constants", "mixed_precision", "quantisers_2bit", "quantisers_4bit"}


def check(form: str, x: Tensor, arrays: dict[str, Tensor], name: str, *, bits: int, axis: int) -> Tensor:
    """Compare codes, minima and steps called `name`; return the reconstruction."""
    codes, scale, minimum = quantize(form, x, bits=bits, axis=axis)
    if f"{name}_code" in arrays:
        code = join(codes, bits)
        assert torch.equal(code, arrays[f"{name}_code"].reshape(code.shape))
    assert torch.equal(scale, arrays[f"{name}_step"].reshape(scale.shape))
    assert torch.equal(minimum, arrays[f"{name}_min"].reshape(scale.shape))
    return dequantize(form, codes, scale, minimum, bits=bits, axis=axis)


def quantizers(bits: int) -> tuple[dict[str, Tensor], Tensor, Any]:
    arrays, meta = read("zipcache", f"quantisers_{bits}bit")
    assert meta["bits"] == bits
    return arrays, heads_beside(arrays["x"]), arrays["x"].shape


@each_form
@each_width
def test_token(bits: int, form: str) -> None:
    arrays, x, shape = quantizers(bits)
    found = check(form, x, arrays, "tok", bits=bits, axis=TOKEN)
    assert torch.equal(heads_apart(found, shape[1]), arrays["tok_deq"])


@each_width
def test_token_with_codes_of_each_head(bits: int) -> None:
    """The same, packed head by head beside scales that the heads share."""
    arrays, _, shape = quantizers(bits)
    code, scale, minimum = quantize_tokens(arrays["x"], bits=bits, scale_type=torch.float32)
    assert code.shape == (*shape[:3], shape[3] * bits // 8)
    assert torch.equal(spread(code, bits), heads_apart(spread(arrays["tok_code"][:, None], bits), shape[1]))
    assert torch.equal(scale.flatten(), arrays["tok_step"].flatten())
    found = kv_dequantize(code, scale, minimum, bits=bits, axis="token", to=torch.float32)
    assert torch.equal(found, arrays["tok_deq"])


@each_form
@each_width
def test_token_after_channel_scales(bits: int, form: str) -> None:
    arrays, x, shape = quantizers(bits)
    channel_scale = arrays["cst_chscale"]
    found = check(form, x / channel_scale, arrays, "cst", bits=bits, axis=TOKEN)
    assert torch.equal(heads_apart(found * channel_scale, shape[1]), arrays["cst_deq"])


@each_form
@each_width
def test_channel(bits: int, form: str) -> None:
    arrays, x, shape = quantizers(bits)
    found = check(form, x.reshape(1, 1, -1, x.shape[3]), arrays, "ch", bits=bits, axis=CHANNEL)
    assert torch.equal(heads_apart(found.reshape(x.shape), shape[1]), arrays["ch_deq"])


@each_form
@each_width
def test_group(bits: int, form: str) -> None:
    arrays, _, shape = quantizers(bits)
    found = check(form, arrays["x"].reshape(1, 1, -1, 32), arrays, "grp", bits=bits, axis=TOKEN)
    assert torch.equal(found.reshape(shape), arrays["grp_deq"])


@each_form
@pytest.mark.parametrize(("x", "name", "axis"), [("x_token", "tok", TOKEN), ("x_channel", "ch", CHANNEL)])
def test_constants(x: str, name: str, axis: int, form: str) -> None:
    arrays, meta = read("zipcache", "constants")
    assert (arrays[f"{name}_step"] == 0).sum() == 1
    found = check(form, heads_beside(arrays[x]), arrays, name, bits=meta["bits"], axis=axis)
    assert torch.equal(heads_apart(found, arrays[x].shape[1]), arrays[f"{name}_deq"])


@each_form
@pytest.mark.parametrize(("kind", "bits"), [("important", 4), ("unimportant", 2)])
def test_mixed_precision(kind: str, bits: int, form: str) -> None:
    """Tokens of one class: keys by channel, values by token, plain or divided by a scale of each channel."""
    arrays, meta = read("zipcache", "mixed_precision")
    assert meta[f"bits_{kind}"] == bits
    x, ids = arrays["x"], arrays[f"{kind}_ids"][..., None].expand(-1, -1, -1, arrays["x"].shape[3])
    chosen, short = heads_beside(x.gather(2, ids)), kind.replace("important", "imp")
    scales = {"v": arrays["v_chscale"], "ct": arrays[f"ct_{short}_chscale"], "t": torch.ones(())}
    found = {"k": check(form, chosen, arrays, f"k_{short}", bits=bits, axis=CHANNEL)}
    for name, scale in scales.items():
        found[name] = scale * check(form, chosen / scale, arrays, f"{name}_{short}", bits=bits, axis=TOKEN)
    for name, value in found.items():
        assert torch.equal(heads_apart(value, x.shape[1]), arrays[f"{name}_deq"].gather(2, ids))
