"""Whisper-style encoders on a stream: audio comes in chunks, what a chunk needs of the past is state.

A chunk's frames attend to themselves and to the frames of a few chunks before. The state is the tail of the audio, the
keys and values of those chunks at every layer, and a counter. For a whole recording the same can be computed at once,
with a mask (`offline_frames`): the stream gives the same numbers. Against the model's own full attention there is a
difference, for a stream does not see what comes later.

Source: chunked attention with left context, as in Emformer, arXiv:2010.10759, without its right context.
Differs: no memory bank; positions begin again when the model's are used up; frames leave 20 ms late, for the
convolutions look ahead; the front end has a fixed floor, as the loudest value of a stream is not known.
"""

import typing
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from trt_compress.errors import ConfigError, UnsupportedError
from trt_compress.methods import CompressorSpec
from trt_compress.models.compressors.base import Compressor, HostInfo, Signal, Signals, TokenState
from trt_compress.models.compressors.compose import ENCODER_OUTPUT, place_compressors
from trt_compress.models.hosts.audio import WhisperModel
from trt_compress.models.hosts.base import CompressedModule, GraphSpec, StateSpec, Steps, TensorSpec
from trt_compress.plugins.operator import at_site, cast, mark_tensor

SAMPLES_OF_FRAME = 320
TAIL = 840
"""Samples before a chunk that its frames need: the first of them is one frame late, and reaches 520 samples back."""
HIDDEN = -1e4
"""Added to the logits of what is not there; its exponential is zero in fp16 and in fp32."""


class StreamingWhisper(CompressedModule):
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
        self.info = HostInfo(
            name=name,
            sites=frozenset({"after_attention", "encoder_output"}),
            depth=len(model.encoder.stack),
            num_tokens=chunk_frames,
            num_prefix=0,
            has_class_token=False,
            width=model.width,
        )
        self.steps, self.plan = place_compressors(specs, self.info)
        self.tokens_in, self.weighs = self._count()
        self.tokens_out = self.plan[-1].tokens_out if self.plan else chunk_frames
        self.width_out = model.width
        for step in self._steps(ENCODER_OUTPUT):
            self.width_out = step.width_out or self.width_out
        if model.num_labels and self.width_out != model.width:
            raise ConfigError(
                f"{name}: its classifier takes {model.width} channels, not {self.width_out}; pool instead."
            )
        self.training = False

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
        before = dict(zip((state.input for state in self.states()), states, strict=True))
        after: dict[str, Tensor] = {}
        seen = before["chunks_seen"]
        heard = torch.cat([before["audio_tail"], audio], dim=1)
        after["audio_tail"] = heard[:, -TAIL:]
        after["chunks_seen"] = seen + 1
        x = self.tokens(heard) + self.positions(seen)
        state, proportional = TokenState(x=x), False
        for number, layer in enumerate(self.model.encoder.stack):
            steps = self._steps(str(number))
            wanted = frozenset[Signal]().union(*(step.signals for step in steps))
            x = self.model.encoder.enter(number, state.x)
            past = (before[f"keys_{number}"], before[f"values_{number}"])
            size = self._sizes(state, before.get(f"size_{number}"))
            update, signals, (keys, values) = layer.attend(
                x, past=past, size=size, bias=self._bias(seen, self.tokens_in[number]), wanted=wanted
            )
            kept = past[0].shape[1]
            after[f"keys_{number}"], after[f"values_{number}"] = keys[:, -kept:], values[:, -kept:]
            if size is not None:
                after[f"size_{number}"] = size[:, -kept:]
            if signals.keys is not None:
                signals = Signals(keys=signals.keys[:, kept:])
            state = TokenState(x=x + update, size=state.size)
            for step in steps:
                with at_site(f"blocks.{number}"):
                    state = step(state, signals)
                    state = TokenState(x=mark_tensor("tokens", state.x), size=state.size)
                proportional = proportional or step.proportional_attention
            state = TokenState(x=state.x + layer.feed(state.x), size=state.size)
        out = self._finish(TokenState(x=self.model.encoder.finish(state.x), size=state.size), before, after)
        return (out, *(after[spec.input] for spec in self.states()))

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

    def _sizes(self, state: TokenState, past: Tensor | None) -> Tensor | None:
        if past is None:
            return None
        size = torch.ones_like(state.x[..., :1]) if state.size is None else cast(state.size, past.dtype)
        return torch.cat([past.clamp_min(1), size], dim=1)

    def _finish(self, state: TokenState, before: dict[str, Tensor], after: dict[str, Tensor]) -> Tensor:
        for step in self._steps(ENCODER_OUTPUT):
            with at_site(ENCODER_OUTPUT):
                state = step(state, Signals())
                state = TokenState(x=mark_tensor("tokens", state.x), size=state.size)
        if not self.model.num_labels:
            return state.x
        weight = torch.ones_like(state.x[..., :1]) if state.size is None else cast(state.size, state.x.dtype)
        mean = (state.x * weight).sum(dim=1, keepdim=True) / weight.sum(dim=1, keepdim=True)
        means = torch.cat([before["chunk_means"][:, 1:], mean], dim=1)
        after["chunk_means"] = means
        known = cast(after["chunks_seen"], means.dtype).clamp_max(self.window_chunks)[:, None]
        return self.model.head((means.sum(dim=1) / known)[:, None], None)

    def _count(self) -> tuple[tuple[int, ...], tuple[bool, ...]]:
        """Tokens of a chunk that enter each layer, and whether its attention weighs keys by size."""
        tokens, weighs, counts, flags = self.chunk_frames, False, [], []
        for layer in range(self.info.depth):
            counts.append(tokens)
            flags.append(weighs)
            for step in self._steps(str(layer)):
                tokens, weighs = step.tokens_out, weighs or step.proportional_attention
        return tuple(counts), tuple(flags)

    def _state(self, name: str, *shape: int, dtype: str = "float32") -> StateSpec:
        return StateSpec(input=name, output=f"new_{name}", shape=("batch", *shape), dtype=dtype)

    def _steps(self, key: str) -> list[Compressor]:
        return [*typing.cast(Iterable[Compressor], self.steps[key])] if key in self.steps else []


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
    )
