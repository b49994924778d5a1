"""Selectors keep what the papers' own code keeps, in a whole model and through its procedure."""

from dataclasses import replace

import pytest
import torch

from tests.golden.golden_data import FOLDER, read
from tests.models.cache.runs import CacheRun, golden_decoder
from trt_compress.errors import ConfigError
from trt_compress.models.hosts.decoder import Decoder

LOGITS = 1e-4
KVPRESS = {
    "snapkv": "snapkv:budget={kept},window={window_size},kernel={kernel_size}",
    "keydiff": "keydiff:budget={kept}",
    "knorm": "knorm:budget={kept}",
    "tova": "tova:budget={kept}",
    "observed": "h2o:budget={kept},recent=0,score=mean",
    "streaming": "streamingllm:budget={kept},sinks={n_sink}",
    "pyramidkv": "pyramidkv:budget=24,window={window_size},kernel={kernel_size},beta={beta},allocation=kvpress",
}
CASES = [(family, case) for family in ("llama", "qwen2") for case in KVPRESS]
CASES.remove(("llama", "pyramidkv"))  # its budget is 16.4 entries; `test_selector_entries` has its counts
BESIDE_STORES = [
    "h2o:budget={},score=mean+kivi:bits=8,group=4,residual=8,scales=float32",
    "random_kv:budget={}+kivi:bits=8,group=4,residual=8,scales=float32",
    "streamingllm:budget={},positions=cache+kivi:bits=8,group=4,residual=8,scales=float32",
    "h2o:budget={},every=2,in_chunks=true+int8:scales=float32",
    "pyramidkv:budget={},window=4,beta=5+int8:scales=float32",
]
EVERY_KIND = [
    "random_kv:budget={}",
    "streamingllm:budget={}",
    "streamingllm:budget={},positions=cache",
    "knorm:budget={},recent=3",
    "keydiff:budget={},in_chunks=true",
    "tova:budget={},every=1",
    "h2o:budget={}",
    "h2o:budget={},every=3,in_chunks=true,score=mean,heads=max",
    "snapkv:budget={},window=4,in_chunks=true",
    "pyramidkv:budget={},window=4,beta=5",
]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    return golden_decoder(FOLDER / "kvpress" / "llama_model.npz", tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    return golden_decoder(FOLDER / "kvpress" / "qwen2_model.npz", tmp_path_factory.mktemp("qwen2"), "qwen2")


def rows_of(run: CacheRun, layer: int) -> list[int]:
    """Rows of each sequence in a layer."""
    (group,) = (group for group in run.plan.groups if layer in group.layers)
    return [int(count) for count in run.states[group.state("rows")]]


@pytest.mark.parametrize("chunk", [64, 7])
@pytest.mark.parametrize(("family", "case"), CASES)
def test_golden_kvpress(family: str, case: str, chunk: int, request: pytest.FixtureRequest) -> None:
    """The set that is kept in each layer, the logits behind the prompt, and those of steps on what was kept."""
    decoder: Decoder = request.getfixturevalue(family)
    model, _ = read("kvpress", f"{family}_model")
    arrays, said = read("kvpress", f"{family}_{case}")
    spec = KVPRESS[case].format(kept=int(arrays["kept_count"][0]), **said)
    prompts = model["input_ids"].tolist()
    run = CacheRun(decoder, spec, context=96, chunk=chunk, batch=len(prompts))
    logits = run.read(prompts)
    torch.testing.assert_close(logits, model["full_prefill_logits"], rtol=0, atol=LOGITS)
    assert run.runs["compact"] == 1
    for layer, count in enumerate(arrays["kept_count"].tolist()):
        assert rows_of(run, layer) == [count] * len(prompts)
        kept = arrays[f"kept_{layer}"].sort(dim=-1).values[..., None].expand(-1, -1, -1, 16)
        for name in ("keys", "values"):
            wanted = model[f"full_{name}_{layer}"].gather(2, kept)
            torch.testing.assert_close(run.states[f"{name}_{layer}"][:, :, :count], wanted, rtol=0, atol=1e-5)
    tokens = arrays["next_token"][:, 0]
    for number in range(arrays["decode_logits"].shape[1]):
        logits = run.step(tokens.tolist())
        torch.testing.assert_close(logits, arrays["decode_logits"][:, number], rtol=0, atol=LOGITS)
        tokens = logits.argmax(dim=1)


def test_golden_kvpress_of_equal_tokens(llama: Decoder) -> None:
    """Values are all the same; what is kept is decided by the positions of the keys alone."""
    arrays, _ = read("kvpress", "llama_ties_same_token")
    run = CacheRun(llama, "h2o:budget=12,recent=0,score=mean", context=96, chunk=5)
    run.read([[7] * 24])
    logits = run.step(arrays["next_token"][:, 0].tolist())
    torch.testing.assert_close(logits, arrays["decode_logits"][:, 0], rtol=0, atol=LOGITS)


def test_golden_kvpress_positions_in_the_cache(llama: Decoder) -> None:
    """Keys that moved are turned to their new places."""
    model, _ = read("kvpress", "llama_model")
    arrays, said = read("kvpress", "llama_streaming_rerotated")
    spec = f"streamingllm:budget=20,sinks={said['n_sink']},positions=cache"
    run = CacheRun(llama, spec, context=96, chunk=7, batch=2)
    run.read(model["input_ids"].tolist())
    for layer in range(3):
        for name in ("keys", "values"):
            found = run.states[f"{name}_{layer}"][:, :, :20]
            torch.testing.assert_close(found, arrays[f"{name}_{layer}"], rtol=0, atol=1e-5)


def test_a_stream_far_beyond_the_context_is_as_its_sinks_and_newest_tokens_alone(llama: Decoder) -> None:
    """Of one layer, whose keys and values depend on nothing before them, without any selector."""
    decoder = llama.first(1)
    decoder.config = replace(decoder.config, layers=decoder.config.layers[:1])
    text = torch.randint(0, 97, (200,), generator=torch.Generator().manual_seed(3)).tolist()
    spec = "streamingllm:budget=12,sinks=2,positions=cache,every=4,in_chunks=true"
    run, held = CacheRun(decoder, spec, context=32, chunk=8), text[:60]
    run.read([text[:60]])
    held = text[:2] + text[: run.states["rows"].tolist()[0]][2:]
    for number in range(60, 200):
        logits = run.step([text[number]])
        rows = run.states["rows"].tolist()[0]
        if rows == 12:
            continue  # it has just chosen: this token saw more
        plain = CacheRun(decoder, "none", context=32, chunk=32)
        held = text[:2] + text[number + 1 - (rows - 2) : number + 1]
        torch.testing.assert_close(logits, plain.read([held]), rtol=0, atol=LOGITS)
        assert run.states["keys_0"].shape[2] <= 15 + 8


@pytest.mark.parametrize("spec", EVERY_KIND)
def test_who_keeps_all_computes_as_without(spec: str, llama: Decoder) -> None:
    prompt = torch.randint(0, 97, (30,), generator=torch.Generator().manual_seed(0)).tolist()
    kept, plain = (CacheRun(llama, one, context=64, chunk=8) for one in (spec.format(50), "none"))
    pairs = [(kept.read([prompt]), plain.read([prompt]))]
    pairs += [(kept.step([token]), plain.step([token])) for token in (5, 90, 5, 11)]
    assert kept.runs["compact"] == 0
    for found, wanted in pairs:
        torch.testing.assert_close(found, wanted, rtol=0, atol=LOGITS)


@pytest.mark.parametrize("spec", [*EVERY_KIND, *BESIDE_STORES])
def test_sequences_side_by_side_are_as_alone_and_removed_rows_are_never_read(spec: str, llama: Decoder) -> None:
    """Prompts of unequal length, steps, a second prompt and steps; rows that hold nothing are NaN."""
    generator = torch.Generator().manual_seed(2)
    texts = torch.randint(0, 97, (3, 90), generator=generator).tolist()
    lengths = (41, 9, 26)
    side_by_side = CacheRun(llama, spec.format(13), context=96, chunk=8, batch=3)
    selector = side_by_side.plan.layers[0].selector
    assert selector is not None
    poisoned = ("keys", "values", "drawn") if selector.prompt_only else ("keys", "values", "drawn", "heavy")
    alone = [CacheRun(llama, spec.format(13), context=96, chunk=8) for _ in lengths]

    def compare(found: torch.Tensor, each: list[torch.Tensor]) -> None:
        torch.testing.assert_close(found, torch.cat(each), rtol=0, atol=LOGITS)
        for layer in range(3):
            for row, count in enumerate(rows_of(side_by_side, layer)):
                for name in poisoned:
                    if f"{name}_{layer}" in side_by_side.states and "+" not in spec:
                        poison = 1e30 if name == "values" else torch.nan  # of values 0 times what is there is read
                        side_by_side.states[f"{name}_{layer}"][row, :, count:] = poison

    first = [text[:length] for text, length in zip(texts, lengths, strict=True)]
    compare(side_by_side.read(first), [run.read([text]) for run, text in zip(alone, first, strict=True)])
    for number in range(5):
        tokens = [text[length + number] for text, length in zip(texts, lengths, strict=True)]
        compare(side_by_side.step(tokens), [run.step([token]) for run, token in zip(alone, tokens, strict=True)])
    later = [text[60 : 60 + length] for text, length in zip(texts, (3, 17, 20), strict=True)]
    compare(side_by_side.read(later), [run.read([text]) for run, text in zip(alone, later, strict=True)])
    for row, run in enumerate(alone):
        assert [rows_of(side_by_side, layer)[row] for layer in range(3)] == [
            rows_of(run, layer)[0] for layer in range(3)
        ]
    compare(side_by_side.step([1, 2, 3]), [run.step([token]) for run, token in zip(alone, (1, 2, 3), strict=True)])


@pytest.mark.parametrize("spec", ["keydiff:budget=12,in_chunks=true,every=4", "h2o:budget=12,in_chunks=true,every=4"])
def test_chosen_in_chunks_and_while_generating_a_cache_stays_small(spec: str, llama: Decoder) -> None:
    run = CacheRun(llama, spec, context=96, chunk=8)
    assert run.states["keys_0"].shape[2] < 96, "slots of the largest capacity"
    run.read([list(range(60))])
    assert run.states["rows"].tolist()[0] <= 15
    for token in range(30):
        run.step([token])
        assert run.states["rows"].tolist()[0] <= 15


def test_random_entries_are_the_same_in_chunks_and_at_once_and_other_ones_by_another_seed(llama: Decoder) -> None:
    prompt = [list(range(60))]
    specs = ["", ",in_chunks=true", ",in_chunks=true", ",seed=1"]
    chunks = [64, 64, 7, 64]
    drawn = []
    for more, chunk in zip(specs, chunks, strict=True):
        run = CacheRun(llama, f"random_kv:budget=16{more}", context=96, chunk=chunk)
        run.read(prompt)
        drawn.append([run.states[f"drawn_{layer}"][0, :, :16, 0].tolist() for layer in range(3)])
    assert drawn[0] == drawn[1] == drawn[2] != drawn[3]
    heads = [tuple(head) for layer in drawn[0] for head in layer]
    assert len(set(heads)) == len(heads), "every KV head of every layer draws its own"


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("random_kv:budget=0", "budget=0 is out of range; give 1 or more entries"),
        ("keydiff:budget=8,recent=8", "budget=8 has no room beside recent=8"),
        ("streamingllm:budget=4", "budget=4 has no room beside sinks=4"),
        ("h2o:budget=8,recent=9", "budget=8 has no room beside recent=9"),
        ("h2o:budget=8,every=0", "every=0 is out of range; give 1 or more tokens"),
        ("tova:budget=1", "budget=1 has no room"),
        ("pyramidkv:budget=32", "budget=32 has no room beside window=32"),
        ("pyramidkv:budget=64,beta=0", "beta=0 is out of range"),
        ("pyramidkv:budget=64,allocation=even", "allocation=even is not one of kvcache_factory, kvpress"),
        ("snapkv:budget=64,window=0", "window=0 is out of range"),
        ("random_kv:budget=8,seed=-1", "seed=-1 is out of range"),
        ("knorm:budget=96", "keep 96 entries, and the context has 96 tokens, so that none is removed"),
        ("tova:budget=90,every=7", "keep 96 entries, and the context has 96 tokens"),
        ("h2o:budget=16+tova:budget=16", "a layer has one selector, so give one of them"),
        ("h2o:budget=16,every=1+kivi:group=8,residual=8", "packs in groups that cannot be torn; leave every out"),
        ("keydiff:budget=16+kivi:group=8,residual=8,prefill=packed", "packs a prompt while it is read"),
        ("streamingllm:budget=16,positions=cache+int8", "turn keys that move, and int8 has packed them"),
    ],
)
def test_bad_input(spec: str, said: str, llama: Decoder) -> None:
    with pytest.raises(ConfigError) as caught:
        CacheRun(llama, spec, context=96, chunk=8)
    assert said in str(caught.value) and "\n" not in str(caught.value)
