"""Chunks of sound: every sample is in one, and what does not fit is refused."""

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.runtime.stream.media import cut, write_wav
from tests.runtime.stream.stream_parts import identity_stages, run_pipeline
from trt_compress.errors import ConfigError, StreamError, UnsupportedError
from trt_compress.runtime.stream.audio import AudioFiles, AudioFormat, Microphone
from trt_compress.runtime.stream.pace import MonotonicClock

RATE = 16000


def form(chunk: int, hop: int, channels: int = 1) -> AudioFormat:
    return AudioFormat(sample_rate=RATE, chunk_samples=chunk, hop_samples=hop, channels=channels)


def chunks_of(pattern: object, audio: AudioFormat) -> list[Any]:
    source = AudioFiles(str(pattern), audio)
    source.open()
    items = []
    while (item := source.read()) is not None:
        items.append(item)
    source.close()
    return items


@pytest.mark.parametrize("samples", [1, 399, 400, 401, 560, 561, 1000, 4000])  # around one chunk, and around a hop more
@pytest.mark.parametrize("hop", [400, 160, 1])
def test_chunks_overlap_and_hold_every_sample(tmp_path: Path, samples: int, hop: int) -> None:
    chunk = 400
    sound = np.random.default_rng(samples).uniform(-1, 1, samples).astype(np.float32)
    items = chunks_of(write_wav(tmp_path / "a.wav", sound), form(chunk, hop))
    # Restated: as many windows as start before the samples that no earlier window reached, zeros behind the end.
    starts = [0]
    while starts[-1] + chunk < samples:
        starts.append(starts[-1] + hop)
    padded = np.concatenate([sound, np.zeros(chunk, np.float32)])
    assert len(items) == len(starts) == form(chunk, hop).num_chunks(samples)
    for item, start in zip(items, starts, strict=True):
        np.testing.assert_array_equal(item.data, padded[start : start + chunk])
        assert item.capture_ns == round(start * 1e9 / RATE)


def test_stereo_and_integer_samples(tmp_path: Path) -> None:
    sound = np.stack([np.linspace(-0.5, 0.5, 500), np.linspace(0.25, 0, 500)], axis=1)
    (item,) = chunks_of(write_wav(tmp_path / "a.wav", sound, subtype="PCM_16"), form(500, 500, channels=2))
    assert item.data.shape == (2, 500) and item.data.dtype == np.float32
    np.testing.assert_allclose(item.data, sound.T, atol=2 / 32768)


def test_several_files_are_one_stream_in_natural_order(tmp_path: Path) -> None:
    for number in (1, 2, 10):
        write_wav(tmp_path / f"{number}.wav", np.full(150, number / 100))
    items = chunks_of(tmp_path / "*.wav", form(100, 100))
    joined = np.concatenate([item.data for item in items])
    np.testing.assert_array_equal(joined[:450], np.repeat(np.array([0.01, 0.02, 0.1], np.float32), 150))
    assert len(joined) == 500 and not joined[450:].any()


def test_a_sample_rate_that_changes_mid_stream_ends_it(tmp_path: Path) -> None:
    write_wav(tmp_path / "1.wav", np.zeros(300))
    write_wav(tmp_path / "2.wav", np.zeros(300), rate=8000)
    finished, sink = run_pipeline(AudioFiles(str(tmp_path / "*.wav"), form(100, 100)), identity_stages(
        preprocess=lambda data: {"x": np.float32(data.sum())}))  # fmt: skip
    assert sink.delivered == [0, 1, 2]
    assert finished.error is not None and finished.error.exit_code == 2
    assert "changes mid-stream: " in finished.error.message
    assert "has 8000 samples a second in 1 channels, and the bundle takes 16000 in 1" in finished.error.message


@pytest.mark.parametrize(
    ("rate", "shape", "message"),
    [
        (44100, (50,), "has 44100 samples a second in 1 channels, and the bundle takes 16000 in 1; convert it first"),
        (16000, (50, 2), "has 16000 samples a second in 2 channels, and the bundle takes 16000 in 1"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, rate: int, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        chunks_of(write_wav(tmp_path / "a.wav", np.zeros(shape), rate=rate), form(10, 10))


@pytest.mark.parametrize("share", [0.95, 0.5, 0.2])
def test_a_truncated_wav_is_refused(tmp_path: Path, share: float) -> None:
    with pytest.raises(StreamError, match=r"is truncated: \d+ bytes of its samples are missing; copy it again"):
        chunks_of(cut(write_wav(tmp_path / "a.wav", np.zeros(5000)), share), form(100, 100))


def test_what_is_no_sound_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"RIFFnonsense and more of it")
    with pytest.raises(StreamError, match="is not readable audio"):
        chunks_of(tmp_path / "a.wav", form(10, 10))
    with pytest.raises(ConfigError, match="does not exist; give a wav file"):
        chunks_of(tmp_path / "b.wav", form(10, 10))
    with pytest.raises(ConfigError, match="Nothing matches"):
        chunks_of(tmp_path / "c*.wav", form(10, 10))


def test_an_empty_wav_ends_at_once(tmp_path: Path) -> None:
    finished, _ = run_pipeline(AudioFiles(str(write_wav(tmp_path / "a.wav", np.zeros(0))), form(10, 10)))
    assert finished.error is not None and "gave no frame: it ended at once" in finished.error.message


@pytest.mark.parametrize(("chunk", "hop", "message"), [(10, 11, "would leave samples out"), (0, 1, "at least 1")])
def test_wrong_formats_are_refused(chunk: int, hop: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        form(chunk, hop)


def test_without_soundfile_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(UnsupportedError, match=r'needs .soundfile.*\nHint: pip install "trt-compress\[audio\]"'):
        chunks_of(tmp_path / "a.wav", form(10, 10))


def test_without_sounddevice_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(UnsupportedError, match=r'needs .sounddevice.*\nHint: pip install "trt-compress\[mic\]"'):
        Microphone(form(10, 10), MonotonicClock()).open()


class Portable(types.ModuleType):
    """As much of sounddevice as there is without a sound card: blocks 0, 1, 2, …; block 3 lost samples."""

    class PortAudioError(Exception):
        pass

    class InputStream:
        def __init__(self, *, samplerate: int, channels: int, dtype: str, blocksize: int) -> None:
            if samplerate != RATE:
                raise Portable.PortAudioError("Invalid sample rate")
            self._shape, self._number = (blocksize, channels), -1

        def start(self) -> None: ...

        def read(self, frames: int) -> tuple[Any, bool]:
            assert frames == self._shape[0]
            self._number += 1
            return np.full(self._shape, self._number, np.float32), self._number == 3

        def close(self) -> None: ...


def test_a_microphone_gives_chunks_and_counts_what_it_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", Portable("sounddevice"))
    source = Microphone(form(20, 10), MonotonicClock())
    source.open()
    items = [source.read() for _ in range(5)]
    source.close()
    assert [item.data[[0, -1]].tolist() if item and item.data is not None else None for item in items] == [
        [0, 1], [1, 2], None, [3, 4], [4, 5],
    ]  # fmt: skip
    assert items[2] is not None and items[2].error == "the microphone lost samples"
    assert all(item is not None and item.arrived_ns is not None for item in items)
    other = AudioFormat(sample_rate=8000, chunk_samples=10, hop_samples=10)
    with pytest.raises(
        StreamError, match=r"cannot give 8000 samples a second in 1 channel\(s\) \(Invalid sample rate\)"
    ):
        Microphone(other, MonotonicClock()).open()


class Stereo(Portable):
    """A microphone that has 48000 samples a second in two channels, and nothing else."""

    class InputStream(Portable.InputStream):
        def __init__(self, *, samplerate: int, channels: int, dtype: str, blocksize: int) -> None:
            if (samplerate, channels) != (48000, 2):
                raise Portable.PortAudioError("Invalid number of channels")
            self._shape, self._number = (blocksize, channels), -1

    @staticmethod
    def query_devices(*, kind: str) -> dict[str, Any]:
        assert kind == "input"
        return {"default_samplerate": 48000.0, "max_input_channels": 2}


def test_a_microphone_of_another_rate_is_resampled_on_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", Stereo("sounddevice"))
    with pytest.raises(
        StreamError, match=r"cannot give 16000 samples a second in 1 channel\(s\) .*; give --resample, or"
    ):
        Microphone(form(1600, 1600), MonotonicClock()).open()
    source = Microphone(form(1600, 1600), MonotonicClock(), resample=True)
    source.open()
    items = [source.read() for _ in range(6)]
    source.close()
    assert [item.data.shape for item in items if item and item.data is not None] == [(1600,)] * 5
    assert items[0] is not None and abs(items[0].data).max() < 1.1  # block 0 is silent, block 1 begins
    assert sum(item is not None and item.error is not None for item in items) == 1
