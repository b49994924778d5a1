"""The commands that look and tell: list, inspect, doctor."""

from pathlib import Path
from typing import Annotated

import typer

from trt_compress.errors import ConfigError, GateError
from trt_compress.suggest import not_known
from trt_compress.tools.cli.habits import BundlePath, Json, RequireDigest, target_names
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


def doctor(
    bundle: Annotated[
        Path | None,
        typer.Argument(
            metavar="[BUNDLE]", help="Hold what this bundle needs against what is here.", show_default=False
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="T",
            autocompletion=target_names,
            help="The target of BUNDLE that has to run here (default: one of them).",
        ),
    ] = None,
    require_digest: RequireDigest = None,
    json: Json = False,
) -> None:
    """Explain this machine: what is installed, what works, and what to do about the rest.

    With BUNDLE: whether it can be run here, and what it lacks; then the command exits 3.
    """
    for option, given in (("--target", target), ("--require-digest", require_digest)):
        if bundle is None and given:
            raise ConfigError(f"{option} is of a bundle, and none is given; write `trt-compress doctor BUNDLE`.")
    with progress("Looking around"):
        if bundle is None:
            from trt_compress.tools.doctor import conclusion, run_checks

            checks = run_checks()
            last = conclusion(checks)
        else:
            from trt_compress.format.bundle import Bundle
            from trt_compress.tools.doctor_bundle import bundle_checks

            checks = bundle_checks(Bundle.open(bundle, require_digest=require_digest), target=target)
            last = f"'{bundle}' can be run here."
    report = {"checks": [check.to_json() for check in checks]}
    for group in dict.fromkeys(check.group for check in checks) if not json else ():
        rows = [(check.name, check.found or "missing", check.advice or "") for check in checks if check.group == group]
        print_table(group.capitalize() if group.islower() else group, ("", "found", "what to do"), rows)
    problems = [check for check in checks if check.problem]
    if bundle is not None and problems:
        first, more = problems[0], len(problems) - 1
        raise GateError(
            f"'{bundle}' cannot be run here: {first.name}: {first.advice}{f' ({more} more)' if more else ''}",
            report=report,
        )
    if json:
        print_json(report)
    else:
        print_text(last)


_LISTS = ("operators", "compressors", "models", "targets")
