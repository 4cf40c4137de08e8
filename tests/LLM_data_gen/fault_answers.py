"""What fault_server.py answers with: good samples, whole or as server-sent events, token counts, a mixture of faults."""

import functools
import json
import random
from collections.abc import Callable
from typing import Any

import orjson

Plan = Callable[[int, str, int], Any]

PIECES = 12  # events an answer comes in
TOPIC = "\ue000"  # stands for the topic in a good answer that is made once; one character, so no piece cuts it
_CHARACTERS = [chr(code) for code in range(0x4E00, 0x4E00 + 4000)]
_SENTENCES = [
    "先把目标写清楚，再看手里有什么条件，最后安排每周要做的事。",
    "建议和同学结伴练习，遇到不懂的地方及时请教老师。",
    "每完成一步就回头检查一遍，把走过的弯路记在本子上。",
    "具体的时间和要求以学校官方渠道发布的通知为准。",
    "坚持一个学期之后，你会看到自己明显的进步。",
]


@functools.cache
def some_words(seed: str) -> str:
    """Characters that make no sense: so that no question is near another, of another topic either."""
    return "".join(random.Random(seed).sample(_CHARACTERS, 20))


def about(topic: str) -> str:
    """The topic as the samples name it."""
    return topic if topic == TOPIC else f"{topic[:60]}、{some_words(topic)}"


def good_samples(topic: str, n: int, first: int = 0) -> list[dict[str, str]]:
    """Return ``n`` samples that pass validation; a different ``first`` gives different ones."""
    samples, topic = [], about(topic)
    for i in range(first, first + n):
        mark = "".join("零一二三四五六七八九"[int(digit)] for digit in str(i))
        samples.append(
            {
                "instruction": f"你是一位耐心的学长，请围绕下面的主题给出第{mark}种建议：{topic}。",
                "input": f"我是一名大二学生，关于“{topic}”，我想请教第{mark}个问题：{some_words(mark)}，怎样开始？",
                "output": f"关于第{mark}个问题，可以这样做。" + "".join(_SENTENCES) * 2,
            }
        )
    return samples


def completion(content: str, finish_reason: str = "stop", usage: dict | None = None) -> dict[str, Any]:
    """Return a completion that is not streamed."""
    message = {"role": "assistant", "content": content}
    choice = {"index": 0, "message": message, "finish_reason": finish_reason}
    head = {"id": "chat-1", "object": "chat.completion", "created": 1, "model": "model-x"}
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


def event(delta: dict[str, Any] | None, finish_reason: str | None = None, usage: dict | None = None) -> bytes:
    """Return one server-sent event; ``delta`` None: no choices, as the event with the usage has it."""
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish_reason}]
    head = {"id": "chat-1", "object": "chat.completion.chunk", "created": 1, "model": "model-x"}
    return b"data: " + orjson.dumps({**head, "choices": choices, "usage": usage}) + b"\n\n"


def cut(text: str, pieces: int) -> list[str]:
    """Cut ``text`` into at most ``pieces`` parts of about the same length, none of them empty."""
    size = max(1, -(-len(text) // max(1, pieces)))
    return [text[at : at + size] for at in range(0, len(text), size)]


@functools.cache
def good_events(n: int, first: int, pieces: int) -> tuple[bytes, ...]:
    """The events of a good answer, with TOPIC for its topic: made once for all topics."""
    text = json.dumps(good_samples(TOPIC, n, first), ensure_ascii=False)
    return tuple(event({"content": piece}) for piece in cut(text, pieces))


@functools.cache
def good_text(n: int, first: int) -> str:
    return json.dumps(good_samples(TOPIC, n, first), ensure_ascii=False)


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
