"""The page's numbers are the report's, its lengths and samples come of one pass, and its text is safe whatever comes."""

import re
import runpy
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from LLM_data_gen.report_page import FAILED, _duration, _money, _short, build_page
from LLM_data_gen.seen import SAMPLES
from LLM_data_gen.similarity import similarity
from sft_data.chatml import render_chatml

seen_of = runpy.run_path(str(Path(__file__).with_name("gen_helpers.py")))["seen_of"]

EVIL = "<script>alert(1)</script></details></p></section>\"'><img src=x onerror=alert(2)>&amp;"
VOID = {"meta", "line", "rect", "path"}


def row(i: int, topic="校史", **fields) -> dict:
    texts = {"system": "系" * 10, "user": f"问题{i:04d}", "assistant": "答" * (i + 1)}
    messages = [{"role": role, "content": fields.pop(role, text)} for role, text in texts.items()]
    return {"text": render_chatml(messages), "topic": topic, **fields}


def page_of(told: dict, records: list[dict], seed: int = 0) -> str:
    return build_page(told, seen_of(records, seed))


RUN = {
    "model": "teacher", "thinking": False, "n_per_topic": 6, "topics_done": 400, "requests": 500, "answers": 480,
    "samples_returned": 1000, "samples_accepted": 880,
    "samples_rejected": {
        "few": {"count": 20, "meaning": "回答太短"},
        "many": {"count": 100, "meaning": "问题相近"},
        "none": {"count": 0, "meaning": "从未发生"},
    },
    "answers_by_problem": {"cut": {"count": 15, "meaning": "没有写完"}}, "failed": {"HTTP 429": 18, "连接断开": 2},
    "prompt_tokens": 1_200_000, "completion_tokens": 1_800_000, "cost": 8.8, "currency": "CNY", "seconds": 250.0,
}  # fmt: skip


def report(**run) -> dict:
    price = {
        "dated": "2026-07-30",
        "source": "定价页",
        "input": 2,
        "cached_input": 0.02,
        "output": 3,
        "currency": "CNY",
    }
    return {
        "out": "o.jsonl",
        "topics": {"asked": 1000, "done": 997, "failed": 3},
        "samples_in_file": 5000,
        "variety": {
            "distinct_share": 0.9731,
            "self_similarity": 0.3127,
            "questions": 5000,
            "looked_at": 2000,
            "worst_pairs": [],
        },
        "all_runs": {"answers": 9, "cached_tokens": 5, "completion_tokens": 3, "cost": 20.5, "currency": "CNY"},
        "price": price,
        "run": {**RUN, **run},
    }


class Tags(HTMLParser):
    """Elements left open, what an element would load or run, and the names, ids and links there are."""

    def __init__(self, html: str):
        super().__init__()
        self.open, self.loads, self.names, self.ids, self.links = [], [], set(), [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.names.add(tag)
        for key, value in attrs:
            if key.startswith("on") or key in ("src", "srcset", "data", "action") or key.endswith("href"):
                (self.links if key == "href" and value.startswith("#") else self.loads).append(value)
            self.ids += [value] if key == "id" else []
        self.open += [] if tag in VOID else [tag]

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag


def section(html: str, name: str) -> str:
    return re.search(rf'<section id="{name}">(.*?)</section>', html, re.S)[1]


def words(html: str) -> str:
    return unescape(re.sub(r"<[^>]*>", "", html))


def rows(html: str) -> list[list[str]]:
    """The words of every table cell, heads left out."""
    found = (re.findall(r"<td>(.*?)</td>", line, re.S) for line in re.findall(r"<tr.*?</tr>", html, re.S))
    return [list(map(words, cells)) for cells in found if cells]


def tiles(html: str) -> dict[str, str]:
    return {what: n for n, what in re.findall(r"<div><b>([^<]*)</b>([^<]*)</div>", html)}


def test_nothing_that_comes_becomes_markup_and_nothing_is_loaded():
    evil = report(
        model=EVIL, base_url=EVIL, stopped=EVIL, currency=EVIL, topics_failed={EVIL: EVIL},
        samples_rejected={EVIL: {"count": 1, "meaning": EVIL}}, answers_by_problem={EVIL: {"count": 1, "meaning": EVIL}},
        failed={EVIL: 1},
    )  # fmt: skip
    evil["out"], evil["all_runs"]["currency"] = EVIL, EVIL
    evil["price"] |= {"dated": EVIL, "source": EVIL, "currency": EVIL}
    evil["variety"]["worst_pairs"] = [{"similarity": 0.9, "earlier": EVIL, "question": f"另{EVIL}"}]
    evil["earlier_runs"] = [{"model": EVIL, "stopped": EVIL, "cost": 1, "currency": EVIL}]
    records = [row(i, EVIL, system=EVIL, user=EVIL, assistant=EVIL, reasoning=EVIL) for i in range(3)]
    html = page_of(evil, [*records, *(row(9, f"{EVIL}{i}") for i in range(3) for _ in range(i + 1))])
    tags = Tags(html)
    assert not tags.open
    assert not tags.loads
    assert not tags.names & {"script", "img"}
    assert len(set(tags.ids)) == len(tags.ids)
    assert tags.links == [f"#{name}" for name in tags.ids]
    assert "url(" not in html
    assert "default-src 'none'" in html
    for name in ("overview", "funnel", "cost", "variety", "topics", "requests", "samples"):
        assert EVIL[:24] in words(section(html, name)), name
    assert words(section(html, "samples")).count(EVIL) >= 3 * 5  # topic, three texts and the reasoning, whole


def test_the_headline_is_the_reports():
    html = page_of(report(), [])
    shown = tiles(section(html, "overview"))
    assert shown["完成的主题"] == "997 / 1,000"
    assert shown["没有凑齐的主题"] == "3"
    assert shown["文件里的样本"] == "5,000"
    assert shown["本次新增的样本"] == "880"
    assert (shown["本次花费"], shown["历次花费合计"]) == ("¥8.80", "¥20.50")
    assert shown["本次请求"] == "500"
    assert shown["用时"] == "4 分 10 秒"
    assert "每秒 2.0 个请求，每完成一个主题用 1.25 个" in html


def test_without_a_price_it_counts_tokens():
    told = report(cost=None)
    told["price"], told["all_runs"]["cost"] = None, None
    html = page_of(told, [])
    assert tiles(section(html, "overview"))["本次 token"] == "300.0 万"
    assert "没有这个模型的价格" in section(html, "cost")
    assert "¥" not in html


def test_costs_of_this_run_stand_beside_those_of_all():
    cells = {what: values for what, *values in rows(section(page_of(report(), []), "cost"))}
    assert cells["回答"] == ["480", "9"]
    assert cells["其中命中缓存"] == ["0", "5"]
    assert cells["花费"] == ["¥8.80", "¥20.50"]
    assert cells["每 1,000 条样本"] == ["¥10.00", "¥4.10"]
    told = report()
    told["price"]["peak"] = {"input": 4, "output": 6}
    said = words(section(page_of(told, []), "cost"))
    assert (
        "每百万 token 的 CNY：输入 2，命中缓存的输入 0.02，输出 3；高峰时段 输入 4，输出 6。2026-07-30 的价格，来自 定价页"
        in said
    )


@pytest.mark.parametrize(
    ("stopped", "done", "said"),
    [("余额不足", 997, "没有跑完：余额不足"), (None, 997, "还有 3 个主题没有凑齐"), (None, 1000, "主题都已完成")],
)
def test_it_says_how_the_run_ended(stopped, done, said):
    told = report(stopped=stopped)
    told["topics"]["done"] = done
    (note,) = re.findall(r'<p class="note.*?</p>', page_of(told, []), re.S)
    assert said in words(note)
    assert ("halt" in note) == (stopped is not None or done < 1000)


def test_the_funnel_adds_up_the_most_frequent_reason_first():
    html = section(page_of(report(), []), "funnel")
    funnel, problems = html.split("<h3>")
    names, counts, shares, _ = zip(*rows(funnel), strict=True)
    assert names == ("模型写出", "− 问题相近", "− 回答太短", "收下")
    assert counts == ("1,000", "100", "20", "880")
    assert shares == ("100.0%", "10.0%", "2.0%", "88.0%")
    assert rows(problems) == [["收到的回答", "480", "100.0%", ""], ["没有写完", "15", "3.1%", ""]]


def test_requests_fall_into_answers_and_failures():
    cells = rows(section(page_of(report(), []), "requests"))
    names, counts, *_ = zip(*cells, strict=True)
    assert names == ("发出的请求", "− HTTP 429", "− 连接断开", "得到回答")
    assert counts == ("500", "18", "2", "480")


@pytest.mark.parametrize(
    "told", [{}, {"run": None, "topics": None, "price": None, "variety": {}}, {"run": {"answers": 3}}]
)
def test_what_is_missing_is_no_error(told):
    html = page_of(told, [])
    assert not Tags(html).open
    assert "输出里还没有样本" in html
    assert "都完整可读" not in html


def test_near_questions_stand_side_by_side_with_what_differs_marked():
    told, pair = report(), (0.934, "哪一年建立的？", "哪一天建立的？")
    told["variety"]["worst_pairs"] = [dict(zip(("similarity", "earlier", "question"), pair, strict=True))]
    html = section(page_of(told, []), "variety")
    assert list(tiles(html).values()) == ["97.3%", "0.313"]
    assert "随机抽取的 2,000 个问题" in html
    (card,) = re.findall(r"<article>.*?</article>", html, re.S)
    assert "相似度 0.93" in card
    assert re.findall(r"<mark>(.*?)</mark>", card) == ["年", "天"]


def test_the_page_takes_what_variety_finds():
    questions = ["哈工大是哪一年建立的？", "哈工大是哪一天建立的？", "食堂几点开门，周末也供应早餐吗？"]
    html = section(page_of({"variety": similarity(questions)}, []), "variety")
    assert "随机抽取" not in html
    assert "<mark>年</mark>" in html
    assert "没有统计" in section(page_of({"variety": similarity([])}, []), "variety")


def test_lengths_are_counted_over_all_records():
    records = [row(i) for i in range(100)]  # answers of 1 to 100 characters, questions of 6, system texts of 10
    html = section(page_of({}, records), "lengths")
    system, user, assistant = re.findall(r"<figure>.*?</figure>", html, re.S)
    assert "p10 10，p50 10，p90 10；最短 10，最长 10 字" in system
    assert "p10 6，p50 6，p90 6" in user
    assert "p10 10，p50 50，p90 90；最短 1，最长 100 字" in assistant
    shares = [float(share) for share in re.findall(r"样本 ([\d.]+)%?</title>", assistant)]
    assert sum(shares) == pytest.approx(100, abs=0.1 * len(shares))
    assert re.findall(r'<text class="limit".*?>(\d+)</text>', assistant) == ["50", "10", "90"]
    assert re.findall(r'<text class="limit".*?>(\d+)</text>', system) == ["10"]


def test_samples_a_topic_count_failed_ones_as_nothing():
    records = [row(i, topic) for topic, n in (("甲", 6), ("乙", 6), ("丙", 6), ("丁", 2)) for i in range(n)]
    html = section(page_of({"run": {"topics_failed": {"丁": "问了 4 轮", "戊": "HTTP 500"}}}, records), "topics")
    assert "5 个主题，每个最少 0 条，中位数 6 条，最多 6 条" in html
    assert rows(html) == [
        ["有 6 条样本", "3", "60.0%", ""],
        ["有 2 条样本", "1", "20.0%", ""],
        ["有 0 条样本", "1", "20.0%", ""],
        ["戊", "0"],
        ["丁", "2"],
    ]
    assert "<dt>丁</dt><dd>问了 4 轮</dd><dt>戊</dt><dd>HTTP 500</dd>" in html
    assert "3 个主题，每个都有 6 条样本" in page_of({}, records[:18])


def test_many_failed_topics_are_folded_and_cut():
    failed = {f"主题{i}": "HTTP 500" for i in range(FAILED + 7)}
    html = section(page_of({"run": {"topics_failed": failed}}, []), "topics")
    assert html.count("<dt>") == FAILED
    assert "还有 7 个" in html
    assert html.index("<details>") < html.index("<dt>")


def test_samples_are_shown_in_full_with_their_reasoning_folded():
    long = "很长的回答。\n" * 500
    html = section(page_of({}, [row(0, "校训", assistant=long, reasoning="先想一想"), row(1)]), "samples")
    first, second = re.findall(r"<article>.*?</article>", html, re.S)
    assert "校训" in words(first)
    assert long in words(first)
    (folded,) = re.findall(r"<details>.*?</details>", first, re.S)
    assert words(folded).split() == ["思考过程", "4", "字", "先想一想"]
    assert "先想一想" not in first.replace(folded, "")
    assert "<details>" not in second
    assert "全部样本" in html


def drawn(records, seed) -> list[str]:
    return re.findall(r"问题(\d{4})", section(page_of({}, records, seed), "samples"))


def test_the_seed_draws_the_samples_and_equal_input_gives_equal_bytes():
    records = [row(i, f"主题{i % 7}") for i in range(100)]
    first = drawn(records, 0)
    assert len(set(first)) == SAMPLES
    assert first == sorted(first)
    assert drawn(records, 1) != first
    assert page_of(report(), records, 3) == page_of(report(), records, 3)


def test_half_a_character_does_not_keep_the_page_from_being_written():
    html = page_of(report(stopped="坏字\ud800"), [{**row(0), "topic": "题\udfff"}])
    assert "坏字?" in html.encode().decode()


def test_sums_of_money_and_time_read_well():
    costs = [(12345.678, "CNY"), (0.5, "USD"), (0, "CNY"), (3, "EUR"), (2, None), (None, "CNY")]
    shown = [_money({"cost": cost, "currency": currency}) for cost, currency in costs]
    assert shown == ["¥12,345.68", "$0.50", "¥0.00", "3.00 EUR", "2.00", ""]
    assert [_duration(s) for s in (0.44, 59.2, 59.8, 754.2, 3600, 7380)] == [
        "0.4 秒", "59.2 秒", "1 分 0 秒", "12 分 34 秒", "1 小时 0 分", "2 小时 3 分",
    ]  # fmt: skip
    assert [_short(n) for n in (9999, 12_345, 123_456_789)] == ["9,999", "1.2 万", "1.2 亿"]
