"""What happens around a training step: the bar, the log, stopping on NaN or on a signal.

monitor.py has what judges the run: warnings, curves, early stopping; samples.py the questions.
"""

import math
import signal
import time
from typing import Any

from transformers import ProgressCallback, TrainerCallback

from .errors import UserError
from .machine import agree_to_stop, launched
from .utils import logger


class Bar(ProgressCallback):
    """The progress bar alone: what was logged is written by LogMetrics."""

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        pass


class LogMetrics(TrainerCallback):
    """Each logged figure as one line, on stderr and in train.log; while training, with the time that is left."""

    NAMES = {"learning_rate": "lr", "tokens_per_second": "tokens/s"}
    HIDDEN = ("total_flos", "epoch", "eval_samples_per_second", "eval_steps_per_second")

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._began, self._first_step = time.monotonic(), state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: dict | None = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or not logs:
            return
        shown = {self.NAMES.get(k, k): v for k, v in logs.items() if k not in self.HIDDEN}
        figures = "  ".join(f"{k} {v:.5g}" if isinstance(v, float) else f"{k} {v}" for k, v in shown.items())
        done = state.global_step - self._first_step
        if "loss" in logs and done and (left := state.max_steps - state.global_step) > 0:
            figures += f"  还需 {clock(left * (time.monotonic() - self._began) / done)}"
        logger.info(f"步 {state.global_step}/{state.max_steps}（{state.epoch or 0:.2f} 轮）  {figures}")


def clock(seconds: float) -> str:
    """Return 1:02:03, or 2:03 below an hour."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


class StopOnNan(TrainerCallback):
    """A run whose loss or gradient is no number learns nothing more: stop, and say what usually mends it."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict | None = None, **kwargs: Any) -> None:
        for key in ("loss",) if args.fp16 else ("loss", "grad_norm"):  # fp16's scaler skips a step of infinite gradient
            value = (logs or {}).get(key)
            if value is not None and not math.isfinite(value):
                half = "fp16 改为 bf16；" if args.fp16 else ""
                raise UserError(
                    f"第 {state.global_step} 步的 {key} 是 {value}，训练已停止（之前的 checkpoint 都在 {args.output_dir}）。"
                    f"请依次尝试：{half}把 learning_rate（现为 {args.learning_rate:g}）降到十分之一；"
                    f"设 max_grad_norm 为 0.3（现为 {args.max_grad_norm:g}）；增加 warmup_steps；检查数据里有无异常长的记录。"
                )


class SaveOnInterrupt(TrainerCallback):
    """First Ctrl-C (or SIGTERM): finish the step, save a checkpoint, stop. Second: stop at once.

    Several processes stop after the same step, even if a signal reached only one. Their launcher passes a Ctrl-C on as
    two or three signals, and kills them itself after 30 seconds: there, only the first counts.
    """

    def __init__(self) -> None:
        self.interrupted = False
        self._stop_after: int | None = None
        self._previous: dict[int, Any] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._on_signal)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.interrupted = self._stop_after is not None and state.global_step >= self._stop_after
        self.restore()

    def restore(self) -> None:
        while self._previous:
            signal.signal(*self._previous.popitem())

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._stop_after is None:
            self._stop_after = agree_to_stop(state.global_step if self.interrupted else None)
        if self._stop_after is not None and state.global_step >= self._stop_after:
            control.should_save = control.should_training_stop = True

    def _on_signal(self, number: int, frame: Any) -> None:
        if self.interrupted and launched():
            return
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True
        logger.warning("收到中断信号：做完这一步、存好 checkpoint 后停止；再按一次立即停止。")
