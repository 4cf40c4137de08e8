"""Quotas worked by hand and as properties; draws that depend on contents and seed alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft_data.errors import UserError
from sft_data.mixture import (
    ON_SHORTAGE,
    allocate,
    delivered,
    draw,
    explain,
    held_out,
    largest_total,
    shares_of,
    shuffled,
    split_total,
)


def two(ratio: float) -> dict[str, float]:
    return shares_of({"firefly": 1.0}, ratio)


@pytest.mark.parametrize(
    ("hit", "firefly", "total", "ratio", "how", "expected"),
    [
        (1000, 1000, 100, 0.4, "backfill", (40, 60)),
        (1000, 1000, None, 0.4, "backfill", (1000, 1000)),
        (30, 1000, 100, 0.4, "backfill", (30, 70)),  # HIT is short, Firefly fills up
        (1000, 50, 100, 0.4, "backfill", (50, 50)),  # Firefly is short, HIT fills up
        (30, 50, 100, 0.4, "backfill", (30, 50)),  # both are short
        (0, 10, 5, 1.0, "backfill", (0, 5)),
        (10, 10, 5, 0.0, "backfill", (0, 5)),
        (10, 10, 7, 0.5, "backfill", (4, 3)),
        (0, 0, 7, 0.5, "backfill", (0, 0)),
        (30, 1000, 100, 0.4, "shrink", (30, 45)),  # 75 is the largest total of which 30 are 0.4
        (30, 1000, None, 0.4, "shrink", (30, 45)),
        (1000, 1000, 100, 0.4, "shrink", (40, 60)),
        (30, 1000, 100, 0.4, "repeat", (40, 60)),
        (8, 1000, 100, 0.4, "repeat", (32, 68)),  # four times at most, then Firefly fills up
        (0, 1000, 100, 0.4, "repeat", (0, 100)),
        (1000, 1000, 100, 0.4, "fail", (40, 60)),
    ],
)
def test_allocation_by_hand(hit, firefly, total, ratio, how, expected):
    got = allocate({"hit": hit, "firefly": firefly}, total, two(ratio), how, 4)
    assert (got["hit"], got["firefly"]) == expected


def test_a_short_source_is_an_error_when_asked_for():
    with pytest.raises(UserError, match="HIT 需要 40 条，只有 30 条.*--total 75.*没有写任何文件"):
        allocate({"hit": 30, "firefly": 1000}, 100, two(0.4), "fail", 4)


SHARES = st.lists(st.integers(0, 9), min_size=2, max_size=5).filter(any)


@given(st.data(), SHARES, st.integers(1, 400), st.sampled_from(ON_SHORTAGE), st.integers(1, 5))
def test_quotas_keep_their_word(data, weights, total, how, repeat):
    names = ["hit", *(f"s{i}" for i in range(1, len(weights)))]
    shares = {name: weight / sum(weights) for name, weight in zip(names, weights, strict=True)}
    available = {name: data.draw(st.integers(0, 300)) for name in names}
    wanted = split_total(total, shares)
    enough = all(wanted[name] <= available[name] for name in names)
    assert sum(wanted.values()) == total
    assert all(abs(wanted[name] - total * shares[name]) < 1 for name in names)
    if how == "fail" and not enough:
        with pytest.raises(UserError):
            allocate(available, total, shares, how, repeat)
        return
    got = allocate(available, total, shares, how, repeat)
    assert sum(got.values()) <= total
    assert all(0 <= got[name] <= available[name] * (repeat if how == "repeat" else 1) for name in names)
    if enough:
        assert got == wanted
        assert explain(available, got, total, shares) is None
    else:
        assert explain(available, got, total, shares)
    if how == "backfill":
        assert sum(got.values()) == min(total, sum(available.values()))
    if how == "shrink":
        assert all(abs(got[name] - sum(got.values()) * shares[name]) < 1 for name in names)
    if how == "repeat" and sum(got.values()) < total:  # nothing that could have helped was left
        assert all(got[name] >= available[name] for name in names)


def test_shares_of_several_sources():
    shares = shares_of({"firefly": 1, "belle": 3}, 0.2)
    assert shares == pytest.approx({"hit": 0.2, "firefly": 0.2, "belle": 0.6})
    assert shares_of({}, 0.2) == {"hit": 1.0}
    assert delivered({"hit": 1, "firefly": 3}) == {"hit": 0.25, "firefly": 0.75}


def test_the_sentence_says_why_and_what_total_would_do():
    available = {"hit": 1100, "firefly": 250_000}
    said = explain(available, allocate(available, 300_000, two(0.4), "backfill", 4), 300_000, two(0.4))
    assert "HIT 需要 120000 条，只有 1100 条" in said
    assert "全部来源合计也只有 251100 条，少于 --total 300000" in said
    assert "--total 2750" in said
    shrunk = explain({"hit": 4400, "firefly": 9000}, {"hit": 4400, "firefly": 6600}, 300_000, two(0.4))
    assert "总数缩到了 11000 条" in shrunk
    assert "--on-shortage" not in shrunk, "that is what was done"
    said = explain(available, {"hit": 4400, "firefly": 5600}, 10_000, two(0.5))
    assert "HIT 平均重复 4.0 次" in said
    assert explain(available, {"hit": 4, "firefly": 6}, 10, two(0.4)) is None
    said = explain(available, available, None, two(0.4))
    assert "没有给 --total" in said
    assert "--total 2750" in said


@given(st.integers(0, 500), st.integers(0, 500), st.floats(0, 1))
def test_the_largest_total_delivers_the_shares_and_hardly_less_than_could_be(hit, firefly, ratio):
    available = {"hit": hit, "firefly": firefly}
    total = largest_total(available, two(ratio))
    assert all(n <= available[name] for name, n in split_total(total, two(ratio)).items())
    assert any((total + 2) * share > available[name] for name, share in two(ratio).items())


@pytest.mark.parametrize(
    ("size", "wanted"), [(0.1, (10, 5)), (30, (20, 10)), (0.999, (99, 49)), (10**6, (99, 49)), (0, (0, 0))]
)
def test_held_out_records_come_from_each_source_by_its_size(size, wanted):
    assert tuple(held_out({"hit": 100, "firefly": 50}, size).values()) == wanted


def prints_of(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1 << 63, (n, 2), np.uint64)


@pytest.mark.parametrize("count", [0, 1, 30, 100, 130, 250])
def test_a_draw_takes_each_record_as_often_as_goes_and_follows_contents_not_order(count):
    prints = prints_of(100)
    chosen = draw(prints, count, 7, "hit")
    times = np.bincount(chosen, minlength=100)
    assert len(chosen) == count
    assert times.max() - times.min() <= 1
    order = np.random.default_rng(1).permutation(100)
    again = draw(prints[order], count, 7, "hit")
    assert np.sort(order[again]).tolist() == chosen.tolist()
    if count % 100:
        assert draw(prints, count, 8, "hit").tolist() != chosen.tolist()
        assert draw(prints, count, 7, "firefly").tolist() != chosen.tolist()


def test_a_larger_draw_holds_the_smaller_one():
    prints = prints_of(100)
    assert set(draw(prints, 20, 7, "hit")) < set(draw(prints, 50, 7, "hit"))


def test_shuffling_follows_contents_not_order_and_spreads_copies():
    prints = prints_of(200)[np.repeat(np.arange(200), 3)]
    order = np.random.default_rng(2).permutation(600)
    first, second = prints[shuffled(prints, 5)], prints[order][shuffled(prints[order], 5)]
    assert (first == second).all()
    assert (first != prints[shuffled(prints, 6)]).any()
    together = (first[1:] == first[:-1]).all(axis=1).sum()
    assert together < 10  # 600 places, 400 of them with a copy elsewhere: 2 by chance, 400 if copies stayed together


def test_draws_are_uniform():
    prints = prints_of(2000)
    hits = sum(np.bincount(draw(prints, 500, seed, "hit"), minlength=2000) for seed in range(40))
    assert abs(hits.mean() - 10) < 1e-9
    assert 5 < hits.var() < 10  # binomial(40, 1/4) has 7.5
