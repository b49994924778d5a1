"""What several of the tokenizer commands take."""

from pathlib import Path
from typing import Annotated

import typer

TOKENIZER_HELP = (
    "A tokenizer.json, a sentencepiece model, a vocabulary in the form of tiktoken, or a folder that holds one of them."
)
TextFiles = Annotated[list[Path], typer.Argument(metavar="FILE…", help="Files of UTF-8 text.")]
OneTokenizer = Annotated[Path, typer.Option("--tokenizer", "-t", metavar="T", help=TOKENIZER_HELP)]
Pattern = Annotated[
    str | None,
    typer.Option(
        metavar="RULE",
        help="How text is split before the ranks of a tiktoken vocabulary are used: gpt2, cl100k, o200k, qwen, or a "
        "regular expression (default: what its file name says).",
    ),
]
