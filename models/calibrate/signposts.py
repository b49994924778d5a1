"""Tables for a cache that is not quantized in even steps: ranges of channels, and levels between which entries fall.

Source: KVQuant, arXiv:2401.18079; code SqueezeAILab/KVQuant 57a2383, quant/kvquant/simquant_module_quantizer.py.
Differs: see the method's entry, `methods.cache_stores.KVQUANT`.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trt_compress.errors import ConfigError
from trt_compress.models.cache.contract import CacheLayer, Memory, NewEntries
from trt_compress.models.compressors.calibration import Alphabet, Batch, CalibrationData, CalibrationHost

_MOST_ROWS = 4096  # of each layer that are looked at
_FEWEST_ROWS = 32
_LOOPS = 50
_LONGEST, _BATCHES, _AT_ONCE, _SEED = 256, 4, 4, 18


def samples(alphabet: Alphabet) -> CalibrationData:
    """Texts of random tokens, for whoever has no others.

    Raises:
        ConfigError: The model reads too few tokens.
    """
    length = min(_LONGEST, alphabet.context)
    if length < _FEWEST_ROWS:
        raise ConfigError(
            f"calibrate: {alphabet.context} tokens of context are too few; {_FEWEST_ROWS} are needed at least."
        )
    generator = np.random.default_rng(_SEED)
    batches = []
    for _ in range(_BATCHES + 1):
        texts = generator.choice(alphabet.tokens, (_AT_ONCE, length)).astype(np.int64)
        if alphabet.first is not None:
            texts[:, 0] = alphabet.first
        batches.append({"prompt": texts})
    return CalibrationData(fit=batches[:-1], held_out=batches[-1:])


@dataclass(frozen=True, slots=True)
class Entries:
    """Entries of one layer, [N, C] each in float32: keys before they are turned, and values, heads side by side."""

    keys: Tensor
    values: Tensor


def entries(host: CalibrationHost, batches: Iterable[Batch]) -> list[Entries]:
    """Entries of every layer, those of the first tokens up to a number.

    Raises:
        ConfigError: There are too few of them.
    """
    found: dict[int, list[tuple[Tensor, Tensor]]] = {}

    def look(layer: CacheLayer, reading: NewEntries, memory: Memory) -> None:
        kept = found.setdefault(layer.place, [])
        if sum(len(keys) for keys, _ in kept) >= _MOST_ROWS:
            return
        there = torch.arange(reading.key.shape[2]) < reading.count[:, None]
        both = (lines_of(rows).float()[there] for rows in (reading.key_before, reading.value))
        keys, values = both
        kept.append((keys, values))

    for _ in host.watch_caches(batches, look):
        pass
    layers = []
    for place in sorted(found):
        keys, values = (torch.cat(parts)[:_MOST_ROWS] for parts in zip(*found[place], strict=True))
        layers.append(Entries(keys, values))
    if not layers or len(layers[0].keys) < _FEWEST_ROWS:
        count = len(layers[0].keys) if layers else 0
        raise ConfigError(f"calibrate: the data have {count} tokens; give {_FEWEST_ROWS} at least.")
    return layers


def lines_of(rows: Tensor) -> Tensor:
    """Rows of KV heads [B, G, T, D] as lines of tokens [B, T, G * D]."""
    return rows.transpose(1, 2).flatten(2)


def ranges(lines: Tensor, outliers: float) -> tuple[Tensor, Tensor]:
    """The upper and the lower end of each channel of lines [N, C] without a share of outliers, half of them above."""
    rows = lines.double()
    upper = torch.quantile(rows, 1 - outliers / 2, dim=0)
    lower = torch.quantile(rows, outliers / 2, dim=0)
    return upper.float(), lower.float()


def signposts(points: Tensor, count: int, weights: Tensor | None = None) -> Tensor:
    """So many levels [count], ascending, of points [N] in -1..1: those of the least squared error that are found.

    Args:
        points: Numbers.
        count: Levels.
        weights: Of the points; None: they are equal.
    """
    order = points.double().sort()
    x = order.values
    weight = torch.ones_like(x) if weights is None else weights.double()[order.indices]
    total, moment = (torch.cat([x.new_zeros(1), each.cumsum(0)]) for each in (weight, weight * x))
    share = (torch.arange(count, dtype=x.dtype) + 0.5) / count
    at = torch.searchsorted(total[1:], share * total[-1]).clamp(max=len(x) - 1)
    starts = [x[at], x[0] + share * (x[-1] - x[0])]
    spread = x[((share - 0.5).abs().sqrt() * (share - 0.5).sign() * 0.7 + 0.5).mul(len(x) - 1).long()]
    found = [_lloyd(x, total, moment, start) for start in (*starts, spread)]
    errors = [float((weight * (x - nearest(x, levels)).square()).sum()) for levels in found]
    return found[errors.index(min(errors))].float()


def nearest(points: Tensor, levels: Tensor) -> Tensor:
    """The nearest of ascending levels [K] of each point; half way the lower."""
    return levels[torch.searchsorted((levels[1:] + levels[:-1]) / 2, points)]


def moments(points: Tensor, levels: Tensor) -> tuple[float, float]:
    """By what levels are multiplied, and what is added, so that what points become has their mean and deviation."""
    became = nearest(points, levels)
    factor = float(points.std() / became.std().clamp(min=1e-12))
    return factor, float(points.mean() - became.mean() * factor)


def _lloyd(x: Tensor, total: Tensor, moment: Tensor, start: Tensor) -> Tensor:
    """k-means of ascending points, from sums of weights and of weighted points up to each."""
    levels = start.sort().values
    for _ in range(_LOOPS):
        border = torch.searchsorted(x, (levels[1:] + levels[:-1]) / 2, right=True)
        border = torch.cat([border.new_zeros(1), border, border.new_tensor([len(x)])])
        weight, sums = total[border].diff(), moment[border].diff()
        levels = torch.where(weight > 0, sums / weight.clamp(min=1e-300), levels).sort().values
    return levels
