"""Each vectorised routine is held against a slow version that is obviously right."""

import random

import numpy as np
import pytest

from sft_data.dedup import MAX_THRESHOLD, _block_masks, fingerprint, near_duplicates, simhash

MASK = (1 << 64) - 1


def slow_simhash(body: str) -> int:
    features = [ord(a) << 32 | ord(b) for a, b in zip(body, body[1:], strict=False)] or [ord(c) for c in body]
    ones = [0] * 64
    for x in features:
        x = (x + 0x9E3779B97F4A7C15) & MASK
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
        x ^= x >> 31
        for bit in range(64):
            ones[bit] += x >> bit & 1
    return sum(1 << bit for bit in range(64) if 2 * ones[bit] > len(features))


def slow_near_duplicates(signatures: list[int], threshold: int) -> list[bool]:
    kept, drop = [], []
    for signature in signatures:
        close = any((signature ^ other).bit_count() <= threshold for other in kept)
        drop.append(close)
        if not close:
            kept.append(signature)
    return drop


def random_text(rng: random.Random, length: int) -> str:
    return "".join(chr(rng.randrange(0x4E00, 0x5200)) for _ in range(length))


def test_simhash_is_the_slow_one_bit_for_bit():
    rng = random.Random(1)
    bodies = ["", "字", "字字", "𠀀😀x", *(random_text(rng, rng.randrange(1, 400)) for _ in range(50))]
    for body in bodies:
        assert simhash(body) == slow_simhash(body)


def test_simhash_of_a_text_longer_than_one_chunk():
    body = random_text(random.Random(2), 40_000)
    assert simhash(body) == slow_simhash(body)


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


@pytest.mark.parametrize("threshold", [0, 1, 3, 6, 9, MAX_THRESHOLD])
def test_near_duplicates_are_those_of_brute_force(threshold):
    rng = random.Random(threshold)
    for size in (0, 1, 2, 60, 700):
        signatures: list[int] = []
        for _ in range(size):  # families at every distance around the threshold, chains and equal ones among them
            if signatures and rng.random() < 0.6:
                signatures.append(flipped(rng, rng.choice(signatures), rng.randrange(threshold + 3)))
            else:
                signatures.append(rng.getrandbits(64))
        expected = slow_near_duplicates(signatures, threshold)
        assert near_duplicates(signatures, threshold).tolist() == expected


def test_the_first_stays_and_closeness_to_a_dropped_one_drops_nothing():
    a = 0
    b, c = 0b11, 0b1111  # b is 2 from a, c is 2 from b and 4 from a
    assert near_duplicates([a, b, c], 2).tolist() == [False, True, False]
    assert near_duplicates([b, a, c], 2).tolist() == [False, True, True]
    assert near_duplicates([a, b, c, c, b], 2).tolist() == [False, True, False, True, True]


@pytest.mark.parametrize("threshold", [1, 3, 6, 12])
@pytest.mark.parametrize("n", [10, 20_000, 1_000_000])
def test_no_pair_within_the_threshold_can_hide_from_the_blocks(threshold, n):
    masks = _block_masks(n, threshold)
    assert len(set(masks)) == len(masks)
    rng = random.Random(n + threshold)
    for _ in range(300):
        difference = np.uint64(flipped(rng, 0, threshold))
        assert any(not (difference & mask) for mask in masks)


def test_a_large_family_costs_no_quadratic_memory():
    signatures = [flipped(random.Random(i), 0, 1) for i in range(30_000)]  # 64 distinct values
    drop = near_duplicates(signatures, 3)
    assert drop.sum() == len(signatures) - 1
    assert not drop[0]
