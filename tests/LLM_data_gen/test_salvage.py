"""One damaged sample: itself recovered where its bounds are clear, and its neighbours untouched whatever happened to it."""

import json
import random
import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from LLM_data_gen.answers import FIELDS, Reading, read_answer

THREE = [
    {
        "instruction": "你是一位熟悉校园生活的学长，请耐心回答新同学的提问。",
        "input": "我是从南方来的新生，第一次在哈尔滨过冬，应该准备些什么衣服呢？",
        "output": "先给结论：按三层来穿。\n1. 里层吸汗；\n2. 中层保暖（羽绒或抓绒）；\n3. 外层防风，“风大时”尤其要紧。",
    },
    {
        "instruction": "你是一位耐心的学长，请围绕选课给出具体的建议。",
        "input": "我是一名大二学生，想选一门编程课，应该怎样开始呢？",
        "output": "可以这样做：先把目标写清楚，再看手里有什么条件，最后安排每周要做的事。",
    },
    {
        "instruction": "你是一位细心的教务助理，请帮同学把事情办妥。",
        "input": "我想退掉一门选修课，又怕错过时间，应该先找谁问？",
        "output": "先看学校官方渠道发布的通知，再联系学院教务办公室，把课程名称说清楚。",
    },
]
A, B, C = (json.dumps(sample, ensure_ascii=False) for sample in THREE)


def array(second):
    return f"[{A}, {second}, {C}]"


def changed(field, old, new):
    assert old in THREE[1][field]
    return {**THREE[1], field: THREE[1][field].replace(old, new, 1)}


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        (B.replace("一名大二学生", '一名"大二"学生'), changed("input", "大二", '"大二"')),
        (B.replace("我是一名", '"我"是一名'), changed("input", "我", '"我"')),
        (B.replace("开始呢？", '开始"呢？"'), changed("input", "呢？", '"呢？"')),
        (B.replace("一名大二学生", '一名大二"学生'), changed("input", "学生", '"学生')),
        (B.replace("先把目标", '先做"甲", "乙"，"丙"：'), changed("output", "先把目标", '先做"甲", "乙"，"丙"：')),
        (B.replace("先把目标", '如{"a": "b"}，'), changed("output", "先把目标", '如{"a": "b"}，')),
        (B.replace("先把目标", "先\n把\t目标"), changed("output", "先把目标", "先\n把\t目标")),
        (B.replace("先把目标", r"先求 \(x\) 的目标"), changed("output", "先把目标", r"先求 \(x\) 的目标")),
        (B.replace("先把目标", r'先求 \"甲\" 和 "乙"'), changed("output", "先把目标", '先求 "甲" 和 "乙"')),
        (B[:-1] + ",}", THREE[1]),
        (B[:-1], THREE[1]),  # its closing brace is missing
        (B[1:], THREE[1]),
        (B[:-2] + "}", THREE[1]),  # its last quote
        (B.replace('"input": "', '"input": '), THREE[1]),
        (B.replace('？", "output"', '？, "output"'), THREE[1]),
        (B.replace('？", "output"', '？" "output"'), THREE[1]),
        (B.replace('？", "output"', '？\\", "output"'), THREE[1]),
        (B.replace('？", "output"', '？"；"output"'), THREE[1]),
        (re.sub(r'"(\w+)": ', r"\1: ", B), THREE[1]),
        (repr(THREE[1]), THREE[1]),
        ("{" + "，".join(f"“{field}”：“{THREE[1][field]}”" for field in FIELDS) + "}", THREE[1]),
        ("｛" + "，".join(f'"{field}"："{THREE[1][field]}"' for field in FIELDS) + "｝", THREE[1]),
    ],
)
def test_one_damaged_sample_is_recovered(second, expected):
    for answer in (
        array(second),
        f"好的，[三条]：\n```json\n{array(second)}\n```\n希望“有用”。",
        f'{{"data": {array(second)}}}',
    ):
        samples, problem = read_answer(answer)
        assert samples == [THREE[0], expected, THREE[2]]
        assert problem in (None, "repaired")  # None: only a raw newline, or what stands between whole samples


@pytest.mark.parametrize("join", ["\n".join, lambda parts: "\n\n".join(f"第几条：\n```json\n{p}\n```" for p in parts)])
def test_a_damaged_sample_in_lines_or_fences(join):
    bad = B.replace("一名大二学生", '一名"大二"学生')
    expected = [THREE[0], changed("input", "大二", '"大二"'), THREE[2]]
    assert read_answer(join([A, bad, C])) == (expected, "repaired")


def test_quotes_in_the_prose_after_an_array_whose_last_sample_is_damaged():
    bad = B.replace("一名大二学生", '一名"大二"学生')
    answer = f'好的：\n[{A}, {bad}]\n以上[两条]样本，“希望”对您有"帮助"。'
    assert read_answer(answer) == ([THREE[0], changed("input", "大二", '"大二"')], "repaired")


def test_numbered_samples_one_damaged():
    bad = B.replace("一名大二学生", '一名"大二"学生')
    answer = f'{{"1": {A}, "2": {bad}, "3": {C}}}'
    assert read_answer(answer) == ([THREE[0], changed("input", "大二", '"大二"'), THREE[2]], "repaired")


def test_a_sample_whose_bounds_are_not_clear_is_left_as_text_not_guessed():
    bad = B.replace("先把目标", '写成{"instruction": "甲", "input": "乙", "output": "丙"}，')
    assert read_answer(array(bad)) == ([THREE[0], bad, THREE[2]], "damaged")


def test_wrong_types_in_a_damaged_sample_stay_wrong():
    bad = B.replace("一名大二学生", '一名"大二"学生')
    bad = re.sub(r'"output": ".*"', '"output": ["第一步", "第二步"]', bad)
    expected = {**changed("input", "大二", '"大二"'), "output": ["第一步", "第二步"]}
    assert read_answer(array(bad)).samples[1] == expected


@pytest.mark.parametrize("lead", ["", "```json\n", "好的，[三条]：\n"])
def test_an_answer_cut_anywhere_keeps_the_whole_samples_and_no_part_of_another(lead):
    text = array(B)
    ends = [1 + len(A), 1 + len(A) + 2 + len(B), len(text) - 1]
    for cut in range(2, len(text)):
        samples, problem = read_answer(lead + text[:cut])
        whole = sum(end <= cut for end in ends)
        assert [sample for sample in samples if isinstance(sample, dict)] == THREE[:whole], text[:cut][-20:]
        assert problem == "cut_off" or not whole


def test_a_cut_after_bare_quotes():
    bad = B.replace("一名大二学生", '一名"大二"学生')
    for cut in range(len(A) + len(bad) + 4, len(array(bad)) - 2, 3):
        samples, problem = read_answer(array(bad)[:cut])
        assert [s for s in samples if isinstance(s, dict)] == [THREE[0], changed("input", "大二", '"大二"')]
        assert problem == "cut_off"


@pytest.mark.parametrize(
    "comment",
    ["// 样本：“一” {x} [y]\n", '// "input"\n// 第二行\n', "/* 样本\n一 */ ", "# 样本\n"],
    ids=["line", "lines", "block", "hash"],
)
@pytest.mark.parametrize("before", ["{", '"instruction"', '"input"', "}"])
def test_comments_in_json_are_not_part_of_it(before, comment):
    text = array(B).replace(before, f"\n{comment}{before}")
    assert read_answer(f'```json\n{{"samples": {text}}}\n```') == Reading(THREE, "repaired")


def test_what_looks_like_a_comment_in_a_string_stays():
    sample = {**THREE[0], "output": THREE[0]["output"] + "见 https://a.cn/#b，如 {, // 先取数\n# 再算}"}
    text = json.dumps([sample, THREE[1]], ensure_ascii=False)
    assert read_answer(text).samples == [sample, THREE[1]]
    assert read_answer(text.replace("[", "[ // 两条\n", 1)) == Reading([sample, THREE[1]], "repaired")


JUNK = [
    "",
    '"',
    "'",
    "“",
    "”",
    "{",
    "}",
    "[",
    "]",
    ",",
    "，",
    ":",
    "：",
    "\\",
    "\n",
    "`",
    '",',
    '"}',
    '{"',
    '": "',
    '"input": ',
    "//",
]
DAMAGE = st.tuples(st.floats(0, 1), st.integers(0, 40), st.sampled_from(JUNK))


@settings(max_examples=600, deadline=None)
@given(st.integers(0, 2), st.lists(DAMAGE, min_size=1, max_size=4), st.sampled_from([None, 1]), st.booleans())
def test_whatever_happens_to_one_sample_the_others_come_out_unchanged(which, damages, indent, fenced):
    parts = [json.dumps(sample, ensure_ascii=False, indent=indent) for sample in THREE]
    for place, length, junk in damages:
        at = round(place * len(parts[which]))
        parts[which] = parts[which][:at] + junk + parts[which][at + length :]
    text = f"[{', '.join(parts)}]"
    samples, _ = read_answer(f"好的：\n```json\n{text}\n```" if fenced else text)
    others = [sample for i, sample in enumerate(THREE) if i != which]
    assert [sample for sample in samples if sample in others] == others
    assert sum(isinstance(sample, dict) and all(field in sample for field in FIELDS) for sample in samples) <= 3


def test_blanks_without_end_and_brackets_without_end_take_no_time():
    started = time.process_time()
    for tail in (
        " " * 60_000 + '"',
        "\n" * 60_000 + '"',
        '"}' * 20_000,
        '{"' * 20_000,
        "，" * 60_000,
        '"' * 40_000,
        "\\" * 60_000,
        '"//' * 20_000,
        '"/*' * 20_000,
    ):
        assert THREE[0] in read_answer(f"[{A}, {B[:-20]}{tail}").samples
    assert time.process_time() - started < 5


def test_random_damage_gives_the_same_answer_each_time():
    rng = random.Random(3)
    text = array(B)
    for _ in range(50):
        at = rng.randrange(len(text))
        damaged = text[:at] + rng.choice(JUNK) + text[at + 1 :]
        assert read_answer(damaged) == read_answer(damaged)
