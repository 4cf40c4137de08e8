"""Exact join of 64-bit numbers by Hamming distance, compiled; dedup.py says what it is for.

    close_values(values, threshold, progress) -> (pairs, 2) uint64     all pairs of distinct values within threshold
    near_any(values, others, threshold) -> (n,) bool                   which values are within threshold of one of others

Pigeonhole (Manku, Jain, Das Sarma 2007): cut 64 bits into threshold + m blocks; two numbers that differ in at most
``threshold`` bits agree on at least m whole blocks, so grouping by every choice of m blocks meets every such pair.
A choice sorts by one block after the other, and the next one, in lexicographic order, begins where the two part.
"""

import itertools
import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numba
import numpy as np
from numba.extending import intrinsic

from .engine import run_here

_WIDEST = 16  # bits of a block: a counting sort's counters and the lines that it writes to stay in the cache
_SORT, _MEET, _PROBE = 8.0, 1.0, 8.0  # ns to sort a number by a block, to compare two, to find a number's group


class Blocks(NamedTuple):
    """lows, widths: (threshold + m,) uint64, where the blocks begin and their bits; choices: m of them at a time."""

    lows: np.ndarray
    widths: np.ndarray
    choices: list[tuple[int, ...]]

    def mask(self, chosen: Iterable[int]) -> np.uint64:
        return np.uint64(sum(((1 << int(self.widths[b])) - 1) << int(self.lows[b]) for b in chosen))


def blocks(threshold: int, cost: Callable[[float], float], most_bits: int = 64) -> Blocks:
    """The m that costs least: passes times ``cost`` of one, given the share of other numbers that a number will meet."""

    def total(m: int) -> float:
        bits = 64 // (threshold + m) * m if m else 0
        return math.comb(threshold + m, m) * cost(0.5**bits)

    def fits(m: int) -> bool:
        widest = -(-64 // (threshold + m)) if threshold + m else 64
        return not m or (widest <= _WIDEST and widest * m <= most_bits)

    m = min(filter(fits, range(10)), key=total)
    edges = [64 * i // (threshold + m) for i in range(threshold + m + 1)] if m else [0]
    lows = np.array(edges[:-1], np.uint64)
    return Blocks(lows, np.diff(np.array(edges, np.uint64)), list(itertools.combinations(range(len(lows)), m)))


def close_values(
    values: np.ndarray, threshold: int, progress: Callable[[list], Iterable] = list, run: Callable = run_here
) -> np.ndarray:
    """All pairs of ``values``, (n,) distinct uint64, that differ in at most ``threshold`` bits; each pair once.

    run: as engine.run; the choices that begin with the same block are a job, which needs 8 bytes a value for each block of
    a choice (two to four), and 16 a pair.
    """
    n = len(values)
    plan = blocks(threshold, lambda share: n * (_SORT + n * share * _MEET / 2))
    jobs = [(plan, threshold, list(group)) for _, group in itertools.groupby(plan.choices, lambda choice: choice[:1])]
    found = [pairs for _, pairs in run(_meet_all, progress(jobs), shared=values)]
    return np.concatenate([np.empty((0, 2), np.uint64), *found])


def _meet_all(job: tuple[Blocks, int, list[tuple[int, ...]]], values: np.ndarray) -> np.ndarray:
    plan, threshold, choices = job
    sizes = [_sizes(values, low, width) for low, width in zip(plan.lows, plan.widths, strict=True)]
    sorted_by = [values, *(np.empty_like(values) for _ in choices[0])]
    found, before = [], ()
    for choice in choices:
        same = next((i for i, (a, b) in enumerate(zip(before, choice, strict=False)) if a != b), 0)
        for i, block in enumerate(choice[same:], same):
            _sort_by(sorted_by[i], plan.lows[block], sizes[block].copy(), sorted_by[i + 1])
        left_out = [plan.mask([b]) for b in range(max(choice, default=0)) if b not in choice]
        found.append(_meet(sorted_by[-1], plan.mask(choice), np.array(left_out, np.uint64), threshold))
        before = choice
    return np.concatenate(found)


def near_any(values: np.ndarray, others: np.ndarray, threshold: int) -> np.ndarray:
    """values: (n,) uint64; others: few enough to sort in no time, uint64. Return (n,) bool."""
    near = np.zeros(len(values), bool)
    others = np.unique(others)
    plan = blocks(threshold, lambda share: _PROBE + len(others) * share * _MEET, most_bits=20)
    for choice in plan.choices:
        lows, widths = plan.lows[list(choice)], plan.widths[list(choice)]
        keys = _keys(others, lows, widths)
        starts = np.searchsorted(np.sort(keys), np.arange((1 << int(widths.sum())) + 1))
        _probe(values, lows, widths, others[np.argsort(keys)], starts, threshold, near)
    return near


@intrinsic
def _popcount(_context, x):
    def build(_context, builder, _signature, args):
        return builder.ctpop(args[0])

    return x(x), build


@numba.njit(cache=True, nogil=True)
def _sizes(values, low, width):
    """How many values have each number in the ``width`` bits from bit ``low`` on: the same in whatever order they are."""
    sizes = np.zeros(1 << np.int64(width), np.int64)
    mask = np.uint64(len(sizes) - 1)
    for x in values:
        sizes[(x >> low) & mask] += 1
    return sizes


@numba.njit(cache=True, nogil=True)
def _sort_by(values, low, sizes, out):
    """Counting sort, stable. A new array for each pass would cost as much again, in pages that nobody has touched."""
    mask, start = np.uint64(len(sizes) - 1), 0
    for i in range(len(sizes)):
        sizes[i], start = start, start + sizes[i]
    for x in values:
        key = (x >> low) & mask
        out[sizes[key]] = x
        sizes[key] += 1


@numba.njit(cache=True, nogil=True)
def _meet(values, mask, left_out, threshold):
    """Pairs of one group, but for those that agree on a left-out block too: an earlier choice has met them."""
    found, used, end = np.empty((64, 2), np.uint64), 0, 0
    for i in range(len(values)):
        x = values[i]
        if end <= i:
            end = i + 1
            while end < len(values) and not (values[end] ^ x) & mask:
                end += 1
        if end == i + 1 or not _count_close(x, values[i + 1 : end], threshold):
            continue
        for y in values[i + 1 : end]:
            if _popcount(x ^ y) > threshold or _agrees(x ^ y, left_out):
                continue
            if used == len(found):
                grown = np.empty((2 * used, 2), np.uint64)
                grown[:used] = found
                found = grown
            found[used, 0], found[used, 1] = x, y
            used += 1
    return found[:used].copy()


@numba.njit(cache=True, nogil=True)
def _count_close(x, others, threshold):
    """A loop of its own: it becomes vector code, and most records are close to none."""
    count = 0
    for y in others:
        count += _popcount(x ^ y) <= threshold
    return count


@numba.njit(cache=True, nogil=True)
def _agrees(difference, masks):
    agrees = False
    for mask in masks:
        agrees |= not difference & mask
    return agrees


@numba.njit(cache=True, nogil=True)
def _key(x, lows, widths):
    key, at = np.uint64(0), np.uint64(0)
    for b in range(len(lows)):
        key |= ((x >> lows[b]) & ((np.uint64(1) << widths[b]) - np.uint64(1))) << at
        at += widths[b]
    return np.int64(key)


@numba.njit(cache=True, nogil=True)
def _keys(values, lows, widths):
    keys = np.empty(len(values), np.int64)
    for i in range(len(values)):
        keys[i] = _key(values[i], lows, widths)
    return keys


@numba.njit(cache=True, nogil=True)
def _probe(values, lows, widths, others, starts, threshold, near):
    for i in range(len(values)):
        if near[i]:
            continue
        key = _key(values[i], lows, widths)
        for j in range(starts[key], starts[key + 1]):
            if _popcount(values[i] ^ others[j]) <= threshold:
                near[i] = True
                break
