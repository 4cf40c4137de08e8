"""Each vectorised routine is held against a slow version that is obviously right."""

import random

import numpy as np
import pytest

from sft_data.dedup import MAX_THRESHOLD, close_pairs, find_twins, fingerprint, neighbours
from sft_data.hamming import blocks
from sft_data.simhash import simhash


def near_duplicates(signatures, threshold: int) -> np.ndarray:
    return find_twins(signatures, threshold).twin >= 0


def slow_twins(signatures: list[int], threshold: int) -> list[int]:
    kept, twins = [], []
    for i, signature in enumerate(signatures):
        twin = next((j for j in kept if (signature ^ signatures[j]).bit_count() <= threshold), -1)
        twins.append(twin)
        if twin < 0:
            kept.append(i)
    return twins


def random_text(rng: random.Random, length: int) -> str:
    return "".join(chr(rng.randrange(0x4E00, 0x5200)) for _ in range(length))


def test_an_edited_text_is_close_and_another_is_far():
    rng = random.Random(3)
    for _ in range(20):
        text = random_text(rng, 600)
        edited = text[:300] + "改" + text[301:]
        assert (simhash(text) ^ simhash(edited)).bit_count() <= 6
        assert (simhash(text) ^ simhash(random_text(rng, 600))).bit_count() > 12


def test_fingerprint_is_128_bits_of_the_text():
    assert len(fingerprint("甲".encode())) == 16
    assert fingerprint("甲".encode()) == fingerprint("甲".encode()) != fingerprint("乙".encode())


def flipped(rng: random.Random, signature: int, bits: int) -> int:
    for bit in rng.sample(range(64), bits):
        signature ^= 1 << bit
    return signature


def families(rng: random.Random, size: int, threshold: int) -> list[int]:
    """At every distance around the threshold, chains and equal ones among them."""
    signatures: list[int] = []
    for _ in range(size):
        if signatures and rng.random() < 0.6:
            signatures.append(flipped(rng, rng.choice(signatures), rng.randrange(threshold + 3)))
        else:
            signatures.append(rng.getrandbits(64))
    return signatures


@pytest.mark.parametrize("threshold", [0, 1, 2, 3, 6, 9, MAX_THRESHOLD])
def test_twins_and_pairs_are_those_of_brute_force(threshold):
    rng = random.Random(threshold)
    for size in (0, 1, 2, 60, 700):
        signatures = families(rng, size, threshold)
        expected = slow_twins(signatures, threshold)
        found = find_twins(signatures, threshold)
        assert found.twin.tolist() == expected
        for i, j in enumerate(expected):
            assert found.distance[i] == ((signatures[i] ^ signatures[j]).bit_count() if j >= 0 else 0)
        assert near_duplicates(signatures, threshold).tolist() == [j >= 0 for j in expected]
        pairs = [pair.tolist() for pair in close_pairs(signatures, threshold)]
        assert list(zip(*pairs, strict=True)) == slow_pairs(signatures, threshold)


def slow_pairs(signatures: list[int], threshold: int) -> list[tuple[int, int]]:
    first = {x: i for i, x in reversed(list(enumerate(signatures)))}
    pairs = []
    for i, x in enumerate(signatures):
        if first[x] != i:
            pairs.append((i, first[x]))
            continue
        pairs += [
            (i, j) for j in range(i) if first[signatures[j]] == j and (x ^ signatures[j]).bit_count() <= threshold
        ]
    return pairs


@pytest.mark.parametrize(("threshold", "size"), [(1, 60_000), (3, 60_000), (6, 60_000), (8, 8_000), (12, 700)])
def test_planted_pairs_are_found_whatever_the_blocks(threshold, size):
    """At these sizes a choice of several blocks is the cheapest; random numbers are far apart but for planted ones."""
    rng = random.Random(size + threshold)
    signatures = [rng.getrandbits(64) for _ in range(size)]
    planted = []
    for i in range(0, size, 40):
        distance = rng.randrange(threshold + 4)
        signatures.append(flipped(rng, signatures[i], distance))
        planted.append(i if distance <= threshold else -1)
    assert find_twins(signatures[:size], threshold).twin.max() == -1
    assert find_twins(signatures, threshold).twin[size:].tolist() == planted


def test_progress_sees_every_pass():
    passes = []
    rng = random.Random(4)
    signatures = [rng.getrandbits(64) for _ in range(20_000)]
    find_twins(signatures, 3, lambda todo: (passes.append(len(todo)), todo)[1])
    assert passes[0] > 1


@pytest.mark.parametrize("threshold", [0, 1, 3, 6, 9, MAX_THRESHOLD])
def test_neighbours_are_those_of_brute_force(threshold):
    rng = random.Random(threshold + 100)
    others = families(rng, 500, threshold)
    signatures = [flipped(rng, rng.choice(others), rng.randrange(threshold + 5)) for _ in range(600)]
    signatures += [rng.getrandbits(64) for _ in range(600)]
    expected = [any((x ^ y).bit_count() <= threshold for y in others) for x in signatures]
    assert neighbours(signatures, others, threshold).tolist() == expected
    assert not neighbours(signatures, [], threshold).any()
    assert len(neighbours([], others, threshold)) == 0


def test_the_first_stays_and_closeness_to_a_dropped_one_drops_nothing():
    a = 0
    b, c = 0b11, 0b1111  # b is 2 from a, c is 2 from b and 4 from a
    assert near_duplicates([a, b, c], 2).tolist() == [False, True, False]
    assert near_duplicates([b, a, c], 2).tolist() == [False, True, True]
    assert near_duplicates([a, b, c, c, b], 2).tolist() == [False, True, False, True, True]


@pytest.mark.parametrize("threshold", [1, 3, 6, 12])
@pytest.mark.parametrize("n", [10, 20_000, 1_000_000])
def test_no_pair_within_the_threshold_can_hide_from_the_blocks(threshold, n):
    plan = blocks(threshold, lambda share: n * (1 + n * share))
    masks = [plan.mask(choice) for choice in plan.choices]
    assert len(set(masks)) == len(masks)
    rng = random.Random(n + threshold)
    for _ in range(300):
        difference = np.uint64(flipped(rng, 0, threshold))
        assert any(not (difference & mask) for mask in masks)


def test_a_large_family_costs_no_quadratic_memory():
    signatures = [flipped(random.Random(i), 0, 1) for i in range(30_000)]  # 64 distinct values
    assert len(close_pairs(signatures, 3)[0]) < 35_000
    drop = near_duplicates(signatures, 3)
    assert drop.sum() == len(signatures) - 1
    assert not drop[0]
