"""Throughput and time to first token of the engines on the same 200 prompts, one engine after another.

    python benchmarks/bench_inference.py --vllm-python .venv-vllm/bin/python

Two MiniCPM models with random weights (layers at std 0.2): a tiny one, and one of MiniCPM4-0.5B's width, heads and
vocabulary with --layers layers. About one token in 48 is a stop token, so that answers end at different lengths, as
real ones do. Greedy, float32. Each engine is a process of its own and is timed after loading and one batch of warm-up;
"one by one" answers only the first --few prompts. Prints one Markdown table per model: rows and tokens of answers a
second, the ratio to one by one, the median time to the first token of a single question, and how many answers are
those of the first engine token by token (a server gives no ids).
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

ENGINES = {  # name: what the table calls it
    "one": "transformers 逐条",
    "batched": "transformers 成批",
    "sorted": "transformers 成批，按长度排序",
    "static": "transformers 成批，排序，静态缓存",
    "continuous": "transformers 连续批处理",
    "vllm": "vLLM 离线",
    "server": "vLLM 服务，同时提问",
}
SHAPES = {
    "tiny": {"hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 6},
    "minicpm4-0.5b": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "vocab_size": 73448,
    },
}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="在同样的提示上比较各推理引擎的吞吐与首个 token 的时间。")
    parser.add_argument(
        "--prompts", default="data/samples/general_samples.json", help="Alpaca 格式的 JSON，取其中的问题"
    )
    parser.add_argument("--count", type=int, default=200, help="提示条数（默认 200）")
    parser.add_argument("--few", type=int, default=40, help="逐条回答只做前几条（默认 40）")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--layers", type=int, default=2, help="MiniCPM4-0.5B 形状的模型用几层（默认 2，原为 24）")
    parser.add_argument("--models", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--engines", nargs="+", choices=list(ENGINES), default=list(ENGINES))
    parser.add_argument("--vllm-python", help="装有 vLLM 的 Python；不给则跳过 vLLM（没有 GPU 时见 docs/VLLM_CPU.md）")
    parser.add_argument("--worker", choices=list(ENGINES), help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    if args.worker:
        print(json.dumps(work(args), ensure_ascii=False))
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        for name in args.models:
            folder = prepare(args, name, Path(scratch) / name)
            print(
                f"\n{name}：{args.count} 条提示，最多 {args.max_new_tokens} token，批 {args.batch_size}\n", flush=True
            )
            results = {}
            for engine in args.engines:
                if engine not in ("vllm", "server") or args.vllm_python:
                    results[engine] = run_worker(args, engine, folder)
                    print(f"{ENGINES[engine]}：{results[engine]['tokens_per_second']:.0f} token/秒", file=sys.stderr)
            print(table(results), flush=True)
    return 0


def prepare(args: argparse.Namespace, name: str, folder: Path) -> Path:
    """Write model and prompts. The tokenizer is learned on the file; the large vocabulary only costs what it costs."""
    import bench_data

    from scripts.make_tiny_model import train_tokenizer

    records = json.loads((ROOT / args.prompts).read_text(encoding="utf-8"))
    tokenizer = train_tokenizer([record["instruction"] + record["output"] for record in records], 2500)
    shape = {"num_hidden_layers": args.layers, "vocab_size": len(tokenizer)} | SHAPES[name]
    bench_data.build_model(folder / "model", tokenizer, shape, std=0.2)
    drawn = random.Random(0)
    stops = sorted({2, 3, *drawn.sample(range(300, shape["vocab_size"]), shape["vocab_size"] // 48)})
    settings = {"bos_token_id": 1, "eos_token_id": stops, "pad_token_id": 2, "do_sample": False}
    (folder / "model" / "generation_config.json").write_text(json.dumps(settings))
    chosen = random.Random(42).sample(records * -(-args.count // len(records)), args.count)
    prompts = ["\n".join(filter(None, (record["instruction"], record["input"]))) for record in chosen]
    lines = [json.dumps({"prompt": prompt}, ensure_ascii=False) + "\n" for prompt in prompts]
    (folder / "prompts.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


def run_worker(args: argparse.Namespace, engine: str, folder: Path) -> dict[str, Any]:
    """Measure one engine in a process of its own."""
    python = str(Path(args.vllm_python).absolute()) if engine in ("vllm", "server") else sys.executable
    numbers = ("few", "max_new_tokens", "batch_size")
    flags = [word for name in numbers for word in (f"--{name.replace('_', '-')}", str(getattr(args, name)))]
    command = [python, __file__, "--worker", engine, "--folder", str(folder), *flags]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise SystemExit(f"{ENGINES[engine]} 没有跑完：\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def work(args: argparse.Namespace) -> dict[str, Any]:
    """Answer the prompts with one engine; return rates, time to the first token, and the ids by row."""
    from Firefly.component.inference import read_requests

    requests = read_requests(Path(args.folder) / "prompts.jsonl")
    if args.worker == "one":
        requests = requests[: args.few]
    with ways(args) as (answer, stream):
        list(answer(requests[: args.batch_size if args.worker != "one" else 2]))
        first = [time_to_first(stream, request) for request in requests[:10]]
        start = time.perf_counter()
        answers = {request.index: completion for request, completion in answer(requests)}
        seconds = time.perf_counter() - start
    return {
        "rows_per_second": len(requests) / seconds,
        "tokens_per_second": sum(c.completion_tokens for c in answers.values()) / seconds,
        "first_token_ms": statistics.median(first) * 1000 if first[0] is not None else None,
        "ids": {index: completion.ids for index, completion in answers.items()},
    }


def time_to_first(stream: Any, request: Any) -> float | None:
    """Seconds until the first piece of text, or the whole answer when it is shorter than a piece."""
    if stream is None:
        return None
    start, first = time.perf_counter(), []
    stream(request, lambda piece: first.append(time.perf_counter()))
    return (first[0] if first else time.perf_counter()) - start


@contextmanager
def ways(args: argparse.Namespace) -> Iterator[tuple[Any, Any]]:
    """Yield (answer many, stream one or None) of the worker's engine."""
    model = str(Path(args.folder) / "model")
    flags = ["--model", model, "--temperature", "0", "--max-new-tokens", str(args.max_new_tokens)]
    flags += ["--batch-size", str(args.batch_size)]
    if args.worker in ("vllm", "server"):
        import inference_with_vLLM as script

        flags += ["--max-model-len", "2048"]
        if args.worker == "vllm":
            engine = script.load_engine(script.build_parser().parse_args([*flags, "--prompt", "x"]))
            yield engine.generate, engine.stream
            return
        with served(flags) as url:
            engine = script.load_engine(script.build_parser().parse_args(["--client", url, *flags[2:]]))
            yield engine.generate, engine.stream
        return
    import inference_with_transformers as script

    yield transformers_ways(args, script.build_parser().parse_args([*flags, "--prompt", "x", "--device", "cpu"]))


@contextmanager
def served(flags: list[str]) -> Iterator[str]:
    """Run inference_with_vLLM.py --serve; yield its URL."""
    command = [sys.executable, str(ROOT / "inference_with_vLLM.py"), "--serve", "--port", "0", *flags]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        yield server.stdout.readline().strip()
    finally:
        server.terminate()
        server.wait()


def transformers_ways(args: argparse.Namespace, flags: argparse.Namespace) -> tuple[Any, Any]:
    import torch

    from Firefly.component import generate
    from Firefly.component.session import open_session

    session = open_session(flags)
    model = generate.load_model(session, "cpu", torch.float32)
    size = 1 if args.worker == "one" else args.batch_size

    def in_order(requests: list[Any]) -> Iterator[tuple[Any, Any]]:
        for start in range(0, len(requests), size):
            batch = requests[start : start + size]
            yield from zip(batch, generate.generate_batch(model, session, batch), strict=True)

    def by_length(requests: list[Any]) -> Iterator[tuple[Any, Any]]:
        return generate.generate_window(model, session, requests, size)

    if args.worker == "static":
        plain = model.generate
        model.generate = lambda **kwargs: plain(**kwargs, cache_implementation="static", disable_compile=True)
    answer = {"one": in_order, "batched": in_order, "sorted": by_length, "static": by_length}.get(args.worker)
    if answer is None:
        return lambda requests: continuous(model, session, requests, args), None  # it has no streaming
    return answer, lambda request, emit: generate.stream_answer(model, session, request, emit)


def continuous(model: Any, session: Any, requests: list[Any], args: argparse.Namespace) -> Iterator[tuple[Any, Any]]:
    """transformers' own continuous batching over a paged cache; blocks must be counted by hand where no GPU is."""
    from transformers import GenerationConfig
    from transformers.generation.configuration_utils import ContinuousBatchingConfig

    prompts = [session.encode(request) for request in requests]
    longest = max(map(len, prompts)) + args.max_new_tokens
    outputs = model.generate_batch(
        prompts,
        generation_config=GenerationConfig(
            do_sample=False, max_new_tokens=args.max_new_tokens, eos_token_id=list(session.stop_ids), pad_token_id=2
        ),
        continuous_batching_config=ContinuousBatchingConfig(
            page_size=32,
            num_blocks=args.batch_size * -(-longest // 32),
            max_batch_tokens=512,
            max_requests_per_batch=args.batch_size,
        ),
    )
    for request, prompt, output in zip(requests, prompts, outputs.values(), strict=True):
        yield request, session.complete(prompt, output.generated_tokens)


def table(results: dict[str, dict[str, Any]]) -> str:
    """The Markdown table; the first engine is what the others are measured against."""
    base = next(iter(results.values()))
    lines = ["| 引擎 | 条/秒 | token/秒 | 倍数 | 首 token 毫秒 | 与首行相同 |", "| --- | --- | --- | --- | --- | --- |"]
    for name, result in results.items():
        shared = [index for index in base["ids"] if index in result["ids"]]
        same = sum(base["ids"][index] == result["ids"][index] for index in shared)
        same = "—" if name == "server" else f"{same}/{len(shared)}"
        first = "—" if result["first_token_ms"] is None else f"{result['first_token_ms']:.0f}"
        ratio = result["tokens_per_second"] / base["tokens_per_second"]
        cells = [f"{result['rows_per_second']:.2f}", f"{result['tokens_per_second']:.0f}", f"{ratio:.1f}", first]
        lines.append("| " + " | ".join([ENGINES[name], *cells, same]) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    sys.exit(main())
