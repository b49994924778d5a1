"""Environments of other tools, each of its own, so that what is measured here depends on none of them."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trt_compress.children import run
from trt_compress.errors import UnsupportedError

FOLDER = Path.home() / ".cache" / "trt-compress-peers"
"""Where they are made."""


def environment(
    name: str,
    packages: Sequence[str],
    folder: Path,
    step: Callable[[str], None],
    variables: Mapping[str, str] | None = None,
) -> Path:
    """The Python of an environment, which is made where it is not there.

    Args:
        name: Of the tool, and of the environment's folder.
        packages: What pip installs there.
        folder: Where environments are.
        step: Is told when one is made.
        variables: Of the process that installs.

    Raises:
        UnsupportedError: It cannot be made.
    """
    place = (folder / name).absolute()
    python = place / "bin" / "python"
    if not python.is_file():
        step(f"making an environment with {name}, which may have to be compiled")
        place.parent.mkdir(parents=True, exist_ok=True)
        require_done(run(["python3", "-m", "venv", place]))
        install: list[str | Path] = [python, "-m", "pip", "install", "--quiet", *packages]
        require_done(run(install, variables=dict(variables or {})))
    return python


def require_done(done: Any) -> None:
    """Refuse to go on behind a program that failed.

    Raises:
        UnsupportedError: It did; the message ends with what it said.
    """
    if done.returncode:
        said = (done.stderr or done.stdout or b"").decode(errors="replace").strip()
        raise UnsupportedError(f"'{' '.join(map(str, done.args))[:200]}' ended with {done.returncode}: {said[-600:]}")
