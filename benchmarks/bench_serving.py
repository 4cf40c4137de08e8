"""Try Firefly/script/http/serve.py with 200 streams at once and 2,000 mixed requests; print a Markdown table.

    python benchmarks/bench_serving.py                      a tiny model made on the spot, about 5 minutes on 2 busy cores
    python benchmarks/bench_serving.py --model models/MiniCPM4-0.5B --streams 200 --requests 2000

The service is a process of its own, asked over real sockets. Of the mixed requests some stream, some are whole, some are
the old service's, some hang up midway, some bring 100 KB, some are wrong. Exits 1 when a promise is broken: an answer
with another status than it should have, a stream that does not end, memory that grows, requests left over at the end.
"""

import argparse
import asyncio
import contextlib
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

KINDS = {"stream": 40, "whole": 30, "old": 10, "hang up": 10, "wrong": 8, "100 KB": 2}  # per cent
WRONG = [b"{", b'{"messages": 5}', b'{"messages": [{"role": "user", "content": "x"}], "temperature": -3}']
WRONG += [b'{"messages": [{"role": "user", "content": "x"}], "max_tokens": 1000000000000}']
QUESTIONS = ["你是谁？", "请介绍一下哈尔滨工业大学的校训。", "怎样写好一篇作文？请分三步来说。", "冬天怎么保暖？"]


@dataclass
class Answered:
    """One stream as its client saw it; times in seconds from when it was sent."""

    first: float
    last: float
    tokens: int


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="测量 HTTP 服务：并发的流、混合请求下的内存、客户端中途断开。")
    parser.add_argument("--model", help="模型文件夹；默认现场生成一个极小的 MiniCPM")
    parser.add_argument("--streams", type=int, default=200, help="同时多少条流，默认 %(default)s")
    parser.add_argument("--tokens", type=int, default=64, help="每条流最多多少 token，默认 %(default)s")
    parser.add_argument("--requests", type=int, default=2000, help="混合请求的条数，默认 %(default)s")
    parser.add_argument("--at-once", type=int, default=40, help="混合请求同时发多少条，默认 %(default)s")
    parser.add_argument("--growth-mb", type=float, default=40, help="允许内存增长多少 MB，默认 %(default)g")
    parser.add_argument("--seed", type=int, default=0, help="随机种子，默认 %(default)s")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        model = args.model or make_model(Path(folder) / "tiny")
        command = [sys.executable, str(ROOT / "Firefly/script/http/serve.py"), "--model", str(model), "--port", "0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                url = process.stdout.readline().strip().removesuffix("/v1")
                good = asyncio.run(measure(args, url, process.pid))
            finally:
                process.terminate()
    return 0 if good else 1


def make_model(folder: Path) -> Path:
    from scripts.make_tiny_model import build_tiny_model
    from tests.conftest import CORPUS

    return build_tiny_model(folder, CORPUS * 4, vocab_size=600, hidden_size=64, num_layers=2, layer_std=0.2)


async def measure(args: argparse.Namespace, url: str, pid: int) -> bool:
    import aiohttp

    unlimited = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(url, connector=unlimited, timeout=aiohttp.ClientTimeout(600)) as client:
        print("| 测什么 | 测得 | 要求 | 做到 |\n| --- | --- | --- | --- |")
        good = await measure_streams(client, args)
        good &= await measure_memory(client, args, pid)
        return good


def row(what: str, measured: str, promised: str, holds: bool | None) -> bool:
    print(f"| {what} | {measured} | {promised} | { {True: '是', False: '**否**', None: '—'}[holds] } |", flush=True)
    return holds is not False


async def measure_streams(client: Any, args: argparse.Namespace) -> bool:
    """All streams at once, then a few one after another for the ratio."""
    bodies = [chat_body(number, args.tokens, stream=True) for number in range(args.streams)]
    await ask_stream(client, bodies[0])  # warm
    began = time.perf_counter()
    answers = await asyncio.gather(*(ask_stream(client, body) for body in bodies), return_exceptions=True)
    elapsed = time.perf_counter() - began
    whole = [answer for answer in answers if isinstance(answer, Answered)]
    good = row(f"{args.streams} 条流同时", f"{len(whole)} 条答完", "全部", len(whole) == args.streams)
    if not whole:
        print(answers[0], file=sys.stderr)
        return False
    together = sum(answer.tokens for answer in whole) / elapsed
    began = time.perf_counter()
    single = [await ask_stream(client, body) for body in bodies[: max(4, args.streams // 20)]]
    alone = sum(answer.tokens for answer in single) / (time.perf_counter() - began)
    firsts, lasts = sorted(a.first for a in whole), sorted(a.last for a in whole)
    row("吞吐", f"{together:.0f} token/s，逐条 {alone:.0f}（{together / alone:.1f} 倍）", "—", None)
    p95 = int(len(firsts) * 0.95) - 1
    row("首字", f"中位 {statistics.median(firsts):.2f} s，95 % {firsts[p95]:.2f} s，最慢 {firsts[-1]:.2f} s", "—", None)
    row("答完", f"中位 {statistics.median(lasts):.2f} s，最慢 {lasts[-1]:.2f} s", "—", None)
    return good


async def measure_memory(client: Any, args: argparse.Namespace, pid: int) -> bool:
    """Mixed requests; memory is looked at after every tenth of them."""
    import psutil

    process, rng = psutil.Process(pid), random.Random(args.seed)
    kinds = rng.choices(list(KINDS), list(KINDS.values()), k=args.requests)
    memory, statuses, bad = [], Counter(), []
    step, gate = max(1, args.requests // 10), asyncio.Semaphore(args.at_once)

    async def one(number: int) -> None:
        async with gate:
            status, expected = await ask_kind(client, kinds[number], number)
            statuses[f"{kinds[number]} {status}"] += 1
            if status not in expected:
                bad.append((kinds[number], status))

    for start in range(0, args.requests, step):
        await asyncio.gather(*(one(number) for number in range(start, min(start + step, args.requests))))
        memory.append(process.memory_info().rss / 1e6)
        print(f"{start + step} 条之后 {memory[-1]:.0f} MB", file=sys.stderr, flush=True)
    print(dict(statuses), file=sys.stderr)
    growth = max(memory[len(memory) // 2 :]) - max(memory[: len(memory) // 2])
    good = row(f"{args.requests} 条混合请求", f"{len(bad)} 条状态不对 {bad[:3] or ''}", "0", not bad)
    shown = f"{memory[0]:.0f} → {memory[-1]:.0f} MB，后半比前半的最高值 {growth:+.0f} MB"
    good &= row("内存", shown, f"至多 +{args.growth_mb:g} MB", growth <= args.growth_mb)
    await asyncio.sleep(2)
    async with client.get("/health") as answer:
        health = await answer.json()
    left = health["running"] + health["waiting"]
    return row("断开的请求", f"结束后还剩 {left} 条在生成", "0", left == 0) and good


def chat_body(number: int, tokens: int, **more: Any) -> dict:
    messages = [{"role": "user", "content": f"{QUESTIONS[number % len(QUESTIONS)]}（第 {number} 问）"}]
    return {"messages": messages, "max_tokens": tokens, "temperature": 0.7, "seed": number} | more


async def ask_stream(client: Any, body: dict) -> Answered:
    """Raises ValueError when the stream is refused or breaks off."""
    began, first, tokens, done = time.perf_counter(), 0.0, 0, False
    body = body | {"stream_options": {"include_usage": True}}
    async with client.post("/v1/chat/completions", json=body) as answer:
        if answer.status != 200:
            raise ValueError(f"HTTP {answer.status}: {await answer.text()}")
        async for line in answer.content:
            if line.startswith(b"data: {"):
                event = json.loads(line[6:])
                tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
                if not first and event["choices"] and event["choices"][0]["delta"].get("content"):
                    first = time.perf_counter() - began
            done |= line.startswith(b"data: [DONE]")
    if not done or not tokens:
        raise ValueError("the stream broke off")
    last = time.perf_counter() - began
    return Answered(first or last, last, tokens)


async def read_a_line(client: Any, body: dict) -> None:
    async with client.post("/v1/chat/completions", json=body) as answer:
        await answer.content.readline()
        answer.close()


async def ask_kind(client: Any, kind: str, number: int) -> tuple[int, set[int]]:
    """Send one request of that kind; return its status, and those that it may have."""
    tokens = 8 + number % 40
    if kind == "stream":
        await ask_stream(client, chat_body(number, tokens, stream=True))
        return 200, {200}
    if kind == "hang up":
        body = chat_body(number, 20_000, stream=number % 2 == 0, temperature=0)
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(read_a_line(client, body), 0.3)
        return 0, {0}
    headers = {"Content-Type": "application/json"}
    path, data, expected = "/v1/chat/completions", json.dumps(chat_body(number, tokens)).encode(), {200}
    if kind == "old":
        path, data = "/firefly", json.dumps({"inputs": "<s>你好</s>", "max_new_tokens": tokens}).encode()
    elif kind == "wrong":
        data, expected = WRONG[number % len(WRONG)], {400}
    elif kind == "100 KB":
        long = {"messages": [{"role": "user", "content": "龘校训" * 11_000}]}
        data, expected = json.dumps(long).encode(), {400}
    async with client.post(path, data=data, headers=headers) as answer:
        await answer.read()
        return answer.status, expected


if __name__ == "__main__":
    sys.exit(main())
