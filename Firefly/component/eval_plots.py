"""Plots of an evaluation as rows of text and small inline SVGs on one scale: they stay readable at a phone's width.

    plot([Row(...), "a heading", Row(...)], digits, zero) -> str      a figure's rows, and its axis below
    page(title, sections) -> str                                      the whole document, nothing from outside

Whatever a user's file may hold goes through ``escape``; the page's own policy forbids scripts.
"""

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple


class Row(NamedTuple):
    """One line of a plot. bounds: the thin line; inner: the thick one, if any; said: the numbers, in pieces."""

    label: str
    kind: str
    value: float
    bounds: Sequence[float] | None
    said: tuple[str, ...]
    inner: Sequence[float] | None = None


def plot(rows: Sequence[Row | str], zero: bool = False, from_zero: bool = False) -> str:
    """Rows on one scale; text between them is a heading. zero: draw a line at 0, so 0 is on the scale."""
    values = [x for row in rows if isinstance(row, Row) for x in (row.value, *(row.bounds or ()), *(row.inner or ()))]
    if not values:
        return ""
    low, high = min(values), max(values)
    if zero or from_zero:
        low, high = min(low, 0.0), max(high, 0.0)
    pad = 0.04 * (high - low) or 0.5
    low, high = (0.0 if from_zero else low - pad), high + pad
    ticks = _ticks(low, high)
    parts = []
    for row in rows:
        if isinstance(row, str):
            parts.append(f'<p class="group">{escape(row)}</p>')
            continue
        parts.append(
            f'<span class="name {row.kind}">{escape(row.label)}</span>{_strip(row, low, high, ticks, zero)}'
            f'<span class="said">{" ".join(f"<span>{escape(piece)}</span>" for piece in row.said)}</span>'
        )
    digits = max(0, -math.floor(math.log10(ticks[1] - ticks[0]))) if len(ticks) > 1 else 2
    marks = "".join(f'<i style="left:{_x(t, low, high):.2f}%">{t:.{digits}f}</i>' for t in ticks)
    return f'<div class="plot">{"".join(parts)}<span></span><span class="axis">{marks}</span><span></span></div>'


def _x(value: float, low: float, high: float) -> float:
    return 100 * (value - low) / (high - low)


def _strip(row: Row, low: float, high: float, ticks: Sequence[float], zero: bool) -> str:
    def line(kind: str, a: float, b: float, y1: float, y2: float) -> str:
        return f'<line class="{kind}" x1="{_x(a, low, high):.2f}" x2="{_x(b, low, high):.2f}" y1="{y1}" y2="{y2}"/>'

    parts = [line("zero" if zero and tick == 0 else "grid", tick, tick, 0, 10) for tick in ticks]
    if row.bounds is not None:
        parts.append(line("reach", row.bounds[0], row.bounds[1], 5, 5))
    if row.inner is not None:
        parts.append(line("inner", row.inner[0], row.inner[1], 5, 5))
    parts.append(line("point", row.value, row.value, 1.5, 8.5))
    name = escape(f"{row.label}：{' '.join(row.said)}")
    return (
        f'<svg class="strip {row.kind}" viewBox="0 0 100 10" preserveAspectRatio="none" role="img" aria-label="{name}">'
        f"<title>{name}</title>{''.join(parts)}</svg>"
    )


def _ticks(low: float, high: float) -> list[float]:
    """Some three to six round numbers in a range; 0 is one of them where it lies within."""
    rough = (high - low) / 6
    power = 10 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    return [round(i * step, 10) + 0.0 for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are text; all but the first of a row stand at the right."""
    heads = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    lines = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{heads}</tr></thead>\n<tbody>{lines}</tbody></table></div>'


def page(title: str, sections: Iterable[tuple[str, str, str]]) -> str:
    """sections: (id, heading, HTML) each; empty ones are left out."""
    sections = [section for section in sections if section[2]]
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


_STYLE = """
:root{--paper:#fff;--card:#f6f7f9;--ink:#1c2126;--soft:#5c6670;--line:#dde1e6;--main:#1f6feb;
--good:#1a7f4b;--bad:#c03a2b;--m0:#7b858f;--m1:#c46a12;--m2:#1f6feb;--m3:#8e5bb5;--m4:#1a8a80;--m5:#b83a73}
@media screen and (prefers-color-scheme:dark){:root{--paper:#14171a;--card:#1d2125;--ink:#e4e8ec;--soft:#98a3ad;
--line:#333a41;--main:#5b9dff;--good:#4cc38a;--bad:#ff8577;--m0:#98a3ad;--m1:#e39a4e;--m2:#5b9dff;--m3:#b992dc;--m4:#4ec4b8;--m5:#ec7fae}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);line-height:1.65;
font-family:system-ui,-apple-system,"PingFang SC","Microsoft YaHei","Noto Sans CJK SC","WenQuanYi Micro Hei",sans-serif}
main{max-width:72rem;margin:0 auto;padding:1.5rem 1rem 4rem}
h1{font-size:1.5rem;margin:0 0 .5rem;overflow-wrap:anywhere}h2{font-size:1.2rem;margin:0 0 .6rem}
h3{font-size:1rem;margin:0 0 .3rem;overflow-wrap:anywhere}
section{padding-top:1.6rem;margin-top:1.6rem;border-top:1px solid var(--line)}
nav{display:flex;flex-wrap:wrap;gap:.2rem 1rem;font-size:.9rem}a{color:var(--main)}
p{margin:.4rem 0;overflow-wrap:anywhere}.soft{color:var(--soft);font-size:.9rem}
.note{background:var(--card);border-left:4px solid var(--main);padding:.6rem .9rem}
.note.bad{border-color:var(--bad)}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,20rem),1fr));gap:.8rem}
.cards>div{background:var(--card);border-radius:.5rem;padding:.7rem .9rem}
.cards ul{list-style:none;margin:0;padding:0;font-size:.92rem}
.cards li{display:grid;grid-template-columns:1fr auto;gap:0 .6rem;padding:.25rem 0;border-top:1px solid var(--line)}
.cards small{grid-column:1/-1;color:var(--soft);font-variant-numeric:tabular-nums}
.tag{font-weight:600;white-space:nowrap;color:var(--soft)}.tag.better{color:var(--good)}.tag.worse{color:var(--bad)}
.wide{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:.92rem}
th,td{padding:.3rem .6rem;border-bottom:1px solid var(--line);text-align:left;vertical-align:top}
th{color:var(--soft);font-weight:normal}td{font-variant-numeric:tabular-nums}
.figures :is(th,td){white-space:nowrap}.figures :is(th,td):not(:first-child){text-align:right}
.leaks td{min-width:7rem;overflow-wrap:anywhere}.leaks td:nth-child(n+4){min-width:16rem}
.plot{display:grid;grid-template-columns:minmax(3.5rem,max-content) 1fr max-content;gap:0 .7rem;align-items:center;
font-size:.9rem;margin:.4rem 0 1.2rem}
.plot .group{grid-column:1/-1;margin:.5rem 0 .1rem;color:var(--soft)}
.plot .name{max-width:14rem;overflow-wrap:anywhere}.plot .said{font-variant-numeric:tabular-nums;text-align:right}.said span{white-space:nowrap}
.strip{display:block;width:100%;height:1.5rem}
.strip line{vector-effect:non-scaling-stroke;stroke:currentColor;stroke-width:2}
.strip .grid{stroke:var(--line);stroke-width:1}.strip .zero{stroke:var(--soft);stroke-width:1.5;stroke-dasharray:4 3}
.strip .inner{stroke-width:8;stroke-opacity:.45}.strip .point{stroke-width:4}
.axis{position:relative;height:1.3rem;color:var(--soft);font-size:.8rem}
.axis i{position:absolute;transform:translateX(-50%);font-style:normal}
.m0{color:var(--m0)}.m1{color:var(--m1)}.m2{color:var(--m2)}.m3{color:var(--m3)}.m4{color:var(--m4)}.m5{color:var(--m5)}
.plain{color:var(--soft)}.better{color:var(--good)}.worse{color:var(--bad)}.unclear,.few{color:var(--soft)}
article{border-top:1px solid var(--line);padding:.9rem 0 1.1rem;break-inside:avoid}
article h3{white-space:pre-wrap}
.answers{display:grid;grid-template-columns:repeat(var(--n),minmax(0,1fr));gap:.7rem;margin-top:.6rem}
.answers>div{border-top:3px solid currentColor;background:var(--card);border-radius:0 0 .4rem .4rem;padding:.45rem .7rem}
.text{white-space:pre-wrap;overflow-wrap:anywhere;color:var(--ink);max-height:24rem;overflow-y:auto;margin:.25rem 0}
.who{font-weight:600;font-size:.9rem}.facts{color:var(--soft);font-size:.82rem}.facts b{color:var(--bad);font-weight:600}
details{border-left:3px solid var(--line);padding-left:.7rem}summary{cursor:pointer;color:var(--soft);font-size:.9rem}
.where{color:var(--soft);font-size:.82rem;overflow-wrap:anywhere}
@media (max-width:44rem){.answers{grid-template-columns:1fr}.plot{font-size:.8rem;gap:0 .45rem}
.plot .name{max-width:6.5rem}.plot .said{max-width:9em;line-height:1.3;padding:.1rem 0}th,td{padding:.3rem .35rem}table{font-size:.82rem}}
@media print{nav{display:none}main{max-width:none;padding:0}.text{max-height:none}}
"""
