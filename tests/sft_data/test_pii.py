import re
import time
import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sft_data.pii import Found, check_pii, find_pii, redact_pii
from sft_data.quality import normalise

PHONE, EMAIL, ID, CARD = "13812345678", "zhang.san@hit.edu.cn", "11010519491231002X", "4111111111111111"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("手机13812345678联系", "pii_phone"),  # \b would see one word here
        ("电话：１３８１２３４５６７８", "pii_phone"),
        ("打+86 138-1234-5678吧", "pii_phone"),
        ("打 0086-13812345678", "pii_phone"),
        ("（+86）13812345678", "pii_phone"),
        ("电话138-12345678", "pii_phone"),
        ("电话\n138 1234\n5678", "pii_phone"),
        ("电话138\u200b12345678", "pii_phone"),
        ("邮件发到zhang.san@hit.edu.cn即可", "pii_email"),
        ("身份证11010519491231002X办理", "pii_id_card"),
        ("身份证11010519491231002x。", "pii_id_card"),
        ("卡号6222021234567890127付款", None),  # wrong check digit
        ("卡号4111111111111111付款", "pii_bank_card"),
        ("卡号4111 1111 1111 1111付款", "pii_bank_card"),
        ("卡号2222 4111 1111 1111 1111付款", "pii_bank_card"),  # begins inside one of a wrong check digit
        ("卡号4111 1111 1111 1111 222", "pii_bank_card"),  # the whole of it has a wrong check digit
        ("身份证110105194912310021办理", None),  # wrong check digit
        ("编号11010519491331002X", None),  # month 13
        ("订单号138123456789", None),  # twelve digits are no phone number
        ("圆周率3.14159265358979", None),
        ("比值0.13812345678", None),
        ("金额4111111111111111.50", None),
        ("串号41111111111111111111", None),  # twenty digits
        ("电话12812345678", None),
        ("保卫处0451-86412114，010-12345678，400-820-8820，热线12315", None),  # of an office, and not of a person
        ("微博@张三，早", None),
    ],
)
def test_personal_data(text, reason):
    assert check_pii(normalise(text)) == reason
    assert [f"pii_{item.kind}" for item in find_pii(text)] == ([reason] if reason else [])


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


def test_where_each_item_lies():
    text = f"  我是张三，\n手机：+86 {PHONE}，邮箱{EMAIL}；证{ID}，卡{CARD}。"
    items = find_pii(text)
    assert [(item.kind, text[item.start : item.end]) for item in items] == [
        ("phone", f"+86 {PHONE}"),
        ("email", EMAIL),
        ("id_card", ID),
        ("bank_card", CARD),
    ]
    assert check_pii(f"{CARD}，{PHONE}") == "pii_phone"  # the first kind, and not the first item


def test_items_that_overlap_are_one():
    assert find_pii(f"写信到{PHONE}@qq.com") == [Found("email", 3, 21)]
    assert find_pii(f"写信到a{PHONE}@qq.com") == [Found("email", 3, 22)]
    assert find_pii("1381234567½221000000000009") == [Found("bank_card", 0, 26)]  # ½ ends the one and begins the other
    assert find_pii(f"{PHONE},{PHONE}") == [Found("phone", 0, 11), Found("phone", 12, 23)]


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("电话：１３８１２３４５６７８，　谢谢！", "电话：[手机号]，　谢谢！"),
        ("信ａｂ＠ｑｑ．ｃｏｍ①", "信[邮箱]①"),
        ("卡𝟒111-1111-1111-1111", "卡[银行卡号]"),
        ("打138\n1234\u3000 5678\n好", "打[手机号]\n好"),
        (f"证\u200b{ID}\u200b\r\n", "证\u200b[身份证号]\u200b\r\n"),
        ("１２３ａｂｃ．＠ ㎡ ½", "１２３ａｂｃ．＠ ㎡ ½"),  # nothing to find: not even folded
        (f"½{'2' * 9}", f"½{'2' * 9}"),
        ("138123456⑫中", "[手机号]中"),
        ("1381234567㏠", "[手机号]日"),  # 1日: of one character, the half that is no number stays
    ],
)
def test_redaction_keeps_all_else_as_it_was(text, redacted):
    assert redact_pii(text) == redacted


PIECES = st.sampled_from(
    [PHONE, "１３８１２３４５６７８", "138 1234 5678", "138-12345678", "1381234", "138", "5678", "+86", "86", "0086"]
    + [
        ID,
        "110105194912310021",
        CARD,
        "4111 1111 1111 1111",
        "4111",
        "2222",
        "6222021234567890128",
        "222",
        "1",
        "8",
        "0",
    ]
    + ["@", "＠", ".", "．", "-", "－", " ", "\n", "\u3000", "_", "%", "x", "X", "a", "ａ", "b.com", "qq.com", "com"]
    + ["中", "手机", "（", "[", "]", "[邮箱]", "\u200b", "\u200d", "😀", "⑫", "⒈", "½", "㏠", "𝟏", "é"]
)
TEXTS = st.one_of(st.lists(PIECES, max_size=14).map("".join), st.text("0123456789①½aX@＠.．- \n中\u200b"), st.text())


@settings(max_examples=1500, deadline=None)
@given(TEXTS)
@example(f"{CARD}.{PHONE}")  # a card number taken away would bare the phone number
@example(f"{ID}{PHONE}")
@example("4111 1111 1111 1111 222@b.com")
@example("2222 4111 1111 1111 1111")
@example("138 1234 5678½@qq.com")  # 1⁄2@qq.com taken away with its 1 would bare the phone number
def test_a_redacted_text_has_nothing_left_to_find(text):
    redacted = redact_pii(text)
    assert check_pii(normalise(redacted)) is None
    assert redact_pii(redacted) == redacted
    items = find_pii(text)
    assert [item.end <= after.start for item, after in zip(items, items[1:], strict=False)] == [True] * (len(items) - 1)
    assert items or redacted == text
    if not any(map(unicodedata.combining, unicodedata.normalize("NFKD", text))):
        assert bool(items) == (check_pii(normalise(text)) is not None)


def test_every_character_that_folds_to_a_digit_is_looked_at():
    for code in range(0x110000):
        folded = unicodedata.normalize("NFKC", chr(code))
        if re.fullmatch("[0-9]", folded):
            assert redact_pii(chr(code) * 4 + "中") == chr(code) * 4 + "中"
            number = "138123456" + chr(code) * 2
            assert redact_pii(number) == "[手机号]", hex(code)
        elif folded == "@":
            assert redact_pii(f"a{chr(code)}b.cn") == "[邮箱]", hex(code)


@pytest.mark.parametrize("piece", ["1", "a", "4111 ", "a@", "a@b.com", f"{CARD}.", "½", "＠a."])
def test_megabytes_take_no_longer_than_their_length(piece):
    """A second or two for a megabyte on a busy machine; trying every end from every start would take hours."""
    text = piece * (1_000_000 // len(piece))
    start = time.process_time()
    check_pii(text)
    redact_pii(text + "@b.com")
    assert time.process_time() - start < 30
