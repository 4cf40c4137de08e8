"""Have a teacher model write SFT samples, topic by topic, through an OpenAI-compatible API; write HIT ChatML JSONL.

    python gen_SFT_data.py --api-key sk-... --topics-file LLM_data_gen/topics.txt --out data/raw/hit/train.jsonl

The output says what is done: started again, with the same command, the script asks only for what is missing.
"""

import argparse
import asyncio
import json
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

from sft_data.errors import UserError, exit_cleanly

# For those who would rather edit the script: a flag wins over these, and these win over the environment and .env.
API_KEY_CODE = ""
BASE_URL_CODE = ""

HERE = Path(__file__).resolve().parent
MOST_PER_REQUEST = 8  # samples; longer answers meet the caps on output and are cut off
GRACE_S = 60  # when the run must stop, answers in flight are waited for so long: they are paid for


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="按主题请教师模型写中文微调数据，逐条检查，写成 HIT ChatML JSONL；中断后用同一条命令继续，只补缺的。",
    )

    def add(flag: str, help: str, **options) -> None:
        shown = "" if options.get("default") is None else "（默认 %(default)s）"
        parser.add_argument(flag, help=help + shown, **options)

    add("--api-key", metavar="KEY", help="API 密钥；不给则依次看脚本里的 API_KEY_CODE、环境变量 OPENAI_API_KEY、.env")
    add("--base-url", metavar="URL", help="API 地址，次序同上（OPENAI_BASE_URL）；都没有时用 https://api.deepseek.com")
    add("--model", default="deepseek-chat", help="教师模型的名称")
    add("--mode", choices=["chat", "reasoner"], default="chat", help="reasoner 打开思考，chat 关闭")
    add("--out", type=Path, default=Path("data/raw/hit/train.jsonl"), help="输出的 JSONL，只追加，不覆盖")
    add("--topics-file", type=Path, default=HERE / "LLM_data_gen/topics.txt", help="主题文件，一行一个")
    add("--n-per-topic", type=int, default=6, metavar="N", help="每个主题要多少条")
    add("--max-concurrency", type=int, default=50, metavar="N", help="同时进行的请求数上限；服务说忙时自动降低")
    add("--temperature", type=float, default=0.8, help="采样温度")
    add("--max-tokens", type=int, metavar="N", help="一次回答的 token 上限；不给则按条数与模式估算，0 表示不发送这一项")
    add("--timeout-s", type=float, default=300.0, metavar="秒", help="一次请求的总时限")
    add("--max-tries", type=int, default=6, metavar="N", help="一次请求最多试几次（服务整体中断时不计次数）")
    add("--max-rounds", type=int, default=4, metavar="N", help="一个主题的回答有缺或不合格时，最多问几轮")
    add("--retry-wait-s", type=float, default=1.0, metavar="秒", help="第一次重试前等多久，之后逐次加倍")
    add("--max-outage-s", type=float, default=600.0, metavar="秒", help="服务连续中断多久后停止运行")
    return parser


@dataclass
class Tally:
    """What this run did with the answers. returned = accepted + sum(rejected.values())."""

    returned: int = 0
    accepted: int = 0
    rejected: Counter = field(default_factory=Counter)
    malformed_answers: int = 0
    topics_done: int = 0
    failed: dict[str, str] = field(default_factory=dict)


def say(message: str) -> None:
    """Print to stderr, above the progress bar if there is one."""
    from tqdm import tqdm

    tqdm.write(message, file=sys.stderr)


@exit_cleanly
def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    check_args(args)
    from LLM_data_gen.output import open_output
    from LLM_data_gen.settings import resolve_teacher
    from LLM_data_gen.topics import read_topics

    topics = read_topics(args.topics_file, say)
    with open_output(args.out, say) as output:
        todo = [topic for topic in topics if len(output.questions.get(topic, ())) < args.n_per_topic]
        if not todo:
            say(f"{len(topics)} 个主题都已完成，共 {len(output)} 条，没有发出请求：{args.out}")
            write_failed_topics(args.out, output, {}, args.n_per_topic)
            return 0
        if len(todo) < len(topics):
            say(f"继续上次的运行：{len(topics) - len(todo)} 个主题已完成，还差 {len(todo)} 个。")
        constants = (API_KEY_CODE, BASE_URL_CODE)
        teacher = resolve_teacher(args.api_key, args.base_url, args.model, args.mode, constants, HERE, say)
        tally, usage, started, stopped = Tally(), {}, time.monotonic(), "中断"
        try:
            asyncio.run(generate(args, teacher, output, todo, len(topics), tally, usage))
            stopped = None
        except UserError as error:
            stopped = str(error)
            raise
        finally:
            seconds = time.monotonic() - started
            failed_file = write_failed_topics(args.out, output, tally.failed, args.n_per_topic)
            report_file = write_report(args, teacher, output, topics, tally, usage, seconds, stopped)
            summary = f"主题 {len(topics)} 个，本次完成 {tally.topics_done}，失败 {len(tally.failed)}；"
            say(f"{summary}样本新增 {tally.accepted} 条，共 {len(output)} 条：{args.out}\n报告：{report_file}")
    if tally.failed:
        say(f"{len(tally.failed)} 个主题没有凑齐，列在 {failed_file}；再运行一次会只问它们缺的部分。")
    return 1 if tally.failed else 0


def check_args(args: argparse.Namespace) -> None:
    """Raise UserError for a number that makes no sense, before anything is read or spent."""
    at_least = {"n_per_topic": 1, "max_concurrency": 1, "max_tries": 1, "max_rounds": 1, "max_tokens": 0}
    at_least |= {"timeout_s": 0.001, "retry_wait_s": 0, "max_outage_s": 0, "temperature": 0}
    for name, least in at_least.items():
        value = getattr(args, name)
        if value is not None and not value >= least:
            raise UserError(f"--{name.replace('_', '-')} {value} 太小，至少为 {least}；请改正后重试。")


async def generate(args, teacher, output, todo, n_topics, tally: Tally, usage: dict) -> None:
    """Fill all topics, ``max_concurrency`` at a time. On an error that stops the run, answers in flight are kept."""
    from tqdm import tqdm

    from LLM_data_gen.client import Client, Settings, Stopped

    names = ("temperature", "max_concurrency", "timeout_s", "max_tries", "retry_wait_s", "max_outage_s")
    settings = Settings(**{name: getattr(args, name) for name in names})
    queue = iter(todo)
    bar = tqdm(total=n_topics, initial=n_topics - len(todo), unit="主题", desc="生成", disable=None, dynamic_ncols=True)

    async def worker() -> None:
        for topic in queue:
            try:
                await fill_topic(client, output, topic, args, tally)
            except Stopped:
                return
            bar.set_postfix_str(
                f"样本 {len(output)} 失败 {len(tally.failed)} 请求 {client.usage.requests}", refresh=False
            )
            bar.update()

    with bar:
        async with Client(teacher, settings, say) as client:
            workers = [asyncio.create_task(worker()) for _ in range(min(args.max_concurrency, len(todo)))]
            try:
                done, pending = await asyncio.wait(workers, return_when=asyncio.FIRST_EXCEPTION)
                if pending:
                    client.gate.stop()
                    say(f"停止：不再发新请求，等在途的 {client.gate.in_flight} 个收尾，最多 {GRACE_S} 秒。")
                    await asyncio.wait(pending, timeout=GRACE_S)
                for task in done:
                    task.result()
            finally:
                for task in workers:
                    task.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
                usage.update(asdict(client.usage))


async def fill_topic(client, output, topic: str, args, tally: Tally) -> None:
    """Ask for what the topic misses until it has all or the rounds are used up; each answer is written as it comes."""
    from LLM_data_gen.client import TriesUsedUp
    from LLM_data_gen.prompt import build_messages, size_of_answer
    from LLM_data_gen.validation import parse_samples

    rounds = args.max_rounds + (args.n_per_topic - 1) // MOST_PER_REQUEST
    questions = output.questions[topic]
    for _ in range(rounds):
        asked = min(args.n_per_topic - len(questions), MOST_PER_REQUEST)
        max_tokens = (
            size_of_answer(asked, bool(client.teacher.thinking)) if args.max_tokens is None else args.max_tokens
        )
        try:
            answer = await client.ask(build_messages(topic, asked, questions), max_tokens)
        except TriesUsedUp as error:
            tally.failed[topic] = str(error)
            return
        samples = parse_samples(answer.text)
        if samples is None:
            tally.malformed_answers += 1
            continue
        records = accept(samples, topic, args.n_per_topic - len(questions), output.fingerprints, tally)
        if records:
            output.append(topic, records)
        if len(questions) >= args.n_per_topic:
            tally.topics_done += 1
            return
    tally.failed[topic] = f"问了 {rounds} 轮，合格 {len(questions)} 条，要 {args.n_per_topic} 条"


def accept(samples: list, topic: str, wanted: int, seen: set[int], tally: Tally) -> list[dict[str, str]]:
    """Return the records to write, at most ``wanted``; every other sample is counted under its reason."""
    from LLM_data_gen.validation import check_sample, fingerprint, to_record

    records = []
    for sample in samples:
        tally.returned += 1
        reason = check_sample(sample)
        if reason is None:
            record = to_record(sample, topic)
            mark = fingerprint(record["text"])
            reason = "duplicate" if mark in seen else "surplus" if len(records) >= wanted else None
        if reason:
            tally.rejected[reason] += 1
            continue
        seen.add(mark)
        records.append(record)
        tally.accepted += 1
    return records


def write_failed_topics(out: Path, output, failed: dict[str, str], n: int) -> Path:
    """Write the topics that could not be filled, this run's and earlier ones', as a topics file; none: no file."""
    from sft_data.storage import write_atomically

    path = out.with_name(f"{out.stem}_failed_topics.txt")
    earlier = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    topics = dict.fromkeys(t for t in [*earlier, *failed] if t and len(output.questions.get(t, ())) < n)
    if topics:
        with write_atomically(path) as file:
            file.write("".join(f"{topic}\n" for topic in topics).encode())
    else:
        path.unlink(missing_ok=True)
    return path


def write_report(args, teacher, output, topics, tally: Tally, usage: dict, seconds: float, stopped: str | None) -> Path:
    """Write OUT-without-extension + _gen_report.json: this run in full, earlier runs below it."""
    from LLM_data_gen.validation import describe
    from sft_data.storage import write_atomically

    assert tally.returned == tally.accepted + sum(tally.rejected.values())
    path = args.out.with_name(f"{args.out.stem}_gen_report.json")
    earlier = []
    if path.exists():
        try:
            old = json.loads(path.read_text(encoding="utf-8"))
            earlier = [old["run"], *old["earlier_runs"]]
        except (ValueError, KeyError, TypeError):
            say(f"{path}：读不懂上次的报告，这次重新写。")
    done = sum(len(output.questions.get(topic, ())) >= args.n_per_topic for topic in topics)
    report = {
        "out": str(args.out),
        "topics": {"asked": len(topics), "done": done, "failed": len(tally.failed)},
        "samples_in_file": len(output),
        "run": {
            "stopped": stopped,
            "model": teacher.model,
            "base_url": teacher.base_url,
            "thinking": teacher.thinking,
            **{k: getattr(args, k) for k in ("temperature", "n_per_topic", "max_concurrency", "max_tokens")},
            "topics_done": tally.topics_done,
            "topics_failed": tally.failed,
            "samples_returned": tally.returned,
            "samples_accepted": tally.accepted,
            "samples_rejected": {k: {"count": v, "meaning": describe(k)} for k, v in sorted(tally.rejected.items())},
            "malformed_answers": tally.malformed_answers,
            **usage,
            "seconds": round(seconds, 3),
        },
        "earlier_runs": earlier,
    }
    with write_atomically(path) as file:
        file.write(json.dumps(report, ensure_ascii=False, indent=2).encode())
    return path


if __name__ == "__main__":
    sys.exit(main())
