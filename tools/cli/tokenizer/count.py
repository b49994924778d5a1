"""The command tokenizer count."""

from trt_compress.tools.cli.habits import Json
from trt_compress.tools.cli.tokenizer.options import OneTokenizer, Pattern, TextFiles
from trt_compress.tools.console import print_json, print_table, progress


def count(files: TextFiles, tokenizer: OneTokenizer, pattern: Pattern = None, json: Json = False) -> None:
    """Count the tokens of texts."""
    from trt_compress.runtime.text.growing import count_tokens
    from trt_compress.tools.tokenizers.sources import open_tokenizer
    from trt_compress.tools.tokenizers.texts import read_texts

    texts = read_texts(files)
    source = open_tokenizer(tokenizer, pattern=pattern)
    rows = []
    with progress("Counting") as step:
        for item in texts:
            step(item.name)
            rows.append((item, count_tokens(source.encoder, item.text)))
    if json:
        print_json(
            {
                "tokenizer": source.name,
                "kind": source.kind,
                "files": [
                    {"file": item.name, "bytes": item.num_bytes, "characters": len(item.text), "tokens": tokens}
                    for item, tokens in rows
                ],
            }
        )
        return
    cells = [
        (item.name, item.num_bytes, len(item.text), tokens, f"{item.num_bytes / tokens:.2f}" if tokens else None)
        for item, tokens in rows
    ]
    print_table(
        f"Tokens by {source.name} ({source.kind})", ("file", "bytes", "characters", "tokens", "bytes a token"), cells
    )
