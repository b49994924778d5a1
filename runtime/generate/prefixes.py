"""Beginnings that prompts have in common: read once, kept for those that follow."""

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence

from trt_compress.runtime.generate.generator import Generator
from trt_compress.runtime.generate.stream import Prefix

LEAST = 16
"""Tokens that two prompts have to begin alike with, so that they are worth being kept."""

_RECENT = 64


class Prefixes:
    """What prompts begin with, found by comparing each with those before it. May be used by several threads.

    A bundle with upkeep keeps none: what its caches hold depends on where the reading of a prompt ends.
    """

    def __init__(self, generator: Generator, *, most: int) -> None:
        """Begin with none.

        Args:
            generator: What reads them.
            most: How many are kept; the one that was not used for longest goes first.
        """
        procedure = generator.session.bundle.manifest.procedure
        assert procedure is not None
        self._generator = generator
        self._most = 0 if procedure.upkeep or procedure.prompt.whole or procedure.media else most
        self._kept: OrderedDict[tuple[int, ...], Prefix] = OrderedDict()
        self._recent: deque[tuple[int, ...]] = deque(maxlen=_RECENT)
        self._lock = threading.Lock()

    def of(self, prompts: Sequence[Sequence[int]], *, between: Callable[[int], None] | None = None) -> Prefix | None:
        """What these prompts begin with, as far as it is known or others began with it, too; None: with nothing.

        Args:
            prompts: The tokens of each.
            between: As for `Sequences.read`.

        Raises:
            ConfigError, UnsupportedError, BundleError, ShapeError: As `Generator.prefix`.
        """
        if not self._most:
            return None
        common = tuple(prompts[0][: min(alike(prompts[0], other) for other in prompts)])
        with self._lock:
            shared = len(common) if len(prompts) > 1 else 0
            shared = max([shared, *(alike(common, other) for other in self._recent)])
            self._recent.append(common)
            fitting = [tokens for tokens in self._kept if common[: len(tokens)] == tokens]
            known = self._kept[max(fitting, key=len)] if fitting else None
            if known is not None:
                self._kept.move_to_end(known.tokens)
        if shared - (0 if known is None else len(known.tokens)) < LEAST:
            return known
        found = self._generator.prefix(common[:shared], behind=known, between=between)
        with self._lock:
            self._kept[found.tokens] = found
            self._kept.move_to_end(found.tokens)
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
        return found


def alike(one: Sequence[int], other: Sequence[int]) -> int:
    """With how many equal tokens both begin."""
    count = 0
    for mine, theirs in zip(one, other, strict=False):
        if mine != theirs:
            break
        count += 1
    return count
