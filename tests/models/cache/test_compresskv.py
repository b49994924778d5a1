"""CompressKV: a few heads choose what their own code chooses, and are found by what the model attends to."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save, save_file
from torch import Tensor
from typer.testing import CliRunner

from tests.golden.golden_data import FOLDER, read
from tests.models.cache.runs import CacheRun, golden_decoder
from tests.models.decoders import reference, saved
from trt_compress.errors import ConfigError
from trt_compress.export.calibration import calibrate
from trt_compress.methods import ArtifactFile, CompressorSpec, parse_spec
from trt_compress.methods.cache_heads import CompressKvConfig
from trt_compress.models.cache.compresskv import CompressKv, layer_budgets
from trt_compress.models.cache.contract import NewEntries
from trt_compress.models.compressors.artifacts import for_weights
from trt_compress.models.compressors.sites import Arrival, AttentionFacts, CacheFacts, HostInfo, Site
from trt_compress.models.hosts.decoder import Decoder
from trt_compress.models.hosts.registry import load_host
from trt_compress.tools.cli.main import app


def artifact(scores: Tensor, errors: Tensor) -> ArtifactFile:
    return ArtifactFile("made.safetensors", save({"scores": scores, "errors": errors}))


def only(heads: list[list[int]], count: int) -> Tensor:
    """Scores of the heads that are listed 1, of others 0."""
    return torch.stack([torch.zeros(count).scatter(0, torch.tensor(row), 1.0) for row in heads])


@dataclass
class Layer:
    """One layer of a golden archive with the policy at it."""

    arrays: dict[str, Tensor]
    policy: CompressKv

    def choose(self, chunk: int) -> tuple[Tensor, Tensor, Tensor]:
        """Index and count of the choice behind the archive's prompt, read in chunks, and the keys that are kept."""
        query, key = self.arrays["q"], self.arrays["k"]
        batch, _, total, _ = query.shape
        slots = 2 * total  # twice what is there, and poisoned behind it
        memory = {name: torch.full((batch, key.shape[1], slots, 16), torch.nan) for name in ("keys", "values")}
        (window,) = self.policy.cache_states()
        memory["window"] = torch.zeros(batch, *(int(dim) for dim in window.shape))
        for start in range(0, total, chunk):
            part = slice(start, min(start + chunk, total))
            memory["keys"][:, :, part] = key[:, :, part]
            count = torch.full((batch,), part.stop - start)
            seen = torch.full((batch,), start)
            q, k = query[:, :, part], key[:, :, part]
            reading = NewEntries(
                **{"query": q, "key": k, "value": k, "query_before": q, "key_before": k},
                **{"count": count, "seen": seen, "lengths": {"rows": seen}, "part": "prefill"},
            )
            self.policy.observe(reading, self.policy, memory)  # type: ignore[arg-type]
        choice = self.policy.choose({"rows": torch.full((batch,), total)}, memory)
        kept = int(choice.count[0])
        return choice.index[:, :, :kept], choice.count, choice.moved(memory["keys"])[:, :, :kept]


def layer_of(case: str, number: int) -> tuple[Layer, dict[str, Any]]:
    arrays, said = read("compresskv", case)
    _, heads, total, width = arrays["q"].shape
    layers = len(said["heads"])
    site = Site(kind="kv_cache", layer=number, graph="step", tokens=64, width=width)
    host = HostInfo(
        name="golden",
        sites=tuple(Site(kind="kv_cache", layer=each, graph="step") for each in range(layers)),
        depth=layers,
        num_tokens=64,
        attention=AttentionFacts(num_heads=heads, head_size=width, num_kv_heads=arrays["k"].shape[1], causal=True),
        cache=CacheFacts(capacity=64, chunk=64, scale=width**-0.5),
    )
    config = CompressKvConfig(
        budget=said["budgets"][number],
        calibration=artifact(only(said["heads"], heads), torch.ones(layers)),
        heads=said["first_k"],
        budgets="same",
        window=said["window_size"],
        kernel=said["kernel_size"],
        pool="max" if "max" in case else "avg",
    )
    arrival = Arrival(host=host, site=site, tokens=64, prefix=0, has_class_token=False, width=width)
    return Layer(arrays, CompressKv(config, arrival)), said


@pytest.mark.parametrize("chunk", [64, 5])
@pytest.mark.parametrize(
    ("case", "layers"), [("batch_avgpool", 2), ("edge_avgpool", 3), ("gqa_avgpool", 2), ("gqa_maxpool", 2)]
)
def test_golden(case: str, layers: int, chunk: int) -> None:
    """Keys that are kept are those of the papers' code; of scores that tie (max pooling) as good ones are."""
    for number in range(layers):
        layer, said = layer_of(case, number)
        index, count, keys = layer.choose(chunk)
        total, window = layer.arrays["q"].shape[2], said["window_size"]
        wanted = layer.arrays[f"k_out_{number}"]
        assert count.tolist() == [wanted.shape[2]] * len(wanted)
        assert bool((index == index[:, :1]).all()), "all KV heads keep the same"
        assert (
            index[:, :, -window:].tolist()
            == np.broadcast_to(np.arange(total - window, total), index[:, :, -window:].shape).tolist()
        )
        if f"kept_{number}" not in layer.arrays:  # no more than the budget
            assert torch.equal(keys, wanted)
            continue
        found, theirs = index[:, 0, :-window], layer.arrays[f"kept_{number}"]
        if case == "gqa_maxpool":
            score = layer.arrays[f"score_{number}"]
            best = [score.gather(1, each).sort(dim=1).values for each in (found, theirs)]
            torch.testing.assert_close(best[0], best[1], rtol=1e-5, atol=0)
        else:
            assert torch.equal(found, theirs.sort(dim=1).values)
            order = torch.cat([theirs, index[:, 0, -window:]], dim=1).argsort(dim=1)
            assert torch.equal(keys, wanted.gather(2, order[:, None, :, None].expand_as(wanted)))


@pytest.mark.parametrize(
    ("errors", "mean", "smallest", "most", "wanted"),
    [
        ([0.5, 0.3, 0.2], 64, 32, 4096, (80, 61, 51)),
        ([0.97, 0.01, 0.01, 0.01], 100, 10, 4096, (300, 34, 33, 33)),  # the first has three times the mean
        ([0.25] * 4, 33, 32, 4096, (33, 33, 33, 33)),
        ([1 / 3] * 3, 50, 50, 4096, (50, 50, 50)),
        ([0.49, 0.49, 0.02], 35, 32, 4096, (37, 36, 32)),  # each is rounded up to 36, and the sum is 105
        ([0.9, 0.1], 80, 32, 96, (96, 64)),  # none keeps more than there may be
    ],
)
def test_layer_budgets(errors: list[float], mean: int, smallest: int, most: int, wanted: tuple[int, ...]) -> None:
    assert layer_budgets(errors, mean, smallest, most) == wanted


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    return golden_decoder(FOLDER / "kvpress" / "llama_model.npz", tmp_path_factory.mktemp("hf"), "llama")


def specs(decoder: Decoder, options: str, errors: list[float]) -> list[CompressorSpec]:
    (spec,) = parse_spec(f"compresskv:{options}")
    scores = torch.rand(len(decoder.layers), decoder.config.heads, generator=torch.Generator().manual_seed(2))
    values = {name: getattr(spec.config, name) for name in spec.config.to_json()}
    values["calibration"] = artifact(scores, torch.tensor(errors))
    return [CompressorSpec(name="compresskv", config=CompressKvConfig(**values))]


def texts(*counts: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(0, 97, (count,), generator=generator).tolist() for count in counts]


def test_layers_keep_by_their_errors_and_unequal_prompts_are_as_alone(decoder: Decoder) -> None:
    chosen = specs(decoder, "budget=20,smallest=12,window=3,heads=2", [0.5, 0.3, 0.2])
    prompts, later = texts(47, 21, 9), texts(3, 8, 15)
    run = CacheRun(decoder, chosen, context=96, chunk=8, batch=len(prompts))
    found = [run.read(prompts)]
    rows = [run.states[name].tolist() for name in ("rows", "rows_1", "rows_2")]
    assert rows == [[24, 21, 9], [19, 19, 9], [17, 17, 9]]
    found += [run.step([5] * len(prompts)), run.read(later), run.step([6] * len(prompts))]
    for row, prompt in enumerate(prompts):
        alone = CacheRun(decoder, chosen, context=96, chunk=16)
        each = [alone.read([prompt]), alone.step([5]), alone.read([later[row]]), alone.step([6])]
        for together, single in zip(found, each, strict=True):
            torch.testing.assert_close(together[row], single[0], rtol=0, atol=1e-4)


def test_a_budget_for_all_changes_nothing(decoder: Decoder) -> None:
    whole = CacheRun(decoder, "none", context=96, chunk=8)
    kept = CacheRun(decoder, specs(decoder, "budget=40,budgets=same", [0.5, 0.3, 0.2]), context=96, chunk=8)
    prompts = texts(30)
    torch.testing.assert_close(kept.read(prompts), whole.read(prompts), rtol=0, atol=1e-4)
    for token in range(5):
        torch.testing.assert_close(kept.step([token]), whole.step([token]), rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved("llama", tmp_path_factory.mktemp("model"))


@torch.no_grad()
def test_calibration_is_what_transformers_attends_to(model: Path, tmp_path: Path) -> None:
    """Scores and errors by what transformers returns, of a prompt behind which the caches grow."""
    generator = np.random.default_rng(1)
    prompt, answer = generator.integers(3, 128, (5, 254)), generator.integers(3, 128, (5, 4))
    for row, place in enumerate((4, 20, 41, 11, 30)):
        prompt[row, place : place + 4] = answer[row]
    np.savez(tmp_path / "texts.npz", prompt=prompt, steps=answer)
    out = tmp_path / "c.safetensors"
    made = calibrate(
        f"hf:{model}", compress="compresskv:budget=12,window=3,heads=2", data=tmp_path / "texts.npz", output=out
    )
    tensors, its = load_file(out), reference("llama")
    text = torch.from_numpy(np.concatenate([prompt, answer[:, :3]], axis=1))[:4]
    result = its(text, output_attentions=True, output_hidden_states=True)
    attentions = torch.stack(result.attentions, dim=1)  # [B, layers, H, T, T]
    masses = torch.stack(
        [
            attentions[row, :, :, 253:257, place : place + 4].sum(dim=3).mean(dim=2)
            for row, place in enumerate((4, 20, 41, 11))
        ]
    )
    said = result.logits[:, 253:257].argmax(dim=2)
    assert (said == torch.from_numpy(answer[:4])).float().mean(dim=1).max() <= 0.5, "so that all samples count"
    torch.testing.assert_close(tensors["scores"], masses.mean(dim=0), rtol=1e-4, atol=1e-6)
    assert made.card.score["answered"] == 0 and made.held_out == 1 and made.card.data_count == 5

    heads = tensors["scores"].sort(dim=1, descending=True).indices[:, :2]
    errors = []
    for number, layer in enumerate(its.model.layers):
        attention, own = layer.self_attn, attentions[:, number]
        hidden = layer.input_layernorm(result.hidden_states[number])
        value = attention.v_proj(hidden).unflatten(2, (2, 16)).transpose(1, 2).repeat_interleave(2, dim=1)
        score = own[:, heads[number], 251:254, :251].mean(dim=2)
        score = torch.nn.functional.avg_pool1d(score, 5, stride=1, padding=2).mean(dim=1)
        kept = torch.zeros(4, 257, dtype=torch.bool).scatter(1, score.topk(9, dim=1).indices, True)
        kept[:, 251:] = True  # of budget and a quarter of the prompt the smaller one: 12, with the window
        whole = own[:, :, 254:257]
        less = whole * kept[:, None, None]
        outputs = [
            attention.o_proj((weights @ value).transpose(1, 2).flatten(2))
            for weights in (whole, less / less.sum(dim=3, keepdim=True))
        ]
        errors.append(((outputs[1] - outputs[0]).norm(dim=2) / (outputs[0].norm(dim=2) + 1e-5)).mean())
    wanted = torch.stack(errors) / sum(errors)
    torch.testing.assert_close(tensors["errors"], wanted, rtol=1e-3, atol=0)


def test_command_line(tmp_path: Path) -> None:
    """Made without data, used, and refused for other weights, by the sentences that a user reads."""
    model, out = saved("llama", tmp_path / "model"), tmp_path / "made.safetensors"
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    (model / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 64}), encoding="utf-8")
    done = CliRunner().invoke(
        app, ["calibrate", f"hf:{model}", "--compress", "compresskv:budget=40,heads=2", "-o", str(out), "--json"]
    )
    assert done.exit_code == 0, done.output
    made = json.loads(done.stdout)
    assert made["spec"] == f"compresskv:budget=40,calibration={out},heads=2"
    assert (made["samples"], made["held_out"], made["data"]) == (20, 4, "20 samples of its own tokens, seeded")
    tensors = load_file(out)
    assert tensors["scores"].shape == (2, 4) and abs(float(tensors["errors"].sum()) - 1) < 1e-6

    def attached(options: str) -> int:
        host = load_host(f"hf:{model}")
        specs = for_weights(parse_spec(f"compresskv:{options}"), source="a", sha256=host.weights.sha256)
        return len(host.attach(specs))

    assert attached(f"budget=40,heads=2,calibration={out}") == 4
    with pytest.raises(ConfigError, match="^compresskv: calibration=FILE is missing; make it with `trt-compress cal"):
        attached("budget=40")
    with pytest.raises(ConfigError, match="heads=5 is more than the 4 of"):
        attached(f"budget=40,heads=5,calibration={out}")
    weights = load_file(model / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] + 1
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match="was made for other weights than these"):
        attached(f"budget=40,calibration={out}")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("budget=8", "compresskv: budget=8 has no room beside window=8"),
        ("budget=40,kernel=4", "compresskv: kernel=4 is not allowed"),
        ("budget=40,heads=0", "compresskv: heads=0 is out of range"),
        ("budget=40,smallest=8", "compresskv: smallest=8 has no room beside window=8"),
        ("budget=40,budgets=some", "compresskv: budgets=some is not one of errors, same"),
    ],
)
def test_bad_input(options: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_spec(f"compresskv:{options}")
