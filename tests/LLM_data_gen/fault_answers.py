"""What fault_server.py answers with: good samples, whole or as server-sent events, token counts, a mixture of faults."""

import functools
import hashlib
import json
import random
import re
from collections.abc import Callable
from typing import Any

import orjson

Plan = Callable[[int, str, int], Any]

MODEL = "model-x"
PIECES = 12  # events an answer comes in
# They stand for the topic and for each question in a good answer that is made once; one character, so no piece cuts it.
TOPIC, QUESTION = "\ue000", "\ue001"
_ROWS = bytes(0x4E + number % 16 for number in range(256))
_SENTENCES = [
    "先把目标写清楚，再看手里有什么条件，最后安排每周要做的事。",
    "建议和同学结伴练习，遇到不懂的地方及时请教老师。",
    "每完成一步就回头检查一遍，把走过的弯路记在本子上。",
    "具体的时间和要求以学校官方渠道发布的通知为准。",
    "坚持一个学期之后，你会看到自己明显的进步。",
]


def good_samples(topic: str, n: int, first: int = 0) -> list[dict[str, str]]:
    """Return ``n`` samples that pass validation; a different ``first`` gives different ones."""
    samples = _samples(topic[:60], n, first)
    for sample, question in zip(samples, questions(topic, n, first), strict=True):
        sample["input"] = question
    return samples


def questions(topic: str, n: int, first: int = 0) -> list[str]:
    """Return the questions of good samples: mostly characters that make no sense, so that none is near another."""
    return [
        f"我想请教第{_numeral(i)}个问题：{_nonsense(f'{i} {topic}')}，怎样开始呢？" for i in range(first, first + n)
    ]


def _nonsense(seed: str) -> str:
    """Return 48 characters from U+4E00 to U+5DFF, drawn by a hash: a random.Random for each question would take longer."""
    data = bytearray(hashlib.shake_128(seed.encode()).digest(96))
    data[1::2] = data[1::2].translate(_ROWS)
    return data.decode("utf-16-le")


def _samples(topic: str, n: int, first: int) -> list[dict[str, str]]:
    """Return samples whose question is a character of its own: QUESTION, the one after it, and so on."""
    return [
        {
            "instruction": f"你是一位耐心的学长，请围绕下面的主题给出第{_numeral(i)}种建议：{topic}。",
            "input": chr(ord(QUESTION) + i - first),
            "output": f"关于第{_numeral(i)}个问题，可以这样做。" + "".join(_SENTENCES) * 2,
        }
        for i in range(first, first + n)
    ]


def _numeral(number: int) -> str:
    return "".join("零一二三四五六七八九"[int(digit)] for digit in str(number))


def completion(
    content: str, finish_reason: str = "stop", usage: dict | None = None, model: str = MODEL
) -> dict[str, Any]:
    """Return a completion that is not streamed."""
    message = {"role": "assistant", "content": content}
    choice = {"index": 0, "message": message, "finish_reason": finish_reason}
    head = {"id": "chat-1", "object": "chat.completion", "created": 1, "model": model}
    usage = usage or {"prompt_tokens": 100, "completion_tokens": 200, "total_tokens": 300}
    return {**head, "choices": [choice], "usage": usage}


def usage_of(prompt: str, text: str) -> dict[str, Any]:
    """Count tokens as a provider might: 0.6 a character, the prompt cached in blocks of 64 but for its last part."""
    asked, said = round(0.6 * len(prompt)), round(0.6 * len(text))
    cached = asked // 2 // 64 * 64
    return {
        "prompt_tokens": asked,
        "completion_tokens": said,
        "total_tokens": asked + said,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def event(
    delta: dict[str, Any] | None, finish_reason: str | None = None, usage: dict | None = None, model: str = MODEL
) -> bytes:
    """Return one server-sent event; ``delta`` None: no choices, as the event with the usage has it."""
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish_reason}]
    head = {"id": "chat-1", "object": "chat.completion.chunk", "created": 1, "model": model}
    return b"data: " + orjson.dumps({**head, "choices": choices, "usage": usage}) + b"\n\n"


def cut(text: str, pieces: int) -> list[str]:
    """Cut ``text`` into at most ``pieces`` parts of about the same length, none of them empty."""
    size = max(1, -(-len(text) // max(1, pieces)))
    return [text[at : at + size] for at in range(0, len(text), size)]


@functools.cache
def _good_text(n: int, first: int) -> list[str]:
    """A good answer in parts: what is the same for all topics, and the characters that stand for what is not."""
    return re.split("([\ue000-\ue0ff])", json.dumps(_samples(TOPIC, n, first), ensure_ascii=False))


@functools.cache
def _good_events(n: int, first: int, pieces: int, model: str) -> list[bytes]:
    data = b"\0".join(event({"content": piece}, model=model) for piece in cut("".join(_good_text(n, first)), pieces))
    return [part.encode() for part in re.split("([\ue000-\ue0ff])", data.decode())]


def good_text(topic: str, n: int, first: int) -> str:
    """Return good_samples as JSON."""
    values = {chr(ord(QUESTION) + i): question for i, question in enumerate(questions(topic, n, first))}
    values[TOPIC] = escaped(topic[:60])
    return "".join([values.get(part, part) for part in _good_text(n, first)])


def good_events(topic: str, n: int, first: int, pieces: int, model: str = MODEL) -> list[bytes]:
    """Return good_text as events, quickly: the server shares its cores with the client under test."""
    values = {chr(ord(QUESTION) + i).encode(): q.encode() for i, q in enumerate(questions(topic, n, first))}
    values[TOPIC.encode()] = escaped(escaped(topic[:60])).encode()
    return b"".join([values.get(part, part) for part in _good_events(n, first, pieces, model)]).split(b"\0")


def escaped(text: str) -> str:
    """Return ``text`` as it stands within a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def fault_plan(seed: int = 0) -> Plan:
    """10 % 429, 5 % 500, 3 % dropped (before or within the answer), 5 % malformed (prose, cut off, bare quotes)."""
    rng = random.Random(seed)

    def plan(number: int, topic: str, n: int) -> Any:
        draw = rng.random()
        if draw < 0.10:
            return {"status": 429, "body": '{"error": {"message": "rate limit reached"}}'}
        if draw < 0.15:
            return {"status": 500, "body": '{"error": {"message": "internal error"}}'}
        if draw < 0.18:
            return "drop" if draw < 0.165 else {"drop_after": 5}
        if draw < 0.23:
            text = json.dumps(good_samples(topic, n, 1000 + number), ensure_ascii=False)
            return rng.choice(["好的，我来想一想。", text[: len(text) * 2 // 3], text.replace("第", '"第"')])
        return None

    return plan
