"""How sure a measured figure is: intervals from resampled records, and what a difference of two models allows to be said.

    resample(columns, seed) -> (resamples, columns)      sums of each column over records drawn with replacement
    interval(values, records) -> [low, high]             95 %, of a statistic of those sums
    wilson(hits, records) -> [low, high]                 95 %, of a share, where a bootstrap of all-equal records says nothing
    judge(interval, records, lower_is_better) -> Verdict

Models are compared on the same draws, so what makes a record hard for both cancels out. The percentiles are a little
wider than 2.5 and 97.5, after Hesterberg (2015): on few records plain percentiles hold the truth too seldom (of
10 records 88 %, expanded 93 %; tests/Firefly/component/test_bootstrap.py counts it).
"""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Literal

import numpy as np

LEVEL = 0.95
# With fewer, even all records on one side come about by chance more often than 1 in 20 (2 / 2**5), and the widest
# interval that draws can give holds the truth too seldom: of 2 records 50 %, of 3 77 %, of 5 91 %.
MIN_RECORDS = 6
_CHUNK = 1 << 22  # values gathered at a time

Verdict = Literal["better", "worse", "unclear", "few"]


def count_resamples(records: int) -> int:
    """How many draws: the far percentiles of few records need more of them, and cost less."""
    return 10_000 if records <= 500 else 2_000


def resample(columns: np.ndarray, seed: int) -> np.ndarray:
    """Sum each column over records drawn with replacement.

    Args:
        columns: (records, k) float64.

    Returns:
        (resamples, k) float64; the same seed and number of records give the same draws.
    """
    records, width = columns.shape
    rng = np.random.default_rng(seed)
    rows = max(1, _CHUNK // (records * width))
    parts = []
    for start in range(0, total := count_resamples(records), rows):
        drawn = rng.integers(0, records, (min(rows, total - start), records), dtype=np.int32)
        parts.append(np.stack([column[drawn].sum(1) for column in np.ascontiguousarray(columns.T)], 1))
    return np.concatenate(parts)


def interval(values: np.ndarray, records: int) -> list[float] | None:
    """The 95 % interval of a statistic over resamples of that many records; None of fewer than MIN_RECORDS.

    Args:
        values: (resamples,) float64.
    """
    if records < MIN_RECORDS:
        return None
    tail = NormalDist().cdf(-math.sqrt(records / (records - 1)) * _student(records - 1))
    return [round(float(x), 6) for x in np.quantile(values, [tail, 1 - tail])]


def _student(freedom: int) -> float:
    """The 97.5 % point of Student's t (Abramowitz and Stegun 26.7.5): off by 0.003 at 5 degrees of freedom."""
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + sum(term / freedom**i for i, term in enumerate(terms, 1))


def wilson(hits: int, records: int) -> list[float]:
    """The 95 % interval of a share: 16 of 16 is no proof of 100 %."""
    z2 = NormalDist().inv_cdf((1 + LEVEL) / 2) ** 2
    middle = (hits + z2 / 2) / (records + z2)
    reach = math.sqrt(z2 * (hits * (records - hits) / records + z2 / 4)) / (records + z2)
    return [round(max(0.0, middle - reach), 6), round(min(1.0, middle + reach), 6)]


def judge(bounds: Sequence[float] | None, records: int, lower_is_better: bool) -> Verdict:
    """What the interval of a difference (after - before) supports; an interval that holds 0 supports nothing."""
    if bounds is None or records < MIN_RECORDS:
        return "few"
    low, high = bounds
    if low <= 0 <= high:
        return "unclear"
    return "better" if (high < 0) == lower_is_better else "worse"


def pairs_to_compare(names: Sequence[str]) -> list[tuple[str, str]]:
    """(before, after) of every model against the first, then of each against the one before it."""
    first = [(names[0], name) for name in names[1:]]
    return first + [pair for pair in zip(names[1:], names[2:], strict=False) if pair not in first]
