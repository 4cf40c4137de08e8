"""Try gen_SFT_data.py on a provider's good and bad days; print a Markdown table of what was measured and promised.

    python benchmarks/bench_generation.py                   all cases, about 15 minutes
    python benchmarks/bench_generation.py --cases a,b,f     some; --help names them

Whole processes against a local server on real sockets (tests/LLM_data_gen/fault_server.py). Exits 1 when a promise is
broken. Cases e and g wait in real time: --outage-s and --slow-s say how long.
"""

import argparse
import math
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.generation_runs import FaultServer, Job, fault_plan, floor, names, table_row  # noqa: E402

LATENCY_S = 0.2
Outcome = tuple[str, str, str, bool | None]  # what was done, measured, promised; whether the promise holds


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="测量 gen_SFT_data.py 在服务正常与出错时的表现（Markdown 表）。案例："
        + "；".join(f"{key} {run.__doc__.splitlines()[0].rstrip('.')}" for key, run in CASES.items()),
    )
    parser.add_argument("--cases", default=",".join(CASES), help="测哪些，逗号分隔，默认 %(default)s")
    parser.add_argument("--repeats", type=int, default=3, help="案例 a、b 各测几遍，默认 %(default)s")
    parser.add_argument("--kills", type=int, default=20, help="案例 c 杀几次，默认 %(default)s")
    parser.add_argument("--outage-s", type=float, default=60, metavar="秒", help="案例 e 中断多久，默认 %(default)g")
    parser.add_argument(
        "--slow-s", type=float, default=20, metavar="秒", help="案例 g 每个回答等多久，默认 %(default)g"
    )
    parser.add_argument("--seed", type=int, default=0, help="随机种子，默认 %(default)s")
    parser.add_argument("--script", type=Path, default=ROOT / "gen_SFT_data.py", help="测另一个版本的 gen_SFT_data.py")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    wanted = [key for key in args.cases.split(",") if key]
    if unknown := set(wanted) - CASES.keys():
        print(f"没有案例 {'、'.join(sorted(unknown))}；有 {'、'.join(CASES)}。", file=sys.stderr)
        return 2
    print("| 案例 | 条件 | 测得 | 要求 | 做到 |\n| --- | --- | --- | --- | --- |")
    good = True
    for key in wanted:
        with tempfile.TemporaryDirectory() as folder:
            load, loop_ms = os.getloadavg()[0], time_a_loop()
            for what, measured, promised, holds in CASES[key](args, Path(folder)):
                table_row(key, what, measured, promised, {True: "是", False: "**否**", None: "—"}[holds])
                good &= holds is not False
            print(f"案例 {key} 开始时一分钟平均负载 {load:.1f}，一百万次加法 {loop_ms:.0f} 毫秒", file=sys.stderr)
    return 0 if good else 1


def speed(args: argparse.Namespace, folder: Path) -> Iterator[Outcome]:
    """速度：1,000 个主题 × 6，延迟 200 毫秒，并发 50、200、500；10,000 个主题的内存."""
    orders = [(1000, 50, 12), (1000, 200, 12), (1000, 500, 12), (10000, 500, 12), (1000, 200, 600)]
    for topics, concurrency, pieces in orders:
        runs, floors = [], []
        for repeat in range(args.repeats if topics == 1000 else 1):
            with FaultServer(latency_s=LATENCY_S, pieces=pieces) as server:
                job = Job(folder / f"{topics}-{concurrency}-{pieces}-{repeat}", server.url, names(topics))
                job.concurrency, job.script = concurrency, args.script
                runs.append((job.run(), job.lost(), len(server.asked)))
                floors.append(floor(job))
        done = [run for run, _, _ in runs]
        wall, peak = statistics.median(run.wall_s for run in done), max(run.peak_mb for run in done)
        cpu_ms = statistics.median(run.cpu_s / asked * 1000 for run, _, asked in runs)
        ideal = math.ceil(topics / concurrency) * LATENCY_S
        whole = all(not lost and run.status == 0 and asked == topics for run, lost, asked in runs)
        measured = (
            f"{wall:.2f} 秒（最快 {min(r.wall_s for r in done):.2f}），{cpu_ms:.2f} 毫秒 CPU/请求，峰值 {peak:.0f} MB；"
            f"只收发 {statistics.median(run.wall_s for run in floors):.2f} 秒，"
            f"{statistics.median(run.cpu_s for run in floors) / topics * 1000:.2f} 毫秒"
        )
        promised, holds = f"理想 {ideal:.1f} 秒；≤ {ideal * 1.1 + 1:.2f} 秒，< 1 毫秒", None
        if topics == 10000:
            promised, holds = f"理想 {ideal:.1f} 秒；< 150 MB", peak < 150
        elif pieces == 12:
            holds = wall <= ideal * 1.1 + 1 and cpu_ms < 1
        yield (
            f"{topics:,} 主题，并发 {concurrency}，每个回答 {pieces} 段",
            measured + ("" if whole else "；没有完成"),
            promised if pieces == 12 else "（看逐词流式的开销）",
            holds and whole if holds is not None else whole or False,
        )


def streams(args: argparse.Namespace, folder: Path) -> Iterator[Outcome]:
    """逐词流式：64 个流同时，每个想 12,000 字再答，各分 1,500 段，逐段到."""
    n, pieces = 64, 1500
    plan = {"reasoning": "想一想再说，" * 2000, "pieces": pieces, "piece_delay_s": 0.01}
    with FaultServer(lambda *_: plan) as server:
        job = Job(folder, server.url, names(n), concurrency=n, flags=["--mode", "reasoner"], script=args.script)
        done, lost = job.run(), job.lost()
    each_us = done.cpu_s / (n * pieces * 2) * 1e6
    measured = f"没凑齐 {lost} 个，每段 {each_us:.0f} 微秒 CPU，峰值 {done.peak_mb:.0f} MB，{done.wall_s:.0f} 秒"
    yield f"{n} 个流，每个 {pieces * 2:,} 段", measured, "不丢", not lost and done.status == 0


def bad_day(args: argparse.Namespace, folder: Path) -> Iterator[Outcome]:
    """故障：10 % 429，5 % 500，3 % 断线，5 % 内容损坏."""
    for seed in range(args.seed, args.seed + args.repeats):
        with FaultServer(fault_plan(seed), latency_s=LATENCY_S) as server:
            job = Job(folder / str(seed), server.url, names(1000), script=args.script)
            done, lost = job.run(), job.lost()
        each = len(server.asked) / len(job.topics)
        measured = f"没凑齐 {lost} 个，每个主题 {each:.3f} 次请求，{done.wall_s:.1f} 秒，退出码 {done.status}"
        yield f"种子 {seed}", measured, "不丢主题；≤ 1.3 次", not lost and each <= 1.3 and done.status == 0


def killed(args: argparse.Namespace, folder: Path) -> Iterator[Outcome]:
    """kill -9：随机时刻，每次用同一条命令继续."""
    rng, kills, most, unused = random.Random(args.seed), 0, 0, 0
    with FaultServer(latency_s=LATENCY_S) as server:
        job = Job(folder, server.url, names(1000), concurrency=20, script=args.script)
        while True:
            first, process = len(server.asked), job.start()
            if kills == args.kills:
                done = job.finish(process)
                break
            if rng.random() < 0.8:  # else it dies while it starts, or reads what is there
                wait_until(lambda since=first, p=process: len(server.asked) > since or p.poll() is not None)
            time.sleep(rng.uniform(0.0, 0.8))
            paid = list(server.answered)  # whole answers that the client has had time to read
            time.sleep(0.1)
            process.kill()
            process.wait()
            time.sleep(0.05)  # what it sent last arrives
            kills += process.returncode != 0
            kept = job.kept()
            most = max(most, sum(topic not in kept for topic, _ in server.asked[first:]))
            unused += sum(server.asked[number][0] not in kept for number in paid if number >= first)
        rows, lost = job.rows(), job.lost()
    repeated = len(server.asked) - len(job.topics)
    measured = (
        f"{len(server.asked):,} 次请求，需要 {len(job.topics):,}；重复 {repeated}，每次被杀最多丢在途的 {most} 个"
    )
    measured += f"；已收到而没用上的回答 {unused}；残行 {rows.broken}，重行 {rows.doubled}，没凑齐 {lost}"
    holds = most <= job.concurrency and not (unused or rows.broken or rows.doubled or lost or done.status)
    promised = f"每次重复 ≤ 在途的 {job.concurrency}；其余为 0"
    yield f"{kills} 次，1,000 主题，并发 {job.concurrency}", measured, promised, holds


def refused(args: argparse.Namespace, folder: Path) -> Iterator[Outcome]:
    """拒绝：401、402、404，一开始或中途."""
    for status in (401, 402, 404):
        for after in (0, 100):
            since: list[float] = []
            arrivals: list[float] = []

            def plan(number: int, topic: str, n: int, status=status, after=after, since=since, arrivals=arrivals):
                arrivals.append(time.monotonic())
                if number < after:
                    return None
                since.append(arrivals[-1])
                return {"status": status, "body": '{"error": {"message": "refused"}}', "delay_s": 0}

            with FaultServer(plan, latency_s=LATENCY_S) as server:
                job = Job(folder / f"{status}-{after}", server.url, names(300), script=args.script)
                stopped = job.run()
                behind = sum(at > since[0] for at in arrivals)
                late = sum(at > since[0] + 0.1 for at in arrivals)
                server.plan = lambda *_: None
                resumed = job.run()
                extra = len(server.asked) - len(job.topics) - len(since)
            tells = len(stopped.errors) == 1 and (status != 404 or server.models[0] in stopped.errors[0])
            holds = behind < job.concurrency and not (extra or job.lost() or resumed.status)
            measured = (
                f"此后还有 {behind} 个请求，0.1 秒后 {late} 个；退出码 {stopped.status}；续跑退出码 {resumed.status}"
            )
            measured += f"，多付 {extra} 个回答" + ("" if tells else "；没有用一句话说清")
            where = "从一开始" if not after else f"{after} 个请求之后"
            promised = f"< 在途的 {job.concurrency}；退出码 2；能续跑，不多付"
            yield f"{status} {where}", measured, promised, holds and tells and stopped.status == 2


def outage(args: argparse.Namespace, folder: Path) -> Iterator[Outcome]:
    """中断：中途一律 503."""
    times: list[float] = []

    def plan(number: int, topic: str, n: int):
        if number < 300 or (times and time.monotonic() > times[0] + args.outage_s):
            return None
        times.append(time.monotonic())
        return {"status": 503, "body": "down"}

    with FaultServer(plan, latency_s=LATENCY_S) as server:
        job = Job(folder, server.url, names(1000), script=args.script)
        done, lost = job.run(), job.lost()
    probes = sum(at > times[0] + 2 * LATENCY_S for at in times)
    after_s = done.wall_s - args.outage_s - len(server.asked) / job.concurrency * LATENCY_S
    measured = f"没凑齐 {lost} 个；在途的 {len(times) - probes} 个之后试探 {probes} 次；恢复后多等约 {after_s:.0f} 秒"
    holds = not lost and probes < 20 and done.status == 0
    yield f"503 持续 {args.outage_s:g} 秒，并发 50", measured, "不丢；试探 < 20 次", holds


def capped(args: argparse.Namespace, folder: Path) -> Iterator[Outcome]:
    """上限：服务最多同时处理 39 个，客户端要 200 个，没有 Retry-After."""
    for in_body in (False, True):
        levels: list[int] = []

        def plan(number: int, topic: str, n: int, levels=levels):
            levels.append(server._at_once + 1)

        with FaultServer(plan, latency_s=LATENCY_S, cap=39, cap_in_body=in_body) as server:
            job = Job(folder / str(in_body), server.url, names(2000), concurrency=200, script=args.script)
            done, lost = job.run(), job.lost()
        settled = statistics.mean(levels[len(levels) // 2 : len(levels) * 19 // 20])
        share = server.over_cap / len(server.asked)
        ideal = len(job.topics) / 39 * LATENCY_S
        measured = (
            f"429 占 {share:.1%}；后半程平均在途 {settled:.1f}；{done.wall_s:.1f} 秒（理想 {ideal:.1f}）；没凑齐 {lost}"
        )
        holds = share < 0.05 and settled > 0.85 * 39 and not lost and done.status == 0
        where = "上限写在 429 的正文里" if in_body else "429 什么也不说"
        yield f"{where}，2,000 主题", measured, "429 < 5 %；稳定在 39（> 85 %）", holds


def slow(args: argparse.Namespace, folder: Path) -> Iterator[Outcome]:
    """慢：回答很久才来，其间只有保持连接的空行."""
    interval_s = min(args.slow_s / 10, 10.0)
    plan = {"keep_alive": (round(args.slow_s / interval_s), interval_s), "delay_s": 0}
    idle_s = min(args.slow_s / 2, 300.0)
    with FaultServer(lambda *_: plan) as server:
        flags = ["--timeout-s", str(idle_s), "--max-tries", "1"]
        job = Job(folder, server.url, names(20), flags=flags, script=args.script)
        done, lost = job.run(), job.lost()
    measured = f"20 个主题 {len(server.asked)} 次请求，没凑齐 {lost}，{done.wall_s:.0f} 秒，退出码 {done.status}"
    holds = not lost and len(server.asked) == 20 and done.status == 0
    yield f"每个回答 {args.slow_s:g} 秒，--timeout-s {idle_s:g}", measured, "等到，只付一次", holds


def disk(args: argparse.Namespace, folder: Path) -> Iterator[Outcome]:
    """磁盘：满了、写不了、被占用."""
    import benchmarks.generation_disk as cases

    for case in (cases.full_from_the_start, cases.full_in_mid_run, cases.not_writable, cases.locked):
        yield from case(folder / case.__name__, args.script)


def by_chance(args: argparse.Namespace, folder: Path) -> Iterator[Outcome]:
    """429 的由来：随机拒绝，上限，每秒的配额，两样一起."""
    import benchmarks.generation_refusals as services

    for name, plan, cap, concurrency, topics in services.services():
        with FaultServer(plan, latency_s=LATENCY_S, cap=cap) as server:
            job = Job(
                folder / f"{name} {concurrency}", server.url, names(topics), concurrency=concurrency, script=args.script
            )
            done, lost = job.run(), job.lost()
            each = len(server.asked) / topics
        measured = f"{done.wall_s:.1f} 秒，每个主题 {each:.3f} 次请求，没凑齐 {lost}"
        yield f"{name}；{topics:,} 主题，并发 {concurrency}", measured, "不丢", not lost and done.status == 0


def time_a_loop() -> float:
    """Return the CPU milliseconds of a fixed piece of work: on a shared machine the same code takes twice as long at times."""
    started = time.process_time()
    sum(number + 1 for number in range(1_000_000))
    return (time.process_time() - started) * 1000


def wait_until(condition: Callable[[], bool], limit_s: float = 30) -> None:
    deadline = time.monotonic() + limit_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)


CASES = {
    "a": speed, "b": bad_day, "c": killed, "d": refused, "e": outage, "f": capped, "g": slow, "h": disk,
    "i": streams, "j": by_chance,
}  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
