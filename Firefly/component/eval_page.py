"""evaluation.html: what can be claimed, the figures with their intervals, and the answers side by side."""

from html import escape

from . import eval_text
from .eval_plots import Row, plot, table
from .eval_text import FORGETTING_TAGS, NAMES, TAGS, interval_of, with_interval
from .leakage import KINDS

MAX_ANSWERS = 200
MAX_LEAKS = 100
_KINDS = 6  # colours of models


def report_sections(report: dict) -> list[tuple[str, str, str]]:
    """The page's sections for a report as of evaluation.json; the same report gives the same bytes."""
    return [
        ("verdicts", "结论", _verdicts(report)),
        ("losses", "留出损失", _losses(report)),
        ("differences", "损失的差", _differences(report["differences"], "全部", TAGS)),
        ("general", "遗忘：通用数据的损失", _general(report.get("general"))),
        ("answers", "回答的质量", _answer_figures(report)),
        ("side", "回答并排", _side_by_side(report)),
        ("leakage", "与训练数据的重合", _leakage(report.get("leakage"))),
        ("method", "怎样算的", _method(report)),
    ]


def _kind(report: dict, name: str) -> str:
    return f"m{list(report['models']).index(name) % _KINDS}"


def _verdicts(report: dict) -> str:
    """A card for each pair of models."""
    forgetting = [d for d in report.get("general", {}).get("differences", []) if d["source"] is None]
    found = [(d, TAGS, "留出" + NAMES["loss"]) for d in report["differences"] if d["source"] is None]
    found += [(d, TAGS, f"留出损失：{d['source']}") for d in eval_text.of_sources(report)]
    found += [(d, TAGS, _clean_title(d)) for d in eval_text.without_leaked(report)]
    found += [(d, FORGETTING_TAGS, "通用数据的损失") for d in forgetting]
    clean = eval_text.without_leaked(report.get("general", {}))
    found += [(d, FORGETTING_TAGS, "通用数据，去掉重合的") for d in clean if d["source"] is None]
    found += [(d, TAGS, NAMES[d["metric"]]) for d in report.get("answer_differences", [])]
    pairs = list(dict.fromkeys((d["before"], d["after"]) for d, _, _ in found))
    cards = []
    for before, after in pairs:
        items = "".join(
            f'<li><span>{escape(title)}</span><span class="tag {d["verdict"]}">{tags[d["verdict"]]}</span>'
            f"<small>{escape(eval_text.change(d))}</small></li>"
            for d, tags, title in found
            if (d["before"], d["after"]) == (before, after)
        )
        cards.append(f"<div><h3>{escape(after)} 比 {escape(before)}</h3><ul>{items}</ul></div>")
    parts = [f'<div class="cards">{"".join(cards)}</div>' if cards else "<p>只有一个模型，没有可比的。</p>"]
    leakage = report.get("leakage")
    if leakage:
        kind = "note bad" if leakage["leaked"] and not leakage["excluded"] else "note"
        parts.append(f'<p class="{kind}">{escape(eval_text.leakage_sentence(leakage))}</p>')
    parts += [f'<p class="soft">{escape(text)}</p>' for text in eval_text.notes_of(report)]
    return "\n".join(parts)


def _clean_title(difference: dict) -> str:
    return f"去掉重合的{'：' + difference['source'] if difference['source'] else '，留出损失'}"


def _losses(report: dict) -> str:
    """The losses of all models, over all and per source, with their intervals."""
    models = report["models"]
    sources = sorted(next(iter(models.values()))["by_source"])
    groups = [("全部", models)]
    if len(sources) > 1:
        groups += [
            (source, {name: result["by_source"][source] for name, result in models.items()}) for source in sources
        ]
    rows: list[Row | str] = []
    for title, parts in groups:
        rows.append(f"{title}（{next(iter(parts.values()))['records']} 条）")
        for name, part in parts.items():
            said = (f"{part['loss']:.3f}", interval_of(part["loss_interval"], 3))
            rows.append(Row(name, _kind(report, name), part["loss"], part["loss_interval"], said))
    perplexities = [
        [name, with_interval(r["perplexity"], r["perplexity_interval"], 2), str(r["target_tokens"])]
        for name, r in models.items()
    ]
    return (
        f"<p>每个目标 token 的交叉熵，越低越好；横线是 95% 区间。{escape(eval_text.counted(report))}</p>"
        + plot(rows)
        + f'<div class="figures">{table(["模型", "困惑度", "目标 token"], perplexities)}</div>'
    )


def _differences(differences: list[dict], all_title: str, tags: dict[str, str]) -> str:
    """Paired differences against 0, coloured by what they allow to be said."""
    rows: list[Row | str] = []
    for before, after in dict.fromkeys((d["before"], d["after"]) for d in differences):
        rows.append(f"{after} − {before}")
        for d in differences:
            if (d["before"], d["after"]) == (before, after):
                said = (f"{d['difference']:+.3f}", interval_of(d["interval"], 3), tags[d["verdict"]])
                rows.append(Row(d["source"] or all_title, d["verdict"], d["difference"], d["interval"], said))
    if not rows:
        return ""
    return "<p>同一批记录上相减；小于 0 是降低了。区间含 0（虚线）的，不能说有差别。</p>" + plot(rows, zero=True)


def _general(general: dict | None) -> str:
    if not general:
        return ""
    return _losses(general) + _differences(general["differences"], "全部", FORGETTING_TAGS)


def _answer_figures(report: dict) -> str:
    if "tokenization" not in report:
        return ""
    models = report["models"]
    rows: list[Row | str] = []
    for metric in ("bleu4", "rouge1", "rouge2", "rougeL"):
        rows.append(NAMES[metric])
        for name, model in models.items():
            value, bounds = model["scores"][metric], model["scores"][f"{metric}_interval"]
            rows.append(Row(name, _kind(report, name), value, bounds, (f"{value:.1f}", interval_of(bounds, 1))))
    lengths: list[Row | str] = [_length("参考回答", "plain", report["reference_characters"])]
    lengths += [_length(name, _kind(report, name), model["scores"]["characters"]) for name, model in models.items()]
    return (
        f'<p class="soft">{escape(report["tokenization"])}。</p>'
        + plot(rows, from_zero=True)
        + '<h3>回答有多长（字）</h3><p class="soft">短竖线是中位数，粗线是中间一半，细线是 10% 到 90%。</p>'
        + plot(lengths, from_zero=True)
        + f'<div class="figures">{table(["", *models], eval_text.answer_rows(models))}</div>'
    )


def _length(label: str, kind: str, points: dict) -> Row:
    said = (f"{points['median']:.0f}", f"[{points['p10']:.0f}, {points['p90']:.0f}]")
    return Row(label, kind, points["median"], (points["p10"], points["p90"]), said, (points["p25"], points["p75"]))


def _side_by_side(report: dict) -> str:
    if "tokenization" not in report:
        return ""
    models = report["models"]
    samples = next(iter(models.values()))["samples"]
    leaked = {one["where"]: KINDS[one["kind"]] for one in report.get("leakage", {}).get("records", [])}
    parts = [f"<p>同一个问题，{len(models)} 个模型的回答（贪心生成）。</p>"]
    for i, sample in enumerate(samples[:MAX_ANSWERS]):
        place = f"{sample['source']} · {sample['where']}"
        place += f" · 与训练数据重合：{leaked[sample['where']]}" if sample["where"] in leaked else ""
        answers = "".join(_answer(name, _kind(report, name), model["samples"][i]) for name, model in models.items())
        parts.append(
            f"<article><h3>{escape(sample['question'])}</h3><details open><summary>参考回答</summary>"
            f'<div class="text" tabindex="0">{escape(sample["reference"])}</div></details>'
            f'<div class="answers" style="--n:{min(len(models), 4)}">{answers}</div>'
            f'<p class="where">{escape(place)}</p></article>'
        )
    if len(samples) > MAX_ANSWERS:
        parts.append(f"<p>另有 {len(samples) - MAX_ANSWERS} 个问题，见 evaluation.json。</p>")
    return "\n".join(parts)


def _answer(name: str, kind: str, sample: dict) -> str:
    scores = sample["scores"]
    facts = [f"ROUGE-L {scores['rougeL']:.0f}", f"{scores['characters']} 字"]
    facts.append("自行结束" if sample["finish_reason"] == "stop" else "<b>到上限为止</b>")
    if scores["loops"]:
        facts.append(f"<b>循环“{escape(scores['loop_unit'][:12])}”</b>")
    if scores["same_language"] is False:
        facts.append("<b>换了语言</b>")
    text = escape(sample["response"].strip()) or '<span class="soft">（空）</span>'
    return (
        f'<div class="{kind}"><span class="who">{escape(name)}</span><div class="text" tabindex="0">{text}</div>'
        f'<p class="facts">{" · ".join(facts)}</p></div>'
    )


def _leakage(leakage: dict | None) -> str:
    if not leakage:
        return ""
    parts = [f"<p>{escape(eval_text.leakage_sentence(leakage))}</p>"]
    rows = [
        [
            one["where"],
            f"{KINDS[one['kind']]}（{one['share']:.0%}）",
            one["train_where"],
            one["text"],
            one["train_text"],
        ]
        for one in leakage["records"][:MAX_LEAKS]
    ]
    if rows:
        parts.append(
            f'<div class="leaks">{table(["评估记录", "重合（相同片段）", "训练记录", "评估内容", "训练内容"], rows)}</div>'
        )
    if (more := len(leakage["records"]) - MAX_LEAKS) > 0:
        parts.append(f"<p>另有 {more} 条，见 evaluation.json。</p>")
    return "\n".join(parts)


def _method(report: dict) -> str:
    paths = [[name, model["path"], "、".join(model["adapter"]) or "–"] for name, model in report["models"].items()]
    return (
        f"<p>{escape(eval_text.method(report))}</p><p>评估文件 {escape(report['eval_file'])}；"
        f"最长 {report['max_seq_length']} 个 token。</p>" + table(["模型", "路径", "适配器"], paths)
    )
