"""The command tokenizer equal-info."""

from pathlib import Path
from typing import Annotated

import typer

from trt_compress.errors import ConfigError
from trt_compress.files import write_whole
from trt_compress.paths import check_apart
from trt_compress.tools.cli.habits import Json
from trt_compress.tools.cli.options import try_file
from trt_compress.tools.console import print_json, print_table, progress, say


def equal_info(
    files: Annotated[list[Path], typer.Argument(metavar="FILE…", help="Any bytes; with --decode what was encoded.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Where the one FILE's tokens, or bytes, go.")
    ] = None,
    window: Annotated[int, typer.Option(metavar="W", help="Bits of a window, 10 to 256.")] = 16,
    chunk: Annotated[int, typer.Option(metavar="N", help="Bits of a token, 8 or 16.")] = 8,
    model: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A model of bytes (default: the one that comes along).")
    ] = None,
    decode: Annotated[bool, typer.Option("--decode", help="Make bytes of tokens again; needs -o.")] = False,
    ids: Annotated[bool, typer.Option("--ids", help="With --json: the tokens too.")] = False,
    json: Json = False,
) -> None:
    """Encode text in windows of equally many bits, by a small model and a range coder (Equal-Info Windows)."""
    from trt_compress.runtime.text.equal_info.model import read_model
    from trt_compress.tools.tokenizers.equal_info import read_data, read_tokens, windowed, write_tokens

    if output is not None and len(files) > 1:
        raise ConfigError(f"-o takes what one file becomes, and there are {len(files)}; give one, or leave -o out.")
    if decode and output is None:
        raise ConfigError("--decode writes bytes to a file; say which with -o.")
    try_file(output, "-o")
    check_apart({"-o": output}, {"the file": files, "the model": [] if model is None else [model]})
    known = read_model(model)
    if decode and output is not None:
        data = read_tokens(files[0], known)
        write_whole(output, data)
        if json:
            print_json({"file": str(output), "bytes": len(data)})
        else:
            say(f"Wrote {output}, {len(data)} bytes.")
        return
    found = []
    with progress("Encoding") as step:
        for path in files:
            step(path.name)
            found.append(windowed(path.name, read_data(path), known, bits=window, chunk=chunk))
    if output is not None:
        write_tokens(found[0], known, output)
    if json:
        print_json({"model": known.sha256, "files": [each.to_json(ids=ids) for each in found]})
        return
    rows = []
    for each in found:
        ratio = None if each.bytes_per_token is None else f"{each.bytes_per_token:.2f}"
        rows.append((each.name, each.num_bytes, each.windows, each.literals, len(each.tokens), ratio))
    heads = ("file", "bytes", "windows", "of one byte", "tokens", "bytes a token")
    print_table(f"Windows of {window} bits, tokens of {chunk}; all come back", heads, rows)
