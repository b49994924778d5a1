"""Commands as a user types them, many a second: a process has what they need loaded, and each command is a fork of it.

Its outputs, its exit code and what it changes in its process are its own, as in a process that was started; only that
start, half a second of loading, is not paid again. What a start itself does (`python -m`, signals from the first
moment, search paths) has tests that start processes.

A line of JSON for each on stdin gives one on stdout; `python CODE` in place of a command runs what no command does in a
moment.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from tests import translations
from tests.processes import environment

LIGHT = ("trt_compress.tools.cli.main", "rich.table", "rich.console", "rich.logging", "numpy", "importlib.metadata")
"""What every command loads."""

HEAVY = (
    "trt_compress.export.check",
    "trt_compress.export.trial",
    "trt_compress.tools.evaluate",
    "trt_compress.tools.bench.bundle",
    "trt_compress.tools.streaming",
    "trt_compress.tools.reporting",
    "trt_compress.tools.report.tables",
    "trt_compress.runtime.stream.pictures",
    "trt_compress.runtime.backends.ort",
    "onnxruntime",
    "trt_compress.export.pipeline",
    "trt_compress.models.hosts.registry",
    "timm",
    "torch.onnx._internal.exporter._core",
    "sklearn.datasets",
)
"""What the slow ones load, torch and ONNX Runtime with it; what the command itself loads late counts too."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended.

    Attributes:
        code: None if it did not within its time; negative: the signal that ended it.
        busy: Its seconds of CPU.
        started: Seconds of CPU that its process took to start and load, before the fork.
        peak_mib: Its peak of memory.
        loaded: The packages that were loaded at its end.
    """

    code: int | None
    out: str
    err: str
    seconds: float
    busy: float
    started: float = 0.0
    peak_mib: float = 0.0
    loaded: tuple[str, ...] = ()

    @property
    def is_one_sentence(self) -> bool:
        """Whether it ended as a user's mistake has to: code 2, one line on stderr, and no traceback."""
        lines = [line for line in self.err.splitlines() if not line.startswith("Hint:")]
        return self.code == 2 and len(lines) == 1 and "Traceback" not in self.err


class Typed:
    """Runs commands in a folder.

    Args:
        folder: The current directory of the commands.
        loaded: What is loaded before the first.
        more: More variables of the environment.
    """

    def __init__(self, folder: Path, *, loaded: Sequence[str] = HEAVY, **more: str) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-m", __name__, *loaded],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
            env=environment(COLUMNS="2000", OMP_NUM_THREADS="1", **more),
        )

    def __enter__(self) -> "Typed":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.close()
        self._server.stdout.close()
        self._server.wait(30)

    def __call__(
        self,
        *arguments: object,
        within: float = 120.0,
        folder: Path | None = None,
        variables: Mapping[str, str] | None = None,
        given: bytes = b"",
    ) -> Ended:
        """Run a command.

        Args:
            arguments: What is typed behind `trt-compress`.
            within: Seconds after which it is killed: it hangs, on whatever machine.
            folder: Where, if not in the folder of all.
            variables: Its whole environment, if not that of all.
            given: What its stdin holds.
        """
        assert self._server.stdin is not None and self._server.stdout is not None
        request = {
            "arguments": [str(argument) for argument in arguments],
            "seconds": within,
            "folder": None if folder is None else str(folder),
            "variables": None if variables is None else dict(variables),
            "given": given.decode("latin-1"),
        }
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        answer: dict[str, Any] = json.loads(self._server.stdout.readline())
        return Ended(**{**answer, "loaded": tuple(answer["loaded"])})


def _run(
    arguments: Sequence[str], seconds: float, folder: str | None, variables: dict[str, str] | None, given: str
) -> Any:
    with (
        tempfile.TemporaryFile() as stdin,
        tempfile.TemporaryFile("w+b") as out,
        tempfile.TemporaryFile("w+b") as err,
        tempfile.TemporaryFile() as at_end,
    ):
        stdin.write(given.encode("latin-1"))
        stdin.seek(0)
        begin = time.monotonic()
        child = os.fork()
        if child == 0:
            os.setsid()
            os.dup2(stdin.fileno(), 0)
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            code = 1
            try:
                if folder is not None:
                    os.chdir(folder)
                if variables is not None:
                    os.environ.clear()
                    os.environ.update(variables)
                tempfile.tempdir = None
                sys.argv = ["trt-compress", *arguments]
                _do(arguments)
                code = 0
            except SystemExit as ended:
                code = ended.code if isinstance(ended.code, int) else 1
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                for stream in (sys.stdout, sys.stderr):
                    stream.flush()
                at_end.write(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})).encode())
                at_end.flush()
                os._exit(code)
        status: int | None = None
        busy, peak_mib = seconds, 0.0
        while status is None and time.monotonic() - begin < seconds:
            ended, found, usage = os.wait4(child, os.WNOHANG)
            if ended:
                status, busy, peak_mib = found, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024
            else:
                time.sleep(0.002)
        took = time.monotonic() - begin
        if status is None:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
        texts = []
        for file in (out, err, at_end):
            file.seek(0)
            texts.append(file.read(1 << 24).decode(errors="replace"))
    code = None if status is None else os.waitstatus_to_exitcode(status)
    said = {"code": code, "out": texts[0], "err": texts[1], "seconds": took, "busy": busy}
    return {**said, "peak_mib": peak_mib, "loaded": json.loads(texts[2] or "[]")}


def _do(arguments: Sequence[str]) -> None:
    """Run a command, or `python CODE`, whose errors of ours are said as a command says them."""
    if arguments[:1] != ["python"]:
        from trt_compress.tools.cli.main import main

        return main()
    from trt_compress.errors import TrtCompressError

    try:
        exec(arguments[1], {"Path": Path})
    except TrtCompressError as error:
        print(f"error: {error.message}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None


def main() -> None:
    """Answer requests until there are no more."""
    from importlib import import_module

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for name in sys.argv[1:]:
        import_module(name)
    if translations.MODULE in sys.modules:
        translations.build_once(20)  # the opset of an export that is asked for none
    started = time.process_time()
    for line in sys.stdin:
        answers.write(json.dumps({**_run(**json.loads(line)), "started": started}) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
