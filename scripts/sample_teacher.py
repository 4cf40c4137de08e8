"""A stand-in for a teacher model: an OpenAI-compatible server on 127.0.0.1 that replays bundled sample answers.

    python scripts/sample_teacher.py --port 0 --samples data/samples/hit_samples.jsonl

Prints its address, http://127.0.0.1:PORT/v1, as the first line on stdout. It generates nothing: for the topic that a
prompt names it returns the samples of that topic, at most as many as asked for, first those not yet given.
"""

import argparse
import asyncio
import json
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from sft_data.errors import UserError, exit_cleanly

MODEL_NAME = "sample-replay"  # whoever reads the answers, or asks /v1/models, sees that no model wrote them
_TOPIC = re.compile(r"主题[：:]\s*(.+)")
_HOW_MANY = re.compile(r"(\d+)\s*条")
_MOST = 64  # samples in one answer


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="在本机回放样例的假教师：OpenAI 兼容接口，按主题返回样例里的现成回答，不运行任何模型。",
    )
    parser.add_argument("--port", type=int, default=0, help="端口，0 表示自动选一个空闲的（默认）")
    samples = Path(__file__).resolve().parent.parent / "data/samples/hit_samples.jsonl"
    parser.add_argument(
        "--samples", type=Path, default=samples, help='样例 JSONL，每行 {"topic", "text"}（默认 %(default)s）'
    )
    parser.add_argument("--latency-ms", type=float, default=0.0, help="每次回答前等待的毫秒数（默认 0）")
    return parser


class Samples:
    """Samples by topic, and which have been given in answer to which topic."""

    def __init__(self, path: Path):
        from sft_data.chatml import parse_chatml
        from sft_data.jsonl import read_records

        self.by_topic: dict[str, list[dict[str, str]]] = {}
        self._given: dict[str, set[int]] = {}
        for where, record in read_records(path):
            try:
                system, user, assistant = (m["content"] for m in parse_chatml(record["text"]))
            except (KeyError, TypeError, AttributeError, ValueError) as error:
                raise UserError(f"{where}：text 应是「系统、用户、智能助手」各一条的 HIT ChatML（{error}）。") from None
            sample = {"instruction": system, "input": user, "output": assistant}
            self.by_topic.setdefault(str(record.get("topic", "")), []).append(sample)
        self.everything = [sample for samples in self.by_topic.values() for sample in samples]

    def topic_of(self, prompt: str) -> str | None:
        """Return the topic that the prompt names, None for one without samples: its 主题： line, else any topic in it."""
        if (named := _TOPIC.search(prompt)) and named[1].strip() in self.by_topic:
            return named[1].strip()
        found = [topic for topic in self.by_topic if topic and topic in (named[1] if named else prompt)]
        return max(found, key=len, default=None)

    def take(self, topic: str | None, n: int, prompt: str) -> list[dict[str, str]]:
        """Return up to ``n`` samples whose question the prompt does not quote; those given before come round again last."""
        pool = self.everything if topic is None else self.by_topic[topic]
        given = self._given.setdefault(topic or "", set())
        quoted = {_flat(line[2:]) for line in prompt.splitlines() if line.startswith("- ")}
        unquoted = [i for i, sample in enumerate(pool) if _flat(sample["input"]) not in quoted]
        fresh = [i for i in unquoted if i not in given]
        if not fresh:  # all were given: start over, as a client that lost them would wish
            given.clear()
            fresh = unquoted
        given.update(fresh[:n])
        return [pool[i] for i in fresh[:n]]


def _flat(text: str) -> str:
    return " ".join(text.split())


def answer(samples: Samples, request: dict[str, Any], warn: Callable[[str], None]) -> tuple[str, dict[str, int]]:
    """Return (content, usage) for a chat request: a JSON array of samples. Tokens are counted as characters."""
    messages = request["messages"]
    prompt = next(str(m["content"]) for m in reversed(messages) if m["role"] == "user")
    asked = _HOW_MANY.search(prompt)
    topic = samples.topic_of(prompt)
    if topic is None:
        named = _TOPIC.search(prompt)
        warn(f"样例里没有主题「{named[1].strip() if named else prompt[:30]}」，用其他主题的样例代替。")
    chosen = samples.take(topic, min(int(asked[1]), _MOST) if asked else 1, prompt)
    content = json.dumps(chosen, ensure_ascii=False)
    asked_tokens = sum(len(str(m["content"])) for m in messages)
    usage = {"prompt_tokens": asked_tokens, "completion_tokens": len(content)}
    return content, usage | {"total_tokens": asked_tokens + len(content)}


def build_app(samples: Samples, latency_s: float, warn: Callable[[str], None]):
    """Return the aiohttp application with /v1/models and /v1/chat/completions."""
    from aiohttp import web

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": MODEL_NAME, "object": "model"}]})

    async def completions(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(latency_s)
        try:
            body = await request.json()
            content, usage = answer(samples, body, warn)
        except (ValueError, KeyError, TypeError, StopIteration) as error:
            message = f"bad request: {type(error).__name__}: {error}"
            return web.json_response({"error": {"message": message}}, status=400)
        head = {"id": "replay", "created": int(time.time()), "model": MODEL_NAME}
        if body.get("stream"):
            return await stream(request, head, content, usage)
        message = {"role": "assistant", "content": content}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return web.json_response({**head, "object": "chat.completion", "choices": [choice], "usage": usage})

    async def stream(request: web.Request, head: dict, content: str, usage: dict) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        pieces = [({"role": "assistant", "content": content}, None), ({}, "stop")]
        for delta, reason in pieces:
            choice = {"index": 0, "delta": delta, "finish_reason": reason}
            chunk = {**head, "object": "chat.completion.chunk", "choices": [choice]}
            if reason:
                chunk["usage"] = usage
            await response.write(f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n".encode())
        await response.write(b"data: [DONE]\n\n")
        return response

    app = web.Application(client_max_size=1 << 24)
    app.add_routes([web.get("/v1/models", models), web.post("/v1/chat/completions", completions)])
    return app


async def serve(samples: Samples, port: int, latency_s: float, warn: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT."""
    from aiohttp import web

    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    runner = web.AppRunner(build_app(samples, latency_s, warn), access_log=None, shutdown_timeout=1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        print(f"http://127.0.0.1:{runner.addresses[0][1]}/v1", flush=True)
        await stop.wait()
    finally:
        await runner.cleanup()


@exit_cleanly
def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)

    def say(message: str) -> None:
        print(f"样例教师：{message}", file=sys.stderr, flush=True)

    if not 0 <= args.port < 65536 or args.latency_ms < 0:
        raise UserError(f"--port {args.port} 应在 0 到 65535 之间，--latency-ms {args.latency_ms:g} 不能为负。")
    samples = Samples(args.samples)
    topics = len(samples.by_topic)
    say(f"这不是语言模型，只回放 {args.samples} 里的 {len(samples.everything)} 条样例（{topics} 个主题）。")
    asyncio.run(serve(samples, args.port, args.latency_ms / 1000, say))
    return 0


if __name__ == "__main__":
    sys.exit(main())
