"""Gates that a record must pass. A gate returns the reason to drop a text, or None to keep it.

    normalise(text) -> str             the copy that gates and dedup look at: NFKC, one space for any white space
    normalise_all(texts) -> list       of each, at a third of the time
    tidy(text) -> str                  what is written: the original, stripped, without zero-width characters
    tidy_all(texts) -> list            of each, at a third of the time
    chinese_ratio(text) -> float       CJK ideographs over all characters
    check_length / check_chinese / check_output (text, ...) -> str | None
    find_in_output(text, ...) -> (str, str) | None       the same as check_output, with the words that it is about
    check_record(fields, gates) -> str | None       all of them over ("instruction" | "input" | "output" | "other", text)
    phrases() -> RE2 pattern           the quick look at an output, shared with screen.py: whether there is anything to find

Every gate expects a normalised text. Reasons are snake_case keys of the JSON report; ``label`` gives their Chinese.
"""

import functools
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .pii import check_pii

# A zero-width joiner between two emoji is part of the picture and stays.
_ZERO_WIDTH = re.compile("[\u200b\u200c\u200e\u200f\u2060\ufeff]|(?<![\u2600-\u27bf\ufe0f\U0001f000-\U0001faff])\u200d")
_CJK = re.compile("[\u3400-\u4dbf\u4e00-\u9fff]+")
_CJK_HIGH_BYTES = bytes([*range(0x34, 0x4E), *range(0x4E, 0xA0)])  # in UTF-16; 4D holds the hexagrams too
_BETWEEN = "␞"  # printable, no white space, and nothing to NFKC
_FULL_WIDTH = tuple((char, unicodedata.normalize("NFKC", char)) for char in "，：；！？（）")

# Refusals are about the speaker: words such as 违法 or 无法 alone would drop good answers on law or on machines, and
# 我是……人工智能助手 alone would drop the very records that teach a model who it is. Nor is BERT是一种语言模型 about the
# speaker. What was read by eye to choose these is in docs/DROPPED.md. screen.py hands them to RE2: no look-around.
_CANNOT = r"(?:不能|无法|无权|没有办法|不可以|不便(?:为|向|提供|回答|透露))"
_DECLINES = (
    rf"(?:抱歉|对不起|很遗憾|不好意思)[^。!?]{{0,12}}{_CANNOT}",
    r"我(?:目前|暂时|现在|还)?(?:无法|不能|没有办法|没办法|不便)(?:为(?:您|你))?"
    r"(?:直接|具体)?(?:回答|提供|协助|帮助|处理|满足|完成(?:您|你|这))"
    r"|根据(?:您|你)(?:所?提供)?的[^。!?]{0,8},我(?:无法|不能)(?:确定|判断)",
    r"(?i)\bas an AI\b|\bI'?m sorry,? but\b|\bI (?:cannot|can ?not|can[’']t|am unable to) (?:assist|help|provide|answer)",
)
_ONE = r"(?:一个|一名|一款|一种|个)?(?:虚拟的?|文字型)? ?"
_MODEL = r"(?:AI|人工智能|文本)?大?型?语言模型"
_I_AM = rf"我(?:只|仅)?是{_ONE}"
_AS = rf"(?:(?m:^)|[,。!?:; ]|我|但是?|由于|因为)作为{_ONE}"  # and not 你作为, nor ChatGPT作为
_DISCLAIMERS = (
    rf"{_I_AM}(?:AI|人工智能|文本)大?型?语言模型|{_AS}{_MODEL}[^。!?]{{0,24}}(?:我[^们]|{_CANNOT})",
    rf"(?:{_AS}|{_I_AM})(?:AI|人工智能|文本机器人|计算机程序|{_MODEL})[^。!?]{{0,20}}"
    r"(?:无法|不能|没有|不具备|并不|不会|不知道)",
)
REFUSALS = (*_DECLINES, *_DISCLAIMERS)
_OPENING = 100  # characters in which one declines: a good answer may say near its end what it leaves open
# 扫描二维码 or 关注公众号 alone is often plain advice; an advertisement points at itself.
ADVERTISEMENTS = (
    r"(?:扫|长按|识别)[^。!?]{0,6}(?:下方|下面|上方|上面|文末|图中|右侧|左侧|以下)的?[^。!?]{0,2}二维码",
    r"(?:添加|加)(?:我|客服|老师|小编)[^。!?]{0,4}微信|加微信|加我 ?(?:QQ|qq|VX|vx)|微信号:",
    r"关注(?:我们的?|本|小编的?|下方)(?:微信)?(?:公众号|公号)|私信(?:我|小编)|点击(?:下方|上方|此处|这里|以下)的?链接",
    r"(?:限时|立即|马上)(?:抢购|下单|优惠)|全场(?:包邮|[一二三四五六七八九0-9]折)|包邮(?:到家|哦|啦)",
)

URL = re.compile(r"https?://|www\.", re.IGNORECASE)


@dataclass(frozen=True)
class Gates:
    """Thresholds of the gates; the defaults are those of prep_sft_firefly_hit.py."""

    min_chinese_ratio: float = 0.6
    lengths: dict[str, tuple[int, int]] = field(
        default_factory=lambda: {"instruction": (20, 200), "input": (20, 300), "output": (80, 1200)}
    )
    drop_patterns: tuple[re.Pattern, ...] = ()
    max_urls: int = 5
    drop_pii: bool = False


def normalise(text: str) -> str:
    """Return the copy that gates and fingerprints look at; full-width and half-width forms become one.

    Putting the common punctuation's own NFKC first changes nothing in the end, and spares nearly every Chinese text the
    slow road inside ``unicodedata``: 2 us against 20. No zero-width character is printable.
    """
    for char, normal in _FULL_WIDTH:
        text = text.replace(char, normal)
    text = unicodedata.normalize("NFKC", text)
    line = " ".join(text.split())
    return line if line.isprintable() else " ".join(_without_zero_width(text).split())


def normalise_all(texts: Sequence[str]) -> list[str]:
    """``normalise`` of each: what a search for a character costs is mostly its beginning, so all are searched in one text."""
    whole = _BETWEEN.join(texts)
    if whole.count(_BETWEEN) != len(texts) - 1:
        return [normalise(text) for text in texts]
    for char, normal in _FULL_WIDTH:
        whole = whole.replace(char, normal)
    if not unicodedata.is_normalized("NFKC", whole):
        whole = _BETWEEN.join(unicodedata.normalize("NFKC", text) for text in whole.split(_BETWEEN))
    whole = " ".join(whole.split())
    if _has_zero_width(whole):
        whole = " ".join(_ZERO_WIDTH.sub("", whole).split())
    return [text.strip(" ") for text in whole.split(_BETWEEN)]


def tidy(text: str) -> str:
    """Return the text as it is written out: newlines and punctuation untouched."""
    return _without_zero_width(text).strip()


def tidy_all(texts: Sequence[str]) -> list[str]:
    """``tidy`` of each, with one search through all."""
    return [text.strip() for text in texts] if not _has_zero_width("".join(texts)) else list(map(tidy, texts))


def _without_zero_width(text: str) -> str:
    return text if text.isprintable() or not _has_zero_width(text) else _ZERO_WIDTH.sub("", text)


def _has_zero_width(text: str) -> bool:
    """Seven searches for a character cost a tenth of one for a class."""
    return any(char in text for char in "\u200b\u200c\u200d\u200e\u200f\u2060\ufeff")


def chinese_ratio(text: str) -> float:
    """Share of CJK ideographs (U+4E00-9FFF, U+3400-4DBF) among all characters; 0 for an empty text."""
    if not text:
        return 0.0
    high_bytes = text.encode("utf-16-le", "surrogatepass")[1::2]
    if b"\x4d" in high_bytes or len(high_bytes) != len(text):  # hexagrams, or characters of two units
        return 1 - len(_CJK.sub("", text)) / len(text)
    return 1 - len(high_bytes.translate(None, _CJK_HIGH_BYTES)) / len(text)


def check_length(text: str, low: int, high: int) -> str | None:
    """Both ends are allowed lengths, in characters."""
    if len(text) < low:
        return "too_short"
    return "too_long" if len(text) > high else None


def check_chinese(text: str, minimum: float) -> str | None:
    """Drop a text with too small a share of Chinese."""
    return "low_chinese" if chinese_ratio(text) < minimum else None


def check_output(text: str, max_urls: int = 5, drop_patterns: tuple[re.Pattern, ...] = ()) -> str | None:
    """Drop refusals, advertisements, the user's own patterns, and link collections."""
    found = find_in_output(text, max_urls, drop_patterns)
    return found and found[0]


def find_in_output(text: str, max_urls: int = 5, drop_patterns: tuple[re.Pattern, ...] = ()) -> tuple[str, str] | None:
    """Return what ``check_output`` says and the words that it is about, or None."""
    may_hold = _may_hold_phrases(text)
    if may_hold and (match := _any_of(_DECLINES).search(text, 0, _OPENING) or _any_of(_DISCLAIMERS).search(text)):
        return "refusal", match[0]
    if may_hold and (match := _any_of(ADVERTISEMENTS).search(text)):
        return "advertisement", match[0]
    for pattern in drop_patterns:
        if match := pattern.search(text):
            return "drop_pattern", match[0]
    urls = URL.findall(text) if may_hold else ()
    return ("too_many_urls", " ".join(urls)) if len(urls) > max_urls else None


@functools.cache
def phrases() -> Any:
    """Refusals, advertisements and links as one automaton over a text's UTF-8: no text in which it finds nothing holds one.

    Its word boundaries are those of ASCII, so it finds no less than ``re`` does. To ``re`` the two Turkish letters are
    an i in any case, to RE2 they are not: any text with one is looked at. No class takes a line's end, so that
    screen.py may look through many outputs at once, a line each.
    """
    import re2

    parts = (*REFUSALS, *ADVERTISEMENTS, f"(?i){URL.pattern}", "[ıİ]")
    return re2.compile("|".join(f"(?:{part})" for part in parts).replace("[^", r"[^\n"))


def _may_hold_phrases(text: str) -> bool:
    """The quick look, 4 us against 80. Gates are given texts of one line; another one is left to ``re``."""
    try:
        return "\n" in text or phrases().search(text.encode()) is not None
    except UnicodeEncodeError:
        return True


def check_record(fields: list[tuple[str, str]], gates: Gates) -> str | None:
    """Return the first reason to drop a record, prefixed by its field, or None. ``other`` is looked at for PII only.

    Cheap gates run first, over all fields, so that patterns never meet a text of megabytes. A field that may be
    empty must be left out by the caller when it is.
    """
    for name, text in fields:
        if name == "other":
            continue
        low, high = gates.lengths[name]
        if reason := check_length(text, low, high) or check_chinese(text, gates.min_chinese_ratio):
            return f"{name}_{reason}"
    for name, text in fields:
        if name == "output" and (reason := check_output(text, gates.max_urls, gates.drop_patterns)):
            return f"output_{reason}"
    if gates.drop_pii:
        for _, text in fields:
            if reason := check_pii(text):
                return reason
    return None


def label(reason: str) -> str:
    """Chinese name of a reason for the log; the key itself where there is none."""
    field_name, _, rest = reason.partition("_")
    if field_name in _FIELDS and rest in _REASONS:
        return f"{_FIELDS[field_name]}{_REASONS[rest]}"
    return _REASONS.get(reason, reason)


@functools.cache
def _any_of(patterns: tuple[str, ...]) -> re.Pattern:
    return re.compile("|".join(f"(?i:{p[4:]})" if p.startswith("(?i)") else f"(?:{p})" for p in patterns))


_FIELDS = {"instruction": "指令", "input": "输入", "output": "回答"}
_REASONS = {
    "empty": "为空",
    "too_short": "太短",
    "too_long": "太长",
    "low_chinese": "中文占比太低",
    "refusal": "是拒答",
    "advertisement": "含广告",
    "drop_pattern": "命中 --drop-pattern",
    "too_many_urls": "网址太多",
    "pii_phone": "含手机号",
    "pii_email": "含邮箱",
    "pii_id_card": "含身份证号",
    "pii_bank_card": "含银行卡号",
    "format_marker": "含格式标记",
    "bad_record": "无法读取",
    "duplicate": "完全重复",
    "near_duplicate": "近似重复",
    "near_eval": "与评测记录近似",
    "in_out": "输出中已有",
}
