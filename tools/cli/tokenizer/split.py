"""The command tokenizer split."""

from pathlib import Path
from typing import Annotated

import typer

from trt_compress.errors import ConfigError
from trt_compress.paths import check_new_folder
from trt_compress.tools.cli.habits import Json
from trt_compress.tools.cli.tokenizer.options import OneTokenizer, Pattern
from trt_compress.tools.console import print_json, print_table, progress, say


def split(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file of UTF-8 text.")],
    tokenizer: OneTokenizer,
    tokens: Annotated[int, typer.Option("--tokens", "-n", metavar="N", help="The most tokens of a part.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Write the parts there, as NAME.0001.EXT and so on."),
    ] = None,
    pattern: Pattern = None,
    json: Json = False,
) -> None:
    """Cut a text into parts of at most N tokens, between characters; together they are the text."""
    if tokens < 1:
        raise ConfigError(f"--tokens {tokens}: a part has at least 1 token; give a larger number.")
    if output is not None:
        check_new_folder(output, "--output")
    from trt_compress.files import write_whole
    from trt_compress.runtime.text.growing import split_text
    from trt_compress.tools.tokenizers.sources import open_tokenizer
    from trt_compress.tools.tokenizers.texts import read_text

    given = read_text(file)
    with progress("Splitting") as step:
        step("reading the tokenizer")
        encoder = open_tokenizer(tokenizer, pattern=pattern).encoder
        step(given.name)
        parts = split_text(encoder, given.text, tokens)
        rows = []
        start = 0
        for part in parts:
            rows.append((start, len(part), len(encoder.encode(part, special=False))))
            start += len(part)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        width = max(4, len(str(len(parts))))
        for number, part in enumerate(parts, 1):
            write_whole(output / f"{file.stem}.{number:0{width}d}{file.suffix}", part)
        say(f"Wrote {len(parts)} files to {output}")
    if json:
        print_json({"parts": [dict(zip(("start", "characters", "tokens"), row, strict=True)) for row in rows]})
        return
    cells = [(number, *row) for number, row in enumerate(rows, 1)]
    print_table(f"Parts of {given.name}", ("part", "from character", "characters", "tokens"), cells)
