"""Other tools at the task of gen_SFT_data.py; bench_generation_others.py runs this file in the Python of each.

    VENV/bin/python benchmarks/generation_others.py NAME URL requests.jsonl out.jsonl CONCURRENCY

Reads {"topic", "messages"} lines, writes {"topic", "samples"} lines; a second start goes on where the first stopped.
The plain loop is what the SDK's documentation shows: AsyncOpenAI with its own retries (2), a semaphore, gather; each
answer is appended as it comes, and topics in the file are not asked again. Curator has its defaults (10 retries, cache,
all responses required, or not), the same concurrency, and its limits a minute out of the way.
"""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

# A name whose price Curator's litellm knows under the provider openai: with "deepseek-chat" at another address than
# DeepSeek's it fails to price each answer, counts that as a failed try and asks again, ten times.
MODEL, MAX_TOKENS, TEMPERATURE = "gpt-4o-mini", 6512, 0.8
FIELDS = ("instruction", "input", "output")


def read_samples(text: str) -> list[dict[str, str]]:
    """Read an answer as a short script would: JSON, or an error. Ours reads broken ones too; that is its business."""
    samples = json.loads(text)
    if not all(isinstance(sample[field], str) for sample in samples for field in FIELDS):
        raise ValueError("a field is no string")
    return samples


def plain_loop(transport: str, url: str, requests: list[dict[str, Any]], out: Path, concurrency: int) -> int:
    """AsyncOpenAI, a semaphore and gather. ``transport``: httpx, the default, or aiohttp, advised for many at once."""
    from openai import AsyncOpenAI, DefaultAioHttpClient

    done = {json.loads(line)["topic"] for line in out.open(encoding="utf-8")} if out.exists() else set()
    gate, failures = asyncio.Semaphore(concurrency), []

    async def one(client: AsyncOpenAI, request: dict[str, Any]) -> None:
        async with gate:
            try:
                answer = await client.chat.completions.create(
                    model=MODEL, messages=request["messages"], temperature=TEMPERATURE, max_tokens=MAX_TOKENS
                )
                samples = read_samples(answer.choices[0].message.content)
            except Exception as error:  # whatever it is, the other topics go on
                failures.append(error)
                return
        with out.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"topic": request["topic"], "samples": samples}, ensure_ascii=False) + "\n")

    async def run() -> None:
        http_client = DefaultAioHttpClient() if transport == "aiohttp" else None
        async with AsyncOpenAI(base_url=url, http_client=http_client) as client:
            await asyncio.gather(*(one(client, request) for request in requests if request["topic"] not in done))

    asyncio.run(run())
    print(f"{len(failures)} failed: {sorted({type(error).__name__ for error in failures})}", file=sys.stderr)
    return 1 if failures else 0


def curator(all_required: bool, url: str, requests: list[dict[str, Any]], out: Path, concurrency: int) -> int:
    """Curator's LLM class with prompt and parse; its cache lies beside ``out``, so that a second start resumes.

    ``all_required`` is its default: with one answer that parse refuses there is no output at all.
    """
    import importlib.util

    # Its token counter downloads a vocabulary at the start; litellm, which it needs, ships the same file.
    vocabulary = Path(importlib.util.find_spec("litellm").origin).parent / "litellm_core_utils" / "tokenizers"
    os.environ |= {"CURATOR_CACHE_DIR": str(out.parent / "cache"), "TIKTOKEN_CACHE_DIR": str(vocabulary)}
    os.environ |= {"TELEMETRY_ENABLED": "false", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "HF_HUB_OFFLINE": "1"}
    from bespokelabs import curator as library
    from datasets import Dataset

    class Writer(library.LLM):
        def prompt(self, row: dict) -> list[dict]:
            return json.loads(row["messages"])

        def parse(self, row: dict, response: str) -> dict:
            return {"topic": row["topic"], "samples": json.dumps(read_samples(response), ensure_ascii=False)}

    limits = {
        "require_all_responses": all_required,
        "max_requests_per_minute": 1_000_000,
        "max_tokens_per_minute": 10_000_000_000,
    }
    writer = Writer(
        model_name=MODEL,
        backend="openai",
        generation_params={"temperature": TEMPERATURE, "max_tokens": MAX_TOKENS},
        backend_params={"base_url": url, "max_concurrent_requests": concurrency, **limits},
    )
    rows = [{"topic": r["topic"], "messages": json.dumps(r["messages"], ensure_ascii=False)} for r in requests]
    answered = writer(Dataset.from_list(rows))
    with out.open("w", encoding="utf-8") as file:
        for row in answered.dataset:
            file.write(
                json.dumps({"topic": row["topic"], "samples": json.loads(row["samples"])}, ensure_ascii=False) + "\n"
            )
    return 0


CHILDREN = {
    "AsyncOpenAI": lambda *job: plain_loop("httpx", *job),
    "AsyncOpenAI + aiohttp": lambda *job: plain_loop("aiohttp", *job),
    "bespokelabs-curator": lambda *job: curator(True, *job),
    "bespokelabs-curator, not all required": lambda *job: curator(False, *job),
}

if __name__ == "__main__":
    name, url, source, target, concurrency = sys.argv[1:]
    rows = [json.loads(line) for line in Path(source).read_text(encoding="utf-8").splitlines()]
    sys.exit(CHILDREN[name](url, rows, Path(target), int(concurrency)))
