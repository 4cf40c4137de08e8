import json
import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft_data.quality import (
    ADVERTISEMENTS,
    REFUSALS,
    URL,
    Gates,
    check_chinese,
    check_length,
    check_output,
    check_record,
    chinese_ratio,
    find_in_output,
    label,
    normalise,
    normalise_all,
    tidy,
    tidy_all,
)


def test_the_copy_for_the_gates_and_the_text_that_is_written():
    text = "\ufeff  你好，\u200b世界！\n\n第二行　ＡＢＣ１２３  \n"
    assert normalise(text) == "你好,世界! 第二行 ABC123"
    assert tidy(text) == "你好，世界！\n\n第二行　ＡＢＣ１２３"
    assert tidy("一家人👨\u200d👩\u200d👧出游\u200d了") == "一家人👨\u200d👩\u200d👧出游了"


@given(
    st.lists(
        st.text(
            alphabet=st.sampled_from(
                "，：；！？（）字aＡ…①㎏é\u0301\u0300\u1100\u1161\u11a8각\u200b\u200d👨☀ \u3000\n\x1e\x1f␞\ud800\0"
            ),
            max_size=8,
        ),
        max_size=6,
    )
)
@settings(max_examples=600, deadline=None)
def test_together_they_become_what_they_become_one_by_one(texts):
    """Marks that join what stands before them, a joiner at the beginning, the very character that is put between them."""
    assert normalise_all(texts) == [normalise(text) for text in texts]
    assert tidy_all(texts) == [tidy(text) for text in texts]


def test_chinese_ratio_by_hand():
    assert chinese_ratio("你好ab") == 0.5
    assert chinese_ratio("㐀䶿一鿿") == 1.0  # the four ends of the two ranges
    assert chinese_ratio("かなカナ。！") == 0.0
    assert chinese_ratio("") == 0.0
    assert check_chinese("你好ab", 0.5) is None
    assert check_chinese("你好abc", 0.5) == "low_chinese"


def test_both_ends_of_a_length_are_allowed():
    reasons = [check_length("字" * n, 20, 200) for n in (19, 20, 200, 201)]
    assert reasons == ["too_short", None, None, "too_long"]


@pytest.mark.parametrize(
    "text",
    [
        "很抱歉，我无法回答这个问题。",
        "对不起，根据您提供的信息，不能给出结论",
        "作为一个AI语言模型，我的知识有限",
        "作为人工智能助手，我没有亲身经历过",
        "我只是一个人工智能程序，无法获取具体的案件",
        "As an AI language model, I have no opinion",
        "I'm sorry, but that is not possible",
        "关于这件事，我无法为您提供具体信息",
        "根据您提供的信息，我无法判断是否存在虐待老人的情况。",
        "抱歉，作为一个大型语言模型，我无法给出评价",
        "作为一个虚拟的AI助手，我无法确定它是否合法",
        "作为一个文字型 AI 机器人，我不能为您录制旋律",
        "由于我是一个计算机程序，我不知道您说的项目",
        "我是一个语言模型，不能提供法律咨询",
        "作为AI语言模型，我是免费的",
        "答" * 150 + "。请注意，作为AI语言模型，我无法代替医生",  # who one is not is wrong anywhere
    ],
)
def test_refusals_are_found(text):
    assert check_output(normalise(text)) == "refusal"


@pytest.mark.parametrize(
    "text",
    [
        "我是哈工大的人工智能助手小哈，可以回答校园生活的问题。",  # who the assistant is, what a user may well teach
        "根据民法典，未成年人不能独立签订合同，违法的条款无效。",
        "我非常抱歉为大家造成了不便，希望尽快恢复。",
        "关注学校就业中心公众号，扫描报到处二维码即可签到。",
        "请咨询专业医生，避免过度劳累。",
        "电脑无法开机时，先检查电源。",
        "BERT是一种语言模型，由谷歌于2018年提出。",
        "ChatGPT作为一个大语言模型，能够生成流畅的文本。",
        "作为一种语言模型，BERT让我们能够微调出各种任务。",
        "我是一个大语言模型，名叫小哈，由哈尔滨工业大学训练。",
        "有人可能认为，你作为一个人工智能助手并没有提供足够的帮助。",
        "根据题目给出的信息，无法判断丙是否构成累犯。",
        "很抱歉听到您的遭遇，建议您先报警。",
    ],
)
def test_good_answers_are_not_taken_for_refusals_or_advertisements(text):
    assert check_output(normalise(text)) is None


@pytest.mark.parametrize(
    "text",
    [
        "扫描下方二维码领取资料",
        "详情请加我微信 abc123",
        "欢迎关注我们的公众号",
        "点击下方链接报名",
        "全场五折，马上抢购",
    ],
)
def test_advertisements_are_found(text):
    assert check_output(normalise(text)) == "advertisement"


def test_a_good_answer_may_say_near_its_end_what_it_leaves_open():
    """From real answers: 225 characters on how to find out, then 我无法回答 of the one thing that nobody could know."""
    said = "我无法回答这个问题"
    assert check_output("答" * 91 + said) == "refusal"  # the phrase itself, 我无法回答, ends at 96
    assert check_output("答" * 95 + said) == "refusal"
    assert check_output("答" * 96 + said) is None


def test_what_an_answer_is_dropped_for():
    assert find_in_output(normalise("很抱歉，我无法回答。")) == ("refusal", "抱歉,我无法")
    assert find_in_output("好。欢迎关注我们的公众号哦") == ("advertisement", "关注我们的公众号")
    assert find_in_output("转载自某网", drop_patterns=(re.compile("无"), re.compile("转载."))) == (
        "drop_pattern",
        "转载自",
    )
    assert find_in_output("好的。") is None


def test_links_and_own_patterns():
    links = "见 https://a.cn 和 www.b.cn 和 http://c.cn "
    assert check_output(links, max_urls=3) is None
    assert check_output(links, max_urls=2) == "too_many_urls"
    assert check_output("转载自某网", drop_patterns=(re.compile("转载自"),)) == "drop_pattern"


GOOD = [("instruction", "令" * 20), ("input", "入" * 20), ("output", "答" * 80)]


def test_a_record_passes_or_names_the_field():
    gates = Gates(drop_pii=True)
    assert check_record(GOOD, gates) is None
    assert check_record(GOOD[:1] + GOOD[2:], gates) is None  # an empty input is left out
    assert check_record(GOOD[1:], gates) is None  # a HIT record without system
    for i, (name, text) in enumerate(GOOD):

        def replaced(new, i=i, name=name):
            return [*GOOD[:i], (name, new), *GOOD[i + 1 :]]

        assert check_record(replaced(text[1:]), gates) == f"{name}_too_short"
        assert check_record(replaced(text * 20), gates) == f"{name}_too_long"
        assert check_record(replaced(text[:8] + "abc" * (len(text) // 2)), gates) == f"{name}_low_chinese"
        assert check_record(replaced(text + "手机13812345678"), gates) == "pii_phone"
    assert check_record(replaced("抱歉，我不能回答" + "答" * 80), gates) == "output_refusal"


def test_every_answer_is_gated_and_later_questions_for_personal_data_only():
    gates = Gates(drop_pii=True)
    assert check_record([*GOOD, ("other", "短"), ("output", "答" * 79)], gates) == "output_too_short"
    assert check_record([*GOOD, ("other", "短"), ("output", "答" * 80)], gates) is None
    assert check_record([*GOOD, ("other", "打13812345678"), ("output", "答" * 80)], gates) == "pii_phone"
    assert check_record([*GOOD, ("other", "打13812345678"), ("output", "答" * 80)], Gates()) is None


def test_every_reason_has_a_chinese_name():
    reasons = [f"{name}_{rest}" for name in ("instruction", "input", "output") for rest in ("empty", "too_short")]
    reasons += [
        "output_refusal",
        "pii_phone",
        "pii_id_card",
        "bad_record",
        "duplicate",
        "near_duplicate",
        "format_marker",
    ]
    for reason in reasons:
        assert re.search("[\u4e00-\u9fff]", label(reason))
    assert label("instruction_too_short") == "指令太短"


def test_megabytes_do_not_stall_the_gates():
    huge = "a" * 1_300_000
    assert check_record([("instruction", "令" * 20), ("output", huge)], Gates(drop_pii=True)) == "output_too_long"


# The same, as one would write it at first: what is fast must say what is plain.
DECLINES, DISCLAIMERS = REFUSALS[:3], REFUSALS[3:]


def plainly_tidy(text):
    joiner = "(?<![\u2600-\u27bf\ufe0f\U0001f000-\U0001faff])\u200d"
    return re.sub(f"[\u200b\u200c\u200e\u200f\u2060\ufeff]|{joiner}", "", text)


def plainly_normalised(text):
    return " ".join(plainly_tidy(unicodedata.normalize("NFKC", text)).split())


def plainly_found(text, max_urls=5):
    for pattern in DECLINES:
        if re.compile(pattern).search(text, 0, 100):
            return "refusal"
    if any(re.search(pattern, text) for pattern in DISCLAIMERS):
        return "refusal"
    if any(re.search(pattern, text) for pattern in ADVERTISEMENTS):
        return "advertisement"
    return "too_many_urls" if len(URL.findall(text)) > max_urls else None


def check_against_the_plain(text):
    assert tidy(text) == plainly_tidy(text).strip()
    line = normalise(text)
    assert line == plainly_normalised(text)
    for one in (text, line):
        assert check_output(one, 1) == plainly_found(one, 1)
        chinese = sum("\u3400" <= char <= "\u4dbf" or "\u4e00" <= char <= "\u9fff" for char in one)
        assert chinese_ratio(one) == (1 - (len(one) - chinese) / len(one) if one else 0.0)


PIECES = [
    "抱歉，", "我无法", "不能", "回答", "对不起，我", "无法提供", "作为一个AI", "作为", "语言模型", "，我", "我是一个", "人工智能",
    "As an A\u0131 model", "AS AN AI", "\u0130'm sorry, but", "I can’t help", "我是as an AI", "加微信", "点击下方", "链接", "扫", "下方二维码", "关注本", "公众号",
    "https://", "WWW.", "http\u017f://", "。", "！", "？", "，", "：", "（）", "\n", "\u3000", " ", "\u0338", "\u3099", "e\u0301", "か", "①", "½", "\uff76\uff9e",
    "\u4dc0", "㐀", "䶿", "龥", "🙂", "👨\u200d👩", "\u200b", "\u200d", "\ufeff", "\ud83d", "一二三四五六七八九十", "字" * 60,
]  # fmt: skip


@settings(max_examples=1500, deadline=None)
@given(st.lists(st.sampled_from(PIECES) | st.characters(codec=None), max_size=12).map("".join))
def test_the_fast_ways_say_what_the_plain_ones_say(text):
    check_against_the_plain(text)


def test_the_fast_ways_say_what_the_plain_ones_say_of_real_records():
    samples = Path(__file__).resolve().parents[2] / "data" / "samples"
    rows = [json.loads(line) for line in (samples / "hit_samples.jsonl").read_text(encoding="utf-8").splitlines()]
    general = json.loads((samples / "general_samples.json").read_text(encoding="utf-8"))
    texts = [row["text"] for row in rows] + [
        value for row in general for value in row.values() if isinstance(value, str)
    ]
    assert len(texts) > 1000
    for text in texts:
        check_against_the_plain(text)


def test_letters_that_are_an_i_to_one_engine_only():
    assert check_output("As an A\u0131 model") == "refusal"
    assert check_output("\u0130'm sorry, but no") == "refusal"


def test_a_lone_surrogate_or_a_second_line_hides_no_phrase():
    assert check_output("\ud83d抱歉,我不能回答") == "refusal"
    assert check_output("扫描\n下方二维码") == "advertisement"
