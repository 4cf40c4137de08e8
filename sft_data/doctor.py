"""The doctor for data: reads every input to its end, writes no data, and says what is wrong, where, and how to mend it.

    check(inputs, out, strict) -> int       exit code: 0, or 2 with ``strict`` when there is an error or a warning

Notes (a BOM, blank lines, CRLF, duplicates) are harmless and never count. All findings go to ``out``, one a line; the
summary goes to stderr. A file that is broken as a whole gets one finding for that, and then what can still be told
apart in it is looked at all the same: decoded from GBK or UTF-16, up to where a gzip is cut, behind a broken place.
"""

import io
import os
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

from .blocks import split
from .errors import UserError
from .findings import Findings, Look, Place, Twins
from .jsonl import BOM, PARQUET, dump_line, open_unpacked, read_parquet, read_records
from .looks import Record, file_look, read, suspicions
from .shapes import array_inside, encoding_of, key_of, multiline, objects, other_file, recoded
from .sources import Input
from .storage import file_exists, is_remote, write_atomically

_PIECE = 1 << 16
_HEAD = 1 << 20  # bytes from which the encoding and the shape of a file are told

Raws = Iterable[tuple[int, bytes]]  # number (of the line or element, from 1) and record


def check(inputs: list[Input], out: str, strict: bool) -> int:
    """Check all files of all inputs. UserError: ``out`` is an input, or a file that is no earlier list of findings."""
    _refuse_to_replace(out, inputs)
    with write_atomically(out) as file:
        findings, twins = Findings(file), Twins()
        for one in inputs:
            for path in one.paths:
                findings.files += 1
                _File(one, path, findings, twins).check()
        for look, place in twins.findings():
            findings.add(look, place)
    findings.show(out)
    return 2 if strict and findings.has_trouble() else 0


def _refuse_to_replace(out: str, inputs: list[Input]) -> None:
    if is_remote(out) or not file_exists(out):
        return
    paths = [path for one in inputs for path in one.paths if not is_remote(path) and os.path.exists(path)]
    if any(os.path.samefile(path, out) for path in paths):
        raise UserError(f"--check-out {out}：与输入是同一个文件，会盖掉原始数据；请换一个路径。")
    if os.path.isfile(out) and os.path.getsize(out):
        try:
            is_ours = {"severity", "kind", "mend"} <= next(read_records(out))[1].keys()
        except (UserError, ValueError, RecursionError, StopIteration):
            is_ours = False
        if not is_ours:
            raise UserError(f"--check-out {out}：这个文件已存在，而且不是检查结果，不会盖掉它；请换一个路径。")


class _Pieces:
    """The bytes of a file, unpacked, in pieces. It ends where reading fails, and keeps the error."""

    def __init__(self, file: io.BufferedReader, progress: Any):
        # A packed reader hands over what it has only by read1: read() would lose it with the error.
        self.file = file.raw if hasattr(file.raw, "read1") else file
        self.progress, self.error = progress, None

    def __iter__(self) -> Iterator[bytes]:
        while True:
            try:
                piece = self.file.read1(_PIECE)
            except Exception as error:  # whatever a broken file makes a library raise
                self.error = error
                return
            if not piece:
                return
            self.progress.update(len(piece))
            yield piece


class _Tape(io.RawIOBase):
    """Pieces as a file, of which what was read since ``forget`` can be had again."""

    def __init__(self, pieces: Iterator[bytes]):
        self.pieces, self.kept, self.base, self.left = pieces, deque(), 0, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        if not self.left and (piece := next(self.pieces, b"")):
            self.kept.append(piece)
            self.left = memoryview(piece)
        n = min(len(buffer), len(self.left))
        buffer[:n], self.left = self.left[:n], self.left[n:]
        return n

    def forget(self, up_to: int) -> None:
        while self.kept and self.base + len(self.kept[0]) <= up_to:
            self.base += len(self.kept.popleft())

    def again(self, start: int) -> Iterator[bytes]:
        return chain([b"".join(self.kept)[start - self.base :]], self.pieces)


class _File:
    """One file of a source while it is checked."""

    def __init__(self, one: Input, path: str, findings: Findings, twins: Twins):
        self.kind, self.path, self.findings, self.twins = one.kind, path, findings, twins
        self.place = Place(one.name, path, 0, False)
        self.count, self.at = 0, 0  # records so far; where the last of them ends in the text

    def check(self) -> None:
        from tqdm import tqdm

        bar = tqdm(desc=f"检查 {os.path.basename(self.path)}", unit="B", unit_scale=True, disable=None)
        told = self.findings.counts.total()
        try:
            with bar, open_unpacked(self.path) as file:
                pieces = _Pieces(file, bar)
                self._pieces(iter(pieces))
                if pieces.error:
                    raise pieces.error  # open_unpacked says it in words
        except (UserError, OSError) as error:
            if isinstance(error, OSError):
                error = UserError(f"读不了（{error.strerror or error}）；请检查路径和权限")
            self.tell(file_look(error, self.path, "unreadable"))
        if not self.count and self.findings.counts.total() == told:
            self.tell(Look("no_records", "", "一条记录也没有", "请检查上一步是否成功"))

    def tell(self, look: Look) -> None:
        self.findings.add(look, self.place)

    def _pieces(self, pieces: Iterator[bytes]) -> None:
        """See what the file is, and read it as that."""
        head, pieces = _peek(pieces)
        if head.startswith(PARQUET):
            deque(pieces, 0)
            self._records(self._parquet(), is_array=True)
            return
        if found := encoding_of(head):
            codec, look = found
            self.tell(look)
            head, pieces = _peek(recoded(pieces, codec))
        if look := other_file(head):
            deque(pieces, 0)  # to its end: it may be a cut archive as well
            self.tell(look)
            return
        if head.startswith(BOM):
            self.tell(
                Look("utf8_bom", "", "开头有 UTF-8 BOM", "不影响 prep；别的程序读不了时，请另存为不带 BOM 的 UTF-8")
            )
        self._text(head, pieces)

    def _text(self, head: bytes, pieces: Iterator[bytes]) -> None:
        begin = head.removeprefix(BOM).lstrip()
        first = begin.partition(b"\n")[0]
        if begin.startswith(b"[") or isinstance(read(first, self.kind, True, False), Record):
            self._split(head, pieces, is_array=begin.startswith(b"["))
        elif inside := array_inside(head):
            look, at = inside
            self.tell(look)
            self._split(head, chain([next(pieces)[at:]], pieces), is_array=True, is_inside=True)
        elif look := multiline(begin):
            self.tell(look)
            self._records(((line + 1, raw) for line, raw in objects(pieces, key_of(head))), is_array=False)
        else:
            self._split(head, pieces, is_array=False)

    def _split(self, head: bytes, pieces: Iterator[bytes], is_array: bool, is_inside: bool = False) -> None:
        """Read as prep does; where an array breaks, look for what else can be told apart behind that."""
        tape = _Tape(pieces)
        try:
            self._records(self._raws(tape, is_array), is_array)
        except (UserError, RecursionError) as error:  # the second: brackets by the thousand
            look = file_look(error, self.path, "broken_array")
            if not (is_inside and look.kind == "text_after_array"):
                self.tell(look)
            # Inside an object the array is followed by its other keys, which are no records.
            rest = (
                raw for _, raw in objects(tape.again(self.at), key_of(head)) if raw.startswith(b"{") or not is_inside
            )
            self._records(enumerate(rest, self.count + 1), is_array)

    def _raws(self, tape: _Tape, is_array: bool) -> Iterator[tuple[int, bytes]]:
        blanks = returns = 0
        for block in split(io.BufferedReader(tape, _HEAD), self.path, _HEAD):
            spans = zip(block.numbers.tolist(), block.starts.tolist(), block.ends.tolist(), strict=True)
            if not is_array:
                if not self.at:  # the first block: it begins with a record, and what was before was blank
                    blanks = int(block.numbers[0]) - 1
                lines = block.data.count(b"\n") + (not block.data.endswith(b"\n"))
                blanks, returns = blanks + lines - len(block.numbers), returns + block.data.count(b"\r\n")
            for number, start, end in spans:
                yield number, block.data[start:end]
                self.at = block.base + end
            tape.forget(self.at)
        if blanks:
            self.tell(Look("blank_lines", "", f"有 {blanks} 个空行", "不影响 prep，会跳过"))
        if returns:
            self.tell(Look("crlf", "", f"有 {returns} 行以 CRLF（Windows 的换行）结尾", "不影响 prep"))

    def _parquet(self) -> Iterator[tuple[int, bytes]]:
        with open_unpacked(self.path) as file:
            number = 0
            try:
                for row in read_parquet(self.path, file):
                    number += 1
                    try:
                        yield number, dump_line(row)
                    except TypeError as error:  # a value that no JSON holds
                        look = Look("wrong_type", "", f"有 JSON 写不下的值（{error}）", "请先把这一列转成文字")
                        self.findings.add_record([look], self.place._replace(number=number, is_array=True))
            except UserError:
                raise
            except Exception as error:  # whatever a broken file makes pyarrow raise
                self.tell(Look("broken_parquet", "", f"parquet 损坏（{error}）", "请重新下载或重新生成"))

    def _records(self, raws: Raws, is_array: bool) -> None:
        """Check each record; the last one, when the file ends with it, may have been cut."""
        self.twins.begin(self.place._replace(is_array=is_array))
        held: tuple[int, bytes] | None = None
        is_end = False
        try:
            for item in raws:
                if held:
                    self._record(*held, is_array, False)
                held = item
            is_end = True
        finally:
            if held:
                self._record(*held, is_array, is_end)

    def _record(self, number: int, raw: bytes, is_array: bool, is_last: bool) -> None:
        place = self.place._replace(number=number, is_array=is_array)
        self.count += 1
        record = read(raw, self.kind, is_array, is_last)
        if isinstance(record, Look):
            self.findings.add_record([record], place)
            return
        self.findings.add_record(list(suspicions(record)), place)
        self.twins.add("\0".join(chain.from_iterable(record.fields)), number)


def _peek(pieces: Iterator[bytes]) -> tuple[bytes, Iterator[bytes]]:
    """The first megabyte, and all pieces, of which it is the first."""
    head = []
    size = 0
    while size < _HEAD and (piece := next(pieces, b"")):
        head.append(piece)
        size += len(piece)
    joined = b"".join(head)
    return joined, chain([joined], pieces)
