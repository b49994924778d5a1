"""Positions that TidalDecode's own code (DerrickYLJ/TidalDecode d67a1bd) chooses, against attention_score's logits."""

import pytest
import torch
from torch import Tensor

from tests.golden.golden_data import FORMS, cases_on_disk, read
from tests.golden.golden_scores import Llama, best, score


def test_the_case_is_there() -> None:
    assert "gqa" in cases_on_disk("tidaldecode")


@pytest.mark.parametrize("form", FORMS)
def test_both_selecting_layers_choose_the_same_positions(form: str) -> None:
    arrays, meta = read("tidaldecode", "gqa")
    options = {"num_attention_heads": meta["heads"], "num_key_value_heads": meta["kv_heads"]}
    llama = Llama(arrays, {**meta, **options}, "w.model.layers.")
    prompt, steps, top = meta["prompt"], meta["steps"], meta["top_k"]
    first, correction = meta["sparse_layer_start"], meta["correction_layer"]
    hidden = arrays["w.model.embed_tokens.weight"].float()[arrays["input_ids"]]

    def chosen(layer: int) -> Tensor:
        """Of every decoded token the best keys up to itself, [B, H, steps, k]."""
        q, k = llama.q_and_k(hidden, f"{layer}.")
        rows = []
        for place in range(prompt, prompt + steps):
            logits = score(
                form,
                q[:, :, place : place + 1],
                k[:, :, : place + 1],
                torch.tensor([place]),
                causal=False,
                softmax="none",
            )
            rows.append(best(form, logits, top))
        return torch.stack(rows, dim=2)

    for layer in range(first):
        hidden = llama.layer(hidden, f"{layer}.")
    kept = chosen(first)
    hidden = llama.layer(hidden, f"{first}.")
    dropped = torch.zeros(1, meta["heads"], prompt + steps, prompt + steps, dtype=torch.bool)
    dropped[:, :, prompt:] = True
    dropped[:, :, prompt:].scatter_(3, kept, False)
    for layer in range(first + 1, correction):
        hidden = llama.layer(hidden, f"{layer}.", dropped)
    corrected = chosen(correction)
    for step in range(steps):
        assert torch.equal(kept[:, :, step], arrays[f"sel_start_{step}"][:, :, 0]), step
        assert torch.equal(corrected[:, :, step], arrays[f"sel_correction_{step}"][:, :, 0]), step
