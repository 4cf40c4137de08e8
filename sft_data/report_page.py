"""Pieces of a page of HTML that needs nothing from outside: tables, bars, histograms, marked text. report.py fills it.

    page(title, sections) -> str                     the whole document
    table(head, rows) -> str                         cells: HTML or numbers; all but the first stand at the right
    bar(share, kind) / histogram(...) -> str         inline SVG
    excerpt(text, spans) -> str                      some 300 characters around the first span, spans highlighted
    differences(a, b) -> (str, str)                  both texts, shortened, with what differs highlighted

Whatever a user's file may hold goes through ``escape`` here or in report.py; the page's own policy forbids scripts.
"""

import difflib
import os
from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

import numpy as np

WIDTH = 300  # characters shown of a text
_BEFORE = 100  # of which before what is highlighted
_CONTEXT = 24  # equal characters shown on either side of a difference
_SHORT = 1000  # characters; comparing longer ones by the character takes seconds


class Series(NamedTuple):
    """Of a histogram. shares: (bins,) float, adding up to 1; kind: its class in the style."""

    label: str
    kind: str
    shares: np.ndarray


def page(title: str, sections: Iterable[tuple[str, str, str]]) -> str:
    """sections: (id, heading, HTML) each."""
    sections = list(sections)
    links = "".join(f'<a href="#{name}">{escape(heading)}</a>' for name, heading, _ in sections)
    body = "".join(
        f'<section id="{name}"><h2>{escape(heading)}</h2>\n{html}\n</section>\n' for name, heading, html in sections
    )
    return (
        '<!DOCTYPE html>\n<html lang="zh-CN"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style></head>\n"
        f"<body><main><h1>{escape(title)}</h1><nav>{links}</nav>\n{body}</main></body></html>\n"
    )


def number(value: float) -> str:
    return f"{value:,}"


def percent(share: float) -> str:
    """One decimal, and more where that would show as nothing what is rare."""
    if 0 < share < 0.0005:
        return f"{share:.3%}" if share >= 0.000005 else "<0.001%"
    return f"{share:.1%}" if share else "0"


def table(head: Sequence[str], rows: Iterable[Sequence[str | int]], kinds: Iterable[str] = ()) -> str:
    """head: text; kinds: the class of each row."""
    rows = list(rows)
    kinds = list(kinds) or [""] * len(rows)
    heads = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    lines = (
        f'<tr class="{kind}">{"".join(map(_cell, row))}</tr>' if kind else f"<tr>{''.join(map(_cell, row))}</tr>"
        for kind, row in zip(kinds, rows, strict=True)
    )
    return (
        f'<div class="wide"><table><thead><tr>{heads}</tr></thead>\n<tbody>'
        + "\n".join(lines)
        + "</tbody></table></div>"
    )


def _cell(value: str | int) -> str:
    return f"<td>{value if isinstance(value, str) else number(value)}</td>"


def bar(*shares: tuple[float, str]) -> str:
    """One bar under the other, each (length from 0 to 1, class). The numbers stand beside it, so it is not read out."""
    height = 8
    rects = "".join(
        f'<rect class="{kind}" y="{i * (height + 1)}" width="{_length(share):.2f}" height="{height}"/>'
        for i, (share, kind) in enumerate(shares)
    )
    box = f"0 0 100 {len(shares) * (height + 1) - 1}"
    return f'<svg class="bar" viewBox="{box}" preserveAspectRatio="none" aria-hidden="true">{rects}</svg>'


def _length(share: float) -> float:
    """Percent of the bar; what is there at all is to be seen."""
    return max(0.5, min(1.0, share) * 100) if share else 0.0


def log_edges(top: int, bins: int = 32) -> np.ndarray:
    """(bins or fewer + 1,) int64, whole numbers from 1 to above ``top``, about equally far apart on a log scale."""
    return np.unique(np.round(np.geomspace(1, max(top, 10) + 1, bins + 1)).astype(np.int64))


def histogram(title: str, edges: np.ndarray, series: Sequence[Series], lines: Sequence[int], unit: str) -> str:
    """edges: (bins + 1,) as of ``log_edges``; lines: values to draw a line at, such as a gate's limits."""
    left, right, top, bottom = 34, 342, 18, 160
    highest = max([float(one.shares.max(initial=0)) for one in series] + [1e-9])
    xs = left + (right - left) * np.log(edges / edges[0]) / np.log(edges[-1] / edges[0])

    def x_of(value: float) -> float:
        return float(np.interp(np.log(value), np.log(edges), xs))

    parts = [f'<line class="axis" x1="{left}" y1="{bottom}" x2="{right}" y2="{bottom}"/>']
    for value, y in ((highest, top), (highest / 2, (top + bottom) / 2)):
        parts.append(f'<line class="grid" x1="{left}" y1="{y:g}" x2="{right}" y2="{y:g}"/>')
        parts.append(f'<text x="{left - 4}" y="{y + 4:g}" text-anchor="end">{value:.0%}</text>')
    for one in series:
        ys = bottom - (bottom - top) * one.shares / highest
        steps = "".join(f"V{y:.1f}H{x:.1f}" for x, y in zip(xs[1:], ys, strict=True))
        parts.append(f'<path class="{one.kind}" d="M{left} {bottom}{steps}V{bottom}Z"/>')
    for value in (10**i for i in range(6) if edges[0] <= 10**i <= edges[-1]):
        parts.append(f'<text x="{x_of(value):.1f}" y="{bottom + 14}" text-anchor="middle">{value:,}</text>')
    for value in (value for value in lines if edges[0] <= value <= edges[-1]):
        x = x_of(value)
        parts.append(f'<line class="limit" x1="{x:.1f}" y1="{top - 4}" x2="{x:.1f}" y2="{bottom}"/>')
        parts.append(f'<text class="limit" x="{x:.1f}" y="{top - 7}" text-anchor="middle">{value:,}</text>')
    for i, (start, end) in enumerate(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)):
        span = f"{start:,}" if end == start + 1 else f"{start:,}–{end - 1:,}"
        said = "，".join(f"{one.label} {percent(float(one.shares[i]))}" for one in series)
        box = f'x="{xs[i]:.1f}" y="{top}" width="{xs[i + 1] - xs[i]:.1f}" height="{bottom - top}"'
        parts.append(f'<rect class="touch" {box}><title>{span} {unit}：{said}</title></rect>')
    name = escape(title)
    return f'<svg class="chart" viewBox="0 0 360 180" role="img" aria-label="{name}">{"".join(parts)}</svg>'


def details(summary: str, body: str) -> str:
    """summary: HTML of a heading; body: HTML shown when it is opened."""
    return f"<details><summary>{summary}</summary>\n{body}</details>\n"


def excerpt(text: str, spans: Sequence[tuple[int, int]] = ()) -> str:
    """spans: (start, end) in ``text``, in order and apart."""
    start = max(0, min(spans[0][0] - _BEFORE if spans else 0, len(text) - WIDTH))
    stop, parts, at = start + WIDTH, ["…" if start else ""], start
    for begin, end in spans:
        if begin < stop:
            parts += [escape(text[at:begin]), f"<mark>{escape(text[begin : min(end, stop)])}</mark>"]
            at = min(end, stop)
    return "".join([*parts, escape(text[at:stop]), "…" if stop < len(text) else ""])


def differences(one: str, other: str) -> tuple[str, str]:
    """HTML of both; of long stretches that are equal only the ends are shown."""
    before = len(os.path.commonprefix([one, other]))
    after = len(os.path.commonprefix([one[before:][::-1], other[before:][::-1]]))
    a, b = (text[before : len(text) - after] for text in (one, other))
    blocks = [("replace", 0, len(a), 0, len(b))]
    if max(len(a), len(b)) <= _SHORT:
        blocks = difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes()
    blocks = [(tag, *(before + edge for edge in edges)) for tag, *edges in blocks]
    end = blocks[-1] if blocks else ("equal", 0, before, 0, before)
    blocks = [("equal", 0, before, 0, before), *blocks, ("equal", end[2], len(one), end[4], len(other))]
    return _side(one, [(tag, i, j) for tag, i, j, _, _ in blocks]), _side(
        other, [(t, k, m) for t, _, _, k, m in blocks]
    )


def _side(text: str, blocks: list[tuple[str, int, int]]) -> str:
    """blocks: (tag of difflib, start, end) of all of the text, in order."""
    parts, shown = [], 0
    for tag, start, end in blocks:
        if shown >= WIDTH:
            return "".join([*parts, "…" if start < len(text) else ""])
        piece = text[start:end]
        if tag == "equal" and len(piece) > 2 * _CONTEXT + 10:
            piece = f"{piece[:_CONTEXT]}…{piece[-_CONTEXT:]}"
        piece = piece if len(piece) <= WIDTH else f"{piece[:WIDTH]}…"
        parts.append(escape(piece) if tag == "equal" or not piece else f"<mark>{escape(piece)}</mark>")
        shown += len(piece)
    return "".join(parts)


_STYLE = """
:root{--paper:#fff;--card:#f6f7f9;--ink:#1c2126;--soft:#5c6670;--line:#dde1e6;--main:#1f6feb;--grey:#aeb6bf;
--drop:#d9822b;--mark:#ffe58a;--limit:#c03a2b}
@media screen and (prefers-color-scheme:dark){:root{--paper:#14171a;--card:#1d2125;--ink:#e4e8ec;--soft:#98a3ad;
--line:#333a41;--main:#5b9dff;--grey:#65707b;--drop:#e39a4e;--mark:#6b5600;--limit:#ff8577}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);line-height:1.65;
font-family:system-ui,-apple-system,"PingFang SC","Microsoft YaHei","Noto Sans CJK SC","WenQuanYi Micro Hei",sans-serif}
main{max-width:68rem;margin:0 auto;padding:1.5rem 1rem 4rem}
h1{font-size:1.5rem;margin:0 0 .5rem}h2{font-size:1.2rem;margin:0 0 .6rem}h3{font-size:1rem;margin:1.2rem 0 .4rem}
section{padding-top:1.6rem;margin-top:1.6rem;border-top:1px solid var(--line)}
nav{display:flex;flex-wrap:wrap;gap:.2rem 1rem;font-size:.9rem}a{color:var(--main)}
p{margin:.4rem 0;overflow-wrap:anywhere}.soft,figcaption{color:var(--soft);font-size:.9rem}
.note{background:var(--card);border-left:4px solid var(--main);padding:.6rem .9rem}
.wide{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:.92rem}
th,td{padding:.3rem .6rem;border-bottom:1px solid var(--line);text-align:left;vertical-align:middle;white-space:nowrap}
th{color:var(--soft);font-weight:normal}
td{font-variant-numeric:tabular-nums}:is(th,td):not(:first-child){text-align:right}td:has(.bar){width:45%}
tr.total td{font-weight:600}
tr.best td{background:var(--card);font-weight:600}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.15rem 1rem;font-size:.92rem;margin:.6rem 0}
dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}
.tiles{display:flex;flex-wrap:wrap;gap:.6rem;margin:.8rem 0}
.tiles div{background:var(--card);border-radius:.5rem;padding:.5rem .9rem;flex:1 1 7rem;color:var(--soft);font-size:.88rem}
.tiles b{display:block;font-size:1.35rem;color:var(--ink);font-variant-numeric:tabular-nums}
.bar{display:block;width:100%;min-width:6rem;height:.8rem}
.main{fill:var(--main)}.grey{fill:var(--grey)}.drop{fill:var(--drop)}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(17rem,1fr));gap:1rem}
figure{margin:0}.chart{width:100%;max-width:32rem;height:auto;display:block}
.chart text{font-size:11px;fill:var(--soft)}.chart text.limit{fill:var(--limit)}
.chart .axis,.chart .grid{stroke:var(--line)}.chart line.limit{stroke:var(--limit);stroke-dasharray:4 3}
.chart path.grey{fill-opacity:.55}.chart path.main{fill-opacity:.25;stroke:var(--main);stroke-width:1.5}
.touch{fill:transparent}
.key::before{content:"";display:inline-block;width:.75em;height:.75em;margin-right:.3em;background:var(--grey)}
.key.main::before{background:var(--main)}.key{margin-right:1em}
details{border:1px solid var(--line);border-radius:.5rem;margin:.4rem 0;padding:0 .8rem}
summary{cursor:pointer;padding:.45rem 0}summary .soft{float:right}
article{border-top:1px solid var(--line);padding:.6rem 0;break-inside:avoid}
blockquote{margin:.3rem 0;padding:.4rem .7rem;background:var(--card);border-radius:.3rem;overflow-wrap:anywhere}
blockquote b{color:var(--soft);font-weight:normal;margin-right:.5em}
mark{background:var(--mark);color:inherit;border-radius:.15em}
.where{color:var(--soft);font-size:.85rem;overflow-wrap:anywhere}
@media print{nav{display:none}.charts{grid-template-columns:repeat(3,1fr)}main{max-width:none;padding:0}section,figure,tr{break-inside:avoid}
#samples,#families{break-inside:auto}mark,.note,blockquote{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
@media (max-width:36rem){dl{grid-template-columns:6.5em 1fr}table{font-size:.82rem}th,td{padding:.3rem .25rem}
.bar{min-width:3.5rem}td:has(.bar){width:auto}}
"""
