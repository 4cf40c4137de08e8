"""Pass one over all sources: their files, a block at a time, into one table in order of preference.

parse_source(text) -> Input                     NAME=PATH:WEIGHT
expand(path) -> list[str]                       a file, or the files of a pattern such as shards/*.jsonl.gz
read_all(inputs, rules, ...) -> Table
"""

import glob
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .blocks import local_text, split
from .engine import run
from .errors import UserError
from .jsonl import open_unpacked, parse_record
from .reasons import BAD
from .scan import Found, Job, Rules, read_fields, scan
from .storage import is_remote, remote
from .table import File, Table

log = logging.getLogger("prep")


class Input(NamedTuple):
    """A source. kind: how its records are read ("hit", "firefly", "any"); limit: kept records after which reading stops;
    judged: whether the gates apply.
    """

    name: str
    kind: str
    paths: list[str]
    weight: float = 1.0
    limit: int | None = None
    judged: bool = True


def parse_source(text: str) -> Input:
    name, equals, rest = text.partition("=")
    path, _, weight = rest.rpartition(":")
    try:
        value = float(weight)
    except ValueError:
        path, value = rest, 1.0
    if not equals or not name or not path or not 0 < value < float("inf"):
        raise UserError(
            f"--source {text}：应写成 名字=路径:权重，例如 --source belle=data/raw/belle.json:2；权重要大于 0。"
        )
    if name in ("hit", "firefly", "out", "eval"):
        raise UserError(f"--source {text}：{name} 这个名字已有含义，请换一个名字。")
    return Input(name, "any", expand(path), value)


def expand(path: str) -> list[str]:
    if not any(c in path for c in "*?["):
        return [path]
    if is_remote(path):
        filesystem, inside = remote(path)
        found = [filesystem.unstrip_protocol(name) for name in filesystem.glob(inside)]
    else:
        found = glob.glob(path, recursive=True)
    if not found:
        raise UserError(f"{path}：没有符合这个模式的文件；请检查路径。")
    return sorted(found)


class _Progress:
    """What reading has come to: shared by the maker of jobs and the taker of results."""

    def __init__(self, table: Table, scratch: Path):
        self.table, self.scratch, self.full, self.count = table, scratch, set(), 0
        self.seen: set[bytes] = set()  # fingerprints, kept only where a limit asks how many are new
        self.kept: dict[str, int] = {}


def read_all(
    inputs: list[Input], rules: Rules, skip_bad: bool, scratch: Path, workers: int, address: str | None = None
) -> Table:
    """Raises UserError at the first record that can't be read, unless it may be skipped."""
    from tqdm import tqdm

    state = _Progress(Table(), scratch)
    limits = {one.name: one.limit for one in inputs}
    with tqdm(desc="读取", unit="B", unit_scale=True, disable=None, mininterval=0.5) as bar:
        for (job, numbers, number), found in run(_scan, _jobs(inputs, rules, state, bar), workers, address):
            file = state.table.files[number]
            bar.update(job.size)
            if file.source in state.full:
                continue
            if any(limits.values()):
                found = _up_to(found, limits[file.source], state, file.source)
            _refuse_bad(job, numbers, found, file, state.table, skip_bad)
            state.table.add(number, job, numbers, found)
            state.count += len(found.codes)
            bar.set_postfix_str(f"{state.count} 条", refresh=False)
    return state.table.close()


def _scan(item: tuple) -> Found:
    return scan(item[0])


def _jobs(inputs: list[Input], rules: Rules, state: _Progress, bar) -> Iterator[tuple[Job, np.ndarray, int]]:
    for one in inputs:
        own = rules if one.judged else rules._replace(gates=None, redact=False)
        for path in one.paths:
            if one.name in state.full:
                break
            number = len(state.table.files)
            text = local_text(path, state.scratch, number)
            state.table.files.append(File(one.name, one.kind, path, text))
            bar.total = (bar.total or 0) + text.path.stat().st_size
            with open_unpacked(text.path) as file:
                for block in split(file, path):
                    if one.name in state.full:
                        break
                    job = Job(text.path, one.kind, own, block.base, len(block.data), block.starts, block.ends)
                    yield job, block.numbers, number


def _up_to(found: Found, limit: int | None, state: _Progress, source: str) -> Found:
    """Cut off what comes after the record that makes ``limit``; one equal to an earlier one does not count."""
    rows = np.flatnonzero(found.codes == 0)
    prints = [print_.tobytes() for print_ in found.prints]
    kept = state.kept.get(source, 0)
    for i, key in enumerate(prints):
        if key not in state.seen:
            state.seen.add(key)
            kept += 1
            if kept == limit:
                log.info("%s 已保留 %d 条，不再往下读", source, limit)
                state.full.add(source)
                n = int(rows[i]) + 1
                marks = tuple(column[: i + 1] for column in found.marks)
                found = Found(found.codes[:n], found.lengths[:n], found.rough[:n], found.prints[: i + 1], marks)
                break
    state.kept[source] = kept
    return found


def _refuse_bad(job: Job, numbers: np.ndarray, found: Found, file: File, table: Table, skip_bad: bool) -> None:
    bad = np.flatnonzero(found.codes == BAD).tolist()
    messages = table.bad.setdefault(file.source, [])
    for row in bad[: 5 - len(messages)]:
        with open(job.path, "rb") as text:
            text.seek(job.base + int(job.starts[row]))
            raw = text.read(int(job.ends[row] - job.starts[row]))
        error = why_bad(raw, file.where(int(numbers[row])), file)
        if not skip_bad:
            raise error
        messages.append(str(error))


def why_bad(raw: bytes, where: str, file: File) -> UserError:
    """Say what is wrong with a record, by the plain functions."""
    try:
        read_fields(parse_record(raw, where, file.text.is_array), file.kind)
    except UserError as error:
        return error
    except ValueError as error:
        return UserError(f"{where}：{error}；请改正这条记录，或加 --skip-bad 跳过。")
    return UserError(f"{where}：这条记录读不了；请改正，或加 --skip-bad 跳过。")
