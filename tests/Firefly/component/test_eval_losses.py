"""Losses per source with intervals, and which pairs of models are compared."""

import numpy as np
import pytest

from Firefly.component.errors import UserError
from Firefly.component.eval_losses import Losses, analyse, loss_report
from Firefly.component.eval_records import HeldOut, Record, choose_asked, prepare, target_groups


def measured(groups: dict[str, int]) -> Losses:
    """Twenty records of two sources; "better" loses 0.5 a token on hit, and is as good, give or take, on firefly."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(5, 50, 20).astype(float)
    base = tokens * rng.normal(4, 1, 20)
    better = base - tokens * np.where(np.arange(20) < 8, 0.5, 0.3 * (-1) ** np.arange(20))
    return Losses(
        ["base", "better"],
        ["hit"] * 8 + ["firefly"] * 12,
        groups,
        np.stack([base, better], 1),
        np.stack([tokens] * 2, 1),
    )


def test_losses_are_sums_over_tokens_and_gains_are_claimed_per_source():
    losses = measured({"base": 0, "better": 0})
    models, differences = analyse(losses, seed=1)
    hit = models["base"]["by_source"]["hit"]
    assert hit["loss"] == pytest.approx(losses.sums[:8, 0].sum() / losses.tokens[:8, 0].sum())
    assert hit["loss_interval"][0] < hit["loss"] < hit["loss_interval"][1]
    assert hit["perplexity_interval"] == pytest.approx(np.exp(hit["loss_interval"]), rel=1e-5)
    found = {d["source"]: d for d in differences}
    assert found["hit"]["interval"] == pytest.approx([-0.5, -0.5])
    assert {source: d["verdict"] for source, d in found.items() if source} == {"hit": "better", "firefly": "unclear"}
    assert analyse(losses, seed=1) == (models, differences)
    assert analyse(losses, seed=2)[1] != differences


def test_models_that_predict_other_tokens_are_not_compared():
    models, differences = analyse(measured({"base": 0, "better": 1}), seed=1)
    assert differences == []
    assert set(models) == {"base", "better"}
    same = [([1, 2, 3], [-100, 2, 3])]
    assert target_groups({"a": same, "b": [([9, 1, 2, 3], [-100, -100, 2, 3])], "c": [([1, 2, 4], [-100, 2, 4])]}) == {
        "a": 0, "b": 0, "c": 1,
    }  # fmt: skip


def test_a_loss_that_is_no_number_is_an_error_with_its_place():
    held = HeldOut([Record("e.jsonl:7", "hit", [])], {"base": [([1, 2], [-100, 2])]}, {"base": 0}, 1, 0, {}, [])
    with pytest.raises(UserError, match="e.jsonl:7"):
        loss_report(held, [[float("nan")]], 0)


def held_out(sources: list[str]) -> HeldOut:
    records = [Record(f"e.jsonl:{i}", source, []) for i, source in enumerate(sources)]
    pairs = [([1, 2], [-100, 2])] * len(records)
    return HeldOut(records, {"base": pairs, "tuned": pairs}, {"base": 0, "tuned": 0}, len(records), 0, {}, [])


def test_a_gain_on_what_was_trained_on_is_none():
    """Eight records of hit gain 1, all of them leaked; eight of firefly gain nothing, give or take."""
    held = held_out(["hit"] * 8 + ["firefly"] * 8)
    sums = [[3.0] * 16, [2.0] * 8 + [3.1, 2.9] * 4]
    leaked = {f"e.jsonl:{i}" for i in range(8)}
    plain = {d["source"]: d["verdict"] for d in loss_report(held, sums, 0)["differences"]}
    assert plain == {None: "better", "hit": "better", "firefly": "unclear"}
    report = loss_report(held, sums, 0, leaked)
    assert {d["source"]: d["verdict"] for d in report["differences"]} == plain | {"hit": "leaked"}
    (without,) = report["without_leaked"]["differences"]
    assert (without["records"], without["verdict"], without["difference"]) == (8, "unclear", pytest.approx(0))
    report = loss_report(held, sums, 0, {record.where for record in held.records})
    assert {d["verdict"] for d in report["differences"]} == {"leaked", "unclear"}
    assert report["without_leaked"] == {"records": 0, "differences": []}


def test_questions_to_answer_are_those_that_did_not_leak():
    records = held_out(["hit"] * 6).records
    assert choose_asked(records, set(), 2) == ([records[0], records[3]], [])
    asked, notes = choose_asked(records, {"e.jsonl:0", "e.jsonl:3"}, 9)
    assert [one.where[-1] for one in asked] == ["1", "2", "4", "5"]
    assert "4 条" in notes[0]
    assert choose_asked(records, {one.where for one in records}, 9) == (records, [])
    assert choose_asked(records, {"e.jsonl:0"}, 0) == ([], [])


class Session:
    """Each character of a conversation is a token, and all but the first a target."""

    class tokenizer:
        chat_template = "t"


def test_of_many_records_left_out_a_few_are_named(monkeypatch, capsys):
    from Firefly.component import prompt

    labels = [[-100, 2 if i == 0 else -100] for i in range(99)]
    monkeypatch.setattr(prompt, "encode_conversations", lambda tokenizer, many: [([1, 2], own) for own in labels])
    texts = [[{"role": "user", "content": f"问{i}"}, {"role": "assistant", "content": "答"}] for i in range(99)]
    held = prepare({"base": Session()}, [Record(f"e.jsonl:{i}", "hit", text) for i, text in enumerate(texts)], set(), 9)
    assert held.dropped == {"没有目标 token": 98}
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("e.jsonl:1：")
    assert lines[5:] == ["另有 93 条也是这样。"]


def test_copies_count_once_and_small_sources_together(monkeypatch):
    """Twenty sources, the first with three records, two of them the same."""
    from Firefly.component import prompt

    monkeypatch.setattr(prompt, "encode_conversations", lambda tokenizer, many: [([1, 2], [-100, 2])] * len(many))

    def record(i: int, source: str, text: str) -> Record:
        return Record(
            f"e.jsonl:{i}", source, [{"role": "user", "content": text}, {"role": "assistant", "content": "答"}]
        )

    records = [record(i, f"s{max(0, i - 2)}", f"问{max(1, i)}") for i in range(22)]
    held = prepare({"base": Session()}, records, set(), 9)
    assert held.read == 22 == len(held.records) + sum(held.dropped.values())
    assert held.dropped == {"没有目标 token": 0, "与前面的记录相同": 1}
    assert [one.where for one in held.records] == [f"e.jsonl:{i}" for i in range(22) if i != 1]
    assert len({one.source for one in held.records}) == 12
    assert sum(one.source == "其余" for one in held.records) == 9
    assert "有 20 个来源" in held.notes[0]
