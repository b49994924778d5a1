"""Pictures as they are meant to be looked at: turned and mirrored as EXIF or a video's display matrix says."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trt_compress.runtime.stream.frame import Array

_SLANT = 0.02  # how far a display matrix may be from a quarter turn, as a share of its largest number


@dataclass(frozen=True, slots=True)
class Turn:
    """What is done to a stored picture, in this order.

    Attributes:
        swap: Rows become columns.
        flip_rows: The last row comes first.
        flip_columns: The last column comes first.
    """

    swap: bool = False
    flip_rows: bool = False
    flip_columns: bool = False

    def __call__(self, image: Array) -> Array:
        """Turn a picture [H, W] or [H, W, C]."""
        if self == UNTURNED:
            return image
        turned = image.swapaxes(0, 1) if self.swap else image
        return np.ascontiguousarray(turned[:: -1 if self.flip_rows else 1, :: -1 if self.flip_columns else 1])


UNTURNED = Turn()

_EXIF = {
    2: Turn(flip_columns=True),
    3: Turn(flip_rows=True, flip_columns=True),
    4: Turn(flip_rows=True),
    5: Turn(swap=True),
    6: Turn(swap=True, flip_columns=True),
    7: Turn(swap=True, flip_rows=True, flip_columns=True),
    8: Turn(swap=True, flip_rows=True),
}


def turn_from_exif(orientation: object) -> Turn:
    """The turn of EXIF's orientation, 1 to 8; any other value is none, as viewers take it."""
    return _EXIF.get(orientation, UNTURNED) if isinstance(orientation, int) else UNTURNED


def turn_from_matrix(matrix: Sequence[int]) -> Turn | None:
    """The turn of a display matrix.

    Args:
        matrix: Its nine numbers; a pixel (column, row) is shown at (a column + c row, b column + d row) with
            a, b = matrix[0], matrix[1] and c, d = matrix[3], matrix[4].

    Returns:
        The turn, or None if it is none of quarter turns and mirror images.

    Source: ISO/IEC 14496-12, 6.2.2 and 8.3.2 (matrix).
    """
    a, b, c, d = (int(matrix[place]) for place in (0, 1, 3, 4))
    if a * d == b * c:  # no picture would be seen: the matrix was never written
        return UNTURNED
    slant = _SLANT * max(map(abs, (a, b, c, d)))
    if max(abs(b), abs(c)) <= slant:
        return Turn(flip_rows=d < 0, flip_columns=a < 0)
    if max(abs(a), abs(d)) <= slant:
        return Turn(swap=True, flip_rows=b < 0, flip_columns=c < 0)
    return None
