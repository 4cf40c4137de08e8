"""SimHash over character bigrams (Charikar 2002) without the compiler that features.py needs: it starts at once.

    simhash(body) -> int                       64 bits; features.marks(..., "simhash", "bigram") gives the same ones
    simhashes(bodies) -> (n,) uint64           of many short bodies, at a tenth of the time of one by one
    bigrams(bodies) -> (pairs, starts)         all their bigrams as numbers, one body after the other
    signatures(pairs, starts) -> (n,) uint64   what simhashes makes of them
    mix(x) -> (n,) uint64                      the hash of each bigram
    code_points(text) -> (n,) uint32

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
    code = code_points(body).astype(np.uint64)
    features = code[:-1] << _32 | code[1:] if len(code) > 1 else code
    ones = np.zeros(64, np.int64)
    for start in range(0, len(features), _CHUNK):
        ones += np.add.reduce(_bits(mix(features[start : start + _CHUNK])), axis=0, dtype=np.uint16)
    return int.from_bytes(np.packbits(ones > len(features) // 2, bitorder="little").tobytes(), "little")


def simhashes(bodies: Sequence[str]) -> np.ndarray:
    """The simhash of each, (n,) uint64; short ones are hashed together."""
    if not all(1 < len(body) <= _CHUNK for body in bodies):
        return np.array([simhash(body) for body in bodies], np.uint64)
    return signatures(*bigrams(bodies))


def bigrams(bodies: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """All bigrams, two code points in 64 bits each, (m,) uint64; where those of each body start, (n,) int64.

    A body has two characters at least.
    """
    code = code_points("".join(bodies)).astype(np.uint64)
    ends = np.cumsum(np.fromiter(map(len, bodies), np.int64, len(bodies)))
    within = np.ones(max(0, len(code) - 1), bool)
    within[ends[:-1] - 1] = False  # where one body ends and the next one begins
    return (code[:-1] << _32 | code[1:])[within], np.append(0, ends[:-1] - np.arange(1, len(ends)))[: len(ends)]


def signatures(pairs: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """(n,) uint64. Of bodies of 255 bigrams or less the bits are counted in lanes of a byte, eight in one addition."""
    if not len(starts):
        return np.zeros(0, np.uint64)
    hashes, sizes = mix(pairs), np.append(starts[1:], len(pairs)) - starts
    if sizes.max() <= 255:
        by_byte = np.ascontiguousarray(hashes.view(np.uint8).reshape(-1, 8).T)
        lanes = np.unpackbits(by_byte, bitorder="little").view(np.uint64).reshape(8, -1)
        ones = np.ascontiguousarray(np.add.reduceat(lanes, starts, axis=1).T).view(np.uint8)
    else:
        ones = np.add.reduceat(_bits(hashes), starts, axis=0, dtype=np.uint32)
    return np.packbits(ones > sizes[:, None] // 2, axis=1, bitorder="little").view(np.uint64)[:, 0]


def mix(x: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser (Steele, Lea, Flood 2014), elementwise over uint64; overflow wraps as it should."""
    x = x + _GOLDEN
    for shift, factor in _STEPS:
        x ^= x >> shift
        x *= factor
    x ^= x >> _31
    return x


def code_points(text: str) -> np.ndarray:
    """(characters,) uint32."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def _bits(x: np.ndarray) -> np.ndarray:
    """(n, 64) uint8: the bits of each, the lowest first."""
    return np.unpackbits(x.view(np.uint8).reshape(-1, 8), axis=1, bitorder="little")
