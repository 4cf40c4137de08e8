"""transformers' Trainer, with the loss, the saving and the stopping that this project promises."""

import math
import signal
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback
from transformers.trainer_utils import EvalLoopOutput

from .errors import UserError
from .prompt import IGNORE_INDEX
from .utils import logger


class SFTTrainer(Trainer):
    """Trainer whose held-out loss is per token and whose every checkpoint holds the tokenizer and its chat template."""

    def __init__(self, *args: Any, tokenizer: Any, stop_ids: list[int], **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.tokenizer, self.stop_ids = tokenizer, stop_ids
        for noisy in (PrinterCallback, ProgressCallback):
            self.remove_callback(noisy)
        if not self.args.disable_tqdm:
            self.add_callback(Bar)
        for callback in (LogMetrics, StopOnNan):
            self.add_callback(callback)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> torch.utils.data.DataLoader:
        """Each process takes every n-th record. Where they do not divide, a record without targets stands in, so that
        none counts twice and every process still makes as many calls (ZeRO-3 gathers weights in each).
        """
        data = self.eval_dataset if eval_dataset is None else eval_dataset
        rank, world = self.args.process_index, self.args.world_size
        rows = [data[i] for i in range(rank, len(data), world)]
        if len(rows) < -(-len(data) // world):
            rows.append({**data[0], "labels": np.full_like(data[0]["labels"], IGNORE_INDEX)})
        return torch.utils.data.DataLoader(rows, self.args.eval_batch_size, collate_fn=self.data_collator)

    def evaluation_loop(
        self,
        dataloader: torch.utils.data.DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Sum the loss over all target tokens and divide once: a mean of batch means would weigh short batches more."""
        model = self._wrap_model(self.model, training=False, dataloader=dataloader)
        if model is self.model and self.is_deepspeed_enabled:
            model = self.model_wrapped
        model.eval()
        sums = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        n_samples = 0
        for inputs in dataloader:
            inputs = self._prepare_inputs(inputs)
            with torch.no_grad(), self.compute_loss_context_manager():
                loss = model(**inputs, num_items_in_batch=1).loss
            sums += torch.stack([loss.double(), (inputs["labels"][:, 1:] != IGNORE_INDEX).sum().double()])
            n_samples += len(inputs["labels"])
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        total, count = self.accelerator.reduce(sums, reduction="sum").tolist()
        metrics = {
            f"{metric_key_prefix}_loss": total / max(count, 1.0),
            f"{metric_key_prefix}_target_tokens": int(count),
        }
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=n_samples)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Save the model, then what makes the folder complete: tokenizer, chat template, stop tokens."""
        output_dir = output_dir or self.args.output_dir
        super()._save(output_dir, state_dict)
        if not self.args.should_save:
            return
        base = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        self.tokenizer.save_pretrained(output_dir)
        base.generation_config.eos_token_id = self.stop_ids
        base.generation_config.save_pretrained(output_dir)


class Bar(ProgressCallback):
    """The progress bar alone: what was logged is written by LogMetrics."""

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        pass


class LogMetrics(TrainerCallback):
    """Each logged figure as one line, on stderr and in train.log."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict | None = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and logs:
            shown = {k: v for k, v in logs.items() if k not in ("total_flos", "epoch")}
            figures = "  ".join(f"{k} {v:.5g}" if isinstance(v, float) else f"{k} {v}" for k, v in shown.items())
            logger.info(f"步 {state.global_step}/{state.max_steps}（{state.epoch or 0:.2f} 轮）  {figures}")


class StopOnNan(TrainerCallback):
    """A run whose loss or gradient is no number learns nothing more: stop, and say what usually mends it."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict | None = None, **kwargs: Any) -> None:
        for key in ("loss", "grad_norm"):
            value = (logs or {}).get(key)
            if value is not None and not math.isfinite(value):
                half = "fp16 改为 bf16；" if args.fp16 else ""
                raise UserError(
                    f"第 {state.global_step} 步的 {key} 是 {value}，训练已停止（之前的 checkpoint 都在 {args.output_dir}）。"
                    f"请依次尝试：{half}把 learning_rate（现为 {args.learning_rate:g}）降到十分之一；"
                    f"设 max_grad_norm 为 0.3（现为 {args.max_grad_norm:g}）；增加 warmup_steps；检查数据里有无异常长的记录。"
                )


class SaveOnInterrupt(TrainerCallback):
    """First Ctrl-C (or SIGTERM): finish the step, save a checkpoint, stop. Second: stop at once."""

    def __init__(self) -> None:
        self.interrupted = False
        self._previous: dict[int, Any] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._on_signal)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.restore()

    def restore(self) -> None:
        while self._previous:
            signal.signal(*self._previous.popitem())

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.interrupted:
            control.should_save = control.should_training_stop = True

    def _on_signal(self, number: int, frame: Any) -> None:
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True
        logger.warning("收到中断信号：做完这一步、存好 checkpoint 后停止；再按一次立即停止。")


def find_checkpoint(path: str) -> Path:
    """Return the checkpoint-N folder that ``path`` is, or the newest one in it."""
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(f"resume_from_checkpoint_path={path}：目录不存在，请检查路径。")
    if (folder / "trainer_state.json").exists() and folder.name.startswith("checkpoint-"):
        return folder
    found = [f for f in folder.glob("checkpoint-*") if (f / "trainer_state.json").exists()]
    if not found:
        raise UserError(
            f"resume_from_checkpoint_path={path}：里面没有 checkpoint-N（要有 trainer_state.json），无法续训；"
            "要从头训练请删去这个键，要在训好的模型上做第二阶段请改 model_name_or_path 或 adapter_name_or_path。"
        )
    return max(found, key=lambda f: int(f.name.rpartition("-")[2]))


def refuse_finished(trainer: Trainer, checkpoint: Path) -> None:
    """Resuming a finished run would train zero steps and report a loss of 0.0: say what to do instead."""
    from transformers.trainer_callback import TrainerState

    done = TrainerState.load_from_json(str(checkpoint / "trainer_state.json")).global_step
    max_steps = trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())[-1]
    if done >= max_steps:
        raise UserError(
            f"{checkpoint}：这次训练共 {max_steps} 步，checkpoint 已到第 {done} 步，没有剩下的步数可续。"
            "要继续训练更久，请调大 num_train_epochs 或 max_steps；要做第二阶段，请先用 script/merge_lora.py 合并，"
            "再把 model_name_or_path 指向合并后的目录（或用 adapter_name_or_path 接着训练这个适配器）。"
        )
