"""The command prune: a bundle with what one target needs."""

from pathlib import Path
from typing import Annotated

import typer

from trt_compress.memory import format_bytes
from trt_compress.tools.cli.habits import BundlePath, Json, RequireDigest, target_names
from trt_compress.tools.console import print_json, print_table, print_text, progress


def prune(
    bundle: BundlePath,
    target: Annotated[
        str, typer.Option(metavar="T", autocompletion=target_names, help="What stays; see `trt-compress list targets`.")
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="DIR", help="Write a pruned copy there (default: change BUNDLE itself)."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the bundle in DIR.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be removed; change nothing.")] = False,
    require_digest: RequireDigest = None,
    json: Json = False,
) -> None:
    """Remove what other targets need, their engines and files, before a bundle goes to its device."""
    from trt_compress.export.prune import prune as prune_bundle

    with progress("Pruning"):
        result = prune_bundle(
            bundle, target=target, output=output, force=force, dry_run=dry_run, require_digest=require_digest
        )
    if json:
        print_json(result.to_json())
        return
    title = "Would remove" if dry_run else "Removed" if output is None else "Left out"
    if result.removed:
        print_table(title, ("file", "size"), [(name, format_bytes(size)) for name, size in result.removed.items()])
    else:
        print_text(f"There is nothing that '{target}' does not need.")
    before, after = format_bytes(result.bytes_before), format_bytes(result.bytes_after)
    print_text(f"{result.path} for '{target}': {before} before, {after} {'then' if dry_run else 'now'}.")
