"""The command that makes an artifact for a method from data: calibrate."""

from pathlib import Path
from typing import Annotated

import typer

from trt_compress.foreign import needs_extra
from trt_compress.tools.cli.habits import Json, TrustPaths
from trt_compress.tools.console import print_json, print_pairs, progress


def calibrate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="As `export` takes it.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Where the artifact goes.")],
    compress: Annotated[
        str | None,
        typer.Option(metavar="SPEC", help="As `export` takes it; one of its methods lacks an artifact that it takes."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.npz",
            help="An array for each input, samples along the first axis, or `prompt` [samples, tokens] of a model that "
            "reads tokens; every fifth is held out for the score. Some methods for language models need none: "
            "they make samples of the model's own tokens.",
        ),
    ] = None,
    tensors: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="In place of data: safetensors file or checkpoint with trained tensors."),
    ] = None,
    weights: Annotated[str | None, typer.Option(metavar="FILE", help="As `export` takes it.")] = None,
    license: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What the artifact may be used for; stands in its card.")
    ] = None,
    trust_paths: TrustPaths = False,
    json: Json = False,
) -> None:
    """Make the artifact that a method takes, for these weights: from data, or from tensors trained elsewhere."""
    with progress(f"Calibrating {model}") as step:
        with needs_extra("export"):
            from trt_compress.export.calibration import calibrate as make
            from trt_compress.tools.artifacts import card_pairs
        made = make(
            model,
            compress=compress,
            output=output,
            data=data,
            tensors=tensors,
            weights=weights,
            license=license,
            trust_paths=trust_paths,
            progress=step,
        )
    if json:
        print_json(made.to_json())
        return
    card = made.card
    pairs = [("artifact", str(made.path)), *card_pairs(card, held_out=made.held_out)]
    print_pairs("Calibrated", [*pairs, ("use it", made.spec)])
