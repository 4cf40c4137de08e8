"""Near duplicates by MinHash: candidates share a band (features.marks), the true Jaccard similarity decides.

find_twins_minhash(bands, body_of, minimum, features) -> Twins
"""

import functools
from collections.abc import Callable, Iterable

import numpy as np

from .dedup import Twins
from .features import feature_set, jaccard

# Three characters changed in a body of 100 leave 0.88, in one of 75 still 0.85. Of the 17 pairs of real records above it two
# were of another case (中臂型 and 下臂型, one character apart); from 0.8 to 0.85 there are more such.
RECOMMENDED_JACCARD = 0.85
_CACHED = 1 << 14  # feature sets kept at hand, of some 1.5 KB each


def find_twins_minhash(
    bands: np.ndarray,
    body_of: Callable[[int], str],
    minimum: float,
    features: str,
    progress: Callable[[list], Iterable] = list,
) -> Twins:
    """Drop, in order, each record for the earliest kept one that shares a band with it and is as alike as ``minimum``.

    Args:
        bands: (n, BANDS) uint32, as features.marks gives them.
        body_of: the normalised body of a record, asked for candidates only.
        minimum: least Jaccard similarity of the sets of ``features`` of two bodies.
        progress: wraps the list of records that share a band with any other, for a progress bar.
    A record is held against kept ones only, so a family costs its size, not the square of it.
    """
    n = len(bands)
    members, groups = _groups(bands)
    starts = np.searchsorted(members, np.arange(n + 1))
    candidates = np.unique(members)
    set_of = functools.lru_cache(_CACHED)(lambda i: feature_set(body_of(i), features))
    twin, distance = np.full(n, -1, np.int64), np.zeros(n, np.float32)
    kept_in: dict[int, list[int]] = {}
    for i in progress(candidates.tolist()):
        own = groups[starts[i] : starts[i + 1]].tolist()
        for j in sorted({j for group in own for j in kept_in.get(group, ())}):
            alike = jaccard(set_of(i), set_of(j), minimum)
            if alike >= minimum:
                twin[i], distance[i] = j, 1 - alike
                break
        else:
            for group in own:
                kept_in.setdefault(group, []).append(i)
    return Twins(twin, distance)


def _groups(bands: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Membership in groups of at least two records with the same key in a band, sorted by record: (record, group).

    Needs 8 bytes a record at a time beside the memberships: one band after the other.
    """
    members, groups, count = [np.empty(0, np.int64)], [np.empty(0, np.int64)], 0
    for band in range(bands.shape[1]):
        packed = bands[:, band].astype(np.uint64) << np.uint64(32) | np.arange(len(bands), dtype=np.uint64)
        packed.sort()
        keys = (packed >> np.uint64(32)).astype(np.uint32)
        same = keys[1:] == keys[:-1]
        shared = np.zeros(len(keys), bool)
        shared[1:] |= same
        shared[:-1] |= same
        rows, keys = packed[shared] & np.uint64(0xFFFFFFFF), keys[shared]
        group = np.cumsum(np.diff(keys, prepend=keys[:1]) != 0) + count
        count += len(group) and int(group[-1]) - count + 1
        members.append(rows.astype(np.int64))
        groups.append(group)
    members, groups = np.concatenate(members), np.concatenate(groups)
    order = np.argsort(members, kind="stable")
    return members[order], groups[order]
