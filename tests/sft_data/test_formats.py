"""Whatever form a conversation is written in, the same messages are read back; what a form cannot hold is said."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft_data.chatml import render_chatml
from sft_data.formats import FORMATS, dataset_info, format_of, read_messages, write_record

SYSTEM = {"role": "system", "content": "你是助手。"}
TURNS = [
    {"role": "user", "content": "问一\n第二行"},
    {"role": "assistant", "content": "答一"},
    {"role": "user", "content": "问二"},
    {"role": "assistant", "content": "答二"},
]
text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).map(str.strip).filter(bool)
pairs = st.lists(st.tuples(text, text), min_size=1, max_size=4)


def conversation(system, turns):
    head = [{"role": "system", "content": system}] if system else []
    return head + [
        {"role": r, "content": c} for turn in turns for r, c in zip(("user", "assistant"), turn, strict=True)
    ]


@given(st.builds(conversation, st.none() | text, pairs), st.sampled_from(FORMATS), st.sampled_from(FORMATS))
def test_every_form_gives_the_same_messages_back(messages, form, then):
    record = json.loads(json.dumps(write_record(form, messages, {}, 1, "General")))
    assert format_of(record) == form
    assert read_messages(record) == messages
    again = write_record(then, read_messages(record), record, 1, "General")
    assert read_messages(again) == messages


ALL = [SYSTEM, *TURNS]
EXPECTED = {
    "firefly": {
        "conversation_id": 7,
        "category": "校园",
        "system": "你是助手。",
        "conversation": [{"human": "问一\n第二行", "assistant": "答一"}, {"human": "问二", "assistant": "答二"}],
        "source": "hit",
        "meta": {"file": "a.jsonl", "line": 3},
    },
    "messages": {
        "messages": ALL,
        "category": "校园",
        "source": "hit",
        "meta": {"file": "a.jsonl", "line": 3},
    },
    "sharegpt": {
        "conversations": [
            {"from": "system", "value": "你是助手。"},
            {"from": "human", "value": "问一\n第二行"},
            {"from": "gpt", "value": "答一"},
            {"from": "human", "value": "问二"},
            {"from": "gpt", "value": "答二"},
        ],
        "category": "校园",
        "source": "hit",
        "meta": {"file": "a.jsonl", "line": 3},
    },
    "alpaca": {
        "instruction": "问二",
        "input": "",
        "output": "答二",
        "system": "你是助手。",
        "history": [["问一\n第二行", "答一"]],
        "category": "校园",
        "source": "hit",
        "meta": {"file": "a.jsonl", "line": 3},
    },
    "chatml": {
        "text": render_chatml(ALL),
        "category": "校园",
        "topic": "图书馆",
        "source": "hit",
        "meta": {"file": "a.jsonl", "line": 3},
    },
}


@pytest.mark.parametrize("form", FORMATS)
def test_each_form_as_its_readers_expect_it_with_what_travels_along(form):
    obj = {"source": "hit", "category": "校园", "topic": "图书馆", "meta": {"file": "a.jsonl", "line": 3}, "id": 9}
    record = write_record(form, ALL, obj, 7, "General")
    assert record == EXPECTED[form]
    assert list(record) == list(EXPECTED[form])


def test_a_missing_category_is_filled_in_except_where_a_later_step_may_know_it():
    filled = {form: write_record(form, TURNS, {"source": 3, "meta": "x"}, 1, "X").get("category") for form in FORMATS}
    assert filled == {"firefly": "X", "messages": "X", "sharegpt": "X", "alpaca": "X", "chatml": None}
    assert set(write_record("chatml", TURNS, {"kind": "作诗"}, 1, "X")) == {"text", "category"}


def test_without_a_system_text_alpaca_still_has_every_key():
    record = write_record("alpaca", TURNS[:2], {}, 1, "X")
    assert (record["system"], record["history"]) == ("", [])
    assert "system" not in write_record("firefly", TURNS, {}, 1, "X")


@pytest.mark.parametrize(
    "record",
    [
        {"messages": ALL, "text": "rendered", "conversation": None},
        {"messages": [{**m, "tool_calls": None} for m in ALL], "tools": "[]", "images": []},
        {"messages": TURNS, "system": " 你是助手。\n"},
        {"conversations": [{"role": m["role"], "content": m["content"]} for m in ALL]},
        {"conversations": [{"from": m["role"], "value": f" {m['content']}\n"} for m in ALL], "system": ""},
        {"conversations": EXPECTED["sharegpt"]["conversations"][1:], "system": "你是助手。"},
        {"conversations": EXPECTED["sharegpt"]["conversations"], "system": "你是助手。"},
        {"instruction": "问二", "output": "答二", "system": "你是助手。", "history": [["问一\n第二行", "答一"]]},
        {"text": render_chatml(ALL), "instruction": None},
        {"text": render_chatml(ALL), "output": "x", "system": "of no concern"},
    ],
)
def test_variants_of_a_form_are_the_same_conversation(record):
    assert read_messages(record) == ALL


def test_an_alpaca_record_may_have_a_text_of_its_own():
    record = {
        "instruction": "译",
        "input": "苹果",
        "output": "apple",
        "text": "Below is an instruction ...",
        "system": " ",
    }
    assert read_messages(record) == [
        {"role": "user", "content": "译\n苹果"},
        {"role": "assistant", "content": "apple"},
    ]


TOOL = [*TURNS[:1], {"role": "tool", "content": "晴"}, *TURNS[1:2]]


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ({"messages": TOOL}, "第 2 条消息角色是 'tool'.*工具调用"),
        (
            {"conversations": [{"from": "human", "value": "x"}, {"from": "function_call", "value": "{}"}]},
            "function_call",
        ),
        ({"messages": [TURNS[0], {**TURNS[1], "tool_calls": [{"id": 1}]}]}, "第 2 条消息有工具调用"),
        ({"conversations": EXPECTED["sharegpt"]["conversations"], "tools": '[{"name": "f"}]'}, "有 tools 字段"),
        ({**EXPECTED["alpaca"], "images": ["a.png"]}, "有 images 字段"),
        ({"messages": []}, "messages 应是非空的"),
        ({"conversations": ["x"]}, "conversations 应是非空的"),
        ({"messages": [{"content": "x"}]}, "第 1 条消息角色是 None"),
        ({"messages": [TURNS[0], {"role": "assistant", "content": [{"type": "text"}]}]}, "回答是 list，应为字符串"),
        ({"messages": [TURNS[0], {"role": "assistant"}]}, "回答是 NoneType"),
        ({"messages": TURNS[:1]}, "缺少「智能助手」的回答"),
        ({"messages": TURNS[1:]}, "第 1 轮应为「用户」"),
        ({"messages": [*TURNS, SYSTEM]}, "只能有一条，而且在最前面"),
        ({"messages": ALL, "system": "另一条"}, "只能有一条"),
        ({"messages": TURNS, "system": ["x"]}, "系统文本是 list"),
        ({"conversation": []}, "conversation 应是非空的"),
        ({"conversation": [{"human": "x", "assistant": "y"}, {"human": "x"}]}, "第 2 轮没有 human 或 assistant"),
        ({"conversation": [{"human": 3, "assistant": "y"}]}, "用户的话是 int"),
        ({"conversation": [{"human": "x", "assistant": " "}]}, "回答是空的"),
        ({"instruction": "x", "output": "y", "history": ["q", "a"]}, "history 应是"),
        ({"prompt": "x", "chosen": "y"}, r"认不出.*\['chosen', 'prompt'\]"),
        ({"text": "你好"}, "不是 HIT ChatML"),
    ],
)
def test_what_cannot_be_held_is_said(record, says):
    with pytest.raises(ValueError, match=says):
        read_messages(record)


def test_the_marker_of_chatml_is_refused_by_chatml_alone():
    messages = [TURNS[0], {"role": "assistant", "content": "写 <|endofutterance|> 即可"}]
    with pytest.raises(ValueError, match="格式标记"):
        write_record("chatml", messages, {}, 1, "X")
    for form in set(FORMATS) - {"chatml"}:
        assert read_messages(write_record(form, messages, {}, 1, "X")) == messages


@pytest.mark.parametrize("form", ["messages", "sharegpt", "alpaca"])
def test_the_entry_for_llama_factory_names_columns_that_every_record_has(form, tmp_path):
    (name, entry), *none = dataset_info(form, tmp_path / "my set.json").items()
    assert (name, entry["file_name"], none) == ("my set", str(tmp_path / "my set.json"), [])
    for messages in (TURNS[:2], ALL):
        assert set(entry["columns"].values()) <= write_record(form, messages, {}, 1, "X").keys()
    assert ("tags" in entry) == (form == "messages")  # the defaults are ShareGPT's; without "tags" they all hold


@pytest.mark.parametrize(
    ("form", "path"),
    [("sharegpt", "x.jsonl.gz"), ("sharegpt", "s3://b/x.jsonl"), ("firefly", "x.json"), ("chatml", "x.json")],
)
def test_there_is_no_entry_for_what_llama_factory_cannot_read(form, path):
    assert dataset_info(form, path) == {}
