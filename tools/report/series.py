"""Thin out what a plot shows, keeping every extreme."""

from collections.abc import Sequence

import numpy as np

BUCKETS = 600
ECDF_POINTS = 400


def thin(x: Sequence[float], y: Sequence[float], buckets: int = BUCKETS) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Keep the smallest and the largest point of each of `buckets` runs of neighbours, in order.

    Up to twice as many points as buckets stay as they are.
    """
    if len(x) <= 2 * buckets:
        return tuple(map(float, x)), tuple(map(float, y))
    kept: list[int] = []
    values = np.asarray(y, dtype=np.float64)
    for part in np.array_split(np.arange(len(values)), buckets):
        low, high = int(part[values[part].argmin()]), int(part[values[part].argmax()])
        kept += sorted({low, high})
    return tuple(float(x[i]) for i in kept), tuple(float(y[i]) for i in kept)


def ecdf(values: Sequence[float]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Empirical distribution: value i of n, in order, is not exceeded by the share (i + 1) / n of all.

    Of many values those at evenly spread ranks are kept, the denser the nearer to the largest.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    n = len(ordered)
    if n <= ECDF_POINTS:
        ranks = np.arange(n)
    else:
        spread = np.linspace(0, n - 1, ECDF_POINTS // 2)
        tail = n - 1 - np.geomspace(1, n, ECDF_POINTS // 2) + 1
        ranks = np.unique(np.clip(np.concatenate([spread, tail, [n - 1]]), 0, n - 1).round().astype(np.int64))
    return tuple(map(float, ordered[ranks])), tuple(map(float, (ranks + 1) / n))


def gather(
    x: Sequence[float], kinds: Sequence[str], span: float
) -> tuple[tuple[float, ...], tuple[int, ...], tuple[str, ...]]:
    """Count events by time and kind: up to BUCKETS events stay apart, more are counted in slices of `span`."""
    if len(x) <= BUCKETS:
        return tuple(map(float, x)), (1,) * len(x), tuple(kinds)
    width = (span or 1.0) / BUCKETS
    counts: dict[tuple[int, str], int] = {}
    for at, kind in zip(x, kinds, strict=True):
        key = (min(int(at / width), BUCKETS - 1), kind)
        counts[key] = counts.get(key, 0) + 1
    ordered = sorted(counts)
    return (
        tuple((slot + 0.5) * width for slot, _ in ordered),
        tuple(counts[key] for key in ordered),
        tuple(kind for _, kind in ordered),
    )
