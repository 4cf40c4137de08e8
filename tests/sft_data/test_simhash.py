"""The SimHash of one text and of some together are those of preparation, and cost no compiler."""

import random
import subprocess
import sys
from pathlib import Path

import pytest

from sft_data.simhash import simhash, simhashes

ROOT = Path(__file__).resolve().parents[2]
WORD = (1 << 64) - 1


def slow_simhash(body: str) -> int:
    features = [ord(a) << 32 | ord(b) for a, b in zip(body, body[1:], strict=False)] or [ord(c) for c in body]
    ones = [0] * 64
    for x in features:
        x = (x + 0x9E3779B97F4A7C15) & WORD
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & WORD
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & WORD
        x ^= x >> 31
        for bit in range(64):
            ones[bit] += x >> bit & 1
    return sum(1 << bit for bit in range(64) if 2 * ones[bit] > len(features))


def bodies() -> list[str]:
    rng = random.Random(1)
    lengths = [rng.randrange(2, 300) for _ in range(40)]
    return ["字字", "𠀀😀x", "\0\0", *("".join(chr(rng.randrange(0x4E00, 0x5200)) for _ in range(n)) for n in lengths)]


@pytest.mark.parametrize("odd", [[], ["字"], ["", "字"], ["\ud800乙"], ["长" * 16_384], ["长" * 16_384 + "短"]])
def test_both_are_the_slow_one_bit_for_bit(odd):
    """A text without a pair, or one of more than a chunk, must not lead the others of its batch another way."""
    texts = bodies() + odd
    expected = [slow_simhash(text) for text in texts]
    assert [simhash(text) for text in texts] == expected
    assert simhashes(texts).tolist() == expected


@pytest.mark.parametrize("length", [16_384, 16_385, 16_386, 40_000])
def test_a_text_on_the_edge_of_a_chunk(length):
    rng = random.Random(length)
    body = "".join(chr(rng.randrange(0x4E00, 0x5200)) for _ in range(length))
    assert simhash(body) == slow_simhash(body)
    assert simhashes([body, "甲乙"]).tolist() == [slow_simhash(body), slow_simhash("甲乙")]


def test_of_nothing_there_is_nothing():
    assert simhashes([]).tolist() == []
    assert simhash("") == 0


def test_no_compiler_is_loaded():
    code = "import sys, sft_data.simhash; print([m for m in ('numba', 'xxhash', 'pyarrow') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
