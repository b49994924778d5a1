"""Artifacts in bundles: under which names they travel, and how a bundle's recipe finds them there again."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePath

from trt_compress.export.recipe import Recipe
from trt_compress.format.bundle import Bundle
from trt_compress.methods import ArtifactFile, CompressorSpec

FOLDER = "artifacts"


def named_in_bundle(specs: Sequence[CompressorSpec]) -> tuple[tuple[CompressorSpec, ...], dict[str, bytes]]:
    """The same with artifacts by the names that they have in a bundle, and the files by these names.

    Args:
        specs: Methods whose artifacts have been read.
    """
    files: dict[str, bytes] = {}
    found = []
    for spec in specs:
        named = {}
        for option, file in spec.config.artifacts.items():
            if file.content is None:
                raise AssertionError(f"{file.path} has not been read")
            stem, number = f"{FOLDER}/{spec.name}.{option}", 1
            name = f"{stem}.safetensors"
            while files.get(name, file.content) != file.content:
                number += 1
                name = f"{stem}-{number}.safetensors"
            files[name] = file.content
            named[option] = ArtifactFile(name, file.content)
        found.append(replace(spec, config=replace(spec.config, **named)) if named else spec)
    return tuple(found), files


def with_artifacts_of(bundle: Bundle, recipe: Recipe) -> Recipe:
    """The recipe of a bundle with the content of those artifacts that are files of the bundle; others stay paths.

    Raises:
        BundleError: one was changed.
    """

    def of(spec: CompressorSpec) -> CompressorSpec:
        found = {}
        for option, file in spec.config.artifacts.items():
            name = PurePath(os.path.relpath(file.path, bundle.path) if os.path.isabs(file.path) else file.path)
            if file.content is None and name.as_posix() in bundle.manifest.files:
                found[option] = ArtifactFile(name.as_posix(), bundle.read(name.as_posix()))
        return replace(spec, config=replace(spec.config, **found)) if found else spec

    return replace(recipe, compressors=tuple(of(spec) for spec in recipe.compressors))
