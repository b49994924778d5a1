"""The command generate: a language model's bundle writes text."""

import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trt_compress.errors import ConfigError
from trt_compress.files import write_whole
from trt_compress.foreign import needs_extra, plain_json
from trt_compress.memory import format_bytes
from trt_compress.paths import check_apart, check_new_file
from trt_compress.tools.cli.habits import BundlePath, Json, RequireDigest
from trt_compress.tools.cli.options import Backend, Native, Threads
from trt_compress.tools.console import is_watched, print_json, print_piece, progress, say

if TYPE_CHECKING:
    from trt_compress.runtime.generate.stream import Timing
    from trt_compress.tools.generating import PromptLine, Writer, Written


def generate(
    bundle: BundlePath,
    prompt: Annotated[
        str | None,
        typer.Option("--prompt", "-p", metavar="TEXT", help="What is gone on with; - reads it from stdin."),
    ] = None,
    chat: Annotated[
        bool,
        typer.Option("--chat", help="By the chat template: of --prompt, or a conversation, a line of stdin a turn."),
    ] = False,
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What a conversation begins with; needs --chat or --input.")
    ] = None,
    input: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.jsonl",
            allow_dash=True,
            help='Lines {"prompt": "…"} or {"messages": […]}, with an id and settings of their own (max_new, seed, …); '
            "- is stdin.",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE.jsonl", help="Written go there, a line each.")
    ] = None,
    max_new: Annotated[
        int | None, typer.Option(metavar="N", help="The most new tokens (default: the bundle's, else 256).")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(metavar="T", help="0 takes the most probable token (default: the bundle's).")
    ] = None,
    top_k: Annotated[int | None, typer.Option(metavar="N", help="Only the N most probable tokens; 0: all.")] = None,
    top_p: Annotated[
        float | None, typer.Option(metavar="P", help="Only the most probable tokens that together have P.")
    ] = None,
    min_p: Annotated[
        float | None, typer.Option(metavar="P", help="Only tokens of at least P times the largest probability.")
    ] = None,
    repetition_penalty: Annotated[
        float | None, typer.Option(metavar="R", help="Above 1: what was there already becomes less probable.")
    ] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="The same seed gives the same answer.")] = None,
    stop: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="Ends an answer, and is no part of it; repeatable.")
    ] = None,
    ignore_stop_ids: Annotated[
        bool, typer.Option("--ignore-stop-ids", help="Go on behind tokens that end a text, for measurements.")
    ] = False,
    logprobs: Annotated[
        int | None,
        typer.Option(metavar="N", help="With --json, --input or --output: probabilities, and the N most probable."),
    ] = None,
    batch: Annotated[
        int | None, typer.Option(metavar="N", help="Prompts side by side (default: the bundle's largest batch).")
    ] = None,
    capacity: Annotated[
        int | None,
        typer.Option("--context", metavar="N", help="The most tokens of a sequence (default: the bundle's)."),
    ] = None,
    backend: Backend = "ort-cpu",
    threads: Threads = None,
    native: Native = None,
    require_digest: RequireDigest = None,
    json: Json = False,
) -> None:
    """Write text with a language model's bundle, streaming it as it comes.

    What is printed is made safe for a terminal: control characters stand there as \\x…; --json and --output give the
    text itself. Ctrl-C ends it with what there is, and exit code 130. Speed and cache are said at the end, on stderr.
    """
    given = {"--prompt": prompt is not None, "--input": input is not None}
    if all(given.values()) or not (any(given.values()) or chat):
        raise ConfigError("Give one of --prompt TEXT, --chat and --input FILE.jsonl; --prompt goes with --chat.")
    if input is not None and chat:
        raise ConfigError('--input says itself what is a conversation: {"messages": […]}; leave --chat out.')
    if system is not None and not (chat or input is not None):
        raise ConfigError("--system is for conversations; give --chat too.")
    talks = chat and prompt is None
    if talks and (json or output is not None):
        raise ConfigError("A conversation is printed as it goes; --json and --output go with --prompt or --input.")
    if logprobs is not None and not (json or output is not None or input is not None):
        raise ConfigError("--logprobs shows in JSON; give --json or --output too.")
    if output is not None:
        check_new_file(output, "--output")
        read = {"--input": [input]} if input is not None and str(input) != "-" else {}
        check_apart({"--output": output}, read, [bundle])
    settings: dict[str, Any] = {
        "max_new": max_new,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "seed": seed,
        "stop": stop,
        "ignore_stop_ids": ignore_stop_ids or None,
        "logprobs": logprobs,
    }
    with needs_extra("cpu"):
        from trt_compress.tools.generating import Writer, read_lines, read_stdin
    with Writer(bundle, context=capacity, require_digest=require_digest) as writer:
        loading: dict[str, Any] = {"backend": backend, "threads": threads, "native": native}
        if talks:
            _talk(writer, settings, system, loading)
            return
        if input is not None:
            lines = read_lines(input)
            what = "stdin" if str(input) == "-" else f"'{input}'"
            places = [f"Prompt {number} of {what}" for number in range(1, len(lines) + 1)]
        else:
            text = read_stdin() if prompt == "-" else str(prompt)
            lines = [{"messages": [{"role": "user", "content": text}]} if chat else {"prompt": text}]
            places = ["The prompt"]
        prompts = [
            writer.prompt(line, settings, where=where, number=number, system=system)
            for number, (line, where) in enumerate(zip(lines, places, strict=True))
        ]
        writer.check_room(prompts, batch)
        with progress("Loading"):
            writer.load(**loading)
        _answer(writer, prompts, batch, json=json, output=output, prints=input is None and not json and not output)


def _answer(
    writer: "Writer",
    prompts: "Sequence[PromptLine]",
    batch: int | None,
    *,
    json: bool,
    output: Path | None,
    prints: bool,
) -> None:
    """Write the answers, and say at the end how fast."""
    from trt_compress.tools.generating import Written

    answers = Written(prompts=prompts)
    ended: KeyboardInterrupt | None = None
    try:
        with writer.begin(prompts, batch=batch) as stream:
            try:
                for piece in stream:
                    if prints:
                        print_piece(piece.text)
            except KeyboardInterrupt as interrupted:
                ended = interrupted
            finally:
                answers.results, answers.timing = stream.results(), stream.timing
    finally:
        if prints:
            with suppress(OSError):
                print_piece("\n")
    _write(answers, writer, json=json, output=output, prints=prints)
    _say_speed(answers.timing)
    if ended is not None:
        raise ended


def _write(answers: "Written", writer: "Writer", *, json: bool, output: Path | None, prints: bool) -> None:
    lines = answers.lines(writer.text)
    if output is not None:
        try:
            write_whole(output, "".join(plain_json(line) + "\n" for line in lines))
        except OSError as error:
            raise ConfigError(f"'{output}' cannot be written ({error.strerror}); give another file.") from None
        say(f"Wrote {output}")
    if json:
        print_json({"answers": lines, "timing": answers.timing.to_json()})
    elif output is None and not prints:
        for line in lines:
            print_piece(plain_json(line) + "\n")


def _talk(writer: "Writer", settings: dict[str, Any], system: str | None, loading: dict[str, Any]) -> None:
    """Have a conversation with stdin."""
    from trt_compress.runtime.generate.stream import Timing
    from trt_compress.tools.generating import Conversation, stdin_lines

    conversation = Conversation(writer, settings, system)
    conversation.check()
    with progress("Loading"):
        writer.load(**loading)
    asks = is_watched() and sys.stdin.isatty()
    timing = Timing()
    try:
        for line in stdin_lines(lambda: print_piece("> ") if asks else None):
            stream = conversation.say(line)
            try:
                for piece in stream:
                    print_piece(piece.text)
            finally:
                stream.close()
                timing.add(stream.timing)
                with suppress(OSError):
                    print_piece("\n")
            conversation.heard(stream)
    finally:
        if timing.new_tokens:
            _say_speed(timing)


def _say_speed(timing: "Timing") -> None:
    """Say in a line how fast prompts were read and answers written, and what the cache took."""
    rates = timing.to_json()
    parts = []
    if rates["prompt_tokens_per_s"] is not None:
        parts.append(f"{timing.prompt_tokens} prompt tokens at {rates['prompt_tokens_per_s']:.1f} tokens/s")
    if timing.first_token_s is not None:
        parts.append(f"first token after {timing.first_token_s:.3f} s")
    speed = "" if rates["decode_tokens_per_s"] is None else f" at {rates['decode_tokens_per_s']:.1f} tokens/s"
    parts.append(f"{timing.new_tokens} new tokens{speed}")
    parts.append(f"cache {format_bytes(timing.cache_bytes)}")
    say(", ".join(parts))
