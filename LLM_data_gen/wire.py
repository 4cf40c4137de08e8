"""What goes over the wire: bodies of requests, and replies streamed or whole. refusals.py reads what is no reply.

Completion().feed(piece) ... .finish(broken) -> Answer | Failure      events or one JSON object, whatever the server sends
JsonObject().feed(piece) ... .finish(broken) -> dict | Failure        of other endpoints
Dialect                                  which fields this service takes; it learns from a 400
"""

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from .cost import usage_of
from .refusals import Failure

_REFUSES = re.compile("support|default|only|allowed|invalid|支持|只能", re.IGNORECASE)
_THINKING = re.compile("thinking|思考", re.IGNORECASE)
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Answer:
    """usage: prompt_tokens, cached_tokens, completion_tokens; 0 where nothing was said. complete False: nothing said that this is
    the end, and ``text`` is what had come by then; broken: the connection was cut.
    """

    text: str
    finish_reason: str = ""
    reasoning: str = ""
    usage: dict[str, int] = field(default_factory=dict)
    complete: bool = True
    broken: bool = False


@dataclass
class Dialect:
    """Fields that not every service takes. ``adapt`` drops or renames what a 400 names, so that one refusal is the price."""

    stream_options: bool = True
    temperature: bool = True
    thinking: bool = True
    tokens_field: str = "max_tokens"

    def body(
        self,
        model: str,
        messages: list[dict[str, str]],
        temperature: float,
        max_tokens: int,
        thinking: bool | None = None,
    ) -> dict[str, Any]:
        body: dict[str, Any] = {"model": model, "messages": messages, "stream": True}
        if self.stream_options:
            body["stream_options"] = {"include_usage": True}
        if self.temperature:
            body["temperature"] = temperature
        if max_tokens:
            body[self.tokens_field] = max_tokens
        if thinking is not None and self.thinking:
            body["thinking"] = {"type": "enabled" if thinking else "disabled"}
        return body

    def adapt(self, body: Mapping[str, Any], said: str) -> str | None:
        """Change what ``said``, the answer to ``body``, complains of; return it in words, None when it is of something else."""
        if "stream_options" in said and "stream_options" in body:
            self.stream_options = False
            return "这个服务不认 stream_options，不再发送（它可能不报告用量）"
        if "max_completion_tokens" in said and "max_tokens" in body:
            self.tokens_field = "max_completion_tokens"
            return "这个服务要用 max_completion_tokens，已改用"
        if "temperature" in said and "temperature" in body and _REFUSES.search(said):
            self.temperature = False
            return "这个模型不接受 --temperature，改用它的默认值"
        if "thinking" in body and _THINKING.search(said):
            self.thinking = False
            return "这个服务不认 thinking 这一项，不再发送（思考开不开由它决定；别的写法可用 --extra 给出）"
        return None


class JsonObject:
    """A reply that is one JSON object."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self.feed = self._pieces.append

    def finish(self, broken: bool = False) -> dict[str, Any] | Failure:
        raw = b"".join(self._pieces)
        try:
            data = orjson.loads(raw)
        except orjson.JSONDecodeError:
            data = None
        return data if isinstance(data, dict) else Failure(f"回复不是 JSON 对象（{raw.decode(errors='replace')}）", 200)


class Completion:
    """A reply to a request for a completion. Events are read as they come: they are twenty times as long as the text in them,
    and hundreds of streams may be under way at a time.

    Blank lines and comments, sent to keep the connection alive, are nothing to either form.
    """

    def __init__(self) -> None:
        self._rest = b""  # not read yet
        self._is_stream: bool | None = None  # not known yet
        self._content: list[str] = []
        self._thoughts: list[str] = []
        self._finish, self._usage, self._done = "", None, False
        self._error: Any = None
        self._failed = False

    def feed(self, piece: bytes) -> None:
        self._rest += piece
        if self._is_stream is None and len(self._rest.lstrip()) > len(_BOM + b"event"):
            self._tell()
        if self._is_stream:
            end = max((at + len(gap) for gap in (b"\n\n", b"\n\r\n") if (at := self._rest.rfind(gap)) >= 0), default=0)
            self._read(self._rest[:end])
            self._rest = self._rest[end:]

    def finish(self, broken: bool = False) -> Answer | Failure:
        """broken: the connection was cut before the end."""
        if self._is_stream is None:
            self._tell()
        if not self._is_stream:
            return _read_whole(self._rest)
        self._read(self._rest)
        text, thought = (_whole("".join(pieces)) for pieces in (self._content, self._thoughts))
        if self._error and not text:
            return Failure(f"回答中途出错（{self._error}）", 200)
        complete = bool(self._finish or self._done) and not self._error
        answer = Answer(text, self._finish, thought, usage_of(self._usage), complete, broken)
        if not answer.complete and not answer.text:
            return Failure("连接中断，没有收到回答" if broken else "回答没有内容也没有结束标志", 0 if broken else 200)
        return answer

    def _tell(self) -> None:
        self._rest = self._rest.removeprefix(_BOM).lstrip()
        self._is_stream = self._rest.startswith((b"data:", b":", b"event", b"id:", b"retry"))

    def _read(self, raw: bytes) -> None:
        events, done = _events(raw)
        self._done |= done
        for event in events:
            if self._failed:
                return
            if not isinstance(event, dict) or event.get("error"):
                self._error, self._failed = event, True
                return
            self._usage = event.get("usage") or self._usage
            choices = event.get("choices")
            for choice in choices if isinstance(choices, list) else ():
                if isinstance(choice, dict) and not choice.get("index"):  # else a second choice nobody asked for
                    self._take(choice)

    def _take(self, choice: dict[str, Any]) -> None:
        delta = choice.get("delta") or choice.get("message")
        delta = delta if isinstance(delta, dict) else {}
        if piece := delta.get("content"):
            self._content.append(piece if isinstance(piece, str) else _text(piece))
        if piece := _reasoning(delta):
            self._thoughts.append(piece)
        self._finish, self._usage = choice.get("finish_reason") or self._finish, choice.get("usage") or self._usage


def _read_whole(raw: bytes) -> Answer | Failure:
    try:
        data = orjson.loads(raw)
        choice = data["choices"][0]
        message = choice["message"]
        text, thought = _text(message.get("content")), _reasoning(message)
    except (orjson.JSONDecodeError, KeyError, IndexError, TypeError, AttributeError):
        return Failure(f"回复不是 OpenAI 格式的补全（{raw.decode(errors='replace')}）", 200)
    return Answer(text, choice.get("finish_reason") or "", thought, usage_of(data.get("usage") or choice.get("usage")))


def _events(raw: bytes) -> tuple[list[Any], bool]:
    """What the events hold, and whether the last of them said that it is: all in one go, or, where more stands between
    them than an empty line, one by one.
    """
    start, last = raw.find(b"data:") + 5, raw.rfind(b"data:")
    done = raw[last + 5 :].split(b"\n", 1)[0].strip() == b"[DONE]"
    body = raw[start : last if done else None].replace(b"\r\n", b"\n")
    payloads = body.strip().replace(b"\n\ndata:", b",")
    try:
        return orjson.loads(b"[%b]" % payloads), done
    except orjson.JSONDecodeError:
        return list(_one_by_one(raw)), done


def _one_by_one(raw: bytes) -> Iterator[Any]:
    """An event may have its data in several lines, bytes that are no UTF-8, or be cut."""
    for block in re.split("\n\n+", re.sub("\r\n?", "\n", raw.decode(errors="replace"))):
        data = "\n".join(line[5:] for line in block.split("\n") if line.startswith("data:"))
        try:
            yield json.loads(data)  # takes half a surrogate pair, which orjson does not
        except ValueError:
            for line in data.split("\n"):  # events with nothing between them
                with contextlib.suppress(ValueError):
                    yield json.loads(line)


def _text(content: Any) -> str:
    """Of a message: a string, or a list of parts of which some are text."""
    if isinstance(content, list):
        return "".join(_text(part.get("text")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def _whole(text: str) -> str:
    """Put pairs together that came in two events; a half that stays alone becomes a mark."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _reasoning(message: Mapping[str, Any]) -> str:
    return _text(message.get("reasoning_content") or message.get("reasoning"))  # DeepSeek, Qwen, vLLM; OpenRouter
