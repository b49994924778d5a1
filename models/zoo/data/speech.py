"""Spoken words for the audio models of the zoo: synthesized by espeak-ng, in many voices, and mixed with noise.

Training and validation speech is made when a model is trained; it needs the program espeak-ng (Debian: espeak-ng). The
held-out test clips stand beside this file, as 8-bit µ-law, so that accuracy is checked without it. No voice of the test
speaks in training, and half of the words that are no keyword are heard in the test only.

    python -m trt_compress.models.zoo.data.speech --output DIR      # writes speech_heldout.npz again
"""

import argparse
import io
import sys
import wave
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from trt_compress.children import find_program, run
from trt_compress.errors import TrtCompressError, UnsupportedError
from trt_compress.files import write_whole

SAMPLE_RATE = 16000
CLIP_SAMPLES = 16000
HELDOUT_FILE = Path(__file__).with_name("speech_heldout.npz")

KEYWORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
UNKNOWN, SILENCE = len(KEYWORDS), len(KEYWORDS) + 1
CLASSES = (*KEYWORDS, "unknown", "silence")
OTHER_WORDS = (
    "bed bird cat dog happy house marvin tree zero one two three four five six seven eight nine water music light "
    "follow learn visual backward monday window garden paper money"
).split()
OTHER_WORDS_IN_TEST_ONLY = "forward table yellow kitchen number evening apple river pencil sunday".split()

ACCENTS = ("en-gb", "en-us", "en-gb-scotland", "en-gb-x-gbclan", "en-gb-x-rp", "en-gb-x-gbcwmd", "en-029")
TRAIN_SPEAKERS = (
    "m1 m2 m3 m4 m5 m6 f1 f2 f3 Alex Alicia Andrea Andy Denis Gene Jacky Lee Marco Mario Michael Mike adam anika "
    "antonio aunty belinda benjamin boris caleb david ed edward grandma grandpa iven"
).split()
VALIDATION_SPEAKERS = "travis rob pablo sandro Annie".split()
TEST_SPEAKERS = "m7 m8 f4 f5 linda john steph victor robert shelby".split()

SENTENCES = (
    "the quick brown fox jumps over the lazy dog",
    "she sells fresh fish at the market every morning",
    "please turn the music down before you leave",
    "a large ship sailed slowly into the northern harbour",
    "we measured the height of every tree in the garden",
    "his brother works in a small shop near the station",
    "thunder rolled across the valley all through the night",
    "the teacher wrote five new words on the board",
    "put the yellow box next to the window and stop",
    "nobody knew why the old clock had stopped at nine",
    "fresh bread and coffee make a good breakfast",
    "the children were playing with a ball on the beach",
)

MU = 255.0
_SILENCE_SHARE = 0.08  # clips of noise alone, by those of words
_HELDOUT_SEED = 20
Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Utterance:
    """A text, and how espeak-ng speaks it: accent, speaker (a variant of the voice), words a minute, pitch 0 to 99."""

    text: str
    accent: str
    speaker: str
    words_per_minute: int
    pitch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SpokenWords:
    """Clean words: one-dimensional float32 arrays at 16 kHz without silence around them, their classes and speakers."""

    audio: tuple[Array, ...]
    labels: Array
    speakers: tuple[str, ...]


def synthesize(utterance: Utterance) -> Array:
    """Speak an utterance; float32 at 16 kHz, cut to where it is loud, its peak at 0.5.

    Raises:
        UnsupportedError: espeak-ng is not installed, or lacks the voice.
    """
    program = find_program("espeak-ng")
    if program is None:
        raise UnsupportedError(
            "speech is synthesized by espeak-ng, which is not installed.", hint="apt install espeak-ng"
        )
    for name, known in ((utterance.accent, _known(program, "en")), (utterance.speaker, _known(program, "variant"))):
        if name not in known:  # espeak-ng itself would take another voice, and not say so
            raise UnsupportedError(f"espeak-ng has no voice '{name}' here; the speech would be another one.")
    command = [program, "--stdout", "-v", f"{utterance.accent}+{utterance.speaker}"]
    command += ["-s", str(utterance.words_per_minute), "-p", str(utterance.pitch), utterance.text]
    done = run(command)
    if done.returncode or not done.stdout:
        reason = done.stderr.decode(errors="replace").strip().splitlines()
        raise UnsupportedError(f"espeak-ng cannot speak '{utterance.text}': {(reason or ['no sound came'])[0]}")
    with wave.open(io.BytesIO(_with_length(done.stdout))) as file:
        rate = file.getframerate()
        samples = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2").astype(np.float32) / 32768
    return _cut(_resample(samples, rate))


def utterances(texts: Sequence[str], speakers: Sequence[str], *, draws: int, seed: int) -> list[Utterance]:
    """Every text by every speaker, `draws` times each with an accent, a speed and a pitch of its own."""
    random = np.random.RandomState(seed)
    return [
        Utterance(
            text=text,
            accent=ACCENTS[random.randint(len(ACCENTS))],
            speaker=speaker,
            words_per_minute=int(random.randint(120, 211)),
            pitch=int(random.randint(20, 81)),
        )
        for text in texts
        for speaker in speakers
        for _ in range(draws)
    ]


def make_words(speakers: Sequence[str], other_words: Sequence[str], *, draws: int, seed: int) -> SpokenWords:
    """Synthesize every keyword by every speaker `draws` times, and every other word by a third of the speakers."""
    said = utterances(KEYWORDS, speakers, draws=draws, seed=seed)
    for number, word in enumerate(other_words):
        said += utterances([word], speakers[number % 3 :: 3], draws=1, seed=seed + 1 + number)
    labels = [KEYWORDS.index(one.text) if one.text in KEYWORDS else UNKNOWN for one in said]
    return SpokenWords(
        audio=tuple(synthesize(one) for one in said),
        labels=np.array(labels, dtype=np.int64),
        speakers=tuple(one.speaker for one in said),
    )


class NoiseBank:
    """A minute each of white, pink and brown noise, to cut pieces from."""

    def __init__(self, random: np.random.RandomState) -> None:
        length = 60 * SAMPLE_RATE
        self.random = random
        self.tracks = []
        for slope in (0.0, 0.5, 1.0):
            spectrum = np.fft.rfft(random.standard_normal(length))
            spectrum /= np.maximum(np.arange(len(spectrum)), 20) ** slope
            track = np.fft.irfft(spectrum, length)
            self.tracks.append((track / track.std()).astype(np.float32))

    def piece(self, samples: int) -> Array:
        """Noise of standard deviation 1."""
        track = self.tracks[self.random.randint(len(self.tracks))]
        start = self.random.randint(len(track) - samples)
        found: Array = track[start : start + samples]
        return found


def make_clip(word: Array | None, noise: NoiseBank, *, snr_db: tuple[float, float] = (3.0, 30.0)) -> Array:
    """One second with the word somewhere in it (None: nothing), noise at a drawn distance, and a drawn loudness.

    Args:
        word: Clean speech; of one that is too long the middle is taken.
        noise: Where noise and every other draw come from.
        snr_db: Range of the distance between the power of the word and that of the noise.
    """
    random = noise.random
    clip = np.zeros(CLIP_SAMPLES, dtype=np.float32)
    power = 0.01
    if word is not None:
        start = max(0, (len(word) - CLIP_SAMPLES) // 2)
        word = word[start : start + CLIP_SAMPLES]
        offset = random.randint(CLIP_SAMPLES - len(word) + 1)
        clip[offset : offset + len(word)] = word
        power = float(np.square(word).mean())
    distance = random.uniform(*snr_db)
    clip += noise.piece(CLIP_SAMPLES) * np.float32(np.sqrt(power * 10 ** (-distance / 10)))
    loudest = float(np.abs(clip).max())
    return clip * np.float32(10 ** random.uniform(-1.2, -0.05) / max(loudest, 1e-6))


def make_clips(
    words: SpokenWords, noise: NoiseBank, *, snr_db: tuple[float, float] = (3.0, 30.0)
) -> tuple[Array, Array]:
    """One clip for each word, and clips of noise alone: audio [N, 16000] and labels [N]."""
    silent = round(len(words.audio) * _SILENCE_SHARE)
    sources: list[Array | None] = [*words.audio, *[None] * silent]
    clips = np.stack([make_clip(source, noise, snr_db=snr_db) for source in sources])
    return clips, np.concatenate([words.labels, np.full(silent, SILENCE)])


def heldout_words() -> SpokenWords:
    """The clean words of the test, from the file beside this one."""
    with np.load(HELDOUT_FILE, allow_pickle=False) as file:
        speech = expand(file["speech"])
        ends = np.cumsum(file["lengths"])
        return SpokenWords(
            audio=tuple(np.split(speech, ends[:-1])),
            labels=file["labels"].astype(np.int64),
            speakers=tuple(str(name) for name in file["speakers"]),
        )


def heldout_clips(*, repeats: int = 2) -> tuple[Array, Array]:
    """The test: every held-out word `repeats` times, at other places, in other noise (5 to 20 dB) and loudness.

    Returns:
        Audio [N, 16000] float32 and labels [N] int64, the same on every machine.
    """
    words, noise = heldout_words(), NoiseBank(np.random.RandomState(_HELDOUT_SEED))
    parts = [make_clips(words, noise, snr_db=(5.0, 20.0)) for _ in range(repeats)]
    return np.concatenate([clips for clips, _ in parts]), np.concatenate([labels for _, labels in parts])


def compress(audio: Array) -> Array:
    """8-bit µ-law of samples in -1..1, uint8."""
    squeezed = np.sign(audio) * np.log1p(MU * np.minimum(np.abs(audio), 1)) / np.log1p(MU)
    codes: Array = np.round((squeezed + 1) * 127.5).astype(np.uint8)
    return codes


def expand(codes: Array) -> Array:
    """Samples of 8-bit µ-law, float32."""
    squeezed = codes.astype(np.float64) / 127.5 - 1
    audio: Array = (np.sign(squeezed) * np.expm1(np.abs(squeezed) * np.log1p(MU)) / MU).astype(np.float32)
    return audio


def write_heldout(directory: Path) -> Path:
    """Synthesize the test words and write them."""
    words = make_words(TEST_SPEAKERS, [*OTHER_WORDS[::3], *OTHER_WORDS_IN_TEST_ONLY], draws=2, seed=7)
    path = directory / HELDOUT_FILE.name
    packed = io.BytesIO()
    np.savez_compressed(
        packed,
        speech=compress(np.concatenate(words.audio)),
        lengths=np.array([len(word) for word in words.audio], dtype=np.int32),
        labels=words.labels.astype(np.uint8),
        speakers=np.array(words.speakers),
    )
    write_whole(path, packed.getvalue())
    return path


@cache
def _known(program: str, language: str) -> frozenset[str]:
    """Names of the voices that espeak-ng lists for a language, or of its variants."""
    lines = run([program, f"--voices={language}"]).stdout.decode(errors="replace")
    names = [line.split() for line in lines.splitlines()[1:]]
    return frozenset(part.rpartition("/")[2] for words in names for part in words)


def _with_length(content: bytes) -> bytes:
    """A WAV stream with its true length: espeak-ng writes the largest number there, as it does not know it yet."""
    start = content.index(b"data") + 8
    return content[: start - 4] + (len(content) - start).to_bytes(4, "little") + content[start:]


def _resample(samples: Array, rate: int) -> Array:
    from scipy.signal import resample_poly

    step = Fraction(SAMPLE_RATE, rate)
    resampled: Array = resample_poly(samples, step.numerator, step.denominator).astype(np.float32)
    return resampled


def _cut(samples: Array) -> Array:
    """The part between the first and the last sample above 1 % of the peak, with 10 ms around it; peak 0.5."""
    loud = np.flatnonzero(np.abs(samples) > 0.01 * np.abs(samples).max())
    margin = SAMPLE_RATE // 100
    kept = samples[max(0, loud[0] - margin) : loud[-1] + margin]
    return kept * np.float32(0.5 / np.abs(kept).max())


def main(arguments: list[str] | None = None) -> int:
    """Write the held-out words; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m trt_compress.models.zoo.data.speech", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="directory for speech_heldout.npz")
    directory: Path = parser.parse_args(arguments).output
    try:
        directory.mkdir(parents=True, exist_ok=True)
        print(write_heldout(directory))
    except TrtCompressError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
