"""The recorded figures of cache policies as rows of one table, and which selectors lost to random entries."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "cache_quality.jsonl"
NO_RECORD = "No run is on record; `python -m trt_compress.tools.bench.cache_quality` makes one, in pieces."
COLUMNS = (
    "setting",
    "bytes a token",
    "of fp16 at 2k, 8k, 32k",
    "perplexity",
    "over fp16",
    "needles",
    "recall",
    "prompt, tokens/s",
    "steps, tokens/s",
)
_FIRST = ("fp32", "fp16")
Record = Mapping[str, Any]


def records(path: Path = RESULTS) -> list[Record]:
    """The last line of each setting by the protocol of the last line, plain caches first."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    found = [json.loads(line) for line in lines if line.strip()]
    alike = {each["setting"]: each for each in found if each["protocol"] == found[-1]["protocol"]}
    first = [alike.pop(name) for name in _FIRST if name in alike]
    return [*first, *(alike[name] for name in sorted(alike, key=lambda name: not name.startswith("random")))]


def row_of(record: Record) -> tuple[str, ...]:
    """A record as the cells of `COLUMNS`."""
    counted, speed = record["bytes"], record["speed"]
    budget = f", of {counted['budget']} at most" if counted["budget"] else ""
    ratios = [each["of_fp16"] for each in counted["at"].values()]
    value, change = record["perplexity"], record["change"]
    return (
        f"`{record['setting']}`",
        f"{counted['of_a_token']:g}{budget}",
        ", ".join("all" if ratio is None else f"{ratio:.3f}" for ratio in ratios),
        f"{value['value']:.2f}",
        "" if change is None else f"{change['ratio']:.4f}×{_interval(change, 4)}",
        _share(record["needle"]),
        _share(record["recall"]),
        *(_speed(speed[workload][record["setting"]]) for workload in ("prefill", "decode")),
    )


def caption(found: Sequence[Record]) -> str:
    """Where and how it was measured."""
    last, protocol = found[-1], found[-1]["protocol"]
    commits = sorted({each["commit"][:7] for each in found})
    return (
        f"`{protocol['model']}`, prompts of {protocol['tokens']} tokens; {last['perplexity']['tokens']} tokens behind "
        f"{protocol['windows']} of them, {last['needle']['n']} needles and {last['recall']['n']} questions of recall, "
        f"{5 * protocol['together']} to a text, which the intervals know; "
        f"{last['device']['cpu']} ({last['device']['cores']} cores), commit {', '.join(commits)}, {last['date'][:10]}."
    )


def notes(found: Sequence[Record]) -> Iterator[str]:
    """What the table does not hold: the formulas of bytes, and what lost to random entries."""
    yield "Bytes of a token are those of all layers: numbers of a row times their bytes, through the tokens of a row."
    for record in found:
        yield f"`{record['setting']}`: {record['bytes']['formula']}"
    worse = [f"`{name}` in {what}" for name, what in lost_to_random(found)]
    if any(record["over_random"] for record in found):
        yield f"Worse than random entries at the same budget: {'; '.join(worse) or 'none'}."


def lost_to_random(found: Sequence[Record]) -> Iterator[tuple[str, str]]:
    """The selectors that are worse than random entries at the same budget, and in what, as words."""
    for record in found:
        over, worse = record["over_random"] or {}, []
        if (change := over.get("perplexity")) and change["ratio"] > 1:
            sure = change["low"] is not None and change["low"] > 1
            worse.append(f"perplexity ({change['ratio']:.3f}×{'' if sure else ', within the interval'})")
        for kind in ("needle", "recall"):
            if (change := over.get(kind)) and change["value"] < 0:
                sure = change["high"] < 0
                worse.append(f"{kind} ({100 * change['value']:+.1f} points{'' if sure else ', within the interval'})")
        if worse:
            yield record["setting"], ", ".join(worse)


def _interval(change: Record, digits: int) -> str:
    if change["low"] is None:
        return ""
    return f" [{change['low']:.{digits}f}, {change['high']:.{digits}f}]"


def _share(found: Record) -> str:
    return f"{found['value']:.1%} [{found['low']:.1%}, {found['high']:.1%}]"


def _speed(side: Record) -> str:
    over = side["over_fp16"]
    return f"{side['tokens_per_s']:.1f}, {over['median']:.2f}×{_interval(over, 2)}"
