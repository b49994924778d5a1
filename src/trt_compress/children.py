"""The one way to start Python and other programs from this package: nothing of the current folder is taken for one.

`python -m` and `python -c` look for modules in the current folder first, `PYTHONPATH` may name relative folders, and an
empty entry of PATH means the current folder: in the folder of a stranger's bundle its `json.py` or its `cmake` would
run. Python is started in isolated mode with the folders that the parent was given by absolute paths; every program is
looked for in absolute folders of PATH. Each stands elsewhere than in the current folder and has a session of its own,
which ends whole when the wait for it is interrupted. Python also dies with its parent.
"""

import errno
import json
import os
import shutil
import signal
import site
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from trt_compress import strays
from trt_compress.current_folder import absolute_entries
from trt_compress.errors import UnsupportedError

PIPE, MERGED, DEVNULL = subprocess.PIPE, subprocess.STDOUT, subprocess.DEVNULL
TimeoutExpired = subprocess.TimeoutExpired
Process = subprocess.Popen
Completed = subprocess.CompletedProcess

_BOOT = """\
import sys
parent, path, module, *arguments = sys.argv[1:]
if sys.platform == "linux":
    import ctypes, os
    ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)
    if int(parent) not in (0, os.getppid()):
        os._exit(1)
import json
sys.path[:0] = [folder for folder in json.loads(path) if folder not in sys.path]
sys.argv[1:] = arguments
import runpy
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""
_PACKAGE_ROOT = Path(__file__).absolute().parents[1]
_ELSEWHERE = Path("/")
_PATIENCE_S = 3.0  # a build tool that is told to end removes what it has half written


def python_command(module: str, *arguments: str | Path, between: bool = False) -> list[str]:
    """The command that runs a module of this package in isolated mode, as a child of this process only.

    Args:
        module: Its full name, `trt_compress.export.engine_worker`; it is run as `__main__`.
        arguments: What it finds in `sys.argv[1:]`; paths in it are absolute.
        between: Another program stands between, which starts the command; it then dies with that one.

    Raises:
        UnsupportedError: This Python is part of another program, and there is none to start.
    """
    if not sys.executable:
        raise UnsupportedError("This needs a Python interpreter to start, and sys.executable names none; run it there.")
    path = json.dumps([str(folder) for folder in search_path()])
    parent = "0" if between else str(os.getpid())
    return [sys.executable, "-I", "-c", _BOOT, parent, path, module, *map(str, arguments)]


def search_path() -> list[Path]:
    """What a child looks in before its own folders: what was given by absolute paths, and this package's."""
    given = [] if sys.flags.ignore_environment else [Path(entry) for entry in absolute_entries("PYTHONPATH")]
    if site.ENABLE_USER_SITE:
        given.append(Path(site.getusersitepackages()))
    return list(dict.fromkeys((*given, _PACKAGE_ROOT)))


def find_program(name: str | Path) -> str | None:
    """Where a program is: in an absolute folder of PATH, or where `name` says if it is a path; None: nowhere."""
    if os.path.dirname(name):
        name = os.path.abspath(name)
    return shutil.which(name, path=os.pathsep.join(absolute_entries("PATH") or os.defpath.split(os.pathsep)))


def start(
    command: Sequence[str | Path],
    *,
    folder: Path | None = None,
    variables: Mapping[str, str] | None = None,
    given: int = subprocess.DEVNULL,
    output: IO[bytes] | int = PIPE,
    errors: IO[bytes] | int = MERGED,
    pass_fds: Iterable[int] = (),
) -> "Process[bytes]":
    """Start a program; `started` and `run` also end it.

    Args:
        command: The program, found by `find_program`, and its arguments; paths in it are absolute.
        folder: Where it stands; None: in the root of the file system, where nobody else puts anything.
        variables: What its environment has beside this process's own.
        given: Its input; empty.
        output: Where its output goes.
        errors: Where its errors go; with its output.
        pass_fds: Descriptors that it keeps: the locks of what it works on; that of the temporary folder it has anyway.

    Raises:
        OSError: There is no such program, or it cannot be started.
    """
    program = find_program(command[0])
    if program is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(command[0]))
    return subprocess.Popen(
        [program, *map(str, command[1:])],
        cwd=folder or _ELSEWHERE,
        env={**_environment(), **(variables or {})},
        stdin=given,
        stdout=output,
        stderr=errors,
        start_new_session=True,
        pass_fds=(*pass_fds, *(strays.locks_of(folder) if folder else ())),
    )


@contextmanager
def started(
    command: Sequence[str | Path],
    *,
    folder: Path | None = None,
    variables: Mapping[str, str] | None = None,
    given: int = subprocess.DEVNULL,
    output: IO[bytes] | int = PIPE,
    errors: IO[bytes] | int = MERGED,
    pass_fds: Iterable[int] = (),
) -> "Iterator[Process[bytes]]":
    """Start a program as `start` does, and wait for it at the end; what is raised inside ends it and all it started."""
    process = start(
        command, folder=folder, variables=variables, given=given, output=output, errors=errors, pass_fds=pass_fds
    )
    with process:
        try:
            yield process
        except BaseException:  # an interruption too: in a session of its own it does not hear of it
            end(process)
            raise


def run(
    command: Sequence[str | Path],
    *,
    folder: Path | None = None,
    variables: Mapping[str, str] | None = None,
    given: bytes | None = None,
    output: IO[bytes] | int = PIPE,
    errors: IO[bytes] | int = PIPE,
    timeout: float | None = None,
    pass_fds: Iterable[int] = (),
) -> "Completed[bytes]":
    """Run a program as `start` does, and wait for it.

    Args:
        command, folder, variables, output, pass_fds: As in `start`.
        given: What it reads from its input.
        errors: Where its errors go; into the result.
        timeout: Seconds after which it is ended with everything it started.

    Raises:
        OSError: There is no such program, or it cannot be started.
        subprocess.TimeoutExpired: It was ended after `timeout`; `output` is what it had said.
    """
    reads = subprocess.DEVNULL if given is None else PIPE
    with started(
        command, folder=folder, variables=variables, given=reads, output=output, errors=errors, pass_fds=pass_fds
    ) as process:
        said, wrong = process.communicate(given, timeout=timeout)
    return Completed(process.args, process.returncode, said, wrong)


def run_python(
    module: str,
    arguments: Sequence[str | Path] = (),
    *,
    folder: Path,
    given: bytes | None = None,
    errors: IO[bytes] | int = MERGED,
    timeout: float | None = None,
    pass_fds: Iterable[int] = (),
) -> "Completed[bytes]":
    """Run a module of this package in a child, and wait for it.

    Args:
        module: Its full name.
        arguments: What it finds in `sys.argv[1:]`; paths in it are absolute.
        folder: Where it stands: a folder of its own, empty or with what it was given.
        given: What it reads from its input.
        errors: Where its errors go; with its output.
        timeout: Seconds after which it is killed with everything it started.
        pass_fds: As in `start`.

    Raises:
        UnsupportedError: As `python_command`.
        subprocess.TimeoutExpired: It was killed after `timeout`.
    """
    command = python_command(module, *arguments)
    return run(command, folder=folder, given=given, errors=errors, timeout=timeout, pass_fds=pass_fds)


def end(process: "Process[bytes]") -> None:
    """End a program that `start` started, and everything in its session: asked first, and after a while killed."""
    if process.returncode is not None:  # its number may be another's by now
        return
    number, patience = signal.SIGTERM, time.monotonic() + _PATIENCE_S
    while members := _session(process.pid):
        for member in members:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(member, number)
        if time.monotonic() > patience + _PATIENCE_S:  # in the kernel, where nothing ends it
            break
        time.sleep(0.01)
        if time.monotonic() > patience:
            number = signal.SIGKILL
    with suppress(TimeoutExpired):
        process.wait(_PATIENCE_S)


def _session(leader: int) -> list[int]:
    """Who runs in a session; its leader is not waited for yet, so that its number is no other's.

    Build tools give each compiler a group of its own, so that a group is not all of them.
    """
    try:
        numbers = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        numbers = []
    if not numbers:  # no such file system: the leader alone
        return [leader] if os.waitid(os.P_PID, leader, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None else []
    found = []
    for number in numbers:
        with suppress(OSError, ValueError, IndexError):
            with open(f"/proc/{number}/stat", "rb") as file:
                state, _, _, session = file.read().rpartition(b") ")[2].split()[:4]
            if int(session) == leader and state not in (b"Z", b"X"):
                found.append(number)
    return found


def _environment() -> dict[str, str]:
    """This process's environment, without folders and libraries that are named relative to the current folder."""
    variables = dict(os.environ)
    for name in ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH"):
        if variables.pop(name, None) and (folders := absolute_entries(name)):  # an empty one is the current folder
            variables[name] = os.pathsep.join(folders)
    for name in ("LD_PRELOAD", "LD_AUDIT"):  # a bare name is looked for where the system has its libraries
        if name in variables:
            entries = variables[name].replace(":", " ").split()
            variables[name] = ":".join(entry for entry in entries if "/" not in entry or os.path.isabs(entry))
    return variables
