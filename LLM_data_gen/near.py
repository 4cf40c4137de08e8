"""Find the questions of a run that nearly repeat an earlier one.

    questions = Questions(texts)
    questions.expect(texts)                     those of some answers: what follows needs of them, in one go
    questions.twin(text) -> str | None          the earlier question that ``text`` nearly repeats
    questions.add(text)
    bigrams_of(text) -> set                     of the normalised text
    distinct(texts) -> (pairs, owners)          all their bigrams as numbers, none twice

A question is compared in its normalised form, and with those of all topics.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from sft_data.quality import normalise_all
from sft_data.simhash import bigrams, signatures

NEAR_BITS = 14  # and
NEAR_JACCARD = 0.65  # chosen by the table in Questions
_BLOCK = 256  # questions at a time when there are many
_PAIRS = 1 << 17  # pairs at a time: they and what is made of them stay in the cache
_MARKS = 1024  # bits in which a question leaves a mark for each of its bigrams
ODD = np.uint64(0x9E3779B97F4A7C15)  # spreads them (2**64 over the golden ratio)
_21, _32, _42, _54 = map(np.uint64, (21, 32, 42, 54))
_LOW, _PAIR = np.uint64((1 << 21) - 1), np.uint64((1 << 42) - 1)


class Questions:
    """The questions of a run, in the order in which they came; 144 bytes each beside the text.

    Candidates are all earlier questions within NEAR_BITS of the SimHash that preparation uses; twins are those that have
    NEAR_JACCARD of their bigrams in common. There is no index: 14 bits are too many for blocks that must be equal, and
    numpy compares one question with 6,000 in 10 us, with 60,000 in 100 us.

    Share found of 600 edited or reworded questions, in %, first of 800 of a teacher, then of 15,459 of Firefly's form (law
    and medicine, many from one mould); and how many real ones are dropped as twins of others:

                                  1 edit     2 edits    3 edits   rewordings   dropped
        SimHash alone, 6 bits     80,  62    49, 38     31, 25    16, 39       0,  68
        SimHash alone, 8 bits     95,  83    75, 60     57, 44    38, 53       0, 147
        12 bits and Jaccard 0.65  100, 99    97, 90     93, 79    74, 77       0, 231
        14 bits and Jaccard 0.65  100, 100   100, 96    97, 87    88, 86       0, 272
        16 bits and Jaccard 0.65  100, 100   100, 99    100, 92   93, 89       0, 290
        Jaccard 0.65, all pairs   100, 100   100, 100   100, 94   96, 92       0, 303

    Of 18 pairs read at 14 bits and 0.65 none was unrelated: most were one mould with a word or two changed (治疗方案 for
    症状), which is no variety either. SimHash alone at 6 bits also took two texts for one because both had rows of "?".
    """

    def __init__(self, texts: Iterable[str] = ()):
        self._texts = list(texts)
        self._known = _sketch([])  # of the first _sketched of them, and room for more
        self._sketched = 0
        self._places: dict[str, int] = {}
        self._prepare([])

    def __len__(self) -> int:
        return len(self._texts)

    def expect(self, texts: Sequence[str]) -> None:
        """Make ready what twin will need of ``texts``, whether or not they are asked about."""
        self._prepare(texts)
        n, asked = len(self), list(self._places)
        self._close = [[] for _ in asked]
        for i, j in _close_pairs(self._sketches, _Sketches(*(column[:n] for column in self._known))):
            self._close[i].append(self._texts[j])
        self._beside = [[] for _ in asked]
        for i, j in _close_pairs(self._sketches, self._sketches):
            self._beside[i].append(asked[j])

    def twin(self, text: str) -> str | None:
        """Return the earliest question that ``text`` nearly repeats, or None."""
        if self._close is None or text not in self._places:
            self.expect([text])
        i = self._places[text]
        candidates = self._close[i]
        if self._added and (beside := [other for other in self._beside[i] if other in self._added]):
            candidates = candidates + sorted(beside, key=self._added.get)
        mine = bigrams_of(text) if candidates else set()
        return next((other for other in candidates if _jaccard(mine, bigrams_of(other)) >= NEAR_JACCARD), None)

    def add(self, text: str) -> None:
        if text not in self._places:
            self._close = None
        self._added.setdefault(text, len(self))
        self._texts.append(text)

    def _prepare(self, texts: Sequence[str]) -> None:
        """Sketch ``texts``, once the sketches of those added since the last time are with the others."""
        new = self._texts[self._sketched :]
        if new and all(text in self._places for text in new):
            rows = [self._places[text] for text in new]
            self._keep(_Sketches(*(column[rows] for column in self._sketches)))
        for start in range(self._sketched, len(self), _BLOCK):
            self._keep(_sketch(self._texts[start : start + _BLOCK]))
        self._places = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        self._sketches = _sketch(list(self._places))
        self._close = self._beside = None  # not looked for yet
        self._added: dict[str, int] = {}  # since then: text -> when

    def _keep(self, sketches: "_Sketches") -> None:
        start, self._sketched = self._sketched, self._sketched + len(sketches.size)
        if self._sketched > len(self._known.size):
            self._known = _Sketches(*(_longer(column, max(1024, 2 * self._sketched)) for column in self._known))
        for known, column in zip(self._known, sketches, strict=True):
            known[start : self._sketched] = column


class _Sketches(NamedTuple):
    """Of some questions. signature: (n,) uint64; marks: (n, 16) uint64, a bit for each bigram; marked and size: (n,) int32, how
    many bits are set and how many bigrams there are.
    """

    signature: np.ndarray
    marks: np.ndarray
    marked: np.ndarray
    size: np.ndarray


def _sketch(texts: Sequence[str]) -> _Sketches:
    pairs, starts = bigrams(_bodies(texts))
    once, owners = _once(pairs, starts)
    bits = np.zeros((len(texts), _MARKS), bool)
    bits[owners, (once * ODD >> _54).astype(np.int64)] = True
    marks = np.packbits(bits, axis=1).view(np.uint64)
    size = np.bincount(owners, minlength=len(texts)).astype(np.int32)
    return _Sketches(signatures(pairs, starts), marks, _ones(marks), size)


def _close_pairs(some: _Sketches, others: _Sketches) -> Iterator[tuple[int, int]]:
    """Yield (i, j), j rising for each i, of all that are within NEAR_BITS of each other and may be twins."""
    width = max(1, _PAIRS // max(1, len(some.size)))
    for start in range(0, len(others.size), width):
        differing = np.bitwise_count(some.signature[:, None] ^ others.signature[start : start + width])
        near = np.flatnonzero(differing <= NEAR_BITS)
        for at in range(0, len(near), _PAIRS // 16):
            i, j = np.divmod(near[at : at + _PAIRS // 16], differing.shape[1])
            may = _may_be_twins(some, i, others, j + start)
            yield from zip(i[may].tolist(), (j[may] + start).tolist(), strict=True)


def _may_be_twins(some: _Sketches, i: np.ndarray, others: _Sketches, j: np.ndarray) -> np.ndarray:
    """(pairs,) bool. Two share no more bigrams than marks, and those that found a mark taken; of many questions from one mould
    this leaves few to be looked at one by one.
    """
    shared = _ones(some.marks[i] & others.marks[j])
    shared += np.minimum(some.size[i] - some.marked[i], others.size[j] - others.marked[j])
    return shared / (some.size[i] + others.size[j] - shared) >= NEAR_JACCARD


def _ones(marks: np.ndarray) -> np.ndarray:
    return np.bitwise_count(marks).sum(axis=1, dtype=np.int32)


def _longer(column: np.ndarray, n: int) -> np.ndarray:
    longer = np.empty((n, *column.shape[1:]), column.dtype)
    longer[: len(column)] = column
    return longer


def distinct(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The bigrams of each text as numbers, none twice, (m,) uint64, and whose they are, (m,) int64, rising."""
    return _once(*bigrams(_bodies(texts)))


def _once(pairs: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """No code point has more than 21 bits: with its owner a pair fits into a number, and numbers are sorted fast."""
    owners = np.repeat(np.arange(len(starts), dtype=np.uint64), np.append(starts[1:], len(pairs)) - starts)
    keys = np.sort(owners << _42 | pairs >> _32 << _21 | pairs & _LOW)
    keys = keys[np.append(True, keys[1:] != keys[:-1])[: len(keys)]]
    return keys & _PAIR, (keys >> _42).astype(np.int64)


def bigrams_of(text: str) -> set[str]:
    (body,) = _bodies([text])
    return {body[i : i + 2] for i in range(len(body) - 1)}


def _bodies(texts: Sequence[str]) -> list[str]:
    """Normalised, and of two characters at least."""
    return [text.ljust(2, "\0") for text in normalise_all(texts)]


def _jaccard(a: set[str], b: set[str]) -> float:
    shared = len(a & b)
    return shared / (len(a) + len(b) - shared)
