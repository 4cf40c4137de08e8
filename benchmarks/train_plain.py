"""Contender (a): transformers' Trainer as people write it: padding to the longest, full logits, the model's own loss.

Argument: the settings that bench_train.py wrote. Reads rows tokenised by this project, so that labels are the same.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch


def pad(rows: list[dict[str, list[int]]], pad_token_id: int) -> dict[str, torch.Tensor]:
    """Return input_ids, attention_mask and labels, each (batch, longest) int64."""
    longest = max(len(row["input_ids"]) for row in rows)

    def stack(key: str, fill: int) -> torch.Tensor:
        return torch.tensor([row[key] + [fill] * (longest - len(row[key])) for row in rows])

    mask = torch.tensor([[1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in rows])
    return {"input_ids": stack("input_ids", pad_token_id), "attention_mask": mask, "labels": stack("labels", -100)}


def load_model(settings: dict[str, Any]) -> torch.nn.Module:
    """Full: float32 weights. LoRA: a half-precision base. QLoRA: NF4, prepared the way PEFT's documentation shows."""
    from transformers import AutoModelForCausalLM

    mode = settings["train_mode"]
    half = torch.bfloat16 if settings["training"].get("bf16") else torch.float32
    kwargs: dict[str, Any] = {"dtype": torch.float32 if mode == "full" else half}
    if mode == "qlora":
        from transformers import BitsAndBytesConfig

        kwargs["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=half,
        )
    model = AutoModelForCausalLM.from_pretrained(settings["view"], **kwargs)
    model.config.use_cache = False
    if mode == "full":
        return model
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    checkpointing = settings["training"].get("gradient_checkpointing", False)
    if mode == "qlora":
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=checkpointing)
    elif checkpointing:
        model.enable_input_require_grads()
    config = LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM", **settings["lora"])
    return get_peft_model(model, config)


def main(path: str) -> None:
    settings = json.loads(Path(path).read_text(encoding="utf-8"))
    from step_timer import StepTimer
    from transformers import Trainer, TrainingArguments, set_seed

    rows = [json.loads(line) for line in Path(settings["rows"]).read_text().splitlines()]
    args = TrainingArguments(output_dir=settings["out"], remove_unused_columns=False, **settings["training"])
    set_seed(args.seed)
    timer = StepTimer(settings["warm_up"], settings["pad_token_id"])
    trainer = Trainer(
        model=load_model(settings),
        args=args,
        train_dataset=rows,
        data_collator=lambda batch: pad(batch, settings["pad_token_id"]),
        callbacks=[timer],
    )
    trainer.train()
    timer.report()


if __name__ == "__main__":
    main(sys.argv[1])
