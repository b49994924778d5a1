"""Files that others wrote, damaged or made to do harm: refused in a sentence of ours, or read."""

import io
import json
import random
import resource
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.attack.manifest_bundles import classifier
from tests.attack.mutations import mutated, mutated_text
from trt_compress.errors import ConfigError, InternalError, StreamError, TrtCompressError
from trt_compress.export.bundle import write_bundle
from trt_compress.export.findings import recorded_findings
from trt_compress.foreign import reading
from trt_compress.format.bundle import Bundle
from trt_compress.format.manifest import TensorInfo
from trt_compress.models.hosts.hf_directory import read_json, weight_files
from trt_compress.models.hosts.weights import read_tensors
from trt_compress.runtime.arrays import array_of
from trt_compress.runtime.labelled.classes import read_names
from trt_compress.runtime.labelled.files import FileReader
from trt_compress.runtime.labelled.label_files import from_labels
from trt_compress.runtime.measure.power.lines import gpus_from_nvidia_smi, rails_from_tegrastats
from trt_compress.runtime.stream.images import load_npz
from trt_compress.runtime.stream.quality import Labels
from trt_compress.tools.bench.bundle import load_inputs
from trt_compress.tools.report.read import load

TEGRASTATS = "RAM 2448/31919MB SWAP 0/15959MB CPU [1%@1190,0%@1190] GPU 0mW/0mW VDD_IN 4800mW/4750mW CPU@45C"
FINDING = {"severity": "error", "rule": "r", "node": "n", "message": "m", "fix": "f"}
LABELS = '{"file": "a.png", "label": 7}\n{"file": "b.png", "label": "3"}\n'
Read = Callable[[Path], object]


def _jsons() -> dict[str, tuple[Any, str, Read]]:
    """JSON documents: a good one, its name, and who reads it."""

    def index(path: Path) -> object:
        return weight_files(path.parent)

    return {
        "config": ({"model_type": "whisper", "d_model": 16, "id2label": {"0": "a"}}, "config.json", read_json),
        "index": ({"weight_map": {"a": "model-1.safetensors"}}, "model.safetensors.index.json", index),
        "names": (["one", "two", "three"], "names.json", lambda path: read_names(path, 3)),
        "names by number": ({"one": 0, "two": 1}, "names.json", lambda path: read_names(path, None)),
        "bench": ({"result_version": 1, "sides": [{"role": "bundle"}]}, "bench.json", load),
    }


def _bytes(folder: Path) -> dict[str, tuple[bytes, str, Read]]:
    """Files of bytes."""
    npz, npy, pickled = io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.savez_compressed(npz, x=np.arange(40, dtype=np.float32), timestamp_ns=np.arange(3))
    np.save(npy, np.ones((3, 4), np.float32))
    torch.save({"state_dict": {"a.weight": torch.ones(3, 4)}}, pickled)
    save_file({"a.weight": torch.ones(3, 4)}, folder / "good.safetensors")
    reader = FileReader("image", {}, TensorInfo(name="x", dtype="float32", shape=(1, 3, 4, 4)), lambda data: {})

    def constant(path: Path) -> object:
        with reading(f"'{path}'", "export the bundle again"):
            return array_of(path.read_bytes())

    def labelled(path: Path) -> object:
        return from_labels(path, folder, reader, names=None, num_classes=10)

    def power(path: Path) -> object:
        text = path.read_text(errors="replace")
        return rails_from_tegrastats(text), gpus_from_nvidia_smi(text)

    return {
        "scene": (npz.getvalue(), "a.npz", lambda path: load_npz(str(path))),
        "inputs": (npz.getvalue(), "a.npz", load_inputs),
        "constant": (npy.getvalue(), "a.npy", constant),
        "safetensors": ((folder / "good.safetensors").read_bytes(), "a.safetensors", read_tensors),
        "checkpoint": (pickled.getvalue(), "a.pt", read_tensors),
        "labels": (LABELS.encode(), "l.jsonl", labelled),
        "labels as a table": (b"file,label\na.png,7\nb.png,3\n", "l.csv", labelled),
        "labels of frames": (b'{"id": 0, "label": 7}\n{"id": 1, "label": [3, 4]}\n', "f.jsonl", Labels.read),
        "power": (TEGRASTATS.encode(), "t.log", power),
    }


def _spoilt(data: bytes, rng: random.Random) -> bytes:
    raw = bytearray(data)
    kind = rng.randrange(6)
    place = rng.randrange(len(raw) + 1)
    if kind == 0:
        return bytes(raw[:place])
    if kind == 1:
        pieces = (b"9" * 5000, b"\0", b"\xff", b'"', b"[" * 9000, b"-1", b"1e999", b"x" * 200_000, b"\\ud800", b"NaN")
        raw[place:place] = rng.choice(pieces)
    elif kind == 2:
        raw[place : place + rng.choice((1, 4, 40))] = bytes(rng.randrange(256) for _ in range(rng.choice((1, 4, 8))))
    else:
        for _ in range(rng.choice((1, 1, 3, 20))):
            raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    return bytes(raw)


@pytest.mark.filterwarnings("ignore")  # what libraries remark on damaged files
def test_a_damaged_file_is_refused_in_a_sentence_or_read(attack: Any, tmp_path: Path) -> None:
    rng = attack.random(23)
    seen: Counter[str] = Counter()
    foreign: list[str] = []
    jsons, files = _jsons(), _bytes(tmp_path)
    kinds = [*jsons, *files]
    for number in range(attack.count(700, 14_000)):
        kind = kinds[number % len(kinds)]
        if kind in jsons:
            document, name, read = jsons[kind]
            text = json.dumps(document)
            data = mutated_text(text, rng) if rng.random() < 0.3 else json.dumps(mutated(document, rng)).encode()
        else:
            good, name, read = files[kind]
            data = _spoilt(good, rng)
        path = tmp_path / name
        path.write_bytes(data)
        try:
            read(path)
            seen["read"] += 1
        except TrtCompressError as error:
            seen["refused"] += 1
            if isinstance(error, InternalError):
                foreign.append(f"{number} {kind}: {error}")
        except Exception as error:
            foreign.append(f"{number} {kind}: {error!r:.300}")
        path.unlink()
    attack.saw(foreign_errors=len(foreign), **seen)
    assert not foreign, f"{len(foreign)}\n" + "\n".join(foreign[:40])


def test_what_a_bundle_says_of_preflight_is_read_strictly(attack: Any, tmp_path: Path) -> None:
    rng = attack.random(24)
    good = {"trt-compress": "0.1.0", "targets": {"cpu": [], "rtx": [FINDING]}}
    manifest = Bundle.open(classifier(tmp_path / "b")).manifest
    held = {name: (tmp_path / "b" / name).read_bytes() for name in manifest.files}
    for _ in range(attack.count(20, 300)):
        content = json.dumps(mutated(good, rng)).encode()
        write_bundle(tmp_path / "b", manifest, {**held, "preflight.json": content}, force=True)
        try:
            recorded_findings(Bundle.open(tmp_path / "b"), "rtx")
        except TrtCompressError as error:
            assert not isinstance(error, InternalError)
    attack.saw(foreign_errors=0)


def _archive(path: Path, *, members: int = 1, header: bytes | None = None, zeros: int = 0) -> Path:
    """An archive of arrays of zeros, each compressed to almost nothing, with a header that may say anything."""
    if header is None:
        stated = io.BytesIO()
        np.lib.format.write_array_header_1_0(stated, {"descr": "<f4", "fortran_order": False, "shape": (zeros // 4,)})
        header = stated.getvalue()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(members):
            with archive.open(f"x{number}.npy", "w", force_zip64=True) as file:
                file.write(header)
                for _ in range(zeros >> 20):
                    file.write(bytes(1 << 20))
    return path


def _header(shape: str, kind: str = "'<f4'") -> bytes:
    text = f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


def test_an_archive_that_would_fill_the_memory_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    bomb = _archive(tmp_path / "bomb.npz", zeros=256 << 20)
    assert bomb.stat().st_size < 1 << 20
    with pytest.raises(StreamError, match=r"bomb.npz' cannot be read \('x0' would be unpacked from \d+ to \d+ bytes"):
        load_npz(str(bomb))
    with pytest.raises(ConfigError, match="would be unpacked"):
        load_inputs(bomb)
    many = _archive(tmp_path / "many.npz", members=10_001, header=_header("(0,)"))
    with pytest.raises(StreamError, match="it has 10001 members, and may have 10000"):
        load_npz(str(many))
    for shape, kind, message in (
        ("(1000000000000,)", "'<f4'", "says that it has the shape"),
        ("(-4,)", "'<f4'", "says that it has the shape"),
        ("(1,)", "'|O'", "holds objects of Python"),
    ):
        with pytest.raises(StreamError, match=message):
            load_npz(str(_archive(tmp_path / "says.npz", header=_header(shape, kind))))
        with pytest.raises(ValueError, match=message):
            array_of(_header(shape, kind))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10  # KiB
