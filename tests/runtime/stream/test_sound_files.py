"""Sound files of every container: all samples of whole ones, one sentence for those that broke off or do not fit."""

import io
import logging
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile

from tests.runtime.stream.media import cut
from tests.runtime.stream.sounds import FORMATS, LOSSY, RATE, STREAMED, Array, streamed, tone, write_by_av, write_sound
from trt_compress.errors import ConfigError, StreamError, TrtCompressError
from trt_compress.runtime.stream.audio import AudioFiles, AudioFormat
from trt_compress.runtime.stream.sound_lengths import PartFile, promise_of

CHUNK = 1000


def played(
    pattern: object, *, rate: int = RATE, channels: int = 1, resample: bool = False, chunk: int = CHUNK
) -> Array:
    """All samples that a bundle would get, [S] or [channels, S]."""
    form = AudioFormat(sample_rate=rate, chunk_samples=chunk, hop_samples=chunk, channels=channels)
    source = AudioFiles(str(pattern), form, resample=resample)
    source.open()
    chunks = []
    while (item := source.read()) is not None:
        chunks.append(item.data)
    source.close()
    return np.concatenate(chunks, axis=-1) if chunks else np.zeros(0, np.float32)


@pytest.mark.parametrize("suffix", [*FORMATS, "WAV", "Mp3", "OPUS"])
def test_every_format_plays_whole(tmp_path: Path, suffix: str) -> None:
    sound = tone()
    samples = played(write_sound(tmp_path / f"a.{suffix}", sound))
    assert len(sound) <= len(samples) < len(sound) + 4 * CHUNK  # a lossy codec may fill up its last packet
    if suffix.lower() not in LOSSY:
        np.testing.assert_allclose(samples[: len(sound)], sound, atol=2 / 32768)
    else:
        assert np.corrcoef(samples[: len(sound)], sound)[0, 1] > 0.9


@pytest.mark.parametrize("share", [0.99, 0.6, 0.3])
@pytest.mark.parametrize("suffix", FORMATS)
def test_a_copy_that_broke_off_is_refused(tmp_path: Path, suffix: str, share: float) -> None:
    with pytest.raises(StreamError, match=r"is truncated: .* (is|are) missing; copy it again") as caught:
        played(cut(write_sound(tmp_path / f"a.{suffix}"), share))
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("suffix", ["m4a", "mka", "webm"])
@pytest.mark.parametrize("share", [0.99, 0.6])
def test_a_copy_of_what_soundfile_does_not_read_is_refused_too(tmp_path: Path, suffix: str, share: float) -> None:
    codec = "aac" if suffix == "m4a" else "libopus"
    path = write_by_av(tmp_path / f"a.{suffix}", tone(rate=48000), 48000, codec)
    with pytest.raises(StreamError, match=r"is truncated: \d+ bytes are missing; copy it again"):
        played(cut(path, share), rate=48000)


@pytest.mark.parametrize("name", STREAMED)
def test_a_placeholder_for_the_length_is_none(tmp_path: Path, name: str) -> None:
    sound = tone(1.0)
    path = tmp_path / f"a.{name[:4].strip(' ,')}"
    path.write_bytes(streamed(name, sound))
    samples = played(path)
    assert len(samples) == len(sound)
    np.testing.assert_allclose(samples, sound, atol=2 / 32768)


@pytest.mark.parametrize("tail", [b"", b"\0", struct.pack("<4sI4s", b"LIST", 4, b"INFO")])
def test_an_empty_wav_is_none_that_was_streamed(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(streamed("wav, 36 and 0", np.zeros(0)) + tail)
    assert not len(played(path)) or tail == b"\0"


@pytest.mark.parametrize("pad", [b"", b"\0", b"\0" + struct.pack("<4sI4s", b"LIST", 4, b"INFO")])
def test_an_odd_number_of_bytes_with_or_without_filling_is_whole(tmp_path: Path, pad: bytes) -> None:
    file = io.BytesIO()
    soundfile.write(file, tone()[:1501], RATE, format="WAV", subtype="PCM_U8")
    data = file.getvalue()
    path = tmp_path / "a.wav"
    path.write_bytes(data[: data.index(b"data") + 8 + 1501] + pad)
    assert len(played(path)) == 2000


def test_two_gigabytes_and_more_are_not_all_placeholders(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    data = bytearray(streamed("wav of sox", tone()))
    data[40:44] = struct.pack("<I", 3_000_000_000)
    path.write_bytes(data)
    with pytest.raises(StreamError, match="is truncated: 2999936000 bytes of its samples are missing"):
        played(path)


@pytest.mark.parametrize("name", ["wav of sox", "wav of ffmpeg"])
def test_more_than_a_placeholder_came(tmp_path: Path, name: str) -> None:
    """Five gigabytes in a pipe, most of them a hole: all of them are counted."""
    path = tmp_path / "a.wav"
    head = streamed(name, np.zeros(0))
    path.write_bytes(head)
    with path.open("r+b") as file:
        file.truncate(len(head) + 5 * 2**30)
    (part,) = promise_of(path).parts
    file_object: Any = PartFile(path, part)
    with file_object as opened, soundfile.SoundFile(opened) as sound:
        assert sound.frames == 5 * 2**29
    path.unlink()


def test_mp3_without_a_count_of_frames_plays_to_its_end(tmp_path: Path) -> None:
    """libsndfile guesses the length from the first frame: of quiet, then loud sound it would play a quarter."""
    quiet = 0.001 * tone(3.0, 44100)
    sound = np.concatenate([quiet, np.random.default_rng(1).uniform(-0.8, 0.8, 4 * 44100).astype(np.float32)])
    file = io.BytesIO()
    soundfile.write(file, sound, 44100, format="MP3", bitrate_mode="VARIABLE")
    data = file.getvalue()
    at = max(data.find(b"Xing"), data.find(b"Info"))
    assert at > 0  # soundfile writes a count
    first = data.rfind(b"\xff\xfb", 0, at)
    after = data.index(data[first : first + 2], at + 40)
    path = tmp_path / "a.mp3"
    path.write_bytes(data[after:])  # without the frame that has it
    samples = played(path, rate=44100)
    assert len(sound) - 2400 < len(samples) < len(sound) + 4000
    with pytest.raises(StreamError, match=r"is truncated: \d+ bytes of its last frame are missing"):
        played(cut(path, 0.7), rate=44100)


@pytest.mark.parametrize("suffix", ["mp3", "ogg"])
def test_files_that_were_joined_play_to_the_end(tmp_path: Path, suffix: str) -> None:
    data = write_sound(tmp_path / f"a.{suffix}").read_bytes()
    (tmp_path / f"b.{suffix}").write_bytes(data + data)
    samples = played(tmp_path / f"b.{suffix}")
    assert 2 * len(tone()) <= len(samples) < 2 * len(tone()) + 4 * CHUNK
    with pytest.raises(StreamError, match="is truncated"):
        played(cut(tmp_path / f"b.{suffix}", 0.8))


def test_blocks_do_not_change_what_an_mp3_gives(tmp_path: Path) -> None:
    sound, _ = soundfile.read(write_sound(tmp_path / "a.mp3", tone(4.0)), dtype="float32")
    np.testing.assert_allclose(played(tmp_path / "a.mp3")[: len(sound)], sound, atol=1e-5)


def test_an_ogg_without_an_end_mark_plays_and_is_doubted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_sound(tmp_path / "a.ogg")
    data = path.read_bytes()
    last = data.rindex(b"OggS")
    path.write_bytes(data[:last])  # between two pages
    with caplog.at_level(logging.WARNING, logger="trt_compress"):
        assert len(played(path))
    assert [record.message.partition(":")[0] for record in caplog.records] == [f"'{path}' has no end mark"]


@pytest.mark.parametrize(("suffix", "codec"), [("m4a", "aac"), ("mka", "libopus"), ("mp4", "aac")])
def test_the_sound_of_a_file_with_a_picture_is_played(tmp_path: Path, suffix: str, codec: str) -> None:
    sound = tone(rate=48000)
    path = write_by_av(tmp_path / f"a.{suffix}", sound, 48000, codec, cover=True)
    samples = played(path, rate=48000)
    assert len(sound) <= len(samples) < len(sound) + 4 * CHUNK
    assert 0.1 < float(np.sqrt(np.square(samples).mean())) < 0.5


def test_an_mp3_with_a_cover_plays(tmp_path: Path) -> None:
    sound = write_sound(tmp_path / "plain.mp3").read_bytes()
    picture = b"\0image/jpeg\0\x03\0" + b"\xff\xd8" + 9000 * b"\xff\xfb\x90\x64"  # looks like frames
    tag = b"APIC" + struct.pack(">IH", len(picture), 0) + picture
    size = bytes(len(tag) >> shift & 0x7F for shift in (21, 14, 7, 0))
    (tmp_path / "song.mp3").write_bytes(b"ID3\x03\0\0" + size + tag + sound + b"TAG" + bytes(125))
    np.testing.assert_array_equal(played(tmp_path / "song.mp3"), played(tmp_path / "plain.mp3"))


def test_many_channels_of_what_soundfile_does_not_read(tmp_path: Path) -> None:
    sound = np.stack([np.full(4800, (number + 1) / 32, np.float32) for number in range(16)])
    with av.open(str(tmp_path / "a.mka"), "w", format="matroska") as container:
        track: Any = container.add_stream("pcm_f32le", rate=RATE, layout="hexadecagonal")
        frame = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(sound.T).reshape(1, -1), format="flt", layout="hexadecagonal"
        )
        frame.sample_rate = RATE
        container.mux(track.encode(frame))
        container.mux(track.encode())
    np.testing.assert_allclose(played(tmp_path / "a.mka", channels=16)[:, :4800], sound, atol=1e-6)
    np.testing.assert_allclose(played(tmp_path / "a.mka", resample=True)[:4800], sound.mean(axis=0), atol=1e-6)


def _wav(path: Path, samples: Array, rate: int = RATE) -> Path:
    soundfile.write(path, samples, rate, subtype="FLOAT")
    return path


def test_resampled_sound_is_what_the_library_makes_of_the_whole(tmp_path: Path) -> None:
    soxr: Any = pytest.importorskip("soxr")
    left, right = tone(rate=44100), tone(rate=44100, hertz=300.0)
    path = _wav(tmp_path / "a.wav", np.stack([left, right], axis=1), 44100)
    whole = soxr.resample(((left + right) / 2).astype(np.float32), 44100, RATE)
    for chunk in (160, 999, 16000):
        samples = played(path, resample=True, chunk=chunk)
        np.testing.assert_array_equal(samples[: len(whole)], whole)
        assert not samples[len(whole) :].any() and len(samples) - len(whole) < chunk


@pytest.mark.parametrize(("given", "wanted"), [(1, 2), (2, 1), (6, 1), (2, 2)])
def test_channels_are_mixed_or_repeated(tmp_path: Path, given: int, wanted: int) -> None:
    levels = np.arange(1, given + 1) / 16
    path = _wav(tmp_path / "a.wav", np.tile(levels, (CHUNK, 1)).astype(np.float32))
    samples = np.atleast_2d(played(path, channels=wanted, resample=True))
    assert samples.shape == (wanted, CHUNK)
    expected = levels if given == wanted else np.full(wanted, levels.mean())
    np.testing.assert_allclose(samples, np.tile(expected[:, np.newaxis], (1, CHUNK)), atol=1e-6)


def test_files_of_several_rates_are_one_stream(tmp_path: Path) -> None:
    _wav(tmp_path / "1.wav", tone(1.0))
    _wav(tmp_path / "2.wav", tone(1.0, 48000), 48000)
    write_by_av(tmp_path / "3.m4a", tone(1.0, 44100), 44100, "aac")
    assert 3 * RATE <= len(played(tmp_path / "*", resample=True)) <= 3 * RATE + 4 * CHUNK
    with pytest.raises(StreamError, match=r"changes mid-stream: .* convert it first, by --resample or by ffmpeg -i"):
        played(tmp_path / "*")


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lambda path: _wav(path, np.zeros((9, 6))), {"channels": 2}, "6 channels cannot be made 2: which are meant"),
        (lambda path: _wav(path, np.zeros(9), 10), {}, "10 samples a second cannot be made 16000"),
        (lambda path: path.write_bytes(b""), {}, "is empty: it has no bytes"),
        (lambda path: path.write_bytes(b"no sound at all"), {}, r"is not readable audio .*; give wav, rf64, .* mp3"),
        (lambda path: os.mkfifo(path), {}, "is a pipe or a device; write the sound to a file first"),
        (lambda path: path.mkdir(), {}, "is a folder; give a pattern of its files"),
        (lambda path: path.write_bytes(_mad_header(channels=0)), {}, "is not readable audio"),
        (lambda path: path.write_bytes(_mad_header(channels=65535)), {}, "is not readable audio|cannot be resampled"),
        (lambda path: path.write_bytes(_mad_header(rate=0)), {}, "is not readable audio|cannot be resampled"),
        (lambda path: path.write_bytes(_mad_header(rate=0xFFFFFFFF)), {}, "is not readable audio|cannot be resampled"),
        (lambda path: path.write_bytes(_mad_header(bits=0)), {}, "is not readable audio"),
    ],
)  # fmt: skip
def test_what_cannot_be_played_is_one_sentence(
    tmp_path: Path, make: Callable[[Path], Any], options: dict[str, int], message: str
) -> None:
    make(tmp_path / "a.wav")
    with pytest.raises((ConfigError, StreamError), match=message) as caught:
        played(tmp_path / "a.wav", resample=True, **options)
    assert "\n" not in str(caught.value)


def _mad_header(*, channels: int = 1, rate: int = RATE, bits: int = 16) -> bytes:
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, channels, rate, rate * 2 & 0xFFFFFFFF, 2, bits)
    return b"RIFF" + struct.pack("<I", 236) + b"WAVE" + form + struct.pack("<4sI", b"data", 200) + bytes(200)


@pytest.mark.parametrize("suffix", ["wav", "aiff", "caf", "w64", "au", "flac", "ogg", "opus", "mp3", "rf64"])
def test_a_damaged_file_ends_in_a_sentence_or_plays(tmp_path: Path, suffix: str) -> None:
    data = write_sound(tmp_path / f"a.{suffix}", tone(0.5)).read_bytes()
    random = np.random.default_rng(0)
    for number in range(25):
        hurt = bytearray(data)
        for at in random.integers(0, min(len(data), 200 if number % 2 else len(data)), 4):
            hurt[at] = random.integers(0, 256)
        path = tmp_path / f"{number}.{suffix}"
        path.write_bytes(hurt)
        try:
            played(path, resample=True)
        except TrtCompressError as error:
            assert error.exit_code == 2 and str(path) in str(error)
