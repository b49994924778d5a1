"""What INT, TERM and HUP ask of a stream: to end, to hurry, to be gone. They are noted from the first moment.

A thread of its own takes them from the socket that Python's C handler writes to, so that a main thread that is inside a
library, or waits for a terminal that has stopped, holds nothing up. A signal that is ignored when the program starts
(HUP under nohup, INT of a job in the background of a script) stays ignored.
"""

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

NUMBERS = tuple(
    number for name in ("SIGINT", "SIGTERM", "SIGHUP") if (number := getattr(signal, name, None)) is not None
)

_AT_ONCE = 3
_TAKEN_S = 1.0
_TOGETHER_S = 0.05  # one closing of a terminal is a HUP of the kernel and one of the shell


class Signals:
    """The signals that have come; those that come together are one.

    Attributes:
        asked: Set by the first: the stream is to end.
        hurry: Set by the second: nothing is to be waited for. The third ends the process where it stands.
        number: The first.
    """

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.hurry = threading.Event()
        self.number: int | None = None
        self._count = 0
        self._last_s = -1.0
        self._before: dict[int, object] = {}
        self._writer: socket.socket | None = None
        self._taker: threading.Thread | None = None
        self._wakeup_before = -1

    def hold(self) -> None:
        """Note signals from now on.

        Raises:
            ValueError: This is not the main thread.
        """
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        self._wakeup_before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        self._writer = writer
        for number in NUMBERS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, _noted)
        self._taker = threading.Thread(target=self._take, args=(reader,), name="signals", daemon=True)
        self._taker.start()

    def let_go(self) -> None:
        """Let the handlers that were there before have the signals again; those that have come are noted then."""
        for number, before in self._before.items():
            signal.signal(number, before)  # type: ignore[arg-type]
        self._before = {}
        signal.set_wakeup_fd(self._wakeup_before)
        if self._writer is not None:
            self._writer.close()  # the thread takes what is left, and ends
        if self._taker is not None:
            self._taker.join(_TAKEN_S)

    def _take(self, reader: socket.socket) -> None:
        with reader:
            while taken := reader.recv(1):
                if taken[0] in NUMBERS:
                    self._note(taken[0])

    def _note(self, number: int) -> None:
        before_s, self._last_s = self._last_s, time.monotonic()
        if self._count and self._last_s - before_s < _TOGETHER_S:
            return
        self._count += 1
        if self._count == 1:
            self.number = number
            self.asked.set()
        elif self._count < _AT_ONCE:
            self.hurry.set()
        else:
            os._exit(128 + number)


def _noted(number: int, frame: object) -> None:
    """Python's part of a handler; what is done about the signal, the thread does."""


_held: Signals | None = None


def hold() -> None:
    """Note signals before it is known what the command is; `of_a_stream` takes them over, `let_go` gives them back."""
    global _held
    if _held is None and threading.current_thread() is threading.main_thread():
        _held = Signals()
        _held.hold()


def let_go() -> None:
    """This command is none that notes signals: they do what they do by default, also those that have come already."""
    global _held
    held, _held = _held, None
    if held is not None:
        held.let_go()
        if held.number is not None:
            signal.raise_signal(held.number)


def held() -> bool:
    """Whether signals are noted, and the command is one that does so."""
    return _held is not None


@contextmanager
def of_a_stream() -> Iterator[Signals]:
    """The signals of this process, those included that have come since `hold`.

    Where nothing was held before, they are noted in the block only; outside of the main thread they are not.
    """
    if _held is not None:
        yield _held
        return
    signals = Signals()
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    signals.hold()
    try:
        yield signals
    finally:
        with suppress(ValueError):
            signals.let_go()
