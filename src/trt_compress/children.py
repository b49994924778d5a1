"""The one way to start Python from this package: nothing of the current folder or of the environment is imported.

`python -m` and `python -c` look for modules in the current folder first, and `PYTHONPATH` may name relative folders: in
the folder of a stranger's bundle its `json.py` would run. A child gets isolated mode, the folders that the parent was
given by absolute paths, a folder of its own to stand in, and a session of its own. It dies with its parent.
"""

import json
import os
import signal
import site
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO

from trt_compress import strays

_BOOT = """\
import sys
parent, path, module, *arguments = sys.argv[1:]
if sys.platform == "linux":
    import ctypes, os
    ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)
    if os.getppid() != int(parent):
        os._exit(1)
import json
sys.path[:0] = json.loads(path)
sys.argv[1:] = arguments
import runpy
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""
_PACKAGE_ROOT = Path(__file__).absolute().parents[1]


def python_command(module: str, *arguments: str | Path) -> list[str]:
    """The command that runs a module of this package in isolated mode, as a child of this process only.

    Args:
        module: Its full name, `trt_compress.export.engine_worker`; it is run as `__main__`.
        arguments: What it finds in `sys.argv[1:]`.
    """
    path = json.dumps([str(folder) for folder in search_path()])
    return [sys.executable, "-I", "-c", _BOOT, str(os.getpid()), path, module, *map(str, arguments)]


def search_path() -> list[Path]:
    """What a child looks in before its own folders: this package's, and what was given by absolute paths."""
    given = [Path(entry) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    if site.ENABLE_USER_SITE:
        given.append(Path(site.getusersitepackages()))
    absolute = [folder for folder in given if folder.is_absolute()]
    return list(dict.fromkeys((_PACKAGE_ROOT, *absolute)))


def run_python(
    module: str,
    arguments: Sequence[str | Path] = (),
    *,
    folder: Path,
    output: IO[bytes] | int | None = subprocess.PIPE,
    timeout: float | None = None,
    pass_fds: Iterable[int] = (),
) -> "subprocess.CompletedProcess[bytes]":
    """Run a module of this package in a child, and wait for it.

    Args:
        module: Its full name.
        arguments: What it finds in `sys.argv[1:]`.
        folder: Where it stands: a folder of its own, empty or with what it was given.
        output: Where its output and its errors go together.
        timeout: Seconds after which it is killed with everything it started.
        pass_fds: Descriptors that it keeps, the locks of what it works on; that of the temporary folder it has anyway.

    Raises:
        subprocess.TimeoutExpired: It was killed after `timeout`.
    """
    process = subprocess.Popen(
        python_command(module, *arguments),
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        pass_fds=(*pass_fds, *strays.locks_of(folder)),
    )
    try:
        said, _ = process.communicate(timeout=timeout)
    except BaseException:  # an interruption too: in a session of its own it does not hear of it
        _kill(process)
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, said)


def _kill(process: "subprocess.Popen[bytes]") -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)  # its session, which bears its number until it is waited for
    except ProcessLookupError:
        pass
    process.communicate()
