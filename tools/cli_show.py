"""The commands that look and tell: list, inspect, doctor."""

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any

import typer

from trt_compress.errors import ConfigError
from trt_compress.suggest import did_you_mean
from trt_compress.tools.cli_habits import BundlePath, Json, needs_extra
from trt_compress.tools.console import print_json, print_table, print_text, progress

Row = dict[str, Any]

_SHORT = {"onnxruntime": "ort", "cuda": "cuda", "tensorrt": "trt"}  # libraries that hold a native form


def list_registered(
    kind: Annotated[
        str | None,
        typer.Argument(metavar="[operators|compressors|models|targets]", help="What to list (default: everything)."),
    ] = None,
    json: Json = False,
) -> None:
    """List the operators, compressors, models or targets there are."""
    if kind is not None and kind not in _LISTS:
        raise ConfigError(f"Cannot list '{kind}'; allowed are {', '.join(_LISTS)}.{did_you_mean(kind, _LISTS)}")
    with progress("Reading the registries"):
        rows = {name: read() for name, read in _LISTS.items() if kind in (None, name)}
    if json:
        print_json(rows)
        return
    for name, found in sorted(rows.items(), key=lambda item: len(item[1])):  # the long list last, not out of sight
        columns = [column for column in found[0] if column != "op type"]  # Trtc and the name; for programs
        cells = [[_lines(row[column]) for column in columns] for row in found]
        print_table(name.capitalize(), columns, cells)


def _lines(value: object) -> object:
    return ("\n".join(value) or None) if isinstance(value, list) else value


def inspect(bundle: BundlePath, json: Json = False) -> None:
    """Show what a bundle holds: model, graphs, tokens per site, operators, engines, verification, sizes."""
    from trt_compress.runtime.bundle import Bundle
    from trt_compress.tools.describe import bundle_bytes, print_bundle

    with progress("Checking the files"):
        opened = Bundle.open(bundle)
    if json:
        print_json(
            {"path": str(opened.path), "bytes": bundle_bytes(opened.manifest), "manifest": opened.manifest.to_json()}
        )
    else:
        print_bundle(opened)


def doctor(json: Json = False) -> None:
    """Explain this machine: what is installed, what works, and what to do about the rest."""
    from trt_compress.tools.doctor import run_checks

    with progress("Looking around"):
        checks = run_checks()
    if json:
        print_json({"checks": [check.to_json() for check in checks]})
        return
    for group in dict.fromkeys(check.group for check in checks):
        rows = [(check.name, check.found or "missing", check.advice or "") for check in checks if check.group == group]
        print_table(group.capitalize() if group.islower() else group, ("", "found", "what to do"), rows)
    problems = sum(check.problem for check in checks)
    print_text(f"{problems or 'No'} problem{'' if problems == 1 else 's'} found.")


def _operators() -> list[Row]:
    with needs_extra("export"):
        from trt_compress.plugins.registry import specs
    from trt_compress.plugins.library import installed_operators

    built = installed_operators()
    return [
        {
            "name": spec.name,
            "op type": spec.op_type,
            "version": spec.version,
            "native": [_SHORT[kind] for kind, op_types in built.items() if spec.op_type in op_types],
            "summary": spec.summary,
        }
        for spec in specs().values()
    ]


def _compressors() -> list[Row]:
    from trt_compress.methods import METHODS

    return [
        {"name": name, "summary": method.summary, "settings": _fields(method.config), "source": method.source}
        for name, method in METHODS.items()
    ]


def _models() -> list[Row]:
    with needs_extra("export"):
        from trt_compress.models.hosts.registry import list_models
    return [{"name": model.name, "family": model.family, "description": model.description} for model in list_models()]


def _targets() -> list[Row]:
    with needs_extra("export"):
        from trt_compress.export.targets import TARGETS
    return [
        {
            "name": target.name,
            "backend": target.backend,
            "opset": target.max_opset,
            "precisions": ", ".join(target.precisions),
            "lowering": target.lowering,
            "description": target.description,
        }
        for target in TARGETS.values()
    ]


_LISTS: dict[str, Callable[[], list[Row]]] = {
    "operators": _operators,
    "compressors": _compressors,
    "models": _models,
    "targets": _targets,
}


def _fields(config: Any) -> str:
    """Write the settings of a compressor as a spec string takes them, with their defaults."""
    missing = dataclasses.MISSING
    return ", ".join(
        field.name if field.default is missing else f"{field.name}={field.default}"
        for field in dataclasses.fields(config)
    )
