"""A page about one run of preparation, for people to look at: what came in, what was dropped and why, what is trained on.

    build_page(args, table, plan, rules, info, rows) -> str      one file of HTML, in Chinese, the same for the same input
    check_tokenizer(path) -> None                          UserError when --tokenizer can't be used; ask it early

Counts come from the table; records are read again for a few samples (report_samples.py), and some of the chosen ones
for their tokens (report_tokens.py). The pieces of HTML are made in report_page.py.
"""

import argparse
from html import escape
from typing import Any

import numpy as np

from .mixture import label as name_of
from .quality import label
from .report_page import Series, bar, histogram, log_edges, number, page, percent
from .report_page import table as html_table
from .report_samples import FIELDS, Records, families, samples
from .report_tokens import check_tokenizer, token_lengths
from .scan import Rules
from .table import Table
from .writing import Plan

__all__ = ["build_page", "check_tokenizer"]


def build_page(
    args: argparse.Namespace, table: Table, plan: Plan, rules: Rules, info: dict[str, Any], rows: np.ndarray
) -> str:
    """rows: of the table, those that are trained on."""
    records = Records(table, plan, rules, (info["near_dup"] or {}).get("method"))
    sections = [
        ("overview", "概况", _overview(args, plan, info)),
        ("funnel", "每个来源的去向", _funnel(plan, info)),
        ("lengths", "长度分布", _lengths(table, plan, rules, rows)),
        ("samples", "丢弃的样例", samples(records, args.seed)),
        (
            "families",
            "近似重复组" if records.method else "重复组",
            "<p>没有查重（--no-dedup）。</p>" if args.no_dedup else families(records),
        ),
    ]
    if args.tokenizer:
        sections.append(("tokens", "Token 长度", token_lengths(table, rows, rules, args.tokenizer, args.seed)))
    return page("SFT 数据报告", sections)


def _overview(args: argparse.Namespace, plan: Plan, info: dict[str, Any]) -> str:
    counts = [info["counts"][name] for name in plan.names]
    tiles = (
        ("读入", sum(one["read"] for one in counts)),
        ("丢弃", sum(sum(one["dropped"].values()) for one in counts)),
        ("保留", sum(plan.kept.values())),
        ("留作评测", sum(map(len, plan.held_out.values()))),
        ("写出训练", sum(plan.allocated.values())),
    )
    rows = []
    for name in _given(plan, info):
        share = info["shares"][name]
        numbers = (info["counts"][name]["read"], plan.kept[name], plan.allocated[name])
        bars = bar((share["asked"], "grey"), (share["delivered"], "main"))
        shares = [f"{share[which]:.1%}" for which in ("asked", "delivered")]
        rows.append([escape(name_of(name)), *numbers, *shares, bars])
    note = info["hit_ratio_note"] or "各来源的比例与要求一致。"
    old = info["appended_to"]
    return (
        '<div class="tiles">' + "".join(f"<div><b>{number(n)}</b>{what}</div>" for what, n in tiles) + "</div>\n"
        f'<p class="note">{escape(note)}</p>\n'
        + (f"<p>输出中原有 {number(old)} 条，这次接在后面。</p>\n" if old else "")
        + html_table(("来源", "读入", "保留", "写出", "要求", "实际", ""), rows)
        + '\n<p class="soft"><span class="key">要求的占比</span><span class="key main">实际的占比</span></p>'
        + "\n<h3>主要设置</h3>\n<dl>"
        + "".join(f"<dt>{what}</dt><dd>{escape(value)}</dd>" for what, value in _settings(args, info) if value)
        + "</dl>"
    )


def _given(plan: Plan, info: dict[str, Any]) -> list[str]:
    """The sources of which something was read or asked."""
    return [name for name in plan.names if info["counts"][name]["read"] or info["shares"][name]["asked"]]


def _settings(args: argparse.Namespace, info: dict[str, Any]) -> list[tuple[str, str]]:
    """(what, value); an empty value is not shown."""
    near, ratio = info["near_dup"], f"{args.hit_ratio:g}"
    lengths = [f"{FIELDS[name]} {low:,}–{high:,}" for name, (low, high) in info["params"]["length_limits"].items()]
    gates = [] if args.no_filter else [
        ("中文占比下限", f"{args.min_chinese_ratio:g}"),
        ("长度（字）", "，".join(lengths)),
        ("网址上限", str(args.drop_max_urls)),
        ("另丢弃", "，".join(args.drop_pattern)),
    ]  # fmt: skip
    return [
        ("HIT 数据", "，".join(args.hit_jsonl)),
        ("开源数据", args.firefly_json or ""),
        ("其他来源", "，".join(args.source)),
        ("输出", args.out),
        ("总条数", f"{args.total:,}（不够时：{args.on_shortage}）" if args.total else "全部"),
        ("HIT 占比", ratio if info["hit_ratio_applied"] else f"{ratio}（未生效）"),
        ("评测集", "" if args.eval_size is None else f"{args.eval_size:g}"),
        ("过滤", "无（--no-filter）" if args.no_filter else ""),
        *gates,
        ("个人信息", "丢弃" if args.drop_pii else "换成占位符" if args.redact_pii else "不处理"),
        ("去重", "无（--no-dedup）" if args.no_dedup else "完全重复"),
        ("近似去重", " · ".join(map(str, near.values())) if near else "无"),
        ("随机种子", str(args.seed)),
    ]


def _funnel(plan: Plan, info: dict[str, Any]) -> str:
    parts = []
    for name in _given(plan, info):
        counts, out, kept = info["counts"][name], len(plan.held_out[name]), plan.kept[name]
        left, written = kept - out, plan.allocated[name]
        steps = [("total", "读入", counts["read"], "grey")]
        reasons = sorted(counts["dropped"].items(), key=lambda item: (-item[1], item[0]))
        steps += [("", f"− {label(reason)}", n, "drop") for reason, n in reasons]
        steps += [("total", "保留", kept, "main")]
        steps += [("", "− 留作评测", out, "grey")] if out else []
        steps += [("", "− 没有抽中", left - written, "grey")] if written < left else []
        steps += [("", "+ 重复使用", written - left, "main")] if written > left else []
        steps += [("total", "写出训练", written, "main")]
        whole = max(1, counts["read"])
        rows = [[escape(what), n, percent(n / whole), bar((n / whole, kind))] for _, what, n, kind in steps]
        kinds = [kind for kind, *_ in steps]
        parts.append(f"<h3>{escape(name_of(name))}</h3>\n" + html_table(("", "条数", "占读入", ""), rows, kinds))
    return "\n".join(parts)


def _lengths(table: Table, plan: Plan, rules: Rules, chosen: np.ndarray) -> str:
    """chosen: (m,) int64, the rows that are trained on."""
    read = np.isin(table.file, [i for i, file in enumerate(table.files) if file.source in plan.names])
    before, after = table.lengths[read], table.lengths[chosen]
    charts = []
    for column, name in enumerate(("instruction", "input", "output")):
        both = [lengths[:, column][lengths[:, column] > 0] for lengths in (before, after)]
        longest = max(int(values.max(initial=0)) for values in both)
        limits = [limit for limit in (rules.gates.lengths[name] if rules.gates else ()) if limit <= 4 * longest]
        edges = log_edges(max([longest, *limits]))
        series = [
            Series(what, kind, _shares(values, edges))
            for what, kind, values in zip(("读入", "训练"), ("grey", "main"), both, strict=True)
        ]
        said = "；".join(
            f"{one.label} {number(len(values))} 条有，中位数 {number(int(np.median(values)))} 字"
            for one, values in zip(series, both, strict=True)
            if len(values)
        )
        chart = histogram(f"{FIELDS[name]}的字数", edges, series, limits, "字")
        charts.append(f"<figure><h3>{FIELDS[name]}</h3>{chart}<figcaption>{said or '没有'}</figcaption></figure>")
    return (
        '<p class="soft"><span class="key">读入的全部记录</span><span class="key main">训练用的记录</span>'
        "横轴是字数（对数），纵轴是各占自己总数的比例；红色虚线是长度的上下限。</p>\n"
        f'<div class="charts">{"".join(charts)}</div>'
    )


def _shares(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """(bins,) float, adding up to 1, or 0 when there is nothing."""
    return np.histogram(values, edges)[0] / max(1, len(values))
