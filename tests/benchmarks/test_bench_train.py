"""The benchmark's own arithmetic: what it counts as data, and the ratios it prints."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch

from ..conftest import ROOT


@pytest.fixture(autouse=True)
def benchmarks_on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield
    for name in ("bench_train", "bench_data", "step_timer", "train_plain"):
        sys.modules.pop(name, None)


def test_the_table_gives_ratios_to_plain():
    import bench_train

    def result(tokens, gib, losses):
        return {
            "tokens": tokens, "places": 200, "seconds": 2.0, "peak_rss_gib": gib, "losses": losses,
            "versions": {"transformers": "5"},
        }  # fmt: skip

    results = {
        "plain": result(100, 4.0, [3.0, 2.0]),
        "ours": result(150, 1.0, [3.0, 2.00005]),
        "trl": {"error": "没有虚拟环境 trl"},
    }
    plain, ours, trl = [line.split(" | ") for line in bench_train.table(results, {}).splitlines()[2:]]
    assert plain[2:7] == ["50", "1.00", "50%", "4.00", "1.00"]
    assert ours[2:7] == ["75", "1.50", "25%", "1.00", "0.25"]
    assert ours[-1] == "5.0e-05 |"
    assert "没有虚拟环境" in trl[1]


def test_the_timer_counts_data_of_the_timed_steps_only(capsys):
    from step_timer import StepTimer
    from transformers import TrainerControl, TrainerState

    class Model(torch.nn.Module):
        def forward(self, input_ids):
            return input_ids

    model, timer = Model(), StepTimer(warm_up=1, pad_token_id=2)
    args, control, state = SimpleNamespace(), TrainerControl(), TrainerState(max_steps=3)
    timer.on_train_begin(args, state, control, model=model)
    for step, ids in enumerate(([[5, 5, 5]], [[5, 2, 2]], [[5, 6, 2]])):  # the first is warm-up; 2 is padding
        state.global_step = step
        timer.on_step_begin(args, state, control)
        model(input_ids=torch.tensor(ids))
        state.global_step = step + 1
        timer.on_step_end(args, state, control)
        timer.on_log(args, state, control, logs={"loss": 3.0 - step})
    timer.report()
    figures = json.loads(capsys.readouterr().out.removeprefix("RESULT "))
    assert (figures["tokens"], figures["places"], figures["micro_batches"]) == (3, 6, 2)
    assert figures["losses"] == [3.0, 2.0, 1.0]
    assert 0 <= figures["seconds"] < 60


def test_plain_pads_on_the_right_with_no_loss():
    from train_plain import pad

    batch = pad([{"input_ids": [5, 6], "labels": [-100, 6]}, {"input_ids": [7, 8, 9], "labels": [-100, -100, 9]}], 2)
    assert batch["input_ids"].tolist() == [[5, 6, 2], [7, 8, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert batch["labels"].tolist() == [[-100, 6, -100], [-100, -100, 9]]
