"""Results of lm-eval tasks side by side: accuracy with its standard error, and sentences that claim no more than they show.

Two models answer the same questions, so they are compared question by question: those that only one of them got right.
"""

import math

from .binomial import Comparison, compare, say, share_interval
from .lm_eval_data import BENCHMARKS, benchmark_of

CHANCE = 0.25  # four choices


def compare_models(models: dict[str, dict], tasks: list[str]) -> list[dict]:
    """Each later model against the first on every task, the level divided by the number of comparisons."""
    (first, base), *others = models.items()
    count = len(others) * len(tasks)
    rows = []
    for name, theirs in others:
        for task in tasks:
            result = _paired(base[task]["scores"], theirs[task]["scores"], 0.05 / count)
            questions = result.wins + result.ties + result.losses
            sentence = say(name, first, result, f"{task}（同样的 {questions} 题）", count)
            rows.append({"task": task, "model": name, "against": first, **result.to_json(), "sentence": sentence})
    return rows


def _paired(base: dict, theirs: dict, alpha: float) -> Comparison:
    gains = [
        theirs[leaf][question] - score
        for leaf, scores in base.items()
        for question, score in scores.items()
        if question in theirs.get(leaf, {})
    ]
    return compare(sum(gain > 0 for gain in gains), sum(gain < 0 for gain in gains), len(gains), alpha)


def accuracy_interval(result: dict) -> list[float] | None:
    """The exact 95 % interval of the share of right answers; None where a question can be right in part."""
    scores = [score for each in result["scores"].values() for score in each.values()]
    if not scores or not set(scores) <= {0.0, 1.0}:
        return None
    return [round(x, 6) for x in share_interval(int(sum(scores)), len(scores))]


def against_chance(name: str, task: str, result: dict) -> str | None:
    """Say whether a four-choice result is above guessing; None for other tasks."""
    bounds = accuracy_interval(result)
    if benchmark_of(task) is None or bounds is None:
        return None
    low, high = bounds
    where = "高于" if low > CHANCE else "低于" if high < CHANCE else "看不出高于"
    return f"{task}：{name} {where}瞎猜的 25%（95% 区间 [{low:.1%}, {high:.1%}]）。"


def coverage(tasks: list[str], found: dict[str, list[str]], own: dict[str, list[str]], limit: int | None) -> list[str]:
    """What keeps these figures from being the published ones: subjects missing or added, a limit."""
    notes = []
    for name, subjects in found.items():
        total, extra = BENCHMARKS[name].subjects, own[name]
        if name in tasks and len(subjects) - len(extra) < total:
            notes.append(f"{name}：文件夹里只有 {total} 科中的 {len(subjects) - len(extra)} 科，不能与公布的成绩相比。")
        if name in tasks and extra:
            notes.append(f"{name}：含自定的科目 {'、'.join(extra)}，总分把它们算在内。")
    if limit:
        notes.append(f"每科只用了前 {limit} 题（--limit），不能与公布的成绩相比。")
    return notes


def markdown(report: dict) -> str:
    """The report as Markdown: a row per model, a column per task, then the sentences."""
    tasks, models = report["tasks"], report["models"]
    lines = ["# 基准测试", "", f"lm-eval {report['lm_eval']}，{_way(report)}。准确率 ± 标准误（题数）：", ""]
    lines += [f"| 模型 | {' | '.join(tasks)} |", "|" + " --- |" * (len(tasks) + 1)]
    for name, model in models.items():
        lines.append(f"| {name} | {' | '.join(_cell(model['tasks'][task]) for task in tasks)} |")
    sections = [("比较", [row["sentence"] for row in report["comparisons"]]), ("与瞎猜相比", report["against_chance"])]
    for title, sentences in [*sections, ("注意", report["notes"])]:
        if sentences:
            lines += ["", f"## {title}", "", *(f"- {sentence}" for sentence in sentences)]
    return "\n".join([*lines, ""])


def _way(report: dict) -> str:
    shots = f"{report['num_fewshot']} 个例题"
    return shots + ("，套用各模型的对话模板" if report["apply_chat_template"] else "，不套对话模板（lm-eval 的默认）")


def _cell(result: dict) -> str:
    stderr = result["stderr"]
    spread = f" ± {stderr:.2%}" if stderr is not None and math.isfinite(stderr) else ""
    name = "" if result["metric"] == "acc" else f"{result['metric']} "
    return f"{name}{result['value']:.2%}{spread}（{result['questions']}）"
