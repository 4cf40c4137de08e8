"""The chat page (--web): one static page and two small calls, by Starlette on uvicorn.

    GET /            the page: static/chat.html and its style and scripts; nothing comes from another address
    GET /api/models  {"models": [{"name", "defaults"}], "system"}
    POST /api/chat   {"model", "messages", "settings"} -> one JSON event a line: {"text"}..., {"done"} or {"error"}

A reader that hangs up (the stop button does) ends the generation. Answers name no path of this machine's disk.

Why these two: tried beside Gradio and NiceGUI they take 5 MB instead of 341 and 104, start some 20 and 3 times sooner,
are in vLLM's and SGLang's environments already, and the page stays plain HTML that a student can read and change.
"""

import json
import re
import socket
import sys
import traceback
from argparse import Namespace
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from .errors import UserError
from .inference import WEB_PORT, build_messages, check_limits
from .listening import address, foreign_host, is_loopback, listen, run_app
from .web_models import ChatModel, connect_models, load_models

STATIC = Path(__file__).parent / "static"
MAX_BODY = 1 << 20
# name -> (type, low, high); where low is 0 and stands in ABOVE, 0 itself means nothing
LIMITS = {
    "temperature": (float, 0, 2),
    "top_p": (float, 0, 1),
    "max_new_tokens": (int, 1, 1 << 20),
    "repetition_penalty": (float, 0, 10),
    "seed": (int, 0, 1 << 53),
}
ABOVE = ("top_p", "repetition_penalty")
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def open_page(args: Namespace) -> int:
    """Load or find the models that the flags name and serve the page until Ctrl-C. Raises UserError."""
    host, port = check_web_flags(args)
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UserError(f"聊天页需要 starlette 和 uvicorn（{error}），请 pip install starlette uvicorn。") from None
    with listen(host, port) as listener:
        models = connect_models(args) if getattr(args, "client", None) else load_models(args)
        run_server(build_app(models, args.system or "", only_here=is_loopback(host)), host, listener)
    return 0


def check_web_flags(args: Namespace) -> tuple[str, int]:
    """Return where to listen; UserError for flags that do not go with the page."""
    for flag in ("prompt", "input", "output", "interactive", "stream"):
        if getattr(args, flag):
            raise UserError(f"--web 打开聊天页，不能同时给 --{flag}，请去掉其中一个。")
    if not getattr(args, "client", "transformers"):
        raise UserError(
            "这个引擎的聊天页向一个服务提问：请先用 --serve 启动服务，再另开一个终端用 --client http://主机:端口/v1 --web；"
            "不启动服务可用 inference_with_transformers.py --web。"
        )
    if args.web_models and (args.model or args.adapter):
        raise UserError("--web-models 已经列出全部模型，不能同时给 --model 或 --adapter，请把它们也写进 --web-models。")
    port = WEB_PORT if args.port is None else args.port
    if not 0 <= port <= 65535:
        raise UserError(f"--port {port}：应在 0 到 65535 之间，请修改。")
    check_limits(args)
    return args.host, port


def build_app(models: list[ChatModel], system: str, only_here: bool) -> Any:
    """The page as an ASGI application. ``only_here`` refuses requests that were meant for another host name."""
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import FileResponse, JSONResponse, Response
    from starlette.routing import Mount, Route
    from starlette.staticfiles import StaticFiles

    by_name = {model.name: model for model in models}

    def page(request: Request) -> Response:
        return FileResponse(STATIC / "chat.html")

    def about(request: Request) -> Response:
        return JSONResponse({"models": [{"name": m.name, "defaults": m.defaults} for m in models], "system": system})

    async def chat(request: Request) -> Response:
        try:
            model, messages, settings = parse_question(await read_body(request), by_name)
        except UserError as error:
            return JSONResponse({"error": hide_paths(str(error))}, 400)
        return stream_events(model.answer(messages, settings))

    routes = [Route("/", page), Route("/api/models", about), Route("/api/chat", chat, methods=["POST"])]
    return guard(Starlette(routes=[*routes, Mount("/", StaticFiles(directory=STATIC))]), only_here)


def guard(app: Any, only_here: bool) -> Any:
    """Add HEADERS to every answer, and keep other web sites out.

    A site open in the same browser can send requests to 127.0.0.1 too: under a name of its own, which foreign_host
    finds, or as a plain form, which read_body refuses for not being JSON.
    """
    from starlette.datastructures import MutableHeaders
    from starlette.requests import ClientDisconnect
    from starlette.responses import JSONResponse

    async def guarded(scope: dict, receive: Any, send: Any) -> None:
        async def send_with_headers(message: dict) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        if scope["type"] != "http":
            return
        if only_here and (host := foreign_host(scope)) is not None:
            error = f"这个页面只给本机用，请打开 http://127.0.0.1:端口；要用 {host} 访问，请在启动时加 --host。"
            await JSONResponse({"error": error}, 403)(scope, receive, send_with_headers)
            return
        try:
            await app(scope, receive, send_with_headers)
        except ClientDisconnect:  # before its question was whole
            return
        except Exception:
            traceback.print_exc()  # ours to say, since run_app keeps uvicorn quiet
            raise

    return guarded


async def read_body(request: Any) -> dict:
    """Return the JSON object that was sent. Raises UserError; what is over MAX_BODY is not kept, and read only so far
    that its sender hears why it is refused.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise UserError("请求应是 application/json。")
    data, size = bytearray(), 0
    async for chunk in request.stream():
        size += len(chunk)
        if size <= MAX_BODY:
            data += chunk
        elif size > 16 * MAX_BODY:
            break
    if size > MAX_BODY:
        raise UserError(f"对话超过 {MAX_BODY >> 20} MB，请清空后重新提问。")
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        raise UserError("请求不是完整的 JSON。") from None
    if not isinstance(body, dict):
        raise UserError("请求应是 JSON 对象。")
    return body


def parse_question(body: dict, models: dict[str, ChatModel]) -> tuple[ChatModel, list[dict], dict]:
    """Return model, messages and settings of a question. Raises UserError."""
    name = body.get("model")
    if not isinstance(name, str) or name not in models:
        raise UserError(f"没有这个模型：{name!r}，有的是：{'、'.join(models)}。请刷新页面。")
    messages, answered = build_messages({"messages": body.get("messages")}, None, "这段对话")
    if answered:
        raise UserError("这段对话：最后一条消息应是提问。")
    return models[name], messages, parse_settings(body.get("settings") or {})


def parse_settings(given: Any) -> dict:
    """Return the sampling settings, checked. Raises UserError that says which one is wrong and what it may be."""
    if not isinstance(given, dict):
        raise UserError("settings 应是 JSON 对象。")
    for name, value in given.items():
        if name not in LIMITS:
            raise UserError(f"没有 {name!r} 这个设置，有的是：{'、'.join(LIMITS)}。")
        kind, low, high = LIMITS[name]
        right_type = isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
        if not right_type or not low <= value <= high or (name in ABOVE and value == low):
            bounds = f"{'大于' if name in ABOVE else '不小于'} {low}、不大于 {high}"
            raise UserError(f"{name} 是 {value!r}，应是{'整数，' if kind is int else '数，'}{bounds}，请修改。")
    return {name: LIMITS[name][0](value) for name, value in given.items()}


def stream_events(events: AsyncIterator[dict]) -> Any:
    """Send events as they come, one JSON a line; the reader's hanging up closes ``events``, wherever it waits."""
    from starlette.background import BackgroundTask
    from starlette.responses import StreamingResponse

    async def lines() -> AsyncIterator[bytes]:
        try:
            async for event in events:
                yield (json.dumps(event, ensure_ascii=False) + "\n").encode("utf-8", "replace")
        except UserError as error:
            yield (json.dumps({"error": hide_paths(str(error))}, ensure_ascii=False) + "\n").encode()
        except Exception:
            traceback.print_exc()
            yield (json.dumps({"error": "出错了，原因见启动聊天页的终端。"}, ensure_ascii=False) + "\n").encode()

    return StreamingResponse(lines(), media_type="application/x-ndjson", background=BackgroundTask(events.aclose))


def hide_paths(text: str) -> str:
    """Leave out absolute paths, which a server's message may hold."""
    return re.sub(r"(?<![\w.:/])/(?:[\w.@+-]+/)+[\w.@+-]*", "（路径）", text)


def run_server(app: Any, host: str, listener: socket.socket) -> None:
    """Serve until Ctrl-C, saying where; what is being generated then ends at its next piece."""
    port = listener.getsockname()[1]
    if not is_loopback(host):
        print(
            f"警告：--host {host}：别的机器也能打开这个页面提问，没有密码。只想自己从别处用，请去掉 --host，"
            f"在你的电脑上 ssh -L {port}:127.0.0.1:{port} 这台机器，再打开 http://127.0.0.1:{port}。",
            file=sys.stderr,
        )
    print("聊天页已就绪，在浏览器里打开下面的地址；Ctrl-C 停止。", file=sys.stderr, flush=True)
    print(address(host, port), flush=True)
    run_app(app, listener)
    print("聊天页已关闭。", file=sys.stderr)
