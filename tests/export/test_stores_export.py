"""Each store by itself, from the command line: the bundle is verified, and generates what torch says."""

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
