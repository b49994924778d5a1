"""What several of the tokenizer commands take."""

from pathlib import Path
from typing import Annotated

import typer

TOKENIZER_HELP = "A tokenizer.json, or a folder that holds one."
TextFiles = Annotated[list[Path], typer.Argument(metavar="FILE…", help="Files of UTF-8 text.")]
OneTokenizer = Annotated[Path, typer.Option("--tokenizer", "-t", metavar="T", help=TOKENIZER_HELP)]
