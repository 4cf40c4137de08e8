import pytest

from LLM_data_gen.answers import PROBLEMS
from LLM_data_gen.validation import check_sample, describe, fingerprint, to_record
from sft_data.chatml import parse_chatml

GOOD = {
    "instruction": "你是一位熟悉校园生活的学长，请耐心回答新同学的提问。",
    "input": "我是从南方来的新生，第一次在哈尔滨过冬，应该准备些什么衣服呢？",
    "output": "建议按三层来穿：里层吸汗，中层保暖，外层防风。" * 5,
}


def change(**fields):
    return {**GOOD, **fields}


@pytest.mark.parametrize(
    ("sample", "reason"),
    [
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
    ],
)
def test_reasons(sample, reason):
    assert check_sample(sample) == reason
    if reason:
        assert describe(reason) != reason


def test_record_maps_the_three_fields_and_reads_back():
    record = to_record(change(output="  " + GOOD["output"] + "\n"), "过冬")
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
