"""Roles, states, capacities and procedures: what fits is read, what does not is refused in one sentence."""

import copy
import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from trt_compress.errors import BundleError
from trt_compress.format.graphs import Capacity, Range
from trt_compress.format.manifest import Manifest
from trt_compress.format.procedure import Media, Pass, Procedure, Upkeep, keep_up, rows_of, runs_of

INT, FLOAT = "int64", "float32"


def tensors(**shapes: tuple[str, Sequence[int | str]]) -> list[dict[str, Any]]:
    return [{"name": name, "dtype": dtype, "shape": list(shape)} for name, (dtype, shape) in shapes.items()]


def state(graph: str, name: str, shape: Sequence[int | str], ends: str = "both", **fields: Any) -> dict[str, Any]:
    end = {"input": f"{name}_in" if ends != "written" else None, "output": f"{name}_out" if ends != "read" else None}
    return {"graph": graph, "name": name, "shape": shape, "dtype": FLOAT, **end, **fields}


def decoder_json() -> dict[str, Any]:
    """A model that looks at a picture, reads tokens into a tail, and packs 64 of them at a time into a cache."""
    tail = (FLOAT, ["batch", 2, 320, 8])
    packed = ("uint8", ["batch", 2, "slots", 4])
    count = (INT, ["batch"])
    features = (FLOAT, ["batch", 49, 16])
    graphs = [
        ("vision", "vision", tensors(pixels=(FLOAT, ["batch", 3, 8, 8])), tensors(features_out=features)),
        (
            "embed",
            "embed",
            tensors(tokens=(INT, ["batch", "time"]), rows=(INT, ["batch", "time"]), features_in=features),
            tensors(embedded=(FLOAT, ["batch", "time", 16])),
        ),
        (
            "step",
            "step",
            tensors(
                x=(FLOAT, ["batch", "time", 16]),
                positions=(INT, ["batch", "time"]),
                count=count,
                tail_in=tail,
                fresh_in=count,
                packed_in=packed,
            ),
            tensors(logits=(FLOAT, ["batch", 100]), tail_out=tail, fresh_out=count),
        ),
        (
            "flush",
            "flush",
            tensors(tail_in=tail, fresh_in=count, packed_in=packed, used_in=count),
            tensors(tail_out=tail, fresh_out=count, packed_out=packed, used_out=count),
        ),
    ]
    length = {"dtype": INT, "kind": "length"}
    codes = {"dtype": "uint8", "kind": "cache", "layer": 0, "compare": "codes", "bits": 4}
    reading = {"graphs": ["embed", "step"], "logits": "step.logits"}
    return {
        "schema_version": "1.0",
        "name": "vlm",
        "created_with": {},
        "model": {"source": "hf:vlm", "family": "vlm", "weights": {"source": "w.safetensors"}},
        "recipe": {},
        "precision": "fp32",
        "opset": 20,
        "batch": {"min": 1, "opt": 1, "max": 4},
        "graphs": [
            {"name": name, "role": role, "file": f"{name}.onnx", "inputs": inputs, "outputs": outputs}
            for name, role, inputs, outputs in graphs
        ],
        "links": [{"from": "embed.embedded", "to": "step.x"}],
        "states": [
            state("vision", "features", features[1], "written", kind="features"),
            state("embed", "features", features[1], "read", kind="features"),
            *(state(graph, "tail", tail[1], kind="tail", layer=0) for graph in ("step", "flush")),
            *(state(graph, "fresh", ["batch"], **length) for graph in ("step", "flush")),
            state("step", "packed", packed[1], "read", **codes),
            state("flush", "packed", packed[1], alias=True, **codes),
            state("flush", "used", ["batch"], **length),
        ],
        "lengths": {"time": {"min": 1, "opt": 64, "max": 256}, "slots": {"min": 256, "opt": 1024, "max": 4096}},
        "capacities": [{"symbol": "slots", "used": "used", "adds": {"flush": 64}, "multiple": 64}],
        "procedure": {
            "prompt": {**reading, "tokens": "time"},
            "step": {**reading, "tokens": 1},
            "feeds": {
                "embed.tokens": "tokens",
                "embed.rows": "rows",
                "step.positions": "positions",
                "step.count": "count",
            },
            "upkeep": [{"graph": "flush", "after": "run"}],
            "media": [
                {"graphs": ["vision"], "input": {"kind": "image", "input": "vision.pixels"}, "token": 7, "rows": 49}
            ],
        },
        "files": {f"{name}.onnx": {"sha256": "0" * 64, "bytes": 1} for name, *_ in graphs},
        "digest": "",
    }


def read(data: dict[str, Any]) -> Manifest:
    manifest = Manifest.from_text(json.dumps(data))
    manifest.check()
    return manifest


def test_a_model_with_eyes_and_a_packed_cache_is_read() -> None:
    manifest = read(decoder_json())
    assert manifest.procedure is not None
    assert [state.key for state in manifest.states if state.input is None] == ["features"]
    assert {state.key: state.comparison for state in manifest.states}["packed"] == "codes"
    assert Manifest.from_text(manifest.to_text()) == manifest


Change = Callable[[dict[str, Any]], object]
REFUSED: list[tuple[Change, str]] = [
    (lambda d: d["graphs"][2].update(role="stepp"), "graph 'step' has the role 'stepp', and this trt-compress knows"),
    (lambda d: d["procedure"]["step"].update(graphs=["embed", "stop"]), "names the graph 'stop', which there is not"),
    (lambda d: d["procedure"]["prompt"].update(graphs=[]), "'procedure.prompt' names no graph"),
    (lambda d: d["procedure"]["upkeep"][0].update(graph="pack"), "'procedure.upkeep' names the graph 'pack'"),
    (lambda d: d["procedure"]["media"][0].update(graphs=["ears"]), "'procedure.media' names the graph 'ears'"),
    (lambda d: d["procedure"]["media"][0]["input"].update(input="y"), "'procedure.media.input.input' names 'y', which"),
    (lambda d: d["procedure"]["media"][0]["input"].update(kind="audio"), "has no field 'sample_rate'"),
    (lambda d: d["procedure"]["media"][0]["input"].update(kind="frames"), "does not fit the input 'vision.pixels'"),
    (lambda d: d["procedure"]["media"][0].pop("rows"), "has one of 'token' and 'rows'; it has both, or neither"),
    (lambda d: d["procedure"]["media"][0].update(rows=0), "has the token 7 stand for each of 0 rows"),
    (lambda d: d["procedure"]["media"].append(d["procedure"]["media"][0]), "token 7 stand for more than one of"),
    (lambda d: d["procedure"]["media"][0].update(token=None, rows=None), "'embed.rows' 'rows', and no token of"),
    (lambda d: d["graphs"][2].update(role="draft"), "graph 'step' has the role 'draft', and this trt-compress knows"),
    (lambda d: d["procedure"]["upkeep"].clear(), "'flush' has the role 'flush', and no part of 'procedure' runs it"),
    (lambda d: d["procedure"]["step"].update(graphs=["step", "embed"]), "names its graphs in another order"),
    (lambda d: d["procedure"]["step"].update(graphs=["embed", "flush"]), "which has the role 'flush'; it is prefill"),
    (lambda d: d["procedure"]["step"].update(graphs=["step"]), "runs 'step', and nothing gives it its input 'x'"),
    (lambda d: d["procedure"]["feeds"].pop("step.count"), "nothing gives it its input 'count'"),
    (lambda d: d["procedure"]["feeds"].update({"step.y": "seen"}), "names 'step.y', which is no input of a graph"),
    (lambda d: d["procedure"]["feeds"].update({"step.count": "many"}), "gives 'step.count' 'many'; there are tokens"),
    (lambda d: d["procedure"]["feeds"].update({"step.count": "next"}), "'next', of 2 axes"),
    (lambda d: d["procedure"].update(position="page"), "'procedure.position' is 'page'; there are seen, kept, slots"),
    (lambda d: d["procedure"].update(position="kept"), "has positions made"),
    (lambda d: d["procedure"]["step"].update(tokens=2), "reads 2 to 2 tokens in a run; a step reads 1"),
    (lambda d: d["procedure"]["prompt"].update(tokens="t"), "reads 't' tokens, whose lengths are not in 'lengths'"),
    (lambda d: d["procedure"]["step"].update(logits="step.x"), "names the logits 'step.x', which is no output"),
    (
        lambda d: d["procedure"]["step"].update(rows="all"),
        "gives the rows \"all\" of 'step.logits', which has",
    ),
    (lambda d: d["procedure"]["upkeep"][0].update(after="rain"), "is due after 'rain'; there are chunk, prompt, step"),
    (lambda d: d["procedure"]["upkeep"][0].update(capacity="slots"), "it has both, or neither"),
    (lambda d: d["procedure"]["upkeep"][0].update(capacity="x", at_least=1), "names the capacity 'x', which there is"),
    (lambda d: d["capacities"][0].update(used="fill"), "names the state 'fill', which there is not"),
    (lambda d: d["capacities"][0].update(used="tail"), "counts by 'tail', which is no state of the kind 'length'"),
    (lambda d: d["capacities"][0].update(adds={"pack": 1}), "names the graph 'pack', which there is not"),
    (lambda d: d["capacities"][0].update(multiple=60), "ends at 4096, which is no multiple of 60"),
    (lambda d: d["capacities"][0].update(symbol="rows"), "the capacity 'rows' has no lengths in 'lengths'"),
    (lambda d: d["capacities"].append(d["capacities"][0]), "the capacity 'slots' is listed twice"),
    (lambda d: d["states"].pop(0), "the state 'features' is read by 'embed', and no graph writes it"),
    (lambda d: d["states"].pop(1), "the state 'features' is written by 'vision', and no graph reads it"),
    (lambda d: d["states"][0].update(name=None), "'vision' alone, and has no name for the others"),
    (lambda d: d["states"][6].update(kind="memory"), "is of the kind 'memory'; there are history, cache"),
    (lambda d: d["states"][7].update(compare="same"), "has the comparison 'same'; there are close, equal, codes"),
    (lambda d: d["states"][7].update(bits=None), "codes have bits"),
    (lambda d: d["states"][6].update(alias=True), "'step' does not both read and write it"),
    (lambda d: d["states"][2].update(dtype="float16"), "'tail' is float16, and 'step.tail_in' is float32"),
    (lambda d: d["states"][2].update(layer=1), "share the state 'tail' and differ in it"),
    (lambda d: d.update(procedure=None), "'step' has the role 'step', and no 'procedure' says when it is run"),
    (lambda d: d["graphs"][0].pop("role"), "its graphs have no role.; export the bundle again"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=[message[:40] for _, message in REFUSED])
def test_what_does_not_fit_is_refused(change: Change, message: str) -> None:
    data = copy.deepcopy(decoder_json())
    change(data)
    with pytest.raises(BundleError, match=message) as refused:
        read(data)
    assert "\n" not in str(refused.value) and str(refused.value).endswith(".")


def test_keep_levels_have_the_same_inputs() -> None:
    data = decoder_json()
    data["graphs"] = [
        {"name": name, "role": "model", "file": "vision.onnx", "inputs": tensors(x=(FLOAT, ["batch", width])),
         "outputs": tensors(y=(FLOAT, ["batch", 2]))}
        for name, width in (("full", 4), ("half", 4))
    ]  # fmt: skip
    data |= {"links": [], "states": [], "capacities": [], "procedure": None}
    read(data)
    data["graphs"][1]["inputs"][0]["shape"] = ["batch", 3]
    with pytest.raises(BundleError, match="'full' and 'half' both have the role 'model', so that a run takes one"):
        read(data)


LENGTHS = {"time": Range(min=1, opt=4, max=4), "all": Range(min=2, opt=4, max=9)}


@pytest.mark.parametrize(
    ("part", "prompts", "expected"),
    [
        (Pass(graphs=("s",), tokens="time"), [10], [(0, 4, (4,)), (4, 4, (4,)), (8, 2, (2,))]),
        (Pass(graphs=("s",), tokens="time"), [6, 0, 3], [(0, 4, (4, 0, 3)), (4, 2, (2, 0, 0))]),
        (Pass(graphs=("s",), tokens=4), [5, 2], [(0, 4, (4, 2)), (4, 4, (1, 0))]),
        (Pass(graphs=("s",), tokens="all", whole=True), [7, 2], [(0, 7, (7, 2))]),
        (Pass(graphs=("s",), tokens="time"), [0], []),
    ],
)
def test_a_prompt_is_read_in_runs(part: Pass, prompts: list[int], expected: list[tuple[int, int, Any]]) -> None:
    runs = list(runs_of(part, LENGTHS, prompts))
    assert [(run.start, run.tokens, run.counts) for run in runs] == expected
    assert [sum(counts) for counts in zip(*(run.counts for run in runs), strict=True)] == (prompts if runs else [])
    assert [("prompt" in run.moments) for run in runs] == [False] * (len(runs) - 1) + [True] * bool(runs)


def test_a_part_of_a_prompt_has_no_last_run() -> None:
    part = Pass(graphs=("s",), tokens="time")
    whole, parts = (list(runs_of(part, LENGTHS, [6], goes_on=goes_on)) for goes_on in (False, True))
    assert [(run.start, run.counts) for run in parts] == [(run.start, run.counts) for run in whole]
    assert [run.moments for run in parts] == [("run", "chunk")] * 2 and "prompt" in whole[1].moments
    with pytest.raises(ValueError, match="the prompt is read at once, and a part of it was given"):
        list(runs_of(Pass(graphs=("s",), tokens="all", whole=True), LENGTHS, [5], goes_on=True))


def test_a_prompt_that_is_read_at_once_has_to_fit() -> None:
    with pytest.raises(ValueError, match="the prompt has 10 tokens, and from 2 to 9 are read at once"):
        list(runs_of(Pass(graphs=("s",), tokens="all", whole=True), LENGTHS, [10]))


def test_tokens_that_stand_for_rows_are_counted_through() -> None:
    media = [
        Media(graphs=("look",), input={}, token=7, rows=2),
        Media(graphs=("ask",), input={}),
        Media(graphs=("prepare", "hear"), input={}, token=9, rows=3),
    ]
    assert rows_of(media, [9, 1, 7, 9, 9, 7, 2], placed=True) == [2, -1, 0, 3, 4, 1, -1]
    assert rows_of(media, [1, 2], placed=False) == [-1, -1]
    with pytest.raises(ValueError, match="the token 9 2 times, .* of what 'hear' found, of which there are 3"):
        rows_of(media, [7, 7, 9, 9], placed=True)
    with pytest.raises(ValueError, match="the token 7 1 times, .* in the first text that is read after"):
        rows_of(media, [1, 7], placed=False)


def test_upkeep_runs_until_no_sequence_is_over() -> None:
    reading = Pass(graphs=("step",), tokens="time", logits="step.logits")
    upkeep = (
        Upkeep(graph="compact", after="prompt"),
        Upkeep(graph="flush", after="run", capacity="tail", at_least=64),
        Upkeep(graph="never", after="step"),
    )
    procedure = Procedure(prompt=reading, step=reading, feeds={}, upkeep=upkeep)
    fill, ran = [200, 63], []

    def run(graph: str) -> None:
        ran.append(graph)
        if graph == "flush":
            fill[:] = [count - 64 if count >= 64 else count for count in fill]

    keep_up(procedure, ("run", "chunk", "prompt"), lambda _: fill, run)
    assert (ran, fill) == (["compact", "flush", "flush", "flush"], [8, 63])
    with pytest.raises(ValueError, match="'flush' was run because 'tail' has 70 slots in use, and then it had 70"):
        keep_up(procedure, ("run",), lambda _: [70], lambda graph: None)


def test_slots_that_a_run_needs() -> None:
    slots = Capacity(symbol="slots", adds={"step": "tokens", "flush": 64})
    assert slots.needed(("embed", "step"), used=100, tokens=7) == 107
    assert slots.needed(("flush",), used=100, tokens=0) == 164
    assert slots.needed(("compact",), used=100, tokens=0) == 100
