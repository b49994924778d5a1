"""What every command shares: the log options, --json, and that errors end a command with a sentence."""

import inspect
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from trt_compress.digest import as_digests
from trt_compress.errors import InternalError, TrtCompressError
from trt_compress.export.options import OPTIONS
from trt_compress.foreign import refused_by_system
from trt_compress.tools.cli.errors import report_error, wants_json
from trt_compress.tools.cli.interrupts import Interrupted, ended_by_signals
from trt_compress.tools.cli.signals import let_go
from trt_compress.tools.console import configure_logging

Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Log every step, and print the traceback of an internal error.")
]
LogJson = Annotated[bool, typer.Option("--log-json", help="Write the log to stderr as one JSON object a line.")]
Json = Annotated[
    bool,
    typer.Option(
        "--json",
        help="Print one JSON document instead of tables; of a failure it holds 'error': message, hint, exit_code.",
    ),
]
VerifyLayers = Annotated[
    int | None,
    typer.Option(
        metavar="N", help="Run and compare the first N layers only, for a model too large to be run here twice."
    ),
]
TrustPaths = Annotated[
    bool,
    typer.Option(
        "--trust-paths",
        help="Follow the paths in a bundle's recipe, and run the FILE.py of its model: for bundles of your own.",
    ),
]
RequireDigest = Annotated[
    list[str] | None,
    typer.Option(
        metavar="SHA256",
        help="Open no bundle but the one with this digest, as inspect shows it; repeat it where several are opened.",
    ),
]
BundlePath = Annotated[Path, typer.Argument(metavar="BUNDLE", help="The directory that export wrote.")]


def target_names() -> list[str]:
    """What a shell completes after --target."""
    from trt_compress.export.targets import TARGETS

    return list(TARGETS)


_OPTIONS = {"verbose": Verbose, "log_json": LogJson}


def with_habits(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options `-v` and `--log-json`, and turn errors into one sentence and an exit code.

    The options may stand before the command's name too; `typed.obj` holds what was given there.
    """

    @wraps(command)
    def run(typed: typer.Context, verbose: bool, log_json: bool, **arguments: Any) -> None:
        verbose, log_json = verbose or typed.obj["verbose"], log_json or typed.obj["log_json"]
        configure_logging(verbose=verbose, log_json=log_json)
        how = {"verbose": verbose, "log_json": log_json, "json": wants_json(arguments.get("json"))}
        try:
            if command.__name__ == "run":  # a stream ends in its own way
                command(**arguments)
                return
            let_go()
            with ended_by_signals():
                as_digests(arguments.get("require_digest"))  # before anything is read
                command(**arguments)
        except TrtCompressError as error:
            report_error(error, **how)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt as ended:
            raise typer.Exit(ended.exit_code if isinstance(ended, Interrupted) else 130) from None
        except (typer.Exit, typer.Abort, BrokenPipeError):
            raise
        except Exception as error:
            if (refused := refused_by_system(error)) is not None:
                report_error(refused, **how)
                raise typer.Exit(refused.exit_code) from None
            bug = InternalError(
                f"'{command.__name__}' failed on {type(error).__name__}: {error}",
                hint="This is a bug of trt-compress; please report the command with what it prints with -v.",
            )
            report_error(bug, **how)
            raise typer.Exit(bug.exit_code) from None

    given = list(inspect.signature(command).parameters.values())
    typed = inspect.Parameter("typed", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=annotation)
        for name, annotation in _OPTIONS.items()
    ]
    parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in given]
    run.__signature__ = inspect.Signature([typed, *parameters, *options])  # type: ignore[attr-defined]
    run.__annotations__ = {**command.__annotations__, "typed": typer.Context, **_OPTIONS}
    return run


def with_export_options(*, sweep: bool = False) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command what can be said of an export (`export.options`): its `**options` become them, one each.

    Args:
        sweep: Only those that a sweep takes.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        taken = {
            option.keyword: Annotated[
                (list[str] if option.many and option.kind is str else int if option.kind is int else str) | None,
                typer.Option(
                    option.flag or f"--{option.keyword.replace('_', '-')}",
                    metavar=option.metavar,
                    help=option.help,
                    autocompletion=target_names if option.keyword == "targets" else None,
                ),
            ]
            for option in OPTIONS
            if option.keyword and (option.swept or not sweep)
        }
        own = [p for p in inspect.signature(command).parameters.values() if p.kind is not p.VAR_KEYWORD]
        options = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
            for name, annotation in taken.items()
        ]
        place = next(place for place, parameter in enumerate(own) if parameter.name == "output") + 1

        @wraps(command)
        def run(**arguments: Any) -> None:
            command(**arguments)

        keyword_only = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
        run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [*keyword_only[:place], *options, *keyword_only[place:]]
        )
        run.__annotations__ = {**command.__annotations__, **taken}
        return run

    return decorate
