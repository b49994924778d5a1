"""The command tokenizer report."""

from pathlib import Path
from typing import Annotated

import typer

from trt_compress.errors import ConfigError
from trt_compress.paths import check_new_folder
from trt_compress.tools.cli.habits import Json
from trt_compress.tools.cli.tokenizer.options import TOKENIZER_HELP, Pattern, TextFiles
from trt_compress.tools.console import print_json, print_table, progress, say

FILES = ("tokenizers.report.json", "tokenizers.report.html")


def report(
    files: TextFiles,
    tokenizers: Annotated[
        list[Path], typer.Option("--tokenizer", "-t", metavar="T", help=f"{TOKENIZER_HELP} Several may be given.")
    ],
    parallel: Annotated[
        bool, typer.Option("--parallel", help="The files say the same, line by line: give each one's premium.")
    ] = False,
    reference: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="With --parallel: the file that premiums are over (default: the first)."),
    ] = None,
    fit: Annotated[
        bool,
        typer.Option("--fit", help="Fit each text's tokens over the tokenizers' sizes, and recommend one."),
    ] = False,
    target: Annotated[
        int | None,
        typer.Option(
            metavar="TOKENS",
            help="With --fit: tokens that a text may have (default: those of the reference, or of the text itself, by "
            "the largest vocabulary).",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help=f"Write {FILES[0]} and {FILES[1]} there."),
    ] = None,
    pattern: Pattern = None,
    json: Json = False,
) -> None:
    """Report what tokenizers make of texts: tokens, premiums, use of the vocabulary, times, words that cost most."""
    if reference is not None and not parallel:
        raise ConfigError("--reference is what premiums of parallel texts are over; give --parallel with it.")
    if target is not None and not fit:
        raise ConfigError("--target is what a fit is solved for; give --fit with it.")
    if target is not None and target < 1:
        raise ConfigError(f"--target {target}: a text has at least 1 token; give a larger number.")
    if output is not None:
        check_new_folder(output, "--output", FILES)
    from trt_compress.files import write_whole
    from trt_compress.foreign import plain_json
    from trt_compress.tools.bench.records import measured_with
    from trt_compress.tools.tokenizers.measure import advise, check_parallel, measure
    from trt_compress.tools.tokenizers.page import page, sections
    from trt_compress.tools.tokenizers.power_law import LEAST
    from trt_compress.tools.tokenizers.sources import open_tokenizers
    from trt_compress.tools.tokenizers.texts import read_text, read_texts

    if fit and len(tokenizers) < LEAST:
        raise ConfigError(
            f"--fit needs tokenizers of {LEAST} different sizes, and {len(tokenizers)} are given; give more."
        )
    texts = read_texts(files)
    over = (texts[0] if reference is None else read_text(reference)) if parallel else None
    if over is not None:
        check_parallel(texts, over)
    with progress("Measuring") as step:
        step("reading the tokenizers")
        sources = open_tokenizers(tokenizers, pattern=pattern)
        figures = [measure(source, texts, over, step) for source in sources]
        named = over.name if over is not None and any(item.name == over.name for item in texts) else None
        advice = advise(figures, target, named) if fit else []
    made = measured_with("tokenizer report")
    document = {
        **made,
        "parallel": parallel,
        "reference": None if over is None else over.name,
        "tokenizers": [one.to_json() for one in figures],
        "fits": [item.to_json() for item in advice],
    }
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        write_whole(output / FILES[0], plain_json(document, indent=2) + "\n")
        write_whole(output / FILES[1], page(figures, advice, made))
        say(f"Wrote {output / FILES[0]} and {output / FILES[1]}")
    if json:
        print_json(document)
        return
    for section in sections(figures, advice):
        shown = [place for place, _ in enumerate(section.columns) if any(row[place] for row in section.rows)]
        if section.rows:
            print_table(section.title, [section.columns[place] for place in shown],
                        [[row[place] for place in shown] for row in section.rows])  # fmt: skip
