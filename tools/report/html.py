"""The page of a report: one HTML file with plots and tables that loads nothing.

Whatever comes from a result is escaped; the page's policy forbids every outside address, and every script but that of
`page.js`, by its hash. It shows the value under the pointer and zooms; where scripts are blocked the page is whole.
"""

import base64
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from trt_compress.digest import sha256
from trt_compress.tools.report.escaping import escape
from trt_compress.tools.report.found import found_section
from trt_compress.tools.report.numbers import Missing, count, ms, number, percent, reason
from trt_compress.tools.report.plots import Figure, figures_of
from trt_compress.tools.report.reading import reading_section
from trt_compress.tools.report.record import Distribution, Report, ReportSide
from trt_compress.tools.report.sections import Section, judged, run_sections, side_sections, speedup_text, tokens_parts
from trt_compress.tools.report.sound import MEDIA_POLICY, sound_html, sound_sections

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"

Tile = tuple[str, str | None, str]


def page_from_report(report: Report, players: Mapping[str, str] | None = None) -> str:
    """Make the page.

    Args:
        report: What it says.
        players: As `players_of` gives them, where the files of a sound lie.
    """
    deadline = report.protocol.deadline_ns
    body = [
        _head(report),
        *(_verdict(side, len(report.sides) > 1) for side in report.sides),
        _tiles(report),
        *_found(report),
        *_reading(report),
        *_sound(report, players or {}),
        "<h2>Plots</h2>",
        '<p class="hint" hidden>Point at a plot to read its values. Drag along an axis of time to see a part of it, '
        "double-click to see all.</p>",
        *map(figure_html, figures_of(report.sides, None if deadline is None else deadline / 1e6)),
    ]
    for side in report.sides:
        name = f"Numbers of the {side.role}" if len(report.sides) > 1 else "Numbers"
        body.append(f"<h2>{escape(name)}</h2>")
        body += map(_table, side_sections(side))
    body.append("<h2>How it was measured</h2>")
    body += map(_table, run_sections(report))
    body.append(
        f"<footer>Made with {escape(report.made_with)} from the result of {escape(report.source)}, report schema "
        f"{escape(report.schema_version)}. Percentiles are shown only where n supports them; what was not measured "
        "says so and is never zero.</footer>"
    )
    plays = any(source.startswith("data:") for source in (players or {}).values())
    return page_html(f"{report.title}: latency report", body, more_policy=MEDIA_POLICY if plays else "")


def page_html(title: str, body: Sequence[str], *, more_css: str = "", more_policy: str = "") -> str:
    """A whole page in the house's style.

    Args:
        title: Of the window.
        body: Parts of HTML, escaped.
        more_css: Rules beside those of every page.
        more_policy: What the page may do beside what every page may, as a directive.
    """
    css, script = ((Path(__file__).parent / f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    digest = base64.b64encode(bytes.fromhex(sha256(script))).decode()
    policy = "; ".join(filter(None, (_POLICY, f"script-src 'sha256-{digest}'", more_policy)))
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="referrer" content="no-referrer">'
        f"<title>{escape(title)}</title><style>\n{css}{more_css}</style></head>\n"
        f"<body><main>\n{chr(10).join(body)}\n</main><script>{script}</script></body></html>\n"
    )


def _found(report: Report) -> list[str]:
    found = found_section(report.findings)
    return [] if found is None else [f"<h2>{escape(found.title)}</h2>", rows_html(found.columns, found.rows)]


def _reading(report: Report) -> list[str]:
    points = reading_section(report)
    if points is None:
        return []
    table = f'<div class="scroll">{rows_html(points.columns, points.rows)}</div>'
    last = report.points[-1]
    said = f"Everything below is of {last.workload} at {last.fill}."
    return [f"<h2>{escape(points.title)}</h2>", table, f'<p class="hint">{escape(said)}</p>']


def _sound(report: Report, players: Mapping[str, str]) -> list[str]:
    if report.sound is None:
        return []
    parts = ["<h2>Sound</h2>"]
    for figure, player in sound_html(report.sound, players):
        parts += [figure_html(figure), player]
    return parts + [_table(section) for section in sound_sections(report.sound)]


def _head(report: Report) -> str:
    identity, device = report.sides[0].identity, report.machine.device
    machine = ", ".join(str(device[key]) for key in ("cpu",) if device.get(key))
    cores = f" ({device['cores']} cores)" if device.get("cores") else ""
    listed = device.get("gpus")
    gpus = (
        ", ".join(str(gpu.get("name")) for gpu in listed if isinstance(gpu, dict)) if isinstance(listed, list) else ""
    )
    when = f", {report.started_at[:19].replace('T', ' ')}" if report.started_at else ""
    lines = [
        f"{identity.model}, {identity.compression}, {identity.precision}",
        f"{report.protocol.kind} on {', '.join(filter(None, [gpus, machine + cores]))}, {identity.backend}{when}",
    ]
    if str(report.protocol.settings.get("inputs", "")).startswith("random"):
        lines.append("The inputs are noise (random numbers): times are those of real inputs, results are not.")
    return f"<header><h1>{escape(report.title)}</h1>{''.join(f'<p>{_breakable(line)}</p>' for line in lines)}</header>"


def _breakable(words: str) -> str:
    """Escaped; a long setting breaks behind a comma."""
    return re.sub(r",(?=\S)", ",<wbr>", escape(words))


def _verdict(side: ReportSide, named: bool) -> str:
    shown = judged(side)
    name = f"{side.role}: " if named else ""
    return (
        f'<div class="verdict {shown.kind}"><strong>{escape(shown.word)}</strong>'
        f"<span>{escape(name + '; '.join(shown.reasons))}</span></div>"
    )


def _tiles(report: Report) -> str:
    tiles: list[Tile] = []
    if text := speedup_text(report):
        ratio, _, rest = text.partition(" ")
        tiles.append(("speed-up", ratio, rest))
    for side in report.sides:
        tiles += _side_tiles(side, f"{side.role}, " if len(report.sides) > 1 else "")
    cells = []
    for name, value, note in tiles:
        shown = f"<dd>{escape(value)}" if value is not None else '<dd class="missing">'
        small = f"<small>{escape(note)}</small>" if value is not None and note else escape(note)
        cells.append(f"<div><dt>{escape(name)}</dt>{shown}{small}</dd></div>")
    return f'<dl class="tiles">{"".join(cells)}</dl>'


_QUALITY = {"top1": "top-1 accuracy", "translation_error_m": "translation error in m"}


def _side_tiles(side: ReportSide, name: str) -> list[Tile]:
    latency, accounting, compression = side.latency, side.accounting, side.compression
    kind, part = latency.headline
    tiles: list[Tile] = []
    if part is not None:
        tiles.append((f"{name}{kind} median", ms(part.median_ns), f"n {part.n}"))
        tiles.append(_tail_tile(name, part))
    if latency.throughput_per_s is not None:
        tiles.append((f"{name}throughput", f"{number(latency.throughput_per_s)} per s", ""))
    if accounting is not None:
        missed = latency.deadline_missed
        if missed is not None:
            share = percent(missed, accounting.delivered)
            tiles.append((f"{name}deadline misses", share, f"{missed} of {accounting.delivered} delivered"))
        lost = accounting.dropped + accounting.failed
        words = f"{accounting.dropped} dropped, {accounting.failed} failed of {accounting.frames_in}"
        tiles.append((f"{name}frames lost", percent(lost, accounting.frames_in), words))
    if apart := tokens_parts(compression):
        tiles.append((f"{name}tokens", *apart))
    elif compression.tokens_in is not None and compression.tokens_out is not None:
        tokens = f"{count(compression.tokens_in)} → {count(compression.tokens_out)}"
        tiles.append((f"{name}tokens", tokens, ""))
    for metric in side.quality[:3]:
        of = f"n {metric.n}"
        if "random inputs" in metric.against:
            of += ", on noise: random numbers, no real inputs"
        tiles.append((name + _QUALITY.get(metric.name, metric.name), f"{metric.value:.4g}", of))
    power = side.resources.power
    if power is not None:
        each = power.energy_per_inference_j
        why = "" if each is not None else reason(power.reasons, "energy_j")
        tiles.append((f"{name}energy an inference", None if each is None else f"{number(each)} J", why))
    return tiles


def _tail_tile(name: str, part: Distribution) -> Tile:
    """The highest percentile that n supports, or what is missing for any."""
    for label, ns in (("p99", part.p99_ns), ("p95", part.p95_ns), ("p90", part.p90_ns)):
        if ns is not None:
            return (f"{name}{label}", ms(ns), f"n {part.n}, max {ms(part.max_ns)}")
    return (f"{name}p90", None, reason(part.reasons, "p90_ns"))


def figure_html(figure: Figure) -> str:
    """A plot with its legend, caption and numbers."""
    legend = "".join(f"<li>{_swatch(kind)}{escape(name)}</li>" for kind, name in figure.legend)
    parts = [
        f"<figure><h3>{escape(figure.title)}</h3>",
        f'<ul class="legend">{legend}</ul>' if legend else "",
        *figure.svgs,
        f"<figcaption>{escape(figure.caption)}</figcaption>",
    ]
    if figure.rows:
        table = rows_html(figure.columns, figure.rows)
        parts.append(f'<details><summary>The numbers of this plot</summary><div class="scroll">{table}</div></details>')
    return "".join(parts) + "</figure>"


def _swatch(kind: str) -> str:
    shapes = {
        "work": '<rect class="work" x="1" y="3" width="12" height="9"/>',
        "wait": '<rect class="wait" x="1" y="3" width="12" height="9"/>',
        "dropped": '<path class="mark dropped" d="M2 3h10l-5 9z"/>',
        "failed": '<path class="mark failed" d="M2 2l10 10m0 -10l-10 10"/>',
        "deadline": '<path class="deadline" d="M0 7h14"/>',
    }
    shape = shapes.get(kind, f'<path class="dots {escape(kind)}" style="stroke-width:8;stroke-opacity:1" d="M7 7h0"/>')
    return f'<svg viewBox="0 0 14 14" aria-hidden="true">{shape}</svg>'


def _table(section: Section) -> str:
    return f'<h3>{escape(section.title)}</h3><div class="scroll">{rows_html(section.columns, section.rows)}</div>'


def rows_html(columns: Sequence[str], rows: Sequence[Sequence[str | None]]) -> str:
    """A table. A last column without a name holds notes: a row with a note shows it in place of its numbers."""
    noted = bool(columns) and len(columns) > 2 and columns[-1] == ""
    shown = columns[:-1] if noted else columns
    width = max((len(row) for row in rows), default=0)
    numeric = [all(_is_number(row[index]) for row in rows if index < len(row)) for index in range(width)]
    kinds = [' class="number"' if flag else "" for flag in numeric] + [""] * len(columns)
    head = "".join(f'<th scope="col"{kinds[index]}>{escape(name)}</th>' for index, name in enumerate(shown))
    body = []
    for row in rows:
        first = f'<th scope="row">{escape(row[0] or "")}</th>'
        if noted and row[-1]:
            cells = f'<td class="missing" colspan="{len(shown) - 1}">{escape(row[-1])}</td>'
        else:
            values = row[1:-1] if noted else row[1:]
            cells = "".join(_cell(cell, kinds[i]) for i, cell in enumerate(values, 1))
        body.append(f"<tr>{first}{cells}</tr>")
    thead = f"<thead><tr>{head}</tr></thead>" if columns else ""
    kind = ' class="numbers"' if any(numeric[1:]) else ""
    return f"<table{kind}>{thead}<tbody>{''.join(body)}</tbody></table>"


def _cell(cell: str | None, kind: str) -> str:
    """A cell; one that says why there is no number is grey."""
    shown = ' class="missing"' if isinstance(cell, Missing) else kind
    return f"<td{shown}>{escape(cell or '-')}</td>"


def _is_number(cell: str | None) -> bool:
    """Whether a cell is a number with or without a unit, or says why there is none."""
    if not cell or cell == "-" or cell.startswith("n too small"):
        return True
    try:
        float(cell.rstrip("%").removesuffix(" ms").removesuffix(" J").removesuffix(" W"))
    except ValueError:
        return False
    return True
