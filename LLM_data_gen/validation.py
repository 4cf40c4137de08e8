"""What is accepted from the teacher: each sample that is not has its reason.

read_answer(text) -> Reading             the samples in an answer and what was wrong with it, see answers.py
check_sample(sample) -> str | None       None to accept, else the reason
check_samples(samples) -> list           what check_sample says of each, at a third of the time
describe(reason) -> str                  the Chinese name of a reason, or of an answer's problem
to_record(sample, topic) -> dict         {"text": HIT ChatML, "topic": topic}
fingerprint(text) -> int                 64 bits that tell equal records apart from others
"""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import xxhash

from sft_data.chatml import BEGIN, END, render_chatml
from sft_data.quality import Gates, check_record, label, normalise_all, phrases, tidy

from .answers import FIELDS, PROBLEMS, Reading, read_answer

__all__ = ["Reading", "check_sample", "check_samples", "describe", "fingerprint", "read_answer", "to_record"]
_GATES = Gates()  # the defaults of preparation: what is accepted here is not dropped there
_BOUNDS = np.array([_GATES.lengths[field] for field in FIELDS]).T  # (2, 3): at least, at most
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
    values, reason = _read_form(sample)
    return reason or _check_texts(normalise_all(values))


def check_samples(samples: Sequence[Any]) -> list[str | None]:
    """What check_sample says of each. Nearly all are good: a quick look at all of them together finds those that may not be."""
    read = [_read_form(sample) for sample in samples]
    texts = normalise_all([value for values, _ in read for value in values])
    reasons = [reason for _, reason in read]
    well_formed = [i for i, reason in enumerate(reasons) if reason is None]
    for row in _doubtful(texts):
        reasons[well_formed[row]] = _check_texts(texts[3 * row : 3 * row + 3])
    return reasons


def _read_form(sample: Any) -> tuple[list[str], str | None]:
    """Return its three texts, tidied, or none and what is wrong with their form."""
    if not isinstance(sample, dict):
        return [], "not_an_object"
    values = []
    for field in FIELDS:
        value = sample.get(field)
        if not isinstance(value, str):
            return [], "missing_field" if value is None else "wrong_type"
        values.append(tidy(value))
    whole = "\n".join(values)
    if not _is_unicode(whole):
        return [], "format_marker"
    if "<" in whole:  # as all of these begin
        if BEGIN in whole or END in whole:
            return [], "format_marker"
        if "<think>" in whole or "</think>" in whole:
            return [], "thinking"
    return values, None


def _check_texts(texts: list[str]) -> str | None:
    return check_record(list(zip(FIELDS, texts, strict=True)), _GATES)


def _doubtful(texts: list[str]) -> list[int]:
    """texts: three of each sample. The samples that a gate may reject: all others pass, as check_record would say."""
    if not texts:
        return []
    sizes = np.fromiter(map(len, texts), np.int64, len(texts))
    code = np.frombuffer("".join(texts).encode("utf-32-le"), np.uint32)
    chinese = (code - 0x4E00 <= 0x9FFF - 0x4E00) | (code - 0x3400 <= 0x4DBF - 0x3400)  # below wraps to far above
    so_far = np.append(0, np.cumsum(chinese))
    ends = np.cumsum(sizes)
    others = sizes - (so_far[ends] - so_far[ends - sizes])
    low, high = (np.tile(bound, len(texts) // 3) for bound in _BOUNDS)
    bad = (sizes < low) | (sizes > high) | (1 - others / np.maximum(sizes, 1) < _GATES.min_chinese_ratio)
    return sorted({*(np.flatnonzero(bad) // 3).tolist(), *_with_phrases([text.encode() for text in texts[2::3]])})


def _with_phrases(outputs: list[bytes]) -> set[int]:
    """Those in which there may be something to find for check_output. No match goes over a line's end."""
    starts = list(accumulate((len(output) + 1 for output in outputs), initial=0))
    return {bisect_right(starts, match.start()) - 1 for match in phrases().finditer(b"\n".join(outputs))}


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
