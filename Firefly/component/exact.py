"""A run that is cut and resumed goes on as if it had not been cut: what transformers' checkpoints leave out.

transformers restores weights, optimizer, schedule, random states and the place in the data. Lost without this file: the
loss summed since the last log and the mean over the run; the order of length groups, which came from the global random
state; the epoch, to a sampler behind the wrappers that skip batches and share them among processes; the counters of
callbacks; what an evaluation or a data loader drew from the random states; and the log and evaluation at the end of an
epoch whose last step was a checkpoint.
"""

import contextlib
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState, TrainerControl
from transformers.trainer_pt_utils import LengthGroupedSampler, get_length_grouped_indices

RUNNING = "running_{rank}.json"  # in a checkpoint, one a process


class LengthGroups(LengthGroupedSampler):
    """transformers' length groups, whose order follows from the seed and the epoch alone."""

    def __init__(self, batch_size: int, lengths: list[int], seed: int):
        super().__init__(batch_size, lengths=lengths)
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return iter(get_length_grouped_indices(self.lengths, self.batch_size, generator=generator))


class ExactResume:
    """For a Trainer: resuming is bitwise exact on CPU, and as exact as the kernels are on a GPU."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.add_callback(TakeUp(self))
        self._resumed_from: Path | None = None
        self._earlier_s, self._began = 0.0, time.time()

    def train(self, resume_from_checkpoint: str | None = None, *args: Any, **kwargs: Any) -> Any:
        self._resumed_from = Path(resume_from_checkpoint) if resume_from_checkpoint else None
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def get_train_dataloader(self) -> torch.utils.data.DataLoader:
        """Its iterators draw their seed from a generator of their own: how many there were leaves no trace."""
        loader = super().get_train_dataloader()
        getattr(loader, "base_dataloader", loader).generator = torch.Generator().manual_seed(self.args.seed)
        return loader

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Tell the sampler its epoch, through whatever wraps it, and train no step beyond the last."""
        if self.state.global_step >= self.state.max_steps or self.control.should_training_stop:
            self.control.should_training_stop = True
            return
        layer = kwargs["train_dataloader"]
        while layer is not None:
            if hasattr(layer, "set_epoch"):
                layer.set_epoch(kwargs["epoch"])
            layer = getattr(layer, "batch_sampler", None) or getattr(layer, "sampler", None)
        super()._run_epoch(*args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluating, and answering questions on the way, changes nothing in the training that follows."""
        with same_random_states():
            return super().evaluate(*args, **kwargs)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        running = {
            "loss_since_log": self._tr_loss.item(),
            "loss_before": self._total_loss_scalar,
            "last_logged": self._globalstep_last_logged,
            "seconds": self._earlier_s + time.time() - self._began,
            "figures": getattr(self, "_metrics", {}).get("train", {}),  # TRL's, averaged at the next log
        }
        path = Path(output_dir) / RUNNING.format(rank=self.args.process_index)
        path.write_text(json.dumps(running), encoding="utf-8")

    def take_up(self, checkpoint: Path) -> None:
        """Restore what _save_rng_state kept; from another number of processes, each gets the mean of their losses."""
        self.state.compute_steps(self.args, self.state.max_steps)  # transformers would keep the checkpoint's save_steps
        self.args.eval_on_start = False
        best = f"checkpoint-{self.state.best_global_step}"
        if self.state.best_global_step and (checkpoint.parent / best).is_dir():  # the folder may have been moved
            self.state.best_model_checkpoint = str(checkpoint.parent / best)
        files = sorted(checkpoint.glob(RUNNING.format(rank="*")))
        if not files:
            return
        told = [json.loads(path.read_text(encoding="utf-8")) for path in files]
        mine = checkpoint / RUNNING.format(rank=self.args.process_index)
        own = told[files.index(mine)] if mine in files else told[0]
        if len(told) != self.args.world_size:
            own["loss_since_log"] = sum(each["loss_since_log"] for each in told) / len(told)
        self._tr_loss.fill_(own["loss_since_log"])
        self._total_loss_scalar, self._globalstep_last_logged = own["loss_before"], own["last_logged"]
        self._earlier_s = own["seconds"]
        if hasattr(self, "_metrics"):
            self._metrics["train"].update(own["figures"])

    def _finalize_training(self, trial: Any, num_train_samples: int, start_time: float) -> Any:
        """Mean loss and samples/s of the whole run, not of the part after the last resume."""
        self._initial_global_step = 0
        return super()._finalize_training(trial, num_train_samples, start_time - self._earlier_s)


class TakeUp(TrainerCallback):
    """Restores a checkpoint's state, and keeps an epoch's end and its checkpoint together."""

    def __init__(self, trainer: ExactResume):
        self.trainer, self._wanted = trainer, False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer._began, self.trainer._earlier_s = time.time(), 0.0
        if checkpoint := self.trainer._resumed_from:
            self.trainer.take_up(checkpoint)
            restore_callbacks(self.trainer.callback_handler.callbacks, state.stateful_callbacks)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """At the last step, of an epoch or of all, save after the epoch's end: a checkpoint before would lose its log
        and its evaluation.
        """
        self._wanted = control.should_save and (state.epoch == int(state.epoch) or state.global_step >= state.max_steps)
        if self._wanted:
            control.should_save = False

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.epoch != int(state.epoch) and state.global_step < state.max_steps:  # a signal cut it: not its end
            control.should_log = control.should_evaluate = control.should_save = False
        control.should_save = control.should_save or self._wanted
        self._wanted = False


def restore_callbacks(callbacks: list[TrainerCallback], saved: dict[str, Any]) -> None:
    """Give callbacks with a state (EarlyStoppingCallback's count) what the checkpoint holds, settings left as they are."""
    for callback in callbacks:
        if isinstance(callback, ExportableState) and not isinstance(callback, TrainerControl):
            told = saved.get(type(callback).__name__, {})
            told = told[-1] if isinstance(told, list) else told
            for name, value in told.get("attributes", {}).items():
                setattr(callback, name, value)


@contextlib.contextmanager
def same_random_states() -> Iterator[None]:
    """Leave Python's, NumPy's and torch's random states as they were."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
