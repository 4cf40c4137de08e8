"""Near duplicates by MinHash: candidates share a band (features.marks), the true Jaccard similarity decides.

find_twins_minhash(bands, sets_of, minimum) -> Twins
"""

from collections.abc import Callable, Iterable

import numba
import numpy as np

from .dedup import Twins
from .engine import run_here
from .features import jaccard

# Three characters changed in a body of 100 leave 0.88, in one of 75 still 0.85. Of the 17 pairs of real records above it two
# were of another case (中臂型 and 下臂型, one character apart); from 0.8 to 0.85 there are more such.
RECOMMENDED_JACCARD = 0.85
_CHUNK = 4096  # candidates settled at a time: their sets, and those of the kept ones they may equal, are read together


def find_twins_minhash(
    bands: np.ndarray,
    sets_of: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    minimum: float,
    progress: Callable[[list], Iterable] = list,
    run: Callable = run_here,
) -> Twins:
    """Drop, in order, each record for the earliest kept one that shares a band with it and is as alike as ``minimum``.

    Args:
        bands: (n, BANDS) uint32, as features.marks gives them.
        sets_of: features.feature_sets of the records of these indices; asked for candidates only.
        minimum: least Jaccard similarity of the sets of features of two bodies.
        progress: wraps the list of chunks of records that share a band with any other, for a progress bar.
        run: as engine.run; to group by a band is a job.
    A record is held against kept ones only, so a family costs its size, not the square of it.
    """
    twin, distance = np.full(len(bands), -1, np.int64), np.zeros(len(bands), np.float32)
    members, groups = _groups(bands, run)
    by_group = members[np.argsort(groups, kind="stable")]  # ascending in each group
    ends = np.cumsum(np.bincount(groups, minlength=1))
    candidates, starts = np.unique(members, return_index=True)
    starts = np.append(starts, len(members))
    asked = np.zeros(len(bands), bool)
    for first in progress(list(range(0, len(candidates), _CHUNK))):
        chunk, places = candidates[first : first + _CHUNK], starts[first : first + _CHUNK + 1]
        own = np.unique(groups[places[0] : places[-1]])
        _mark_kept(own, by_group, ends, chunk[-1], twin, asked)
        needed = np.flatnonzero(asked)
        asked[needed] = False
        _settle(chunk, places, groups, by_group, ends, needed, *sets_of(needed), minimum, twin, distance)
    return Twins(twin, distance)


@numba.njit(cache=True, nogil=True)
def _mark_kept(own, by_group, ends, last, twin, asked):
    """Mark the members of these groups, up to ``last``, that are not dropped so far."""
    for group in own:
        for place in range(ends[group - 1] if group else 0, ends[group]):
            j = by_group[place]
            if j > last:
                break
            asked[j] |= twin[j] < 0


@numba.njit(cache=True, nogil=True)
def _settle(chunk, places, groups, by_group, ends, needed, values, value_ends, minimum, twin, distance):
    for c in range(len(chunk)):
        i, best, least = chunk[c], chunk[c], 0.0
        at = np.searchsorted(needed, i)
        mine = values[value_ends[at - 1] if at else 0 : value_ends[at]]
        for place in range(places[c], places[c + 1]):
            group = groups[place]
            for other in range(ends[group - 1] if group else 0, ends[group]):
                j = by_group[other]
                if j >= best:  # an earlier one was found, or this is the record itself
                    break
                if twin[j] >= 0:
                    continue
                at = np.searchsorted(needed, j)
                alike = jaccard(mine, values[value_ends[at - 1] if at else 0 : value_ends[at]], minimum)
                if alike >= minimum:
                    best, least = j, 1 - alike
        if best < i:
            twin[i], distance[i] = best, least


def _groups(bands: np.ndarray, run: Callable) -> tuple[np.ndarray, np.ndarray]:
    """Membership in groups of at least two records with the same key in a band, sorted by record: (record, group)."""
    members, groups, count = [np.empty(0, np.int64)], [np.empty(0, np.int64)], 0
    for _, (rows, group) in run(_groups_of_band, range(bands.shape[1]), shared=bands):
        members.append(rows)
        groups.append(group + count)
        count += int(group.max(initial=-1)) + 1
    members, groups = np.concatenate(members), np.concatenate(groups)
    order = np.argsort(members, kind="stable")
    return members[order], groups[order]


def _groups_of_band(band: int, bands: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Needs 8 bytes a record beside the memberships."""
    packed = bands[:, band].astype(np.uint64) << np.uint64(32) | np.arange(len(bands), dtype=np.uint64)
    packed.sort()
    keys = (packed >> np.uint64(32)).astype(np.uint32)
    same = keys[1:] == keys[:-1]
    shared = np.zeros(len(keys), bool)
    shared[1:] |= same
    shared[:-1] |= same
    rows, keys = packed[shared] & np.uint64(0xFFFFFFFF), keys[shared]
    return rows.astype(np.int64), np.cumsum(np.diff(keys, prepend=keys[:1]) != 0)
