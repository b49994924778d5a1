"""Whether something grows with time: the slope of a line through samples, with an interval that can be believed.

Neighbouring samples of a process's memory are nearly equal, so each says little that the one before has not said, and
the textbook error of a slope, which takes them as independent, is far too small. Samples are first averaged in blocks;
what still ties the residual of one block to the next widens the interval, as if there were fewer blocks.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

Floats = np.ndarray[Any, np.dtype[np.float64]]

BLOCKS = 20
_T = 2.101  # 97.5 % quantile of Student's t with BLOCKS - 2 degrees of freedom
_MOST_TIED = 0.9  # an estimate from 20 residuals is no better


@dataclass(frozen=True, slots=True, kw_only=True)
class Trend:
    """Growth over the whole run: the estimate and its 95 % interval, in the unit of the samples."""

    growth: float
    low: float
    high: float
    tied: float  # correlation of neighbouring blocks' residuals

    def flat(self, *, unit: float, most: float) -> bool:
        """Whether the growth may be none, or one `unit` of the measure, and is surely below `most`."""
        return self.low <= unit and self.high <= most


def trend(x: Floats, y: Floats, span: float) -> Trend:
    """Estimate the growth of y while x goes through `span`.

    Args:
        x: Where the samples were taken, in order; at least two in each of the blocks.
        y: The samples.
        span: Length of the run.
    """
    if len(x) < 2 * BLOCKS:
        raise ValueError(f"{len(x)} samples give no trend; take at least {2 * BLOCKS}.")
    at = np.array([part.mean() for part in np.array_split(x, BLOCKS)])
    mean = np.array([part.mean() for part in np.array_split(y, BLOCKS)])
    centred = at - at.mean()
    slope = float(centred @ mean / (centred @ centred))
    residuals = mean - mean.mean() - slope * centred
    power = float(residuals @ residuals)
    tied = float(residuals[1:] @ residuals[:-1]) / power if power > 0 else 0.0
    tied = min(max(tied, 0.0), _MOST_TIED)
    error = (power / (BLOCKS - 2) / float(centred @ centred) * (1 + tied) / (1 - tied)) ** 0.5
    return Trend(growth=slope * span, low=(slope - _T * error) * span, high=(slope + _T * error) * span, tied=tied)
