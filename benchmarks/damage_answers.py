"""Damage answers of six samples the ways teachers do, knowing what is still whole in each.

    DAMAGES: name (Chinese) -> damage(six, rng, indent) -> Damaged(text, samples)

A sample is {"instruction", "input", "output"}. ``samples`` are those that a reader should find, as the teacher meant them.
"""

import json
import random
import re
from collections.abc import Callable
from itertools import accumulate
from typing import NamedTuple

FIELDS = ("instruction", "input", "output")
WORD = re.compile("[\u4e00-\u9fff]{2,4}")
DRAFT = '[{"instruction": "草稿的角色设定", "input": "草稿的问题", "output": "这是模型思考时写下的草稿，不是它最后的回答，不应该被当作样本收下。"}]'

Sample = dict[str, str]
OneDamage = Callable[[Sample, random.Random, int | None], tuple[str, Sample]]  # -> the sample's text, what it means

# Private characters: what write() leaves unescaped in a JSON string.
QUOTE, BACKSLASH, NEWLINE = "\ue000", "\ue001", "\ue002"
_UNESCAPED = str.maketrans({QUOTE: '"', BACKSLASH: "\\", NEWLINE: "\n"})


class Damaged(NamedTuple):
    text: str
    samples: list[Sample]


Damage = Callable[[list[Sample], random.Random, int | None], Damaged]


def write(sample: Sample, indent: int | None = None) -> str:
    return json.dumps(sample, ensure_ascii=False, indent=indent).translate(_UNESCAPED)


def meant(sample: Sample) -> Sample:
    return {field: value.translate(_UNESCAPED) for field, value in sample.items()}


# Inside a value: (sample, rng) -> the sample with marks.


def insert(sample: Sample, rng: random.Random, text: str) -> Sample:
    """Put ``text`` after some word of some field."""
    field = rng.choice(FIELDS)
    at = rng.choice(list(WORD.finditer(sample[field]))).end()
    return sample | {field: sample[field][:at] + text + sample[field][at:]}


def bare_quotes(sample: Sample, rng: random.Random) -> Sample:
    for _ in range(rng.randint(1, 3)):
        field = rng.choice(FIELDS)
        value, word = sample[field], rng.choice(list(WORD.finditer(sample[field])))
        sample = sample | {field: f"{value[: word.start()]}{QUOTE}{word[0]}{QUOTE}{value[word.end() :]}"}
    return sample


def bare_quotes_at_end(sample: Sample, rng: random.Random) -> Sample:
    field = rng.choice(FIELDS)
    return sample | {field: f"{sample[field][:-3]}{QUOTE}{sample[field][-3:]}{QUOTE}"}


def bare_quotes_at_start(sample: Sample, rng: random.Random) -> Sample:
    field = rng.choice(FIELDS)
    return sample | {field: f"{QUOTE}{sample[field][:3]}{QUOTE}{sample[field][3:]}"}


def one_bare_quote(sample: Sample, rng: random.Random) -> Sample:
    return insert(sample, rng, QUOTE)


def bare_quoted_list(sample: Sample, rng: random.Random) -> Sample:
    return insert(sample, rng, '"早起", "坚持"，"反思"：'.replace('"', QUOTE))


def bare_json(sample: Sample, rng: random.Random) -> Sample:
    return insert(sample, rng, '例如{"name": "小明"}，'.replace('"', QUOTE))


def bare_backslashes(sample: Sample, rng: random.Random) -> Sample:
    return insert(sample, rng, rf"{BACKSLASH}(x{BACKSLASH})")


def raw_newlines(sample: Sample, rng: random.Random) -> Sample:
    if "\n" not in sample["output"]:
        sample = sample | {"output": sample["output"].replace("。", "。\n", 2)}
    return {field: value.replace("\n", NEWLINE) for field, value in sample.items()}


# Between the values: (text, rng) -> text.


def replace_one(pattern: str, replacement: str) -> Callable[[str, random.Random], str]:
    """Replace some match of ``pattern``."""

    def spoil(text: str, rng: random.Random) -> str:
        match = rng.choice(list(re.finditer(pattern, text)))
        return text[: match.start()] + match.expand(replacement) + text[match.end() :]

    return spoil


no_comma_between_fields = replace_one(r'",(\s*"(?:input|output)":)', r'"\1')
semicolon_for_comma = replace_one(r'",(\s*"(?:input|output)":)', r'"；\1')
closing_quote_escaped = replace_one(r'"(,\s*"(?:input|output)":)', r"\\" + r'"\1')
no_closing_quote = replace_one(r'"(?=,\s*"(?:input|output)":|\s*\}$)', "")
no_opening_quote = replace_one(r'(?<=": )"', "")


def trailing_comma(text: str, rng: random.Random) -> str:
    return re.sub(r'"(\s*)\}$', r'",\1}', text)


def no_closing_brace(text: str, rng: random.Random) -> str:
    return text[:-1].rstrip()


def no_opening_brace(text: str, rng: random.Random) -> str:
    return text[1:]


def bare_names(text: str, rng: random.Random) -> str:
    return re.sub(r'"(instruction|input|output)":', r"\1:", text)


def comment_at_end(text: str, rng: random.Random) -> str:
    return text[:-1] + " // 结束\n}"


# In another notation: sample -> text.


def strings(sample: Sample) -> tuple[str, ...]:
    return tuple(write(sample[field])[1:-1] for field in FIELDS)


def chinese_quotes(sample: Sample) -> str:
    return "{{“instruction”：“{}”，“input”：“{}”，“output”：“{}”}}".format(*strings(sample))


def full_width(sample: Sample) -> str:
    return '｛"instruction"："{}"，"input"："{}"，"output"："{}"｝'.format(*strings(sample))


# The three kinds above, in one form; and an answer with one sample damaged.


def in_value(mark: Callable[[Sample, random.Random], Sample]) -> OneDamage:
    def damage(sample: Sample, rng: random.Random, indent: int | None) -> tuple[str, Sample]:
        marked = mark(sample, rng)
        return write(marked, indent), meant(marked)

    return damage


def in_syntax(spoil: Callable[[str, random.Random], str]) -> OneDamage:
    return lambda sample, rng, indent: (spoil(write(sample, indent), rng), sample)


def in_notation(notation: Callable[[Sample], str]) -> OneDamage:
    return lambda sample, rng, indent: (notation(sample), sample)


WITH_QUOTES = in_value(bare_quotes)


def damage_one(
    six: list[Sample], rng: random.Random, indent: int | None, damage: OneDamage = WITH_QUOTES
) -> tuple[list[str], list[Sample]]:
    """Return the texts of six samples, one of them damaged, and what they mean."""
    texts, samples, at = [write(sample, indent) for sample in six], list(six), rng.randrange(len(six))
    texts[at], samples[at] = damage(six[at], rng, indent)
    return texts, samples


def separator(indent: int | None) -> str:
    return ",\n" if indent else ", "


def array(texts: list[str], indent: int | None) -> str:
    return "[" + separator(indent).join(texts) + "]"


def one_of_six(damage: OneDamage) -> Damage:
    def damaged(six: list[Sample], rng: random.Random, indent: int | None) -> Damaged:
        texts, samples = damage_one(six, rng, indent, damage)
        return Damaged(array(texts, indent), samples)

    return damaged


# The whole answer: (six, rng, indent) -> Damaged.


def three_damaged(six: list[Sample], rng: random.Random, indent: int | None) -> Damaged:
    texts, samples = [write(sample, indent) for sample in six], list(six)
    kinds = [in_value(mark) for mark in (bare_quotes, one_bare_quote, bare_backslashes)]
    kinds += [in_syntax(spoil) for spoil in (no_comma_between_fields, trailing_comma)]
    for at in rng.sample(range(len(six)), 3):
        texts[at], samples[at] = rng.choice(kinds)(six[at], rng, indent)
    return Damaged(array(texts, indent), samples)


def joined_by(between: str) -> Damage:
    return lambda six, rng, indent: Damaged(f"[{between.join(write(sample, indent) for sample in six)}]", list(six))


def cut(texts: list[str], samples: list[Sample], indent: int | None, at: int) -> Damaged:
    """End the answer before character ``at``; samples that end after it are lost."""
    ends = accumulate(len(text) + (len(separator(indent)) if i else 1) for i, text in enumerate(texts))
    whole = [sample for sample, end in zip(samples, ends, strict=True) if end <= at]
    return Damaged(array(texts, indent)[:at], whole)


def cut_anywhere(six: list[Sample], rng: random.Random, indent: int | None) -> Damaged:
    texts = [write(sample, indent) for sample in six]
    length = len(array(texts, indent))
    return cut(texts, six, indent, rng.randrange(length // 6, length - 3))


def cut_with_quotes(six: list[Sample], rng: random.Random, indent: int | None) -> Damaged:
    texts, samples = damage_one(six, rng, indent)
    return cut(texts, samples, indent, len(array(texts, indent)) - rng.randrange(30, 120))


def cut_in_fence(six: list[Sample], rng: random.Random, indent: int | None) -> Damaged:
    text, samples = cut_anywhere(six, rng, indent)
    return Damaged("好的，以下是[样本]：\n```json\n" + text, samples)


def json_lines(six: list[Sample], rng: random.Random, indent: int | None) -> Damaged:
    texts, samples = damage_one(six, rng, None)
    return Damaged("\n".join(texts), samples)


def six_fences(six: list[Sample], rng: random.Random, indent: int | None) -> Damaged:
    texts, samples = damage_one(six, rng, indent)
    return Damaged("\n".join(f"第{i}条样本：\n```json\n{text}\n```" for i, text in enumerate(texts, 1)), samples)


def numbered(six: list[Sample], rng: random.Random, indent: int | None) -> Damaged:
    texts, samples = damage_one(six, rng, indent)
    return Damaged("{" + ", ".join(f'"{i}": {text}' for i, text in enumerate(texts, 1)) + "}", samples)


def surrounded(before: str, after: str = "") -> Damage:
    """Put text around an array with bare quotes."""

    def damaged(six: list[Sample], rng: random.Random, indent: int | None) -> Damaged:
        texts, samples = damage_one(six, rng, indent)
        return Damaged(before + array(texts, indent) + after, samples)

    return damaged


def escaped_throughout(six: list[Sample], rng: random.Random, indent: int | None) -> Damaged:
    return Damaged(json.dumps(json.dumps(six, ensure_ascii=False), ensure_ascii=False)[1:-1], list(six))


DAMAGES: dict[str, Damage] = {
    "未转义的引号，1–3 对": one_of_six(WITH_QUOTES),
    "值的末尾有未转义的引号": one_of_six(in_value(bare_quotes_at_end)),
    "值的开头有未转义的引号": one_of_six(in_value(bare_quotes_at_start)),
    "单个未转义的引号": one_of_six(in_value(one_bare_quote)),
    "一串带逗号的引号": one_of_six(in_value(bare_quoted_list)),
    "文中有未转义的 JSON": one_of_six(in_value(bare_json)),
    "字符串里直接换行": one_of_six(in_value(raw_newlines)),
    "LaTeX 反斜杠": one_of_six(in_value(bare_backslashes)),
    "多余的末尾逗号": one_of_six(in_syntax(trailing_comma)),
    "缺右花括号": one_of_six(in_syntax(no_closing_brace)),
    "缺左花括号": one_of_six(in_syntax(no_opening_brace)),
    "缺右引号": one_of_six(in_syntax(no_closing_quote)),
    "缺左引号": one_of_six(in_syntax(no_opening_quote)),
    "中文引号与逗号": one_of_six(in_notation(chinese_quotes)),
    "全角花括号、冒号、逗号": one_of_six(in_notation(full_width)),
    "Python 字典写法": one_of_six(in_notation(repr)),
    "字段名不带引号": one_of_six(in_syntax(bare_names)),
    "字段之间缺逗号": one_of_six(in_syntax(no_comma_between_fields)),
    "右引号被转义": one_of_six(in_syntax(closing_quote_escaped)),
    "分号代替逗号": one_of_six(in_syntax(semicolon_for_comma)),
    "末尾有注释": one_of_six(in_syntax(comment_at_end)),
    "样本之间缺逗号": joined_by("\n"),
    "样本之间是全角逗号": joined_by("，"),
    "六条坏三条": three_damaged,
    "任意处截断": cut_anywhere,
    "截断，又有未转义的引号": cut_with_quotes,
    "前有说明，围栏，截断": cut_in_fence,
    "每行一个对象，未转义的引号": json_lines,
    "六个围栏，未转义的引号": six_fences,
    "套在 data.samples 里，未转义的引号": surrounded('{"count": 6, "data": {"samples": ', "}}"),
    "编号作键，未转义的引号": numbered,
    "思考里有草稿，未转义的引号": surrounded(f"<think>先写一条 {DRAFT} 再改</think>\n"),
    "思考缺开头标记，未转义的引号": surrounded(f"先写一条 {DRAFT} 再改\n</think>\n\n"),
    "前后的说明带括号与引号": surrounded("好的[六条]，见{下}：\n", '\n以上[6条]样本，“希望”对您有"帮助"。'),
    "整篇多转义了一层": escaped_throughout,
}
