"""A chat-completions server on real sockets that answers as a test tells it to: well, late, badly, or not at all.

In a test:      with FaultServer(plan) as server: ... server.url, server.asked
On its own:     python tests/LLM_data_gen/fault_server.py --latency-ms 200      (prints its address; for benchmarks)

``plan(number, topic, n)`` is called for each request (numbered from 0) and returns what to send: None for a good
answer, a str as the message's content, a dict {status, body, headers, delay_s} or "drop" to cut the connection.
"""

import argparse
import asyncio
import json
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aiohttp import web

Plan = Callable[[int, str, int], Any]

_SENTENCES = [
    "先把目标写清楚，再看手里有什么条件，最后安排每周要做的事。",
    "建议和同学结伴练习，遇到不懂的地方及时请教老师。",
    "每完成一步就回头检查一遍，把走过的弯路记在本子上。",
    "具体的时间和要求以学校官方渠道发布的通知为准。",
    "坚持一个学期之后，你会看到自己明显的进步。",
]


def good_samples(topic: str, n: int, first: int = 0) -> list[dict[str, str]]:
    """Return ``n`` samples that pass validation; a different ``first`` gives different ones."""
    samples = []
    for i in range(first, first + n):
        mark = "".join("零一二三四五六七八九"[int(digit)] for digit in str(i))
        samples.append(
            {
                "instruction": f"你是一位耐心的学长，请围绕下面的主题给出第{mark}种建议：{topic[:60]}。",
                "input": f"我是一名大二学生，关于“{topic[:60]}”，我想请教第{mark}个问题，应该怎样开始呢？",
                "output": f"关于第{mark}个问题，可以这样做。" + "".join(_SENTENCES) * 2,
            }
        )
    return samples


def completion(content: str, finish_reason: str = "stop") -> dict[str, Any]:
    message = {"role": "assistant", "content": content}
    choice = {"index": 0, "message": message, "finish_reason": finish_reason}
    return {"choices": [choice], "usage": {"prompt_tokens": 100, "completion_tokens": 200}}


class FaultServer:
    """Runs in a thread of its own. ``asked`` lists (topic, n) of every request, ``bodies`` what was sent."""

    def __init__(self, plan: Plan = lambda number, topic, n: None, latency_s: float = 0.0, port: int = 0):
        self.plan, self.latency_s, self._port = plan, latency_s, port
        self.asked: list[tuple[str, int]] = []
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.most_at_once = self._at_once = 0
        self._given: dict[str, int] = {}

    def __enter__(self) -> "FaultServer":
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.url = asyncio.run_coroutine_threadsafe(self.start(), self._loop).result()
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def start(self) -> str:
        app = web.Application(client_max_size=1 << 24)
        app.router.add_post("/v1/chat/completions", self._answer)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port, backlog=1024).start()
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1"

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        prompt = body["messages"][-1]["content"]
        topic, n = re.search(r"主题：(.+)", prompt)[1], int(re.search(r"(\d+) 条", prompt)[1])
        number = len(self.asked)
        self.asked.append((topic, n))
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        reply = self.plan(number, topic, n)
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            await asyncio.sleep(reply.get("delay_s", self.latency_s) if isinstance(reply, dict) else self.latency_s)
        finally:
            self._at_once -= 1
        if reply == "drop":
            request.transport.abort()
            return web.Response()
        if isinstance(reply, dict):
            return web.Response(
                status=reply.get("status", 200), text=reply.get("body", ""), headers=reply.get("headers")
            )
        if reply is None:
            first = self._given.get(topic, 0)
            self._given[topic] = first + n
            reply = json.dumps(good_samples(topic, n, first), ensure_ascii=False)
        return web.json_response(completion(reply))


async def _serve(latency_s: float) -> None:
    server = FaultServer(latency_s=latency_s)
    print(await server.start(), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=Path(__file__).name)
    parser.add_argument("--latency-ms", type=float, default=0.0)
    asyncio.run(_serve(parser.parse_args().latency_ms / 1000))
