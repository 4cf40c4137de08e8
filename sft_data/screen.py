"""Gates for a batch of records at once; what ``judge`` says of each, at a tenth of the time.

    screen(batch, gates) -> Screened                  batch: Columns, as columns() makes them or parse.parse
    columns(list of fields) -> Columns                fields as chatml.hit_record gives them
    judge(fields, gates) -> str | None                one record by the plain functions: the reason to drop it, or None

What the compiled kernel does not know (kernel.py) goes through the plain functions, and so does every text in which a
quick look finds something: it only spares those in which there is nothing to find.
"""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import re2

from . import kernel
from .chatml import Fields
from .features import laid_out
from .quality import Gates, check_output, check_pii, check_record, normalise, phrases, tidy
from .reasons import CODE, KEEP

_FIELDS = {"instruction": 0, "input": 1, "output": 2, "other": 3}
_NAMES = tuple(_FIELDS)
_GATED = ("instruction", "input", "output")
_OUTPUT = _FIELDS["output"]
_WHYS = ("empty", "too_short", "too_long", "low_chinese")
_COUNTED = np.array([[KEEP, *(CODE[f"{name}_{why}"] for why in _WHYS)] for name in (*_GATED, "input")], np.uint8)
_EMPTY, _TOO_SHORT, _TOO_LONG, _LOW_CHINESE = range(1, 5)


class Columns(NamedTuple):
    """The fields of a batch of records: memory, uint8, texts in UTF-8 one after the other; ends: (texts,) int64, where each
    ends; kinds: (texts,) int8, index into instruction, input, output, other; counts: (records,) int64, fields of each.
    """

    memory: np.ndarray
    ends: np.ndarray
    kinds: np.ndarray
    counts: np.ndarray


class Screened(NamedTuple):
    """Of each record of a batch.

    codes: (records,) uint8, why to drop it, see reasons.py
    memory: uint8; spans: (records, 2) int64, where in it lies the normalised text of all its fields, in UTF-8
    lengths: (records, 3) int64, characters of instruction, input and output
    rough: (records,) bool, which went through the plain functions; no other holds a zero-width character
    """

    codes: np.ndarray
    memory: np.ndarray
    spans: np.ndarray
    lengths: np.ndarray
    rough: np.ndarray


def judge(fields: Fields, gates: Gates | None) -> str | None:
    """Return the reason to drop normalised fields, or None. Without gates only an empty field is a reason."""
    for name, text in fields:
        if not text:
            return f"{'input' if name == 'other' else name}_empty"
    return check_record(fields, gates) if gates else None


def columns(batch: list[Fields]) -> Columns:
    texts = [text.encode("utf-8", "surrogatepass") for fields in batch for _, text in fields]
    ends = np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)))
    kinds = np.fromiter((_FIELDS[name] for fields in batch for name, _ in fields), np.int8, len(texts))
    counts = np.fromiter(map(len, batch), np.int64, len(batch))
    return Columns(np.frombuffer(b"".join(texts), np.uint8), ends, kinds, counts)


def fields_at(batch: Columns, rows: list[int]) -> Iterator[Fields]:
    """The fields of these records, as they were given."""
    last = np.cumsum(batch.counts)
    for row in rows:
        places = range(int(last[row] - batch.counts[row]), int(last[row]))
        spans = ((int(batch.ends[i - 1]) if i else 0, int(batch.ends[i])) for i in places)
        texts = (batch.memory[start:end].tobytes().decode("utf-8", "surrogatepass") for start, end in spans)
        yield [(_NAMES[batch.kinds[i]], text) for i, text in zip(places, texts, strict=True)]


def screen(batch: Columns, gates: Gates | None) -> Screened:
    """Judge each record by itself, tidied or not; duplicates are for the caller, who sees all batches."""
    n = len(batch.counts)
    found = kernel.measure(batch.memory, batch.ends, batch.counts)
    owners = np.repeat(np.arange(n), batch.counts)
    codes = _gate_counts(found, batch.kinds, owners, n, gates)
    if gates:
        _gate_words(codes, found, batch.kinds, owners, gates)
    cells = np.bincount(owners * len(_FIELDS) + batch.kinds, found.chars, n * len(_FIELDS))
    lengths = cells.reshape(n, len(_FIELDS))[:, : len(_GATED)].astype(np.int64)
    rough, bodies = np.flatnonzero(found.rough).tolist(), []
    for row, given in zip(rough, fields_at(batch, rough), strict=True):
        fields = [(name, normalise(tidy(text))) for name, text in given]
        codes[row] = CODE[judge(fields, gates)]
        bodies.append(" ".join(text for _, text in fields).encode("utf-8", "surrogatepass"))
        lengths[row] = [sum(len(text) for name, text in fields if name == gated) for gated in _GATED]
    memory, spans = laid_out(bodies)
    found.lines[rough] = spans + len(found.bodies)
    return Screened(codes, np.concatenate([found.bodies, memory]), found.lines, lengths, found.rough)


def _gate_counts(found: Any, kinds: np.ndarray, owners: np.ndarray, n: int, gates: Gates | None) -> np.ndarray:
    """Judge by the numbers: first any field's being empty, then length and share of Chinese, field by field."""
    why = np.where(found.chars == 0, _EMPTY, 0)
    if gates:
        low, high = (np.array([gates.lengths[name][end] for name in _GATED] + [0]) for end in (0, 1))
        ratio = 1 - (found.chars - found.chinese) / np.maximum(found.chars, 1)
        checks = [found.chars < low[kinds], found.chars > high[kinds], ratio < gates.min_chinese_ratio]
        later = np.select(checks, [_TOO_SHORT, _TOO_LONG, _LOW_CHINESE], 0)
        anything_empty = np.zeros(n, bool)
        anything_empty[owners[why > 0]] = True
        why = np.where((kinds < len(_GATED)) & ~anything_empty[owners], later, why)
    codes, bad = np.full(n, KEEP, np.uint8), np.flatnonzero(why)
    records, first = np.unique(owners[bad], return_index=True)
    codes[records] = _COUNTED[kinds[bad[first]], why[bad[first]]]
    return codes


def _gate_words(codes: np.ndarray, found: Any, kinds: np.ndarray, owners: np.ndarray, gates: Gates) -> None:
    """Look for phrases and personal data in what is left, a field at a time and in the order of check_record."""
    left = (codes == KEEP) & ~found.rough
    rows = np.flatnonzero(left[owners] & (kinds == _OUTPUT))
    if not gates.drop_patterns:
        rows = rows[(found.flags[rows] & kernel.LINK > 0) | _seen(phrases(), found, rows)]
    for row in rows.tolist():
        if codes[owners[row]] == KEEP:
            reason = check_output(_text(found, row), gates.max_urls, gates.drop_patterns)
            codes[owners[row]] = CODE[reason and f"output_{reason}"]
    if gates.drop_pii:
        rows = np.flatnonzero(left[owners] & (found.flags & (kernel.AT | kernel.DIGITS) > 0))
        for row in rows[_seen(_numbers(), found, rows)].tolist():
            if codes[owners[row]] == KEEP:
                codes[owners[row]] = CODE[check_pii(_text(found, row))]


def _text(found: Any, row: int) -> str:
    start, end = found.spans[row]
    return found.bodies[start:end].tobytes().decode()


def _seen(pattern: Any, found: Any, rows: np.ndarray) -> np.ndarray:
    """(rows,) bool: in which texts a pattern of RE2 finds something; no match may go over a line's end."""
    lines, ends = kernel.joined(found.bodies, found.spans[rows])
    seen = np.zeros(len(rows), bool)
    seen[np.searchsorted(ends, [match.start() for match in pattern.finditer(lines)], side="right")] = True
    return seen


@functools.cache
def _numbers() -> Any:
    """The least of what pii.py looks for: whatever stands around it, and whatever the check digit."""
    phone, id_card = "1[3-9][0-9][- ]?[0-9]{4}[- ]?[0-9]{4}", "[0-9]{17}[0-9Xx]"
    return re2.compile(f"@|{phone}|{id_card}|[0-9]{{16}}|[0-9]{{4}}[- ][0-9]{{4}}[- ][0-9]{{4}}[- ][0-9]{{4}}")
