"""Direct preference optimization (Rafailov et al. 2023, arXiv 2305.18290): TRL's loss, and the rest as in every task.

Data, template and stop tokens come from preference.py, models from model.py; saving, logging and stopping are the
other tasks' own. TRL is needed for this task alone.
"""

import functools
from dataclasses import MISSING, fields
from typing import Any

from transformers import TrainingArguments, set_seed

from .argument import CustomizedArguments
from .callbacks import SaveOnInterrupt
from .errors import UserError
from .model import load_for_training, load_reference
from .preference import PreferenceDataset, load_preferences
from .template import stop_token_ids
from .trainer import Basics

try:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer
except ImportError as error:
    raise UserError(
        f'task_type=dpo 需要 TRL（{error}）：请先 pip install "trl>=1.16,<1.17"（要 Python 3.11 或更新）。'
    ) from None


def dpo_arguments(custom: CustomizedArguments, values: dict[str, Any]) -> DPOConfig:
    """TRL's arguments, with transformers' defaults where TRL has its own (bf16, learning_rate, logging_steps...)."""
    defaults = {f.name: f.default for f in fields(TrainingArguments) if f.init and f.default is not MISSING}
    return DPOConfig(**defaults | values | {"beta": custom.beta, "max_length": custom.max_seq_length})


def build_preference_trainer(
    custom: CustomizedArguments, args: DPOConfig, tokenizer: Any, stop_word: str | None
) -> "PreferenceTrainer":
    """Read the pairs, then load the model and, for full training, its frozen copy."""
    train_data, eval_data = load_preferences(custom, args, tokenizer)
    set_seed(args.seed)
    model = load_for_training(custom, args, tokenizer)
    head = model.get_output_embeddings()
    if not hasattr(head, "bias"):  # PEFT's wrapper around trained tokens hides it, and TRL asks for it
        head.bias = None
    try:
        return PreferenceTrainer(
            model=model,
            ref_model=load_reference(custom, args, tokenizer) if custom.train_mode == "full" else None,
            args=args,
            train_dataset=train_data,
            eval_dataset=eval_data,
            processing_class=tokenizer,
            callbacks=[SaveOnInterrupt()],
            tokenizer=tokenizer,
            stop_ids=stop_token_ids(tokenizer, model, stop_word),
            loraplus_lr_ratio=custom.loraplus_lr_ratio,
            new_adapter=not custom.adapter_name_or_path,
        )
    except ValueError as error:
        raise UserError(f"task_type=dpo：TRL 不接受现在的设置：{error}") from None


class PreferenceTrainer(Basics, DPOTrainer):
    """TRL's DPOTrainer on rows that are token ids already; it reports to nobody and writes no model card.

    The reference is the frozen copy given as ``ref_model``; of a new adapter, the model with the adapter off; of an
    adapter that goes on from stage 1, that adapter as it was.
    """

    def __init__(self, model: Any, train_dataset: PreferenceDataset, new_adapter: bool, **kwargs: Any):
        exact = {name: p.data for name, p in model.named_parameters() if p.requires_grad}
        looked_at = Dataset.from_list([train_dataset[0]])  # TRL wants a datasets.Dataset, and looks at its first row
        super().__init__(model=model, train_dataset=looked_at, **kwargs)
        self.train_dataset = train_dataset
        for name, parameter in model.named_parameters():
            if name in exact and parameter.dtype != exact[name].dtype:
                parameter.data = exact[name].to(
                    parameter.device
                )  # TRL rounds QLoRA's adapter to bf16: small steps are lost
        if "ref" in getattr(model, "peft_config", {}):
            if new_adapter:
                model.delete_adapter("ref")
            else:
                model.save_pretrained = functools.partial(model.save_pretrained, selected_adapters=["default"])

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list, Any]:
        """As in Basics; TRL's batches mark the answers' tokens by ``completion_mask``."""
        self.meter.start()
        batches, num_items_in_batch = DPOTrainer.get_batch_samples(self, *args, **kwargs)
        self.meter.got_data([{**batch, "target_index": batch["completion_mask"].nonzero()} for batch in batches])
        return batches, num_items_in_batch

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Rewards, their margin and accuracy and the answers' log-probabilities; TRL's other figures say little here."""
        for figures in self._metrics.values():
            for name in ("entropy", "num_tokens", "logits/chosen", "logits/rejected", "mean_token_accuracy"):
                figures.pop(name, None)
        super().log(logs, *args, **kwargs)

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset

    def _send_telemetry(self) -> None:
        pass

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        pass
