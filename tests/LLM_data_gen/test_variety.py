"""Lines of a topic do not repeat; the figures of the report are those by hand."""

import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from LLM_data_gen import variety
from LLM_data_gen.near import NEAR_JACCARD
from LLM_data_gen.variety import angles, similarity

ROOT = Path(__file__).resolve().parents[2]


def test_lines_of_a_topic_are_short_and_do_not_repeat_until_all_were_used():
    sizes = [len(variety._ROLES), len(variety._SITUATIONS), len(variety._ANGLES)]
    assert [len(set(words)) for words in (variety._ROLES, variety._SITUATIONS, variety._ANGLES)] == sizes == [25, 9, 16]
    lines = angles("食堂", 3600)
    assert len(set(lines)) == 3600
    assert max(map(len, lines)) <= 30
    assert angles("食堂", 2, first=3600) == lines[:2]
    form = re.compile(r"提问者是(\w+)，(\w+)，角度是(\w+)")
    for start in range(0, 3600, 9):
        parts = zip(*(form.fullmatch(line).groups() for line in lines[start : start + 9]), strict=True)
        assert [len(set(part)) for part in parts] == [9, 9, 9]


def test_lines_go_on_where_they_stopped_and_depend_on_topic_and_seed():
    assert angles("食堂", 3) + angles("食堂", 3, first=3) == angles("食堂", 6)
    assert angles("食堂", 6) != angles("宿舍", 6)
    assert angles("食堂", 6) != angles("食堂", 6, seed=1)
    assert angles("食堂", 0) == []
    first = {angles(f"主题{i}", 1)[0] for i in range(300)}
    assert len(first) > 250  # topics do not all begin with the same person


def test_lines_are_the_same_in_another_process():
    code = "from LLM_data_gen.variety import angles; print(*angles('食堂', 6), sep='|')"
    said = [
        subprocess.run(
            [sys.executable, "-X", "utf8", "-c", code],
            cwd=ROOT,
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            encoding="utf-8",
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    ]
    assert said == ["|".join(angles("食堂", 6))] * 2


def test_similarity_worked_by_hand():
    """甲乙丙丁 and 甲乙丙戊 share 2 of 4 bigrams, 子丑寅 none with either; a copy is like its first."""
    assert similarity([]) == {
        "questions": 0,
        "looked_at": 0,
        "distinct_share": 1.0,
        "self_similarity": 0.0,
        "worst_pairs": [],
    }
    figures = similarity(["甲乙丙丁", "甲乙丙戊", "子丑寅"])
    assert figures["distinct_share"] == 1.0
    assert figures["self_similarity"] == round((0.5 + 0.5 + 0) / 3, 4)
    assert figures["worst_pairs"] == [{"similarity": 0.5, "question": "甲乙丙戊", "earlier": "甲乙丙丁"}]
    figures = similarity(["甲乙丙丁", "子丑寅", "子丑寅", "甲乙丙戊"])
    assert figures["distinct_share"] == 0.75
    assert figures["self_similarity"] == 0.75
    assert [pair["similarity"] for pair in figures["worst_pairs"]] == [1.0, 0.5]


def slow_similarity(texts: list[str]) -> tuple[float, float]:
    sets = [{a + b for a, b in zip(t, t[1:], strict=False)} or {t} for t in texts]
    score = [[len(a & b) / len(a | b) for b in sets] for a in sets]
    best = [max(s for j, s in enumerate(row) if j != i) for i, row in enumerate(score)]
    repeats = [any(s >= NEAR_JACCARD for s in row[:i]) for i, row in enumerate(score)]
    return round(1 - sum(repeats) / len(texts), 4), round(sum(best) / len(texts), 4)


def family(rng: random.Random, size: int) -> list[str]:
    """Words of a small stock, so that all texts are somewhat alike; some repeated with an edit."""
    words = ["".join(chr(rng.randrange(0x4E00, 0x4E40)) for _ in range(3)) for _ in range(60)]
    texts = ["".join(rng.choices(words, k=rng.randrange(1, 15))) for _ in range(size)]
    return [t if rng.random() < 0.8 else rng.choice(texts)[:-1] + "改" for t in texts] + ["", "问", "问"]


@pytest.mark.parametrize("longest", [0, 255, 256, 2000])
def test_similarity_is_that_of_brute_force(monkeypatch, longest):
    """With blocks and samples so small that there are many, and the last of them not full; with more bigrams than a byte counts."""
    monkeypatch.setattr(variety, "SAMPLE", 50)
    rng = random.Random(2)
    long = "".join(chr(rng.randrange(0x4E00, 0x9E00)) for _ in range(longest + 1))
    texts = [*family(rng, 333), long, long[:-1], long + "完"]
    figures = similarity(texts)
    assert (figures["distinct_share"], figures["self_similarity"]) == slow_similarity(texts)
    assert figures["looked_at"] == len(texts)
    assert len(figures["worst_pairs"]) == 10


def test_of_many_questions_a_seeded_sample_is_held_against_all(monkeypatch):
    monkeypatch.setattr(variety, "SAMPLE_ABOVE", 100)
    monkeypatch.setattr(variety, "SAMPLE", 90)
    texts = family(random.Random(3), 400)
    figures = similarity(texts, seed=5)
    assert figures == similarity(texts, seed=5)
    assert (figures["questions"], figures["looked_at"]) == (len(texts), 90)
    distinct, alike = slow_similarity(texts)
    assert figures["distinct_share"] == pytest.approx(distinct, abs=0.15)
    assert figures["self_similarity"] == pytest.approx(alike, abs=0.1)  # against the sample alone it would be lower
