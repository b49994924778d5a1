"""Engines of a bundle: build them for a target and add them, all or none. Needs neither torch nor onnx."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trt_compress.errors import BundleError, ConfigError
from trt_compress.export.build import (
    BuiltEngine,
    build_engine_file,
    check_request,
    choose_plugins,
    input_shapes,
)
from trt_compress.export.bundle import check_update, update_bundle
from trt_compress.export.check import engine_findings, require_passed
from trt_compress.export.forms import operator_nodes_of, source_file, target_file
from trt_compress.export.int8_form import least_share
from trt_compress.export.ranges import BatchRange, lengths_of
from trt_compress.export.targets import get_target
from trt_compress.foreign import refusals_said
from trt_compress.format.bundle import Bundle, as_digests
from trt_compress.format.manifest import Engine
from trt_compress.strays import temporary_folder

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildPlan:
    """What a build would do."""

    target: str
    library: str
    file: str
    batch: str
    precision_asked: str
    plugins: str | None
    replaces: bool

    def to_json(self) -> dict[str, Any]:
        """The plan as plain JSON values."""
        return {name: getattr(self, name) for name in self.__slots__}


@refusals_said()
def build(
    bundle: str | Path,
    *,
    target: str,
    plugins: bool | str | Path | None = None,
    force: bool = False,
    dry_run: bool = False,
    require_digest: str | Collection[str] | None = None,
    progress: Progress | None = None,
) -> Engine | BuildPlan:
    """Build the engine of a bundle with one graph for a target, and add it to the bundle.

    Args:
        bundle: The bundle's directory.
        target: A target with engines: rtx, x86-trt10, jetson-…
        plugins: The native operators: True needs them, False builds from the ONNX bodies, a path is the library to
            take; None takes what is built here.
        force: Replace the engine that the bundle has for this target.
        dry_run: Check what can be checked and return the plan.
        require_digest: The digest that the bundle must have, as `Bundle.open` takes it.
        progress: Called with the name of each step.

    Raises:
        ConfigError: the bundle has several graphs; `export.engines.build_engines` builds them all.
        UnsupportedError, GateError, BuildError, PluginError: as `build_engines`.
    """
    opened = Bundle.open(bundle, require_digest=require_digest)
    graphs = opened.manifest.graphs
    if len(graphs) > 1:
        raise ConfigError(
            f"{bundle} has the graphs {', '.join(graph.name for graph in graphs)}, and build makes one engine; call "
            "build_engines, which builds them all."
        )
    (made,) = build_engines(opened, target=target, plugins=plugins, force=force, dry_run=dry_run, progress=progress)
    return made


def build_engines(
    bundle: str | Path | Bundle,
    *,
    target: str,
    plugins: bool | str | Path | None = None,
    force: bool = False,
    dry_run: bool = False,
    require_digest: str | Collection[str] | None = None,
    progress: Progress | None = None,
) -> tuple[Engine | BuildPlan, ...]:
    """Build an engine of every graph for a target and add them to the bundle, all or none.

    Args:
        bundle: The bundle's directory, or a bundle that is open already.
        target: A target with engines: rtx, x86-trt10, jetson-…
        plugins: The native operators: True needs them, False builds from the ONNX bodies, a path is the library to
            take; None takes what `trt-compress plugins build` made for this TensorRT, if it did, and needs it where the
            target's file has no bodies. The record says which operators became plugins.
        force: Replace the engines that the bundle has for this target.
        dry_run: Check what can be checked and return the plans.
        require_digest: The digest that the bundle must have, as `Bundle.open` takes it.
        progress: Called with the name of each step.

    Raises:
        BundleError: the bundle has an engine for the target, or nothing can be written into it.
        UnsupportedError: the library is missing, of the wrong version, or needs a GPU.
        GateError: preflight failed, or another precision was achieved than asked.
        BuildError: the builder refused the graph or died; nothing is added.
        PluginError: the plugin library is missing, or may not be loaded.
    """
    step = progress or (lambda text: None)
    chosen, required = get_target(target), as_digests(require_digest)
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    opened.require(required)
    manifest = opened.manifest
    existing = [engine for engine in manifest.engines if engine.target == target]
    if existing and not force:
        raise BundleError(f"{opened.path} already has an engine for '{target}'.", hint="--force replaces it.")
    batch = BatchRange(min=manifest.batch.min, opt=manifest.batch.opt, max=manifest.batch.max)
    check_request(chosen, manifest.precision)
    library = choose_plugins(chosen, plugins)
    step("checking the graph")
    require_passed(engine_findings(opened, target))
    if dry_run:
        return tuple(
            BuildPlan(
                target=target,
                library=chosen.backend,
                file=_engine_file(target, graph.name, "<hash>" if existing else ""),
                batch=str(batch),
                precision_asked=manifest.precision,
                plugins=str(library.path) if library else None,
                replaces=bool(existing),
            )
            for graph in manifest.graphs
        )
    check_update(opened)
    lengths = lengths_of(manifest)
    records, engines = [], {}
    for graph in manifest.graphs:
        step("building" if len(manifest.graphs) == 1 else f"building {graph.name}")
        with temporary_folder("build") as folder:
            built = build_engine_file(
                target_file(opened, graph, chosen, with_plugins=library is not None, folder=folder),
                chosen,
                inputs=input_shapes(graph.inputs),
                operators=operator_nodes_of(opened, source_file(opened, graph)),
                batch=batch,
                precision=manifest.precision,
                lengths=lengths,
                plugins=library,
                int8_share=least_share(manifest.recipe),
                int8_rest=manifest.recipe.get("int8_rest", "fp32"),
            )
        file = _engine_file(target, graph.name, built.record.sha256[:8] if existing else "")
        records.append(engine_record(built, file, manifest.files[source_file(opened, graph)].sha256, graph.name))
        engines[file] = built.data
    step("adding the engine" + "s"[: len(engines) > 1])
    _add(opened, target, records, engines)
    return tuple(records)


def _engine_file(target: str, graph: str, token: str) -> str:
    """Where an engine goes: beside one that is there under a name of its own, as a listed file is never written to."""
    return f"engines/{target}/{graph}.{token}.engine" if token else f"engines/{target}/{graph}.engine"


def _add(opened: Bundle, target: str, records: Sequence[Engine], engines: Mapping[str, bytes]) -> None:
    """Add engines to a bundle; also to one that was changed meanwhile, if not in what they were built from."""
    bundle = opened
    while True:
        kept = tuple(engine for engine in bundle.manifest.engines if engine.target != target)
        old = [engine.file for engine in bundle.manifest.engines if engine.target == target]
        manifest = replace(bundle.manifest, engines=(*kept, *records))
        try:
            update_bundle(bundle, manifest, engines, remove=[file for file in old if file not in engines])
            return
        except BundleError:
            now = Bundle.open(opened.path, check_hashes=False)
            if now.manifest == bundle.manifest or _origin(now, target) != _origin(opened, target):
                raise
            bundle = now


def _origin(bundle: Bundle, target: str) -> object:
    """What engines for a target are built from and what they replace."""
    manifest = bundle.manifest
    sources = [source_file(bundle, graph) for graph in manifest.graphs]
    return (
        manifest.graphs,
        [manifest.files.get(name) for name in sources],
        [part for part in manifest.lowered if part.target == target],
        [engine for engine in manifest.engines if engine.target == target],
        (manifest.precision, manifest.batch, manifest.recipe),
    )


def engine_record(built: BuiltEngine, file: str, onnx_sha256: str, graph: str) -> Engine:
    """What the manifest says of an engine."""
    record = built.record
    return Engine(
        target=record.target,
        file=file,
        sha256=record.sha256,
        bytes=len(built.data),
        library=record.library,
        library_version=record.library_version,
        onnx_sha256=onnx_sha256,
        precision_asked=record.precision_asked,
        precision_achieved=record.precision_achieved,
        paths=record.paths,
        profile={name: {end: tuple(shape) for end, shape in shapes.items()} for name, shapes in record.profile.items()},
        seconds=round(record.seconds, 3),
        graph=graph,
        plugins=record.plugins,
        sm=record.sm,
        driver=record.driver,
    )
