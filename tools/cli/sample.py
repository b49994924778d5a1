"""The command that makes inputs to try a bundle on."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from trt_compress.foreign import needs_extra
from trt_compress.tools.cli.habits import Json
from trt_compress.tools.console import print_json, print_text, progress


def sample(
    kind: Annotated[str, typer.Argument(metavar="video|speech|images|scene", help="What to make.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="The folder it goes to.")],
    count: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Clips of the video (default 10), words (20), pictures of each class (36) or moments of the scene "
            "(40).",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Make inputs to try a bundle on, with the answers: held-out data of the zoo's models, the same each time."""
    from trt_compress.tools.samples import write_sample

    with progress(f"Making {kind}"), needs_extra("export,zoo"):
        made = write_sample(kind, output, count=count)
    if json:
        print_json(dataclasses.asdict(made))
        return
    labels = "" if made.labels == made.source else f" and {made.labels}"
    print_text(f"Wrote {made.source}{labels}: {made.summary}.")
    print_text("Try:")
    name = made.model.partition(":")[2]
    print_text(f"  trt-compress export {made.model} -o {name}")
    if kind == "images":
        print_text(f"  trt-compress evaluate {name} --images {output / 'images'}")
    else:
        print_text(f"  trt-compress run {name} --source {made.source} --labels {made.labels}")
