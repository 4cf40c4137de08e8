"""One lean client for OpenAI-compatible chat completions: aiohttp and orjson, one retry layer.

    client = Client(teacher, settings, say)
    async with client:
        answer = await client.ask(messages, max_tokens)

Errors by class. Refused (400, 401, 402, 403, 404 and their like): UserError, the run stops. Busy (429) and failing
(5xx, timeouts, dropped connections, bodies that are no completion): asked again with growing, jittered waits;
when one request has used up its tries, TriesUsedUp. What holds everyone back together is in gate.py.
"""

import asyncio
import email.utils
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import orjson

from sft_data.errors import UserError

from .gate import Gate, Stopped
from .settings import Teacher

__all__ = ["Answer", "Client", "Settings", "Stopped", "TriesUsedUp"]

_CONNECT_TIMEOUT_S = 30
_LONGEST_WAIT_S = 60
_SHORTEST_KEY = 12
_MOST_WAITS = 30  # "busy" costs no try, but one request does not wait for ever either
_RETRYABLE_4XX = (408, 409, 425, 429)
_OUT_OF_MONEY = re.compile(r"insufficient_quota|insufficient balance|余额不足|欠费", re.IGNORECASE)
_ADVICE = {
    400: "请求不被接受，请检查 --model、--max-tokens 等参数",
    401: "API 密钥无效，请检查 --api-key 或 OPENAI_API_KEY",
    402: "账户余额不足，请充值",
    403: "没有访问权限，请检查密钥的权限与所在地区",
    404: "地址或模型不存在，请检查 --base-url 和 --model",
}


class TriesUsedUp(Exception):
    """One request failed as often as it may. The message says how it failed last."""


@dataclass(frozen=True)
class Settings:
    """How to ask. Times are in seconds."""

    temperature: float = 0.8
    max_concurrency: int = 50
    timeout_s: float = 300
    max_tries: int = 6
    retry_wait_s: float = 1.0
    max_outage_s: float = 600


@dataclass(frozen=True)
class Answer:
    text: str
    finish_reason: str
    reasoning: str = ""


@dataclass(frozen=True)
class Failure:
    """A request that brought no answer. ``status`` 0: none came; ``retry_after`` in seconds where the server said so."""

    reason: str
    status: int = 0
    retry_after: float | None = None
    fatal: bool = False


@dataclass
class Usage:
    """What the run has cost so far. ``failed`` counts requests by what went wrong."""

    requests: int = 0
    answers: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    failed: dict[str, int] = field(default_factory=dict)


class Client:
    def __init__(self, teacher: Teacher, settings: Settings, say: Callable[[str], None]):
        self.teacher, self.settings = teacher, settings
        self.usage = Usage()
        self.gate = Gate(settings.max_concurrency, settings.retry_wait_s, settings.max_outage_s, say)
        self._url = teacher.base_url + "/chat/completions"
        self._session: aiohttp.ClientSession | None = None
        self._asked = 0

    async def __aenter__(self) -> "Client":
        headers = {"Content-Type": "application/json"}
        if self.teacher.api_key:
            headers["Authorization"] = f"Bearer {self.teacher.api_key}"
        self._session = aiohttp.ClientSession(
            headers=headers,
            connector=aiohttp.TCPConnector(limit=0),  # the gate limits; a second limit would only hide it
            timeout=aiohttp.ClientTimeout(total=self.settings.timeout_s, sock_connect=_CONNECT_TIMEOUT_S),
            trust_env=not self.teacher.is_local,  # HTTPS_PROXY and the like
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def ask(self, messages: list[dict[str, str]], max_tokens: int) -> Answer:
        """Return the answer to ``messages``. UserError: the run must stop; TriesUsedUp; Stopped: the run is stopping."""
        body = self._body(messages, max_tokens)
        self._asked += 1
        number, tries, waits = self._asked, 0, 0
        while True:
            await self.gate.enter()
            sent_at = time.monotonic()
            try:
                outcome = await self._post(body)
            finally:
                self.gate.leave()
            if isinstance(outcome, Answer):
                self.gate.succeeded()
                return outcome
            if outcome.fatal:
                raise UserError(outcome.reason)
            busy = outcome.status == 429
            shared = self.gate.failed(number, outcome.reason, sent_at, busy, outcome.retry_after)
            waits += 1
            tries += not shared and not busy
            if tries >= self.settings.max_tries or (waits >= _MOST_WAITS and not shared):
                raise TriesUsedUp(f"请求 {waits} 次都失败，最后一次：{outcome.reason}")
            if not shared and outcome.retry_after is None:
                wait = min(self.settings.retry_wait_s * 2 ** min(waits - 1, 10), _LONGEST_WAIT_S)
                await self.gate.sleep(wait)

    def _body(self, messages: list[dict[str, str]], max_tokens: int) -> bytes:
        body: dict[str, Any] = {"model": self.teacher.model, "messages": messages}
        body["temperature"] = self.settings.temperature
        if max_tokens:
            body["max_tokens"] = max_tokens
        if self.teacher.thinking is not None:
            body["thinking"] = {"type": "enabled" if self.teacher.thinking else "disabled"}
        return orjson.dumps(body)

    async def _post(self, body: bytes) -> Answer | Failure:
        self.usage.requests += 1
        try:
            async with self._session.post(self._url, data=body, allow_redirects=False) as response:
                raw = await response.read()
                status, headers = response.status, response.headers
        except asyncio.TimeoutError:
            outcome = Failure(f"超时（{self.settings.timeout_s:g} 秒内没有等到完整的回答）")
        except aiohttp.ClientError as error:
            outcome = Failure(f"连接失败（{self._shown(str(error) or type(error).__name__)}）")
        else:
            outcome = self._read(raw) if status == 200 else self._refusal(status, raw, headers)
        if isinstance(outcome, Failure):
            kind = f"HTTP {outcome.status}" if outcome.status not in (0, 200) else outcome.reason.split("（")[0]
            self.usage.failed[kind] = self.usage.failed.get(kind, 0) + 1
        return outcome

    def _read(self, raw: bytes) -> Answer | Failure:
        """Read a completion. Blank lines before it (sent to keep the connection alive) are white space to JSON."""
        try:
            data = orjson.loads(raw)
            choice = data["choices"][0]
            message = choice["message"]
            text, reasoning = message.get("content") or "", message.get("reasoning_content") or ""
            answer = Answer(self._hide_key(text), choice.get("finish_reason") or "", self._hide_key(reasoning))
        except (orjson.JSONDecodeError, KeyError, IndexError, TypeError, AttributeError):
            return Failure(f"回复不是 OpenAI 格式的补全（{self._shown(raw.decode(errors='replace'))}）", 200)
        self.usage.answers += 1
        counts = data.get("usage")
        for name in ("prompt_tokens", "completion_tokens"):
            tokens = counts.get(name) if isinstance(counts, dict) else None
            if isinstance(tokens, int):
                setattr(self.usage, name, getattr(self.usage, name) + tokens)
        return answer

    def _refusal(self, status: int, raw: bytes, headers: Any) -> Failure:
        said = self._shown(raw.decode(errors="replace"))
        out_of_money = status == 429 and _OUT_OF_MONEY.search(said)
        if out_of_money or (status < 500 and status not in _RETRYABLE_4XX):
            advice = _ADVICE[402] if out_of_money else _ADVICE.get(status, "服务拒绝了请求，请检查 --base-url")
            reason = f"{self._url} 答复 HTTP {status}：{advice}；已完成的都已保存，改正后用同一条命令继续。"
            return Failure(f"{reason}服务的原话：{said}" if said else reason, status, fatal=True)
        return Failure(f"HTTP {status}（{said}）", status, retry_after(headers.get("Retry-After")))

    def _shown(self, text: str) -> str:
        """Return the start of what the server said, on one line, without the key."""
        return " ".join(self._hide_key(text).split())[:200]

    def _hide_key(self, text: str) -> str:
        """Mask the key wherever a server says it, answers too. A short placeholder ("sample") is no secret but a word."""
        key = self.teacher.api_key
        return text.replace(key, "***") if key and len(key) >= _SHORTEST_KEY else text


def retry_after(value: str | None) -> float | None:
    """Read a Retry-After header, seconds or an HTTP date, as seconds from now; None when absent or unreadable."""
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return None
