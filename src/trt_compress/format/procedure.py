"""How the graphs of a bundle are run in turn: a closed vocabulary that every runtime follows, in Python and in C++.

A bundle without a procedure is run in one of two ways, which the roles of its graphs tell. Several graphs of the role
"model" are keep levels: a run takes one of them. Otherwise a run takes all graphs, in the order of the manifest, each
output going where a link leads it.

A bundle with a procedure reads B sequences of tokens side by side. These numbers stand at 0 when the sequences begin:

* `seen[b]`: tokens that sequence b has read;
* `used[c][b]`: slots of the capacity c that it uses. Where the capacity names a state, that state holds them after
  every run; otherwise they are `seen[b]`.

**A run** of a pass reads T tokens a sequence, of which the first `count[b]`, from 0 to T, are tokens of sequence b and
the rest is filling (the number 0). T lies in the range of the pass: `tokens` is a number, or a symbol whose smallest
and largest length are in `Manifest.lengths`.

1. For every capacity that a state of the pass's graphs has, `Capacity.needed(graphs, max(used[c]), T)` slots have to be
   there: if there are fewer, the length is doubled until it suffices. Beyond the limit the run is refused, and nothing
   has changed. But a sequence that reads nothing in it (count 0, beside others that read) and has no room for the
   filling, `needed(graphs, used[c][b], T)` being beyond the limit, does not hold up the others: it is set aside for
   this run and its upkeep, and its states stay as they are.
2. The graphs of the pass run in its order. Each input is a state, or linked to an output of a graph that ran before it
   in this run, or made by the runtime as `feeds` says.
3. The new states take the place of the old ones, all or none, and `seen[b]` grows by `count[b]`.
4. The upkeep that is due is run, as below.

A filling token leaves no trace: no state and no other token's result depends on it. A bundle that feeds no "count"
cannot tell filling from tokens, so that all sequences have to read equally many in each run.

**Beginning.** If there are `media`, each of them is run once before the first token, in order: its graphs, on the input
that its `input` describes and what else they take, which is given by name, for all B sequences. What they find lies in
states, from which the other graphs read it. Whoever has only text leaves them all out.

Where a medium has a `token`, each row of what it finds has one such token in the prompt, in order: the first text that
a sequence reads holds the token `rows` times if the media were run, and not at all if they were left out, nor does a
later text. Whatever else is refused, and nothing has changed. A token of a step is text, whatever its number.

**The prompt.** Sequence b has N[b] tokens; N is the largest of them. If `prompt.whole`, one run with T = N reads them;
an N outside its range is refused. Otherwise runs of the largest T read them from the front, and a last one what is
left, at least the smallest T. In the run that begins at the token s, `count[b]` is N[b] - s, but at least 0 and at most
T. The logits of sequence b are those of the run that read its last token. Text that comes later, behind steps, is read
in the same way: `seen` goes on. A prompt may be given in parts: the runs of all parts but the last are no last run, so
that what is due behind a prompt waits for its end.

**A step** reads the next token of each sequence: one run of `step` with T = 1. A sequence that has ended has the count
0, or is taken out of the states.

**Upkeep.** After a run the entries of `upkeep` are gone through once, in order. An entry is due after "chunk", every
run of the prompt; "prompt", its last run; "step", every step; "run", every run of both. With a `capacity`, its graph is
then run as long as some sequence has `used[capacity][b] >= at_least`, and each run has to lower the largest of these
numbers, or the bundle is at fault; the graph itself leaves sequences alone that have fewer. Without one, it is run
once. Rule 1 holds for it, with T = 0; its feed "seen" holds what was read by now.

**Feeds.** What the runtime makes for an input `graph.tensor`, in the input's own integer dtype:

* "tokens" [B, T]: the tokens; "next" [B, T]: the token behind each of them, 0 behind the last one;
* "count" [B]: `count`; "seen" [B]: `seen` before the run;
* "positions" [B, T]: p[b] + 0, 1, …, T - 1, where p is `seen` if `position` is "seen", and `used[position]` if it is
  the symbol of a capacity, before the run. If `position` is "kept", the graphs keep positions in a state by themselves
  (three axes of them, an offset behind a picture), and none are fed;
* "rows" [B, T]: for a token that stands for a row of what media found, the number of the row, those of all media with a
  `token` counted through in their order; -1 for all others, and for filling.

**Logits.** `logits` is the output of a pass, `graph.tensor`, and `rows` says which there are: "last" [B, V], behind the
last of the `count[b]` tokens (undefined if that is 0); "all" [B, T, V], behind each token; "next" [B, T], the natural
logarithm of the probability of each token of the feed "next".

**Scoring.** `score` reads a text in runs of the largest T, as the prompt is read, but as if in steps: its runs end as
steps do, so that what is due behind a prompt is not, and what is due behind a step is. It goes on from where the
sequences are: a text that stands alone is scored by sequences that begin with it, one behind a prompt by those that
have read the prompt.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trt_compress.format.graphs import Dim, Range
from trt_compress.format.record import Record, one_of

FEEDS = ("tokens", "next", "count", "seen", "positions", "rows")
"""What a runtime makes for an input."""

ROWS = ("last", "all", "next")
"""Which logits a pass gives."""

MOMENTS = ("chunk", "prompt", "step", "run")
"""After what upkeep may be due."""

SEEN, KEPT = "seen", "kept"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass(Record):
    """Graphs that together read the next tokens of each sequence.

    Attributes:
        graphs: Their names, in the order in which they run.
        tokens: Tokens of one run: a number, or the symbol whose range in `Manifest.lengths` says how many there may be.
        logits: The output with what is wanted of the pass, as `graph.tensor`; None: it only fills the states.
        rows: Which logits there are, one of `ROWS`.
        whole: One run reads all there is, however long.
    """

    graphs: tuple[str, ...]
    tokens: Dim
    logits: str | None = None
    rows: str = field(default="last", metadata=one_of(*ROWS))
    whole: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Media(Record):
    """Graphs that read what stands beside the tokens, once, before the prompt.

    Attributes:
        graphs: Their names, in the order in which they run.
        input: How real data become their input, as `Manifest.preprocess`; `input.input` names it as `graph.tensor`.
        token: The token that stands in the prompt for each row of what they find; None: none does.
        rows: How many such tokens stand for one picture, clip or text; None: none does.
    """

    graphs: tuple[str, ...]
    input: dict[str, Any]
    token: int | None = None
    rows: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Upkeep(Record):
    """A graph that is run between others, to pack or to move what states hold.

    Attributes:
        graph: Its name; its inputs are states, and the feeds "seen".
        after: After what it is due, one of `MOMENTS`.
        capacity: The symbol of the capacity whose used slots decide; None: it is run each time.
        at_least: It is run as long as a sequence uses so many slots of the capacity.
    """

    graph: str
    after: str = field(metadata=one_of(*MOMENTS))
    capacity: str | None = None
    at_least: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Procedure(Record):
    """How sequences of tokens are read with the graphs of a bundle; the module says what every field means.

    Attributes:
        prompt: How tokens that are known are read.
        step: How the next token is read.
        feeds: What the runtime makes for an input, one of `FEEDS` by `graph.tensor`.
        position: Where the next position comes from: "seen", "kept", or the symbol of a capacity.
        upkeep: What is run in between.
        media: What is run before.
        score: How a text is scored; None: by the logits of the prompt, if these are "all".
    """

    prompt: Pass
    step: Pass
    feeds: dict[str, str] = field(metadata={"schema": {"additionalProperties": {"enum": [*FEEDS]}}})
    position: str = SEEN
    upkeep: tuple[Upkeep, ...] = ()
    media: tuple[Media, ...] = ()
    score: Pass | None = None

    @property
    def passes(self) -> dict[str, Pass]:
        """The passes by their name: "prompt", "step", and "score" if there is one."""
        found = {"prompt": self.prompt, "step": self.step}
        return found if self.score is None else {**found, "score": self.score}

    @property
    def reading(self) -> frozenset[str]:
        """The graphs that reading takes: prompt and steps, with what is run before and in between."""
        return frozenset((*self.prompt.graphs, *self.step.graphs)) | self._beside

    @property
    def scoring(self) -> frozenset[str]:
        """The graphs that scoring takes."""
        return frozenset((self.score or self.prompt).graphs) | self._beside

    @property
    def _beside(self) -> frozenset[str]:
        return frozenset(
            (*(entry.graph for entry in self.upkeep), *(graph for each in self.media for graph in each.graphs))
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of a pass, as `runs_of` plans it.

    Attributes:
        start: Number of its first token.
        tokens: T, tokens that it reads for each sequence.
        counts: How many of them are tokens of each sequence.
        moments: What has happened when it is over: the entries of `upkeep` that are then due are those `after` one of
            these.
    """

    start: int
    tokens: int
    counts: tuple[int, ...]
    moments: tuple[str, ...]


def range_of(part: Pass, lengths: Mapping[str, Range]) -> tuple[int, int]:
    """The smallest and the largest number of tokens of one run of a pass."""
    if isinstance(part.tokens, int):
        return part.tokens, part.tokens
    found = lengths[part.tokens]
    return found.min, found.max


def runs_of(
    part: Pass, lengths: Mapping[str, Range], counts: Sequence[int], *, scoring: bool = False, goes_on: bool = False
) -> Iterator[Run]:
    """The runs by which a pass reads prompts of these lengths, one for each sequence; or texts that it scores.

    Args:
        part: The pass.
        lengths: Of the manifest.
        counts: Tokens of each.
        scoring: They are scored.
        goes_on: They are parts of prompts, and not the last ones.

    Raises:
        ValueError: The pass reads a prompt at once, and it does not fit its range, or is only a part.
    """
    total = max(counts, default=0)
    low, high = range_of(part, lengths)
    if part.whole and not low <= total <= high:
        raise ValueError(f"the prompt has {total} tokens, and from {low} to {high} are read at once")
    if part.whole and goes_on:
        raise ValueError("the prompt is read at once, and a part of it was given")
    step = total if part.whole else high
    for start in range(0, total, max(step, 1)):
        tokens = max(low, min(step, total - start))
        last = start + tokens >= total and not goes_on
        yield Run(
            start=start,
            tokens=tokens,
            counts=tuple(min(max(count - start, 0), tokens) for count in counts),
            moments=("run", "step") if scoring else ("run", "chunk", "prompt") if last else ("run", "chunk"),
        )


def rows_of(media: Sequence[Media], text: Sequence[int], *, placed: bool) -> list[int]:
    """For each token of a text the row of what media found that it stands for, or -1.

    Args:
        media: All of the procedure.
        text: What a sequence reads.
        placed: It is the first that the sequence reads, and the media were run.

    Raises:
        ValueError: A token stands there more or less often than there are rows for it.
    """
    found, first = [-1] * len(text), 0
    for each in media:
        if each.token is None or each.rows is None:
            continue
        places = [place for place, token in enumerate(text) if token == each.token]
        if len(places) != (each.rows if placed else 0):
            said = (
                f"it stands for a row of what '{each.graphs[-1]}' found, of which there are {each.rows}"
                if placed
                else f"it stands for what '{each.graphs[-1]}' finds, in the first text that is read after that was run"
            )
            raise ValueError(f"the text has the token {each.token} {len(places)} times, and {said}")
        for row, place in enumerate(places, start=first):
            found[place] = row
        first += each.rows
    return found


def keep_up(
    procedure: Procedure,
    moments: Sequence[str],
    used: Callable[[str], Sequence[int]],
    run: Callable[[str], None],
) -> None:
    """Run the upkeep that is due.

    Args:
        procedure: The procedure.
        moments: What has just happened.
        used: Slots of a capacity that each sequence uses, now.
        run: Runs a graph.

    Raises:
        ValueError: A graph was run and the slots in use did not become fewer.
    """
    for entry in procedure.upkeep:
        if entry.after not in moments:
            continue
        if entry.capacity is None or entry.at_least is None:
            run(entry.graph)
            continue
        fullest = max(used(entry.capacity), default=0)
        while fullest >= entry.at_least:
            run(entry.graph)
            before, fullest = fullest, max(used(entry.capacity), default=0)
            if fullest >= before:
                raise ValueError(
                    f"'{entry.graph}' was run because '{entry.capacity}' has {before} slots in use, and then it had "
                    f"{fullest}"
                )
