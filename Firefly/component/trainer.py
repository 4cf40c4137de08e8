"""transformers' Trainer, with the loss, the saving and the stopping that this project promises."""

from typing import Any

import numpy as np
import torch
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback
from transformers.trainer_utils import EvalLoopOutput

from .callbacks import Bar, LogMetrics, StopOnNan
from .errors import UserError
from .evaluation import group_sources, source_keys
from .evenly import Evenly
from .exact import ExactResume, LengthGroups
from .finite import NoNan
from .lora import LoraPlus
from .prompt import IGNORE_INDEX
from .saving import SafeCheckpoints
from .speed import Meter, peak_flops


class Basics(NoNan, ExactResume, SafeCheckpoints, LoraPlus):
    """What the trainer of every task has, laid over transformers' Trainer or TRL's: its callbacks, its speedometer, and
    checkpoints that hold the tokenizer, its chat template and the stop tokens.
    """

    def __init__(
        self, *args: Any, tokenizer: Any, stop_ids: list[int], loraplus_lr_ratio: float | None = None, **kwargs: Any
    ):
        super().__init__(*args, **kwargs)
        self.tokenizer, self.stop_ids, self.loraplus_lr_ratio = tokenizer, stop_ids, loraplus_lr_ratio
        for noisy in (PrinterCallback, ProgressCallback):
            self.remove_callback(noisy)
        if not self.args.disable_tqdm:
            self.add_callback(Bar)
        for callback in (LogMetrics, StopOnNan):
            self.add_callback(callback)
        half = torch.bfloat16 if self.args.bf16 else torch.float16 if self.args.fp16 else torch.float32
        self.meter = Meter(self.model, peak_flops(self.args.device, half))
        self.add_callback(StopWatch(self.meter))

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        try:
            return super().create_optimizer(model)
        except (ImportError, ValueError) as error:
            raise UserError(
                f"optim={self.args.optim.value}：这里用不了（{error}），请装上它要的包或换一个优化器。"
            ) from None

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list, Any]:
        """The micro-batches of one step; how long they took to come, and what is in them, is measured."""
        self.meter.start()
        batches, num_items_in_batch = super().get_batch_samples(*args, **kwargs)
        self.meter.got_data(batches)
        return batches, num_items_in_batch

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:
            logs["tokens_per_second"] = round(self.meter.tokens_per_second() * self.args.world_size, 1)
        super().log(logs, *args, **kwargs)

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler:
        """Group by the lengths that the dataset knows: transformers would read every record to find them."""
        data = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(data)
        rows = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return LengthGroups(rows, [int(n) for n in data.lengths], seed)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Save the model, then what makes the folder complete: tokenizer, chat template, stop tokens."""
        output_dir = output_dir or self.args.output_dir
        base = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        if state_dict:  # DeepSpeed copies a tied tensor once for each of its names
            state_dict = {k: v for k, v in state_dict.items() if k not in getattr(base, "all_tied_weights_keys", {})}
        super()._save(output_dir, state_dict)
        if not self.args.should_save:
            return
        self.tokenizer.save_pretrained(output_dir)
        base.generation_config.eos_token_id = self.stop_ids
        base.generation_config.save_pretrained(output_dir)


class SFTTrainer(Evenly, Basics, Trainer):
    """Trainer of sft and pretrain: the held-out loss is per token."""

    def get_eval_dataloader(self, eval_dataset: Any = None) -> torch.utils.data.DataLoader:
        """Batches of one source each. Each process takes every n-th record of a source; where they do not divide, a
        record without targets stands in, so that none counts twice and every process still makes as many calls (ZeRO-3
        gathers weights in each).
        """
        data = self.eval_dataset if eval_dataset is None else eval_dataset
        groups = group_sources(getattr(data, "category", [""] * len(data)))
        self.eval_sources = list(groups)
        rank, world, size = self.args.process_index, self.args.world_size, self.args.eval_batch_size
        rows, batches = [], []
        for source, members in enumerate(groups.values()):
            mine = [{**data[i], "source": source} for i in members[rank::world]]
            if len(mine) < -(-len(members) // world):
                nothing = np.full_like(data[members[0]]["labels"], IGNORE_INDEX)
                mine.append({**data[members[0]], "labels": nothing, "source": source})
            batches += [range(len(rows) + i, len(rows) + min(i + size, len(mine))) for i in range(0, len(mine), size)]
            rows += mine

        def collate(batch: list[dict]) -> dict[str, Any]:
            return {**self.data_collator(batch), "source": batch[0]["source"]}

        return torch.utils.data.DataLoader(rows, batch_sampler=batches, collate_fn=collate)

    def evaluation_loop(
        self,
        dataloader: torch.utils.data.DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Sum the loss over all target tokens, of each source and of all, and divide once: a mean of batch means would
        weigh short batches more.
        """
        model = self._wrap_model(self.model, training=False, dataloader=dataloader)
        if model is self.model and self.is_deepspeed_enabled:
            model = self.model_wrapped
        model.eval()
        sums = torch.zeros(len(self.eval_sources), 2, dtype=torch.float64, device=self.args.device)
        for inputs in dataloader:
            source = inputs.pop("source")
            inputs = self._prepare_inputs(inputs)
            with torch.no_grad(), self.compute_loss_context_manager():
                loss = model(**inputs, num_items_in_batch=1).loss
            sums[source, 0] += loss
            sums[source, 1] += len(inputs["target_index"])
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        sums = self.accelerator.reduce(sums, reduction="sum")
        total, count = sums.sum(0).tolist()
        metrics = {
            f"{metric_key_prefix}_loss": total / max(count, 1.0),
            f"{metric_key_prefix}_target_tokens": int(count),
        }
        if len(sums) > 1:
            each = zip(source_keys(self.eval_sources).values(), sums.tolist(), strict=True)
            metrics |= {f"{metric_key_prefix}_loss_{key}": total / max(count, 1.0) for key, (total, count) in each}
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=len(dataloader.dataset))


class StopWatch(TrainerCallback):
    """Tells the meter when a step is done: what follows it (logging, saving, evaluation) is not training time."""

    def __init__(self, meter: Meter):
        self.meter = meter

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.meter.stop()
