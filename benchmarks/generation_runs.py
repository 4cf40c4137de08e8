"""What the benchmarks of generation share: a run of gen_SFT_data.py as a process, what it cost, what it left.

with FaultServer(plan, latency_s=0.2) as server:
    job = Job(folder, server.url, names(1000))
    done = job.run()                    exit code, seconds, CPU, memory, what it said
    left = job.rows()                   rows by topic; broken and doubled ones
"""

import json
import os
import runpy
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
faults = runpy.run_path(str(ROOT / "tests/LLM_data_gen/fault_server.py"))
FaultServer, fault_plan, completion = faults["FaultServer"], faults["answers"].fault_plan, faults["completion"]

PATIENCE_S = 900  # a run that takes longer hangs


@dataclass(frozen=True)
class Run:
    """How a process ended. ``status`` as a shell tells it; seconds of wall and CPU; megabytes."""

    status: int
    wall_s: float
    cpu_s: float
    peak_mb: float
    said: str

    @property
    def errors(self) -> list[str]:
        return [line for line in self.said.splitlines() if line.startswith(("错误", "Traceback"))]


@dataclass(frozen=True)
class Rows:
    by_topic: Counter
    broken: int
    doubled: int


@dataclass
class Job:
    """One command line, started as often as it takes."""

    folder: Path
    url: str
    topics: list[str]
    n: int = 6
    concurrency: int = 50
    flags: list[str] = field(default_factory=list)
    script: Path = ROOT / "gen_SFT_data.py"
    out: Path | None = None

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.out = self.out or self.folder / "train.jsonl"
        (self.folder / "topics.txt").write_text("".join(f"{topic}\n" for topic in self.topics), encoding="utf-8")

    @property
    def journal(self) -> Path:
        return self.out.with_name(f"{self.out.stem}_journal.jsonl")

    def start(self, **popen: Any) -> subprocess.Popen:
        command = [sys.executable, str(self.script), "--base-url", self.url, "--out", str(self.out)]
        command += ["--topics-file", str(self.folder / "topics.txt"), "--n-per-topic", str(self.n)]
        command += ["--max-concurrency", str(self.concurrency), *self.flags]
        with (self.folder / "said.txt").open("wb") as said:
            return start(command, said, cwd=self.folder, **popen)

    def run(self, **popen: Any) -> Run:
        return self.finish(self.start(**popen))

    def finish(self, process: subprocess.Popen) -> Run:
        return finish(process, self.folder / "said.txt")

    def rows(self) -> Rows:
        """Read the output as the next step would, line by line."""
        records, broken = read_lines(self.out)
        texts = Counter(record["text"] for record in records)
        return Rows(Counter(record["topic"] for record in records), broken, sum(texts.values()) - len(texts))

    def kept(self) -> set[str]:
        """Return the topics with an answer on disk: in the journal, or in the output of a version without one."""
        records, _ = read_lines(self.journal if self.journal.exists() else self.out)
        return {record["topic"] for record in records if record.get("topic")}

    def lost(self) -> int:
        """Return how many topics have fewer rows, or more, than they were ordered."""
        by_topic = self.rows().by_topic
        return sum(by_topic[topic] != self.n for topic in self.topics)


def floor(job: Job) -> Run:
    """The same requests, answers thrown away: what aiohttp alone costs here and now."""
    said = job.folder / "floor.txt"
    command = [sys.executable, str(ROOT / "benchmarks/generation_floor.py"), job.url, str(job.folder / "topics.txt")]
    command += ["--concurrency", str(job.concurrency)]
    with said.open("wb") as file:
        process = start(command, file)
    return finish(process, said)


def start(command: list[str], said: Any, **popen: Any) -> subprocess.Popen:
    environment = {**os.environ, "OPENAI_API_KEY": "sk-benchmark-0123456789"}
    process = subprocess.Popen(command, stdout=said, stderr=said, env=environment, **popen)
    process.started = time.monotonic()
    return process


def finish(process: subprocess.Popen, said: Path) -> Run:
    """Wait for the end of ``process``, within PATIENCE_S."""
    peak_kb = 0
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
        wall_s = time.monotonic() - process.started
        peak_kb = max(peak_kb, high_water_kb(process.pid))
        if wall_s > PATIENCE_S:
            process.kill()
        time.sleep(0.01)
    wall_s = time.monotonic() - process.started
    process.returncode = os.waitstatus_to_exitcode(status)
    cpu_s = usage.ru_utime + usage.ru_stime
    return Run(process.returncode, wall_s, cpu_s, peak_kb / 1024, said.read_text("utf-8", errors="replace"))


def high_water_kb(pid: int) -> int:
    """Return the most memory a living process has had. (ru_maxrss counts the parent's too, from before the exec.)"""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)


def read_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Return the records of a JSONL file, and how many lines are none; a last line without its end is one of these."""
    records, broken = [], 0
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else []:
        try:
            records.append(json.loads(line))
            broken += not line.endswith(b"\n")
        except ValueError:
            broken += 1
    return records, broken


def names(count: int) -> list[str]:
    return [f"哈工大学习生活主题{i}" for i in range(count)]


def table_row(*cells: Any) -> None:
    print("| " + " | ".join(str(cell).replace("|", "/").replace("\n", " ") for cell in cells) + " |", flush=True)
