"""What the training scripts of the zoo share: writing weights and model card, and the command line."""

import argparse
import datetime
import importlib
import json
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch

from trt_compress.digest import sha256
from trt_compress.errors import ConfigError, TrtCompressError
from trt_compress.files import write_whole

LICENSE = "Apache-2.0"


def read_card(file: Path) -> dict[str, Any]:
    """The card of a model."""
    return cast(dict[str, Any], json.loads(file.read_text(encoding="utf-8")))


def write_weights(module: torch.nn.Module, file: Path, *, half: bool = False) -> dict[str, Any]:
    """Write the tensors of `module`, as fp16 if `half`, and return what the card says of the file."""
    from safetensors.torch import save

    tensors = {name: tensor.detach().contiguous() for name, tensor in module.state_dict().items()}
    if half:
        tensors = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    content = save(tensors)
    write_whole(file, content)
    row = {"file": file.name, "bytes": len(content), "sha256": sha256(content)}
    return {**row, **({"dtype": "float16"} if half else {}), "license": LICENSE}


def write_card(card: Mapping[str, Any], file: Path, *, command: str, packages: Sequence[str]) -> dict[str, Any]:
    """Write a card with the versions of `packages`, the command and the date, and return it whole."""
    versions = {name: importlib.import_module(name).__version__ for name in packages}
    whole = {
        **card,
        "versions": {"python": platform.python_version(), **versions},
        "command": command,
        "date": datetime.date.today().isoformat(),
    }
    write_whole(file, json.dumps(whole, indent=2) + "\n")
    return whole


def run(
    parser: argparse.ArgumentParser,
    make: Callable[[argparse.Namespace, Path], Mapping[str, Any]],
    arguments: Sequence[str] | None,
) -> int:
    """The command line of a training script: `--output DIR`, and what `parser` has already.

    Args:
        parser: Gets `--output`.
        make: Trains, writes into the directory and returns what is printed.
        arguments: None: those of the process.

    Returns:
        The exit code; a user's mistake is one sentence on standard error.
    """
    parser.add_argument("--output", type=Path, required=True, help="directory for the weights and the model card")
    options = parser.parse_args(arguments)
    directory: Path = options.output
    try:
        directory.mkdir(parents=True, exist_ok=True)
        figures = make(options, directory)
    except OSError as error:
        print(f"--output {directory} cannot be written: {error}. Give a directory that can be.", file=sys.stderr)
        return ConfigError.exit_code
    except TrtCompressError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(json.dumps(figures))
    return 0
