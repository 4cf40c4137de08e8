"""The output file: appended to answer by answer, so that it alone says what is done and no paid answer is lost.

with open_output(path, say) as output:       locks it, cuts a partial last line, reads what is there
    output.questions["主题"]                 questions accepted for a topic so far
    output.repeats(mark, question)           whether a record says again what is there
    output.note(row, mark, texts)            from now on it is there
    output.append(records)
"""

import contextlib
import functools
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import orjson

from sft_data.chatml import parse_chatml
from sft_data.errors import UserError
from sft_data.jsonl import append_whole, dump_line, mend_last_line, read_records

from .journal import only_run
from .seen import Seen
from .validation import fingerprint

if TYPE_CHECKING:
    from .near import Questions


class Output:
    """Records on disk, and what must be known of them: questions by topic, fingerprints of all texts, near questions, and
    what the report will say of them (``seen``).
    """

    def __init__(self, path: Path, file: BinaryIO | None = None, near_dup: bool = True):
        self.path, self.near_dup = path, near_dup
        self.questions: dict[str, list[str]] = defaultdict(list)
        self.fingerprints: set[int] = set()
        self.seen = Seen()  # counts lines that have no topic, from elsewhere, too: kept, and never written twice
        self._file = file

    @functools.cached_property
    def _near(self) -> "Questions":
        from .near import Questions  # with numpy, when there is something to compare

        return Questions()

    def __len__(self) -> int:
        return self.seen.count

    def expect(self, questions: list[str]) -> None:
        """Make ready to be asked about these, which costs less together than one by one."""
        if self.near_dup:
            self._near.expect(questions)

    def repeats(self, mark: int, question: str) -> str | None:
        """Return the reason to reject a record that says again what is there, or None. mark: fingerprint of its text."""
        if mark in self.fingerprints:
            return "duplicate"
        return "near_duplicate" if self.near_dup and self._near.twin(question) is not None else None

    def note(self, row: dict[str, Any], mark: int, texts: Sequence[tuple[str, str]]) -> None:
        """texts: (role, content) of its messages, of which the first by the user is the question."""
        self.seen.add(row, texts)
        self.fingerprints.add(mark)
        question = next(text for role, text in texts if role == "user")
        if self.near_dup:
            self._near.add(question)
        if isinstance(row.get("topic"), str):
            self.questions[row["topic"]].append(question)

    def note_row(self, row: dict[str, Any]) -> None:
        """ValueError: its text is no HIT ChatML."""
        texts = [(message["role"], message["content"]) for message in parse_chatml(row["text"])]
        self.note(row, fingerprint(row["text"]), texts)

    def append(self, records: list[dict[str, str]]) -> None:
        """Write ``records`` as whole lines, at once, or not at all: with no space left the file ends where it did."""
        try:
            append_whole(self._file, b"".join(map(dump_line, records)))
        except OSError as error:
            error.filename = str(self.path)
            raise

    def read(self, say: Callable[[str], None]) -> None:
        """Take in what earlier runs wrote. A last line cut short by a kill is removed; any other bad line is an error."""
        refuse_foreign(self.path, "text", "--out")
        if cut := mend_last_line(self.path):
            say(f"{self.path}：最后一行没有写完（上次运行被中断），已删去这 {cut} 字节，对应的样本会重新生成。")
        if not self.path.exists() or not self.path.stat().st_size:
            return
        for where, record in read_records(self.path):
            if not isinstance(record.get("text"), str):
                raise UserError(f"{where}：没有 text 字段，不是本脚本的输出；请换一个 --out，或移走这个文件。")
            try:
                self.note_row(record)
            except ValueError as error:
                raise UserError(f"{where}：text 不是 HIT ChatML（{error}）；请改正或删去这一行。") from None


def refuse_foreign(path: Path, key: str, flag: str) -> None:
    """Raise UserError when ``path`` is there and is no JSONL of objects with ``key``: nothing may be cut from another's file."""
    if not path.exists():
        return
    if not path.is_file():
        raise UserError(f"{path}：这不是普通文件，{flag} 要给出文件路径。")
    with open(path, "rb") as file:
        line = next((line for line in file if not line.isspace()), b"")
    if not line:
        return
    try:
        ours = isinstance(orjson.loads(line).get(key), str)
    except (orjson.JSONDecodeError, AttributeError):
        ours = line.startswith(b'{"%b":' % key.encode())  # killed in its first line; half a surrogate pair
    if not ours:
        raise UserError(f"{path}:1：不是本脚本写的文件，没有改动它；请给 {flag} 换一个路径，或移走它。")


@contextlib.contextmanager
def open_output(path: Path, say: Callable[[str], None], near_dup: bool = True) -> Iterator[Output]:
    """Lock ``path`` (through path + ".lock"), read it, and open it for appending. A second run is refused."""
    if path.is_dir():
        raise UserError(f"{path}：这是一个目录，--out 要给出文件路径。")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise UserError(f"{path.parent}：这是一个文件而不是目录；请给 --out 换一个位置。") from None
    with only_run(path):
        output = Output(path, near_dup=near_dup)
        output.read(say)
        with open(path, "ab", buffering=0) as file:
            file.seek(0, os.SEEK_END)
            output._file = file
            try:
                yield output
            finally:
                if path.exists() and not path.stat().st_size:
                    path.unlink()  # nothing came: an empty file would only puzzle the next step
