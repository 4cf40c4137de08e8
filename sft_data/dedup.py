"""Find exact and near duplicates.

    fingerprint(body) -> bytes                       128 bits of a body in UTF-8; equal for equal normalised bodies
    find_twins(signatures, threshold) -> Twins       of each record the earlier kept one that it is dropped for
    close_pairs(signatures, threshold) -> pairs      all pairs within threshold
    neighbours(signatures, others, threshold) -> bool   which are within threshold of any of others

``body`` is the normalised text of all fields without any template: words of the template are in every record and
would pull all signatures together. SimHash is in simhash.py (features.py for many), MinHash in minhash.py, the join by distance in
hamming.py.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numba
import numpy as np
import xxhash

from .engine import run_here
from .hamming import close_values, near_any

# --near-dup alone; benchmarks/bench_near_dup.py measures the choices. Of edits of 1-3 characters SimHash finds 94-97 % at 6
# bits, and 97-99 % at 7, but there it drops other texts too (6 in 10,000 real ones); MinHash finds all and drops none.
RECOMMENDED_METHOD, RECOMMENDED_FEATURES = "minhash", "bigram"
RECOMMENDED_BITS = 6  # of --near-dup-method simhash
MAX_THRESHOLD = 12


class Twins(NamedTuple):
    """Of each of n records, in order of preference.

    twin: (n,) int64, index of the earlier kept record that it is dropped for; -1: it is kept
    distance: (n,) float32, how far apart the two are: bits of SimHash, or 1 - Jaccard; 0 for a kept one
    """

    twin: np.ndarray
    distance: np.ndarray


def fingerprint(body: bytes) -> bytes:
    """128-bit XXH3 of the body in UTF-8; among a billion records a false match has probability 1e-21."""
    return xxhash.xxh3_128_digest(body)


def fingerprints(bodies: np.ndarray, spans: np.ndarray) -> np.ndarray:
    """(n, 2) uint64: that of each body; bodies: UTF-8, uint8; spans: (n, 2) int64, where each lies in it."""
    memory = memoryview(bodies)
    prints = [xxhash.xxh3_128_digest(memory[start:end]) for start, end in spans.tolist()]
    return np.frombuffer(b"".join(prints), np.uint64).reshape(-1, 2)


def find_twins(
    signatures: Sequence[int] | np.ndarray,
    threshold: int,
    progress: Callable[[list], Iterable] = list,
    run: Callable = run_here,
) -> Twins:
    """Drop, in order, each record within ``threshold`` bits of an earlier kept one: of those, for the earliest.

    Args:
        signatures: (n,) uint64, in order of preference.
        threshold: 0 to MAX_THRESHOLD bits.
        progress: wraps the list of passes, for a progress bar.
        run: as engine.run; the passes are jobs.
    The first of each family stays; being close to a dropped record drops nothing.
    """
    signatures = np.asarray(signatures, dtype=np.uint64)
    later, earlier = close_pairs(signatures, threshold, progress, run)
    twin = np.full(len(signatures), -1, np.int64)
    _drop(later, earlier, signatures, twin)
    dropped = np.flatnonzero(twin >= 0)
    distance = np.zeros(len(signatures), np.float32)
    distance[dropped] = np.bitwise_count(signatures[dropped] ^ signatures[twin[dropped]])
    return Twins(twin, distance)


def close_pairs(
    signatures: Sequence[int] | np.ndarray,
    threshold: int,
    progress: Callable[[list], Iterable] = list,
    run: Callable = run_here,
) -> tuple[np.ndarray, np.ndarray]:
    """All pairs (later, earlier) within ``threshold`` bits, as two arrays of indices sorted by later, then earlier.

    Of equal signatures the first stands for all: its copies are paired with it and with nothing else.
    """
    signatures = np.asarray(signatures, dtype=np.uint64)
    order = np.argsort(signatures, kind="stable")
    ordered = signatures[order]
    new = np.ones(len(order), bool)
    new[1:] = ordered[1:] != ordered[:-1]
    values, first = ordered[new], order[new]
    del ordered
    copies = order[~new]
    packed = [copies << 32 | first[np.cumsum(new)[~new] - 1]]  # an index has at most 31 bits
    del order
    if threshold:
        pairs = first[np.searchsorted(values, close_values(values, threshold, progress, run))]
        packed.append(pairs.max(axis=1) << 32 | pairs.min(axis=1))
    packed = np.sort(np.concatenate(packed))
    return packed >> 32, packed & 0xFFFFFFFF


def neighbours(signatures: np.ndarray, others: np.ndarray, threshold: int) -> np.ndarray:
    """(n,) bool: True where a signature is within ``threshold`` bits of one of ``others``, some 100,000 at most."""
    return near_any(np.asarray(signatures, np.uint64), np.asarray(others, np.uint64), threshold)


@numba.njit(cache=True, nogil=True)
def _drop(later, earlier, signatures, twin):
    """Pairs are sorted, so whether ``earlier`` is kept is settled before it is asked; a copy goes where its first went."""
    for p in range(len(later)):
        i, j = later[p], earlier[p]
        if twin[i] < 0 and twin[j] < 0:
            twin[i] = j
        elif signatures[i] == signatures[j]:
            twin[i] = twin[j]
