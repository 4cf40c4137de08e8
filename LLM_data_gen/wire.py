"""What goes over the wire: bodies of requests, replies streamed or whole, and what a refusal says.

    read_reply(raw) -> Answer | Failure      server-sent events or one JSON object, whatever the server chose to send
    read_refusal(status, said, headers) -> Failure
    Dialect                                  which fields this service takes; it learns from a 400

A stream is read when it has ended: to take the text out of thousands of small events as they come would help nobody.
"""

import contextlib
import email.utils
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from .cost import usage_of

_RETRYABLE_4XX = (408, 409, 425, 429)
_OUT_OF_MONEY = re.compile(r"insufficient_quota|insufficient balance|余额不足|欠费", re.IGNORECASE)
# "max organization concurrency: 3", "at most 39 requests in flight", "并发数上限为 20"
_CAP = re.compile(
    r"(?:concurren\w*|in[- ]flight|parallel|并发)[^0-9]{0,40}?(\d{1,5})\b(?! ?s\b)"
    r"|\b(\d{1,5})\b[^0-9.]{0,24}?(?:concurrent|in[- ]flight|parallel|并发)",
    re.IGNORECASE,
)
_WAIT = re.compile(
    r"(?:try again|retry)[^0-9]{0,24}(\d+(?:\.\d+)?) ?(ms|s\b|sec|minutes?|m\b)|(\d+) ?(秒|分钟)[之以]?后",
    re.IGNORECASE,
)
_UNITS_S = {"ms": 0.001, "s": 1.0, "秒": 1.0, "m": 60.0, "分": 60.0}
ADVICE = {
    400: "请求不被接受，请检查 --model、--max-tokens 等参数",
    401: "API 密钥无效，请检查 --api-key 或 OPENAI_API_KEY",
    402: "账户余额不足，请充值",
    403: "没有访问权限，请检查密钥的权限与所在地区",
    404: "地址或模型不存在，请检查 --base-url 和 --model",
}


@dataclass(frozen=True)
class Answer:
    """usage: prompt_tokens, cached_tokens, completion_tokens; 0 where nothing was said. complete False: the connection broke
    off, and ``text`` is what had come by then.
    """

    text: str
    finish_reason: str = ""
    reasoning: str = ""
    usage: dict[str, int] = field(default_factory=dict)
    complete: bool = True


@dataclass(frozen=True)
class Failure:
    """A request that brought no answer. ``status`` 0: none came; ``retry_after`` in seconds where the server said so; ``cap``:
    requests in flight that it allows, where it said that.
    """

    reason: str
    status: int = 0
    retry_after: float | None = None
    fatal: bool = False
    cap: int | None = None


@dataclass
class Dialect:
    """Fields that not every service takes. ``adapt`` drops or renames what a 400 names, so that one refusal is the price."""

    stream_options: bool = True
    temperature: bool = True
    tokens_field: str = "max_tokens"

    def body(self, model: str, messages: list[dict[str, str]], temperature: float, max_tokens: int) -> dict[str, Any]:
        body: dict[str, Any] = {"model": model, "messages": messages, "stream": True}
        if self.stream_options:
            body["stream_options"] = {"include_usage": True}
        if self.temperature:
            body["temperature"] = temperature
        if max_tokens:
            body[self.tokens_field] = max_tokens
        return body

    def adapt(self, body: Mapping[str, Any], said: str) -> str | None:
        """Change what ``said``, the answer to ``body``, complains of; return it in words, None when it is of something else."""
        if "stream_options" in said and "stream_options" in body:
            self.stream_options = False
            return "这个服务不认 stream_options，不再发送（它可能不报告用量）"
        if "max_completion_tokens" in said and "max_tokens" in body:
            self.tokens_field = "max_completion_tokens"
            return "这个服务要用 max_completion_tokens，已改用"
        if "temperature" in said and "temperature" in body and re.search("support|default|支持", said, re.IGNORECASE):
            self.temperature = False
            return "这个模型不接受 --temperature，改用它的默认值"
        return None


def read_reply(raw: bytes, broken: bool = False) -> Answer | Failure:
    """Read the body of a reply with status 200. broken: the connection was cut before its end.

    Blank lines and comments, sent to keep the connection alive, are nothing to either form.
    """
    start = raw.lstrip()[:5]
    if start.startswith((b"data:", b":", b"event", b"id:", b"retry")):
        return _read_events(raw, broken)
    try:
        data = orjson.loads(raw)
        choice = data["choices"][0]
        message = choice["message"]
        text, thought = message.get("content") or "", _reasoning(message)
    except (orjson.JSONDecodeError, KeyError, IndexError, TypeError, AttributeError):
        return Failure(f"回复不是 OpenAI 格式的补全（{raw.decode(errors='replace')}）", 200)
    return Answer(text, choice.get("finish_reason") or "", thought, usage_of(data.get("usage")))


def _read_events(raw: bytes, broken: bool) -> Answer | Failure:
    content, thoughts, finish, usage = [], [], "", None
    events, done = _events(raw)
    for event in events:
        if not isinstance(event, dict) or event.get("error"):
            return Failure(f"回答中途出错（{event}）", 200)
        usage = event.get("usage") or usage
        for choice in event.get("choices") or ():
            delta = choice.get("delta") or choice.get("message") or {}
            if piece := delta.get("content"):
                content.append(piece)
            elif piece := _reasoning(delta):
                thoughts.append(piece)
            finish = choice.get("finish_reason") or finish
    text, thought = (_whole("".join(pieces)) for pieces in (content, thoughts))
    answer = Answer(text, finish, thought, usage_of(usage), complete=bool(finish or done))
    if not answer.complete and not answer.text:
        return Failure("连接中断，没有收到回答" if broken else "回答没有内容也没有结束标志", 0 if broken else 200)
    return answer


def _events(raw: bytes) -> tuple[list[Any], bool]:
    """What the events hold, and whether the last of them said that it is: all in one go, or, if one is no JSON, one by one."""
    payloads = [line[5:].strip() for line in raw.splitlines() if line.startswith(b"data:")]
    if done := payloads[-1:] == [b"[DONE]"]:
        payloads.pop()
    try:
        return orjson.loads(b"[%b]" % b",".join(payloads)), done
    except orjson.JSONDecodeError:
        events = []
        for payload in payloads:
            with contextlib.suppress(ValueError):  # the last line of a stream that was cut
                events.append(json.loads(payload))  # takes half a surrogate pair, which orjson does not
        return events, done


def _whole(text: str) -> str:
    """Put pairs together that came in two events; a half that stays alone becomes a mark."""
    return text if text.isprintable() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _reasoning(message: Mapping[str, Any]) -> str:
    return message.get("reasoning_content") or message.get("reasoning") or ""  # DeepSeek, Qwen, vLLM; OpenRouter


def read_refusal(status: int, said: str, headers: Mapping[str, str], url: str) -> Failure:
    out_of_money = status == 429 and _OUT_OF_MONEY.search(said)
    if out_of_money or (status < 500 and status not in _RETRYABLE_4XX):
        advice = ADVICE[402] if out_of_money else ADVICE.get(status, "服务拒绝了请求，请检查 --base-url")
        reason = f"{url} 答复 HTTP {status}：{advice}；已完成的都已保存，改正后用同一条命令继续。"
        return Failure(f"{reason}服务的原话：{said}" if said else reason, status, fatal=True)
    wait = retry_after(headers.get("Retry-After"), said)
    return Failure(f"HTTP {status}（{said}）", status, wait, cap=cap_in(said) if status == 429 else None)


def retry_after(header: str | None, said: str = "") -> float | None:
    """Seconds to wait: of a Retry-After header, seconds or an HTTP date, else of what the body says; None: neither."""
    if header:
        try:
            return max(0.0, float(header))
        except ValueError:
            pass
        try:
            return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
        except (TypeError, ValueError):
            pass
    if found := _WAIT.search(said):
        number, unit = found[1] or found[3], (found[2] or found[4]).lower()
        return float(number) * next(seconds for start, seconds in _UNITS_S.items() if unit.startswith(start))
    return None


def cap_in(said: str) -> int | None:
    """The number of requests in flight that the body of a 429 names as the most, or None."""
    found = _CAP.search(said)
    return max(1, int(found[1] or found[2])) if found else None
