"""The commands that look and tell: list, inspect, doctor."""

from typing import Annotated

import typer

from trt_compress.errors import ConfigError
from trt_compress.suggest import not_known
from trt_compress.tools.cli.habits import BundlePath, Json, RequireDigest
from trt_compress.tools.console import print_json, print_pairs, print_table, print_text, progress


def list_registered(
    kind: Annotated[
        str | None,
        typer.Argument(
            metavar="[operators|compressors|models|targets]",
            help="What to list (default: everything).",
            autocompletion=lambda: list(_LISTS),
        ),
    ] = None,
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[WORD…]", help="Only rows that have all these words: models deit.")
    ] = None,
    json: Json = False,
) -> None:
    """List the operators, compressors, models or targets there are."""
    if kind is not None and kind not in _LISTS:
        raise ConfigError(not_known("list", kind, _LISTS))
    from trt_compress.tools import listing

    with progress("Reading the registries"):
        chosen = [name for name in _LISTS if kind in (None, name)]
        rows = {name: [row.to_json() for row in getattr(listing, f"list_{name}")(*(words or ()))] for name in chosen}
    if json:
        print_json(rows)
        return
    for name, found in sorted(rows.items(), key=lambda item: len(item[1])):  # the long list last, not out of sight
        if not found:
            print_text(f"None of the {name} has {' and '.join(repr(word) for word in words or ())}.")
            continue
        left_out = {"op_type", "exports"}  # Trtc and the name; what is alike for all
        columns = [column for column in found[0] if column not in left_out]
        headings = [column.replace("_", " ") for column in columns]
        print_table(name.capitalize(), headings, [[_joined(row[column]) for column in columns] for row in found])
        for row in found[:1] if name == "targets" else ():
            precisions = " or ".join(row["exports"])
            print_text(f"Bundles are exported in {precisions}.")
            print_text("'run by' names the backend of run, bench and evaluate.")


def _joined(value: object) -> object:
    return (", ".join(value) or None) if isinstance(value, list) else value


def inspect(bundle: BundlePath, require_digest: RequireDigest = None, json: Json = False) -> None:
    """Show what a bundle holds: model, graphs, tokens per site, operators, engines, verification, sizes."""
    from trt_compress.format.bundle import Bundle
    from trt_compress.tools.artifacts import artifacts_of, card_pairs
    from trt_compress.tools.describe import bundle_bytes, print_bundle

    with progress("Checking the files"):
        opened = Bundle.open(bundle, require_digest=require_digest)
        artifacts = artifacts_of(opened)
    if json:
        print_json(
            {
                "path": str(opened.path),
                "bytes": bundle_bytes(opened.manifest),
                "manifest": opened.manifest.to_json(),
                "artifacts": {name: card.metadata() for name, card in artifacts.items()},
            }
        )
        return
    print_bundle(opened)
    for name, card in artifacts.items():
        print_pairs(f"Artifact {name}", card_pairs(card))


def doctor(json: Json = False) -> None:
    """Explain this machine: what is installed, what works, and what to do about the rest."""
    from trt_compress.tools.doctor import conclusion, run_checks

    with progress("Looking around"):
        checks = run_checks()
    if json:
        print_json({"checks": [check.to_json() for check in checks]})
        return
    for group in dict.fromkeys(check.group for check in checks):
        rows = [(check.name, check.found or "missing", check.advice or "") for check in checks if check.group == group]
        print_table(group.capitalize() if group.islower() else group, ("", "found", "what to do"), rows)
    print_text(conclusion(checks))


_LISTS = ("operators", "compressors", "models", "targets")
