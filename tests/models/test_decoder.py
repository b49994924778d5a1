"""The decoder of each family computes what transformers computes, in chunks of any size."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.models.cache.runs import CacheRun
from tests.models.decoders import FAMILIES, config_json, expected, greedy, reference, saved, text
from trt_compress.errors import ConfigError
from trt_compress.models.hosts.base import GraphSpec
from trt_compress.models.hosts.decoder import Decoder, decoder_graphs
from trt_compress.models.hosts.decoder_config import Caching
from trt_compress.models.hosts.decoder_families import read_config
from trt_compress.models.hosts.decoder_host import check_tensors, plan_of, read_decoder
from trt_compress.models.language.directory import Directory

PROMPT, STEPS, CONTEXT = 64, 32, 320


class Reader:
    """Runs a graph of one decoder on its own states, as a procedure says."""

    def __init__(self, graph: GraphSpec, batch: int = 1) -> None:
        self._graph = graph
        self._states = [
            torch.zeros([{"batch": batch, "slots": CONTEXT}.get(dim, dim) for dim in state.shape])  # type: ignore[call-overload]
            for state in graph.states
        ]
        self.seen = torch.zeros(batch, dtype=torch.int64)

    @torch.no_grad()
    def __call__(self, tokens: Tensor, other: Tensor) -> Tensor:
        """What the graph gives for tokens [B, T]; `other` is the count [B], or the tokens behind them [B, T]."""
        output, *self._states = self._graph.module(tokens, other, self.seen, *self._states)
        self.seen = self.seen + (other if other.ndim == 1 else tokens.shape[1])
        return output

    def read(self, tokens: Tensor, chunk: int) -> Tensor:
        """The logits [B, V] behind tokens [B, N] that are read in chunks."""
        logits = tokens.new_zeros(0)
        for part in tokens.split(chunk, dim=1):
            logits = self(part, torch.full((len(part),), part.shape[1]))
        return logits


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def decoder(family: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Decoder]:
    source = Directory(saved(family, tmp_path_factory.mktemp(family)))
    config = read_config(source.config, name=source.name)
    check_tensors(config, source)
    yield read_decoder(config, source)


def graph_of(decoder: Decoder, chunk: int, name: str = "step") -> GraphSpec:
    caching = Caching(context=CONTEXT, chunk=chunk)
    plan = plan_of(decoder.config, caching, "tiny")
    return {graph.name: graph for graph in decoder_graphs(decoder, caching, plan)}[name]


def test_logits_and_greedy_tokens_are_those_of_transformers(family: str, decoder: Decoder) -> None:
    reader = Reader(graph_of(decoder, PROMPT))
    seen = [reader.read(text(PROMPT)[None], PROMPT)[0]]

    def step(token: int) -> Tensor:
        seen.append(reader.read(torch.tensor([[token]]), 1)[0])
        return seen[-1]

    tokens = greedy(seen[0], STEPS + 1, step)
    whole = torch.cat([text(PROMPT), torch.tensor(tokens)])
    wanted = expected(family, whole[None])[0, PROMPT - 1 : -1]
    torch.testing.assert_close(torch.stack(seen), wanted, atol=1e-4, rtol=0)
    best = wanted.topk(2).values
    ties = [place for place, (first, second) in enumerate(best.tolist()) if first - second < 1e-4]
    assert not ties, f"near ties at {ties}; take another seed"
    assert tokens == wanted.argmax(dim=1).tolist()


def test_chunks_of_any_size_give_the_same_logits(decoder: Decoder) -> None:
    tokens = text(100)[None]
    found = [Reader(graph_of(decoder, chunk)).read(tokens, chunk) for chunk in (1, 7, 64, 256)]
    for logits in found[1:]:
        torch.testing.assert_close(logits, found[0], atol=1e-4, rtol=0)


def test_a_batch_of_unequal_prompts_is_as_each_alone(family: str, decoder: Decoder) -> None:
    chunk, lengths = 16, torch.tensor([41, 20, 1])
    texts = [text(int(length) + 4, seed=row) for row, length in enumerate(lengths)]
    reader = Reader(graph_of(decoder, chunk), batch=3)
    found = torch.zeros(3, 5, 128)
    for start in range(0, 41, chunk):
        count = (lengths - start).clamp(0, min(chunk, 41 - start))
        tokens = torch.zeros(3, min(chunk, 41 - start), dtype=torch.int64)
        for row, own in enumerate(count.tolist()):
            tokens[row, :own] = texts[row][start : start + own]
        logits = reader(tokens, count)
        found[count > 0, 0] = logits[count > 0]
    for number in range(4):
        tokens = torch.stack([whole[length + number] for whole, length in zip(texts, lengths.tolist(), strict=True)])
        found[:, number + 1] = reader(tokens[:, None], torch.ones(3, dtype=torch.int64))
    for row, (whole, length) in enumerate(zip(texts, lengths.tolist(), strict=True)):
        wanted = expected(family, whole[None])[0, length - 1 :]
        torch.testing.assert_close(found[row], wanted, atol=1e-4, rtol=0)


def test_score_says_how_probable_each_token_is(family: str, decoder: Decoder) -> None:
    tokens, chunk = text(80), 32
    reader = Reader(graph_of(decoder, chunk, "score"))
    behind = torch.cat([tokens[1:], torch.zeros(1, dtype=torch.int64)])
    parts = zip(tokens.split(chunk), behind.split(chunk), strict=True)
    found = torch.cat([reader(part[None], next_[None])[0] for part, next_ in parts])[:-1]
    wanted = expected(family, tokens[None])[0, :-1].log_softmax(dim=-1).gather(1, tokens[1:, None])[:, 0]
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)


def test_parameters_are_as_many_as_those_of_transformers(family: str) -> None:
    assert read_config(config_json(family), name="it").parameters == reference(family).num_parameters()


def test_the_first_layers_are_the_same_tensors(decoder: Decoder) -> None:
    whole = graph_of(decoder, 16)
    assert whole.layers is not None
    short = whole.layers.first(1)
    first = short.module.decoder.layers[0]  # type: ignore[union-attr]
    assert len(short.states) == 2 and first is decoder.layers[0]
    assert short.module(torch.tensor([[5]]), torch.tensor([1]), torch.tensor([0]), *(
        torch.zeros([{"batch": 1, "slots": 8}.get(dim, dim) for dim in state.shape])  # type: ignore[call-overload]
        for state in short.states
    ))[0].shape == (1, 128)  # fmt: skip


def test_a_window_is_a_ring_where_something_leaves_it() -> None:
    (layer, *_) = read_config(config_json("mistral"), name="it").layers
    assert layer.window == 24
    assert Caching(context=100, chunk=64).ring(layer) == 24 + 64 - 1
    assert Caching(context=25, chunk=64).ring(layer) == 24 + 64 - 1
    assert Caching(context=24, chunk=24).ring(layer) is None


@pytest.mark.parametrize("chunk", [32, 80])
def test_a_window_with_a_long_chunk(chunk: int, tmp_path: Path) -> None:
    """What stands in front of the window is not seen, also where window and chunk together are the whole context."""
    source = Directory(saved("mistral", tmp_path))
    decoder = read_decoder(read_config(source.config, name="mistral"), source)
    run, tokens = CacheRun(decoder, "none", context=80, chunk=chunk), text(70)
    found = [run.read([tokens[:66].tolist()]), *(run.step([int(token)]) for token in tokens[66:])]
    wanted = expected("mistral", tokens[None])[0, 65:]
    torch.testing.assert_close(torch.cat(found), wanted, atol=1e-4, rtol=0)


def test_tensors_that_do_not_fit_are_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = saved("llama", tmp_path)
    tensors = load_file(folder / "model.safetensors")

    def refused(**changes: Tensor | None) -> str:
        named = {name.replace("__", "."): tensor for name, tensor in changes.items()}
        changed = {name: tensor for name, tensor in {**tensors, **named}.items() if tensor is not None}
        save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
        source = Directory(folder)
        config = read_config(source.config, name=source.name)
        with pytest.raises(ConfigError) as caught:
            check_tensors(config, source)
            read_decoder(config, source)
        return str(caught.value)

    norm = "model__norm__weight"
    assert "it misses model.norm.weight." in refused(**{norm: None})
    assert "it has more than the model: model.extra.weight." in refused(model__extra__weight=torch.ones(3))
    assert "model.norm.weight is [63] instead of [64]." in refused(**{norm: torch.ones(63)})
    assert "model.norm.weight holds NaN or infinity" in refused(**{norm: torch.full((64,), torch.nan)})
    assert "model.norm.weight holds int32, where" in refused(**{norm: torch.ones(64, dtype=torch.int32)})
