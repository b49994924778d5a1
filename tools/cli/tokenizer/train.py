"""The command tokenizer train."""

from pathlib import Path
from typing import Annotated, Any

import typer

from trt_compress.errors import ConfigError
from trt_compress.paths import check_apart, check_new_folder
from trt_compress.suggest import not_known
from trt_compress.tools.cli.habits import Json
from trt_compress.tools.cli.tokenizer.options import TextFiles
from trt_compress.tools.console import print_json, print_pairs, print_text, progress, say

_KINDS = ("bpe", "superbpe", "kl3m", "kl3m-char", "dna")
FILES = ("tokenizer.json", "tokenizer_config.json", "training.json")


def train(
    files: TextFiles,
    kind: Annotated[
        str,
        typer.Option(
            metavar="KIND",
            help="bpe; superbpe (then merges across white space); kl3m (law and finance: custom tokens behind those "
            "that are learned); kl3m-char (pieces of a few characters); dna (genomes, of FASTA).",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help=f"Write {', '.join(FILES)} there.")],
    size: Annotated[
        int | None,
        typer.Option(metavar="V", help="Entries of the vocabulary (default: 32768; 4096 of kl3m-char and dna)."),
    ] = None,
    min_frequency: Annotated[
        int | None,
        typer.Option(metavar="N", help="The fewest occurrences of a pair that is merged (default: 2; 10 of kl3m…)."),
    ] = None,
    pattern: Annotated[
        str | None,
        typer.Option(
            metavar="RULE",
            help="Of bpe and superbpe: how text is split before: gpt2, cl100k (the default), o200k, qwen, or a regular "
            "expression.",
        ),
    ] = None,
    first_stage: Annotated[
        int | None,
        typer.Option(
            metavar="T", help="Of superbpe: entries that are learned within words (default: nine tenths of V)."
        ),
    ] = None,
    lowercase: Annotated[bool, typer.Option("--lowercase", help="Of kl3m…: make capitals small.")] = False,
    longest: Annotated[
        int | None, typer.Option(metavar="N", help="Of kl3m-char: the most characters of a piece (default: 3).")
    ] = None,
    power_of_two: Annotated[
        bool, typer.Option("--power-of-two", help="Of kl3m…: pad the vocabulary with runs of white space.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the tokenizer in DIR.")] = False,
    json: Json = False,
) -> None:
    """Train a tokenizer on texts."""
    chosen: Any = kind
    if chosen not in _KINDS:
        raise ConfigError(not_known("--kind", kind, _KINDS))
    is_kl3m = kind.startswith("kl3m")
    for name, given, fits, of in (
        ("--pattern", pattern, kind in ("bpe", "superbpe"), "bpe and superbpe"),
        ("--first-stage", first_stage, kind == "superbpe", "superbpe"),
        ("--lowercase", lowercase or None, is_kl3m, "kl3m and kl3m-char"),
        ("--longest", longest, kind == "kl3m-char", "kl3m-char"),
        ("--power-of-two", power_of_two or None, is_kl3m, "kl3m and kl3m-char"),
    ):
        if given is not None and not fits:
            raise ConfigError(f"{name} is an option of --kind {of}, and --kind {kind} is given; leave it out.")
    if not force and (output / FILES[0]).exists():
        raise ConfigError(f"'{output / FILES[0]}' exists; give another folder, or --force to replace it.")
    check_apart({"--output": output / FILES[0]}, {"a text": files})
    check_new_folder(output, "--output", () if force else FILES)
    from trt_compress.digest import sha256
    from trt_compress.files import write_whole
    from trt_compress.foreign import plain_json
    from trt_compress.tools.tokenizers.genome import read_sequences
    from trt_compress.tools.tokenizers.texts import read_texts
    from trt_compress.tools.tokenizers.training import DEFAULT_SIZES, TrainingPlan
    from trt_compress.tools.tokenizers.training import train as train_tokenizer

    given_options = {"pattern": pattern, "longest": longest}
    plan = TrainingPlan(
        kind=chosen,
        size=DEFAULT_SIZES[chosen] if size is None else size,
        least=(10 if is_kl3m else 2) if min_frequency is None else min_frequency,
        first_stage=first_stage,
        lowercase=lowercase,
        power_of_two=power_of_two,
        **{name: value for name, value in given_options.items() if value is not None},  # type: ignore[arg-type]
    )
    if kind == "dna":
        texts = [run for path in files for run in read_sequences(path)]
    else:
        texts = [item.text for item in read_texts(files)]
    with progress("Training") as step:
        found = train_tokenizer(texts, plan, step)
    record = {
        "kind": kind,
        "wanted": plan.size,
        "size": found.size,
        "min_frequency": plan.least,
        "characters": sum(map(len, texts)),
        "texts_sha256": sha256("\0".join(texts)),
        "notes": list(found.notes),
    }
    output.mkdir(parents=True, exist_ok=True)
    write_whole(output / FILES[1], plain_json(found.config, indent=2) + "\n")
    write_whole(output / FILES[2], plain_json(record, indent=2) + "\n")
    write_whole(output / FILES[0], found.library.to_str(pretty=True))
    say(f"Wrote {output}")
    if json:
        print_json(record)
        return
    print_pairs("Trained", [(name.replace("_", " "), value) for name, value in record.items() if name != "notes"])
    for note in found.notes:
        print_text(note)
