"""A chat-completions server on real sockets that answers as a test tells it to: well, late, badly, or not at all.

In a test:      with FaultServer(plan) as server: ... server.url, server.asked
On its own:     python tests/LLM_data_gen/fault_server.py --latency-ms 200 [--faults] [--cap 39]   (prints its address)

A request with "stream": true is answered as server-sent events: pieces of text, then finish_reason, then usage when
stream_options.include_usage asks for it, then [DONE]; any other one as a single JSON object. GET /v1/models lists
``models``. With ``cap=39`` a request that arrives while 39 are being answered gets 429, without Retry-After;
``cap_in_body`` names the cap in the body. ``fault_plan(seed)`` is the mixture of --faults.

``plan(number, topic, n)`` is called for each request (numbered from 0) and returns what to send: None for a good
answer, a str as the message's content, "drop" to cut the connection, or a dict. With any of these keys

    delay_s                 seconds before the first byte; latency_s when not given
    status, body, headers   the reply as it is given

or, for a good answer that comes in an odd way,

    content, reasoning      texts; the good answer and none when not given
    finish_reason, usage    "stop" and usage_of(prompt, text) when not given; no_usage: True sends none
    pieces, piece_delay_s   in how many events, and seconds between them (0: all in one write)
    keep_alive              (count, interval_s): so many blank lines or comments before the first data
    drop_after, stall_after after so many pieces the connection is cut, or nothing comes any more
"""

import argparse
import asyncio
import contextlib
import re
import ssl
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import orjson

sys.path.append(str(Path(__file__).parent))  # loaded by its path, as the tests do, it would not find its neighbour
import fault_answers as answers

good_samples, completion = answers.good_samples, answers.completion  # tests take them from here
_REASONS = {200: "OK", 301: "Moved", 400: "Bad Request", 404: "Not Found", 429: "Too Many Requests", 500: "Error"}


class FaultServer:
    """Runs in a thread of its own. ``asked`` lists (topic, n) of every request, ``bodies`` what was sent."""

    def __init__(
        self,
        plan: answers.Plan = lambda number, topic, n: None,
        latency_s: float = 0.0,
        port: int = 0,
        cap: int | None = None,
        cap_in_body: bool = False,
        pieces: int = answers.PIECES,
        models: Iterable[str] = ("model-x", "deepseek-flash"),
        tls: ssl.SSLContext | None = None,
    ):
        self.plan, self.latency_s, self._port = plan, latency_s, port
        self.cap, self.cap_in_body, self.pieces, self.models = cap, cap_in_body, pieces, list(models)
        self._tls = tls
        self.asked: list[tuple[str, int]] = []
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.answered: list[int] = []  # numbers of the requests whose whole answer was sent: a provider bills them
        self.over_cap = 0
        self.most_at_once = self._at_once = 0
        self._given: dict[str, int] = {}
        self._connections: set[_Connection] = set()

    def __enter__(self) -> "FaultServer":
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.url = asyncio.run_coroutine_threadsafe(self.start(), self._loop).result()
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def start(self) -> str:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: _Connection(self), "127.0.0.1", self._port, backlog=1024, ssl=self._tls
        )
        return f"http{'s' if self._tls else ''}://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"

    async def _close(self) -> None:
        self._server.close()
        tasks = [connection.task for connection in self._connections if connection.task]
        for connection in list(self._connections):
            connection.transport.abort()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def answer(self, connection: "_Connection", head: bytes, raw: bytes) -> None:
        """Answer one request: note it, ask the plan, wait, send."""
        method, path = head.split(b" ", 2)[:2]
        if (method, path) == (b"GET", b"/v1/models"):
            return connection.reply(200, orjson.dumps({"object": "list", "data": [{"id": m} for m in self.models]}))
        body = orjson.loads(raw) if path == b"/v1/chat/completions" and method == b"POST" else {}
        if not body.get("messages"):
            return connection.reply(400 if body else 404, b'{"error": {"message": "no messages, or no such path"}}')
        prompt = body["messages"][-1]["content"]
        topic, n = re.search(r"主题：(.+)", prompt), re.search(r"(\d+) 条", prompt)
        topic, n = topic[1] if topic else prompt.splitlines()[-1], int(n[1]) if n else 1
        number = len(self.asked)
        self.asked.append((topic, n))
        self.bodies.append(body)
        self.headers.append(dict(line.split(": ", 1) for line in head.decode("latin-1").split("\r\n")[1:] if line))
        if self.cap is not None and self._at_once >= self.cap:
            self.over_cap += 1
            said = f"max concurrency: {self.cap}" if self.cap_in_body else "too many requests"
            return connection.reply(429, orjson.dumps({"error": {"message": f"request refused, {said}"}}))
        plan = self.plan(number, topic, n)
        plan = plan if isinstance(plan, dict) else {"drop": True} if plan == "drop" else {"content": plan}
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            await asyncio.sleep(plan.get("delay_s", self.latency_s))
            if "drop" in plan:
                return connection.transport.abort()
            if plan.get("status", 200) != 200 or "body" in plan:
                text = plan.get("body", "")
                return connection.reply(plan.get("status", 200), text.encode(), plan.get("headers"))
            await self._send(connection, plan, body, topic, n)
            self.answered.append(number)
        finally:
            self._at_once -= 1

    def _parts(self, plan: dict[str, Any], body: dict[str, Any], topic: str, n: int) -> tuple[list[bytes], list[bytes]]:
        """Return the pieces of an answer, and what comes after the last one."""
        text, pieces, reasoning = plan.get("content"), plan.get("pieces", self.pieces), plan.get("reasoning", "")
        model = body.get("model", answers.MODEL)
        first = 0
        if good := text is None:
            first = self._given.get(topic, 0)
            self._given[topic] = first + n
            text = answers.good_text(topic, n, first)
        finish = plan.get("finish_reason", "stop")
        usage = plan.get("usage")
        if not body.get("stream"):
            whole = completion(text, finish, usage, model)
            if reasoning:
                whole["choices"][0]["message"]["reasoning_content"] = reasoning
            if plan.get("no_usage"):
                del whole["usage"]
            raw = orjson.dumps(whole)
            size = -(-len(raw) // pieces)
            return [raw[at : at + size] for at in range(0, len(raw), size)], []
        parts = [answers.event({"reasoning_content": piece}, model=model) for piece in answers.cut(reasoning, pieces)]
        if good:
            parts += answers.good_events(topic, n, first, pieces, model)
        else:
            parts += [answers.event({"content": piece}, model=model) for piece in answers.cut(text, pieces)]
        after = [answers.event({}, finish, model=model)]
        if (body.get("stream_options") or {}).get("include_usage") and not plan.get("no_usage"):
            prompt = "".join(message["content"] for message in body["messages"])
            after.append(answers.event(None, usage=usage or answers.usage_of(prompt, text + reasoning), model=model))
        return parts, [*after, b"data: [DONE]\n\n"]

    async def _send(self, connection: "_Connection", plan: dict, body: dict, topic: str, n: int) -> None:
        """Send an answer the way the plan wants it; everything in one write where it wants nothing special."""
        stream = bool(body.get("stream"))
        parts, after = self._parts(plan, body, topic, n)
        connection.begin("text/event-stream" if stream else "application/json")
        count, interval_s = plan.get("keep_alive", (0, 0.0))
        for i in range(count):
            connection.chunk(b": keep-alive\n\n" if stream and i % 2 == 0 else b"\n")
            connection.flush()
            await asyncio.sleep(interval_s)
        stop = min(plan.get("drop_after", len(parts)), plan.get("stall_after", len(parts)))
        if delay_s := plan.get("piece_delay_s", 0.0):
            for piece in parts[:stop]:
                connection.chunk(piece)
                connection.flush()
                await asyncio.sleep(delay_s)
        elif stop:
            connection.chunk(b"".join(parts[:stop]))
        if "stall_after" in plan:
            connection.flush()
            await asyncio.Event().wait()  # until the client hangs up
        if "drop_after" in plan:
            connection.flush()
            await asyncio.sleep(0.01)  # so that what was sent arrives before the reset
            connection.transport.abort()
            raise asyncio.CancelledError
        connection.chunk(b"".join(after))
        connection.out.append(b"0\r\n\r\n")
        connection.flush()


class _Connection(asyncio.Protocol):
    """As much of HTTP/1.1 as the clients under test use: Content-Length in, chunked or Content-Length out."""

    def __init__(self, server: FaultServer):
        self.server, self.buffer, self.task = server, b"", None

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self.server._connections.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self.server._connections.discard(self)
        if self.task:
            self.task.cancel()

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0 or (self.task and not self.task.done()):
            return
        length = re.search(rb"\r\ncontent-length: *(\d+)", self.buffer[:end], re.IGNORECASE)
        whole = end + 4 + (int(length[1]) if length else 0)
        if len(self.buffer) >= whole:
            head, raw, self.buffer = self.buffer[:end], self.buffer[end + 4 : whole], self.buffer[whole:]
            self.task = asyncio.ensure_future(self._answer(head, raw))

    async def _answer(self, head: bytes, raw: bytes) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await self.server.answer(self, head, raw)

    def reply(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        kind = "application/json" if body[:1] in (b"{", b"[") else "text/plain; charset=utf-8"
        headers = {"Content-Type": kind, "Content-Length": str(len(body)), **(headers or {})}
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self.transport.write(f"HTTP/1.1 {status} {_REASONS.get(status, 'Said')}\r\n{lines}\r\n".encode() + body)

    def begin(self, kind: str) -> None:
        self.out = [f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()]

    def chunk(self, data: bytes) -> None:
        if data:
            self.out.append(b"%x\r\n%b\r\n" % (len(data), data))

    def flush(self) -> None:
        self.transport.write(b"".join(self.out))
        self.out.clear()


async def _serve(args: argparse.Namespace) -> None:
    plan = answers.fault_plan() if args.faults else lambda number, topic, n: None
    server = FaultServer(plan, latency_s=args.latency_ms / 1000, cap=args.cap)
    print(await server.start(), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=Path(__file__).name)
    parser.add_argument("--latency-ms", type=float, default=0.0)
    parser.add_argument("--faults", action="store_true")
    parser.add_argument("--cap", type=int)
    asyncio.run(_serve(parser.parse_args()))
