"""The models behind the chat page: loaded in this process, or known to an OpenAI-compatible server.

Each is a ``ChatModel``, whose ``answer`` yields events: {"text"} pieces, {"notice"}, {"wait"} while it is another's turn,
and {"done"} at the end. Closing the iterator stops the generation: in this process before the model's next layer, on a
server by hanging up on it.
"""

import asyncio
import contextlib
import sys
import threading
from argparse import Namespace
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from .errors import UserError
from .inference import DEFAULT_MAX_NEW_TOKENS, Completion, Request
from .rows import BASE, longest_prompt

SETTINGS = ("max_new_tokens", "temperature", "top_p", "repetition_penalty", "seed")
Emit = Callable[[dict], None]


@dataclass(frozen=True)
class ChatModel:
    """``defaults`` are the settings that hold when a question brings none; None is what only the server knows."""

    name: str
    defaults: dict[str, float | int | None]
    answer: Callable[[list[dict], dict], AsyncIterator[dict]]


class Stopped(Exception):
    """Raised inside a generation that nobody listens to any more."""


def parse_names(values: list[str], flag: str) -> dict[str, str]:
    """Turn ``NAME=MODEL`` or ``MODEL`` (named after its last part) into {name: model}; UserError for a name used twice."""
    models: dict[str, str] = {}
    for value in values:
        name, equals, model = value.partition("=")
        if not equals or Path(value).expanduser().exists():
            name, model = Path(value).expanduser().resolve().name, value
        if not name or not model:
            raise UserError(f"{flag} {value}：应写成 名字=模型，例如 stage1=work/run/stage1-merged。")
        if name in models:
            raise UserError(f"{flag} {value}：名字 {name} 用了两次，请写成 名字=模型，各用一个名字。")
        models[name] = model
    return models


def load_models(args: Namespace) -> list[ChatModel]:
    """Load what the flags name into this process: --web-models, each whole, or --model with its adapters, if any.

    Adapters share their base's weights, and the base is there to compare with, under the name "base".
    """
    from .session import open_session

    plans = []  # (session, {name on the page: adapter or None}); all folders are looked at before any weights are read
    for name, model in parse_names(args.web_models or [], "--web-models").items():
        session = open_session(Namespace(**vars(args) | {"model": model, "adapter": None}))
        plans.append((session, {name: next(iter(session.adapters), None)}))
    if not plans:
        name, model = next(iter(parse_names([args.model] if args.model else [], "--model").items()), ("", None))
        session = open_session(Namespace(**vars(args) | {"model": model}))
        adapters = {adapter: adapter for adapter in session.adapters}
        plans.append((session, {BASE: None} | adapters if adapters else {name: None}))
    return [model for session, names in plans for model in load_session(session, names, args)]


def load_session(session: Any, names: dict[str, str | None], args: Namespace) -> list[ChatModel]:
    """Load one session's model for the page's ``names``: they answer one after another, other sessions' at once."""
    from .generate import load_model, stream_answer, using_adapter
    from .session import choose_device

    print(f"装载 {'、'.join(names)} ...", file=sys.stderr, flush=True)
    model = load_model(session, *choose_device(args), args.load_in_4bit)
    turn = threading.Lock()

    def speak(adapter: str | None, messages: list[dict], settings: dict, emit: Emit) -> Completion:
        asked = replace(session, sampling=replace(session.sampling, **settings))
        if turn.locked():
            emit({"wait": "与它共用一份权重的模型正在回答，答完轮到它。"})
        with turn:  # the tokenizer too is one: it must not encode for one answer while it decodes for another
            request, left_out = fit_history(asked, messages)
            if left_out:
                emit({"notice": f"对话太长，略去了最早的 {left_out} 轮。"})
            with before_each_layer(model, emit), using_adapter(model, session, adapter):
                return stream_answer(model, asked, request, lambda piece: emit({"text": piece}))

    defaults = {key: getattr(session.sampling, key) for key in SETTINGS}

    def chat_model(name: str, adapter: str | None) -> ChatModel:
        return ChatModel(name, defaults, lambda *asked: run_in_thread(partial(speak, adapter), *asked))

    return [chat_model(name, adapter) for name, adapter in names.items()]


@contextlib.contextmanager
def before_each_layer(model: Any, emit: Emit) -> Iterator[None]:
    """Emit nothing before each layer runs: there a stopped answer ends, also while it still reads a long prompt."""
    from torch.nn import ModuleList

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    layers = [layer for part in base.modules() if isinstance(part, ModuleList) for layer in part]
    hooks = [part.register_forward_pre_hook(lambda *inputs: emit({})) for part in (base, *layers)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def fit_history(session: Any, messages: list[dict]) -> tuple[Request, int]:
    """Leave out the oldest turns until the prompt and an answer fit; return the request and how many.

    Raises UserError when the last question alone is too long.
    """
    start = messages[:1] if messages[0]["role"] == "system" else []
    turns, left_out = messages[len(start) :], 0
    while True:
        request = Request(0, start + turns, where="这段对话")
        if len(turns) < 3 or len(session.encode(request)) <= longest_prompt(session):
            session.check([request])
            return request, left_out
        turns, left_out = turns[2:], left_out + 1


async def run_in_thread(
    speak: Callable[[list[dict], dict, Emit], Completion], messages: list[dict], settings: dict
) -> AsyncIterator[dict]:
    """Yield the events of ``speak`` while it runs in a thread; when this is closed early, ``speak`` ends at its next emit."""
    loop, events, stop = asyncio.get_running_loop(), asyncio.Queue(), threading.Event()

    def emit(event: dict | Exception) -> None:
        if stop.is_set():
            raise Stopped
        if event:
            loop.call_soon_threadsafe(events.put_nowait, event)

    def work() -> None:
        with contextlib.suppress(Stopped):
            try:
                emit({"done": done(speak(messages, settings, emit))})
            except Stopped:
                raise
            except Exception as error:
                emit(error)

    threading.Thread(target=work, name="answer").start()
    try:
        while True:
            event = await events.get()
            if isinstance(event, Exception):
                raise event
            yield event
            if "done" in event:
                return
    finally:
        stop.set()


def done(completion: Completion) -> dict:
    """What the page is told at the end: the whole text, since a piece may have waited for the rest of a character."""
    return {
        "text": completion.text,
        "finish_reason": completion.finish_reason,
        "completion_tokens": completion.completion_tokens,
    }


def connect_models(args: Namespace) -> list[ChatModel]:
    """Return the server's models that the flags name, or all of them. Raises UserError when it lacks one."""
    import openai

    from .client import find_models, name_on_server

    access, known = find_models(args)
    if args.web_models:
        wanted = parse_names(args.web_models, "--web-models")
    else:
        names = [name_on_server(known, args.model, "--model")] if args.model else known
        wanted = parse_names([f"{Path(name).name}={name}" for name in names], "--web-models")
    for name, model in wanted.items():
        if model not in known:
            raise UserError(f"--web-models {name}={model}：服务端没有这个模型，有的是：{'、'.join(known)}。")
    client = openai.AsyncOpenAI(**access)
    return [_server_model(client, name, known[model], args) for name, model in wanted.items()]


def _server_model(client: Any, name: str, model: str, args: Namespace) -> ChatModel:
    given = {key: getattr(args, key) for key in SETTINGS}
    given["max_new_tokens"] = args.max_new_tokens or DEFAULT_MAX_NEW_TOKENS

    def answer(messages: list[dict], settings: dict) -> AsyncIterator[dict]:
        return ask_server(client, name, model, messages, given | settings)

    return ChatModel(name, given, answer)


async def ask_server(client: Any, name: str, model: str, messages: list[dict], settings: dict) -> AsyncIterator[dict]:
    """Yield the events of a server's answer. The connection is closed with this, and the server stops generating."""
    from .client import request_body, said_plainly

    body = request_body(Namespace(**settings), model, Request(0, messages))
    pieces, finish, usage = [], None, None
    with said_plainly(name):
        stream = await client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **body)
        async with stream:
            async for chunk in stream:
                usage = chunk.usage or usage
                for choice in chunk.choices:
                    if choice.delta and choice.delta.content:
                        pieces.append(choice.delta.content)
                        yield {"text": choice.delta.content}
                    finish = choice.finish_reason or finish
    if finish is None:
        raise UserError(f"{name}：服务端中途断开，回答不完整。")
    yield {"done": done(Completion("".join(pieces), finish, 0, usage.completion_tokens if usage else 0))}
