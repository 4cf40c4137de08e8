import pytest

from sft_data.mixture import allocate, explain_share, largest_total, pick, share, split_eval


@pytest.mark.parametrize(
    ("hit", "firefly", "total", "ratio", "expected"),
    [
        (1000, 1000, 100, 0.4, (40, 60)),
        (1000, 1000, None, 0.4, (1000, 1000)),
        (30, 1000, 100, 0.4, (30, 70)),  # HIT is short, Firefly fills up
        (1000, 50, 100, 0.4, (50, 50)),  # Firefly is short, HIT fills up
        (30, 50, 100, 0.4, (30, 50)),  # both are short
        (0, 10, 5, 1.0, (0, 5)),
        (10, 10, 5, 0.0, (0, 5)),
        (10, 10, 7, 0.5, (4, 3)),
        (0, 0, 7, 0.5, (0, 0)),
    ],
)
def test_allocation_by_hand(hit, firefly, total, ratio, expected):
    assert allocate({"hit": hit, "firefly": firefly}, total, ratio) == {"hit": expected[0], "firefly": expected[1]}


def test_never_more_than_there_is_or_than_asked():
    for hit in range(0, 12, 3):
        for firefly in range(0, 12, 3):
            for total in range(1, 20):
                for ratio in (0, 0.25, 0.5, 0.9, 1):
                    got = allocate({"hit": hit, "firefly": firefly}, total, ratio)
                    assert 0 <= got["hit"] <= hit
                    assert 0 <= got["firefly"] <= firefly
                    assert sum(got.values()) == min(total, hit + firefly)  # backfilled as far as there is data


NOTHING = {"hit": [], "firefly": []}


def test_the_draw_is_without_replacement_shuffled_and_seeded():
    kept, allocated = {"hit": 50, "firefly": 80}, {"hit": 20, "firefly": 80}
    chosen = pick(kept, NOTHING, allocated, seed=7)
    assert len(set(chosen)) == len(chosen) == 100
    assert sum(name == "hit" for name, _ in chosen) == 20
    assert {i for name, i in chosen if name == "firefly"} == set(range(80))
    assert chosen == pick(kept, NOTHING, allocated, seed=7) != pick(kept, NOTHING, allocated, seed=8)
    assert [name for name, _ in chosen[:20]] != ["hit"] * 20


@pytest.mark.parametrize(
    ("size", "wanted"), [(0.1, (10, 5)), (30, (20, 10)), (0.999, (99, 49)), (10**6, (99, 49)), (0, (0, 0))]
)
def test_held_out_records_come_from_each_source_by_its_size_and_are_never_drawn(size, wanted):
    kept = {"hit": 100, "firefly": 50}
    held_out = split_eval(kept, size, seed=3)
    assert tuple(len(set(held_out[name])) for name in kept) == wanted
    allocated = {name: n - len(held_out[name]) for name, n in kept.items()}
    chosen = pick(kept, held_out, allocated, seed=3)
    assert sorted(chosen + [(name, i) for name in kept for i in held_out[name]]) == sorted(
        (name, i) for name, n in kept.items() for i in range(n)
    )


def test_what_is_held_out_of_one_source_does_not_depend_on_the_other():
    assert (
        split_eval({"hit": 100, "firefly": 0}, 0.1, 3)["hit"] == split_eval({"hit": 100, "firefly": 9}, 0.1, 3)["hit"]
    )


def test_the_sentence_says_why_and_what_total_would_do():
    available = {"hit": 1100, "firefly": 250_000}
    allocated = allocate(available, 300_000, 0.4)
    assert share(allocated) == pytest.approx(1100 / 251_100)
    sentence = explain_share(available, allocated, 300_000, 0.4)
    assert "HIT 需要 120000 条，只有 1100 条" in sentence
    assert "--total 2750" in sentence
    exact = allocate(available, 2750, 0.4)
    assert exact == {"hit": 1100, "firefly": 1650}
    assert explain_share(available, exact, 2750, 0.4) is None
    assert "未生效" in explain_share(available, available, None, 0.4)
    assert "Firefly 需要 60 条，只有 10 条" in explain_share(
        {"hit": 90, "firefly": 10}, {"hit": 90, "firefly": 10}, 100, 0.4
    )
    assert "补充数据" in explain_share({"hit": 0, "firefly": 10}, {"hit": 0, "firefly": 10}, 10, 0.4)


def test_the_advised_total_delivers_the_ratio():
    for hit in (0, 1, 7, 779):
        for firefly in (0, 3, 8229):
            for ratio in (0, 0.1, 0.4, 0.5, 0.99, 1):
                available = {"hit": hit, "firefly": firefly}
                total = largest_total(available, ratio)
                if total:
                    assert explain_share(available, allocate(available, total, ratio), total, ratio) is None
