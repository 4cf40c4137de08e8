import pytest

from sft_data.chatml import carried, firefly_fields, firefly_messages, firefly_record, hit_record, parse_chatml
from sft_data.chatml import render_chatml as render

TEXT = (
    "<|beginofutterance|>系统\n你是校园助手。\n<|endofutterance|>\n"
    "<|beginofutterance|>用户\n图书馆\n几点开门？\n<|endofutterance|>\n"
    "<|beginofutterance|>智能助手\n早上八点。\n<|endofutterance|>"
)
MESSAGES = [
    {"role": "system", "content": "你是校园助手。"},
    {"role": "user", "content": "图书馆\n几点开门？"},
    {"role": "assistant", "content": "早上八点。"},
]


def test_the_format_byte_for_byte_both_ways():
    assert render(MESSAGES) == TEXT
    assert parse_chatml(TEXT) == MESSAGES


def test_several_turns_without_system_and_odd_contents_survive_the_round_trip():
    messages = [
        {"role": "user", "content": "\n开头有空行"},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "末尾有空行\n"},
        {"role": "assistant", "content": "用户\n系统 <|im_start|>"},
    ]
    assert parse_chatml(render(messages)) == messages


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("你好", "不是 HIT ChatML"),
        ("前言" + TEXT, "之前有多余的文字"),
        (TEXT + "后记", "之后有多余的文字"),
        (TEXT[: -len("<|endofutterance|>")], "第 3 段没有以"),
        (TEXT.replace("用户", "user"), "角色是 'user'"),
        (TEXT.replace("用户\n", "用户 ", 1).replace("图书馆\n", "图书馆"), "独占一行"),
        (TEXT.split("\n<|beginofutterance|>智能助手")[0], "缺少「智能助手」的回答"),
        (TEXT[TEXT.index("<|beginofutterance|>用户") :] + "\n" + TEXT, "「系统」只能有一条"),
        (TEXT.split("\n<|beginofutterance|>用户")[0], "没有「用户」"),
        (TEXT.replace("智能助手", "用户"), "第 1 轮应为「智能助手」"),
    ],
)
def test_a_malformed_text_is_refused_with_its_reason(text, reason):
    with pytest.raises(ValueError, match=reason):
        parse_chatml(text)


@pytest.mark.parametrize("marker", ["<|beginofutterance|>", "<|endofutterance|>"])
def test_a_marker_inside_a_content_is_never_written(marker):
    with pytest.raises(ValueError, match="格式标记"):
        render([{"role": "user", "content": f"这是{marker}"}, {"role": "assistant", "content": "好"}])


def test_both_forms_of_open_data():
    assert firefly_fields({"instruction": "写诗", "input": "题目", "output": "诗"}) == ("写诗", "题目", "诗")
    assert firefly_fields({"instruction": "写诗", "input": None, "output": "诗"}) == ("写诗", "", "诗")
    assert firefly_fields({"kind": "Poem", "input": "写诗", "target": "诗"}) == ("写诗", "", "诗")
    assert firefly_messages("写诗", "题目", "诗")[0]["content"] == "写诗\n题目"
    assert firefly_messages("写诗", "", "诗")[0]["content"] == "写诗"


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"instruction": "写诗", "input": ""}, "缺少 output"),
        ({"output": "诗"}, "缺少 instruction"),
        ({"instruction": "写诗", "output": ["诗"]}, "output 字段是 list"),
        ({"instruction": "写诗", "input": 3, "output": "诗"}, "input 字段是 int"),
        ({"kind": "x", "target": "诗"}, "缺少 instruction"),
        ({"text": TEXT}, "--hit-jsonl"),
    ],
)
def test_an_unreadable_open_record_says_which_field(record, reason):
    with pytest.raises(ValueError, match=reason):
        firefly_record(record)


def test_fields_for_the_gates():
    more = "\n".join([TEXT, *TEXT.split("\n<|beginofutterance|>")[1:]]).replace("\n用户", "\n<|beginofutterance|>用户")
    more = more.replace(">\n智能助手", ">\n<|beginofutterance|>智能助手")
    fields, messages = hit_record({"text": more})
    assert [name for name, _ in fields] == ["instruction", "input", "output", "other", "output"]
    assert len(messages) == 5
    assert [name for name, _ in firefly_record({"instruction": "甲", "input": " ", "output": "乙"})[0]] == [
        "instruction",
        "output",
    ]
    with pytest.raises(ValueError, match="--firefly-json"):
        hit_record({"instruction": "甲", "output": "乙"})


def test_what_travels_beside_the_text():
    assert carried({"kind": "Poem", "topic": "食堂", "text": "x", "id": 3}) == {"category": "Poem", "topic": "食堂"}
    assert carried({"category": 3, "topic": ""}) == {}
