"""What is accepted from the teacher: each sample that is not has its reason.

read_answer(text) -> Reading             the samples in an answer and what was wrong with it, see answers.py
check_sample(sample) -> str | None       None to accept, else the reason
check_samples(samples) -> list           (what check_sample says, texts) of each, at half the time
describe(reason) -> str                  the Chinese name of a reason, or of an answer's problem
to_record(texts, topic) -> dict          {"text": HIT ChatML, "topic": topic}
texts_of(sample) -> (texts, reason)      its three texts, tidied, or why it has none
fingerprint(text) -> int                 64 bits that tell equal records apart from others
"""

from collections.abc import Sequence
from typing import Any

from sft_data.chatml import BEGIN, END, ROLE_TO_NAME, render_chatml
from sft_data.quality import Gates, check_record, label, normalise, tidy_all

from .answers import FIELDS, PROBLEMS, Reading, read_answer

__all__ = [
    "Reading",
    "check_sample",
    "check_samples",
    "describe",
    "fingerprint",
    "read_answer",
    "texts_of",
    "to_record",
]
_GATES = Gates()  # the defaults of preparation: what is accepted here is not dropped there
_RECORD = render_chatml([{"role": role, "content": "%s"} for role in ROLE_TO_NAME])
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
    texts, reason = texts_of(sample)
    return reason or _check_texts(texts)


def check_samples(samples: Sequence[Any]) -> list[tuple[str | None, list[str]]]:
    """What check_sample says of each, and its texts. Nearly all are good: a glance at all together finds which may not be."""
    from .glance import doubtful  # with numpy, when there is something to check

    checked = [(reason, texts) for texts, reason in map(_raw_texts, samples)]
    read = [i for i, (reason, _) in enumerate(checked) if reason is None]
    tidied = tidy_all([text for i in read for text in checked[i][1]])
    for row, i in enumerate(read):
        checked[i] = (None, tidied[3 * row : 3 * row + 3])
    for row in doubtful(tidied, _GATES):
        texts = checked[read[row]][1]
        checked[read[row]] = (_check_texts(texts), texts)
    return checked


def texts_of(sample: Any) -> tuple[list[str], str | None]:
    """Return the three texts of a sample, tidied, or none and why."""
    texts, reason = _raw_texts(sample)
    return tidy_all(texts), reason


def _raw_texts(sample: Any) -> tuple[list[str], str | None]:
    if not isinstance(sample, dict):
        return [], "not_an_object"
    texts = []
    for field in FIELDS:
        text = sample.get(field)
        if not isinstance(text, str):
            return [], "missing_field" if text is None else "wrong_type"
        texts.append(text)
    return texts, None


def _check_texts(texts: Sequence[str]) -> str | None:
    whole = "\n".join(texts)
    if BEGIN in whole or END in whole or not _is_unicode(whole):
        return "format_marker"
    if "<think>" in whole or "</think>" in whole:
        return "thinking"
    return check_record(list(zip(FIELDS, map(normalise, texts), strict=True)), _GATES)


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


def to_record(texts: Sequence[str], topic: str) -> dict[str, str]:
    """Turn an accepted sample into an output line: 系统 = instruction, 用户 = input, 智能助手 = output.

    ValueError: a text holds a marker of the format.
    """
    text = _RECORD % tuple(texts)
    if text.count(BEGIN) != 3 or text.count(END) != 3:
        raise ValueError(text)
    return {"text": text, "topic": topic}


def fingerprint(text: str) -> int:
    """Return 64 bits that are the same for texts that differ in white space alone, and kept instead of them; of this run only."""
    return hash("".join(text.split()))
