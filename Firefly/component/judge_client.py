"""Ask a judge over the OpenAI API: bounded waits, bounded re-asks, and a journal so that nothing is paid for twice.

Every reply, good or not, is a line in the journal before anything else happens with it. A line is known by ``key``, a
digest of the whole request, so a changed question, answer, prompt or judge is asked anew and everything else is not.
"""

import contextlib
import fcntl
import functools
import hashlib
import json
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from .errors import UserError
from .judging import ASK_AGAIN, parse_verdict

WAITS = (1, 2, 4, 8, 16, 32)  # seconds before each retry; a server's Retry-After counts up to the last of them, doubled
_RETRIED = (408, 409, 425, 429)


# What services say of one question that they will not judge, or that is too long for them, with HTTP 400, 413 or 422.
# DeepSeek: "Content Exists Risk". Alibaba: data_inspection_failed. Azure: content_filter. Zhipu: code 1301.
_REFUSED = re.compile(
    r"content.?exists.?risk|data.?inspection|content.?(filter|policy|management)|sensitive|敏感|不安全|\b1301\b"
    r"|context.?(length|window)|input.{0,20}too.?(long|large)",
    re.IGNORECASE,
)


class Refused(Exception):
    """The service will not judge this question; the next one may be another matter."""


class Stopped(Exception):
    """Another question ended the run; this one is left for the next."""


@dataclass
class Judge:
    """``call`` sends messages and returns (text, finish_reason, prompt tokens, completion tokens)."""

    call: Callable[[list[dict]], tuple[str, str, int, int]]
    address: str
    settings: dict
    stop: threading.Event = field(default_factory=threading.Event)

    def key(self, messages: list[dict]) -> str:
        """Names one question to this judge."""
        text = json.dumps([self.address, self.settings, messages], ensure_ascii=False, sort_keys=True)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def open_judge(base_url: str, model: str, api_key: str | None, settings: dict, timeout: float) -> Judge:
    """Return a Judge; nothing is sent yet. ``settings`` are body fields; those that are None are left out."""
    import openai

    parts = urlsplit(base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"--base-url {base_url}：应是 http://主机:端口/v1 这样的地址，请修改。")
    url = base_url.rstrip("/") + ("/v1" if parts.path in ("", "/") else "")
    key = api_key or os.environ.get("OPENAI_API_KEY") or "EMPTY"
    if key == "EMPTY" != api_key and parts.scheme == "https":
        raise UserError(
            f"没有给出 {parts.hostname} 的密钥；请设环境变量 OPENAI_API_KEY（服务不要密钥时加 --api-key EMPTY）。"
        )
    if not key.isascii() or not key.isprintable() or " " in key:
        raise UserError("密钥里有空格、换行或非英文字符，请重新复制 OPENAI_API_KEY（或 --api-key）。")
    client = openai.OpenAI(base_url=url, api_key=key, max_retries=0, timeout=timeout)
    body = {"model": model, **{name: value for name, value in settings.items() if value is not None}}
    address = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{urlsplit(url).path}"
    judge = Judge(lambda messages: None, address, body)

    def call(messages: list[dict]) -> tuple[str, str, int, int]:
        reply = _with_waits(
            lambda: client.chat.completions.create(model=model, messages=messages, extra_body=body),
            judge.stop,
            url,
            key,
        )
        if not hasattr(reply, "choices"):
            raise UserError(f"--base-url {address}：回答的不是 OpenAI 格式，请检查地址（多半要以 /v1 结尾）。")
        usage = reply.usage
        counts = (usage.prompt_tokens or 0, usage.completion_tokens or 0) if usage else (0, 0)
        if not reply.choices:
            return "", "", *counts
        return reply.choices[0].message.content or "", reply.choices[0].finish_reason or "", *counts

    judge.call = call
    return judge


def _with_waits(call: Callable[[], Any], stop: threading.Event, url: str, key: str) -> Any:
    """Call, and again after a busy or broken server; UserError for what no waiting mends and when the waits are used up."""
    import openai

    for wait in (*WAITS, None):
        if stop.is_set():
            raise Stopped
        try:
            return call()
        except openai.APIStatusError as error:
            problem = f"HTTP {error.status_code}：{_message(error, key)}"
            if error.status_code in (400, 413, 422) and _REFUSED.search(f"{error.body} {error.message}"):
                raise Refused(problem) from None
            if not _is_passing(error):
                raise UserError(f"评审服务拒绝了请求（{problem}），{_advice(error.status_code)}。") from None
            asked = error.response.headers.get("retry-after", "")
            if wait is not None and asked.replace(".", "", 1).isdigit():
                wait = max(wait, min(float(asked), 2 * WAITS[-1]))
        except openai.APIConnectionError as error:
            problem = f"连不上或超时：{type(error.__cause__ or error).__name__}"
        except openai.OpenAIError as error:
            raise UserError(f"评审服务的回答读不懂（{str(error)[:200]}），请检查 --base-url。") from None
        if wait is not None:
            _say_waiting(problem)
            stop.wait(wait)
    shown = url.rpartition("@")[2]
    raise UserError(f"{shown}：重试 {len(WAITS)} 次仍不成（{problem}）；已得的判决都已记下，稍后用同一条命令继续。")


@functools.cache  # once for each problem: many questions meet the same one
def _say_waiting(problem: str) -> None:
    from tqdm import tqdm

    tqdm.write(f"评审服务暂时不通（{problem}），自动重试，最多等 {sum(WAITS):.0f} 秒。", file=sys.stderr)


def _is_passing(error: Any) -> bool:
    code = str(error.body.get("code")) if isinstance(error.body, dict) else ""
    return (error.status_code in _RETRIED or error.status_code >= 500) and code != "insufficient_quota"


def _message(error: Any, key: str) -> str:
    said = error.body.get("message") if isinstance(error.body, dict) else None
    return str(said or error.response.reason_phrase).replace(key, "***")[:200]


def _advice(status: int) -> str:
    if status in (401, 403):
        return "请检查密钥（OPENAI_API_KEY 或 --api-key）"
    if status in (402, 429):
        return "请检查账户余额或额度"
    if status == 404:
        return "请检查 --base-url（多半要以 /v1 结尾）和 --model 的名字"
    return "请按提示修改；某个字段不受支持时可用 --extra 改写或设为 null 去掉"


@contextlib.contextmanager
def open_journal(path: Path) -> Iterator[tuple[dict[str, list[dict]], Callable[[dict], None]]]:
    """Yield the replies that are there, by key, and a function that adds one. A line that was cut off is dropped."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if isinstance(error, (BlockingIOError, PermissionError)):
                raise UserError(f"{path}：另一个评审正在写这个文件，请等它结束或换一个 --out。") from None
        file.seek(0)
        data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        file.truncate(len(whole))
        known: dict[str, list[dict]] = {}
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                entry = json.loads(line)
                known.setdefault(entry["key"], []).append(entry)
            except (ValueError, KeyError, TypeError):
                raise UserError(f"{path}:{number}：不是评审记录，请删去这一行，或换一个 --out。") from None
        lock = threading.Lock()

        def add(entry: dict) -> None:
            line = (json.dumps(entry, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass")
            with lock:
                known.setdefault(entry["key"], []).append(entry)
                file.write(line)
                file.flush()

        yield known, add


def judge_all(
    judge: Judge, questions: dict[str, list[dict]], journal: Path, concurrency: int, max_asks: int
) -> dict[str, list[dict]]:
    """Ask what the journal does not hold yet; return {key: its replies}. The last reply of a key holds its winner.

    A key whose replies are all unfit is asked again, up to ``max_asks`` replies in all. Ctrl-C and errors wait for the
    requests that are under way, at most, for they are paid for.
    """
    from tqdm import tqdm

    with open_journal(journal) as (known, add):
        todo = {key: m for key, m in questions.items() if not settled(known.get(key, []), max_asks)}
        if len(todo) < len(questions):
            print(f"{journal}：已有 {len(questions) - len(todo)} 个判决，还要问 {len(todo)} 个。", file=sys.stderr)
        bar = tqdm(total=len(questions), initial=len(questions) - len(todo), unit="判", disable=None, file=sys.stderr)
        with ThreadPoolExecutor(concurrency) as pool, bar:
            asked = [pool.submit(_ask_one, judge, k, m, known.get(k, []), add, max_asks) for k, m in todo.items()]
            try:
                for future in as_completed(asked):
                    with contextlib.suppress(Stopped):  # the one that stopped the others comes with its own error
                        future.result()
                        bar.update()
            except BaseException:
                judge.stop.set()
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        return {key: known.get(key, [])[:] for key in questions}


def settled(replies: list[dict], max_asks: int) -> bool:
    if not replies:
        return False
    last = replies[-1]
    return last["winner"] is not None or last["finish_reason"] == "refused" or len(replies) >= max_asks


def _ask_one(judge: Judge, key: str, messages: list[dict], before: list[dict], add: Callable, max_asks: int) -> None:
    replies = before[:]
    while not settled(replies, max_asks):
        again = replies[-1:] if replies and replies[-1]["raw"].strip() else []
        said = [{"role": "assistant", "content": entry["raw"]} for entry in again]
        asked = [*messages, *said, {"role": "user", "content": ASK_AGAIN}] if again else messages
        try:
            text, finish, prompt_tokens, completion_tokens = judge.call(asked)
        except Refused as error:  # as final as can be: asking the same again would be refused again
            add({"key": key, "winner": None, "reason": str(error), "raw": "", "finish_reason": "refused"})
            return
        except BaseException:
            judge.stop.set()
            raise
        winner, reason = parse_verdict(text) or (None, "")
        entry = {"key": key, "winner": winner, "reason": reason, "raw": text, "finish_reason": finish}
        entry |= {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
        replies.append(entry)
        add(entry)
