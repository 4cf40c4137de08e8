"""What an evaluation says in words: a sentence for each difference, which claims no more than its interval, and Markdown."""

from .leakage import KINDS

NAMES = {
    "loss": "损失",
    "bleu4": "BLEU-4",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "ends_by_itself": "自行结束的比例",
}
TAGS = {
    "better": "有提高",
    "worse": "变差",
    "unclear": "不能说有提高",
    "few": "不下结论",
    "leaked": "都训练过，不算",
}
FEW_SOURCES = 4
WITHOUT_LEAKED = "去掉与训练数据重合的"
FORGETTING_TAGS = {
    "better": "没有遗忘",
    "worse": "有遗忘",
    "unclear": "看不出遗忘",
    "few": "不下结论",
    "leaked": "都训练过，不算",
}


def sentence(difference: dict, forgetting: bool = False) -> str:
    """One difference in words. ``forgetting``: the loss is one on general data, where a rise is what is looked for."""
    scope = f"「{difference['source']}」的" if difference.get("source") else "通用数据的" if forgetting else ""
    name = NAMES[difference["metric"]]
    what = f"{difference['after']} 比 {difference['before']}：{scope}{name}{' ' if name.isascii() else ''}"
    tag = (FORGETTING_TAGS if forgetting else TAGS)[difference["verdict"]]
    if difference["verdict"] == "few":
        return f"{what}只有 {difference['records']} 条记录，太少，{tag}。"
    if difference["verdict"] == "unclear":
        most = f"，升高最多约 {difference['interval'][1]:.3f}" if forgetting else ""
        return f"{what}{change(difference)}；区间含 0，{tag}{most}。"
    return f"{what}{change(difference)}，{tag}。"


def change(difference: dict) -> str:
    """How far apart two models are: the figure, its interval, how many records."""
    metric, count = difference["metric"], f"{difference['records']} 条"
    digits, unit, by = (1, " 个百分点", 100) if metric == "ends_by_itself" else (3 if metric == "loss" else 1, "", 1)
    value, bounds = difference["difference"] * by, [x * by for x in difference["interval"] or ()]
    if not bounds:
        return f"差 {value:+.{digits}f}{unit}（{count}）"
    if difference["verdict"] in ("unclear", "few"):
        return f"差 {value:+.{digits}f}{unit}（95% 区间 {bounds[0]:+.{digits}f} 到 {bounds[1]:+.{digits}f}，{count}）"
    word = "低" if bounds[1] < 0 else "高"
    low, high = sorted(abs(x) for x in bounds)
    while digits < 6 and float(f"{low:.{digits}f}") == 0:  # a bound that leaves 0 out must not look like 0
        digits += 1
    return f"{word} {abs(value):.{digits}f}{unit}（95% 区间 {low:.{digits}f} 到 {high:.{digits}f}，{count}）"


def with_interval(value: float, bounds: list[float] | None, digits: int) -> str:
    return f"{value:.{digits}f} {interval_of(bounds, digits)}".rstrip()


def interval_of(bounds: list[float] | None, digits: int) -> str:
    return "" if bounds is None else f"[{bounds[0]:.{digits}f}, {bounds[1]:.{digits}f}]"


def verdicts(report: dict) -> list[str]:
    """A sentence for each pair and measure: losses, over all and of a few sources, forgetting, and the answers."""
    found = [sentence(d) for d in report["differences"] if d["source"] is None]
    found += [sentence(d) for d in of_sources(report)]
    found += [f"{WITHOUT_LEAKED}，{sentence(d)}" for d in without_leaked(report)]
    general = report.get("general", {})
    forgetting = [d for d in general.get("differences", []) if d["source"] is None]
    found += [sentence(d, forgetting=True) for d in forgetting]
    found += [
        f"{WITHOUT_LEAKED}，{sentence(d, forgetting=True)}" for d in without_leaked(general) if d["source"] is None
    ]
    return found + [sentence(d) for d in report.get("answer_differences", [])]


def of_sources(report: dict) -> list[dict]:
    """The differences of single sources, where there are so few that each deserves a line."""
    found = [d for d in report["differences"] if d["source"] is not None]
    return found if len({d["source"] for d in found}) <= FEW_SOURCES else []


def without_leaked(part: dict) -> list[dict]:
    """The differences that change without the records that leaked: over all, and of a few sources."""
    found = part.get("without_leaked", {}).get("differences", [])
    few = len({d["source"] for d in found if d["source"] is not None}) <= FEW_SOURCES
    counts = {d["source"]: d["records"] for d in part.get("differences", [])}
    return [d for d in found if d["records"] != counts[d["source"]] and (d["source"] is None or few)]


def counted(report: dict) -> str:
    """Where all records went, in a sentence."""
    dropped = "、".join(f"{reason} {count} 条" for reason, count in report["dropped"].items())
    first = next(iter(report["models"].values()))
    return (
        f"读入 {report['read']} 条 = 计入 {report['evaluated']} 条 + 不计入 {sum(report['dropped'].values())} 条（{dropped}）；"
        f"其中截断 {report['truncated']} 条；目标 token {first['target_tokens']} 个。"
    )


def leakage_sentence(leakage: dict) -> str:
    """How many held-out records stand in the training data, and whether they count."""
    kinds = "、".join(f"{KINDS[kind]} {count} 条" for kind, count in leakage["by_kind"].items())
    general = f"（其中通用数据 {leakage['general']} 条）" if leakage.get("general") else ""
    found = f"在 {leakage['train_records']} 条训练数据里查 {leakage['checked']} 条评估记录：{kinds}{general}。"
    if not leakage["leaked"]:
        return found + "没有发现重合。"
    if leakage["excluded"]:
        return found + f"这 {leakage['leaked']} 条已不计入（--drop-leaked）。"
    return (
        found
        + f"这 {leakage['leaked']} 条仍计入损失，结果会显得比实际好；去掉后的差另列，要完全去掉请加 --drop-leaked。"
    )


def by_chance(report: dict) -> str:
    """What so many comparisons do by chance, in a sentence; empty for a few."""
    count = len(report["differences"]) + len(report.get("answer_differences", []))
    count += len(report.get("general", {}).get("differences", []))
    count += sum(len(without_leaked(part)) for part in (report, report.get("general", {})))
    return (
        f"共比较 {count} 次；每个区间各为 95%，即使毫无差别，也会约有 {count / 20:.0f} 次碰巧不含 0。"
        if count >= 10
        else ""
    )


def summary(report: dict) -> str:
    """What a terminal shows: the losses, and what they and the rest allow to be said."""
    lines = verdicts(report)
    lines += [leakage_sentence(report["leakage"])] if "leakage" in report else []
    return "\n\n".join([_loss_table(report), counted(report), "\n".join([*lines, *notes_of(report)])]).strip()


def notes_of(report: dict) -> list[str]:
    """What a reader must know besides, a sentence each."""
    notes = [*report["notes"], *report.get("general", {}).get("notes", []), by_chance(report)]
    return [text for text in dict.fromkeys(notes) if text]


def markdown(report: dict) -> str:
    """The report in Markdown: tables, then what they allow to be said."""
    parts = [_loss_table(report), counted(report)]
    if lines := [f"- {text}" for text in verdicts(report)]:
        parts += ["## 结论", "\n".join(lines)]
    if not of_sources(report) and (rest := [d for d in report["differences"] if d["source"] is not None]):
        parts += ["## 各来源", "\n".join(f"- {sentence(d)}" for d in rest)]
    if general := report.get("general"):
        parts += ["## 通用数据（遗忘）", _loss_table(general), counted(general)]
    if "tokenization" in report:
        parts += ["## 生成的回答", _answer_table(report["models"]), f"分词：{report['tokenization']}。"]
    if leakage := report.get("leakage"):
        parts += ["## 与训练数据的重合", leakage_sentence(leakage), *_leak_lines(leakage)]
    parts += ["## 说明", "\n".join(f"- {text}" for text in [method(report), *notes_of(report)])]
    return "\n\n".join(parts)


def method(report: dict) -> str:
    how = report["interval"]
    return (
        f"区间为 95%：按记录有放回地重抽样 {how['resamples']} 次（seed {how['seed']}），取按记录数放宽的百分位；"
        "两个模型在同一批抽样上相减。比例的区间用 Wilson 法，比例之差的由精确二项分布得出。不足 6 条不给区间，不下结论。"
    )


def _table(heads: list[str], rows: list[list[str]]) -> str:
    safe = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in [heads, *rows]]
    lines = [f"| {' | '.join(row)} |" for row in safe]
    return "\n".join([lines[0], "|" + " --- |" * len(heads), *lines[1:]])


def _loss_table(report: dict) -> str:
    """A row per model, a column per source."""
    sources = sorted(next(iter(report["models"].values()))["by_source"])
    heads = ["模型", "损失", "95% 区间", "困惑度", *(f"损失（{source}）" for source in sources)]
    rows = []
    for name, result in report["models"].items():
        parts = [result["by_source"][source] for source in sources]
        rows.append(
            [
                name,
                f"{result['loss']:.4f}",
                interval_of(result["loss_interval"], 4),
                with_interval(result["perplexity"], result["perplexity_interval"], 2),
                *(with_interval(part["loss"], part["loss_interval"], 3) for part in parts),
            ]
        )
    return _table(heads, rows)


def answer_rows(models: dict[str, dict]) -> list[list[str]]:
    """One row per measure of the answers: its name, then a cell per model."""
    scores = [model["scores"] for model in models.values()]
    rows = [
        [NAMES[name], *(with_interval(s[name], s[f"{name}_interval"], 1) for s in scores)]
        for name in ("bleu4", "rouge1", "rouge2", "rougeL")
    ]
    shares = {"ends_by_itself": "自行结束", "empty": "空回答", "loops": "陷入循环", "same_language": "与问题同一语言"}
    rows += [[title, *(_share(s[name], s[f"{name}_interval"]) for s in scores)] for name, title in shares.items()]
    rows.append(["重复的四词片段", *(f"{s['repeated_4grams']:.1%}" for s in scores)])
    rows.append(["最长的循环（字）", *(str(s["longest_loop"]) for s in scores)])
    rows.append(["汉字占字母", *("–" if s["chinese_share"] is None else f"{s['chinese_share']:.0%}" for s in scores)])
    rows.append(["字数（中位，10%–90%）", *(_spread(s["characters"]) for s in scores)])
    rows.append(["token 数（中位，10%–90%）", *(_spread(s["tokens"]) for s in scores)])
    return rows


def _answer_table(models: dict[str, dict]) -> str:
    count = next(iter(models.values()))["generated"]
    return _table([f"{count} 条回答", *models], answer_rows(models))


def _share(value: float | None, bounds: list[float] | None) -> str:
    return "–" if value is None or bounds is None else f"{value:.0%} [{bounds[0]:.0%}, {bounds[1]:.0%}]"


def _spread(points: dict[str, float]) -> str:
    return f"{points['median']:.0f}（{points['p10']:.0f}–{points['p90']:.0f}）"


def _leak_lines(leakage: dict, most: int = 50) -> list[str]:
    rows = [
        [one["where"], KINDS[one["kind"]], f"{one['share']:.0%}", one["train_where"], one["text"][:60]]
        for one in leakage["records"][:most]
    ]
    if not rows:
        return []
    more = len(leakage["records"]) - most
    table = _table(["评估记录", "重合", "相同片段", "训练记录", "内容"], rows)
    return [table, f"另有 {more} 条，见 evaluation.json。"] if more > 0 else [table]
