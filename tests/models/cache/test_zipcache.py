"""ZipCache's own layers (ThisisBillhe/ZipCache b6932b9), run as decoders by the procedure: prompt, steps, and what is
packed anew; and what the store does beyond one prompt."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.golden.golden_data import FOLDER, read
from tests.models.cache.one_layer import layer_decoder, tokens_of
from tests.models.cache.onnx_runs import OnnxRun
from tests.models.cache.runs import CacheRun, golden_decoder
from trt_compress.errors import ConfigError
from trt_compress.models.cache.zipcache import KINDS, ORDINARY, SALIENT, ZipCache, probing_rows
from trt_compress.models.hosts.decoder import Decoder

CASES = ("layer_gqa", "layer_short")
OUTPUTS = 1e-5  # of the largest output


def spec_of(meta: dict[str, Any], **options: object) -> str:
    said = {
        "bits": meta["quantize_bit_important"],
        "fewer_bits": meta["quantize_bit_unimportant"],
        "ordinary": meta["k_unimportant_ratio"],
        "every": meta["streaming_gap"],
        "scales": "float32",
        "order": "score",
        **options,
    }
    return "zipcache:" + ",".join(f"{name}={value}" for name, value in said.items())


def store_of(run: CacheRun, layer: int = 0) -> ZipCache:
    store = run.plan.layers[layer].store
    assert isinstance(store, ZipCache)
    return store


def packed_rows(run: CacheRun, which: str, kind: str, layer: int = 0) -> Tensor:
    """The rows of a kind as numbers."""
    store = store_of(run, layer)
    memory = {state.name: run.states[f"{state.name}_{layer}"] for state in store.cache_states()}
    return store.unpacked(which, kind, memory)[:, :, : int(run.states[kind][0])]


def by_token(rows: Tensor, ids: Tensor) -> Tensor:
    return rows.gather(2, ids[..., None].expand(-1, -1, -1, rows.shape[3]))


def others(ids: Tensor, count: int) -> Tensor:
    """The numbers that are not among ids [B, G, M], ascending."""
    left = [[sorted(set(range(count)) - set(head)) for head in item] for item in ids.tolist()]
    return torch.tensor(left)


def check_packed(run: CacheRun, ordinary: Tensor, theirs: dict[str, Tensor]) -> None:
    """Rows of both kinds are the original's, in its order."""
    total = theirs["k"].shape[2]
    salient = others(ordinary, total)
    for kind, ids in ((ORDINARY, ordinary), (SALIENT, salient)):
        assert run.states[kind].tolist() == [ids.shape[2]]
        for which, rows in theirs.items():
            wanted = by_token(rows, ids)
            torch.testing.assert_close(packed_rows(run, which, kind), wanted, rtol=0, atol=2e-5)


@pytest.mark.parametrize(("run_of", "chunk"), [(CacheRun, 64), (CacheRun, 7), (OnnxRun, 25)])
@pytest.mark.parametrize("case", CASES)
def test_layer(case: str, run_of: type[CacheRun], chunk: int) -> None:
    arrays, meta = read("zipcache_saliency", case)
    prefill, gap, (text,) = meta["prefill"], meta["streaming_gap"], tokens_of(arrays)
    hidden, output = arrays["hidden"].float(), arrays["output"]
    limit = OUTPUTS * float(output.abs().max())
    run = run_of(layer_decoder(arrays, meta), spec_of(meta), context=96, chunk=chunk)
    store_of(run).probe(sorted(arrays["random_probes"].tolist()))
    logits = run.read([text[:prefill]])
    torch.testing.assert_close(logits - hidden[:, prefill - 1], output[:, prefill - 1], rtol=0, atol=limit)
    theirs = {which: arrays[f"prefill_{which}_deq"] for which in "kv"}
    check_packed(run, arrays["unimportant_ids"], theirs)
    for step, (_, tail, important, unimportant) in enumerate(arrays["lengths"].tolist()):
        token = prefill + step
        logits = run.step([text[token]])
        torch.testing.assert_close(logits - hidden[:, token], output[:, token], rtol=0, atol=limit)
        assert [int(run.states[name]) for name in ("rows", SALIENT, ORDINARY)] == [tail, important, unimportant]
    theirs = {which: arrays[f"end_{which}_deq"] for which in "kv"}
    check_packed(run, arrays[f"unimportant_ids_step{gap}"], theirs)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    return golden_decoder(FOLDER / "kvpress" / "llama_model.npz", tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="module")
def text() -> list[int]:
    (first, *_) = read("kvpress", "llama_model")[0]["input_ids"].tolist()
    return [int(token) for token in first] * 2


def saliency(query: Tensor, keys: Tensor, asking: list[int], scale: float) -> Tensor:
    """How salient the rows of a prompt are, from the definition: attention of rows that ask, [G, N]."""
    repeats, count = query.shape[1] // keys.shape[1], keys.shape[2]
    products = query[0] @ keys[0].repeat_interleave(repeats, dim=0).transpose(1, 2) * scale
    seen = torch.ones(count, count).tril().bool()
    weights = products.masked_fill(~seen, -torch.inf).softmax(dim=2)[:, asking].sum(dim=1)
    return weights.unflatten(0, (-1, repeats)).sum(dim=1) / (count - torch.arange(count))


@pytest.mark.parametrize("chunk", [64, 9])
def test_a_prompt_is_divided_by_what_its_probes_attend_to(chunk: int, decoder: Decoder, text: list[int]) -> None:
    """In every layer of a model; the rows that ask are those of the options, and lie in their order."""
    options, count = "zipcache:bits=8,fewer_bits=4,ordinary=0.3,probes=0.2,window=6,seed=3,scales=float32", 41
    plain, run = (CacheRun(decoder, spec, context=64, chunk=chunk) for spec in ("plain", options))
    heard: list[Tensor] = []
    for layer in plain.plan.layers:
        layer.register_forward_pre_hook(lambda _, given: heard.append(given[0].query))
    for each in (plain, run):
        each.read([text[:count]])
    drawn = probing_rows(64, 0.2, 3)
    assert [row // 5 for row in drawn] == list(range(13)) and len({row % 5 for row in drawn}) > 2
    asking = [row for row in drawn if row < count] + list(range(count - 6, count))
    for layer in range(3):
        query = torch.cat(heard[layer::3], dim=2)
        keys = plain.states[f"keys_{layer}"][:, :, :count]
        score = saliency(query, keys, asking, query.shape[3] ** -0.5)
        ordinary = score.sort(dim=1).indices[None, :, : int(0.3 * count)].sort(dim=2).values
        for kind, ids in ((ORDINARY, ordinary), (SALIENT, others(ordinary, count))):
            found, wanted = packed_rows(run, "k", kind, layer), by_token(keys, ids)
            step = (wanted.amax(dim=2, keepdim=True) - wanted.amin(dim=2, keepdim=True)) / (
                255 if kind == SALIENT else 15
            )
            assert ((found - wanted).abs() <= step / 2 * 1.001 + 1e-6).all()


def test_long_prompts_are_packed_piece_by_piece(decoder: Decoder, text: list[int]) -> None:
    """Each piece has its share of ordinary rows, and no row is lost or twice there."""
    run = CacheRun(decoder, "zipcache:bits=8,fewer_bits=8,scales=float32,every=8", context=96, chunk=16)
    plain = CacheRun(decoder, "plain", context=96, chunk=16)
    for layer in range(3):
        store_of(run, layer).at_once = 16
    for each in (run, plain):
        each.read([text[:41]])
    assert run.runs["flush"] == 3
    assert [int(run.states[name]) for name in ("rows", SALIENT, ORDINARY)] == [0, 10 + 10 + 6, 6 + 6 + 3]
    for layer in range(3):
        for which, name in (("k", "keys"), ("v", "values")):
            found = torch.cat([packed_rows(run, which, kind, layer) for kind in KINDS], dim=2)
            wanted = plain.states[f"{name}_{layer}"][:, :, :41]
            near = torch.cdist(found, wanted).argmin(dim=3)
            assert torch.equal(near.sort(dim=2).values, torch.arange(41).expand_as(near))
            torch.testing.assert_close(found, by_token(wanted, near), rtol=0, atol=0.05)


def test_a_prompt_behind_steps(decoder: Decoder, text: list[int]) -> None:
    """Rows that steps have left are packed with it, and all that had been packed, anew; 8 bits are near to plain."""
    run, plain = (
        CacheRun(decoder, spec, context=96, chunk=16)
        for spec in ("zipcache:bits=8,fewer_bits=8,every=8,scales=float32", "plain")
    )
    for each in (run, plain):
        each.read([text[:20]])
        for token in text[20:31]:
            each.step([token])
    assert [int(run.states[name]) for name in ("rows", SALIENT, ORDINARY)] == [3, 12 + 5, 8 + 3]
    first, second = (each.read([text[31:48]]) for each in (run, plain))
    assert [int(run.states[name]) for name in ("rows", SALIENT, ORDINARY)] == [0, 17 + 12, 11 + 8]
    torch.testing.assert_close(first, second, rtol=0, atol=0.02 * float(second.abs().max()))
    assert not run.states["asked_0"].any() and not run.states["saliency_0"].any()


def test_a_channel_of_zeros_stays_so() -> None:
    arrays, _ = read("zipcache", "constants")
    rows = arrays["x_zero_channel"]
    run = CacheRun(layer_decoder(*read("zipcache_saliency", "layer_short")), "zipcache:bits=2", context=64, chunk=8)
    made = store_of(run).pack_values({kind: (rows, torch.ones(1, rows.shape[2]) > 0) for kind in KINDS})
    memory = dict(made)
    found = store_of(run).unpacked("v", SALIENT, memory)
    assert torch.isfinite(found).all() and arrays["cst_nan"].any()
    assert (found[:, 0, :, 2].abs() <= 2 * rows.abs().max()).all()


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("zipcache:bits=3", "zipcache: bits=3 is not allowed; codes have 8, 4 or 2."),
        ("zipcache:bits=2,fewer_bits=4", "zipcache: fewer_bits=4 is not allowed; give 8, 4 or 2, at most bits=2."),
        ("zipcache:ordinary=1.0", "zipcache: ordinary=1.0 is out of range; it is a share, between 0 and 1."),
        ("zipcache:every=0", "zipcache: every=0 is out of range; give 1 to 1024 tokens."),
        ("zipcache:every=2000", "zipcache: every=2000 is out of range; give 1 to 1024 tokens."),
        ("zipcache:probes=0.7", "zipcache: probes=0.7 is out of range; it is a share, from 0 to 0.5."),
        ("zipcache:window=0", "zipcache: window=0 is out of range; give 1 to 4096 tokens."),
        ("zipcache:order=time", "zipcache: order=time is not one of position, score."),
        (
            "snapkv:budget=20,window=4+zipcache",
            "snapkv: cannot choose what is kept, as zipcache chooses by itself which entries get fewer bits, and packs "
            "all of them together.",
        ),
    ],
)
def test_bad_options_are_refused(spec: str, said: str, decoder: Decoder) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        CacheRun(decoder, spec, context=64, chunk=16)
