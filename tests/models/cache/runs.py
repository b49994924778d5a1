"""Decoders with cache policies, run in torch as their procedure says; and the tiny models of the golden archives."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trt_compress.export.doubles import Doubles
from trt_compress.format.graphs import BATCH_SYMBOL
from trt_compress.format.procedure import keep_up
from trt_compress.methods import CompressorSpec, parse_spec
from trt_compress.models.cache.caches import upkeep_graphs
from trt_compress.models.cache.contract import NewEntries, Part
from trt_compress.models.hosts.base import GraphSpec
from trt_compress.models.hosts.decoder import Decoder, decoder_graphs, decoder_procedure
from trt_compress.models.hosts.decoder_config import Caching, DecoderConfig, LayerConfig
from trt_compress.models.hosts.decoder_families import read_config
from trt_compress.models.hosts.decoder_host import check_tensors, plan_of, read_decoder
from trt_compress.models.language.directory import Directory
from trt_compress.models.layers.rope_form import RopeForm


class CacheRun:
    """B sequences on the torch modules of a decoder. Capacities have their largest length from the beginning.

    Attributes:
        states: By their names.
        runs: How often each graph was run.
    """

    def __init__(
        self, decoder: Decoder, spec: str | Sequence[CompressorSpec], *, context: int, chunk: int, batch: int = 1
    ) -> None:
        caching = Caching(context=context, chunk=chunk)
        plan = plan_of(decoder.config, caching, "tiny", parse_spec(spec) if isinstance(spec, str) else spec)
        self.graphs = {graph.name: graph for graph in decoder_graphs(decoder, caching, plan)}
        self.procedure = decoder_procedure(plan, list(self.graphs.values()))
        self.plan, self.chunk = plan, chunk
        self.seen = torch.zeros(batch, dtype=torch.int64)
        self.runs = dict.fromkeys(self.graphs, 0)
        self.states: dict[str, Tensor] = {}
        for graph in self.graphs.values():
            lengths = {BATCH_SYMBOL: batch, **{name: high for name, (_, _, high) in graph.lengths.items()}}
            for state in graph.states:
                shape = [lengths[dim] if isinstance(dim, str) else dim for dim in state.shape]
                self.states.setdefault(str(state.name), torch.zeros(shape, dtype=getattr(torch, state.dtype)))

    def read(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """The logits [B, V] behind prompts."""
        total, found = max(len(text) for text in prompts), None
        for start in range(0, total, self.chunk):
            width = min(self.chunk, total - start)
            counts = [min(max(len(text) - start, 0), width) for text in prompts]
            tokens = torch.zeros(len(prompts), width, dtype=torch.int64)
            for row, (text, count) in enumerate(zip(prompts, counts, strict=True)):
                tokens[row, :count] = torch.as_tensor(text[start : start + count])
            logits = self._run(self.procedure.prompt.graphs[0], tokens, counts)
            found = torch.zeros_like(logits) if found is None else found
            for row, text in enumerate(prompts):
                if start < len(text) <= start + width:
                    found[row] = logits[row]
            last = start + width >= total
            self._keep_up(("run", "chunk", "prompt") if last else ("run", "chunk"))
        assert found is not None
        return found

    def step(self, tokens: Sequence[int]) -> Tensor:
        """The logits [B, V] behind one more token of each."""
        logits = self._run("step", torch.as_tensor(tokens)[:, None], [1] * len(tokens))
        self._keep_up(("run", "step"))
        return logits

    def _run(self, name: str, tokens: Tensor, counts: Sequence[int]) -> Tensor:
        output = self._graph(name, tokens, torch.tensor(counts), self.seen)
        self.seen = self.seen + torch.tensor(counts)
        return output

    @torch.no_grad()
    def _graph(self, name: str, *inputs: Tensor) -> Tensor:
        graph = self.graphs[name]
        found = self._computed(graph, *inputs, *(self.states[str(each.name)] for each in graph.states if each.input))
        written = [str(each.name) for each in graph.states if each.output]
        self.states.update(zip(written, found[len(graph.outputs) :], strict=True))
        self.runs[name] += 1
        first: Tensor = found[0]
        return first

    def _computed(self, graph: GraphSpec, *given: Tensor) -> Sequence[Tensor]:
        """What a graph makes of its inputs and states."""
        with Doubles():
            found: Sequence[Tensor] = graph.module(*given)
        return found

    def _keep_up(self, moments: tuple[str, ...]) -> None:
        capacities = {each.symbol: each for graph in self.graphs.values() for each in graph.capacities}

        def used(symbol: str) -> list[int]:
            name = capacities[symbol].used
            return (self.seen if name is None else self.states[name]).tolist()

        def run(graph: str) -> None:
            self._graph(graph, *(self.seen for spec in self.graphs[graph].inputs if spec.name == "seen"))

        keep_up(self.procedure, moments, used, run)


class LayersRun:
    """Entries that are given, without a model: every layer of a plan is given the same queries, keys and values.

    Attributes:
        plan: What keeps the entries.
        states: By their names.
        seen: Tokens that were read, [B].
    """

    def __init__(self, spec: str, q: Tensor, k: Tensor, *, layers: int = 1, chunk: int = 64, slots: int = 96) -> None:
        rope = RopeForm(theta=10000.0, channels=k.shape[3], limit=slots)
        config = DecoderConfig(
            family="llama",
            vocabulary=1,
            width=1,
            inner=1,
            heads=q.shape[1],
            kv_heads=k.shape[1],
            head_dim=k.shape[3],
            limit=slots,
            layers=(LayerConfig(rope=rope),) * layers,
            eps=1e-6,
            attention_scale=k.shape[3] ** -0.5,
        )
        self.plan = plan_of(config, Caching(context=slots, chunk=chunk), "entries", parse_spec(spec))
        self.compact = next((graph for graph in upkeep_graphs(self.plan) if graph.name == "compact"), None)
        self.seen = torch.zeros(k.shape[0], dtype=torch.int64)
        self.states: dict[str, Tensor] = {}
        for part in (*self.plan.parts, "compact"):
            for state in self.plan.state_specs(part):
                shape = [
                    k.shape[0] if dim == BATCH_SYMBOL else slots if isinstance(dim, str) else dim for dim in state.shape
                ]
                self.states.setdefault(str(state.name), torch.zeros(shape, dtype=getattr(torch, state.dtype)))

    def read(self, q: Tensor, k: Tensor, v: Tensor, *, chunk: int = 64) -> None:
        """Read a prompt."""
        total = k.shape[2]
        for start in range(0, total, chunk):
            part = slice(start, min(start + chunk, total))
            self._run(self.plan.parts[0], q[:, :, part], k[:, :, part], v[:, :, part])
            self._keep_up(("run", "chunk", "prompt") if part.stop == total else ("run", "chunk"))

    def step(self, q: Tensor, k: Tensor, v: Tensor) -> None:
        """Read one token that was generated."""
        self._run("step", q, k, v)
        self._keep_up(("run", "step"))

    def rows(self, layer: int = 0) -> int:
        """How many rows a layer has; all sequences have as many."""
        (group,) = (group for group in self.plan.groups if layer in group.layers)
        (count,) = set(self.states[group.state("rows")].tolist())
        return int(count)

    def kept(self, name: str, layer: int = 0) -> Tensor:
        """The rows of a state of a layer."""
        return self.states[f"{name}_{layer}"][:, :, : self.rows(layer)]

    def _run(self, part: Part, q: Tensor, k: Tensor, v: Tensor) -> None:
        lengths, count = self.plan.begin(self.states, self.seen), torch.full_like(self.seen, k.shape[2])
        for layer in self.plan.layers:
            reading = NewEntries(
                query=q,
                key=k,
                value=v,
                query_before=q,
                key_before=k,
                count=count,
                seen=self.seen,
                lengths=self.plan.lengths_of(layer.number, lengths),
                part=part,
            )
            memory = self.plan.memory(layer.number, self.states)
            layer(reading, memory)
            self.states |= {f"{name}_{layer.number}": value for name, value in memory.items()}
        self.plan.advance(lengths, count, self.states)
        self.seen = self.seen + count

    def _keep_up(self, moments: tuple[str, ...]) -> None:
        used = {each.symbol: str(each.used) for part in self.plan.parts for each in self.plan.capacities(part)}
        for entry in self.plan.upkeep():
            while entry.after in moments and int(self.states[used[str(entry.capacity)]].max()) >= int(
                entry.at_least or 0
            ):
                assert self.compact is not None and entry.graph == "compact"
                seen = [self.seen] if self.compact.inputs else []
                given = [self.states[str(each.name)] for each in self.compact.states if each.input]
                written = [str(each.name) for each in self.compact.states if each.output]
                self.states.update(zip(written, self.compact.module(*seen, *given), strict=True))


def golden_decoder(archive: Path, folder: Path, model_type: str) -> Decoder:
    """The tiny model of an archive of golden vectors, which names its sizes in `meta` and its weights `w.…`."""
    from safetensors.numpy import save_file

    with np.load(archive) as arrays:
        said = json.loads(str(arrays["meta"]))
        weights = {name[2:]: arrays[name].astype(np.float32) for name in arrays.files if name.startswith("w.")}
    said = said.get("parameters", said)
    config = {
        "model_type": model_type,
        "vocab_size": said["vocab"],
        "hidden_size": said["hidden"],
        "intermediate_size": said["intermediate"],
        "num_hidden_layers": said["layers"],
        "num_attention_heads": said["heads"],
        "num_key_value_heads": said["kv_heads"],
        "head_dim": said["head_dim"],
        "rms_norm_eps": said["rms_norm_eps"],
        "rope_theta": said["rope_theta"],
        "max_position_embeddings": 512,
        "tie_word_embeddings": said["tied_embeddings"],
        "hidden_act": said.get("activation", "silu"),
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(weights, folder / "model.safetensors")
    source = Directory(folder)
    read = read_config(source.config, name=source.name)
    check_tensors(read, source)
    return read_decoder(read, source)
