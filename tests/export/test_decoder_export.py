"""A language model of a directory becomes a bundle on the command line, and the bundle says what transformers says."""

import json
import math
import re
import struct
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.models.decoders import expected, reference, saved, text
from tests.typed_commands import Typed
from trt_compress.errors import UnsupportedError
from trt_compress.export import room
from trt_compress.export.api import export_model
from trt_compress.export.check import preflight
from trt_compress.export.proof import answers
from trt_compress.export.questions import Questions
from trt_compress.format.bundle import Bundle
from trt_compress.models.hosts.base import Scenario
from trt_compress.models.hosts.decoder_families import read_config
from trt_compress.models.hosts.reading import ReadingOptions
from trt_compress.models.hosts.registry import load_host
from trt_compress.runtime.sequences import Sequences
from trt_compress.runtime.session import Session

CONTEXT, CHUNK = 128, 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved("gemma2", tmp_path_factory.mktemp("gemma2"))


@pytest.fixture(scope="module")
def bundle(commands: Typed, folder: Path) -> Path:
    """A Gemma 2 with a ring, a linear cache that has to grow, caps, a tied head."""
    output = folder / "bundle"
    options = ("--context", CONTEXT, "--chunk", CHUNK, "--batch", "1:2:4")
    ended = commands("export", f"hf:{folder}", *options, "-o", output, within=300)
    assert ended.code == 0, ended.err
    return output


def test_logits_of_a_bundle_are_those_of_transformers(bundle: Path) -> None:
    long, short = text(96), text(50, seed=2)
    wanted = [expected("gemma2", tokens[None])[0].numpy() for tokens in (long, short)]
    with Session.open(bundle) as session:
        sequences = Sequences(session, batch=2)
        found = [sequences.read([long[:64].numpy(), short[:18].numpy()])]
        found += [sequences.step([int(long[64 + number]), int(short[18 + number])]) for number in range(32)]
    for row, first in enumerate((63, 17)):
        np.testing.assert_allclose([each[row] for each in found], wanted[row][first : first + 33], atol=1e-4)


def test_a_bundle_scores_a_text(bundle: Path) -> None:
    tokens = text(70)
    wanted = expected("gemma2", tokens[None])[0, :-1].log_softmax(dim=-1).gather(1, tokens[1:, None])[:, 0]
    with Session.open(bundle) as session:
        (found,) = Sequences(session).score([tokens.numpy()])
    np.testing.assert_allclose(found, wanted.numpy(), atol=1e-4)


def test_the_manifest_says_how_it_is_cut(bundle: Path) -> None:
    manifest = Bundle.open(bundle).manifest
    states = {state.name: state for state in manifest.states if state.graph == "step"}
    assert states["keys_0"].shape == ("batch", 2, 24 + CHUNK - 1, 32)
    assert states["keys_1"].shape == ("batch", 2, "slots", 32)
    assert manifest.lengths["slots"].max == CONTEXT and manifest.lengths["time"].max == CHUNK
    assert manifest.recipe["context"] == CONTEXT and manifest.recipe["chunk"] == CHUNK
    assert [graph.role for graph in manifest.graphs] == ["step", "score"]
    error = None if manifest.verification is None else manifest.verification.max_abs_error
    assert error is not None and error < 1e-4


def test_caches_are_written_in_place(bundle: Path) -> None:
    nodes = onnx.load(bundle / "step.onnx", load_external_data=False).graph.node
    appends = {node.output[0]: node.input[0] for node in nodes if node.op_type == "TrtcKVAppend"}
    assert appends == {f"{what}_{layer}_out": f"{what}_{layer}_in" for what in ("keys", "values") for layer in (0, 1)}


def test_both_graphs_share_their_weights(bundle: Path) -> None:
    numbers = sum(part.numel() for part in reference("gemma2").parameters())
    assert (bundle / "weights.bin").stat().st_size < 4 * numbers + (1 << 20)


def test_mistakes_are_said_before_anything_is_loaded(commands: Typed, folder: Path, tmp_path: Path) -> None:
    def refused(*options: str) -> str:
        ended = commands("export", f"hf:{folder}", "-o", tmp_path / "b", *options)
        assert ended.is_one_sentence and not (tmp_path / "b").exists()
        return ended.err

    assert f"--context 1024 is more than the 512 tokens that hf:{folder} was made for" in refused("--context", "1024")
    assert "--chunk 65 is more than the context of 64 tokens" in refused("--context", "64", "--chunk", "65")
    assert "cache_dtype 'int8' is not known" in refused("--cache-dtype", "int8")
    assert "holds its tensors itself; leave --weights out" in refused("--weights", str(folder / "model.safetensors"))
    said = refused("--compress", "tome:num_merged=4")
    assert f"tome: acts at after_attention, but hf:{folder} offers only kv_cache, where cache policies act;" in said
    assert re.search(r"leave it out, or take a selector \(.*\bsnapkv\b.*\), a store \(.*\bplain\b.*\bkivi\b", said)
    assert "evit" not in said


@pytest.mark.parametrize(("spec", "kind"), [("tome:num_merged=4", "after_attention"), ("kivi", "kv_cache")])
def test_where_every_layer_has_a_window_no_policy_is_recommended(
    commands: Typed, tmp_path: Path, spec: str, kind: str
) -> None:
    model = f"hf:{saved('mistral', tmp_path)}"
    ended = commands("export", model, "--compress", spec, "-o", tmp_path / "b")
    assert (
        ended.is_one_sentence
        and f"acts at {kind}, but {model} keeps a sliding window or checkpoints in every layer" in ended.err
    )


def test_a_model_that_no_memory_holds_is_refused_unread(commands: Typed, folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text()) | {"intermediate_size": 1 << 30}
    (tmp_path / "config.json").write_text(json.dumps(config))
    start, tensors = 0, dict[str, dict[str, object]]()
    for name, shape in read_config(config, name="huge").tensors().items():
        end = start + 4 * math.prod(shape)
        tensors[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
        start = end
    header = json.dumps(tensors).encode()
    with (tmp_path / "model.safetensors").open("wb") as file:  # full of holes: it takes no room
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + start)
    ended = commands("export", f"hf:{tmp_path}", "-o", tmp_path / "b")
    assert ended.code == 2 and ended.is_one_sentence and not (tmp_path / "b").exists()
    assert f"hf:{tmp_path} takes {start / 2**30:.1f} GiB in memory, as float32, and " in ended.err
    assert " are free; take a smaller model, or a machine with more memory." in ended.err


def test_an_export_that_no_memory_holds_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = read_config(json.loads((folder / "config.json").read_text()), name="tiny")
    size = sum(4 * math.prod(shape) for shape in config.tensors().values())
    monkeypatch.setattr(room, "available_bytes", lambda: 3 * size)  # each of two graphs is held twice
    with pytest.raises(UnsupportedError, match=r"at least .* besides, in fp32 .* are free; give --verify-layers N to "):
        export_model(f"hf:{folder}", output=tmp_path / "b")
    with pytest.raises(UnsupportedError, match="are free; take a machine with more"):
        monkeypatch.setattr(room, "available_bytes", lambda: 100)
        export_model(f"hf:{folder}", output=tmp_path / "b")
    assert not (tmp_path / "b").exists()
    assert export_model(f"hf:{folder}", output=tmp_path / "b", dry_run=True).path is None  # takes nothing besides


def test_the_first_layers_are_verified_by_the_procedure_too(bundle: Path, folder: Path) -> None:
    host = load_host(f"hf:{folder}")
    assert host.read_as is not None
    graphs = host.read_as(ReadingOptions(context=CONTEXT, chunk=CHUNK), "fp32").attach(())
    short = [graph.layers.first(1) for graph in graphs if graph.layers is not None]
    prompt, steps = [text(20).numpy()], [text(3).numpy()]
    questions = Questions(scenarios=[Scenario(prompt=prompt, steps=steps)])
    manifest = Bundle.open(bundle).manifest
    found = answers([(graph, graph.module) for graph in short], manifest, questions)
    assert [len(found[name]) for name in ("step", "score")] == [2 + 3, 2]
    assert all({"logits", "keys_0_out", "values_0_out"} == set(outputs) for outputs in found["step"])


def test_nothing_stands_in_the_way_of_a_jetson(bundle: Path) -> None:
    found = preflight(bundle, target="jetson-orin-jp6")
    assert {(finding.severity, finding.rule) for finding in found} == {("warning", "needs-plugin")}
