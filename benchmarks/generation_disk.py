"""Case h of bench_generation.py: the disk is full, the folder is not writable, another run has the output.

As root on Linux a small tmpfs is the disk; elsewhere a limit on the size of files stands for it, and the case that
needs a disk full from the start is left out.
"""

import contextlib
import os
import resource
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.generation_runs import FaultServer, Job, names

LATENCY_S = 0.05
Outcome = tuple[str, str, str, bool | None]


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[bool]:
    """Mount ``size`` bytes of memory on ``folder``; False when we may not."""
    folder.mkdir(parents=True, exist_ok=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True)
    try:
        yield mounted.returncode == 0
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def full_from_the_start(folder: Path, script: Path) -> Iterator[Outcome]:
    with FaultServer(latency_s=LATENCY_S) as server, small_disk(folder / "disk", "64k") as mounted:
        if not mounted:
            yield "磁盘一开始就满", "没有权限挂载小磁盘，略过", "", None
            return
        job = Job(folder, server.url, names(100), out=folder / "disk" / "train.jsonl", script=script)
        with contextlib.suppress(OSError), (folder / "disk" / "filler").open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
        done = job.run()
    measured = f"退出码 {done.status}，请求 {len(server.asked)} 个：{first(done.errors)}"
    yield "磁盘一开始就满", measured, "退出码 2，没有请求", said_once(done) and not server.asked


def full_in_mid_run(folder: Path, script: Path) -> Iterator[Outcome]:
    """The disk fills up; then there is room again, and the same command goes on."""
    with FaultServer(latency_s=LATENCY_S) as server, small_disk(folder / "disk", "3m") as mounted:
        job = Job(folder, server.url, names(300), concurrency=20, out=folder / "disk" / "train.jsonl", script=script)
        if mounted:
            done = job.run()
            kept, asked = len(job.kept()), len(server.asked)
            subprocess.run(["mount", "-o", "remount,size=64m", str(folder / "disk")], check=True)
        else:
            done = job.run(preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, 1_500_000)))
            kept, asked = len(job.kept()), len(server.asked)
        resumed, rows, lost = job.run(), job.rows(), job.lost()
    repeated = len(server.asked) - len(job.topics)
    measured = f"退出码 {done.status}，问了 {asked} 个，存下 {kept} 个；腾出空间后续跑退出码 {resumed.status}，重复 {repeated} 个"
    measured += f"，残行 {rows.broken}，重行 {rows.doubled}，没凑齐 {lost}：{first(done.errors)}"
    holds = said_once(done) and repeated <= job.concurrency
    holds &= not (resumed.status or rows.broken or rows.doubled or lost)
    yield "磁盘中途满" + ("" if mounted else "（限制文件大小）"), measured, "一句话停下；重复 ≤ 在途的 20；不丢", holds


def not_writable(folder: Path, script: Path) -> Iterator[Outcome]:
    with FaultServer(latency_s=LATENCY_S) as server, small_disk(folder / "disk", "1m") as mounted:
        if mounted:
            subprocess.run(["mount", "-o", "remount,ro", str(folder / "disk")], check=True)
        else:
            (folder / "disk").chmod(0o555)
        for out in (folder / "disk" / "train.jsonl", Path("/proc/train.jsonl")):
            done = Job(folder, server.url, names(100), out=out, script=script).run()
            place = "输出文件夹只读" if out.parent.name == "disk" else "输出在 /proc"
            measured = f"退出码 {done.status}，请求 {len(server.asked)} 个：{first(done.errors)}"
            yield place, measured, "退出码 2，没有请求", said_once(done) and not server.asked
        (folder / "disk").chmod(0o755) if not mounted else None


def locked(folder: Path, script: Path) -> Iterator[Outcome]:
    with FaultServer(latency_s=LATENCY_S) as server:
        one = Job(folder, server.url, names(400), concurrency=5, script=script)
        process = one.start()
        deadline = time.monotonic() + 20
        while not server.asked and time.monotonic() < deadline:
            time.sleep(0.01)
        with FaultServer() as other:
            two = Job(folder / "two", other.url, names(400), out=one.out, script=script)
            second = two.run()
        done, lost = one.finish(process), one.lost()
    measured = f"第二个退出码 {second.status}，请求 {len(other.asked)} 个：{first(second.errors)} 第一个照常完成，没凑齐 {lost}"
    holds = said_once(second) and not (other.asked or lost or done.status)
    yield "另一个运行占着输出", measured, "退出码 2，没有请求", holds


def said_once(done) -> bool:
    return done.status == 2 and len(done.errors) == 1


def first(lines: list[str]) -> str:
    return lines[0][:160].replace(os.sep.join(("", "tmp", "")), "…/") if lines else "什么也没说"
