"""Who may ask the HTTP service, and what is answered when something went wrong: always OpenAI's error body."""

import hmac
import json
import logging
from typing import Any

from h11 import LocalProtocolError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from .http_protocol import ApiError
from .listening import foreign_host

log = logging.getLogger("firefly.http")


def json_answer(body: dict, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """The answer ``body`` as readable UTF-8."""
    content = json.dumps(body, ensure_ascii=False).encode()
    return Response(content, status, headers=headers, media_type="application/json")


def failed() -> ApiError:
    """What the asker is told of a failure of ours: nothing of its inside."""
    return ApiError(500, "生成时出错，原因见服务端日志；请稍后重试。", code="internal_error")


async def _on_error(request: Request, error: ApiError) -> Response:
    return json_answer(error.body(), error.status, error.headers)


async def _on_http_error(request: Request, error: HTTPException) -> Response:
    words = {404: "没有这个地址", 405: "这个地址不接受这种请求方法"}.get(error.status_code, "请求有误")
    known = "POST /v1/chat/completions、POST /firefly、GET /v1/models、GET /health"
    body = ApiError(error.status_code, f"{words}；有的是：{known}。").body()
    return json_answer(body, error.status_code, dict(error.headers or {}))


async def _on_gone(request: Request, error: ClientDisconnect) -> Response:
    return Response(status_code=499)  # nobody reads it


async def _on_bug(request: Request, error: Exception) -> Response:
    if not isinstance(error, LocalProtocolError):  # that one: what the client sent is no HTTP, nobody can be answered
        log.error("处理请求时出错", exc_info=error)
    return json_answer(failed().body(), 500)


class HostCheck:
    """Keep out web sites that reach this machine under a name of their own: listening.foreign_host."""

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and (host := foreign_host(scope)) is not None:
            words = (
                f"这个服务只给本机用，请用 http://127.0.0.1:端口；要用 {host[:80]} 访问，请在启动时设密钥或加 --host。"
            )
            await json_answer(ApiError(403, words, code="wrong_host").body(), 403)(scope, receive, send)
            return
        await self.app(scope, receive, send)


class KeyCheck:
    """Ask for ``Authorization: Bearer KEY`` everywhere but at /health; compared in constant time."""

    def __init__(self, app: Any, key: str):
        self.app, self.expected = app, b"Bearer " + key.encode()

    async def __call__(self, scope: dict, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"] != "/health":
            given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
            if not hmac.compare_digest(given, self.expected):
                error = ApiError(
                    401, "密钥不对或没有给出，请带上请求头 Authorization: Bearer 密钥。", code="invalid_api_key"
                )
                await json_answer(error.body(), 401, {"WWW-Authenticate": "Bearer"})(scope, receive, send)
                return
        await self.app(scope, receive, send)


HANDLERS = {ApiError: _on_error, HTTPException: _on_http_error, ClientDisconnect: _on_gone, Exception: _on_bug}
