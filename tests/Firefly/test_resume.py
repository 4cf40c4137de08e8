"""A run that is cut and resumed logs, to the last bit, what the uncut run logs."""

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer

from Firefly.component.saving import checkpoint_steps

from .conftest import ROOT, conversation

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


def cut_and_resume(train_main, arguments: list[str], folder: Path, cut_in_step, steps: tuple[int, ...]) -> None:
    """Train uncut, then with the same command again and again, cut in each of ``steps``; the two must be equal."""
    assert train_main([*arguments, "--output_dir", str(folder / "uncut")]) == 0
    cut = [*arguments, "--output_dir", str(folder / "cut"), "--resume_from_checkpoint_path", "auto"]
    for step in steps:
        cut_in_step(step)
        with pytest.raises(Cut):
            train_main(cut)
    cut_in_step(None)
    assert train_main(cut) == 0
    assert history(folder / "cut") == history(folder / "uncut")
    assert same_weights(folder / "cut", folder / "uncut")
    results = [json.loads((folder / name / "train_results.json").read_text()) for name in ("cut", "uncut")]
    assert results[0]["train_loss"] == results[1]["train_loss"]


COMMON = {
    "max_steps": 9,
    "save_strategy": "steps",
    "save_steps": 2,
    "per_device_train_batch_size": 4,
    "logging_steps": 1,
}
CASES = {
    "full, tail of an epoch, schedule": {
        "train_mode": "full", "per_device_train_batch_size": 2, "gradient_accumulation_steps": 3, "save_steps": 1,
        "lr_scheduler_type": "cosine", "warmup_steps": 3,
    },
    "lora, length groups, logs between saves": {
        "train_sampling_strategy": "group_by_length", "lora_dropout": 0.1, "logging_steps": 5, "neftune_noise_alpha": 5.0,
    },
    "evaluation and log at the end of an epoch": {
        "eval_ratio": 0.2, "eval_strategy": "epoch", "logging_strategy": "epoch", "save_steps": 3, "lora_dropout": 0.1,
    },
}  # fmt: skip
SLOW = {
    "qlora, 8-bit, packing": {
        "train_mode": "qlora", "optim": "adamw_8bit", "bf16": True, "packing": True, "per_device_train_batch_size": 1,
        "lora_dropout": 0.1,
    },
    "workers, dora, lora+, added tokens": {
        "dataloader_num_workers": 2, "lora_dropout": 0.1, "use_dora": True, "loraplus_lr_ratio": 8.0,
        "add_tokens": ["<|x|>"], "logging_steps": 3,
    },
    "best model, evaluation between saves, checkpointing": {
        "eval_ratio": 0.2, "eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True, "save_total_limit": 1,
        "gradient_checkpointing": True, "pissa_init": True, "logging_steps": 4,
    },
    "dpo, whose rewards are averaged between logs": {
        "task_type": "dpo", "train_file": str(ROOT / "data/samples/dpo_samples.jsonl"), "max_prompt_length": 100,
        "per_device_train_batch_size": 2, "lora_dropout": 0.1, "logging_steps": 3, "max_steps": 5,
    },
}  # fmt: skip


@pytest.mark.parametrize("change", CASES.values(), ids=CASES)
def test_cut_and_resumed_equals_uncut(train_main, write_args, tmp_path, cut_in_step, change):
    """Cut inside a later epoch than the first."""
    args = write_args(RECORDS, **COMMON | change)
    cut_and_resume(train_main, ["--train_args_file", args], tmp_path, cut_in_step, (8,))


@pytest.mark.slow
@pytest.mark.parametrize("change", SLOW.values(), ids=SLOW)
def test_cut_and_resumed_equals_uncut_in_other_modes(train_main, write_args, tmp_path, cut_in_step, change):
    args = write_args(RECORDS, **COMMON | change)
    cut_and_resume(train_main, ["--train_args_file", args], tmp_path, cut_in_step, (change.get("max_steps", 9) - 1,))


def test_a_damaged_checkpoint_is_passed_over_and_a_missing_final_model_made_up_for(
    train_main, write_args, tmp_path, capsys
):
    args = ["--train_args_file", write_args(RECORDS, **COMMON)]
    assert train_main(args) == 0
    out, whole = tmp_path / "out", tmp_path / "whole"
    shutil.copytree(out, whole)
    auto = [*args, "--resume_from_checkpoint_path", "auto"]
    assert train_main(auto) == 0  # a script that restarts its one command comes to an end
    assert "已经全部完成" in capsys.readouterr().err

    (out / "train_results.json").unlink()  # as after a kill while the final model was being saved
    (out / "adapter_model.safetensors").unlink()
    assert train_main(auto) == 0
    assert "只差保存最终模型" in capsys.readouterr().err
    assert same_weights(out, whole)
    assert history(out) == history(whole)

    (out / "train_results.json").unlink()
    weights = out / "checkpoint-9" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert train_main([*args, "--resume_from_checkpoint_path", str(out / "checkpoint-9")]) == 2
    assert "checkpoint-8" in (err := capsys.readouterr().err)
    assert "Traceback" not in err
    assert train_main(auto) == 0
    assert "checkpoint-9 已损坏（adapter_model.safetensors 应有" in capsys.readouterr().err
    assert same_weights(out, whole)
    assert history(out) == history(whole)
    assert same_weights(out / "checkpoint-9", whole / "checkpoint-9")


@pytest.fixture
def before_step(monkeypatch):
    """Return a function that lets ``act(trainer)`` happen once, before optimizer step ``step``."""
    whole = Trainer.training_step

    def set_up(step: int, act) -> None:
        to_do = [act]

        def training_step(self, *args, **kwargs):
            if self.state.global_step + 1 == step and to_do:
                to_do.pop()(self)
            return whole(self, *args, **kwargs)

        monkeypatch.setattr(Trainer, "training_step", training_step)

    return set_up


def poison(trainer) -> None:
    next(p for p in trainer.model.parameters() if p.requires_grad).data[0] = float("nan")


def test_nan_is_told_at_its_step_and_never_saved(train_main, write_args, tmp_path, before_step, capsys):
    before_step(3, poison)
    args = write_args(RECORDS, **COMMON | {"save_steps": 1, "logging_steps": 500})
    assert train_main(["--train_args_file", args]) == 2
    err = capsys.readouterr().err
    assert "第 3 步的 loss 是 nan" in err
    assert "Traceback" not in err
    assert checkpoint_steps(tmp_path / "out") == [1, 2]


def test_a_full_disk_ends_the_run_in_one_sentence_and_harms_nothing(
    train_main, write_args, tmp_path, before_step, capsys
):
    """A limit on the size of files stands for the disk; the same command goes on when there is room again."""
    args = ["--train_args_file", write_args(RECORDS, **COMMON), "--resume_from_checkpoint_path", "auto"]
    free = resource.getrlimit(resource.RLIMIT_FSIZE)
    before_step(6, lambda trainer: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, free[1])))
    try:
        assert train_main(args) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, free)
    err = capsys.readouterr().err
    assert "checkpoint-6：磁盘空间不足" in err
    assert "checkpoint-4 完好" in err
    assert "Traceback" not in err
    out = tmp_path / "out"
    assert checkpoint_steps(out) == [2, 4]
    assert not (out / ".part").exists()
    assert train_main(args) == 0
    assert json.loads((out / "trainer_state.json").read_text())["global_step"] == 9


def test_changes_since_the_checkpoint_are_named(train_main, write_args, tmp_path, capsys):
    assert train_main(["--train_args_file", write_args(RECORDS, **COMMON | {"max_steps": 2})]) == 0
    changed = [*RECORDS[:-1], conversation(50)]
    resume = [
        "--train_args_file",
        write_args(changed, **COMMON | {"max_steps": 3}),
        "--resume_from_checkpoint_path",
        "auto",
    ]
    assert train_main([*resume, "--lora_rank", "8"]) == 2
    assert "lora_rank 4 -> 8" in capsys.readouterr().err
    assert train_main([*resume, "--save_steps", "1"]) == 0
    err = capsys.readouterr().err
    assert "max_steps 2 -> 3" in err
    assert "训练数据内容" in err
    assert "训练数据条数" not in err


def launch(args: list[str], processes: int = 1) -> subprocess.Popen:
    program = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    command = [sys.executable, *program, "train.py", *args]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT / "Firefly", stderr=subprocess.PIPE, text=True, env=env)


@pytest.mark.slow
def test_kill_9_and_a_second_run_in_the_same_folder(train_main, write_args, tmp_path, capsys):
    long = {"max_steps": 400, "save_steps": 5, "save_total_limit": 2, "lr_scheduler_type": "constant"}
    args = ["--train_args_file", write_args(RECORDS, **COMMON | long)]
    args += ["--resume_from_checkpoint_path", "auto"]
    first = launch([*args, "--dataloader_num_workers", "2"])
    for line in first.stderr:
        if "步 17/" in line:
            break
    assert train_main(args) == 2
    assert f"进程 {first.pid}" in capsys.readouterr().err
    first.kill()
    first.communicate()
    steps = checkpoint_steps(tmp_path / "out")
    assert 1 <= len(steps) <= 2
    more = [*args, "--max_steps", str(steps[-1] + 2)]
    assert train_main(more) == 0
    assert f"从 {tmp_path}/out/checkpoint-{steps[-1]} 继续训练" in capsys.readouterr().err
    assert train_main([*args, "--max_steps", str(steps[-1] + 2), "--output_dir", str(tmp_path / "uncut")]) == 0
    one, two = (
        [{k: e[k] for k in ("step", "loss", "grad_norm")} for e in history(tmp_path / name) if "loss" in e]
        for name in ("out", "uncut")
    )
    assert one == two


@pytest.mark.slow
def test_two_processes_resume_exactly_and_one_takes_over_from_two(train_main, write_args, tmp_path, capsys):
    """Inside the second epoch, where length groups are another order and their sampler stands behind two wrappers."""
    same = {
        "max_steps": 7,
        "save_steps": 1,
        "lora_dropout": 0.1,
        "logging_steps": 2,
        "train_sampling_strategy": "group_by_length",
    }
    args = ["--train_args_file", write_args(RECORDS[:12], **COMMON | same | {"per_device_train_batch_size": 2})]
    folders = {name: tmp_path / name for name in ("uncut", "cut", "one")}

    def run_two(name: str) -> None:
        process = launch([*args, "--output_dir", str(folders[name]), "--resume_from_checkpoint_path", "auto"], 2)
        errors = process.communicate(timeout=200)[1]
        assert process.returncode == 0, errors

    run_two("uncut")
    for name in ("cut", "one"):
        shutil.copytree(folders["uncut"] / "checkpoint-5", folders[name] / "checkpoint-5")
    run_two("cut")
    assert history(folders["cut"]) == history(folders["uncut"])
    assert same_weights(folders["cut"], folders["uncut"])
    assert sorted(path.name for path in (folders["cut"] / "checkpoint-7").glob("*_[01].*")) == [
        "rng_state_0.pth", "rng_state_1.pth", "running_0.json", "running_1.json"]  # fmt: skip

    one = [
        "--output_dir",
        str(folders["one"]),
        "--resume_from_checkpoint_path",
        "auto",
        "--per_device_train_batch_size",
        "4",
    ]
    assert train_main([*args, *one]) == 0
    assert "进程数 2 -> 1：数据顺序不变" in capsys.readouterr().err
    losses = [[entry["loss"] for entry in history(folders[name]) if "loss" in entry] for name in ("one", "uncut")]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)  # dropout draws other numbers
