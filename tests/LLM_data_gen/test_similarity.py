"""The figures of the report are those by hand, and those of brute force."""

import random

import pytest

from LLM_data_gen import similarity as module
from LLM_data_gen.near import NEAR_JACCARD
from LLM_data_gen.similarity import similarity


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
    monkeypatch.setattr(module, "SAMPLE", 50)
    rng = random.Random(2)
    long = "".join(chr(rng.randrange(0x4E00, 0x9E00)) for _ in range(longest + 1))
    texts = [*family(rng, 333), long, long[:-1], long + "完"]
    figures = similarity(texts)
    assert (figures["distinct_share"], figures["self_similarity"]) == slow_similarity(texts)
    assert figures["looked_at"] == len(texts)
    assert len(figures["worst_pairs"]) == 10


def test_of_many_questions_a_seeded_sample_is_held_against_all(monkeypatch):
    monkeypatch.setattr(module, "SAMPLE_ABOVE", 100)
    monkeypatch.setattr(module, "SAMPLE", 90)
    texts = family(random.Random(3), 400)
    figures = similarity(texts, seed=5)
    assert figures == similarity(texts, seed=5)
    assert (figures["questions"], figures["looked_at"]) == (len(texts), 90)
    distinct, alike = slow_similarity(texts)
    assert figures["distinct_share"] == pytest.approx(distinct, abs=0.15)
    assert figures["self_similarity"] == pytest.approx(alike, abs=0.1)  # against the sample alone it would be lower
