"""The second stage of SuperBPE: merges across white space, behind those that an ordinary BPE has learned.

Source: SuperBPE (arXiv:2503.13423), as the study of crosslingual inequities uses it; its code was not read.
Differs: reconstruction. The second stage does not cross ends of lines or digits, a piece holds at most four words, and
equal counts go to the pair of smaller numbers.
"""

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

WORDS = 4
"""The most words of a piece."""

SPLIT = r"\p{N}{1,3}|\s*[\r\n]+"
"""What stands by itself in the second stage and in the tokenizer; everything between may be merged."""

Pair = tuple[int, int]


class PairCounts:
    """Sequences of tokens as one chain, with how often each pair stands in it and where."""

    def __init__(self, sequences: Mapping[tuple[int, ...], int]) -> None:
        """Count them.

        Args:
            sequences: Each with how often it occurs; no pair goes over the end of one.
        """
        self.tokens: list[int] = []
        self.before: list[int] = []
        self.behind: list[int] = []
        self.weight: list[int] = []
        self.counts: Counter[Pair] = Counter()
        self.places: dict[Pair, set[int]] = {}
        for sequence, times in sequences.items():
            start = len(self.tokens)
            for place, token in enumerate(sequence):
                self.tokens.append(token)
                self.before.append(start + place - 1 if place else -1)
                self.behind.append(start + place + 1 if place + 1 < len(sequence) else -1)
                self.weight.append(times)
            for place in range(start, len(self.tokens) - 1):
                self._count(place, 1)

    def merge(self, pair: Pair, number: int) -> set[Pair]:
        """Put one token in the place of a pair, wherever it stands, from left to right.

        Returns:
            The pairs whose counts changed.
        """
        changed: set[Pair] = set()
        for place in sorted(self.places.get(pair, ())):
            other = self.behind[place]
            if other < 0 or (self.tokens[place], self.tokens[other]) != pair or self.tokens[place] < 0:
                continue
            left, right = self.before[place], self.behind[other]
            for start in (left, place, other):
                if start >= 0 and self.behind[start] >= 0:
                    changed.add(self._count(start, -1))
            self.tokens[place], self.tokens[other] = number, -1
            self.behind[place], self.behind[other] = right, -1
            if right >= 0:
                self.before[right] = place
            for start in (left, place):
                if start >= 0 and self.behind[start] >= 0:
                    changed.add(self._count(start, 1))
        return changed

    def _count(self, place: int, sign: int) -> Pair:
        """Take the pair that begins at a place into the counts, or out of them."""
        pair = (self.tokens[place], self.tokens[self.behind[place]])
        self.counts[pair] += sign * self.weight[place]
        if sign > 0:
            self.places.setdefault(pair, set()).add(place)
        else:
            self.places[pair].discard(place)
        return pair


def further_merges(
    sequences: Mapping[tuple[int, ...], int],
    texts: Mapping[int, str],
    wanted: int,
    *,
    least: int,
    step: Callable[[str], None] = lambda text: None,
) -> tuple[list[Pair], dict[int, str]]:
    """Merges that bring a vocabulary to a size, the most frequent pair first.

    Args:
        sequences: Tokens of pieces of text, with how often each piece occurs.
        texts: Of each token, with spaces as spaces.
        wanted: New tokens.
        least: The fewest occurrences of a pair that is merged.
        step: Takes the name of what is being done.

    Returns:
        The merges in their order, and the new tokens' texts; fewer where no pair is frequent enough.
    """
    counts = PairCounts(sequences)
    known = {text: number for number, text in texts.items()}
    names = dict(texts)
    fresh: dict[int, str] = {}
    merges: list[Pair] = []
    following = max(texts, default=-1) + 1
    heap = [(-times, pair) for pair, times in counts.counts.items()]
    heapq.heapify(heap)
    while len(fresh) < wanted and heap:
        negative, pair = heapq.heappop(heap)
        times = counts.counts.get(pair, 0)
        if times != -negative:
            if times >= least:
                heapq.heappush(heap, (-times, pair))
            continue
        if times < least:
            break
        text = names[pair[0]] + names[pair[1]]
        if len(text.split()) > WORDS:
            continue
        number = known.get(text)
        if number is None:
            number, following = following, following + 1
            names[number] = fresh[number] = text
            known[text] = number
            if len(fresh) % 100 == 0:
                step(f"{len(fresh)} of {wanted} pieces across white space")
        merges.append(pair)
        for other in counts.merge(pair, number):
            if counts.counts[other] >= least:
                heapq.heappush(heap, (-counts.counts[other], other))
    return merges, fresh


def sequences_of(parts: Iterable[Sequence[int]]) -> Counter[tuple[int, ...]]:
    """Equal pieces together; those of one token have no pair."""
    return Counter(tuple(part) for part in parts if len(part) > 1)
