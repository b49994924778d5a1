"""Cases that every runtime of a bundle has to pass: `python -m tests.export.conformance FOLDER` writes them.

A case is a folder: `bundle/`, `case.json` with what is done in turn, and `expected.npz` with what comes of it. What is
expected is counted by hand or computed in torch, by none of the runtimes.

    {"bundle": "bundle", "batch": 2, "tolerance": 1e-5,
     "actions": [{"do": "attend", "inputs": {"look.picture": KEY}},
                 {"do": "read", "tokens": [[5, 6, 7], [8]], "logits": KEY, "seen": [3, 1], "states": {NAME: KEY}},
                 {"do": "step", "tokens": [1, 2], "ended": [false, true], …},
                 {"do": "keep", "rows": [1]},
                 {"do": "refuse", "tokens": [[1]]}]}

KEY names an array of `expected.npz`. Logits of a sequence that has ended, or of which nothing is read, may be anything,
and are not compared: `ended` says so. Codes
of states are compared as `State.compare` says; of the slots of a capacity those that are in use. "refuse" is a prompt
that is not read, and after which nothing has changed.
"""

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.export.toy_decoder import VOCABULARY, decoder
from tests.runtime.counter_bundles import PERIOD, write, write_viewer
from tests.runtime.generate import toy
from trt_compress.errors import TrtCompressError
from trt_compress.export import api, pipeline
from trt_compress.export.sides import TorchSide
from trt_compress.export.verify import run_procedure
from trt_compress.format.bundle import Bundle
from trt_compress.models.hosts.base import Scenario
from trt_compress.runtime import Session
from trt_compress.runtime.sequences import Sequences

Array = np.ndarray[Any, np.dtype[Any]]
CASES = ("counter", "viewer", "full", "decoder")
COMPACTING = "a toy decoder that compacts"
"""What `made_once` calls the toy decoder's bundle that a case takes."""


def export(folder: Path, *, precision: str = "fp32", weights_bits: str | None = None, **how: Any) -> Path:
    """Export the toy decoder with these settings."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api, "check_model", lambda model, weights, reading: None)
        patch.setattr(pipeline, "load_host", lambda model, **_: decoder(**how))
        api.export_model("zoo:toy", output=folder, batch="1:2:4", precision=precision, weights_bits=weights_bits)
    return folder


@dataclass
class Case:
    """What is done with a bundle, and what comes of it."""

    batch: int
    tolerance: float = 0.0
    actions: list[dict[str, Any]] = field(default_factory=list)
    arrays: dict[str, Array] = field(default_factory=dict)

    def add(self, do: str, *, inputs: Mapping[str, Array] | None = None, logits: Any = None, states: Any = None,
            **fields: Any) -> None:  # fmt: skip
        """An action, and what is expected behind it."""
        number = len(self.actions)
        action: dict[str, Any] = {"do": do, **fields}
        if inputs is not None:
            action["inputs"] = {name: self._keep(f"{number}.{name}", array) for name, array in inputs.items()}
        if logits is not None:
            action["logits"] = self._keep(f"{number}.logits", np.asarray(logits, np.float32))
        if states is not None:
            action["states"] = {name: self._keep(f"{number}.state.{name}", array) for name, array in states.items()}
        self.actions.append(action)

    def save(self, folder: Path) -> None:
        """Write the two files."""
        said = {"bundle": "bundle", "batch": self.batch, "tolerance": self.tolerance, "actions": self.actions}
        (folder / "case.json").write_text(json.dumps(said, indent=1))
        np.savez(folder / "expected.npz", allow_pickle=False, **self.arrays)

    def _keep(self, key: str, array: Any) -> str:
        self.arrays[key] = np.asarray(array)
        return key


def write_case(name: str, folder: Path, decoder_bundle: Path | None = None) -> None:
    """Write one of `CASES`; the toy decoder is exported, unless its bundle with a compact graph is there already."""
    folder.mkdir(parents=True)
    if name == "counter":
        write(folder / "bundle")
        case = _counter()
    elif name == "viewer":
        write_viewer(folder / "bundle", vocabulary=3)
        case = _viewer()
    elif name == "full":
        toy.write(folder / "bundle", text=False)
        case = _full()
    else:
        if decoder_bundle is None:
            export(folder / "bundle", compact=True)
        else:
            shutil.copytree(decoder_bundle, folder / "bundle")
        case = _decoder(folder / "bundle")
    case.save(folder)


def _counter() -> Case:
    """Unequal prompts in runs of three, upkeep at four, sequences that end, are taken out and go on."""
    case = Case(batch=3)
    pictures = np.array([[1, 2], [3, 4], [5, 6]], np.float32)
    case.add("attend", inputs={"look.picture": pictures})
    texts: list[list[int]] = [[5, 6, 7, 8, 9, 1, 2], [4, 3], [1, 1, 1, 1]]
    runs = [[3, 3, 1], [2, 0, 0], [3, 1, 0]]
    order = [0, 1, 2]

    def expected() -> dict[str, Any]:
        logits, lengths, totals = [], [], []
        for text, parts, number in zip(texts, runs, order, strict=True):
            held = total = read = last = 0
            for count in parts:
                before, held, read = held, held + count, read + count
                last = before + count if count else last
                if held >= PERIOD:
                    total, held = sum(text[:read]), 0
            logits.append([sum(text), len(text) - 1, last, pictures[number].sum()])
            lengths.append(held)
            totals.append(float(total))
        states = {"length": np.array(lengths, np.int64), "total": np.array(totals, np.float32)}
        return {"logits": logits, "states": states, "seen": [len(text) for text in texts]}

    case.add("read", tokens=[list(text) for text in texts], **expected())
    for token in range(10, 15):
        ended = [False, token >= 12, False]
        for text, parts, over in zip(texts, runs, ended, strict=True):
            text += [] if over else [token]
            parts.append(0 if over else 1)
        case.add("step", tokens=[token] * 3, ended=ended, **expected())
    for things in (texts, runs, order):
        things[:] = [things[2], things[0]]  # type: ignore[index]
    case.add("keep", rows=[2, 0])
    more = [[2, 3, 4, 5], [6]]
    for text, parts, new, counts in zip(texts, runs, more, ([3, 1], [1, 0]), strict=True):
        text += new
        parts += counts
    case.add("read", tokens=more, **expected())
    return case


def _viewer() -> Case:
    """Tokens that stand for the rows of a picture, on the border of two runs."""
    case = Case(batch=2)
    case.add("attend", inputs={"show.picture": np.array([[100, 200], [1000, 2000]], np.float32)})
    case.add("refuse", tokens=[[1, 9, 2, 9], [9, 1]])
    case.add("read", tokens=[[1, 9, 2, 3, 9, 4, 5], [9, 9, 1]], logits=[[315] * 3, [3001] * 3], seen=[7, 3])
    case.add("refuse", tokens=[[9], [1]])
    case.add("step", tokens=[9, 1], logits=[[324] * 3, [3002] * 3], seen=[8, 4])
    return case


def _full() -> Case:
    """A sequence that has filled its capacity, and stays as it is while the one beside it reads on."""
    case = Case(batch=2, tolerance=1e-5)
    first, second = np.random.default_rng(1).integers(0, toy.VOCABULARY, (2, toy.CONTEXT)).tolist()
    seen = [toy.CONTEXT - 1, 3]

    def expected() -> dict[str, Any]:
        ends = [toy.logits_of(text[:count])[-1] for text, count in zip((first, second), seen, strict=True)]
        return {"logits": ends, "seen": list(seen)}

    case.add("read", tokens=[first[: seen[0]], second[: seen[1]]], **expected())
    seen = [toy.CONTEXT, 4]
    case.add("step", tokens=[first[-1], second[3]], **expected())
    case.add("refuse", tokens=[[1], [1]])
    for token in second[4:7]:
        seen[1] += 1
        case.add("step", tokens=[0, token], ended=[True, False], **expected())
    seen[1] += 8
    case.add("read", tokens=[[], second[7:15]], ended=[True, False], **expected())
    return case


def _decoder(bundle: Path) -> Case:
    """The toy decoder in torch: its prompt in chunks, flushes, a compact graph behind it, and steps."""
    manifest = Bundle.open(bundle).manifest
    host = decoder(compact=True)
    parts = {graph.name: (graph, graph.module) for graph in host.attach(())}
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (2, 30))
    counts, steps = (14, 9), 15
    scenario = Scenario(
        prompt=[row[:count] for row, count in zip(tokens, counts, strict=True)],
        steps=[row[count : count + steps] for row, count in zip(tokens, counts, strict=True)],
    )
    case = Case(batch=2, tolerance=1e-4)
    last = np.zeros((2, VOCABULARY), np.float32)
    for step, events in _grouped(run_procedure(TorchSide(parts), manifest, scenario)):
        states: dict[str, Array] = {}
        for number, event in enumerate(events):
            if event.graph == "step":
                logits = event.outputs["logits"].numpy()
                if step == 0:  # each row is that of the run that read its last token
                    read = 4 * sum(one.graph == "step" for one in events[: number + 1])
                    ends = np.array([read - 4 < count <= read for count in counts])
                    last[ends] = logits[ends]
                else:
                    last = logits
            states |= {
                state.name or "": event.outputs[state.output].numpy()
                for state in parts[event.graph][0].states
                if state.output is not None
            }
        seen = [count + step for count in counts]
        given = scenario.steps if step else scenario.prompt
        picked: list[Any] = [int(row[step - 1]) for row in given] if step else [row.tolist() for row in given]
        case.add("step" if step else "read", tokens=picked, logits=last.copy(), states=states, seen=seen)
    return case


def _grouped(events: Iterator[Any]) -> Iterator[tuple[int, list[Any]]]:
    """The runs of the prompt as number 0, and those of each step, with their upkeep."""
    found: dict[int, list[Any]] = {}
    for event in events:
        moment = event.moment.rpartition(" after ")[2]
        found.setdefault(0 if moment.startswith("prompt") else int(moment.split()[1]), []).append(event)
    yield from found.items()


def replay(folder: Path) -> list[str]:
    """Go through a case with the runtime in Python, by its files alone; returns what differs."""
    case, arrays = json.loads((folder / "case.json").read_text()), np.load(folder / "expected.npz")
    differs: list[str] = []
    with Session.open(folder / case["bundle"]) as session:
        sequences = Sequences(session, batch=case["batch"])
        specs = {state.key: state for state in session.bundle.manifest.states}
        for number, action in enumerate(case["actions"]):
            where, before = f"action {number}, {action['do']}", sequences.seen
            logits: Array | None = None
            if action["do"] == "attend":
                sequences.attend({name: arrays[key] for name, key in action["inputs"].items()})
            elif action["do"] == "keep":
                sequences.keep(action["rows"])
            elif action["do"] == "step":
                logits = sequences.step(action["tokens"], ended=action.get("ended"))
            else:
                try:
                    logits = sequences.read([np.array(text, np.int64) for text in action["tokens"]])
                except TrtCompressError:
                    if action["do"] != "refuse":
                        raise
                    differs += [] if sequences.seen == before else [f"{where}: it was read"]
                    continue
            if "logits" in action and logits is not None:
                goes_on = ~np.array(action.get("ended") or [False] * len(logits))
                wanted = arrays[action["logits"]]
                if not np.allclose(logits[goes_on], wanted[goes_on], rtol=case["tolerance"], atol=case["tolerance"]):
                    differs.append(f"{where}: logits")
            if list(sequences.seen) != action.get("seen", list(sequences.seen)):
                differs.append(f"{where}: seen is {sequences.seen}")
            for name, key in action.get("states", {}).items():
                held = sequences.states.value(name)
                if held is None or not _equal(held, arrays[key], specs[name], sequences, case["tolerance"]):
                    differs.append(f"{where}: the state {name}")
    return differs


def _equal(held: Array, wanted: Array, spec: Any, sequences: Sequences, tolerance: float) -> bool:
    """Compare a state on the slots that each sequence uses."""
    if held.ndim < 2:
        return bool(np.allclose(held, wanted, atol=tolerance))
    used = {each.symbol: each.used for each in sequences.session.bundle.manifest.capacities}
    key = used.get(spec.shape[1])
    counts = sequences.states.value(key) if key else None
    if counts is None:
        counts = np.full(len(held), held.shape[1])
    for row, count in enumerate(counts.tolist()):
        one, other = held[row, :count], wanted[row, :count]
        if spec.compare == "codes":
            apart = [abs((one >> shift & 15).astype(int) - (other >> shift & 15)) for shift in (0, 4)]
            if max(int(part.max(initial=0)) for part in apart) > 1:
                return False
        elif not np.allclose(one.astype(np.float64), other.astype(np.float64), rtol=1e-3, atol=tolerance):
            return False
    return True


def main(arguments: Sequence[str]) -> int:
    """Write all cases into a folder."""
    if len(arguments) != 1 or Path(arguments[0]).exists():
        print("give one folder that is not there yet", file=sys.stderr)
        return 2
    folder = Path(arguments[0])
    with tempfile.TemporaryDirectory() as place:
        for name in CASES:
            write_case(name, Path(place) / "cases" / name)
        shutil.move(Path(place) / "cases", folder)
    print(f"Wrote {', '.join(CASES)} to {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
