"""The command show: which patches of a picture are kept, merged or dropped."""

from pathlib import Path
from typing import Annotated

import typer

from trt_compress.errors import ConfigError, UnsupportedError
from trt_compress.foreign import needs_extra, reason_of, shown
from trt_compress.tools.cli.habits import BundlePath, Json, RequireDigest, TrustPaths
from trt_compress.tools.console import print_json, print_table, print_text, progress


def show(
    bundle: BundlePath,
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="A picture.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE.png", help="Where to draw.")],
    weights: Annotated[
        str | None, typer.Option(metavar="FILE", help="The weights it was made with, if from a file.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="The model that it was made with, wherever it is now (hf:DIR).")
    ] = None,
    inputs: Annotated[
        Path | None,
        typer.Option(metavar="FILE.npz", help="What the bundle takes beside the picture, by name: text."),
    ] = None,
    trust_paths: TrustPaths = False,
    require_digest: RequireDigest = None,
    json: Json = False,
) -> None:
    """Draw which patches of a picture are kept, merged into which, or dropped, at each site."""
    if not image.is_file():
        raise ConfigError(f"show: '{shown(str(image))}' is no file; give a picture.")
    with progress("Drawing") as step:
        with needs_extra("export"):
            from trt_compress.export.api import check_files, recipe_of
            from trt_compress.models.hosts.registry import load_host
        with needs_extra("video"):
            from trt_compress.runtime.draw3d import write_picture
            from trt_compress.tools import token_map
        from trt_compress.digest import as_digests
        from trt_compress.format.bundle import Bundle

        opened = Bundle.open(bundle, require_digest=as_digests(require_digest))
        if len(opened.manifest.graphs) != 1:
            raise UnsupportedError("show: the bundle has several graphs; drawn are those of one that reads a picture.")
        tensor, seen = token_map.read_image(opened.manifest, image)
        recipe = check_files(recipe_of(opened, weights=weights, model=model, trust_paths=trust_paths))
        step("loading the model")
        host = load_host(recipe.model, weights=recipe.weights, model_sha256=recipe.model_sha256)
        (graph,) = host.attach(recipe.compressors)
        step("following the patches")
        maps = token_map.map_tokens(graph, tensor, *token_map.inputs_beside(graph, inputs))
        try:
            write_picture(output, token_map.draw_maps(seen, maps, token_map.grid_of(graph)))
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"'{shown(str(output))}' cannot be written ({reason_of(error)}); give another file, such as tokens.png."
            ) from None
    rows = [(each.site, each.method, each.tokens_in, each.tokens_out, each.dropped) for each in maps]
    names = ("site", "method", "tokens in", "tokens out", "patches dropped")
    if json:
        print_json({"sites": [dict(zip(names, row, strict=True)) for row in rows], "picture": str(output)})
        return
    print_table("Patches", names, rows)
    print_text(f"Drawn in {output}.")
