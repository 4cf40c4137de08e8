"""Each sentence: said where the figures are bad, by hand, and not where they are good."""

import math

import numpy as np
import pytest

from Firefly.component import watch

LN = math.log(1000)


def evaluations(*losses, train=()):
    history = []
    for number, loss in enumerate(losses, 1):
        if train:
            history.append({"loss": train[number - 1], "step": 10 * number})
        history.append({"eval_loss": loss, "step": 10 * number})
    return history


def test_series_takes_the_first_value_of_a_step():
    history = [
        {"loss": 3, "step": 1},
        {"eval_loss": 2.0, "step": 1},
        {"loss": 1.0, "step": 2},
        {"loss": 9.0, "step": 2},
    ]
    assert watch.series(history, "loss") == ([1, 2], [3.0, 1.0])
    assert watch.series(history, "grad_norm") == ([], [])


@pytest.mark.parametrize(
    ("losses", "best", "since"),
    [
        ([], None, 0),
        ([3.0], (10, 3.0), 0),
        ([3.0, 2.0, 2.0, 2.5], (20, 2.0), 2),  # as good as the best is not better
        ([3.0, 2.0, math.nan, 1.0], (40, 1.0), 0),
        ([3.0, math.nan], (10, 3.0), 1),
        ([math.nan, math.nan], None, 2),
    ],
)
def test_best_evaluation_and_how_long_ago_it_was(losses, best, since):
    assert watch.best_evaluation(evaluations(*losses)) == best
    assert watch.evaluations_since_best(evaluations(*losses)) == since


def test_flat_loss_is_named_at_the_level_of_guessing_only():
    said = watch.flat_loss([LN + 0.01, LN - 0.01] * 5, 1000, 1e-9)
    assert "6.91" in said
    assert "1e-09" in said
    assert watch.flat_loss([LN] * 9, 1000, 1e-9) is None  # too early to tell
    assert watch.flat_loss([LN * (1 - 0.01 * i) for i in range(10)], 1000, 1e-9) is None  # it falls
    assert watch.flat_loss([2.0] * 20, 1000, 1e-9) is None  # flat, but it has learned
    assert watch.flat_loss([2 * LN] * 10, 1000, 1e-9)  # worse than guessing


def test_no_gradient():
    assert watch.no_gradient([1.0, 0.0, 0.0, 0.0])
    assert watch.no_gradient([0.0, 0.0]) is None
    assert watch.no_gradient([0.0, 0.0, 1e-9]) is None


def test_gradient_spike_is_measured_against_the_median():
    earlier = [1.0] * 10 + [50.0]  # an earlier spike must not raise the bar
    said = watch.gradient_spike(120, 11.0, earlier, max_grad_norm=1.0)
    assert "第 120 步" in said
    assert "11 倍" in said
    assert watch.gradient_spike(120, 9.0, earlier, 1.0) is None
    assert watch.gradient_spike(120, 11.0, earlier[:9], 1.0) is None  # nothing to compare with yet
    assert watch.gradient_spike(120, 11.0, earlier, 20.0) is None  # below what is cut
    assert watch.gradient_spike(120, math.nan, earlier, 1.0) is None  # StopOnNan's business


def test_overfitting_needs_three_rises_and_a_falling_training_loss():
    rising = (2.0, 2.1, 2.2, 2.3)
    said = watch.overfitting(evaluations(*rising, train=(3.0, 2.5, 2.0, 1.5)), None)
    assert "第 10 步到第 40 步" in said
    assert "early_stopping_patience" in said
    assert "3.000 → 1.500" in said
    assert "early_stopping_patience" not in watch.overfitting(evaluations(*rising, train=(3.0, 2.5, 2.0, 1.5)), 2)
    assert watch.overfitting(evaluations(*rising, train=(1.0, 1.5, 2.0, 2.5)), None) is None
    assert watch.overfitting(evaluations(2.0, 2.1, 2.0, 2.3, train=(3.0, 2.5, 2.0, 1.5)), None) is None
    assert watch.overfitting(evaluations(*rising[:3], train=(3.0, 2.5, 2.0)), None) is None


@pytest.mark.parametrize(
    ("task", "mode", "rate", "word"),
    [
        ("sft", "full", 2e-4, "偏大"),
        ("sft", "full", 1e-5, None),
        ("sft", "qlora", 2e-4, None),
        ("sft", "qlora", 5e-3, "偏大"),
        ("sft", "lora", 1e-7, "偏小"),
        ("dpo", "full", 1e-4, "偏大"),
        ("dpo", "qlora", 5e-6, None),
        ("pretrain", "full", 1e-3, None),
    ],
)
def test_learning_rate_out_of_range(task, mode, rate, word):
    said = watch.learning_rate_advice(task, mode, rate, "paged_adamw_32bit")
    assert said is None if word is None else word in said
    assert watch.learning_rate_advice(task, mode, rate, "sgd") is None


def test_schedule_that_does_not_fit():
    assert watch.schedule_advice(1000, 50, 500, 100) == []
    assert watch.schedule_advice(1000, 0, None, None) == []
    (long,) = watch.schedule_advice(120, 200, None, None)
    assert "升不到" in long
    assert "改为 6 " in long
    assert "一半以上" in watch.schedule_advice(300, 200, None, None)[0]
    assert watch.schedule_advice(2, 1, None, None) == []  # 1 is what would be advised
    assert [s.split("=")[0] for s in watch.schedule_advice(100, 0, 500, 200)] == ["save_steps", "eval_steps"]


def test_truncation_suggests_a_length_that_holds_nearly_all():
    lengths = np.array([100] * 90 + [700] * 10)
    said = watch.truncation_advice(lengths, 512, n_lost=2, targets_lost=0.25)
    assert "10 条（10.0%）" in said
    assert "25.0%" in said
    assert "调到 704" in said  # the next multiple of 64
    assert watch.truncation_advice(lengths, 700, 0, 0.0) is None
    assert watch.truncation_advice(np.array([100] * 97 + [700] * 3), 512, 0, 0.1) is None  # few
    assert watch.truncation_advice(np.array([100] * 97 + [700] * 3), 512, 2, 0.1)  # few, but nothing is left of them


def test_rows_that_do_not_end_in_a_stop_token():
    said = watch.stop_token_advice([7, 7, 7, 2], [2, 3], lambda i: f"<{i}>")
    assert "3 / 4" in said
    assert "<7>" in said
    assert "<2>、<3>" in said
    assert watch.stop_token_advice([2, 3, 7], [2, 3], str) is None
    assert watch.stop_token_advice([], [2], str) is None
    assert watch.stop_token_advice([7], [], str)


def test_best_step_at_the_end():
    history = evaluations(3.0, 2.0, 2.5)
    assert "load_best_model_at_end" in watch.best_sentence(history, 30, loaded=False)
    assert "第 20 步：2.0000" in watch.best_sentence(history, 30, loaded=True)
    assert "最后一步" in watch.best_sentence(history[:2], 20, loaded=False)
    assert watch.best_sentence(history[:1], 10, loaded=False) is None
