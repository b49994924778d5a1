"""A kill at any step of a change, and at any time of a command, leaves the old bundle or the new one, and no strays."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

import pytest

from tests.attack.small_bundles import counter_bundle, ones
from trt_compress.errors import BundleError
from trt_compress.export.bundle import update_bundle
from trt_compress.format.manifest import Engine
from trt_compress.runtime import Bundle, Session

PROGRAM = Path(__file__).with_name("killed_change.py")
KILLED = -9
PLACES = {"first_export": "new/bundle"}  # where a bundle is made or changed; else `bundle`
ACTIONS = (
    "first_export",
    "forced_export",
    "forced_export_by_steps",
    "forced_build",
    "build_for_another_target",
    "pruned",
    "pruned_elsewhere",
    "listed_file_replaced",
)
Ask = Callable[..., int]


@contextmanager
def asking(*arguments: str) -> Iterator[Ask]:
    """Ask `killed_change.py` for cases."""
    with subprocess.Popen(
        [sys.executable, str(PROGRAM), *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        asked, answers = process.stdin, process.stdout

        def ask(**case: Any) -> int:
            asked.write(json.dumps(case) + "\n")
            asked.flush()
            return int(answers.readline())

        try:
            yield ask
        finally:
            asked.close()


@pytest.fixture(scope="module")
def ask() -> Iterator[Ask]:
    with asking() as ask:
        yield ask


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with an engine, and another one: what every case begins with."""
    place = tmp_path_factory.mktemp("kills") / "before"
    for name in ("bundle", "source"):
        bundle = counter_bundle(place / name, stateful=False)
        content = b"an engine" * 1000
        file = f"engines/rtx/{'model' if name == 'bundle' else 'model.fedcba98'}.engine"
        digest = hashlib.sha256(content).hexdigest()
        engine = Engine(
            target="rtx",
            file=file,
            sha256=digest,
            bytes=len(content),
            library="tensorrt_rtx",
            library_version="1",
            onnx_sha256=bundle.manifest.files["model.onnx"].sha256,
            precision_asked="fp32",
            precision_achieved={},
            paths={},
            profile={},
            seconds=1.0,
            graph="model",
        )
        manifest = replace(bundle.manifest, name=name, engines=(engine,))
        update_bundle(bundle, manifest, {file: content, "verify.json": b"{}", f"{name}.json": b"[]"})
    return place


def tree(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder, hidden files and empty folders too."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def digest_of(place: Path) -> str | None:
    """Which bundle is there, every hash checked; None: there is none."""
    try:
        return Bundle.open(place).manifest.digest
    except BundleError as error:
        assert "does not exist; give the directory that export wrote" in str(error)
        return None


class Case:
    """An action without a kill: what it makes and the steps it takes."""

    def __init__(self, action: str, before: Path, ask: Ask) -> None:
        self.action, self._before, self._ask = action, before, ask
        self.folder = before.parent / action
        self.place = self.folder / "whole"
        shutil.copytree(before, self.place)
        assert ask(action=action, place=str(self.place), watched=True) == 0
        self.steps = [tuple(step) for step in json.loads(Path(f"{self.place}.steps").read_text())]
        self.after = tree(self.place)
        self.old, self.new = (digest_of(self.bundle(place)) for place in (before, self.place))
        assert self.old != self.new is not None

    def bundle(self, place: Path) -> Path:
        return place / PLACES.get(self.action, "bundle")

    def kill(self, step: int) -> str:
        """What is wrong after a kill before this step; empty if nothing is."""
        place = self.folder / str(step)
        shutil.copytree(self._before, place)
        assert self._ask(action=self.action, place=str(place), watched=True, last=step) == KILLED
        left = sorted(tree(place))
        try:
            found = digest_of(self.bundle(place))
        except BundleError as error:
            return f"{self.action}, step {step} of {len(self.steps)}: lost: {error} {left}"
        if found not in (self.old, self.new):
            return f"{self.action}, step {step} of {len(self.steps)}: lost: neither old nor new: {found} {left}"
        if found is not None:
            with Session.open(self.bundle(place), backend="ort-cpu", threads=1) as session:
                assert session.run(ones())["total"][0, 0] == 2
        assert self._ask(action=self.action, place=str(place), watched=False) == 0
        if (now := tree(place)) != self.after:
            return f"{self.action}, step {step} of {len(self.steps)}: strays: {sorted(now.keys() ^ self.after.keys())}"
        shutil.rmtree(place)
        return ""


@pytest.fixture(scope="module")
def cases(before: Path, ask: Ask) -> list[Case]:
    return [Case(action, before, ask) for action in ACTIONS]


def test_crash_points(cases: list[Case], attack: Any) -> None:
    """A kill before every step that changes the disk; a sample of them in the short form."""
    points = [(case, step) for case in cases for step in range(len(case.steps))]
    assert len(points) >= 100 and all(len(case.steps) >= 8 for case in cases)
    count = min(attack.count(24, len(points)), len(points))
    chosen = points if count == len(points) else attack.random(11).sample(points, count)
    wrong = [said for case, step in chosen if (said := case.kill(step))]
    lost = [said for said in wrong if ": lost: " in said]
    attack.saw(kills=count, bundles_lost=len(lost), strays=len(wrong) - len(lost))
    assert not wrong, "\n".join(wrong)


# ---- what a power cut would lose ------------------------------------------------------------------------------------


class Disk:
    """What of the steps is on the disk for sure: content by `fsync` of a file, names by `fsync` of their folder.

    What was there before the first step is.
    """

    def __init__(self) -> None:
        self.unsafe_content: set[str] = set()
        self.unsafe_names: set[str] = set()

    def take(self, what: str, one: str, other: str) -> None:
        match what:
            case "mkdir":
                self.unsafe_names.add(one)
            case "create":
                self.unsafe_names.add(one)
                self.unsafe_content.add(one)
            case "write":
                self.unsafe_content.add(one)
            case "fsync":
                self.unsafe_content.discard(one)
                self.unsafe_names -= {name for name in self.unsafe_names if os.path.dirname(name) == one}
            case "rename":
                self._move({one: other})
                self.unsafe_names.add(other)
            case "exchange":
                self._move({one: other, other: one})
                self.unsafe_names |= {one, other}
            case "unlink" | "rmdir":
                self.unsafe_names.discard(one)
                self.unsafe_content.discard(one)

    def _move(self, places: dict[str, str]) -> None:
        def moved(name: str) -> str:
            for one, other in places.items():
                if name == one or name.startswith(f"{one}/"):
                    return other + name[len(one) :]
            return name

        self.unsafe_content = {moved(name) for name in self.unsafe_content}
        self.unsafe_names = {moved(name) for name in self.unsafe_names}


@pytest.mark.parametrize("number", range(len(ACTIONS)), ids=ACTIONS)
def test_everything_is_on_the_disk_before_the_step_that_counts(cases: list[Case], number: int) -> None:
    """And nothing of the old bundle is deleted before that step is on the disk itself."""
    case = cases[number]
    root = str(case.bundle(case.place))
    listed = {f"{root}/{name}" for name in (*Bundle.open(root).manifest.files, "manifest.json")}
    disk, commit, deleted = Disk(), "", 0
    for what, one, other in case.steps:
        commits = what in ("rename", "exchange") and other in (root, f"{root}/manifest.json")
        disk.take(what, one, other)
        if commits:
            commit = other
            assert not listed & disk.unsafe_content
            folders = {str(above) for name in listed for above in PurePath(name).parents if str(above).startswith(root)}
            assert not ((listed | folders) - {commit, root}) & disk.unsafe_names
        elif what == "unlink" and commit:
            assert commit not in disk.unsafe_names, "the old is deleted before the new is there for sure"
            deleted += 1
        elif what in ("write", "create"):
            assert one not in listed, "a listed file is written to"
    assert commit and (deleted > 0 or case.action == "first_export")
    assert not any(name.startswith(str(case.place / "new")) for name in disk.unsafe_names)


# ---- two at once ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", ["forced_export", "forced_export_by_steps", "pruned_elsewhere"])
def test_who_opens_a_bundle_that_is_being_replaced_gets_a_whole_one(
    before: Path, ask: Ask, tmp_path: Path, attack: Any, action: str
) -> None:
    place, back = tmp_path / "place", tmp_path / "back"
    shutil.copytree(before, place)
    back.mkdir()
    shutil.copytree(place / "bundle", back / "source")
    (back / "bundle").symlink_to(place / "bundle")
    opened: list[str | None] = []
    ended = threading.Event()

    def open_again_and_again() -> None:
        while not ended.is_set():
            opened.append(digest_of(place / "bundle"))

    with ThreadPoolExecutor(2) as readers:
        reading = [readers.submit(open_again_and_again) for _ in range(2)]
        try:
            for number in range(attack.count(6, 100)):
                assert ask(action=action, place=str(back if number % 2 else place), watched=False) == 0
        finally:
            ended.set()
        for reader in reading:
            reader.result()
    assert 2 <= len(set(opened)) <= 3 and None not in opened
    attack.saw(opened=len(opened), torn=0)


def test_changes_at_once_are_all_made(before: Path, tmp_path: Path, attack: Any) -> None:
    """Builds for several targets and replacements of an engine, each in a process of its own, in one bundle."""
    shutil.copytree(before, tmp_path / "place")
    count = attack.count(4, 40)
    programs = [_program() for _ in range(4)]
    try:
        for number, program in enumerate(programs):
            assert program.stdin is not None
            for turn in range(count // 4):
                case = {"action": "build_for_a_target", "number": number, "turn": turn, "watched": False}
                program.stdin.write(json.dumps({**case, "place": str(tmp_path / "place")}) + "\n")
        answers = [program.communicate(timeout=300) for program in programs]
    finally:
        for program in programs:
            program.kill()
    assert all(set(said.split()) == {"0"} for said, _ in answers), answers
    bundle = Bundle.open(tmp_path / "place/bundle")
    assert len(bundle.manifest.engines) == 1 + count
    assert {*tree(bundle.root)} == {*bundle.manifest.files, "manifest.json", "engines"} | {
        str(PurePath(name).parent) for name in bundle.manifest.files if "/" in name
    }


def _program() -> "subprocess.Popen[str]":
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, str(PROGRAM)], stdin=pipe, stdout=pipe, stderr=pipe, text=True)


# ---- at any time ----------------------------------------------------------------------------------------------------


OF_OTHERS = ("torchinductor", ".ses")  # what torch and ONNX Runtime leave where temporary files go
EXPORT = ("export", "zoo:digits_vit", "--batch", "1", "--output", "bundle", "--force", "--compress")
EXPORTS = [[*EXPORT, "none"], [*EXPORT, "tome:num_merged=5"]]
CHANGES = [
    ["prune", "source", "--target", "rtx", "--output", "bundle", "--force"],
    ["prune", "source", "--target", "cpu", "--output", "bundle", "--force"],
    ["prune", "bundle", "--target", "cpu"],
]


def test_random_kills_of_commands_that_change_a_bundle(before: Path, tmp_path: Path, attack: Any) -> None:
    """Copies over a bundle, and changes of it in its place."""
    shutil.copytree(before, tmp_path / "place")
    with asking() as ask:
        kill_commands(ask, CHANGES, tmp_path / "place", attack.count(8, 180), attack)


@pytest.mark.long
def test_random_kills_of_exports(tmp_path: Path, attack: Any) -> None:
    """Exports over the bundle of another export: each takes seconds."""
    (tmp_path / "place").mkdir()
    with asking("commands") as ask:
        kill_commands(ask, EXPORTS, tmp_path / "place", attack.count(0, 24), attack)


def kill_commands(ask: Ask, commands: Sequence[list[str]], place: Path, count: int, attack: Any) -> None:
    """Run commands in a folder and kill each at a random moment; every tenth runs to its end, and finds no strays."""
    random = attack.random(12)
    (place / "temp").mkdir()
    whole, lengths = set(), []
    for command in commands:
        began = time.monotonic()
        assert ask(place=str(place), command=command) == 0
        lengths.append(time.monotonic() - began)
        whole.add(digest_of(place / "bundle"))
    lost, strays, killed = [], [], 0
    for number in range(count):
        which = random.randrange(len(commands))
        seconds = lengths[which] * random.choice([random.uniform(0, 1), random.uniform(0.7, 1)])
        killed += ask(place=str(place), command=commands[which], seconds=seconds) == KILLED
        try:
            if (found := digest_of(place / "bundle")) not in whole:
                lost.append(f"{number}: {found}")
        except BundleError as error:
            lost.append(f"{number}: {error}")
        if number % 10 == 9 or number == count - 1:
            assert ask(place=str(place), command=commands[number % 2]) == 0
            listed = {*Bundle.open(place / "bundle").manifest.files, "manifest.json"}
            strays += [path.name for path in (place / "temp").iterdir() if not path.name.startswith(OF_OTHERS)]
            strays += {path.name for path in place.iterdir()} - {"bundle", "source", "temp"}
            strays += {name for name, content in tree(place / "bundle").items() if content is not None} - listed
    attack.saw(kills=killed, bundles_lost=len(lost), strays=len(strays))
    assert (lost, strays) == ([], [])
