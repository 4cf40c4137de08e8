"""The least that 1,000 requests cost with aiohttp and orjson: send, receive, throw away. For bench_generation.py.

    python benchmarks/generation_floor.py http://127.0.0.1:8000/v1 --topics 1000 --concurrency 200

No retries, no journal, no check of what came, no output: what gen_SFT_data.py costs beyond this is its own.
"""

import argparse
import asyncio
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="只用 aiohttp 与 orjson 收发同样的请求，什么也不做：每请求 CPU 的下限。"
    )
    parser.add_argument("url", help="服务的地址，以 /v1 结尾")
    parser.add_argument("--topics", type=int, default=1000, metavar="N", help="多少个请求，默认 %(default)s")
    parser.add_argument("--concurrency", type=int, default=50, metavar="N", help="同时多少个，默认 %(default)s")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    asyncio.run(
        send(args.url + "/chat/completions", [f"哈工大学习生活主题{i}" for i in range(args.topics)], args.concurrency)
    )
    return 0


async def send(url: str, topics: list[str], concurrency: int) -> None:
    import aiohttp
    import orjson

    from LLM_data_gen.prompt import build_messages

    headers = {"Content-Type": "application/json", "Authorization": "Bearer sk-benchmark-0123456789"}
    same = {"model": "model-x", "stream": True, "stream_options": {"include_usage": True}, "max_tokens": 6512}
    waiting = iter(topics)
    async with aiohttp.ClientSession(headers=headers, connector=aiohttp.TCPConnector(limit=0)) as session:

        async def worker() -> None:
            for topic in waiting:
                body = orjson.dumps(same | {"messages": build_messages(topic, 6)})
                async with session.post(url, data=body) as response:
                    await response.read()

        await asyncio.gather(*(worker() for _ in range(concurrency)))


if __name__ == "__main__":
    sys.exit(main())
