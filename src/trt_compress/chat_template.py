"""Chat templates of strangers, rendered in a process of their own, with bounds on time, memory and length.

A template is a program: Jinja's sandbox keeps it from the machine, and not from looping or from filling the memory. The
process that renders loads Jinja and nothing else; it stays for the next conversation, and is ended when a template does
not come to an end.
"""

import json
import select
import threading
import time
from contextlib import suppress
from typing import Any

from trt_compress import children
from trt_compress.errors import BundleError, ConfigError, UnsupportedError
from trt_compress.foreign import reason_of, shown

SECONDS = 5.0
"""How long a template may take."""

LONGEST = 1 << 24
"""Bytes of the longest conversation."""

_WORKER = "trt_compress.chat_worker"
_STARTING_S = 60.0  # on a machine that has much else to do
_CHUNK = 1 << 16


class Renderer:
    """Renders one template; from one thread at a time, the others wait."""

    def __init__(self, template: str, where: str, *, seconds: float = SECONDS) -> None:
        """Take a template; nothing is started yet.

        Args:
            template: In Jinja, as transformers renders it.
            where: The template, as it stands at the beginning of a message.
            seconds: How long a rendering may take.
        """
        self._template = template
        self._where = where
        self._seconds = seconds
        self._process: children.Process[bytes] | None = None
        self._lock = threading.Lock()

    def render(self, variables: dict[str, Any]) -> str:
        """The text that the template makes.

        Args:
            variables: What the template may use, as plain JSON data: `messages`, `add_generation_prompt`, ….

        Raises:
            ConfigError: The template refuses the conversation, or it is too long or no plain data.
            BundleError: The template does not compile, fails, does not end, or writes without end.
            UnsupportedError: Jinja is not installed.
        """
        try:
            request = json.dumps({"template": self._template, "variables": variables}, allow_nan=False).encode() + b"\n"
        except (TypeError, ValueError, RecursionError) as error:
            raise ConfigError(f"The conversation is no plain JSON data ({reason_of(error)}).") from None
        if len(request) > LONGEST:
            raise ConfigError(f"The conversation has {len(request)} bytes; it may have {LONGEST}.")
        with self._lock:
            kind, said = self._asked(request)
        if kind == "text":
            return said
        reason = shown(said)[:300].rstrip(".")
        if kind == "refused":
            raise ConfigError(f"{self._where} refuses the conversation: {reason}.")
        if kind == "missing":
            raise UnsupportedError(
                "Chat templates need 'jinja2', which is not installed.", hint='pip install "trt-compress[text]"'
            )
        raise BundleError(
            f"{self._where} is at fault ({reason}); give the prompt as the model wants it, or export the bundle with "
            "another template."
        )

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            children.end(process)
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    with suppress(OSError):  # what it was not given
                        stream.close()

    def __del__(self) -> None:
        self.close()

    def _asked(self, request: bytes) -> tuple[str, str]:
        """Have a request answered; what kind of answer there is, and the answer."""
        was_there = self._process is not None
        found = self._ask(request)
        if found is None and was_there:  # it may have ended by itself, with the thread that started it
            found = self._ask(request)
        return found or ("fault", f"it takes longer than {self._seconds:g} s, or more memory than it may have")

    def _ask(self, request: bytes) -> tuple[str, str] | None:
        """The same; None: no answer has come, and the process has been ended."""
        try:
            if self._process is None:
                self._process = children.start(
                    children.python_command(_WORKER), given=children.PIPE, errors=children.DEVNULL
                )
                kind, said = self._answer(_STARTING_S) or ("fault", "the process that renders it does not start")
                if kind != "ready":
                    self.close()
                    return kind, said
            assert self._process.stdin is not None
            self._process.stdin.write(request)
            self._process.stdin.flush()
            found = self._answer(self._seconds)
        except BrokenPipeError:
            found = None
        except BaseException:
            self.close()
            raise
        if found is None:
            self.close()
        return found

    def _answer(self, seconds: float) -> tuple[str, str] | None:
        """The next line of the process; None: it does not come in time."""
        assert self._process is not None and self._process.stdout is not None
        pipe, until = self._process.stdout, time.monotonic() + seconds
        line = b""
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([pipe], [], [], max(0.0, until - time.monotonic()))
            chunk = pipe.read1(_CHUNK) if ready else b""  # type: ignore[attr-defined]
            if not chunk:
                return None
            line += chunk
        kind, said = json.loads(line)
        return str(kind), str(said)
