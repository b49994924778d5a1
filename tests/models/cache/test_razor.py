"""RazorAttention: the head search is its definition, and heads that do not retrieve see what the formula says."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save
from torch import Tensor
from typer.testing import CliRunner

from tests.golden.golden_data import FOLDER, read
from tests.models.cache.runs import CacheRun, golden_decoder
from tests.models.decoders import saved
from trt_compress.errors import ConfigError
from trt_compress.methods import ArtifactFile, CompressorSpec, parse_spec
from trt_compress.methods.cache_heads import RazorConfig
from trt_compress.models.cache.contract import CacheLayer, NewEntries
from trt_compress.models.cache.razor import Razor, retrieval_heads
from trt_compress.models.calibrate import echoes
from trt_compress.models.compressors.sites import Arrival, AttentionFacts, CacheFacts, HostInfo, Site
from trt_compress.models.hosts.decoder import Decoder
from trt_compress.tools.cli.main import app

Masks = tuple[Tensor, Tensor]


def attention(query: Tensor, keys: Tensor, heads: int, groups: int) -> Tensor:
    """Causal attention [H, S, S] in float64 of rows [1, S, H * d]."""
    q = query[0].double().unflatten(1, (heads, -1)).transpose(0, 1)
    k = keys[0].double().unflatten(1, (groups, -1)).transpose(0, 1).repeat_interleave(heads // groups, dim=0)
    products = q @ k.transpose(1, 2) / q.shape[2] ** 0.5
    return products.masked_fill(torch.ones_like(products).triu(1).bool(), -torch.inf).softmax(dim=2)


@pytest.mark.parametrize("case", ["razor_search", "razor_search_gqa"])
def test_golden_search(case: str) -> None:
    """As the archive's causal scores, but that the first token is no copy of those of whole blocks (see its README)."""
    arrays, said = read("head_split", case)
    heads, groups, block, total = said["heads"], said["kv_heads"], said["block"], said["S"]
    ids = arrays["ids"]
    copies = (ids[:, None] == ids) & torch.ones(total, total).tril(-1).bool()
    rows = int(copies.any(dim=1).sum())
    for number in range(said["layers"]):
        query, keys = arrays[f"q_{number}"], arrays[f"k_{number}"]
        whole = attention(query, keys, heads, groups)
        layer = CacheLayer(
            **{"host": "golden", "number": number, "place": number, "count": said["layers"], "heads": heads},
            **{"groups": groups, "head_dim": 8, "scale": 8**-0.5, "softcap": 0.0, "context": 64, "chunk": 64},
            dtype="float32",
        )
        split = [rows_.float().unflatten(2, (-1, 8)).transpose(1, 2) for rows_ in (query, keys)]
        parts = [
            echoes.scores(layer, split[0][:, :, start : start + 7], split[1], ids[None], start)
            for start in range(0, total, 7)
        ]
        ours = torch.stack(parts).sum(dim=0)
        for which, (name, found) in enumerate(zip(("echo", "induction"), ours, strict=True)):
            theirs = arrays[f"{name}_mask"].double()
            by_group = (whole * theirs).mean(dim=(1, 2)).unflatten(0, (groups, -1)).amax(dim=1)
            torch.testing.assert_close(by_group, arrays[f"{name}_causal"][number], rtol=1e-6, atol=0)
            mask = theirs.clone()
            mask[block::block, which] = 0  # the first token, and what stands behind it
            torch.testing.assert_close(found, (whole * mask).sum(dim=(1, 2)), rtol=1e-4, atol=0)
    assert rows == total - 1 - block


@pytest.mark.parametrize("case", ["razor_search", "razor_search_gqa"])
def test_golden_heads(case: str) -> None:
    """Of the archive's own scores the union of its two lists."""
    arrays, said = read("head_split", case)
    wanted = said["retrieval_union"]
    config = RazorConfig(echo=said["echo_ratio"], induction=said["induction_ratio"])
    chosen = retrieval_heads(arrays["echo_code"], arrays["induction_code"], config)
    assert [row.nonzero().flatten().tolist() for row in chosen] == [sorted(heads) for heads in as_rows(wanted)]


def as_rows(heads: object) -> list[list[int]]:
    values = heads.values() if isinstance(heads, dict) else heads
    return [list(row) for row in values]  # type: ignore[attr-defined]


def artifact(retrieving: Tensor) -> ArtifactFile:
    """A search whose induction scores are these."""
    return ArtifactFile("search", save({"echo": torch.zeros_like(retrieving), "induction": retrieving}))


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("chunk", [64, 5])
def test_golden_deployment(number: int, chunk: int) -> None:
    """Sinks, the mean of what was dropped, and the newest, as the archive has them in its list."""
    arrays, said = read("head_split", "razor_deploy")
    capacity, sinks = said["cases"][number]["local_capacity"], said["cases"][number]["sink_size"]
    rows, total = arrays["cache"].transpose(0, 1)[None], said["T"]
    host = HostInfo(
        name="golden",
        sites=(Site(kind="kv_cache", layer=0, graph="step"),),
        depth=1,
        num_tokens=64,
        attention=AttentionFacts(num_heads=2, head_size=5, causal=True),
        cache=CacheFacts(capacity=64, chunk=64, scale=1.0),
    )
    window = capacity - sinks - 1 if capacity < total else total
    config = RazorConfig(search=artifact(torch.zeros(1, 2)), window=window, sinks=sinks, induction=0.0)
    arrival = Arrival(host=host, site=host.sites[0], tokens=64, prefix=0, has_class_token=False, width=5)
    policy = Razor(config, arrival)
    memory = {state.name: torch.zeros(1, *(int(dim) for dim in state.shape)) for state in policy.cache_states()}
    for start in range(0, total, chunk):
        new = rows[:, :, start : min(start + chunk, total)]
        count, seen = torch.tensor([new.shape[2]]), torch.tensor([start])
        reading = NewEntries(
            **{"query": new, "key": new, "value": new, "query_before": new, "key_before": new},
            **{"count": count, "seen": seen, "lengths": {}, "part": "step"},
        )
        policy(reading, memory)
    ring = memory["near_keys"][0]
    period = ring.shape[1] - sinks
    slots = [sinks + (token - sinks) % period for token in range(max(total - window, sinks), total)]
    kept = [ring[:, :sinks], memory["mean_keys"][0], ring[:, slots]]
    wanted = arrays[f"kept_virtual_{number}"].transpose(0, 1)
    torch.testing.assert_close(torch.cat(kept if capacity < total else kept[::2], dim=1), wanted, rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    return golden_decoder(FOLDER / "kvpress" / "llama_model.npz", tmp_path_factory.mktemp("hf"), "llama")


def specs(decoder: Decoder, retrieving: list[list[float]], **options: float) -> list[CompressorSpec]:
    share = sum(map(sum, retrieving)) / (len(retrieving) * decoder.config.kv_heads)
    config = RazorConfig(search=artifact(torch.tensor(retrieving)), induction=share, echo=0.0)
    return [CompressorSpec(name="razorattention", config=replace(config, **options))]  # type: ignore[arg-type]


def texts(*counts: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(0, 97, (count,), generator=generator).tolist() for count in counts]


HEADS = [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]


class Formula:
    """A store that keeps all, and attends as the paper's formula says, token by token."""

    def __init__(self, heads: list[list[float]], window: int, sinks: int) -> None:
        self.heads, self.window, self.sinks = heads, window, sinks

    def attend(self, layer: int, query: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
        """[B, H, T, D] of the last T tokens; keys and values [B, G, N, D] of all."""
        out, total, count = torch.zeros_like(query), keys.shape[2], query.shape[2]
        for head in range(query.shape[1]):
            group = head * keys.shape[1] // query.shape[1]
            for row in range(count):
                own = total - count + row
                first = own - self.window + 1
                k, v = keys[0, group, : own + 1].double(), values[0, group, : own + 1].double()
                weight = (k @ query[0, head, row].double() * scale).exp()
                if not self.heads[layer][group] and first > self.sinks:
                    dropped = slice(self.sinks, first)
                    mean_k, mean_v, number = k[dropped].mean(dim=0), v[dropped].mean(dim=0), first - self.sinks
                    seen = torch.ones(own + 1, dtype=torch.bool)
                    seen[dropped] = False
                    rest = number * (mean_k @ query[0, head, row].double() * scale).exp()
                    top = rest * mean_v + (weight * seen) @ v
                    out[0, head, row] = (top / (rest + (weight * seen).sum())).float()
                else:
                    out[0, head, row] = (weight @ v / weight.sum()).float()
        return out


def test_attention_is_the_formula(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a prompt of several chunks and in steps, where each layer has other heads that retrieve."""
    from trt_compress.models.cache import plain

    (prompt,), following = texts(33), texts(6)[0]
    chosen = specs(decoder, HEADS, window=6, sinks=2)
    runs = {chunk: CacheRun(decoder, chosen, context=96, chunk=chunk) for chunk in (64, 8, 1)}
    found = {chunk: [run.read([prompt]), *(run.step([token]) for token in following)] for chunk, run in runs.items()}
    formula = Formula(HEADS, 6, 2)

    def attend(reading: NewEntries, memory: dict[str, Tensor], layer: CacheLayer) -> tuple[Tensor, Tensor]:
        stop = int(reading.rows[0])
        keys, values = (memory[name][:, :, :stop] for name in ("keys", "values"))
        return formula.attend(layer.number, reading.query, keys, values, layer.scale), torch.zeros(1)

    monkeypatch.setattr(plain, "attend_rows", attend)
    reference = CacheRun(decoder, "none", context=96, chunk=64)
    wanted = [reference.read([prompt]), *(reference.step([token]) for token in following)]
    for chunk, logits in found.items():
        for ours, theirs in zip(logits, wanted, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-4, msg=lambda text, c=chunk: f"chunk {c}: {text}")


def test_unequal_prompts_are_as_alone_and_what_was_dropped_is_not_read(decoder: Decoder) -> None:
    chosen = specs(decoder, HEADS, window=7, sinks=3)
    prompts, later = texts(37, 21, 9, 2), texts(15, 3, 8, 9)
    run = CacheRun(decoder, chosen, context=96, chunk=8, batch=len(prompts))
    for name, state in run.states.items():
        if name.startswith(("keys", "near_", "values")):
            state[:] = 1e30  # slots that nobody has written
    found = [run.read(prompts), run.step([5] * len(prompts)), run.read(later), run.step([6] * len(prompts))]
    for row, prompt in enumerate(prompts):
        alone = CacheRun(decoder, chosen, context=96, chunk=16)
        each = [alone.read([prompt]), alone.step([5]), alone.read([later[row]]), alone.step([6])]
        for together, single in zip(found, each, strict=True):
            torch.testing.assert_close(together[row], single[0], rtol=0, atol=2e-4)


@pytest.mark.parametrize(("heads", "window"), [([[0.0, 0.0]] * 3, 60), ([[1.0, 1.0]] * 3, 3), (HEADS, 4000)])
def test_windows_over_all_and_heads_that_keep_all_change_nothing(
    decoder: Decoder, heads: list[list[float]], window: int
) -> None:
    whole = CacheRun(decoder, "none", context=96, chunk=8)
    kept = CacheRun(decoder, specs(decoder, heads, window=window), context=96, chunk=8)
    prompts = texts(30)
    torch.testing.assert_close(kept.read(prompts), whole.read(prompts), rtol=0, atol=1e-4)
    for token in range(5):
        torch.testing.assert_close(kept.step([token]), whole.step([token]), rtol=0, atol=1e-4)


def test_command_line(tmp_path: Path) -> None:
    """A search without data, and what a bundle is made of."""
    model, out = saved("llama", tmp_path / "model"), tmp_path / "search.safetensors"
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    (model / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 96}), encoding="utf-8")
    arguments = ["calibrate", f"hf:{model}", "--compress", "razorattention:window=16", "-o", str(out), "--json"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    made = json.loads(done.stdout)
    assert made["samples"] == 2 and 0 <= made["score"]["found_again"] <= 1
    found = load_file(out)
    assert found["echo"].shape == found["induction"].shape == (2, 2)
    assert all(0 <= float(value) <= 1 for tensor in found.values() for value in tensor.flatten())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("window=0", "razorattention: window=0 is out of range"),
        ("sinks=-1", "razorattention: sinks=-1 is out of range"),
        ("echo=2", "razorattention: echo=2.0 is out of range"),
    ],
)
def test_bad_options(options: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_spec(f"razorattention:{options}")


@pytest.mark.parametrize(
    ("search", "said"),
    [
        (None, "^razorattention: search=FILE is missing; make it with"),
        (artifact(torch.zeros(2, 2)), "is for 2 layers of 2 KV heads, and tiny has 3 of 2"),
        (ArtifactFile("other", save({"echo": torch.zeros(3, 2)})), "has echo .3, 2.; a search is `echo` and"),
    ],
)
def test_bad_search(decoder: Decoder, search: ArtifactFile | None, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        CacheRun(
            decoder, [CompressorSpec(name="razorattention", config=RazorConfig(search=search))], context=96, chunk=8
        )
    with pytest.raises(ConfigError, match="cannot choose what is kept, as razorattention keeps another number"):
        chosen = [*parse_spec("snapkv:budget=40"), *specs(decoder, HEADS, window=7)]
        CacheRun(decoder, chosen, context=96, chunk=8)
