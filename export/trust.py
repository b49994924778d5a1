"""What the recipe of a bundle may name on this machine: a bundle may be a stranger's, and its recipe then too.

It may name models of the zoo and of timm, which are part of what is installed, and files of the bundle itself. A path
in it would be read, and of FILE.py:FACTORY run, and timm's pretrained weights would be downloaded: none of that is done
unless the user names the file himself, or says that the recipe may.
"""

import os
from collections.abc import Collection
from pathlib import Path

from trt_compress.errors import ConfigError
from trt_compress.export.artifacts import with_artifacts_of
from trt_compress.export.recipe import Recipe
from trt_compress.foreign import shown
from trt_compress.format.bundle import Bundle
from trt_compress.format.manifest import MANIFEST_NAME
from trt_compress.format.unlisted import listed_in
from trt_compress.model_name import FILE_SOURCE, parse_model

_PRETRAINED = "pretrained"


def trusted(file: str, recipe: Recipe, *, named: Collection[str]) -> Recipe:
    """What may be done with a recipe: one that lies in a bundle, at any depth, links followed, is a stranger's.

    Args:
        file: What was given as a model: a recipe file, or the name of a model, which the user wrote.
        recipe, named: As `refuse_paths` takes them.

    Returns:
        The recipe; artifacts of the bundle that it lies in have been read.

    Raises:
        ConfigError: it lies in a bundle, and names something on this machine; the message has the path.
        BundleError: it names artifacts, and the bundle that it lies in is damaged.
    """
    path = Path(file)
    if not file.endswith(".toml"):
        return recipe
    places = (Path(os.path.abspath(path)), Path(os.path.realpath(path)))
    folders = [place.parent for place in places if os.path.lexists(place.parent / MANIFEST_NAME)]
    # many things have a manifest.json: of the folders further up, one that lists files is a bundle's
    folders += [folder for place in places for folder in place.parents if listed_in(folder / MANIFEST_NAME)]
    if folders:
        if "compressors" not in named and any(spec.config.artifacts for spec in recipe.compressors):
            recipe = with_artifacts_of(Bundle.open(folders[0]), recipe)
        refuse_paths(recipe, where=f"the recipe '{shown(file)}', which lies in a bundle,", named=named)
    return recipe


def refuse_paths(recipe: Recipe, *, where: str, named: Collection[str]) -> None:
    """Refuse a bundle's recipe that names something on this machine, or on the network.

    Args:
        recipe: What it says, and in place of it what the user gave.
        where: Whose recipe it is, for the message.
        named: What the user named himself, of "model", "weights", "compressors" and "calibrate".

    Raises:
        ConfigError: It does; the message has the path.
    """
    model = parse_model(recipe.model)
    if model.path is not None and "model" not in named:
        run = ", whose code would be run" if model.source == FILE_SOURCE else ""
        raise _untrusted(where, f"model {recipe.model}{run}", "--trust-paths")
    weights = None if "weights" in named else recipe.weights
    if weights == _PRETRAINED:
        raise _untrusted(
            where, "timm's pretrained weights, which may be downloaded", "--weights pretrained or --trust-paths"
        )
    if weights is not None:
        raise _untrusted(where, f"the weights {weights}", "--weights FILE or --trust-paths")
    if recipe.calibrate is not None and "calibrate" not in named:
        raise _untrusted(where, f"the samples {recipe.calibrate}", "--calibrate or --trust-paths")
    for spec in () if "compressors" in named else recipe.compressors:
        for file in spec.config.artifacts.values():
            if file.content is None:
                raise _untrusted(where, f"{file} of {spec.name}, no file of the bundle", "--trust-paths")


def _untrusted(where: str, what: str, option: str) -> ConfigError:
    return ConfigError(
        f"{where} names {shown(what)}; a bundle may be a stranger's, so only models of the zoo and of timm are taken "
        f"from its recipe: give {option} if you know that it is what it should be."
    )
