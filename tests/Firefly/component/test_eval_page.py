"""What a report says in words and on its page: never more than an interval supports, and nothing from outside."""

import json
import re
from html.parser import HTMLParser

import pytest

from Firefly.component.binomial import compare
from Firefly.component.eval_folder import write_page
from Firefly.component.eval_text import markdown, sentence, summary
from Firefly.component.scores import TOKENIZATION, score_models, spread

ATTACK = '<script>alert(1)</script><img src="http://x/y.png">|'


def difference(verdict: str, bounds: list[float], **changes) -> dict:
    middle = sum(bounds) / 2
    row = {"metric": "loss", "source": None, "before": "base", "after": "s1", "difference": middle, "interval": bounds}
    return row | {"records": 20, "verdict": verdict} | changes


@pytest.mark.parametrize(
    ("row", "forgetting", "says"),
    [
        (difference("better", [-0.6, -0.2]), False, "s1 比 base：损失低 0.400（95% 区间 0.200 到 0.600，20 条），有提高。"),
        (difference("worse", [0.2, 0.6]), False, "s1 比 base：损失高 0.400（95% 区间 0.200 到 0.600，20 条），变差。"),
        (
            difference("unclear", [-0.2, 0.1], source="hit"),
            False,
            "s1 比 base：「hit」的损失差 -0.050（95% 区间 -0.200 到 +0.100，20 条）；区间含 0，不能说有提高。",
        ),
        (difference("better", [-0.6, -0.0002]), False, "s1 比 base：损失低 0.3001（95% 区间 0.0002 到 0.6000，20 条），有提高。"),
        (difference("leaked", [-0.6, -0.2]), False, "s1 比 base：损失低 0.400（95% 区间 0.200 到 0.600，20 条），都训练过，不算。"),
        (difference("few", [-0.6, -0.2], records=3), False, "s1 比 base：损失只有 3 条记录，太少，不下结论。"),
        (difference("worse", [0.2, 0.6]), True, "s1 比 base：通用数据的损失高 0.400（95% 区间 0.200 到 0.600，20 条），有遗忘。"),
        (
            difference("unclear", [-0.2, 0.1]),
            True,
            "s1 比 base：通用数据的损失差 -0.050（95% 区间 -0.200 到 +0.100，20 条）；区间含 0，看不出遗忘，升高最多约 0.100。",
        ),
        (
            difference("better", [0.1, 0.5], metric="ends_by_itself"),
            False,
            "s1 比 base：自行结束的比例高 30.0 个百分点（95% 区间 10.0 到 50.0，20 条），有提高。",
        ),
    ],
)  # fmt: skip
def test_a_sentence_claims_what_the_interval_supports(row, forgetting, says):
    assert sentence(row, forgetting) == says


@pytest.fixture
def report() -> dict:
    """Two models and eight questions; every text that a file may hold tries to get out of the page."""
    part = {"loss": 2.0, "loss_interval": [1.9, 2.1], "perplexity": 7.4, "perplexity_interval": [6.7, 8.2]}
    part |= {"records": 8, "target_tokens": 80}
    answers = {
        name: [
            {
                "where": f"{ATTACK}:{i}",
                "source": ATTACK,
                "question": f"问题{i}{ATTACK}",
                "reference": f"参考{i}{ATTACK}",
                "response": f"{name} 的回答 {ATTACK}" if i else "",
                "finish_reason": "length",
                "completion_tokens": 9,
            }
            for i in range(8)
        ]
        for name in ("base", ATTACK)
    }
    figures, differences = score_models(answers, seed=0)
    models = {
        name: {"path": ATTACK, "adapter": [], **part, "by_source": {ATTACK: part, "hit": part}}
        | {"ends_by_itself": 0.0, "generated": 8, "scores": figures[name], "samples": answers[name]}
        for name in answers
    }
    held = {"read": 8, "evaluated": 8, "dropped": {"没有目标 token": 0}, "truncated": 0, "notes": [ATTACK]}
    own = [
        difference("unclear", [-0.1, 0.1], after=ATTACK),
        difference("better", [-0.3, -0.1], after=ATTACK, source=ATTACK),
    ]
    leak = {"where": f"{ATTACK}:1", "source": ATTACK, "kind": "near", "share": 0.8, "train_where": ATTACK}
    return {
        "eval_file": ATTACK,
        "max_seq_length": 1024,
        **held,
        "models": models,
        "differences": own,
        "interval": {"level": 0.95, "seed": 42, "resamples": 10000},
        "general": {"file": ATTACK, **held, "models": models, "differences": own[:1]},
        "answer_differences": differences,
        "tokenization": TOKENIZATION,
        "reference_characters": spread([3, 4, 5]),
        "leakage": {
            "train_files": [ATTACK], "train_records": 9, "checked": 8, "leaked": 1, "excluded": False,
            "by_kind": {"exact": 0, "answer": 0, "question": 0, "near": 1},
            "records": [leak | {"text": ATTACK, "train_text": ATTACK}],
        },
    }  # fmt: skip


class Tags(HTMLParser):
    """Every tag is closed, and none can load or run anything."""

    def __init__(self):
        super().__init__()
        self.open, self.names, self.attributes = [], set(), set()

    def handle_starttag(self, tag, attrs):
        self.names.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.names.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def made(out, **reports: dict) -> str:
    """The page for the reports that stand in a folder."""
    for name, value in reports.items():
        (out / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    write_page(out)
    return (out / "evaluation.html").read_text(encoding="utf-8")


def test_the_page_is_whole_shut_and_the_same_each_time(report, tmp_path):
    html = made(tmp_path, evaluation=report)
    assert html == made(tmp_path)
    tags = Tags()
    tags.feed(html)
    assert tags.open == []
    assert not tags.names & {"script", "img", "link", "iframe"}
    assert not {name for name in tags.attributes if name.startswith("on")} | tags.attributes & {"src"}
    assert "default-src 'none'" in html
    assert set(re.findall(r'href="([^"]*)"', html)) == {
        f"#{name}" for name in ("verdicts", "losses", "differences", "general", "answers", "side", "leakage", "method")
    }
    assert html.count("<article>") == 8
    assert "nan" not in html


def test_what_is_left_without_leaked_records_is_told_where_it_differs(report, tmp_path):
    """Without them 9 of 20 are left over all; of hit, all 20."""
    clean = [
        difference("unclear", [-0.1, 0.2], after=ATTACK, records=9),
        difference("better", [-0.3, -0.1], after=ATTACK, source=ATTACK),
    ]
    report |= {"without_leaked": {"records": 9, "differences": clean}}
    lines = [line for line in markdown(report).splitlines() if "去掉与训练数据重合的，" in line]
    assert len(lines) == 1
    assert "9 条）；区间含 0，不能说有提高" in lines[0]
    assert made(tmp_path, evaluation=report).count("去掉重合的") == 1


def judged(name: str) -> dict:
    """A judge's report on 8 wins, 1 tie, 1 loss."""
    verdict = {"question": name, "identical": False, "first": "B", "second": None, "reasons": [name], "lengths": [1, 2]}
    pair = {"model": name, "against": "base", "win": 8, "tie": 1, "lose": 1, "judged": 10, "verdicts": [verdict]}
    pair |= {"comparison": compare(8, 1, 10).to_json(), "sentence": name, "position": {"sentence": name}}
    return {"judge": {"model": name}, "questions": 10, "pairs": [pair]}


def test_judge_and_benchmarks_in_the_same_folder_stand_on_the_same_page(report, tmp_path):
    task = {"metric": "acc", "value": 0.3, "interval": [0.2, 0.4], "questions": 60}
    benchmarks = {"lm_eval": "0.4", "num_fewshot": 5, "tasks": [ATTACK], "comparisons": [{"sentence": ATTACK}]}
    benchmarks |= {"models": {ATTACK: {"tasks": {ATTACK: task}}}, "against_chance": [ATTACK], "notes": []}
    html = made(tmp_path, judge=judged(ATTACK))
    assert "8 胜 1 平 1 负" in html
    assert 'id="losses"' not in html
    html = made(tmp_path, benchmarks=benchmarks, evaluation=report)
    order = ("verdicts", "judge", "benchmarks", "losses")
    assert sorted(order, key=lambda name: html.index(f'id="{name}"')) == list(order)
    assert "[20.0%, 40.0%]" in html
    assert "+70.0%" in html
    tags = Tags()
    tags.feed(html)
    assert tags.open == []
    assert not tags.names & {"script", "img"}


def test_words_state_the_tokenisation_the_leaks_and_the_number_of_comparisons(report):
    text = markdown(report)
    assert TOKENIZATION in text
    assert "仍计入" in summary(report)
    assert "已不计入" in summary(report | {"leakage": report["leakage"] | {"excluded": True}})
    assert "共比较" not in summary(report)
    assert "共比较 18 次" in summary(report | {"answer_differences": report["answer_differences"] * 3})
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.replace("\\|", "").count("|") >= 3 for line in rows)
    table = [line.replace("\\|", "") for line in rows[:4]]
    assert len({line.count("|") for line in table}) == 1, "a | in a name breaks no table"
