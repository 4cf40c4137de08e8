import re

import pytest

from sft_data.quality import (
    Gates,
    check_chinese,
    check_length,
    check_output,
    check_pii,
    check_record,
    chinese_ratio,
    label,
    normalise,
    tidy,
)


def test_the_copy_for_the_gates_and_the_text_that_is_written():
    text = "\ufeff  你好，\u200b世界！\n\n第二行　ＡＢＣ１２３  \n"
    assert normalise(text) == "你好,世界! 第二行 ABC123"
    assert tidy(text) == "你好，世界！\n\n第二行　ＡＢＣ１２３"
    assert tidy("一家人👨\u200d👩\u200d👧出游\u200d了") == "一家人👨\u200d👩\u200d👧出游了"


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


def test_links_and_own_patterns():
    links = "见 https://a.cn 和 www.b.cn 和 http://c.cn "
    assert check_output(links, max_urls=3) is None
    assert check_output(links, max_urls=2) == "too_many_urls"
    assert check_output("转载自某网", drop_patterns=(re.compile("转载自"),)) == "drop_pattern"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("手机13812345678联系", "pii_phone"),  # \b would see one word here
        ("电话：１３８１２３４５６７８", "pii_phone"),
        ("打+86 138-1234-5678吧", "pii_phone"),
        ("打 0086-13812345678", "pii_phone"),
        ("邮件发到zhang.san@hit.edu.cn即可", "pii_email"),
        ("身份证11010519491231002X办理", "pii_id_card"),
        ("身份证11010519491231002x。", "pii_id_card"),
        ("卡号6222021234567890127付款", None),  # wrong check digit
        ("卡号4111111111111111付款", "pii_bank_card"),
        ("卡号4111 1111 1111 1111付款", "pii_bank_card"),
        ("身份证110105194912310021办理", None),  # wrong check digit
        ("编号11010519491331002X", None),  # month 13
        ("订单号138123456789", None),  # twelve digits are no phone number
        ("圆周率3.14159265358979", None),
        ("比值0.13812345678", None),
        ("串号41111111111111111111", None),  # twenty digits
        ("电话12812345678", None),
        ("微博@张三，早", None),
    ],
)
def test_personal_data(text, reason):
    assert check_pii(normalise(text)) == reason


def test_card_numbers_of_all_lengths_by_an_independent_luhn():
    for length in (15, 16, 17, 18, 19, 20):
        body = ("6" + "123456789" * 3)[: length - 1]
        total = 0
        for i, digit in enumerate(reversed(body)):
            value = int(digit) * (2 if i % 2 == 0 else 1)
            total += value // 10 + value % 10
        card = body + str(-total % 10)
        assert check_pii(f"卡{card}号") == ("pii_bank_card" if 16 <= length <= 19 else None)
        wrong = body + str((1 - total) % 10)
        assert check_pii(f"卡{wrong}号") is None


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
    assert check_pii(huge + "@" + huge) is None
