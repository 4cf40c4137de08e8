"""Pass one: read a block of records, judge each, and hold of those that pass only what finds duplicates and fills quotas.

    scan(job) -> Found                     a block; runs in any process of any machine that sees the file
    read_fields(obj, kind) -> (fields, messages)      one record by the plain functions, tidied
    redacted(fields) -> fields                        with personal data replaced

A record is known by its place from here on; pass two (emit.py) reads it again from there.
"""

import contextlib
import gc
import operator
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson

from .chatml import BEGIN, END, Fields, conversation_record, firefly_record, hit_record
from .dedup import fingerprint
from .features import marks
from .formats import format_of, read_messages
from .pii import redact_pii
from .quality import Gates, tidy
from .screen import Encoded, encoded, screen

_GATES = ("empty", "too_short", "too_long", "low_chinese", "refusal", "advertisement", "drop_pattern", "too_many_urls")
REASONS = (
    *("", "bad_record", "format_marker"),
    *(f"{name}_{why}" for name in ("instruction", "input", "output") for why in _GATES),
    *("pii_phone", "pii_email", "pii_id_card", "pii_bank_card"),
    *("duplicate", "near_duplicate", "near_eval", "in_out"),
)
CODE = {reason: code for code, reason in enumerate(REASONS)} | {None: 0}
BAD, MARKER, DUPLICATE, NEAR_DUPLICATE, NEAR_EVAL, IN_OUT = (
    CODE[name] for name in ("bad_record", "format_marker", "duplicate", "near_duplicate", "near_eval", "in_out")
)


_WITH_INPUT = encoded([("instruction", ""), ("input", ""), ("output", "")])[0]
_WITHOUT_INPUT = encoded([("instruction", ""), ("output", "")])[0]
_THREE = operator.itemgetter("instruction", "input", "output")
_OTHER_FORMS = {"text", "conversation", "conversations", "messages"}


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
    rules = job.rules
    with open(job.path, "rb", buffering=0) as file:
        file.seek(job.base)
        data = file.read(job.size)
    codes = np.zeros(len(job.starts), np.uint8)
    batch, rows = [], []
    for row, (start, end) in enumerate(zip(job.starts.tolist(), job.ends.tolist(), strict=True)):
        try:
            batch.append(read_encoded(orjson.loads(data[start:end]), job.kind, rules.redact))
        except (ValueError, AttributeError):  # a JSONDecodeError is a ValueError; [] has no keys to get
            codes[row] = BAD
            continue
        rows.append(row)
    reasons, bodies, lengths, screened_rough = screen(batch, rules.gates)
    judged = np.fromiter(map(CODE.__getitem__, reasons), np.uint8, len(reasons))
    if job.kind != "hit":
        for i in np.flatnonzero(judged == 0).tolist():
            if any(b"<" in text and _marked(tidy(text.decode("utf-8", "surrogatepass"))) for text in batch[i][1]):
                judged[i] = MARKER
    codes[rows] = judged
    sizes = np.zeros((len(codes), 3), np.uint16)
    sizes[rows] = np.minimum(lengths, 65535)
    rough = np.ones(len(codes), bool)
    rough[rows] = screened_rough
    bodies = [bodies[i] for i in np.flatnonzero(judged == 0).tolist()]
    prints = np.frombuffer(b"".join(map(fingerprint, bodies)), np.uint64).reshape(-1, 2)
    memory, spans = laid_out(bodies)
    return Found(
        codes, sizes, rough, prints, tuple(marks(memory, spans, near.method, near.features) for near in rules.nears)
    )


def laid_out(bodies: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Return them in one array, uint8, and (n, 2) int64, where each lies in it."""
    ends = np.cumsum(np.fromiter(map(len, bodies), np.int64, len(bodies)))
    return np.frombuffer(b"".join(bodies), np.uint8), np.stack([ends - np.diff(ends, prepend=0), ends], axis=1)


def read_fields(obj: dict[str, Any], kind: str) -> tuple[Fields, list[dict[str, str]]]:
    """Read a record of a source ("any": of whatever form). ValueError says in Chinese what is wrong with it."""
    if kind == "hit":
        return hit_record(obj)
    if obj.get("history") or obj.get("system") or (kind == "any" and format_of(obj) != "alpaca"):
        return conversation_record(read_messages(obj))
    return firefly_record(obj)


def plain_texts(obj: dict[str, Any]) -> tuple[str, str, str] | None:
    """(instruction, input, output), untidied, of an open-data record of the usual form, for which short ways are open."""
    try:
        instruction, inp, output = _THREE(obj)
    except (KeyError, TypeError):
        return None
    if type(instruction) is not str or type(inp) is not str or type(output) is not str:
        return None
    if len(obj) > 3 and (obj.get("history") or obj.get("system") or obj.keys() & _OTHER_FORMS):
        return None
    return instruction, inp, output


def read_encoded(obj: dict[str, Any], kind: str, redact: bool) -> Encoded:
    """The fields of read_fields for screen(), untidied where they need not be."""
    texts = None if redact or kind == "hit" else plain_texts(obj)
    if texts is None:
        fields = read_fields(obj, kind)[0]
        return encoded(redacted(fields) if redact else fields)
    instruction, inp, output = texts
    if inp and (inp := tidy(inp)):
        return _WITH_INPUT, (instruction.encode(), inp.encode(), output.encode())
    return _WITHOUT_INPUT, (instruction.encode(), output.encode())


def redacted(fields: Fields) -> Fields:
    return [(name, redact_pii(text)) for name, text in fields]


def _marked(text: str) -> bool:
    return BEGIN in text or END in text
