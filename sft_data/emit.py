"""Pass two: read chosen records again from their places, and write them as HIT ChatML or as what was dropped and why.

render(rows) -> list[bytes]          a line for each record
body_of(rows) -> list[str]           their normalised bodies
dropped(rows) -> list[bytes]         a line for each: where it was, the reason, the evidence, the record
"""

import functools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import orjson

from .chatml import carried, render_chatml
from .errors import UserError
from .evidence import evidence
from .features import feature_sets
from .jsonl import dump_line, parse_record
from .lines import chatml_lines
from .pii import redact_pii
from .quality import label, normalise
from .reasons import REASONS
from .scan import Rules, no_garbage_collection, read_fields, redacted
from .screen import Screened, columns, screen
from .table import File, Table


class Rows(NamedTuple):
    """Places of records, in the order in which they are wanted; columns as in Table. meta: write where each came from."""

    files: list[File]
    file: np.ndarray
    start: np.ndarray
    size: np.ndarray
    number: np.ndarray
    code: np.ndarray
    rough: np.ndarray
    rules: Rules
    meta: bool = False
    twins: tuple[str, ...] = ()  # where the record is that a duplicate was dropped for, and how far off it is
    distances: tuple[float, ...] = ()


def rows_at(table: Table, rows: np.ndarray, rules: Rules, meta: bool = False) -> Rows:
    columns = (column[rows] for column in (table.file, table.start, table.size, table.number, table.codes, table.rough))
    return Rows(table.files, *columns, rules, meta)


@no_garbage_collection()
def render(rows: Rows) -> list[bytes]:
    found = list(_read(rows))
    lines = [b""] * len(found) if rows.rules.redact else _fast_lines(rows, [raw for _, raw, _ in found])
    for i, (file, raw, number) in enumerate(found):
        line = lines[i] or _line(file, raw, rows.rules.redact)
        if rows.meta:
            line = b'%b,"meta":%b}\n' % (line[:-2], orjson.dumps({"file": file.path, "line": number}))
        lines[i] = line
    return lines


def _fast_lines(rows: Rows, raws: list[bytes]) -> list[bytes]:
    """The lines of those for which there is a short way, b"" for the others."""
    lines = [b""] * len(raws)
    for source in {file.source for file in rows.files if file.kind != "hit"}:
        mine = [file.source == source and file.kind != "hit" for file in rows.files]
        which = np.flatnonzero(np.array(mine)[rows.file] & ~rows.rough)
        ends = np.cumsum(rows.size[which], dtype=np.int64)
        data = b"".join(raws[i] for i in which.tolist())
        made = chatml_lines(data, ends - rows.size[which], ends, b',"source":' + orjson.dumps(source))
        for i, line in zip(which.tolist(), made, strict=True):
            lines[i] = line
    return lines


def _line(file: File, raw: bytes, redact: bool) -> bytes:
    obj = orjson.loads(raw)
    _, messages = read_fields(obj, file.kind)
    if redact:
        messages = [{**message, "content": redact_pii(message["content"])} for message in messages]
    return dump_line({"text": render_chatml(messages), "source": file.source} | carried(obj))


def body_of(rows: Rows) -> list[str]:
    found = _screened(rows)
    return [found.memory[start:end].tobytes().decode("utf-8", "surrogatepass") for start, end in found.spans.tolist()]


def feature_sets_of(rows: Rows, features: str) -> tuple[np.ndarray, np.ndarray]:
    """As features.feature_sets."""
    found = _screened(rows)
    return feature_sets(found.memory, found.spans, features)


def _screened(rows: Rows) -> Screened:
    batch = [read_fields(orjson.loads(raw), file.kind)[0] for file, raw, _ in _read(rows)]
    return screen(columns(list(map(redacted, batch)) if rows.rules.redact else batch), None)


def dropped(rows: Rows) -> list[bytes]:
    lines = []
    twins, distances = rows.twins or [None] * len(rows.file), rows.distances or [None] * len(rows.file)
    for (file, raw, number), code, twin, distance in zip(
        _read(rows), rows.code.tolist(), twins, distances, strict=True
    ):
        reason, where = REASONS[code], file.where(number)
        line = {"source": file.source, "file": file.path, "line": number, "reason": reason, "label": label(reason)}
        try:
            obj = parse_record(raw, where, file.text.is_array)
            fields, _ = read_fields(obj, file.kind)
        except UserError as error:
            line |= {"evidence": str(error), "record": raw.decode(errors="replace")}
        except ValueError as error:
            line |= {"evidence": str(error), "record": obj}
        else:
            fields = [(name, normalise(text)) for name, text in fields]
            line |= {"evidence": twin or evidence(fields, reason, rows.rules.gates)}
            line |= {"distance": distance} if twin else {}
            line |= {"record": obj}
        lines.append(dump_line(line))
    return lines


def _read(rows: Rows) -> Iterator[tuple[File, bytes, int]]:
    """Yield (file, bytes, number) of each record."""
    columns = (column.tolist() for column in (rows.file, rows.start, rows.size, rows.number))
    handles: dict[int, BinaryIO] = {}
    for index, start, size, number in zip(*columns, strict=True):
        file = rows.files[index]
        if index not in handles:
            handles[index] = _open(file.text.path, os.getpid())
        yield file, _read_at(handles[index], size, start), number


@functools.lru_cache(64)
def _open(path: Path, _process: int) -> BinaryIO:
    """Of this process: a forked one would share its position with the others."""
    return open(path, "rb", buffering=0)


def _read_at(file: BinaryIO, size: int, start: int) -> bytes:
    if hasattr(os, "pread"):
        return os.pread(file.fileno(), size, start)
    file.seek(start)  # Windows
    return file.read(size)
