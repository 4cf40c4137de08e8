"""What the doctor can find: its kinds, and a place where findings are counted, written down and the worst shown.

    KINDS                                  {kind: (severity, Chinese name)}
    Look                                   something found, wherever it is
    Findings(file).add(look, place)        one more; show() tells of them all in the end
    Twins().add(...) / findings(...)       records that are wholly equal

Memory does not grow with the number of findings: they go to the file, and the first of each kind are kept to show.
"""

import sys
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from hashlib import blake2b
from operator import itemgetter
from typing import BinaryIO, NamedTuple, TextIO

import numpy as np

from .blocks import name_place
from .jsonl import dump_line

_ERRORS = {
    "missing_file": "找不到文件", "directory": "给的是目录", "unreadable": "打不开", "empty_file": "空文件",
    "other_file": "不是数据文件", "binary": "二进制文件", "utf16_file": "UTF-16 编码",
    "gbk_file": "GBK 编码", "cut_archive": "压缩文件不完整", "broken_parquet": "parquet 损坏",
    "cut_array": "JSON 数组被截断", "broken_array": "JSON 数组有语法错误",
    "text_after_array": "JSON 数组之后还有内容", "wrong_root": "记录包在一个对象里",
    "multiline_records": "一条记录占了多行", "gbk_line": "这一条是 GBK 编码",
    "not_utf8": "这一条不是 UTF-8", "null_bytes": "含零字节", "bom_inside": "文件中间有 BOM",
    "cut_record": "最后一条不完整", "newline_in_string": "字符串里有真的换行或制表符",
    "concatenated": "几个对象连在一起", "single_quotes": "用了单引号", "trailing_comma": "多了一个逗号",
    "python_literal": "写成了 True、False、None", "nan": "有 NaN、Infinity 或过大的数",
    "lone_surrogate": "有半个 \\ud800 转义", "too_deep": "嵌套太深", "syntax": "不是合法的 JSON",
    "not_object": "不是 JSON 对象", "wrong_flag": "给错了参数", "missing_field": "缺少字段",
    "wrong_type": "字段类型不对", "unknown_form": "认不出格式", "chatml_no_begin": "没有开始标记",
    "chatml_no_end": "没有结束标记", "chatml_stray_text": "标记之外有文字", "unknown_role": "角色不对",
    "turn_order": "对话顺序不对", "empty_message": "对话中有空的一条", "tools": "有工具调用或图片",
    "bad_record": "这条记录读不了",
}  # fmt: skip
_WARNINGS = {
    "no_records": "一条记录也没有", "duplicate_keys": "同名字段出现两次", "empty_field": "字段是空的",
    "mojibake": "乱码", "control_character": "控制字符", "private_use": "私用区字符", "html": "HTML 残留",
    "literal_newline": "字面的 \\n", "foreign_marker": "别的模型的标记", "own_marker": "含 HIT ChatML 标记",
    "cut_answer": "回答像是没有说完", "placeholder": "占位文字", "huge_record": "超过 1 MB",
}  # fmt: skip
_NOTES = {"utf8_bom": "UTF-8 BOM", "blank_lines": "空行", "crlf": "CRLF 换行", "duplicate": "完全重复"}
SEVERITIES = ("error", "warning", "note")
KINDS = {  # {kind: (severity, Chinese name)}
    kind: (severity, name)
    for severity, names in zip(SEVERITIES, (_ERRORS, _WARNINGS, _NOTES), strict=True)
    for kind, name in names.items()
}
_SHOWN, _OF_ONE_KIND = 20, 3  # findings shown in full


class Look(NamedTuple):
    """Something found. field: "" where it is about the whole record or file; what, mend: Chinese."""

    kind: str
    field: str
    what: str
    mend: str


class Place(NamedTuple):
    """number: of the line, or of the element of an array, from 1; 0 is the whole file."""

    source: str
    path: str
    number: int
    is_array: bool

    def __str__(self) -> str:
        return name_place(self.path, self.number, self.is_array) if self.number else self.path


class Findings:
    """Everything found. ``file`` takes it all, as JSONL."""

    def __init__(self, file: BinaryIO):
        self.file = file
        self.counts: Counter[str] = Counter()
        self.first: dict[str, list[tuple[Place, Look]]] = {}
        self.files = self.records = self.fine = 0

    def add(self, look: Look, place: Place) -> None:
        severity = KINDS[look.kind][0]
        look = look._replace(field=_plain(look.field, 40), what=_plain(look.what, 160))
        self.counts[look.kind] += 1
        shown = self.first.setdefault(look.kind, [])
        if len(shown) < _OF_ONE_KIND:
            shown.append((place, look))
        place = place._replace(path=place.path.encode(errors="replace").decode())  # a name in another encoding
        where = {"where": str(place), "file": place.path, "line": place.number, "source": place.source}
        self.file.write(dump_line({"severity": severity, **look._asdict(), **where}))

    def add_record(self, looks: list[Look], place: Place) -> None:
        """A record is fine when there is nothing in it, or notes alone."""
        self.records += 1
        self.fine += all(KINDS[look.kind][0] == "note" for look in looks)
        for look in looks:
            self.add(look, place)

    def has_trouble(self) -> bool:
        return any(KINDS[kind][0] != "note" for kind in self.counts)

    def show(self, path: str, to: TextIO | None = None) -> None:
        """Print the summary: numbers, every kind with its first place, the worst in full, and where all of them are."""
        to = to or sys.stderr
        print(f"检查了 {self.files} 个文件、{self.records} 条记录，{self.fine} 条没有问题。", file=to)
        if not self.counts:
            print("没有发现任何问题。", file=to)
            return
        order = sorted(self.counts, key=lambda kind: (SEVERITIES.index(KINDS[kind][0]), -self.counts[kind]))
        for kind in order:
            severity, name = KINDS[kind]
            print(
                f"  {_LEVELS[severity]}  {name}（{kind}）：{self.counts[kind]} 处，首先在 {self.first[kind][0][0]}",
                file=to,
            )
        worst = [item for kind in order if KINDS[kind][0] != "note" for item in self.first[kind]][:_SHOWN]
        if worst:
            print(f"最要紧的 {len(worst)} 处（每种至多 {_OF_ONE_KIND} 处）：", file=to)
        for place, look in worst:
            field = f" {look.field}" if look.field else ""
            print(f"  {place}{field}：{look.what}。→ {look.mend}。", file=to)
        print(f"全部 {self.counts.total()} 处写在 {path}（每行一处，JSONL）。", file=to)


_LEVELS = {"error": "错误", "warning": "警告", "note": "提示"}


class Twins:
    """Finds equal records by 64 bits of a hash: 12 bytes a record, and as much again while they are sorted."""

    def __init__(self) -> None:
        self.keys, self.numbers = array("Q"), array("I")
        self.files: list[tuple[int, Place]] = []  # how many records came before, and the file

    def begin(self, place: Place) -> None:
        self.files.append((len(self.keys), place))

    def add(self, text: str, number: int) -> None:
        self.keys.append(int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little"))
        self.numbers.append(min(number, 0xFFFFFFFF))

    def place(self, row: int) -> Place:
        place = self.files[bisect_right(self.files, row, key=itemgetter(0)) - 1][1]
        return place._replace(number=self.numbers[row])

    def findings(self) -> Iterator[tuple[Look, Place]]:
        keys = np.frombuffer(self.keys, np.uint64) if self.keys else np.empty(0, np.uint64)
        order = np.argsort(keys, kind="stable")
        same = np.concatenate([[False], np.diff(keys[order]) == 0]) if len(keys) else np.empty(0, bool)
        firsts = np.maximum.accumulate(np.where(same, 0, np.arange(len(keys))))
        places = np.flatnonzero(same)
        for at in places[np.argsort(order[places])].tolist():
            first = self.place(int(order[firsts[at]]))
            yield Look("duplicate", "", f"与 {first} 完全相同", "prep 会自动只留一条"), self.place(int(order[at]))


def shorten(text: str, at: int = 0, length: int = 30) -> str:
    """Some text from ``at`` on (a little before it), as one line that a terminal shows safely."""
    start = max(0, at - 8)
    piece = " ".join(text[start : start + length].split())
    return f"「{'…' * (start > 0)}{_plain(piece, 240)}{'…' * (start + length < len(text))}」"


def _plain(text: str, length: int) -> str:
    """What a terminal shows safely and JSON can hold."""
    text = text if len(text) <= length else text[:length] + "…"
    return text if text.isprintable() else "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)
