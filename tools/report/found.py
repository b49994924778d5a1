"""What a stream saw or heard, in rows of words: for the terminal and the page."""

from collections import Counter

from trt_compress.runtime.stream.findings import Features, Findings
from trt_compress.runtime.stream.watcher import counts_text
from trt_compress.tools.report.numbers import number, percent
from trt_compress.tools.report.sections import Section

MOST_WORDS = 40
_MOST_CLASSES = 12
_MOST_SPANS = 15  # of what is seen; more of them are no sum-up


def found_section(findings: Findings | None) -> Section | None:
    """The sum-up as a table of names and values; None where there is none."""
    if findings is None:
        return None
    heard = findings.kind == "heard"
    rows: list[tuple[str, str]] = []
    words = findings.words
    if words and (heard or len(words) <= _MOST_SPANS):
        shown = ", ".join(f"{word.start_s:.1f} s {word.text}" for word in words[:MOST_WORDS])
        left_out = len(words) - MOST_WORDS + findings.words_left_out
        rows.append(
            ("words, from" if heard else "classes, from", shown + (f" and {left_out} more" if left_out > 0 else ""))
        )
    if heard and words:
        rows.append(("how often", counts_text(Counter(word.text for word in words))))
    elif findings.classes:
        rows.append(("best class of frames", _shares(findings.classes, findings.results)))
    if findings.features is not None:
        rows.append(("features", _features(findings.features)))
    elif findings.boxes or not findings.classes:
        total = sum(findings.boxes.values())
        rows.append(("boxes", f"{total}: {counts_text(findings.boxes)}" if total else "none"))
        rows.append(("results with boxes", f"{findings.with_boxes} of {findings.results}"))
    return Section(title="Heard" if heard else "Seen", rows=tuple(rows))


def _features(found: Features) -> str:
    frames = f"{found.frames} frames"
    if found.most_frames != found.frames:
        frames = f"{found.frames} to {found.most_frames} frames"
    time = "" if found.ms_per_frame is None else f", {number(found.ms_per_frame)} ms a frame"
    return f"{frames} of {found.width} numbers a result{time}"


def _shares(classes: dict[str, int], results: int) -> str:
    ordered = sorted(classes.items(), key=lambda item: -item[1])
    parts = [f"{name} {count} ({percent(count, results)})" for name, count in ordered[:_MOST_CLASSES]]
    if len(ordered) > _MOST_CLASSES:
        parts.append(f"{len(ordered) - _MOST_CLASSES} others {sum(count for _, count in ordered[_MOST_CLASSES:])}")
    return ", ".join(parts)
