"""Pass one: read a block of records, judge each, and hold of those that pass only what finds duplicates and fills quotas.

    scan(job) -> Found                     a block; runs in any process of any machine that sees the file
    read_fields(obj, kind) -> (fields, messages)      one record by the plain functions, tidied
    redacted(fields) -> fields                        with personal data replaced

A record is known by its place from here on; pass two (emit.py) reads it again from there.
"""

import contextlib
import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson

from .chatml import BEGIN, END, Fields, conversation_record, firefly_record, hit_record
from .dedup import fingerprints
from .features import blank, marks
from .formats import format_of, read_messages
from .parse import parse
from .pii import redact_pii
from .quality import Gates, tidy
from .reasons import BAD, KEEP, MARKER
from .screen import Columns, columns, fields_at, screen


class Near(NamedTuple):
    """How near-duplicates are found: see dedup.py and minhash.py. threshold: bits, or for minhash the least Jaccard."""

    method: str
    features: str
    threshold: float


class Rules(NamedTuple):
    """What is asked of every record. nears: one for each kind of marks that is needed."""

    gates: Gates | None
    nears: tuple[Near, ...]
    redact: bool


class Job(NamedTuple):
    """A block of a file: ``size`` bytes from ``base``, in which the records lie at starts..ends, (records,) int64."""

    path: Path
    kind: str
    rules: Rules
    base: int
    size: int
    starts: np.ndarray
    ends: np.ndarray


class Found(NamedTuple):
    """Of a block.

    codes: (records,) uint8, index into REASONS, 0 = keep
    lengths: (records, 3) uint16, characters of instruction, input and output, 0 where it can't be read
    rough: (records,) bool, which may hold a zero-width character
    prints: (kept, 2) uint64, fingerprints of those to keep, in order; marks: their marks for each of ``nears``
    """

    codes: np.ndarray
    lengths: np.ndarray
    rough: np.ndarray
    prints: np.ndarray
    marks: tuple[np.ndarray, ...]


@contextlib.contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Tens of thousands of small objects at once, none in a cycle: looking for cycles among them took a third of the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@no_garbage_collection()
def scan(job: Job) -> Found:
    with open(job.path, "rb", buffering=0) as file:
        file.seek(job.base)
        data = file.read(job.size)
    n, rules = len(job.starts), job.rules
    codes, rough, lengths = np.zeros(n, np.uint8), np.ones(n, bool), np.zeros((n, 3), np.uint16)
    prints, marked = np.zeros((n, 2), np.uint64), [blank(n, near.method) for near in rules.nears]
    for rows, batch in _batches(job, data, codes):
        found = screen(batch, rules.gates)
        if job.kind != "hit":
            _find_markers(batch, found.codes)
        codes[rows], rough[rows], lengths[rows] = found.codes, found.rough, np.minimum(found.lengths, 65535)
        kept, spans = rows[found.codes == KEEP], found.spans[found.codes == KEEP]
        prints[kept] = fingerprints(found.memory, spans)
        for near, all_marks in zip(rules.nears, marked, strict=True):
            all_marks[kept] = marks(found.memory, spans, near.method, near.features)
    keep = codes == KEEP
    return Found(codes, lengths, rough, prints[keep], tuple(all_marks[keep] for all_marks in marked))


def _batches(job: Job, data: bytes, codes: np.ndarray) -> Iterator[tuple[np.ndarray, Columns]]:
    """Yield rows and their fields: first the ordinary ones, then the others; of those mark what is no record in ``codes``."""
    ordinary = np.zeros(len(codes), bool)
    if job.kind != "hit" and not job.rules.redact:
        ordinary, fast = parse(data, job.starts, job.ends)
        yield np.flatnonzero(ordinary), fast
    rows, batch = [], []
    for row in np.flatnonzero(~ordinary).tolist():
        try:
            fields, _ = read_fields(orjson.loads(data[job.starts[row] : job.ends[row]]), job.kind)
        except (ValueError, AttributeError):  # a JSONDecodeError is a ValueError; [] has no keys to get
            codes[row] = BAD
            continue
        batch.append(redacted(fields) if job.rules.redact else fields)
        rows.append(row)
    yield np.array(rows, np.int64), columns(batch)


def _find_markers(batch: Columns, judged: np.ndarray) -> None:
    """Drop what could not be read back once it is written: a content with a marker of the format."""
    places = np.searchsorted(batch.ends, np.flatnonzero(batch.memory == ord("<")), side="right")
    rows = np.unique(np.repeat(np.arange(len(judged)), batch.counts)[places])
    rows = rows[judged[rows] == KEEP].tolist()
    for row, fields in zip(rows, fields_at(batch, rows), strict=True):
        if any(BEGIN in text or END in text for _, text in ((name, tidy(text)) for name, text in fields)):
            judged[row] = MARKER


def read_fields(obj: dict[str, Any], kind: str) -> tuple[Fields, list[dict[str, str]]]:
    """Read a record of a source ("any": of whatever form). ValueError says in Chinese what is wrong with it."""
    if kind == "hit":
        return hit_record(obj)
    if obj.get("history") or obj.get("system") or (kind == "any" and format_of(obj) != "alpaca"):
        return conversation_record(read_messages(obj))
    return firefly_record(obj)


def redacted(fields: Fields) -> Fields:
    return [(name, redact_pii(text)) for name, text in fields]
