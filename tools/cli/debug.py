"""The command debug: what finds the node at which an engine differs."""

from pathlib import Path
from typing import Annotated

import typer

from trt_compress.tools.cli.habits import BundlePath, Json, RequireDigest, target_names
from trt_compress.tools.console import print_json, print_piece, print_text, progress


def debug(
    bundle: BundlePath,
    target: Annotated[
        str, typer.Option(metavar="T", autocompletion=target_names, help="See `trt-compress list targets`.")
    ],
    output_folder: Annotated[Path, typer.Option("--to", "-o", metavar="DIR", help="The folder to make.")],
    graph: Annotated[str | None, typer.Option(metavar="NAME", help="Of several graphs the one to look at.")] = None,
    node: Annotated[str | None, typer.Option(metavar="NAME", help="Compare what this node gives.")] = None,
    output: Annotated[str | None, typer.Option(metavar="NAME", help="Compare this tensor.")] = None,
    inputs: Annotated[
        Path | None, typer.Option(metavar="FILE.npz", help="Input arrays of the graph (default: seeded ones).")
    ] = None,
    plugins: Annotated[
        str | None,
        typer.Option(metavar="yes|no|FILE", help="Native operators, as for build (default: as the engine has them)."),
    ] = None,
    require_digest: RequireDigest = None,
    json: Json = False,
) -> None:
    """Write ready calls of Polygraphy that compare ONNX Runtime with TensorRT and find the node that differs."""
    from trt_compress.tools.debugging import write_debug

    with progress("Writing"):
        made = write_debug(
            bundle,
            target=target,
            folder=output_folder,
            graph=graph,
            node=node,
            output=output,
            inputs=inputs,
            plugins={"yes": True, "no": False}.get(plugins or "", plugins),
            require_digest=require_digest,
        )
    if json:
        print_json(made.to_json())
        return
    print_text(f"Wrote {made.path}. Where TensorRT is, {made.path}/run.sh compares, and {made.path}/reduce.sh reduces:")
    for call in (made.reference, made.compare):
        print_piece(call + "\n")
