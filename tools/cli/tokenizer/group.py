"""The group of the tokenizer commands. A new one is a file beside this one and a line here."""

from collections.abc import Callable

import typer

from trt_compress.tools.cli.habits import with_habits
from trt_compress.tools.cli.tokenizer.count import count
from trt_compress.tools.cli.tokenizer.encode import encode
from trt_compress.tools.cli.tokenizer.equal_info import equal_info
from trt_compress.tools.cli.tokenizer.morphology import morphology
from trt_compress.tools.cli.tokenizer.report import report
from trt_compress.tools.cli.tokenizer.split import split
from trt_compress.tools.cli.tokenizer.train import train
from trt_compress.tools.cli.tokenizer.transplant import transplant

COMMANDS: dict[str, Callable[..., None]] = {
    "count": count,
    "encode": encode,
    "split": split,
    "report": report,
    "train": train,
    "equal-info": equal_info,
    "morphology": morphology,
    "transplant": transplant,
}

group = typer.Typer(
    name="tokenizer",
    help="Measure, train and exchange tokenizers, and encode without merges.",
    no_args_is_help=True,
)
for _name, _command in COMMANDS.items():
    group.command(_name)(with_habits(_command))
