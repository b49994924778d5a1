"""Files of a bundle that are swapped between the moment they are checked and the moment they are loaded.

A bundle that computes `y = x · w` holds ones; whoever swaps puts twos in their place, in a file of the same size. What
comes out of a session then says which of the two was loaded.
"""

import hashlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from itertools import cycle, product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto

from tests.attack.weights_outside import PLACES, SHAPE, bundle_of, graph_with, stored
from trt_compress import digest
from trt_compress.errors import BundleError, TrtCompressError
from trt_compress.export.check import preflight
from trt_compress.format import bundle as bundle_module
from trt_compress.runtime import onnx_source
from trt_compress.runtime.onnx_data import stored_outside
from trt_compress.runtime.onnx_source import copy_graph
from trt_compress.runtime.session import Session

ONES, TWOS = np.ones(SHAPE, np.float32), np.full(SHAPE, 2, np.float32)

Swap = Callable[[Path, bytes], None]


def by_rename(path: Path, content: bytes) -> None:
    aside = path.with_name(f".{path.name}.aside")
    aside.write_bytes(content)
    os.replace(aside, path)


def in_place(path: Path, content: bytes) -> None:
    with path.open("r+b") as file:
        file.write(content)


def cut_and_written(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def in_place_and_dated_back(path: Path, content: bytes) -> None:
    before = path.stat()
    in_place(path, content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def by_link(path: Path, content: bytes) -> None:
    outside = path.parents[1] / f"{path.name}.outside"
    outside.write_bytes(content)
    path.unlink()
    path.symlink_to(outside)


SWAPS = (by_rename, in_place, cut_and_written, in_place_and_dated_back, by_link)


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Let every file be one of those that are read through a descriptor."""

    def make() -> None:
        monkeypatch.setattr(bundle_module, "SMALL", 0)
        monkeypatch.setattr(onnx_source, "SMALL", 0)

    return make


def swapping_hash(monkeypatch: pytest.MonkeyPatch, sizes: dict[int, Callable[[], None]]) -> None:
    """After the hash of as many bytes was taken, swap."""

    class Hash:
        def __init__(self, data: bytes = b"") -> None:
            self._hash, self._size = hashlib.sha256(data), len(data)

        def update(self, data: Any) -> None:
            self._hash.update(data)
            self._size += len(data)

        def hexdigest(self) -> str:
            digest = self._hash.hexdigest()
            if self._size in sizes:
                sizes[self._size]()
            return digest

    class Hashlib:
        sha256 = Hash

    monkeypatch.setattr(digest, "hashlib", Hashlib)


def loaded(path: Path) -> float | None:
    """What a session multiplies by; None: it was refused."""
    try:
        with Session.open(path, threads=1, native=False) as session:
            x = np.ones(SHAPE, np.float32)
            values = {float(value) for _ in range(2) for value in np.unique(session.run({"x": x})["y"])}
    except BundleError:
        return None
    assert len(values) == 1, values
    return values.pop()


@pytest.mark.parametrize("place", ["inside", *PLACES])
@pytest.mark.parametrize("descriptors", [False, True], ids=["small", "large"])
def test_a_file_that_is_swapped_when_it_was_hashed_is_loaded_as_checked_or_refused(
    attack: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    large: Callable[[], None],
    place: str,
    descriptors: bool,
) -> None:
    if descriptors:
        large()
    unchecked = refused = 0
    for number in range(attack.count(1, 20)):
        for swap in SWAPS:
            folder = tmp_path / f"{number}-{swap.__name__}"
            honest, foreign = bundle_of(folder / "b", place, ONES), bundle_of(folder / "f", place, TWOS)
            targets: dict[int, Callable[[], None]] = {}
            for name, info in honest.manifest.files.items():
                content = foreign.read(name)
                assert len(content) == info.bytes

                def act(name: str = name, content: bytes = content, swap: Swap = swap, folder: Path = folder) -> None:
                    if not (folder / "b" / name).is_symlink():
                        swap(folder / "b" / name, content)

                targets[info.bytes] = act
            assert loaded(folder / "b") == 1 and loaded(folder / "f") == 2
            time.sleep(0.02)  # the clock of files is coarse on older kernels; a large file takes longer to hash
            with monkeypatch.context() as patched:
                swapping_hash(patched, targets)
                found = loaded(folder / "b")
            unchecked += found == 2
            refused += found is None
            shutil.rmtree(folder)
    attack.saw(loaded_unchecked=unchecked, refused=refused)
    assert unchecked == 0
    if not descriptors:
        assert refused == 0, "what is in memory cannot be changed any more, so there is nothing to refuse"


@pytest.mark.parametrize("place", ["inside", "initializer"])
def test_a_thread_that_swaps_all_the_time_never_gets_its_file_loaded(
    attack: Any, tmp_path: Path, large: Callable[[], None], place: str
) -> None:
    seconds = 1.5 if attack.count(1, 40) == 1 else 60.0
    honest, foreign = bundle_of(tmp_path / "b", place, ONES), bundle_of(tmp_path / "f", place, TWOS)
    (name,) = [n for n, info in honest.manifest.files.items() if info.sha256 != foreign.manifest.files[n].sha256]
    contents = [bundle.read(name) for bundle in (honest, foreign)]
    ended, swaps = threading.Event(), 0

    def swap() -> None:
        nonlocal swaps
        for content, pause in cycle(product(contents, (0.0, 0.0003, 0.002))):
            if ended.is_set():
                return
            by_rename(tmp_path / "b" / name, content)
            swaps += 1
            time.sleep(pause)

    thread = threading.Thread(target=swap)
    thread.start()
    found: list[float | None] = []
    try:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if len(found) == 20:
                large()
            found.append(loaded(tmp_path / "b"))
    finally:
        ended.set()
        thread.join()
    attack.saw(
        cases=len(found),
        swaps=swaps,
        loaded_unchecked=found.count(2.0),
        loaded=found.count(1.0),
        refused=found.count(None),
    )
    assert swaps > 10 and set(found) <= {1.0, None}


@pytest.mark.parametrize("swap", [None, by_rename, by_link], ids=["left alone", "renamed", "linked"])
def test_a_file_that_is_swapped_just_while_it_is_opened_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: Callable[[], None], swap: Swap | None
) -> None:
    """Large weights are mapped by ONNX Runtime itself: it must get what was hashed, or they are handed over."""
    large()
    honest, foreign = bundle_of(tmp_path / "b", "initializer", ONES), bundle_of(tmp_path / "f", "initializer", TWOS)
    contents = [bundle.read("w.bin") for bundle in (foreign, honest)]
    real, mapped = onnxruntime.InferenceSession, []

    def opening(*arguments: Any, **options: Any) -> Any:
        if not mapped and swap is not None:
            swap(tmp_path / "b" / "w.bin", contents[0])
        session = real(*arguments, **options)
        with open("/proc/self/maps") as maps:
            mapped.append(any(str(tmp_path) in line and "w.bin" in line for line in maps))
        if len(mapped) == 1 and swap is not None:
            (tmp_path / "b" / "w.bin").unlink()
            (tmp_path / "b" / "w.bin").write_bytes(contents[1])
        return session

    monkeypatch.setattr(onnxruntime, "InferenceSession", opening)
    if swap is None:
        assert loaded(tmp_path / "b") == 1 and mapped == [True]
    else:
        assert loaded(tmp_path / "b") in (1, None)


# ---- weights that an ONNX file names ---------------------------------------------------------------------------------

TRICKS: dict[str, dict[str, str]] = {
    "not listed": {"location": "other.bin"},
    "absolute": {"location": "/etc/hostname"},
    "upwards": {"location": "../outside.bin"},
    "down and up": {"location": "sub/../../outside.bin"},
    "dotted": {"location": "./w.bin"},
    "doubled": {"location": ".//w.bin"},
    "backslash": {"location": "..\\outside.bin"},
    "device": {"location": "/dev/zero"},
    "nothing": {"location": ""},
    "an address in memory": {"location": "*/_ORT_MEM_ADDR_/*", "offset": "4096"},
    "the manifest": {"location": "manifest.json"},
    "a listed link out": {"location": "link.bin"},
    "behind the end": {"location": "w.bin", "offset": "4"},
    "far behind the end": {"location": "w.bin", "offset": str(2**62)},
    "negative": {"location": "w.bin", "offset": "-4"},
    "negative length": {"location": "w.bin", "length": "-1"},
    "hexadecimal": {"location": "w.bin", "offset": "0x0"},
    "signed": {"location": "w.bin", "offset": "+0"},
    "Arabic digits": {"location": "w.bin", "offset": "\u0660"},
    "too long a number": {"location": "w.bin", "offset": "9" * 30},
    "another length": {"location": "w.bin", "length": "4"},
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("trick", TRICKS)
def test_weights_are_taken_from_listed_files_only(tmp_path: Path, trick: str, place: str) -> None:
    for outside in ("outside.bin", "other.bin"):
        (tmp_path / outside).write_bytes(TWOS.tobytes())
    bundle = bundle_of(tmp_path / "b", place, ONES, entries=TRICKS[trick], files={"link.bin": TWOS.tobytes()})
    link = tmp_path / "b" / "link.bin"
    link.unlink()
    link.symlink_to(tmp_path / "outside.bin") if trick == "a listed link out" else link.write_bytes(TWOS.tobytes())
    before = sorted(tmp_path.iterdir())
    with pytest.raises(BundleError) as refusal:
        Session.open(tmp_path / "b")
    assert "\n" not in str(refusal.value) and str(refusal.value).endswith(".")
    if trick != "a listed link out":
        with pytest.raises(BundleError):
            copy_graph(bundle, "model.onnx", tmp_path / "copies")
        with pytest.raises(TrtCompressError):
            preflight(tmp_path / "b", target="cpu")
    shutil.rmtree(tmp_path / "copies", ignore_errors=True)
    assert sorted(tmp_path.iterdir()) == before


def test_what_is_said_twice_or_overlaps_is_refused(tmp_path: Path) -> None:
    for number, (change, message) in enumerate(
        {
            "location": "says twice what its location is",
            "overlap": "overlap in 'w.bin'",
            "two graphs": "two forms of its graph",
        }.items()
    ):
        model = onnx.load_model_from_string(graph_with("initializer", {"location": "w.bin"}))
        if change == "location":
            model.graph.initializer[0].external_data.add(key="location", value="w.bin")
        if change == "overlap":
            second = model.graph.initializer.add()
            second.CopyFrom(stored("v", {"location": "w.bin", "offset": "4"}, shape=(1,)))
        content = model.SerializeToString()
        if change == "two graphs":
            content += onnx.ModelProto(graph=onnx.GraphProto(name="more")).SerializeToString()
        bundle_of(tmp_path / str(number), "initializer", ONES, model=content)
        with pytest.raises(BundleError, match=message):
            Session.open(tmp_path / str(number))


def test_no_mutation_hides_a_file_from_the_reader(attack: Any) -> None:
    """Where the package onnx still sees that a tensor is stored in a file, this reader sees the same, or refuses."""
    count, random = attack.count(1500, 60_000), attack.random(11)
    seeds = [graph_with(place, {"location": "w.bin", "offset": "0"}) for place in PLACES]
    unseen = seen = refused = 0
    for _ in range(count):
        data = bytearray(random.choice(seeds))
        for _ in range(random.choice((1, 1, 2, 4))):
            at = random.randrange(len(data))
            match random.randrange(4):
                case 0:
                    data[at] = random.randrange(256)
                case 1:
                    data[at] ^= 1 << random.randrange(8)
                case 2:
                    del data[at : at + random.randrange(1, 6)]
                case _:
                    data[at:at] = random.choice((b"\x80", b"\x3a\x00", b"\x70\x01", bytes(data[at : at + 9]), b"\x00"))
        try:
            model = onnx.load_model_from_string(bytes(data))
        except Exception:  # it is no ONNX file to the package
            continue
        named = [entry.value for tensor in tensors(model) for entry in tensor.external_data if entry.key == "location"]
        known = {name if isinstance(name, str) else name.decode("latin-1") for name in named}
        if not known:
            continue
        try:
            found = {tensor.location for tensor in stored_outside(memoryview(bytes(data)))}
        except ValueError:
            refused += 1
            continue
        seen += 1
        unseen += not known <= found
    attack.saw(unseen=unseen, seen=seen, refused=refused)
    assert unseen == 0 and seen > count // 20


def tensors(message: Any) -> Iterator[TensorProto]:
    """Every tensor of a message whose data are outside, wherever it is."""
    if isinstance(message, TensorProto):
        if message.data_location == TensorProto.EXTERNAL:
            yield message
        return
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for item in value if hasattr(value, "append") or hasattr(value, "add") else [value]:
                yield from tensors(item)
