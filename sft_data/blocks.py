"""Split a JSON file into records without parsing them, some megabytes at a time.

    split(file, path, size) -> Iterator[Block]           JSONL or a JSON array; file: an unpacked binary reader
    local_text(path, scratch, number) -> Text            a plain file that can be read anywhere in: itself, or unpacked

A record is a line of JSONL that is not blank, or an element of a JSON array. Whether it is JSON is for its reader to
see; where the array itself is broken, a UserError says at which record and how.
"""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numba
import numpy as np

from .errors import UserError
from .jsonl import PARQUET, dump_line, is_packed, open_unpacked, read_parquet, skip_blanks, wants_more, why_not_text
from .storage import is_remote

SIZE = 8 << 20  # bytes of a block
_LONGEST = 64 << 20  # bytes of a record: an array with a stray quote would be one record to its end


class Block(NamedTuple):
    """Some records of a file, in order.

    data: whole records, bytes; base: where ``data`` begins in the unpacked text
    starts, ends: (records,) int64, where each lies in ``data``; numbers: (records,) int64, of the line or element, from 1
    """

    data: bytes
    base: int
    starts: np.ndarray
    ends: np.ndarray
    numbers: np.ndarray


def name_place(path: str | os.PathLike, number: int, is_array: bool) -> str:
    """Name a record for a message, the one way in which the project does."""
    return f"{path} 第 {number} 条" if is_array else f"{path}:{number}"


def split(file, path: str | os.PathLike, size: int = SIZE) -> Iterator[Block]:
    """Yield the records of an unpacked file.

    Raises:
        UserError: the file is empty, or it is an array that breaks off or has something else between its elements.
    """
    lines, skipped = skip_blanks(file)
    first = file.peek(1)[:1]
    if not first:
        raise UserError(f"{path}：文件是空的，里面没有任何记录；请检查上一步是否成功。")
    if first == b"[":
        file.read(1)
        yield from _elements(file, path, skipped + 1, size)
    else:
        yield from _lines(file, lines, skipped, size)


def _lines(file, line: int, base: int, size: int) -> Iterator[Block]:
    while data := file.read(size):
        if not data.endswith(b"\n"):
            data += file.readline()
        ends = np.flatnonzero(np.frombuffer(data, np.uint8) == 10) + 1
        if not len(ends) or ends[-1] != len(data):
            ends = np.append(ends, len(data))
        starts, numbers = np.concatenate([[0], ends[:-1]]), np.arange(line + 1, line + 1 + len(ends))
        first = np.frombuffer(data, np.uint8)[starts]  # a record begins with its {, nearly always
        blank = [i for i in np.flatnonzero(first <= 32).tolist() if data[starts[i] : ends[i]].isspace()]
        columns = [np.delete(column, blank) if blank else column for column in (starts, ends, numbers)]
        yield Block(data, base, *columns)
        line, base = line + len(ends), base + len(data)


def _elements(file, path, base: int, size: int) -> Iterator[Block]:
    state, number, rest = np.array([_FIRST, 0, 0], np.int64), 1, b""
    while state[0] < _END:
        new = file.read(size)
        if not new or len(rest) > _LONGEST:
            raise _broken(path, rest, number, whole=not new)
        data = rest + new
        starts, ends = np.empty(len(data) // 2 + 1, np.int64), np.empty(len(data) // 2 + 1, np.int64)
        letters, words = np.frombuffer(data, np.uint8), np.frombuffer(data, np.uint64, len(data) // 8)
        n, at, begin = _scan(letters, words, len(rest), state, 0 if rest else -1, starts, ends)
        yield Block(data, base, starts[:n].copy(), ends[:n].copy(), np.arange(number, number + n))
        number += n
        cut = begin if begin >= 0 else at
        rest, base = data[cut:], base + cut
    if state[0] == _BROKEN:
        raise _broken(path, rest, number, whole=False)
    while not (after := rest.strip()) and (rest := file.read(size)):
        pass
    if after:
        shown = after[:20].decode(errors="replace")
        raise UserError(f"{path}：JSON 数组在第 {number - 1} 条记录之后已经结束，后面还有 {shown!r}；请改正后重试。")


_FIRST, _VALUE, _END, _BROKEN = range(4)  # what comes next in the array: a value or ], a value, nothing


_ONES, _TOPS = np.uint64(0x0101010101010101), np.uint64(0x8080808080808080)
_QUOTES, _BACKSLASHES = np.uint64(34) * _ONES, np.uint64(92) * _ONES


@numba.njit(cache=True, nogil=True)
def _has(word, wanted):
    """Whether one of the eight bytes of a word is the wanted one (Anderson, Bit Twiddling Hacks: a zero byte)."""
    difference = word ^ wanted
    return (difference - _ONES) & ~difference & _TOPS != 0


@numba.njit(cache=True, nogil=True)
def _scan(data, words, at, state, begin, starts, ends):
    """Find the elements that end in ``data``, of which ``words`` are the same bytes, eight by eight.

    state: what comes next, depth, whether in a string (2: after a backslash); begin: where one that is unfinished began
    (-1: none). Returns how many ended, where reading stopped, and the new ``begin``.
    """
    expect, depth, quoted, n = state[0], state[1], state[2], 0
    while at < len(data):
        byte = data[at]
        if quoted == 1:
            if byte == 34 or byte == 92:
                quoted = 0 if byte == 34 else 2
            elif at & 7 == 0:  # most bytes by far are here: eight at a time
                word = at >> 3
                while word < len(words) and not (_has(words[word], _QUOTES) or _has(words[word], _BACKSLASHES)):
                    word += 1
                at = max(at, (word << 3) - 1)
        elif quoted == 2:
            quoted = 1
        elif byte == 34:
            quoted = 1
            if begin < 0:
                begin = at
        elif byte == 32 or 9 <= byte <= 13:
            pass
        elif depth == 0 and (byte == 44 or byte == 93):  # , or ] of the array itself
            if begin >= 0:
                stop = at
                while data[stop - 1] == 32 or 9 <= data[stop - 1] <= 13:
                    stop -= 1
                starts[n], ends[n] = begin, stop
                n, begin = n + 1, -1
            elif byte == 44 or expect == _VALUE:
                expect = _BROKEN
                break
            expect = _VALUE if byte == 44 else _END
            if byte == 93:
                at += 1
                break
        else:
            if begin < 0:
                begin = at
            if byte == 123 or byte == 91:
                depth += 1
            elif byte == 125 or byte == 93:
                depth -= 1
                if depth < 0:
                    expect = _BROKEN
                    break
        at += 1
    state[0], state[1], state[2] = expect, depth, quoted
    return n, at, begin


def _broken(path, text: bytes, number: int, whole: bool) -> UserError:
    """Say why an array breaks at its element ``number``, of which ``text`` is what there is; whole: up to the end."""
    head = text[: 4 << 20]
    if reason := why_not_text(head):
        return UserError(f"{path} 第 {number} 条：{reason}")
    try:
        shown = head.decode(errors="ignore")
        _, end = json.JSONDecoder().raw_decode(shown)
        complete, shown = number, shown[end:].lstrip()
        cut = not shown
    except json.JSONDecodeError as error:
        complete, cut = number - 1, len(head) == len(text) and wants_more(error, shown)
        shown = shown[max(0, error.pos - 10) :]
    except (ValueError, RecursionError):
        complete, cut = number - 1, False
    if whole and cut:
        return UserError(
            f"{path}：JSON 数组在第 {complete} 条记录之后被截断，结尾没有 ]；请重新下载或重新生成这个文件。"
        )
    return UserError(f"{path}：JSON 数组在第 {number} 条附近有语法错误：{shown[:20]!r}；请改正后重试。")


class Text(NamedTuple):
    """A file in which records can be read by their place, and whether they are numbered as elements."""

    path: Path
    is_array: bool


def local_text(path: str | os.PathLike, scratch: Path, number: int) -> Text:
    """Return ``path`` itself where it is a plain file on this machine; anything else is unpacked into ``scratch``."""
    path, is_parquet = str(path), False
    if is_remote(path) or not os.path.isfile(path) or is_packed(path):
        scratch.mkdir(parents=True, exist_ok=True)
        copy = scratch / f"{number}.json"
        with open(copy, "wb") as out, open_unpacked(path) as file:
            is_parquet = file.peek(4)[:4] == PARQUET
            if is_parquet:
                try:
                    out.writelines(map(dump_line, read_parquet(path, file)))
                except TypeError as error:
                    raise UserError(
                        f"{path}：有一列是 JSON 写不下的类型（{error}）；请只保留文字、数字和它们的列表。"
                    ) from None
            else:
                shutil.copyfileobj(file, out, 1 << 20)
        path = copy
    with open_unpacked(path) as file:
        skip_blanks(file)
        return Text(Path(os.path.abspath(path)), is_parquet or file.peek(1)[:1] == b"[")
