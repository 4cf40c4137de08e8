"""Intervals against formulas and counted coverage; what a difference allows to be said."""

import numpy as np
import pytest

from Firefly.component import bootstrap


def test_every_model_is_compared_with_the_first_and_with_the_one_before():
    assert bootstrap.pairs_to_compare(["base", "s1", "s2"]) == [("base", "s1"), ("base", "s2"), ("s1", "s2")]
    assert bootstrap.pairs_to_compare(["base"]) == []


def test_columns_are_drawn_together_so_what_records_share_cancels_out():
    hard = np.random.default_rng(0).normal(5, 3, 40)
    totals = bootstrap.resample(np.stack([hard, hard - 0.5], 1), seed=1)
    assert np.ptp(totals[:, 0]) > 10, "resampling moves the sums themselves"
    assert bootstrap.interval((totals[:, 1] - totals[:, 0]) / 40, 40) == pytest.approx([-0.5, -0.5])
    assert (totals == bootstrap.resample(np.stack([hard, hard - 0.5], 1), seed=1)).all()
    assert (totals != bootstrap.resample(np.stack([hard, hard - 0.5], 1), seed=2)).any()


def test_draws_do_not_depend_on_how_many_are_gathered_at_a_time(monkeypatch):
    columns = np.random.default_rng(0).random((50, 2))
    whole = bootstrap.resample(columns, 3)
    monkeypatch.setattr(bootstrap, "_CHUNK", 5000)
    assert (bootstrap.resample(columns, 3) == whole).all()


def test_intervals_of_ten_records_hold_the_truth_as_often_as_they_say():
    """A ratio of sums of records of uneven length, as a loss per token is; the truth is 0."""
    rng = np.random.default_rng(0)
    held = plain = 0
    for trial in range(200):
        tokens = rng.lognormal(4, 0.6, 10).round() + 5
        totals = bootstrap.resample(np.stack([rng.normal(0, 0.5, 10) * tokens, tokens], 1), trial)
        ratio = totals[:, 0] / totals[:, 1]
        low, high = bootstrap.interval(ratio, 10)
        held += low <= 0 <= high
        low, high = np.quantile(ratio, [0.025, 0.975])
        plain += low <= 0 <= high
    assert held > 180 > plain


@pytest.mark.parametrize(("freedom", "point"), [(5, 2.571), (9, 2.262), (29, 2.045), (1000, 1.962)])
def test_points_of_students_distribution_are_those_of_its_table(freedom, point):
    assert bootstrap._student(freedom) == pytest.approx(point, abs=0.004)


def test_a_share_of_all_or_none_is_no_certainty():
    assert bootstrap.wilson(0, 10) == [0, pytest.approx(3.8415 / 13.8415, abs=1e-4)]
    assert bootstrap.wilson(16, 16) == [pytest.approx(16 / 19.8415, abs=1e-4), 1]
    low, high = bootstrap.wilson(5, 10)
    assert (low + high) / 2 == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("bounds", "records", "lower_is_better", "verdict"),
    [
        ([-0.5, -0.1], 20, True, "better"),
        ([-0.5, -0.1], 20, False, "worse"),
        ([0.1, 0.5], 20, True, "worse"),
        ([-0.1, 0.5], 20, True, "unclear"),
        ([-0.5, 0.0], 20, True, "unclear"),
        ([-0.5, -0.1], 5, True, "few"),
        (None, 1, True, "few"),
    ],
)
def test_a_gain_is_claimed_only_where_the_interval_leaves_0_out(bounds, records, lower_is_better, verdict):
    assert bootstrap.judge(bounds, records, lower_is_better) == verdict


@pytest.mark.parametrize("records", [1, 2, 5])
def test_records_too_few_for_95_percent_have_no_interval(records):
    """Of 2 records the widest interval that draws can give, from the one to the other, holds the truth every other time."""
    assert bootstrap.interval(bootstrap.resample(np.ones((records, 1)), 0)[:, 0], records) is None
