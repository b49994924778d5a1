"""Requests in turn: so many are answered at the same time, each with states of its own, so many wait, and no more."""

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import Future, ThreadPoolExecutor

from trt_compress.errors import UnsupportedError
from trt_compress.runtime.generate.generator import Generator
from trt_compress.runtime.generate.stream import Generated, Piece, Stream
from trt_compress.tools.serve.asked import Asked

_Event = Piece | BaseException | None


class TooManyRequests(UnsupportedError):
    """As many requests wait as may."""


class AnswerJob:
    """A request that is answered on a thread of its own; what comes of it is taken in the event loop.

    Attributes:
        results: The answers, when all pieces were taken.
    """

    def __init__(self, generator: Generator, asked: Asked) -> None:
        """Prepare it; nothing runs yet.

        Raises:
            ConfigError, UnsupportedError: As `Generator.stream`.
        """
        self.results: list[Generated] = []
        self.future: Future[None] | None = None
        self._stream: Stream = generator.stream(
            asked.prompts,
            max_new=asked.max_new,
            sampling=asked.sampling,
            detached=asked.is_chat,
        )
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[_Event] = asyncio.Queue()

    def run(self) -> None:
        """Answer, on the thread."""
        last: BaseException | None = None
        try:
            with self._stream as stream:
                for piece in stream:
                    self._put(piece)
            self.results = stream.results()
        except BaseException as error:  # said where the answer is taken
            last = error
        self._put(last)

    def cancel(self) -> None:
        """Answer no further: before it begins, or with the next step."""
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

    def _put(self, event: _Event) -> None:
        try:
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)
        except RuntimeError:  # the loop has ended
            self.cancel()


class Jobs:
    """All requests of a server."""

    def __init__(self, generator: Generator, *, parallel: int, queue: int) -> None:
        """Begin with none.

        Args:
            generator: What answers.
            parallel: How many are answered at the same time.
            queue: How many may wait.
        """
        self._generator = generator
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
        job = AnswerJob(self._generator, asked)
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
