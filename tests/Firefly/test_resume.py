"""A run that is cut and resumed logs, to the last bit, what the uncut run logs."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer

from .conftest import conversation

RECORDS = [conversation(i, turns=1 + i % 3) for i in range(14)]  # 14 records: the last batch of an epoch is a short one


class Cut(BaseException):
    """As kill -9 does it: nothing between it and the end of the process is told."""


@pytest.fixture
def cut_in_step(monkeypatch):
    """Return a function that makes training die in the middle of optimizer step ``step`` (from 1); None: no more."""
    whole = Trainer.training_step

    def set_up(step: int | None) -> None:
        def training_step(self, *args, **kwargs):
            loss = whole(self, *args, **kwargs)
            if self.state.global_step + 1 == step:
                raise Cut
            return loss

        monkeypatch.setattr(Trainer, "training_step", training_step)

    return set_up


def history(out: Path) -> list[dict]:
    """What was logged, without what depends on the clock."""
    entries = json.loads((out / "trainer_state.json").read_text())["log_history"]
    clock = ("runtime", "per_second")
    return [{k: v for k, v in entry.items() if not k.endswith(clock)} for entry in entries]


def same_weights(one: Path, two: Path) -> bool:
    (name,) = (path.name for path in one.glob("*model.safetensors"))
    a, b = load_file(one / name), load_file(two / name)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


CASES = {
    "lora, dropout": {"lora_dropout": 0.1},
    "full": {"train_mode": "full", "save_steps": 1},
    "logs between saves": {"logging_steps": 5, "save_steps": 3, "lora_dropout": 0.1},
    "accumulation, tail of an epoch": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3, "logging_steps": 2},
    "length groups": {"train_sampling_strategy": "group_by_length", "lora_dropout": 0.1},
    "workers": {"dataloader_num_workers": 2, "dataloader_persistent_workers": True, "lora_dropout": 0.1},
    "packing": {"packing": True, "per_device_train_batch_size": 1, "lora_dropout": 0.1},
    "evaluation every epoch": {"eval_ratio": 0.2, "eval_strategy": "epoch", "logging_strategy": "epoch", "save_steps": 3, "lora_dropout": 0.1},
    "schedule, noise": {"lr_scheduler_type": "cosine", "warmup_steps": 3, "neftune_noise_alpha": 5.0},
}  # fmt: skip


@pytest.mark.parametrize("change", CASES.values(), ids=CASES)
def test_cut_and_resumed_equals_uncut(train_main, write_args, tmp_path, cut_in_step, change):
    """Cut three times: inside an epoch, in its first step, in the step after the second resume."""
    common = {"max_steps": 11, "save_strategy": "steps", "save_steps": 2, "per_device_train_batch_size": 4, "logging_steps": 1}
    args = ["--train_args_file", write_args(RECORDS, **common | change)]
    assert train_main([*args, "--output_dir", str(tmp_path / "uncut")]) == 0
    cut = [*args, "--output_dir", str(tmp_path / "cut"), "--resume_from_checkpoint_path", "auto"]
    for step in (4, 9, 10):
        cut_in_step(step)
        with pytest.raises(Cut):
            train_main(cut)
    cut_in_step(None)
    assert train_main(cut) == 0
    assert history(tmp_path / "cut") == history(tmp_path / "uncut")
    assert same_weights(tmp_path / "cut", tmp_path / "uncut")
    results = [json.loads((tmp_path / name / "train_results.json").read_text()) for name in ("cut", "uncut")]
    assert results[0]["train_loss"] == results[1]["train_loss"]
