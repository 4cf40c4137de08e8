"""What the page about a run shows of the output itself: how long its texts are, and some of them to read.

read_output(records, seed) -> Reading      one pass, nothing kept but counts and a few records
lengths(reading) -> str                    HTML: a histogram of each role
samples(reading) -> str                    HTML: the drawn records in full, as conversations
"""

import math
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np

from sft_data.chatml import ROLE_TO_NAME, parse_chatml
from sft_data.report_page import Series, details, histogram, number

SAMPLES = 12  # to read
_BINS = 28  # of a histogram
_APART = 0.09  # of its width: nearer to each other, two lines would print one number over the other


class Reading(NamedTuple):
    """lengths: role -> {characters: how many texts}; drawn: (record, its messages), in the order of the file."""

    count: int
    unreadable: int
    lengths: dict[str, Counter]
    topics: Counter
    drawn: list[tuple[dict[str, Any], list[dict[str, str]]]]


def read_output(records: Iterable[dict[str, Any]], seed: int) -> Reading:
    """records: {"text": HIT ChatML, "topic"?, "reasoning"?} each. Every one is as likely to be drawn as any other."""
    chance, drawn = random.Random(seed), []
    lengths, topics = {role: Counter() for role in ROLE_TO_NAME}, Counter()
    count = unreadable = 0
    for record in records:
        try:
            messages = parse_chatml(record["text"])
        except (KeyError, TypeError, ValueError, AttributeError):
            unreadable += 1
            continue
        for message in messages:
            lengths[message["role"]][len(message["content"])] += 1
        if isinstance(record.get("topic"), str):
            topics[record["topic"]] += 1
        place = count if count < SAMPLES else chance.randrange(count + 1)
        if place < SAMPLES:
            drawn[place : place + 1] = [(count, record, messages)]
        count += 1
    drawn.sort(key=lambda one: one[0])
    return Reading(count, unreadable, lengths, topics, [(record, messages) for _, record, messages in drawn])


def lengths(reading: Reading) -> str:
    charts = []
    for role, name in ROLE_TO_NAME.items():
        counts = {length: count for length, count in reading.lengths[role].items() if length}
        chart, said = _chart(name, counts) if counts else ("", "没有")
        charts.append(f"<figure><h3>{name}</h3>{chart}<figcaption>{said}</figcaption></figure>")
    note = f"<p>另有 {number(reading.unreadable)} 行不是 HIT ChatML，没有计入。</p>\n" if reading.unreadable else ""
    return (
        '<p class="soft">横轴是字数（对数），纵轴是占样本的比例。虚线是 p10、p50、p90（挤在一起的不画）：有 10%、一半、90% 的样本不超过它。</p>\n'
        f'{note}<div class="charts">{"".join(charts)}</div>'
    )


def _chart(name: str, counts: dict[int, int]) -> tuple[str, str]:
    """(SVG, what to say below it) of the lengths of one role, none of them 0."""
    marks = [percentile(counts, share) for share in (0.1, 0.5, 0.9)]
    shortest, longest = min(counts), max(counts)
    edges, weights = _edges(shortest, longest), np.array(list(counts.values()))
    shares = np.histogram(np.array(list(counts)), edges, weights=weights)[0] / weights.sum()
    said = "，".join(f"{what} {number(mark)}" for what, mark in zip(("p10", "p50", "p90"), marks, strict=True))
    chart = histogram(f"{name}的字数", edges, [Series("样本", "main", shares)], _apart(marks, edges), "字")
    return chart, f"{said}；最短 {number(shortest)}，最长 {number(longest)} 字"


def percentile(counts: Mapping[int, int], share: float) -> int:
    """counts: {value: how often}. The smallest value that at least this share of all does not exceed."""
    needed, so_far = math.ceil(share * sum(counts.values())), 0
    for value in sorted(counts):
        so_far += counts[value]
        if so_far >= needed:
            return value
    return 0


def _edges(low: int, high: int) -> np.ndarray:
    """(bins + 1,) int64 around both, about equal on a log scale. No bin is narrower than the one before: a comb that
    comes of rounding would look like something in the data."""
    edges, width = [10 ** (len(str(low)) - 1)], 1
    growth = ((high + 1) / edges[0]) ** (1 / _BINS) - 1
    while edges[-1] <= high:
        width = max(width, round(edges[-1] * growth))
        edges.append(edges[-1] + width)
    return np.array(edges, dtype=np.int64)


def _apart(marks: Sequence[int], edges: np.ndarray) -> list[int]:
    """The middle one of three, and those of the others whose number can stand beside it."""
    low, middle, high = marks
    width = math.log(edges[-1] / edges[0])
    return [middle, *(mark for mark in (low, high) if abs(math.log(mark / middle)) > _APART * width)]


def samples(reading: Reading) -> str:
    if not reading.drawn:
        return "<p>输出里还没有样本。</p>"
    some = f"随机取 {len(reading.drawn)} 条" if len(reading.drawn) < reading.count else "下面是全部样本"
    cards = "".join(_conversation(record, messages) for record, messages in reading.drawn)
    return f'<p class="soft">{some}，原文照录。</p>\n<div class="talks">{cards}</div>'


def _conversation(record: dict[str, Any], messages: list[dict[str, str]]) -> str:
    topic, reasoning = record.get("topic"), record.get("reasoning")
    parts = [f'<p class="where">{escape(topic)}</p>'] if isinstance(topic, str) else []
    for message in messages:
        if message["role"] == "assistant" and isinstance(reasoning, str) and reasoning:
            heading = f'思考过程 <span class="soft">{number(len(reasoning))} 字</span>'
            parts.append(details(heading, f'<p class="text">{escape(reasoning)}</p>'))
            reasoning = None
        name = ROLE_TO_NAME[message["role"]]
        parts.append(
            f'<div class="say {message["role"]}"><b>{name}</b><p class="text">{escape(message["content"])}</p></div>'
        )
    return f"<article>{''.join(parts)}</article>\n"
