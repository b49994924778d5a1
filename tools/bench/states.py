"""What a session adds to a decoder with 64 MB of state: `python -m trt_compress.tools.bench.states [--quick]`.

A toy decoder with random weights: each layer appends a token's key and value to its cache and attends over all slots.
Measured: the time outside ONNX Runtime in a step, with native operators (in place) and without (swapped); where the
states are before and after the steps; eight `States` in turns on one session beside eight sessions; resident memory
over 10,000 steps. One JSON line is appended to `tools/bench/results/states.jsonl`.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from trt_compress.errors import InternalError
from trt_compress.export.bundle import write_bundle
from trt_compress.export.lower import add_bodies
from trt_compress.format.bundle import Bundle
from trt_compress.format.manifest import Batch, Graph, Manifest, Model, State, TensorInfo, Weights
from trt_compress.plugins.build import build as build_native
from trt_compress.plugins.spec import DOMAIN
from trt_compress.runtime.session import Session
from trt_compress.strays import temporary_folder
from trt_compress.tools.bench.records import append_record
from trt_compress.tools.console import print_table, progress

RESULTS = Path(__file__).parent / "results" / "states.jsonl"
LAYERS, SLOTS, WIDTH = 8, 16384, 64  # 2 caches a layer, of 4 MiB in float32 each
STREAMS, MOST_OVERHEAD_US, MOST_SHARE = 8, 100.0, 0.05

Array = np.ndarray[Any, np.dtype[Any]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few steps, nothing recorded: to see that it runs")
    quick = parser.parse_args(arguments).quick
    with progress("states") as step, temporary_folder("bench") as folder:
        step("building the native operators")
        build_native(only=("onnxruntime",))
        figures = measure(folder / "toy", steps=40 if quick else 400, long=100 if quick else 10_000, step=step)
    print_table(
        f"{LAYERS} layers, {figures['state_bytes'] / 2**20:.0f} MiB of state", ("figure", "measured"), rows_of(figures)
    )
    if not quick:
        append_record(RESULTS, "states", figures)
    return 0


def rows_of(figures: dict[str, Any]) -> list[tuple[str, str]]:
    """What was measured, for people."""
    rows = []
    for form in ("native", "function"):
        one = figures[form]
        rows.append((f"{form}: states are updated", one["update"]))
        rows.append((f"{form}: a step, median", f"{one['step_us'] / 1000:.2f} ms"))
        rows.append((f"{form}: of it outside ONNX Runtime, median", f"{one['outside_us']:.1f} µs"))
        rows.append((f"{form}: the same as a share", f"{one['outside_share']:.2%}"))
        rows.append((f"{form}: places of the states' memory", str(one["places_per_state"])))
    rows.append((f"{STREAMS} States on one session equal {STREAMS} sessions", str(figures["interleaved_equal"])))
    rows.append((f"resident memory after {figures['long_steps']} steps", f"{figures['grown_bytes'] / 2**20:+.1f} MiB"))
    return rows


def measure(folder: Path, *, steps: int, long: int, step: Callable[[str], None]) -> dict[str, Any]:
    """All figures.

    Args:
        folder: Where the bundle is written.
        steps: That are timed.
        long: Steps over which memory is watched.
        step: Takes what is being done.

    Raises:
        InternalError: States in turns differ from sessions of their own, or a state was copied.
    """
    bundle = write_toy(folder, LAYERS, SLOTS, WIDTH)
    found: dict[str, Any] = {"layers": LAYERS, "slots": SLOTS, "steps": steps, "long_steps": long, "threads": 1}
    for form, native in (("native", True), ("function", False)):
        step(f"{form}: {steps} steps")
        with Session.open(bundle, threads=1, spin=False, native=native) as session:
            found[form] = _timed(session, steps if native else max(steps // 10, 4))
            found["state_bytes"] = session.states.bytes
    step("in turns")
    found["interleaved_equal"] = _in_turns(bundle, 6)
    step(f"{long} steps")
    with Session.open(bundle, threads=1, spin=False, native=True) as session:
        found["grown_bytes"] = _growth(session, long)
    return found


def write_toy(folder: Path, layers: int, slots: int, width: int) -> Bundle:
    """A decoder of one KV head: `x` [batch, 1, width] and `position` [batch] become `y` [batch, 1, width]."""
    model = add_bodies(_toy(layers, slots, width))
    caches = [f"{what}{layer}" for layer in range(layers) for what in "kv"]
    shape = ("batch", 1, slots, width)
    given = (
        TensorInfo(name="x", dtype="float32", shape=("batch", 1, width)),
        TensorInfo(name="position", dtype="int64", shape=("batch",)),
    )
    manifest = Manifest(
        name="toy decoder",
        created_with={},
        model=Model(source="toy", family="toy", weights=Weights(source="random (seed 0)")),
        recipe={},
        precision="fp32",
        opset=20,
        batch=Batch(min=1, opt=1, max=8),
        graphs=(
            Graph(
                name="step",
                file="step.onnx",
                inputs=(*given, *(TensorInfo(name=one, dtype="float32", shape=shape) for one in caches)),
                outputs=(
                    TensorInfo(name="y", dtype="float32", shape=("batch", 1, width)),
                    *(TensorInfo(name=f"new_{one}", dtype="float32", shape=shape) for one in caches),
                ),
            ),
        ),
        states=tuple(
            State(
                graph="step",
                input=one,
                output=f"new_{one}",
                shape=shape,
                dtype="float32",
                initial={"fill": 0.0},  # written out, so that a step reads memory and not one page of zeros
            )
            for one in caches
        ),
        preprocess={"kind": "tensors"},
    )
    return write_bundle(folder, manifest, {"step.onnx": model.SerializeToString()})


def _toy(layers: int, slots: int, width: int) -> onnx.ModelProto:
    generator = np.random.default_rng(0)
    weights, nodes = [], []

    def weight(name: str, value: Array) -> str:
        weights.append(numpy_helper.from_array(value, name))
        return name

    def node(op_type: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op_type, list(inputs), [output], name=output, **attributes))
        return output

    heads = weight("heads", np.array([0, 1, 1, width], np.int64))
    flat = weight("flat", np.array([0, 1, width], np.int64))
    slot = weight("slot", np.arange(slots, dtype=np.int64).reshape(1, 1, 1, slots))
    column = node("Unsqueeze", ["position", weight("last_axes", np.array([1, 2, 3], np.int64))], "column")
    seen = node("LessOrEqual", [slot, column], "seen")
    bias = node(
        "Where",
        [seen, weight("zero", np.zeros((), np.float32)), weight("never", np.full((), -1e9, np.float32))],
        "bias",
    )
    x = "x"
    for layer in range(layers):
        rows = {}
        for what in "qkv":
            matrix = weight(f"w{what}{layer}", generator.normal(0, width**-0.5, (width, width)).astype(np.float32))
            made = node("MatMul", [x, matrix], f"{what}_flat{layer}")
            rows[what] = node("Reshape", [made, heads], f"{what}_row{layer}")
        for what in "kv":
            nodes.append(
                helper.make_node(
                    "TrtcKVAppend",
                    [f"{what}{layer}", rows[what], "position"],
                    [f"new_{what}{layer}"],
                    name=f"append_{what}{layer}",
                    domain=DOMAIN,
                    layout=0,
                    sinks=0,
                    plugin_version="1",
                    plugin_namespace=DOMAIN,
                )
            )
        turned = node("Transpose", [f"new_k{layer}"], f"turned{layer}", perm=[0, 1, 3, 2])
        scores = node("Add", [node("MatMul", [rows["q"], turned], f"scores{layer}"), bias], f"masked{layer}")
        shares = node("Softmax", [scores], f"shares{layer}", axis=-1)
        mixed = node(
            "Reshape", [node("MatMul", [shares, f"new_v{layer}"], f"mixed{layer}"), flat], f"mixed_flat{layer}"
        )
        x = node("Add", [x, mixed], "y" if layer == layers - 1 else f"x{layer}")
    caches = [f"{what}{layer}" for layer in range(layers) for what in "kv"]

    def value(name: str, shape: Sequence[int | str], number: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, number, shape)

    cache: list[int | str] = ["batch", 1, slots, width]
    graph = helper.make_graph(
        nodes,
        "step",
        [
            value("x", ["batch", 1, width]),
            value("position", ["batch"], TensorProto.INT64),
            *(value(one, cache) for one in caches),
        ],
        [value("y", ["batch", 1, width]), *(value(f"new_{one}", cache) for one in caches)],
        weights,
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


class _Clock:
    """ONNX Runtime's session, with the time that is spent in it."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.ns = 0

    def run_with_iobinding(self, binding: Any) -> None:
        begin = time.perf_counter_ns()
        self._session.run_with_iobinding(binding)
        self.ns += time.perf_counter_ns() - begin

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


def token(number: int, width: int = WIDTH, batch: int = 1) -> dict[str, Array]:
    """The inputs of a step: the token's place, and numbers that follow from it."""
    x = np.random.default_rng(number).normal(size=(batch, 1, width)).astype(np.float32)
    return {"x": x, "position": np.full(batch, number, np.int64)}


def _timed(session: Session, steps: int) -> dict[str, Any]:
    """Steps in a row, and what of each was spent outside ONNX Runtime."""
    states = session.states
    inputs = [token(number) for number in range(steps + 4)]
    for number in range(4):
        session.run(inputs[number])
    clock: Any = session.loaded.graphs["step"].executable
    clock.session = _Clock(clock.session)
    places = {info.name: info.addresses for info in states.infos()}
    whole, outside = [], []
    for feed in inputs[4:]:
        before, begin = clock.session.ns, time.perf_counter_ns()
        session.run(feed)
        took = time.perf_counter_ns() - begin
        whole.append(took)
        outside.append(took - (clock.session.ns - before))
    if {info.name: info.addresses for info in states.infos()} != places:
        raise InternalError("A state has moved, so it was copied.")
    updates = {info.update for info in states.infos()}
    return {
        "update": ", ".join(sorted(updates)),
        "step_us": statistics.median(whole) / 1000,
        "outside_us": statistics.median(outside) / 1000,
        "outside_p99_us": float(np.percentile(outside, 99)) / 1000,
        "outside_share": statistics.median(outside) / statistics.median(whole),
        "places_per_state": max(len(each) for each in places.values()),
    }


def _in_turns(bundle: Bundle, steps: int) -> bool:
    """Eight States on one session, each at another place in another sequence, against a session for each."""
    with Session.open(bundle, threads=1, spin=False, native=True) as session:
        many = [session.new_states() for _ in range(STREAMS)]
        mixed = [
            [session.run(_shifted(number, stream), states)["y"] for stream, states in enumerate(many)]
            for number in range(steps)
        ]
    for stream in range(STREAMS):
        with Session.open(bundle, threads=1, spin=False, native=True) as alone:
            for number in range(steps):
                if not np.array_equal(alone.run(_shifted(number, stream))["y"], mixed[number][stream]):
                    raise InternalError(f"The sequence {stream} differs at step {number} from a session of its own.")
    return True


def _shifted(number: int, stream: int) -> dict[str, Array]:
    return {**token(100 * stream + number), "position": np.array([number + stream], np.int64)}


def _growth(session: Session, steps: int) -> int:
    """By how many bytes the resident memory grew over the steps, after the first hundredth of them."""
    begin = 0
    for number in range(steps):
        if number == steps // 100:
            begin = _resident()
        session.run(token(number))
    return _resident() - begin


def _resident() -> int:
    text = Path("/proc/self/statm").read_text(encoding="ascii")
    return int(text.split()[1]) * 4096


if __name__ == "__main__":
    sys.exit(main())
