"""The sound of a stream on its page: words on an axis of time over its shape, a player, a codec's bitrate."""

import base64
from collections.abc import Mapping
from pathlib import Path

from trt_compress.files import open_regular
from trt_compress.runtime.stream.listener import MOST_BYTES
from trt_compress.runtime.stream.sound_result import Sound, Track, Word
from trt_compress.tools.report.escaping import escape
from trt_compress.tools.report.numbers import number
from trt_compress.tools.report.plots import Figure, drawn, time_ticks
from trt_compress.tools.report.sections import Section
from trt_compress.tools.report.svg import Board, linear

MEDIA_POLICY = "media-src data:"
"""What the policy of a page with a player allows beside what every page may do."""

_KINDS: Mapping[str, tuple[str, tuple[bytes, ...]]] = {  # suffix → media type, and how such a file begins
    ".flac": ("audio/flac", (b"fLaC",)),
    ".mp3": ("audio/mpeg", (b"ID3", b"\xff")),
    ".wav": ("audio/wav", (b"RIFF",)),
}
_TITLES = {"heard": "What was heard", "made": "What the codec made of it"}
_LANE = 58  # room for words above the sound
_LETTER = 6.8  # width of a letter, about
_LINE = 13  # and its height
_THINNEST = 2  # pixels that a word takes at least, on average
_WORDS_LISTED = 500
_BITS = 16  # of a sample of plain sound


def players_of(sound: Sound | None, folder: Path) -> dict[str, str]:
    """Read the files of the tracks: name of a track → data URI, or a sentence that says why there is none.

    A file is taken by its plain name, from this folder only, and only if it is sound and small enough.
    """
    found: dict[str, str] = {}
    for track in sound.tracks if sound else ():
        if track.file is None:
            found[track.name] = f"No player: {track.reason or 'the sound was not kept'}."
            continue
        media, magic = _KINDS.get(Path(track.file).suffix, ("", ()))
        data = b""
        if media and Path(track.file).name == track.file:
            try:
                with open_regular(folder / track.file, inside=folder) as file:
                    data = file.read(MOST_BYTES + 1)
            except (OSError, ValueError):
                data = b""
        if not data or len(data) > MOST_BYTES or not data.startswith(magic):
            found[track.name] = f"No player: its file '{track.file}' is not beside the result."
        else:
            found[track.name] = f"data:{media};base64,{base64.b64encode(data).decode()}"
    return found


def sound_html(sound: Sound, players: Mapping[str, str]) -> list[tuple[Figure, str]]:
    """Every track as a figure, and the player that goes below it."""
    parts = []
    for index, track in enumerate(sound.tracks):
        title = _TITLES.get(track.name, track.name)
        words = sound.words if index == 0 else ()
        figure = _figure(track, words, sound.words_left_out if index == 0 else 0, title, f"sound-{index}")
        source = players.get(track.name, "No player: the sound is not beside the result.")
        if source.startswith("data:"):
            player = f'<audio controls preload="metadata" aria-label="{escape(title)}" src="{escape(source)}"></audio>'
        else:
            player = f'<p class="missing">{escape(source)}</p>'
        parts.append((figure, player))
    return parts


def sound_sections(sound: Sound) -> list[Section]:
    """What a codec saves, as a table; empty for what is no codec."""
    if sound.bits_per_second is None or not sound.tracks:
        return []
    plain = sound.tracks[0].sample_rate * _BITS
    bits = sound.bits_per_second
    rows: list[tuple[str, str | None]] = [
        ("codes", f"{number(bits)} bit/s"),
        ("the sound itself", f"{number(plain / 1000)} kbit/s ({sound.tracks[0].sample_rate} Hz, {_BITS} bits)"),
        ("smaller by", f"{number(plain / bits)} times" if bits > 0 else None),
        ("all codes", f"{number(bits * sound.tracks[0].seconds / 8)} bytes for {number(sound.tracks[0].seconds)} s"),
    ]
    return [Section(title="Bitrate of the codec", rows=tuple(rows))]


def _figure(track: Track, words: tuple[Word, ...], left_out: int, title: str, identifier: str) -> Figure:
    seconds = max(track.seconds, *(word.end_s for word in words), 1e-6) if words else max(track.seconds, 1e-6)
    lane = _LANE if words else 0

    def draw(board: Board) -> None:
        size = board.size
        floor = size.top + size.inner_height
        to_x = linear(0, seconds, size.left, size.left + size.inner_width)
        top = size.top + lane
        peak = max((abs(value) for value in (*track.low, *track.high)), default=0.0) or 1.0
        to_y = linear(-peak, peak, floor, top)
        ticks = [(to_y(value), f"{value:.2g}") for value in (-peak, 0.0, peak)]
        board.axes(time_ticks(to_x, 0, seconds, size), ticks, "time in s", "share of full scale")
        step = track.seconds / max(len(track.low), 1)
        at = [to_x((index + 0.5) * step) for index in range(len(track.low))]
        board.area(at, [to_y(value) for value in track.low], [to_y(value) for value in track.high], "series0")
        if len(words) * _THINNEST > size.inner_width:
            text = f"{len(words)} words, too close to be drawn: see the table"
            board.text(size.left + size.inner_width / 2, size.top + lane / 2, text, anchor="middle", kind="tick")
            return
        for word in words:
            _draw_word(board, word, to_x(word.start_s), to_x(word.end_s), size.top)

    caption = f"{number(track.seconds)} s at {track.sample_rate} Hz: smallest and largest sample of every moment."
    if words:
        caption += " Above it what the model said, and for how long; point at a word for its score."
    if left_out:
        caption += f" {left_out} more words at the end are not kept."
    listed = words[:_WORDS_LISTED]
    if len(words) > len(listed):
        caption += f" The table has the first {len(listed)} of {len(words)} words."
    rows = tuple((f"{word.start_s:.2f} s", f"{word.end_s:.2f} s", word.text, f"{word.score:.3f}") for word in listed)
    return Figure(
        title=title,
        caption=caption,
        svgs=drawn(draw, identifier, title, caption, height=190 + lane),
        columns=("from", "to", "word", "score") if rows else ("", ""),
        rows=rows or (("length", f"{number(track.seconds)} s"),),
    )


def _draw_word(board: Board, word: Word, left: float, right: float, top: float) -> None:
    """A box for its time; its text lies in it, stands upright where there is only room for that, or is left out."""
    width, height = right - left, _LANE - 8
    title = f"{word.text}, {word.score:.3f}, {word.start_s:.2f} to {word.end_s:.2f} s"
    board.bar(left + 0.5, top, max(width - 1, 1), height, "word", title)
    middle = top + height / 2
    if len(word.text) * _LETTER + 6 <= width:
        board.text((left + right) / 2, middle + 4, word.text, anchor="middle", kind="label word")
    elif width >= _LINE:
        most = int((height - 4) / _LETTER)
        short = word.text if len(word.text) <= most else word.text[: most - 1] + "…"
        board.upright_text((left + right) / 2 + 4, middle, short, kind="label word")
