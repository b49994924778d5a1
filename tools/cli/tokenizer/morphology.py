"""The command tokenizer morphology."""

from pathlib import Path
from typing import Annotated

import typer

from trt_compress.foreign import shown
from trt_compress.tools.cli.habits import Json
from trt_compress.tools.console import print_json, print_table, print_text, progress

_SHOWN = 10


def morphology(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE…", help="UTF-8, each line a text; of a .json each item of its list."),
    ],
    tables: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="kokler.json, ekler.json and bpe_tokenler.json (default: those that come along)."
        ),
    ] = None,
    mended: Annotated[
        bool,
        typer.Option(
            "--mended", help="Without the oversights of the published decoder, such as İ that comes back as I."
        ),
    ] = False,
    ids: Annotated[bool, typer.Option("--ids", help="With --json: the tokens of every text too.")] = False,
    decode: Annotated[
        bool, typer.Option("--decode", help="FILE is a .json with a list of lists of tokens; print their texts.")
    ] = False,
    json: Json = False,
) -> None:
    """Part Turkish into roots and suffixes (Tokens with Meaning), and measure how often a text does not come back."""
    from trt_compress.runtime.text.turkish.decode import decode as decoded
    from trt_compress.runtime.text.turkish.tables import read_tables
    from trt_compress.tools.tokenizers.morphology import details, measure, numbers_of, texts_of

    known = read_tables(tables)
    if decode:
        found = [decoded(numbers, known, mended=mended) for path in files for numbers in numbers_of(path)]
        if json:
            print_json({"texts": found})
            return
        for text in found:
            print_text(text)
        return
    given = [texts_of(path) for path in files]
    with progress("Parting words") as step:
        results = []
        for name, texts in given:
            step(name)
            results.append(measure(name, texts, known, mended=mended))
    if json:
        documents = [result.to_json() for result in results]
        if ids:
            for document, (_, texts) in zip(documents, given, strict=True):
                document["of_texts"] = list(details(texts, known, mended=mended))
        print_json({"official_tables": known.official, "mended": mended, "files": documents})
        return
    rows = []
    for result in results:
        lost = (result.texts_lost, result.words_lost)
        shares = [None if one is None else f"{one.value:.1%} ({one.low:.1%} to {one.high:.1%})" for one in lost]
        counts = [result.kinds[kind] for kind in ("root", "suffix", "piece", "mark", "unknown")]
        rows.append((result.name, result.texts, result.tokens, *counts, *shares))
    heads = ("file", "texts", "tokens", "roots", "suffixes", "pieces", "marks", "unknown", "texts lost", "words lost")
    print_table("Roots and suffixes, and what does not come back", heads, rows)
    for result in results:
        if result.lost:
            words = [f"{shown(one.word)} → {shown(one.decoded)}" for one in result.lost[:_SHOWN]]
            more = len(result.lost) - len(words)
            print_text(f"{result.name}, lost words: {', '.join(words)}{f' and {more} more' if more > 0 else ''}.")
    if not known.official:
        print_text("The tables are not those that were published.")
