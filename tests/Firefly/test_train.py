"""train.py on a real tiny MiniCPM: what it writes, what it promises about the loss, and how it answers bad input."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from Firefly.component.checkpoint import load_causal_lm, load_tokenizer
from Firefly.component.prompt import encode_conversation, record_to_messages

from .conftest import ROOT, conversation


def logged(out: Path, key: str) -> list[float]:
    history = json.loads((out / "trainer_state.json").read_text())["log_history"]
    return [entry[key] for entry in history if key in entry]


def test_lora_run_writes_everything_it_promises(train_main, write_args, tmp_path):
    out = tmp_path / "out"
    args = write_args(report_to="tensorboard", eval_ratio=0.25, save_strategy="steps", save_steps=1)
    assert train_main(["--train_args_file", args]) == 0
    for name in (
        "train.log",
        "train_args.json",
        "train_results.json",
        "trainer_state.json",
        "adapter_model.safetensors",
    ):
        assert (out / name).stat().st_size > 0, name
    assert list((out / "runs").rglob("events*"))
    results = json.loads((out / "train_results.json").read_text())
    assert results["train_records"] == 12
    assert 0 < results["eval_loss"] < 20
    tokenizer = load_tokenizer(out)
    assert "bos_token" in tokenizer.chat_template  # the template in use travels with the adapter
    assert (
        tokenizer.convert_tokens_to_ids("<|im_end|>")
        in json.loads((out / "generation_config.json").read_text())["eos_token_id"]
    )
    assert (out / "checkpoint-1" / "chat_template.jinja").exists()


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_accumulation_changes_neither_loss_nor_gradient(train_main, write_args, tmp_path, mode):
    """Records of very different length: a mean of micro-batch means would differ. One SGD step shows the gradient."""
    records = [conversation(i, turns=1 + 3 * (i % 2)) for i in range(8)]
    weights, losses = [], []
    for micro, accumulation in ((8, 1), (2, 4), (1, 8)):
        out = tmp_path / f"{micro}x{accumulation}"
        args = write_args(
            records, train_mode=mode, output_dir=str(out), max_steps=1, optim="sgd", learning_rate=1.0, max_grad_norm=0,
            lr_scheduler_type="constant", per_device_train_batch_size=micro, gradient_accumulation_steps=accumulation, lora_dropout=0.0,
        )  # fmt: skip
        assert train_main(["--train_args_file", args]) == 0
        losses.append(logged(out, "loss")[0])
        weights.append(load_file(out / ("model.safetensors" if mode == "full" else "adapter_model.safetensors")))
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)
    for other in weights[1:]:
        for name, tensor in weights[0].items():
            torch.testing.assert_close(other[name], tensor, rtol=1e-4, atol=1e-5, msg=name)


def test_loss_is_the_mean_over_all_target_tokens(train_main, write_args, tmp_path, tiny_minicpm):
    """The first logged loss and the held-out loss, against a slow loop over single records."""
    records = [conversation(i, turns=1 + i % 3) for i in range(8)]
    eval_file = tmp_path / "eval.jsonl"
    eval_file.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records))
    args = write_args(records, max_steps=1, learning_rate=0.0, per_device_train_batch_size=8, eval_file=str(eval_file),
                      eval_strategy="steps", eval_steps=1, per_device_eval_batch_size=3, lora_dropout=0.0)  # fmt: skip
    assert train_main(["--train_args_file", args]) == 0
    tokenizer, model = load_tokenizer(tmp_path / "out"), load_causal_lm(tiny_minicpm, dtype=torch.float32)
    total, count = 0.0, 0
    for record in records:
        ids, labels = (torch.tensor(x)[None] for x in encode_conversation(tokenizer, record_to_messages(record)))
        with torch.no_grad():
            logits = model(ids).logits
        total += torch.nn.functional.cross_entropy(
            logits[0, :-1], labels[0, 1:], ignore_index=-100, reduction="sum"
        ).item()
        count += (labels[0, 1:] != -100).sum().item()
    assert logged(tmp_path / "out", "loss")[0] == pytest.approx(total / count, rel=1e-5)
    assert logged(tmp_path / "out", "eval_loss")[0] == pytest.approx(total / count, rel=1e-5)


def test_full_run_saves_minicpm_again_and_stage_two_starts_from_it(train_main, write_args, tmp_path, tiny_minicpm):
    assert train_main(["--train_args_file", write_args(train_mode="full", output_dir=str(tmp_path / "s1"))]) == 0
    config = json.loads((tmp_path / "s1" / "config.json").read_text())
    assert config["architectures"] == ["MiniCPMForCausalLM"]
    assert config["scale_depth"] == json.loads((tiny_minicpm / "config.json").read_text())["scale_depth"]
    args = write_args(output_dir=str(tmp_path / "s2"), model_name_or_path=str(tmp_path / "s1"))
    assert train_main(["--train_args_file", args]) == 0


def test_stage_two_goes_on_with_the_adapter_of_stage_one(train_main, write_args, tmp_path):
    assert train_main(["--train_args_file", write_args(output_dir=str(tmp_path / "s1"))]) == 0
    args = write_args(
        output_dir=str(tmp_path / "s2"), adapter_name_or_path=str(tmp_path / "s1"), max_steps=1, learning_rate=0.0
    )
    assert train_main(["--train_args_file", args]) == 0
    before, after = (load_file(tmp_path / s / "adapter_model.safetensors") for s in ("s1", "s2"))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_resume_continues_and_refuses_a_finished_run(train_main, write_args, tmp_path, capsys):
    args = write_args(max_steps=4, save_strategy="steps", save_steps=2, output_dir=str(tmp_path / "whole"), seed=7)
    assert train_main(["--train_args_file", args]) == 0
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "cut" / "checkpoint-2")
    resume = [
        "--train_args_file",
        args,
        "--output_dir",
        str(tmp_path / "cut"),
        "--resume_from_checkpoint_path",
        str(tmp_path / "cut"),
    ]
    assert train_main(resume) == 0
    whole, cut = (load_file(tmp_path / n / "adapter_model.safetensors") for n in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    capsys.readouterr()
    assert train_main(resume) == 2
    assert "merge_lora.py" in (err := capsys.readouterr().err)
    assert "共 4 步" in err
    resume[-1] = str(tmp_path)
    assert train_main(resume) == 2
    assert "没有 checkpoint-N" in capsys.readouterr().err


def test_records_without_targets_are_counted_named_and_left_out(train_main, write_args, tmp_path, capsys):
    long_question = conversation(0)
    long_question["conversation"][0]["human"] = "为什么" * 300
    args = write_args([*(conversation(i) for i in range(4)), long_question])
    assert train_main(["--train_args_file", args]) == 0
    results = json.loads((tmp_path / "out" / "train_results.json").read_text())
    assert (results["train_records"], results["dropped"]) == (4, {"no_target_after_truncation": 1})
    assert "train.jsonl:5" in capsys.readouterr().err
    assert train_main(["--train_args_file", write_args([long_question], output_dir=str(tmp_path / "none"))]) == 2
    assert "max_seq_length" in capsys.readouterr().err


def test_nan_stops_with_advice(train_main, write_args, capsys):
    args = write_args(train_mode="full", learning_rate=1e30, max_steps=5, max_grad_norm=0)
    assert train_main(["--train_args_file", args]) == 2
    assert "learning_rate" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"conversation": [{"human": "问"}]}', ["train.jsonl:2", "assistant"]),
        ('{"text": "x"}', ["train.jsonl:2", "conversation"]),
        ('{"conversation": [{"human": "问", "assistant": 3}]}', ["train.jsonl:2", "字符串"]),
        ('{"conversation": [', ["train.jsonl:2", "JSON"]),
        ("\x00\x01", ["train.jsonl:2"]),
    ],
)
def test_bad_lines_are_named(train_main, write_args, tmp_path, capsys, line, words):
    args = write_args([conversation(0)])
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write(line + "\n")
    assert train_main(["--train_args_file", args]) == 2
    err = capsys.readouterr().err
    assert all(word in err for word in words), err
    assert err.count("错误") == 1


def test_gbk_data_is_named(train_main, write_args, tmp_path, capsys):
    args = write_args()
    (tmp_path / "train.jsonl").write_bytes(json.dumps(conversation(0), ensure_ascii=False).encode("gbk"))
    assert train_main(["--train_args_file", args]) == 2
    assert "UTF-8" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"template_name": "minicmp4"}, ["minicmp4", "minicpm4"]),
        ({"train_file": "nowhere.jsonl"}, ["nowhere.jsonl"]),
        ({"model_name_or_path": "./nowhere"}, ["nowhere"]),
        ({"learning_rte": 1}, ["learning_rate"]),
        ({"lora_target_modules": ["nothing"]}, ["lora_target_modules"]),
        ({"adapter_name_or_path": "."}, ["adapter_config.json"]),
        ({"train_mode": "lora", "task_type": "rl"}, ["task_type", "sft"]),
    ],
)
def test_bad_arguments_are_one_sentence(train_main, write_args, capsys, change, words):
    assert train_main(["--train_args_file", write_args(**change)]) == 2
    err = capsys.readouterr().err
    assert all(word in err for word in words), err
    assert "Traceback" not in err


def test_empty_file_and_model_without_weights(train_main, write_args, tmp_path, tiny_minicpm, capsys):
    assert train_main(["--train_args_file", write_args([])]) == 2
    assert "没有一条记录" in capsys.readouterr().err
    shutil.copytree(tiny_minicpm, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    assert train_main(["--train_args_file", write_args(model_name_or_path=str(tmp_path / "bare"))]) == 2
    assert "权重" in capsys.readouterr().err


def test_an_output_folder_with_files_is_left_alone(train_main, write_args, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("x")
    assert train_main(["--train_args_file", write_args()]) == 2
    assert "overwrite_output_dir" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["mine.txt"]
    assert train_main(["--train_args_file", write_args(overwrite_output_dir=True)]) == 0


@pytest.mark.slow
def test_ctrl_c_saves_a_checkpoint_that_resumes(train_main, write_args, tmp_path):
    args = write_args(max_steps=2000, save_strategy="no")
    command = [sys.executable, "train.py", "--train_args_file", args]
    process = subprocess.Popen(command, cwd=ROOT / "Firefly", stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if "步 2/" in line:
            break
    process.send_signal(signal.SIGINT)
    deadline = time.monotonic() + 60
    rest = process.communicate(timeout=deadline - time.monotonic())[1]
    assert process.returncode == 130, rest
    (checkpoint,) = (tmp_path / "out").glob("checkpoint-*")
    step = int(checkpoint.name.rpartition("-")[2])
    more = ["--max_steps", str(step + 1), "--resume_from_checkpoint_path", str(tmp_path / "out")]
    assert train_main(["--train_args_file", args, *more]) == 0
    assert json.loads((tmp_path / "out" / "trainer_state.json").read_text())["global_step"] == step + 1


@pytest.mark.slow
def test_two_processes_equal_one(train_main, write_args, tmp_path):
    """torchrun on gloo: the same global batch gives the same losses; no held-out record counts twice (5 over 2)."""
    records = [conversation(i, turns=1 + i % 3) for i in range(16)]
    eval_file = tmp_path / "eval.jsonl"
    eval_file.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records[:5]))
    same = {"max_steps": 3, "train_sampling_strategy": "sequential", "eval_file": str(eval_file), "lora_dropout": 0.0}
    args = write_args(records, **same, per_device_train_batch_size=4, output_dir=str(tmp_path / "one"))
    assert train_main(["--train_args_file", args]) == 0
    args = write_args(records, **same, per_device_train_batch_size=2, output_dir=str(tmp_path / "two"))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "train.py"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([*launch, "--train_args_file", args], cwd=ROOT / "Firefly", check=True, env=env, timeout=180)
    assert logged(tmp_path / "two", "loss") == pytest.approx(logged(tmp_path / "one", "loss"), rel=1e-4)
    one, two = (json.loads((tmp_path / n / "train_results.json").read_text()) for n in ("one", "two"))
    assert two["eval_target_tokens"] == one["eval_target_tokens"]
    assert two["eval_loss"] == pytest.approx(one["eval_loss"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["qlora", "lora", "full"])
def test_the_three_minicpm4_files_run(train_main, write_args, tmp_path, tiny_minicpm, mode):
    """As they are, but for paths and the number of steps: bf16, NF4, paged AdamW, gradient checkpointing and all."""
    data = json.loads(Path(write_args()).read_text())["train_file"]
    args = ROOT / "Firefly" / "train_args" / "sft" / mode / f"minicpm4-0.5b-sft-{mode}.json"
    change = [
        "--train_file",
        data,
        "--model_name_or_path",
        str(tiny_minicpm),
        "--output_dir",
        str(tmp_path / mode),
        "--max_steps",
        "1",
    ]
    assert train_main(["--train_args_file", str(args), *change]) == 0
    assert (tmp_path / mode / "train_results.json").exists()
