"""Each store by itself, from the command line: the bundle is verified, generates, and says what its cache takes."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.models.cache.runs import CacheRun
from tests.models.decoders import saved, text
from tests.typed_commands import Typed
from trt_compress.format.bundle import Bundle
from trt_compress.methods import CompressorSpec, parse_spec
from trt_compress.methods.artifact import read_artifact
from trt_compress.models.hosts.decoder import Decoder
from trt_compress.models.hosts.decoder_families import read_config
from trt_compress.models.hosts.decoder_host import read_decoder
from trt_compress.models.language.directory import Directory
from trt_compress.runtime.sequences import Sequences
from trt_compress.runtime.session import Session

STORES = ("int8", "int4:group=8", "zipcache:bits=8,fewer_bits=4,every=12,window=4", "kvquant:bits=3,outliers=0.05")
NEW = 30  # tokens that are generated


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module", params=STORES)
def made(request: pytest.FixtureRequest, commands: Typed, folder: Path) -> tuple[str, Path]:
    """A spec string and the bundle with it."""
    spec: str = request.param
    output = folder / spec.partition(":")[0]
    if spec.startswith("kvquant"):
        data, tables = folder / "data.npz", folder / "tables.safetensors"
        np.savez(data, prompt=np.stack([text(60, seed=seed).numpy() for seed in range(20, 30)]))
        ended = commands("calibrate", f"hf:{folder}", "--compress", spec, "--data", data, "-o", tables, within=600)
        assert ended.code == 0, ended.err
        spec += f",tables={tables}"
    options = ("--context", 160, "--chunk", 32, "--batch", "1:1:2", "--compress", spec)
    ended = commands("export", f"hf:{folder}", *options, "-o", output, within=1500)
    assert ended.code == 0, ended.err
    return spec, output


def torch_run(folder: Path, spec: str) -> CacheRun:
    source = Directory(folder)
    decoder: Decoder = read_decoder(read_config(source.config, name="llama"), source)
    return CacheRun(decoder.eval(), [with_content(each) for each in parse_spec(spec)], context=160, chunk=32)


def with_content(spec: CompressorSpec) -> CompressorSpec:
    """With its artifacts read."""
    read = {
        option: read_artifact(file, method=spec.name, option=option)[0]
        for option, file in spec.config.artifacts.items()
    }
    return replace(spec, config=replace(spec.config, **read))


def test_tables_of_another_model_are_refused(made: tuple[str, Path], commands: Typed, tmp_path: Path) -> None:
    spec, _ = made
    if not spec.startswith("kvquant"):
        pytest.skip("it takes no artifact")
    other = saved("qwen3", tmp_path)
    ended = commands("export", f"hf:{other}", "--compress", spec, "-o", tmp_path / "refused", within=300)
    assert ended.code == 2 and "was made for other weights than these" in ended.err
    assert not (tmp_path / "refused").exists()


def test_a_store_alone(made: tuple[str, Path], folder: Path, commands: Typed) -> None:
    """What torch says of the same tokens while caches grow and are packed; and the command writes those tokens."""
    spec, bundle = made
    manifest = Bundle.open(bundle).manifest
    assert manifest.verification is not None and manifest.verification.passed
    reference, prompt = torch_run(folder, spec), text(70)
    expected = [reference.read([prompt.tolist()])[0]]
    while len(expected) < NEW:
        expected.append(reference.step([int(expected[-1].argmax())])[0])
    wanted = [int(logits.argmax()) for logits in expected]
    with Session.open(bundle) as session:
        one = Sequences(session)
        found = [one.read([prompt.numpy()])[0], *(one.step([token])[0] for token in wanted[:-1])]
        if "flush" in reference.runs:
            assert one.upkeeps == reference.runs["flush"] > 1
    logits = torch.stack(expected)  # some codes of 4 bits are others, where rounding decides
    np.testing.assert_allclose(found, logits, rtol=0, atol=1e-2 * float(logits.abs().max()))
    lines, answers = folder / "lines.jsonl", folder / "answers.jsonl"
    lines.write_text(json.dumps({"tokens": prompt.tolist(), "temperature": 0.0, "max_new": NEW}))
    ended = commands("generate", bundle, "--input", lines, "--ignore-stop-ids", "-o", answers)
    assert ended.code == 0, ended.err
    (answer,) = map(json.loads, answers.read_text().splitlines())
    assert answer["tokens"] == wanted


def test_bytes_of_a_prompt_are_those_of_its_arrays(made: tuple[str, Path]) -> None:
    """The manifest says what a context takes; from it and the bytes of a token, what a prompt of 64 takes."""
    _, bundle = made
    manifest = Bundle.open(bundle).manifest
    (site,) = (each for each in manifest.compression if each.site == "step/cache.0")
    assert site.bytes is not None and site.bytes_per_token is not None
    with Session.open(bundle) as session:
        one = Sequences(session)
        one.read([text(100).numpy()])
        capacities = {each.symbol: each.used for each in manifest.capacities}
        stored = 0.0
        for state in {each.key: each for each in manifest.states if each.layer == 0}.values():
            array = one.states.value(state.key)
            assert array is not None
            axis = next((place for place, dim in enumerate(state.shape) if place and isinstance(dim, str)), None)
            used = 1.0
            if axis is not None:
                counter = capacities[str(state.shape[axis])]
                length = one.states.value(counter) if counter else np.array(one.seen)
                assert length is not None
                used = float(length[0]) / array.shape[axis]
            stored += array.nbytes * used
    assert stored == pytest.approx(site.bytes - 60 * site.bytes_per_token, rel=0.01)
