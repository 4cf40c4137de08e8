import json
from pathlib import Path

import pytest

from LLM_data_gen import topics as topics_module
from LLM_data_gen.topic_making import Topics, check_topic, clean, read_categories

SUBJECT = "哈尔滨工业大学"


def dump(value):
    return json.dumps(value, ensure_ascii=False)


def topic(number):
    """Any number of topics that have no character in common."""
    return "".join(chr(0x4E00 + 8 * number + i) for i in range(8))


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("985、211高校的保研政策", "985、211高校的保研政策"),
        ("2.5D封装技术怎样入门", "2.5D封装技术怎样入门"),
        ("8:30早课前怎样安排早餐", "8:30早课前怎样安排早餐"),
        ("一、二年级学生的选课次序", "一、二年级学生的选课次序"),
        ("“规格严格”与“功夫到家”", "“规格严格”与“功夫到家”"),
        ("12. 怎样准备第一次组会？", "怎样准备第一次组会？"),
        ("三、怎样准备第一次组会；", "怎样准备第一次组会"),
        ("# 怎样准备第一次组会", "怎样准备第一次组会"),
        ("怎样准备第一次组会 ([hit.edu.cn](https://hit.edu.cn/a))", "怎样准备第一次组会"),
    ],
)
def test_numbering_goes_and_numbers_stay(raw, cleaned):
    assert clean(raw) == cleaned


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("怎样准备组会呢", "too_short"),
        ("怎样准备一次组会", None),
        ("题" * 60, None),
        ("题" * 61, "too_long"),
        ("How to prepare 组会报告", "not_chinese"),
        ("怎样用Python完成数据分析作业", None),
        ("其他与学校有关的主题", "filler"),
        ("图书馆、食堂、宿舍等等", "filler"),
        ("与其他高校学生的学术交流", None),
        ("详见 https://hit.edu.cn 的招生章程", "markup"),
        ("怎样准备<|im_end|>一次组会", "markup"),
        ("怎样准备\ud800一次组会啊", "markup"),
    ],
)
def test_rules_of_a_topic(name, reason):
    assert check_topic(name) == reason


def test_categories_of_an_answer():
    assert read_categories('["校史", "校史", "其他", "1. 专业与学院", "综合、生活"]') == [
        "校史",
        "专业与学院",
        "综合",
        "生活",
    ]
    assert len(read_categories(dump([f"类别{chr(0x4E00 + i)}{chr(0x5E00 + i)}" for i in range(40)]))) == 15


def taken(*names, subject=SUBJECT):
    topics = Topics(subject, 100, ["甲", "乙"])
    for place, name in enumerate(names):
        topics.take({"topic": "甲乙"[place % 2], "asked": 9, "text": dump([name])})
    return dict(topics.dropped)


@pytest.mark.parametrize(
    ("first", "second", "counted"),
    [
        ("校园网怎样连接和排错", "校园网，怎样连接和排错？", {"duplicate": 1}),
        ("校园网怎样连接和排错", "哈尔滨工业大学校园网怎样连接和排错", {"duplicate": 1}),
        # 9 pairs of characters each, 6 in common: 6 / 12 is just enough; then 4: 4 / 14 is not
        ("校园网怎样连接和排错", "校园网如何连接和排错", {"near_duplicate": 1}),
        ("校园网怎样连接和排错", "校园网如何连接与排错", {}),
        ("图书馆自习座位的预约", "图书馆自习座位的预约与爽约规则", {"near_duplicate": 1}),
        # the name of the subject is no likeness: without it they have nothing in common
        ("哈尔滨工业大学图书馆", "哈尔滨工业大学体育馆", {}),
        ("报到前的物品清单", "入学第一个月的安排", {}),
    ],
)
def test_near_duplicates_across_categories(first, second, counted):
    assert taken(first, second) == counted


def test_no_two_topics_written_by_hand_are_taken_for_one():
    names = topics_module.read_topics(Path(topics_module.__file__).with_name("topics.txt"), print)
    topics = Topics(SUBJECT, 1000, ["甲"])
    topics.take({"topic": "甲", "asked": 1000, "text": dump(names)})
    assert len(topics) == len(names) == 145


def test_what_is_missing_goes_where_there_is_least():
    topics = Topics(SUBJECT, 7, ["甲", "乙", "丙"])
    assert topics.plan() == {"甲": 3, "乙": 2, "丙": 2}
    topics.take({"topic": "甲", "asked": 3, "text": dump([topic(i) for i in range(5)])})
    assert topics.dropped == {"surplus": 2}
    assert topics.plan() == {"乙": 2, "丙": 2}
    for _ in range(2):
        topics.take({"topic": "丙", "asked": 2, "text": dump([topic(0)])})
    assert topics.plan() == {"甲": 1, "乙": 3}  # 丙 gave nothing new twice: 甲 3 + 1, 乙 0 + 3
    assert topic(0) in topics.known("丙")
