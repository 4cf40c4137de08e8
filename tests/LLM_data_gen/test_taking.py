"""From answers to rows: what is counted, what a killed run had left, what new rules make of old answers."""

import json

import pytest

from LLM_data_gen import taking
from LLM_data_gen.output import open_output
from LLM_data_gen.taking import Tally, describe_counts, open_rejected, replay, revalidate, take

ASKS = [
    "我是大二学生，想知道图书馆周末的开放时间和借书的具体办法是怎样的？",
    "孩子今年高三，请问强基计划的报名材料应该从什么时候开始准备呢？",
    "作为新来的外籍教师，我该怎样在校园里办理一张用餐的卡片？",
    "毕业十年的校友回学校参观，需要提前预约哪些场馆，怎么走最方便？",
]


def sample(i, **changed):
    answer = f"第{'一二三四'[i]}种办法：先看清要求，再列出手里的材料，最后按时间表逐项完成。" * 4
    return {"instruction": "你是一位熟悉校园事务的老师，请耐心回答提问。", "input": ASKS[i], "output": answer} | changed


def entry(samples, topic="甲", **fields):
    text = samples if isinstance(samples, str) else json.dumps(samples, ensure_ascii=False)
    return {"topic": topic, "asked": 2, "usage": {}, "text": text, **fields}


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_each_sample_is_taken_or_counted_under_a_reason(tmp_path):
    rejected = []
    tally = Tally(reject=lambda topic, reason, what: rejected.append((topic, reason, what)))
    near = sample(0, input=ASKS[0].replace("周末", "周日"))
    answer = entry([sample(0), sample(0), near, sample(1, output="短"), sample(2), sample(3)])
    with open_output(tmp_path / "o.jsonl", print) as output:
        assert take([answer], output, 2, tally) == [2]
        assert output.questions["甲"] == [ASKS[0], ASKS[2]]
    assert [reason for _, reason, _ in rejected] == ["duplicate", "near_duplicate", "output_too_short", "surplus"]
    assert rejected[1] == ("甲", "near_duplicate", near)
    assert tally.returned == 6 == tally.accepted + sum(tally.rejected.values())
    assert "近似重复 1" in describe_counts(tally.rejected)


def test_near_questions_may_be_kept(tmp_path):
    near = sample(0, input=ASKS[0].replace("周末", "周日"))
    with open_output(tmp_path / "o.jsonl", print, near_dup=False) as output:
        assert take([entry([sample(0), near])], output, 9, Tally()) == [2]


def test_thinking_is_kept_beside_the_text_only_where_asked(tmp_path):
    with open_output(tmp_path / "o.jsonl", print) as output:
        take([entry([sample(0)], reasoning="想了很久")], output, 9, Tally())
        take([entry([sample(1)], reasoning="想了很久")], output, 9, Tally(), keep_reasoning=True)
    first, second = rows(tmp_path / "o.jsonl")
    assert "reasoning" not in first
    assert second["reasoning"] == "想了很久"
    assert "想了很久" not in second["text"]


def test_what_a_killed_run_had_paid_for_is_written_once(tmp_path):
    """Killed between the journal and the output, or after a part of them; and a topic that is asked for no more."""
    entries = [entry([sample(0), sample(1)]), entry([sample(2)], topic="乙"), entry([sample(3)], topic="丙")]
    with open_output(tmp_path / "o.jsonl", print) as output:
        take([entry([sample(0)])], output, 1, Tally())
        for expected in (2, 0):
            assert replay(iter(entries), output, ["甲", "乙"], 2, False).accepted == expected
    assert [row["topic"] for row in rows(tmp_path / "o.jsonl")] == ["甲", "甲", "乙"]


def test_new_rules_read_the_stored_answers_anew(tmp_path, monkeypatch):
    out = tmp_path / "o.jsonl"
    entries = [entry([sample(0), sample(1)]), entry([sample(2)], topic="乙")]
    by_hand = {"text": taking.to_record(sample(3).values(), "丙")["text"], "note": "手写的"}
    with open_output(out, print) as output:
        assert take(entries, output, 2, Tally()) == [2, 1]
        output.note_row(by_hand)
        output.append([by_hand])
    before = out.read_bytes()
    rule = taking.check_samples

    def stricter(samples):
        return [("output_refusal" if texts[1] == ASKS[0] else reason, texts) for reason, texts in rule(samples)]

    monkeypatch.setattr(taking, "check_samples", stricter)
    with open_output(out, print) as output:
        backup = revalidate(lambda: entries, output, 2, tally := Tally(), False)
    assert backup.read_bytes() == before
    assert rows(out) == [
        by_hand,
        taking.to_record(sample(1).values(), "甲"),
        taking.to_record(sample(2).values(), "乙"),
    ]
    assert (tally.accepted, tally.rejected["output_refusal"]) == (2, 1)


def test_all_rows_may_come_from_the_journal_alone(tmp_path):
    out = tmp_path / "o.jsonl"
    with open_output(out, print) as output:
        assert revalidate(lambda: [entry([sample(0)])], output, 2, Tally(), False) is None
    assert len(rows(out)) == 1


def test_rejected_samples_are_kept_with_their_reason(tmp_path):
    path = tmp_path / "deep" / "rejected.jsonl"
    for _ in range(2):
        with open_rejected(path) as reject:
            reject("甲", "output_too_short", {"output": "短\ud800"})
    assert rows(path)[1] == {
        "topic": "甲", "reason": "output_too_short", "label": "回答太短", "sample": {"output": "短\ud800"},
    }  # fmt: skip
    assert len(rows(path)) == 2


@pytest.mark.parametrize("text", ["", "没有样本", "[1, 2"])
def test_an_answer_without_samples_is_counted_as_a_whole(tmp_path, text):
    with open_output(tmp_path / "o.jsonl", print) as output:
        assert take([entry(text)], output, 2, tally := Tally()) == [0]
    assert sum(tally.problems.values()) == 1
