"""A bundle with what one target needs, for a device with little room. Needs neither torch nor onnx."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trt_compress.errors import ConfigError
from trt_compress.export.bundle import check_output, update_bundle, write_bundle
from trt_compress.export.targets import Target, get_target
from trt_compress.format.bundle import Bundle
from trt_compress.format.manifest import Manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneResult:
    """What was taken away, or would be.

    Attributes:
        path: Where the pruned bundle is, or would be.
        target: What it is for.
        removed: Bytes of every file that is gone, by name.
        bytes_before: Size of all files but the manifest, before.
        bytes_after: The same, after.
    """

    path: Path
    target: str
    removed: dict[str, int]
    bytes_before: int
    bytes_after: int

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "bundle": str(self.path),
            "target": self.target,
            "removed": self.removed,
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
        }


def prune(
    bundle: str | Path,
    *,
    target: str,
    output: str | Path | None = None,
    force: bool = False,
    dry_run: bool = False,
    require_digest: str | Collection[str] | None = None,
) -> PruneResult:
    """Take from a bundle what another target than this one needs: its engines, and files in another form.

    What the target's engine is built from stays, and so do the engine, the recipe and the proof.

    Args:
        bundle: The bundle's directory.
        target: What stays.
        output: Where a pruned copy goes; None: the bundle itself changes, all or nothing.
        force: Replace the bundle that is at `output`.
        dry_run: Change nothing, and say what would be removed.
        require_digest: The digest that the bundle must have, as `Bundle.open` takes it; the pruned one has another.

    Raises:
        ConfigError: an unknown target, or one that the bundle has nothing for.
        BundleError: the bundle cannot be read, or the change cannot be written.
    """
    chosen, opened = get_target(target), Bundle.open(bundle, require_digest=require_digest)
    manifest = _for_target(opened, chosen)
    needed = set(_needed(manifest, opened.manifest))
    gone = {name: info.bytes for name, info in opened.manifest.files.items() if name not in needed}
    before = sum(info.bytes for info in opened.manifest.files.values())
    result = PruneResult(
        path=opened.path if output is None else Path(output),
        target=target,
        removed=gone,
        bytes_before=before,
        bytes_after=before - sum(gone.values()),
    )
    if output is not None:
        check_output(Path(output), force)
    if dry_run:
        return result
    if output is None:
        update_bundle(opened, manifest, {}, remove=list(gone))
    else:
        kept = {name: opened.chunks(name) for name in opened.manifest.files if name in needed}
        write_bundle(Path(output), manifest, kept, force=force)
    return result


def _for_target(bundle: Bundle, target: Target) -> Manifest:
    """The manifest of the pruned bundle, but for the list of its files."""
    manifest = bundle.manifest
    pruned = replace(
        manifest,
        targets=(target.name,),
        lowered=tuple(part for part in manifest.lowered if part.target == target.name),
        engines=tuple(engine for engine in manifest.engines if engine.target == target.name),
    )
    own = {part.graph for part in pruned.lowered} | {engine.graph for engine in pruned.engines}
    for graph in manifest.graphs:
        own_file = graph.file in manifest.files and (target.lowering != "plugin" or not manifest.operators)
        if graph.name not in own and not own_file:
            raise ConfigError(
                f"{bundle.path} has nothing for '{target.name}' of the graph '{graph.name}'; export it with --target "
                f"{target.name}. It was exported for {', '.join(manifest.targets) or 'no target'}."
            )
    return pruned


def runnable_part(bundle: Bundle, target: Target) -> tuple[Manifest, tuple[str, ...]]:
    """What one target needs, and what a session of ONNX Runtime does: the graphs' own files, where they are there.

    Returns:
        The manifest, but for the list of its files, and the names of these.

    Raises:
        ConfigError: The bundle has nothing for the target.
    """
    manifest = _for_target(bundle, target)
    own = {graph.file for graph in manifest.graphs}
    needed = {*_needed(manifest, bundle.manifest), *own}
    return manifest, tuple(name for name in bundle.manifest.files if name in needed)


def _needed(manifest: Manifest, before: Manifest) -> Iterator[str]:
    """The files of a pruned bundle, out of all there were; the graphs and the lowered files share their weights."""
    own_form = {part.graph for part in manifest.lowered}
    kept = {file for graph in manifest.graphs for file in graph.external_data}
    kept |= {graph.file for graph in manifest.graphs if graph.name not in own_form}
    kept |= {part.file for part in manifest.lowered} | {engine.file for engine in manifest.engines}
    forms = {graph.file for graph in before.graphs} | {part.file for part in before.lowered}
    forms |= {engine.file for engine in before.engines}
    for name in before.files:
        if name in kept or name not in forms and not name.startswith("engines/"):
            yield name
