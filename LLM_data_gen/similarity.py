"""How alike the questions of a run are, for the report.

similarity(questions, seed=0) -> dict       distinct_share, self_similarity and the most alike pairs
"""

import random
from collections.abc import Sequence

import numpy as np

from .near import NEAR_JACCARD, ODD, distinct

SAMPLE_ABOVE, SAMPLE = 2000, 250  # similarity() looks at all of so many questions; of more, at a sample
_BLOCK = 128  # questions at a time
_WORST = 10
_48 = np.uint64(48)


def similarity(questions: Sequence[str], seed: int = 0) -> dict:
    """How varied ``questions`` are, by the true Jaccard similarity of bigrams, of all of them or of a sample to all.

    distinct_share: share of the questions looked at that have no twin among those before them
    self_similarity: mean over the questions looked at of the highest similarity to any other question
    looked_at: how many these are; of more than SAMPLE_ABOVE a seeded sample
    worst_pairs: the most alike, [{"similarity", "question", "earlier"}]
    """
    n = len(questions)
    some = range(n) if n <= SAMPLE_ABOVE else sorted(random.Random(seed).sample(range(n), SAMPLE))
    met = [each for start in range(0, len(some), SAMPLE) for each in _closest(questions, some[start : start + SAMPLE])]
    pairs = {(max(i, j), min(i, j)): score for i, j, score, _ in met if score}
    worst = sorted(pairs, key=lambda pair: (-pairs[pair], pair))[:_WORST]
    return {
        "questions": n,
        "looked_at": len(met),
        "distinct_share": round(1 - sum(repeats for *_, repeats in met) / len(met), 4) if met else 1.0,
        "self_similarity": round(sum(score for _, _, score, _ in met) / len(met), 4) if met else 0.0,
        "worst_pairs": [
            {"similarity": round(pairs[i, j], 3), "question": questions[i], "earlier": questions[j]} for i, j in worst
        ],
    }


def _closest(questions: Sequence[str], some: Sequence[int]) -> list[tuple[int, int, float, bool]]:
    """Of each question in ``some``: (its index, that of the one most like it, their similarity, has an earlier twin)."""
    pairs, owners = distinct([questions[i] for i in some])
    words, places = np.unique(pairs, return_inverse=True)
    sizes = np.bincount(owners)
    count = np.uint8 if sizes.max(initial=0) <= 255 else np.uint32  # of bigrams in common
    has = np.zeros((len(words), -(-len(some) // 8) * 8), count)  # has[word, k]: question some[k] has it
    has[places, owners] = 1
    may_be_known = np.zeros(1 << 16, bool)  # nearly all bigrams are not, and to look a number up takes longer than this
    may_be_known[_mark(words)] = True
    sizes, some, each = sizes.astype(np.float32), np.array(some), np.arange(len(some))
    best, other, repeats = np.zeros(len(some)), np.zeros(len(some), np.int64), np.zeros(len(some), bool)
    for start in range(0, len(questions), _BLOCK):
        index = np.arange(start, min(start + _BLOCK, len(questions)))[:, None]
        shared, own = _shared(questions[start : start + _BLOCK], words, may_be_known, has)
        shared = shared[:, : len(some)]
        score = shared / (own[:, None] + sizes - shared)  # (block, some)
        score[index == some] = 0
        repeats |= ((score >= NEAR_JACCARD) & (index < some)).any(axis=0)
        top = score.argmax(axis=0)
        better = score[top, each] > best
        best[better], other[better] = score[top, each][better], start + top[better]
    return list(zip(some.tolist(), other.tolist(), best.tolist(), repeats.tolist(), strict=True))


def _shared(
    questions: Sequence[str], words: np.ndarray, may_be_known: np.ndarray, has: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """How many bigrams each has in common with each that ``has`` is of, (questions, some); and how many it has, (questions,)."""
    pairs, owners = distinct(questions)
    sizes = np.bincount(owners, minlength=len(questions)).astype(np.float32)
    may = np.flatnonzero(may_be_known[_mark(pairs)])
    pairs, owners = pairs[may], owners[may]
    places = np.minimum(np.searchsorted(words, pairs), len(words) - 1)
    known = words[places] == pairs
    asked, starts = np.unique(owners[known], return_index=True)
    shared = np.zeros((len(questions), has.shape[1]), np.float32)
    if len(asked):
        several = np.add.reduceat(has.view(np.uint64)[places[known]], starts, axis=0)  # counts in one addition
        shared[asked] = several.view(has.dtype)
    return shared, sizes


def _mark(pairs: np.ndarray) -> np.ndarray:
    """16 bits of each, spread (Fibonacci hashing)."""
    return (pairs * ODD >> _48).astype(np.int64)
