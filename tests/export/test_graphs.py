"""Models of any number of inputs, outputs, states and graphs: exported, proven step by step, run and built."""

import errno
import json
import os
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from tests.export.toy_hosts import HOSTS
from trt_compress.errors import BundleError, ConfigError, ExportError, GateError, ShapeError
from trt_compress.export import api, engines, pipeline
from trt_compress.export.bundle import write_bundle
from trt_compress.export.course import initial_state
from trt_compress.export.trace import onnx_from_graph
from trt_compress.models.hosts.base import GraphSpec, TensorSpec
from trt_compress.runtime import Bundle, Session

Export = Callable[..., Path]


def know(patch: pytest.MonkeyPatch, name: str) -> None:
    """Make `zoo:toy` the name of a toy host."""
    patch.setattr(api, "check_model", lambda model, weights, reading: None)
    patch.setattr(pipeline, "load_host", lambda model, **_: HOSTS[name]())


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Export a toy host, once for each set of options."""
    folder = tmp_path_factory.mktemp("toys")

    @cache
    def export(name: str, **options: Any) -> Path:
        with pytest.MonkeyPatch.context() as patch:
            know(patch, name)
            output = folder / f"{name}{len(list(folder.iterdir()))}"
            api.export_model("zoo:toy", output=output, **{"batch": "1:2:3", **options})
        return output

    return export


@pytest.fixture(autouse=True)
def toys_by_name(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let `verify` find the toy host again."""
    return lambda name: know(monkeypatch, name)


def torch_stream(graph: GraphSpec, steps: list[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
    """The model in torch, step by step, with its states carried by hand."""
    lengths = {"batch": len(next(iter(steps[0].values())))}
    states = [torch.from_numpy(initial_state(state, lengths)) for state in graph.states]
    results = []
    for step in steps:
        with torch.no_grad():
            found = graph.module(*(torch.from_numpy(step[spec.name]) for spec in graph.inputs), *states)
        found = found if isinstance(found, tuple) else (found,)
        states = list(found[len(graph.outputs) :])
        results.append({spec.name: x.numpy() for spec, x in zip(graph.outputs, found, strict=False)})
    return results


def frames(count: int, batch: int = 2, seed: int = 0) -> list[dict[str, np.ndarray]]:
    generator = np.random.default_rng(seed)
    return [{"frame": generator.standard_normal((batch, 12, 8), dtype=np.float32)} for _ in range(count)]


def chunks(*lengths: int, batch: int = 2) -> list[dict[str, np.ndarray]]:
    generator = np.random.default_rng(0)
    return [
        {
            "chunk": generator.standard_normal((batch, length, 8), dtype=np.float32),
            "voice": generator.integers(0, 4, batch),
        }
        for length in lengths
    ]


def assert_same(got: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert list(got) == list(wanted)
    for name, value in wanted.items():
        np.testing.assert_allclose(got[name], value, rtol=0, atol=1e-5, err_msg=name)


# ---- export and verification ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "steps"), [("level", [1, 2, 3]), ("growing", [1, 2, 3]), ("codec", [0])])
def test_every_output_and_state_is_compared_at_every_step(toy: Export, name: str, steps: list[int]) -> None:
    report = json.loads((toy(name) / "verify.json").read_text())
    graphs = HOSTS[name]().attach(())
    wanted = [
        (graph.name, spec.name, batch, step)
        for graph in graphs
        for batch in (1, 2, 3)
        for step in steps
        for spec in graph.all_outputs
    ]
    assert [(c["graph"], c["name"], c["batch"], c["step"]) for c in report["outputs"]] == wanted
    assert report["passed"] and all(c["passed"] for c in report["outputs"])
    assert {c["tolerance"] for c in report["outputs"] if c["name"] in ("loudest", "codes")} <= {0.0}


def test_the_manifest_has_states_links_and_lengths(toy: Export) -> None:
    levels, growing, codec = (Bundle.open(toy(name)).manifest for name in ("levels", "growing", "codec"))
    assert [(s.graph, s.input, s.output, s.shape, s.initial, s.name) for s in levels.states] == [
        (graph, "mean_in", "mean_out", ("batch", 8), {"fill": 0.25}, "mean") for graph in ("k4", "k9")
    ]
    assert [(graph.name, graph.file) for graph in levels.graphs] == [("k4", "k4.onnx"), ("k9", "k9.onnx")]
    assert [(site.site, site.tokens_out) for site in levels.compression] == [("k4/frame", 4), ("k9/frame", 9)]
    assert levels.operators[0].nodes == 2
    assert [(i.name, i.dtype, i.shape) for i in growing.graphs[0].outputs] == [
        ("share", "float32", ("batch", "time", 8)),
        ("loudest", "int64", ("batch",)),
        ("heard", "float32", ("batch", "held_after", 8)),
    ]
    assert (growing.states[0].capacity, growing.states[0].shape) == (40, ("batch", "held", 8))
    assert growing.recipe["lengths"] == {"time": "1:5:9", "held": "0:10:40"}
    assert [(link.source, link.to) for link in codec.links] == [("encode.codes", "decode.codes")]
    assert codec.flops is not None and set(codec.flops["graphs"]) == {"encode", "decode"}


@pytest.mark.parametrize("name", list(HOSTS))
def test_a_bundle_passes_again(toy: Export, toys_by_name: Callable[[str], None], name: str) -> None:
    toys_by_name(name)
    assert api.verify(toy(name)).passed


def test_half_precision_of_a_graph_with_states_and_integers(toy: Export) -> None:
    bundle = toy("growing", precision="fp16", targets=("rtx",))
    (graph,) = Bundle.open(bundle).manifest.graphs
    assert [info.dtype for info in (*graph.inputs, *graph.outputs)].count("float32") == 4
    held = next(v for v in onnx.load(bundle / "model.onnx").graph.input if v.name == "past")
    assert held.type.tensor_type.elem_type == onnx.TensorProto.FLOAT


def forge(bundle: Path, output: Path, file: str, change: Callable[[onnx.ModelProto], None]) -> Path:
    opened = Bundle.open(bundle)
    model = onnx.load(opened.file(file))
    change(model)
    files: dict[str, bytes | Path] = {name: opened.file(name) for name in opened.manifest.files}
    write_bundle(output, opened.manifest, {**files, file: model.SerializeToString()})
    return output


def half_becomes(value: float) -> Callable[[onnx.ModelProto], None]:
    """The running mean forgets at another pace: a difference of the state alone, in the first step."""

    def change(model: onnx.ModelProto) -> None:
        for item in [*model.graph.initializer, *(a.t for n in model.graph.node for a in n.attribute if a.t.dims == [])]:
            if item.data_type == onnx.TensorProto.FLOAT and numpy_helper.to_array(item).shape == ():
                if float(numpy_helper.to_array(item)) == 0.5:
                    item.CopyFrom(numpy_helper.from_array(np.array(value, np.float32), item.name))

    return change


def test_a_wrong_state_is_found_in_the_step_and_graph_where_it_shows(
    toy: Export, toys_by_name: Callable[[str], None], tmp_path: Path
) -> None:
    forged = forge(toy("levels"), tmp_path / "forged", "k9.onnx", half_becomes(0.6))
    toys_by_name("levels")
    with pytest.raises(GateError, match=r"differ first at graph k9, output mean_out \(batch 1, step 1\)"):
        api.verify(forged)


def test_a_difference_that_grows_is_found_later(
    toy: Export, toys_by_name: Callable[[str], None], tmp_path: Path
) -> None:
    """Off by less than the tolerance in one step, by more in three: only states that are carried along show it."""
    forged = forge(toy("level"), tmp_path / "forged", "model.onnx", half_becomes(0.50003))
    toys_by_name("level")
    with pytest.raises(GateError, match=r"differ first at output mean_out \(batch \d, step [23]\)"):
        api.verify(forged)


def test_given_inputs_have_a_step_axis(toy: Export, toys_by_name: Callable[[str], None], tmp_path: Path) -> None:
    toys_by_name("level")
    np.savez(tmp_path / "frames.npz", frame=np.stack([step["frame"] for step in frames(5)]))
    report = api.verify(toy("level"), inputs=tmp_path / "frames.npz")
    assert [(check.name, check.step) for check in report.outputs][-2:] == [("score", 5), ("mean_out", 5)]
    np.savez(tmp_path / "frame.npz", frame=frames(1)[0]["frame"])
    with pytest.raises(ShapeError, match=r"it must be float32 \[steps, batch, 12, 8\]"):
        api.verify(toy("level"), inputs=tmp_path / "frame.npz")


def test_lengths_are_of_the_recipe(toy: Export, toys_by_name: Callable[[str], None], tmp_path: Path) -> None:
    toys_by_name("growing")
    recipe = tmp_path / "long.toml"
    recipe.write_text('model = "zoo:toy"\n[lengths]\ntime = "1:6:30"\n')
    manifest = api.export_model(str(recipe), output=tmp_path / "long", dry_run=True).manifest
    assert manifest.recipe["lengths"] == {"time": "1:6:30", "held": "0:10:40"}
    recipe.write_text('model = "zoo:toy"\n[lengths]\ntokens = "3"\n')
    with pytest.raises(ConfigError, match=r"lengths: 'tokens' is no symbol of zoo:toy; it has time, held"):
        api.export_model(str(recipe), output=tmp_path / "other", dry_run=True)
    recipe.write_text('model = "zoo:toy"\n[lengths]\ntime = "5:3"\n')
    with pytest.raises(ConfigError, match=r"time='5:3' is not a range of lengths; give one number or MIN:OPT:MAX"):
        api.export_model(str(recipe), output=tmp_path / "other", dry_run=True)


# ---- sessions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "steps"), [("level", frames(4)), ("growing", chunks(5, 1, 9, 3)), ("growing", chunks(1, batch=1))]
)
def test_a_session_computes_what_torch_computes_in_a_stream(
    toy: Export, name: str, steps: list[dict[str, np.ndarray]]
) -> None:
    (graph,) = HOSTS[name]().attach(())
    with Session.open(toy(name)) as session:
        for _ in range(2):
            for step, wanted in zip(steps, torch_stream(graph, steps), strict=True):
                assert_same(session.run(step), wanted)
            session.reset()


def test_levels_carry_on_one_state(toy: Export) -> None:
    graphs = {graph.name: graph for graph in HOSTS["levels"]().attach(())}
    steps, chosen = frames(5), ["k4", "k9", "k9", "k4", "k9"]
    mean = torch.full((2, 8), 0.25)
    with Session.open(toy("levels")) as session:
        assert session.graphs == ("k4", "k9")
        assert list(session.inputs_of("k4")) == ["frame"] and list(session.outputs_of("k9")) == ["score"]
        for step, name in zip(steps, chosen, strict=True):
            with torch.no_grad():
                score, mean = graphs[name].module(torch.from_numpy(step["frame"]), mean)
            assert_same(session.run_graph(name, step), {"score": score.numpy()})
        with pytest.raises(ConfigError, match=r"k4, k9 carry on the same state 'mean'.*call run_graph\(NAME, inputs\)"):
            session.run({"k4.frame": steps[0]["frame"], "k9.frame": steps[0]["frame"]})
        with pytest.raises(ConfigError, match=r"graph 'k5' is not known; there are k4, k9"):
            session.run_graph("k5", steps[0])


def test_one_graph_may_be_opened_alone(toy: Export) -> None:
    x = np.random.default_rng(0).standard_normal((2, 4, 8), dtype=np.float32)
    gain = np.array([2, 3], np.float32)
    with Session.open(toy("codec"), graphs=["encode"]) as encoder, Session.open(toy("codec")) as whole:
        codes = encoder.run({"x": x})["codes"]
        assert list(whole.inputs) == ["encode.x", "decode.gain"] and list(whole.outputs) == ["decode.y"]
        y = whole.run({"encode.x": x, "decode.gain": gain})["decode.y"]
        assert_same(whole.run_graph("decode", {"codes": codes, "gain": gain}), {"y": y})
        assert_same(whole.run_graph("encode", {"x": x}), {"codes": codes})
        with pytest.raises(ConfigError, match="Input 'codes' is missing"):
            whole.run_graph("decode", {"gain": gain})
    with pytest.raises(ConfigError, match=r"graphs='encode'; give a list of at least one name"):
        Session.open(toy("codec"), graphs="encode")


# ---- engines --------------------------------------------------------------------------------------------------------


def test_every_dynamic_input_has_a_profile(toy: Export) -> None:
    pytest.importorskip("tensorrt_rtx")
    (engine,) = api.build_engines(toy("growing", targets=("rtx",)), target="rtx")
    assert not isinstance(engine, api.BuildPlan)
    assert engine.profile == {
        "chunk": {"min": (1, 1, 8), "opt": (2, 5, 8), "max": (3, 9, 8)},
        "voice": {"min": (1,), "opt": (2,), "max": (3,)},
        "past": {"min": (1, 0, 8), "opt": (2, 10, 8), "max": (3, 40, 8)},
    }


def test_every_graph_gets_an_engine(toy: Export) -> None:
    pytest.importorskip("tensorrt_rtx")
    bundle = toy("levels", targets=("rtx",))
    with pytest.raises(ConfigError, match=r"has the graphs k4, k9, and build makes one engine; call build_engines"):
        api.build(bundle, target="rtx")
    engines = api.build_engines(bundle, target="rtx")
    assert [engine.file for engine in engines] == ["engines/rtx/k4.engine", "engines/rtx/k9.engine"]
    assert [engine.graph for engine in Bundle.open(bundle).manifest.engines] == ["k4", "k9"]


def test_a_bundle_that_takes_no_engine_is_refused_before_one_is_built(
    toy: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, make = toy("growing", targets=("rtx",)), os.mkdir

    def read_only(path: str | Path, *mode: int) -> None:
        if bundle in Path(path).parents:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        make(path, *mode)

    monkeypatch.setattr(os, "mkdir", read_only)
    monkeypatch.setattr(engines, "build_engine_file", lambda *args, **settings: pytest.fail("it was built"))
    with pytest.raises(BundleError, match=r"cannot be written \(Read-only file system at .*Nothing was changed"):
        api.build_engines(bundle, target="rtx", force=True)


def test_targets_that_need_another_form_get_it_of_every_graph(toy: Export) -> None:
    bundle = toy("levels", targets=("jetson-orin-jp6",), opset=20)
    lowered = Bundle.open(bundle).manifest.lowered
    assert [(item.graph, item.file) for item in lowered] == [
        (name, f"{name}.jetson-orin-jp6.onnx") for name in ("k4", "k9")
    ]


@pytest.mark.parametrize(
    ("untrue", "says"),
    [
        (TensorSpec(name="score", shape=("batch", 7)), r"float32 \['batch', 7\]"),
        (TensorSpec(name="score", shape=("batch", 5), dtype="int64"), r"int64 \['batch', 5\]"),
        (TensorSpec(name="score", shape=("batch", 5, 1)), r"float32 \['batch', 5, 1\]"),
    ],
)
def test_outputs_are_what_the_host_says(untrue: TensorSpec, says: str) -> None:
    (graph,) = HOSTS["level"]().attach(())
    told = replace(graph, outputs=(untrue, *graph.outputs[1:]))
    fact = r"graph 'model': output 'score' is float32 \['batch', 5\] in ONNX"
    with pytest.raises(ExportError, match=f"{fact}, and its host says {says}; correct the host"):
        onnx_from_graph(told, told.module.eval(), max_batch=3, opset=20)
