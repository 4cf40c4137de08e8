"""Verdicts read strictly, two orders combined, and claims held to exact binomial figures worked by hand."""

import math

import pytest

from Firefly.component.binomial import compare, say, share_interval, sign_test
from Firefly.component.judging import Row, choose_pairs, combine, judge_messages, parse_verdict, position_bias, tally


def test_sign_test_and_interval_by_hand():
    assert sign_test(5, 0) == pytest.approx(2 / 32)
    assert sign_test(1, 3) == pytest.approx(2 * (1 + 4) / 16)
    assert sign_test(3, 3) == 1.0
    assert sign_test(0, 0) == 1.0
    low, high = share_interval(0, 10)
    assert low == 0
    assert high == pytest.approx(1 - 0.025 ** (1 / 10), abs=1e-9)  # (1 - p) ** 10 = alpha / 2
    assert share_interval(8, 10)[0] == pytest.approx(0.44390, abs=1e-5)  # the published Clopper-Pearson tables
    assert share_interval(8, 10)[1] == pytest.approx(0.97479, abs=1e-5)
    assert share_interval(0, 0) == (0.0, 1.0)
    assert sign_test(7000, 7200) == pytest.approx(0.0949, abs=1e-3), (
        "thousands of questions neither overflow nor vanish"
    )


@pytest.mark.parametrize(
    ("wins", "losses", "alpha", "verdict"),
    [
        (5, 0, 0.05, "unclear"),  # p = 0.0625
        (6, 0, 0.05, "better"),  # p = 0.031
        (0, 6, 0.05, "worse"),
        (6, 0, 0.05 / 3, "unclear"),  # three comparisons: 0.031 > 0.0167
        (60, 50, 0.05, "unclear"),
        (0, 0, 0.05, "unclear"),
    ],
)
def test_claim_only_what_the_interval_supports(wins, losses, alpha, verdict):
    result = compare(wins, losses, 120, alpha)
    assert result.verdict == verdict
    assert (result.p_value < alpha) == (verdict != "unclear")
    assert result.net == (wins - losses) / 120
    assert result.low <= result.net <= result.high
    sentence = say("stage2", "base", result, "120 题")
    assert ("不能说" in sentence) == (verdict == "unclear")
    assert ("好于" in sentence) == (verdict == "better")


def test_the_interval_holds_the_true_difference_as_often_as_it_says():
    """Every outcome of 24 questions, weighed by its probability: 5 % won and none lost, and three more."""
    for win, lose in ((0.05, 0.0), (0.3, 0.05), (0.2, 0.2), (0.9, 0.1)):
        held = 0.0
        for wins in range(25):
            for losses in range(25 - wins):
                ties, found = 24 - wins - losses, compare(wins, losses, 24)
                ways = math.comb(24, wins) * math.comb(24 - wins, losses)
                if found.low - 1e-9 <= win - lose <= found.high + 1e-9:
                    held += ways * win**wins * lose**losses * abs(1 - win - lose) ** ties
        assert held > 0.95, (win, lose)
    assert (compare(0, 0, 0).low, compare(0, 0, 0).high) == (-1, 1), "nothing is known of nothing"


@pytest.mark.parametrize(
    ("text", "winner"),
    [
        ('{"winner": "A", "reason": "对"}', "A"),
        ('\n\n {"reason": "都错", "winner": "tie"} ', "tie"),
        ('```json\n{"winner": "B", "reason": "x"}\n```', "B"),
        ('<think>A 好？{"winner": "A"}</think>\n{"winner": "B", "reason": ""}', "B"),
        ('{"winner": "a"}', None),
        ('{"winner": "A 或 B"}', None),
        ('{"winner": ["A"]}', None),
        ('我认为 {"winner": "A", "reason": "x"}', None),
        ('{"winner": "A"} {"winner": "B"}', None),
        ('{"winner": "A", "reason": "没说完', None),
        ('["A"]', None),
        ("[" * 100_000, None),
        ("A", None),
        ("", None),
    ],
)
def test_parse_verdict(text, winner):
    found = parse_verdict(text)
    assert (found and found[0]) == winner


def test_orders_that_disagree_are_a_tie():
    """The later model is B first and A then."""
    assert combine("B", "A") == "win"
    assert combine("A", "B") == "lose"
    for first, second in [("A", "A"), ("B", "B"), ("tie", "tie"), ("B", "tie"), ("tie", "B"), ("A", "tie")]:
        assert combine(first, second) == "tie"


def test_tally_adds_up_and_reports_the_place():
    def row(first, second, identical=False, lengths=(10, 20)):
        return {"first": first, "second": second, "identical": identical, "lengths": lengths}

    judged = [row("B", "A")] * 6 + [row("A", "B", lengths=(30, 5))] + [row("A", "A")] * 3 + [row("B", "tie")]
    judged += [row(None, None, identical=True), row("B", None), row("tie", "tie")]
    result = tally("base", "stage2", judged, 0.05, 1)
    assert (result["win"], result["lose"], result["no_verdict"], result["identical"]) == (6, 1, 1, 1)
    assert result["win"] + result["tie"] + result["lose"] == result["judged"] == 13 == len(judged) - 1
    assert result["longer_won"] == [7, 7]
    assert "不能说" in result["sentence"]  # 6 : 1, p = 0.125
    place = result["position"]
    assert (place["pairs"], place["dependent"], place["to_first"], place["to_second"]) == (12, 4, 3, 1)
    assert place["votes"] == {"A": 14, "B": 7 + 1, "tie": 3} | {"A": 6 + 1 + 6}
    assert "看不出位置偏好" in place["sentence"]
    assert "前面" in position_bias([("A", "A")] * 8)["sentence"]
    assert "后面" in position_bias([("B", "tie")] * 8)["sentence"]


def test_what_the_judge_sees():
    messages = [
        {"role": "system", "content": "你是校友。"},
        {"role": "user", "content": "你好"},
        {"role": "assistant", "content": "你好！"},
        {"role": "user", "content": "校训是什么？"},
    ]
    row = Row("x:1", messages, "规格严格，功夫到家。", "乙")
    system, user = judge_messages(row, "甲", " ")
    assert '"winner"' in system["content"]
    assert "长短不加分" in system["content"]
    text = user["content"]
    assert (
        text.index("助手：你好！") < text.index("【问题】\n校训") < text.index("【参考答案】\n规格") < text.index("甲")
    )
    assert "【回答 B 开始】\n（空）\n【回答 B 结束】" in text
    assert "参考" not in judge_messages(Row("x:1", messages, None, ""), "甲", "乙")[1]["content"]


def test_choose_pairs():
    assert choose_pairs(["base", "s1", "s2"], "first") == [("base", "s1"), ("base", "s2")]
    assert choose_pairs(["base", "s1", "s2"], "all") == [("base", "s1"), ("base", "s2"), ("s1", "s2")]
