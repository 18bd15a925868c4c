"""The HTTP application: routes, and the way of a request through checking, queue and writing to its answer.

Requests are checked and tokenised in one thread beside the event loop, answers are written in the engine's; the loop
only hands on, so that a thousand waiting clients cost no thread each.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from qpeft.errors import InputError
from qpeft.serving.answers import Answer, error, model_entry, server_sent
from qpeft.serving.engine import Engine, QueueFull
from qpeft.serving.models import ServedModel
from qpeft.serving.page import render_page
from qpeft.serving.prompts import prepare
from qpeft.serving.requests import BadRequest, ChatRequest, CompletionRequest, read_request
from qpeft.serving.writing import Event, Job

MAX_BODY = 4 << 20

_REFUSED = "invalid_request_error"


def build_app(models: Mapping[str, ServedModel], engine: Engine, max_new_tokens: int = 512) -> Starlette:
    """The application that serves models.

    Args:
        models: By name.
        engine: Writes the answers.
        max_new_tokens: Longest answer to a chat that names no limit.
    """
    service = _Service(models, engine, max_new_tokens)
    return Starlette(
        routes=[
            Route("/", service.page),
            Route("/v1/models", service.list_models),
            Route("/v1/models/{name:path}", service.one_model),
            Route("/v1/chat/completions", service.chat, methods=["POST"]),
            Route("/v1/completions", service.complete, methods=["POST"]),
        ],
        exception_handlers={HTTPException: _no_such_place, ClientDisconnect: _nobody_there},
    )


class _Service:
    def __init__(self, models: Mapping[str, ServedModel], engine: Engine, max_new_tokens: int) -> None:
        self.models = models
        self.engine = engine
        self.max_new_tokens = max_new_tokens
        self._preparing = ThreadPoolExecutor(1, "qpeft-prompts")

    async def page(self, request: Request) -> Response:
        return HTMLResponse(render_page(list(self.models.values()), self.engine, str(request.base_url)))

    async def list_models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [model_entry(served) for served in self.models.values()]})

    async def one_model(self, request: Request) -> Response:
        served = self.models.get(request.path_params["name"])
        return self._unknown(request.path_params["name"]) if served is None else JSONResponse(model_entry(served))

    async def chat(self, request: Request) -> Response:
        return await self._answer(request, ChatRequest)

    async def complete(self, request: Request) -> Response:
        return await self._answer(request, CompletionRequest)

    async def _answer(self, request: Request, kind: Any) -> Response:
        raw = await _body(request)
        if raw is None:
            return JSONResponse(error(f"a request may have at most {MAX_BODY} bytes", _REFUSED), 413)
        loop = asyncio.get_running_loop()
        try:
            asked = read_request(kind, raw)
            served = self.models.get(asked.model)
            if served is None:
                return self._unknown(asked.model)
            ids, sampling = await loop.run_in_executor(self._preparing, prepare, asked, served, self.max_new_tokens)
        except BadRequest as wrong:
            return JSONResponse(error(str(wrong), _REFUSED, wrong.param, wrong.code), 400)
        except InputError as wrong:
            return JSONResponse(error(str(wrong), _REFUSED), 400)
        events: asyncio.Queue[Event] = asyncio.Queue()

        def tell(event: Event) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended: nobody listens any more
                loop.call_soon_threadsafe(events.put_nowait, event)

        job = Job(served, ids, sampling, tell)
        try:
            self.engine.submit(job)
        except QueueFull as full:
            wait = {"Retry-After": str(full.seconds)}
            return JSONResponse(error(str(full), "rate_limit_error", code="queue_full"), 429, wait)
        answer = Answer(served.name, isinstance(asked, ChatRequest), len(ids))
        if asked.stream:
            chunks = self._stream(job, events, answer, asked.with_usage)
            return StreamingResponse(chunks, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        return await self._whole(request, job, events, answer)

    async def _stream(
        self, job: Job, events: asyncio.Queue[Event], answer: Answer, with_usage: bool
    ) -> AsyncIterator[str]:
        try:
            if answer.is_chat:
                yield server_sent(answer.chunk(None, is_first=True))
            while (event := await events.get()).reason is None:
                yield server_sent(answer.chunk(event.text))
            if event.reason in ("error", "cancelled"):
                yield server_sent(error(event.text or "the server is stopping", "server_error"))
                return
            if event.text:
                yield server_sent(answer.chunk(event.text))
            yield server_sent(answer.chunk(None, event.reason))
            if with_usage:
                yield server_sent(answer.last_chunk(event.n_tokens))
            yield "data: [DONE]\n\n"
        finally:  # also when the client has gone
            self.engine.cancel(job)

    async def _whole(self, request: Request, job: Job, events: asyncio.Queue[Event], answer: Answer) -> Response:
        collecting = asyncio.ensure_future(_collect(events))
        gone = asyncio.ensure_future(_gone(request))
        try:
            await asyncio.wait({collecting, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not collecting.done():
                return Response(status_code=499)
            text, end = collecting.result()
        finally:
            self.engine.cancel(job)
            collecting.cancel()
            gone.cancel()
        if end.reason == "cancelled":
            return JSONResponse(error("the server is stopping", "server_error"), 503)
        if end.reason == "error":
            return JSONResponse(error(end.text, "server_error"), 500)
        assert end.reason is not None
        return JSONResponse(answer.whole(text, end.reason, end.n_tokens))

    def _unknown(self, name: str) -> Response:
        message = f"there is no model {name!r} here: choose one of {', '.join(self.models)}"
        return JSONResponse(error(message, _REFUSED, "model", "model_not_found"), 404)


async def _body(request: Request) -> bytes | None:
    """The whole body, or nothing if it is too long."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > MAX_BODY:
            return None
        parts.append(part)
    return b"".join(parts)


async def _collect(events: asyncio.Queue[Event]) -> tuple[str, Event]:
    texts = []
    while (event := await events.get()).reason is None:
        texts.append(event.text)
    return "".join([*texts, event.text]), event


async def _gone(request: Request) -> None:
    """Returns when the client has gone; the body is read, so nothing else can come."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _no_such_place(request: Request, wrong: Exception) -> Response:
    assert isinstance(wrong, HTTPException)
    message = f"{request.method} {request.url.path}: {wrong.detail.lower()}"
    return JSONResponse(error(message, _REFUSED), wrong.status_code, wrong.headers)


async def _nobody_there(request: Request, wrong: Exception) -> Response:
    return Response(status_code=499)
