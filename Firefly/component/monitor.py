"""Callbacks that watch a run learn: warnings that name the cause, loss.png, early stopping, and questions answered."""

import time
from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainerCallback

from . import watch
from .curves import draw_curves
from .evaluation import group_sources, source_keys
from .prompt import IGNORE_INDEX
from .samples import Samples, questions_of_file, questions_of_rows
from .utils import logger

LAST_TARGETS = 500  # rows looked at for their last target
DRAWING_SHARE = 0.02  # of the time, at most


def monitor(trainer: Any, custom: Any) -> "Curves":
    """Add the callbacks of this file and samples.py to a trainer that is about to train; return the one that draws.

    Raises:
        UserError: eval_questions can't be read.
    """
    held_out, stop_ids = trainer.eval_dataset, trainer.stop_ids
    names = {key: name for name, key in source_keys(list(group_sources(getattr(held_out, "category", [])))).items()}
    if custom.eval_questions:
        questions = questions_of_file(custom.eval_questions, trainer.tokenizer)
    else:
        questions = questions_of_rows(held_out, trainer.tokenizer, stop_ids) if held_out else []
    trainer.add_callback(Warnings(trainer, custom))
    if questions:
        trainer.add_callback(Samples(questions, trainer.tokenizer, stop_ids, names))
    if custom.early_stopping_patience:
        trainer.add_callback(EarlyStop(custom.early_stopping_patience))
    curves = Curves(names)
    trainer.add_callback(curves)
    return curves


class Warnings(TrainerCallback):
    """Says what watch.py finds, each thing once."""

    def __init__(self, trainer: Any, custom: Any):
        self.custom, self.said = custom, set()
        self.data, self.held_out = trainer.train_dataset, trainer.eval_dataset
        self.tokenizer, self.stop_ids = trainer.tokenizer, trainer.stop_ids
        config = trainer.model.config
        self.vocab_size = getattr(config, "vocab_size", None) or len(trainer.tokenizer)

    def say(self, name: str, sentence: str | None) -> None:
        if sentence and name not in self.said:
            self.said.add(name)
            logger.warning(sentence)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        custom = self.custom
        self.warmup = args.get_warmup_steps(state.max_steps)
        by_steps = {key: str(getattr(args, f"{key}_strategy").value) == "steps" for key in ("save", "eval")}
        self.say("lr", watch.learning_rate_advice(custom.task_type, custom.train_mode, args.learning_rate, args.optim))
        for sentence in watch.schedule_advice(
            state.max_steps,
            self.warmup,
            args.save_steps if by_steps["save"] else None,
            args.eval_steps if by_steps["eval"] else None,
        ):
            self.say(sentence, sentence)
        data = getattr(self.data, "dataset", self.data)  # of packed rows
        if custom.task_type == "sft" and hasattr(data, "store"):
            self.say("truncation", self._truncation(data))
            self.say("stop", watch.stop_token_advice(last_targets(data), self.stop_ids, self._show))

    def _truncation(self, data: Any) -> str | None:
        """Of the whole file, with what was split off of it to be held out."""
        parts = [data] + ([self.held_out] if getattr(self.held_out, "store", None) is data.store else [])
        index = data.store.index
        kept = sum(int(part.target_counts.sum()) for part in parts)
        lost = sum(part.dropped.get("no_target_after_truncation", 0) for part in parts)
        share = 1 - kept / max(1, int(index["targets"].sum(dtype=np.int64)))
        return watch.truncation_advice(index["length"], self.custom.max_seq_length, lost, share)

    def _show(self, token: int) -> str:
        return f"{token}（{self.tokenizer.convert_ids_to_tokens(token)!r}）"

    def on_log(self, args: Any, state: Any, control: Any, logs: dict | None = None, **kwargs: Any) -> None:
        if "loss" not in (logs or {}):
            return
        warm = [entry for entry in state.log_history[-1000:] if "loss" in entry and entry["step"] > self.warmup]
        losses, norms = ([entry[key] for entry in warm if key in entry] for key in ("loss", "grad_norm"))
        if self.custom.task_type != "dpo":  # whose loss starts at ln 2
            self.say("flat", watch.flat_loss(losses, self.vocab_size, args.learning_rate))
        self.say("no gradient", watch.no_gradient(norms))
        if norms and "grad_norm" in logs:
            spike = watch.gradient_spike(state.global_step, norms[-1], norms[:-1], args.max_grad_norm)
            self.say("spike", spike)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.say("overfitting", watch.overfitting(state.log_history, self.custom.early_stopping_patience))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        loaded = bool(args.load_best_model_at_end and state.best_model_checkpoint)
        if sentence := watch.best_sentence(state.log_history, state.global_step, loaded):
            logger.info(sentence)


def last_targets(data: Any, count: int = LAST_TARGETS) -> list[int]:
    """The last target token of rows spread over the data, of those that were not cut."""
    rows = np.unique(np.linspace(0, len(data) - 1, min(len(data), count)).astype(int))
    whole = data.store.index["length"][data.records[rows]] == data.lengths[rows]
    labels = (data[int(row)]["labels"] for row in rows[whole])
    return [int(row[row != IGNORE_INDEX][-1]) for row in labels]


class EarlyStop(TrainerCallback):
    """Stops after ``patience`` evaluations in a row without a lower held-out loss. It counts in the log that
    checkpoints keep, so a resumed run stops where the uncut one would.
    """

    def __init__(self, patience: int):
        self.patience = patience

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A run that was killed after it stopped and before its model was saved has no step left to train."""
        control.should_training_stop = watch.evaluations_since_best(state.log_history) >= self.patience

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if watch.evaluations_since_best(state.log_history) >= self.patience and not control.should_training_stop:
            control.should_training_stop = True
            logger.info(f"早停：连续 {self.patience} 次评测的损失都没有更低，在第 {state.global_step} 步停止训练。")


class Curves(TrainerCallback):
    """Keeps loss.png up to date. ``draw`` at the end of the run, however it ended."""

    def __init__(self, names: dict[str, str]):
        self.names, self._drawn, self._took, self._missing = names, 0.0, 0.0, False

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if time.monotonic() - self._drawn > self._took / DRAWING_SHARE:
            self.draw(args, state)

    on_evaluate = on_save

    def draw(self, args: Any, state: Any) -> None:
        """A picture that can't be drawn is no reason to lose a run: it is only said why."""
        if not state.is_world_process_zero or self._missing:
            return
        started = time.monotonic()
        try:
            draw_curves(state.log_history, Path(args.output_dir) / "loss.png", self.names)
        except ImportError:
            self._missing = True
            logger.warning("没有装 matplotlib，不画 loss.png：需要的话请 pip install matplotlib；训练不受影响。")
        except OSError as error:
            logger.warning(f"loss.png 没有写成（{error.strerror or error}），训练不受影响。")
        self._drawn = time.monotonic()
        self._took = self._drawn - started
