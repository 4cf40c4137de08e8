"""What near-duplicates are compared by: the features of a body, and a mark of each record made of them.

    marks(bodies, spans, method, features) -> (n,) uint64 of SimHash, or (n, BANDS) uint32 of MinHash
    laid_out(bodies) -> (bodies, spans)                         bytes of each, as these functions take them
    feature_sets(bodies, spans, features) -> (values, ends)     sorted distinct uint64, for the true Jaccard similarity
    jaccard(a, b, minimum) -> float                             of two such sets

Features of a body, each of them a 64-bit hash (that of a bigram is one to one):

    bigram   two characters next to each other; a body of one character is one feature
    word     \\w+ of the words of jieba, HMM off, with a space between: 中文分词 is 中文 and 分词
    legacy   \\w+ of the text, as older runs did. It takes a whole Chinese clause as one word, so one edited character
             changes it

MinHash: Broder 1997; bands: Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, section 3.4. Two records of Jaccard
similarity s share a band with probability 1 - (1 - s ** ROWS) ** BANDS: 0.999 at 0.9, 0.98 at 0.85, 0.008 at 0.4, which
is what bigrams of any two English texts have.
"""

import functools
import itertools

import numba
import numpy as np

from .kernel import _decode

METHODS, FEATURES = ("simhash", "minhash"), ("bigram", "word", "legacy")
BANDS, ROWS = 12, 8
_CHUNK = 1 << 17  # bytes of bodies at a time: their features stay in the cache
_NONE = 0xFFFFFFFF


def marks(bodies: np.ndarray, spans: np.ndarray, method: str, features: str) -> np.ndarray:
    """bodies: UTF-8, uint8; spans: (n, 2) int64, where each normalised body lies in it. 8 bytes a record, or 48."""
    found = blank(len(spans), method)
    pieces = np.cumsum(spans[:, 1] - spans[:, 0]) // _CHUNK
    edges = [0, *(np.flatnonzero(np.diff(pieces)) + 1).tolist(), len(spans)]
    for start, end in itertools.pairwise(edges):
        hashes, ends = _hashes(bodies, spans[start:end], features)
        if method == "simhash":
            _simhashes(hashes, ends, found[start:end])
        else:
            _band_keys(hashes, ends, *_permutations(), found[start:end])
    return found


def laid_out(bodies: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Return them in one array, uint8, and (n, 2) int64, where each lies in it."""
    ends = np.cumsum(np.fromiter(map(len, bodies), np.int64, len(bodies)))
    return np.frombuffer(b"".join(bodies), np.uint8), np.stack([ends - np.diff(ends, prepend=0), ends], axis=1)


def blank(n: int, method: str) -> np.ndarray:
    """Marks of n records, not made yet."""
    return np.zeros(n, np.uint64) if method == "simhash" else np.zeros((n, BANDS), np.uint32)


def feature_sets(bodies: np.ndarray, spans: np.ndarray, features: str) -> tuple[np.ndarray, np.ndarray]:
    """The distinct hashes of each body's features, sorted: uint64, and (n,) int64, where those of each body end."""
    return _distinct_sets(*_hashes(bodies, spans, features))


@numba.njit(cache=True, nogil=True)
def jaccard(a, b, minimum=0.0):
    """|a & b| / |a | b| of two sorted sets, or 0 as soon as it cannot reach ``minimum``.

    Two empty ones are alike, as they are to SimHash.
    """
    i, j, both = 0, 0, 0
    need = minimum / (1 + minimum) * (len(a) + len(b)) - 1e-6  # of common features
    while i < len(a) and j < len(b):
        if both + min(len(a) - i, len(b) - j) < need:
            return 0.0
        both += a[i] == b[j]
        i, j = i + (a[i] <= b[j]), j + (b[j] <= a[i])
    either = len(a) + len(b) - both
    return both / either if either else 1.0


def _hashes(bodies: np.ndarray, spans: np.ndarray, features: str) -> tuple[np.ndarray, np.ndarray]:
    """The hashes of the features of all records, in order and with repeats, and (n,) int64, where each record's end."""
    if features == "word":
        bodies, spans = _in_words(bodies, spans)
    hashes = np.empty(int((spans[:, 1] - spans[:, 0]).sum()), np.uint64)
    ends = np.empty(len(spans), np.int64)
    if features == "bigram":
        n = _bigrams(bodies, spans, hashes, ends)
    else:
        n = _runs(bodies, spans, _word_characters(), hashes, ends)
    return hashes[:n], ends


def _in_words(bodies: np.ndarray, spans: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same bodies with a space between words. rjieba is jieba with HMM off, in Rust (3,000 of 3,000 texts equal)."""
    import rjieba

    texts = [bodies[start:end].tobytes().decode("utf-8", "surrogatepass") for start, end in spans.tolist()]
    texts = [text.encode("utf-8", "replace").decode() for text in texts]  # half a surrogate pair is nothing to Rust
    cut = [" ".join(rjieba.cut(text, False)).encode() for text in texts]
    ends = np.cumsum([0, *map(len, cut)])
    return np.frombuffer(b"".join(cut), np.uint8), np.stack([ends[:-1], ends[1:]], axis=1)


@functools.cache
def _word_characters() -> np.ndarray:
    """(0x110000,) bool: what \\w matches."""
    return np.array([chr(code).isalnum() or code == ord("_") for code in range(0x110000)])


@functools.cache
def _permutations() -> tuple[np.ndarray, np.ndarray]:
    """Odd factors and terms, (BANDS * ROWS,) uint32, of x -> factor * x + term modulo 2 ** 32."""
    drawn = np.random.Generator(np.random.PCG64(1)).integers(0, 1 << 32, (2, BANDS * ROWS), np.uint32)
    return drawn[0] | np.uint32(1), drawn[1]


@numba.njit(cache=True, nogil=True)
def _mix(x):
    """splitmix64's finaliser (Steele, Lea, Flood 2014), which is one to one."""
    x += np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@numba.njit(cache=True, nogil=True)
def _bigrams(bodies, spans, hashes, ends):
    n = 0
    for record in range(len(spans)):
        start, before, at = n, np.uint64(0), spans[record, 0]
        while at < spans[record, 1]:
            code, at = _decode(bodies, at)
            hashes[n] = before << np.uint64(32) | np.uint64(code)
            n, before = n + 1, np.uint64(code)
        if n > start + 1:  # the first one had nothing before it
            n -= 1
            for i in range(start, n):
                hashes[i] = hashes[i + 1]
        for i in range(start, n):
            hashes[i] = _mix(hashes[i])
        ends[record] = n
    return n


@numba.njit(cache=True, nogil=True)
def _runs(bodies, spans, inside, hashes, ends):
    """Hashes of runs of characters that are ``inside``, folded one by one; the character before a body is not."""
    n = 0
    for record in range(len(spans)):
        at, running, state = spans[record, 0], False, np.uint64(0)
        while at < spans[record, 1]:
            code, at = _decode(bodies, at)
            if inside[code]:
                state = _mix(state ^ np.uint64(code))
                running = True
            if running and (not inside[code] or at == spans[record, 1]):
                hashes[n] = state
                n, running, state = n + 1, False, np.uint64(0)
        ends[record] = n
    return n


@numba.njit(cache=True, nogil=True)
def _distinct_sets(hashes, ends):
    n, start, new_ends = 0, 0, np.empty_like(ends)
    for record in range(len(ends)):
        own, first = np.sort(hashes[start : ends[record]]), n
        start = ends[record]
        for x in own:
            if n == first or x != hashes[n - 1]:
                hashes[n] = x
                n += 1
        new_ends[record] = n
    return hashes[:n].copy(), new_ends


@numba.njit(cache=True, nogil=True)
def _band_keys(hashes, ends, factors, terms, found):
    start, least = 0, np.empty(len(factors), np.uint32)
    for record in range(len(ends)):
        _least_values(hashes[start : ends[record]], factors, terms, least)
        for band in range(found.shape[1]):
            key = np.uint64(0)
            for p in range(band * ROWS, (band + 1) * ROWS):
                key = _mix(key ^ np.uint64(least[p]))
            found[record, band] = np.uint32(key >> np.uint64(32))
        start = ends[record]


@numba.njit(cache=True, nogil=True)
def _least_values(hashes, factors, terms, least):
    """Of each permutation. Four features at a time (the last may come twice: it changes no minimum) spare half the time;
    comparisons, where min() would do, are what LLVM makes vector code of.
    """
    least[:], last = 0xFFFFFFFF, len(hashes) - 1
    for i in range(0, len(hashes), 4):
        x = np.uint32(hashes[i] >> np.uint64(32))
        y = np.uint32(hashes[min(i + 1, last)] >> np.uint64(32))
        z = np.uint32(hashes[min(i + 2, last)] >> np.uint64(32))
        w = np.uint32(hashes[min(i + 3, last)] >> np.uint64(32))
        for p in range(len(factors)):
            factor, term, m = factors[p], terms[p], least[p]
            a, b = np.uint32(np.uint32(factor * x) + term), np.uint32(np.uint32(factor * y) + term)
            c, d = np.uint32(np.uint32(factor * z) + term), np.uint32(np.uint32(factor * w) + term)
            a, c = b if b < a else a, d if d < c else c
            a = c if c < a else a
            least[p] = a if a < m else m


@numba.njit(cache=True, nogil=True)
def _simhashes(hashes, ends, found):
    start = 0
    for record in range(len(ends)):
        found[record] = _majority(hashes[start : ends[record]])
        start = ends[record]


@numba.njit(cache=True, nogil=True)
def _majority(x):
    """Which bits more than half of the numbers have. Bit b of ``planes[p]`` is bit p of the count of numbers with bit b:
    adding one is a few words' work for all 64 counts (Harley-Seal: Mula, Kurz, Lemire 2016), and so is comparing.
    """
    planes = np.zeros(40, np.uint64)
    ones, twos, fours = planes[0], planes[1], planes[2]
    i = 0
    while i + 8 <= len(x):
        ones, two_a = _add(ones, x[i], x[i + 1])
        ones, two_b = _add(ones, x[i + 2], x[i + 3])
        twos, four_a = _add(twos, two_a, two_b)
        ones, two_a = _add(ones, x[i + 4], x[i + 5])
        ones, two_b = _add(ones, x[i + 6], x[i + 7])
        twos, four_b = _add(twos, two_a, two_b)
        fours, carry = _add(fours, four_a, four_b)
        _ripple(planes, 3, carry)
        i += 8
    planes[0], planes[1], planes[2] = ones, twos, fours
    for rest in x[i:]:
        _ripple(planes, 0, rest)
    more, equal = np.uint64(0), ~np.uint64(0)
    for p in range(39, -1, -1):
        if (len(x) // 2 >> p) & 1:
            equal &= planes[p]
        else:
            more |= equal & planes[p]
            equal &= ~planes[p]
    return more


@numba.njit(cache=True, nogil=True)
def _add(a, b, c):
    """Sum and carry of three numbers of one bit, 64 at once."""
    u = a ^ b
    return u ^ c, (a & b) | (u & c)


@numba.njit(cache=True, nogil=True)
def _ripple(planes, p, carry):
    while carry:
        both = planes[p] & carry
        planes[p] ^= carry
        carry = both
        p += 1
