"""What holds of every store: bytes, rows that are never read, unequal prompts, and selectors before it."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from tests.golden.golden_data import FOLDER, read
from tests.models.cache.runs import CacheRun, golden_decoder
from trt_compress.models.cache.contract import CacheState, Store
from trt_compress.models.hosts.decoder import Decoder
from trt_compress.plugins.kv_dequantize.op import kv_dequantize

STORES = (
    "plain",
    "int8",
    "int4:group=8",
    "kivi:bits=4,group=8,residual=16",
    "kivi:bits=2,group=4,residual=8,prefill=packed",
    "gear:bits=4,group=8,residual=16,rank=2",
    "zipcache:every=10,window=4",
)
CLOSE = 1e-4


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    return golden_decoder(FOLDER / "kvpress" / "llama_model.npz", tmp_path_factory.mktemp("llama"), "llama")


def prompts() -> list[list[int]]:
    texts: list[list[int]] = read("kvpress", "llama_model")[0]["input_ids"].tolist()
    return texts


def rows_of_states(run: CacheRun) -> Iterator[tuple[CacheState, Tensor, int, int]]:
    """Each state of each layer: what the layer says of it, the array, the axis of its rows, and how many are used."""
    for cache in run.plan.layers:
        for state in cache.states():
            array = run.states[f"{state.name}_{cache.number}"]
            axis = next((place for place, dim in enumerate(state.shape, start=1) if isinstance(dim, str)), 0)
            used = int(run.states.get(str(state.shape[axis - 1]), run.seen)[0]) if axis else array.shape[0]
            yield state, array, axis, used


def check_close(found: Tensor, expected: Tensor) -> None:
    assert float((found - expected).abs().max() / expected.abs().max()) <= CLOSE


@pytest.mark.parametrize("spec", STORES)
def test_bytes_are_those_of_the_arrays(spec: str, decoder: Decoder) -> None:
    (text, *_) = prompts()
    run = CacheRun(decoder, spec, context=128, chunk=16)
    whole = spec.startswith("zipcache")  # which packs a prompt whatever its length
    run.read([text[:37] + text[:9] if whole else text[:37]])
    for token in [] if whole else text[:9]:
        run.step([token])
    stored = sum(array.nbytes // array.shape[axis] * used for _, array, axis, used in rows_of_states(run))
    layers = [cache.store for cache in run.plan.layers if isinstance(cache.store, Store)]
    assert stored == sum(store.bytes_of(37 + 9) for store in layers)
    store = layers[0]
    period = store.period or 1
    grown = store.bytes_of(20 * period) - store.bytes_of(10 * period)
    assert grown == pytest.approx(10 * period * store.bytes_per_token)
    site = run.plan.sites[0]
    assert (site.bytes_per_token, site.bytes) == (store.bytes_per_token, store.bytes_of(128))


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [  # of 2 KV heads with 16 channels: codes, then scales and minima in float16
        ("plain", 2 * 2 * 16 * 4),
        ("int8", 2 * 2 * (16 + 4)),
        ("int4:group=8", 2 * 2 * (8 + 2 * 4)),
        ("int4:group=8,scales=float32", 2 * 2 * (8 + 2 * 8)),
        ("kivi:bits=4,group=8,residual=16", 2 * (8 + 16 * 4 / 8) + 2 * (8 + 2 * 4)),
        # of GEAR's blocks of 64: factors, and outliers with their numbers: of 64 tokens 2 a channel, of 32 channels 2
        ("gear:bits=2,group=64,rank=3,outliers=0", 2 * (4 + 16 * 4 / 64 + 4 + 4) + 2 * 2 * 2 * 3 * (1 + 16 / 64)),
        ("gear:bits=2,group=64,rank=1", 2 * (4 + 1 + 4 + 4) + 2 * 2 * 2 * (1 + 1 / 4) + 2 * 16 * 2 * 4 / 64 + 2 * 4),
        ("zipcache", 2 * 2 * (0.6 * 8 + 0.4 * 4) + 4),  # heads share the scales of a token's values
        ("kivi:bits=2,group=32,residual=64", 2 * (4 + 16 * 4 / 32) + 2 * (4 + 4)),
    ],
)
def test_bytes_a_token(spec: str, wanted: float, decoder: Decoder) -> None:
    assert CacheRun(decoder, spec, context=128, chunk=16).plan.sites[0].bytes_per_token == wanted


@pytest.mark.parametrize("spec", STORES)
def test_slots_behind_the_rows_are_never_read(spec: str, decoder: Decoder) -> None:
    (text, *_) = prompts()
    clean, dirty = (CacheRun(decoder, spec, context=96, chunk=16) for _ in range(2))
    assert torch.equal(clean.read([text[:40]]), dirty.read([text[:40]]))
    for token in text[:20]:
        for state, array, axis, used in rows_of_states(dirty):
            behind = array.narrow(axis, used, array.shape[axis] - used)
            of_values = state.name.startswith("v")  # 0 times what is there is read
            behind.fill_((6e4 if of_values else torch.nan) if array.is_floating_point() else 255)
        expected, found = clean.step([token]), dirty.step([token])
        assert torch.equal(expected, found)


@pytest.mark.parametrize(
    "spec", (*STORES, "snapkv:budget=24,window=4+int8", "snapkv:budget=24,window=4+kivi:group=8,residual=16")
)
def test_unequal_prompts_are_as_alone(spec: str, decoder: Decoder) -> None:
    texts = [text[:count] for text, count in zip(prompts() * 2, (40, 33, 31, 35), strict=False)]
    together = CacheRun(decoder, spec, context=96, chunk=16, batch=len(texts))
    alone = [CacheRun(decoder, spec, context=96, chunk=16) for _ in texts]
    found = together.read(texts)
    for row, text in enumerate(texts):
        check_close(found[row], alone[row].read([text])[0])
    for step in range(12):
        found = together.step([text[step] for text in texts])
        for row, text in enumerate(texts):
            check_close(found[row], alone[row].step([text[step]])[0])


@pytest.mark.parametrize("store", ["int8", "kivi:bits=4,group=8,residual=16"])
def test_all_that_fits_is_kept(store: str, decoder: Decoder) -> None:
    """A selector with room for everything changes nothing."""
    (text, *_) = prompts()
    runs = [CacheRun(decoder, spec, context=96, chunk=16) for spec in (store, f"snapkv:budget=64,window=4+{store}")]
    first, second = (run.read([text[:40]]) for run in runs)
    check_close(first, second)
    for token in text[:20]:
        check_close(runs[0].step([token]), runs[1].step([token]))


@pytest.mark.parametrize("store", ["int8", "int4:group=8"])
def test_packed_rows_are_chosen_as_they_are(store: str, decoder: Decoder) -> None:
    """What SnapKV keeps of packed rows are rows of the cache as it was before, in their order."""
    (text, *_) = prompts()
    bits, group = (8, 0) if store == "int8" else (4, 8)
    whole, chosen = (
        CacheRun(decoder, spec, context=96, chunk=64) for spec in (store, f"snapkv:budget=24,window=4+{store}")
    )
    for run in (whole, chosen):
        run.read([text[:40]])
    assert chosen.states["rows"].tolist() == [24]
    for layer in range(2):
        for which in "kv":
            rows = []
            for run, count in ((whole, 40), (chosen, 24)):
                parts = [run.states[f"{which}_{what}_{layer}"][0:1, :, :count] for what in ("code", "scale", "minimum")]
                rows.append(kv_dequantize(*parts, bits=bits, axis="token", group=group, to=torch.float32)[0])
            same = (rows[0][:, None] == rows[1][:, :, None]).all(dim=3)  # [G, kept, all]
            assert same.any(dim=2).all()
            places = same.int().argmax(dim=2)
            assert (places.diff(dim=1) > 0).all() and torch.equal(places[:, -4:], torch.arange(36, 40).expand(2, 4))
