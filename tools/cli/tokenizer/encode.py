"""The command tokenizer encode."""

from pathlib import Path
from typing import Annotated, Any

import typer

from trt_compress.errors import ConfigError
from trt_compress.paths import check_apart, check_new_file
from trt_compress.suggest import not_known
from trt_compress.tools.cli.habits import Json
from trt_compress.tools.cli.tokenizer.options import OneTokenizer, Pattern, TextFiles
from trt_compress.tools.console import print_json, print_table, print_text, progress, say

_MODES = ("greedy", "exact")


def encode(
    files: TextFiles,
    tokenizer: OneTokenizer,
    vocabulary_only: Annotated[
        str | None,
        typer.Option(
            metavar="MODE",
            help="Without merges: greedy (the longest piece each time) or exact (the fewest pieces; of several ways "
            "that with the longest last piece, then the longest last but one, …).",
        ),
    ] = None,
    whole: Annotated[bool, typer.Option("--whole", help="A text is a file, not a line of one.")] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write the tokens there: a line of JSON a text."),
    ] = None,
    pattern: Pattern = None,
    json: Json = False,
) -> None:
    """Encode texts, by merges or by the vocabulary alone, and say how often the two differ."""
    mode: Any = vocabulary_only
    if mode is not None and mode not in _MODES:
        raise ConfigError(not_known("--vocabulary-only", mode, _MODES))
    if output is not None:
        check_new_file(output, "--output")
        check_apart({"--output": output}, {"a text": files, "the tokenizer": [tokenizer]})
    from trt_compress.files import write_whole
    from trt_compress.foreign import plain_json
    from trt_compress.tools.tokenizers.encoding import TIE_RULE, encode_texts, lines_of
    from trt_compress.tools.tokenizers.sources import open_tokenizer
    from trt_compress.tools.tokenizers.texts import read_texts

    texts = lines_of(read_texts(files), whole=whole)
    with progress("Encoding") as step:
        step("reading the tokenizer")
        source = open_tokenizer(tokenizer, pattern=pattern)
        step(f"{len(texts)} texts")
        found = encode_texts(source, texts, mode)
    if output is not None:
        lines = [plain_json({"text": item.name, "tokens": list(item.tokens)}) + "\n" for item in found.texts]
        write_whole(output, "".join(lines))
        say(f"Wrote {output}")
    if json:
        print_json({"tokenizer": source.name, "kind": source.kind, **found.to_json()})
        return
    rows: list[tuple[object, ...]] = [("its own", len(texts), found.tokens_bpe, None, None)]
    if mode is not None:
        share = f"{found.texts_that_differ / len(texts):.1%}" if texts else None
        pieces = f"{found.pieces_that_differ} of {found.pieces}"
        rows.append((f"vocabulary only, {mode}", len(texts), found.tokens, share, pieces))
    columns = ("encoding", "texts", "tokens", "texts that differ", "pieces that differ")
    print_table(f"Tokens by {source.name} ({source.kind})", columns, rows)
    if mode == "exact":
        print_text(f"Ties: {TIE_RULE}.")
    if found.missing_bytes is not None:
        lacks = f"lacks {found.missing_bytes} of the 256 bytes: a text may have no encoding"
        print_text(f"The vocabulary {lacks if found.missing_bytes else 'has all bytes: every text has an encoding'}.")
