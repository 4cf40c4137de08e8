import math
from types import SimpleNamespace

import pytest

from Firefly.component import callbacks
from Firefly.component.callbacks import LogMetrics, StopOnNan, clock
from Firefly.component.errors import UserError


@pytest.fixture
def said(monkeypatch):
    """What was logged, one string a line."""
    lines = []
    monkeypatch.setattr(callbacks, "logger", SimpleNamespace(info=lines.append))
    return lines


def state(step, **more):
    return SimpleNamespace(global_step=step, max_steps=100, epoch=0.5, is_world_process_zero=True, **more)


def test_clock():
    assert [clock(s) for s in (0, 59.6, 61, 3723)] == ["0:00", "1:00", "1:01", "1:02:03"]


def test_one_line_with_the_time_that_is_left(said, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: now[0])
    callback = LogMetrics()
    callback.on_train_begin(None, state(40), None)  # resumed at 40
    now[0] += 30.0
    logs = {"loss": 2.5, "grad_norm": 0.5, "learning_rate": 1e-4, "tokens_per_second": 1234.5, "epoch": 0.5}
    callback.on_log(None, state(50), None, logs)  # 10 steps in 30 s, 50 to go
    assert said == ["步 50/100（0.50 轮）  loss 2.5  grad_norm 0.5  lr 0.0001  tokens/s 1234.5  还需 2:30"]
    callback.on_log(None, state(50), None, {"eval_loss": 2.0, "eval_samples_per_second": 9.0})
    callback.on_log(None, state(100), None, {"loss": 2.0})
    assert said[1:] == ["步 50/100（0.50 轮）  eval_loss 2", "步 100/100（0.50 轮）  loss 2"]


@pytest.mark.parametrize(
    ("key", "fp16", "stops"), [("loss", True, True), ("grad_norm", False, True), ("grad_norm", True, False)]
)
def test_nan_stops_except_the_gradient_that_fp16_skips(key, fp16, stops):
    args = SimpleNamespace(fp16=fp16, output_dir="out", learning_rate=1e-3, max_grad_norm=1.0)
    if not stops:
        return StopOnNan().on_log(args, state(7), None, {key: math.nan})
    with pytest.raises(UserError, match="第 7 步.*learning_rate"):
        StopOnNan().on_log(args, state(7), None, {key: math.nan})
