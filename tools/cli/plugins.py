"""The commands plugins build and plugins list: the native libraries."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from trt_compress.cache import SET, cache_folder, passed_over
from trt_compress.errors import ConfigError, PluginError
from trt_compress.memory import format_bytes
from trt_compress.tools.cli.habits import Json
from trt_compress.tools.console import LOGGER, print_json, print_table, print_text, progress

if TYPE_CHECKING:
    from trt_compress.plugins.library import Library

CUDA_HELP = "SMs to compile the kernels for, such as 87,90; 'all', or 'none'. Default: those of the GPUs here."


def build(
    cuda: Annotated[str, typer.Option(metavar="ARCHS", help=CUDA_HELP, show_default=False)] = "auto",
    tensorrt: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of NvInfer.h (default: where packages put it).")
    ] = None,
    onnxruntime: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Unpacked ONNX Runtime release with headers (default: fetched with apt)."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Build although it is there already.")] = False,
    json: Json = False,
) -> None:
    """Build the native libraries: CPU operators for ONNX Runtime, CUDA kernels, TensorRT plugins."""
    from trt_compress.plugins.build import build as build_libraries

    _say_passed_over()
    with progress("Building") as step:
        outcomes = build_libraries(
            cuda=_archs(cuda), tensorrt=tensorrt, onnxruntime=onnxruntime, force=force, step=step
        )
    found = {"libraries": [outcome.to_json() for outcome in outcomes]}
    if not json:
        rows = [
            (
                outcome.kind,
                "skipped" if outcome.library is None else "built" if outcome.was_built else "is there",
                f"{outcome.seconds:.1f}" if outcome.was_built else None,
                outcome.note or (str(outcome.library.path) if outcome.library else ""),
            )
            for outcome in outcomes
        ]
        print_table("Native libraries", ("library", "", "seconds", "where, or why not"), rows)
    if all(outcome.library is None for outcome in outcomes):
        raise PluginError("None of the native libraries could be built here; the reasons stand above.", report=found)
    if json:
        print_json(found)


def list_libraries(json: Json = False) -> None:
    """List the native libraries that are built, and whether they fit this version and this machine."""
    _say_passed_over()
    rows = described()
    if json:
        print_json({"libraries": rows})
    elif not rows:
        print_text(_nothing_built())
    else:
        columns = ("library", "state", "operators", "for", "size", "path")
        cells = [[row[name] for name in columns] for row in rows]
        print_table("Native libraries", columns, cells)
        for row in rows:
            if row["state"] == "unusable":
                print_text(row["why"])


def _say_passed_over() -> None:
    if note := passed_over():
        LOGGER.warning(note)


def _nothing_built() -> str:
    try:
        os.listdir(cache_folder() / "plugins")
    except PluginError as error:
        return f"No native library is built. {error.message}"
    except PermissionError as error:
        return f"No native library is built: '{error.filename}' may not be looked at; {SET}."
    except OSError:
        pass
    return "No native library is built; 'trt-compress plugins build' does."


def described() -> list[dict[str, Any]]:
    """Every library in the cache in words, those of other sources too."""
    from trt_compress.plugins.library import installed, source_hash

    rows: list[dict[str, Any]] = []
    for found in installed():
        if isinstance(found, PluginError):
            blank = dict.fromkeys(("library", "operators", "for", "size", "path"))
            rows.append(blank | {"state": "unusable", "why": found.message})
            continue
        old = found.info["source_hash"] != source_hash(found.kind)
        why = f"built from other sources, trt-compress {found.info['version']}" if old else _why_not(found)
        rows.append(
            {
                "library": found.kind,
                "state": "old" if old else "unusable" if why else "ready",
                "why": why,
                "operators": ", ".join(found.operators),
                "for": _made_for(found.info),
                "size": format_bytes(found.path.stat().st_size),
                "path": str(found.path),
            }
        )
    return rows


def _why_not(found: "Library") -> str:
    from trt_compress.plugins.library import check

    try:
        check(found.path, found.kind)
    except PluginError as error:
        return error.message
    return ""


def _made_for(info: Any) -> str:
    parts = [f"TensorRT {info['tensorrt']}"] if "tensorrt" in info else []
    parts += [f"SM {', '.join(map(str, info['sms']))} and PTX"] if "sms" in info else []
    parts += [", ".join(info["cpu_features"]) or "any processor"] if "cpu_features" in info else []
    return "; ".join(parts)


def _archs(text: str) -> Literal["auto", "all", "none"] | list[int]:
    words: dict[str, Literal["auto", "all", "none"]] = {"auto": "auto", "all": "all", "none": "none"}
    if text in words:
        return words[text]
    numbers = [part.strip().removeprefix("sm_").replace(".", "", 1) for part in text.split(",")]
    if not all(number.isascii() and number.isdigit() and len(number) < 10 for number in numbers):
        raise ConfigError(f"--cuda {text}: give SMs such as 87,90, or 'all', or 'none'.")
    return [int(number) for number in numbers]
