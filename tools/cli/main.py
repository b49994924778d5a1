"""The command line `trt-compress`.

Nothing heavy is imported here, so `--help` answers at once; each command loads what it needs when it runs.
"""

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Annotated

import typer

from trt_compress import current_folder
from trt_compress.errors import ConfigError
from trt_compress.foreign import refused_by_system
from trt_compress.tools.cli.bench import bench
from trt_compress.tools.cli.calibrate import calibrate
from trt_compress.tools.cli.debug import debug
from trt_compress.tools.cli.errors import READER_GONE, OneVoice
from trt_compress.tools.cli.evaluate import evaluate
from trt_compress.tools.cli.export import build, export, preflight, verify
from trt_compress.tools.cli.generate import generate
from trt_compress.tools.cli.habits import LogJson, Verbose, with_habits
from trt_compress.tools.cli.package import package
from trt_compress.tools.cli.plan import plan
from trt_compress.tools.cli.plugins import build as build_plugins
from trt_compress.tools.cli.plugins import list_libraries
from trt_compress.tools.cli.prune import prune
from trt_compress.tools.cli.report import compare, report
from trt_compress.tools.cli.run import end_process, run
from trt_compress.tools.cli.sample import sample
from trt_compress.tools.cli.scene import scene
from trt_compress.tools.cli.serve import serve
from trt_compress.tools.cli.show import doctor, inspect, list_registered
from trt_compress.tools.cli.sweep import sweep
from trt_compress.tools.cli.tokenizer.group import group as tokenizer
from trt_compress.tools.cli.tokens import show
from trt_compress.tools.cli.tune import tune
from trt_compress.tools.console import flush, guard_streams, print_text, say_error
from trt_compress.version import __version__

app = typer.Typer(
    name="trt-compress",
    cls=OneVoice,
    help="Put token compression into a model, export it to ONNX, prove it, build engines, time and stream them.",
    epilog="Exit codes: 0 done, 1 internal fault, 2 bad input, 3 a gate failed (verify, preflight, precision, budget), "
    "130 interrupted (Ctrl-C; of a stream also SIGTERM and SIGHUP), 143 SIGTERM, 129 SIGHUP, "
    "141 the reader of stdout went away (| head).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_COMMANDS: dict[str, Callable[..., None]] = {
    "list": list_registered,
    "plan": plan,
    "export": export,
    "verify": verify,
    "preflight": preflight,
    "build": build,
    "prune": prune,
    "package": package,
    "debug": debug,
    "bench": bench,
    "evaluate": evaluate,
    "sweep": sweep,
    "tune": tune,
    "calibrate": calibrate,
    "run": run,
    "generate": generate,
    "serve": serve,
    "report": report,
    "compare": compare,
    "scene": scene,
    "sample": sample,
    "inspect": inspect,
    "show": show,
    "doctor": doctor,
}
for _name, _command in _COMMANDS.items():
    app.command(_name)(with_habits(_command))

_PLUGIN_COMMANDS: dict[str, Callable[..., None]] = {"build": build_plugins, "list": list_libraries}
_plugins = typer.Typer(name="plugins", help="Build and list the native libraries.", no_args_is_help=True)
for _name, _command in _PLUGIN_COMMANDS.items():
    _plugins.command(_name)(with_habits(_command))
app.add_typer(_plugins)
app.add_typer(tokenizer)


def _print_version(wanted: bool) -> None:
    if wanted:
        print_text(f"trt-compress {__version__}")
        raise typer.Exit


@app.callback()
def _before_command(
    context: typer.Context,
    verbose: Verbose = False,
    log_json: LogJson = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    context.obj = {"verbose": verbose, "log_json": log_json}


def main() -> None:
    """Run the command line.

    A reader that closes the pipe early (`| head`) is no error to talk about: the process ends as SIGPIPE would end it.
    """
    current_folder.forget()
    code: int | str | None = 0
    guard_streams()
    try:
        try:
            app()
        except SystemExit as ended:
            code = ended.code
        flush()
    except OSError as error:
        code = code or _ending(error)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left would be tried again at the exit
    end_process(code)


def _ending(error: OSError) -> int:
    """The exit code where stdout or stderr takes no more."""
    if isinstance(error, BrokenPipeError):
        return READER_GONE
    refused = refused_by_system(error)
    with suppress(OSError):  # a terminal that went away
        say_error(refused.message if refused else f"The output cannot be written ({error.strerror}).")
    return ConfigError.exit_code


if __name__ == "__main__":
    main()
