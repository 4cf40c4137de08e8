"""One lean client for OpenAI-compatible services: aiohttp and orjson, one retry layer.

    client = Client(teacher, settings, say)
    async with client:
        answer = await client.ask(messages, max_tokens)         a chat completion, streamed
        data = await client.call("/responses", body)            any other endpoint, as JSON
        await finish(tasks, client.gate)                        many at once; an error waits for what is in flight

Errors by class. Refused (400, 401, 402, 403, 404 and their like): UserError, the run stops. Busy (429) and failing
(5xx, silence, dropped connections, bodies that are no completion): asked again with growing, jittered waits;
when one request has used up its tries, TriesUsedUp. What holds everyone back together is in gate.py.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from sft_data.errors import UserError

from .gate import Gate, Stopped
from .network import aiohttp, certificates, open_files, read_all
from .refusals import READ, Failure, read_refusal
from .settings import Teacher
from .wire import Answer, Completion, Dialect, JsonObject

__all__ = ["GRACE_S", "Answer", "Client", "Settings", "Stopped", "TriesUsedUp", "finish"]

_CONNECT_TIMEOUT_S = 30
_LONGEST_WAIT_S = 4  # of one request alone; when all fail, gate.py makes everyone wait longer
_SHORTEST_KEY = 12
_OTHER_FILES = 40  # open beside the connections
_MOST_WAITS = 30  # "busy" costs no try, but one request does not wait for ever either
_MODELS_SHOWN = 12
GRACE_S = 60  # when the run must stop, answers in flight are waited for so long: they are paid for


class TriesUsedUp(Exception):
    """One request failed as often as it may. The message says how it failed last."""


@dataclass(frozen=True)
class Settings:
    """How to ask. Times are in seconds; timeout_s: of silence, however long the whole answer takes."""

    temperature: float = 0.8
    max_concurrency: int = 50
    timeout_s: float = 120
    max_tries: int = 6
    retry_wait_s: float = 1.0
    max_outage_s: float = 600


@dataclass
class Usage:
    """``failed`` counts requests by what went wrong, ``broken`` the answers that broke off."""

    requests: int = 0
    answers: int = 0
    broken: int = 0
    failed: dict[str, int] = field(default_factory=dict)


class Client:
    def __init__(self, teacher: Teacher, settings: Settings, say: Callable[[str], None]):
        self.teacher, self.settings, self._say = teacher, settings, say
        self.usage = Usage()
        self.gate = Gate(settings.max_concurrency, settings.retry_wait_s, settings.max_outage_s, say)
        self._dialect = Dialect()
        self._session: aiohttp.ClientSession | None = None
        self._asked = 0
        self._gave_up: UserError | None = None
        self._offered: asyncio.Task[list[str]] | None = None

    async def __aenter__(self) -> "Client":
        most = open_files(self.settings.max_concurrency + _OTHER_FILES) - _OTHER_FILES
        if most < self.settings.max_concurrency:
            self._say(f"提示：系统最多让这个进程打开 {most + _OTHER_FILES} 个文件，并发数降到 {most}（见 ulimit -n）。")
            self.gate.lower(most)
        headers = {"Content-Type": "application/json"}
        if self.teacher.api_key:
            headers["Authorization"] = f"Bearer {self.teacher.api_key}"
        plain = self.teacher.is_local and self.teacher.base_url.startswith("http:")
        tls = {} if plain else {"ssl": certificates()}
        self._session = aiohttp.ClientSession(
            headers=headers,
            connector=aiohttp.TCPConnector(limit=0, **tls),  # the gate limits; a second limit would only hide it
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=_CONNECT_TIMEOUT_S, sock_read=self.settings.timeout_s
            ),
            trust_env=not self.teacher.is_local,  # HTTPS_PROXY and the like
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def ask(self, messages: list[dict[str, str]], max_tokens: int, json_mode: bool = False) -> Answer:
        """Return the answer to ``messages``. UserError: the run must stop; TriesUsedUp; Stopped: the run is stopping.

        An answer that broke off (``complete`` False) is returned too: it is paid for, and may hold whole samples.
        """

        def body() -> dict[str, Any]:
            teacher = self.teacher
            body = self._dialect.body(teacher.model, messages, self.settings.temperature, max_tokens, teacher.thinking)
            if json_mode:
                body["response_format"] = {"type": "json_object"}
            return body | teacher.extra

        return await self._until_answered("/chat/completions", body, Completion)

    async def call(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Post ``body`` to base_url + path; return the JSON object that comes back. Raises what ``ask`` raises."""
        body = body | self.teacher.extra
        return await self._until_answered(path, lambda: body, JsonObject)

    async def _until_answered(self, path: str, body: Callable[[], dict[str, Any]], reply: type) -> Any:
        self._asked += 1
        number, tries, waits, alone, failed_at = self._asked, 0, 0, 0, 0.0
        while True:
            if self._gave_up:
                raise self._gave_up
            await self.gate.enter()
            sent, sent_at = body(), time.monotonic()
            try:
                outcome = await self._post(path, sent, reply())
            finally:
                self.gate.leave()
            if not isinstance(outcome, Failure):
                self._note(number, outcome, sent_at)
                return outcome
            if outcome.refused:
                self.gate.succeeded(sent_at)
                raise TriesUsedUp(outcome.reason)
            if outcome.fatal:
                changeable = outcome.status in (400, 422)
                if changeable and (change := self._dialect.adapt(sent, outcome.reason)):
                    self._say(f"提示：{change}。")
                if changeable and body() != sent:  # what was refused is not sent any more
                    continue
                self.gate.stop()
                raise UserError(outcome.reason + await self._models(outcome))
            busy = outcome.status == 429
            shared = self.gate.failed(number, outcome.reason, sent_at, busy, outcome.retry_after, outcome.cap)
            waits += 1
            tries += not shared and not busy
            if tries >= self.settings.max_tries or (waits >= _MOST_WAITS and not shared):
                raise TriesUsedUp(f"请求 {waits} 次都失败，最后一次：{outcome.reason}")
            if not shared and outcome.retry_after is None:
                if busy:
                    await self.gate.rest(waits)
                else:
                    alone = 0 if self.gate.succeeded_since(failed_at) else alone + 1
                    failed_at = time.monotonic()
                    await self.gate.sleep(min(self.settings.retry_wait_s * 2**alone, _LONGEST_WAIT_S))

    def _note(self, number: int, outcome: Any, sent_at: float) -> None:
        """Tell the gate. What came is paid for: if this is one broken answer too many, it is the next request that hears of it."""
        if not (isinstance(outcome, Answer) and outcome.broken):
            self.gate.succeeded(sent_at)
            return
        try:
            self.gate.failed(number, "连接在回答中途断开", sent_at, False, None)
        except UserError as error:
            self._gave_up = error

    async def _post(self, path: str, body: dict[str, Any], reply: Completion | JsonObject) -> Any:
        self.usage.requests += 1
        refusal: list[bytes] = []
        url = self.teacher.base_url + path
        try:
            async with self._session.post(url, data=orjson.dumps(body), allow_redirects=False) as response:
                await read_all(response, reply.feed if response.status == 200 else refusal.append)
            status, headers, cut = response.status, response.headers, None
        except asyncio.TimeoutError:
            status, headers, cut = 0, {}, f"超时（{self.settings.timeout_s:g} 秒没有收到任何内容）"
        except aiohttp.ClientConnectorCertificateError as error:
            self.gate.stop()
            raise UserError(
                f"{url} 的证书不可信（{self._shown(str(error))}）；"
                "若是自己的服务，请设置环境变量 SSL_CERT_FILE=证书.pem 后重试。"
            ) from None
        except aiohttp.ClientError as error:
            status, headers, cut = 0, {}, f"连接失败（{self._shown(str(error) or type(error).__name__)}）"
        if cut:
            outcome = reply.finish(broken=True)
            if not isinstance(outcome, Answer) or not outcome.text:
                outcome = Failure(cut)
        elif status == 200:
            outcome = reply.finish()
        else:
            said = b"".join(refusal).decode(errors="replace")
            outcome = read_refusal(status, self._shown(said, READ), headers, url)
        return self._counted(outcome)

    def _counted(self, outcome: Any) -> Any:
        """Note what it cost, and take the key out of it."""
        if isinstance(outcome, Failure):
            outcome = replace(outcome, reason=self._shown(outcome.reason, 400))
            kind = f"HTTP {outcome.status}" if outcome.status not in (0, 200) else outcome.reason.split("（")[0]
            self.usage.failed[kind] = self.usage.failed.get(kind, 0) + 1
        elif isinstance(outcome, Answer):
            self.usage.answers += 1
            self.usage.broken += not outcome.complete
            text, reasoning = self._hide_key(outcome.text), self._hide_key(outcome.reasoning)
            outcome = replace(outcome, text=text, reasoning=reasoning)
        return outcome

    async def _models(self, refusal: Failure) -> str:
        """What the service offers, when it does not know the model that it was asked for; asked once for all in flight."""
        if refusal.status != 404 and not (refusal.status == 400 and '"model' in refusal.reason.lower()):
            return ""
        self._offered = self._offered or asyncio.create_task(self._list_models())
        names = await asyncio.shield(self._offered)
        more = f" 等 {len(names)} 个" if len(names) > _MODELS_SHOWN else ""
        return f"这个服务有的模型：{'、'.join(map(str, names[:_MODELS_SHOWN]))}{more}。" if names else ""

    async def _list_models(self) -> list[str]:
        try:
            timeout = aiohttp.ClientTimeout(total=_CONNECT_TIMEOUT_S)
            async with self._session.get(self.teacher.base_url + "/models", timeout=timeout) as response:
                return [model["id"] for model in orjson.loads(await response.read())["data"]]
        except (aiohttp.ClientError, asyncio.TimeoutError, ValueError, KeyError, TypeError):
            return []

    def _shown(self, text: str, most: int = 200) -> str:
        """Return the start of what the server said, on one line, without the key."""
        return " ".join(self._hide_key(text).split())[:most]

    def _hide_key(self, text: str) -> str:
        """Mask the key wherever a server says it, answers too. A short placeholder ("sample") is no secret but a word."""
        key = self.teacher.api_key
        return text.replace(key, "***") if key and len(key) >= _SHORTEST_KEY else text


async def finish(tasks: list[asyncio.Task], gate: Gate, on_stop: Callable[[], None] = lambda: None) -> None:
    """Wait for all. The first error stops the asking and is raised once what is in flight has come, in GRACE_S at most."""
    try:
        done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        if pending:
            gate.stop()
            on_stop()
            await asyncio.wait(pending, timeout=GRACE_S)
        for task in done:
            if not task.cancelled():
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
