"""The quantized cache of transformers 5.2.0 with optimum-quanto 0.2.7, axis 0, against kv_quantize and kv_dequantize.

Its groups are runs of consecutive elements for keys and values alike; its shift is minus our minimum.
"""

import pytest
import torch

from tests.golden.golden_data import FORMS, cases_on_disk, read
from tests.golden.golden_kv import dequantize, quantize

CASES = ("quanto_2bit_axis0", "quanto_2bit_const", "quanto_4bit_axis0_batch")
TOKEN = 1


def test_every_case_is_compared() -> None:
    assert cases_on_disk("hfquantcache") == set(CASES)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["key", "value"])
@pytest.mark.parametrize("case", CASES)
def test_prefill(case: str, name: str, form: str) -> None:
    arrays, meta = read("hfquantcache", case)
    x, prefix, bits = arrays[name][:, :, : meta["prefill"]], f"prefill_{name[0]}", meta["nbits"]
    runs = x.reshape(1, 1, -1, meta["q_group_size"])
    codes, scale, minimum = quantize(form, runs, bits=bits, axis=TOKEN)
    assert torch.equal(codes[0, 0], arrays[f"{prefix}_code"])
    assert torch.equal(scale[0, 0], arrays[f"{prefix}_scale"])
    assert torch.equal(-minimum[0, 0], arrays[f"{prefix}_shift"])
    found = dequantize(form, codes, scale, minimum, bits=bits, axis=TOKEN)
    assert torch.equal(found.reshape(x.shape), arrays[f"{prefix}_deq"])
