"""screen() says of each record of a batch what the plain functions say of it alone."""

import itertools
import json
import random
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft_data.chatml import firefly_record, hit_record
from sft_data.quality import ADVERTISEMENTS, REFUSALS, Gates, check_pii, normalise
from sft_data.reasons import REASONS
from sft_data.screen import _numbers, columns, judge, screen

SAMPLES = Path(__file__).resolve().parents[2] / "data" / "samples"
FILLER = "春天的校园里开满了丁香花，同学们在图书馆里安静地读书，老师耐心地解答每一个问题，大家都觉得时间过得很快。"


def plain(batch, gates):
    """Return (reasons, bodies and lengths of those to keep)."""
    reasons, kept = [], []
    for fields in batch:
        fields = [(name, normalise(text)) for name, text in fields]
        reasons.append(judge(fields, gates))
        if reasons[-1] is None:
            body = " ".join(text for _, text in fields)
            lengths = [
                sum(len(text) for name, text in fields if name == kind) for kind in ("instruction", "input", "output")
            ]
            kept.append((body.encode("utf-8", "surrogatepass"), lengths))
    return reasons, kept


def check(batch, gates):
    found = screen(columns(batch), gates)
    reasons = [REASONS[code] or None for code in found.codes]
    bodies = [found.memory[start:end].tobytes() for start, end in found.spans]
    kept = [(b, n) for r, b, n in zip(reasons, bodies, found.lengths.tolist(), strict=True) if r is None]
    expected = plain(batch, gates)
    assert reasons == expected[0]
    assert kept == expected[1]
    return reasons


@pytest.fixture(scope="module")
def samples():
    general = json.loads((SAMPLES / "general_samples.json").read_text(encoding="utf-8"))
    hits = (SAMPLES / "hit_samples.jsonl").read_text(encoding="utf-8").splitlines()
    return [firefly_record(r)[0] for r in general] + [hit_record(json.loads(line))[0] for line in hits]


GATES = [
    Gates(drop_pii=True),
    Gates(min_chinese_ratio=0.8, drop_patterns=(re.compile("大学|学校"),), max_urls=0),
    Gates(lengths={"instruction": (1, 60), "input": (0, 10**6), "output": (20, 300)}, min_chinese_ratio=0.0),
    None,
]


@pytest.mark.parametrize("gates", GATES, ids=["pii", "patterns", "lengths", "none"])
def test_samples(samples, gates):
    check(samples, gates)


def test_samples_with_things_to_find_put_in_at_random(samples):
    """Phrases whole and in pieces, at the ends too, so that one answer ends with the first half of a refusal and the next
    one begins with the second.
    """
    rng = random.Random(7)
    finds = [
        "抱歉，", "不能回答", "对不起，我无法提供", "作为一个AI", "语言模型", "作为大语言模型", "As an AI model", "我是as an AI",
        "加微信", "点击下方链接", "扫描下方二维码", "https://a.cn ", "WWW.b.cn", "手机13812345678联系", "邮箱a@b.cn",
        "身份证11010519491231002X", "卡号6222021234567890128", "\u200b", "e\u0301", "👨\u200d👩", "", "   ", "½", "１３８１２３４５６７８",
    ]  # fmt: skip
    batch = []
    for fields in samples * 3:
        changed = []
        for name, text in fields:
            for _ in range(rng.choice([0, 0, 1, 2])):
                at = rng.choice([0, len(text), rng.randrange(len(text) + 1)])
                text = text[:at] + rng.choice(finds) + text[at:]
            changed.append((name, text if rng.random() > 0.02 else rng.choice(["", " ", "短"])))
        batch.append(changed)
    reasons = set(check(batch, Gates(drop_pii=True, max_urls=0)))
    assert {"output_refusal", "output_advertisement", "output_too_many_urls", "pii_phone", "pii_email"} <= reasons
    assert {"pii_id_card", "pii_bank_card", "output_empty", "instruction_empty", "output_too_short"} <= reasons


def test_a_phrase_hides_no_phrase_of_the_next_answer():
    """One answer ends where a phrase might begin; the next one begins where it might end, with or without one of its own."""
    ends, begins = (
        ["抱歉", "对不起，我", "作为一个AI", "关注本", "扫下方"],
        ["不能", "二维码", "我不能回答", "我无法提供"],
    )
    pairs = [(FILLER * 2 + end, begin + FILLER * 2) for end, begin in itertools.product(ends, begins)]
    batch = [[("instruction", FILLER), ("output", answer)] for pair in pairs for answer in pair]
    reasons = check(batch, Gates())
    assert reasons[::2] == [None] * len(pairs)
    assert reasons[1::2] == [None, None, "output_refusal", "output_refusal"] * len(ends)


def test_every_phrase_has_an_answer_that_it_drops():
    """The quick look knows each of them."""
    said = [
        "很遗憾，我不能告诉你", "我目前没有办法回答", "我是一个人工智能语言模型", "作为一款AI，我无法做到", "I'm sorry, but no",
        "请长按下图中的二维码", "加我微信", "私信我", "限时抢购",
    ]  # fmt: skip
    patterns = [re.compile(p) for p in (*REFUSALS, *ADVERTISEMENTS)]
    assert all(any(p.search(s) for s in said) for p in patterns)
    batch = [[("instruction", FILLER), ("output", f"{FILLER}{s}。{FILLER}")] for s in said]
    assert check(batch, Gates()) == ["output_refusal"] * 5 + ["output_advertisement"] * 4


def test_later_turns_and_lone_surrogates():
    turns = [
        ("instruction", FILLER),
        ("input", FILLER),
        ("output", FILLER * 2),
        ("other", "好"),
        ("output", FILLER * 2),
    ]
    batch = [turns, [*turns[:3], ("other", " "), turns[4]], [*turns[:3], ("other", "13812345678"), turns[4]]]
    batch += [[*turns[:2], ("output", FILLER * 2 + "\ud83d")], [*turns[:4], ("output", FILLER[:9])]]
    assert check(batch, Gates(drop_pii=True)) == [None, "input_empty", "pii_phone", None, "output_too_short"]


def test_no_record():
    assert [len(column) for column in screen(columns([]), Gates())] == [0] * 5


PIECES = st.sampled_from(
    [
        "手机",
        "0",
        "1",
        "13",
        "4",
        "62",
        "2024",
        "1380000",
        "110105194912310",
        "X",
        "x",
        "-",
        " ",
        ".",
        "+86",
        "@",
        "a.cn",
        "。",
    ]
)


@settings(max_examples=400, deadline=None)
@given(st.lists(PIECES, max_size=14).map("".join))
def test_the_quick_look_for_numbers_misses_none(text):
    text = normalise(text)
    assert check_pii(text) is None or _numbers().search(text.encode())


def test_the_quick_look_sees_every_kind_of_number():
    for text in ("138-1234 5678", "a@b.cn", "11010519491231002X", "6222 0210 0111 6245 702", "6222021001116245702"):
        assert check_pii(f"号{text}码")
        assert _numbers().search(f"号{text}码".encode())
