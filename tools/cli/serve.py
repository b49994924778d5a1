"""The command serve: a language model's bundle behind an HTTP interface."""

from typing import Annotated

import typer

from trt_compress.errors import ConfigError
from trt_compress.foreign import needs_extra
from trt_compress.tools.cli.habits import BundlePath, RequireDigest
from trt_compress.tools.console import progress, say


def serve(
    bundle: BundlePath,
    port: Annotated[int, typer.Option(metavar="N", help="0 takes one that is free.")] = 8000,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Where it listens; there is no password and no encryption.")
    ] = "127.0.0.1",
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="What clients call it (default: the bundle's name).")
    ] = None,
    parallel: Annotated[
        int, typer.Option(metavar="N", help="Requests that are answered at the same time, each by itself.")
    ] = 4,
    queue: Annotated[
        int, typer.Option(metavar="N", help="Requests that may wait; those beyond get the status 429.")
    ] = 32,
    prefixes: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Beginnings that prompts have in common, of which so many are kept and not read again. A bundle that "
            "packs or compacts its caches keeps none.",
        ),
    ] = 2,
    capacity: Annotated[
        int | None,
        typer.Option("--context", metavar="N", help="The most tokens of a sequence (default: the bundle's)."),
    ] = None,
    backend: Annotated[str, typer.Option(metavar="NAME", help="ort-cpu, ort-cuda, tensorrt or rtx.")] = "ort-cpu",
    threads: Annotated[int | None, typer.Option(metavar="N", help="Default: the backend's own choice.")] = None,
    native: Annotated[
        bool | None,
        typer.Option("--native/--no-native", help="Native operators (default: if they are built)", show_default=False),
    ] = None,
    require_digest: RequireDigest = None,
) -> None:
    """Serve a language model's bundle to clients of OpenAI's interface.

    It has /v1/completions, /v1/chat/completions and /v1/models, with streams, n, stop, seed, logprobs and max_tokens. A
    field that would ask for something else (tools, images, penalties) is refused. Each request is answered with states
    of its own; requests are not batched together. Ctrl-C or SIGTERM ends it: open streams end where they are.
    """
    for name, value, low in (("--parallel", parallel, 1), ("--queue", queue, 0), ("--prefixes", prefixes, 0)):
        if value < low:
            raise ConfigError(f"{name} {value}; give at least {low}.")
    with needs_extra("cpu,text,serve"):
        from trt_compress.tools.serve import app
    from trt_compress.runtime.generate.memory import check_memory
    from trt_compress.tools.generating import Writer

    with Writer(bundle, context=capacity, require_digest=require_digest) as writer:
        if writer.text.tokenizer is None:
            raise ConfigError(
                f"'{bundle}' has no tokenizer, so that it serves no text; export it from a model with one."
            )
        manifest = writer.text.bundle.manifest
        check_memory(manifest, batch=parallel + prefixes, slots=writer.text.context or 1, loaded=False)
        with app.bind(host, port) as listener:
            with progress("Loading"):
                generator = writer.load(backend=backend, threads=threads, native=native)
            name, (address, number, *_) = model or manifest.name, listener.getsockname()
            place = f"[{address}]" if ":" in address else address

            def ready() -> None:
                say(f"Serving '{name}' on http://{place}:{number}/v1; Ctrl-C ends it.")

            limits = {"parallel": parallel, "queue": queue, "prefixes": prefixes}
            app.serve(generator, listener, model=name, ready=ready, **limits)
