"""The least that requests cost with aiohttp and orjson: send, receive, throw away. For bench_generation.py.

    OPENAI_API_KEY=sk-... python benchmarks/generation_floor.py http://127.0.0.1:8000/v1 topics.txt --concurrency 200

No retries, no journal, no check of what came, no output: what gen_SFT_data.py costs beyond this is its own.
"""

import argparse
import asyncio
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="只用 aiohttp 与 orjson 收发同样的请求，什么也不做：每请求 CPU 的下限。"
    )
    parser.add_argument("url", help="服务的地址，以 /v1 结尾")
    parser.add_argument("topics_file", type=Path, help="主题文件，一行一个请求")
    parser.add_argument("--concurrency", type=int, default=50, metavar="N", help="同时多少个，默认 %(default)s")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    topics = args.topics_file.read_text(encoding="utf-8").splitlines()
    asyncio.run(send(args.url + "/chat/completions", topics, args.concurrency))
    return 0


async def send(url: str, topics: list[str], concurrency: int) -> None:
    import aiohttp
    import orjson

    from LLM_data_gen.prompt import build_messages, size_of_answer

    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {os.environ['OPENAI_API_KEY']}"}
    same = {"model": "model-x", "stream": True, "stream_options": {"include_usage": True}}
    same["max_tokens"] = size_of_answer(6, thinking=False)
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
