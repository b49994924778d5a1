"""The server: routes, streams of events, errors, and how it ends."""

import asyncio
import json
import logging
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager

import uvicorn
from anyio import to_thread
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from trt_compress.errors import ConfigError, TrtCompressError
from trt_compress.foreign import strict_json
from trt_compress.runtime.generate.generator import Generator
from trt_compress.tools.serve.answers import Answer, error_of, models_of
from trt_compress.tools.serve.asked import UnknownModel, read_request
from trt_compress.tools.serve.jobs import AnswerJob, Jobs, TooManyRequests

LARGEST_REQUEST = 1 << 24
LOOPBACK = ("127.0.0.1", "localhost", "::1")

_LOGGER = logging.getLogger(__name__)
_LOOK_S = 0.1  # how often it is looked whether a client that waits is still there
_ENDING_S = 5


def bind(host: str, port: int) -> socket.socket:
    """Take an address.

    Raises:
        ConfigError: It is not to be had.
    """
    if not 0 <= port < 1 << 16:
        raise ConfigError(f"--port {port}; give a number from 0 to 65535, 0 for one that is free.")
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise ConfigError(
            f"--port {port}: {host}:{port} cannot be listened on ({error.strerror or error}); give another."
        ) from None


def serve(
    generator: Generator,
    listener: socket.socket,
    *,
    model: str,
    parallel: int,
    queue: int,
    prefixes: int,
    ready: Callable[[], None],
) -> None:
    """Answer requests until SIGINT or SIGTERM asks for the end; a second one waits for nothing.

    Args:
        generator: What answers; it has a tokenizer.
        listener: Where requests come from.
        model: The name under which it is served.
        parallel: How many requests are answered at the same time.
        queue: How many may wait.
        prefixes: How many beginnings of prompts are kept.
        ready: Is called when it answers.
    """
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # it warns of each write to a client that has gone
    jobs = Jobs(generator, parallel=parallel, queue=queue, prefixes=prefixes)
    local = listener.getsockname()[0] in LOOPBACK
    app = application(generator, jobs, model=model, local=local)
    config = uvicorn.Config(
        app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=_ENDING_S, server_header=False
    )
    server = _Server(config)

    async def run() -> None:
        def end() -> None:
            server.force_exit = server.should_exit
            server.should_exit = True
            jobs.cancel()

        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, end)
        loop.call_soon(ready)
        await server.serve(sockets=[listener])

    try:
        asyncio.run(run())
    finally:
        jobs.close()


class _Server(uvicorn.Server):
    """Uvicorn's, whose signals are taken here: being told to end is no failure of a server."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take none."""
        yield


def application(generator: Generator, jobs: Jobs, *, model: str, local: bool) -> Starlette:
    """The routes.

    Args:
        generator, model: As for `serve`.
        jobs: Where requests go.
        local: Only names of this machine are answered, so that no page of a browser gets here by a name of its own.
    """
    created = int(time.time())
    assert generator.text.tokenizer is not None
    tokenizer = generator.text.tokenizer

    async def models(request: Request) -> Response:
        return JSONResponse(models_of(model, created))

    async def completions(request: Request) -> Response:
        return await answer(request, is_chat=False)

    async def chat(request: Request) -> Response:
        return await answer(request, is_chat=True)

    async def answer(request: Request, *, is_chat: bool) -> Response:
        try:
            data = await _body(request)
            asked = await to_thread.run_sync(lambda: read_request(data, generator.text, model, is_chat=is_chat))
            job = jobs.add(asked)
        except TrtCompressError as error:
            return _refusal(error)
        said = Answer(asked, model, tokenizer)
        if asked.streams:
            events = _events(job, said, with_usage=asked.with_usage)
            return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        taking = asyncio.ensure_future(_take(job))
        try:
            while not (await asyncio.wait([taking], timeout=_LOOK_S))[0]:
                if await request.is_disconnected():
                    return Response(status_code=499)
            taking.result()
        except TrtCompressError as error:
            return _refusal(error)
        finally:
            job.cancel()
            taking.cancel()
        return JSONResponse(said.whole(job.results))

    async def unexpected(request: Request, error: Exception) -> Response:
        _LOGGER.error("a request failed", exc_info=error)
        return JSONResponse(error_of("The server failed; its log says how.", "server_error"), 500)

    routes = [
        Route("/v1/models", models),
        Route("/v1/completions", completions, methods=["POST"]),
        Route("/v1/chat/completions", chat, methods=["POST"]),
    ]
    names = Middleware(TrustedHostMiddleware, allowed_hosts=[*LOOPBACK, "[::1]"])
    return Starlette(routes=routes, middleware=[names] if local else [], exception_handlers={Exception: unexpected})


async def _body(request: Request) -> object:
    """What the client sent, as JSON.

    Raises:
        ConfigError: It is too long, or none.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise ConfigError("The request is no JSON; send it with the header Content-Type: application/json.")
    content = b""
    async for part in request.stream():
        content += part
        if len(content) > LARGEST_REQUEST:
            raise ConfigError(f"The request has more than {LARGEST_REQUEST} bytes.")
    try:
        return strict_json(content, limit=LARGEST_REQUEST, longest=LARGEST_REQUEST)
    except ValueError as error:
        raise ConfigError(f"The request is no JSON ({error}).") from None


async def _take(job: AnswerJob) -> None:
    async for _ in job.pieces():
        pass


async def _events(job: AnswerJob, said: Answer, *, with_usage: bool) -> AsyncIterator[str]:
    """The answer as server-sent events; a client that goes away ends the job."""
    try:
        async for piece in job.pieces():
            if (chunk := said.chunk(piece)) is not None:
                yield _event(chunk)
        if with_usage:
            yield _event(said.usage(job.results))
        yield "data: [DONE]\n\n"
    except TrtCompressError as error:
        yield _event(error_of(error.message, "server_error"))
    finally:
        job.cancel()


def _event(data: object) -> str:
    return f"data: {json.dumps(data)}\n\n"


def _refusal(error: TrtCompressError) -> Response:
    """An error in the form of the interface."""
    if isinstance(error, TooManyRequests):
        return JSONResponse(error_of(error.message, "rate_limit_error"), 429, {"Retry-After": "1"})
    if isinstance(error, UnknownModel):
        return JSONResponse(error_of(error.message, "invalid_request_error", "model_not_found"), 404)
    if error.exit_code != ConfigError.exit_code:
        return JSONResponse(error_of(error.message, "server_error"), 500)
    return JSONResponse(error_of(error.message, "invalid_request_error"), 400)
