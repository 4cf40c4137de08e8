"""A page about one run of generation, for people to look at: what came, what it cost, how varied it is, how it reads.

    build_page(report, seen) -> str      one file of HTML, in Chinese, the same for the same input

report: what _gen_report.json holds; what is missing or null there is left out here. seen: what was gathered of the
output (seen.py). Frame, style and pieces of HTML are those of preparation's page, whose
policy lets nothing run or load; whatever the teacher, the service or the user wrote goes through ``escape``.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from sft_data.report_page import bar, details, differences, number, page, percent, table

from .cost import describe_money
from .report_reading import lengths, percentile, samples
from .seen import Seen

PAIRS, FEWEST, FAILED = 6, 10, 200  # shown at most: pairs of questions, topics with few samples, failed topics
_MOST_BARS = 10  # counts of samples a topic that get a bar each


def build_page(report: dict[str, Any], seen: Seen) -> str:
    run = _part(report, "run")
    sections = [
        ("overview", "概况", _overview(report, seen)),
        ("funnel", "样本的去向", _funnel(run)),
        ("cost", "用量与花费", _cost(report)),
        ("variety", "多样性", _variety(_part(report, "variety"))),
        ("lengths", "长度分布", lengths(seen)),
        ("topics", "主题", _topics(run, seen)),
        ("requests", "请求", _requests(run)),
        ("samples", "读几条样本", samples(seen)),
    ]
    html = page("SFT 数据生成报告", sections).replace("</style>", f"{_STYLE}</style>", 1)
    return html.encode(errors="replace").decode()  # half a surrogate pair can stand in JSON, but in no file


def _part(report: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in (report.get(name) or {}).items() if value is not None}


def _overview(report: dict[str, Any], seen: Seen) -> str:
    run, topics, whole = (_part(report, name) for name in ("run", "topics", "all_runs"))
    cost, all_costs = _money(run), _money(whole)
    tokens = run.get("prompt_tokens", 0) + run.get("completion_tokens", 0)
    tiles = [
        (f"{number(topics.get('done', 0))} / {number(topics.get('asked', 0))}", "完成的主题"),
        (number(topics.get("failed", 0)), "没有凑齐的主题"),
        (number(report.get("samples_in_file", seen.count)), "文件里的样本"),
        (number(run.get("samples_accepted", 0)), "本次新增的样本"),
        (cost or _short(tokens), "本次花费" if cost else "本次 token"),
        *([(all_costs, "历次花费合计")] if all_costs and all_costs != cost else []),
        (number(run.get("requests", 0)), "本次请求"),
        (_duration(run.get("seconds", 0)), "用时"),
    ]
    return (
        f"{_tiles(tiles)}{_verdict(run, topics)}<h3>主要设置</h3>\n<dl>"
        + "".join(f"<dt>{what}</dt><dd>{escape(value)}</dd>" for what, value in _settings(report, run) if value)
        + "</dl>"
    )


def _tiles(tiles: Iterable[tuple[str, str]]) -> str:
    return '<div class="tiles">' + "".join(f"<div><b>{escape(n)}</b>{what}</div>" for n, what in tiles) + "</div>\n"


def _verdict(run: dict[str, Any], topics: dict[str, Any]) -> str:
    """How it ended, and what to do next if anything."""
    left = topics.get("asked", 0) - topics.get("done", 0)
    if run.get("stopped"):
        said = f"这次没有跑完：{run['stopped']}\n收到的都已保存；用同一条命令继续，只补缺的。"
    elif left > 0:
        said = f"还有 {number(left)} 个主题没有凑齐；用同一条命令再运行一次，只问它们缺的部分。"
    elif not topics.get("asked"):
        return ""
    else:
        said = f"主题都已完成。{'' if run.get('requests') else '这次没有发出请求。'}"
    halted = run.get("stopped") or left > 0
    return f'<p class="note text{" halt" if halted else ""}">{escape(said)}</p>\n'


def _settings(report: dict[str, Any], run: dict[str, Any]) -> list[tuple[str, str]]:
    """(what, value); an empty value is not shown."""
    numbers = (("每主题条数", "n_per_topic"), ("采样温度", "temperature"), ("并发上限", "max_concurrency"))
    return [
        ("教师模型", str(run.get("model", ""))),
        ("地址", str(run.get("base_url", ""))),
        ("思考", {True: "开启", False: "关闭"}.get(run.get("thinking"), "没有指定")),
        *((what, number(run[name]) if name in run else "") for what, name in numbers),
        ("输出", str(report.get("out", ""))),
    ]


def _funnel(run: dict[str, Any]) -> str:
    returned, accepted, answers = (run.get(name, 0) for name in ("samples_returned", "samples_accepted", "answers"))
    steps = [("total", "模型写出", returned, "grey")]
    steps += [("", f"− {what}", n, "drop") for what, n in _named(run.get("samples_rejected"))]
    steps += [("total", "收下", accepted, "main")]
    said = f"每写出 100 条，收下 {100 * accepted / returned:.1f} 条。" if returned else "这次没有新的样本。"
    html = f"<p>{said}</p>\n{_steps(steps, '占写出') if returned else ''}"
    if problems := _named(run.get("answers_by_problem")):
        rows = [("total", "收到的回答", answers, "grey"), *(("", what, n, "drop") for what, n in problems)]
        html += f"\n<h3>有问题的回答</h3>\n{_steps(rows, '占回答')}"
    elif answers and "answers_by_problem" in run:
        html += f"\n<p>{number(answers)} 个回答都完整可读。</p>"
    return html


def _named(counts: dict[str, Any] | None) -> list[tuple[str, int]]:
    """{key: {"count", "meaning"}} or {key: count} as (name, count), the most frequent first."""
    pairs = [
        (str(one.get("meaning") or key), one.get("count") or 0) if isinstance(one, dict) else (str(key), one)
        for key, one in (counts or {}).items()
    ]
    return sorted(((name, count) for name, count in pairs if count), key=lambda pair: (-pair[1], pair[0]))


def _steps(steps: Sequence[tuple[str, str, int, str]], head: str) -> str:
    """steps: (class of the row, what, how many, class of the bar); shares are those of the first."""
    whole = max(1, steps[0][2])
    rows = [[escape(what), n, percent(n / whole), bar((n / whole, kind))] for _, what, n, kind in steps]
    return table(("", "数量", head, ""), rows, [kind for kind, *_ in steps])


def _cost(report: dict[str, Any]) -> str:
    run, whole, price = (_part(report, name) for name in ("run", "all_runs", "price"))
    columns = [(run, run.get("samples_accepted", 0)), (whole, report.get("samples_in_file") or 0)]
    names = (("answers", "回答"), ("prompt_tokens", "输入 token"), ("cached_tokens", "其中命中缓存"))
    rows = [
        [what, *(part.get(key, 0) for part, _ in columns)]
        for key, what in (*names, ("completion_tokens", "输出 token"))
    ]
    per_sample = [part.get("completion_tokens", 0) / n if n else 0 for part, n in columns]
    rows.append(["每条样本的输出 token", *(f"{value:,.0f}" if value else "—" for value in per_sample)])
    if any("cost" in part for part, _ in columns):
        per_1000 = [{**part, "cost": 1000 * part["cost"] / n} if n and "cost" in part else {} for part, n in columns]
        rows.append(["每 1,000 条样本", *(escape(_money(part)) or "—" for part in per_1000)])
        rows.append(["花费", *(escape(_money(part)) or "—" for part, _ in columns)])
    if any(part.get("estimated") for part, _ in columns):
        rows.insert(1, ["其中没有报用量、按字数估计", *(part.get("estimated", 0) for part, _ in columns)])
    html = table(("", "本次", "历次合计"), rows, ["total" if row[0] == "花费" else "" for row in rows])
    return f'{html}\n<p class="soft">{escape(_price(price))}</p>\n{_earlier(report)}'


def _price(price: dict[str, Any]) -> str:
    if not price:
        return "没有这个模型的价格，所以只计 token。"
    names = (("输入", "input"), ("命中缓存的输入", "cached_input"), ("输出", "output"))
    usual, peak = (
        "，".join(f"{what} {rates[key]:g}" for what, key in names if rates.get(key) is not None)
        for rates in (price, price.get("peak") or {})
    )
    each = f"{usual}；高峰时段 {peak}" if peak else usual
    from_where = f"{price.get('dated', '日期不明')} 的价格，来自 {price.get('source', '（没有记下）')}"
    return f"每百万 token 的 {price.get('currency', '')}：{each}。{from_where}"


def _earlier(report: dict[str, Any]) -> str:
    runs = [one for one in report.get("earlier_runs") or () if isinstance(one, dict)]
    rows = [
        [
            escape(f"{one.get('model', '')}"),
            one.get("samples_accepted") or 0,
            one.get("requests") or 0,
            _duration(one.get("seconds") or 0),
            escape(_money(one)) or "—",
            "提前停下" if one.get("stopped") else "跑完",
        ]
        for one in runs
    ]
    heads = ("教师模型", "新增样本", "请求", "用时", "花费", "结局")
    return details(f"以前的 {number(len(runs))} 次运行，近的在前", table(heads, rows)) if runs else ""


def _variety(variety: dict[str, Any]) -> str:
    """As variety.similarity gives it."""
    distinct, similarity, asked = (variety.get(name) for name in ("distinct_share", "self_similarity", "questions"))
    looked_at = variety.get("looked_at")
    if asked == 0 or distinct is None and similarity is None:
        return "<p>这次没有统计多样性。</p>"
    tiles = [] if distinct is None else [(percent(distinct), "的问题不与别的相近，越高越好")]
    tiles += [] if similarity is None else [(f"{similarity:.3f}", "与最像的另一个问题的平均相似度，0 到 1，越低越好")]
    html = _tiles(tiles)
    if looked_at and looked_at != asked:
        html += f'<p class="soft">平均相似度是在随机抽取的 {number(looked_at)} 个问题上算的。</p>\n'
    cards = []
    for pair in (variety.get("worst_pairs") or ())[:PAIRS]:
        score, one, other = (pair[key] for key in ("similarity", "earlier", "question"))
        both = "".join(f"<blockquote>{side}</blockquote>" for side in differences(str(one), str(other)))
        cards.append(f'<article><p class="where">相似度 {score:.2f}</p><div class="pair">{both}</div></article>\n')
    if cards:
        html += f'<h3>最相近的 {len(cards)} 对问题</h3>\n<p class="soft">底色标出不同之处。</p>\n{"".join(cards)}'
    return html


def _topics(run: dict[str, Any], seen: Seen) -> str:
    failed = {str(topic): str(why) for topic, why in (run.get("topics_failed") or {}).items()}
    counts = seen.topics + Counter()
    counts.update(dict.fromkeys(failed, 0))
    html = _per_topic(counts) if counts else "<p>输出里没有带主题的样本。</p>\n"
    if failed:
        shown = list(failed.items())[:FAILED]
        more = (
            f'<p class="soft">还有 {number(len(failed) - FAILED)} 个，见报告的 JSON。</p>'
            if len(failed) > FAILED
            else ""
        )
        rows = "".join(f"<dt>{escape(topic)}</dt><dd>{escape(why)}</dd>" for topic, why in shown)
        heading = f"没有凑齐的 {number(len(failed))} 个主题，与原因"
        body = f'<dl class="list">{rows}</dl>{more}'
        html += f"<h3>{heading}</h3>\n{body}" if len(failed) <= FEWEST else details(heading, body)
    return html


def _per_topic(counts: Counter) -> str:
    """counts: topic -> samples in the output."""
    how_many = Counter(counts.values())
    least, middle, most = min(how_many), percentile(how_many, 0.5), max(how_many)
    if least == most:
        return f"<p>{number(len(counts))} 个主题，每个都有 {least} 条样本。</p>\n"
    html = f"<p>{number(len(counts))} 个主题，每个最少 {least} 条，中位数 {middle} 条，最多 {most} 条。</p>\n"
    if len(how_many) <= _MOST_BARS:
        steps = [("", f"有 {n} 条样本", how_many[n]) for n in sorted(how_many, reverse=True)]
        rows = [[what, n, percent(n / len(counts)), bar((n / len(counts), "main"))] for _, what, n in steps]
        html += table(("", "主题", "占主题", ""), rows)
    fewest = sorted(counts.items(), key=lambda pair: pair[1])[:FEWEST]
    rows = [[escape(topic), n] for topic, n in fewest if n < middle]
    return f"{html}\n<h3>样本最少的主题</h3>\n{table(('主题', '样本'), rows)}\n" if rows else html


def _requests(run: dict[str, Any]) -> str:
    requests, answers, seconds, done = (run.get(name, 0) for name in ("requests", "answers", "seconds", "topics_done"))
    if not requests:
        return "<p>这次没有发出请求。</p>"
    failed = _named(run.get("failed"))
    pace = [f"平均每秒 {requests / seconds:,.1f} 个请求"] if seconds else []
    pace += [f"每完成一个主题用 {requests / done:.2f} 个"] if done else []
    pace += [] if failed else ["没有失败的"]
    pace += [f"{number(run['broken'])} 个回答中途断开"] if run.get("broken") else []
    steps = [("total", "发出的请求", requests, "grey"), *(("", f"− {what}", n, "drop") for what, n in failed)]
    return f"<p>{'，'.join(pace)}。</p>\n{_steps([*steps, ('total', '得到回答', answers, 'main')], '占请求')}"


def _money(part: dict[str, Any]) -> str:
    """part: {"cost", "currency"?}; "" where there is no cost."""
    return "" if part.get("cost") is None else describe_money(part["cost"], str(part.get("currency") or "")).strip()


def _short(count: int) -> str:
    for unit, name in ((10**8, "亿"), (10**4, "万")):
        if count >= unit:
            return f"{count / unit:,.1f} {name}"
    return number(count)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} 小时 {minutes % 60} 分"
    return f"{minutes} 分 {rest} 秒" if minutes else f"{seconds:.1f} 秒"


_STYLE = """
.tiles div{flex:1 1 20%}.tiles b{white-space:nowrap}
.text{white-space:pre-wrap}.halt{border-color:var(--drop)}
td:first-child{white-space:normal;overflow-wrap:anywhere;min-width:6em}
.chart line.limit{stroke:var(--soft)}.chart text.limit{fill:var(--ink)}
.list{grid-template-columns:minmax(6em,1fr) minmax(6em,1fr)}.list dt{color:inherit;overflow-wrap:anywhere}.list dd{color:var(--soft)}
.pair{display:grid;grid-template-columns:1fr 1fr;gap:.6rem}
.talks{columns:24rem 2;column-gap:1.2rem}
.talks article{border:1px solid var(--line);border-radius:.6rem;padding:.5rem .9rem .8rem;margin:0 0 1.2rem}
.talks .where{font-weight:600;color:var(--ink)}
.say{margin:.5rem 0;font-size:.95rem}.say b{font-weight:normal;font-size:.8rem;color:var(--soft)}.say p{margin:0}
.say.system p{color:var(--soft);font-size:.88rem}
.say.user p{background:color-mix(in srgb,var(--main) 14%,var(--paper));border-radius:.2rem .8rem .8rem;padding:.45rem .8rem}
.say.assistant p{background:var(--card);border-radius:.2rem .8rem .8rem;padding:.45rem .8rem}
.talks details{margin:.5rem 0;font-size:.88rem}
@media (max-width:36rem){.tiles div{flex-basis:40%}.pair{grid-template-columns:1fr}.list{grid-template-columns:1fr}.list dd{margin-bottom:.5rem}}
"""
