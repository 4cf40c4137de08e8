"""train.py --estimate on a real tiny MiniCPM: what it prints, its exit code, and that it writes nothing."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch

from .conftest import ROOT, conversation


@pytest.mark.parametrize(
    "keys",
    [
        {"train_mode": "full", "gradient_accumulation_steps": 2, "save_strategy": "steps", "save_steps": 1},
        {"train_mode": "qlora", "gradient_checkpointing": True, "bf16": True, "eval_ratio": 0.25},
        {"packing": True, "report_to": "tensorboard"},
        {"padding_free": False, "train_sampling_strategy": "group_by_length"},
        {"eval_ratio": 0.25, "eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True,
         "save_strategy": "steps", "save_steps": 1, "early_stopping_patience": 2},
    ],
)  # fmt: skip
def test_a_run_on_this_machine_is_measured_and_nothing_written(train_main, write_args, tmp_path, capsys, keys):
    args = write_args(max_steps=-1, num_train_epochs=2, **keys)
    before = sorted(tmp_path.rglob("*"))
    assert train_main(["--train_args_file", args, "--estimate"]) == 0
    assert sorted(tmp_path.rglob("*")) == before
    out = capsys.readouterr().out
    rate, records = map(float, re.search(r"速度  (\d+) token/s，([\d.]+) 条/s", out).groups())
    assert rate > records > 0
    assert "峰值（实测）" in out
    assert "结论  放得下。" in out


def test_a_named_card_is_computed_and_nothing_written(train_main, write_args, tmp_path, capsys):
    args = write_args(train_mode="full", bf16=True, deepspeed=str(ROOT / "Firefly/train_args/ds_z3_config.json"))
    before = sorted(tmp_path.rglob("*"))
    assert train_main(["--train_args_file", args, "--estimate", "4090", "--num_train_epochs", "2"]) == 0
    assert sorted(tmp_path.rglob("*")) == before
    out = capsys.readouterr().out
    assert "4090 24.0 GiB" in out
    assert "另需内存" in out  # ZeRO-3 with offload, though this machine has no GPU
    assert "实测" not in out


def test_what_does_not_fit_is_3_with_changes_that_do(train_main, write_args, capsys):
    """The tiny model's step takes a few MiB beside the 0.6 GiB of CUDA's own."""
    args = write_args([conversation(i, turns=4) for i in range(16)], train_mode="full", per_device_train_batch_size=8)
    assert train_main(["--train_args_file", args, "--estimate", "0.61"]) == 3
    out = capsys.readouterr().out
    assert re.search(r"1\. --per_device_train_batch_size \d --gradient_accumulation_steps \d：需要 0\.6[01] GiB", out)
    assert train_main(["--train_args_file", args, "--estimate", "0.5"]) == 3
    assert "大一些的显卡" in capsys.readouterr().out


def test_a_card_nobody_knows_is_refused(train_main, write_args, capsys):
    assert train_main(["--train_args_file", write_args(), "--estimate", "Voodoo2"]) == 2
    assert "4090" in capsys.readouterr().err


@pytest.mark.parametrize("train_mode", ["full", "lora"])
def test_dpo_is_measured_but_not_worked_out(train_main, write_args, tmp_path, capsys, train_mode):
    pairs = [{"prompt": f"{i} 加一是几？", "chosen": str(i + 1) * (i + 1), "rejected": "不知道。"} for i in range(9)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    changes = {"task_type": "dpo", "train_mode": train_mode, "train_file": str(tmp_path / "pairs.jsonl")}
    args = write_args(max_steps=-1, num_train_epochs=2, per_device_train_batch_size=2, **changes)
    assert train_main(["--train_args_file", args, "--estimate"]) == 0
    out = capsys.readouterr().out
    assert "数据  9 条" in out
    assert "每轮 5 步，2 轮共 10 步" in out
    assert "峰值（实测）" in out
    assert train_main(["--train_args_file", args, "--estimate", "4090"]) == 2
    assert "只能实测" in capsys.readouterr().err


def test_a_gpu_that_runs_out_of_memory_is_answered_with_changes(train_main, write_args, capsys, monkeypatch):
    """No GPU here: the error that one raises is raised by hand."""

    def full(*args):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    module = sys.modules["train"]
    monkeypatch.setattr(module, "build_trainer", full)
    assert train_main(["--train_args_file", write_args(), "--estimate"]) == 3
    assert "实测：跑这一批时" in capsys.readouterr().out
    assert train_main(["--train_args_file", write_args()]) == 2
    err = capsys.readouterr().err
    assert "--estimate" in err
    assert "gradient_accumulation_steps" in err


@pytest.mark.slow
def test_two_processes_print_one_report(write_args):
    args = write_args(max_steps=-1, num_train_epochs=1)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "train.py",
         "--train_args_file", args, "--estimate"],
        cwd=ROOT / "Firefly", capture_output=True, text=True, timeout=200, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("结论") == 1
    assert "每步 8 条（每个进程 4 × 累积 1 × 2 个进程），每轮 2 步" in done.stdout
