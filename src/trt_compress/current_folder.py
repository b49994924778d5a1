"""The current folder may be a stranger's bundle: Python and the programs it starts shall find nothing there.

`python -m` looks for modules in the current folder first, and an empty entry of PATH or PYTHONPATH, as
`PATH=$OTHER:/usr/bin` leaves it, means that folder too. This file is loaded before anything else of the package, so it
needs only what Python has loaded by then.
"""

import os
import sys


def forget() -> None:
    """Take the current folder, and what is named relative to it, out of this process's search paths.

    A folder that PYTHONPATH names by its absolute path stays, whichever it is.
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


def absolute_entries(variable: str) -> list[str]:
    """The folders that a variable of the environment lists by their absolute paths."""
    return [entry for entry in _entries(variable) if os.path.isabs(entry)]


def _entries(variable: str) -> list[str]:
    text = os.environ.get(variable, "")
    return text.split(os.pathsep) if text else []
