"""Lengths that an axis may have, the batch among them."""

from dataclasses import dataclass

from trt_compress.errors import ConfigError
from trt_compress.format.graphs import LARGEST_BATCH
from trt_compress.format.manifest import Manifest

_MOST_DIGITS = 1000  # Python reads no number of more than some thousand


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthRange:
    """Smallest, usual and largest length of a symbol such as "time"; 0 is allowed, as a cache may be empty."""

    min: int
    opt: int
    max: int

    def __str__(self) -> str:
        return f"{self.min}:{self.opt}:{self.max}"

    @classmethod
    def parse(cls, name: str, text: object) -> "LengthRange":
        """Read `100` or `1:100:400`, the length of symbol `name`.

        Raises:
            ConfigError: It is neither one number nor three in ascending order.
        """
        numbers = _three_numbers(text) if isinstance(text, str) else None
        if numbers is not None:
            low, usual, high = numbers
            if low <= usual <= high and high > 0:
                return cls(min=low, opt=usual, max=high)
        raise ConfigError(
            f"{name}={text!r} is not a range of lengths; give one number or MIN:OPT:MAX in ascending order, such as "
            "1:100:400."
        )


def lengths_of(manifest: Manifest) -> dict[str, LengthRange]:
    """The lengths of every symbol of a bundle but the batch."""
    return {symbol: LengthRange(min=each.min, opt=each.opt, max=each.max) for symbol, each in manifest.lengths.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRange:
    """Smallest, most frequent and largest batch an engine serves."""

    min: int
    opt: int
    max: int

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.opt <= self.max:
            raise ConfigError(f"batch={self} is not a range; it must be MIN:OPT:MAX with 1 <= MIN <= OPT <= MAX.")
        if self.max > LARGEST_BATCH:
            raise ConfigError(f"batch={self} is too large; at most {LARGEST_BATCH} items fit a CUDA grid.")

    def __str__(self) -> str:
        return f"{self.min}:{self.opt}:{self.max}"

    @classmethod
    def parse(cls, text: str) -> "BatchRange":
        """Read `4` or `1:4:8`.

        Raises:
            ConfigError: It is neither one number nor three in ascending order.
        """
        numbers = _three_numbers(text)
        if numbers is None:
            raise ConfigError(f"batch={text!r} is not a range; it must be one number or MIN:OPT:MAX, such as 1:4:8.")
        low, mid, high = numbers
        return cls(min=low, opt=mid, max=high)


def _three_numbers(text: str) -> tuple[int, int, int] | None:
    """`4` as (4, 4, 4) and `1:4:8` as (1, 4, 8), in any order; None: it is neither."""
    parts = text.split(":")
    if len(parts) not in (1, 3) or not all(part.isascii() and part.isdigit() for part in parts):
        return None
    if max(map(len, parts)) > _MOST_DIGITS:
        return None
    low, mid, high = map(int, parts * 3 if len(parts) == 1 else parts)
    return low, mid, high
