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
