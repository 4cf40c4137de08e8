"""Features and marks against slow versions that are obviously right, bit for bit."""

import random
import re

import numpy as np
import pytest

from sft_data.features import (
    BANDS,
    FEATURES,
    METHODS,
    ROWS,
    _permutations,
    _word_characters,
    feature_sets,
    jaccard,
    marks,
)

MASK = (1 << 64) - 1
WORDS = [
    "中文分词",
    "的",
    "确实",
    "有用，模型",
    " training",
    "3.14",
    "_x",
    "😀",
    "数据。清洗！去重；é",
    "語 한글",
    "１𠀀",
    "\u0301",
]


def feature_set(body: str, features: str) -> np.ndarray:
    data = np.frombuffer(body.encode("utf-8", "surrogatepass"), np.uint8)
    return feature_sets(data, np.array([[0, len(data)]]), features)[0]


def mix(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def slow_features(body: str, features: str) -> list[str]:
    if features == "bigram":
        return [body[i : i + 2] for i in range(len(body) - 1)] or list(body)
    if features == "word":
        import rjieba

        body = " ".join(rjieba.cut(body, False))
    return re.findall(r"\w+", body)


def slow_hashes(body: str, features: str) -> list[int]:
    hashes = []
    for feature in slow_features(body, features):
        if features == "bigram":
            hashes.append(mix(ord(feature[0]) << 32 | ord(feature[1]) if len(feature) > 1 else ord(feature)))
            continue
        state = 0
        for char in feature:
            state = mix(state ^ ord(char))
        hashes.append(state)
    return hashes


def slow_mark(body: str, method: str, features: str) -> int | list[int]:
    hashes = slow_hashes(body, features)
    if method == "simhash":
        return sum(1 << bit for bit in range(64) if 2 * sum(x >> bit & 1 for x in hashes) > len(hashes))
    least = [
        min(((factor * (x >> 32) + term) % 2**32 for x in hashes), default=2**32 - 1)
        for factor, term in np.stack(_permutations(), axis=1).tolist()
    ]
    keys = []
    for band in range(BANDS):
        key = 0
        for value in least[band * ROWS : (band + 1) * ROWS]:
            key = mix(key ^ value)
        keys.append(key >> 32)
    return keys


def bodies_at_random(count: int) -> list[str]:
    rng = random.Random(5)
    edges = ["", "字", "字字", "a", "。", "。！", "𠀀😀x", "_", "中" * 9, " 中 "]
    return edges + ["".join(rng.choices(WORDS, k=rng.randrange(1, 60))) for _ in range(count)]


def laid_out(bodies: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """With a line's end between bodies, as kernel.measure lays them."""
    data = [body.encode() for body in bodies]
    starts = np.cumsum([0, *(len(body) + 1 for body in data)])[:-1]
    spans = np.stack([starts, starts + np.array([len(body) for body in data], np.int64)], axis=1)
    return np.frombuffer(b"\n".join(data), np.uint8), spans


@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("method", METHODS)
def test_marks_are_the_slow_ones_bit_for_bit(method, features, monkeypatch):
    monkeypatch.setattr("sft_data.features._CHUNK", 1 << 10)  # many chunks
    bodies = bodies_at_random(60)
    found = marks(*laid_out(bodies), method, features)
    assert found.tolist() == [slow_mark(body, method, features) for body in bodies]
    assert found.nbytes == len(bodies) * (8 if method == "simhash" else 48)
    assert len(marks(*laid_out([]), method, features)) == 0


@pytest.mark.parametrize("features", FEATURES)
def test_jaccard_of_feature_sets_is_that_of_python_sets(features):
    bodies = bodies_at_random(40)
    sets = [set(slow_features(body, features)) for body in bodies]
    for a, set_a in zip(bodies, sets, strict=True):
        for b, set_b in zip(bodies, sets, strict=True):
            expected = len(set_a & set_b) / len(set_a | set_b) if set_a | set_b else 1
            assert jaccard(feature_set(a, features), feature_set(b, features)) == expected
            for minimum in (0.3, expected):
                found = jaccard(feature_set(a, features), feature_set(b, features), minimum)
                assert found == expected or found == 0 and expected < minimum


def test_word_characters_are_those_of_the_regular_expression():
    every = "".join(map(chr, range(0x110000)))
    assert np.flatnonzero(_word_characters()).tolist() == [ord(char) for char in re.findall(r"\w", every)]


def test_words_are_those_of_jieba_without_hmm():
    assert slow_features("我们来到北京清华大学", "word") == ["我们", "来到", "北京", "清华大学"]
    assert len(feature_set("我们来到北京清华大学。", "word")) == 4
    assert len(feature_set("我们来到北京清华大学。", "legacy")) == 1


def test_half_a_surrogate_pair_is_a_character_like_any():
    body = "中\ud83d文"
    assert len(feature_set(body, "bigram")) == 2
    assert len(feature_set(body, "legacy")) == 2
    assert len(feature_set(body, "word")) == 2


def test_bands_meet_as_often_as_the_theory_says():
    """Pairs of a known Jaccard similarity share each band with probability s ** ROWS."""
    rng = random.Random(7)
    bodies, similarity, pairs = [], [], 400
    for _ in range(pairs):
        text = [chr(rng.randrange(0x4E00, 0x9FA0)) for _ in range(200)]
        edited = list(text)
        for at in rng.sample(range(200), 6):
            edited[at] = chr(rng.randrange(0x4E00, 0x9FA0))
        bodies += ["".join(text), "".join(edited)]
        similarity.append(jaccard(feature_set(bodies[-2], "bigram"), feature_set(bodies[-1], "bigram")))
    found = marks(*laid_out(bodies), "minhash", "bigram")
    shared = (found[::2] == found[1::2]).mean()
    expected = np.mean(np.array(similarity) ** ROWS)
    assert abs(shared - expected) < 5 * np.sqrt(expected / (pairs * BANDS))
    assert not (found[::2] == np.roll(found[1::2], 1, axis=0)).any()  # bodies of different pairs
