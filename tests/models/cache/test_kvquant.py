"""KVQuant's own quantizers and calibration (SqueezeAILab/KVQuant 57a2383) against the store's tables, and what steps
make of them.

The original has no layer: it puts quantized keys and values into a model. So a layer is written down here.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from tests.golden.golden_data import FOLDER, read
from tests.models.cache.onnx_runs import OnnxRun
from tests.models.cache.runs import CacheRun, golden_decoder
from trt_compress.errors import ConfigError
from trt_compress.methods import ArtifactFile, CompressorSpec, parse_spec
from trt_compress.methods.cache_stores import KvQuantConfig
from trt_compress.models.cache.kvquant import KvQuant, KvTables, apart_of, is_apart, put
from trt_compress.models.cache.packing import code_planes, codes_of_planes
from trt_compress.models.calibrate import signposts
from trt_compress.models.hosts.decoder import Decoder
from trt_compress.models.layers.rope import Rope, turned

NUQ = ("nuq_2bit", "nuq_3bit", "nuq_4bit")


def golden_tables(arrays: dict[str, Tensor], config: KvQuantConfig, norm: tuple[float, float] = (1.0, 0.0)) -> KvTables:
    levels = arrays["signposts"].flatten().sort().values
    found = {"upper": arrays["k_upper"].flatten(), "lower": arrays["k_lower"].flatten()}
    found |= {f"{which}_signposts": levels for which in "kv"}
    found |= {f"{which}_moments": torch.tensor(norm) for which in "kv"}
    return KvTables(config, found)


def through(tables: KvTables, which: str, lines: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Lines as they are restored, and what was kept."""
    kept = tables.kept(which, lines[None])
    return tables.restored(which, kept)[0], kept


@pytest.mark.parametrize("case", NUQ)
def test_keys(case: str) -> None:
    """Ranges are given, outliers stay as they are; the cap of the original is beyond all there are."""
    arrays, meta = read("kvquant", case)
    outliers = arrays["k_outlier"]
    most = int(torch.maximum(*(((arrays["key"] - end) * sign > 0).sum(dim=1).max() for end, sign in sides(arrays))))
    config = KvQuantConfig(bits=meta["bits"], outliers=0.2, scales="float32", normalize=False)
    tables = golden_tables(arrays, config)
    assert tables.apart[0] >= most
    found, kept = through(tables, "k", arrays["key"])
    torch.testing.assert_close(found, arrays["k_sparse"], rtol=0, atol=1e-6)
    assert torch.equal(is_apart(arrays["key"][None], kept["number"])[0], outliers)
    assert torch.equal(found[outliers], arrays["key"][outliers])
    config = KvQuantConfig(bits=meta["bits"], outliers=0.2, scales="float32", normalize=True)
    normal = golden_tables(arrays, config, (meta["qnorm_scale"], meta["qnorm_offset"]))
    found, _ = through(normal, "k", arrays["key"])
    torch.testing.assert_close(found, arrays["k_sparse_qnorm"], rtol=0, atol=1e-6)


def sides(arrays: dict[str, Tensor]) -> tuple[tuple[Tensor, int], tuple[Tensor, int]]:
    return (arrays["k_upper"], 1), (arrays["k_lower"], -1)


@pytest.mark.parametrize("case", NUQ)
def test_values(case: str) -> None:
    arrays, meta = read("kvquant", case)
    outliers = 1 - meta["v_threshold"]
    tables = golden_tables(
        arrays, KvQuantConfig(bits=meta["bits"], outliers=outliers, scales="float32", normalize=False)
    )
    found, kept = through(tables, "v", arrays["value"])
    torch.testing.assert_close(found, arrays["v_sparse"], rtol=0, atol=2e-6)
    assert torch.equal(is_apart(arrays["value"][None], kept["number"])[0], arrays["v_outlier"])
    assert torch.equal(found[arrays["v_outlier"]], arrays["value"][arrays["v_outlier"]])


@pytest.mark.parametrize("case", [*NUQ, "const_ties"])
def test_without_outliers(case: str) -> None:
    """Ranges are all there is; a constant stays, and half way goes to the lower level."""
    arrays, meta = read("kvquant", case)
    arrays |= {"k_upper": arrays["key"].amax(dim=0), "k_lower": arrays["key"].amin(dim=0)}
    tables = golden_tables(arrays, KvQuantConfig(bits=meta["bits"], outliers=0.0, scales="float32", normalize=False))
    for which, lines in (("k", arrays["key"]), ("v", arrays["value"])):
        found, kept = through(tables, which, lines)
        assert "number" not in kept
        torch.testing.assert_close(found, arrays[f"{which}_dense"], rtol=0, atol=2e-6)


def test_cap_of_outliers() -> None:
    """With the original's 21 a side the same entries are apart: of more the largest and the smallest."""
    arrays, _ = read("kvquant", "outlier_cap")
    width = arrays["x"].shape[1]
    config = KvQuantConfig(bits=2, outliers=0.2, apart="value", normalize=False)
    tables = golden_tables(arrays | {"signposts": torch.linspace(-1, 1, 4)}, config)
    tables.apart = (21, 21)
    kept = tables.kept("k", arrays["x"][None])
    assert torch.equal(is_apart(arrays["x"][None], kept["number"])[0], arrays["mask_capped"])
    assert (arrays["mask_capped"] != arrays["mask_uncapped"]).any()
    assert apart_of(4096, KvQuantConfig()) == (21, 21) and apart_of(width, config)[0] == 7


def test_calibration() -> None:
    """Ends of the channels are the original's; levels have no larger error than its."""
    arrays, meta = read("kvquant", "calibration")
    upper, lower = signposts.ranges(arrays["data"], 1 - meta["threshold"])
    torch.testing.assert_close(upper, arrays["upper"].flatten(), rtol=0, atol=1e-6)
    torch.testing.assert_close(lower, arrays["lower"].flatten(), rtol=0, atol=1e-6)
    inside = (arrays["data"] <= upper) & (arrays["data"] >= lower)
    points = ((arrays["data"] - (upper + lower) / 2) / ((upper - lower) / 2))[inside]
    weights = arrays["fisher"][inside]
    theirs = arrays["centroids"].flatten().sort().values

    def error(levels: Tensor, weight: Tensor) -> float:
        return float((weight * (points - signposts.nearest(points, levels)).square()).sum())

    ours = signposts.signposts(points, 2 ** meta["bits"], weights)
    assert error(ours, weights) <= 1.002 * error(theirs, weights)
    plain = signposts.signposts(points, 2 ** meta["bits"])
    assert error(plain, torch.ones_like(points)) <= error(ours, torch.ones_like(points))
    factor, offset = signposts.moments(points, ours)
    became = signposts.nearest(points, ours) * factor + offset
    torch.testing.assert_close(torch.stack([became.mean(), became.std()]), torch.stack([points.mean(), points.std()]))


@pytest.mark.parametrize("planes", [(4,), (2, 1), (2,), (8,), (2, 2), (1, 1, 1)])
def test_codes_in_parts(planes: tuple[int, ...]) -> None:
    """Packing and unpacking give the codes back, and codes that are one apart differ by one in one part."""
    bits = sum(planes)
    codes = torch.arange(2**bits).repeat(2, 3, 5, 8)
    packed = code_planes(codes, planes)
    assert [each.shape[3] for each in packed] == [codes.shape[3] * width // 8 for width in planes]
    assert all(each.dtype == torch.uint8 for each in packed)
    assert torch.equal(codes_of_planes(packed, planes), codes)
    parts = [code_planes(torch.full((1, 1, 1, 8), number), planes) for number in range(2**bits)]
    for one, other in zip(parts, parts[1:], strict=False):
        steps = [
            int(a[0, 0, 0, 0]) % 2**width - int(b[0, 0, 0, 0]) % 2**width
            for a, b, width in zip(one, other, planes, strict=True)
        ]
        assert sorted(abs(step) for step in steps) == [0] * (len(planes) - 1) + [1]


def test_outliers_are_put_where_they_were() -> None:
    lines, numbers = torch.arange(6.0).reshape(1, 1, 6), torch.tensor([[[4, -1, 0, -1]]])
    assert put(lines, numbers, torch.tensor([[[9.0, 8, 7, 6]]])).tolist() == [[[7, 1, 2, 3, 9, 5]]]


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    return golden_decoder(FOLDER / "kvpress" / "llama_model.npz", tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="module")
def texts() -> list[list[int]]:
    found: list[list[int]] = read("kvpress", "llama_model")[0]["input_ids"].tolist()
    return [text * 2 for text in found]


def plain_entries(decoder: Decoder, text: list[int]) -> list[tuple[Tensor, Tensor]]:
    """Keys before they are turned, and values, [1, G, N, D], of each layer of a plain model."""
    run = CacheRun(decoder, "plain", context=96, chunk=96)
    found: list[tuple[Tensor, Tensor]] = []
    for layer in run.plan.layers:
        layer.register_forward_pre_hook(lambda _, given: found.append((given[0].key_before, given[0].value)))
    run.read([text])
    return found


def artifact(decoder: Decoder, text: list[int], config: KvQuantConfig) -> ArtifactFile:
    """Tables of the entries of one text."""
    made: dict[str, list[Tensor]] = {}
    for keys, values in plain_entries(decoder, text):
        upper, lower = signposts.ranges(signposts.lines_of(keys)[0], config.outliers)
        levels = torch.linspace(-1, 1, 2**config.bits)
        one = torch.tensor([1.1, 0.02])
        for name, tensor in {
            **{"upper": upper, "lower": lower, "k_signposts": levels, "v_signposts": levels * levels.abs()},
            **{"k_moments": one, "v_moments": one},
        }.items():
            made.setdefault(name, []).append(tensor)
        assert values.shape == keys.shape
    return ArtifactFile("tables", save({name: torch.stack(parts) for name, parts in made.items()}))


def specs(decoder: Decoder, text: list[int], **options: Any) -> list[CompressorSpec]:
    config = KvQuantConfig(**options)
    return [CompressorSpec(name="kvquant", config=replace(config, tables=artifact(decoder, text, config)))]


OPTIONS: tuple[dict[str, Any], ...] = (
    {"bits": 4, "outliers": 0.06},
    {"bits": 3, "outliers": 0.1, "first": 2, "scales": "float32"},
    {"bits": 2, "outliers": 0.0, "first": 0},
)


@pytest.mark.parametrize(("run_of", "options"), [*((CacheRun, each) for each in OPTIONS), (OnnxRun, OPTIONS[1])])
def test_steps_attend_to_what_is_restored(
    run_of: type[CacheRun], options: dict[str, Any], decoder: Decoder, texts: list[list[int]]
) -> None:
    """A plain cache with the restored keys, turned by their places, and values gives the same logits; the first tokens
    and outliers in it are the true ones."""
    text = texts[0]
    plain = CacheRun(decoder, "plain", context=96, chunk=48)
    run = run_of(decoder, specs(decoder, text, **options), context=96, chunk=48)
    for each in (plain, run):
        each.read([text[:37]])
    for cache, (keys, values) in zip(run.plan.layers, plain_entries(decoder, text[:37]), strict=True):
        store, number = cache.store, cache.number
        assert isinstance(store, KvQuant) and store.layer.rope is not None
        memory = {state.name: run.states[f"{state.name}_{number}"] for state in cache.states()}
        table = Rope(store.layer.rope, 96).table(torch.arange(37)[None], torch.float32)
        for which, true, name in (("k", keys, "keys"), ("v", values, "values")):
            found = store.unpacked(which, memory)[:, :, :37]
            torch.testing.assert_close(found[:, :, : store.config.first], true[:, :, : store.config.first])
            if store.config.outliers:
                lines, kept = signposts.lines_of(true), store.tables.kept(which, signposts.lines_of(true))
                apart = is_apart(lines, kept["number"])
                assert apart.any() and not apart.all()
                torch.testing.assert_close(signposts.lines_of(found)[apart], lines[apart], rtol=0, atol=1e-5)
            plain.states[f"{name}_{number}"][:, :, :37] = turned(found, table) if which == "k" else found
    for token in text[37:41]:
        ours, theirs = run.step([token]), plain.step([token])
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4 * float(theirs.abs().max()))
        for cache in run.plan.layers:  # what has come is packed: the plain cache gets it as it is restored
            number, row = cache.number, int(run.seen[0])
            memory = {state.name: run.states[f"{state.name}_{number}"] for state in cache.states()}
            store = cache.store
            assert isinstance(store, KvQuant) and store.layer.rope is not None
            table = Rope(store.layer.rope, 96).table(torch.arange(row)[None], torch.float32)
            plain.states[f"keys_{number}"][:, :, :row] = turned(store.unpacked("k", memory)[:, :, :row], table)
            plain.states[f"values_{number}"][:, :, :row] = store.unpacked("v", memory)[:, :, :row]


def test_unequal_prompts_and_what_is_behind_the_rows(decoder: Decoder, texts: list[list[int]]) -> None:
    chosen = specs(decoder, texts[0], bits=3, outliers=0.1)
    prompts = [texts[0][:30], texts[1 % len(texts)][:3], texts[0][5:26]]
    together = CacheRun(decoder, chosen, context=96, chunk=16, batch=3)
    for name, state in together.states.items():
        if state.is_floating_point() and "first" not in name:
            state[:] = 6e4
    found = [together.read(prompts), *(together.step([token] * 3) for token in (5, 6, 7, 8))]
    for row, prompt in enumerate(prompts):
        alone = CacheRun(decoder, chosen, context=96, chunk=16)
        wanted = [alone.read([prompt]), *(alone.step([token]) for token in (5, 6, 7, 8))]
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one[row], other[0], rtol=0, atol=1e-4 * float(other.abs().max()))


def test_bytes(decoder: Decoder, texts: list[list[int]]) -> None:
    """Of 2 KV heads with 16 channels: codes, values' ranges, and outliers with their numbers; and the first tokens."""
    chosen = specs(decoder, texts[0], bits=3, outliers=0.1, first=4)
    run = CacheRun(decoder, chosen, context=96, chunk=16)
    run.read([texts[0][:30]])
    site, store = run.plan.sites[0], run.plan.layers[0].store
    assert isinstance(store, KvQuant)
    assert site.bytes_per_token == 2 * 2 * 16 * 3 / 8 + 2 * 2 + 2 * 2 * 2 * (4 + 2) == store.bytes_per_token
    stored = 0
    for state in store.cache_states():
        array = run.states[f"{state.name}_0"]
        stored += array.nbytes // 96 * 30 if "rows" in state.shape else array.nbytes
    assert stored == store.bytes_of(30)


def wrong(name: str, change: Any) -> dict[str, Tensor]:
    levels, ends = torch.linspace(-1, 1, 16).repeat(3, 1), torch.ones(3, 32)
    tensors = {"upper": ends, "lower": -ends, "k_signposts": levels, "v_signposts": levels.clone()}
    tensors |= {f"{which}_moments": torch.tensor([[1.0, 0.0]]).repeat(3, 1) for which in "kv"}
    return tensors | ({name: change(tensors[name]).contiguous()} if name else {})


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        (None, "kvquant: tables=FILE is missing; make it with `trt-compress calibrate MODEL --compress kvquant:bits=4"),
        (wrong("k_moments", lambda x: x[:, :1]), "a calibration|tables are `upper` and `lower` .layers, channels."),
        (wrong("upper", lambda x: x[:, :9]), "tables are `upper` and `lower`"),
        (wrong("k_signposts", lambda x: x.flip(1)), "or signposts that do not ascend; make it again with"),
        (wrong("upper", lambda x: x * torch.nan), "holds numbers that are not finite"),
        (wrong("upper", lambda x: x - 3), "has channels whose upper end is below the lower one"),
        (
            {name: each[:2] for name, each in wrong("", None).items()},
            "for 2 layers of 32 channels of keys, and tiny has 3 of",
        ),
    ],
)
def test_bad_tables(tensors: dict[str, Tensor] | None, said: str, decoder: Decoder) -> None:
    file = None if tensors is None else ArtifactFile("tables", save(tensors))
    with pytest.raises(ConfigError, match=said):
        CacheRun(decoder, [CompressorSpec(name="kvquant", config=KvQuantConfig(tables=file))], context=96, chunk=8)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("bits=8", "kvquant: bits=8 is not allowed; codes have 4, 3 or 2."),
        ("outliers=0.5", "kvquant: outliers=0.5 is out of range"),
        ("first=-1", "kvquant: first=-1 is out of range"),
    ],
)
def test_bad_options(options: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_spec(f"kvquant:{options}")


def test_no_selector_goes_with_it(decoder: Decoder, texts: list[list[int]]) -> None:
    chosen = [*parse_spec("snapkv:budget=20,window=4"), *specs(decoder, texts[0])]
    with pytest.raises(ConfigError, match="snapkv: cannot choose what is kept, as kvquant keeps range and outliers of"):
        CacheRun(decoder, chosen, context=96, chunk=8)
