"""TidalDecode: whole models of the authors' code (DerrickYLJ/TidalDecode d67a1bd), their choices, and every store."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from tests.golden.golden_data import FOLDER, cases_on_disk, read
from tests.models.cache.runs import CacheRun, golden_decoder
from tests.typed_commands import Typed
from trt_compress.errors import ConfigError
from trt_compress.format.bundle import Bundle
from trt_compress.methods import ArtifactFile, CompressorSpec, parse_spec
from trt_compress.methods.cache_readers import TidalDecodeConfig
from trt_compress.models.cache.chosen import by_head
from trt_compress.models.cache.contract import Memory, NewEntries, Store
from trt_compress.models.cache.kivi import Kivi
from trt_compress.models.cache.tidaldecode import TidalDecode, best_layer
from trt_compress.models.hosts.decoder import Decoder
from trt_compress.plugins.kv_dequantize.op import kv_dequantize
from trt_compress.runtime.sequences import Sequences
from trt_compress.runtime.session import Session

CASES = ("batch", "budget_over_length", "gqa")
LOGITS = 1e-4
STORES = ("plain", "int8", "int4:group=8", "kivi:bits=4,group=4,residual=8", "kivi:bits=8,group=4,prefill=packed")


def decoder_of(case: str, folder: Path) -> Decoder:
    return golden_decoder(FOLDER / "tidaldecode" / f"{case}.npz", folder, "llama")


def spec_of(said: dict[str, Any], **options: object) -> str:
    found = {"budget": said["top_k"], "start": said["sparse_layer_start"], "reselect": said["correction_layer"]}
    return "tidaldecode:" + ",".join(f"{name}={value}" for name, value in (found | options).items())


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    return decoder_of("gqa", tmp_path_factory.mktemp("hf"))


def texts(*counts: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(0, 67, (count,), generator=generator).tolist() for count in counts]


def test_every_case_is_compared() -> None:
    assert cases_on_disk("tidaldecode") == set(CASES)


@pytest.mark.parametrize("chunk", [64, 7])
@pytest.mark.parametrize("case", CASES)
def test_golden_model(case: str, chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits of prompt and steps, and what both layers choose; of a budget over the length, all there is."""
    arrays, said = read("tidaldecode", case)
    chosen: list[Tensor] = []
    choose = TidalDecode.choose

    def noted(self: TidalDecode, reading: NewEntries, store: Store, memory: Memory) -> Tensor:
        chosen.append(choose(self, reading, store, memory))
        return chosen[-1]

    monkeypatch.setattr(TidalDecode, "choose", noted)
    run = CacheRun(decoder_of(case, tmp_path), spec_of(said), context=96, chunk=chunk, batch=said["batch"])
    ids, prompt = arrays["input_ids"], said["prompt"]
    torch.testing.assert_close(run.read(ids[:, :prompt].tolist()), arrays["prefill_logits"], rtol=0, atol=LOGITS)
    for step in range(said["steps"]):
        logits = run.step(ids[:, prompt + step].tolist())
        torch.testing.assert_close(logits, arrays["decode_logits"][:, step], rtol=0, atol=LOGITS)
        for found, name in zip(chosen[-2:], ("start", "correction"), strict=True):
            wanted = arrays[f"sel_{name}_{step}"][:, :, 0].sort(dim=2).values
            assert torch.equal(found[:, :, : wanted.shape[2]], wanted)
            assert bool((found[:, :, wanted.shape[2] :] > prompt + step).all())
    assert len(chosen) == 2 * said["steps"]


@pytest.fixture(scope="module")
def bundle(commands: Typed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden model with grouped heads, exported and verified."""
    folder = tmp_path_factory.mktemp("tidal")
    decoder_of("gqa", folder / "model")
    _, said = read("tidaldecode", "gqa")
    options = ("--context", 160, "--chunk", 16, "--batch", "1:1:2", "--compress", spec_of(said))
    ended = commands("export", f"hf:{folder / 'model'}", *options, "-o", folder / "bundle", within=400)
    assert ended.code == 0, ended.err
    return folder / "bundle"


def test_golden_bundle(bundle: Path) -> None:
    """What ONNX Runtime gives by the procedure is what the authors' code gives."""
    arrays, said = read("tidaldecode", "gqa")
    ids = arrays["input_ids"].numpy()
    with Session.open(bundle) as session:
        one = Sequences(session)
        logits = one.read([ids[0, : said["prompt"]]])
        np.testing.assert_allclose(logits, arrays["prefill_logits"], rtol=0, atol=LOGITS)
        for step in range(said["steps"]):
            logits = one.step([ids[0, said["prompt"] + step]])
            np.testing.assert_allclose(logits, arrays["decode_logits"][:, step], rtol=0, atol=LOGITS)


def test_generate_writes_the_tokens_of_torch(bundle: Path, commands: Typed, decoder: Decoder, tmp_path: Path) -> None:
    """Greedily, over more tokens than a layer reads and a growing cache; a prompt shorter than the budget beside it."""
    _, said = read("tidaldecode", "gqa")
    lines, answers, wanted = tmp_path / "lines.jsonl", tmp_path / "answers.jsonl", []
    prompts = texts(45, 4)
    for prompt in prompts:
        run, found = CacheRun(decoder, spec_of(said), context=160, chunk=16), list[int]()
        logits = run.read([prompt])
        for _ in range(30):
            found.append(int(logits.argmax()))
            logits = run.step(found[-1:])
        wanted.append(found)
    lines.write_text(
        "\n".join(json.dumps({"tokens": prompt, "temperature": 0.0, "max_new": 30}) for prompt in prompts),
        encoding="utf-8",
    )
    ended = commands("generate", bundle, "--input", lines, "--ignore-stop-ids", "-o", answers)
    assert ended.code == 0, ended.err
    assert [json.loads(line)["tokens"] for line in answers.read_text(encoding="utf-8").splitlines()] == wanted


def test_the_manifest_says_what_is_read(bundle: Path) -> None:
    manifest = Bundle.open(bundle).manifest
    assert [graph.role for graph in manifest.graphs] == ["prefill", "step", "score"]
    sites = [(each.site, each.tokens_in, each.tokens_out, each.keeps_rest) for each in manifest.compression]
    assert sites == [(f"step/cache.{layer}", 160, kept, True) for layer, kept in ((2, 160), (3, 10), (4, 160), (5, 10))]
    assert {each.bytes for each in manifest.compression} == {160 * 2 * 2 * 16 * 4}
    assert manifest.verification is not None and manifest.verification.passed


def test_unequal_prompts_and_growing_caches_are_as_alone(bundle: Path) -> None:
    """One has fewer entries than the budget; the other's cache grows while it goes on."""
    prompts, more = [np.array(text) for text in texts(45, 4)], texts(60)[0]
    with Session.open(bundle) as session:
        pair = Sequences(session, batch=2)
        found = [pair.read(prompts)]
        before = pair.states.lengths["slots"]
        found += [pair.step([token, token]) for token in more]
        assert pair.states.lengths["slots"] > before
        for row, prompt in enumerate(prompts):
            alone = Sequences(session)
            logits = [alone.read([prompt]), *(alone.step([token]) for token in more)]
            np.testing.assert_allclose([each[row] for each in found], [each[0] for each in logits], rtol=0, atol=LOGITS)


def test_what_is_not_chosen_is_not_read(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries that no head has chosen may hold anything in the layers that read what others chose."""
    _, said = read("tidaldecode", "gqa")
    (prompt,) = texts(40)
    runs = [CacheRun(decoder, spec_of(said), context=96, chunk=16) for _ in range(2)]
    wanted, _ = (run.read([prompt]) for run in runs)
    wanted = runs[0].step([9])
    some = Store.forward_some.__name__
    plain = type(runs[1].plan.layers[0].store)
    forward = getattr(plain, some)
    poisoned = []

    def poison(self: Store, reading: NewEntries, memory: Memory, index: Tensor) -> Tensor:
        groups = self.layer.groups
        read_ = torch.zeros(1, groups, memory["keys"].shape[2] + 1, dtype=torch.bool)
        read_.scatter_(2, index.reshape(1, groups, -1).clamp(max=memory["keys"].shape[2]), True)
        for name in ("keys", "values"):
            memory[name] = torch.where(read_[:, :, :-1, None], memory[name], torch.nan)
        poisoned.append(int((~read_[:, :, : len(prompt)]).sum()))
        found: Tensor = forward(self, reading, memory, index)
        return found

    monkeypatch.setattr(plain, some, poison)
    torch.testing.assert_close(runs[1].step([9]), wanted, rtol=0, atol=0)
    assert len(poisoned) == 2 and min(poisoned) > 0


@pytest.mark.parametrize("heads", ["own", "group"])
@pytest.mark.parametrize("store", STORES)
def test_a_budget_over_the_length_is_the_store_alone(decoder: Decoder, store: str, heads: str) -> None:
    prompts, more = texts(30, 7), texts(20)[0]
    options = f"tidaldecode:budget=80,reselect=4,heads={heads}"
    runs = [CacheRun(decoder, spec, context=96, chunk=16, batch=2) for spec in (f"{options}+{store}", store)]
    for run in runs:
        run.read(prompts)
    for token in more:
        ours, theirs = (run.step([token, token + 1]) for run in runs)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-4)


def attended(
    query: Tensor, keys: Tensor, values: Tensor, index: Tensor, scale: float, own: tuple[int, Tensor, Tensor] | None
) -> Tensor:
    """Attention of each head to its slots, in float64; `own` is the new slot with its key and value as they are."""
    heads, out = query.shape[1], torch.zeros_like(query)
    for item in range(len(query)):
        for head in range(heads):
            group = head * keys.shape[1] // heads
            slots = index[item, head * index.shape[1] // heads]
            k, v = keys[item, group].double().clone(), values[item, group].double().clone()
            if own is not None:
                k[own[0]], v[own[0]] = own[1][item, group, 0].double(), own[2][item, group, 0].double()
            weights = (k[slots] @ query[item, head, 0].double() * scale).softmax(dim=0)
            out[item, head, 0] = (weights @ v[slots]).float()
    return out


@pytest.mark.parametrize("heads", ["own", "group"])
@pytest.mark.parametrize("store", STORES)
def test_every_store_reads_the_chosen_entries(
    decoder: Decoder, store: str, heads: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an attention over what the store holds of these slots alone, written down here."""
    spec = f"tidaldecode:budget=9,reselect=4,heads={heads}+{store}"
    run = CacheRun(decoder, spec, context=96, chunk=16)
    kind: Any = type(run.plan.layers[0].store)
    forward, errors = kind.forward_some, []

    def compared(self: Any, reading: NewEntries, memory: Memory, index: Tensor) -> Tensor:
        found: Tensor = forward(self, reading, memory, index)
        keys = torch.cat([part.keys for part in self.slot_keys(reading, memory)], dim=2)
        if store == "plain":
            values = memory["values"]
        else:
            values = torch.cat(list(values_of(self, memory)), dim=2)
        own = (int(reading.lengths["rows"]), reading.key, reading.value) if store.startswith("int") else None
        wanted = attended(reading.query, keys, values, index, self.layer.scale, own)
        errors.append(float((found - wanted).abs().max()))
        return found

    monkeypatch.setattr(kind, "forward_some", compared)
    run.read(texts(37))
    for token in texts(12)[0]:
        run.step([token])
    assert len(errors) == 24 and max(errors) < 1e-4


def values_of(store: Any, memory: Memory) -> Iterator[Tensor]:
    """The values of a packed cache as numbers, in the order of its slots."""
    how: dict[str, Any] = {"bits": 8, "axis": "token", "group": store.config.group, "to": torch.float32}
    if isinstance(store, Kivi):
        how |= {"bits": store.config.bits, "group": store.value_group}
        yield kv_dequantize(*store.parts("v", memory), **how)
        yield memory["values"]
    else:
        yield kv_dequantize(
            *(memory[f"v_{what}"] for what in ("code", "scale", "minimum")), **how | {"bits": store.bits}
        )


def test_heads_of_a_group_take_turns() -> None:
    generator = torch.Generator().manual_seed(2)
    query, cache = (torch.randn(2, count, 1, 4, generator=generator) for count in (6, 2))
    index = torch.randint(0, 9, (2, 6, 3), generator=generator)
    seen = []

    def attend(part: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
        seen.append((part.shape, slots.shape))
        return part * slots.sum(dim=2)[..., None, None] + cache[:, :, :, :1], slots.sum(dim=2)[..., None].float()

    y, lse = by_head(query, index, 2, attend)
    torch.testing.assert_close(lse[..., 0], index.sum(dim=2).float())
    wanted = query * index.sum(dim=2)[..., None, None] + cache[:, :, :, :1].repeat_interleave(3, dim=1)
    torch.testing.assert_close(y, wanted)
    assert seen == [((2, 2, 1, 4), (2, 2, 3))] * 3


def test_without_a_layer_that_chooses_anew(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    run = CacheRun(decoder, "tidaldecode:budget=9,start=1,reselect=0", context=96, chunk=16)
    chosen: list[int] = []
    choose = TidalDecode.choose

    def noted(self: TidalDecode, reading: NewEntries, store: Store, memory: Memory) -> Tensor:
        chosen.append(self.layer.number)
        return choose(self, reading, store, memory)

    monkeypatch.setattr(TidalDecode, "choose", noted)
    run.read(texts(20))
    run.step([3])
    assert chosen == [1] and [site.tokens_out for site in run.plan.sites] == [96, 9, 9, 9, 9]


@pytest.mark.parametrize("positions", ["kept", "cache"])
def test_with_a_selector_that_keeps_the_same_in_all_layers(decoder: Decoder, positions: str) -> None:
    """It reads of what is kept, and with a budget over that it changes nothing."""
    prompts, more = texts(40, 12), texts(20)[0]
    streaming = f"streamingllm:budget=24,sinks=2,every=4,positions={positions}"
    specs = [f"tidaldecode:budget=40,reselect=4+{streaming}", streaming, f"tidaldecode:budget=5,reselect=4+{streaming}"]
    runs = [CacheRun(decoder, spec, context=96, chunk=16, batch=2) for spec in specs]
    for run in runs:
        run.read(prompts)
    differs = []
    for token in more:
        ours, theirs, fewer = (run.step([token, token]) for run in runs)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-4)
        differs.append(float((fewer - theirs).abs().max()))
    assert min(differs) > 1e-2 and runs[0].runs["compact"] > 1


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("tidaldecode:budget=0", "tidaldecode: budget=0 is out of range; give 1 or more entries."),
        ("tidaldecode:budget=4,start=-1", "tidaldecode: start=-1 is out of range"),
        ("tidaldecode:budget=4,start=3,reselect=3", "reselect=3 is not behind start=3"),
        ("tidaldecode:budget=4,reselect=3,calibration=c", "reselect and calibration both say"),
    ],
)
def test_bad_options(spec: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_spec(spec)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("tidaldecode:budget=4", "nothing says which layer chooses anew; give reselect=LAYER, or calibration=FILE"),
        ("tidaldecode:budget=4,reselect=6", "reselect=6 is out of range; tiny has 6 layers that keep everything"),
        ("tidaldecode:budget=4,start=5", "start=5 leaves none of the 6 layers of tiny that keep everything behind it"),
        ("tidaldecode:budget=96,reselect=4", "budget=96 is no less than the 96 tokens of the context"),
        (
            "tidaldecode:budget=4,reselect=4+gear:group=8,residual=8",
            "cannot read some entries without the others, as gear keeps factors and outliers of whole blocks",
        ),
        (
            "tidaldecode:budget=4,reselect=4+snapkv:budget=40",
            "what one layer chooses is read in others, and snapkv keeps other entries in each layer or KV head",
        ),
        ("tidaldecode:budget=4,reselect=4+tidaldecode:budget=5,reselect=4", "tidaldecode"),
    ],
)
def test_what_does_not_go_together_is_refused(decoder: Decoder, spec: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        CacheRun(decoder, spec, context=96, chunk=8)


def calibration(answered: list[float], probability: list[float] | None = None) -> ArtifactFile:
    tensors = {"answered": torch.tensor(answered), "probability": torch.tensor(probability or answered)}
    tensors = {name: tensor.float() for name, tensor in tensors.items()}
    return ArtifactFile("made", save(tensors))


def test_the_calibrated_layer(decoder: Decoder) -> None:
    """The most answers, of equal ones the most probable; layers up to the first do not count."""
    assert best_layer({"answered": torch.tensor([9.0, 9, 9, 1, 2, 2]), "probability": torch.zeros(6)}, 2) == 4
    probability = torch.tensor([1, 1, 1, 0.1, 0.2, 0.3])
    assert best_layer({"answered": torch.ones(6), "probability": probability}, 2) == 5

    def run_of(file: ArtifactFile) -> CacheRun:
        spec = CompressorSpec(name="tidaldecode", config=TidalDecodeConfig(budget=10, calibration=file))
        return CacheRun(decoder, [spec], context=96, chunk=16)

    run = run_of(calibration([9, 9, 9, 1, 2, 2]))
    assert [site.layer for site in run.plan.sites if site.tokens_out == 96] == [2, 4]
    with pytest.raises(ConfigError, match="made is for 4 layers, and tiny has 6 that keep everything"):
        run_of(calibration([0, 0, 0, 1]))
    with pytest.raises(ConfigError, match="a calibration is `answered` and `probability`, .layers. of finite"):
        run_of(calibration([0, 0, 0, 1, float("nan"), 0]))


def test_calibrate(commands: Typed, tmp_path: Path) -> None:
    """Without data; the file goes into an export, and into none of other weights."""
    decoder_of("gqa", tmp_path / "model")
    decoder_of("batch", tmp_path / "other")
    out, spec = tmp_path / "calibration.safetensors", "tidaldecode:budget=10"
    ended = commands("calibrate", f"hf:{tmp_path / 'model'}", "--compress", spec, "-o", out, "--json", within=300)
    assert ended.code == 0, ended.err
    made = json.loads(ended.out)
    assert set(made["score"]) == {"answered", "answered_in_full"} and made["samples"] == 20
    found = load_file(out)
    assert all(tensor.shape == (6,) and not tensor[:3].any() for tensor in found.values())
    assert bool((found["probability"][3:] > 0).all()) and len(set(found["probability"][3:].tolist())) == 3
    refused = ("export", f"hf:{tmp_path / 'other'}", "--compress", f"{spec},calibration={out}", "-o", tmp_path / "b")
    ended = commands(*refused)
    assert ended.code == 2 and "was made for other weights than these" in ended.err
    start = ("export", f"hf:{tmp_path / 'model'}", "--compress", f"{spec},start=1,calibration={out}")
    ended = commands(*start, "-o", tmp_path / "b")
    assert ended.code == 2 and "start" in ended.err and not (tmp_path / "b").exists()
