"""Requests in turn: so many are answered at the same time, each with states of its own, so many wait, and no more."""

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import Future, ThreadPoolExecutor

from trt_compress.errors import UnsupportedError
from trt_compress.runtime.generate.generator import Generator
from trt_compress.runtime.generate.prefixes import Prefixes
from trt_compress.runtime.generate.stream import Generated, Piece, Prefix, Stream
from trt_compress.tools.serve.asked import Asked

_Event = Piece | BaseException | None


class TooManyRequests(UnsupportedError):
    """As many requests wait as may."""


class AnswerJob:
    """A request that is answered on a thread of its own; what comes of it is taken in the event loop.

    Attributes:
        results: The answers, when all pieces were taken.
    """

    def __init__(self, generator: Generator, prefixes: Prefixes, asked: Asked) -> None:
        """Prepare it; nothing runs yet.

        Args:
            generator: What answers.
            prefixes: What was read before.
            asked: The request.

        Raises:
            ConfigError, UnsupportedError: As `Generator.stream`.
        """
        self.results: list[Generated] = []
        self.future: Future[None] | None = None
        self._generator, self._prefixes, self._asked = generator, prefixes, asked
        self._is_cancelled = False
        self._stream = self._streaming(None)
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[_Event] = asyncio.Queue()

    def run(self) -> None:
        """Answer, on the thread."""
        last: BaseException | None = None
        try:
            self._reuse()
            with self._stream as stream:
                for piece in stream:
                    self._put(piece)
            self.results = stream.results()
        except BaseException as error:  # said where the answer is taken
            last = error
        self._put(last)

    def cancel(self) -> None:
        """Answer no further: before it begins, between two runs, or with the next step."""
        self._is_cancelled = True
        self._stream.cancel()

    async def pieces(self) -> AsyncIterator[Piece]:
        """The pieces as they come; raises what was raised on the thread."""
        while True:
            event = await self._events.get()
            if event is None:
                return
            if isinstance(event, BaseException):
                raise event
            yield event

    def _streaming(self, prefix: Prefix | None) -> Stream:
        return self._generator.stream(
            self._asked.prompts,
            max_new=self._asked.max_new,
            sampling=self._asked.sampling,
            detached=self._asked.is_chat,
            prefix=prefix,
        )

    def _reuse(self) -> None:
        """Go on behind what was read before of these prompts."""

        def between(read: int) -> None:
            if self._is_cancelled:
                raise _NobodyWaits

        try:
            prefix = self._prefixes.of(self._asked.prompts, between=between)
        except _NobodyWaits:
            return
        if prefix is not None:
            self._stream = self._streaming(prefix)
            if self._is_cancelled:  # what was cancelled may have been the one before
                self._stream.cancel()

    def _put(self, event: _Event) -> None:
        try:
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)
        except RuntimeError:  # the loop has ended
            self.cancel()


class _NobodyWaits(Exception):
    """The request was cancelled while its beginning was read."""


class Jobs:
    """All requests of a server."""

    def __init__(self, generator: Generator, *, parallel: int, queue: int, prefixes: int = 0) -> None:
        """Begin with none.

        Args:
            generator: What answers.
            parallel: How many are answered at the same time.
            queue: How many may wait.
            prefixes: How many beginnings of prompts are kept.
        """
        self._generator, self._prefixes = generator, Prefixes(generator, most=prefixes)
        self._most = parallel + queue
        self._pool = ThreadPoolExecutor(parallel, thread_name_prefix="answering")
        self._open: set[AnswerJob] = set()
        self._lock = threading.Lock()

    def add(self, asked: Asked) -> AnswerJob:
        """Take a request in.

        Raises:
            TooManyRequests: As many wait as may.
            ConfigError, UnsupportedError: As `Generator.stream`.
        """
        job = AnswerJob(self._generator, self._prefixes, asked)
        with self._lock:
            if len(self._open) >= self._most:
                raise TooManyRequests(f"{self._most} requests are open, which is as many as may be; ask again later.")
            self._open.add(job)
            job.future = self._pool.submit(job.run)
        job.future.add_done_callback(lambda future: self._done(job))
        return job

    def cancel(self) -> None:
        """Answer none of them further."""
        with self._lock:
            for job in self._open:
                job.cancel()

    def close(self) -> None:
        """Cancel all of them, and wait until the threads have ended."""
        self.cancel()
        self._pool.shutdown(wait=True, cancel_futures=False)

    def _done(self, job: AnswerJob) -> None:
        with self._lock:
            self._open.discard(job)
