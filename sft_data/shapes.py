"""What a file is, told from its first megabyte, and records told apart in text whose structure is broken.

encoding_of(head) -> (codec, Look) | None       UTF-16 or GBK; recoded(pieces, codec) gives it as UTF-8
other_file(head) -> Look | None                 a web page, a zip, a pointer of git-lfs, ...: no records in it
array_inside(head) -> (key, place) | None       {"data": [{...}, ...]}
is_multiline(head) -> bool                      one JSON object over several lines
objects(pieces, key) -> Iterator[(newlines before it, bytes)]
"""

import codecs
import json
import re
from collections import Counter
from collections.abc import Iterator
from itertools import islice

from .findings import Look

_LONGEST = 16 << 20  # characters of an object in broken text
_STEP = 1 << 14  # bytes of it looked at together: what json says of an error costs as much as all text before it
_DEEP = 4096  # characters to pass over where brackets are nested by the thousand
_RECORD_KEYS = "instruction|input|output|target|kind|text|messages|conversations?|conversation_id|id|system|category"


def encoding_of(head: bytes) -> tuple[str, Look] | None:
    for codec, pattern in _UTF16:
        if pattern.match(head):
            name = "带 BOM" if codec == "utf-16" else f"没有 BOM，{codec[-2:].upper()}"
            mend = f"请转换：iconv -f {codec.upper()} -t UTF-8 原文件 > 新文件"
            return codec, Look("utf16_file", "", f"整个文件是 UTF-16 编码（{name}）而不是 UTF-8", mend)
    lines = _codecs(head)
    if lines["gb18030"] <= lines["utf-8"] or _is_binary(head, lines):
        return None
    mend = "请转换：iconv -f GB18030 -t UTF-8 原文件 > 新文件"
    return "gb18030", Look("gbk_file", "", "整个文件是 GBK（GB18030）编码而不是 UTF-8；以下各处按 GBK 读", mend)


_UTF16 = (
    ("utf-16", re.compile(rb"\xff\xfe|\xfe\xff")),
    ("utf-16-le", re.compile(rb"(?:[ \r\n\t]\0)*[\[{]\0", re.DOTALL)),
    ("utf-16-be", re.compile(rb"(?:\0[ \r\n\t])*\0[\[{]", re.DOTALL)),
)


def _codecs(head: bytes) -> Counter[str]:
    """How many lines that are not ASCII are UTF-8, how many GB18030, how many neither ("")."""
    *lines, last = head.split(b"\n")
    found = Counter(_codec(line, True) for line in lines if not line.isascii())
    return found + Counter([_codec(last, False)] * (not last.isascii()))  # the head may end within a character


def _codec(line: bytes, is_whole: bool) -> str:
    for codec in ("utf-8", "gb18030"):
        try:
            codecs.getincrementaldecoder(codec)().decode(line, is_whole)
        except UnicodeDecodeError:
            continue
        return codec
    return ""


def recoded(pieces: Iterator[bytes], codec: str) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder(codec)("replace")
    for piece in pieces:
        if text := decoder.decode(piece):
            yield text.encode(errors="replace")
    if text := decoder.decode(b"", True):
        yield text.encode(errors="replace")


def other_file(head: bytes) -> Look | None:
    """Nothing that begins like these is read by prep, so to say so once is enough."""
    begin = head[:200].lstrip()
    for pattern, name, mend in _OTHERS:
        if re.match(pattern, begin):
            return Look("other_file", "", f"这是{name}，不是 JSON 数据", mend)
    if _is_binary(head, _codecs(head)):
        return Look("binary", "", "这是二进制文件，不是 JSON 文本", "请检查路径是否给错")
    return None


_OTHERS = (
    (rb"(?i)<!doctype html|<html", "一个网页（多半是下载链接失效，存下了报错的页面）", "请重新下载：用原始文件的链接（raw 或 resolve）"),
    (rb"version https://git-lfs", " git-lfs 的指针，真正的数据还没有下载", "请运行 git lfs pull，或从网页下载这个文件"),
    (rb"PK\x03\x04", "一个 zip 一类的文件（zip、xlsx、docx）", "请先解压，或另存为 JSONL"),
    (rb"\x1f\x8b|\x28\xb5\x2f\xfd", "压缩了两次的文件", "请先解压一次"),
    (rb"7z\xbc\xaf|Rar!|\xfd7zXZ|BZh\d", "一个这里不认识的压缩文件", "请先解压，或改用 gzip、zstd"),
    (rb"%PDF|\x89PNG|\xff\xd8\xff|\x93NUMPY|SQLite", "一个别的类型的文件（PDF、图片、数据库……）", "请检查路径是否给错"),
    (rb'"?(?:instruction|input|output|text|prompt|question|system)"?[,\t]', "一个 CSV 或 TSV 表格", "请转换：pandas.read_csv(原文件).to_json(新文件, orient='records', lines=True, force_ascii=False)"),
)  # fmt: skip


def _is_binary(head: bytes, lines: Counter[str]) -> bool:
    """Neither text nor anything that begins like a record, on any line: a file with one bad sector is still looked at."""
    return (
        (b"\0" in head or lines[""] > 0)
        and not re.search(rb'(?m)^\s*\[?\s*\{\s*["\']\w', head)
        and head[:1] not in b"{["
    )


def array_inside(head: bytes) -> tuple[Look, int] | None:
    """Of an object that holds the records in an array: what to say, and where in ``head`` the array begins."""
    found = re.match(rb'[^\[\]]{0,2000}?"([^"\\\n]{1,40})"\s*:\s*(?=\[\s*\{\s*"(?:%s)")' % _RECORD_KEYS.encode(), head)
    if not found or found[1] in (b"messages", b"conversation", b"conversations", b"history"):
        return None
    key = found[1].decode(errors="replace")
    mend = f"请取出数组：jq -c '.{key}[]' 原文件 > 新文件.jsonl"
    return Look("wrong_root", key, f"整个文件是一个对象，记录在它的 {key} 里", mend), found.end()


def multiline(begin: bytes) -> Look | None:
    """Of a file whose first line is no record: whether its first object ends on a later line."""
    text = begin.decode(errors="replace")
    try:
        several = text.startswith("{") and "\n" in text[: _DECODER.raw_decode(text)[1]]
    except (ValueError, RecursionError):
        several = begin.partition(b"\n")[0].strip() == b"{" and b"\n" in begin
    what = "一条记录分成了多行写（带缩进的 JSON）；JSONL 须一行一条"
    return Look("multiline_records", "", what, "请转换：jq -c . 原文件 > 新文件.jsonl") if several else None


def key_of(head: bytes) -> str:
    """The key that records begin with: only there is one looked for, and not at the messages inside it."""
    found = re.search(rb'\{\s*"(%s)"' % _RECORD_KEYS.encode(), head)
    return found[1].decode() if found else ""


_DECODER = json.JSONDecoder()
_BETWEEN = re.compile(r"[\s,\[\]}\ufeff]*")


def objects(pieces: Iterator[bytes], key: str) -> Iterator[tuple[int, bytes]]:
    """Yield what may be records, one behind the other, and whatever is between: nothing but ``, [ ] }`` is left out."""
    start = re.compile(r"\{\s*" + (f'"{key}"' if key else "[\"']"))
    decode = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
    steps = (piece[i : i + _STEP] for piece in pieces for i in range(0, len(piece), _STEP))
    text, at, line, ended = "", 0, 0, False
    while True:
        begin = _BETWEEN.match(text, at).end()
        line, at = line + text.count("\n", at, begin), begin
        end = _end_of(text, at, start, ended) if at < len(text) else None
        if end is None and ended:
            return
        if end is None:
            more = b"".join(islice(steps, 1 + (len(text) - at) // _STEP))  # twice as much as there is
            text, at, ended = text[at:] + decode(more, not more), 0, not more
        else:
            yield line, text[at:end].rstrip(" \t\r\n,]").encode(errors="surrogateescape")
            line, at = line + text.count("\n", at, end), end


def _end_of(text: str, at: int, start: re.Pattern, ended: bool) -> int | None:
    """Where the value at ``at`` ends or, if it is broken, where the next object begins; None: more text is needed."""
    is_full, next_from = ended or len(text) - at >= _LONGEST, at + 1
    try:
        return _DECODER.raw_decode(text, at)[1]
    except json.JSONDecodeError as error:
        reaches_end = error.msg.startswith("Unterminated string") or error.pos > len(text) - 16
    except RecursionError:
        reaches_end, next_from = False, at + _DEEP
    except ValueError:  # an integer of thousands of digits
        reaches_end = False
    if reaches_end and not is_full:
        return None
    if found := start.search(text, next_from):
        return found.start()
    return len(text) if is_full else None
