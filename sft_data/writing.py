"""The second pass: write what was chosen, what was held out, what was dropped and why; all or nothing.

Plan                                     who gives how many
write(args, table, plan, rules, info, paths) -> None
"""

import argparse
import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from .emit import Rows, body_of, dropped, render, rows_at
from .engine import run
from .files import copy_records, write_lines
from .jsonl import dump_line
from .mixture import draw, shuffled
from .reasons import DUPLICATE, IN_OUT, NEAR_DUPLICATE
from .resolve import OLD
from .scan import Rules
from .storage import all_together, write_atomically
from .table import Table

CHUNK = 4096  # records rendered at a time


class Plan(NamedTuple):
    """names: the sources; the rest by name: its share, the records kept, those left for training, those to take, and the
    indices (among those that passed) of the ones held out.
    """

    names: list[str]
    shares: dict[str, float]
    kept: dict[str, int]
    available: dict[str, int]
    allocated: dict[str, int]
    held_out: dict[str, np.ndarray]


def choose(table: Table, plan: Plan, seed: int) -> np.ndarray:
    """Return the rows to train on, in the order in which they are written."""
    chosen = []
    for name in plan.names:
        left = np.setdiff1d(table.alive(name), plan.held_out[name])
        chosen.append(left[draw(table.prints[left], plan.allocated[name], seed, name)])
    chosen = np.concatenate(chosen)
    return table.passed[chosen[shuffled(table.prints[chosen], seed)]]


def write(
    args: argparse.Namespace, table: Table, plan: Plan, rules: Rules, info: dict[str, Any], paths: dict[str, str]
) -> None:
    """None of the files takes its place before all of them are whole."""
    import orjson

    chosen = choose(table, plan, args.seed)
    with all_together() as waiting, contextlib.ExitStack() as stack:
        out = stack.enter_context(write_lines(paths["out"], waiting))
        if args.append and "out" in table.sources:
            copy_records(args.out, out)
        _write_rows(args, "写出", render, _chunks(table, chosen, rules, args.keep_meta), len(chosen), out)
        if "eval" in paths:
            rows = table.passed[np.concatenate(list(plan.held_out.values()))]
            file = stack.enter_context(write_lines(paths["eval"], waiting))
            _write_rows(args, "写出评测集", render, _chunks(table, rows, rules, args.keep_meta), len(rows), file)
        if "dropped_out" in paths:
            rows = np.flatnonzero((table.codes > 0) & ~table.rows_of(*OLD))
            file = stack.enter_context(write_lines(paths["dropped_out"], waiting))
            _write_rows(args, "写出丢弃的", dropped, _with_twins(table, rows, rules), len(rows), file)
        if "dups_out" in paths:
            rows = np.flatnonzero(np.isin(table.codes, (DUPLICATE, NEAR_DUPLICATE, IN_OUT)))
            file = stack.enter_context(write_lines(paths["dups_out"], waiting))
            _write_rows(args, "写出重复的", _pairs, _with_twins(table, rows, rules, both=True), len(rows), file)
        file = stack.enter_context(write_atomically(paths["info"], waiting))
        file.write(orjson.dumps(info, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
        if "report" in paths:
            from .report import build_page

            file = stack.enter_context(write_atomically(paths["report"], waiting))
            file.write(build_page(args, table, plan, rules, info, chosen).encode())


def _write_rows(args: argparse.Namespace, what: str, function: Any, jobs: Iterator[Rows], total: int, out: Any) -> None:
    from tqdm import tqdm

    address = args.address if args.engine == "ray" else None
    with tqdm(desc=what, total=total, unit="条", disable=None, mininterval=0.5) as bar:
        for _, lines in run(function, jobs, args.workers, address):
            for line in lines:
                out.write(line)
            bar.update(len(lines))


def _chunks(table: Table, rows: np.ndarray, rules: Rules, meta: bool = False) -> Iterator[Rows]:
    for start in range(0, len(rows), CHUNK):
        yield rows_at(table, rows[start : start + CHUNK], rules, meta)


def _with_twins(table: Table, rows: np.ndarray, rules: Rules, both: bool = False) -> Iterator[Any]:
    for start in range(0, len(rows), CHUNK):
        part = rows[start : start + CHUNK]
        twin, distance = table.twins(part)
        where = tuple(table.where(row) if row >= 0 else "" for row in twin.tolist())
        dropped_rows = rows_at(table, part, rules)._replace(twins=where, distances=tuple(distance.tolist()))
        yield (dropped_rows, rows_at(table, twin, rules)) if both else dropped_rows


def _pairs(both: tuple[Rows, Rows]) -> list[bytes]:
    gone, kept = both
    lines = []
    texts = zip(body_of(gone), body_of(kept), strict=True)
    for i, (text, other) in enumerate(texts):
        sides = (
            {
                "source": rows.files[rows.file[i]].source,
                "file": rows.files[rows.file[i]].path,
                "line": int(rows.number[i]),
                "text": t,
            }
            for rows, t in ((kept, other), (gone, text))
        )
        lines.append(dump_line({"distance": gone.distances[i], **dict(zip(("kept", "dropped"), sides, strict=True))}))
    return lines


def show_progress(what: str) -> Any:
    from tqdm import tqdm

    return lambda passes: tqdm(passes, desc=what, unit="遍", disable=None)
