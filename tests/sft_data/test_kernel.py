"""The compiled kernel against the plain functions: every code point, and texts at random."""

import unicodedata

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sft_data import features, kernel
from sft_data.quality import chinese_ratio, normalise
from sft_data.simhash import simhash

# Ideographs and Hangul syllables are alike among themselves: their ends stand for all.
ALIKE = [(0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0x20000, 0x2A6DF), (0x2A700, 0x2EBE0)]
CODES = [c for c in range(0x30000) if not 0xD800 <= c < 0xE000 and not any(a + 30 < c < b - 30 for a, b in ALIKE)]


def measured(records: list[list[str]]) -> kernel.Measures:
    texts = [text.encode() for record in records for text in record]
    ends = np.cumsum([len(text) for text in texts])
    return kernel.measure(np.frombuffer(b"".join(texts), np.uint8), ends, np.array([len(r) for r in records]))


def compare(records: list[list[str]], signatures: bool = True) -> np.ndarray:
    """Hold each record that is not rough against the plain functions; return which are rough."""
    found = measured(records)
    marks = features.marks(found.bodies, found.lines, "simhash", "bigram")
    at = 0
    for row, record in enumerate(records):
        texts, at = range(at, at + len(record)), at + len(record)
        if found.rough[row]:
            continue
        plain = [normalise(text) for text in record]
        body = found.bodies[found.lines[row, 0] : found.lines[row, 1]].tobytes().decode()
        for text, expected in zip(texts, plain, strict=True):
            assert found.bodies[found.spans[text, 0] : found.spans[text, 1]].tobytes().decode() == expected
            assert found.chars[text] == len(expected)
            assert (
                1 - (found.chars[text] - found.chinese[text]) / max(len(expected), 1) == chinese_ratio(expected)
                or not expected
            )
        if all(plain):
            assert body == " ".join(plain)
        assert not signatures or int(marks[row]) == simhash(body)
    return found.rough


def test_every_code_point_after_one_that_it_might_join():
    """A letter, a kana, a Hangul syllable and a consonant, which marks, vowels and finals join."""
    rough = compare([[f"e{chr(code)}か{chr(code)}가{chr(code)}\u1100{chr(code)}"] for code in CODES], signatures=False)
    assert rough.mean() < 0.05
    usual = "中〇、。！“”…—Ａａ０％（）：；①㎏ｶ한é　\t\r\n\xa0aZ09~😀🇨🇳️"
    assert not compare([[char] for char in usual]).any()


def test_what_can_join_or_move_is_rough():
    joined = [
        "e\u0301",
        "か\u3099",
        "ｶﾞ",
        "\u1100\u1161",
        "가\u11a8",
        "a\u0323\u0307",
        "中\u200b文",
        "👨\u200d👩",
        "\U000e0001",
    ]
    assert compare([[text] for text in joined]).all()
    assert any(len(unicodedata.normalize("NFKC", text)) < len(text) for text in joined)


TEXT = st.text(st.sampled_from("中文的，。 \n\t　ＡbＢ12５６@:/wW½㈱ｶ…é한") | st.characters(codec="utf-8"), max_size=60)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.lists(TEXT, min_size=1, max_size=4), min_size=1, max_size=6))
@example([[""], [" ", "a"], ["中"], ["", ""]])
def test_texts_at_random(records):
    compare(records)


def test_a_long_text_has_the_plain_signature():
    text = "".join(chr(0x4E00 + i * i % 5000) for i in range(70_001))
    assert not compare([[text], [text[:8]], [text[:9]], [text[:10]], [text[:2]], [text[:1]]]).any()


def test_flags_leave_out_no_text_with_something_to_find():
    """Of the patterns of quality.py: an @, eleven digits in whatever form, a link."""
    texts = [
        "a＠b.cn",
        "１３８12345678",
        "138 1234 5678",
        "HTTP://x",
        "ｗｗＷ.x",
        "x: //y",
        "ww w.",
        "1234567890",
        "见https：／／x",
    ]
    flags = measured([[text] for text in texts]).flags.tolist()
    assert flags == [kernel.AT, kernel.DIGITS, kernel.DIGITS, kernel.LINK, kernel.LINK, 0, 0, 0, kernel.LINK]
