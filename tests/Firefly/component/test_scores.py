"""BLEU and ROUGE by hand on jieba's words, and what is seen of an answer without a reference."""

import pytest

from Firefly.component import scores


def test_words_are_jiebas_after_folding_and_punctuation_is_one():
    assert scores.words("校训是“规格严格”。") == ["校训", "是", "“", "规格", "严格", "”", "。"]
    assert scores.words("ＧＰＵ　有８ GB") == scores.words("gpu 有8 gb"), "width, case and white space do not count"
    assert scores.words("") == []


def test_rouge_and_bleu_counts_by_hand():
    """规格 严格 ， 功夫 到 家 。 against 规格 严格 。: 3 of 3 and 3 of 7 words, 1 of 2 and 1 of 6 pairs, 3 in order."""
    found = scores.make_scorer()("规格严格，功夫到家。", "规格严格。")
    assert found["rouge1"] == pytest.approx(60)
    assert found["rouge2"] == pytest.approx(25)
    assert found["rougeL"] == pytest.approx(60)
    assert found["bleu_counts"] == [3, 1, 0, 0, 3, 2, 1, 0, 3, 7]


def test_summed_counts_give_the_bleu_of_the_whole_corpus():
    from sacrebleu.metrics import BLEU

    answers = ["学校有三个校区，在哈尔滨、威海和深圳。", "我是一个中文助手。", ""]
    references = ["学校有三个校区，分别在哈尔滨、威海和深圳三座城市。", "我是一个中文智能助手。", "好。"]
    score = scores.make_scorer()
    counts = [
        sum(x)
        for x in zip(*(score(r, a)["bleu_counts"] for r, a in zip(references, answers, strict=True)), strict=True)
    ]
    spaced = [[" ".join(scores.words(text)) for text in texts] for texts in (answers, references)]
    whole = BLEU(tokenize="none", force=True).corpus_score(spaced[0], [spaced[1]]).score
    assert scores.bleu_of(counts) == pytest.approx(whole)
    assert 20 < whole < 90
    assert scores.bleu_of([0] * 10) == 0


def test_loops_are_found_with_their_unit():
    assert scores.longest_loop("答：好的好的好的好的。") == (8, "好的")
    assert scores.longest_loop("一二三四五") == (0, "")
    assert scores.longest_loop("") == (0, "")
    assert scores.longest_loop("前" + "第一步，第二步。" * 9 + "后") == (72, "第一步，第二步。")
    assert scores.traits("问", "是" * 20)["loops"]
    assert not scores.traits("问", "是" * 19)["loops"]
    assert not scores.traits("问", "-" * 40)["loops"], "a rule of dashes"


def test_repeated_share_counts_what_stood_before():
    assert scores.repeated_share(list("abcd")) == 0
    assert scores.repeated_share(list("abc")) == 0
    assert scores.repeated_share(list("ababab")) == pytest.approx(1 / 3), "abab baba abab"


@pytest.mark.parametrize(
    ("question", "answer", "same"),
    [
        ("校训是什么？", "规格严格，功夫到家。", True),
        ("校训是什么？", "The motto is strict standards.", False),
        ("What is the motto?", "规格严格。", False),
        ("What is a GPU?", "A processor.", True),
        ("怎样用 pip 安装 numpy？", "运行 pip install numpy 命令即可。", True),
        ("一加一等于几？", "2", None),
        ("你是谁？", "", None),
    ],
)
def test_language_of_the_answer_is_compared_with_the_questions(question, answer, same):
    assert scores.same_language(question, answer) is same


def answers(texts: list[str], finish: str = "stop") -> list[dict]:
    """Samples as generate_answers gives them, to eight questions."""
    references = [f"第{i}个问题的标准回答写在这里，供人比较。" for i in "一二三四五六七八"]
    return [
        {"question": "问？", "reference": r, "response": t, "finish_reason": finish, "completion_tokens": len(t)}
        for r, t in zip(references, texts, strict=True)
    ]


def test_models_are_scored_and_compared_on_the_same_questions():
    right = [one["reference"] for one in answers([""] * 8)]
    figures, differences = scores.score_models(
        {"base": answers(["啊" * 30] * 7 + [""], "length"), "stage1": answers(right), "again": answers(right)}, seed=0
    )
    assert figures["stage1"]["rougeL"] == figures["stage1"]["rougeL_interval"][0] == 100
    assert figures["stage1"]["bleu4"] == pytest.approx(100)
    assert figures["base"]["empty"] == 1 / 8
    assert figures["base"]["loops"] == 7 / 8
    assert figures["base"]["ends_by_itself"] == 0
    assert figures["base"]["characters"]["median"] == 30
    verdicts = {(d["before"], d["after"], d["metric"]): d["verdict"] for d in differences}
    assert all(verdicts["base", "stage1", metric] == "better" for metric in scores.COMPARED)
    assert all(verdicts["stage1", "again", metric] == "unclear" for metric in scores.COMPARED)
    assert len(verdicts) == 3 * len(scores.COMPARED)


X = 0.025 ** (1 / 8)


@pytest.mark.parametrize(
    ("ended", "bounds", "verdict"),
    [
        ([8, 0, 0], [X * (2 * X - 1), 1], "better"),  # all of 8 differ, all for the better: X at least, of either
        ([5, 0, 3], [0.9148 * (2 * 0.025 ** (1 / 5) - 1), 0.9148], "unclear"),  # 5 : 0 falls so once in 16
        ([0, 0, 8], [X - 1, 1 - X], "unclear"),  # none of 8 differs: 1 - X may
    ],
)
def test_a_share_is_compared_by_the_exact_test(ended, bounds, verdict):
    """ended: how many end by themselves with the later model only, with the earlier only, with both."""
    later, earlier, both = ended
    first = answers(["答"] * 8)
    for i, one in enumerate(first):
        one["finish_reason"] = "length" if i < later else "stop"
    _, differences = scores.score_models({"base": first, "stage1": answers(["答"] * 8)}, seed=0)
    row = next(d for d in differences if d["metric"] == "ends_by_itself")
    assert row["interval"] == pytest.approx(bounds, abs=1e-4)
    assert row["verdict"] == verdict


def test_a_missing_library_is_named_before_anything_is_loaded(monkeypatch):
    import importlib.util

    from Firefly.component.errors import UserError

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "sacrebleu" else object())
    with pytest.raises(UserError, match="缺少 sacrebleu"):
        scores.check_libraries()
