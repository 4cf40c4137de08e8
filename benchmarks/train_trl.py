"""Contender (b): TRL's SFTTrainer, padded, or packed best-fit. Argument: the settings that bench_train.py wrote.

Reads rows tokenised by this project (TRL takes input_ids and labels as they are), so that labels are the same.
"""

import json
import sys
from pathlib import Path


def main(path: str) -> None:
    settings = json.loads(Path(path).read_text(encoding="utf-8"))
    import torch
    import trl
    from datasets import Dataset
    from step_timer import StepTimer
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    rows = [json.loads(line) for line in Path(settings["rows"]).read_text().splitlines()]
    training = {"bf16": False, "gradient_checkpointing": False} | settings["training"]  # both on by default in TRL
    args = SFTConfig(
        output_dir=settings["out"],
        max_length=settings["max_length"],
        packing=settings["packed"],
        shuffle_dataset=False,
        **training,
    )
    timer = StepTimer(settings["warm_up"], settings["pad_token_id"])
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(settings["view"], dtype=torch.float32),
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(settings["view"]),
        callbacks=[timer],
    )
    trainer.train()
    timer.report(trl=trl.__version__)


if __name__ == "__main__":
    main(sys.argv[1])
