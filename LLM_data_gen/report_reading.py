"""What the page about a run shows of the output itself: how long its texts are, and some of them to read.

lengths(seen) -> str       HTML: a histogram of each role
samples(seen) -> str       HTML: the drawn rows in full, as conversations
"""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from sft_data.chatml import ROLE_TO_NAME
from sft_data.report_page import Series, details, histogram, number

from .seen import Seen

_BINS = 28  # of a histogram
_APART = 0.09  # of its width: nearer to each other, two lines would print one number over the other


def lengths(seen: Seen) -> str:
    charts = []
    for role, name in ROLE_TO_NAME.items():
        counts = {length: count for length, count in seen.lengths[role].items() if length}
        chart, said = _chart(name, counts) if counts else ("", "没有")
        charts.append(f"<figure><h3>{name}</h3>{chart}<figcaption>{said}</figcaption></figure>")
    return (
        '<p class="soft">横轴是字数（对数），纵轴是占样本的比例。虚线是 p10、p50、p90（挤在一起的不画）：有 10%、一半、90% 的样本不超过它。</p>\n'
        f'<div class="charts">{"".join(charts)}</div>'
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


def samples(seen: Seen) -> str:
    drawn = seen.drawn()
    if not drawn:
        return "<p>输出里还没有样本。</p>"
    some = f"随机取 {len(drawn)} 条" if len(drawn) < seen.count else "下面是全部样本"
    cards = "".join(_conversation(record, messages) for record, messages in drawn)
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
