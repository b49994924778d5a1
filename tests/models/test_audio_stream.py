"""A stream of chunks gives what the whole recording gives at once, where the method defines it."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from trt_compress.errors import ConfigError, UnsupportedError
from trt_compress.methods import parse_spec
from trt_compress.models.hosts.audio import WhisperModel
from trt_compress.models.hosts.audio_encoder import WhisperConfig
from trt_compress.models.hosts.audio_stream import StreamingWhisper, offline_frames


def tiny(*, labels: int = 0, clip_range: bool = False) -> WhisperModel:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"d_model": 32, "encoder_layers": 3, "encoder_attention_heads": 2, "encoder_ffn_dim": 64}
    config = WhisperConfig(num_mel_bins=40, max_source_positions=50, num_labels=labels, **sizes)
    model = WhisperModel(config, clip_range=clip_range).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    return model


def sound(samples: int, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(4)
    time = torch.arange(samples) / 16000
    loud = torch.sin(6.28 * 3 * time).clamp_min(0)
    return 0.1 * torch.randn(batch, samples, generator=generator) * loud + 0.2 * torch.sin(6.28 * 440 * time) * loud


def make(model: WhisperModel, spec: str = "none", **more: Any) -> StreamingWhisper:
    options = {"chunk_frames": 5, "left_chunks": 3, **more}
    return StreamingWhisper(model, parse_spec(spec), name="tiny", **options).eval()


def run(stream: StreamingWhisper, audio: Tensor) -> list[Tensor]:
    """Outputs chunk by chunk, from states of zeros."""
    dtypes = {"float32": torch.float32, "int64": torch.int64}
    states = [torch.zeros(len(audio), *map(int, s.shape[1:]), dtype=dtypes[s.dtype]) for s in stream.states()]
    outputs = []
    with torch.no_grad():
        for chunk in audio.split(stream.chunk_frames * 320, dim=1):
            out, *states = stream(chunk, *states)
            outputs.append(out)
    assert [tuple(s.shape[1:]) for s in states] == [tuple(map(int, s.shape[1:])) for s in stream.states()]
    return outputs


@pytest.mark.parametrize("chunks", [1, 4, 13], ids=["one", "as_many_as_context", "positions_begin_again"])
@pytest.mark.parametrize("left_chunks", [1, 3])
def test_chunks_are_the_whole(chunks: int, left_chunks: int) -> None:
    stream = make(tiny(), left_chunks=left_chunks)
    audio = sound(chunks * 1600)
    found = torch.cat(run(stream, audio), dim=1)
    with torch.no_grad():
        wanted = offline_frames(stream, audio)
    assert found.shape == (2, chunks * 5, 32)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_chunk_size_changes_only_what_is_seen() -> None:
    """A chunk with less context than the recording has gives another result than all of it in one chunk."""
    model, audio = tiny(), sound(8000)
    one = run(make(model, chunk_frames=25, left_chunks=1), audio)[0]
    short = torch.cat(run(make(model, left_chunks=1), audio), dim=1)
    assert (one[:, -1] - short[:, -1]).abs().max() > 1e-3


def test_frames_are_the_model_s_own_but_for_the_borders() -> None:
    """The convolutions of a stream are those of the model; frames leave one later, and have no padding."""
    model, audio = tiny(), sound(16000)
    stream = make(model)
    with torch.no_grad():
        wanted = model.encoder.convolve(model.frontend(audio))
        found = stream.tokens(torch.nn.functional.pad(audio, (840, 0)))
    torch.testing.assert_close(found[:, 3:], wanted[:, 2:-1], atol=1e-5, rtol=0)


def test_with_all_in_one_chunk_it_is_full_attention() -> None:
    """One chunk that holds the whole recording: the model itself, on the same frames and positions."""
    model, audio = tiny(), sound(8000)
    stream = make(model, chunk_frames=25, left_chunks=1)
    with torch.no_grad():
        x = stream.tokens(torch.nn.functional.pad(audio, (840, 0))) + model.encoder.embed_positions.weight[:25]
        for layer in model.encoder.stack:
            x = x + layer.attend(x)[0]
            x = x + layer.feed(x)
        wanted = model.encoder.finish(x)
    torch.testing.assert_close(run(stream, audio)[0], wanted, atol=1e-5, rtol=0)


def test_pooling_behind_the_encoder_is_pooling_of_the_whole() -> None:
    model, audio = tiny(), sound(6400)
    pooled = torch.cat(run(make(model, "frame_pool:stride=5"), audio), dim=1)
    with torch.no_grad():
        whole = offline_frames(make(model), audio)
    torch.testing.assert_close(pooled, whole.unflatten(1, (-1, 5)).mean(dim=2), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "spec", ["frame_pool:stride=2,layer=0", "atome:merge_ratio=0.5,layers=[0,1]", "tome:num_merged=1"]
)
def test_compressors_inside_a_chunk(spec: str) -> None:
    """A chunk is compressed by itself, so what was heard long ago changes nothing: the context is limited."""
    stream = make(tiny(), spec, left_chunks=1)
    late = sound(16000)
    other = late.clone()
    other[:, :3200] = sound(3200).flip(1)
    found, again = run(stream, late)[-1], run(stream, other)[-1]
    assert found.shape[1] == stream.tokens_out
    torch.testing.assert_close(found, again, atol=1e-5, rtol=0)


def test_logits_are_those_of_the_last_window() -> None:
    model, audio = tiny(labels=4), sound(9600)
    stream = make(model, window_chunks=2)
    found = run(stream, audio)
    with torch.no_grad():
        frames = offline_frames(stream, audio)
        for end, logits in enumerate(found, start=1):
            window = frames[:, max(0, end - 2) * 5 : end * 5]
            torch.testing.assert_close(logits, model.head(window, None), atol=1e-5, rtol=0)


def test_refusals() -> None:
    with pytest.raises(UnsupportedError, match="depend on the loudest of a clip, which a stream does not know"):
        make(tiny(clip_range=True))
    with pytest.raises(ConfigError, match=r"chunk_frames=51 is out of range; give 1\.\.50"):
        make(tiny(), chunk_frames=51)
    with pytest.raises(ConfigError, match="left_chunks=0, window_chunks=1; give 1 or more"):
        make(tiny(), left_chunks=0)
    with pytest.raises(ConfigError, match="its classifier takes 32 channels, not 160; pool instead"):
        make(tiny(labels=4), "frame_stack")


def test_first_layers_are_the_stream_that_has_no_others() -> None:
    model = tiny(labels=4)
    short = make(model, "tome:num_merged=[1,1,1]").first_layers(2)
    sizes = replace(model.encoder.config, encoder_layers=2)
    fewer = WhisperModel(sizes, num_samples=model.num_samples, clip_range=False)
    fewer.load_state_dict(model.state_dict(), strict=False)
    wanted = make(fewer, "tome:num_merged=[1,1]")
    assert short.states() == wanted.states()
    audio = sound(5 * 1600)
    for ours, theirs in zip(run(short, audio), run(wanted, audio), strict=True):
        assert torch.equal(ours, theirs)
