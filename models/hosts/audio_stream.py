"""Whisper-style encoders on a stream: audio comes in chunks, what a chunk needs of the past is state.

A chunk's frames attend to themselves and to the frames of a few chunks before. The state is the tail of the audio, the
keys and values of those chunks at every layer, and a counter. For a whole recording the same can be computed at once,
with a mask (`offline_frames`): the stream gives the same numbers. Against the model's own full attention there is a
difference, for a stream does not see what comes later.

Source: chunked attention with left context, as in Emformer, arXiv:2010.10759, without its right context.
Differs: no memory bank; positions begin again when the model's are used up; frames leave 20 ms late, for the
convolutions look ahead; the front end has a fixed floor, as the loudest value of a stream is not known.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from trt_compress.errors import ConfigError, UnsupportedError
from trt_compress.format.graphs import StateSpec
from trt_compress.methods import CompressorSpec
from trt_compress.models.compressors.passing import Taps, Tokens
from trt_compress.models.compressors.place import GraphPlan
from trt_compress.models.compressors.sites import (
    ENCODER_OUTPUT,
    Asked,
    HostInfo,
    Site,
    TapKind,
    as_tap,
    layer_sites,
    token_axis,
)
from trt_compress.models.hosts.audio import WhisperModel
from trt_compress.models.hosts.audio_encoder import EncoderLayer
from trt_compress.models.hosts.base import GraphSpec, Layers, Steps, TensorSpec
from trt_compress.models.hosts.row import CompressedRow
from trt_compress.models.layers.attention import HIDDEN
from trt_compress.plugins.operator import cast

SAMPLES_OF_FRAME = 320
TAIL = 840
"""Samples before a chunk that its frames need: the first of them is one frame late, and reaches 520 samples back."""
_TAPS: frozenset[TapKind] = frozenset({"keys", "queries", "values", "hidden"})


class StreamingWhisper(CompressedRow):
    """One chunk of a stream.

    Args:
        model: In eval mode, with a fixed floor (`clip_range=False`); it is called, never changed.
        specs: Compressors, in order; each chunk is compressed by itself.
        chunk_frames: Frames of a chunk, 20 ms each.
        left_chunks: Chunks before this one that its frames attend to.
        window_chunks: With a classifier: chunks whose mean is classified, this one included.
        name: The model's name, for messages.

    Raises:
        ConfigError: a number is out of range, or a compressor does not fit.
        UnsupportedError: the front end's floor depends on the whole clip.
    """

    def __init__(
        self,
        model: WhisperModel,
        specs: Sequence[CompressorSpec],
        *,
        chunk_frames: int,
        left_chunks: int,
        window_chunks: int = 1,
        name: str = "the model",
    ) -> None:
        super().__init__()
        if model.frontend.clip_range:
            raise UnsupportedError(
                f"{name}: its log-mel values depend on the loudest of a clip, which a stream does not know; build it "
                "with clip_range=False."
            )
        positions = model.encoder.config.max_source_positions
        if not 1 <= chunk_frames <= positions:
            raise ConfigError(f"{name}: chunk_frames={chunk_frames} is out of range; give 1..{positions}.")
        if left_chunks < 1 or window_chunks < 1:
            raise ConfigError(
                f"{name}: left_chunks={left_chunks}, window_chunks={window_chunks}; give 1 or more of each."
            )
        self.model, self.chunk_frames, self.left_chunks = model, chunk_frames, left_chunks
        self.window_chunks, self.width = window_chunks, model.width
        depth = len(model.encoder.stack)
        info = HostInfo(
            name=name,
            sites=(*layer_sites("after_attention", depth, taps=_TAPS), Site(kind=ENCODER_OUTPUT)),
            depth=depth,
            num_tokens=chunk_frames,
            width=model.width,
        )
        self.place(specs, info, row=f"model.{model.row}")
        if model.num_labels and self.width_out != model.width:
            raise ConfigError(
                f"{name}: its classifier takes {model.width} channels, not {self.width_out}; pool instead."
            )
        self.training = False

    def take(self, placed: GraphPlan) -> None:
        """Have compressors where this plan says, and the states of the layers that are there."""
        super().take(placed)
        self.tokens_in, self.weighs = self._count()

    def states(self) -> tuple[StateSpec, ...]:
        """What is handed from chunk to chunk."""
        found = [self._state("audio_tail", TAIL), self._state("chunks_seen", dtype="int64")]
        for layer, tokens in enumerate(self.tokens_in):
            found += [
                self._state(f"{part}_{layer}", self.left_chunks * tokens, self.width) for part in ("keys", "values")
            ]
            if self.weighs[layer]:
                found.append(self._state(f"size_{layer}", self.left_chunks * tokens, 1))
        if self.model.num_labels:
            found.append(self._state("chunk_means", self.window_chunks, self.width))
        return tuple(found)

    def forward(self, audio: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        """One chunk.

        Args:
            audio: The next samples, [B, chunk_frames * 320].
            states: As `states()` says; zeros at the beginning.

        Returns:
            Frames of this chunk [B, M, C], or logits [B, classes] of the window that ends with it; then the new states.
        """
        before = dict(zip((state.port for state in self.states()), states, strict=True))
        after: dict[str, Tensor] = {}
        seen = before["chunks_seen"]
        heard = torch.cat([before["audio_tail"], audio], dim=1)
        after["audio_tail"] = heard[:, -TAIL:]
        after["chunks_seen"] = seen + 1
        tokens, taps = Tokens(x=self.tokens(heard) + self.positions(seen)), Taps()
        for number, layer in enumerate(self.model.encoder.stack):
            tokens = tokens.with_x(self.model.encoder.enter(number, tokens.x))
            attend = partial(self._attend, layer, number, before, after)
            tokens = self.placed.layer(number, tokens, taps, attend, layer.feed)
        tokens = self.placed(ENCODER_OUTPUT, tokens.with_x(self.model.encoder.finish(tokens.x)), taps)
        out = self._finish(tokens, before, after)
        return (out, *(after[spec.port] for spec in self.states()))

    def _attend(
        self,
        layer: EncoderLayer,
        number: int,
        before: Mapping[str, Tensor],
        after: dict[str, Tensor],
        tokens: Tokens,
        wanted: frozenset[Asked],
    ) -> tuple[Tensor, Mapping[Asked, Tensor]]:
        """A layer's attention to this chunk and to those that its states hold; the new states go into `after`."""
        past = (before[f"keys_{number}"], before[f"values_{number}"])
        size = self._sizes(tokens, before.get(f"size_{number}"))
        bias = self._bias(before["chunks_seen"], self.tokens_in[number])
        update, found, (keys, values) = layer.attend(tokens.x, past=past, size=size, bias=bias, wanted=wanted)
        kept = past[0].shape[1]
        after[f"keys_{number}"], after[f"values_{number}"] = keys[:, -kept:], values[:, -kept:]
        if size is not None:
            after[f"size_{number}"] = size[:, -kept:]
        count = tokens.x.shape[1]
        return update, {
            asked: tap if as_tap(asked).kind == "queries" else tap.narrow(token_axis(asked), kept, count)
            for asked, tap in found.items()
        }

    def tokens(self, heard: Tensor) -> Tensor:
        """Frames [B, T / 320, C] of TAIL + T samples, without positions; convolutions without padding."""
        encoder, frontend = self.model.encoder, self.model.frontend
        count = (heard.shape[1] - TAIL) // SAMPLES_OF_FRAME
        used = frontend.hop * (2 * count + 2) + frontend.n_fft
        mel = cast((frontend.of_frames(cast(heard, torch.float32)[:, None, :used]) + 4) / 4, heard.dtype)
        x = functional.gelu(functional.conv1d(mel, encoder.conv1.weight, encoder.conv1.bias))
        x = functional.gelu(functional.conv1d(x, encoder.conv2.weight, encoder.conv2.bias, stride=2))
        return x.transpose(1, 2)

    def positions(self, seen: Tensor) -> Tensor:
        """Positions [B, chunk_frames, C] of the chunk that follows `seen` chunks [B]."""
        first = seen[:, None] * self.chunk_frames
        number = (
            first + torch.arange(self.chunk_frames, device=seen.device)
        ) % self.model.encoder.config.max_source_positions
        return functional.embedding(number, self.model.encoder.embed_positions.weight)

    def _bias(self, seen: Tensor, tokens: int) -> Tensor:
        """Hides the keys of chunks that have not been: [B, 1, 1, left + chunk]."""
        age = self.left_chunks - torch.arange((self.left_chunks + 1) * tokens, device=seen.device) // tokens
        hidden = (age > seen[:, None]) & (age > 0)
        return torch.where(hidden, HIDDEN, 0.0)[:, None, None].to(self.model.encoder.conv1.weight.dtype)

    def _sizes(self, tokens: Tokens, past: Tensor | None) -> Tensor | None:
        if past is None:
            return None
        size = torch.ones_like(tokens.x[..., :1]) if tokens.size is None else cast(tokens.size, past.dtype)
        return torch.cat([past.clamp_min(1), size], dim=1)

    def _finish(self, tokens: Tokens, before: dict[str, Tensor], after: dict[str, Tensor]) -> Tensor:
        if not self.model.num_labels:
            return tokens.x
        weight = torch.ones_like(tokens.x[..., :1]) if tokens.size is None else cast(tokens.size, tokens.x.dtype)
        mean = (tokens.x * weight).sum(dim=1, keepdim=True) / weight.sum(dim=1, keepdim=True)
        means = torch.cat([before["chunk_means"][:, 1:], mean], dim=1)
        after["chunk_means"] = means
        known = cast(after["chunks_seen"], means.dtype).clamp_max(self.window_chunks)[:, None]
        return self.model.head((means.sum(dim=1) / known)[:, None], None)

    def _count(self) -> tuple[tuple[int, ...], tuple[bool, ...]]:
        """Tokens of a chunk that enter each layer, and whether its attention weighs keys by size."""
        tokens, weighs, counts, flags = self.chunk_frames, False, [], []
        for layer in range(len(self.model.encoder.stack)):
            counts.append(tokens)
            flags.append(weighs)
            for step in self.placed.steps(f"blocks.{layer}"):
                tokens, weighs = step.tokens_out, weighs or step.proportional_attention
        return tuple(counts), tuple(flags)

    def _state(self, name: str, *shape: int, dtype: str = "float32") -> StateSpec:
        return StateSpec(input=name, output=f"new_{name}", shape=("batch", *shape), dtype=dtype)


def offline_frames(stream: StreamingWhisper, audio: Tensor) -> Tensor:
    """Frames of a whole recording at once, by a mask: what the stream gives chunk by chunk, without compressors.

    Args:
        stream: The stream, without compressors.
        audio: [B, samples], a whole number of chunks.

    Returns:
        The encoder's output, [B, samples / 320, C].
    """
    encoder = stream.model.encoder
    x = stream.tokens(functional.pad(audio, (TAIL, 0)))
    frame = torch.arange(x.shape[1], device=x.device)
    chunk = frame // stream.chunk_frames
    age = chunk[:, None] - chunk
    bias = torch.where((age >= 0) & (age <= stream.left_chunks), 0.0, HIDDEN)
    number = frame % encoder.config.max_source_positions
    x = x + encoder.embed_positions.weight[number]
    for layer_number, layer in enumerate(encoder.stack):
        x = encoder.enter(layer_number, x)
        x = x + layer.attend(x, bias=bias)[0]
        x = x + layer.feed(x)
    return encoder.finish(x)


def stream_graph(stream: StreamingWhisper, *, examples: Callable[[int], Steps] | None = None) -> GraphSpec:
    """The one graph of a stream."""
    labels = stream.model.num_labels
    output = (
        TensorSpec(name="logits", shape=("batch", labels))
        if labels
        else TensorSpec(name="frames", shape=("batch", stream.tokens_out, stream.width_out))
    )
    return GraphSpec(
        module=stream,
        inputs=(TensorSpec(name="audio", shape=("batch", stream.chunk_frames * SAMPLES_OF_FRAME)),),
        outputs=(output,),
        states=stream.states(),
        examples=examples,
        layers=Layers(
            count=len(stream.model.encoder.stack),
            first=lambda count: stream_graph(stream.first_layers(count), examples=examples),
        ),
    )
