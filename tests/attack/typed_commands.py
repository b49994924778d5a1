"""Commands as a user types them, many a second: one process has everything loaded, and each command is a fork of it.

A line of JSON for each on stdin, arguments and seconds, gives one on stdout: code, out, err, seconds.

`python CODE` in place of a command runs what no command does in a moment.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.processes import environment

LOADED = (
    "trt_compress.export.check",
    "trt_compress.export.trial",
    "trt_compress.tools.evaluate",
    "trt_compress.tools.bench.bundle",
    "trt_compress.tools.streaming",
    "trt_compress.tools.reporting",
    "trt_compress.tools.report.tables",
    "trt_compress.runtime.stream.pictures",
)


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended; `code` is None if it did not within its time, and `busy` are its seconds of CPU."""

    code: int | None
    out: str
    err: str
    seconds: float
    busy: float

    @property
    def is_one_sentence(self) -> bool:
        """Whether it ended as a user's mistake has to: code 2, one line on stderr, and no traceback."""
        lines = [line for line in self.err.splitlines() if not line.startswith("Hint:")]
        return self.code == 2 and len(lines) == 1 and "Traceback" not in self.err


class Typed:
    """Runs commands in a folder.

    Args:
        folder: The current directory of the commands.
        more: More variables.
    """

    def __init__(self, folder: Path, **more: str) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-m", __spec__.name],
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

    def __call__(self, *arguments: object, within: float = 20.0) -> Ended:
        assert self._server.stdin is not None and self._server.stdout is not None
        request = {"arguments": [str(argument) for argument in arguments], "seconds": within}
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        answer: dict[str, Any] = json.loads(self._server.stdout.readline())
        return Ended(**answer)


def _run(arguments: Sequence[str], seconds: float) -> dict[str, Any]:
    with tempfile.TemporaryFile("w+b") as out, tempfile.TemporaryFile("w+b") as err:
        begin = time.monotonic()
        child = os.fork()
        if child == 0:
            os.setsid()
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            sys.argv = ["trt-compress", *arguments]
            code = 1
            try:
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
                os._exit(code)
        status: int | None = None
        busy = seconds
        while status is None and time.monotonic() - begin < seconds:
            ended, found, usage = os.wait4(child, os.WNOHANG)
            if ended:
                status, busy = found, usage.ru_utime + usage.ru_stime
            time.sleep(0.002)
        took = time.monotonic() - begin
        if status is None:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read(1 << 20).decode(errors="replace"))
    code = None if status is None else os.waitstatus_to_exitcode(status)
    return {"code": code, "out": texts[0], "err": texts[1], "seconds": took, "busy": busy}


def _do(arguments: Sequence[str]) -> None:
    """Run a command, or `python CODE`, whose errors of ours are said as a command says them."""
    if arguments[0] != "python":
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
    for name in LOADED:
        import_module(name)
    for line in sys.stdin:
        request = json.loads(line)
        answers.write(json.dumps(_run(request["arguments"], request["seconds"])) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
