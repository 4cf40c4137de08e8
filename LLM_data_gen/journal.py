"""Every paid answer, as it came: appended before anything is made of it, so that nothing is asked, or paid for, twice.

with open_journal(OUT, reserve) as journal:      beside the output, whose lock it shares
    journal.append(entry)                        one line, in one write; with the disk full, into space kept for it
for entry in read_journal(OUT, say): ...
with only_run(OUT): ...                          one run at a time

An entry: time (ISO, UTC), topic, asked (samples), prompt (hash of the messages), model, status (ok; cut: at max_tokens;
partial: the connection broke off), finish_reason, usage, text, reasoning where there is one.
"""

import contextlib
import errno
import hashlib
import os
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import orjson

from sft_data.errors import UserError
from sft_data.jsonl import append_whole, dump_line, mend_last_line

from .wire import Answer


def journal_path(out: Path) -> Path:
    return out.with_name(f"{out.stem}_journal.jsonl")


def entry_of(topic: str, asked: int, messages: list[dict[str, str]], model: str, answer: Answer) -> dict[str, Any]:
    status = "partial" if not answer.complete else "cut" if answer.finish_reason == "length" else "ok"
    entry = {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "topic": topic,
        "asked": asked,
        "prompt": hashlib.blake2b(orjson.dumps(messages), digest_size=8).hexdigest(),
        "model": model,
        "status": status,
        "finish_reason": answer.finish_reason,
        "usage": answer.usage,
        "text": answer.text,
    }
    return entry | ({"reasoning": answer.reasoning} if answer.reasoning else {})


def read_journal(out: Path, say: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    """Yield the entries of earlier runs; a last line that was cut short is removed first. UserError names a bad line."""
    path = journal_path(out)
    if cut := mend_last_line(path):
        say(f"{path}：最后一行没有写完（上次运行被中断），已删去这 {cut} 字节。")
    if not path.exists():
        return
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                entry = orjson.loads(line)
                kinds = [type(entry[name]) for name in ("topic", "text", "asked", "usage")]
                if kinds != [str, str, int, dict]:
                    raise TypeError
            except (orjson.JSONDecodeError, KeyError, TypeError):
                raise UserError(f"{path}:{number}：不是本脚本的日志；请改正或删去这一行。") from None
            yield entry


class Journal:
    """An append-only file, with ``reserve`` bytes of the disk kept beside it for the answers that are in flight when it is full."""

    def __init__(self, path: Path, reserve: int):
        self.path, self._reserve = path, path.with_name(path.name + ".reserve")
        self.disk_full = False
        with open(self._reserve, "wb") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, reserve)
            except (AttributeError, OSError) as error:  # not on this system, or not on this file system
                if getattr(error, "errno", None) == errno.ENOSPC:
                    self._reserve.unlink()
                    raise OSError(errno.ENOSPC, "no space", str(path)) from None
                file.write(bytes(reserve))
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115  closed by ``close``

    def append(self, entry: dict[str, Any]) -> None:
        line = dump_line(entry)
        try:
            append_whole(self._file, line)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT) or self.disk_full:
                error.filename = str(self.path)
                raise
            self.disk_full = True
            self._reserve.unlink()
            append_whole(self._file, line)

    def close(self) -> None:
        empty = not self._file.seek(0, os.SEEK_END)
        self._file.close()
        self._reserve.unlink(missing_ok=True)
        if empty:
            self.path.unlink()


@contextlib.contextmanager
def only_run(out: Path) -> Iterator[None]:
    """Hold OUT.lock, so that a second run on the same output is refused."""
    import fcntl

    with open(out.with_name(out.name + ".lock"), "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{out}：另一个运行正在写这个文件；请等它结束，或换一个 --out。") from None
        yield


@contextlib.contextmanager
def open_journal(out: Path, reserve: int) -> Iterator[Journal]:
    journal = Journal(journal_path(out), reserve)
    try:
        yield journal
    finally:
        journal.close()
