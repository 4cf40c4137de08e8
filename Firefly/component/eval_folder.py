"""One folder, one page: evaluation.html shows what evaluate.py, judge.py and benchmarks.py have left in the same --out."""

import json
from html import escape
from pathlib import Path

from .eval_page import report_sections
from .eval_plots import Row, page, plot, table
from .script_io import write_text

MAX_VERDICTS = 200


def write_page(out: Path) -> None:
    """Write OUT/evaluation.html from the reports that are there."""
    evaluation, judged, benchmarks = (_read(out / f"{name}.json") for name in ("evaluation", "judge", "benchmarks"))
    names = list(evaluation["models"]) if evaluation else []
    names += [name for pair in (judged or {}).get("pairs", []) for name in (pair["against"], pair["model"])]
    names += list((benchmarks or {}).get("models", []))
    sections = report_sections(evaluation) if evaluation else []
    more = [("judge", "成对评审", judge_section(judged)), ("benchmarks", "基准测试", benchmark_section(benchmarks))]
    where = next((i for i, section in enumerate(sections) if section[0] == "losses"), 0)
    title = f"评估：{'、'.join(dict.fromkeys(names))}"
    write_text(out / "evaluation.html", page(title, [*sections[:where], *more, *sections[where:]]))


def _read(path: Path) -> dict | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def judge_section(report: dict | None) -> str:
    """Net wins of each pair against 0, what they allow to be said, and the verdicts one by one."""
    if not report:
        return ""
    rows: list[Row | str] = []
    for pair in (pair for pair in report["pairs"] if pair["judged"]):
        found = pair["comparison"]
        low, net, high = (100 * found[key] for key in ("low", "net", "high"))
        said = (f"{net:+.1f}%", f"[{low:+.1f}%, {high:+.1f}%]", f"{pair['win']} 胜 {pair['tie']} 平 {pair['lose']} 负")
        rows.append(Row(f"{pair['model']} 对 {pair['against']}", found["verdict"], net, (low, high), said))
    parts = [
        f"<p>评审模型 {escape(report['judge']['model'])}，{report['questions']} 题，每题换位问两次，两次不一致按平局计。"
        "图为净胜率（%）=（胜 − 负）/ 判了的题数，横线是区间；含 0（虚线）的，不能说有高下。</p>",
        plot(rows, zero=True),
    ]
    for pair in report["pairs"]:
        parts.append(f"<p>{escape(pair['sentence'])}{escape(pair['position']['sentence'])}</p>")
        lines = [
            [one["question"], *(one[order] or "–" for order in ("first", "second")), " / ".join(one["reasons"])]
            for one in pair["verdicts"][:MAX_VERDICTS]
        ]
        heads = ["问题", f"A={pair['against']}", f"A={pair['model']}", "理由"]
        parts.append(
            f"<details><summary>{escape(pair['model'])} 对 {escape(pair['against'])}：逐题的判决</summary>"
            f'<div class="leaks">{table(heads, lines)}</div></details>'
        )
    return "\n".join(parts)


def benchmark_section(report: dict | None) -> str:
    """Accuracy on each task with its interval, and what it allows to be said."""
    if not report:
        return ""
    names = list(report["models"])
    rows: list[Row | str] = []
    for task in report["tasks"]:
        rows.append(task)
        for name in names:
            one = report["models"][name]["tasks"][task]
            bounds = one.get("interval") and [100 * x for x in one["interval"]]
            reach = f"[{bounds[0]:.1f}%, {bounds[1]:.1f}%]" if bounds else f"{one['metric']}"
            said = (f"{100 * one['value']:.1f}%", reach, f"{one['questions']} 题")
            rows.append(Row(name, f"m{names.index(name) % 6}", 100 * one["value"], bounds, said))
    sentences = [*(row["sentence"] for row in report["comparisons"]), *report["against_chance"], *report["notes"]]
    return (
        f"<p>lm-eval {escape(report['lm_eval'])}，{report['num_fewshot']} 个例题。准确率（%），横线是 95% 区间。</p>"
        + plot(rows, from_zero=True)
        + "".join(f"<p>{escape(sentence)}</p>" for sentence in sentences)
    )
