"""What is accepted from the teacher: each sample that is not has its reason.

read_answer(text) -> Reading             the samples in an answer and what was wrong with it, see answers.py
check_sample(sample) -> str | None       None to accept, else the reason
describe(reason) -> str                  the Chinese name of a reason, or of an answer's problem
to_record(sample, topic) -> dict         {"text": HIT ChatML, "topic": topic}
fingerprint(text) -> int                 64 bits that tell equal records apart from others
"""

from typing import Any

import xxhash

from sft_data.chatml import BEGIN, END, render_chatml
from sft_data.quality import Gates, check_record, label, normalise, tidy

from .answers import FIELDS, PROBLEMS, Reading, read_answer

__all__ = ["Reading", "check_sample", "describe", "fingerprint", "read_answer", "to_record"]
_GATES = Gates()  # the defaults of preparation: what is accepted here is not dropped there
_REASONS = {
    "not_an_object": "不是完整的 JSON 对象（坏了，或没有写完）",
    "missing_field": "缺少字段",
    "wrong_type": "字段不是字符串",
    "thinking": "内容里夹着思考过程",
    "format_marker": "内容里有 ChatML 的格式标记或不合法的字符",
    "duplicate": "与已有样本完全相同",
    "surplus": "多于所要的条数",
}


def check_sample(sample: Any) -> str | None:
    """Return None to accept ``sample``, else the reason to reject it: its form first, then preparation's gates."""
    if not isinstance(sample, dict):
        return "not_an_object"
    values = []
    for field in FIELDS:
        value = sample.get(field)
        if not isinstance(value, str):
            return "missing_field" if value is None else "wrong_type"
        values.append(tidy(value))
    whole = "\n".join(values)
    if not _is_unicode(whole):
        return "format_marker"
    if "<" in whole:  # as all of these begin
        if BEGIN in whole or END in whole:
            return "format_marker"
        if "<think>" in whole or "</think>" in whole:
            return "thinking"
    return check_record(list(zip(FIELDS, map(normalise, values), strict=True)), _GATES)


def _is_unicode(text: str) -> bool:
    """Tell whether ``text`` can be written as UTF-8: a JSON escape such as \\ud800 alone cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def describe(reason: str) -> str:
    """Return the Chinese name of a reason."""
    return _REASONS.get(reason) or PROBLEMS.get(reason) or label(reason)


def to_record(sample: dict[str, str], topic: str) -> dict[str, str]:
    """Turn an accepted sample into an output line: 系统 = instruction, 用户 = input, 智能助手 = output."""
    messages = [
        {"role": "system", "content": tidy(sample["instruction"])},
        {"role": "user", "content": tidy(sample["input"])},
        {"role": "assistant", "content": tidy(sample["output"])},
    ]
    return {"text": render_chatml(messages), "topic": topic}


def fingerprint(text: str) -> int:
    """Return 64 bits of XXH3 of ``text`` without white space: the same for equal records, kept instead of them."""
    return xxhash.xxh3_64_intdigest("".join(text.split()))
