"""Pass two: read chosen records again from their places, and write them as HIT ChatML or as what was dropped and why.

render(rows) -> list[bytes]          a line for each record
body_of(rows) -> list[str]           their normalised bodies
dropped(rows) -> list[bytes]         a line for each: where it was, the reason, the evidence, the record
"""

import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import orjson

from .chatml import BEGIN, END, carried, render_chatml
from .errors import UserError
from .evidence import evidence
from .features import feature_sets
from .jsonl import dump_line, parse_record
from .pii import redact_pii
from .quality import label, normalise, tidy
from .scan import REASONS, Rules, laid_out, no_garbage_collection, plain_texts, read_fields, redacted
from .screen import columns, screen
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
    lines = []
    for (file, raw, number), rough in zip(_read(rows), rows.rough.tolist(), strict=True):
        obj = orjson.loads(raw)
        text = None if rows.rules.redact or file.kind == "hit" else _fast_text(obj, tidy if rough else str.strip)
        record = {"text": text or _text(obj, file.kind, rows.rules.redact), "source": file.source}
        if "category" in obj or "kind" in obj or "topic" in obj:
            record |= carried(obj)
        if rows.meta:
            record["meta"] = {"file": file.path, "line": number}
        lines.append(dump_line(record))
    return lines


def _text(obj: dict[str, Any], kind: str, redact: bool) -> str:
    _, messages = read_fields(obj, kind)
    if redact:
        messages = [{**message, "content": redact_pii(message["content"])} for message in messages]
    return render_chatml(messages)


def _fast_text(obj: dict[str, Any], clean: Callable[[str], str]) -> str | None:
    """What _text says of an ordinary open-data record, known to be good; None for any other."""
    texts = plain_texts(obj)
    if texts is None:
        return None
    instruction, inp, output = map(clean, texts)
    asked = f"{instruction}\n{inp}" if inp else instruction
    return f"{BEGIN}用户\n{asked}\n{END}\n{BEGIN}智能助手\n{output}\n{END}"


def body_of(rows: Rows) -> list[str]:
    return [body.decode("utf-8", "surrogatepass") for body in _bodies(rows)]


def feature_sets_of(rows: Rows, features: str) -> tuple[np.ndarray, np.ndarray]:
    """As features.feature_sets."""
    return feature_sets(*laid_out(_bodies(rows)), features)


def _bodies(rows: Rows) -> list[bytes]:
    batch = [read_fields(orjson.loads(raw), file.kind)[0] for file, raw, _ in _read(rows)]
    return screen(columns(list(map(redacted, batch)) if rows.rules.redact else batch), None).bodies


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
