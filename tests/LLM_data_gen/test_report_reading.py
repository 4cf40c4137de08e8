"""One pass over the output: every record has the same chance, none is kept, lengths are told as they are."""

import weakref
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from LLM_data_gen.report_reading import SAMPLES, _edges, percentile, read_output
from sft_data.chatml import render_chatml


def row(i: int) -> dict:
    return {"text": render_chatml([{"role": "user", "content": f"{i}"}, {"role": "assistant", "content": "答"}])}


@given(st.integers(1, 10**6), st.integers(0, 10**6))
def test_bins_cover_all_lengths_and_never_get_narrower(low, more):
    edges = _edges(low, low + more).tolist()
    widths = [end - start for start, end in zip(edges[:-1], edges[1:], strict=True)]
    assert 1 <= edges[0] <= low <= low + more < edges[-1]
    assert widths == sorted(widths)
    assert len(widths) <= 42  # 28 are wanted; a width of 1.49 is rounded to 1


def test_percentiles_by_hand():
    assert [percentile({5: 1, 7: 8, 9: 1}, share) for share in (0.1, 0.11, 0.5, 0.9, 0.91)] == [5, 7, 7, 7, 9]


def test_every_record_is_as_likely_to_be_drawn():
    records = [row(i) for i in range(40)]
    times = Counter()
    for seed in range(1000):
        times.update(record["text"] for record, _ in read_output(records, seed).drawn)
    expected = 1000 * SAMPLES / 40
    assert len(times) == 40
    assert all(abs(n - expected) < 5 * (expected * 0.7) ** 0.5 for n in times.values())


def test_records_are_not_kept():
    class Row(dict):
        __hash__ = object.__hash__

    alive = weakref.WeakSet()

    def stream():
        for i in range(300):
            assert len(alive) <= SAMPLES + 2
            record = Row(row(i))
            alive.add(record)
            yield record

    assert read_output(stream(), 0).count == 300
