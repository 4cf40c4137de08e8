"""The looks at a record: why prep can't use it, and what is suspicious in one that it can use.

    read(raw, kind, is_array, is_last) -> Record | Look       one record, or why prep can't use it
    suspicions(record) -> Iterator[Look]                      of a record that prep can use
    file_look(error, path, default) -> Look                   a UserError about a file as a whole

Whether a record can be used is never decided here: parse_record and read_fields decide, as they do for prep, so that the
doctor and prep can't disagree. What is looked at here only puts a better name on what they refuse (errors), or names
what they accept and yet is suspicious (warnings).
"""

import difflib
import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from .chatml import BEGIN, END, Fields
from .errors import UserError
from .findings import Look, shorten
from .formats import format_of
from .jsonl import parse_record
from .scan import read_fields

_LONG = 1 << 20  # bytes of a record


class Record(NamedTuple):
    """A record that prep can read, and what it reads from it."""

    raw: bytes
    obj: dict[str, Any]
    fields: Fields
    has_roles: bool  # its fields are the messages of a conversation

    def name_of(self, field: str) -> str:
        return _SPEAKERS[field] if self.has_roles else field


_SPEAKERS = {"instruction": "系统", "input": "用户", "output": "智能助手", "other": "用户"}


def read(raw: bytes, kind: str, is_array: bool, is_last: bool) -> Record | Look:
    """The record, or why prep can't use it."""
    try:
        obj = parse_record(raw, "", is_array)
    except (UserError, ValueError, RecursionError):
        return _broken(raw, is_array, is_last)
    try:
        fields, messages = read_fields(obj, kind)
    except (ValueError, AttributeError) as error:
        return _unusable(obj, kind, str(error))
    has_roles = messages[0]["role"] == "system" or fields[0][0] != "instruction"
    return Record(raw, obj, fields, has_roles)


def file_look(error: Exception, path: str, default: str) -> Look:
    """Name an error about a whole file. Messages of this project read "PATH：what；mend。"."""
    if isinstance(error, RecursionError):
        return Look(default, "", "括号嵌套太深", "这不是问答记录，请检查这个文件")
    text = str(error).replace(f"{path} ", "").replace(f"{path}：", "").rstrip("。")
    what, _, mend = text.rpartition("；")
    kind = next((kind for words, kind in _FILE_KINDS if words in text), default)
    return Look(kind, "", what or text, mend or "请检查这个文件")


_FILE_KINDS = (
    ("找不到", "missing_file"),
    ("这是一个目录", "directory"),
    ("文件是空的", "empty_file"),
    ("压缩文件", "cut_archive"),
    ("被截断", "cut_array"),
    ("已经结束", "text_after_array"),
    ("parquet 文件", "broken_parquet"),
)


def _broken(raw: bytes, is_array: bool, is_last: bool) -> Look:
    """Why ``raw`` is no JSON object: the first of the usual mistakes that fits, else where its syntax breaks."""
    try:
        text = raw.decode().strip()
    except UnicodeDecodeError as wrong:
        return _not_text(raw, wrong, is_last)
    if "\0" in text:
        return Look(
            "null_bytes", "", "含零字节，多半是断电或磁盘出错留下的", "请重新生成或重新下载这个文件，或删去这一条"
        )
    try:
        value = json.loads(text)
    except json.JSONDecodeError as wrong:
        return _syntax(text, wrong, is_array, is_last)
    except RecursionError:
        return Look("too_deep", "", "括号嵌套太深", "这不是一条问答记录，请删去")
    except ValueError:  # an integer of thousands of digits
        return Look("nan", "", "有一个过大的数", "请把它改成字符串，或删去这个字段")
    if not isinstance(value, dict):
        kind = {list: "数组", str: "字符串", type(None): "null"}.get(type(value), "数字或真假值")
        return Look("not_object", "", f"是{kind}而不是 JSON 对象：{shorten(text)}", "每条须是一个 {…}，请改正或删去")
    if half := re.search("[\ud800-\udfff]", json.dumps(value, ensure_ascii=False)):
        what = f"有不成对的转义 \\u{ord(half[0]):04x}（半个表情符号）"
        return Look("lone_surrogate", "", what, "请删去这个转义；多半是按字节数截断文字造成的，应按字截断")
    if text.count("[") + text.count("{") > 1000:  # as deep as orjson goes; the standard library may go deeper
        return Look("too_deep", "", "括号嵌套太深", "这不是一条问答记录，请删去")
    return Look("nan", "", "有 NaN、Infinity 或过大的数，标准 JSON 不允许", "请改成 null 或删去这个字段")


def _not_text(raw: bytes, error: UnicodeDecodeError, is_last: bool) -> Look:
    if is_last and error.reason == "unexpected end of data":
        return Look("cut_record", "", "在一个汉字的中间断开", "写入或下载时被中断；请删去这一条，或重新生成、重新下载")
    try:
        text = raw.decode("gb18030")
    except UnicodeDecodeError:
        what = f"第 {error.start + 1} 个字节 0x{raw[error.start]:02x} 起不是 UTF-8，也不是 GBK"
        return Look("not_utf8", "", what, "文件可能损坏，或中间混入了二进制内容；请重新生成或删去这一条")
    at = len(raw[: error.start].decode("gb18030", "ignore"))
    mend = "多半是把不同编码的文件接在了一起：请把原来的文件分别转成 UTF-8（iconv -f GB18030 -t UTF-8）后再合并"
    return Look("gbk_line", "", f"这一条是 GBK 编码而不是 UTF-8，按 GBK 读是{shorten(text, at)}", mend)


def _syntax(text: str, error: json.JSONDecodeError, is_array: bool, is_last: bool) -> Look:
    at, shown = error.pos, shorten(text, error.pos)
    here = text[at:]
    before = text[:at].rstrip()
    if text.startswith("\ufeff"):
        return Look("bom_inside", "", "开头有 BOM（U+FEFF）", "多半是把几个带 BOM 的文件接在了一起；请删去这个字符")
    if is_last and (not here.strip() or error.msg.startswith("Unterminated") or not text.endswith(("}", "]"))):
        return Look("cut_record", "", f"没有写完：结尾是{shorten(text, max(0, len(text) - 12))}",
                    "写入或下载时被中断；请删去这一条，或重新生成、重新下载")  # fmt: skip
    if error.msg.startswith("Extra data") and here.startswith("{"):
        return Look(
            "concatenated",
            "",
            f"一条里有几个对象连在一起：第 {at + 1} 个字符处是 }}{{",
            "请在 } 与 { 之间换行；可用 jq -c . 文件",
        )
    breaks_off = error.msg.startswith("Unterminated string") and not is_array  # the string goes on in the next line
    if breaks_off or error.msg.startswith("Invalid control character"):
        return Look("newline_in_string", "", f"字符串里有真的换行或制表符：{shown}",
                    "在字符串里它们须写成 \\n、\\t；请用 json.dumps 一类程序写 JSON，不要自己拼接")  # fmt: skip
    if text.startswith(("{'", "[{'")) or here.startswith("'"):
        return Look(
            "single_quotes",
            "",
            f"用了单引号（Python 的写法）：{shown}",
            "JSON 须用双引号；请用 json.dumps(记录, ensure_ascii=False) 写，不要用 str()",
        )
    if before.endswith(",") and here[:1] in "}]":
        return Look("trailing_comma", "", f"第 {at + 1} 个字符前多了一个逗号：{shown}", "请删去 } 或 ] 前面的逗号")
    if here.startswith(("True", "False", "None")):
        return Look(
            "python_literal",
            "",
            f"写成了 Python 的 {re.match('[A-Za-z]+', here)[0]}",
            "JSON 里须写成 true、false、null；请用 json.dumps 写",
        )
    return Look(
        "syntax", "", f"第 {at + 1} 个字符附近不是合法的 JSON：{shown}", "每条须是一个完整的 {…}，请改正或删去这一条"
    )


def _unusable(obj: dict[str, Any], kind: str, reason: str) -> Look:
    """Put a name on what read_fields says of a record."""
    if look := _other_form(obj, kind):
        return look
    named = re.search(r"([a-z]+) 字段|^(history|conversations?|messages) ", reason)
    field = (named[1] or named[2]) if named else "text" if kind == "hit" else ""
    found, mend = next(
        ((name, mend) for words, name, mend in _REASONS if re.search(words, reason)),
        ("bad_record", "请改正或删去这一条"),
    )
    if found == "missing_field" and obj.get(field) is not None:
        found, reason = "wrong_type", f"{field} 字段是 {type(obj[field]).__name__}，应为字符串"
    elif found == "missing_field" and (alike := difflib.get_close_matches(field, obj, 1, 0.7)) and alike[0] != field:
        mend = f"有一个相近的字段 {alike[0]}，是不是写错了？请改成 {field}"
    return Look(found, field, reason.partition("；")[0], mend)


def _other_form(obj: dict[str, Any], kind: str) -> Look | None:
    """A record that another flag would read."""
    try:
        form = format_of(obj)
    except ValueError:
        return None
    expected = {"hit": "chatml", "firefly": "alpaca"}.get(kind, form)
    flag = {"chatml": "--hit-jsonl 文件", "alpaca": "--firefly-json 文件"}.get(form, "--source 名字=文件")
    if form == expected or (kind == "hit" and "text" in obj) or "instruction" in obj and form != "alpaca":
        return None
    return Look("wrong_flag", "", f"这是 {form} 格式的记录，不是这个参数要的 {expected}", f"请改用 {flag} 给出这个文件")


_REASONS = (
    ("^缺少 |^没有 text", "missing_field", "请补上这个字段，或删去这一条；每条须有 instruction、input、output，HIT 须有 text"),
    ("字段是|应为字符串|^history 应|应是非空的|没有 human", "wrong_type", "请按说明改成这种形状，或删去这一条"),
    ("^认不出", "unknown_form", "请看 README 中各种格式的字段名"),
    ("不是 HIT ChatML", "chatml_no_begin", f"每段须以 {BEGIN}角色 开始、以 {END} 结束"),
    ("没有以", "chatml_no_end", f"请补上 {END}；若是生成时被截断，请删去这一条"),
    ("多余的文字", "chatml_stray_text", "请把它放进某一段里，或删去"),
    ("角色是", "unknown_role", "请改成允许的角色，各占一段"),
    ("「系统」只能|轮应为|缺少「智能助手」|没有「用户」", "turn_order", "须是（系统）、用户、智能助手、用户、智能助手……"),
    ("是空的$", "empty_message", "请补上内容，或删去这一条"),
    ("工具", "tools", "请删去这一条，或先转换成纯文字的对话"),
)  # fmt: skip


def suspicions(record: Record) -> Iterator[Look]:
    if len(record.raw) > _LONG:
        size = f"这一条有 {len(record.raw) / _LONG:.1f} MB"
        yield Look("huge_record", "", size, "多半是引号或括号错位把许多条并成了一条，或混入了文件内容；请检查")
    if key := _key_twice(record):
        yield Look("duplicate_keys", key, f"字段 {key} 出现了两次，只有后一个算数", "请删去其中一个")
    for field, text in record.fields:
        name = record.name_of(field)
        if not text:
            yield Look("empty_field", name, f"{name} 是空的，prep 会丢弃这一条", "请补上内容，或删去这一条")
            continue
        if len(text) < 20 and _PLACEHOLDERS[field == "input"].fullmatch(text):
            yield Look(
                "placeholder",
                name,
                f"{name} 是占位文字{shorten(text)}",
                "请写上真正的内容；没有输入时 input 应是空字符串",
            )
        if field == "output" and (look := _cut(name, text)):
            yield look
        if _ODD.search(text):
            yield from _odd(name, text)


def _key_twice(record: Record) -> str | None:
    """A key that an object holds twice. Parsing again is slow, so keys are counted first."""
    values = record.obj.values()
    colons = record.raw.count(b'":') + record.raw.count(b'" :')
    if colons == len(record.obj) and all(value is None or type(value) is str for value in values):
        return None
    twice: list[str] = []

    def look(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            twice.append(next(name for name in names if names.count(name) > 1))
        return found

    try:
        json.loads(record.raw, object_pairs_hook=look)
    except (ValueError, RecursionError):  # what orjson takes and json does not, such as a number of 5000 digits
        return None
    return twice[-1] if twice else None


_JUNK = (
    r"(?i:todo\b.*|x{3,}|test|测试|none|null|n/a|nan|undefined|\.{3,}|…+|待补充|待填写|待完善|占位符?|lorem ipsum.*)"
)
_PLACEHOLDERS = (re.compile(_JUNK), re.compile(_JUNK + r"|无|没有|<no ?input>"))  # the second: of an input
# Read by eye on 18,458 real records: ；and a bare 与 or 为 end whole answers too, and so do the blanks of a form.
_UNFINISHED = re.compile(
    r"[,，、（(“《—]$|(?<!日期)(?<!时间)(?<!签名)(?<!签字)(?<!盖章)(?<!姓名)(?<!电话)(?<!地址)[:：]$"
    r"|(?:(?<![总柔饱温缓共调平中随亲])和|以及|因为|但是|而且|并且|由于|例如|比如|如果|虽然|然而|因此|所以)$"
)


def _cut(name: str, text: str) -> Look | None:
    if not _UNFINISHED.search(text, max(0, len(text) - 4)) and text.count("```") % 2 == 0:
        return None
    what = f"像是没有说完，结尾是{shorten(text, max(0, len(text) - 12))}"
    return Look("cut_answer", name, what, "多半是生成时到了长度上限；请加大 max_tokens 重新生成，或删去这一条")


_ODD = re.compile(  # one character of each pattern below: most texts have none
    "[\ufffd锟烫屯锛銆鈥Ã-ï\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ue000-\uf8ff\U000f0000-\U0010fffd<&\\\\#]|\\[/?INST"
)
_REDO = "原文已经丢失：请用正确的编码（encoding='utf-8'）从源头重新读取"
_PATTERNS = tuple(
    (kind, re.compile(pattern), what, mend)
    for kind, pattern, what, mend in (
        ("mojibake", "\ufffd|锟斤拷|烫烫|屯屯屯", "有解码失败留下的乱码", _REDO),
        ("mojibake", "ï»¿|(?:[Ã-ï][\x80-\xbf\u0152-\u2122]{1,2}){2}", "有 UTF-8 被当作 Latin-1 读成的乱码", "可试 text.encode('latin-1').decode('utf-8')，或从源头用 UTF-8 重新读取"),
        ("mojibake", "[锛銆鈥][^\n]{0,200}?[锛銆鈥]", "有 UTF-8 被当作 GBK 读成的乱码", "可试 text.encode('gb18030').decode('utf-8')，或从源头用 UTF-8 重新读取"),
        ("control_character", "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]", "有看不见的控制字符", "请删去"),
        ("private_use", "[\ue000-\uf8ff\U000f0000-\U0010fffd]", "有私用区字符（PDF 或图标字体留下的）", "请换成真正的文字或删去"),
        ("html", r"&(?:nbsp|lt|gt|amp|quot|ldquo|rdquo|mdash|hellip|#\d+);|</?(?:br|p|div|span|a|font|strong|img|li|ul|td|tr|table)\b[^<>]{0,200}>", "有 HTML 残留", "请用 html.unescape 还原，去掉标签，<br> 换成换行"),
        ("literal_newline", r"\\[nrt](?![A-Za-z])", "有字面的反斜线加 n，多半是转义了两次", "请换成真的换行：text.replace('\\\\n', '\\n')"),
        ("foreign_marker", r"<\|(?!beginofutterance|endofutterance)[a-z_]{2,30}\|>|\[/?INST\]|<</?SYS>>|</?s>|<(?:start|end)_of_turn>|### (?:Instruction|Response|Input):", "有别的模型的模板标记", "请删去：训练时会自动加上模板，写在内容里会学坏"),
        ("own_marker", re.escape(BEGIN) + "|" + re.escape(END), "有 HIT ChatML 的标记，prep 会丢弃这一条", "请删去标记；若整条就是 HIT ChatML，请用 --hit-jsonl 给出"),
    )
)  # fmt: skip


def _odd(name: str, text: str) -> Iterator[Look]:
    """Patterns in a text, each kind once. Code may show tags and backslashes; a text of several lines has real ones."""
    seen = set()
    for kind, pattern, what, mend in _PATTERNS:
        if kind in seen or (kind == "html" and "```" in text) or (kind == "literal_newline" and "\n" in text):
            continue
        if match := pattern.search(text):
            seen.add(kind)
            yield Look(kind, name, f"{what}：{shorten(text, match.start())}", mend)
