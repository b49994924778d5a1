"""How reports write numbers: enough digits to compare, never more than were measured."""

from collections.abc import Mapping

_KILO = 1000.0


class Missing(str):
    """Why there is no number, in the place of the number."""

    __slots__ = ()


def ms(ns: float | None) -> str | None:
    """Nanoseconds as `12.3 ms`, with three significant digits and at least one decimal."""
    return None if ns is None else f"{number(ns / 1e6)} ms"


def number(value: float) -> str:
    """Three significant digits, and all digits before the point: 1.2e-05, 0.0123, 1.23, 12.3, 123 and 1234."""
    size = abs(value)
    if value == 0 or size >= 100:
        return f"{value:.0f}"
    if size < 0.001:
        return f"{value:.1e}"
    digits = 1 if size >= 10 else 2 if size >= 1 else 3 if size >= 0.1 else 4
    return f"{value:.{digits}f}"


def count(value: float | None) -> str | None:
    """A count: without a fraction where it has none."""
    if value is None:
        return None
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.1f}"


def percent(part: float, whole: float) -> str:
    """A share of a whole as `1.2%`; a share that is not nothing is never written as 0."""
    if not whole:
        return "-"
    share = part / whole * 100
    return f"{share:.1f}%" if share >= 0.05 or share == 0 else "under 0.1%"


def large(value: float | None) -> str | None:
    """A large count as 1.23 k, M, G or T."""
    if value is None:
        return None
    for unit in ("", " k", " M", " G"):
        if abs(value) < _KILO:
            return f"{number(value)}{unit}"
        value /= _KILO
    return f"{number(value)} T"


def reason(reasons: Mapping[str, str], name: str) -> Missing:
    """Why a number is missing."""
    return Missing(reasons.get(name, "not known"))
