"""Time and memory of whole runs of prep_sft_firefly_hit.py, every filter and --near-dup on: a Markdown table.

python benchmarks/bench_prep.py --corpus corpus.json --workers 1 2 --repeat 3

CPU is that of all processes together. Memory is the largest sum of their proportional set sizes, looked at ten times a
second. The first run only compiles and is not counted; of the others the one with the least CPU is shown.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FLAGS = ["--near-dup", "--drop-pii", "--log", "ERROR"]


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="整条 prep_sft_firefly_hit.py 命令的时间与内存（Markdown 表）。")
    parser.add_argument("--corpus", nargs="+", required=True, metavar="FILE", help="make_corpus.py 造的数据，可给多个")
    parser.add_argument("--workers", type=int, nargs="+", default=[1], metavar="N", help="进程数，可给多个（默认 1）")
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="各跑几次，取 CPU 最少的（默认 3）")
    parser.add_argument("--also", nargs="*", default=[], metavar="FLAG", help="另加的参数，写成 near-dup-threshold=6")
    return parser


def family(pid: int) -> list[int]:
    """A process and all it started."""
    try:
        tasks = os.listdir(f"/proc/{pid}/task")
        children = [int(c) for task in tasks for c in Path(f"/proc/{pid}/task/{task}/children").read_text().split()]
    except OSError:
        return []
    return [pid, *(member for child in children for member in family(child))]


def memory_of(pid: int) -> int:
    """Proportional set size, in kB; 0 for a process that has just ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


def measure(corpus: str, out: Path, workers: int, also: list[str]) -> dict[str, float]:
    more = [part for flag in also for part in f"--{flag}".split("=", 1)]
    command = [sys.executable, str(ROOT / "prep_sft_firefly_hit.py"), "--firefly-json", corpus, "--out", str(out)]
    before, started, peak = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic(), 0
    process = subprocess.Popen([*command, "--overwrite", "--workers", str(workers), *FLAGS, *more])
    while process.poll() is None:
        peak = max(peak, sum(map(memory_of, family(process.pid))))
        time.sleep(0.1)
    wall, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode:
        sys.exit(process.returncode)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall": wall, "cpu": cpu, "mb": peak / 1024}


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    with tempfile.TemporaryDirectory(dir=Path(args.corpus[0]).resolve().parent) as folder:
        out = Path(folder) / "mix.jsonl"
        small = Path(folder) / "small.jsonl"
        small.write_text('{"instruction": "短", "input": "", "output": "短"}\n' * 9)
        measure(str(small), out, 1, ["no-filter", *args.also])
        print("| 数据 | 条数 | 保留 | 进程 | 墙钟 s | CPU s | CPU 微秒/条 | 内存峰值 MB |")
        print("| --- | --: | --: | --: | --: | --: | --: | --: |", flush=True)
        for corpus in args.corpus:
            for workers in args.workers:
                runs = [measure(corpus, out, workers, args.also) for _ in range(args.repeat)]
                best = min(runs, key=lambda run: run["cpu"])
                info = json.loads((Path(folder) / "mix_dataset_info.json").read_text(encoding="utf-8"))
                counts = info["counts"]["firefly"]
                per_record = best["cpu"] / counts["read"] * 1e6
                print(
                    f"| {Path(corpus).name} | {counts['read']:,} | {counts['kept']:,} | {workers} | {best['wall']:.1f} | "
                    f"{best['cpu']:.1f} | {per_record:.1f} | {best['mb']:.0f} |",
                    flush=True,
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
