"""SimHash over character bigrams (Charikar 2002) without the compiler that features.py needs: it starts at once.

    simhash(body) -> int                   64 bits; features.marks(..., "simhash", "bigram") gives the same ones
    simhashes(bodies) -> (n,) uint64       of many short bodies, in less than half the time of one by one
    mix(x) -> (n,) uint64                  the hash of each bigram

A body is a normalised text. A hash of a bigram is one to one: the two code points side by side, mixed.
"""

from collections.abc import Sequence

import numpy as np

_CHUNK = 1 << 14  # bigrams at a time: the bits of one chunk take 1 MB however long the text is
_STEPS = [(np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)), (np.uint64(27), np.uint64(0x94D049BB133111EB))]
_GOLDEN, _31, _32 = np.uint64(0x9E3779B97F4A7C15), np.uint64(31), np.uint64(32)


def simhash(body: str) -> int:
    """64-bit SimHash: bit b is set when more than half of the bigrams' hashes have it set.

    A body of one character counts as one feature; an empty one has signature 0.
    """
    code = _code_points(body)
    features = code[:-1] << _32 | code[1:] if len(code) > 1 else code
    ones = np.zeros(64, np.int64)
    for start in range(0, len(features), _CHUNK):
        ones += np.add.reduce(_bits(mix(features[start : start + _CHUNK])), axis=0, dtype=np.uint16)
    return int.from_bytes(np.packbits(ones > len(features) // 2, bitorder="little").tobytes(), "little")


def simhashes(bodies: Sequence[str]) -> np.ndarray:
    """The simhash of each, (n,) uint64; short ones are hashed together."""
    if not all(1 < len(body) <= _CHUNK for body in bodies):
        return np.array([simhash(body) for body in bodies], np.uint64)
    code = _code_points("".join(bodies))
    bits = _bits(mix(code[:-1] << _32 | code[1:]))  # one row too many between two bodies
    ones, half, start = np.empty((len(bodies), 64), np.uint16), [], 0
    for row, body in zip(ones, bodies, strict=True):
        np.add.reduce(bits[start : start + len(body) - 1], axis=0, dtype=np.uint16, out=row)
        half.append([(len(body) - 1) // 2])
        start += len(body)
    return np.packbits(ones > np.array(half).reshape(-1, 1), axis=1, bitorder="little").view(np.uint64)[:, 0]


def mix(x: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser (Steele, Lea, Flood 2014), elementwise over uint64; overflow wraps as it should."""
    x = x + _GOLDEN
    for shift, factor in _STEPS:
        x ^= x >> shift
        x *= factor
    x ^= x >> _31
    return x


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)


def _bits(x: np.ndarray) -> np.ndarray:
    """(n, 64) uint8: the bits of each, the lowest first."""
    return np.unpackbits(x.view(np.uint8).reshape(-1, 8), axis=1, bitorder="little")
