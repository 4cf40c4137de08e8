"""Losses per source with intervals, and which pairs of models are compared."""

import numpy as np
import pytest

from Firefly.component.errors import UserError
from Firefly.component.eval_losses import Losses, analyse, loss_report
from Firefly.component.eval_records import HeldOut, Record, target_groups


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
