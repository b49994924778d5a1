"""Run command lines, one after the other, as a user would in one terminal; a mark stands before each."""

import json
import os
import sys
from pathlib import Path

from trt_compress.tools.cli import main as cli
from trt_compress.tools.console import guard_streams

guard_streams()
for number, arguments in enumerate(json.loads(Path(sys.argv[1]).read_text(encoding="ascii"))):
    sys.stdout.flush()
    sys.stderr.flush()
    os.write(2, f"\n@@{number}@@\n".encode())
    try:
        cli.app(arguments)
    except SystemExit as ended:
        if ended.code not in (0, None, 2, 3):
            raise RuntimeError(f"{arguments} ended with {ended.code}") from None
