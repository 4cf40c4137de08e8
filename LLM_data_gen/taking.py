"""From an answer to rows of the output: what is accepted, and why the rest is not.

take(entries, output, n, tally) -> list           answers of today, or from the journal: the same to it
replay(...) / revalidate(...)                     make rows of stored answers, which costs nothing
open_rejected(path)                               what is not accepted, with its reason, for those who want to see it
"""

import contextlib
import itertools
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sft_data.chatml import ROLE_TO_NAME
from sft_data.jsonl import dump_line, mend_last_line, read_records
from sft_data.storage import write_atomically

from .output import Output, refuse_foreign
from .validation import check_samples, describe, fingerprint, read_answer, texts_of, to_record

AT_ONCE = 64  # answers; more would keep those who wait for the loop waiting for long


@dataclass
class Tally:
    """What this run did with the answers. returned = accepted + sum(rejected.values())."""

    returned: int = 0
    accepted: int = 0
    rejected: Counter = field(default_factory=Counter)
    problems: Counter = field(default_factory=Counter)  # of whole answers: blank, cut off, repaired
    topics_done: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    reject: Callable[[str, str, Any], None] = lambda topic, reason, sample: None


def take(
    entries: Sequence[dict[str, Any]],
    output: Output,
    n: int,
    tally: Tally,
    keep_reasoning: bool = False,
) -> list[int]:
    """Write the samples of these answers that are good and new until their topic has ``n``; count every other under its reason.

    Return how many were taken of each answer. Together they cost a third of what they cost one by one.
    """
    readings = [read_answer(entry["text"]) for entry in entries]
    checked = check_samples([sample for reading in readings for sample in reading.samples])
    output.expect([texts[1] for reason, texts in checked if reason is None])
    records, taken, checked = [], [], iter(checked)
    for entry, reading in zip(entries, readings, strict=True):
        if reading.problem:
            tally.problems[reading.problem] += 1
        wanted = n - len(output.questions.get(entry["topic"], ()))
        more = {"reasoning": entry["reasoning"]} if keep_reasoning and entry.get("reasoning") else {}
        new = _new_records(entry["topic"], zip(reading.samples, checked), output, wanted, tally, more)  # noqa: B905  its part of checked
        records += new
        taken.append(len(new))
    tally.accepted += len(records)
    if records:
        output.append(records)
    return taken


def _new_records(
    topic: str,
    checked: Iterable[tuple[Any, tuple[str | None, list[str]]]],
    output: Output,
    wanted: int,
    tally: Tally,
    more: dict[str, str],
) -> list[dict[str, str]]:
    """checked: (sample, what check_samples says of it) each; more: fields that each record gets beside its own."""
    records = []
    for sample, (reason, texts) in checked:
        tally.returned += 1
        if reason is None:
            record = to_record(texts, topic) | more
            mark = fingerprint(record["text"])
            reason = output.repeats(mark, texts[1]) or ("surplus" if len(records) >= wanted else None)
        if reason:
            tally.rejected[reason] += 1
            tally.reject(topic, reason, sample)
            continue
        output.note(record, mark, list(zip(ROLE_TO_NAME, texts, strict=True)))
        records.append(record)
    return records


def describe_counts(counts: dict[str, int]) -> str:
    return "，".join(f"{describe(name)} {n}" for name, n in sorted(counts.items(), key=lambda item: -item[1])) or "无"


def replay(entries: Iterable[dict[str, Any]], output: Output, topics: list[str], n: int, keep_reasoning: bool) -> Tally:
    """Take what a killed run had paid for and not written yet, and the surplus of earlier answers; nothing else changes."""
    tally, wanted = Tally(), set(topics)
    useful = (e for e in entries if e["topic"] in wanted and len(output.questions.get(e["topic"], ())) < n)
    for some in _in_blocks(useful):
        take(some, output, n, tally, keep_reasoning)
    return tally


def _in_blocks(entries: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    entries = iter(entries)
    return iter(lambda: list(itertools.islice(entries, AT_ONCE)), [])


def revalidate(
    entries: Callable[[], Iterable[dict[str, Any]]], output: Output, n: int, tally: Tally, keep_reasoning: bool
) -> Path | None:
    """Write the output anew from all stored answers by the rules of today; rows that no answer holds stay as they are.

    Return where the output was put that stood there before.
    """
    stored = {mark for entry in entries() for mark in _marks(entry)}
    backup = None
    with write_atomically(output.path) as file:
        fresh = Output(output.path, file, output.near_dup)
        for _, row in read_records(output.path) if output.path.stat().st_size else ():
            if fingerprint(row["text"]) not in stored:
                fresh.note_row(row)
                fresh.append([row])
        for some in _in_blocks(entries()):
            take(some, fresh, n, tally, keep_reasoning)
        if output.path.stat().st_size:
            backup = _beside(output.path)
            shutil.copy2(output.path, backup)
    return backup


def _marks(entry: dict[str, Any]) -> Iterator[int]:
    """Fingerprints of all samples of an answer that any rules might have made a row of."""
    for sample in read_answer(entry["text"]).samples:
        texts, _ = texts_of(sample)
        with contextlib.suppress(ValueError):
            if texts:
                yield fingerprint(to_record(texts, entry["topic"])["text"])


def _beside(path: Path) -> Path:
    numbered = (path.with_name(f"{path.stem}_before_revalidate{i or ''}.jsonl") for i in itertools.count())
    return next(one for one in numbered if not one.exists())


@contextlib.contextmanager
def open_rejected(path: Path | None) -> Iterator[Callable[[str, str, Any], None]]:
    """Give a function that appends a rejected sample with its reason to the file; without one it does nothing."""
    if path is None:
        yield lambda topic, reason, sample: None
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    refuse_foreign(path, "topic", "--rejected-out")
    mend_last_line(path)
    with open(path, "ab", buffering=0) as file:

        def reject(topic: str, reason: str, sample: Any) -> None:
            line = {"topic": topic, "reason": reason, "label": describe(reason), "sample": sample}
            try:
                file.write(dump_line(line))
            except TypeError:  # half a surrogate pair, for one
                file.write(json.dumps(line).encode() + b"\n")

        yield reject
