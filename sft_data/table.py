"""All records of all sources as columns, in order of preference: where each lies, and what became of it.

At every moment a record is kept (code 0) or dropped for one reason; ``counts`` proves it for the report.
"""

from typing import Any, NamedTuple

import numpy as np

from .blocks import Text, name_place
from .reasons import DUPLICATE, IN_OUT, NEAR_DUPLICATE, REASONS
from .scan import Found, Job


class File(NamedTuple):
    """A file of a source: ``path`` as the user gave it, ``text`` where its records, of this kind, can be read."""

    source: str
    kind: str
    path: str
    text: Text

    def where(self, number: int) -> str:
        return name_place(self.path, number, self.text.is_array)


class Table:
    """Columns, complete after ``close``; n records, of which p passed the gates.

    codes: (n,) uint8, index into REASONS; file: (n,) uint16; start: (n,) int64; size, number: (n,) uint32
    lengths: (n, 3) uint16, characters of instruction, input and output; rough: (n,) bool, may hold zero-width characters
    passed: (p,) int64, rows of those that passed; prints: (p, 2) uint64; marks: a list of (p, ...) uint64
    twin: (p,) int64, of a duplicate the index among the p of the one kept for it, else -1; distance: (p,) float32
    """

    def __init__(self) -> None:
        self.files: list[File] = []
        self.bad: dict[str, list[str]] = {}  # messages of the first five unreadable records of each source
        self._parts: list[tuple] = []

    def add(self, file: int, job: Job, numbers: np.ndarray, found: Found) -> None:
        n = len(found.codes)
        sizes = (job.ends[:n] - job.starts[:n]).astype(np.uint32)
        self._parts.append(
            (found, np.full(n, file, np.uint16), job.base + job.starts[:n], sizes, numbers[:n].astype(np.uint32))
        )

    def close(self) -> "Table":
        founds, *columns = zip(*self._parts, strict=True) if self._parts else ((), (), (), (), ())
        self._parts = []
        dtypes = (np.uint16, np.int64, np.uint32, np.uint32)
        self.file, self.start, self.size, self.number = map(_joined, columns, dtypes)
        self.codes = _joined([found.codes for found in founds], np.uint8)
        self.lengths = _joined([found.lengths for found in founds], np.uint16, (0, 3))
        self.rough = _joined([found.rough for found in founds], bool)
        self.prints = _joined([found.prints for found in founds], np.uint64, (0, 2))
        self.marks = [np.concatenate(column) for column in zip(*(found.marks for found in founds), strict=True)]
        self.passed = np.flatnonzero(self.codes == 0)
        self.twin, self.distance = np.full(len(self.passed), -1), np.zeros(len(self.passed), np.float32)
        return self

    @property
    def sources(self) -> list[str]:
        return list(dict.fromkeys(file.source for file in self.files))

    def rows_of(self, *sources: str) -> np.ndarray:
        """(n,) bool: which records are of one of these sources."""
        mine = [i for i, file in enumerate(self.files) if file.source in sources]
        return np.isin(self.file, mine)

    def alive(self, source: str | None = None) -> np.ndarray:
        """Indices among the p of the records that are kept, of one source or of all."""
        kept = self.codes[self.passed] == 0
        if source is not None:
            kept &= self.rows_of(source)[self.passed]
        return np.flatnonzero(kept)

    def drop(self, which: np.ndarray, code: int) -> None:
        """which: (p,) bool or indices among the p."""
        self.codes[self.passed[which]] = code

    def where(self, row: int) -> str:
        return self.files[self.file[row]].where(int(self.number[row]))

    def drop_twins(
        self, indices: np.ndarray, twin: np.ndarray, distance: np.ndarray, code: int, old: np.ndarray
    ) -> None:
        """Drop those of ``indices`` that have a twin (an index into ``indices``, or -1), unless they are ``old``, in the
        output already; what has its twin there is counted apart.
        """
        found = (twin >= 0) & ~old[indices]
        dropped, kept = indices[found], indices[twin[found]]
        self.twin[dropped], self.distance[dropped] = kept, distance[found]
        self.drop(dropped, code)
        self.drop(dropped[old[kept]], IN_OUT)

    def twins(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The row that each was dropped for, or -1, and how far off that is."""
        if not len(self.passed):
            return np.full(len(rows), -1), np.zeros(len(rows), np.float32)
        index = np.minimum(np.searchsorted(self.passed, rows), len(self.passed) - 1)
        twin = np.where(self.passed[index] == rows, self.twin[index], -1)
        return np.where(twin >= 0, self.passed[twin], -1), self.distance[index]

    def counts(self, source: str) -> dict[str, Any]:
        """The source's part of the report; every record read is accounted for."""
        tally = np.bincount(self.codes[self.rows_of(source)], minlength=len(REASONS)).tolist()
        dropped = {reason: n for reason, n in sorted(zip(REASONS[1:], tally[1:], strict=True)) if n}
        return {
            "read": sum(tally),
            "dropped": dropped,
            "duplicates": tally[DUPLICATE] + tally[NEAR_DUPLICATE],
            "kept": tally[0],
            "bad_records": self.bad.get(source, []),
        }


def _joined(parts: Any, dtype: type, shape: tuple[int, ...] = (0,)) -> np.ndarray:
    parts = list(parts)
    return np.concatenate(parts) if parts else np.zeros(shape, dtype)


def exact_twins(prints: np.ndarray) -> np.ndarray:
    """prints: (n, 2) uint64. Return (n,) int64: the index of the first equal one before each, or -1."""
    order = np.argsort(prints[:, 0], kind="stable")
    ordered = prints[order]
    equal = np.append(False, (ordered[1:, 0] == ordered[:-1, 0]))[: len(order)]
    if (ordered[1:, 1] != ordered[:-1, 1])[equal[1:]].any():  # equal halves of different prints: once in 10^19 pairs
        order = np.lexsort((prints[:, 1], prints[:, 0]))
        ordered = prints[order]
        equal = np.append(False, (ordered[1:] == ordered[:-1]).all(axis=1))[: len(order)]
    first = np.maximum.accumulate(np.where(equal, 0, np.arange(len(order))))
    twin = np.full(len(order), -1)
    twin[order[equal]] = order[first[equal]]
    return twin
