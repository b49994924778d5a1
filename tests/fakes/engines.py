"""Engines of the fake TensorRT in bundles."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx

from tests.fakes.tensorrt import engine_bytes
from trt_compress.digest import sha256
from trt_compress.export.bundle import update_bundle
from trt_compress.format.bundle import Bundle
from trt_compress.format.manifest import Engine, Graph
from trt_compress.runtime.onnx_source import copy_graph

Profile = dict[str, dict[str, tuple[int, ...]]]


def profile_of(bundle: Bundle, graph: Graph) -> Profile:
    """What `build` gives: the ranges of the manifest."""
    found: Profile = {}
    for info in graph.inputs:
        if all(isinstance(dim, int) for dim in info.shape):
            continue
        ends = {}
        for end in ("min", "opt", "max"):
            lengths = {name: getattr(one, end) for name, one in bundle.manifest.lengths.items()}
            batch = getattr(bundle.manifest.batch, end)
            ends[end] = tuple(dim if isinstance(dim, int) else lengths.get(dim, batch) for dim in info.shape)
        found[info.name] = ends
    return found


def _whole(bundle: Bundle, graph: Graph) -> bytes:
    """A graph with its weights inside."""
    with TemporaryDirectory() as folder:
        return onnx.load(copy_graph(bundle, graph.file, Path(folder))).SerializeToString()


def add_engines(
    bundle: Bundle,
    target: str = "jetson-orin-jp6",
    *,
    engine: Mapping[str, Any] | None = None,
    profiles: Sequence[Mapping[str, Mapping[str, Sequence[int]]]] | None = None,
    graphs: Sequence[str] | None = None,
    models: Mapping[str, bytes] | None = None,
    **record: Any,
) -> Bundle:
    """Put an engine of every graph into a bundle, with a record as `build` writes it.

    Args:
        bundle: The bundle.
        target: What it is for; `rtx` is of TensorRT-RTX.
        engine: What `engine_bytes` takes beside the model.
        profiles: In place of the one that the manifest gives.
        graphs: Their names; None: all.
        models: ONNX models in place of the graphs' own.
        record: Entries of the record that are otherwise.
    """
    records, files = [], {}
    is_rtx = target == "rtx"
    for graph in bundle.manifest.graphs:
        if graphs is not None and graph.name not in graphs:
            continue
        own = profile_of(bundle, graph)
        model = (models or {}).get(graph.name) or _whole(bundle, graph)
        how: dict[str, Any] = {"sm": None if is_rtx else 87, **(engine or {})}
        data = engine_bytes(model, profiles=profiles or [own], **how)
        file = f"engines/{target}/{graph.name}.engine"
        files[file] = data
        entries: dict[str, Any] = {
            "target": target,
            "file": file,
            "sha256": sha256(data),
            "bytes": len(data),
            "library": "tensorrt_rtx" if is_rtx else "tensorrt",
            "library_version": "1.7.1.116" if is_rtx else "10.3.0",
            "onnx_sha256": bundle.manifest.files[graph.file].sha256,
            "precision_asked": bundle.manifest.precision,
            "precision_achieved": {"evidence": "network", "model": {bundle.manifest.precision: 3}, "operators": {}},
            "paths": {},
            "profile": own,
            "seconds": 1.0,
            "graph": graph.name,
            "sm": None if is_rtx else 87,
            "driver": None if is_rtx else "12.6",
        }
        records.append(Engine(**{**entries, **record}))
    manifest = replace(bundle.manifest, engines=(*bundle.manifest.engines, *records))
    update_bundle(bundle, manifest, files)
    return Bundle.open(bundle.path)
