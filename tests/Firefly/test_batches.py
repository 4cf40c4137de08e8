"""Whole runs: flat rows against padded ones, and both against transformers' own Trainer and loss, step by step."""

import json
from pathlib import Path

import pytest
import torch


def run(train_main, write_args, tmp_path, name: str, **changes) -> list[dict]:
    out = tmp_path / name
    path = write_args(output_dir=str(out), train_mode="full", learning_rate=1e-3, max_steps=4, **changes)
    assert train_main(["--train_args_file", path]) == 0
    history = json.loads((out / "trainer_state.json").read_text())["log_history"]
    return [entry for entry in history if "loss" in entry]


def plain_losses(tiny_minicpm: Path, data: Path, accumulation: int) -> list[float]:
    """transformers' Trainer on padded batches with full logits and the model's own loss."""
    import transformers

    from Firefly.component.checkpoint import load_causal_lm, load_tokenizer
    from Firefly.component.collator import pad_batch
    from Firefly.component.prompt import encode_conversation, record_to_messages
    from Firefly.component.template import use_template

    tokenizer = load_tokenizer(tiny_minicpm)
    use_template(tokenizer, "minicpm4")
    records = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
    encoded = [encode_conversation(tokenizer, record_to_messages(record)) for record in records]
    rows = [{"input_ids": ids[:256], "labels": labels[:256]} for ids, labels in encoded]

    def collate(batch):
        padded = pad_batch(batch, tokenizer.pad_token_id)
        padded.pop("target_index")
        return padded

    args = transformers.TrainingArguments(
        output_dir="unused", max_steps=4, per_device_train_batch_size=4, gradient_accumulation_steps=accumulation,
        learning_rate=1e-3, logging_steps=1, save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True,
        remove_unused_columns=False,
    )  # fmt: skip
    transformers.set_seed(args.seed)
    model = load_causal_lm(tiny_minicpm, dtype=torch.float32)
    trainer = transformers.Trainer(model=model, args=args, train_dataset=rows, data_collator=collate)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("accumulation", [1, 4])
def test_flat_padded_and_plain_runs_are_one(train_main, write_args, tmp_path, tiny_minicpm, accumulation):
    changes = {"gradient_accumulation_steps": accumulation, "per_device_train_batch_size": 4}
    flat = run(train_main, write_args, tmp_path, "flat", **changes)
    padded = run(train_main, write_args, tmp_path, "padded", padding_free=False, **changes)
    eager = run(train_main, write_args, tmp_path, "eager", attn_implementation="eager", **changes)
    plain = plain_losses(tiny_minicpm, tmp_path / "train.jsonl", accumulation)
    assert len(flat) == len(plain) == 4
    for a, b, c, d in zip(flat, padded, eager, plain, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert a["loss"] == pytest.approx(c["loss"], rel=1e-5)
        assert a["loss"] == pytest.approx(d, abs=1e-4)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)
    assert flat[-1]["loss"] != flat[0]["loss"]


def test_results_say_how_fast_and_how_padded(train_main, write_args, tmp_path):
    for name, flat in (("flat", True), ("padded", False)):
        run(train_main, write_args, tmp_path, name, padding_free=flat)
        results = json.loads((tmp_path / name / "train_results.json").read_text())
        assert results["train_tokens_per_second"] > results["train_target_tokens_per_second"] > 0
        assert 0 < results["mfu"] < 1
        assert 0 <= results["data_wait_s"] < results["train_runtime"]
        assert (results["padding_share"] == 0) is flat
