"""GEAR's own code (HaoKang-Timmy/GEAR efe0bfe) against kv_quantize and kv_dequantize: what it quantizes with.

`channel` and `token` are NaN there in constant groups, where ours gives the constant. The codes of the packed cases are
all zero in the archives, whatever the data, so only scales and minima are compared.
"""

import pytest
import torch
from torch import Tensor

from tests.golden.golden_data import FORMS, cases_on_disk, read
from tests.golden.golden_kv import dequantize, heads_apart, heads_beside, quantize

CHANNEL, TOKEN = 0, 1
each_form = pytest.mark.parametrize("form", FORMS)


def test_every_case_is_compared() -> None:
    of_store = {"lowrank_batch1", "lowrank_batch2", "sim_gear", "sim_gear_kcvt", "sim_gearl", "sim_gearl_kcvt"}
    ours = {"const_groups", "packed_key", "packed_value", "sim_kcvt", "sim_kivi_v2"}
    assert cases_on_disk("gear") == ours | of_store  # those in tests/models/cache/test_gear.py


def there_and_back(form: str, x: Tensor, *, bits: int, axis: int, group: int = 0) -> Tensor:
    return dequantize(form, *quantize(form, x, bits=bits, axis=axis, group=group), bits=bits, axis=axis, group=group)


@each_form
@pytest.mark.parametrize(("name", "axis"), [("channel", CHANNEL), ("token", TOKEN)])
def test_constant_groups(name: str, axis: int, form: str) -> None:
    arrays, meta = read("gear", "const_groups")
    found = there_and_back(form, arrays["x"], bits=meta["bits"], axis=axis, group=meta["group_size"])
    is_nan = arrays[f"nan_{name}"]
    assert is_nan.any() and torch.equal(found[~is_nan], arrays[name][~is_nan])
    assert torch.equal(found[is_nan], arrays["x"][is_nan])


@each_form
@pytest.mark.parametrize(("case", "x", "prefix"), [("packed_key", "key_t", "k"), ("packed_value", "value", "v")])
def test_packed(case: str, x: str, prefix: str, form: str) -> None:
    """Keys are given transposed, so that both are quantized along the last axis."""
    arrays, meta = read("gear", case)
    assert not arrays[f"{prefix}_code"].any()
    _, scale, minimum = quantize(form, arrays[x], bits=meta["quantize_bit"], axis=TOKEN, group=meta["group_size"])
    assert torch.equal(scale, arrays[f"{prefix}_scale"]) and scale.dtype == torch.float16
    assert torch.equal(minimum, arrays[f"{prefix}_mn"])


@each_form
@pytest.mark.parametrize(("name", "axis"), [("key", CHANNEL), ("value", TOKEN)])
def test_groups(name: str, axis: int, form: str) -> None:
    arrays, meta = read("gear", "sim_kivi_v2")
    found = there_and_back(form, arrays[name], bits=meta["bits"], axis=axis, group=meta["group_size"])
    assert torch.equal(found, arrays[f"{name}_out"])


@each_form
def test_one_group_for_a_channel_and_for_a_token(form: str) -> None:
    """KCVT: a token's group holds the channels of all heads."""
    arrays, meta = read("gear", "sim_kcvt")
    assert torch.equal(there_and_back(form, arrays["key"], bits=meta["bits"], axis=CHANNEL), arrays["key_out"])
    value = arrays["value"]
    found = there_and_back(form, heads_beside(value), bits=meta["bits"], axis=TOKEN)
    assert torch.equal(heads_apart(found, value.shape[1]), arrays["value_out"])
