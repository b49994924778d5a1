"""Options that several commands have, each written once, and the file of --json."""

import json as json_module
from pathlib import Path
from typing import Annotated, Any

import typer

from trt_compress.errors import ConfigError
from trt_compress.files import write_whole
from trt_compress.paths import check_new_file
from trt_compress.tools.console import say

GraphName = Annotated[
    str | None, typer.Option(metavar="NAME", help="Graph of the bundle to run (default: all of them).")
]
BaselineGraph = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Graph of the baseline; without --baseline another graph of the same bundle."),
]
Backend = Annotated[str, typer.Option(metavar="NAME", help="ort-cpu, ort-cuda, tensorrt or rtx.")]
Threads = Annotated[int | None, typer.Option(metavar="N", help="Default: the backend's own choice.")]
Native = Annotated[
    bool | None,
    typer.Option("--native/--no-native", help="Native operators (default: if they are built)", show_default=False),
]
Resample = Annotated[
    bool, typer.Option("--resample", help="Make sound of another sample rate or number of channels fit the bundle.")
]
JsonFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", allow_dash=True, help="Write the result as JSON; '-' is stdout, without tables."),
]


def try_file(path: Path | None, option: str = "--json") -> None:
    """Find out before the work whether a file can be written; leaves nothing behind."""
    if path is not None and str(path) != "-":
        check_new_file(path, option)


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write a document.

    Raises:
        ConfigError: It cannot be written.
    """
    try:
        write_whole(path, json_module.dumps(document, indent=2, allow_nan=False) + "\n")
    except OSError as error:
        raise ConfigError(f"'{path}' cannot be written ({error.strerror}); give another file to --json.") from None
    say(f"Wrote {path}")
