"""Selectors keep what the papers' own code keeps, in a whole model and through its procedure."""

from pathlib import Path

import pytest
import torch

from tests.golden.golden_data import FOLDER, read
from tests.models.cache.runs import CacheRun, golden_decoder

LOGITS = 1e-4


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("chunk", [64, 7])
def test_golden_kvpress_snapkv(family: str, chunk: int, tmp_path: Path) -> None:
    """The set that is kept in each layer, the logits behind the prompt, and those of steps on what was kept."""
    model, _ = read("kvpress", f"{family}_model")
    arrays, said = read("kvpress", f"{family}_snapkv")
    decoder = golden_decoder(FOLDER / "kvpress" / f"{family}_model.npz", tmp_path, family)
    kept = int(arrays["kept_count"][0])
    spec = f"snapkv:budget={kept},window={said['window_size']},kernel={said['kernel_size']}"
    prompts = model["input_ids"].tolist()
    run = CacheRun(decoder, spec, context=96, chunk=chunk, batch=len(prompts))
    logits = run.read(prompts)
    torch.testing.assert_close(logits, arrays["prefill_logits"], rtol=0, atol=LOGITS)
    assert run.runs["compact"] == 1 and run.states["rows"].tolist() == [kept] * len(prompts)
    for layer in range(len(decoder.layers)):
        order = arrays[f"kept_{layer}"].sort(dim=-1).indices[..., None]
        for name in ("keys", "values"):
            wanted = arrays[f"{name}_{layer}"].gather(2, order.expand(-1, -1, -1, 16))
            torch.testing.assert_close(run.states[f"{name}_{layer}"][:, :, :kept], wanted, rtol=0, atol=1e-5)
    tokens = arrays["next_token"][:, 0]
    for number in range(arrays["decode_logits"].shape[1]):
        logits = run.step(tokens.tolist())
        torch.testing.assert_close(logits, arrays["decode_logits"][:, number], rtol=0, atol=LOGITS)
        tokens = logits.argmax(dim=1)
