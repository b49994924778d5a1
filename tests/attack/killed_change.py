"""A process that changes a bundle and is killed at a step that was chosen; it is no test, `test_kills.py` starts it.

Each line that it reads is a case, as JSON: what to do, in which folder, and at which step or when to die. It forks,
and answers with the code or the signal that ended the fork. Nothing of the product knows of it:
the functions of the system are wrapped in the fork.
"""

import builtins
import hashlib
import importlib
import io
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from trt_compress import strays
from trt_compress.export import engines
from trt_compress.export.bundle import update_bundle, write_bundle
from trt_compress.export.prune import prune
from trt_compress.format.bundle import Bundle
from trt_compress.format.manifest import Engine
from trt_compress.tools.cli import main as cli

NEW_ENGINE = b"a newer engine" * 1000
Step = tuple[str, str, str]


# ---- what is killed -------------------------------------------------------------------------------------------------


def files_of(folder: Path) -> dict[str, Any]:
    """The content of a bundle, as `write_bundle` takes it."""
    return {name: (folder / name).read_bytes() for name in Bundle.open(folder).manifest.files}


def first_export(place: Path) -> None:
    new = Bundle.open(place / "source")
    write_bundle(place / "new/bundle", new.manifest, files_of(place / "source"), force=True)


def forced_export(place: Path) -> None:
    new = Bundle.open(place / "source")
    write_bundle(place / "bundle", new.manifest, files_of(place / "source"), force=True)


def forced_export_by_steps(place: Path) -> None:
    def refuse(one: Path, other: Path) -> None:
        raise OSError(22, "Invalid argument")

    strays.exchange = refuse
    forced_export(place)


def record(bundle: Bundle, file: str, content: bytes) -> Engine:
    """What the manifest says of an engine of `content`."""
    old = bundle.manifest.engines[0]
    return replace(old, file=file, sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))


def forced_build(place: Path) -> None:
    bundle = Bundle.open(place / "bundle")
    file = "engines/rtx/model.0123abcd.engine"
    engines._add(bundle, "rtx", [record(bundle, file, NEW_ENGINE)], {file: NEW_ENGINE})


def build_for_another_target(place: Path) -> None:
    build_for_a_target(place, "x86-trt10")


def build_for_a_target(place: Path, target: str) -> None:
    bundle = Bundle.open(place / "bundle")
    file = f"engines/{target}/model.engine"
    made = replace(record(bundle, file, NEW_ENGINE), target=target)
    engines._add(bundle, target, [made], {file: NEW_ENGINE})


def pruned(place: Path) -> None:
    prune(place / "bundle", target="cpu")


def pruned_elsewhere(place: Path) -> None:
    prune(place / "source", target="cpu", output=place / "bundle", force=True)


def listed_file_replaced(place: Path) -> None:
    bundle = Bundle.open(place / "bundle")
    update_bundle(bundle, bundle.manifest, {"verify.json": b'{"other": true}'})


ACTIONS: dict[str, Callable[[Path], None]] = {
    action.__name__: action
    for action in (
        first_export,
        forced_export,
        forced_export_by_steps,
        forced_build,
        build_for_another_target,
        pruned,
        pruned_elsewhere,
        listed_file_replaced,
    )
}


# ---- the steps ------------------------------------------------------------------------------------------------------


class Steps:
    """The calls that change the disk: each is noted, and before number `last` the process kills itself."""

    def __init__(self, last: int | None) -> None:
        self.taken: list[Step] = []
        self._last = last

    def take(self, what: str, one: str = "", other: str = "") -> None:
        if len(self.taken) == self._last:
            os.kill(os.getpid(), signal.SIGKILL)
        self.taken.append((what, one, other))

    def wrap(self) -> None:
        for name in ("mkdir", "unlink", "remove", "rmdir"):
            setattr(os, name, self._of_a_path(name, getattr(os, name)))
        for name in ("rename", "replace"):
            setattr(os, name, self._of_two(getattr(os, name)))
        if strays.exchange.__name__ == "exchange":
            strays.exchange = self._exchange(strays.exchange)
        opened, opened_low = io.open, os.open

        def open_file(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if not set(mode) & set("wxa"):
                return opened(file, mode, *args, **kwargs)
            self.take("create", os.path.realpath(file))
            return _Written(opened(file, mode, *args, **kwargs), self)

        def open_low(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
            if flags & os.O_CREAT:
                self.take("create", os.path.realpath(path))
            return opened_low(path, flags, *args, **kwargs)

        def fsync(descriptor: int) -> None:  # what a kill leaves is the same without it
            self.take("fsync", os.readlink(f"/proc/self/fd/{descriptor}"))

        io.open = builtins.open = open_file  # type: ignore[assignment]
        os.open = open_low  # type: ignore[assignment]
        os.fsync = fsync  # type: ignore[assignment]

    def _of_a_path(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(path: Any, *args: Any, dir_fd: int | None = None, **kwargs: Any) -> Any:
            above = "" if dir_fd is None else os.readlink(f"/proc/self/fd/{dir_fd}")
            self.take(name, os.path.join(above, os.fspath(path)))
            return call(path, *args, dir_fd=dir_fd, **kwargs)

        return wrapped

    def _of_two(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(one: Any, other: Any) -> Any:
            self.take("rename", os.fspath(one), os.fspath(other))
            return call(one, other)

        return wrapped

    def _exchange(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(one: Path, other: Path) -> None:
            self.take("exchange", str(one), str(other))
            call(one, other)

        return wrapped


class _Written:
    """A file that is written in halves, with a step before each."""

    def __init__(self, file: Any, steps: Steps) -> None:
        self._file, self._steps = file, steps

    def write(self, data: Any) -> int:
        for part in (data[: len(data) // 2], data[len(data) // 2 :]):
            self._steps.take("write", os.path.realpath(self._file.name))
            self._file.write(part)
            self._file.flush()
        return len(data)

    def __enter__(self) -> "_Written":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def run(case: dict[str, Any]) -> None:
    """One case, in a process of its own, which never comes back from here."""
    code = 1
    try:
        place, steps = Path(case["place"]), Steps(case.get("last"))
        if case.get("action") == "build_for_a_target":
            build_for_a_target(place, f"target-{case['number']}-{case['turn']}")
        elif "command" in case:
            os.chdir(place)
            os.environ["TMPDIR"] = str(place / "temp")
            sys.argv[1:] = case["command"]
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            cli.main()
        elif case["watched"]:
            steps.wrap()
            ACTIONS[case["action"]](place)
            Path(f"{place}.steps").write_text(json.dumps(steps.taken))
        else:
            ACTIONS[case["action"]](place)
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException as error:
        print(f"{case}: {type(error).__name__}: {error}", file=sys.stderr)
    finally:
        os._exit(code)


def main() -> None:
    """Answer each case with how its process ended, which is killed after `seconds` where that is given."""
    if sys.argv[1:] == ["commands"]:
        importlib.import_module("trt_compress.export.api")  # and torch with it
    for line in sys.stdin:
        case = json.loads(line)
        number = os.fork()
        if number == 0:
            run(case)
        if "seconds" in case:
            time.sleep(case["seconds"])
            os.kill(number, signal.SIGKILL)
        print(os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
