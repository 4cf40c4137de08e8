"""Every row has the same chance to be drawn, the others are not kept, and what is counted is the whole file."""

import runpy
import weakref
from collections import Counter
from pathlib import Path

from LLM_data_gen.seen import SAMPLES, Seen
from sft_data.chatml import render_chatml

seen_of = runpy.run_path(str(Path(__file__).with_name("gen_helpers.py")))["seen_of"]


def row(i: int, **fields) -> dict:
    messages = [{"role": "user", "content": "问" * (i % 3)}, {"role": "assistant", "content": f"{i}"}]
    return {"text": render_chatml(messages), **fields}


def test_every_row_is_as_likely_to_be_drawn():
    rows = [row(i) for i in range(40)]
    times = Counter()
    for seed in range(1000):
        times.update(record["text"] for record, _ in seen_of(rows, seed).drawn())
    expected = 1000 * SAMPLES / 40
    assert len(times) == 40
    assert all(abs(n - expected) < 5 * (expected * 0.7) ** 0.5 for n in times.values())


def test_lengths_topics_and_the_order_of_the_drawn():
    rows = [row(i, topic=f"题{i % 2}") for i in range(30)] + [row(0, topic=None), row(1)]
    seen = seen_of(rows)
    assert seen.count == 32
    assert seen.lengths["user"] == {0: 11, 1: 11, 2: 10}
    assert seen.lengths["assistant"] == {1: 12, 2: 20}
    assert seen.lengths["system"] == {}
    assert seen.topics == {"题0": 15, "题1": 15}
    numbers = [rows.index(record) for record, _ in seen.drawn()]
    assert numbers == sorted(numbers)
    assert all(
        messages[1]["content"] == str(rows.index(record)) for record, messages in seen.drawn() if "topic" in record
    )


def test_rows_are_not_kept():
    class Row(dict):
        __hash__ = object.__hash__

    alive, seen = weakref.WeakSet(), Seen()
    for i in range(300):
        assert len(alive) <= SAMPLES + 1
        record = Row(row(i))
        alive.add(record)
        seen.add(record, [("user", "问")])
        del record
    assert seen.count == 300
