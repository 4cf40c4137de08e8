"""What goes over the wire: OpenAI's chat requests and the old Firefly service's, read strictly; answers and errors.

Bad values become an ApiError with OpenAI's error body and a sentence in Chinese, and so do fields that ask for what is not
here (tools, logprobs, JSON mode, ...): an answer that looks as if they had been heeded would mislead. Other fields that are
not known are let pass and have no effect.
"""

import json
import math
import time
from dataclasses import dataclass, replace
from typing import Any

from .inference import ROLES
from .session import Sampling

# field -> what to do instead; harmless when it asks for nothing: null, 0, false, [], {}, {"type": "text"}
_NOT_HERE = {
    "tools": "请去掉它，工具的用法可以写进 messages",
    "functions": "请去掉它，函数的用法可以写进 messages",
    "response_format": "请去掉它，在提问里说明要 JSON",
    "logprobs": "请去掉它",
    "top_logprobs": "请去掉它",
    "logit_bias": "请去掉它",
    "presence_penalty": "请去掉它或设为 0，可用 repetition_penalty",
    "frequency_penalty": "请去掉它或设为 0，可用 repetition_penalty",
}


class ApiError(Exception):
    """An answer with a 4xx or 5xx status. ``param`` is the field at fault, ``code`` a word for programs."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None, **headers: str):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}

    def body(self) -> dict:
        kinds = {401: "authentication_error", 404: "not_found_error", 503: "overloaded_error"}
        kind = kinds.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


@dataclass(frozen=True)
class Asked:
    """A request that passed every check. ``sampling`` is the server's with the request's own values on top."""

    messages: list[dict]
    sampling: Sampling
    stop: tuple[str, ...] = ()
    stream: bool = False
    usage: bool = False


def parse_json(raw: bytes) -> dict:
    """Return the JSON object of a body; NaN, half surrogates and endless nesting are no JSON here."""
    try:
        body = json.loads(raw.decode("utf-8-sig"), parse_constant=_refuse_constant)
        json.dumps(body, ensure_ascii=False).encode()
    except UnicodeDecodeError:
        raise ApiError(400, "请求体不是 UTF-8 文本，请用 UTF-8 编码的 JSON。", code="invalid_json") from None
    except UnicodeEncodeError:
        raise ApiError(400, "请求体里有不成对的代理字符（\\ud800 一类），请去掉。", code="invalid_json") from None
    except RecursionError:
        raise ApiError(400, "请求体的 JSON 嵌套太深，请改正。", code="invalid_json") from None
    except ValueError as error:
        where = f"第 {error.lineno} 行第 {error.colno} 列附近" if isinstance(error, json.JSONDecodeError) else "数值"
        raise ApiError(
            400, f"请求体不是有效的 JSON（{where}有误），请检查引号、逗号和括号。", code="invalid_json"
        ) from None
    if not isinstance(body, dict):
        raise ApiError(400, f"请求体应是 JSON 对象，实际是 {_kind(body)}。", code="invalid_json")
    return body


def _refuse_constant(name: str) -> float:
    raise ValueError(name)


def parse_chat(body: dict, defaults: Sampling, names: tuple[str, ...], context: int) -> Asked:
    """Read the body of /v1/chat/completions. ``context``: no answer can be longer than that many tokens."""
    model = _take(body, "model", str)
    if model is not None and model not in names:
        raise ApiError(404, f"没有模型 {model[:80]!r}，有的是：{'、'.join(names)}。", "model", "model_not_found")
    for name, instead in _NOT_HERE.items():
        if body.get(name) and body[name] != {"type": "text"}:
            raise ApiError(400, f"这个服务没有 {name} 这一项；{instead}。", name, "unsupported_parameter")
    if _number(body, "n", int, 1, None) not in (None, 1):
        raise ApiError(400, "n 只能是 1：一次请求给一个回答，请分几次问。", "n", "invalid_value")
    options = _take(body, "stream_options", dict) or {}
    return Asked(
        messages=_messages(_take(body, "messages", list)),
        sampling=_sampling(body, defaults, context, "max_completion_tokens", "max_tokens"),
        stop=_stop(body.get("stop")),
        stream=bool(_take(body, "stream", bool)),
        usage=bool(_take(options, "include_usage", bool, "stream_options.")),
    )


def parse_old(body: dict, defaults: Sampling, context: int) -> Asked:
    """Read the body of the old service's /firefly: ``inputs`` and, beside it or under "parameters", what generate took.

    ``inputs`` may be plain text or what the old models were trained on, <s>question</s>answer</s>question</s>.
    """
    text = _take(body, "inputs", str)
    if text is None or not text.strip():
        raise ApiError(400, "inputs 是空的，请写入问题。", "inputs", "missing_field")
    turns = text.strip().removeprefix("<s>").removesuffix("</s>").split("</s>")
    messages = [
        {"role": ROLES[1 + number % 2], "content": turn.removeprefix("<s>").strip()}
        for number, turn in enumerate(turns)
    ]
    if messages[-1]["role"] != "user" or not all(message["content"] for message in messages):
        raise ApiError(
            400, "inputs 应是一个问题，或 <s>问</s>答</s>问</s>，最后一段是问题。", "inputs", "invalid_value"
        )
    settings = body | (_take(body, "parameters", dict) or {})
    sampling = _sampling(settings, defaults, context, "max_new_tokens")
    sample = _take(settings, "do_sample", bool)
    if sample is False:
        sampling = replace(sampling, temperature=0.0)
    elif sample and sampling.temperature == 0 and settings.get("temperature") is None:
        sampling = replace(sampling, temperature=1.0)
    return Asked(messages, sampling)


def _messages(given: list | None) -> list[dict]:
    if not given:
        raise ApiError(400, "缺少 messages，或它是空的；应是 [{role, content}, ...]。", "messages", "missing_field")
    messages = []
    for number, message in enumerate(given):
        where = f"messages[{number}]"
        if not isinstance(message, dict):
            raise ApiError(400, f"{where} 应是对象 {{role, content}}，实际是 {_kind(message)}。", where, "invalid_type")
        role = "system" if message.get("role") == "developer" else message.get("role")
        if role not in ROLES or (role == "system" and number > 0):
            raise ApiError(
                400,
                f"{where}.role 是 {str(role)[:40]!r}，应是 user、assistant，或开头的 system。",
                f"{where}.role",
                "invalid_value",
            )
        content = message.get("content")
        if content is None and role == "assistant":
            content = ""  # as OpenAI has it; a model may well have answered nothing
        content = _content(content, f"{where}.content")
        if role == "user" and not content.strip():
            raise ApiError(400, f"{where}.content 是空的，请写入内容。", f"{where}.content", "invalid_value")
        messages.append({"role": role, "content": content})
    if messages[-1]["role"] != "user":
        raise ApiError(400, "messages 的最后一条应是 user 的提问。", "messages", "invalid_value")
    return messages


def _content(content: Any, where: str) -> str:
    """A string, or OpenAI's list of parts when all of them are text."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ApiError(400, f"{where} 应是字符串，实际是 {_kind(content)}。", where, "invalid_type")
    for part in content:
        if not (isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)):
            raise ApiError(400, f"{where} 里只能有 {{type: text, text}}，这个模型只懂文字。", where, "invalid_type")
    return "".join(part["text"] for part in content)


def _sampling(body: dict, defaults: Sampling, context: int, *length_fields: str) -> Sampling:
    """Only what was given changes. A temperature below 0.01 is greedy; top_k -1 means all, as vLLM has it."""
    given = {
        "temperature": _number(body, "temperature", float, 0, 2),
        "top_p": _number(body, "top_p", float, 0, 1, open_low=True),
        "top_k": _number(body, "top_k", int, -1, None),
        "repetition_penalty": _number(body, "repetition_penalty", float, 0.1, 10),
        "seed": _number(body, "seed", int, None, None),
    }
    lengths = [_number(body, name, int, 1, context) for name in length_fields]
    given["max_new_tokens"] = next((length for length in lengths if length is not None), None)
    given = {name: value for name, value in given.items() if value is not None}
    if given.get("temperature", 1) < 0.01:
        given["temperature"] = 0.0
    if "top_k" in given:
        given["top_k"] = max(0, given["top_k"])
    if "seed" in given:
        given["seed"] %= 2**63
    return replace(defaults, **given)


def _stop(stop: Any) -> tuple[str, ...]:
    words = [] if stop is None else [stop] if isinstance(stop, str) else stop
    if not isinstance(words, list) or not all(isinstance(word, str) and 0 < len(word) <= 256 for word in words):
        raise ApiError(400, "stop 应是字符串，或至多 16 个字符串，每个 1 到 256 字。", "stop", "invalid_type")
    if len(words) > 16:
        raise ApiError(400, f"stop 有 {len(words)} 个，最多 16 个。", "stop", "invalid_value")
    return tuple(words)


def _take(body: dict, name: str, kind: type, prefix: str = "") -> Any:
    value = body.get(name)
    if value is not None and not isinstance(value, kind):
        words = {str: "字符串", list: "数组", dict: "对象", bool: "true 或 false"}
        raise ApiError(400, f"{prefix}{name} 应是{words[kind]}，实际是 {_kind(value)}。", prefix + name, "invalid_type")
    return value


def _number(
    body: dict, name: str, kind: type, low: float | None, high: float | None, open_low: bool = False
) -> Any | None:
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int if kind is int else (int, float)):
        word = "整数" if kind is int else "数"
        raise ApiError(400, f"{name} 应是{word}，实际是 {_kind(value)}。", name, "invalid_type")
    too_low = low is not None and (value < low or (open_low and value == low))
    if too_low or (high is not None and value > high) or (kind is float and not math.isfinite(value)):
        bounds = f"{'大于' if open_low else '不小于'} {low}" + ("" if high is None else f"、不大于 {high}")
        raise ApiError(400, f"{name} 是 {str(value)[:20]}，应{bounds}。", name, "invalid_value")
    return kind(value)


def _kind(value: Any) -> str:
    names = {
        dict: "对象",
        list: "数组",
        str: "字符串",
        bool: "true/false",
        int: "整数",
        float: "小数",
        type(None): "null",
    }
    return names[type(value)]


def chat_answer(answer_id: str, model: str, text: str, finish: str, usage: dict) -> dict:
    """The body of a whole chat answer."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish, "logprobs": None}
    return _head(answer_id, "chat.completion", model) | {"choices": [choice], "usage": usage}


def chat_chunk(answer_id: str, model: str, delta: dict | None, finish: str | None = None, **more: Any) -> dict:
    """One event of a streamed answer; without ``delta`` it has no choice in it, as the last one with the usage."""
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}]
    return _head(answer_id, "chat.completion.chunk", model) | {"choices": choices} | more


def _head(answer_id: str, kind: str, model: str) -> dict:
    return {"id": answer_id, "object": kind, "created": int(time.time()), "model": model}


def count_usage(prompt: int, completion: int) -> dict:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
