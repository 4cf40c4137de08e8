"""Measure a run of any trainer that takes transformers' callbacks: tokens of data, seconds, peak memory, losses.

Used by train_ours.py, train_plain.py, train_trl.py and train_llamafactory.py, each in a virtual environment of its own,
so this file imports only what they all have.
"""

import json
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback


class StepTimer(TrainerCallback):
    """Times the steps after ``warm_up`` up to the last, from on_step_begin to on_step_end, without loading or tokenising.

    Tokens of data are those that the model is called with and that are not padding, whatever shape the batch has.
    """

    def __init__(self, warm_up: int, pad_token_id: int):
        self.warm_up, self.pad_token_id = warm_up, pad_token_id
        self.timing, self.started, self.seconds = False, 0.0, 0.0
        self.tokens, self.places, self.micro_batches, self.losses = 0, 0, 0, []
        self.rss_start = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        model.register_forward_pre_hook(self._count, with_kwargs=True)
        self.rss_start = resident_gib("VmRSS")

    def _count(self, module: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if self.timing:
            ids = kwargs["input_ids"]
            self.tokens = self.tokens + (ids != self.pad_token_id).sum()
            self.places += ids.numel()
            self.micro_batches += 1

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.warm_up:
            wait_for_gpu()
            self.timing, self.started = True, time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.timing and state.global_step == state.max_steps:
            wait_for_gpu()
            self.timing, self.seconds = False, time.perf_counter() - self.started

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self.losses.append(float(logs["loss"]))

    def report(self, **more: Any) -> None:
        """Print one line, ``RESULT {...}``, which bench_train.py reads."""
        import accelerate
        import transformers

        figures = {
            "tokens": int(self.tokens),
            "places": self.places,
            "micro_batches": self.micro_batches,
            "seconds": round(self.seconds, 3),
            "rss_start_gib": round(self.rss_start, 3),
            "peak_rss_gib": round(resident_gib("VmHWM"), 3),
            "losses": self.losses,
            "versions": {
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "accelerate": accelerate.__version__,
            },
        }
        if torch.cuda.is_available():
            figures["peak_gpu_allocated_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 3)
            figures["peak_gpu_reserved_gib"] = round(torch.cuda.max_memory_reserved() / 2**30, 3)
        print("RESULT " + json.dumps(figures | more), flush=True)


def wait_for_gpu() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def resident_gib(line: str) -> float:
    """VmHWM is this process's own peak: unlike ru_maxrss it does not start at the parent's."""
    for entry in Path("/proc/self/status").read_text().splitlines():
        if entry.startswith(line):
            return int(entry.split()[1]) / 2**20
    return 0.0
