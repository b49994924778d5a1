"""A sweep as rows of words: what the table of the terminal and that of the page have in common."""

from trt_compress.tools.sweep.result import Row, SweepResult


def sorted_rows(result: SweepResult) -> list[Row]:
    """Dense, then what was asked for, the fastest first."""
    asked = [row for row in result.rows if row.kind == "asked" or (row.kind == "random" and not row.beside)]
    if all(row.speedup is not None for row in asked):
        asked.sort(key=lambda row: -(row.speedup.median if row.speedup is not None else 0))
    else:
        asked.sort(key=lambda row: row.flops or 0)
    return [result.dense, *asked]


def columns_of(result: SweepResult) -> tuple[str, ...]:
    """Headings of what `cells_of` gives."""
    return ("setting", "tokens", "FLOPs", measure_title(result), "random's", "as dense", "ms", "speed-up", "")


def measure_title(result: SweepResult) -> str:
    """The heading of what is measured."""
    return {"accuracy": "accuracy", "agreement": "agreement", "cosine": "mean cosine"}[result.measure]


def cells_of(row: Row, result: SweepResult) -> tuple[str | None, ...]:
    """A row as words."""
    dense = result.dense
    flops = None
    if row.flops and dense.flops:
        flops = "1" if row.kind == "dense" else f"{row.flops / dense.flops:.2f}"
    share = row.scores.accuracy if result.measure == "accuracy" else None
    value = row.value(result.measure)
    if share is not None:
        shown: str | None = f"{share.value:.1%} [{share.low * 100:.1f}, {share.high * 100:.1f}]"
    elif value is None:
        shown = None
    else:
        shown = f"{value:.4f}" if result.measure == "cosine" else f"{value:.1%}"
    agreement = row.scores.agreement
    gain = row.speedup
    interval = f" [{gain.low:.2f}, {gain.high:.2f}]" if gain and gain.low is not None and gain.high is not None else ""
    words = ["recommended"] if row.spec == result.recommended else []
    tokens = None if row.tokens_in is None else f"{row.tokens_in} → {row.tokens_out}"
    randoms = row.random_value
    return (
        "dense" if row.kind == "dense" else row.spec,
        tokens,
        flops,
        shown,
        None if randoms is None else f"{randoms:.4f}" if result.measure == "cosine" else f"{randoms:.1%}",
        None if agreement is None else f"{agreement.value:.1%}",
        None if row.latency is None else f"{row.latency.median_ns / 1e6:.2f}",
        None if gain is None else f"{gain.median:.2f}×{interval}",
        "; ".join([*words, *row.words]),
    )
