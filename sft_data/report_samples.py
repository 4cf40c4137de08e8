"""The records of the report: samples of what was dropped, and the largest families of duplicates.

samples(records, seed) -> str        HTML: a few of each reason
families(records) -> str             HTML: the kept one of each and some of those dropped for it
"""

import random
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import numpy as np
import orjson

from .emit import body_of, dropped, rows_at
from .mixture import label as name_of
from .quality import URL, check_record, label, normalise
from .reasons import BAD, DUPLICATE, IN_OUT, NEAR_DUPLICATE, NEAR_EVAL, REASONS
from .report_page import WIDTH, details, differences, excerpt, number
from .resolve import OLD
from .scan import Rules, read_fields, redacted
from .table import Table
from .writing import Plan

SAMPLES, FAMILIES, MEMBERS = 5, 10, 4  # of a reason; of duplicates; dropped ones shown of a family
FIELDS = {"instruction": "指令", "input": "输入", "output": "回答", "other": "后续提问"}
_TITLE = 30  # characters of a family's kept record by which it is named


class Records(NamedTuple):
    """method: by which near-duplicates were found, if they were."""

    table: Table
    plan: Plan
    rules: Rules
    method: str | None


def samples(run: Records, seed: int) -> str:
    """Of every reason, the most frequent first, some records and what in them it is about."""
    table, drawn = run.table, random.Random(seed)
    fresh = ~table.rows_of(*OLD)
    tally = np.bincount(table.codes[fresh], minlength=len(REASONS))
    tally[0] = 0
    parts = []
    for code in np.argsort(-tally, kind="stable")[: np.count_nonzero(tally)].tolist():
        rows = np.flatnonzero(fresh & (table.codes == code))
        rows = rows[sorted(drawn.sample(range(len(rows)), min(SAMPLES, len(rows))))]
        heading = f'{escape(label(REASONS[code]))} <span class="soft">{number(int(tally[code]))} 条</span>'
        parts.append(details(heading, "".join(_cards(run, rows))))
    text = f"每种原因随机取至多 {SAMPLES} 条，过滤看的是规整后的文字。样例可能含个人信息，转发这一页前请留意。"
    return f'<p class="soft">{text}</p>\n' + ("".join(parts) or "<p>没有丢弃任何记录。</p>")


def _cards(run: Records, rows: np.ndarray) -> list[str]:
    """An article for each of rows, (few,) int64, all dropped for the same reason."""
    twin, distance = run.table.twins(rows)
    return [
        _pair(run, int(row), int(other), float(far)) if other >= 0 else _single(run, int(row))
        for row, other, far in zip(rows, twin, distance, strict=True)
    ]


def _single(run: Records, row: int) -> str:
    line = orjson.loads(dropped(rows_at(run.table, np.array([row]), run.rules))[0])
    said, reason = f"{line['evidence']}"[:WIDTH], line["reason"]
    if run.table.codes[row] == BAD:
        record = line["record"]
        text = record if isinstance(record, str) else orjson.dumps(record).decode()
        return _article(run, row, said, [("原文", excerpt(text))])
    fields, _ = read_fields(line["record"], run.table.files[run.table.file[row]].kind)
    fields = redacted(fields) if run.rules.redact else fields
    name, text = _culprit([(name, normalise(text)) for name, text in fields], reason, f"{line['evidence']}", run.rules)
    urls = reason.endswith("too_many_urls")
    spans = [match.span() for match in URL.finditer(text)] if urls else _spans(text, f"{line['evidence']}")
    return _article(run, row, "" if spans and not urls else said, [(FIELDS[name], excerpt(text, spans) or "（空）")])


def _culprit(fields: list[tuple[str, str]], reason: str, phrase: str, rules: Rules) -> tuple[str, str]:
    """The field, of normalised ones, that the reason is about; the first one where that can't be told."""
    judged = (field for field in fields if rules.gates and check_record([field], rules.gates) == reason)
    named = (
        field for field in fields if (phrase and phrase in field[1]) or (reason.endswith("_empty") and not field[1])
    )
    return next(judged, None) or next(named, None) or fields[0]


def _spans(text: str, phrase: str) -> list[tuple[int, int]]:
    at = text.find(phrase) if phrase else -1
    return [(at, at + len(phrase))] if at >= 0 else []


def _pair(run: Records, row: int, other: int, distance: float) -> str:
    kept, gone = body_of(rows_at(run.table, np.array([other, row]), run.rules))
    said = f"与 {run.table.where(other)} {_how_far(run, row, distance)}"
    if kept == gone:
        return _article(run, row, said, [("两条相同", excerpt(gone))])
    kept, gone = differences(kept, gone)
    what = "评测" if run.table.codes[row] == NEAR_EVAL else "留下"
    return _article(run, row, said, [(what, kept), ("丢弃", gone)])


def _how_far(run: Records, row: int, distance: float) -> str:
    if run.table.codes[row] != NEAR_EVAL and run.method == "minhash":
        return f"相似度 {1 - distance:.2f}"
    return f"相差 {distance:.0f} 位" if distance else "指纹相同"


def _article(run: Records, row: int, said: str, texts: Sequence[tuple[str, str]]) -> str:
    """said: text, not HTML; texts: (label, HTML)."""
    where = f"{name_of(run.table.files[run.table.file[row]].source)} · {run.table.where(row)}"
    quotes = "".join(f"<blockquote><b>{what}</b>{html}</blockquote>" for what, html in texts)
    evidence = f"<p>{escape(said)}</p>" if said else ""
    return f'<article><p class="where">{escape(where)}</p>{evidence}{quotes}</article>\n'


def families(run: Records) -> str:
    """Those with most near-duplicates first, then those of most copies."""
    table = run.table
    members = np.flatnonzero(np.isin(table.codes[table.passed], (DUPLICATE, NEAR_DUPLICATE, IN_OUT)))
    if not len(members):
        return "<p>没有重复的记录。</p>"
    root = np.arange(len(table.twin))
    root[members] = table.twin[members]
    while (root[root] != root).any():  # a copy's twin may itself have been dropped later, for one that is near
        root = root[root]
    near = (table.codes[table.passed[members]] == NEAR_DUPLICATE) | (table.distance[members] > 0)
    sizes, nears = (np.bincount(root[some], minlength=len(root)) for some in (members, members[near]))
    heads = np.flatnonzero(sizes)
    shown = heads[np.lexsort((heads, -sizes[heads], -nears[heads]))][:FAMILIES].tolist()
    text = f"共 {number(len(heads))} 组，丢弃 {number(len(members))} 条，其中近似重复 {number(int(near.sum()))} 条；"
    text += f"下面是最大的 {len(shown)} 组，每组至多 {MEMBERS} 条，相差最多的在前。"
    return f'<p class="soft">{text}</p>\n' + "".join(_family(run, head, int(sizes[head])) for head in shown)


def _family(run: Records, head: int, size: int) -> str:
    """head: index among those that passed."""
    table = run.table
    own = np.flatnonzero(table.twin == head)
    own = own[np.lexsort((own, -table.distance[own]))][:MEMBERS]
    kept = body_of(rows_at(table, table.passed[[head]], run.rules))[0]
    start = f"{kept[:_TITLE]}…" if len(kept) > _TITLE else kept
    cards = [_article(run, int(table.passed[head]), "代表", [("全文开头", excerpt(kept))])]
    cards += [_pair(run, int(table.passed[i]), int(table.passed[head]), float(table.distance[i])) for i in own]
    return details(f'{escape(start)} <span class="soft">丢弃 {number(size)} 条</span>', "".join(cards))
