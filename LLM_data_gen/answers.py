"""Find the samples in a teacher's answer, whatever stands around them.

    read_answer(text) -> Reading(samples, problem)
    samples_in(value) -> list           those that a parsed value is or holds
    parsed_within(text) -> list | None  those of sound JSON with prose around it

``samples`` are in order and as the teacher wrote them; a piece that cannot be read as a sample is left as its text, for
validation to count and keep. ``problem`` is None, or the worst of PROBLEMS.

A JSON parser decides; what it refuses goes to salvage.py. Field names in another case, or 指令/输入/输出 word for word,
are taken for the three fields. What 问题/回答 or question/answer would be is a guess: such samples miss their fields.
"""

import re
from typing import Any, NamedTuple

import orjson

FIELDS = ("instruction", "input", "output")
NAMES = {**{field: field for field in FIELDS}, "指令": "instruction", "输入": "input", "输出": "output"}
PROBLEMS = {
    "blank": "空白的回答",
    "no_samples": "回答里没有样本",
    "cut_off": "没有写完，末尾的样本不完整",
    "damaged": "有样本坏得读不出",
    "repaired": "JSON 有错，样本已全部救回",
}
_THOUGHT_BEGINS = r"\s*(?:<(?:\w+:)?think(?:ing)?>|◁think▷|\[THINK\]|<\|channel\|>analysis)"
_THOUGHT_ENDS = r"</(?:\w+:)?think(?:ing)?>|◁/think▷|\[/THINK\]|<\|channel\|>final<\|message\|>"
_ANSWER_FOLLOWS = r"\s*(?:[\[{｛`]|\Z)|[ \t]*\n"


class Reading(NamedTuple):
    """What an answer holds."""

    samples: list[Any]
    problem: str | None


def read_answer(text: str) -> Reading:
    """Return the samples in ``text``: plain, fenced, with prose around them, one after another, inside an object, damaged."""
    if found := _parsed(text):
        return Reading(found, None)
    text = _without_thinking(text)
    if text is None:
        return Reading([], "cut_off")
    text = text.strip("\ufeff \t\r\n\u3000")
    if not text:
        return Reading([], "blank")
    if found := parsed_within(text):
        return Reading(found, None)
    from .salvage import salvage  # after a sound answer nobody waits for its patterns

    return Reading(*salvage(text))


def _canonical(sample: dict[str, Any]) -> dict[str, Any]:
    """Return ``sample`` with its three fields under their own names; those that have them already win."""
    if "instruction" in sample and "input" in sample and "output" in sample:
        return sample
    renamed = {NAMES.get(key.strip().casefold(), key): value for key, value in sample.items()}
    return renamed | {field: sample[field] for field in FIELDS if field in sample}


def _parsed(text: str) -> list[Any] | None:
    """Return the samples of a sound text. Objects with none of the three fields count too when there is nothing else."""
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    if found := samples_in(value):
        return found
    return value if isinstance(value, list) and all(isinstance(item, dict) for item in value) else None


def parsed_within(text: str) -> list[Any] | None:
    """The same of what stands between the first bracket and the last, with whatever around it."""
    starts = [at for bracket in "[{" if (at := text.find(bracket)) >= 0]
    return _parsed(text[min(starts) : max(text.rfind("]"), text.rfind("}")) + 1]) if starts else None


def samples_in(value: Any, depth: int = 4) -> list[Any]:
    """Return the samples that a value is or holds: an array, an object of arrays or samples, JSON in a string."""
    if not depth:
        return []
    if isinstance(value, str) and value[:1] in ("[", "{"):
        return _parsed(value) or []
    if isinstance(value, dict):
        if _looks_like_sample(value):
            return [_canonical(value)]
        value = list(value.values())
    elif isinstance(value, list) and any(map(_looks_like_sample, value)):
        return [_canonical(item) if isinstance(item, dict) else item for item in value]
    if not isinstance(value, list):
        return []
    return [sample for item in value for sample in samples_in(item, depth - 1)]


def _looks_like_sample(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    return "instruction" in value or any(key.strip().casefold() in NAMES for key in value)


def _without_thinking(text: str) -> str | None:
    """Return what follows the thinking that some servers leave in the text, opened or not; None when it never ends.

    A sample may speak of </think>: the end that counts is the last one with a line's end or the answer right after it.
    """
    begins = re.match(_THOUGHT_BEGINS, text)
    if not begins and text.lstrip("\ufeff \t\r\n").startswith(("[", "{", "｛", "`")):
        return text
    ends = list(re.finditer(_THOUGHT_ENDS, text))
    follows = re.compile(_ANSWER_FOLLOWS)
    clear = [end for end in ends if follows.match(text, end.end())]
    if clear or (begins and ends):
        return text[(clear[-1] if clear else ends[0]).end() :]
    return None if begins else text
