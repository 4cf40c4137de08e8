"""Twins by MinHash against the definition, spelt out."""

import random

import numpy as np
import pytest

from sft_data.features import feature_sets, jaccard, marks
from sft_data.minhash import find_twins_minhash


def laid_out(bodies: list[str]) -> tuple[np.ndarray, np.ndarray]:
    data = [body.encode() for body in bodies]
    ends = np.cumsum([0, *map(len, data)])
    return np.frombuffer(b"".join(data), np.uint8), np.stack([ends[:-1], ends[1:]], axis=1)


def set_of(body: str, features: str) -> np.ndarray:
    return feature_sets(*laid_out([body]), features)[0]


def slow_twins(bands: np.ndarray, bodies: list[str], minimum: float, features: str) -> list[int]:
    sets, kept, twins = [set(set_of(body, features).tolist()) for body in bodies], [], []
    for i in range(len(bodies)):
        twin = -1
        for j in kept:
            alike = len(sets[i] & sets[j]) / len(sets[i] | sets[j]) if sets[i] | sets[j] else 1
            if (bands[i] == bands[j]).any() and alike >= minimum:
                twin = j
                break
        twins.append(twin)
        if twin < 0:
            kept.append(i)
    return twins


def families(rng: random.Random, count: int) -> list[str]:
    """New texts, and edits of earlier ones by a few characters or by a tenth, chains and copies among them."""
    bodies: list[str] = []
    for _ in range(count):
        if not bodies or rng.random() < 0.3:
            bodies.append("".join(chr(rng.randrange(0x4E00, 0x5200)) for _ in range(rng.randrange(60))))
            continue
        text = list(rng.choice(bodies))
        for _ in range(rng.choice([0, 1, 2, 3, 6])):
            text.insert(rng.randrange(len(text) + 1), chr(rng.randrange(0x4E00, 0x5200)))
            text.pop(rng.randrange(len(text)))
        bodies.append("".join(text))
    return bodies


def sets_from(bodies: list[str], features: str, asked: list | None = None):
    def sets_of(indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if asked is not None:
            asked.extend(indices.tolist())
        return feature_sets(*laid_out([bodies[i] for i in indices]), features)

    return sets_of


@pytest.mark.parametrize("features", ["bigram", "word", "legacy"])
@pytest.mark.parametrize("minimum", [0.5, 0.85, 1.0])
def test_twins_are_those_of_the_definition(minimum, features, monkeypatch):
    monkeypatch.setattr("sft_data.minhash._CHUNK", 50)
    rng = random.Random(11)
    for size in (0, 1, 2, 300):
        bodies = families(rng, size)
        bands = marks(*laid_out(bodies), "minhash", features)
        found = find_twins_minhash(bands, sets_from(bodies, features), minimum)
        assert found.twin.tolist() == slow_twins(bands, bodies, minimum, features)
        for i, j in enumerate(found.twin.tolist()):
            sets = [set_of(bodies[row], features) for row in (i, j)]
            assert found.distance[i] == np.float32(1 - jaccard(*sets) if j >= 0 else 0)


def test_bodies_are_asked_for_candidates_only_and_a_large_family_costs_its_size():
    rng = random.Random(12)
    texts = ["".join(chr(rng.randrange(0x4E00, 0x9FA0)) for _ in range(100)) for _ in range(3000)]
    bodies = texts + [texts[0][:50] + chr(0x4E00 + i) + texts[0][51:] for i in range(3000)]
    asked: list[int] = []
    bands = marks(*laid_out(bodies), "minhash", "bigram")
    found = find_twins_minhash(bands, sets_from(bodies, "bigram", asked), 0.85)
    assert (found.twin[:3000] == -1).all()
    assert (found.twin[3000:] == 0).all()
    assert set(asked) == {0, *range(3000, 6000)}
    assert len(asked) == 3001
