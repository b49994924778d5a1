"""Turn a misspelt name into a suggestion for the message that refuses it."""

import difflib
from collections.abc import Iterable


def did_you_mean(given: str, allowed: Iterable[str]) -> str:
    """Name the allowed word nearest to the given one.

    Args:
        given: What the caller wrote.
        allowed: The words that would have been right.

    Returns:
        ` Did you mean 'tome'?`, with a leading space to append to a sentence, or an empty string when nothing is near.
    """
    by_lowercase = {name.lower(): name for name in allowed}
    nearest = difflib.get_close_matches(given.lower(), by_lowercase, n=1)
    return f" Did you mean '{by_lowercase[nearest[0]]}'?" if nearest else ""


def not_known(what: str, given: object, allowed: Iterable[object], further: str = "") -> str:
    """The sentence that refuses a name or a value of a closed list.

    Args:
        what: What was named, in the singular: `target`, `tome: option`.
        given: What the caller wrote.
        allowed: What would have been right.
        further: What else would have been, at the end of the list: `, or none`.

    Returns:
        `target 'cup' is not known; there are cpu, cuda, rtx. Did you mean 'cpu'?`, or `…; there are none.`
    """
    names = [str(name) for name in allowed]
    there = "there is" if len(names) == 1 and not further else "there are"
    listed = f"{', '.join(names)}{further}" or "none"
    return f"{what} {given!r} is not known; {there} {listed}.{did_you_mean(str(given), names)}"
