"""The promises of the bundled general samples: counts, good records that pass every gate, bad ones marked by reason.

The gates are written out here a second time, from the documented numbers, so that a mistake in sft_data cannot hide
a bad sample.
"""

import json
import re
import unicodedata
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest

SAMPLES = Path(__file__).resolve().parents[2] / "data" / "samples"

N_RECORDS, N_GOOD, N_KIND = 423, 370, 30
LENGTHS = {"instruction": (20, 200), "input": (20, 300), "output": (80, 1200)}
MIN_CHINESE, MAX_URLS = 0.65, 5

# Reason -> 0-based positions in general_samples.json. Every other record is good.
BAD = {
    "short_instruction": [3, 58, 114, 194, 274, 338],
    "short_output": [10, 66, 122, 202, 282, 346],
    "low_chinese": [18, 74, 138, 218, 290, 362],
    "refusal": [26, 82, 146, 226, 306, 370],
    "advertisement": [50, 106, 178, 258],
    "many_urls": [42, 98, 170, 250, 330],
    "phone": [34, 90, 162],
    "email": [234, 314, 386],
    "id_card": [394, 402, 418],
}
# Position of a copy -> position of its original, which is good and comes first. Record 322 differs from 102 only in
# the width of its punctuation; a near duplicate has one or two characters replaced.
DUPLICATE_OF = {186: 78, 298: 4, 322: 102, 354: 53, 378: 29}
NEAR_DUPLICATE_OF = {130: 6, 154: 57, 210: 75, 242: 40, 266: 23, 410: 92}

PATTERNS = {
    "refusal": r"抱歉|对不起|作为一个(?:AI|人工智能)|无法回答|不能协助",
    "advertisement": r"二维码|加老师的微信|点击下方链接|关注我们的公众号",
    "phone": r"(?<!\d)1[3-9]\d{9}(?!\d)",
    "email": r"[A-Za-z0-9._%+-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}",
}


def id_cards(text: str) -> list[str]:
    """18-character numbers with the right check digit: the sum of digit i times 2**(17 - i) is 1 modulo 11 (GB 11643)."""
    found = re.findall(r"(?<!\d)\d{17}[\dXx](?!\d)", text)
    return [n for n in found if sum((10 if c in "Xx" else int(c)) << (17 - i) for i, c in enumerate(n)) % 11 == 1]


def chinese_share(text: str) -> float:
    return sum("\u4e00" <= c <= "\u9fff" for c in text) / len(text)


def faults(record: dict) -> set[str]:
    """Names of all gates that the record fails; looks at NFKC copies with white space collapsed."""
    fields = {k: plain(v) for k, v in record.items() if k != "input" or v}
    found = set()
    for name, text in fields.items():
        low, high = LENGTHS[name]
        if len(text) < low:
            found.add(f"short_{name}")
        if len(text) > high:
            found.add(f"long_{name}")
        if not text or chinese_share(text) < MIN_CHINESE:
            found.add("low_chinese")
    whole = "\n".join(fields.values())
    found |= {name for name, pattern in PATTERNS.items() if re.search(pattern, whole)}
    if len(re.findall(r"https?://|www\.", whole)) > MAX_URLS:
        found.add("many_urls")
    if id_cards(whole):
        found.add("id_card")
    return found


def plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).split())


def body(record: dict) -> str:
    return " ".join(plain(v) for v in record.values() if v)


def bigrams(text: str) -> set[str]:
    return {text[i : i + 2] for i in range(len(text) - 1)}


def likeness(a: set[str], b: set[str]) -> float:
    """Jaccard similarity."""
    return len(a & b) / len(a | b)


def read_kinds() -> list[dict]:
    lines = (SAMPLES / "general_samples_kind.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


RECORDS = json.loads((SAMPLES / "general_samples.json").read_text(encoding="utf-8"))
MARKED = {i for places in BAD.values() for i in places} | set(DUPLICATE_OF) | set(NEAR_DUPLICATE_OF)
GOOD = [r for i, r in enumerate(RECORDS) if i not in MARKED]


def test_the_file_is_an_array_of_the_firefly_form():
    assert len(RECORDS) == N_RECORDS
    for record in RECORDS:
        assert list(record) == ["instruction", "input", "output"]
        assert all(isinstance(v, str) and v == v.strip() for v in record.values())
        assert record["instruction"]
        assert record["output"]


def test_every_marked_record_is_marked_once():
    n_marks = sum(map(len, BAD.values())) + len(DUPLICATE_OF) + len(NEAR_DUPLICATE_OF)
    assert len(MARKED) == n_marks == N_RECORDS - N_GOOD
    assert len(GOOD) == N_GOOD
    assert all(len(BAD[reason]) >= 4 for reason in BAD.keys() - {"phone", "email", "id_card"})


def test_good_records_pass_every_gate():
    assert {i: faults(r) for i, r in enumerate(RECORDS) if i not in MARKED and faults(r)} == {}


def test_about_a_third_of_the_good_records_has_an_input():
    assert 0.30 < sum(bool(r["input"]) for r in GOOD) / N_GOOD < 0.37


def test_good_answers_are_short_enough_to_train_a_tiny_model_quickly():
    lengths = sorted(len(r["output"]) for r in GOOD)
    assert lengths[-1] <= 200
    assert 100 <= lengths[len(lengths) // 2] <= 160


@pytest.mark.parametrize("reason", BAD)
def test_a_bad_record_has_its_one_documented_fault_and_no_other(reason):
    assert {i: faults(RECORDS[i]) for i in BAD[reason]} == {i: {reason} for i in BAD[reason]}


def test_low_chinese_is_tried_in_each_field():
    shares = [[k for k, v in RECORDS[i].items() if v and chinese_share(v) < MIN_CHINESE] for i in BAD["low_chinese"]]
    assert Counter(name for names in shares for name in names) == {"output": 4, "instruction": 1, "input": 1}


def test_a_phone_number_stands_right_beside_chinese_characters():
    """The case that \\b misses, in the input as well as in the output."""
    for i in BAD["phone"]:
        assert re.search(r"[\u4e00-\u9fff]1[3-9]\d{9}[\u4e00-\u9fff]", body(RECORDS[i]))
    assert any("138" in RECORDS[i]["input"] for i in BAD["phone"])


def test_duplicates_equal_an_earlier_good_record():
    for copy, original in DUPLICATE_OF.items():
        assert original < copy
        assert original not in MARKED
        assert body(RECORDS[copy]) == body(RECORDS[original])
    assert [i for i, j in DUPLICATE_OF.items() if RECORDS[i] != RECORDS[j]] == [322]


def test_near_duplicates_have_one_or_two_characters_replaced():
    for copy, original in NEAR_DUPLICATE_OF.items():
        assert original < copy
        assert original not in MARKED
        a, b = body(RECORDS[copy]), body(RECORDS[original])
        assert len(a) == len(b) > 200
        assert 1 <= sum(x != y for x, y in zip(a, b, strict=True)) <= 2
        assert faults(RECORDS[copy]) == set()


def test_good_records_are_unlike_each_other():
    """Questions and answers apart, over both files: none is a variation of another."""
    kinds = read_kinds()
    questions = [bigrams(r["instruction"] + r["input"]) for r in GOOD] + [bigrams(r["input"]) for r in kinds]
    answers = [bigrams(r["output"]) for r in GOOD] + [bigrams(r["target"]) for r in kinds]
    assert max(likeness(a, b) for a, b in combinations(questions, 2)) < 0.6
    assert max(likeness(a, b) for a, b in combinations(answers, 2)) < 0.6


def test_the_second_file_has_the_kind_form_and_is_all_good():
    kinds = read_kinds()
    assert len(kinds) == N_KIND
    for record in kinds:
        assert list(record) == ["kind", "input", "target"]
        assert re.fullmatch(r"[A-Z][A-Za-z]+", record["kind"])
        assert faults({"instruction": record["input"], "input": "", "output": record["target"]}) == set()
    assert len({r["kind"] for r in kinds}) >= 12
