"""Fill topics with samples, many at once: ask, put the answer into the journal, take what is good, ask for what is missing.

run = Run(args, teacher, output, journal, tally, ...)
network.run(run.generate(todo, n_topics))          run.stopped says why when it ended early
"""

import argparse
import asyncio
import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

from sft_data.errors import UserError

from .client import GRACE_S, Answer, Client, Settings, Stopped, TriesUsedUp, Usage, finish
from .cost import Price
from .journal import Journal, entry_of
from .output import Output
from .prompt import MOST_PER_REQUEST, build_messages, size_of_answer
from .settings import Teacher
from .spending import Totals, likely_cost, over_budget, price_entry
from .taking import AT_ONCE, Tally, take
from .variety import angles

_ON_THEIR_WAY_S = 0.1  # by then the first requests are
_GATHER_S = 0.02  # answers that come so close to each other are looked at together: it costs a third


class Run:
    """totals: of all runs on this output; spent: of this one."""

    def __init__(
        self,
        args: argparse.Namespace,
        teacher: Teacher,
        output: Output,
        journal: Journal,
        tally: Tally,
        price: Price | None,
        totals: Totals,
        say: Callable[[str], None],
    ):
        self.args, self.teacher, self.output, self.journal, self.tally = args, teacher, output, journal, tally
        self.price, self.totals, self.say = price, totals, say
        self.spent, self.usage = Totals(), Usage()
        self.stopped: str | None = None
        self.interrupted = False
        self._likely = likely_cost(args, teacher, price)
        self._slots = asyncio.Semaphore(args.max_concurrency)
        self._asking, self._thinks = 0, bool(teacher.thinking)
        self._arrived: list[tuple[dict[str, Any], asyncio.Future[int]]] = []
        self._started = time.monotonic()

    async def generate(self, todo: list[str], n_topics: int) -> None:
        """Fill all topics, ``max_concurrency`` at a time. Whatever stops the run, answers in flight are waited for."""
        from tqdm import tqdm

        names = ("temperature", "max_concurrency", "timeout_s", "max_tries", "retry_wait_s", "max_outage_s")
        settings = Settings(**{name: getattr(self.args, name) for name in names})
        queue, options = iter(todo), {"unit": "主题", "desc": "生成", "disable": None, "dynamic_ncols": True}
        with tqdm(total=n_topics, initial=n_topics - len(todo), **options) as bar:
            async with Client(self.teacher, settings, self.say) as client:
                self._client, self.usage = client, client.usage

                async def worker() -> None:
                    with contextlib.suppress(Stopped):
                        for topic in queue:
                            await self._fill(topic)
                            if not bar.disable:
                                bar.set_postfix_str(self._state(), refresh=False)
                            bar.update()

                # As many as ask, and as many as meanwhile wait for their answers to be looked at together.
                n_workers = min(settings.max_concurrency + AT_ONCE, len(todo))
                workers = [asyncio.create_task(worker()) for _ in range(n_workers)]
                asyncio.get_running_loop().call_later(_ON_THEIR_WAY_S, _get_ready)
                try:
                    with self._signals(workers):
                        await finish(workers, client.gate, self._say_stopping)
                finally:
                    while self._arrived:  # of workers that were interrupted
                        self._take_arrived()

    def _say_stopping(self) -> None:
        self.say(f"停止：不再发新请求，等在途的 {self._client.gate.in_flight} 个收尾，最多 {GRACE_S} 秒。")

    @contextlib.contextmanager
    def _signals(self, workers: list[asyncio.Task]) -> Iterator[None]:
        """The first Ctrl-C (or SIGTERM, or the terminal's end) stops asking and waits for what is paid for; the second leaves at once."""
        loop = asyncio.get_running_loop()

        def interrupt() -> None:
            again, self.interrupted, self.stopped = self.interrupted, True, "中断"
            self._client.gate.stop()
            if again or not self._client.gate.in_flight:
                for task in workers:
                    task.cancel()
                return
            self.say(
                f"\n收到中断：不再发新请求，等在途的 {self._client.gate.in_flight} 个回答（已付费）；再按一次立即退出。"
            )
            loop.call_later(GRACE_S, interrupt)

        numbers = [signal.SIGINT, signal.SIGTERM]
        if (hangup := getattr(signal, "SIGHUP", None)) and signal.getsignal(
            hangup
        ) != signal.SIG_IGN:  # nohup ignores it
            numbers.append(hangup)
        try:
            for number in numbers:
                loop.add_signal_handler(number, interrupt)
        except (NotImplementedError, RuntimeError, ValueError):  # Windows; or not in the main thread
            yield
            return
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)

    async def _fill(self, topic: str) -> None:
        """Ask for what the topic misses until it has all or the rounds are used up; each answer is written as it comes.

        An answer that broke off costs a try, not a round; after one in which no sample got whole, fewer are asked for.
        """
        n, questions = self.args.n_per_topic, self.output.questions[topic]
        rounds = self.args.max_rounds + (n - 1) // MOST_PER_REQUEST
        round_number = broken = filtered = 0
        most, angle, last = MOST_PER_REQUEST, len(questions), ""
        while len(questions) < n:
            if round_number == rounds or broken == self.args.max_tries or filtered == 2:
                self.tally.failed[topic] = f"问了 {round_number + broken} 轮，合格 {len(questions)} 条，要 {n} 条{last}"
                return
            asked = min(n - len(questions), most)
            sides = angles(topic, asked, angle)
            angle += asked
            try:
                entry, taken = await self._ask(topic, asked, sides)
            except TriesUsedUp as error:
                self.tally.failed[topic] = str(error)
                return
            last = f"；最后一个回答 {len(entry['text'])} 字，以 {entry['finish_reason'] or '没有说明的方式'} 结束"
            filtered += entry["finish_reason"] == "content_filter" and not taken
            broken += entry["status"] == "partial"
            round_number += entry["status"] != "partial"
            if entry["status"] == "cut" and not taken and entry["text"].strip():
                most = max(1, asked // 2)
        self.tally.topics_done += 1

    async def _ask(self, topic: str, asked: int, sides: list[str]) -> tuple[dict[str, Any], int]:
        """Return the answer as the journal has it, and how many samples of it were taken."""
        args, questions = self.args, self.output.questions[topic]
        async with self._slots:
            if over_budget(args.budget, self.totals, self._asking, self._likely):
                self.stopped = self.stopped or f"到了 --budget {args.budget:g}"
                self._client.gate.stop()
                raise Stopped
            messages = build_messages(topic, asked, questions, sides, args.json_mode)
            max_tokens = args.max_tokens
            if max_tokens is None:
                max_tokens = size_of_answer(asked, self._thinks)
            self._asking, sent = self._asking + 1, datetime.now().astimezone()
            try:
                answer = await self._client.ask(messages, max_tokens, args.json_mode)
            finally:
                self._asking -= 1
        self._notice_thinking(answer)
        entry = entry_of(topic, asked, messages, self.teacher.model, answer)
        price_entry(entry, messages, self.price, sent)
        self.journal.append(entry)
        self.totals.add(self.spent.add(entry))
        taken = await self._taken(entry)
        if self.journal.disk_full:
            raise UserError(
                f"{self.journal.path}：磁盘满了，停止运行；已付费的回答都在，清理出空间后用同一条命令继续。"
            )
        return entry, taken

    def _notice_thinking(self, answer: Answer) -> None:
        """A model may think though nobody asked it to. What it thinks counts towards max_tokens, so there must be room for it."""
        if self._thinks or not (answer.reasoning or (answer.finish_reason == "length" and not answer.text.strip())):
            return
        self._thinks = True
        self.say(
            "提示：模型在思考，尽管没有要求它（思考也计费）；从现在起为思考留出 token。要关掉它，看服务的文档，例如 "
            """--extra '{"enable_thinking": false}'（百炼）或 --extra '{"chat_template_kwargs": {"enable_thinking": false}}'"""
            "（vLLM、SGLang）。"
        )

    def _taken(self, entry: dict[str, Any]) -> asyncio.Future[int]:
        """How many samples of the answer are taken, together with those of all that come within _GATHER_S."""
        loop = asyncio.get_running_loop()
        self._arrived.append((entry, loop.create_future()))
        if len(self._arrived) == 1:
            loop.call_later(_GATHER_S, self._take_arrived)
        return self._arrived[-1][1]

    def _take_arrived(self) -> None:
        some, self._arrived = self._arrived[:AT_ONCE], self._arrived[AT_ONCE:]
        if self._arrived:
            asyncio.get_running_loop().call_soon(self._take_arrived)
        entries = [entry for entry, _ in some]
        try:
            taken = take(entries, self.output, self.args.n_per_topic, self.tally, self.args.keep_reasoning)
        except Exception as error:  # a full disk, for one: it is for those who wait
            taken = [error] * len(some)
        for (_, future), result in zip(some, taken, strict=True):
            if future.cancelled():
                continue
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)

    def _state(self) -> str:
        """The end of the progress bar."""
        rate = self.usage.requests / max(1e-9, time.monotonic() - self._started)
        return (
            f"样本 {len(self.output)} 失败 {len(self.tally.failed)} 并发 {self._client.gate.in_flight} "
            f"{rate:.1f} 请求/秒 {self.totals}"
        )


def _get_ready() -> None:
    """Import what the answers will need, numpy above all, while nothing else is to be done."""
    from . import glance, near  # noqa: F401
