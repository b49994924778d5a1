"""KIVI's own layers (jy-yuan/KIVI 876b4d2), run as decoders by the procedure: prompt, steps, and what is packed when.

There the values of all but the newest `residual` tokens are packed, one a step; here as many as keys. So a plain layer
is written down here: with the original's counts it gives the original's outputs, and with ours it has to give ours.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.golden.golden_data import read
from tests.golden.golden_kv import spread
from tests.golden.test_golden_kivi import caches, heads_of
from tests.models.cache.one_layer import layer_decoder, tokens_of
from tests.models.cache.runs import CacheRun
from trt_compress.plugins.kv_dequantize.op import kv_dequantize

CASES = ("layer_2bit", "layer_2bit_exact", "layer_4bit_short")
OUTPUTS = 2e-5


def spec_of(meta: dict[str, Any]) -> str:
    return f"kivi:bits={meta['k_bits']},group={meta['group_size']},residual={meta['residual_length']},scales=float32"


class PlainLayer:
    """A layer whose first keys and values are reconstructions, however many of them."""

    def __init__(self, arrays: dict[str, Tensor], meta: dict[str, Any]) -> None:
        self.q, self.k, self.v = heads_of(arrays, meta)
        self.out, self.group, self.bits = arrays["wo"], meta["group_size"], meta["v_bits"]
        packed = arrays["end_key_dequant"]
        self.packed_k = torch.cat([packed, self.k[:, :, packed.shape[2] :]], dim=2)
        low, high = (part(self.v.unflatten(3, (-1, self.group)), 4) for part in (torch.amin, torch.amax))
        step = ((high - low) / (2**self.bits - 1))[..., None]
        codes = ((self.v.unflatten(3, (-1, self.group)) - low[..., None]) / step).round()
        self.packed_v = (codes * step + low[..., None]).flatten(3)

    def output(self, token: int, keys: int, values: int) -> Tensor:
        """What it gives to a token [B, C], with so many packed keys and values."""
        k = torch.cat([self.packed_k[:, :, :keys], self.k[:, :, keys : token + 1]], dim=2)
        v = torch.cat([self.packed_v[:, :, :values], self.v[:, :, values : token + 1]], dim=2)
        weights = (self.q[:, :, token, None] @ k.transpose(2, 3) / k.shape[3] ** 0.5).softmax(dim=3)
        return (weights @ v)[:, :, 0].flatten(1) @ self.out.T


@pytest.mark.parametrize("chunk", [64, 5])
@pytest.mark.parametrize("case", CASES)
def test_layer(case: str, chunk: int) -> None:
    arrays, meta = read("kivi", case)
    layer, prefill, residual = PlainLayer(arrays, meta), meta["prefill"], meta["residual_length"]
    texts, hidden = tokens_of(arrays), arrays["hidden"]
    run = CacheRun(layer_decoder(arrays, meta), spec_of(meta), context=96, chunk=chunk, batch=len(texts))
    logits = run.read([text[:prefill] for text in texts])
    torch.testing.assert_close(logits - hidden[:, prefill - 1], arrays["output"][:, prefill - 1], rtol=0, atol=OUTPUTS)
    counts = arrays["lengths"].tolist()
    for step in range(meta["steps"]):
        token = prefill + step
        theirs = layer.output(token, counts[step][0], counts[step][2])
        torch.testing.assert_close(theirs, arrays["output"][:, token], rtol=0, atol=OUTPUTS)
        ours = layer.output(token, counts[step][0], token // residual * residual)
        logits = run.step([text[token] for text in texts])
        torch.testing.assert_close(logits - hidden[:, token], ours, rtol=0, atol=OUTPUTS)
        assert run.states["packed"].tolist() == [counts[step + 1][0] // meta["group_size"]] * len(texts)
        assert run.states["rows"].tolist() == [counts[step + 1][1]] * len(texts)
    check_end(run, arrays, meta)


def check_end(run: CacheRun, arrays: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Codes, scales and minima of all keys, of the values that are packed in both, and the keys that are not packed."""
    bits, group, head_dim = meta["k_bits"], meta["group_size"], meta["head_dim"]
    keys, values = caches(arrays, meta)
    both = min(values[0].shape[2], keys[0].shape[2])
    for which, (codes, scale, minimum), count in (("k", keys, keys[0].shape[2]), ("v", values, both)):
        blocks = codes.shape[2] // group if which == "k" else -(-count // group)
        found = run.states[f"{which}_code_0"][:, :, :blocks].unflatten(3, (group, -1)).flatten(2, 3)
        assert torch.equal(spread(found, bits)[:, :, :count], codes[:, :, :count])
        for name, wanted in (("scale", scale), ("minimum", minimum)):
            state = run.states[f"{which}_{name}_0"][:, :, :blocks]
            rows = state if which == "k" else state.unflatten(3, (group, -1)).flatten(2, 3)[:, :, :count]
            torch.testing.assert_close(rows, wanted[:, :, : rows.shape[2]], rtol=1e-4, atol=1e-6)
    tail = arrays["end_key_tail"]
    torch.testing.assert_close(run.states["keys_0"][:, :, : tail.shape[2]], tail, rtol=0, atol=1e-5)
    scales = [run.states[f"k_{name}_0"][:, :, : keys[0].shape[2] // group] for name in ("scale", "minimum")]
    code = run.states["k_code_0"][:, :, : keys[0].shape[2] // group].unflatten(3, (group, -1)).flatten(2, 3)
    found = kv_dequantize(code, *scales, bits=bits, axis="channel", group=group, to=torch.float32)
    assert found.shape[3] == head_dim
    torch.testing.assert_close(found, arrays["end_key_dequant"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_a_prompt_is_read_in_full_precision(case: str) -> None:
    """Every position of the original's prompt, as prompts of unequal length beside each other."""
    arrays, meta = read("kivi", case)
    prefill, (text, *_) = meta["prefill"], tokens_of(arrays)
    run = CacheRun(layer_decoder(arrays, meta), spec_of(meta), context=96, chunk=7, batch=prefill)
    logits = run.read([text[: count + 1] for count in range(prefill)])
    found = logits - arrays["hidden"][0, :prefill]
    torch.testing.assert_close(found, arrays["output"][0, :prefill], rtol=0, atol=OUTPUTS)
