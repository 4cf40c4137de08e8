import json

import pytest

from LLM_data_gen.validation import check_sample, describe, fingerprint, parse_samples, to_record
from sft_data.chatml import parse_chatml

GOOD = {
    "instruction": "你是一位熟悉校园生活的学长，请耐心回答新同学的提问。",
    "input": "我是从南方来的新生，第一次在哈尔滨过冬，应该准备些什么衣服呢？",
    "output": "建议按三层来穿：里层吸汗，中层保暖，外层防风。" * 5,
}
TWO = [GOOD, {**GOOD, "input": "我是从海边来的新生，冬天在室外走路怕滑倒，应该怎么选鞋子呢？"}]
TEXT = json.dumps(TWO, ensure_ascii=False)


@pytest.mark.parametrize(
    "answer",
    [
        TEXT,
        f"```json\n{TEXT}\n```",
        f"好的，以下是[两条]样本：\n{TEXT}\n希望对您有帮助。",
        json.dumps({"data": TWO}),
        json.dumps({"count": 2, "samples": TWO}, indent=2),
        "\n".join(json.dumps(sample, ensure_ascii=False) for sample in TWO),
        "\ufeff  \n" + TEXT,
        f"<think>先想 [a] 再写</think>\n{TEXT}",
    ],
    ids=["plain", "fenced", "prose", "data", "object", "lines", "bom", "thinking"],
)
def test_samples_are_found_in_every_wrapping(answer):
    assert parse_samples(answer) == TWO


def test_raw_newline_in_a_string_is_read_not_repaired():
    assert parse_samples(TEXT.replace("里层吸汗", "里层\n吸汗", 1))[0]["output"].count("\n") == 1


def test_unescaped_quotes_are_salvaged():
    broken = TEXT.replace("三层", '"三层"')
    found = parse_samples(broken)
    assert [sample["input"] for sample in found] == [sample["input"] for sample in TWO]
    assert found[0]["output"].startswith('建议按"三层"来穿')


def test_cut_off_answer_keeps_whole_samples_and_drops_the_cut_one():
    assert parse_samples(TEXT[:-40]) == TWO[:1]
    assert parse_samples("```json\n" + TEXT[:-60]) == TWO[:1]
    assert parse_samples(TEXT[:-1]) == TWO  # only the closing bracket is missing


@pytest.mark.parametrize(
    "answer", ["", "  \n", "抱歉，我无法完成。", "[]", "{}", '["字符串"]', '{"a": 1}', "[" * 3000, "null"]
)
def test_answers_without_samples(answer):
    assert parse_samples(answer) is None


def change(**fields):
    return {**GOOD, **fields}


@pytest.mark.parametrize(
    ("sample", "reason"),
    [
        (GOOD, None),
        ("字符串", "not_an_object"),
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
