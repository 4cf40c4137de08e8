"""Read and write JSON records: one reader and one writer for every script.

    read_records(path, on_bad=None) -> Iterator[tuple[str, dict]]    (where, object) for each record, streamed
    write_atomically(path) -> context manager giving a binary file   X.part, renamed to X when the block succeeds
    dump_line(obj) -> bytes                                          one JSON line, UTF-8, newline included
    mend_last_line(path) -> int                                      bytes cut off an append-only file after a kill

``where`` is "file:LINE" in JSONL and "file 第 N 条" in a JSON array: put it before every message about the record.
The two kinds, and gzip and zstd, are told apart by content, never by name. A UTF-8 BOM is skipped, and so are
blank lines. Everything that cannot be read raises UserError; with ``on_bad`` a bad line (or a bad element of an
array) is handed to it as that UserError and reading goes on. A file that is broken as a whole always raises.
"""

import contextlib
import gzip
import io
import json
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from .errors import UserError

OnBad = Callable[[UserError], None]

_BOM = b"\xef\xbb\xbf"
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_BUFFER = 1 << 20


def read_records(path: str | os.PathLike, on_bad: OnBad | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield ``(where, object)`` for each record of a JSONL file or a JSON array, plain, gzip or zstd; O(record) memory."""
    with _open(Path(path)) as file:
        blank_lines = _skip_blanks(file)
        first = file.peek(1)[:1]
        if not first:
            raise UserError(f"{path}：文件是空的，里面没有任何记录；请检查上一步是否成功。")
        if first == b"[":
            yield from _read_array(path, file, on_bad)
        else:
            yield from _read_lines(path, file, blank_lines, on_bad)


def dump_line(obj: Any) -> bytes:
    """Return ``obj`` as one line of JSON. Text that is not valid Unicode (a lone surrogate) raises TypeError."""
    import orjson

    return orjson.dumps(obj, option=orjson.OPT_APPEND_NEWLINE)


@contextlib.contextmanager
def write_atomically(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Open ``path`` + ".part" for writing; rename it to ``path`` if the block ends well, remove it if not.

    Whatever goes wrong (no space, Ctrl-C, a bug), an existing ``path`` stays as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise UserError(f"{path}：这是一个目录，请给出文件路径。")
    part = path.with_name(path.name + ".part")
    try:
        with open(part, "wb", buffering=_BUFFER) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        error.filename = error.filename or str(path)  # write() names no file; the user needs to know which
        raise
    finally:
        part.unlink(missing_ok=True)


def mend_last_line(path: str | os.PathLike) -> int:
    """Make an append-only JSONL file end in a whole line, so that the next append starts on its own line.

    A last line without newline gets one if it is whole JSON, and is cut off if it is not (the writer was killed
    in the middle of it). Returns the number of bytes cut; a missing file counts as fine.
    """
    import orjson

    if not os.path.exists(path):
        return 0
    with open(path, "r+b") as file:
        end = file.seek(0, os.SEEK_END)
        tail, start = b"", end
        while start > 0 and b"\n" not in tail:
            step = min(start, 1 << 16)
            start -= step
            file.seek(start)
            tail = file.read(step) + tail
        tail = tail.rpartition(b"\n")[2]
        if not tail:
            return 0
        try:
            orjson.loads(tail)
        except orjson.JSONDecodeError:
            file.truncate(end - len(tail))
            return len(tail)
        file.seek(end)
        file.write(b"\n")
        return 0


@contextlib.contextmanager
def _open(path: Path) -> Iterator[io.BufferedReader]:
    """Open ``path`` for reading, unpacked. Which packing it has is seen from the first bytes."""
    if not path.exists():
        raise UserError(f"{path}：找不到这个文件；请检查路径，当前目录是 {os.getcwd()}。")
    if path.is_dir():
        raise UserError(f"{path}：这是一个目录，请给出 JSON 或 JSONL 文件的路径。")
    with open(path, "rb", buffering=_BUFFER) as file:
        magic = file.peek(4)[:4]
        if magic.startswith(_GZIP):
            unpacked = gzip.GzipFile(fileobj=file, mode="rb")
        elif magic.startswith(_ZSTD):
            unpacked = _zstd().ZstdFile(file, "rb")
        else:
            yield file
            return
        try:
            with io.BufferedReader(unpacked, _BUFFER) as reader:
                yield reader
        except Exception as error:
            # ZstdError cannot be imported where its library is missing, hence by name
            if not isinstance(error, (EOFError, zlib.error, gzip.BadGzipFile)) and type(error).__name__ != "ZstdError":
                raise
            raise UserError(f"{path}：压缩文件不完整或已损坏（{error}）；请重新下载或重新压缩。") from None


def _zstd():
    try:
        from compression import zstd  # Python 3.14 and later
    except ImportError:
        try:
            from backports import zstd  # the same module for earlier versions; it notices a cut file
        except ImportError:
            raise UserError(
                "读取 .zst 文件需要一个库：请运行 pip install backports.zstd，或先用 zstd -d 解压。"
            ) from None
    return zstd


def _skip_blanks(file: io.BufferedReader) -> int:
    """Skip a BOM and leading white space; return the number of newlines skipped."""
    if file.peek(3).startswith(_BOM):
        file.read(3)
    newlines = 0
    while chunk := file.peek(1):
        blanks = len(chunk) - len(chunk.lstrip())
        newlines += chunk[:blanks].count(b"\n")
        file.read(blanks)
        if blanks < len(chunk):
            break
    return newlines


def _read_lines(path, file: io.BufferedReader, lines_before: int, on_bad: OnBad | None) -> Iterator[tuple[str, dict]]:
    import orjson

    for number, line in enumerate(file, lines_before + 1):
        try:
            obj = orjson.loads(line)
        except orjson.JSONDecodeError:
            if line.isspace():
                continue
            _bad(UserError(f"{path}:{number}：{_why_not_json(line)}"), on_bad)
            continue
        if isinstance(obj, dict):
            yield f"{path}:{number}", obj
        else:
            kind = type(obj).__name__
            _bad(UserError(f"{path}:{number}：这一行是 {kind} 而不是 JSON 对象；每行须是一个 {{...}}。"), on_bad)


def _why_not_json(line: bytes) -> str:
    """Say in one sentence why a line is no JSON and what mends it."""
    if reason := _why_not_text(line):
        return reason
    if not line.endswith(b"\n"):
        return "最后一行不完整（写入时被中断，或文件没有下载完）；请删去这一行，或重新生成、重新下载。"
    text = line.decode()
    try:
        json.loads(text)
    except json.JSONDecodeError as error:  # its columns are right where orjson's are not: at the end of a line
        shown = text[max(0, error.colno - 11) : error.colno + 9].strip()
        return f"第 {error.colno} 列附近不是合法的 JSON：{shown!r}；每行须是一个完整的 JSON 对象，请改正或删去这一行。"
    return "JSON 里有 NaN、Infinity 或不成对的 \\ud800 一类转义，标准 JSON 不允许；请改正或删去这一行。"


def _why_not_text(data: bytes) -> str | None:
    """Say why ``data`` is not UTF-8 text, or None when it is (a cut character at the end is no fault)."""
    if data.startswith(_UTF16):
        return "文件是 UTF-16 编码；请转成 UTF-8：iconv -f UTF-16 -t UTF-8 原文件 > 新文件。"
    if b"\0" in data:
        return "这是二进制文件，不是 JSON 文本；请检查路径是否给错。"
    try:
        data.decode()
        return None
    except UnicodeDecodeError as error:
        if error.reason == "unexpected end of data":
            return None
    try:
        data.decode("gb18030")
    except UnicodeDecodeError:
        return "文字不是 UTF-8 编码，可能是二进制文件；请检查路径，或把文件转成 UTF-8。"
    return "文字像是 GBK 编码而不是 UTF-8；请先转换：iconv -f GB18030 -t UTF-8 原文件 > 新文件。"


class _LastByte:
    """A reader that remembers the last byte that was no white space: a whole array ends in ``]``."""

    def __init__(self, file: BinaryIO):
        self.file, self.last = file, b""

    def read(self, size: int = -1) -> bytes:
        data = self.file.read(size)
        self.last = data.rstrip()[-1:] or self.last
        return data


def _read_array(path, file: io.BufferedReader, on_bad: OnBad | None) -> Iterator[tuple[str, dict]]:
    import ijson

    head = bytes(file.peek(1)[:4096])
    reader = _LastByte(file)
    number = 0
    try:
        for number, obj in enumerate(ijson.items(reader, "item", use_float=True, buf_size=_BUFFER), 1):
            if isinstance(obj, dict):
                yield f"{path} 第 {number} 条", obj
            else:
                kind = type(obj).__name__
                _bad(UserError(f"{path} 第 {number} 条：是 {kind} 而不是 JSON 对象；数组里须全是 {{...}}。"), on_bad)
    except (ijson.JSONError, UnicodeDecodeError) as error:  # IncompleteJSONError is one
        raise UserError(f"{path}：{_why_array_broke(head, number, reader, error)}") from None


def _why_array_broke(head: bytes, read: int, reader: _LastByte, error: Exception) -> str:
    message = str(error)
    if reason := _why_not_text(head):
        return reason
    while reader.read(_BUFFER):
        pass
    if "premature EOF" in message or (reader.last != b"]" and "trailing garbage" not in message):
        return f"JSON 数组在第 {read} 条记录之后被截断，结尾没有 ]；请重新下载或重新生成这个文件。"
    if "invalid bytes in UTF8" in message or isinstance(error, UnicodeDecodeError):
        return f"第 {read + 1} 条附近的文字不是 UTF-8 编码；请用 iconv 转成 UTF-8。"
    return f"JSON 数组在第 {read + 1} 条附近有语法错误（{message.splitlines()[0]}）；请改正后重试。"


def _bad(error: UserError, on_bad: OnBad | None) -> None:
    if on_bad is None:
        raise error
    on_bad(error)
