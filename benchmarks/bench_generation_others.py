"""Generation by other tools beside ours, in one run: the same server, the same 1,000 requests, with faults and without.

    python benchmarks/bench_generation_others.py --openai VENV/bin/python --curator VENV/bin/python

Every contender is a process of its own (generation_others.py) in the Python that is given for it; pip installs
openai[aiohttp] and bespokelabs-curator. Its command is started again, as people would, until every topic is whole, at
most four times. The third round kills each with -9 when half of the topics are answered, and starts it again. Ours
streams; the others ask for whole answers, as they do by default. Prints a Markdown table.
"""

import argparse
import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.generation_runs import FaultServer, Job, fault_plan, names, read_lines, start, table_row  # noqa: E402

LATENCY_S, N, STARTS = 0.2, 6, 4
ROUNDS = {"good": "无故障", "bad": "429、500、断线、坏回答", "kill": "半途 kill -9 一次"}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="与别的生成工具并列：用时、CPU、丢的主题、付的回答（Markdown 表）。")
    parser.add_argument("--topics", type=int, default=1000, help="主题数，默认 %(default)s")
    parser.add_argument("--concurrency", type=int, default=50, help="并发数，默认 %(default)s")
    parser.add_argument("--openai", metavar="PYTHON", help="装有 openai[aiohttp] 的 Python（默认不测）")
    parser.add_argument("--curator", metavar="PYTHON", help="装有 bespokelabs-curator 的 Python（默认不测）")
    parser.add_argument(
        "--rounds", default=",".join(ROUNDS), help="good 无故障，bad 有故障，kill 杀一次；默认 %(default)s"
    )
    return parser


@dataclass
class Rival(Job):
    """A Job of another tool, which gets the messages that ours sends."""

    name: str = ""
    python: str = ""

    def start(self, **popen: Any) -> Any:
        from LLM_data_gen.prompt import build_messages

        requests = self.folder / "requests.jsonl"
        with requests.open("w", encoding="utf-8") as file:
            for topic in self.topics:
                row = {"topic": topic, "messages": build_messages(topic, self.n)}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        command = [self.python, str(ROOT / "benchmarks" / "generation_others.py"), self.name, self.url]
        with (self.folder / "said.txt").open("ab") as said:
            return start(
                [*command, str(requests), str(self.out), str(self.concurrency)], said, cwd=self.folder, **popen
            )

    def lost(self) -> int:
        records, _ = read_lines(self.out)
        whole = {record["topic"] for record in records if len(record["samples"]) == self.n}
        return sum(topic not in whole for topic in self.topics)


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    pythons = {"gen_SFT_data.py": sys.executable, "AsyncOpenAI": args.openai, "AsyncOpenAI + aiohttp": args.openai}
    pythons |= dict.fromkeys(("bespokelabs-curator", "bespokelabs-curator, not all required"), args.curator)
    print(f"{args.topics:,} 个主题 × {N}，延迟 {LATENCY_S * 1000:g} 毫秒，并发 {args.concurrency}\n")
    print("| 条件 | 工具 | 启动几次 | 秒 | CPU 秒 | 峰值 MB | 请求 | 付钱的回答 | 第一次后没凑齐 | 最后没凑齐 |")
    print("| --- | --- | --: | --: | --: | --: | --: | --: | --: | --: |", flush=True)
    for kind in args.rounds.split(","):
        for name, python in pythons.items():
            if python:
                table_row(ROUNDS[kind], name, *measure(kind, name, python, args))
    return 0


def measure(kind: str, name: str, python: str, args: argparse.Namespace) -> list[Any]:
    """Run one contender until it is done; return the cells of its row."""
    plan = fault_plan(0) if kind == "bad" else lambda *_: None
    with tempfile.TemporaryDirectory() as folder, FaultServer(plan, latency_s=LATENCY_S) as server:
        job = (Path(folder), server.url, names(args.topics), N, args.concurrency)
        job = Job(*job) if name == "gen_SFT_data.py" else Rival(*job, name=name, python=python)
        killed = kind == "kill" and kill_half_way(job, server)
        runs, lost = [job.run()], [job.lost()]
        while lost[-1] and len(runs) < STARTS:
            runs.append(job.run())
            lost.append(job.lost())
        if lost[-1]:
            print(f"{name}：{runs[-1].said[-600:]}", file=sys.stderr)
    seconds, cpu, peak = sum(r.wall_s for r in runs), sum(r.cpu_s for r in runs), max(r.peak_mb for r in runs)
    figures = [len(runs) + bool(killed), f"{seconds:.1f}", f"{cpu:.1f}", f"{peak:.0f}"]
    return [*figures, len(server.asked), len(server.answered), lost[0], lost[-1]]


def kill_half_way(job: Job, server: Any) -> bool:
    """Kill the first start when half of the topics are answered; its seconds are in no figure."""
    process = job.start()
    while len(server.answered) < len(job.topics) // 2 and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.wait()
    time.sleep(0.3)  # what it sent last is answered
    return True


if __name__ == "__main__":
    sys.exit(main())
