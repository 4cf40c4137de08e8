"""Lengths are told as they are."""

from hypothesis import given
from hypothesis import strategies as st

from LLM_data_gen.report_reading import _edges, percentile


@given(st.integers(1, 10**6), st.integers(0, 10**6))
def test_bins_cover_all_lengths_and_never_get_narrower(low, more):
    edges = _edges(low, low + more).tolist()
    widths = [end - start for start, end in zip(edges[:-1], edges[1:], strict=True)]
    assert 1 <= edges[0] <= low <= low + more < edges[-1]
    assert widths == sorted(widths)
    assert len(widths) <= 42  # 28 are wanted; a width of 1.49 is rounded to 1


def test_percentiles_by_hand():
    assert [percentile({5: 1, 7: 8, 9: 1}, share) for share in (0.1, 0.11, 0.5, 0.9, 0.91)] == [5, 7, 7, 7, 9]
