"""Have a teacher model write SFT samples, topic by topic, through an OpenAI-compatible API; write HIT ChatML JSONL.

    python gen_SFT_data.py --api-key sk-... --topics-file LLM_data_gen/topics.txt --out data/raw/hit/train.jsonl

Every answer is put into a journal beside the output before anything is made of it. Started again, with the same command,
the script asks only for what is missing.
"""

import argparse
import shutil
import sys
import time
from collections import Counter
from pathlib import Path

from sft_data.errors import UserError, exit_cleanly

# For those who would rather edit the script: a flag wins over these, and these win over the environment and .env.
API_KEY_CODE = ""
BASE_URL_CODE = ""

HERE = Path(__file__).resolve().parent
RESERVE = 1 << 16  # bytes kept on the disk for each answer in flight
BYTES_PER_SAMPLE = 6000  # in journal and output together


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="按主题请教师模型写中文微调数据，逐条检查，写成 HIT ChatML JSONL；中断后用同一条命令继续，只补缺的。",
    )

    def add(flag: str, help: str, **options) -> None:
        shown = "" if options.get("default") is None else "（默认 %(default)s）"
        parser.add_argument(flag, help=help + shown, **options)

    def switch(flag: str, help: str) -> None:
        parser.add_argument(flag, action="store_true", help=help)

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
    add("--timeout-s", type=float, default=120.0, metavar="秒", help="多久没有收到任何内容算超时；整个回答多长不限")
    add("--max-tries", type=int, default=6, metavar="N", help="一次请求最多试几次（服务整体中断时不计次数）")
    add("--max-rounds", type=int, default=4, metavar="N", help="一个主题的回答有缺或不合格时，最多问几轮")
    add("--retry-wait-s", type=float, default=1.0, metavar="秒", help="第一次重试前等多久，之后逐次加倍")
    add("--max-outage-s", type=float, default=600.0, metavar="秒", help="服务连续中断多久后停止运行")
    add("--budget", type=float, metavar="金额", help="这个输出累计花到这么多就停（含以前的运行），货币同价格表")
    add("--prices", type=Path, metavar="FILE", help="自己的价格表，格式见 LLM_data_gen/prices.json")
    add("--rejected-out", type=Path, metavar="FILE", help="不合格的样本连同原因写到这里（JSONL，追加）")
    add("--extra", metavar="JSON", help="加进每个请求的字段，例如 '{\"enable_thinking\": false}'")
    switch("--dry-run", "只算要发多少请求、大约多少 token 和多少钱，不发请求")
    switch("--revalidate", "用现在的规则重读日志里存下的全部回答，重写输出；不发请求，原输出另存")
    switch("--json-mode", "要求服务以 JSON 模式回答（服务须支持 response_format）")
    switch("--keep-reasoning", "把思考过程存进每行的 reasoning 字段（不进入 text）")
    switch("--keep-near-dup", "不去掉与已有问题近似的问题")
    return parser


def say(message: str) -> None:
    """Print to stderr, above the progress bar if there is one."""
    from tqdm import tqdm

    tqdm.write(message, file=sys.stderr)


@exit_cleanly
def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    check_args(args)
    if args.out.is_symlink():
        args.out = args.out.resolve()  # journal and lock are beside the file itself
    from LLM_data_gen.journal import read_journal
    from LLM_data_gen.output import open_output
    from LLM_data_gen.run_report import report_paths, write_failed_topics, write_reports
    from LLM_data_gen.spending import Totals
    from LLM_data_gen.taking import replay
    from LLM_data_gen.topics import read_topics

    topics = read_topics(args.topics_file, say)
    with open_output(args.out, say, not args.keep_near_dup) as output:
        if args.revalidate:
            return reread(args, output)
        totals = Totals()
        entries = map(totals.add, read_journal(args.out, say))
        recovered = replay(entries, output, topics, args.n_per_topic, args.keep_reasoning).accepted
        if recovered:
            say(f"从日志里已付费的回答中取回 {recovered} 条，没有重新请求。")
        todo = [topic for topic in topics if len(output.questions.get(topic, ())) < args.n_per_topic]
        if not todo:
            say(f"{len(topics)} 个主题都已完成，共 {len(output)} 条，没有发出请求：{args.out}")
            write_failed_topics(args.out, output, {}, args.n_per_topic)
            if not report_paths(args.out)[0].exists():  # killed before it
                write_reports(args, output, topics, {"topics_failed": {}}, totals, None, say)
            return 0
        if len(todo) < len(topics):
            say(f"继续上次的运行：{len(topics) - len(todo)} 个主题已完成，还差 {len(todo)} 个。")
        return ask_for(args, output, topics, todo, totals)


def check_args(args: argparse.Namespace) -> None:
    """Raise UserError for a number that makes no sense, before anything is read or spent."""
    at_least = {"n_per_topic": 1, "max_concurrency": 1, "max_tries": 1, "max_rounds": 1, "max_tokens": 0}
    at_least |= {"timeout_s": 0.001, "retry_wait_s": 0, "max_outage_s": 0, "temperature": 0, "budget": 0}
    for name, least in at_least.items():
        value = getattr(args, name)
        if value is not None and not value >= least:
            raise UserError(f"--{name.replace('_', '-')} {value} 太小，至少为 {least}；请改正后重试。")
    if args.revalidate and args.dry_run:
        raise UserError("--revalidate 会重写输出，--dry-run 什么也不写；请只给其中一个。")
    from LLM_data_gen.journal import journal_path

    taken = {"--topics-file": args.topics_file, "--out": args.out}
    if args.out.name:
        taken["日志"] = journal_path(args.out)
    for flag, path in (("--out", args.out), ("--rejected-out", args.rejected_out)):
        for name, other in taken.items():
            if path and name != flag and path.resolve() == other.resolve():
                raise UserError(f"{flag} {path} 就是 {name} 的文件；请换一个路径。")


def reread(args: argparse.Namespace, output) -> int:
    """Make the output again of the stored answers; nothing is asked."""
    from LLM_data_gen.journal import journal_path, read_journal
    from LLM_data_gen.taking import Tally, describe_counts, open_rejected, revalidate

    if not journal_path(args.out).exists():
        raise UserError(f"{journal_path(args.out)}：没有这份日志，无从重读；请检查 --out。")
    before = len(output)
    with open_rejected(args.rejected_out) as reject:
        tally = Tally(reject=reject)
        backup = revalidate(lambda: read_journal(args.out, say), output, args.n_per_topic, tally, args.keep_reasoning)
    say(f"重读日志：样本 {tally.returned} 条，收下 {tally.accepted} 条；不收：{describe_counts(tally.rejected)}")
    say(f"{args.out} 原有 {before} 条" + (f"，另存为 {backup}。" if backup else "。") + "没有发出请求。")
    return 0


def ask_for(args: argparse.Namespace, output, topics: list[str], todo: list[str], totals) -> int:
    """Ask for what ``todo`` misses, and leave a report whatever happens."""
    from LLM_data_gen.filling import Run
    from LLM_data_gen.journal import open_journal
    from LLM_data_gen.network import run as run_loop
    from LLM_data_gen.run_report import describe_run, write_failed_topics, write_reports
    from LLM_data_gen.settings import resolve_teacher
    from LLM_data_gen.spending import dry_run, settle_price
    from LLM_data_gen.taking import Tally, open_rejected

    constants = (API_KEY_CODE, BASE_URL_CODE)
    teacher = resolve_teacher(
        args.api_key, args.base_url, args.model, args.mode, constants, HERE, say, not args.dry_run, args.extra
    )
    price = settle_price(args, teacher, say)
    if args.dry_run:
        return dry_run(args, teacher, output, todo, price, say)
    warn_of_little_space(args, len(todo))
    started = time.monotonic()
    reserve = min(args.max_concurrency, len(todo)) * RESERVE
    with open_journal(args.out, reserve) as journal, open_rejected(args.rejected_out) as reject:
        tally = Tally(reject=reject)
        run = Run(args, teacher, output, journal, tally, price, totals, say)
        try:
            run_loop(run.generate(todo, len(topics)))
        except BaseException as error:
            run.stopped = str(error) or "中断"
            raise
        finally:
            failed_file = write_failed_topics(args.out, output, tally.failed, args.n_per_topic)
            files = write_reports(
                args, output, topics, describe_run(run, time.monotonic() - started), totals, price, say
            )
            done = f"主题 {len(topics)} 个，本次完成 {tally.topics_done}，失败 {len(tally.failed)}"
            say(f"{done}；用了 {run.spent}；样本新增 {tally.accepted} 条，共 {len(output)} 条：{args.out}")
            say(f"报告：{'、'.join(map(str, files))}")
    if run.interrupted:
        raise KeyboardInterrupt
    if run.stopped:
        say(f"{run.stopped}，停止；已完成的都已保存，用同一条命令继续。")
    if tally.failed:
        reason, count = Counter(tally.failed.values()).most_common(1)[0]
        say(f"{len(tally.failed)} 个主题没有凑齐，列在 {failed_file}；再运行一次会只问它们缺的部分。")
        say(f"原因{'' if count == len(tally.failed) else f'最多的（{count} 个）'}：{reason}")
    return 1 if tally.failed or run.stopped else 0


def warn_of_little_space(args: argparse.Namespace, topics: int) -> None:
    free, needed = shutil.disk_usage(args.out.parent).free, topics * args.n_per_topic * BYTES_PER_SAMPLE
    if free < needed:
        say(f"提示：{args.out.parent} 只剩 {free / 1e6:.0f} MB，全部完成约要 {needed / 1e6:.0f} MB；请先清理。")


if __name__ == "__main__":
    sys.exit(main())
