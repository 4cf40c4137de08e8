"""The HTTP service over the transformers engine: /v1/chat/completions, /v1/models, /health and the old /firefly.

A client that hangs up ends its generation at the next token. Nothing that was asked or answered is logged or kept.
"""

import asyncio
import contextlib
import copy
import json
import random
import time
import uuid
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass, field, replace
from typing import Any

import anyio
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from .errors import UserError
from .http_batch import Batcher, QueueFull
from .http_guard import HANDLERS, HostCheck, KeyCheck, failed, json_answer
from .http_protocol import ApiError, Asked, chat_answer, chat_chunk, count_usage, parse_chat, parse_json, parse_old
from .http_stream import Piece, Stream
from .inference import Request
from .session import Session

BODY_SECONDS = 60
DISCARD = 16 << 20  # so much of a body that is too large is still read, that its sender may hear why it is refused


@dataclass
class Service:
    """What the endpoints share. ``only_here``: refuse what was meant for another host name than this machine's loopback.

    ``seeds`` gives a seed to requests that bring none.
    """

    session: Session
    batcher: Batcher
    name: str
    api_key: str | None = None
    max_body: int = 1 << 20
    only_here: bool = False
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.seeds = random.Random(self.session.sampling.seed)
        # Encoding sets up the tokenizer, which must not happen while the worker decodes with it: it gets a copy.
        self.encoder = replace(self.session, tokenizer=copy.deepcopy(self.session.tokenizer))
        self.one_at_a_time: anyio.CapacityLimiter | None = None


def build_app(service: Service) -> Starlette:
    """Return the ASGI application. Closing the batcher is the caller's task."""
    routes = [
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/v1/models", models, methods=["GET"]),
        Route("/v1/models/{name:path}", models, methods=["GET"]),
        Route("/health", health, methods=["GET"]),
        Route("/firefly", firefly, methods=["POST"]),
    ]
    middleware = [Middleware(KeyCheck, key=service.api_key)] if service.api_key else []
    middleware += [Middleware(HostCheck)] if service.only_here else []
    app = Starlette(routes=routes, exception_handlers=HANDLERS, middleware=middleware)
    app.state.service = service
    return app


async def health(request: HttpRequest) -> Response:
    service: Service = request.app.state.service
    running, waiting = service.batcher.counts()
    alive = service.batcher.thread.is_alive()
    return json_answer(
        {"status": "ok" if alive else "stopped", "running": running, "waiting": waiting}, 200 if alive else 503
    )


async def models(request: HttpRequest) -> Response:
    service: Service = request.app.state.service
    model = {"id": service.name, "object": "model", "created": service.created, "owned_by": "firefly"}
    model["max_model_len"] = service.session.context
    if (asked := request.path_params.get("name")) is None:
        return json_answer({"object": "list", "data": [model]})
    if asked != service.name:
        raise ApiError(404, f"没有模型 {asked[:80]!r}，有的是：{service.name}。", "model", "model_not_found")
    return json_answer(model)


async def chat(request: HttpRequest) -> Response:
    """OpenAI's chat request, answered whole or as server-sent events."""
    service: Service = request.app.state.service
    body = await _read_body(request, service.max_body)
    asked = parse_chat(body, _seeded(service), (service.name,), service.session.context)
    stream, pieces = await _start(service, asked)
    answer_id = f"chatcmpl-{uuid.uuid4().hex}"
    if asked.stream:
        return _Events(stream, _chat_events(stream, pieces, answer_id, service.name, asked.usage))
    text = await _whole(request, stream, pieces)
    usage = count_usage(len(stream.prompt), len(stream.ids))
    return json_answer(chat_answer(answer_id, service.name, text, stream.finish, usage))


async def firefly(request: HttpRequest) -> Response:
    """The old service's request: {"inputs", generate's settings} -> {"input", "output"}."""
    service: Service = request.app.state.service
    body = await _read_body(request, service.max_body)
    stream, pieces = await _start(service, parse_old(body, _seeded(service), service.session.context))
    text = await _whole(request, stream, pieces)
    return json_answer({"input": body["inputs"].strip(), "output": text.strip()})


def _seeded(service: Service) -> Any:
    return replace(service.session.sampling, seed=service.seeds.getrandbits(63))


async def _read_body(request: HttpRequest, limit: int) -> dict:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # which also keeps web pages from asking without the browser's preflight
        raise ApiError(415, "请求头 Content-Type 应是 application/json。", code="unsupported_media_type")
    too_large = ApiError(413, f"请求体超过 {limit} 字节的上限，请缩短后再发。", code="body_too_large")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limit + DISCARD:
        raise too_large
    raw, size = bytearray(), 0
    try:
        with anyio.fail_after(BODY_SECONDS):
            async for chunk in request.stream():
                size += len(chunk)
                if size <= limit:
                    raw += chunk
                elif size > limit + DISCARD:
                    break
    except TimeoutError:
        raise ApiError(408, f"{BODY_SECONDS} 秒内没有收完请求体，请重发。", code="timeout") from None
    if size > limit:
        raise too_large
    return parse_json(bytes(raw))


async def _start(service: Service, asked: Asked) -> tuple[Stream, asyncio.Queue]:
    """Encode the prompt and queue it; the Pieces of the answer come out of the queue returned."""
    busy = ApiError(503, "排队的请求已满，请稍后重试。", code="queue_full", Retry_After="5")
    if service.batcher.full():
        raise busy
    prompt = await _encode(service, asked)
    if len(prompt) >= service.session.context:
        limit = service.session.context
        raise ApiError(
            400,
            f"提示有 {len(prompt)} 个 token，模型最多 {limit} 个（含回答），请缩短 messages。",
            "messages",
            "context_length_exceeded",
        )
    loop, pieces = asyncio.get_running_loop(), asyncio.Queue()

    def emit(piece: Piece) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the service ends
            loop.call_soon_threadsafe(pieces.put_nowait, piece)

    stream = Stream(service.session, prompt, asked.sampling, emit, asked.stop)
    try:
        service.batcher.submit(stream)
    except QueueFull:
        raise busy from None
    return stream, pieces


async def _encode(service: Service, asked: Asked) -> list[int]:
    if service.one_at_a_time is None:
        service.one_at_a_time = anyio.CapacityLimiter(1)
    request = Request(0, asked.messages, where="messages")
    try:
        return await anyio.to_thread.run_sync(service.encoder.encode, request, limiter=service.one_at_a_time)
    except UserError as error:
        raise ApiError(400, str(error), "messages", "template_error") from None


async def _read(pieces: asyncio.Queue) -> AsyncIterator[Piece]:
    finish = None
    while finish is None:
        piece = await pieces.get()
        finish = piece.finish
        yield piece


async def _whole(request: HttpRequest, stream: Stream, pieces: asyncio.Queue) -> str:
    """Wait for the whole text, or for the client to hang up."""

    async def finished() -> bool:
        async for _ in _read(pieces):
            pass
        return True

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    try:
        answered = await _first(finished(), gone())
    finally:
        stream.cancelled = True
    if not answered:
        raise ClientDisconnect
    if stream.finish == "error":
        raise failed()
    return stream.answer


async def _first(*coroutines: Awaitable) -> Any:
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return next(task for task in tasks if task in done).result()
    finally:
        for task in tasks:
            task.cancel()


class _Events(StreamingResponse):
    """Server-sent events; however the response ends, so does the stream."""

    def __init__(self, stream: Stream, events: AsyncIterator[bytes]):
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self.stream = stream

    async def __call__(self, *args: Any) -> None:
        try:
            await super().__call__(*args)
        finally:
            self.stream.cancelled = True


async def _chat_events(
    stream: Stream, pieces: asyncio.Queue, answer_id: str, name: str, usage: bool
) -> AsyncIterator[bytes]:
    more = {"usage": None} if usage else {}
    yield _event(chat_chunk(answer_id, name, {"role": "assistant", "content": ""}, **more))
    async for piece in _read(pieces):
        if piece.finish == "error":
            yield _event(failed().body())
            break
        if piece.text:
            yield _event(chat_chunk(answer_id, name, {"content": piece.text}, **more))
        if piece.finish:
            yield _event(chat_chunk(answer_id, name, {}, piece.finish, **more))
            if usage:
                counts = count_usage(len(stream.prompt), len(stream.ids))
                yield _event(chat_chunk(answer_id, name, None, usage=counts))
    yield b"data: [DONE]\n\n"


def _event(body: dict) -> bytes:
    return b"data: " + json.dumps(body, ensure_ascii=False).encode() + b"\n\n"
