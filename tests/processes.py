"""Processes that a test starts."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def environment(**more: str) -> dict[str, str]:
    """This process's variables, for a child that imports what is imported here, `tests` too."""
    return {**os.environ, "PYTHONPATH": python_path(), **more}


def python_path() -> str:
    """What a child looks for modules in: this repository, and what this process does."""
    return os.pathsep.join(dict.fromkeys(filter(None, (str(ROOT), *sys.path))))
