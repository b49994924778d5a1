"""A module of the shape of a Llama, for measuring: random weights in the type they are to have, or none at all (meta).

Source: LLaMA, arXiv:2302.13971; sizes of TinyLlama 1.1B, arXiv:2401.02385, and of Llama 2 7B, arXiv:2307.09288.
Differs: no rotary positions, which have no weights and cost next to nothing.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trt_compress.format.graphs import BATCH_SYMBOL
from trt_compress.methods import CompressorSpec
from trt_compress.models.hosts.base import CompressedModule, GraphSpec, Layers, LoadedHost, TensorSpec, WeightsInfo
from trt_compress.models.hosts.weights import tensors_sha256


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Sizes of a decoder."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    feed_forward: int
    vocabulary: int


TINY_LLAMA = Sizes(hidden=2048, layers=22, heads=32, kv_heads=4, feed_forward=5632, vocabulary=32_000)
LLAMA_7B = Sizes(hidden=4096, layers=32, heads=32, kv_heads=32, feed_forward=11_008, vocabulary=32_000)


class LlamaShaped(CompressedModule):
    """Tokens [B, T] to logits [B, T, vocabulary], each of what is before it."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.embed = nn.Embedding(sizes.vocabulary, sizes.hidden)
        self.layers = nn.ModuleList(_Layer(sizes) for _ in range(sizes.layers))
        self.norm = nn.RMSNorm(sizes.hidden, eps=1e-5)
        self.head = nn.Linear(sizes.hidden, sizes.vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [B, T, vocabulary]."""
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.head(self.norm(x))
        return logits

    def first_layers(self, count: int) -> "LlamaShaped":
        """The same without its last layers; its tensors are these."""
        short = copy.copy(self)
        short.__dict__["_modules"] = dict(self._modules)
        short.layers = self.layers[:count]
        return short


class _Layer(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        hidden, head = sizes.hidden, sizes.hidden // sizes.heads
        self.heads, self.kv_heads, self.head = sizes.heads, sizes.kv_heads, head
        self.attention_norm, self.norm = nn.RMSNorm(hidden, eps=1e-5), nn.RMSNorm(hidden, eps=1e-5)
        self.q, self.o = (nn.Linear(hidden, hidden, bias=False) for _ in range(2))
        self.k, self.v = (nn.Linear(hidden, sizes.kv_heads * head, bias=False) for _ in range(2))
        self.gate, self.up = (nn.Linear(hidden, sizes.feed_forward, bias=False) for _ in range(2))
        self.down = nn.Linear(sizes.feed_forward, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, time, _ = x.shape
        y = self.attention_norm(x)
        q = self.q(y).reshape(batch, time, self.heads, self.head).transpose(1, 2)
        k, v = (
            made(y).reshape(batch, time, self.kv_heads, self.head).transpose(1, 2)
            .repeat_interleave(self.heads // self.kv_heads, dim=1)
            for made in (self.k, self.v)
        )  # fmt: skip
        later = torch.full((time, time), -1e4, dtype=x.dtype, device=x.device).triu(1)
        weights = (q @ k.transpose(-1, -2) * self.head**-0.5 + later).softmax(-1)
        x = x + self.o((weights @ v).transpose(1, 2).reshape(batch, time, -1))
        y = self.norm(x)
        update: Tensor = self.down(nn.functional.silu(self.gate(y)) * self.up(y))
        return x + update


def on_meta(sizes: Sizes) -> LlamaShaped:
    """The module without weights."""
    with torch.device("meta"):
        return LlamaShaped(sizes).eval()


def filled(sizes: Sizes, dtype: torch.dtype) -> LlamaShaped:
    """The module with random weights, which are made in `dtype` at once."""
    module = on_meta(sizes)
    random = torch.Generator().manual_seed(0)
    for part in module.modules():
        for name, empty in part.named_parameters(recurse=False):
            made = torch.empty(empty.shape, dtype=dtype)
            made = made.fill_(1) if empty.ndim == 1 else made.normal_(std=0.02, generator=random)
            setattr(part, name, nn.Parameter(made, requires_grad=False))
    return module


def host_of(module: LlamaShaped, names: Sequence[str] = ("model",)) -> LoadedHost:
    """The module as a model of one graph, or of several that compute the same."""

    def graph_of(module: LlamaShaped, name: str) -> GraphSpec:
        return GraphSpec(
            module=module,
            name=name,
            inputs=(
                TensorSpec(
                    name="tokens",
                    shape=(BATCH_SYMBOL, "time"),
                    dtype="int64",
                    values=(0, module.embed.num_embeddings - 1),
                ),
            ),
            outputs=(TensorSpec(name="logits", shape=(BATCH_SYMBOL, "time", module.head.out_features)),),
            lengths={"time": (1, 8, 64)},
            layers=Layers(count=len(module.layers), first=lambda count: graph_of(module.first_layers(count), name)),
        )

    def attach(specs: Sequence[CompressorSpec]) -> tuple[GraphSpec, ...]:
        return tuple(graph_of(module, name) for name in names)

    weights = WeightsInfo(source="random (seed 0)", sha256=tensors_sha256(module))
    return LoadedHost(source="Llama-shaped", family="bench", module=module, weights=weights, attach=attach)
