"""What breaks the contract of states, artifacts, procedures and weights: a sentence, exit code 2, nothing written.

One run of the issue's list, from the command line where a command takes the thing, else by the function in a process of
its own. The single rules have their tests beside the code; here is what a user sees.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.runtime.counter_bundles import FLUSH, write
from tests.typed_commands import Ended, Typed
from trt_compress.format.manifest import Manifest
from trt_compress.runtime import Session

LONG = 120.0  # seconds, for a machine that has much else to do
Change = Callable[[dict[str, Any]], object]


def refused(ended: Ended, *message: str) -> None:
    assert ended.is_one_sentence and ended.out == "", (ended.code, ended.out, ended.err)
    assert ended.err.startswith("error: ") and all(part in ended.err for part in message), ended.err


def everything_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- states ---------------------------------------------------------------------------------------------------------

READ = """
from trt_compress.runtime import Session
with Session.open("{bundle}") as session:
    {call}
print("went on")
"""


@pytest.fixture(scope="module")
def counters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle, another of the same graphs but for a constant, and states of two sequences of the first, of 8 slots."""
    folder = tmp_path_factory.mktemp("counters")
    write(folder / "counter")
    write(
        folder / "other",
        flush=FLUSH.replace("f0 = Constant<value_float = 0.0>()", "f0 = Constant<value_float = 1.0>()"),
    )
    with Session.open(folder / "counter", threads=1) as session:
        states = session.new_states(batch=2)
        states.reserve({"slots": 7})
        states.save(folder / "two.npz")
    return folder


RUN_THREE = """
    import numpy as np
    one = np.ones((3, 1), np.int64)
    inputs = {"tokens": one, "count": one[:, 0], "positions": one}
    session.run_graph("step", inputs, session.load_states("two.npz"))
"""
STATES = {
    "of another bundle": (
        "other",
        "session.load_states('two.npz')",
        "'two.npz' holds states of another bundle, 'counter'",
    ),
    "of another capacity": (
        "counter",
        "session.load_states('two.npz', capacity=4)",
        "'two.npz' holds 8 slots on 'slots'",
    ),
    "of another batch": ("counter", RUN_THREE, "This run has 'batch' = 3"),
    "with a capacity above the limit": (
        "counter",
        "session.new_states(capacity=1000)",
        "capacity=1000; the bundle allows from 4 to 16",
    ),
    "with too little capacity": (
        "counter",
        "session.new_states(batch=1, capacity=4).reserve({'slots': 5})",
        "5 slots are needed on 'slots', and these states may have 4",
    ),
    "cut short": ("counter", "session.load_states('cut.npz')", "'cut.npz' cannot be read"),
}


@pytest.mark.parametrize("case", STATES)
def test_states_that_do_not_belong(case: str, counters: Path, commands: Typed) -> None:
    bundle, call, message = STATES[case]
    whole = (counters / "two.npz").read_bytes()
    (counters / "cut.npz").write_bytes(whole[: len(whole) // 2])
    before = everything_in(counters)
    code = READ.format(bundle=bundle, call=call)
    refused(commands("python", code, folder=counters, within=LONG), message)
    assert everything_in(counters) == before


# ---- procedures -----------------------------------------------------------------------------------------------------


def healed(folder: Path, change: Change) -> None:
    """Change the manifest as who can also make its digest right."""
    data = json.loads((folder / "manifest.json").read_text())
    change(data)
    data["digest"] = Manifest.from_text(json.dumps(data)).compute_digest()
    (folder / "manifest.json").write_text(json.dumps(data))


PROCEDURES: dict[str, tuple[Change, str]] = {
    "a step of no graph": (
        lambda d: d["procedure"]["step"].update(graphs=["stop"]),
        "names the graph 'stop', which there is not",
    ),
    "an upkeep of no graph": (
        lambda d: d["procedure"]["upkeep"][0].update(graph="pack"),
        "'procedure.upkeep' names the graph 'pack'",
    ),
    "a capacity of no state": (
        lambda d: d["capacities"][0].update(used="fill"),
        "names the state 'fill', which there is not",
    ),
    "a state of no graph": (lambda d: d["states"][1].update(graph="sept"), "'sept'"),
}
READERS: dict[str, tuple[str, ...]] = {
    "inspect": (),
    "verify": (),
    "run": ("--source", "x.npz"),
    "bench": (),
    "build": ("--target", "rtx"),
    "preflight": ("--target", "rtx"),
    "evaluate": ("--data", "held-out"),
}


@pytest.mark.parametrize("case", PROCEDURES)
def test_a_procedure_that_names_what_is_not_there(case: str, counters: Path, tmp_path: Path, commands: Typed) -> None:
    change, message = PROCEDURES[case]
    shutil.copytree(counters / "counter", tmp_path / "bundle")
    healed(tmp_path / "bundle", change)
    before = everything_in(tmp_path)
    for reader, words in READERS.items() if case == "a step of no graph" else [("inspect", ())]:
        refused(commands(reader, "bundle", *words, folder=tmp_path, within=LONG), message)
    refused(commands("python", READ.format(bundle="bundle", call="pass"), folder=tmp_path, within=LONG), message)
    assert everything_in(tmp_path) == before


# ---- artifacts ------------------------------------------------------------------------------------------------------

FOR_ARTIFACT = ("zoo:keyword_spotter", "frame_stack:stride=2")


@pytest.fixture(scope="module")
def projector(tmp_path_factory: pytest.TempPathFactory, commands: Typed) -> bytes:
    """An artifact of seeded numbers, made for the weights of zoo:keyword_spotter."""
    folder = tmp_path_factory.mktemp("projector")
    torch.manual_seed(0)
    sizes = {"linear1": (16, 256), "linear2": (128, 16)}
    tensors = {f"{name}.weight": torch.randn(size) for name, size in sizes.items()}
    save_file(
        tensors | {f"{name}.bias": torch.randn(size[0]) for name, size in sizes.items()}, folder / "t.safetensors"
    )
    model, spec = FOR_ARTIFACT
    words = ("calibrate", model, "--compress", spec, "--tensors", "t.safetensors", "-o", "p")
    made = commands(*words, folder=folder, within=LONG)
    assert made.code == 0, made.err
    return (folder / "p").read_bytes()


ARTIFACTS: dict[str, tuple[str, str, Callable[[bytes], bytes], str]] = {
    "for other weights": (
        "zoo:keyword_mome",
        "stride=2",
        lambda whole: whole,
        "was made for other weights than these: for keyword_spotter.safetensors (sha256 ",
    ),
    "for another setting": (
        FOR_ARTIFACT[0],
        "stride=5",
        lambda whole: whole,
        "was made for stride=2, and stride=5 is given",
    ),
    "with a changed byte": (
        FOR_ARTIFACT[0],
        "stride=2",
        lambda whole: whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:],
        "frame_stack: projector p was changed",
    ),
    "cut short": (FOR_ARTIFACT[0], "stride=2", lambda whole: whole[:-1], "frame_stack: projector p "),
    "that is none": (FOR_ARTIFACT[0], "stride=2", lambda whole: b"hello", "frame_stack: projector p "),
}


@pytest.mark.parametrize("case", ARTIFACTS)
def test_an_artifact_that_does_not_belong(case: str, projector: bytes, tmp_path: Path, commands: Typed) -> None:
    model, options, change, message = ARTIFACTS[case]
    (tmp_path / "p").write_bytes(change(projector))
    spec = f"frame_stack:{options},projector=p"
    refused(commands("export", model, "--compress", spec, "-o", "out", folder=tmp_path, within=LONG), message)
    assert os.listdir(tmp_path) == ["p"]


# ---- two owners, and weights that are cut ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "spec", "message"),
    [
        ("zoo:video_vit", "static_reuse+static_reuse", "static_reuse: keeps the tokens of every layer at their places"),
        ("zoo:video_vit", "tome:num_merged=1+static_reuse", "so no other compressor can act beside it; give it alone"),
        ("zoo:surround_detector", "toc3d+toc3d", "toc3d: decides which tokens pass the blocks, so no other compressor"),
    ],
)
def test_what_two_methods_want_to_own(model: str, spec: str, message: str, tmp_path: Path, commands: Typed) -> None:
    refused(commands("export", model, "--compress", spec, "-o", "out", folder=tmp_path, within=LONG), message)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("cut", [1, 4096, None], ids=["a byte", "a page", "all"])
def test_weights_cut_short_are_seen_before_onnx_runtime(
    cut: int | None, exported: Callable[..., Path], tmp_path: Path, commands: Typed
) -> None:
    shutil.copytree(exported(), tmp_path / "bundle")
    size = (tmp_path / "bundle" / "weights.bin").stat().st_size
    left = 0 if cut is None else size - cut
    os.truncate(tmp_path / "bundle" / "weights.bin", left)
    before = everything_in(tmp_path)
    for reader, words in READERS.items() if cut == 1 else [("verify", ())]:
        refused(
            commands(reader, "bundle", *words, folder=tmp_path, within=LONG),
            f"'weights.bin' in the bundle 'bundle' was changed: it has {left} bytes, not {size};",
        )
    stopped = "import onnxruntime; onnxruntime.InferenceSession = None\n" + READ.format(bundle="bundle", call="pass")
    refused(commands("python", stopped, folder=tmp_path, within=LONG), f"it has {left} bytes, not {size};")
    assert everything_in(tmp_path) == before
