"""What is accepted from the teacher: find the samples in an answer, and give each rejected one its reason.

parse_samples(text) -> list | None       the JSON array in an answer; None when there is none
check_sample(sample) -> str | None       None to accept, else the reason (a key of REASONS)
to_record(sample, topic) -> dict         {"text": HIT ChatML, "topic": topic}
fingerprint(text) -> int                 64 bits that tell equal records apart from others
"""

import hashlib
import json
import re
from typing import Any

from sft_data.chatml import BEGIN, END, render_chatml
from sft_data.quality import Gates, check_record, label, normalise, tidy

FIELDS = ("instruction", "input", "output")
_GATES = Gates()  # the defaults of preparation: what is accepted here is not dropped there
_REASONS = {
    "not_an_object": "不是 JSON 对象",
    "missing_field": "缺少字段，或字段不是字符串",
    "format_marker": "内容里有 ChatML 的格式标记或不合法的字符",
    "duplicate": "与已有样本完全相同",
    "surplus": "多于所要的条数",
}

_JSON_START = re.compile(r"\[\s*[{\[\]]|\{\s*[\"}]")  # a bracket or brace that JSON, not prose, would open with
_MOST_DAMAGED = 20  # false starts in one answer before it is left to json-repair: each costs a pass over the text
_LAST_IS_WHOLE = re.compile(r"\"\s*\}[^{}\"]*$")  # a string and its object close, and nothing opens again after them


def parse_samples(text: str) -> list[Any] | None:
    """Return the samples in ``text``: an array plain, fenced, with prose around it or inside an object; objects one
    after another; or any of these damaged.

    json.loads decides first; json-repair (10 ms an answer) only sees what it refuses, so a sound answer is never altered.
    """
    decoder = json.JSONDecoder(strict=False)  # a raw newline inside a string is common and harmless
    lone, position, damaged = [], 0, 0
    for match in _JSON_START.finditer(text):
        if match.start() < position:
            continue  # inside what has been read already
        try:
            value, position = decoder.raw_decode(text, match.start())
        except (ValueError, RecursionError):
            damaged += 1
            if damaged >= _MOST_DAMAGED:
                break
            continue
        if samples := _as_array(value):
            return samples
        if _looks_like_sample(value):
            lone.append(value)
    return _repair(text) if damaged else lone or None


def _as_array(value: Any) -> list[Any] | None:
    """Return the array of samples that ``value`` is, or holds as {"data": [...]} under any name; else None."""
    for array in [value, *(value.values() if isinstance(value, dict) else ())]:
        if isinstance(array, list) and any(_looks_like_sample(item) for item in array):
            return array
    return None


def _looks_like_sample(value: Any) -> bool:
    return isinstance(value, dict) and any(field in value for field in FIELDS)


def _repair(text: str) -> list[Any] | None:
    """Salvage a damaged array (unescaped quotes, cut off in the middle). A sample that lost its end is dropped."""
    import json_repair

    start = _JSON_START.search(text).start()
    try:
        found = _as_array(json_repair.loads(text[start:], skip_json_loads=True))
    except (ValueError, RecursionError, IndexError):
        return None
    if found and not _LAST_IS_WHOLE.search(text):
        found = found[:-1]  # its output stops in mid-sentence, however well formed the repaired JSON looks
    return found or None


def check_sample(sample: Any) -> str | None:
    """Return None to accept ``sample``, else the reason to reject it: its form first, then preparation's gates."""
    if not isinstance(sample, dict):
        return "not_an_object"
    if not all(isinstance(sample.get(field), str) for field in FIELDS):
        return "missing_field"
    values = [tidy(sample[field]) for field in FIELDS]
    if any(BEGIN in value or END in value or not _is_unicode(value) for value in values):
        return "format_marker"
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
    return _REASONS.get(reason) or label(reason)


def to_record(sample: dict[str, str], topic: str) -> dict[str, str]:
    """Turn an accepted sample into an output line: 系统 = instruction, 用户 = input, 智能助手 = output."""
    roles = zip(("system", "user", "assistant"), FIELDS, strict=True)
    messages = [{"role": role, "content": tidy(sample[field])} for role, field in roles]
    return {"text": render_chatml(messages), "topic": topic}


def fingerprint(text: str) -> int:
    """Return 64 bits of BLAKE2 of ``text`` without white space: the same for equal records, kept instead of them."""
    return int.from_bytes(hashlib.blake2b("".join(text.split()).encode(), digest_size=8).digest(), "big")
