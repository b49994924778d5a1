"""The current folder may be a stranger's bundle: Python and the programs it starts shall find nothing there.

`python -m` looks for modules in the current folder first, and an empty entry of PATH or PYTHONPATH, as
`PATH=$OTHER:/usr/bin` leaves it, means that folder too. Shared libraries have such entries as well: torch brings
libcusparseLt, which looks for libcuda.so.1 in the current folder. This file is loaded before anything else of the
package, so it needs only what Python has loaded by then.
"""

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_LOADED_ELSEWHERE = ("torch", "onnxruntime", "tensorrt", "tensorrt_rtx")


def forget() -> None:
    """Take the current folder, and what is named relative to it, out of this process's search paths.

    A folder that PYTHONPATH names by its absolute path stays, whichever it is. Libraries of others that are loaded from
    now on are loaded while the process stands in the root of the file system.
    """
    try:
        here = os.getcwd()
    except OSError:  # it was removed
        here = ""
    given = [] if sys.flags.ignore_environment else _entries("PYTHONPATH")
    relative = {os.path.abspath(os.path.join(here, entry)) for entry in given if not os.path.isabs(entry)}
    meant = {entry for entry in given if os.path.isabs(entry)} | {os.path.dirname(os.__file__)}
    if sys.path and sys.path[0] in ("", here) and here not in meant:
        del sys.path[0]
    sys.path[:] = [entry for entry in sys.path if os.path.isabs(entry) and entry not in relative - meant]
    if _entries("PATH") != (absolute := absolute_entries("PATH")):
        os.environ["PATH"] = os.pathsep.join(absolute)
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder:
    """Finds the modules that bring shared libraries, as Python does, and has them loaded elsewhere."""

    def find_spec(self, name: str, path: "Any" = None, target: "Any" = None) -> "Any":
        if name not in _LOADED_ELSEWHERE:
            return None
        from importlib.machinery import PathFinder

        spec: Any = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader:
    """The loader of a module, which stands elsewhere while it runs it."""

    def __init__(self, loader: "Any") -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> "Any":
        return getattr(self._loader, name)

    def create_module(self, spec: "Any") -> "Any":
        return self._loader.create_module(spec)

    def exec_module(self, module: "Any") -> None:
        module.__spec__.loader = module.__loader__ = self._loader  # whoever looks at it later finds what is usual
        try:
            here = os.open(".", getattr(os, "O_PATH", os.O_RDONLY) | os.O_CLOEXEC)
        except OSError:  # there is no current folder to look in
            self._loader.exec_module(module)
            return
        try:
            os.chdir("/")
            self._loader.exec_module(module)
        finally:
            os.fchdir(here)
            os.close(here)


def absolute_entries(variable: str) -> list[str]:
    """The folders that a variable of the environment lists by their absolute paths."""
    return [entry for entry in _entries(variable) if os.path.isabs(entry)]


def _entries(variable: str) -> list[str]:
    text = os.environ.get(variable, "")
    return text.split(os.pathsep) if text else []
