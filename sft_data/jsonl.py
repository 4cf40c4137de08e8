"""Read and write JSON records: one reader and one writer for every script.

    read_records(path, on_bad=None) -> Iterator[tuple[str, dict]]    (where, object) for each record, streamed
    parse_record(raw, where, is_array) -> dict                       one record's bytes; UserError says what is wrong
    dump_line(obj) -> bytes                                          one JSON line, UTF-8, newline included
    mend_last_line(path) -> int                                      bytes cut off an append-only file after a kill

``path`` is a local file, or an address that fsspec knows (s3://bucket/x.jsonl). ``where`` is "file:LINE" in JSONL and
"file 第 N 条" in a JSON array or parquet: put it before every message about the record. The kinds, and gzip and zstd, are
told apart by content, never by name. A UTF-8 BOM is skipped, and so are blank lines. Everything that cannot be read
raises UserError; with ``on_bad`` a bad line or element is handed to it as that UserError and reading goes on. A file
that is broken as a whole always raises.
"""

import contextlib
import gzip
import io
import json
import os
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from .errors import UserError
from .storage import file_exists, is_remote, remote

OnBad = Callable[[UserError], None]

PARQUET = b"PAR1"
BOM = b"\xef\xbb\xbf"
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_BUFFER = 1 << 20


def read_records(path: str | os.PathLike, on_bad: OnBad | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield ``(where, object)`` for each record, in O(some records) of memory."""
    with open_unpacked(path) as file:
        if file.peek(4)[:4] == PARQUET:
            for number, record in enumerate(read_parquet(path, file), 1):
                yield f"{path} 第 {number} 条", record
            return
        is_array, records = _raw_records(path, file)
        for where, raw in records:
            try:
                record = parse_record(raw, where, is_array)
            except UserError as error:
                if on_bad is None:
                    raise
                on_bad(error)
            else:
                yield where, record


def _raw_records(path: str | os.PathLike, file: io.BufferedReader) -> tuple[bool, Iterator[tuple[str, bytes]]]:
    """Return whether it is an array, and (where, bytes) of each record."""
    lines_before, _ = skip_blanks(file)
    first = file.peek(1)[:1]
    if not first:
        raise UserError(f"{path}：文件是空的，里面没有任何记录；请检查上一步是否成功。")
    if first == b"[":
        from .blocks import name_place, split  # compiled: not for scripts that read lines only

        blocks = split(file, path)
        rows = ((b, i) for b in blocks for i in range(len(b.starts)))
        return True, ((name_place(path, b.numbers[i], True), b.data[b.starts[i] : b.ends[i]]) for b, i in rows)
    lines = enumerate(file, lines_before + 1)
    return False, ((f"{path}:{number}", line) for number, line in lines if not line.isspace())


def parse_record(raw: bytes, where: str, is_array: bool) -> dict[str, Any]:
    """Return the record that ``raw`` holds; UserError says where, what is wrong, and what mends it."""
    import orjson

    try:
        record = orjson.loads(raw)
    except orjson.JSONDecodeError:
        raise UserError(f"{where}：{_why_not_json(raw, is_array)}") from None
    if isinstance(record, dict):
        return record
    kind = type(record).__name__
    what = (
        "是 {} 而不是 JSON 对象；数组里须全是 {{...}}。"
        if is_array
        else "这一行是 {} 而不是 JSON 对象；每行须是一个 {{...}}。"
    )
    raise UserError(f"{where}：{what.format(kind)}")


def dump_line(obj: Any) -> bytes:
    """Return ``obj`` as one line of JSON. Text that is not valid Unicode (a lone surrogate) raises TypeError."""
    import orjson

    return orjson.dumps(obj, option=orjson.OPT_APPEND_NEWLINE)


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


def append_whole(file: BinaryIO, data: bytes) -> None:
    """Write ``data`` at the end of ``file``, or nothing: with no space left (OSError) it ends where it did."""
    size = file.seek(0, os.SEEK_END)
    try:
        written = file.write(data)
        while written < len(data):
            written += file.write(data[written:])
    except OSError:
        file.truncate(size)
        raise


@contextlib.contextmanager
def open_unpacked(path: str | os.PathLike) -> Iterator[io.BufferedReader]:
    """Open ``path`` for reading, unpacked. Which packing it has is seen from the first bytes."""
    with _open_raw(path) as file:
        magic = file.peek(4)[:4]
        if magic.startswith(_GZIP):
            unpacked = gzip.GzipFile(fileobj=file, mode="rb")
        elif magic.startswith(_ZSTD):
            unpacked = zstd_library().ZstdFile(file, "rb")
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


def _open_raw(path: str | os.PathLike) -> io.BufferedReader:
    if not file_exists(path):
        raise UserError(f"{path}：找不到这个文件；请检查路径，当前目录是 {os.getcwd()}。")
    if is_remote(path):
        filesystem, inside = remote(path)
        return io.BufferedReader(filesystem.open(inside, "rb"), _BUFFER)
    if os.path.isdir(path):
        raise UserError(f"{path}：这是一个目录，请给出 JSON 或 JSONL 文件的路径。")
    return open(path, "rb", buffering=_BUFFER)


def is_packed(path: str | os.PathLike) -> bool:
    """Whether a local file is anything else than plain text: gzip, zstd or parquet."""
    with open(path, "rb") as file:
        return file.read(4).startswith((_GZIP, _ZSTD, PARQUET))


def read_parquet(path: str | os.PathLike, file: io.BufferedReader) -> Iterator[dict[str, Any]]:
    """Yield the rows of a parquet file; a column that a row has nothing in is left out of it."""
    import pyarrow
    import pyarrow.parquet

    if not file.seekable():
        file = io.BytesIO(file.read())
    try:
        for batch in pyarrow.parquet.ParquetFile(file).iter_batches(4096):
            for row in batch.to_pylist():
                yield {name: value for name, value in row.items() if value is not None}
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise UserError(f"{path}：parquet 文件不完整或已损坏（{error}）；请重新下载或重新生成。") from None


def zstd_library() -> Any:
    """The standard library's compression.zstd, or the same module for earlier versions."""
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


def skip_blanks(file: io.BufferedReader) -> tuple[int, int]:
    """Skip a BOM and leading white space; return the numbers of newlines and of bytes skipped."""
    newlines, skipped = 0, 0
    if file.peek(3).startswith(BOM):
        skipped += len(file.read(3))
    while chunk := file.peek(1):
        blanks = len(chunk) - len(chunk.lstrip())
        newlines += chunk[:blanks].count(b"\n")
        skipped += len(file.read(blanks))
        if blanks < len(chunk):
            break
    return newlines, skipped


def _why_not_json(raw: bytes, is_array: bool) -> str:
    """Say in one sentence why a line or an element is no JSON and what mends it."""
    if reason := why_not_text(raw):
        return reason
    text = raw.decode(errors="replace")
    try:
        json.loads(text)
    except json.JSONDecodeError as error:  # its places are right where orjson's are not: at the end of a line
        if not is_array and not raw.endswith(b"\n") and wants_more(error, text):
            return "最后一行不完整（写入时被中断，或文件没有下载完）；请删去这一行，或重新生成、重新下载。"
        shown = text[max(0, error.pos - 10) : error.pos + 10].strip()
        place, unit = ("字符", "条") if is_array else ("列", "行")
        whole = "每个元素" if is_array else "每行"
        return f"第 {error.pos + 1} {place}附近不是合法的 JSON：{shown!r}；{whole}须是一个完整的 JSON 对象，请改正或删去这一{unit}。"
    except (ValueError, RecursionError) as error:
        return f"数字太长或嵌套太深，读不了（{type(error).__name__}）；请改正或删去这一条。"
    return "JSON 里有 NaN、Infinity 或不成对的 \\ud800 一类转义，标准 JSON 不允许；请改正或删去这一条。"


def wants_more(error: json.JSONDecodeError, text: str) -> bool:
    """Whether the parser wanted more where the text ends: in a string, in a literal or a number, or between them."""
    if error.msg.startswith("Invalid \\u"):
        return error.pos + 6 > len(text)
    return error.msg.startswith("Unterminated string") or not text[error.pos :].strip(
        " \t\r\nntruefalsNI-+.0123456789\\"
    )


def why_not_text(data: bytes) -> str | None:
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
