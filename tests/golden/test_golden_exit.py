"""Sentences that EXIT's own code (ThisIsHwang/EXIT caa96ea) keeps, against token_select_dynamic."""

import pytest
import torch

from tests.golden.golden_data import FORMS, OPERATOR_TOLERANCE, assert_close, call, cases_on_disk, read

CASES = ("none_kept", "threshold_default", "threshold_low")


def test_every_case_is_compared() -> None:
    assert cases_on_disk("exit") == set(CASES)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("trim", [0, 1])
@pytest.mark.parametrize("case", CASES)
def test_sentences_kept(case: str, trim: int, form: str) -> None:
    arrays, meta = read("exit", case)
    probability = arrays["yes_no_logits"].softmax(dim=1)[None, :, 0].contiguous()
    assert_close(probability[0], arrays["probability"], OPERATOR_TOLERANCE)
    wanted = arrays["keep"].nonzero()[:, 0].tolist()
    attributes = {"mode": 0, "threshold": float(meta["threshold"]), "min_kept": 0, "max_kept": 6, "forced": [-1]}
    sentences = torch.arange(1.0, 7.0)[None, :, None]
    y, index, valid, count, largest = call(
        form, "TrtcTokenSelectDynamic", {**attributes, "trim": trim}, sentences, probability
    )
    padding = 0 if trim else 6 - len(wanted)
    assert index[0].tolist() == wanted + [-1] * padding
    assert valid[0].tolist() == [1.0] * len(wanted) + [0.0] * padding
    assert y[0, :, 0].tolist() == [position + 1.0 for position in wanted] + [0.0] * padding
    assert (count.tolist(), int(largest)) == ([len(wanted)], len(wanted))
