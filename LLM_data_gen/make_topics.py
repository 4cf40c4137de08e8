"""Have a teacher model draw up topics for gen_SFT_data.py, by category and without repeats.

    python LLM_data_gen/make_topics.py --subject 哈尔滨工业大学 --n 200 --out topics.txt
    python LLM_data_gen/make_topics.py --subject 哈尔滨工业大学 --n 200 --out topics.txt --web-search

Each answer goes to a journal beside OUT as soon as it comes: after Ctrl-C or a kill the same command asks only for what
is missing. OUT is written at the end, in one piece; with --web-search also OUT-without-extension + _sources.jsonl.
"""

import argparse
import asyncio
import contextlib
import signal
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # run as a script, Python sees LLM_data_gen/ only
from sft_data.errors import UserError, exit_cleanly  # noqa: E402

ROUNDS = 6  # requests to one category, over those that its number of topics needs
CATEGORY_TRIES = 3
FEWEST_CATEGORIES = 3  # fewer in an answer, and it has not understood
TEMPERATURE = 0.8
TIMEOUT_S = 300.0  # of silence: a search before the answer takes its time
UNSEARCHED = 3  # answers without a single search show that the service passes over the tool
RESERVE = 1 << 20  # bytes of disk for answers in flight when it is full
TOKENS_PER_TOPIC, TOKENS_FOR_THINKING = 60, 16384  # 40 characters at 0.7 and JSON around them; thinking counts, too


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="请教师模型按类别拟定主题，去重后写成 gen_SFT_data.py 用的主题文件；中断后用同一条命令继续，只补缺的。",
    )

    def add(flag: str, help: str, **options) -> None:
        shown = "" if options.get("default") is None else "（默认 %(default)s）"
        parser.add_argument(flag, help=help + shown, **options)

    add("--subject", required=True, metavar="对象", help="主题围绕什么，例如 哈尔滨工业大学")
    add("--n", type=int, default=200, metavar="N", help="一共要多少个主题")
    add("--out", required=True, type=Path, help="输出的主题文件，一行一个，“# 类别”分段")
    parser.add_argument("--overwrite", action="store_true", help="--out 已经存在时替换它（日志里的回答照样沿用）")
    add("--categories", metavar="类别", help="自定的类别，用逗号隔开，或一行一个的文件；不给则先请教师分出 8 到 15 类")
    parser.add_argument(
        "--web-search",
        action="store_true",
        help="让教师先联网搜索（服务要有 Responses API 的搜索工具），每个主题的来源另存为 *_sources.jsonl",
    )
    add("--api-key", metavar="KEY", help="API 密钥；不给则依次看环境变量 OPENAI_API_KEY、.env")
    add("--base-url", metavar="URL", help="API 地址，次序同上（OPENAI_BASE_URL）；都没有时用 https://api.deepseek.com")
    add("--model", default="deepseek-chat", help="教师模型的名称")
    add("--mode", choices=["chat", "reasoner"], default="chat", help="reasoner 打开思考，chat 关闭")
    add("--max-concurrency", type=int, default=50, metavar="N", help="同时进行的请求数上限；服务说忙时自动降低")
    add("--extra", metavar="JSON", help="加进每个请求的字段，例如 '{\"enable_thinking\": false}'")
    add("--temperature", type=float, help=f"采样温度（默认 {TEMPERATURE}；联网搜索时默认不发送）")
    return parser


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


@exit_cleanly
def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    check_args(args)
    from LLM_data_gen.journal import only_run, open_journal, read_journal
    from LLM_data_gen.settings import resolve_teacher
    from LLM_data_gen.topic_making import own_categories
    from sft_data.files import refuse_existing

    own = own_categories(args.categories)
    sources = args.out.with_name(f"{args.out.stem}_sources.jsonl") if args.web_search else None
    refuse_existing(filter(None, [args.out, sources]), args.overwrite)
    teacher = resolve_teacher(args.api_key, args.base_url, args.model, args.mode, ("", ""), ROOT, say, extra=args.extra)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with only_run(args.out):
        entries = list(read_journal(args.out, say))
        check_same_order(args, entries)
        with open_journal(args.out, RESERVE) as journal:
            run = Run(args, teacher, journal)
            try:
                topics = asyncio.run(run.make(own, entries))
            except asyncio.CancelledError:
                raise KeyboardInterrupt from None
            finally:
                say(f"本次请求得到 {run.answers} 个回答，输入 {run.tokens_in}、输出 {run.tokens_out} token。")
        return finish(args, topics, sources, run.failed)


def check_args(args: argparse.Namespace) -> None:
    """Raise UserError for what makes no sense, before anything is read or spent."""
    args.subject = " ".join(args.subject.split())
    if not 1 <= len(args.subject) <= 100:
        raise UserError("--subject 要写出主题围绕的对象，1 到 100 个字，例如 哈尔滨工业大学。")
    for name, least in {"n": 1, "max_concurrency": 1, "temperature": 0}.items():
        value = getattr(args, name)
        if value is not None and not value >= least:
            raise UserError(f"--{name.replace('_', '-')} {value} 太小，至少为 {least}；请改正后重试。")
    if args.out.is_dir():
        raise UserError(f"{args.out}：这是一个目录，--out 要给出文件路径。")


def order_of(args: argparse.Namespace) -> dict[str, Any]:
    """What an answer in the journal was asked for, and must be asked for again to count."""
    return {"subject": args.subject, "web_search": args.web_search}


def check_same_order(args: argparse.Namespace, entries: list[dict[str, Any]]) -> None:
    from LLM_data_gen.journal import journal_path

    order = order_of(args)
    if any(entry.get(name) != value for entry in entries for name, value in order.items()):
        raise UserError(
            f"{journal_path(args.out)}：里面是另一次任务的回答（--subject 或 --web-search 不同）；"
            "请换一个 --out，或把这个文件移走。"
        )
    if entries:
        say(f"沿用 {journal_path(args.out)} 里的 {len(entries)} 个回答；要全部重新问，先移走这个文件。")


class Run:
    """One run: asks in rounds, a request for each category that misses topics, and takes answers in a fixed order.

    So the result does not depend on which answer came first, and a journal read again gives the same topics.
    """

    def __init__(self, args: argparse.Namespace, teacher: Any, journal: Any):
        self.args, self.teacher, self.journal = args, teacher, journal
        self.answers = self.tokens_in = self.tokens_out = self.searches = 0
        self.failed: list[str] = []
        self.interrupted = False

    async def make(self, categories: list[str], entries: list[dict[str, Any]]) -> Any:
        """Return the Topics, as many as could be had."""
        from LLM_data_gen.client import Client, Settings
        from LLM_data_gen.topic_making import MOST_PER_REQUEST, Topics, topic_messages

        args = self.args
        temperature = TEMPERATURE if args.temperature is None else args.temperature
        settings = Settings(temperature=temperature, max_concurrency=args.max_concurrency, timeout_s=TIMEOUT_S)
        async with Client(self.teacher, settings, say) as self.client:
            self.heed_signals()
            categories = categories or await self.categories([entry for entry in entries if not entry["topic"]])
            topics = Topics(args.subject, args.n, categories)
            known = [entry for entry in entries if entry["topic"] in topics.kept]
            known.sort(key=lambda entry: (entry["round"], categories.index(entry["topic"])))
            for entry in known:
                topics.take(entry)
            topics.barren.clear()
            first = 1 + max((entry["round"] for entry in known), default=0)
            for number in range(first, first + ROUNDS + args.n // (MOST_PER_REQUEST * len(categories))):
                plan = topics.plan()
                if not plan:
                    break
                say(f"第 {number} 轮：向 {len(plan)} 个类别要 {sum(plan.values())} 个主题，已有 {len(topics)} 个。")
                requests = []
                for category, n in plan.items():
                    others = [name for name in categories if name != category]
                    words = (args.subject, category, others, n, topics.known(category), args.web_search)
                    requests.append(self.ask(category, n, topic_messages(*words), number))
                for entry in await self.together(requests):
                    topics.take(entry)
        return topics

    async def categories(self, entries: list[dict[str, Any]]) -> list[str]:
        """Return the categories that the teacher names, now or in an earlier run."""
        from LLM_data_gen.topic_making import category_messages, read_categories

        for number in range(-len(entries), CATEGORY_TRIES):
            if number < 0:
                entry = entries[number]
            else:
                [entry] = await self.together([self.ask("", 15, category_messages(self.args.subject), 0)]) or [None]
            names = read_categories(entry["text"]) if entry else []
            if len(names) >= FEWEST_CATEGORIES:
                say(f"类别：{'、'.join(names)}")
                return names
        said = f"最后一次的回答：{' '.join(entry['text'].split())[:60] or '空白'}" if entry else self.failed[-1]
        raise UserError(f"教师模型 {CATEGORY_TRIES} 次都没有分出类别（{said}）；请用 --categories 自己给出。")

    def heed_signals(self) -> None:
        """The first Ctrl-C (or SIGTERM) asks nothing more and waits for what is paid for; the second leaves at once."""
        from LLM_data_gen.client import GRACE_S

        loop, gate, making = asyncio.get_running_loop(), self.client.gate, asyncio.current_task()

        def interrupt() -> None:
            again, self.interrupted = self.interrupted, True
            gate.stop()
            if again or not gate.in_flight:
                making.cancel()
                return
            say(f"\n收到中断：不再发新请求，等在途的 {gate.in_flight} 个回答（已付费）；再按一次立即退出。")
            loop.call_later(GRACE_S, interrupt)

        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):  # Windows; or not in the main thread
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, interrupt)

    async def together(self, requests: list[Any]) -> list[dict[str, Any]]:
        """Return the answers that came, in the order of ``requests``. An error that stops the run lets others finish."""
        from LLM_data_gen.client import finish

        tasks = [asyncio.create_task(request) for request in requests]
        await finish(tasks, self.client.gate)
        if self.interrupted:
            raise asyncio.CancelledError
        return [entry for task in tasks if (entry := task.result())]

    async def ask(self, category: str, n: int, messages: list[dict[str, str]], number: int) -> dict[str, Any] | None:
        """Return the answer, which stands in the journal by then; None when the request has failed too often."""
        from LLM_data_gen.client import Stopped, TriesUsedUp
        from LLM_data_gen.journal import entry_of

        extra: dict[str, Any] = {"round": number, **order_of(self.args)}
        try:
            if self.args.web_search:
                answer, extra["sources"], searched = await self.search(messages)
                self.searches += searched
            else:
                thinking = TOKENS_FOR_THINKING if self.teacher.thinking else 0
                answer = await self.client.ask(messages, 512 + TOKENS_PER_TOPIC * n + thinking)
        except Stopped:
            return None
        except UserError:
            self.client.gate.stop()  # before whoever waits for this one's place gets it
            raise
        except TriesUsedUp as error:
            self.failed.append(f"{category or '分类别'}：{error}")
            say(self.failed[-1])
            return None
        entry = entry_of(category, n, messages, self.teacher.model, answer) | extra
        self.journal.append(entry)
        self.answers += 1
        self.tokens_in += answer.usage.get("prompt_tokens", 0)
        self.tokens_out += answer.usage.get("completion_tokens", 0)
        if self.args.web_search and not self.searches and self.answers >= UNSEARCHED:
            self.client.gate.stop()
            raise UserError(
                f"{self.teacher.base_url} 收下了搜索工具，但 {self.answers} 个回答里一次搜索也没有；"
                "请用 --model 换一个会搜索的模型，或去掉 --web-search 并移走日志。"
            )
        return entry

    async def search(self, messages: list[dict[str, str]]) -> tuple[Any, list[dict[str, Any]], bool]:
        from LLM_data_gen.client import TriesUsedUp
        from LLM_data_gen.topic_answers import failure_in, has_no_search, read_response, search_body

        try:
            data = await self.client.call("/responses", search_body(self.teacher, messages, self.args.temperature))
        except UserError as error:
            if not (status := has_no_search(str(error))):
                raise
            said = str(error).partition("服务的原话：")[2]
            raise UserError(
                f"{self.teacher.base_url} 没有可用的搜索工具（POST /responses 得到 HTTP {status}）：请去掉 --web-search，"
                "或用 --base-url 和 --model 换一个有它的服务，例如 https://api.openai.com/v1、"
                "https://dashscope.aliyuncs.com/compatible-mode/v1、https://ark.cn-beijing.volces.com/api/v3。"
                + (f"服务的原话：{said}" if said else "")
            ) from None
        if said := failure_in(data):
            said = said.replace(self.teacher.api_key or "\0", "***")
            raise TriesUsedUp(f"服务答复出错（{' '.join(said.split())[:200]}）")
        return read_response(data)


def finish(args: argparse.Namespace, topics: Any, sources: Path | None, failed: list[str]) -> int:
    """Write what there is, say what became of every topic that came, and return the exit code."""
    from LLM_data_gen.topic_making import REASONS, write_topics

    assert topics.returned == len(topics) + sum(topics.dropped.values())
    dropped = "、".join(f"{REASONS[reason]} {count}" for reason, count in topics.dropped.most_common())
    counts = f"主题 {len(topics)} 个，{sum(map(bool, topics.kept.values()))} 类；丢弃 {sum(topics.dropped.values())} 个"
    counts += (f"（{dropped}）" if dropped else "") + f"；读不懂的回答 {topics.unreadable} 个。"
    if not len(topics):
        say(f"没有得到可用的主题，没有写文件。{counts}")
        return 1
    write_topics(topics, args.out, sources)
    say(f"{counts}写到 {args.out}")
    if sources:
        without = sum(not pages for kept in topics.kept.values() for _, pages in kept)
        say(f"来源写到 {sources}" + (f"；{without} 个主题没有来源。" if without else "。"))
    if len(topics) == args.n:
        return 0
    why = "问满了轮数" if topics.plan() else "各类别都问不出新的主题"
    why += f"，有 {len(failed)} 次请求失败（{failed[-1]}）" if failed else ""
    say(
        f"要 {args.n} 个，少 {args.n - len(topics)} 个：{why}；用同一条命令加 --overwrite 可以接着问，或换一组 --categories。"
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
