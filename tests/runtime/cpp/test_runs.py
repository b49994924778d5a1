"""What the C++ runtime computes: bit for bit what Python does, states included; and the cases of conformance."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

from tests.export.conformance import CASES, COMPACTING, export, write_case
from tests.runtime.cpp.conftest import Built
from tests.runtime.cpp.driving import Job
from tests.runtime.test_states import bundle_of, graph_of
from trt_compress.format.graphs import Range, State
from trt_compress.format.manifest import OperatorUse, TensorInfo
from trt_compress.plugins.library import Library
from trt_compress.runtime import Session

Array = np.ndarray[Any, np.dtype[Any]]
MakeOnce = Callable[[str, Callable[[Path], object]], Path]


def drawn(infos: dict[str, TensorInfo], batch: int, random: np.random.Generator) -> dict[str, Array]:
    """Inputs for a run: whole numbers from 0 to 3, or normal ones."""
    made = {}
    for name, info in infos.items():
        shape = [dim if isinstance(dim, int) else batch for dim in info.shape]
        whole = np.dtype(info.dtype).kind in "iub"
        made[name] = (random.integers(0, 2, shape) if whole else random.normal(size=shape)).astype(info.dtype)
    return made


def compared(
    cpp: Built, bundle: Path, folder: Path, *, steps: int, batch: int = 1, native: Library | None = None
) -> str:
    """Run a bundle by both, and require the same bits; returns the version of ONNX Runtime."""
    random = np.random.default_rng(0)
    wanted: dict[str, Array] = {}
    given: dict[str, Array] = {}
    with Session.open(bundle, threads=1, native=False if native is None else native.path) as session:
        states = session.new_states()
        for step in range(steps):
            inputs = drawn(session.inputs, batch, random)
            given |= {f"{step}.{name}": value for name, value in inputs.items()}
            wanted |= {f"{step}.{name}": value for name, value in session.run(inputs, states).items()}
            for name in session.loaded.states if step in (0, 1, steps - 1) else ():
                value = states.value(name)
                assert value is not None
                wanted[f"{step}.state.{name}"] = value
        names, digest = (list(session.inputs), list(session.outputs)), session.bundle.manifest.digest
    said = {"bundle": bundle, "steps": steps, "native": None if native is None else native.path}
    (done,) = cpp.drive([Job("run", said, given)], folder)
    assert done.refused is None
    assert (done.said["inputs"], done.said["outputs"]) == names and done.said["digest"] == digest
    assert done.arrays.keys() == wanted.keys()
    for name, value in wanted.items():
        assert done.arrays[name].dtype == value.dtype and done.arrays[name].shape == value.shape, name
        assert done.arrays[name].tobytes() == value.tobytes(), name
    return str(done.said["version"])


def test_a_compressed_model_gives_the_same_bits(
    cpp: Built, exported: Callable[..., Path], native_library: Library, tmp_path: Path
) -> None:
    import onnxruntime

    assert compared(cpp, exported(), tmp_path / "one", steps=3, batch=1) == onnxruntime.__version__
    compared(cpp, exported(), tmp_path / "native", steps=3, batch=1, native=native_library)


def test_states_are_the_same_over_a_hundred_steps(cpp: Built, zoo: Callable[[str], Path], tmp_path: Path) -> None:
    compared(cpp, zoo("zoo:keyword_stream"), tmp_path / "stream", steps=100)


OTHERS = ["keyword_spotter", "keyword_mome", "speech_codec", "surround_detector", "video_pvc", "video_vit"]


@pytest.mark.slow
@pytest.mark.parametrize("model", OTHERS)
def test_every_bundle_of_the_zoo_gives_the_same_bits(
    cpp: Built, zoo: Callable[[str], Path], tmp_path: Path, model: str
) -> None:
    bundle = zoo(f"zoo:{model}")
    with Session.open(bundle) as session:
        is_one = session._alternative is None
    if not is_one:
        pytest.skip("its graphs are keep levels, of which a run takes one")
    compared(cpp, bundle, tmp_path / "run", steps=5)


def ring(folder: Path) -> Path:
    """Rows written into a ring, which an operator of ours does, and a sum, which none does."""
    cache, row, total = (("float32", ("batch", 1, *rest)) for rest in ((8, 2), ("tokens", 2), (1, 2)))
    node = helper.make_node
    nodes = [
        node(
            "TrtcKVAppend", ["cache", "rows", "position"], ["kept"], name="a", domain="trt_compress", layout=1, sinks=1
        ),
        node("ReduceSum", ["rows", "axis"], ["sum"]),
        node("Add", ["total", "sum"], ["after"]),
        node("Constant", [], ["axis"], value_ints=[2]),
        node("Neg", ["kept"], ["held"]),
    ]
    nodes = [nodes[3], *nodes[:3], nodes[4]]
    inputs = {"rows": row, "position": ("int64", ("batch",)), "cache": cache, "total": total}
    graph = graph_of("model", nodes, inputs, {"held": cache, "kept": cache, "after": total})
    shared: dict[str, Any] = {"graph": "model", "dtype": "float32"}
    states = [
        State(input="cache", output="kept", shape=cache[1], alias=True, **shared),
        State(input="total", output="after", shape=total[1], **shared),
    ]
    used = OperatorUse(
        name="KVAppend", op_type="TrtcKVAppend", domain="trt_compress", version=1, nodes=1, lowering="function"
    )
    bundle_of(folder, [graph], *states, operators=(used,), lengths={"tokens": Range(min=1, opt=1, max=4)})
    return folder


def test_states_are_updated_in_place_where_their_writer_is_native(
    cpp: Built, native_library: Library, tmp_path: Path
) -> None:
    """A hundred steps; by their addresses the ring stays where it is, and the sum changes places."""
    bundle, random = ring(tmp_path / "b"), np.random.default_rng(0)
    given: dict[str, Array] = {}
    wanted: dict[str, Array] = {}
    with Session.open(bundle, threads=1, native=native_library.path) as session:
        states = session.new_states()
        for step in range(100):
            rows = random.normal(size=(2, 1, 1 + step % 3, 2)).astype(np.float32)
            inputs = {"rows": rows, "position": np.array([2 * step, 3 * step])}
            given |= {f"{step}.{name}": value for name, value in inputs.items()}
            wanted |= {f"{step}.{name}": value for name, value in session.run(inputs, states).items()}
            for name in session.loaded.states if step in (0, 1, 99) else ():
                wanted[f"{step}.state.{name}"] = np.asarray(states.value(name))
        assert {info.name: info.update for info in states.infos()} == {
            "model.cache": "in place", "model.total": "swapped"
        }  # fmt: skip
    said = {"bundle": bundle, "steps": 100}
    both = cpp.drive(
        [Job("run", {**said, "native": native_library.path}, given), Job("run", said, given)], tmp_path / "work"
    )
    for done, places in zip(both, (1, 2), strict=True):
        assert done.refused is None, done.refused
        assert done.arrays.keys() == wanted.keys()
        for name, value in wanted.items():
            assert done.arrays[name].tobytes() == value.tobytes(), name
        ring_at, sum_at = done.said["addresses"]["model.cache"], done.said["addresses"]["model.total"]
        assert len(set(ring_at)) == places and ring_at[::2] == ring_at[:1] * 50
        assert len(set(sum_at)) == 2 and sum_at[::2] == sum_at[:1] * 50


def test_a_run_that_fails_while_it_writes_in_place_loses_the_states(
    cpp: Built, native_library: Library, tmp_path: Path
) -> None:
    bundle = ring(tmp_path / "b")
    row, at, before = np.ones((1, 1, 1, 2), np.float32), np.array([3]), np.array([-1])
    given = {"good.rows": row, "good.position": at, "bad.position": before}
    (done,) = cpp.drive(
        [Job("lose", {"bundle": bundle, "native": native_library.path}, given)], tmp_path / "work"
    )  # fmt: skip
    assert done.refused is None, done.refused
    assert done.said["bad"][0] == 4 and "TrtcKVAppend" in done.said["bad"][1]
    for name in ("next", "fork", "keep"):
        assert done.said[name][0] == 1 and "nothing is known of them; reset them" in done.said[name][1], name
    assert done.said["again"] is True and done.said["fresh"] is True


@pytest.fixture
def cases(made_once: MakeOnce) -> Callable[[str], Path]:
    """A case of conformance by its name, written once."""

    def write(name: str, output: Path) -> None:
        toy = made_once(COMPACTING, lambda place: export(place, compact=True)) if name == "decoder" else None
        write_case(name, output, toy)

    return lambda name: made_once(f"cpp case {name}", lambda output: write(name, output))


@pytest.mark.parametrize("name", CASES)
def test_cases_of_conformance(cpp: Built, cases: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    folder = cases(name)
    (done,) = cpp.drive([Job("replay", {"case": folder})], tmp_path / "work")
    assert done.refused is None
    assert done.said["differs"] == []
    case, expected = json.loads((folder / "case.json").read_text()), np.load(folder / "expected.npz")
    tolerance = {"rtol": case["tolerance"], "atol": case["tolerance"]}
    looked_at = 0
    for number, action in enumerate(case["actions"]):
        if action["do"] == "refuse":
            assert done.arrays[f"{number}.refused"] in (1, 2)
            continue
        if "logits" in action:
            goes_on = ~np.array(action.get("ended") or [False] * len(expected[action["logits"]]))
            found = done.arrays[f"{number}.logits"]
            assert np.allclose(found[goes_on], expected[action["logits"]][goes_on], **tolerance), number
            looked_at += 1
        for state, key in action.get("states", {}).items():
            found, wanted = done.arrays[f"{number}.state.{state}"], expected[key]
            assert found.shape == wanted.shape and found.dtype == wanted.dtype
            if found.ndim == 1:
                assert np.allclose(found, wanted, atol=case["tolerance"]), (number, state)
                looked_at += 1
    assert looked_at


def test_python_and_cpp_hold_the_same_states_of_a_decoder(
    cpp: Built, cases: Callable[[str], Path], tmp_path: Path
) -> None:
    """All slots, used or not, of the toy decoder with its flushes: the same bits in both."""
    folder = cases("decoder")
    (done,) = cpp.drive([Job("replay", {"case": folder})], tmp_path / "work")
    from trt_compress.runtime.sequences import Sequences

    case = json.loads((folder / "case.json").read_text())
    with Session.open(folder / "bundle", native=False) as session:
        sequences = Sequences(session, batch=case["batch"])
        for number, action in enumerate(case["actions"]):
            if action["do"] == "step":
                logits = sequences.step(action["tokens"])
            else:
                logits = sequences.read([np.array(text, np.int64) for text in action["tokens"]])
            assert done.arrays[f"{number}.logits"].tobytes() == logits.tobytes(), number
            for name in action["states"]:
                held = sequences.states.value(name)
                assert held is not None
                assert done.arrays[f"{number}.state.{name}"].tobytes() == held.tobytes(), (number, name)


def test_the_examples_run(cpp: Built, exported: Callable[..., Path], tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(exported(), bundle)
    said = cpp.program("run_bundle", bundle, cpp.onnxruntime).stdout
    assert "image float32 [batch, 1, 8, 8]" in said or "float32 [batch" in said
    with Session.open(bundle) as session:
        (info,) = session.inputs.values()
        _, channels, height, width = info.shape
        pixels = np.random.default_rng(0).integers(0, 17, (int(height), int(width)), np.uint8)
        from trt_compress.runtime.stream.preprocess import preprocess_from_manifest

        inputs = preprocess_from_manifest(session.bundle, session.inputs)(pixels)
        (logits,) = session.run({name: value for name, value in inputs.items()}).values()
    assert channels == 1
    picture = tmp_path / "digit.pgm"
    picture.write_bytes(b"P5\n%d %d\n255\n" % (int(width), int(height)) + pixels.tobytes())
    lines = cpp.program("classify_image", bundle, picture, cpp.onnxruntime).stdout.splitlines()
    shares = np.exp(logits[0] - logits[0].max())
    shares /= shares.sum()
    order = np.argsort(-logits[0], kind="stable")[:5]
    assert lines == [f"class {each}: {100 * shares[each]:.1f} %" for each in order]
    refused = cpp.program("classify_image", bundle, tmp_path / "none.pgm", cpp.onnxruntime, code=2)
    assert "is no PGM or PPM file" in refused.stderr
