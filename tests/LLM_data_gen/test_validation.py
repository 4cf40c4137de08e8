import random

import pytest

from LLM_data_gen.answers import PROBLEMS
from LLM_data_gen.validation import check_sample, check_samples, describe, fingerprint, texts_of, to_record
from sft_data.chatml import parse_chatml

GOOD = {
    "instruction": "你是一位熟悉校园生活的学长，请耐心回答新同学的提问。",
    "input": "我是从南方来的新生，第一次在哈尔滨过冬，应该准备些什么衣服呢？",
    "output": "建议按三层来穿：里层吸汗，中层保暖，外层防风。" * 5,
}


def change(**fields):
    return {**GOOD, **fields}


REASONS = [
    (GOOD, None),
    ("字符串", "not_an_object"),
    ('{"instruction": "没有写完', "not_an_object"),
    (None, "not_an_object"),
    ({"instruction": GOOD["instruction"], "input": GOOD["input"]}, "missing_field"),
    (change(output=["一", "二"]), "wrong_type"),
    (change(input=12), "wrong_type"),
    (change(output="<think>先想一想</think>" + GOOD["output"]), "thinking"),
    (change(output=None), "missing_field"),
    (change(instruction="字" * 19), "instruction_too_short"),
    (change(instruction="字" * 20), None),
    (change(instruction="字" * 200), None),
    (change(instruction="字" * 201), "instruction_too_long"),
    (change(input="字" * 19), "input_too_short"),
    (change(input="字" * 300), None),
    (change(input="字" * 301), "input_too_long"),
    (change(output="字" * 79), "output_too_short"),
    (change(output="字" * 80), None),
    (change(output="字" * 1200), None),
    (change(output="字" * 1201), "output_too_long"),
    (change(input="字" * 12 + "a" * 8), None),  # 12 of 20: exactly sixty per cent
    (change(input="字" * 11 + "a" * 9), "input_low_chinese"),
    (change(output="很抱歉，我无法回答这个问题。" + "请咨询学校。" * 20), "output_refusal"),
    (change(output=GOOD["output"] + "<|endofutterance|>"), "format_marker"),
    (change(output=GOOD["output"] + "<|endof\u200butterance|>"), "format_marker"),
    (change(output=GOOD["output"] + "\ud800"), "format_marker"),
    (change(output=GOOD["output"] + "请加微信了解。"), "output_advertisement"),
    (change(output=GOOD["output"] * 3 + "http://a.cn " * 6), "output_too_many_urls"),
    (change(output=GOOD["output"] * 3 + "http://a.cn " * 5), None),
    (change(input="　ＡＢＣ" + GOOD["input"] + "……①\u200b"), None),
    (change(input="␞" + GOOD["input"]), None),
    (change(input=" " * 40), "input_too_short"),
    (change(instruction="𠀀" * 30 + "字" * 10), "instruction_low_chinese"),
    (change(instruction="", output=""), "instruction_too_short"),
]


@pytest.mark.parametrize(("sample", "reason"), REASONS)
def test_reasons(sample, reason):
    assert check_sample(sample) == reason
    if reason:
        assert describe(reason) != reason


def test_record_maps_the_three_fields_and_reads_back():
    texts, reason = texts_of(change(output="  " + GOOD["output"] + "\n"))
    record = to_record(texts, "过冬")
    assert reason is None
    assert record["topic"] == "过冬"
    assert parse_chatml(record["text"]) == [
        {"role": "system", "content": GOOD["instruction"]},
        {"role": "user", "content": GOOD["input"]},
        {"role": "assistant", "content": GOOD["output"]},
    ]


def test_fingerprint_ignores_white_space_only():
    assert fingerprint("甲 乙\n丙") == fingerprint("甲乙丙") != fingerprint("甲乙丁")


def test_every_problem_of_an_answer_has_a_chinese_name():
    assert all(describe(problem) == name != problem for problem, name in PROBLEMS.items())


@pytest.mark.parametrize("seed", range(6))
def test_together_they_get_the_reasons_that_they_get_one_by_one(seed):
    """In any order and number: a sample with nothing to find must not hide its neighbour's words, or lend it any."""
    chance = random.Random(seed)
    samples = chance.choices([sample for sample, _ in REASONS], k=chance.randrange(1, 60))
    checked = check_samples(samples)
    assert [reason for reason, _ in checked] == [check_sample(sample) for sample in samples]
    assert [texts for _, texts in checked] == [texts_of(sample)[0] for sample in samples]
    assert check_samples([]) == []
