"""Time gen_SFT_data.py as a whole process against a local server that answers after a fixed delay.

    python benchmarks/bench_generation.py --topics 1000 --n 6 --latency-ms 200 --max-concurrency 50

Prints one JSON line: wall seconds of the process, the ideal (waiting alone), CPU milliseconds a request, peak memory.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="测量 gen_SFT_data.py 整个进程的用时、CPU 与内存。")
    parser.add_argument("--topics", type=int, default=1000, help="主题数")
    parser.add_argument("--n", type=int, default=6, help="每个主题的条数")
    parser.add_argument("--latency-ms", type=float, default=200.0, help="服务每次回答的延迟")
    parser.add_argument("--max-concurrency", type=int, default=50, help="并发数")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    server = subprocess.Popen(
        [sys.executable, str(ROOT / "tests/LLM_data_gen/fault_server.py"), "--latency-ms", str(args.latency_ms)],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        url = server.stdout.readline().strip()
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(measure(args, url, Path(folder))))
    finally:
        server.terminate()
        server.wait()
    return 0


def measure(args: argparse.Namespace, url: str, folder: Path) -> dict[str, float]:
    """Run the script once and return the figures; AssertionError when it did not do the whole job."""
    topics, out = folder / "topics.txt", folder / "train.jsonl"
    topics.write_text("".join(f"哈工大学习生活主题{i}\n" for i in range(args.topics)), encoding="utf-8")
    command = [sys.executable, str(ROOT / "gen_SFT_data.py"), "--base-url", url, "--topics-file", str(topics)]
    command += ["--out", str(out), "--n-per-topic", str(args.n), "--max-concurrency", str(args.max_concurrency)]
    started = time.monotonic()
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.monotonic() - started
    report = json.loads((folder / "train_gen_report.json").read_text(encoding="utf-8"))
    assert status == 0
    assert out.read_bytes().count(b"\n") == args.topics * args.n
    requests = report["run"]["requests"]
    return {
        "topics": args.topics,
        "requests": requests,
        "concurrency": args.max_concurrency,
        "wall_s": round(wall, 2),
        "ideal_s": round(math.ceil(args.topics / args.max_concurrency) * args.latency_ms / 1000, 2),
        "cpu_ms_per_request": round((usage.ru_utime + usage.ru_stime) / requests * 1000, 2),
        "peak_mb": round(usage.ru_maxrss / 1024, 1),
    }


if __name__ == "__main__":
    sys.exit(main())
