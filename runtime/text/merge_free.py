"""Encode with a vocabulary alone, without merges: the longest piece each time, or the fewest pieces.

Source: arXiv:2508.06621 (the paper; there is no code of its authors).
Differs: the paper leaves ties of the fewest pieces open; here the longest last piece wins, of those that have it the
longest last but one, and so on.
"""

from collections.abc import Mapping
from typing import Literal

from trt_compress.errors import ConfigError

Mode = Literal["greedy", "exact"]
MODES: tuple[Mode, ...] = ("greedy", "exact")

_KEPT = 1 << 16  # pieces whose encoding is remembered
_LONGEST_KEPT = 64
_BYTES = 256


class MergeFree:
    """A vocabulary of byte strings as a trie. Both modes take time linear in the bytes times the longest entry.

    Attributes:
        longest: Bytes of the longest entry.
        missing: Bytes that are no entry by themselves; without any, everything has an encoding.
    """

    def __init__(self, entries: Mapping[bytes, int]) -> None:
        """Build the trie.

        Args:
            entries: Number of each byte string; the empty one is passed over.

        Raises:
            ConfigError: There is none.
        """
        self._step: dict[int, int] = {}
        self._final: list[int] = [-1]
        self.longest = 0
        for entry, number in entries.items():
            if not entry:
                continue
            state = 0
            for byte in entry:
                key = state * _BYTES + byte
                following = self._step.get(key)
                if following is None:
                    following = self._step[key] = len(self._final)
                    self._final.append(-1)
                state = following
            self._final[state] = number
            self.longest = max(self.longest, len(entry))
        if not self.longest:
            raise ConfigError("The vocabulary has no piece that text could be made of; give another tokenizer.")
        self.missing = tuple(byte for byte in range(_BYTES) if bytes([byte]) not in entries)
        self._known: dict[Mode, dict[bytes, list[int]]] = {mode: {} for mode in MODES}

    def encode(self, piece: bytes, mode: Mode) -> list[int] | None:
        """The numbers of a byte string's pieces; None: there are none in this mode.

        Args:
            piece: The byte string.
            mode: `greedy`: at each place the longest entry that fits. `exact`: the fewest entries; of several ways the
                one with the longest last entry, then the longest last but one, and so on.
        """
        known = self._known[mode]
        found = known.get(piece)
        if found is not None:
            return found
        if mode == "greedy":
            numbers, stop = self.greedy(piece)
            found = numbers if stop == len(piece) else None
        else:
            found = self.exact(piece)
        if found is not None and len(piece) <= _LONGEST_KEPT and len(known) < _KEPT:
            known[piece] = found
        return found

    def greedy(self, piece: bytes) -> tuple[list[int], int]:
        """The longest entry at each place.

        Returns:
            Their numbers, and the place where no entry fits: the length of `piece` where all of it was encoded.
        """
        step, final, size = self._step, self._final, len(piece)
        numbers: list[int] = []
        start = 0
        while start < size:
            state, best, end = 0, -1, start
            for place in range(start, size):
                following = step.get(state * _BYTES + piece[place])
                if following is None:
                    break
                state = following
                if final[state] >= 0:
                    best, end = final[state], place + 1
            if best < 0:
                return numbers, start
            numbers.append(best)
            start = end
        return numbers, size

    def exact(self, piece: bytes) -> list[int] | None:
        """The fewest entries that make up `piece`, ties as `encode` says; None: nothing does."""
        step, final, size = self._step, self._final, len(piece)
        none = size + 1
        fewest = [none] * (size + 1)
        fewest[0] = 0
        came_from, last = [0] * (size + 1), [-1] * (size + 1)
        for start in range(size):
            count = fewest[start] + 1
            if count > none:
                continue
            state = 0
            for place in range(start, size):
                following = step.get(state * _BYTES + piece[place])
                if following is None:
                    break
                state = following
                if final[state] >= 0 and count < fewest[place + 1]:
                    fewest[place + 1], came_from[place + 1], last[place + 1] = count, start, final[state]
        if fewest[size] == none:
            return None
        numbers: list[int] = []
        place = size
        while place:
            numbers.append(last[place])
            place = came_from[place]
        return numbers[::-1]
